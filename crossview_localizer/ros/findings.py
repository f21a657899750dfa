"""The results of the doctor's checks: one line each, with its remedy."""

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is; only PROBLEM makes the exit code 1."""

    OK = 'ok'
    NOTE = 'note'
    PROBLEM = 'PROBLEM'


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` says what to do."""

    severity: Severity
    part: str
    text: str
    remedy: str = ''


def ok(part: str, text: str) -> Finding:
    return Finding(Severity.OK, part, text)


def note(part: str, text: str, remedy: str = '') -> Finding:
    return Finding(Severity.NOTE, part, text, remedy)


def problem(part: str, text: str, remedy: str) -> Finding:
    return Finding(Severity.PROBLEM, part, text, remedy)
