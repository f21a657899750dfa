"""One line of /diagnostics, as a record without ROS."""

from dataclasses import dataclass, field
from enum import IntEnum

from crossview_localizer.datatypes import Outcome


class Level(IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """One DiagnosticStatus; ``remedy`` says what to do if the level is not OK."""

    name: str
    level: Level
    text: str
    values: dict[str, object] = field(default_factory=dict)
    remedy: str = ''


def image_status(stamp_ns: int, outcome: Outcome, reason: str, match_state: str) -> Status:
    """The status of one image, for ``~/status``.

    ``match_state`` is that of ``Localizer.match_state``.
    """
    reason = reason or outcome.value
    return Status(
        'image', Level.OK if outcome is Outcome.USED else Level.WARN, reason, {
            'stamp': f'{stamp_ns // 10**9}.{stamp_ns % 10**9:09}',
            'outcome': outcome.name.lower(), 'reason': reason, 'state': match_state})
