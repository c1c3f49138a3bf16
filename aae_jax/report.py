"""A run's report: one HTML file that needs nothing beside it, and the closing table of scores."""

import base64
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Literal, NamedTuple

from aae_jax.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Score(NamedTuple):
    """One number of a run beside the paper's.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        unit: "%", "nats", "fraction" or another; may be empty.
        better: whether "lower" or "higher" is better, or "" where neither is.
        paper: the paper's number as printed there, None where it has none.
        note: what a reader must know, such as that the data stands in for the paper's.
        split: the part of the data it was measured on.
    """

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher", ""]
    paper: str | None
    note: str = ""
    split: str = "test"


class Report(NamedTuple):
    """Everything a report shows; texts are plain, never HTML.

    Attributes:
        title: heading of the page.
        summary: a few sentences; an empty line starts a new paragraph.
        command: the command line that repeats the run.
        config_text: the whole config.
        facts: names and values: wall-clock, device, images per second, versions.
        scores: numbers beside the paper's.
        figures: name, caption and figure each.
        curves: training and other curves, likewise, in a section of their own.
        notes: remarks, one list item each.
    """

    title: str
    summary: str
    command: str
    config_text: str
    facts: Sequence[tuple[str, str]]
    scores: Sequence[Score]
    figures: "Sequence[tuple[str, str, Figure]]" = ()
    curves: "Sequence[tuple[str, str, Figure]]" = ()
    notes: Sequence[str] = ()


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5f6b76; --line: #dde1e6;
  --page: #ffffff; --panel: #f5f7f9; --link: #1a5f96; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #38424d;
  --page: #14181d; --panel: #1e242b; --link: #7db8e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.4rem 0 0.6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.7rem; padding-bottom: 0.3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 0.2rem; }
p { margin: 0 0 0.8rem; max-width: 46rem; }
nav a { color: var(--link); margin-right: 1rem; text-decoration: none; }
.soft { color: var(--soft); font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.4rem 1rem 0.4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: 0.85rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8rem; }
td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; }
td.ours { font-weight: 700; }
td.note { min-width: 12rem; color: var(--soft); font-size: 0.9rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem;
  overflow-x: auto; font: 0.85rem/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 0 0 0.8rem;
  overflow-wrap: normal; }
figure { margin: 0 0 1.8rem; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 6px;
  border: 1px solid var(--line); padding: 0.4rem; }
@media (max-width: 44rem) { figure img { max-width: max(100%, 40rem); } }
figcaption { margin-top: 0.4rem; max-width: 46rem; }
summary { cursor: pointer; margin-bottom: 0.6rem; }
"""

# The page may load nothing from anywhere: its pictures are data: URIs, its style is inline.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Render the report and write it to `path`; on any failure an older file stays as it was."""
    write_whole(path, render(report).encode("utf-8"))


def render(report: Report) -> str:
    """The report as one HTML page with its figures embedded; it loads nothing from elsewhere."""
    sections = [
        ("scores", "Scores", _score_section(report.scores)),
        ("curves", "Curves", _figure_section(report.curves)),
        ("figures", "Figures", _figure_section(report.figures)),
        ("run", "Run", _run_section(report)),
        ("notes", "Notes", _note_section(report.notes)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in sections)
    bodies = "\n".join(
        f'<section id="{anchor}">\n<h2>{name}</h2>\n{body}\n</section>'
        for anchor, name, body in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
{_paragraphs(report.summary)}
<nav>{links}</nav>
</header>
<main>
{bodies}
</main>
</body>
</html>
"""


def score_table(scores: Sequence[Score]) -> str:
    """The scores as an aligned plain-text table, "-" where the paper has no number."""
    header = ("score", "split", "this run", "paper", "better", "note")
    rows = [
        (
            score.name,
            score.split,
            _valued(score),
            score.paper or "-",
            score.better or "-",
            score.note,
        )
        for score in scores
    ]
    return _aligned([header, *rows], right=lambda column: header[column] == "this run")


def comparison_table(runs: Mapping[str, Sequence[Score]]) -> str:
    """The scores of several runs side by side, as an aligned plain-text table.

    Args:
        runs: the scores of each run by its name; "-" where a run lacks a score.
    """
    names = list(dict.fromkeys(score.name for scores in runs.values() for score in scores))
    values = [{score.name: _valued(score) for score in scores} for scores in runs.values()]
    table = [["score", *runs], *([name, *(v.get(name, "-") for v in values)] for name in names)]
    return _aligned(table, right=lambda column: column > 0)


def _aligned(rows: Sequence[Sequence[str]], right: Callable[[int], bool]) -> str:
    """Rows under a ruled header, columns aligned to the left or the right."""
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if right(column) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def scores_json(scores: Sequence[Score]) -> str:
    """The scores as a JSON list of objects, unrounded; null for a value that is not finite."""
    records = [
        score._asdict() | {"value": float(score.value) if math.isfinite(score.value) else None}
        for score in scores
    ]
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False)


def _valued(score: Score) -> str:
    """The value with its unit, with as many digits as the unit deserves."""
    if not math.isfinite(score.value):
        return "not finite"
    if score.unit in ("%", "percent"):
        number = f"{score.value:.2f}"
    elif score.unit == "nats":
        number = f"{score.value:.1f}"
    elif score.unit == "fraction":
        number = f"{score.value:.4f}"
    else:
        number = f"{score.value:,.0f}" if abs(score.value) >= 1000 else f"{score.value:.4g}"
    unit = "" if score.unit == "fraction" else score.unit
    return f"{number} {unit}".rstrip()


def _paragraphs(text: str) -> str:
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    return "\n".join(f"<p>{escape(part)}</p>" for part in parts)


def _score_section(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(score.name)}</th>'
        f'<td class="number ours">{escape(_valued(score))}</td>'
        f'<td class="number">{escape(score.paper or "-")}</td>'
        f"<td>{escape(score.better or '-')}</td>"
        f"<td>{escape(score.split)}</td>"
        f'<td class="note">{escape(score.note)}</td></tr>'
        for score in scores
    )
    return f"""<div class="wide"><table>
<thead><tr><th>score</th><th class="number">this run</th><th class="number">paper</th>
<th>better</th><th>split</th><th>note</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>"""


def _figure_section(figures: "Sequence[tuple[str, str, Figure]]") -> str:
    return "\n".join(_embedded(name, caption, figure) for name, caption, figure in figures)


def _embedded(name: str, caption: str, figure: "Figure") -> str:
    from aae_jax.figures.files import to_png

    data = base64.b64encode(to_png(figure)).decode("ascii")
    text = f'<span class="soft">{escape(caption)}</span>' if caption else ""
    return (
        f'<figure>\n<div class="wide"><img alt="{escape(caption or name)}" '
        f'src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption><h3>{escape(name)}</h3>{text}</figcaption>\n</figure>"
    )


def _run_section(report: Report) -> str:
    facts = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in report.facts
    )
    table = f'<div class="wide"><table><tbody>\n{facts}\n</tbody></table></div>' if facts else ""
    return f"""<h3>Command</h3>
<pre><code>{escape(report.command)}</code></pre>
{table}
<details>
<summary>Config</summary>
<pre><code>{escape(report.config_text)}</code></pre>
</details>"""


def _note_section(notes: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>\n{items}\n</ul>" if items else ""
