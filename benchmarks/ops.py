"""Every operation with own kernels against torch's method of the same name, in one run.

    python benchmarks/ops.py                 # the whole table, one thread
    python benchmarks/ops.py --check         # in addition, exits with 1 where a floor of FLOORS is missed
    python benchmarks/ops.py --op exp_ pow_ --dtype float32 --size 16 1048576

Both sides are timed in turn, on the same values, in the same process: the ratio is what can be trusted, not
the times. A case is a batch of equal tensors, each worked on once between two refills, so that values do not
drift to inf or denormals. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import inplace_ext as ie
from inplace_ext import testing

SIZES = [16, 4 << 10, 64 << 10, 1 << 20, 16 << 20]
FLOATING = ["float32", "float64", "float16", "bfloat16"]

#: Elements up to which the cost of a call shows.
SMALL = 4 << 10

# A batch fits the second-level cache where one tensor does.
CACHE_BYTES = 256 << 10
#: Seconds that one side of a case is timed, about.
BUDGET = 0.25


@dataclass(frozen=True)
class Case:
    """One operation with its operands."""

    label: str
    op: str
    args: Callable[[torch.Tensor], tuple[object, ...]]
    #: Range that the values are drawn from.
    low: float = 0.5
    high: float = 2.0

    def kwargs(self) -> dict[str, object]:
        return {"rounding_mode": self.label.split()[-1]} if self.label.startswith("div_ by") else {}


def _bound(
    f: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> Callable[[torch.Tensor], object]:
    """f with its operands, at the least cost per call that Python offers."""
    if kwargs:
        return lambda x: f(x, *args, **kwargs)
    if not args:
        return f
    if len(args) == 1:
        (a,) = args
        return lambda x: f(x, a)
    a, b = args
    return lambda x: f(x, a, b)


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.rand(x.shape).add_(0.5).to(x.dtype)


def _bytes_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 256, x.shape, dtype=torch.uint8)


CASES = [
    Case("add_ number", "add_", lambda x: (0.25,)),
    Case("add_ tensor", "add_", lambda x: (_like(x),)),
    Case("sub_ number", "sub_", lambda x: (0.25,)),
    Case("sub_ tensor", "sub_", lambda x: (_like(x),)),
    Case("mul_ number", "mul_", lambda x: (1.25,)),
    Case("mul_ tensor", "mul_", lambda x: (_like(x),)),
    Case("div_ number", "div_", lambda x: (1.25,)),
    Case("div_ tensor", "div_", lambda x: (_like(x),)),
    Case("div_ by number trunc", "div_", lambda x: (0.3,)),
    Case("div_ by number floor", "div_", lambda x: (0.3,)),
    Case("clamp_ numbers", "clamp_", lambda x: (0.75, 1.5)),
    Case("clamp_ tensors", "clamp_", lambda x: (_like(x), _like(x))),
    Case("clamp_min_ number", "clamp_min_", lambda x: (0.75,)),
    Case("clamp_max_ number", "clamp_max_", lambda x: (1.5,)),
    Case("pow_ 1.5", "pow_", lambda x: (1.5,)),
    Case("pow_ 2", "pow_", lambda x: (2,)),
    Case("pow_ tensor", "pow_", lambda x: (_like(x),)),
    Case("exp_", "exp_", lambda x: (), -4.0, 4.0),
    Case("sqrt_", "sqrt_", lambda x: ()),
    Case("neg_", "neg_", lambda x: ()),
    Case("relu_", "relu_", lambda x: (), -1.0, 1.0),
    Case("fill_", "fill_", lambda x: (1.5,)),
    Case("zero_", "zero_", lambda x: ()),
    Case("copy_", "copy_", lambda x: (_like(x),)),
    Case("copy_ from uint8", "copy_", lambda x: (_bytes_like(x),)),
]

# (cases, sizes, dtypes, least ratio to torch). None stands for all.
FLOORS: list[tuple[set[str] | None, set[int] | None, set[torch.dtype] | None, float]] = [
    ({"mul_ number", "add_ number"}, {16}, {torch.float32}, 4.0),
    ({"clamp_ numbers"}, {16}, {torch.float32}, 3.5),
    ({"relu_", "sqrt_", "add_ tensor"}, {16}, {torch.float32}, 1.6),
    (None, None, None, 0.97),
]
#: Least part of the memory limit for the cheap operations at the largest size, float32.
MEMORY_FLOOR = 0.95
CHEAP = {"add_ number", "sub_ number", "mul_ number", "clamp_ numbers", "clamp_min_ number", "neg_", "relu_"}


def floor_of(case: Case, size: int, dtype: torch.dtype) -> float:
    """The least ratio that the case must reach: the largest of the floors that apply."""
    return max(
        ratio
        for cases, sizes, dtypes, ratio in FLOORS
        if (cases is None or case.label in cases)
        and (sizes is None or size in sizes)
        and (dtypes is None or dtype in dtypes)
    )


def _check(case: Case, source: torch.Tensor, args: tuple[object, ...]) -> None:
    ours, theirs = source.clone(), source.clone()
    getattr(ie, case.op)(ours, *args, **case.kwargs())
    getattr(theirs, case.op)(*args, **case.kwargs())
    # Torch rounds twice in some 16-bit forms; a quotient next to an integer may then go the other way.
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-13, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    if "by number" in case.label and source.dtype in (torch.float16, torch.bfloat16):
        close = (ours - theirs).abs().max().item() <= 1
    else:
        close = torch.allclose(ours, theirs, rtol=tolerance[source.dtype], atol=0)
    if not close:
        raise AssertionError(f"{case.label}: results differ from torch's for {source.dtype}")


@dataclass(frozen=True)
class Result:
    """Median seconds per call, and the path that ours took."""

    ours: float
    theirs: float
    path: str
    #: Of the best in-place scaling loop, where memory is the limit that the case is held to.
    limit: float | None


def measure(case: Case, size: int, dtype: torch.dtype) -> Result:
    """Times ours, torch's and, for a cheap operation on the largest tensor, the memory limit, in turn."""
    source = torch.empty(size).uniform_(case.low, case.high).to(dtype)
    args = case.args(source)
    kwargs = case.kwargs()
    _check(case, source, args)
    sides: list[Callable[[torch.Tensor], object]] = [
        lambda x: getattr(ie, case.op)(x, *args, **kwargs),
        lambda x: getattr(torch.Tensor, case.op)(x, *args, **kwargs),
    ]
    if case.label in CHEAP and size == max(SIZES):
        sides += [lambda x: ie.mul_(x, 1.25), lambda x: x.mul_(1.25)]
    if size <= SMALL:  # where a lambda would weigh
        ours, theirs = getattr(ie, case.op), getattr(torch.Tensor, case.op)
        sides = [_bound(ours, args, kwargs), _bound(theirs, args, kwargs)]
    count = max(1, min(256, CACHE_BYTES // (size * source.element_size())))
    batch = [source.clone() for _ in range(count)]

    def once(f: Callable[[torch.Tensor], object]) -> float:
        for x in batch:
            x.copy_(source)
        start = time.perf_counter()
        for x in batch:
            f(x)
        return (time.perf_counter() - start) / count

    once(sides[0])
    path = testing.last_path()
    warm = once(sides[1])
    repeats = int(min(400, max(8, BUDGET / max(warm * count, 1e-9))))
    times: list[list[float]] = [[] for _ in sides]
    for i in range(repeats):
        # In turn, and each as often first as the others.
        for k in range(len(sides)):
            side = (i + k) % len(sides)
            times[side].append(once(sides[side]))
    medians = [statistics.median(t) for t in times]
    return Result(medians[0], medians[1], path, min(medians[2:], default=None))


def run(cases: Sequence[Case], sizes: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[str]:
    """Prints the table; returns the floors that were missed."""
    missed: list[str] = []
    memory: list[str] = []
    total = len(cases) * len(sizes) * len(dtypes)
    done = 0
    columns = f"{'ours':>10} {'torch':>10} {'ratio':>7} {'GB/s':>7}  path"
    header = f"{'operation':22} {'dtype':9} {'elements':>9} {columns}"
    print(header + "\n" + "-" * len(header))
    for dtype in dtypes:
        for case in cases:
            for size in sizes:
                done += 1
                if sys.stderr.isatty():
                    print(f"\r{done}/{total}", end="\r", file=sys.stderr)
                result = measure(case, size, dtype)
                floor = floor_of(case, size, dtype)
                ratio = result.theirs / result.ours
                if ratio < floor:  # once more: noise passes, a loss stays
                    again = measure(case, size, dtype)
                    if again.theirs / again.ours > ratio:
                        result, ratio = again, again.theirs / again.ours
                mark = ""
                if ratio < floor:
                    mark = f"  below {floor}"
                    missed.append(f"{case.label} {dtype} {size}: {ratio:.2f} of at least {floor}")
                name = str(dtype).removeprefix("torch.")
                speed = size * dtype.itemsize / result.ours / 1e9
                print(
                    f"{case.label:22} {name:9} {size:9} {result.ours * 1e6:8.2f}us "
                    f"{result.theirs * 1e6:8.2f}us {ratio:7.2f} {speed:7.2f}  {result.path}{mark}",
                    flush=True,
                )
                if result.limit is not None:
                    part = result.limit / result.ours
                    memory.append(f"memory: {case.label:20} {name:9} {part:5.2f} of the best scaling loop")
                    if dtype == torch.float32 and part < MEMORY_FLOOR:
                        missed.append(
                            f"{case.label}: {part:.2f} of the memory limit, at least {MEMORY_FLOOR}"
                        )
    print("\n".join(memory))
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", nargs="+", help="operations, by name")
    parser.add_argument("--dtype", nargs="+", default=FLOATING)
    parser.add_argument("--size", nargs="+", type=int, default=SIZES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a floor is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for case in CASES if options.op is None or case.op in options.op]
    print(f"torch {torch.__version__}, {ie.info().capability} kernels, {options.threads} thread(s)")
    missed = run(cases, options.size, [getattr(torch, name) for name in options.dtype])
    print(f"\n{len(missed)} floor(s) missed" + "".join(f"\n  {line}" for line in missed))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
