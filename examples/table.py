"""Cleaning a table in one pass: holes filled, outliers clipped, skewed columns tamed, standardised.

python examples/table.py
"""

from __future__ import annotations

import time

import torch

import inplace_ext as ie


@ie.fuse
def clean_(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    skewed: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> torch.Tensor:
    """x: rows of numbers; the others: one number for each column, ``skewed`` a bool."""
    x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(low, high)
    x.copy_(torch.where(skewed, torch.log1p(x.abs()), x))
    return x.sub_(mean).div_(std)


def make(rows: int, columns: int = 16) -> tuple[torch.Tensor, ...]:
    """A table with holes and outliers, and what is to be known of its columns."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=g).exp_()
    x[torch.rand(rows, columns, generator=g) < 0.01] = float("nan")
    x[torch.rand(rows, columns, generator=g) < 0.001] = float("inf")
    low, high = torch.zeros(columns), torch.full((columns,), 20.0)
    skewed = torch.arange(columns) % 2 == 0
    return x, low, high, skewed, torch.full((columns,), 0.8), torch.full((columns,), 1.5)


def main() -> None:
    table, *columns = make(1 << 20)
    clean_.explain(table, *columns)  # type: ignore[attr-defined]
    for name, function in (("fused", clean_), ("as written", clean_.__wrapped__)):  # type: ignore[attr-defined]
        x = table.clone()
        function(x.clone(), *columns)
        start = time.perf_counter()
        function(x, *columns)
        print(f"{name:<10} {(time.perf_counter() - start) * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
