"""Every elementwise operation beside torch's method of the same name.

Operations with kernels of their own have the lines of ``LINES``, where values and operands are chosen with
care. An operation of the op table that has no line gets one made from its example in the documentation, so
that a new operation is measured from its first day; that is also how those that torch carries out are held
to cost no more here than there.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

import inplace_ext as ie
from benchmarks.case import (
    OURS,
    TORCH,
    Case,
    Check,
    Selection,
    Side,
    Suite,
    Work,
    array_sides,
    close,
    compiled,
    optional,
)
from inplace_ext._table import OPS, Op

np = optional("numpy")

SMALL, MEDIUM, LARGE = 4 << 10, 1 << 20, 16 << 20
SIZES = [16, SMALL, MEDIUM, LARGE]
#: Sizes that only the operations of a roofline are measured at in addition.
BETWEEN = [64 << 10, 256 << 10, 4 << 20]
#: Where one line is measured in other floating types.
OTHER_FLOATS = [torch.float64, torch.float16, torch.bfloat16]

Operands = Callable[[torch.Tensor], tuple[object, ...]]


@dataclass(frozen=True)
class Line:
    """One operation with its operands, and how NumPy (in place) and numexpr say it."""

    name: str
    operands: Operands = lambda x: ()
    #: Range that the values are drawn from.
    low: float = 0.5
    high: float = 2.0
    kwargs: Mapping[str, object] = field(default_factory=dict)
    #: ``f(x, *operands)``, or the name of a ufunc that is given ``out=x``.
    numpy: Callable[..., object] | str | None = None
    #: Of x and the operands a, b, ...
    numexpr: str | None = None
    #: Whether the old values are read.
    reads: bool = True

    @property
    def op(self) -> str:
        return self.name.split()[0]

    def array_call(self) -> Callable[..., object] | None:
        """What NumPy does."""
        if not isinstance(self.numpy, str):
            return self.numpy
        ufunc = getattr(np, self.numpy, None)
        return None if ufunc is None else lambda x, *operands: ufunc(x, *operands, out=x)


def torchs(op: str) -> Callable[..., object]:
    """What one would write with torch: the method, or else what comes nearest to in place."""
    return _TORCH.get(op) or getattr(torch.Tensor, op)


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


def bound(
    f: Callable[..., object], operands: Sequence[object], kwargs: Mapping[str, object]
) -> Callable[[torch.Tensor], object]:
    """f with its operands, at the least cost per call that Python offers."""
    if kwargs:
        return lambda x: f(x, *operands, **kwargs)
    if not operands:
        return f
    if len(operands) == 1:
        (a,) = operands
        return lambda x: f(x, a)
    if len(operands) == 2:
        a, b = operands
        return lambda x: f(x, a, b)
    return lambda x: f(x, *operands)


def uniform(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Random values for a tensor such as x; the same ones over and over, since drawing takes its time."""
    values = torch.empty(min(x.numel(), MEDIUM), device=x.device).uniform_(low, high)
    return values.repeat(-(-x.numel() // values.numel()))[: x.numel()]


def like(x: torch.Tensor) -> torch.Tensor:
    return uniform(x, 0.5, 1.5).to(x.dtype)


def bytes_like(x: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 256, x.shape, dtype=torch.uint8, device=x.device)


def mask_like(x: torch.Tensor) -> torch.Tensor:
    return uniform(x, 0, 1) < 0.5


def number(*values: float) -> Operands:
    return lambda x: values


def one(x: torch.Tensor) -> tuple[object, ...]:
    return (like(x),)


def two(x: torch.Tensor) -> tuple[object, ...]:
    return like(x), like(x)


#: Values on both sides of zero, and some that rounding changes.
SIGNED: dict[str, Any] = {"low": -2.0, "high": 2.0}
WIDE: dict[str, Any] = {"low": -8.0, "high": 8.0}
CURVED: dict[str, Any] = {"low": -4.0, "high": 4.0}

LINES = [
    Line("add_ number", number(0.25), numpy="add", numexpr="x + a"),
    Line("add_ tensor", one, numpy="add", numexpr="x + a"),
    Line("sub_ number", number(0.25), numpy="subtract", numexpr="x - a"),
    Line("sub_ tensor", one, numpy="subtract", numexpr="x - a"),
    Line("mul_ number", number(1.25), numpy="multiply", numexpr="x * a"),
    Line("mul_ tensor", one, numpy="multiply", numexpr="x * a"),
    Line("div_ number", number(1.25), numpy="divide", numexpr="x / a"),
    Line("div_ tensor", one, numpy="divide", numexpr="x / a"),
    Line("div_ trunc", number(0.3), kwargs={"rounding_mode": "trunc"}),
    Line("div_ floor", number(0.3), kwargs={"rounding_mode": "floor"}, numpy="floor_divide"),
    Line("remainder_ number", number(0.3), numpy="remainder"),
    Line("remainder_ tensor", one, numpy="remainder"),
    Line("fmod_ number", number(0.3), numpy="fmod"),
    Line("fmod_ tensor", one, numpy="fmod"),
    Line("addcmul_", two, kwargs={"value": 0.5}),
    Line("addcdiv_", two, kwargs={"value": 0.5}),
    Line("lerp_ number", lambda x: (like(x), 0.25), numexpr="x + b * (a - x)"),
    Line("lerp_ tensor", two, numexpr="x + b * (a - x)"),
    Line("pow_ 1.5", number(1.5), numpy="power", numexpr="x ** a"),
    Line("pow_ 2", number(2), numpy=lambda x, a: np.square(x, out=x), numexpr="x * x"),
    Line("pow_ tensor", one, numpy="power", numexpr="x ** a"),
    Line("neg_", numpy="negative", numexpr="-x"),
    Line("abs_", **SIGNED, numpy="absolute", numexpr="abs(x)"),
    Line("sign_", **SIGNED, numpy="sign"),
    Line("square_", numpy="square", numexpr="x * x"),
    Line("reciprocal_", numpy="reciprocal", numexpr="1 / x"),
    Line("sqrt_", numpy="sqrt", numexpr="sqrt(x)"),
    Line("rsqrt_", numexpr="1 / sqrt(x)"),
    Line("floor_", **WIDE, numpy="floor", numexpr="floor(x)"),
    Line("ceil_", **WIDE, numpy="ceil", numexpr="ceil(x)"),
    Line("trunc_", **WIDE, numpy="trunc"),
    Line("round_", **WIDE, numpy="rint"),
    Line("round_ decimals", **WIDE, kwargs={"decimals": 1}),
    Line("frac_", **WIDE),
    Line("exp_", **CURVED, numpy="exp", numexpr="exp(x)"),
    Line("exp2_", **CURVED, numpy="exp2"),
    Line("expm1_", **CURVED, numpy="expm1", numexpr="expm1(x)"),
    Line("log_", numpy="log", numexpr="log(x)"),
    Line("log2_", numpy="log2"),
    Line("log10_", numpy="log10", numexpr="log10(x)"),
    Line("log1p_", numpy="log1p", numexpr="log1p(x)"),
    Line("sin_", **WIDE, numpy="sin", numexpr="sin(x)"),
    Line("cos_", **WIDE, numpy="cos", numexpr="cos(x)"),
    Line("tanh_", **SIGNED, numpy="tanh", numexpr="tanh(x)"),
    Line("sigmoid_", **CURVED, numexpr="1 / (1 + exp(-x))"),
    Line("erf_", **SIGNED),
    Line("clamp_ numbers", number(0.75, 1.5), numpy="clip", numexpr="where(x < a, a, where(x > b, b, x))"),
    Line("clamp_ tensors", two, numpy="clip"),
    Line("clamp_min_ number", number(0.75), numpy="maximum", numexpr="where(x < a, a, x)"),
    Line("clamp_max_ number", number(1.5), numpy="minimum", numexpr="where(x > a, a, x)"),
    Line("maximum_", one, numpy="maximum", numexpr="where(x < a, a, x)"),
    Line("minimum_", one, numpy="minimum", numexpr="where(x > a, a, x)"),
    Line("nan_to_num_", numpy=lambda x: np.nan_to_num(x, copy=False)),
    Line(
        "masked_fill_",
        lambda x: (mask_like(x), 1.5),
        numpy=lambda x, mask, value: np.copyto(x, value, where=mask),
        numexpr="where(a, b, x)",
    ),
    Line("where_ number", lambda x: (mask_like(x), 1.5), numexpr="where(a, x, b)"),
    Line("where_ tensor", lambda x: (mask_like(x), like(x)), numexpr="where(a, x, b)"),
    Line("eq_ number", number(1.5), numpy="equal"),
    Line("ne_ number", number(1.5), numpy="not_equal"),
    Line("lt_ tensor", one, numpy="less"),
    Line("le_ number", number(1.5), numpy="less_equal"),
    Line("gt_ number", number(1.5), numpy="greater"),
    Line("ge_ number", number(1.5), numpy="greater_equal"),
    Line("relu_", **SIGNED, numpy=lambda x: np.maximum(x, 0, out=x), numexpr="where(x < 0, 0, x)"),
    Line("relu6_", low=-4.0, high=8.0, numpy=lambda x: np.clip(x, 0, 6, out=x)),
    Line("hardtanh_", **SIGNED, numpy=lambda x: np.clip(x, -1, 1, out=x)),
    Line("threshold_", number(0.1, 0.5), **SIGNED, numexpr="where(x > a, x, b)"),
    Line("leaky_relu_", number(0.01), **SIGNED, numexpr="where(x > 0, x, a * x)"),
    Line("hardsigmoid_", **CURVED),
    Line("hardswish_", **CURVED),
    Line("elu_", **SIGNED),
    Line("celu_", **SIGNED),
    Line("selu_", **SIGNED),
    Line("silu_", **CURVED, numexpr="x / (1 + exp(-x))"),
    Line("mish_", **CURVED),
    Line("softplus_", **CURVED),
    Line("gelu_", low=-2.0, high=4.0),
    Line("gelu_ tanh", low=-2.0, high=4.0, kwargs={"approximate": "tanh"}),
    Line("fill_", number(1.5), numpy=lambda x, value: x.fill(value), reads=False),
    Line("zero_", numpy=lambda x: x.fill(0), reads=False),
    Line("copy_", one, numpy=lambda x, a: np.copyto(x, a), reads=False),
    Line("copy_ from uint8", lambda x: (bytes_like(x),), numpy=lambda x, a: np.copyto(x, a), reads=False),
]
#: Lines that show how speed depends on size, and what more threads bring.
ROOFLINE = {"mul_ number", "add_ tensor", "exp_", "tanh_", "pow_ 1.5", "masked_fill_"}
SCALING = {"mul_ number", "exp_", "tanh_", "pow_ 1.5"}
#: Rounded twice by torch in some 16-bit forms: a quotient next to an integer may then go the other way.
_STEPS = (
    "div_ trunc",
    "div_ floor",
    "remainder_ number",
    "remainder_ tensor",
    "fmod_ number",
    "fmod_ tensor",
)


def _moved(x: torch.Tensor, operands: Sequence[object], reads: bool) -> int:
    tensors = [o for o in operands if isinstance(o, torch.Tensor)]
    return x.nbytes * (2 if reads else 1) + sum(o.nbytes for o in tensors)


def prepare(line: Line, dtype: torch.dtype, size: int, device: str, compile_too: bool = False) -> Work:
    """A line on a contiguous tensor of random values."""
    x = uniform(torch.empty(size, device=device), line.low, line.high).to(dtype)
    operands = line.operands(x)
    call = bound(torchs(line.op), operands, line.kwargs)
    sides = [
        Side(OURS, bound(getattr(ie, line.op), operands, line.kwargs)),
        Side(TORCH, call),
        compiled(call, on_request=not compile_too),
    ]
    if device == "cpu":
        on_request = dtype != torch.float32 or (size >= LARGE and line.name not in ROOFLINE)
        sides += array_sides(dtype, operands, line.array_call(), line.numexpr, on_request=on_request)
    check: Check = close(within=1.0 if dtype.itemsize == 2 and line.name in _STEPS else 0.0)
    return Work(sides, x, moved=_moved(x, operands, line.reads), check=check)


def line_case(
    line: Line, dtype: torch.dtype, size: int, selection: Selection, suite: str = "ops", **options: Any
) -> Case:
    threads = selection.thread_counts
    if line.name in SCALING and dtype == torch.float32 and suite == "ops" and size >= MEDIUM:
        threads = selection.scaling()
    work = functools.partial(prepare, line, dtype, size, selection.device, **options)
    return Case(suite, line.name, line.op, dtype, size, work, threads=threads, device=selection.device)


def without_line() -> list[Op]:
    """The operations of the table that no line covers; an alias is what it is an alias of."""
    covered = {line.op for line in LINES}
    return [op for op in OPS.values() if op.alias_of is None and op.name not in covered]


def _example(op: Op) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of the example; a list stands for a tensor."""
    tree = ast.parse(f"f({op.example})", mode="eval").body
    assert isinstance(tree, ast.Call)

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), op.name, "eval"), {"__builtins__": {"float": float}})

    return [value(a) for a in tree.args], {str(k.arg): value(k.value) for k in tree.keywords}


def example_dtype(op: Op) -> torch.dtype:
    if op.name == "conj_physical_":  # which does nothing to real numbers
        return torch.complex64
    return next(
        getattr(torch, name)
        for name in ("float32", "float64", "int64", "bool", *op.dtype_names)
        if name in op.dtype_names
    )


def prepare_example(op: Op, dtype: torch.dtype, size: int, device: str) -> Work:
    """The operation's example, its tensors repeated up to the size."""
    positional, keywords = _example(op)

    def repeated(values: Any, kind: torch.dtype | None) -> torch.Tensor:
        short = torch.tensor(values, device=device)
        short = short.to(kind or (dtype if short.is_floating_point() else short.dtype))
        return short.repeat(-(-size // len(short)))[:size].clone()

    x = repeated(positional[0], dtype)
    operands = [repeated(o, None) if isinstance(o, list) else o for o in positional[1:]]
    sides = [
        Side(OURS, bound(getattr(ie, op.name), operands, keywords)),
        Side(TORCH, bound(torchs(op.name), operands, keywords)),
    ]
    return Work(sides, x, moved=_moved(x, operands, True))


def cases(selection: Selection) -> Iterator[Case]:
    roofline = () if selection.quick else BETWEEN
    sizes = selection.sizes or ([SMALL, MEDIUM] if selection.quick else SIZES)
    for line in LINES:
        more = () if selection.sizes or line.name not in ROOFLINE else roofline
        for dtype in selection.dtypes or [torch.float32]:
            for size in sorted({*sizes, *more}):
                yield line_case(line, dtype, size, selection)
        if not selection.dtypes and not selection.quick:
            for dtype in OTHER_FLOATS:
                for size in selection.sizes or [MEDIUM]:
                    yield line_case(line, dtype, size, selection)
    for op in without_line():
        dtypes = [d for d in selection.dtypes or [example_dtype(op)] if str(d)[6:] in op.dtype_names]
        for dtype in dtypes:
            for size in selection.sizes or [64 << 10]:
                work = functools.partial(prepare_example, op, dtype, size, selection.device)
                yield Case(
                    "ops", op.name, op.name, dtype, size, work,
                    threads=selection.thread_counts, device=selection.device,
                )  # fmt: skip


SUITE = Suite("ops", "every elementwise operation beside torch's method, NumPy and numexpr", cases)
