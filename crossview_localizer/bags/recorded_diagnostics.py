"""The messages on /diagnostics about a node, as series over a recording."""

from collections import Counter
from dataclasses import dataclass
import re

import numpy as np


@dataclass(frozen=True)
class RecordedDiagnostics:
    """The diagnostics of each part of the node.

    ``times_ns`` (n,) on the clock of the poses; ``levels`` and ``ages_s`` map the name of a part
    to (n,), NaN where it was silent.  ``counts`` holds the numbers that a part counts, (n,) each;
    ``values`` its last values.  ``warnings`` has one entry for each kind of text, numbers aside,
    with which a part was not OK: part, last text, what to do, how many times.
    """

    times_ns: np.ndarray
    levels: dict[str, np.ndarray]
    ages_s: dict[str, np.ndarray]
    counts: dict[str, dict[str, np.ndarray]]
    values: dict[str, dict[str, str]]
    warnings: list[tuple[str, str, str, int]]

    @classmethod
    def from_messages(
        cls, times_ns: np.ndarray, messages: list, node_name: str,
    ) -> 'RecordedDiagnostics':
        """The series of DiagnosticArray messages with their times; other nodes are left out."""
        prefix, size = f'{node_name}: ', len(messages)
        levels, ages_s, counts, last_values = {}, {}, {}, {}
        warned, last_warnings = Counter(), {}
        for row, msg in enumerate(messages):
            for status in msg.status:
                if not status.name.startswith(prefix):
                    continue
                part, level = status.name.removeprefix(prefix), _level(status.level)
                values = last_values[part] = {pair.key: pair.value for pair in status.values}
                levels.setdefault(part, np.full(size, np.nan))[row] = level
                age_s = ages_s.setdefault(part, np.full(size, np.nan))
                if values.get('age_s', 'never') != 'never':
                    age_s[row] = float(values['age_s'])
                series = counts.setdefault(part, {})
                for key, value in values.items():
                    if value.isdigit():
                        series.setdefault(key, np.zeros(size, np.int64))[row] = int(value)
                if level:
                    kind = part, re.sub(r'\d+(\.\d+)?', '#', status.message)
                    warned[kind] += 1
                    last_warnings[kind] = status.message, values.get('remedy', '')
        return cls(
            times_ns, levels, ages_s, counts, last_values,
            [(kind[0], *last_warnings[kind], count) for kind, count in warned.most_common()])


def _level(value: int | bytes) -> int:
    """The level as a number; rclpy gives it as bytes, rosbags as a number."""
    return value[0] if isinstance(value, bytes) else int(value)
