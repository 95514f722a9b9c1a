"""Every operation against torch: OpInfo samples, layouts, sizes, special values, type promotion, scalars."""

from __future__ import annotations

import itertools
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    BACKENDS,
    BINARY,
    CAPABILITIES,
    COMPLEX,
    DENSE,
    DTYPES,
    EMULATED,
    FLOATS,
    HALVES,
    INTS,
    LAYOUTS,
    MOVES,
    NATIVE,
    OPS,
    UNARY,
    VECTOR_BYTES,
    allowed,
    backend,
    bits,
    check,
    default_args,
    dtype_name,
    each,
    expect_path,
    make,
    make_data,
    matches,
    operand_data,
    scalar_args,
    special_values,
    threads,
    without,
)
from torch.testing._internal.common_methods_invocations import op_db

import inplace_ext as ie
from inplace_ext import testing

pytestmark = pytest.mark.usefixtures("one_thread")

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def move_or(name: str, path: str) -> str:
    return "move" if name in MOVES else path


# ---- OpInfo -----------------------------------------------------------------------------------------------


def _name_of(info: Any) -> str:
    return str(info.name).removeprefix("nn.functional.").removesuffix("_") + "_"


OPINFOS = [
    (_name_of(info), info)
    for info in op_db
    if _name_of(info) in NATIVE and info.supported_dtypes("cpu") & set(DTYPES)
]


def test_opinfo_covers_the_operations() -> None:
    # torch has no OpInfo of copy_; the tests below have samples of their own for it.
    assert {name for name, _ in OPINFOS} == set(NATIVE) - {"copy_"}


@pytest.mark.parametrize("layout", ["contiguous", "offset", "transposed", "step"])
@pytest.mark.parametrize(
    "name, info",
    OPINFOS,
    ids=[f"{n}{'-' * bool(i.variant_test_name)}{i.variant_test_name}" for n, i in OPINFOS],
)
def test_opinfo(name: str, info: Any, layout: str) -> None:
    """All samples of all dtypes, also those that an in-place method refuses."""
    if name not in OPS and layout in ("offset", "transposed"):
        pytest.skip("one operation of each form stands for the others")
    ran = 0
    for dtype in sorted(info.supported_dtypes("cpu") & set(DTYPES), key=str):
        for seed, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=False)):
            x = make(sample.input.shape, dtype, layout, seed, data=sample.input)
            args, kwargs = list(sample.args), dict(sample.kwargs)
            kwargs.pop("inplace", None)
            if name in ("div_", "pow_", "remainder_", "fmod_") and dtype in INTS:
                args = [
                    without(a.clone().reshape(-1), 0, -1).reshape(a.shape)
                    if isinstance(a, torch.Tensor)
                    else a
                    for a in args
                ]
            check(name, x, *args, torch_too=layout == "step", **kwargs)
            ran += 1
    assert ran >= 1


@pytest.mark.parametrize("name", BINARY)
def test_opinfo_error_inputs(name: str) -> None:
    """Shapes and arguments that torch's own tests hold to be errors."""
    infos = [info for n, info in OPINFOS if n == name and info.error_inputs_func is not None]
    for info in infos:
        for sample in info.error_inputs("cpu"):
            inputs = sample.sample_input
            if isinstance(inputs.input, torch.Tensor) and inputs.input.device.type == "cpu":
                check(name, inputs.input.clone(), *inputs.args, **inputs.kwargs)


# ---- layouts ----------------------------------------------------------------------------------------------

SHAPE = (2, 3, 9, 33)


@each(OPS)
def test_layouts_of_input(name: str, dtype: torch.dtype) -> None:
    """Operands are numbers or lie as the input does."""
    for seed, layout in enumerate(LAYOUTS):
        x = make(SHAPE, dtype, layout, seed)
        args, kwargs = default_args(name, x, seed, layout)
        if name == "fill_" and dtype == torch.bool:
            args = [True]
        if name in ("div_", "pow_") and dtype in INTS:
            without(x, torch.iinfo(dtype).min)
        path = "loop" if layout in DENSE else "staged"
        if dtype == torch.bool and name == "add_":
            kwargs = {}
        check(name, x, *args, path=move_or(name, path), **kwargs)
        if name == "copy_":
            continue
        x = make(SHAPE, dtype, layout, seed + 50)
        args, kwargs = scalar_args(name, dtype, seed)
        check(name, x, *args, path=move_or(name, path), **kwargs)


