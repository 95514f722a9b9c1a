"""What the benchmarks share: sides that are timed in turn, on the same values, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

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
