"""Layouts with a way of their own through the executor, at every length of the rows that it tells apart.

Each is compared bit for bit with torch on contiguous copies, and the bytes around the elements with what they
were.
"""

from __future__ import annotations

import ctypes
import mmap
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


# ---- elements with gaps between them ----------------------------------------------------------------------


@BY_DTYPE
def test_every_nth_element(dtype: torch.dtype) -> None:
    """Vectors gathered from as many in memory as the step is long, and the part of one at the end."""
    for step in range(2, 10):
        for n in (*range(1, 70), 130, 700, 1100):
            x = make((3, n * step), dtype, "offset", n)[:, ::step]
            w = make((3, n * step), dtype, "rows", n + 1)[:, ::step]
            if n > 1:
                check(operation(dtype), clone_strided(x), w, path="staged")
                check("copy_", clone_strided(x), w.contiguous(), path="move")
                check("copy_", make((3, n), dtype, "contiguous", 2), w, path="move")
            # A single row.
            check("copy_", clone_strided(x[0]), w[0], path="move")


@BY_DTYPE
def test_short_rows_with_gaps(dtype: torch.dtype) -> None:
    """More of them than a piece holds, and in blocks of which each begins elsewhere."""
    for columns in (1, 2, 3, 5, 7, 8, 12, 15, 16, 17, 31, 33, 63, 64, 65):
        for shape in ((PIECE // columns + 5, columns), (5, 30, columns), (40, 3, columns)):
            whole = make((*shape[:-2], shape[-2] + 1, columns + 2), dtype, "offset", columns)
            x = whole[..., : shape[-2], :columns]
            w = make((*shape[:-1], columns + 1), dtype, "contiguous", 3)[..., :columns]
            check(operation(dtype), clone_strided(x), w, path="staged")
            check("copy_", clone_strided(x), w.contiguous(), path="move")
            check("copy_", make(shape, dtype, "contiguous", 2), w, path="move")


def before_a_gap(size: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose memory ends where the next page may not be touched."""
    libc = ctypes.CDLL(None)
    length = -(-size * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, length + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + length), mmap.PAGESIZE, mmap.PROT_READ * 0) == 0
    return torch.frombuffer(memory, dtype=dtype, count=length // dtype.itemsize)[-size:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=dtype_name)
def test_nothing_behind_the_last_element_is_touched(dtype: torch.dtype) -> None:
    for n in (1, 2, 5, 15, 16, 17, 31, 33, 100, 1100):
        for step in (1, 2, 3, 5, 8):
            size = (n - 1) * step + 1
            x, w = (before_a_gap(size, dtype) for _ in range(2))
            data = make_data(size, dtype, n)
            for t in (x, w):
                t.copy_(data)
            ie.add_(x[::step], w[::step])
            ie.copy_(w[::step], x[::step].clone())
            assert matches(x[::step], data[::step] + data[::step]).all() and matches(w, x).all()
        for columns in (3, 16, 20):
            numbers = before_a_gap(n, dtype).copy_(make_data(n, dtype, 1))
            rows = before_a_gap(n * (columns + 1), dtype).fill_(1).view(n, columns + 1)[:, 1:]
            full = before_a_gap(n * columns, dtype).fill_(1).view(n, columns)
            want = torch.ones(n, columns, dtype=dtype) + numbers[:, None]
            for x in (rows, full):
                ie.add_(x, numbers[:, None])
                assert matches(x, want).all()
                ie.copy_(x, numbers[:, None])
                assert matches(x, numbers[:, None].expand(n, columns)).all()


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
