"""Errors: the type that torch raises, a message that says what was given, and nothing written."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from helpers import (
    BINARY,
    CAPABILITIES,
    DTYPES,
    INTS,
    MOVES,
    OPS,
    UNARY,
    check,
    clone_strided,
    dtype_name,
    each,
    make,
    make_data,
    same_bits,
    storage_bytes,
)

import inplace_ext as ie
from inplace_ext import testing


def raises_as_torch(name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> str:
    """Both raise the same type; x is untouched. Returns the message."""
    __tracebackhide__ = True
    what = (name, x.dtype, tuple(x.shape), args, kwargs)
    theirs: type[BaseException] | None = None
    try:
        getattr(clone_strided(x), name)(*args, **kwargs)
    except Exception as e:
        theirs = type(e)
    assert theirs is not None, f"torch takes it {what}"
    before, version = clone_strided(x), x._version
    with pytest.raises(theirs) as error:
        getattr(ie, name)(x, *args, **kwargs)
    assert error.type is theirs, what
    assert torch.equal(storage_bytes(x), storage_bytes(before)), f"written {what}"
    assert x._version == version, f"version moved {what}"
    return str(error.value)


def arguments(name: str, operand: Any) -> list[Any]:
    if name in (*UNARY, "zero_"):
        return []
    return [operand, operand] if name == "clamp_" else [operand]


# ---- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BINARY, "clamp_", "copy_"])
def test_shapes_that_do_not_broadcast(any_backend: str, name: str) -> None:
    for shape, other in [
        ((3, 4), (3,)),
        ((3, 4), (4, 3)),
        ((3, 4), (2, 3, 4)),
        ((1,), (5,)),
        ((), (5,)),
        ((), (1,)),
        ((3, 1), (3, 4)),
        ((0,), (3,)),
        ((3,), (0,)),
        ((2, 0), (2, 3)),
    ]:
        for layout in ("contiguous", "step"):
            x = make(shape, torch.float32, layout, 1)
            operand = make(other, torch.float32, layout, 2)
            try:
                getattr(clone_strided(x), name)(*arguments(name, operand))
            except RuntimeError:
                message = raises_as_torch(name, x, *arguments(name, operand))
                assert name in message and str(tuple(other)) in message, message
            else:
                with_none = [operand] if name != "clamp_" else [operand, operand]
                assert getattr(ie, name)(x, *with_none) is x


# ---- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_wrong_arguments(any_backend: str, name: str) -> None:
    x = torch.rand(4)
    good = arguments(name, torch.rand(4)) if name != "fill_" else [1.0]
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([*good, 1, 2, 3, 4, 5, 6, 7, 8], {}),
        (good, {"frobnicate": 1}),
        (good, {"self": x}),
        (arguments(name, "text") or ["text"], {}),
        (arguments(name, object()) or [object()], {}),
    ]
    if name not in (*UNARY, "zero_", "clamp_"):
        calls.append(([], {}))
    if name in ("add_", "sub_"):
        calls += [(good, {"alpha": a}) for a in ("2", None, [1], torch.ones(2), 1j)]
    if name == "div_":
        calls += [(good, {"rounding_mode": m}) for m in ("ceil", "", "Floor", 1, True, [])]
    if name == "clamp_":
        calls += [
            ([], {}),
            ([None, None], {}),
            ([1, torch.ones(4)], {}),
            ([torch.ones(4), 2], {}),
            (["0", 1], {}),
        ]
    if name == "fill_":
        calls += [([torch.ones(4)], {}), ([torch.ones(1)], {}), ([None], {}), ([1j], {})]
    if name == "copy_":
        calls += [([None], {}), ([good[0], "yes"], {}), ([good[0], None], {})]
    for args, kwargs in calls:
        try:
            getattr(x.clone(), name)(*args, **kwargs)
        except Exception:
            raises_as_torch(name, x, *args, **kwargs)
        else:
            assert getattr(ie, name)(x, *args, **kwargs) is x


@pytest.mark.parametrize("name", OPS)
def test_input_that_is_no_tensor(any_backend: str, name: str) -> None:
    args = arguments(name, torch.ones(2)) if name != "fill_" else [1.0]
    for value in (None, 3, 2.5, "x", [1.0, 2.0], object(), torch.Tensor):
        with pytest.raises(TypeError) as error:
            getattr(ie, name)(value, *args)
        assert name in str(error.value) or "descriptor" in str(error.value), error.value
    with pytest.raises(TypeError):
        getattr(ie, name)()
    with pytest.raises(TypeError):
        getattr(ie, name)(torch.ones(2), *args, input=torch.ones(2))


# ---- dtypes -----------------------------------------------------------------------------------------------


@each(OPS, refused=True)
def test_dtypes_that_torch_refuses(name: str, dtype: torch.dtype) -> None:
    x = make((3, 5), dtype, "contiguous", 1)
    args = arguments(name, torch.ones(5, dtype=dtype))
    check(name, x, *args, torch_too=True)
    check(name, make((3, 5), dtype, "step", 1), *args, torch_too=True)
    check(name, x, *arguments(name, 1))


@pytest.mark.parametrize("name", BINARY)
def test_results_that_cannot_be_put_back(any_backend: str, name: str) -> None:
    """A float operand of an integer tensor and the like."""
    for dtype in (*INTS, torch.bool):
        x = make((6,), dtype, "contiguous", 1)
        for operand in (
            2.5,
            torch.full((6,), 2.5),
            torch.tensor(2.5, dtype=torch.float64),
            torch.ones(6) * 1j,
            1j,
        ):
            kwargs = {"rounding_mode": "floor"} if name == "div_" else {}
            try:
                getattr(x.clone(), name)(operand, **kwargs)
            except Exception:
                raises_as_torch(name, x, operand, **kwargs)
            else:
                assert getattr(ie, name)(x.clone(), operand, **kwargs) is not None
    message = raises_as_torch("div_", torch.ones(3, dtype=torch.int32), 2)
    assert "div_" in message and "int32" in message.lower(), message


# ---- division by zero -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTS, ids=dtype_name)
@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_integer_division_by_zero(any_backend: str, dtype: torch.dtype, mode: str) -> None:
    """Wherever the zero is, it is found before anything is written."""
    n = 300
    for layout, at in itertools.product(["contiguous", "step", "offset"], [0, 1, 63, 64, 150, 298, 299]):
        x = make((n,), dtype, layout, 1)
        divisor = make((n,), dtype, layout, 2, data=torch.full((n,), 3, dtype=dtype))
        divisor[at] = 0
        before, version = clone_strided(x), x._version
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            ie.div_(x, divisor, rounding_mode=mode)
        assert torch.equal(storage_bytes(x), storage_bytes(before)) and x._version == version
        x2 = x[:70].reshape(10, 7)
        before = x2.clone()
        row = torch.full((7,), 2, dtype=dtype)
        row[at % 7] = 0
        for small in (row, row[at % 7], row[None], row.expand(10, 7), row[at % 7 : at % 7 + 1], 0, False):
            with pytest.raises(RuntimeError):
                ie.div_(x2, small, rounding_mode=mode)
            assert same_bits(x2, before)
    wide = make_data(40, torch.int64, 3).clamp(1, 5).view(4, 10)
    wide[3, 9] = 0
    x = torch.ones(4, 10, dtype=dtype)
    rows = make((4, 10), torch.int64, "rows", data=wide)
    outer = torch.stack([torch.ones_like(wide), wide], 2).transpose(0, 1)[..., 1].t()
    for divisor in (wide, wide.t().contiguous().t(), wide.repeat_interleave(2, 1)[:, ::2], rows, outer):
        assert divisor[3, 9] == 0
        with pytest.raises(RuntimeError):
            ie.div_(x, divisor, rounding_mode=mode)
        assert bool((x == 1).all())


def test_division_by_zero_that_is_allowed(any_backend: str) -> None:
    """Floats have infinities; without an element there is no division; a zero beside a view is none."""
    x = torch.tensor([1.0, -1.0, 0.0])
    ie.div_(x, 0)
    assert x[0] == torch.inf and x[1] == -torch.inf and x[2].isnan()
    empty = torch.empty(0, 3, dtype=torch.int32)
    assert ie.div_(empty, torch.zeros(3, dtype=torch.int32), rounding_mode="floor") is empty
    assert ie.div_(empty, 0, rounding_mode="floor") is empty
    divisor = torch.tensor([2, 0] * 40, dtype=torch.int32)[::2]
    y = torch.full((40,), 7, dtype=torch.int32)
    assert bool((ie.div_(y, divisor, rounding_mode="trunc") == 3).all())
    # A float tensor divides by an integer zero as by 0.0.
    z = ie.div_(torch.ones(3), torch.zeros(3, dtype=torch.int32), rounding_mode="floor")
    assert bool((z == torch.inf).all())


# ---- overflow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clamp_", "clamp_min_", "clamp_max_", "fill_", "pow_", "add_", "mul_"])
def test_numbers_out_of_range(name: str) -> None:
    """Whether torch raises or wraps depends on the operation; here it is the same."""
    for dtype in DTYPES:
        x = torch.arange(5).to(dtype)
        for value in (256, -129, 2**31, -(2**31) - 1, 2**63 - 1, 70000.0, 1e39, 1e308, 1e400, 2**200):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(name, x.clone(), value)


# ---- messages and the state after an error ----------------------------------------------------------------


def test_messages_name_the_operation_and_what_was_given(any_backend: str) -> None:
    x = torch.rand(3, 4)
    for call, words in [
        (lambda: ie.add_(x, torch.rand(5)), ["add_", "(3, 4)", "(5,)"]),
        (lambda: ie.mul_(torch.ones(2, dtype=torch.int32), 1.5), ["mul_", "int32", "1.5"]),
        (lambda: ie.clamp_(x), ["clamp_", "min", "max"]),
        (lambda: ie.div_(x, 2, rounding_mode="ceil"), ["div_", "ceil"]),
        (lambda: ie.neg_(torch.ones(2, dtype=torch.bool)), ["neg_", "bool"]),
        (lambda: ie.pow_(torch.ones(2, dtype=torch.int64), -1), ["pow_", "negative"]),
        (lambda: ie.mul_(x.expand(2, 3, 4), 2), ["mul_", "clone"]),
    ]:
        with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
            call()
        assert all(word in str(error.value) for word in words), (str(error.value), words)


@pytest.mark.parametrize("name", OPS)
def test_an_error_leaves_no_state(any_backend: str, name: str) -> None:
    """The next call works, on the fast path where there is one."""
    x = torch.rand(8)
    with pytest.raises((RuntimeError, TypeError)):
        getattr(ie, name)(x, torch.rand(3), torch.rand(3), torch.rand(3), torch.rand(3))
    args = arguments(name, torch.rand(8)) if name != "fill_" else [1.0]
    getattr(ie, name)(x, *args)
    if any_backend in CAPABILITIES:
        assert testing.last_path() == f"{any_backend}:{'move' if name in MOVES else 'loop'}"


def test_the_cause_is_torchs_error(any_backend: str) -> None:
    with pytest.raises(RuntimeError) as error:
        ie.add_(torch.rand(3), torch.rand(4))
    assert type(error.value.__cause__) is RuntimeError