@each([*BINARY, "clamp_", "copy_"])
def test_layouts_of_operands(name: str, dtype: torch.dtype) -> None:
    """Every layout of input with every layout of operand."""
    shape = (2, 17, 70)
    for seed, (ours, theirs) in enumerate(itertools.product(LAYOUTS, LAYOUTS)):
        if (seed + DTYPES.index(dtype)) % 3 and ours != theirs:
            continue  # the other dtypes take the other pairs
        x = make(shape, dtype, ours, seed)
        args, kwargs = default_args(name, x, seed, theirs)
        same = args[0].stride() == x.stride()
        path = None
        if same:
            path = move_or(name, "loop" if ours in DENSE else "staged")
        elif ours in ("contiguous", "offset") and theirs in ("transposed", "transposed_rows"):
            # The fastest dim of the operand is not next to the fastest one of the input.
            path = move_or(name, "staged")
        check(name, x, *args, path=path, **kwargs)


@each([*BINARY, "clamp_", "copy_"])
def test_transposed_operand(name: str, dtype: torch.dtype) -> None:
    """Blocks of 16 rows by 64 columns, with all kinds of rest; more than two dims; both sides transposed."""
    shapes = [(4, 5), (16, 64), (17, 65), (15, 63), (33, 130), (70, 128), (5, 200), (200, 6), (48, 129)]
    for seed, (rows, columns) in enumerate(shapes):
        x = make((rows, columns), dtype, "contiguous", seed)
        args, kwargs = default_args(name, x, seed, "transposed")
        # A short distance between elements is gathered, not turned.
        blocked = rows > 4
        check(name, x, *args, path=move_or(name, "blocked" if blocked else "staged"), **kwargs)
        x = make((rows, columns), dtype, "transposed", seed)
        args, kwargs = default_args(name, x, seed, "rows")
        check(name, x, *args, path=move_or(name, "blocked" if columns >= 4 else "staged"), **kwargs)
    for seed in range(3):
        x = make((3, 20, 70), dtype, ["contiguous", "rows", "step"][seed], seed)
        args, kwargs = default_args(name, x, seed, "contiguous")
        turned = [make((3, 70, 20), dtype, "contiguous", 9 + k).transpose(1, 2) for k in range(len(args))]
        args = [t.copy_(a) for t, a in zip(turned, args, strict=True)]
        check(name, x, *args, path=move_or(name, "blocked"), **kwargs)


BROADCASTS = [
    # shape of x, shape of operand
    ((70, 66), (66,)),
    ((70, 66), (1, 66)),
    ((70, 66), (70, 1)),
    ((70, 66), (1, 1)),
    ((7, 3), (7, 1)),
    ((300, 5), (5,)),
    ((300, 5), (300, 1)),
    ((4, 3, 10, 11), (3, 1, 1)),
    ((4, 3, 10, 11), (4, 1, 10, 1)),
    ((2, 3, 90), (2, 1, 90)),
    ((2, 3, 90), (3, 1)),
    ((1, 1, 5), (5,)),
]


@each([*BINARY, "clamp_", "copy_"])
def test_broadcast_operand(name: str, dtype: torch.dtype) -> None:
    for seed, ((shape, other), layout) in enumerate(
        itertools.product(BROADCASTS, ["contiguous", "transposed", "step"])
    ):
        x = make(shape, dtype, layout, seed)
        args, kwargs = default_args(name, x, seed)
        operands = [operand_data(name, other, dtype, seed + k, "contiguous") for k in range(len(args))]
        dense = layout != "step" and (max(other) == 1 or shape == (1, 1, 5))
        check(name, x, *operands, path=move_or(name, "loop" if dense else "staged"), **kwargs)
        # The same operand as an expanded view, whose strides are 0.
        x = make(shape, dtype, layout, seed)
        check(name, x, *(o.expand(shape) for o in operands), **kwargs)


