"""The commands in the documentation: executed where a block is tagged ``run``, else only read.

    python test/docs_check.py [FILE ...]        what `make docs-check` does

A bash block may have a tag: ``run`` (executed, in the order of its file), ``ros`` (wants a running
ROS graph or an installed workspace), ``data`` (wants data that are not in the repository),
``train`` (takes long).  The options of this package's own commands are held against --help in all
of them, run or not.
"""

import argparse
import contextlib
from dataclasses import dataclass
from functools import cache
import importlib
import importlib.util
import io
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import tempfile

REPOSITORY = Path(__file__).resolve().parent.parent
TAGS = ('', 'run', 'ros', 'data', 'train')
# What a run may write to; everything else of the repository is shown to it by links.
OUTPUTS = ('runs', 'demo', '.venv', '.git', 'build', 'install', 'log')
PACKAGE_RUN = ('ros2', 'run', 'crossview_localizer')
LAUNCH = ('ros2', 'launch', 'crossview_localizer', 'robotcar.launch.py')
LAUNCH_FILE = REPOSITORY / 'launch/robotcar.launch.py'
OWN_PACKAGES = ('crossview_localizer', 'training', 'benchmarks')
FOLDERS = (
    *OWN_PACKAGES, 'config', 'docs', 'fusion', 'launch', 'maps', 'matching', 'networks', 'ros')
OTHERS_VARIABLES = ('PIP_', 'ROS_', 'RMW_', 'FASTDDS_', 'FASTRTPS_')     # of the environment


@dataclass(frozen=True)
class Block:
    """One fenced block of a Markdown file; ``line`` is that of its fence."""

    path: Path
    line: int
    language: str
    tag: str
    text: str

    def __str__(self) -> str:
        return f'{self.path.relative_to(REPOSITORY)}:{self.line}'


def documents() -> list[Path]:
    return [REPOSITORY / 'README.md', REPOSITORY / 'config/weights/README.md',
            *sorted((REPOSITORY / 'docs').glob('*.md'))]


