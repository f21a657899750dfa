"""Ends a process on SIGINT or SIGTERM, even if they are repeated."""

import atexit
import signal
import time

CHECK_S = 0.05


class Interrupt:
    """A flag that signal handlers set and the main thread polls or waits for.

    It has no lock: a handler interrupts the main thread, and a second signal interrupts the
    handler. The lock of a ``threading.Event`` may be held at that moment, and would never be
    released.
    """

    def __init__(self):
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Sleep for ``timeout_s``, or until CHECK_S after it is set; return whether it is set."""
        end_s = time.monotonic() + timeout_s
        while not self._is_set and (left_s := end_s - time.monotonic()) > 0.0:
            time.sleep(min(left_s, CHECK_S))
        return self._is_set


def stop_on_interrupt() -> Interrupt:
    """Return the flag that SIGINT and SIGTERM set from now on, instead of raising an exception.

    ``ros2 launch`` and a terminal each send SIGINT, so a second one is usual. While Python itself
    ends, the default handler would be active again and turn success into failure: then both
    signals are ignored.
    """
    stop = Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
        atexit.register(signal.signal, number, signal.SIG_IGN)
    return stop
