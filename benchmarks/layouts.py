"""The cost of odd layouts: each beside torch on the same tensors, and beside the contiguous case.

    python benchmarks/layouts.py             # the whole table, one thread
    python benchmarks/layouts.py --check     # in addition, exits with 1 where a floor of FLOORS is missed

Timed as in ops.py. ``cost`` is the time of ours per element, as a multiple of the same operation on a
contiguous tensor: 1 where the layout costs nothing. Where it reads another operand, so does that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import compare

import inplace_ext as ie
from inplace_ext import testing

BUDGET = 0.15
N = 2048


@dataclass(frozen=True)
class Layout:
    """A view of a buffer that is changed, and the operand, if any."""

    label: str
    shape: tuple[int, ...]
    view: Callable[[torch.Tensor], torch.Tensor]
    operand: Callable[[torch.Tensor], torch.Tensor] | None = None


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def rand(*shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.rand(shape).add_(0.5).to(x.dtype)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return torch.rand(x.shape[::-1]).add_(0.5).to(x.dtype).t()


LAYOUTS = [
    Layout("contiguous", (N, N), same),
    Layout("x.t()", (N, N), lambda x: x.t()),
    Layout("x[1:]", (N * N + 1,), lambda x: x[1:]),
    Layout("x[:, :-1]", (N, N), lambda x: x[:, :-1]),
    Layout("x[::2]", (N, N), lambda x: x[::2]),
    Layout("x[:, ::2]", (N, N), lambda x: x[:, ::2]),
    Layout("x[:, ::3]", (N, N), lambda x: x[:, ::3]),
    Layout("x[:, ::5]", (N, N), lambda x: x[:, ::5]),
    Layout("x[:, ::8]", (N, N), lambda x: x[:, ::8]),
    Layout("x[:, :1000:4]", (N, N), lambda x: x[:, :1000:4]),
    Layout("x[::2, ::2].t()", (N, N), lambda x: x[::2, ::2].t()),
    Layout("rows of 3, gap 1", (1 << 18, 4), lambda x: x[:, :3]),
    Layout("rows of 16, gap 4", (1 << 16, 20), lambda x: x[:, :16]),
    Layout("6 dims, a gap each", (8, 9, 10, 11, 12, 13), lambda x: x[:7, :8, :9, :10, :11, :12]),
    Layout("operand alike", (N, N), same, rand(N, N)),
    Layout("operand (N, 1)", (N, N), same, rand(N, 1)),
    Layout("operand (N,)", (N, N), same, rand(N)),
    Layout("rows of 16, (N, 1)", (1 << 17, 16), same, rand(1 << 17, 1)),
    Layout("4096 of 16, (N, 1)", (1 << 12, 16), same, rand(1 << 12, 1)),
    Layout("4096 of 16, (16,)", (1 << 12, 16), same, rand(16)),
    Layout("rows of 3, (N, 1)", (1 << 19, 3), same, rand(1 << 19, 1)),
    Layout("rows of 48, (N, 1)", (1 << 15, 48), same, rand(1 << 15, 1)),
    Layout("rows of 100, (N, 1)", (1 << 14, 100), same, rand(1 << 14, 1)),
    Layout("rows of 16, (16,)", (1 << 17, 16), same, rand(16)),
    Layout("rows of 3, (3,)", (1 << 19, 3), same, rand(3)),
    Layout("NCHW, (C, 1, 1)", (8, 64, 56, 56), same, rand(64, 1, 1)),
    Layout("NHWC, (C,)", (8, 56, 56, 64), same, rand(64)),
    Layout("NHWC of 3, (3,)", (8, 112, 112, 3), same, rand(3)),
    Layout("operand w.t()", (N, N), same, transposed),
    Layout("operand w[:, ::2]", (N, N), same, lambda x: rand(N, 2 * N)(x)[:, ::2]),
    Layout("operand w[::2]", (N, N), same, lambda x: rand(2 * N, N)(x)[::2]),
    Layout("x[:, ::2], w.t()", (N, N), lambda x: x[:, ::2], lambda x: rand(N // 2, N)(x).t()),
    Layout(
        "5 dims permuted",
        (16, 12, 10, 24, 16),
        same,
        lambda x: rand(16, 24, 10, 16, 12)(x).permute(0, 4, 2, 1, 3),
    ),
    Layout("operand int32", (N, N), same, lambda x: torch.randint(1, 9, x.shape, dtype=torch.int32)),
    Layout("operand uint8", (N, N), same, lambda x: torch.randint(1, 9, x.shape, dtype=torch.uint8)),
]
OPS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "mul_": (ie.mul_, torch.Tensor.mul_),
    "add_": (ie.add_, torch.Tensor.add_),
    "copy_": (ie.copy_, torch.Tensor.copy_),
}
#: (layout, operation, least ratio to torch), for float32; None stands for all, in every dtype.
FLOORS: list[tuple[str | None, str | None, float]] = [
    ("x[:, ::2]", "mul_", 1.3),
    ("operand w.t()", "add_", 4.0),
    (None, None, 0.97),
]


def floor_of(layout: Layout, op: str, dtype: torch.dtype) -> float:
    return max(
        ratio
        for label, name, ratio in FLOORS
        if label is None or (label == layout.label and name == op and dtype == torch.float32)
    )


def measure(layout: Layout, op: str, dtype: torch.dtype) -> tuple[float, float, int, str]:
    """Seconds of ours and of torch's, elements, and the path that ours took."""
    base = torch.rand(layout.shape).add_(0.5).to(dtype)
    operand: object = 1.25 if layout.operand is None else layout.operand(layout.view(base))
    ours, theirs = OPS[op]
    twins = [base.clone(), base.clone()]
    ours(layout.view(twins[0]), operand)
    path = testing.last_path()
    theirs(layout.view(twins[1]), operand)
    torch.testing.assert_close(twins[0], twins[1])
    times = compare(
        [lambda x: ours(layout.view(x), operand), lambda x: theirs(layout.view(x), operand)],
        base,
        [base.clone()],
        BUDGET,
    )
    return times[0], times[1], layout.view(base).numel(), path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "float64"])
    parser.add_argument("--layout", nargs="+", help="layouts, by label")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a floor is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {ie.info().capability} kernels, {options.threads} thread(s)")
    header = (
        f"{'layout':20} {'operation':9} {'dtype':9} {'ours':>10} {'torch':>10} {'ratio':>7} {'cost':>6}  path"
    )
    print(header + "\n" + "-" * len(header))
    missed: list[str] = []
    for name in options.dtype:
        dtype = getattr(torch, name)
        plain: dict[str, float] = {}
        for layout in LAYOUTS:
            if options.layout and layout.label not in options.layout and layout.operand is not None:
                continue
            for op in ("mul_",) if layout.operand is None else ("add_", "copy_"):
                ours, theirs, numel, path = measure(layout, op, dtype)
                floor = floor_of(layout, op, dtype)
                if theirs / ours < floor:  # once more: noise passes, a loss stays
                    again = measure(layout, op, dtype)
                    if again[1] / again[0] > theirs / ours:
                        ours, theirs, numel, path = again
                plain.setdefault(op, ours / numel)
                mark = ""
                if theirs / ours < floor:
                    mark = f"  below {floor}"
                    missed.append(f"{layout.label} {op} {name}: {theirs / ours:.2f} of at least {floor}")
                print(
                    f"{layout.label:20} {op:9} {name:9} {ours * 1e6:8.1f}us {theirs * 1e6:8.1f}us "
                    f"{theirs / ours:7.2f} {ours / numel / plain[op]:6.2f}  {path}{mark}",
                    flush=True,
                )
    print(f"\n{len(missed)} floor(s) missed" + "".join(f"\n  {line}" for line in missed))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
