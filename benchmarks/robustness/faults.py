"""The fault matrix: what a node process reports and publishes in each fault, in the flat world.

Faults of imagery and routes are those of ``build_map``: expected are its exit code and one line.

For each fault the vehicle drives until all is well; then the fault begins. Expected are the
diagnostic (part, level and text), the poses meanwhile (or none), a node that goes on running, and
that all is well again after the fault. A pose is honest if the truth is inside its 99.9 % ellipse.
"""

import argparse
from dataclasses import asdict
import json
from pathlib import Path
import re
import sys

from benchmarks import REPOSITORY
from benchmarks.robustness import flat_world
from benchmarks.robustness.file_faults import FILE_FAULTS
from benchmarks.robustness.node_trial import NodeTrial, START_DEADLINE_S
from benchmarks.robustness.sensor_faults import FaultResult, JPEG_FAULTS, RAW_FAULTS, try_fault
from benchmarks.robustness.system_faults import SYSTEM_FAULTS
from benchmarks.ros_domain import keep_to_this_machine

ALL = [*FILE_FAULTS, *RAW_FAULTS, *JPEG_FAULTS, *SYSTEM_FAULTS]


def try_by_name(trial: NodeTrial, name: str) -> FaultResult:
    """Try the fault of this name."""
    fault = next(fault for fault in ALL if fault.name == name)
    if fault in FILE_FAULTS:
        return fault(trial)
    trial.send_compressed(fault in JPEG_FAULTS)
    return fault(trial) if callable(fault) else try_fault(trial, fault)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.robustness.faults',
        description='Try every fault on a node process and write what it reported and published.',
        epilog='example: python -m benchmarks.robustness.faults --only GNSS --out faults.json')
    parser.add_argument(
        '--out', type=Path, default=REPOSITORY / 'docs/results/faults.json', metavar='FILE',
        help='file to write (default docs/results/faults.json)')
    parser.add_argument(
        '--only', default='', metavar='REGEX',
        help='only faults whose name matches this; no file is written')
    parser.add_argument('--log', type=Path, metavar='FILE', help='write the log of the node there')
    arguments = parser.parse_args(argv)
    keep_to_this_machine()
    rows = []

    def note(row: FaultResult) -> None:
        row.diagnostic = row.diagnostic.replace(folder, 'FOLDER')
        rows.append(row)
        print(f'{"ok  " if row.ok else "FAIL"} {row.fault}: {row.diagnostic} | poses: {row.pose}',
              flush=True)

    chosen = [fault for fault in ALL if re.search(arguments.only, fault.name)]
    with flat_world.temporary_folder() as folder:
        trial = NodeTrial(Path(folder), flat_world.make_files(Path(folder)))
        try:
            trial.start_node()
            trial.drive(until=trial.is_well, deadline_s=START_DEADLINE_S)
            for fault in chosen:
                note(try_by_name(trial, fault.name))
        finally:
            if arguments.log:
                arguments.log.write_text(trial.log_text())
            trial.close()
    passed = all(row.ok for row in rows)
    if not arguments.only:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(
            {'passed': passed, 'rows': [asdict(row) for row in rows],
             'not_honest': [fault.name for fault in (*RAW_FAULTS, *JPEG_FAULTS)
                            if not fault.honest]}, indent=1) + '\n')
    print(f'{sum(row.ok for row in rows)} of {len(rows)} rows passed')
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
