"""``compare``: the ratios between two files, two commits or two providers, case by case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.case import OURS, TORCH, format_size
from benchmarks.results import Row

Subject = tuple[str, str, str, int, str, int]


@dataclass(frozen=True)
class Group:
    """One side of a comparison: the rows of every subject by provider, and the provider that is compared."""

    name: str
    provider: str
    rows: dict[Subject, dict[str, Row]]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the second side was as the first, on one subject."""

    subject: Subject
    first_us: float
    second_us: float
    ratio: float


def _grouped(rows: Sequence[Row]) -> dict[Subject, dict[str, Row]]:
    """By subject; where several places measured it, the last one's rows, and no mixture."""
    places = {row.subject: row.place for row in rows}
    found: dict[Subject, dict[str, Row]] = {}
    for row in rows:
        if row.place == places[row.subject]:
            found.setdefault(row.subject, {})[row.provider] = row
    return found


def resolve(name: str, file: Path, provider: str, keep: Callable[[Row], bool]) -> Group:
    """What ``name`` stands for: a file of results, or the beginning of a commit or a provider in ``file``."""
    if name.endswith(".csv"):
        return Group(name, provider, _grouped([row for row in results.read(Path(name)) if keep(row)]))
    rows = [row for row in results.read(file) if keep(row)]
    if any(row.provider == name for row in rows):
        return Group(name, name, _grouped(rows))
    commits = {row.commit for row in rows}
    matching = {name} & commits or {commit for commit in commits if commit.startswith(name)}
    if len(matching) == 1:
        (commit,) = matching
        return Group(commit, provider, _grouped([row for row in rows if row.commit == commit]))
    providers = sorted({row.provider for row in rows})
    raise ValueError(
        f"compare: {name!r} is no .csv file, and in {file} "
        + (f"the beginning of {sorted(matching)}" if matching else "neither a provider nor a commit")
        + f"; providers: {', '.join(providers)}; commits: {', '.join(sorted(commits))}"
    )


def ratios(first: Group, second: Group, relative_to: str | None) -> list[Ratio]:
    """The subjects that both have; times divided by those of ``relative_to`` in the same run, where given."""
    found = []
    for subject, theirs in first.rows.items():
        ours = second.rows.get(subject, {})
        if first.provider not in theirs or second.provider not in ours:
            continue
        before, after = theirs[first.provider].median_us, ours[second.provider].median_us
        scale = 1.0
        if relative_to is not None:
            if relative_to not in theirs or relative_to not in ours:
                continue
            scale = ours[relative_to].median_us / theirs[relative_to].median_us
        found.append(Ratio(subject, before, after, before / after * scale))
    return found


def compare(
    first: str,
    second: str,
    file: Path,
    provider: str = OURS,
    relative_to: str | None = "auto",
    loss: float | None = None,
    keep: Callable[[Row], bool] = lambda row: True,
) -> int:
    """Prints the table; 1 where the second side lost more than ``loss`` of the first one's speed.

    Times of two runs are compared as multiples of torch's in the same run, unless ``relative_to`` says
    otherwise: None for the times as they are.
    """
    if loss is not None and not 0 <= loss < 1:
        raise ValueError(f"compare: loss must be a part of the speed, 0 to 1, got {loss}")
    a, b = (resolve(name, file, provider, keep) for name in (first, second))
    if relative_to == "auto":
        relative_to = TORCH if a.rows != b.rows else None
    table = ratios(a, b, relative_to)
    if not table:
        print(f"no case has been measured for both {a.name} and {b.name}")
        return 2
    how = f", each relative to {relative_to} in its own run" if relative_to else ""
    print(f"{b.name} ({b.provider}) against {a.name} ({a.provider}){how}: above 1, the former is faster")
    header = f"{'case':58} {'threads':>7} {'first':>12} {'second':>12} {'ratio':>7}"
    print(header + "\n" + "-" * len(header))
    least = 0.0 if loss is None else 1 - loss
    for one in sorted(table, key=lambda r: r.ratio):
        suite, case, dtype, size, layout, threads = one.subject
        label = f"{suite}: {case}, {format_size(size)} {dtype}" + (
            "" if layout == "contiguous" else f", {layout}"
        )
        mark = f"  below {least:.2f}" if one.ratio < least else ""
        times = f"{one.first_us:10.2f}us {one.second_us:10.2f}us"
        print(f"{label:58} {threads:7} {times} {one.ratio:7.2f}{mark}")
    mean = math.exp(statistics.fmean(math.log(one.ratio) for one in table))
    lost = [one for one in table if one.ratio < least]
    print(f"\n{len(table)} cases, geometric mean {mean:.2f}, lowest {min(r.ratio for r in table):.2f}")
    if loss is not None:
        print(f"{len(lost)} lost more than {loss:.0%}")
    return 1 if lost else 0
