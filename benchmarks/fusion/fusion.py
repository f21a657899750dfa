"""The filter on real errors and logs: outages, lies, receivers, spoofing, calibration, a peer.

docs/fusion.md says what is simulated, and how. Writes ``fusion.json``, which says of each result
with which seeds, commit and weights it was measured, its pictures and ``frames.csv.gz``, one line
per estimate, and into docs/results also the tables of docs/fusion.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
import json
import os
from pathlib import Path
import subprocess

from benchmarks import DENSE_WEIGHTS, REPOSITORY
from benchmarks.fusion.demo_drives import DRIVE_S as DEMO_DRIVE_S
from benchmarks.fusion.demo_drives import render_drives, run_drives
from benchmarks.fusion.estimates import EstimateLines
from benchmarks.fusion.figures import draw
from benchmarks.fusion.lies import run_lies
from benchmarks.fusion.matcher_replay import replay_matcher
from benchmarks.fusion.real_logs import run_real_logs
from benchmarks.fusion.real_odometry import run_husky, run_kitti_vo
from benchmarks.fusion.receivers import run_receivers
from benchmarks.fusion.rendered import DRIVE_S, render_towns, run_towns
from benchmarks.fusion.spoofing import run_spoofing
from benchmarks.fusion.starts import run_starts
from benchmarks.fusion.tables import fill
from benchmarks.results import DOCS
from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import fingerprint_of, read_model_config
from crossview_localizer.parameter_file import read_parameters

SMOKE_DRIVE_S, SMOKE_TOWN_S = 40.0, 150.0
# What the results depend on.
CODE = ('benchmarks', 'config', 'crossview_localizer', 'training')


@dataclass(frozen=True)
class Run:
    """What a section is given."""

    args: argparse.Namespace
    data: Path
    seeds: range
    lines: EstimateLines

    @property
    def worlds(self) -> Path:
        return self.args.worlds / 'smoke' if self.args.smoke else self.args.worlds

    @property
    def town_s(self) -> float:
        return SMOKE_TOWN_S if self.args.smoke else DRIVE_S

    @property
    def demo_drive_s(self) -> float:
        return SMOKE_DRIVE_S if self.args.smoke else DEMO_DRIVE_S

    @property
    def config(self):
        return read_parameters(self.args.params_file)[1]


def _logs(run: Run) -> dict:
    logs, outages = run_real_logs(run.data, run.seeds[0], run.lines, run.args.smoke)
    return {'logs': logs, 'log_outages': outages}


def _lies(run: Run) -> dict:
    names = ('honest', 'odometry_stands_still') if run.args.smoke else None
    return {'lies': run_lies(run.data, run.seeds, run.lines, names)}


def _real_odometry(run: Run) -> dict:
    errors = read_model_config(run.args.weights)[0].match_errors
    found, smoothed = run_kitti_vo(run.data, run.seeds[0], errors, run.lines, run.args.smoke)
    return {'kitti_vo': found, 'smoother': smoothed, 'husky': run_husky(run.data)}


def _starts(run: Run) -> dict:
    start, wrong_lock = run_starts(run.data, run.seeds[0], run.args.smoke, run.args.trials)
    return {'start': start, 'wrong_lock': wrong_lock}


def _rendered(run: Run) -> dict:
    few = run.args.smoke
    found, estimates = run_towns(
        run.worlds, run.seeds, run.town_s, 1 if few else run.args.outages,
        1 if few else run.args.searches, run.args.weights, run.config, run.args.jobs)
    for line in estimates:
        run.lines.add(*line)
    return found


def _demo_drives(run: Run) -> dict:
    return run_drives(run.worlds, run.seeds, run.demo_drive_s, run.args.weights, run.config,
                      run.args.jobs)


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    ``--seed`` moves its ``seeds`` on by ``stride`` each.  Nothing was tuned on them, but for
    what docs/fusion.md names.
    """

    run: Callable[[Run], dict]
    seeds: range
    stride: int = 100
    uses_weights: bool = False
    render: Callable[[Run], None] | None = None