@pytest.mark.parametrize("name", ["mul_", "add_", "clamp_", "copy_"])
def test_operand_that_repeats_along_short_rows(name: str) -> None:
    """Periods around those that are kept in a buffer, over several chunks, from any start."""
    pairs = [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.int32, torch.int8)]
    count = 1 + (name == "clamp_")
    for seed, period in enumerate([1, 2, 3, 5, 7, 16, 31, 33, 63, 64, 65, 100, 255, 256, 257, 511, 512, 513]):
        dtype, other = pairs[seed % 3]
        for rows in (3, 1 + 1700 // period):
            x = make((rows, period), dtype, ["contiguous", "offset", "rows"][seed % 3], seed)
            args = [operand_data(name, (period,), other, seed + k, "step") for k in range(count)]
            check(name, x, *args, path=move_or(name, "staged") if rows > 1 and period > 1 else None)
    # Threads begin in the middle of a row.
    for period in (3, 7, 65, 100):
        x = make((100_003 // period, period), torch.float32, "contiguous", period)
        args = [make((period,), torch.float32, "contiguous", k) for k in range(count)]
        with threads(2):
            check(name, x, *args, path=move_or(name, "staged"))


@pytest.mark.parametrize("name", ["mul_", "copy_"])
def test_number_for_each_row(name: str) -> None:
    """Rows about the lengths at which they get a call each, short ones filled by vectors that overlap."""
    for seed, columns in enumerate([1, 2, 7, 8, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 130, 700]):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool):
            if name == "mul_" and dtype == torch.bool:
                continue
            for rows in (1, 3, 1 + 1300 // columns):
                x = make((2, rows, columns), dtype, ["contiguous", "offset", "rows"][seed % 3], seed)
                other = operand_data(name, (rows, 1), dtype, seed, ["contiguous", "step"][seed % 2])
                path = move_or(name, "staged") if rows > 1 and columns > 1 else None
                check(name, x, other, path=path)


def test_copies_between_layouts() -> None:
    """Many dims, permuted and strided, on one side or both: arrays are gathered into and scattered from."""
    shapes = [(3, 5, 7, 9, 11), (2, 3, 4, 5, 6, 7), (40, 3, 16), (1, 700, 3), (70, 1, 9, 2)]
    for seed, shape in enumerate(shapes):
        for k, dtype in enumerate([torch.float32, torch.float64, torch.bfloat16, torch.uint8]):
            order = sorted(range(len(shape)), key=lambda d: (d * 7 + seed + k) % len(shape))
            back = [order.index(d) for d in range(len(shape))]
            permuted = make([shape[d] for d in order], dtype, "contiguous", seed).permute(back)
            for layout in ("contiguous", "offset", "rows", "step", "transposed"):
                check("copy_", make(shape, dtype, layout, seed), permuted, path="move")
                source = make(shape, dtype, layout, seed + 1)
                check("copy_", permuted.clone(memory_format=torch.preserve_format), source, path="move")
                other = source.to(torch.float32 if dtype != torch.float32 else torch.float16)
                check("copy_", make(shape, dtype, layout, seed), other, path="move")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8], ids=dtype_name)
def test_every_step_and_run(dtype: torch.dtype) -> None:
    """Strides of all small steps, and short rows with gaps: what lies between keeps its bits."""
    sizes = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100, 511, 512, 513, 545, 1100]
    for step, n in itertools.product((1, 2, 3, 4, 5, 6, 7, 8, 9, 17), sizes):
        for shape, strides in (
            ((n,), (step,)),
            ((3, n), (n * step + 5, step)),
            ((n, step), (step + 2, 1)),
        ):
            extent = 1 + sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
            base = make_data(extent + 80, dtype, n + step, 0.1)
            x = base.as_strided(shape, strides, 40)
            outside = torch.ones(len(base), dtype=torch.bool)
            outside.as_strided(shape, strides, 40).fill_(False)
            before = bits(base)[outside].clone()
            check("mul_", x, 3)
            source = make_data(x.numel(), dtype, 7, 0.1).view(shape)
            check("copy_", x, source)
            assert torch.equal(bits(base)[outside], before), (step, n, shape)
            check("copy_", source, x)


