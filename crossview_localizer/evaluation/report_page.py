"""Renders a report as one HTML file that contains its pictures and needs no network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment


@dataclass(frozen=True)
class Table:
    """A table of text: the first cell of a row is its name, with an optional colour.

    ``text_columns`` are left-aligned and may wrap.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    colours: Sequence[str] = ()
    text_columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading, an explanation (``how`` to read it), and a picture or tables, or both.

    ``wide`` and ``narrow`` are PNG files of the same picture for wide and for narrow screens.
    With ``half`` the picture takes half of the page's width.  A ``folded`` section is closed at
    first.
    """

    title: str
    how: str
    wide: Path | None = None
    narrow: Path | None = None
    tables: Sequence[Table] = ()
    half: bool = False
    folded: bool = False


def render_page(
    title: str, lead: str, banner: str, figures: Sequence[tuple[str, str]],
    sections: Sequence[Section], notes: Sequence[str],
) -> str:
    """Render the whole file; ``figures`` are the numbers at the top as (value, label)."""
    template = (files('crossview_localizer.evaluation') / 'report.html.jinja').read_text('utf-8')
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals['embedded'] = _embedded
    return environment.from_string(template).render(
        title=title, lead=lead, banner=banner, figures=figures, sections=sections, notes=notes)


def _embedded(png: Path) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png.read_bytes()).decode('ascii')
