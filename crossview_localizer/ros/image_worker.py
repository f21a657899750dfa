"""A thread for images: the newest waits for its turn and odometry, older ones are dropped."""

from collections.abc import Callable
from dataclasses import dataclass
import threading
import time

from crossview_localizer.datatypes import OdometrySample, Outcome

# After its odometry has come, an image waits this long for GNSS of the same instant.
SETTLE_S = 0.005
# The longest wait of a patient image.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Unprocessed:
    """The reason why an image has no result: it was dropped, or a reset superseded it."""

    outcome: Outcome
    reason: str


REPLACED = Unprocessed(Outcome.DROPPED, 'a newer image came before this one was processed')
STOPPED = Unprocessed(Outcome.DROPPED, 'the node was deactivated before the image was processed')
SUPERSEDED = Unprocessed(Outcome.SUPERSEDED, 'the node was reset before the image was done')


class ImageWorker:
    """Calls ``process(image, newest_odometry, wait_until_due)`` for one image at a time.

    ``process`` runs in a thread of its own, as soon as the previous image is done.  It first does
    what needs no odometry and then calls ``wait_until_due()``, which returns True once the image
    is due, or False once it is no longer wanted; the result is then ignored.

    An image is due ``settle_s`` after odometry has reached its stamp (GNSS of the same instant may
    still come), and at the latest ``odometry_wait_s`` after its arrival.  A patient image waits
    longer, up to PATIENCE_S, until no odometry has been taken for ``odometry_wait_s``.  While one
    image waits for odometry or is processed, only the newest other one is kept.
    :meth:`take_finished` returns each image that was offered; ``notify`` is called, in either
    thread, when there is one to take.
    """

    def __init__(
        self, process: Callable[[object, OdometrySample | None, Callable[[], bool]], object],
        notify: Callable[[], None], odometry_wait_s: float, settle_s: float = SETTLE_S,
    ):
        self._process = process
        self._notify = notify
        self._odometry_wait_s = odometry_wait_s
        self._settle_s = settle_s
        self._changed = threading.Condition()  # its lock guards the attributes below
        self._waiting: tuple[int, object, float, bool] | None = None
        self._finished: list[tuple[int, object, object]] = []
        self._newest_odometry: OdometrySample | None = None
        self._odometry_taken_s = 0.0
        self._awaited_ns = 0                   # stamp of the image in process
        self._reached_s: float | None = None   # when odometry reached it
        self._generation = 0
        self._running = True
        self._thread = threading.Thread(target=self._run, name='images', daemon=True)
        self._thread.start()

    def offer(self, stamp_ns: int, image: object, is_patient: bool = False) -> None:
        """Offer an image for processing; an older one that waits is dropped.

        Make it patient if the node is busy: odometry of its time may have arrived, but not been
        taken yet.
        """
        offered_s = time.monotonic()
        with self._changed:
            self._finish_waiting(REPLACED)
            self._waiting = (stamp_ns, image, offered_s, is_patient)
            self._changed.notify()

    def add_odometry(self, sample: OdometrySample) -> None:
        """Set the newest odometry sample."""
        with self._changed:
            self._newest_odometry, self._odometry_taken_s = sample, time.monotonic()
            self._note_if_reached(sample)
            self._changed.notify()

    def reset(self) -> None:
        """Forget the odometry and supersede all images offered so far, also one in process."""
        with self._changed:
            self._generation += 1
            self._finish_waiting(SUPERSEDED)
            self._newest_odometry = None
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; an image that is being processed is finished first."""
        with self._changed:
            self._running = False
            self._changed.notify()
        self._thread.join()
        with self._changed:
            self._finish_waiting(STOPPED)

    def take_finished(self) -> list[tuple[object, object]]:
        """The images that are finished, and the result of each.

        A result is what ``process`` returned, the exception that it raised, or an
        :class:`Unprocessed`.  Images offered before a reset are always Unprocessed.
        """
        with self._changed:
            finished, self._finished = self._finished, []
            return [
                (image, result if generation == self._generation
                 or isinstance(result, Unprocessed) else SUPERSEDED)
                for generation, image, result in finished]

    def _finish(self, generation: int, image: object, result: object) -> None:
        self._finished.append((generation, image, result))
        self._notify()

    def _finish_waiting(self, reason: Unprocessed) -> None:
        if self._waiting is not None:
            image = self._waiting[1]
            self._waiting = None
            self._finish(self._generation, image, reason)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or not self._running)
                if not self._running:
                    return
                stamp_ns, image, offered_s, is_patient = self._waiting
                self._waiting, generation = None, self._generation
                self._awaited_ns, self._reached_s = stamp_ns, None
                odometry = self._newest_odometry
                if odometry is not None:
                    self._note_if_reached(odometry)
            is_wanted = True

            def wait_until_due(generation=generation, offered_s=offered_s, is_patient=is_patient):
                nonlocal is_wanted
                is_wanted = self._wait_until_due(generation, offered_s, is_patient)
                return is_wanted
            try:
                result = self._process(image, odometry, wait_until_due)
            except Exception as error:  # a fault in one image must not end the thread
                result = error
            with self._changed:
                if not is_wanted:
                    result = SUPERSEDED if self._running else STOPPED
                self._finish(generation, image, result)

    def _note_if_reached(self, sample: OdometrySample) -> None:
        if self._reached_s is None and sample.stamp_ns >= self._awaited_ns:
            self._reached_s = time.monotonic()

    def _wait_until_due(self, generation: int, offered_s: float, is_patient: bool) -> bool:
        """Wait until the image in process is due; False once it is no longer wanted."""
        def is_unwanted() -> bool:
            return not self._running or self._generation != generation

        with self._changed:
            while not is_unwanted():
                if self._reached_s is not None:
                    due_s = self._reached_s + self._settle_s
                else:
                    since_s = max(offered_s, self._odometry_taken_s) if is_patient else offered_s
                    due_s = min(since_s + self._odometry_wait_s, offered_s + PATIENCE_S)
                if (wait_s := due_s - time.monotonic()) <= 0.0:
                    break
                self._changed.wait(wait_s)
            return not is_unwanted()