@each(OPS)
def test_no_dims_and_empty(name: str, dtype: torch.dtype) -> None:
    for shape in [(), (0,), (1,), (3, 0, 2), (0, 5), (1, 1)]:
        for seed, layout in enumerate(["contiguous", "offset", "step"]):
            x = make(shape, dtype, layout, seed)
            args, kwargs = default_args(name, x, seed, layout)
            path = None if layout == "step" else move_or(name, "loop")
            check(name, x, *args, path=path, **kwargs)
            x = make(shape, dtype, layout, seed)
            args, kwargs = scalar_args(name, dtype, seed)
            if name != "copy_":
                check(name, x, *args, **kwargs)


# ---- sizes ------------------------------------------------------------------------------------------------


def tail_sizes(dtype: torch.dtype) -> list[int]:
    """0 to 2V + 1, the unrolled loop's ends, and those of a staged chunk."""
    v = VECTOR_BYTES // torch.empty(0, dtype=dtype).element_size()
    near = [k * v + d for k in (4, 5, 8) for d in (-1, 0, 1)]
    chunk = [k * 512 + d for k in (1, 2) for d in (-1, 0, 1)]
    return sorted({*range(2 * v + 2), *near, *chunk})


@each(OPS)
def test_sizes(name: str, dtype: torch.dtype) -> None:
    """Tails of every length: in one loop, from a misaligned start, and through the staging buffer."""
    for n in tail_sizes(dtype):
        for k, layout in enumerate(["contiguous", "offset", "step"]):
            if n > 2 and (n + k) % 3 == 0:
                continue
            x = make((n,), dtype, layout, n)
            use_scalar = (n + k) % 2 and name != "copy_"
            args, kwargs = scalar_args(name, dtype, n) if use_scalar else default_args(name, x, n, layout)
            path = "loop" if layout != "step" or n == 1 else "staged"
            # A tensor of no elements or of one is dense whatever its strides.
            if n > 1 and not (name == "pow_" and use_scalar and args == [1]):
                check(name, x, *args, path=move_or(name, path), **kwargs)
            else:
                check(name, x, *args, **kwargs)


@pytest.mark.parametrize("name", ["mul_", "add_", "clamp_", "copy_"])
def test_rows_around_the_staging_thresholds(name: str) -> None:
    """Rows of 63 to 65 elements change from pieces over rows to pieces by row; chunks end inside rows."""
    for seed, columns in enumerate([2, 5, 31, 62, 63, 64, 65, 127, 511, 512, 513, 700, 1025]):
        for dtype in (torch.float32, torch.float16, torch.int8, torch.float64):
            x = make((9, columns), dtype, "rows", seed)
            args, kwargs = default_args(name, x, seed, "step")
            check(name, x, *args, path=move_or(name, "staged"), **kwargs)
            x = make((9, columns), dtype, "contiguous", seed)
            args = [operand_data(name, (columns,), dtype, seed + k, "step") for k in range(len(args))]
            check(name, x, *args, path=move_or(name, "staged"), **kwargs)


# ---- special values ---------------------------------------------------------------------------------------


