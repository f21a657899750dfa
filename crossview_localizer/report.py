"""Make one HTML page with pictures of a recorded run of the node.

With ground truth the page shows the errors, without it the bounds that the node claims.  For a
run of ``make demo`` it also shows the demo's controls.
"""

import argparse
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import (
    add_imagery_argument,
    add_run_arguments,
    node_and_topics_from_arguments,
)
from crossview_localizer.command import run_command
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.evaluation.run_report import write_report
from crossview_localizer.parameter_file import read_parameters


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='report', formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog='examples:\n'
        '  ros2 run crossview_localizer report run1 --input-bag drive\n'
        '  ros2 run crossview_localizer report demo/run --input-bag demo/bag --out report\n\n'
        'Open index.html in the folder --out with any browser; it needs no other file.')
    add_run_arguments(parser, ('image', 'gnss', 'truth'))
    add_imagery_argument(parser)
    parser.add_argument(
        '--params-file', type=Path, metavar='YAML',
        help='parameters of the node, for the smoothed trajectory (default: their defaults)')
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write to (default: BAG_report)')
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_command(build_parser(), argv, _report)


def _report(arguments: argparse.Namespace) -> None:
    out = arguments.out or arguments.bag.with_name(arguments.bag.resolve().name + '_report')
    _, config = (read_parameters(arguments.params_file) if arguments.params_file
                 else (None, LocalizerConfig()))
    node, topics = node_and_topics_from_arguments(arguments)
    page = write_report(
        out, arguments.bag, input_bag=arguments.input_bag, map_path=arguments.map,
        imagery=arguments.imagery, topics=topics, node=node, config=config.filter, progress=True)
    print(f'report: {page}')


if __name__ == '__main__':
    sys.exit(main())