SECTIONS = {
    'matcher_replay': Section(lambda run: {'matcher_replay': replay_matcher(
        run.data, run.seeds, run.lines, run.args.smoke)}, range(5)),
    'logs': Section(_logs, range(1)),
    'spoof': Section(lambda run: {'spoof': run_spoofing(
        run.data, run.seeds, run.lines, run.args.smoke)}, range(60, 80)),
    'lies': Section(_lies, range(10, 13)),
    'receivers': Section(lambda run: {'receivers': run_receivers(
        run.data, run.seeds, run.lines)}, range(300, 310)),
    'real_odometry': Section(_real_odometry, range(1), uses_weights=True),
    'start': Section(_starts, range(1)),
    'rendered': Section(_rendered, range(500, 503), 10, True, lambda run: render_towns(
        run.worlds, run.seeds, run.town_s, run.args.jobs)),
    'demo_drives': Section(_demo_drives, range(600, 610), 10, True, lambda run: render_drives(
        run.worlds, run.seeds, run.demo_drive_s, run.args.jobs)),
}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.fusion', description=__doc__,
        epilog='example: python -m benchmarks.fusion --out build/fusion --smoke')
    parser.add_argument('--data', type=Path, help='real logs and routes (default: CROSSVIEW_DATA, '
                        'or ../shared/data)')
    parser.add_argument('--out', type=Path, default=Path('build/fusion'),
                        help='folder of fusion.json')
    parser.add_argument('--frames', type=Path, help='default: frames.csv.gz beside fusion.json')
    parser.add_argument('--sections', nargs='*', choices=SECTIONS, default=SECTIONS,
                        help='sections to run; what fusion.json holds of others stays')
    parser.add_argument('--seed', type=int, default=0, help='other seeds in each section')
    parser.add_argument('--seeds', type=int, help='so many seeds, or towns, in each section')
    parser.add_argument('--trials', type=int, default=50, help='starts, and wrong locks')
    parser.add_argument('--smoke', action='store_true', help='a few small runs of everything')
    parser.add_argument('--render', action='store_true', help='only render towns and drives, for '
                        'any weights')
    parser.add_argument('--outages', type=int, default=10, help='outages per town')
    parser.add_argument('--searches', type=int, default=17,
                        help='starts and wrong locks per town')
    parser.add_argument('--worlds', type=Path, default=Path('build/fusion/towns'),
                        help='folder of the rendered towns and their runs')
    parser.add_argument('--jobs', type=int, default=2, help='towns that run at the same time')
    parser.add_argument('--weights', type=Path, default=DENSE_WEIGHTS,
                        help='weights for the rendered towns')
    parser.add_argument('--params-file', type=Path, default=REPOSITORY / 'config/robotcar.yaml')
    return run_command(parser, arguments, run)


def run(args: argparse.Namespace) -> None:
    """Measure the sections, or only render their towns and drives."""
    data = args.data or Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data'))
    if not data.is_dir():
        raise FileNotFoundError(
            f'folder {data} does not exist; give the one that holds oxford/, ccvpe_kitti/, '
            'kitti_vo/, bags/, comma2k19/ and google_nmea/ with --data')
    if args.render:
        render_worlds(args, data)
    else:
        print(json.dumps(measure(args, data), indent=1))


def render_worlds(args, data: Path) -> None:
    """Render the towns and drives of the given sections."""
    for section in map(SECTIONS.get, args.sections):
        if section.render:
            section.render(Run(args, data, section_seeds(section, args), EstimateLines()))


def measure(args, data: Path) -> dict:
    """Run the given sections; the results of the others, and how they were measured, stay.

    The file is written after each section.
    """
    lines, target = EstimateLines(), args.out / 'fusion.json'
    args.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(target.read_text(encoding='utf-8')) if target.exists() else {}
    for name in args.sections:
        section, begin_s = SECTIONS[name], cpu_s()
        seeds = section_seeds(section, args)
        found = section.run(Run(args, data, seeds, lines))
        results.update(found)
        how = {'seeds': list(seeds), 'commit': commit(), 'smoke': args.smoke,
               'cpu_s': round(cpu_s() - begin_s)}
        if section.uses_weights:
            how |= {'weights': fingerprint_of(args.weights)[:12],
                    'match_errors': vars(read_model_config(args.weights)[0].match_errors)}
        results['measured'] = results.get('measured', {}) | dict.fromkeys(found, how)
        target.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    frames_path = args.frames or args.out / 'frames.csv.gz'
    frames_path.parent.mkdir(parents=True, exist_ok=True)
    if lines.lines:
        lines.write(frames_path)
    draw(results, args.out)
    if args.out.resolve() == DOCS / 'results':
        fill(DOCS)
    return results


def section_seeds(section: Section, args) -> range:
    """The seeds of a section that the arguments ask for."""
    first = section.seeds.start + section.stride * args.seed
    return range(first, first + (1 if args.smoke else args.seeds or len(section.seeds)))


def cpu_s() -> float:
    """The processor time so far of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def commit() -> str:
    """The commit of this checkout, '-dirty' where its code differs; 'unknown' outside of one."""
    def git(*arguments):
        return subprocess.run(
            ['git', *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git('status', '--porcelain', '--untracked-files=no', '--', *CODE)
        return git('rev-parse', '--short', 'HEAD').strip() + ('-dirty' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