@each(OPS, [*FLOATS, *INTS])
def test_special_values_at_every_position(name: str, dtype: torch.dtype) -> None:
    """All pairs of special values, rotated through the positions of a vector: the same result at each."""
    special = special_values(dtype)
    m = len(special)
    left = special.repeat_interleave(m)
    right = special.repeat(m)
    kwargs: dict[str, Any] = {}
    if name in ("div_", "pow_") and dtype in INTS:
        keep = right > 0 if name == "pow_" else (right != 0) & (right != -1)
        left, right = left[keep], right[keep]
        kwargs = {"rounding_mode": "trunc"} if name == "div_" else {}
    if name in UNARY or name == "zero_":
        operands = []
    elif name == "fill_":
        operands = [special[-1]]
    elif name == "clamp_":
        operands = [right, right.flip(0)]
    else:
        operands = [right]
    n = len(left)
    check(name, make((n,), dtype, data=left), *operands, path=move_or(name, "loop"), **kwargs)
    v = VECTOR_BYTES // left.element_size()
    for capability in CAPABILITIES:
        with backend(capability):
            base = getattr(ie, name)(left.clone(), *operands, **kwargs)
            for shift in range(1, v + 1):
                x = left.roll(shift)
                rolled = [o.roll(shift) if o.dim() else o for o in operands]
                getattr(ie, name)(x, *rolled, **kwargs)
                expect_path(move_or(name, "loop"))
                assert matches(x.roll(-shift), base).all(), f"depends on the position: {capability}, {shift}"
            for layout in ("step", "offset"):
                x = make((n,), dtype, layout, data=left)
                strided = [make((n,), dtype, "step", data=o) if o.dim() else o for o in operands]
                getattr(ie, name)(x, *strided, **kwargs)
                assert matches(x, base).all(), f"depends on the layout: {capability}, {layout}"


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("mode", [None, "floor", "trunc"])
def test_division_of_special_values(dtype: torch.dtype, mode: str | None) -> None:
    special = special_values(dtype)
    m = len(special)
    check("div_", special.repeat_interleave(m), special.repeat(m), rounding_mode=mode, path="loop")
    for value in special.tolist():
        check("div_", special.clone(), value, rounding_mode=mode, path="loop")


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("name", [*BINARY, "clamp_", "fill_"])
def test_special_numbers_as_scalars(name: str, dtype: torch.dtype) -> None:
    special = special_values(dtype)
    values = [*special.tolist(), 1e-3, 0.1, 3, -7]
    for v in values:
        if name == "clamp_":
            for w in (0.0, -0.0, 2.0, float("nan")):
                check(name, special.clone(), v, w)
            check(name, special.clone(), v)
            check(name, special.clone(), None, v)
        else:
            check(name, special.clone(), v)


@pytest.mark.parametrize("dtype", INTS, ids=dtype_name)
@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_integer_division_at_the_edges(dtype: torch.dtype, mode: str) -> None:
    """Signs, and the one quotient that overflows: it wraps, where torch's own division may trap."""
    info = torch.iinfo(dtype)
    values = sorted({*range(max(info.min, -9), 10), info.min + 1, info.max, info.max - 1})
    a = torch.tensor(values, dtype=dtype).repeat_interleave(len(values))
    b = torch.tensor(values, dtype=dtype).repeat(len(values))
    a, b = a[b != 0], b[b != 0]
    check("div_", a.clone(), b, rounding_mode=mode, path="loop")
    for v in (1, 2, 3, 7, info.max, *((-1, -2, -7, info.min) if info.min else ())):
        check("div_", a.clone(), v, rounding_mode=mode, path="loop")
    for capability in CAPABILITIES if info.min else []:
        with backend(capability):
            x = torch.full((67,), info.min, dtype=dtype)
            ie.div_(x, torch.full((67,), -1, dtype=dtype), rounding_mode=mode)
            expect_path("loop")
            assert (x == info.min).all(), capability


@pytest.mark.parametrize("dtype", INTS, ids=dtype_name)
def test_integer_powers(dtype: torch.dtype) -> None:
    """By number, also beyond the width; by tensor, also negative ones."""
    info = torch.iinfo(dtype)
    base = torch.tensor([0, 1, 2, 3, 5, 10, info.max, info.min, info.max - 1], dtype=dtype)
    if info.min:
        base = torch.cat([base, torch.tensor([-1, -2, -3], dtype=dtype)])
    for e in [*range(10), 31, 63, 64]:
        check("pow_", base.repeat(7), e)
    low = 0 if dtype == torch.uint8 else -4
    exponents = torch.arange(low, 9, dtype=dtype)
    check("pow_", base.repeat_interleave(len(exponents)), exponents.repeat(len(base)), path="loop")


