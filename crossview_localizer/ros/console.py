"""Logs the lines of /diagnostics on the console of the node when they change."""

from collections.abc import Callable, Iterable
import re

from crossview_localizer.ros.status import Level, Status

# A line is logged once it has been the same for this many reports (one a second).
REPORTS = 3


class ConsoleLog:
    """Logs each cause once when a line is not OK, and once when the line is OK again.

    Two texts have the same cause if they differ in their numbers only, such as an age.
    """

    def __init__(self, names: Iterable[str], warn: Callable[[str], None],
                 inform: Callable[[str], None]):
        self._names = set(names)
        self._warn, self._inform = warn, inform
        self._told: dict[str, set[str]] = {}        # name -> causes since it was last OK
        self._lasting: dict[str, tuple[str, int]] = {}  # name -> cause, reports in a row

    def report(self, statuses: Iterable[Status]) -> None:
        """Take the lines of one second."""
        for status in statuses:
            if status.name not in self._names:
                continue
            ok = status.level is Level.OK
            cause = '' if ok else re.sub(r'[-+.\d]+', '#', status.text)
            last, count = self._lasting.get(status.name, (cause, 0))
            count = count + 1 if cause == last else 1
            self._lasting[status.name] = cause, count
            told = self._told.setdefault(status.name, set())
            if count < REPORTS or (not told if ok else cause in told):
                continue
            if ok:
                told.clear()
                self._inform(f'{status.name}: {status.text} again')
            else:
                told.add(cause)
                remedy = f' -> {status.remedy}' if status.remedy else ''
                self._warn(f'{status.name}: {status.text}{remedy}')
