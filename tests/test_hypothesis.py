"""Hypothesis over shapes, strides, dtypes and aliasing."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from helpers import (
    BINARY,
    CAPABILITIES,
    DTYPES,
    FLOATS,
    INTS,
    OPS,
    UNARY,
    allowed,
    backend,
    check,
    clone_all,
    make_data,
    matches,
    same_bits,
    without,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import inplace_ext as ie
from inplace_ext import testing

pytestmark = pytest.mark.usefixtures("one_thread")


common = settings(
    derandomize=True, deadline=None, max_examples=250, database=None, suppress_health_check=list(HealthCheck)
)
sizes = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 8, 16, 17, 31, 65])
shapes = st.lists(sizes, min_size=0, max_size=4).filter(lambda s: math.prod(s) <= 20_000)


@st.composite
def strided(draw: st.DrawFn, shape: list[int], dtype: torch.dtype, writable: bool = True) -> torch.Tensor:
    """A tensor of any strides: dims in any order, gaps, an offset, zero strides where it is only read."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), draw(st.integers(1, 3))
    for d in order:
        if not writable and draw(st.integers(0, 5)) == 0:
            continue
        strides[d] = step
        step = step * max(shape[d], 1) + draw(st.sampled_from([0, 0, 0, 1, 5]))
    offset = draw(st.integers(0, 9))
    extent = 1 + sum((s - 1) * t for s, t in zip(shape, strides, strict=True)) if math.prod(shape) else 1
    data = make_data(offset + extent + 11, dtype, draw(st.integers(0, 99)))
    return data.as_strided(shape, strides, offset)


@st.composite
def smaller(draw: st.DrawFn, shape: list[int]) -> list[int]:
    """A shape that broadcasts to `shape`; now and then one that does not."""
    out = [1 if draw(st.integers(0, 3)) == 0 else s for s in shape]
    out = out[draw(st.integers(0, len(out))) :] if draw(st.integers(0, 3)) == 0 else out
    if draw(st.integers(0, 19)) == 0:
        out = [*out, 3]
    return out


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, torch.Tensor, list[Any], dict[str, Any]]:
    name = draw(st.sampled_from(OPS))
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(shapes)
    x = draw(strided(shape, dtype))
    numbers = st.one_of(
        st.sampled_from([0, 1, 2, 3, -1, 0.5, True]),
        st.floats(-100, 100, width=32),
        st.integers(-300, 300),
        st.sampled_from([math.inf, -math.inf, math.nan, -0.0]),
    )
    args: list[Any] = []
    for _ in range({"clamp_": 2, "zero_": 0, **dict.fromkeys(UNARY, 0)}.get(name, 1)):
        if name != "copy_" and draw(st.booleans()):
            args.append(draw(numbers))
            continue
        other = draw(st.sampled_from([dtype, dtype, *DTYPES]))
        if name == "copy_" and other in FLOATS and dtype not in FLOATS:
            other = dtype  # numbers out of range convert to anything
        y = draw(strided(draw(smaller(shape)), other, writable=False))
        if name in ("div_", "pow_") and other in INTS:
            y = without(y.clone(), 0, -1)
            y = y.clamp(1, 9) if name == "pow_" else y
        args.append(y)
    kwargs: dict[str, Any] = {}
    if name in ("add_", "sub_") and draw(st.booleans()):
        kwargs["alpha"] = draw(st.sampled_from([1, 2, -1, 0.5, 0.3, 3, True]))
    if name == "div_":
        kwargs["rounding_mode"] = draw(st.sampled_from([None, "floor", "trunc"]))
        if dtype in INTS and dtype != torch.uint8:
            x.copy_(without(x.clone(), torch.iinfo(dtype).min))
    return name, x, args, kwargs


