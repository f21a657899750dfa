"""How every command runs: its exit code, and one line on stderr if it fails."""

import argparse
from collections.abc import Callable
import sys


def run_command(
    parser: argparse.ArgumentParser, argv: list[str] | None,
    work: Callable[[argparse.Namespace], int | None], interrupted: str = 'interrupted',
    more_errors: tuple[type[Exception], ...] = (),
) -> int:
    """Call ``work`` with the parsed arguments; return the exit code of the process.

    The code is 0 if the work is done, or what ``work`` returns; 2 if it raises ValueError, OSError
    or one of ``more_errors``; 130 if the user interrupts it, with ``interrupted`` as the message.
    """
    arguments = parser.parse_args(argv)
    try:
        return work(arguments) or 0
    except (ValueError, OSError, *more_errors) as error:
        print(f'{parser.prog}: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'{parser.prog}: {interrupted}', file=sys.stderr)
        return 130
