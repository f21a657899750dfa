"""Write the branches of a network as ONNX files."""

import argparse
from pathlib import Path
import sys

from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.onnx import export_branch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='export',
        description='Write the branches of a network as ONNX files. The parameter onnx_path of '
        "the node takes the ground branch's file.",
        epilog='example: export config/weights/WEIGHTS.safetensors --out exported')
    parser.add_argument('weights', type=Path, help='the network (.safetensors)')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER',
                        help='folder to write to')
    parser.add_argument('--branch', choices=('ground', 'satellite', 'both'), default='both',
                        help='branches to write (default both)')
    return run_command(parser, argv, _export)


def _export(arguments: argparse.Namespace) -> None:
    network = load_network(arguments.weights)
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = ('ground', 'satellite') if arguments.branch == 'both' else (arguments.branch,)
    for name in wanted:
        path = arguments.out / f'{arguments.weights.stem}.{name}.onnx'
        export_branch(network, name, path)
        print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    sys.exit(main())
