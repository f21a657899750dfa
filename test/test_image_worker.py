"""The image thread: which image it takes, when, and what becomes of the others."""

import threading
import time

import pytest

from crossview_localizer.datatypes import OdometrySample, Outcome
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros.image_worker import ImageWorker, Unprocessed


def sample(stamp_ns: int) -> OdometrySample:
    return OdometrySample(stamp_ns, Pose2D(0.0, 0.0, 0.0))


class Bench:
    """A worker whose process notes what it is given; images wait for odometry for a minute.

    Images that are no longer wanted are noted in ``refused``.
    """

    def __init__(self):
        self.processed, self.refused = [], []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.notified = 0
        self.worker = None

    def start(self, odometry_wait_s=60.0, settle_s=0.0) -> ImageWorker:
        self.worker = ImageWorker(self.process, self.notify, odometry_wait_s, settle_s)
        return self.worker

    def process(self, image, newest_odometry, wait_until_due):
        self.entered.set()
        assert self.gate.wait(60.0)
        if not wait_until_due():
            self.refused.append(image)
            return None
        self.processed.append((image, newest_odometry))
        if image == 'broken':
            raise RuntimeError('broken')
        return f'result of {image}'

    def notify(self):
        self.notified += 1


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.gate.set()
    if bench.worker is not None:
        bench.worker.stop()


def test_an_image_is_begun_at_once_and_waits_for_odometry_that_reaches_its_stamp(
        bench, wait_until):
    worker = bench.start()
    worker.add_odometry(sample(98))
    worker.offer(100, 'image')
    assert bench.entered.wait(60.0)
    worker.add_odometry(sample(99))
    assert not bench.processed
    worker.add_odometry(sample(101))
    wait_until(lambda: bench.processed)
    assert bench.processed == [('image', sample(98))]


@pytest.mark.parametrize('comes_first', [True, False])
def test_what_is_done_before_the_wait_counts_as_the_time_for_gnss_to_settle(
        bench, wait_until, comes_first):
    worker = bench.start(settle_s=0.5)
    bench.gate.clear()
    if comes_first:
        worker.add_odometry(sample(101))
    worker.offer(100, 'image')
    assert bench.entered.wait(60.0)
    reached_s = time.monotonic()
    worker.add_odometry(sample(102))
    wait_until(lambda: time.monotonic() > reached_s + 0.5)
    worker.add_odometry(sample(103))
    opened_s = time.monotonic()
    bench.gate.set()
    wait_until(lambda: bench.processed)
    assert time.monotonic() - opened_s < 0.4


def test_without_odometry_an_image_is_processed_after_the_wait(bench, wait_until):
    bench.start(odometry_wait_s=0.05).offer(100, 'image')
    wait_until(lambda: bench.processed == [('image', None)])


def test_a_patient_image_waits_for_odometry_as_long_as_it_comes(bench, wait_until):
    worker = bench.start(odometry_wait_s=0.6)
    worker.offer(100, 'image', is_patient=True)
    end_s = time.monotonic() + 0.9
    while time.monotonic() < end_s:
        worker.add_odometry(sample(99))
        assert not bench.processed
        time.sleep(0.01)
    worker.add_odometry(sample(101))
    wait_until(lambda: bench.processed)


@pytest.mark.parametrize('is_patient', [False, True])
def test_patience_has_an_end_though_odometry_comes(bench, wait_until, monkeypatch, is_patient):
    monkeypatch.setattr('crossview_localizer.ros.image_worker.PATIENCE_S', 0.2)
    worker = bench.start(odometry_wait_s=0.05)
    worker.offer(100, 'image', is_patient)

    def is_processed():
        worker.add_odometry(sample(50))
        return bench.processed
    wait_until(is_processed)


def test_results_and_errors_are_handed_over_once_and_in_order(bench, wait_until):
    worker = bench.start()
    worker.add_odometry(sample(200))
    for stamp_ns, image in ((100, 'good'), (101, 'broken')):
        worker.offer(stamp_ns, image)
        wait_until(lambda n=stamp_ns - 99: bench.notified == n)
    (first, result), (second, error) = worker.take_finished()
    assert (first, result, second) == ('good', 'result of good', 'broken')
    assert isinstance(error, RuntimeError)
    assert worker.take_finished() == []


def test_an_image_for_which_a_newer_one_came_is_dropped(bench, wait_until):
    bench.gate.clear()
    worker = bench.start()
    worker.add_odometry(sample(200))
    worker.offer(100, 'in process')
    wait_until(bench.entered.is_set)
    worker.offer(101, 'replaced')
    worker.offer(102, 'newest')
    (image, result), = worker.take_finished()
    assert image == 'replaced' and isinstance(result, Unprocessed)
    assert result.outcome is Outcome.DROPPED and 'a newer image came' in result.reason
    bench.gate.set()
    wait_until(lambda: bench.notified == 3)
    assert [image for image, _ in worker.take_finished()] == ['in process', 'newest']


def test_a_reset_supersedes_the_image_in_process_and_those_that_wait(bench, wait_until):
    bench.gate.clear()
    worker = bench.start()
    worker.add_odometry(sample(200))
    worker.offer(100, 'in process')
    wait_until(bench.entered.is_set)
    worker.offer(101, 'waiting')
    worker.reset()
    bench.gate.set()
    worker.offer(5, 'after the reset')
    worker.add_odometry(sample(5))
    wait_until(lambda: bench.notified == 3)
    results = dict(worker.take_finished())
    assert results['after the reset'] == 'result of after the reset'
    for image in ('in process', 'waiting'):
        assert results[image].outcome is Outcome.SUPERSEDED


def test_a_result_that_was_there_before_a_reset_is_superseded_as_well(bench, wait_until):
    worker = bench.start()
    worker.add_odometry(sample(200))
    worker.offer(100, 'image')
    wait_until(lambda: bench.notified == 1)
    worker.reset()
    (_, result), = worker.take_finished()
    assert result.outcome is Outcome.SUPERSEDED


def test_an_image_that_waits_for_odometry_during_a_reset_is_never_processed(bench, wait_until):
    worker = bench.start()
    worker.offer(100, 'before the jump')
    assert bench.entered.wait(60.0)
    worker.reset()
    worker.offer(5, 'after the jump')
    worker.add_odometry(sample(5))
    wait_until(lambda: bench.notified == 2)
    assert [image for image, _ in bench.processed] == ['after the jump']
    assert bench.refused == ['before the jump']
    assert dict(worker.take_finished())['before the jump'].outcome is Outcome.SUPERSEDED


def test_stopping_waits_for_the_image_in_process_but_not_for_odometry(bench, wait_until):
    worker = bench.start()
    worker.add_odometry(sample(100))
    worker.offer(100, 'finished')
    wait_until(bench.entered.is_set)
    worker.offer(101, 'waits for odometry')
    started_s = time.monotonic()
    worker.stop()
    assert time.monotonic() - started_s < 30.0
    results = dict(worker.take_finished())
    assert results['finished'] == 'result of finished'
    assert results['waits for odometry'].outcome is Outcome.DROPPED
    assert 'deactivated' in results['waits for odometry'].reason
