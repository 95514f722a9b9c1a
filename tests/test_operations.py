"""Every operation that has a kernel, against torch: dtypes, layouts, tails, special values, mixed operands.

test_parity.py goes through everything that bindings and executor do with an operation, for one of each form;
here are all of them, each with every kind of argument that it takes.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import (
    BACKENDS,
    CAPABILITIES,
    DTYPES,
    EMULATED,
    FLOATS,
    HALVES,
    INTS,
    MOVES,
    NATIVE,
    OPS,
    backend,
    bits,
    check,
    dtype_name,
    each,
    expect_path,
    form,
    make,
    make_data,
    matches,
    sample_calls,
    special_values,
    without,
)

import inplace_ext as ie
from inplace_ext._table import OPS as TABLE

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = [name for name in NATIVE if name not in OPS]
#: Not computed by an own loop on integers, which are what they should be already.
NO_OPS = ("floor_", "ceil_", "trunc_", "round_", "nan_to_num_")


def safe(name: str, x: torch.Tensor) -> torch.Tensor:
    """Without the one quotient that overflows, where torch may trap."""
    return without(x, torch.iinfo(x.dtype).min) if x.dtype in INTS and name in ("remainder_", "fmod_") else x


def loop_of(name: str) -> str:
    """The path of an operation on elements side by side: a mask and a number pass over blocks that stay."""
    return "mask_blocks" if name == "masked_fill_" else "loop"


@each(OTHERS)
def test_layouts_and_tails(name: str, dtype: torch.dtype) -> None:
    shapes = [(1,), (15,), (67,), (300,), (3, 5, 33), (20, 70)]
    for seed, shape in enumerate(shapes):
        for k, layout in enumerate(["contiguous", "offset", "step", "transposed"]):
            if (seed + k) % 2 and seed < 4:
                continue
            for args, kwargs in sample_calls(name, make(shape, dtype), seed, layout):
                x = make(shape, dtype, layout, seed)
                x.copy_(safe(name, x.clone()))
                same = all(a.stride() == x.stride() for a in args if isinstance(a, torch.Tensor) and a.dim())
                dense = layout != "step" or x.numel() == 1
                no_op = name in NO_OPS and dtype not in FLOATS
                path = loop_of(name) if no_op or (dense and same) else None
                check(name, x, *args, path=path, **kwargs)
                if path is None and len(args) == 0:
                    expect_path("staged")


@each(OTHERS)
def test_special_values(name: str, dtype: torch.dtype) -> None:
    """All pairs of special values, at every position of a vector: the same result at each."""
    special = special_values(dtype)
    m = len(special)
    left, right = special.repeat_interleave(m), special.repeat(m)
    if dtype in INTS and name in ("remainder_", "fmod_"):
        keep = (right != 0) & (right != -1)
        left, right = left[keep], right[keep]
    mask = torch.arange(len(left)) % 3 == 0
    for args, kwargs in sample_calls(name, left, 1):
        tensors = iter([right, right.flip(0), right])
        arguments: list[Any] = [
            a
            if not isinstance(a, torch.Tensor) or a.dim() == 0
            else mask
            if a.dtype != dtype
            else next(tensors)
            for a in args
        ]
        if name in ("masked_fill_", "where_") and isinstance(arguments[0], torch.Tensor):
            arguments[0] = mask
        check(name, left.clone(), *arguments, path=loop_of(name), torch_too=True, **kwargs)
        for capability in CAPABILITIES:
            with backend(capability):
                base = getattr(ie, name)(left.clone(), *arguments, **kwargs)
                for shift in (1, 3, 6, 13, 29):
                    rolled = [
                        a.roll(shift) if isinstance(a, torch.Tensor) and a.dim() else a for a in arguments
                    ]
                    x = getattr(ie, name)(left.roll(shift), *rolled, **kwargs)
                    assert matches(x.roll(-shift), base).all(), (
                        f"depends on the position: {capability}, {shift}"
                    )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", [n for n in OTHERS if "other" in TABLE[n].parameter_names])
def test_mixed_dtypes(name: str, dtype: torch.dtype) -> None:
    """Operands of every dtype, with dims and without; numbers in range and out of it."""
    native = 0
    for k, other in enumerate(DTYPES):
        values = torch.tensor([1, 3, 2, 5, 1, 4, 2] * 10).to(other)
        if other in FLOATS:
            values = values + 0.5
        mask = torch.arange(70) % 2 == 0
        for operand in (values, values[3], values.repeat(2)[::2]):
            x = make((70,), dtype, ["contiguous", "step"][k % 2], k, data=torch.arange(70).to(dtype))
            check(name, x, *([mask] if name == "where_" else []), operand)
            native += 1
    for number in (0, 1, 2, 300, -1, 2**40, 0.5, 2.0, 1e300, float("nan"), True, None, "2"):
        x = torch.arange(19).to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(name, x, *([mask[:19]] if name == "where_" else []), number)


@pytest.mark.parametrize("name", ["masked_fill_", "where_"])
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_selection_keeps_the_bits_of_nan(name: str, dtype: torch.dtype) -> None:
    if EMULATED and dtype in HALVES:
        pytest.skip("on a device the payload of a NaN in 16 bits may change")
    payload = torch.arange(0x7F81, 0x7FFF, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = payload if dtype == torch.bfloat16 else (bits(payload) | 0x7C00).view(dtype)
    nothing = torch.full(x.shape, name == "where_")
    for capability in CAPABILITIES:
        with backend(capability):
            for y in (x.clone(), x.repeat_interleave(2)[::2]):
                getattr(ie, name)(y, nothing, 1.0)
                expect_path(loop_of(name) if y.is_contiguous() else "staged")
                assert torch.equal(bits(y), bits(x))


@pytest.mark.parametrize("name", ["masked_fill_", "where_"])
def test_masks(name: str) -> None:
    """Any layout of mask, one that is x itself, bytes that are neither 0 nor 1; others are refused."""
    for dtype in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.uint8,
        torch.int16,
        torch.int64,
        torch.bool,
    ):
        shape = (5, 67)
        one = True if dtype == torch.bool else 1
        for k, layout in enumerate(["contiguous", "step", "transposed", "rows"]):
            check(name, make(shape, dtype, "contiguous", k), make(shape, torch.bool, layout, k + 1), one)
            check(name, make(shape, dtype, layout, k), make((5, 1), torch.bool, "contiguous", k + 1), one)
        check(name, make(shape, dtype), torch.tensor(True), one)
        check(name, make(shape, dtype), torch.ones(shape, dtype=torch.uint8), one)
        check(name, make(shape, dtype), torch.ones(4, dtype=torch.bool), one)
        odd = torch.randint(0, 4, (300,), dtype=torch.uint8).mul_(63).view(torch.bool)
        for where in BACKENDS[:-1]:
            with backend(where):
                x = torch.zeros(300, dtype=dtype)
                getattr(ie, name)(x, odd, one)
                expect_path(loop_of(name))
                assert torch.equal(x != 0, (odd.view(torch.uint8) != 0) == (name == "masked_fill_"))
    x = torch.tensor([True, False] * 70)
    check(name, x, x, False)


@pytest.mark.parametrize("name", ["remainder_", "fmod_"])
@pytest.mark.parametrize("dtype", INTS, ids=dtype_name)
def test_integer_remainder(name: str, dtype: torch.dtype) -> None:
    """Signs, the quotient that overflows, and a zero that writes nothing."""
    info = torch.iinfo(dtype)
    values = sorted({*range(max(info.min, -9), 10), info.min + 1, info.max, info.max - 1})
    a = torch.tensor(values, dtype=dtype).repeat_interleave(len(values))
    b = torch.tensor(values, dtype=dtype).repeat(len(values))
    check(name, a[b != 0].clone(), b[b != 0], path="loop")
    for where in CAPABILITIES:
        with backend(where):
            if info.min:
                x = torch.full((67,), info.min, dtype=dtype)
                assert not getattr(ie, name)(x, torch.full((67,), -1, dtype=dtype)).any()
            x = a.clone()
            for divisor in (b, 0, torch.tensor(0, dtype=dtype)):
                with pytest.raises(RuntimeError, match=f"{name}: ZeroDivisionError"):
                    getattr(ie, name)(x, divisor)
                assert torch.equal(x, a)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_addcmul_and_lerp_round_as_torch(dtype: torch.dtype) -> None:
    """Bit for bit where the instruction set has a fused multiply-add, as torch's loops do."""
    a, b, c = (make_data(4099, dtype, k, specials=0) for k in range(3))
    for capability in CAPABILITIES:
        if capability == "baseline":
            continue
        with backend(capability):
            for value in (1, 0.3, -2):
                for name in ("addcmul_", "addcdiv_"):
                    ours = getattr(ie, name)(a.clone(), b, c, value=value)
                    expect_path("loop")
                    theirs = form(name)(a.clone(), b, c, value=value)
                    # What torch computes one at a time, at the end of the tensor, it rounds twice.
                    assert matches(ours, theirs)[:4096].all(), (name, value, capability)
            for weight in (0.3, 0.8, c):
                ours = ie.lerp_(a.clone(), b, weight)
                expect_path("loop")
                assert matches(ours, a.clone().lerp_(b, weight))[:4096].all()


@pytest.mark.parametrize("name", [n for n in NATIVE if n not in MOVES])
def test_broadcast_operands_of_x_without_dims(name: str) -> None:
    """No dims, no elements, one element."""
    for dtype in (torch.float32, torch.bfloat16, torch.int16):
        if dtype_name(dtype) not in TABLE[name].dtype_names:
            continue
        for shape in ((), (0,), (0, 3), (1, 1)):
            for seed in range(2):
                x = make(shape, dtype, "contiguous", seed)
                for args, kwargs in (
                    sample_calls(name, x, seed) if shape else sample_calls(name, x.reshape(1), seed)
                ):
                    arguments = [
                        a.reshape(shape) if isinstance(a, torch.Tensor) and a.numel() == x.numel() else a
                        for a in args
                    ]
                    check(name, safe(name, x.clone()), *arguments, **kwargs)