@by_dtype
def test_conversions_of_copy(dtype: torch.dtype) -> None:
    """copy_ from every dtype, in range; ties and denormals of the 16-bit types."""
    for k, source in enumerate([*DTYPES, *COMPLEX]):
        if source in FLOATS and dtype in (*INTS, torch.bool):
            values = torch.tensor([0.0, -0.0, 1.0, 2.75, 100.5, 0.3, 1e-3, 3.5], dtype=source)
        elif source in COMPLEX:
            values = torch.tensor([0.0, 1.5, 2.0 + 0j, 3 + 1j], dtype=source)
        else:
            values = special_values(source)
            if source == torch.float64:
                # Between two neighbours of the narrower types, at and beside the tie.
                ties = [
                    (1 + 2.0**-p) * (1 + s * 2.0**-40) for p in (8, 9, 11, 12, 24, 25) for s in (-1, 0, 1)
                ]
                values = torch.cat([values, torch.tensor(ties, dtype=source)])
        for n, layout in itertools.product((len(values), 67, 600), ("contiguous", "offset", "step")):
            src = values.repeat(n // len(values) + 1)[:n]
            x = make((n,), dtype, layout, k)
            path = "torch" if source in COMPLEX else "move"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check("copy_", x, make((n,), source, layout, data=src), path=path)
                check("copy_", make((n,), dtype, layout, k), src, path=path)
                check("copy_", make((n,), dtype, layout, k), src[:1], path=path)
                check("copy_", make((n,), dtype, layout, k), src[1], path=path)


# ---- type promotion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BINARY, "clamp_"])
@by_dtype
def test_type_promotion(name: str, dtype: torch.dtype) -> None:
    """The result, or the type of the error, for every dtype of operand: with dims and without."""
    native = 0
    for k, other in enumerate([*DTYPES, torch.uint16, *COMPLEX]):
        values = torch.tensor([1, 3, 2, 5, 1, 4, 2] * 10).to(other)
        if other in FLOATS:
            values = values + 0.5
        kinds: list[torch.Tensor] = [values, values[3], values[3:4], values.repeat(2)[::2]]
        for (j, operand), mode in itertools.product(enumerate(kinds), ("floor", None)):
            if mode is None and name != "div_":
                continue
            kwargs = {"rounding_mode": mode} if name == "div_" else {}
            for layout in ("contiguous", "step"):
                x = make((70,), dtype, layout, k, specials=0, data=torch.arange(70).to(dtype))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    args = [operand, operand] if name == "clamp_" else [operand]
                    check(name, x, *args, **kwargs)
                    native += testing.last_path() != "torch"
                    if name in ("add_", "sub_") and j < 2:
                        for alpha in (2, 2.0, True, 0.5):
                            x = make((70,), dtype, layout, k, specials=0, data=torch.arange(70).to(dtype))
                            check(name, x, operand, alpha=alpha)
    if CAPABILITIES and allowed(name, dtype):
        assert native >= 8, "mixed dtypes are not computed by the kernels"


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_", "pow_", "clamp_min_"])
def test_wider_operand_rounds_once(name: str, dtype: torch.dtype) -> None:
    """An operand with dims is computed with in the promoted dtype; one without dims counts as a number."""
    for other in FLOATS:
        data = make_data(133, other, 5, specials=0) / 3 + 2
        x = make_data(133, dtype, 6, specials=0).abs() + 1
        path = "loop" if other == dtype else "staged"
        check(name, x.clone(), data, path=path)
        check(name, x.clone(), data[0], path="loop")
        check(name, make((133,), dtype, "step", data=x), data, path="staged")
    ints = torch.tensor([1, 2049, 257, 16777217, 3, 2**31 - 1, 100] * 19)
    check(name, x.clone(), ints % 3000, path="staged")


# ---- Python scalars ---------------------------------------------------------------------------------------

NUMBERS: list[Any] = [
    *(0, 1, 2, 3, -1, 5, 127, 128, 200, 255, 256, -128, -129, 32767, 40000, 2**31 - 1, 2**31, 2**53 + 1),
    *(2**62, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, True, False, 0.0, -0.0, 0.5, 2.5, 1e-8, 0.1, 1 / 3),
    *(65504.0, 65520.0, 1e5, 3.4e38, 3.5e38, 1e300, 1e-310, float("inf"), -float("inf"), float("nan")),
    *(
        np.float32(0.1),
        np.float64(0.1),
        np.int32(3),
        np.int64(2),
        np.bool_(True),
        np.float16(0.5),
        np.uint8(7),
    ),
    *(torch.tensor(2), torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor(True)),
    *(torch.tensor(3, dtype=torch.uint8), torch.tensor(0.3, dtype=torch.bfloat16), torch.tensor(1 + 2j)),
    *(1 + 2j, 2 + 0j, "2", None, [1], (2,), object()),
]


@by_dtype
@pytest.mark.parametrize("name", [*BINARY, "clamp_", "fill_", "copy_"])
def test_numbers(name: str, dtype: torch.dtype) -> None:
    """Every kind of number as every operand: the same result, or the same type of error."""
    for k, value in enumerate(NUMBERS):
        kwargs: list[dict[str, Any]] = [{}]
        if name == "div_":
            kwargs = [{}, {"rounding_mode": "floor"}, {"rounding_mode": "trunc"}]
        elif name in ("add_", "sub_"):
            kwargs = [{}, {"alpha": 2}, {"alpha": 0.3}]
        for kw in kwargs:
            data = torch.arange(19).to(dtype) if dtype == torch.bool else torch.arange(1, 20).to(dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if name == "clamp_":
                    check(name, data.clone(), min=value)
                    check(name, data.clone(), None, value)
                    check(name, data.clone(), value, 5)
                    check(name, data.clone(), 2, value)
                else:
                    check(name, make((19,), dtype, ["contiguous", "step"][k % 2], data=data), value, **kw)


@by_dtype
@pytest.mark.parametrize("name", ["add_", "sub_"])
def test_alpha_numbers(name: str, dtype: torch.dtype) -> None:
    for alpha, other in itertools.product(NUMBERS, (2, 0.5, True, "tensor", "step")):
        x = torch.arange(19).to(dtype)
        operand: Any = other
        if isinstance(other, str):
            operand = make((19,), dtype, "step" if other == "step" else "contiguous", 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(name, x, operand, alpha=alpha)


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_rounding_of_scalars_in_half_precision(dtype: torch.dtype) -> None:
    """add_ and sub_ round a number to the dtype first, mul_ and div_ do not: as torch."""
    x = make_data(64, dtype, 3, specials=0)
    for value in (0.1, 1.001, 3.14159, 2049.0, 1 + 2.0**-9, 1 + 2.0**-12):
        for name in ("add_", "sub_", "mul_", "div_"):
            ours = getattr(ie, name)(x.clone(), value)
            # No mixed bounds here: torch takes one rounding for these, so bits must agree.
            assert matches(ours, getattr(x.clone(), name)(value)).all(), (name, value)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS], ids=dtype_name)
def test_keywords(dtype: torch.dtype) -> None:
    """By position or by name, in any order; defaults are torch's."""
    if dtype in FLOATS:
        data = torch.linspace(-3, 4, 23).to(dtype)
    else:
        data = torch.arange(23).to(dtype)
    t = data.flip(0).contiguous()
    for where in BACKENDS:
        with backend(where):
            assert matches(ie.copy_(data.clone(), src=t), t).all()
            assert matches(ie.copy_(data.clone(), src=t, non_blocking=True), t).all()
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("add_", (), {"other": t, "alpha": 2}),
        ("add_", (t,), {"alpha": 1}),
        ("sub_", (), {"alpha": 3, "other": 2}),
        ("mul_", (), {"other": 2}),
        ("div_", (), {"rounding_mode": "floor", "other": 2}),
        ("clamp_", (), {"max": 3}),
        ("clamp_", (), {"max": 3, "min": 1}),
        ("clamp_", (1,), {"max": 3}),
        ("clamp_", (), {"min": t}),
        ("clamp_", (1, None), {}),
        ("clamp_min_", (), {"min": 2}),
        ("clamp_max_", (), {"max": t}),
        ("pow_", (), {"exponent": 2}),
        ("fill_", (), {"value": 2}),
        ("copy_", (t,), {"non_blocking": True}),
        ("copy_", (t, False), {}),
    ]
    for name, args, kwargs in calls:
        check(name, data.clone(), *args, **kwargs)
        if not args:
            # input by name, and last; once more where torch does the work.
            x, y = data.clone(), data.clone()
            assert getattr(ie, name)(**kwargs, input=x) is x
            with backend("torch"):
                assert getattr(ie, name)(**kwargs, input=y) is y
            torch.testing.assert_close(x, y)


