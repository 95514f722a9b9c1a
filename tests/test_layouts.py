"""Layouts with a way of their own through the executor, at every length of the rows that it tells apart.

Each is compared bit for bit with torch on contiguous copies, and the bytes around the elements with what they
were.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import (
    CAPABILITIES,
    DTYPES,
    clone_strided,
    dtype_name,
    expect_path,
    make,
    make_data,
    matches,
    storage_bytes,
    threads,
)

import inplace_ext as ie
from inplace_ext import _native

pytestmark = [
    pytest.mark.skipif(not CAPABILITIES, reason="no compiled module"),
    pytest.mark.usefixtures("one_thread", "capability"),
]

BY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
#: Bytes that a piece holds at most.
PIECE = 4096


def check(
    name: str,
    x: torch.Tensor,
    *operands: torch.Tensor,
    path: str,
    of: Callable[..., torch.Tensor] | None = None,
) -> None:
    """ie's operation on x against torch's on contiguous copies of the same elements."""
    __tracebackhide__ = True
    want = x.clone(memory_format=torch.contiguous_format)
    full = [w.expand(x.shape).contiguous() for w in operands]
    (of or getattr(torch.Tensor, name))(want, *full)
    before = clone_strided(x)
    getattr(ie, name)(x, *operands)
    where = f"{name} {x.dtype} {tuple(x.shape)} {x.stride()}, {[(w.shape, w.stride()) for w in operands]}"
    expect_path(path, where)
    wrong = ~matches(x, want)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} wrong at {at}: {x[at].item()}, not {want[at].item()}: {where}"
        )
    outside = clone_strided(x).copy_(before)
    assert torch.equal(storage_bytes(outside), storage_bytes(before)), f"wrote outside: {where}"


def numbers(rows: tuple[int, ...], dtype: torch.dtype, step: int, seed: int) -> torch.Tensor:
    """A number for each row, `step` elements apart."""
    count = int(torch.tensor(rows).prod())
    return make_data(count * step, dtype, seed).reshape(*rows, step)[..., :1]


def operation(dtype: torch.dtype) -> str:
    return "add_" if dtype == torch.bool else "sub_"


# ---- a number for each row --------------------------------------------------------------------------------


@BY_DTYPE
def test_a_number_for_each_short_row(dtype: torch.dtype) -> None:
    """Several pieces, the last one a part of a vector, of which most begin inside of a row."""
    piece = PIECE // dtype.itemsize
    for columns in (*range(2, 68), 95, 96, 127, 128, 129):
        for rows in {2, 2 * piece // columns + 3}:
            x = make((rows, columns), dtype, "offset", columns)
            for step in (1, 3):
                w = numbers((rows,), dtype, step, columns + 1)
                check("copy_", clone_strided(x), w, path="move")
                check(operation(dtype), clone_strided(x), w, path="staged")


@BY_DTYPE
def test_numbers_for_rows_of_more_dims(dtype: torch.dtype) -> None:
    """The numbers of the rows repeat, or go on elsewhere, in the middle of a piece."""
    for columns in (2, 3, 5, 8, 16, 20, 33, 64, 65):
        for shape in ((5, 13, columns), (3, 2, 7, columns), (4, 300, columns)):
            x = make(shape, dtype, "contiguous", columns)
            for step in (1, 2):
                whole = numbers((*shape[:-2], 2 * shape[-2]), dtype, step, columns)
                views = [whole[..., : shape[-2], :], whole[..., ::2, :], whole[0, ..., : shape[-2], :]]
                for w in views:
                    check("copy_", clone_strided(x), w, path="move")
                    check(operation(dtype), clone_strided(x), w, path="staged")


def test_numbers_of_another_type() -> None:
    for columns in (3, 16, 40):
        for dtype, other in (
            (torch.float32, torch.float16),
            (torch.float32, torch.uint8),
            (torch.float64, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.int64, torch.int16),
        ):
            x = make((700, columns), dtype, "contiguous", columns)
            w = numbers((700,), other, 1, columns)
            check("copy_", clone_strided(x), w, path="move")
            check("sub_", clone_strided(x), w, path="staged")


def test_two_numbers_for_each_row() -> None:
    """Both from one table; a mask is of another size and is filled without."""
    for columns in (2, 7, 16, 40, 63):
        rows = 3000 // columns
        x = make((rows, columns), torch.float32, "contiguous", columns)
        low, high = (numbers((rows,), torch.float32, 1, seed) for seed in (1, 2))
        check("clamp_", clone_strided(x), low, high, path="staged")
        mask = numbers((rows,), torch.bool, 1, 3)
        check(
            "where_",
            clone_strided(x),
            mask,
            high,
            path="staged",
            of=lambda x, mask, other: x.copy_(torch.where(mask, x, other)),
        )


def test_numbers_of_rows_in_a_chain() -> None:
    assert _native.module is not None
    stages = [("load", ("t", 0), None), ("sub_", ("t", 1), None), ("mul_", ("t", 2), None)]
    for columns in (2, 5, 16, 30, 63):
        rows = 2500 // columns
        for other in (torch.float32, torch.bfloat16, torch.float64):
            x = make((rows, columns), torch.float32, "contiguous", columns, specials=0)
            mean, scale = numbers((rows,), torch.float32, 1, 1), numbers((rows,), other, 1, 2)
            want = (x - mean) * scale.float()
            _native.module.run_program("f32", [*stages, ("store", ("t", 0), None)], [x, mean, scale], [])
            expect_path("program")
            assert matches(x, want).all(), (columns, other)


def test_threads_begin_inside_of_rows() -> None:
    for columns in (3, 7, 16, 20, 63):
        x = make((300_000 // columns, columns), torch.float32, "contiguous", columns)
        w = numbers((len(x),), torch.float32, 1, 2)
        for count in (2, 3):
            with threads(count):
                check("copy_", clone_strided(x), w, path="move")
                check("sub_", clone_strided(x), w, path="staged")


# ---- short rows and tails ---------------------------------------------------------------------------------


@BY_DTYPE
def test_a_part_of_a_vector(dtype: torch.dtype) -> None:
    """Tails of every length, as an array and as rows beside each other: what lies behind them stays."""
    for n in range(1, 2 * 64 // dtype.itemsize + 2):
        check(operation(dtype), make((n,), dtype, "offset", n), make_data(n, dtype, 3), path="loop")
        for gap in (1, 3):
            x = make((9, n + gap), dtype, "offset", n)[:, :n]
            w = make((9, n), dtype, "contiguous", 4)
            check(operation(dtype), x, w, path="staged")
