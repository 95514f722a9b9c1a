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
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from harness import compare

import inplace_ext as ie
from inplace_ext import testing

SIZES = [16, 4 << 10, 64 << 10, 1 << 20, 16 << 20]
FLOATING = ["float32", "float64", "float16", "bfloat16"]

# A batch fits the second-level cache where one tensor does.
CACHE_BYTES = 256 << 10
#: Seconds that one side of a case is timed, about.
BUDGET = 0.12


@dataclass(frozen=True)
class Case:
    """One operation with its operands."""

    label: str
    args: Callable[[torch.Tensor], tuple[object, ...]] = lambda x: ()
    #: Range that the values are drawn from.
    low: float = 0.5
    high: float = 2.0
    kwargs: dict[str, object] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return self.label.split()[0]

    def ours(self) -> Callable[..., object]:
        return getattr(ie, self.op)  # type: ignore[no-any-return]

    def theirs(self) -> Callable[..., object]:
        """What one would write with torch: the method, or else what comes nearest to in place."""
        return _TORCH.get(self.op) or getattr(torch.Tensor, self.op)


_TORCH: dict[str, Callable[..., object]] = {
    # With a number there is only the form that allocates.
    "where_": lambda x, mask, other: (
        torch.where(mask, x, other, out=x) if isinstance(other, torch.Tensor) else torch.where(mask, x, other)
    ),
    "maximum_": lambda x, other: torch.maximum(x, other, out=x),
    "minimum_": lambda x, other: torch.minimum(x, other, out=x),
    # There is no public form of these that writes into its input.
    "softplus_": F.softplus,
    "gelu_": F.gelu,
    **{
        f"{f.__name__}_": functools.partial(f, inplace=True)
        for f in (F.relu6, F.hardsigmoid, F.hardswish, F.elu, F.celu, F.selu, F.silu, F.mish)
    },
    "hardtanh_": F.hardtanh_,
    "leaky_relu_": F.leaky_relu_,
    "threshold_": F.threshold_,
}


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


def _mask_like(x: torch.Tensor) -> torch.Tensor:
    return torch.rand(x.shape) < 0.5


#: Values on both sides of zero.
SIGNED = {"low": -2.0, "high": 2.0}


CASES = [
    Case("add_ number", lambda x: (0.25,)),
    Case("add_ tensor", lambda x: (_like(x),)),
    Case("sub_ number", lambda x: (0.25,)),
    Case("sub_ tensor", lambda x: (_like(x),)),
    Case("mul_ number", lambda x: (1.25,)),
    Case("mul_ tensor", lambda x: (_like(x),)),
    Case("div_ number", lambda x: (1.25,)),
    Case("div_ tensor", lambda x: (_like(x),)),
    Case("div_ trunc", lambda x: (0.3,), kwargs={"rounding_mode": "trunc"}),
    Case("div_ floor", lambda x: (0.3,), kwargs={"rounding_mode": "floor"}),
    Case("remainder_ number", lambda x: (0.3,)),
    Case("remainder_ tensor", lambda x: (_like(x),)),
    Case("fmod_ number", lambda x: (0.3,)),
    Case("fmod_ tensor", lambda x: (_like(x),)),
    Case("addcmul_", lambda x: (_like(x), _like(x)), kwargs={"value": 0.5}),
    Case("addcdiv_", lambda x: (_like(x), _like(x)), kwargs={"value": 0.5}),
    Case("lerp_ number", lambda x: (_like(x), 0.25)),
    Case("lerp_ tensor", lambda x: (_like(x), _like(x))),
    Case("pow_ 1.5", lambda x: (1.5,)),
    Case("pow_ 2", lambda x: (2,)),
    Case("pow_ tensor", lambda x: (_like(x),)),
    Case("neg_"),
    Case("abs_", **SIGNED),
    Case("sign_", **SIGNED),
    Case("square_"),
    Case("reciprocal_"),
    Case("sqrt_"),
    Case("rsqrt_"),
    Case("floor_", low=-8, high=8),
    Case("ceil_", low=-8, high=8),
    Case("trunc_", low=-8, high=8),
    Case("round_", low=-8, high=8),
    Case("round_ decimals", low=-8, high=8, kwargs={"decimals": 1}),
    Case("frac_", low=-8, high=8),
    Case("exp_", low=-4, high=4),
    Case("exp2_", low=-4, high=4),
    Case("expm1_", low=-4, high=4),
    Case("log_"),
    Case("log2_"),
    Case("log10_"),
    Case("log1p_"),
    Case("sin_", low=-8, high=8),
    Case("cos_", low=-8, high=8),
    Case("tanh_", **SIGNED),
    Case("sigmoid_", low=-4, high=4),
    Case("erf_", **SIGNED),
    Case("clamp_ numbers", lambda x: (0.75, 1.5)),
    Case("clamp_ tensors", lambda x: (_like(x), _like(x))),
    Case("clamp_min_ number", lambda x: (0.75,)),
    Case("clamp_max_ number", lambda x: (1.5,)),
    Case("maximum_", lambda x: (_like(x),)),
    Case("minimum_", lambda x: (_like(x),)),
    Case("nan_to_num_"),
    Case("masked_fill_", lambda x: (_mask_like(x), 1.5)),
    Case("where_ number", lambda x: (_mask_like(x), 1.5)),
    Case("where_ tensor", lambda x: (_mask_like(x), _like(x))),
    Case("eq_ number", lambda x: (1.5,)),
    Case("lt_ tensor", lambda x: (_like(x),)),
    Case("relu_", **SIGNED),
    Case("relu6_", low=-4, high=8),
    Case("hardtanh_", **SIGNED),
    Case("threshold_", lambda x: (0.1, 0.5), **SIGNED),
    Case("leaky_relu_", **SIGNED),
    Case("hardsigmoid_", low=-4, high=4),
    Case("hardswish_", low=-4, high=4),
    Case("elu_", **SIGNED),
    Case("celu_", **SIGNED),
    Case("selu_", **SIGNED),
    Case("silu_", low=-4, high=4),
    Case("mish_", low=-4, high=4),
    Case("softplus_", low=-4, high=4),
    Case("gelu_", low=-2, high=4),
    Case("gelu_ tanh", low=-2, high=4, kwargs={"approximate": "tanh"}),
    Case("fill_", lambda x: (1.5,)),
    Case("zero_"),
    Case("copy_", lambda x: (_like(x),)),
    Case("copy_ from uint8", lambda x: (_bytes_like(x),)),
]

