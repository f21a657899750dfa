"""Check an installation, and a running system if there is one, and say what to do."""

import argparse
from collections.abc import Iterator
import sys

from crossview_localizer.ros.findings import Finding, Severity
from crossview_localizer.ros.installation_checks import (
    check_device,
    check_libraries,
    check_parameters,
    check_ros,
    check_weights_and_map,
    missing_modules,
    ROS_PACKAGES,
)
from crossview_localizer.ros.system_checks import check_running_system


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """Run all checks; a missing package is a finding itself, and its checks are left out."""
    yield from check_libraries()
    yield from check_ros()
    yield from check_device(args.device)
    yield from check_weights_and_map(args.weights, args.map)
    if args.params_file:
        yield from check_parameters(args.params_file, args.namespace)
    if args.listen > 0 and not missing_modules(ROS_PACKAGES):
        yield from check_running_system(args.namespace, args.listen)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='doctor',
        description='Check the installation, and the running localizer if there is one, and say '
        'what to do. Exit code 0: no problem, 1: problems, 2: wrong usage.',
        epilog='example: ros2 run crossview_localizer doctor --map oxford.map')
    parser.add_argument('--map', default='', metavar='MAP', help='embedding map to check')
    parser.add_argument('--weights', default='', help='network weights (default: those shipped)')
    parser.add_argument('--params-file', default='', metavar='YAML', help='parameters to check')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='where the network is to run (default: auto)')
    parser.add_argument('--namespace', default='', help='namespace of the running localizer')
    parser.add_argument('--listen', type=float, default=3.0, metavar='S',
                        help='listen to the running system for S seconds, 0: not at all '
                        '(default: %(default)g)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    problems = 0
    for finding in examine(args):
        print(f'{finding.severity.value:8}{finding.part}: {finding.text}', flush=True)
        if finding.remedy:
            print(f'{"":8}-> {finding.remedy}', flush=True)
        problems += finding.severity is Severity.PROBLEM
    print(f'{problems} problem{"" if problems == 1 else "s"} found')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
