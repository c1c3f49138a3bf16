"""What a contest gave, as text: a table with ratios, and every round as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from statistics import median

from benchmarks.contest import Outcome
from benchmarks.worker import CONTENDERS
from benchmarks.workload import Round

# How many times as fast as each contender this project means to be; of the limit, a share.
AIMS = {
    ("E1", 100): {"torch": 2.0, "torch_compile": 1.6, "pythae": 1.8, "limit": 0.8},
    ("E1", 500): {"torch": 1.3},
    ("E11", 100): {"torch": 2.0, "torch_compile": 1.6, "limit": 0.8},
}
US = "aae_jax"
_HEAD = ("", "images/s", "slowest and fastest round", "this project is", "aim", "of the limit")


def speed(done: Round) -> float:
    """Images per second."""
    assert done.seconds is not None
    return done.images / done.seconds


def speeds(outcome: Outcome) -> dict[str, float]:
    """The median of each contender's rounds."""
    return {name: median(map(speed, rounds)) for name, rounds in outcome.rounds.items()}


def markdown(outcome: Outcome) -> str:
    """The table of one workload, and who is missing from it."""
    medians = speeds(outcome)
    workload = outcome.workload
    # The aims are of the experiments' own widths.
    key = (workload.experiment, workload.batch_size)
    aims = {} if workload.width else AIMS.get(key, {})
    rows: list[Sequence[str]] = [_HEAD]
    for name, value in medians.items():
        each = [speed(done) for done in outcome.rounds[name]]
        ratio = medians[US] / value if US in medians and name != US else math.nan
        share = value / medians["limit"] if "limit" in medians and name != "limit" else math.nan
        rows.append(
            (
                CONTENDERS[name].title,
                f"{value:,.0f}",
                f"{min(each):,.0f} to {max(each):,.0f}",
                "" if math.isnan(ratio) else f"{ratio:.2f} times as fast",
                _aim(aims.get(name), ratio, name == "limit"),
                "" if math.isnan(share) else f"{share:.0%}",
            )
        )
    lines = [f"**{workload.title}**", "", *aligned(rows)]
    lines += [f"\n{CONTENDERS[name].title}: {why}" for name, why in outcome.absent.items()]
    lines += ["", "Last round:"]
    lines += [
        f"- {CONTENDERS[name].title}: {_readings(rounds[-1])}"
        for name, rounds in outcome.rounds.items()
    ]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table that is also readable as it stands; numbers to the right."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        first, *others = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join([first, *others])} |"

    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)
    )
    return [line(rows[0]), rule + "|", *map(line, rows[1:])]


def csv_text(outcomes: Sequence[Outcome]) -> str:
    """Every round of every contender."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("experiment", "batch_size", "contender", "round", "images", "seconds")
    writer.writerow([*columns, "images_per_second"])
    for outcome in outcomes:
        workload = outcome.workload
        for name, rounds in outcome.rounds.items():
            for number, done in enumerate(rounds):
                known = (workload.experiment, workload.batch_size, name, number, done.images)
                writer.writerow([*known, f"{done.seconds:.6f}", f"{speed(done):.1f}"])
    return text.getvalue()


def _aim(aim: float | None, ratio: float, is_limit: bool) -> str:
    if aim is None:
        return ""
    text = f"{aim:.0%} of it" if is_limit else f"{aim:g}"
    return text if math.isnan(ratio) else f"{text}: {'met' if ratio >= aim else 'missed'}"


def _readings(done: Round) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in done.readings.items())