# (cases, sizes, dtypes, least ratio to torch). None stands for all.
FLOORS: list[tuple[set[str] | None, set[int] | None, set[torch.dtype] | None, float]] = [
    ({"mul_ number", "add_ number"}, {16}, {torch.float32}, 4.0),
    ({"clamp_ numbers"}, {16}, {torch.float32}, 3.5),
    ({"relu_", "sqrt_", "add_ tensor"}, {16}, {torch.float32}, 1.6),
    ({"sqrt_", "exp_", "log_"}, {1 << 20}, {torch.float32}, 1.8),
    ({"tanh_"}, {1 << 20}, {torch.float32}, 3.5),
    ({"sigmoid_"}, {1 << 20}, {torch.float32}, 1.3),
    ({"pow_ 1.5"}, {1 << 20}, {torch.float32}, 3.0),
    ({"pow_ tensor"}, {1 << 20}, {torch.float32}, 2.5),
    ({"erf_"}, {1 << 20}, {torch.float32}, 1.5),
    ({"silu_", "gelu_", "gelu_ tanh"}, {1 << 20}, {torch.float32}, 1.2),
    ({"masked_fill_"}, {16 << 20}, {torch.float32}, 6.0),
    ({"mul_ number", "clamp_ numbers"}, {1 << 20}, {torch.float16, torch.bfloat16}, 1.4),
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
    case.ours()(ours, *args, **case.kwargs)
    result = case.theirs()(theirs, *args, **case.kwargs)
    assert isinstance(result, torch.Tensor)
    # Torch rounds twice in some 16-bit forms; a quotient next to an integer may then go the other way.
    tolerance = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    half = source.dtype in (torch.float16, torch.bfloat16)
    if half and case.op in ("div_", "remainder_", "fmod_"):
        close = bool(((ours - result).abs() <= 1).all())
    else:
        close = torch.allclose(ours, result, rtol=tolerance[source.dtype], atol=tolerance[source.dtype])
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
    _check(case, source, args)
    sides = [_bound(f, args, case.kwargs) for f in (case.ours(), case.theirs())]
    if case.label in CHEAP and size == max(SIZES):
        sides += [lambda x: ie.mul_(x, 1.25), lambda x: x.mul_(1.25)]
    count = max(1, min(256, CACHE_BYTES // (size * source.element_size())))
    sides[0](source.clone())
    path = testing.last_path()
    medians = compare(sides, source, [source.clone() for _ in range(count)], BUDGET)
    return Result(medians[0], medians[1], path, min(medians[2:], default=None))


def run(cases: Sequence[Case], sizes: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[str]:
    """Prints the table; returns the floors that were missed."""
    missed: list[str] = []
    ratios: list[float] = []
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
                ratios.append(ratio)
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
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"{len(ratios)} cases, geometric mean {mean:.2f}x, lowest {min(ratios):.2f}x")
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