def test_random_calls() -> None:
    """A seeded mix of everything at once: operations, dtypes, layouts, ranks, operand kinds."""
    r = random.Random(20)
    paths: dict[str, int] = {}
    for seed in range(700):
        name, dtype = r.choice(OPS), r.choice(DTYPES)
        shape = [r.choice([1, 2, 3, 5, 8, 17, 33, 70]) for _ in range(r.randint(0, 4))]
        if np.prod(shape) > 50000:
            continue
        x = make(shape, dtype, r.choice(LAYOUTS), seed)
        args: list[Any] = []
        for _ in range({"clamp_": 2, "zero_": 0}.get(name, 0 if name in UNARY else 1)):
            kind = r.random()
            other = dtype if r.random() < 0.6 else r.choice(DTYPES)
            if name == "copy_" and other in FLOATS and dtype not in FLOATS:
                other = dtype  # out of range is undefined
            if kind < 0.3:
                args.append(r.choice([0, 1, 2, 3, -1, 2.5, 0.3, float("nan"), True, 100, None]))
            elif kind < 0.4:
                args.append(make_data(1, other, seed)[0] if name != "copy_" else torch.tensor(3).to(other))
            else:
                small = [1 if r.random() < 0.3 else s for s in shape]
                while small and r.random() < 0.2:
                    small = small[1:]
                args.append(operand_data(name, small, other, seed, r.choice(LAYOUTS)))
        kwargs: dict[str, Any] = {}
        if name == "div_":
            kwargs["rounding_mode"] = r.choice([None, "floor", "trunc"])
        if name in ("add_", "sub_") and r.random() < 0.4:
            kwargs["alpha"] = r.choice([1, 2, -1, 0.3, 3, 1.0, True])
        if name in ("div_", "pow_") and dtype in INTS:
            x.copy_(without(x.clone(), torch.iinfo(dtype).min))
        if name == "pow_" and dtype in INTS:
            args = [a for a in args if not isinstance(a, torch.Tensor)] or [2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(name, x, *args, **kwargs)
        suffix = testing.last_path().rpartition(":")[2]
        paths[suffix] = paths.get(suffix, 0) + 1
    if CAPABILITIES:
        least = {"loop": 50, "staged": 50, "move": 50, "torch": 50, "blocked": 3}
        least = {"flat": 50, "across": 50, "strided": 3, "torch": 50} if EMULATED else least
        assert all(paths.get(p, 0) >= n for p, n in least.items()), paths


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_negation_flips_the_sign_of_every_nan(dtype: torch.dtype) -> None:
    """In the body and in the tail of the loop, and through a buffer."""
    if EMULATED and dtype in HALVES:
        pytest.skip("a device makes all NaN of 16 bits one, as CUDA's conversion does")
    for capability in CAPABILITIES:
        with backend(capability):
            for n in (1, 31, 67, 300):
                for x in (
                    torch.full((n,), torch.nan, dtype=dtype),
                    torch.full((2 * n,), torch.nan, dtype=dtype)[::2],
                ):
                    signs = x.signbit()
                    ie.neg_(x)
                    assert testing.last_path().startswith(capability)
                    assert bool((x.signbit() != signs).all()) and bool(x.isnan().all())