@common
@given(calls())
def test_any_call(call: tuple[str, torch.Tensor, list[Any], dict[str, Any]]) -> None:
    """Values, errors, version, storage and everything beside the elements."""
    name, x, args, kwargs = call
    # Integers to a negative power raise or not by number and by tensor; test_parity has them.
    if name == "pow_" and x.dtype in INTS:
        assume(not any(isinstance(a, (int, float)) and a > 64 for a in args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(name, x, *args, **kwargs)


@common
@given(st.data(), st.sampled_from(["mul_", "add_", "clamp_", "copy_", "sub_"]))
def test_any_two_layouts_are_native(data: st.DataObject, name: str) -> None:
    """Plain tensors of up to four dims are never delegated."""
    dtype = data.draw(st.sampled_from(FLOATS))
    # Of two tensors without dims, both have a say in the dtype, which torch works out.
    shape = data.draw(shapes.filter(bool))
    x = data.draw(strided(shape, dtype))
    args = [data.draw(strided(shape, data.draw(st.sampled_from(FLOATS)), writable=False))]
    if name == "clamp_":
        args.append(data.draw(strided(shape, args[0].dtype, writable=False)))
    check(name, x, *args)
    for capability in CAPABILITIES:
        with backend(capability):
            getattr(ie, name)(x, *args)
            assert testing.last_path().startswith(capability), (x.dtype, [a.dtype for a in args])


@common
@given(
    st.data(),
    st.sampled_from([*BINARY, "copy_"]),
    st.sampled_from([torch.float32, torch.int16, torch.float64]),
)
def test_any_aliasing(data: st.DataObject, name: str, dtype: torch.dtype) -> None:
    """Two views of one memory: as if the operand had been copied first, or an error with nothing written."""
    n = 240
    memory = make_data(n, dtype, 7, specials=0).abs()
    memory = memory.clamp(1, 7) if dtype == torch.int16 else memory + 0.5
    rows, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 8))
    # Strides of a writable view: rows that do not meet.
    inner = data.draw(st.integers(1, 3))
    outer = (columns - 1) * inner + 1 + data.draw(st.integers(0, 4))
    start = data.draw(st.integers(0, 20))
    assume(start + (rows - 1) * outer + (columns - 1) * inner < n)
    x = memory.as_strided((rows, columns), (outer, inner), start)
    strides = [data.draw(st.sampled_from([0, 1, 2, 3, inner, outer, columns, rows])) for _ in range(2)]
    y_start = data.draw(st.one_of(st.just(start), st.integers(0, 40)))
    y_shape = [data.draw(st.sampled_from([s, s, 1])) for s in (rows, columns)]
    assume(y_start + sum((s - 1) * t for s, t in zip(y_shape, strides, strict=True)) < n)
    y = memory.as_strided(y_shape, strides, y_start)
    kwargs = {"rounding_mode": "floor"} if name == "div_" else {}
    before = memory.clone()
    their_x, their_y = clone_all([x, y])
    try:
        getattr(their_x, name)(their_y, **kwargs)
        refused = False
    except RuntimeError:
        refused = True
    want = getattr(x.clone(), name)(y.clone(), **kwargs)
    for capability in CAPABILITIES or ["torch"]:
        memory.copy_(before)
        with backend(capability):
            try:
                getattr(ie, name)(x, y, **kwargs)
            except RuntimeError:
                assert refused, (name, x.shape, x.stride(), y.shape, y.stride())
                assert same_bits(memory, before)
                continue
            # Torch refuses more: the same elements, where a dim of one element has another stride.
            if refused:
                assert x.data_ptr() == y.data_ptr() and x.squeeze().stride() == y.squeeze().stride()
            if name == "pow_" and dtype != torch.int16:
                torch.testing.assert_close(x, want)
            else:
                assert matches(x, want).all(), (name, x.stride(), y.stride(), y.shape)
            # Only the elements of x.
            x.copy_(before.as_strided(x.shape, x.stride(), x.storage_offset()))
            assert same_bits(memory, before)


@common
@given(st.data(), st.sampled_from([n for n in OPS if n != "copy_"]), st.sampled_from(DTYPES))
def test_position_in_memory_does_not_matter(data: st.DataObject, name: str, dtype: torch.dtype) -> None:
    """A slice of the result is the result of the slice, wherever it begins."""
    assume(allowed(name, dtype))
    n = data.draw(st.integers(1, 400))
    begin = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(begin + 1, n))
    x = make_data(n, dtype, data.draw(st.integers(0, 50)))
    count = {"clamp_": 2, "zero_": 0, "fill_": 0, **dict.fromkeys(UNARY, 0)}.get(name, 1)
    operands = [make_data(n, dtype, 90 + k) for k in range(count)]
    if dtype in INTS and name in ("div_", "pow_"):
        operands = [without(o, 0, -1).clamp(1, 9) for o in operands]
    args = [1] if name == "fill_" else []
    kwargs = {"rounding_mode": "trunc"} if name == "div_" else {}
    for capability in CAPABILITIES:
        with backend(capability):
            whole = getattr(ie, name)(x.clone(), *operands, *args, **kwargs)
            part = x.clone()[begin:end]
            getattr(ie, name)(part, *(o[begin:end] for o in operands), *args, **kwargs)
            assert matches(part, whole[begin:end]).all(), (capability, begin, end)
