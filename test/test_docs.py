"""The documentation says what is: its links, its commands and their options, its tables."""

from pathlib import Path
import re
import sys

import docs_check
from docs_check import blocks, commands, documents, problems
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in documents()]


def test_a_script_is_taken_apart_into_its_commands():
    found = commands("a=1 && b --x 'y z' \\\n  -c # d\nX=2 make demo | tee log; cd ..")
    assert found == [['a=1'], ['b', '--x', 'y z', '-c'], ['X=2', 'make', 'demo'], ['tee', 'log'],
                     ['cd', '..']]


@pytest.mark.parametrize('command, text', [
    ('ros2 run crossview_localizer build_map a.tif --weight w --area', 'no option --weight'),
    ('ros2 run crossview_localizer buildmap', 'no command of the package'),
    ('python -m training.nothing', 'no command training.nothing'),
    ('python -m training.benchmarks kitty --root a', 'has no command kitty'),
    ('python -m training.benchmarks kitti --root a --maps b', 'no option --maps'),
    ('ros2 launch crossview_localizer robotcar.launch.py bags:=drive', 'no argument bags'),
    ('python -m crossview_localizer.node --ros-args -p map:=a.map', 'no parameter map'),
    ('make demos', 'does not know demos'),
    ('SEED=3 make demo SEEDS=7', 'does not know SEEDS=7'),
])
def test_a_wrong_command_is_found(ros, command, text):
    found = [problem for words in commands(command) for problem in problems(words)]
    assert len(found) == 1 and text in found[0]


@pytest.mark.parametrize('path', DOCUMENTS)
def test_every_command_and_option_exists(ros, path):
    wrong = docs_check.wrong_commands(path)
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('path', DOCUMENTS)
def test_every_file_parameter_and_constant_that_is_named_exists(ros, path):
    assert not docs_check.unknown_names(path)


def test_a_name_that_the_code_lacks_is_found(ros, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('`ros/gone.py` `filter.gone_m` `GONE_M` `JUMP_M` `fusion/belief.py` `run1`')
    assert docs_check.unknown_names(page) == ['ros/gone.py', 'filter.gone_m', 'GONE_M']


@pytest.mark.parametrize('path', DOCUMENTS)
def test_every_block_has_a_known_tag_and_is_closed(path):
    assert path.read_text().count('```') == 2 * len(blocks(path))
    for block in blocks(path):
        if block.language == 'bash':
            assert block.tag in docs_check.TAGS, block


@pytest.mark.parametrize('path', DOCUMENTS)
def test_every_link_leads_somewhere(path):
    for target in docs_check.links(path):
        name, _, anchor = target.partition('#')
        file = path.parent / name if name else path
        assert file.exists(), f'{path.name}: {target}'
        if anchor:
            assert anchor in docs_check.anchors(file), f'{path.name}: {target}'


@pytest.mark.parametrize('path', DOCUMENTS)
def test_every_parameter_of_an_example_file_is_one(path, tmp_path):
    from crossview_localizer.parameter_file import read_parameters
    for block in blocks(path):
        if block.language == 'yaml' and '/**' in block.text:
            (tmp_path / 'example.yaml').write_text(block.text)
            read_parameters(tmp_path / 'example.yaml')


def test_the_tables_of_topics_and_parameters_name_what_exists(ros):
    from crossview_localizer.config import LocalizerConfig, NodeConfig, tunables
    values = {**tunables(NodeConfig()), **tunables(LocalizerConfig())}
    text = (REPOSITORY / 'docs/own_vehicle.md').read_text()
    table = re.findall(r'^\| `([\w.]+)` \| (\S+) \|', text, re.MULTILINE)
    assert len(table) == 12
    for name, default in table:
        found = values[name][0]
        assert default.strip('`') == {'': 'none'}.get(found, f'{found:g}' if isinstance(
            found, float) else str(found)), name


def test_commands_in_the_text_are_read_too(ros, tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    page.write_text('Say `doctor --mapp a.map`, `make demo`, `map`, then\n```bash\nfalse\n```\n')
    assert [text.rpartition(': ')[2] for text in docs_check.wrong_commands(page)] == [
        'crossview_localizer.doctor has no option --mapp']


def test_every_tool_is_described():
    page = (REPOSITORY / 'docs/tools.md').read_text()
    assert not [name for name in docs_check.entry_points() if f'| `{name}` |' not in page]


def repository_tools() -> list[str]:
    """Modules of training/ and benchmarks/ that a user runs; two serve ``benchmarks.speed``."""
    names = {
        re.sub(r'\.__(main|init)__$', '', '.'.join(path.relative_to(REPOSITORY).parts)[:-3])
        for folder in ('training', 'benchmarks') for path in (REPOSITORY / folder).rglob('*.py')
        if "__name__ == '__main__'" in path.read_text()}
    return sorted(names - {'benchmarks.speed.timed_node', 'benchmarks.speed.training_rank'})


def test_every_tool_of_the_repository_is_described_and_has_an_example(ros):
    page = (REPOSITORY / 'docs/tools.md').read_text()
    assert not [name for name in repository_tools() if f'`{name}`' not in page]
    assert not [name for name in repository_tools()
                if f'python -m {name} ' not in ' '.join(docs_check.help_of(name).split())]


def test_some_commands_of_the_documents_are_executed():
    executed = [block for path in documents() for block in blocks(path) if block.tag == 'run']
    assert len(executed) >= 2


def test_documents_are_executed_in_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_check, 'REPOSITORY', tmp_path / 'repository')
    (tmp_path / 'repository').mkdir()
    document = tmp_path / 'repository/a.md'
    folder = tmp_path / 'folder'
    folder.mkdir()
    document.write_text('```bash run\ntest -e a.md && touch made\n```\n```bash ros\nfalse\n```\n')
    assert docs_check.execute(document, folder) == 0
    assert (folder / 'made').exists() and not (tmp_path / 'repository/made').exists()
    (tmp_path / 'other').mkdir()
    document.write_text('```bash run\nfalse\ntrue\n```\n')
    assert docs_check.execute(document, tmp_path / 'other') != 0
    assert Path(sys.prefix) == (folder / '.venv').resolve()
