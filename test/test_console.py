"""What the node says on its console: each cause once, and that it is over."""

import pytest

from crossview_localizer.ros.console import ConsoleLog
from crossview_localizer.ros.status import Level, Status

OK = Status('gnss', Level.OK, 'receiving')


@pytest.fixture
def console():
    class Console:
        def __init__(self):
            self.lines = []
            self.log = ConsoleLog(
                ['gnss', 'camera'], lambda text: self.lines.append(f'WARN {text}'),
                lambda text: self.lines.append(f'INFO {text}'))

        def report(self, *statuses, seconds=5):
            for _ in range(seconds):
                self.log.report(statuses)
    return Console()


def silent(seconds: float) -> Status:
    return Status('gnss', Level.ERROR, f'nothing received for {seconds:.1f} s', {}, 'look')


def test_a_cause_is_said_once_whatever_its_numbers_and_once_that_it_is_over(console):
    console.report(OK)
    for seconds in range(2, 20):
        console.report(silent(seconds), seconds=1)
    console.report(OK)
    console.report(OK)
    assert console.lines == [
        'WARN gnss: nothing received for 4.0 s -> look', 'INFO gnss: receiving again']
    console.report(silent(7.0))
    assert len(console.lines) == 3


def test_each_cause_of_one_line_is_said(console):
    console.report(silent(3.0))
    console.report(Status('gnss', Level.WARN, 'the receiver has no fix'))
    console.report(silent(3.0))
    assert [line.split(': ')[1] for line in console.lines] == [
        'nothing received for 3.0 s -> look', 'the receiver has no fix']


def test_what_is_over_within_a_second_or_is_of_another_line_is_not_said(console):
    for _ in range(5):
        console.report(silent(3.0), Status('matcher', Level.WARN, 'ambiguous'), seconds=2)
        console.report(OK, seconds=2)
    assert console.lines == []
