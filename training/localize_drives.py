"""Run the offline Localizer on drives with truth; print errors of refined pose and prior."""

import argparse
from pathlib import Path
import sys

import yaml

from crossview_localizer.command import run_command

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = REPOSITORY / 'config/robotcar.yaml'
WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'


def localize_drive(bag: Path, map_path: Path, weights: str, like: Path | None, node_config,
                   config):
    """The Comparison of one drive with the rows ``gnss_only``, ``prior`` and ``refined``."""
    from crossview_localizer.bags.drive import read_drive
    from crossview_localizer.bags.replay import localize, posteriors
    from crossview_localizer.evaluation import pose_metrics
    from crossview_localizer.localizer import load_localizer, Localizer
    from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

    localizer = load_localizer(map_path, weights, config, 'cpu', like)
    drive = read_drive(bag, localizer.frame, node_config)
    stamps_ns = drive.image_stamps_ns
    truth = drive.truth.at(stamps_ns, TRUTH_MAX_GAP_S)
    rows = {'gnss_only': pose_metrics.gnss_only(drive.fixes, stamps_ns)}
    outcomes = {'gnss_only': [''] * len(stamps_ns)}
    for name, used in (('prior', Localizer(config, localizer.frame)), ('refined', localizer)):
        results = list(localize(bag, used, node_config))
        rows[name] = pose_metrics.propagate(posteriors(results), drive.odometry, stamps_ns)
        outcomes[name] = [result.outcome.name.lower() for result in results]
    return pose_metrics.Comparison(truth, pose_metrics.settled(truth), rows, outcomes)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.localize_drives', description=__doc__,
        epilog='example: python -m training.localize_drives --bag a/bag b/bag --map a.map b.map '
        '--set filter.match_sigma_floor_m=0.3')
    parser.add_argument('--bag', nargs='+', type=Path, required=True, help='bags with truth')
    parser.add_argument('--map', nargs='+', type=Path, required=True, help='a map for each bag')
    parser.add_argument('--weights', default=str(WEIGHTS),
                        help='checkpoint, raw_correlation or random_init:SEED')
    parser.add_argument('--like', type=Path, help='checkpoint whose sizes a control takes')
    parser.add_argument('--params-file', type=Path, default=PARAMETERS,
                        help='parameter file of the node')
    parser.add_argument('--set', nargs='+', default=[], metavar='NAME=VALUE', dest='changes',
                        help="parameters other than the file's")
    return run_command(parser, arguments, localize_drives)


def localize_drives(args: argparse.Namespace) -> None:
    from crossview_localizer.config import config_from_flat, flatten, LocalizerConfig
    from crossview_localizer.evaluation import pose_metrics
    from crossview_localizer.parameter_file import read_parameters

    if len(args.bag) != len(args.map):
        raise ValueError(
            f'{len(args.bag)} bags and {len(args.map)} maps; expected a map for each bag')
    node_config, config = read_parameters(args.params_file)
    changes = dict(change.split('=', 1) for change in args.changes)
    config = config_from_flat(LocalizerConfig, flatten(config) | {
        name: yaml.safe_load(value) for name, value in changes.items()})
    pooled = pose_metrics.pool([
        localize_drive(bag, map_path, args.weights, args.like, node_config, config)
        for bag, map_path in zip(args.bag, args.map)])
    print(pose_metrics.table(pose_metrics.metrics_by_row(pooled)))
    outcomes = pooled.outcomes['refined']
    print('outcomes: ' + ', '.join(
        f'{name} {outcomes.count(name)}' for name in sorted(set(outcomes))))


if __name__ == '__main__':
    sys.exit(main())
