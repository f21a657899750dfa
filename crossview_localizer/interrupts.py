"""How a process that runs until it is interrupted ends: well, however often it is told to."""

import atexit
import signal
import threading


def stop_on_interrupt() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; neither raises an exception any more.

    ``ros2 launch`` and a terminal each send SIGINT, so a second one is usual.  One that comes
    while Python itself ends would find the default handler again and turn success into failure:
    from then on both are ignored.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
        atexit.register(signal.signal, number, signal.SIG_IGN)
    return stop
