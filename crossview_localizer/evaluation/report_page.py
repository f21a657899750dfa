"""One HTML file that holds its pictures: it opens offline, from a mail or a USB stick."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
import html
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2rem 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .2rem; padding-top: .6rem;
  border-top: 1px solid #d8dde3; }
p { margin: .3rem 0 .7rem; max-width: 75ch; }
.lead, .how { color: #555d66; }
.banner { background: #fff4d6; border-left: 5px solid #e0a100; padding: .5rem .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(145px, 1fr));
  gap: .6rem; margin: 1rem 0; }
.figures div { background: #f4f6f8; border-radius: .4rem; padding: .5rem .7rem; }
.figures b { display: block; font-size: 1.15rem; line-height: 1.35; white-space: nowrap; }
.figures span { color: #555d66; font-size: .85rem; }
img { display: block; width: 100%; height: auto; }
.half { max-width: 660px; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #d8dde3;
  vertical-align: top; white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: #fff; text-align: left; }
thead th { color: #555d66; font-weight: 600; }
.text { text-align: left; }
td.text { white-space: normal; min-width: 9rem; }
summary { cursor: pointer; color: #555d66; margin: 1rem 0 .4rem; }
nav { font-size: .9rem; margin: .6rem 0; }
nav a { margin-right: .9rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } img { break-inside: avoid; } }
"""
NARROW_SCREEN_PX = 640


@dataclass(frozen=True)
class Table:
    """``rows`` are cells of text; the first of a row is its name, with an optional colour.

    ``text_columns`` are left-aligned and may wrap.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    colours: Sequence[str] = ()
    text_columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading, how to read what follows, and a picture or a table, or both.

    ``wide`` and ``narrow`` are PNG files of the same picture for either kind of screen; ``half``
    pictures take half of a wide one's width.
    """

    title: str
    how: str
    wide: Path | None = None
    narrow: Path | None = None
    tables: Sequence[Table] = ()
    half: bool = False
    folded: bool = False


def page(
    title: str, lead: str, banner: str, figures: Sequence[tuple[str, str]],
    sections: Sequence[Section], notes: Sequence[str],
) -> str:
    """The whole file; ``figures`` are (value, label) of the numbers at the top.

    All text is escaped here.
    """
    numbered = list(enumerate(sections))
    links = ''.join(
        f'<a href="#s{number}">{html.escape(section.title)}</a> ' for number, section in numbered)
    cards = ''.join(
        f'<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in figures)
    body = '\n'.join(_section(number, section) for number, section in numbered)
    warning = f'<p class="banner">{html.escape(banner)}</p>' if banner else ''
    listed = ''.join(f'<li>{html.escape(note)}</li>' for note in notes)
    listed = f'<h2>Notes</h2>\n<ul>{listed}</ul>' if notes else ''
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(lead)}</p>
{warning}
<div class="figures">{cards}</div>
<nav>{links}</nav>
{body}
{listed}
</body>
</html>
"""


def _section(number: int, section: Section) -> str:
    parts = []
    if section.how:
        parts.append(f'<p class="how">{html.escape(section.how)}</p>')
    if section.wide is not None:
        size = ' class="half"' if section.half else ''
        parts.append(
            f'<picture><source media="(max-width: {NARROW_SCREEN_PX}px)" '
            f'srcset="{_embedded(section.narrow)}">'
            f'<img{size} src="{_embedded(section.wide)}" alt="{html.escape(section.title)}">'
            '</picture>')
    parts += [_table(table) for table in section.tables]
    inside = '\n'.join(parts)
    title = html.escape(section.title)
    if section.folded:
        return (f'<section id="s{number}"><details><summary>{title}</summary>\n{inside}\n'
                '</details></section>')
    return f'<section id="s{number}"><h2>{title}</h2>\n{inside}\n</section>'


def _embedded(path: Path) -> str:
    return 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode('ascii')


def _table(table: Table) -> str:
    head = ''
    for column, cell in enumerate(table.head):
        kind = ' class="text"' if column in table.text_columns else ''
        head += f'<th{kind}>{html.escape(cell)}</th>'
    lines = []
    for index, (name, *cells) in enumerate(table.rows):
        colour = table.colours[index] if index < len(table.colours) else ''
        style = f' style="border-left:6px solid {colour}"' if colour else ''
        line = f'<tr><th{style}>{html.escape(name)}</th>'
        for column, cell in enumerate(cells, start=1):
            kind = ' class="text"' if column in table.text_columns else ''
            line += f'<td{kind}>{html.escape(cell)}</td>'
        lines.append(line + '</tr>')
    body = '\n'.join(lines)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
            '</tbody></table></div>')
