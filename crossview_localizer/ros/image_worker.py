"""One thread for images: the latest waits, for its odometry too; older ones are dropped."""

from collections.abc import Callable
import threading
import time


class ImageWorker:
    """Hands images to ``process(image)`` one at a time, in a thread of its own.

    An image is due once odometry has reached its stamp and ``settle_s`` have passed, for GNSS of
    the same instant; ``odometry_wait_s`` after it came it is due in any case.  While one image is
    waited for or processed the newest other one is kept.  Every image offered is processed or
    counted in ``dropped``.
    """

    def __init__(self, process: Callable, odometry_wait_s: float, settle_s: float):
        self.dropped = 0
        self._process = process
        self._odometry_wait_s = odometry_wait_s
        self._settle_s = settle_s
        self._changed = threading.Condition()
        self._waiting: tuple[int, object, float] | None = None
        self._odometry_stamp_ns: int | None = None
        self._generation = 0
        self._running = True
        self._thread = threading.Thread(target=self._run, name='images', daemon=True)
        self._thread.start()

    def offer(self, stamp_ns: int, image: object) -> None:
        """Leave an image to be processed; an older waiting one is dropped for it."""
        due_s = time.monotonic() + self._odometry_wait_s
        with self._changed:
            self._drop_waiting()
            self._waiting = (stamp_ns, image, due_s)
            self._changed.notify()

    def odometry_reached(self, stamp_ns: int) -> None:
        """Tell that odometry up to this stamp has been taken in."""
        with self._changed:
            self._odometry_stamp_ns = max(stamp_ns, self._odometry_stamp_ns or stamp_ns)
            self._changed.notify()

    def clear(self) -> None:
        """Drop the waiting images and forget how far the odometry is (time has jumped)."""
        with self._changed:
            self._drop_waiting()
            self._odometry_stamp_ns = None
            self._generation += 1
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; an image that is being processed is finished first."""
        with self._changed:
            self._running = False
            self._changed.notify()
        self._thread.join()
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        self.dropped += self._waiting is not None
        self._waiting = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or not self._running)
                if not self._running:
                    return
                stamp_ns, image, due_s = self._waiting
                self._waiting = None
                due = self._becomes_due(stamp_ns, due_s)
                self.dropped += not due
            if due:
                self._process(image)

    def _becomes_due(self, stamp_ns: int, due_s: float) -> bool:
        """Wait, with the lock held, until an image is due; False if it is cleared instead."""
        generation = self._generation

        def cleared() -> bool:
            return not self._running or self._generation != generation

        def reached() -> bool:
            return self._odometry_stamp_ns is not None and self._odometry_stamp_ns >= stamp_ns

        wait_s = max(0.0, due_s - time.monotonic())
        self._changed.wait_for(lambda: cleared() or reached(), wait_s)
        self._changed.wait_for(cleared, self._settle_s)
        return not cleared()
