"""Processes that run a ROS node."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import re
import sys

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from crossview_localizer.ros.interrupts import Interrupt, stop_on_interrupt


def run_node(parser: argparse.ArgumentParser, args: list[str] | None, create: Callable[[], Node],
             on_error: Callable[[Node, Exception], None] | None = None) -> int:
    """Spin the node that ``create`` makes until SIGINT or SIGTERM; both may be repeated.

    Returns the exit status: 2, with one line on stderr, where ROS refuses the arguments or a
    parameter file, or ``create`` raises ValueError or OSError.  ``on_error``, if given, gets the
    exceptions of callbacks, and the node goes on.
    """
    parser.add_argument('--ros-args', nargs=argparse.REMAINDER, help='arguments of ROS 2')
    parser.parse_args(args)

    # Signals only set a flag: they raise no exception in the middle of a callback.
    stop = stop_on_interrupt()
    try:
        initialize_ros(args)
        node = create()
    except (ValueError, OSError, ParameterException) as error:
        print(f'{parser.prog}: error: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():
        try:
            executor.spin_once(timeout_sec=0.2)
        except ExternalShutdownException:
            break
        except Exception as error:
            if on_error is None:
                raise
            on_error(node, error)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


@contextmanager
def ros_session(args: list[str] | None) -> Iterator[Interrupt]:
    """Initialize rclpy with the arguments after --ros-args and shut it down at the end.

    Yields the flag that SIGINT and SIGTERM set.
    """
    stop = stop_on_interrupt()
    initialize_ros(args)
    try:
        yield stop
    finally:
        rclpy.try_shutdown()


def initialize_ros(args: list[str] | None) -> None:
    """Initialize rclpy, without its signal handlers; ValueError for arguments that it refuses."""
    try:
        rclpy.init(args=sys.argv[:1] + args if args is not None else None,
                   signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        # rcl adds the places in its source to each reason.
        reason = ' '.join(re.sub(r', at [^,]*:\d+', '', str(error)).split())
        if 'logging' in reason:
            reason += '; set ROS_LOG_DIR to a folder that can be written to'
        raise ValueError(reason.removeprefix('failed to initialize rcl: ')) from error
