"""The least ratios that ``check`` holds the library to; ``floors.toml`` has them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

from benchmarks import machine
from benchmarks.case import OURS, TORCH, Case, dtype_name, parse_size
from benchmarks.timing import Timed

FILE = Path(__file__).with_name("floors.toml")
_CRITERIA = ("suite", "case", "dtype", "size", "layout")


@dataclass(frozen=True)
class Floor:
    """The time of provider ``against`` is at least ``least`` times ours, in the cases that it names."""

    least: float
    against: str = TORCH
    suite: str | None = None
    case: tuple[str, ...] | None = None
    dtype: tuple[str, ...] | None = None
    size: tuple[int, ...] | None = None
    layout: tuple[str, ...] | None = None
    #: Holds on processors of this maker alone: torch's own vector math is Intel's on Intel processors.
    vendor: str | None = None
    #: Why it lies below that of all cases.
    why: str | None = None

    def applies(self, case: Case) -> bool:
        return (
            (self.suite is None or self.suite == case.suite)
            and (self.case is None or case.name in self.case)
            and (self.dtype is None or dtype_name(case.dtype) in self.dtype)
            and (self.size is None or case.size in self.size)
            and (self.layout is None or case.layout in self.layout)
            and (self.vendor is None or self.vendor == machine.vendor())
        )


def ratio(ours: Timed, other: Timed) -> float:
    """How many times as fast ours is: by bytes a second where the bytes differ, as the limit's may."""
    if ours.moved and other.moved and ours.moved != other.moved:
        return ours.speed / other.speed
    return other.median / ours.median


@dataclass(frozen=True)
class Floors:
    """The floor of all cases, the exceptions from it, and higher floors of single cases."""

    everywhere: Floor
    exceptions: Sequence[Floor]
    higher: Sequence[Floor]

    def of(self, case: Case) -> dict[str, float]:
        """The least ratio to each provider."""
        base = [f for f in self.exceptions if f.applies(case)] or [self.everywhere]
        found = {self.everywhere.against: min(f.least for f in base)}
        for floor in self.higher:
            if floor.applies(case):
                found[floor.against] = max(floor.least, found.get(floor.against, 0.0))
        return found

    def singled_out(self, case: Case) -> bool:
        """Whether a floor of its own names the case, or some cases like it."""
        return any(floor.applies(case) for floor in (*self.higher, *self.exceptions))


def _floor(entry: dict[str, Any], where: str) -> Floor:
    unknown = set(entry) - set(Floor.__dataclass_fields__)
    if unknown or "least" not in entry:
        raise ValueError(f"{where}: {', '.join(sorted(unknown)) or 'least is missing'} in {entry}")
    values = dict(entry)
    for name in ("case", "dtype", "size", "layout"):
        if name in values:
            items = values[name] if isinstance(values[name], list) else [values[name]]
            values[name] = tuple(parse_size(i) if name == "size" else i for i in items)
    return Floor(**values)


def load(path: Path = FILE) -> Floors:
    with path.open("rb") as file:
        content = tomllib.load(file)
    if "everywhere" not in content:
        raise ValueError(f"{path.name}: there is no [everywhere], the floor of all cases")
    exceptions = [_floor(entry, path.name) for entry in content.get("exception", [])]
    for exception in exceptions:
        if not exception.why:
            raise ValueError(f"{path.name}: an exception must say why, got {exception}")
    return Floors(
        _floor(content["everywhere"], path.name),
        exceptions,
        [_floor(entry, path.name) for entry in content.get("floor", [])],
    )


@dataclass(frozen=True)
class Miss:
    """A floor that was not reached."""

    case: Case
    against: str
    threads: int
    ratio: float
    least: float

    def __str__(self) -> str:
        return f"{self.case}: {self.ratio:.2f} of at least {self.least:g} against {self.against}"


def misses(case: Case, timed: Sequence[Timed], least: dict[str, float]) -> list[Miss]:
    """The floors that the measurements of a case do not reach."""
    found = []
    for ours in (t for t in timed if t.provider == OURS):
        for other in timed:
            if other.provider in least and other.threads == ours.threads:
                reached = ratio(ours, other)
                if reached < least[other.provider]:
                    found.append(Miss(case, other.provider, ours.threads, reached, least[other.provider]))
    return found