def blocks(path: Path) -> list[Block]:
    found = []
    pattern = re.compile(r'^( *)```(\S*) *(.*?)\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
    content = path.read_text()
    for match in pattern.finditer(content):
        line = content.count('\n', 0, match.start()) + 1
        found.append(Block(path, line, match[2], match[3].strip(), match[4]))
    return found


def commands(text: str) -> list[list[str]]:
    """The simple commands of a shell script, as words; comments and redirections are dropped."""
    text = re.sub(r'(^|\s)#.*', r'\1', text.replace('\\\n', ' '))
    lexer = shlex.shlex(text, posix=True, punctuation_chars='();<>|&\n')
    lexer.whitespace = ' \t'    # the end of a line separates commands
    lexer.whitespace_split = True
    lexer.commenters = ''
    found, words = [], []
    for word in lexer:
        if word and set(word) <= set('();|&\n'):
            found.append(words)
            words = []
        else:
            words.append(word)
    found.append(words)
    return [words for words in found if words]


def inline_commands(path: Path) -> list[list[str]]:
    """Commands of this package in code spans: those of setup.py, ``ros2 run``, ``python -m``."""
    text = re.sub(r'^( *)```.*?^\1```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for span in re.findall(r'`([^`]+)`', text):
        words = span.split()
        if len(words) > 1 and words[0] in entry_points():
            words = [*PACKAGE_RUN, *words]
        if words and words[0] in ('ros2', 'python', 'make'):
            found.append(words)
    return found


def problems(words: list[str]) -> list[str]:
    """What is wrong with a command of this package; nothing for commands of others."""
    words = [word for at, word in enumerate(words)
             if not (re.fullmatch(r'\w+=.*', word) and all('=' in w for w in words[:at]))]
    if tuple(words[:4]) == LAUNCH:
        return _launch_problems(words[4:])
    if tuple(words[:3]) == PACKAGE_RUN and len(words) > 3:
        module = entry_points().get(words[3])
        if module is None:
            return [f'{words[3]} is no command of the package']
        return _option_problems(module, words[4:])
    if len(words) > 2 and Path(words[0]).name.startswith('python') and words[1] == '-m':
        if words[2].split('.')[0] in OWN_PACKAGES:
            return _option_problems(words[2], words[3:])
    if words and words[0] == 'make':
        return _make_problems(words[1:])
    return []


def wrong_commands(path: Path) -> list[str]:
    """What is wrong with the commands of a document, and where."""
    of_blocks = [
        f'{block}: {text}' for block in blocks(path) if block.language == 'bash'
        for words in commands(block.text) for text in problems(words)]
    return of_blocks + [
        f'{path.name}, `{" ".join(words)}`: {text}' for words in inline_commands(path)
        for text in problems(words)]


@cache
def entry_points() -> dict[str, str]:
    """Command -> module, of setup.py."""
    text = (REPOSITORY / 'setup.py').read_text()
    return dict(re.findall(r"'(\w+) = ([\w.]+):main'", text))


@cache
def help_of(module: str, *subcommand: str) -> str | None:
    """What --help prints; None where there is no such command."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:     # not even the package around it
        spec = None
    if spec is None:
        return None
    is_package = spec.submodule_search_locations is not None
    main = importlib.import_module(f'{module}.__main__' if is_package else module).main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*subcommand, '--help'])
    return printed.getvalue()


def _option_problems(module: str, arguments: list[str]) -> list[str]:
    text = help_of(module)
    if text is None:
        return [f'there is no command {module}']
    subcommands = re.search(r'\{([\w,]+)\} \.\.\.', text)
    if subcommands and arguments and not arguments[0].startswith('-'):
        if arguments[0] not in subcommands[1].split(','):
            return [f'{module} has no command {arguments[0]}']
        text = help_of(module, arguments[0])
    known = set(re.findall(r'(?<![\w-])--?[A-Za-z][\w-]*', text))
    own, ros = arguments, []
    if '--ros-args' in arguments:
        at = arguments.index('--ros-args')
        own, ros = arguments[:at], arguments[at + 1:]
    found = [f'{module} has no option {word}' for word in (w.split('=')[0] for w in own)
             if re.match(r'--?[A-Za-z]', word) and word not in known]
    for option, value in zip(ros, ros[1:]):
        if option == '-p' and not is_parameter(value.split(':=')[0]):
            found.append(f'there is no parameter {value.split(":=")[0]}')
    return found


def is_parameter(name: str) -> bool:
    from crossview_localizer.config import LocalizerConfig, NodeConfig, tunables
    from crossview_localizer.parameter_file import ROS_PARAMETERS
    from crossview_localizer.scene import SceneConfig
    return name in {
        *tunables(NodeConfig()), *tunables(LocalizerConfig()), *tunables(SceneConfig()),
        *ROS_PARAMETERS}


def _launch_problems(arguments: list[str]) -> list[str]:
    known = set(re.findall(r"^    '(\w+)': \(", LAUNCH_FILE.read_text(), re.MULTILINE))
    given = [word.split(':=')[0] for word in arguments if ':=' in word]
    return [f'robotcar.launch.py has no argument {name}' for name in given if name not in known]


def _make_problems(arguments: list[str]) -> list[str]:
    text = (REPOSITORY / 'Makefile').read_text()
    found = []
    for word in arguments:
        name, assigned, _ = word.partition('=')
        known = f'$({name})' in text if assigned else re.search(
            rf'^{re.escape(name)}:', text, re.MULTILINE)
        if not known:
            found.append(f'the Makefile does not know {word}')
    return found


def unknown_names(path: Path) -> list[str]:
    """Files, parameters and constants in the code spans of a document that the code lacks."""
    text = re.sub(r'^( *)```.*?^\1```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [name for name in re.findall(r'`([\w./]+)`', text) if not _is_known(name)]


def _is_known(name: str) -> bool:
    if re.fullmatch(r'(filter|match|camera)\.\w+', name):
        return is_parameter(name)
    if re.fullmatch(r'[A-Z][A-Z0-9]*_[A-Z0-9_]+', name):
        return name.startswith(OTHERS_VARIABLES) or name in _code()
    if name.endswith('.py') or name.split('/')[0] in FOLDERS and '/' in name.rstrip('./'):
        return any((folder / name).exists() for folder in (
            REPOSITORY, REPOSITORY / 'crossview_localizer'))
    return True


@cache
def _code() -> str:
    files = [path for folder in OWN_PACKAGES for path in (REPOSITORY / folder).rglob('*.py')]
    return '\n'.join(path.read_text() for path in (*files, REPOSITORY / 'Makefile'))


def links(path: Path) -> list[str]:
    """Targets of the links and pictures of a document, without those to the web."""
    text = re.sub(r'^( *)```.*?^\1```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r'(?:\]\(|<img src=")([^)\s"]+)', text)
            if not re.match(r'[a-z]+:', target)]


def anchors(path: Path) -> set[str]:
    """Heading anchors as the usual Markdown hosts make them."""
    text = re.sub(r'^( *)```.*?^\1```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def execute(path: Path, folder: Path) -> int:
    """Run a document's ``run`` blocks in one shell in a folder that looks like the repository."""
    script = '\n'.join(
        f'echo "--- {block}"\n{block.text}' for block in blocks(path) if block.tag == 'run')
    if not script:
        return 0
    for entry in REPOSITORY.iterdir():
        if entry.name not in OUTPUTS:
            (folder / entry.name).symlink_to(entry)
    # The environment that this runs in stands for the one that `make env` would set up.
    (folder / '.venv').symlink_to(sys.prefix)
    environment = {'CROSSVIEW_DATA': str(REPOSITORY.parent / 'shared/data')} | os.environ | {
        'PYTHONPATH': os.pathsep.join(
            filter(None, [str(folder), os.environ.get('PYTHONPATH')]))}
    return subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', script], cwd=folder, env=environment).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Run the documentation's commands.",
        epilog='example: python test/docs_check.py docs/quickstart.md')
    parser.add_argument('documents', nargs='*', type=Path, metavar='FILE', help='default: all')
    chosen = [path.resolve() for path in parser.parse_args(argv).documents] or documents()
    sys.path.insert(0, str(REPOSITORY))

    wrong = [text for path in chosen for text in wrong_commands(path)]
    failed = []
    for path in chosen:
        with tempfile.TemporaryDirectory() as folder:
            if execute(path, Path(folder)):
                failed.append(f'{path.relative_to(REPOSITORY)}: a command failed')
    print('\n'.join([*wrong, *failed]) or 'every command of the documentation is right')
    return 1 if wrong or failed else 0


if __name__ == '__main__':
    sys.exit(main())
