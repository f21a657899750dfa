"""The filter on real errors and logs: outages, spoofing, starts, calibration.

docs/fusion.md says what is simulated, and how. Writes ``fusion.json``, its pictures and
``frames.csv.gz``, one line per estimate.
"""

import argparse
import json
import os
from pathlib import Path
import sys

from benchmarks import REPOSITORY
from benchmarks.fusion.estimates import EstimateLines
from benchmarks.fusion.figures import draw
from benchmarks.fusion.lies import run_lies
from benchmarks.fusion.matcher_replay import replay_matcher
from benchmarks.fusion.real_logs import run_real_logs
from benchmarks.fusion.real_odometry import run_husky, run_kitti_vo
from benchmarks.fusion.spoofing import run_spoofing
from benchmarks.fusion.starts import run_starts

WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
SECTIONS = ('matcher_replay', 'logs', 'spoof', 'lies', 'real_odometry', 'start', 'rendered')
TOWNS_FROM = 500       # training, validation and the demos' towns have other seeds
TOWNS_PER_SEED = 10
SMOKE_DRIVE_S = 150.0


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
                        help='sections to run; none: only --merge')
    parser.add_argument('--seed', type=int, default=0, help='first seed')
    parser.add_argument('--seeds', type=int, default=5, help='seeds of the matcher replay')
    parser.add_argument('--lies', type=int, default=3, help='seeds of each lie')
    parser.add_argument('--trials', type=int, default=50, help='starts, and wrong locks')
    parser.add_argument('--smoke', action='store_true', help='a few small runs of everything')
    parser.add_argument('--towns', type=int, default=3, help='rendered towns')
    parser.add_argument('--outages', type=int, default=10, help='outages per town')
    parser.add_argument('--searches', type=int, default=17,
                        help='starts and wrong locks per town')
    parser.add_argument('--worlds', type=Path, default=Path('build/fusion/towns'),
                        help='folder of the rendered towns and their runs')
    parser.add_argument('--jobs', type=int, default=2, help='towns that run at the same time')
    parser.add_argument('--merge', nargs='+', type=Path, default=[],
                        help='fusion.json of other runs, whose sections are added')
    parser.add_argument('--weights', type=Path, default=WEIGHTS,
                        help='weights for the rendered towns')
    parser.add_argument('--params-file', type=Path, default=REPOSITORY / 'config/robotcar.yaml')
    args = parser.parse_args(arguments)
    data = args.data or Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data'))
    try:
        if not data.is_dir():
            raise FileNotFoundError(
                f'folder {data} does not exist; give the one that holds oxford/, ccvpe_kitti/, '
                'comma2k19/ and google_nmea/ with --data')
        results = measure(args, data)
    except (ValueError, OSError) as error:
        print(f'fusion: {error}', file=sys.stderr)
        return 2
    print(json.dumps(results, indent=1))
    return 0


def measure(args, data: Path) -> dict:
    """Run the given sections and write both files; the other sections stay as they are."""
    lines, target = EstimateLines(), args.out / 'fusion.json'
    args.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(target.read_text(encoding='utf-8')) if target.exists() else {}
    for path in args.merge:
        other = json.loads(path.read_text(encoding='utf-8'))
        if other.get('seed') != args.seed:
            raise ValueError(
                f'{path} was made from seed {other.get("seed")}; expected {args.seed}')
        results.update(other)
    seeds = range(args.seed, args.seed + (1 if args.smoke else args.seeds))
    if 'matcher_replay' in args.sections:
        results['matcher_replay'] = replay_matcher(data, seeds, lines, args.smoke)
    if 'logs' in args.sections:
        results['logs'], results['log_outages'] = run_real_logs(
            data, args.seed, lines, args.smoke)
    if 'spoof' in args.sections:
        attacks = range(args.seed, args.seed + (2 if args.smoke else 20))
        results['spoof'] = run_spoofing(data, attacks, lines, args.smoke)
    if 'lies' in args.sections:
        seeds = range(args.seed, args.seed + (1 if args.smoke else args.lies))
        results['lies'] = run_lies(
            data, seeds, lines, ('honest', 'odometry_stands_still') if args.smoke else None)
    if 'real_odometry' in args.sections:
        results['kitti_vo'] = run_kitti_vo(data, args.seed, lines)
        results['husky'] = run_husky(data)
    if 'start' in args.sections:
        results['start'], results['wrong_lock'] = run_starts(
            data, args.seed, args.smoke, args.trials)
    if 'rendered' in args.sections:
        from benchmarks.fusion.rendered import DRIVE_S, run_towns
        from crossview_localizer.parameter_file import read_parameters

        first = TOWNS_FROM + TOWNS_PER_SEED * args.seed
        found, estimates = run_towns(
            args.worlds / 'smoke' if args.smoke else args.worlds,
            range(first, first + (1 if args.smoke else args.towns)),
            SMOKE_DRIVE_S if args.smoke else DRIVE_S, 1 if args.smoke else args.outages,
            1 if args.smoke else args.searches, args.weights,
            read_parameters(args.params_file)[1], args.jobs)
        results.update(found)
        for line in estimates:
            lines.add(*line)
    results['seed'] = args.seed
    frames_path = args.frames or args.out / 'frames.csv.gz'
    frames_path.parent.mkdir(parents=True, exist_ok=True)
    if lines.lines:
        lines.write(frames_path)
    target.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    draw(results, args.out)
    return results
