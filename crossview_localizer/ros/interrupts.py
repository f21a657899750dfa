"""How a process that runs until it is interrupted ends: well, however often it is told to."""

import atexit
import signal
import time

CHECK_S = 0.05


class Interrupt:
    """A flag that signal handlers set and the main thread polls or waits for.

    Without a lock: a handler runs in the middle of the main thread's work, and again in the middle
    of itself when a second signal comes, where the lock of a ``threading.Event`` is held at times
    and would never be released.
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
        """Sleep for ``timeout_s``, or until ``CHECK_S`` after it is set; return whether it is."""
        end_s = time.monotonic() + timeout_s
        while not self._is_set and (left_s := end_s - time.monotonic()) > 0.0:
            time.sleep(min(left_s, CHECK_S))
        return self._is_set


def stop_on_interrupt() -> Interrupt:
    """Return what SIGINT and SIGTERM set; neither raises an exception any more.

    ``ros2 launch`` and a terminal each send SIGINT, so a second one is usual.  One that comes
    while Python itself ends would find the default handler again and turn success into failure:
    from then on both are ignored.
    """
    stop = Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
        atexit.register(signal.signal, number, signal.SIG_IGN)
    return stop
