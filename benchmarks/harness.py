"""What the benchmarks share: sides that are timed in turn, on the same values, in one process."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import inplace_ext as ie

Side = Callable[[torch.Tensor], object]


def compare(
    sides: Sequence[Side], source: torch.Tensor, batch: Sequence[torch.Tensor], budget: float
) -> list[float]:
    """Median seconds per call of each side.

    Every tensor of the batch is worked on once between two refills from ``source``, so that values do not
    drift to inf or denormals. The sides alternate, each as often first as the others, for about ``budget``
    seconds each.
    """

    def once(side: Side) -> float:
        for x in batch:
            x.copy_(source)
        start = time.perf_counter()
        for x in batch:
            side(x)
        return (time.perf_counter() - start) / len(batch)

    warm = max(once(side) for side in sides) * len(batch)
    repeats = int(min(400, max(8, budget / max(warm, 1e-9))))
    times: list[list[float]] = [[] for _ in sides]
    for i in range(repeats):
        for k in range(len(sides)):
            side = (i + k) % len(sides)
            times[side].append(once(sides[side]))
    return [statistics.median(t) for t in times]


@dataclass(frozen=True)
class Floors:
    """The least ratio of each other side's time to ours."""

    names: tuple[str, ...]
    least: tuple[float, ...]

    def missed(self, label: str, times: Sequence[float]) -> list[str]:
        return [
            f"{label}: {theirs / times[0]:.2f} times {name}, of at least {floor}"
            for theirs, name, floor in zip(times[1:], self.names, self.least, strict=True)
            if theirs / times[0] < floor
        ]


def report(
    description: str,
    cases: Sequence[tuple[str, Callable[[], tuple[list[float], str]], tuple[float, ...]]],
    sides: tuple[str, ...],
) -> int:
    """Measures cases of (label, measurement, floors), ours first, and prints a row each; the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", help="only those whose label contains this")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a floor is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {ie.info().capability} kernels, {options.threads} thread(s)")
    columns = "".join(f" {side:>16}" for side in sides)
    header = f"{'case':32} {'ours':>11}{columns}{'   ratio' * len(sides)}  path"
    print(header + "\n" + "-" * len(header))
    missed: list[str] = []
    for label, measure, least in cases:
        if options.case and options.case not in label:
            continue
        floors = Floors(sides, least)
        times, path = measure()
        if floors.missed(label, times):  # once more: noise passes, a loss stays
            times = min(times, measure()[0], key=lambda t: len(floors.missed(label, t)))
        missed += floors.missed(label, times)
        theirs = "".join(f" {t * 1e6:14.1f}us" for t in times[1:])
        ratios = "".join(f" {t / times[0]:7.2f}" for t in times[1:])
        print(f"{label:32} {times[0] * 1e6:9.1f}us{theirs}{ratios}  {path}", flush=True)
    print(f"\n{len(missed)} floor(s) missed" + "".join(f"\n  {line}" for line in missed))
    return 1 if options.check and missed else 0
