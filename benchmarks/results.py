"""The tidy file of results: a row for each case and provider, found again by its key."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.case import LIMIT, OURS, Case, dtype_name
from benchmarks.machine import ROOT, facts
from benchmarks.timing import Timed

DEFAULT = ROOT / "build" / "benchmarks.csv"
COMMITTED = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Row:
    """One line of the file. Times are microseconds a call; GB/s is 10^9 bytes read and written a second."""

    suite: str
    case: str
    op: str
    dtype: str
    size: int
    layout: str
    threads: int
    provider: str
    median_us: float
    p20_us: float
    p80_us: float
    gb_per_s: float | None
    percent_of_limit: float | None
    runs: int
    path: str
    device: str
    capability: str
    torch: str
    commit: str
    date: str

    @property
    def subject(self) -> tuple[str, str, str, int, str, int]:
        """What was measured, whoever did the work."""
        return (self.suite, self.case, self.dtype, self.size, self.layout, self.threads)

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Where it was measured."""
        return (self.device, self.capability, self.torch, self.commit)

    @property
    def key(self) -> tuple[object, ...]:
        return (*self.subject, self.provider, *self.place)


FIELDS = [field.name for field in fields(Row)]
_NUMBERS = {"size": int, "threads": int, "runs": int, "median_us": float, "p20_us": float, "p80_us": float}
_OPTIONAL = ("gb_per_s", "percent_of_limit")


def rows_of(case: Case, timed: Sequence[Timed]) -> list[Row]:
    """The measurements of a case as rows."""
    where = facts(case.device)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    rows = []
    for one in timed:
        limit = next((t for t in timed if t.provider == LIMIT and t.threads == one.threads), None)
        p20, p80 = one.quantiles()
        values: dict[str, Any] = {
            "suite": case.suite,
            "case": case.name,
            "op": case.op,
            "dtype": dtype_name(case.dtype),
            "size": case.size,
            "layout": case.layout,
            "threads": one.threads,
            "provider": one.provider,
            "median_us": _round(one.median * 1e6),
            "p20_us": _round(p20 * 1e6),
            "p80_us": _round(p80 * 1e6),
            "gb_per_s": _round(one.speed / 1e9) if one.moved else None,
            "percent_of_limit": _round(100 * one.speed / limit.speed) if limit and one.moved else None,
            "runs": len(one.measurement.raw_times),
            "path": one.path,
        }
        rows.append(Row(**values, **where, date=date))
    return rows


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _parse(line: dict[str, str], path: Path, number: int) -> Row:
    try:
        values: dict[str, Any] = dict(line)
        values |= {name: kind(line[name]) for name, kind in _NUMBERS.items()}
        values |= {name: float(line[name]) if line[name] else None for name in _OPTIONAL}
        return Row(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: not a row of results ({error})") from None


def read(path: Path) -> list[Row]:
    """All rows, in the order in which their keys first came; of equal keys, the last row."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is not None and list(reader.fieldnames) != FIELDS:
            raise ValueError(f"{path}: columns {reader.fieldnames} are not those of results, {FIELDS}")
        by_key: dict[tuple[object, ...], Row] = {}
        for number, line in enumerate(reader, 2):
            row = _parse(line, path, number)
            by_key[row.key] = row
    return list(by_key.values())


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows at the end, on disk when this returns: whatever stops the run, they are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(map(asdict, rows))


def compact(path: Path) -> None:
    """Leaves one row for each key, the last, at the place of the first."""
    if not path.exists():
        return
    rows = read(path)
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)
    append(beside, rows)
    os.replace(beside, path)


def by_subject(rows: Iterable[Row]) -> Iterator[dict[str, Row]]:
    """The rows of each subject and place together, by provider."""
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((*row.subject, *row.place), {})[row.provider] = row
    yield from groups.values()


def speedup(group: dict[str, Row], provider: str) -> float | None:
    """How many times as long as ours the provider took."""
    if OURS not in group or provider not in group:
        return None
    return group[provider].median_us / group[OURS].median_us


def committed() -> Path:
    """The file of results that README.md shows."""
    return COMMITTED / "xeon-avx512.csv"


def default_file() -> Path:
    """What ``compare`` and ``plot`` read: the last run here, or else the committed file."""
    return DEFAULT if DEFAULT.exists() else committed()
