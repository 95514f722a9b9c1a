"""Writing where an index or a mask says: values, duplicates, layouts, errors, the contract."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    CAPABILITIES,
    COMPLEX,
    DTYPES,
    FLOATS,
    HALVES,
    INTS,
    LAYOUTS,
    backend,
    clone_all,
    clone_strided,
    dtype_name,
    expect_path,
    is_native,
    make,
    make_data,
    matches,
    same_bits,
    storage_bytes,
    threads,
)
from hypothesis import given
from hypothesis import strategies as st
from test_hypothesis import common, shapes, strided
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_unflatten

import inplace_ext as ie
from inplace_ext import _ops, testing
from inplace_ext._delegate import torch_method
from inplace_ext._table import INDEXED

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded"),
]

NAMES = list(INDEXED)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
#: What torch raises where an index is out of range.
RANGE_ERROR = {name: RuntimeError if name.startswith("scatter") else IndexError for name in NAMES}


def copied(*values: Any) -> list[Any]:
    """Copies with the same strides and the same sharing of storage, also inside tuples and lists."""
    leaves, spec = tree_flatten(list(values))
    copies: list[Any] = tree_unflatten(clone_all(leaves), spec)
    return copies


def tensors(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(list(values))[0] if isinstance(leaf, torch.Tensor)]


def described(value: Any) -> Any:
    """A call without the data of its large tensors."""
    if isinstance(value, torch.Tensor):
        data = value.tolist() if value.numel() < 20 else "..."
        return (dtype_name(value.dtype), tuple(value.shape), value.stride(), data)
    if isinstance(value, (tuple, list)):
        return [described(item) for item in value]
    return {k: described(v) for k, v in value.items()} if isinstance(value, dict) else value


def shared(x: torch.Tensor, operand: torch.Tensor) -> bool:
    return operand.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def asserted(where: str, error: BaseException | None) -> bool:
    """Whether a device has found what else raises an exception of torch's: it can only end the work."""
    return where == "emulated" and type(error) is RuntimeError and "device-side assertion" in str(error)


def call(
    name: str,
    x: torch.Tensor,
    *args: Any,
    path: str | tuple[str, str] | None = None,
    want: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Calls the operation on every backend and checks the whole contract; returns x.

    The reference is `want`, of a sum, or what torch's own form does. `path` may be two, the CPU's and that of
    a device.
    """
    __tracebackhide__ = True
    what = (name, x.dtype, tuple(x.shape), x.stride(), described(args), described(kwargs))
    saved, begin, error = storage_bytes(x).clone(), clone_strided(x), None
    reference, their_args, their_kwargs = copied(x, args, kwargs)
    version = reference._version
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch_method(INDEXED[name])(reference, *their_args, **their_kwargs)
        except Exception as e:
            error = type(e)
    bumps = reference._version - version
    # Torch has two types for this one error.
    if name == "index_add_" and error is RuntimeError and x.numel() and _out_of_range(x, *args[:2]):
        error = IndexError
    others = [t for t in tensors(args, kwargs) if not shared(x, t)]
    others_saved = [(storage_bytes(t).clone(), t._version) for t in others]
    # Torch adds 16-bit floats in float32 and rounds once in some of its loops, and each time in others.
    settled = want is None or x.dtype not in HALVES
    want = reference if want is None else want
    for where in CAPABILITIES + ["torch"] * (settled or not CAPABILITIES):
        storage_bytes(x).copy_(saved)
        version, pointer, caught = x._version, x.data_ptr(), None
        layout = (x.shape, x.stride(), x.storage_offset())
        with backend(where), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = getattr(ie, name)(x, *args, **kwargs)
            except Exception as e:
                caught = e
            if path is not None and caught is None:
                expect_path(path if isinstance(path, str) else path[where == "emulated"], what)
        if caught is not None or error is not None:
            known = type(caught) is error or (error is not None and asserted(where, caught))
            assert known, f"{caught!r}, expected {error} on {where} {what}"
            assert torch.equal(storage_bytes(x), saved), f"written before the error on {where} {what}"
            assert x._version == version, f"version moved by an error on {where} {what}"
            continue
        assert result is x, what
        assert x._version - version == bumps, f"version moved by {x._version - version}, not {bumps} {what}"
        if not settled and where == "emulated" and testing.last_path() == "torch":
            continue
        good = matches(x, want)
        if not good.all():
            at = tuple((~good).nonzero()[0].tolist())
            count = int((~good).sum())
            raise AssertionError(f"{count} wrong, at {at} {x[at]} for {want[at]}, on {where} {what}")
        assert (x.data_ptr(), layout) == (pointer, (x.shape, x.stride(), x.storage_offset())), what
        if 0 not in x.stride():
            restored = clone_strided(x).copy_(begin)
            assert torch.equal(storage_bytes(restored), storage_bytes(begin)), f"wrote outside {what}"
        for t, (contents, t_version) in zip(others, others_saved, strict=True):
            assert torch.equal(storage_bytes(t), contents) and t._version == t_version, f"operand {what}"
    return x


def _out_of_range(x: torch.Tensor, dim: int, index: torch.Tensor) -> bool:
    size = x.size(dim) if x.dim() else 1
    return bool(((index < 0) | (index >= size)).any())


def index_of(n: int, size: int, seed: int, dtype: torch.dtype = torch.int64, low: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(low, size, (n,), generator=g).to(dtype)


def added(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """index_add_ one index after another, each by torch's add_."""
    x = clone_strided(x)
    for i, at in enumerate(index.reshape(-1).tolist()):
        x.select(dim, at).add_(source.select(dim, i))
    return x


def scatter_added(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """scatter_add_ one element after another."""
    x = clone_strided(x)
    for place in itertools.product(*(range(n) for n in index.shape)):
        to = list(place)
        to[dim] = int(index[place])
        x[tuple(to)] += source[place]
    return x


def put_added(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    x = clone_strided(x)
    flat = x.view(-1)
    for at, value in zip(index.reshape(-1).tolist(), source.reshape(-1), strict=True):
        flat[at] += value
    return x


# ---- along a dim ------------------------------------------------------------------------------------------

#: Rows, short rows, columns, a dim in the middle.
ALONG = [((9, 33), 0), ((9, 3), 0), ((5, 40), 1), ((3, 7, 20), 1), ((70,), 0), ((2, 3, 4, 5), -2)]


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_along_a_dim(dtype: torch.dtype, layout: str) -> None:
    for seed, (shape, dim) in enumerate(ALONG):
        size = shape[dim]
        for n in (1, 4, 3 * size):  # the last with each place several times
            x = make(shape, dtype, layout, seed)
            some = list(shape)
            some[dim] = n
            source = make(some, dtype, layout, seed + 10, specials=0)
            index = index_of(n, size, seed)
            call("index_fill_", x, dim, index_of(n, size, seed, low=-size), make_data(1, dtype, seed)[0])
            call("index_copy_", x, dim, index, source)
            for kind in (index, index.int()):
                want = added(x, dim, index, source)
                call("index_add_", x, dim, kind, source, want=want)
            strided_index = torch.stack((index, index), 1)[:, 0]
            call("index_copy_", x, dim, strided_index, source)


@by_dtype
def test_paths_along_a_dim(dtype: torch.dtype) -> None:
    index = torch.tensor([2, 0, 2])
    for shape, dim, path in [
        ((4, 300), 0, "index_rows"),
        ((4, 3), 0, "index_rows"),
        ((4,), 0, "index_elements"),
        ((3, 4), 1, "index_elements"),
        ((3, 4, 2), 1, "index_rows"),
    ]:
        x = make(shape, dtype)
        source = make([3 if d == dim else n for d, n in enumerate(shape)], dtype, seed=1)
        call("index_fill_", x, dim, index, True, path=path)
        call("index_copy_", x, dim, index, source, path=path)
        want = added(x, dim, index, source)
        call("index_add_", x, dim, index, source, path=path, want=want)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.bool], ids=dtype_name)
def test_alpha(dtype: torch.dtype) -> None:
    index = torch.tensor([2, 0, 2, 2])
    for shape in ((4, 37), (4,), (4, 3)):
        x, source = make(shape, dtype, specials=0), make((4, *shape[1:]), dtype, seed=3, specials=0)
        for alpha in (1, 2, 3):
            want = clone_strided(x)
            for i, at in enumerate(index.tolist()):
                # As add_ of this package, which is fused everywhere.
                ie.add_(want[at : at + 1], source[i : i + 1], alpha=alpha)
            with backend(CAPABILITIES[0] if CAPABILITIES else "torch"):
                got = ie.index_add_(clone_strided(x), 0, index, source, alpha=alpha)
            assert matches(got, want).all() if is_native() else True
            if dtype not in HALVES:
                theirs = torch.Tensor.index_add_(clone_strided(x), 0, index, source, alpha=alpha)
                torch.testing.assert_close(got, theirs)
    x = torch.zeros(3, dtype=dtype)
    if dtype in INTS:
        call("index_add_", x, 0, index[:1], torch.ones(1, dtype=dtype), alpha=1.5)
        call("index_add_", x, 0, index[:1], torch.ones(1, dtype=dtype), alpha=True)
        call("index_add_", x, 0, index[:1], torch.ones(1, dtype=dtype), alpha=10**6)


def test_index_add_of_bools_with_alpha() -> None:
    x = torch.zeros(3, dtype=torch.bool)
    call("index_add_", x, 0, torch.tensor([1]), torch.ones(1, dtype=torch.bool), alpha=2)


@pytest.mark.parametrize("name", ["index_copy_", "index_add_"])
def test_numbers_and_odd_shapes(name: str) -> None:
    one, index = torch.ones(1), torch.tensor([0])
    for x, i, source in [
        (torch.zeros(()), index, one),
        (torch.zeros(()), torch.tensor(0), torch.tensor(2.0)),
        (torch.zeros(3), torch.tensor(1), torch.tensor(2.0)),
        (torch.zeros(3), torch.tensor(1), one),
        (torch.zeros(3, 2), index, torch.ones(2)),
        (torch.zeros(3, 2), index, torch.ones(1, 1)),
        (torch.zeros(3, 2), index, torch.ones(2, 2)),
        (torch.zeros(3, 2), torch.tensor([[0]]), torch.ones(1, 2)),
        (torch.zeros(3, 0), torch.tensor([7]), torch.ones(1, 0)),
        (torch.zeros(0, 2), torch.tensor([], dtype=torch.int64), torch.ones(0, 2)),
        (torch.zeros(3, 2), torch.tensor([], dtype=torch.int64), torch.ones(0, 2)),
        (torch.zeros(3), index, one.double()),
        (torch.zeros(3), index.int(), one),
        (torch.zeros(3), index.short(), one),
    ]:
        call(name, x, 0, i, source)


def test_index_fill_of_odd_values_and_shapes() -> None:
    index = torch.tensor([0])
    for x, i, value in [
        (torch.zeros(()), index, 2),
        (torch.zeros(3), torch.tensor(1), 2),
        (torch.zeros(3), torch.tensor([[0, 1]]), 2),
        (torch.zeros(3), index, torch.tensor([2.0])),
        (torch.zeros(3), index, torch.tensor(2)),
        (torch.zeros(3, dtype=torch.int64), index, 1.7),
        (torch.zeros(3, dtype=torch.int64), index, torch.tensor(1.7)),
        (torch.zeros(3, dtype=torch.uint8), index, 300),
        (torch.zeros(3, dtype=torch.float16), index, 1e6),
        (torch.zeros(3, dtype=torch.bool), index, 2),
        (torch.zeros(3), index, "2"),
        (torch.zeros(3), index.int(), 2),
        (torch.zeros(3, 0), torch.tensor([7]), 2),
        (torch.ones(1).expand(3), index, 2),
    ]:
        call("index_fill_", x, 0, i, value)


@pytest.mark.parametrize("dim", [-3, 2, 5, 1.0, None, True, "a"])
def test_dims_out_of_range(dim: Any) -> None:
    x, index = torch.zeros(2, 3), torch.tensor([0])
    call("index_fill_", x, dim, index, 1.0)
    call("index_copy_", x, dim, index, torch.ones(1, 3))
    call("index_add_", x, dim, index, torch.ones(1, 3))
    call("scatter_", x, dim, torch.zeros(1, 3, dtype=torch.int64), 1.0)
    call("scatter_add_", x, dim, torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3))


# ---- scatter ----------------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter(dtype: torch.dtype, layout: str) -> None:
    for seed, (shape, dim) in enumerate(
        [((5, 40), 0), ((5, 40), 1), ((33,), 0), ((3, 4, 5), 1), ((2, 3), -1)]
    ):
        for grow in (1, 3):
            sizes = [n * grow if d == dim % len(shape) else max(n - seed % 2, 1) for d, n in enumerate(shape)]
            x, source = (
                make(shape, dtype, layout, seed),
                make([n + seed % 2 for n in sizes], dtype, layout, 7, 0),
            )
            index = make(sizes, torch.int64, layout, seed, data=index_of(math.prod(sizes), shape[dim], seed))
            call("scatter_", x, dim, index, source)
            call("scatter_", x, dim, index.int(), source)
            call("scatter_", x, dim, index, 1)
            if math.prod(sizes) < 200:
                call(
                    "scatter_add_", x, dim, index, source, want=scatter_added(x, dim % x.dim(), index, source)
                )


@pytest.mark.parametrize("transposed", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("dim", [0, 1])
def test_scatter_walks_any_of_its_tensors_across(dim: int, transposed: tuple[bool, bool, bool]) -> None:
    """Whichever dim is walked first, the last of the same place stays and sums are in order."""

    def laid(values: torch.Tensor, across: bool) -> torch.Tensor:
        return values.t().contiguous().t() if across else values

    for rows, columns in ((13, 37), (50, 7), (1, 90)):
        x = laid(torch.rand(rows, columns), transposed[0])
        index = laid(index_of(rows * columns, x.shape[dim], 3).view(rows, columns), transposed[1])
        source = laid(torch.rand(rows, columns) * 1e3, transposed[2])
        want = clone_strided(x)
        for place in itertools.product(range(rows), range(columns)):
            to = list(place)
            to[dim] = int(index[place])
            want[tuple(to)] = source[place]
        call("scatter_", x, dim, index, source, want=want, path="index_elements")
        call("scatter_", x, dim, index, 7, path="index_elements")
        call("scatter_add_", x, dim, index, source, want=scatter_added(x, dim, index, source))


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_16_bit_additions_are_those_of_add(dtype: torch.dtype, capability: str) -> None:
    """Bit for bit, for every number beside others; of two NaN the compiler chooses one."""

    def check(found: torch.Tensor, want: torch.Tensor, source: torch.Tensor) -> None:
        same = found.view(torch.int16) == want.view(torch.int16)
        assert (same | (numbers[index].isnan() & source.isnan() & found.isnan())).all()

    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    index = torch.randperm(len(numbers))
    for shift in (0, 1, 4321, 32768, 40000):
        source = numbers.roll(shift)
        for alpha in (1, 1.5):
            want = ie.add_(numbers[index], source, alpha=alpha)
            found = numbers.clone()
            ie.index_add_(found, 0, index, source, alpha=alpha)
            assert testing.last_path() == f"{capability}:index_elements"
            check(found[index], want, source)
        # Rows of elements apart, of two columns.
        pair = torch.stack([numbers, numbers], 1)
        ie.index_add_(pair[:, :1], 0, index, source.view(-1, 1))
        want = ie.add_(numbers[index], source)
        check(pair[:, 0][index], want, source)
        assert torch.equal(pair[:, 1].view(torch.int16), numbers.view(torch.int16))


@by_dtype
def test_rows_are_filled_wherever_they_begin(dtype: torch.dtype) -> None:
    """Also where no element lies at a multiple of its size; lengths about those of vectors."""
    for skew in (0, 1, 3):
        for columns in (1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200, 700):
            pitch = columns + 3
            memory = torch.zeros(5 * pitch * dtype.itemsize + skew, dtype=torch.uint8)
            x = torch.frombuffer(memory.numpy(), dtype=dtype, offset=skew).view(5, pitch)
            value = True if dtype == torch.bool else 77
            call("setitem_", x, (slice(1, 4), slice(1, columns + 1)), value, path="move")
            call("index_fill_", x[:, 1 : columns + 1], 0, torch.tensor([3, 0, 3]), value)
            call("setitem_", x, torch.tensor([True, False, True, False, False]), value)


@by_dtype
def test_elements_apart_are_filled(dtype: torch.dtype) -> None:
    value = True if dtype == torch.bool else 77
    x = make((6, 90, 41), dtype, "contiguous")
    for index in ((slice(None), slice(None), 3), (slice(1, 5, 2), slice(None), slice(0, 41, 9)),
                  (..., slice(0, 12, 2)), (slice(None), slice(3, None, 7)),
                  (2, slice(None), slice(1, None, 20)), (slice(None), 5, slice(None, None, 13)),
                  (..., slice(None, None, 3))):  # fmt: skip
        call("setitem_", x, index, value, path="move")
        with threads(3):
            call("setitem_", x, index, value)
    # Threads begin within rows, with pieces shorter than those that follow.
    x = make((301, 703), dtype, "contiguous")
    for count in (1, 2, 3):
        with threads(count):
            call("setitem_", x, (slice(None), slice(None, None, 2)), value, path="move")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=dtype_name)
@pytest.mark.parametrize("rows,columns", [(2048, 2061), (8192, 1031), (40, 100)])
def test_scatter_to_rows_of_a_large_matrix(dtype: torch.dtype, rows: int, columns: int) -> None:
    """In strips of columns, which end within a line; what the index leaves out stays."""
    path = "columns" if rows * columns * dtype.itemsize > 8 << 20 else "index_elements"
    x = make((rows, columns + 3), dtype, "contiguous")[:, 1:-2]
    index = index_of(rows * columns, rows, 1).view(rows, columns)
    source = make((rows, columns), dtype, "contiguous", 5, 0)
    call("scatter_", x, 0, index, source, path=(path, "index_elements"))
    call("scatter_", x, 0, index[:, : columns - 5], 1, path=(path, "index_elements"))
    call("scatter_", x, 0, index[: rows // 2 - 1], source, path="index_elements")
    call(
        "scatter_", x.unsqueeze(0), 1, index.unsqueeze(0), source.unsqueeze(0), path=(path, "index_elements")
    )
    with threads(2):
        call("scatter_", x, 0, index.int(), source)


def test_scatter_of_odd_arguments() -> None:
    one, index = torch.ones(1), torch.tensor([0])
    for x, i, source in [
        (torch.zeros(()), torch.tensor(0), torch.tensor(2.0)),
        (torch.zeros(()), index, one),
        (torch.zeros(3), torch.tensor(1), torch.tensor(2.0)),
        (torch.zeros(3), index, torch.tensor(2.0)),
        (torch.zeros(3), torch.tensor([0, 1]), torch.tensor(2.0)),
        (torch.zeros(3), index, one.double()),
        (torch.zeros(3), index.short(), one),
        (torch.zeros(3), torch.tensor([[0]]), one),
        (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, 4)),
        (torch.zeros(3, 2), torch.zeros(2, 2, dtype=torch.int64), torch.ones(1, 2)),
        (torch.zeros(3, 2), torch.zeros(0, 2, dtype=torch.int64), torch.ones(4, 4)),
        (torch.zeros(0, 2), torch.zeros(1, 2, dtype=torch.int64), torch.ones(4, 4)),
    ]:
        call("scatter_", x, 0, i, source)
        call("scatter_add_", x, 0, i, source)
    x = torch.zeros(3)
    call("scatter_", x, 0, index, value=2)
    call("scatter_", x, 0, index, src=one)
    call("scatter_", x, 0, index, one, reduce="add")
    call("scatter_", x, 0, index, 3, reduce="multiply")
    call("scatter_", x, 0, index, one, reduce="no")
    call("scatter_", x, 0, index, 1.5, path="index_elements")
    call("scatter_", torch.zeros(3, dtype=torch.int64), 0, index, 1.5)
    call("scatter_", torch.zeros(3, dtype=torch.uint8), 0, index, 300)


# ---- put --------------------------------------------------------------------------------------------------


@by_dtype
def test_put(dtype: torch.dtype) -> None:
    for shape, n in (((40,), 7), ((4, 5), 60), ((), 3), ((2, 3, 4), 1)):
        size = math.prod(shape)
        for layout in ("contiguous", "offset", "transposed", "step"):
            x = make(shape, dtype, layout)
            index, source = index_of(n, size, 1, low=-size), make([n], dtype, "step", 5, 0)
            taken = is_native() and x.is_contiguous()
            call("put_", x, index, source, path="index_elements" if taken else None)
            if x.is_contiguous():
                want = put_added(x, index % size, source)
                call("put_", x, index, source, True, want=want)
    x = make((4, 5), dtype)
    for index_shape, source_shape in [((2, 3), (3, 2)), ((6,), (2, 3)), ((2, 3), (2, 3)), ((6,), (5,))]:
        index = index_of(6, 20, 2).view(index_shape)
        source = make(source_shape, dtype, seed=3)
        call("put_", x, index, source)
        call("put_", x, index.t() if index.dim() == 2 else index, source)
        call("put_", x, index, source.t() if source.dim() == 2 else source)


def test_put_of_odd_arguments() -> None:
    index, one = torch.tensor([0]), torch.ones(1)
    for x, i, source in [
        (torch.zeros(0), index, one),
        (torch.zeros(0), index[:0], one[:0]),
        (torch.zeros(3), index[:0], one[:0]),
        (torch.zeros(3), index.int(), one),
        (torch.zeros(3), index, one.double()),
        (torch.zeros(3), index, torch.ones(2)),
    ]:
        call("put_", x, i, source)
    call("put_", torch.zeros(3), index, one, accumulate=1)


# ---- masks ------------------------------------------------------------------------------------------------

DENSITIES = [0.0, 0.01, 0.1, 0.5, 0.9, 1.0]


def mask_of(shape: tuple[int, ...], density: float, seed: int, layout: str = "contiguous") -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return make(shape, torch.bool, layout, data=torch.rand(math.prod(shape), generator=g) < density)


@by_dtype
@pytest.mark.parametrize("density", DENSITIES)
def test_masks(dtype: torch.dtype, density: float) -> None:
    for seed, n in enumerate([1, 15, 63, 64, 65, 200, 1000]):
        x, mask = make((n,), dtype, "offset", seed), mask_of((n,), density, seed, "offset")
        number = make_data(1, dtype, seed)[0].item()
        call("setitem_", x, mask, number, path=("mask_blocks", "program"))
        ie.setitem_(y := clone_strided(x), mask, number)
        assert matches(y, torch.where(mask, torch.tensor(number, dtype=dtype), x)).all()
        source = make((n + 3,), dtype, seed=seed + 1)
        call("masked_scatter_", x, mask, source, path="mask_blocks")
        call("setitem_", x, mask, source[: int(mask.sum())], path="mask_blocks")
        call("setitem_", x, mask, source[:1])
        call("index_put_", x, (mask,), source[: int(mask.sum())])
        # A byte of a bool is true whatever it holds, if it is not 0.
        odd = (mask.to(torch.uint8) * 6).view(torch.bool)
        y, want = clone_strided(x), torch.where(mask, torch.tensor(number, dtype=dtype), x)
        assert matches(ie.setitem_(y, odd, number), want).all()
        assert matches(ie.masked_fill_(clone_strided(x), odd, number), want).all()
        assert matches(ie.masked_fill_(clone_strided(x), mask, number), want).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask_layout", ["contiguous", "transposed", "step"])
def test_masks_of_any_layout(layout: str, mask_layout: str) -> None:
    for seed, shape in enumerate([(5, 7), (3, 80), (2, 3, 33), (130,), (4, 3, 2, 5)]):
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            x, mask = make(shape, dtype, layout, seed), mask_of(shape, 0.4, seed, mask_layout)
            source = make((int(mask.sum()),), dtype, "step", seed + 1)
            call("masked_scatter_", x, mask, source)
            call("setitem_", x, mask, source)
            call("setitem_", x, mask, True)
            for d in range(1, len(shape)):  # over the leading dims, and the trailing ones
                leading, trailing = (
                    mask_of(shape[:d], 0.5, seed, mask_layout),
                    mask_of(shape[d:], 0.5, seed, mask_layout),
                )
                call("masked_scatter_", x, trailing, x.clone())
                call("setitem_", x, leading, True)
                call("setitem_", x, (..., trailing), True)
                count, rest = int(leading.sum()), shape[d:]
                for value in (
                    (count, *rest),
                    rest,
                    (1, *rest),
                    (count, *([1] * len(rest))),
                    (1,),
                    (1, 1, count, *rest),
                ):
                    call("setitem_", x, leading, make(value, dtype, "contiguous", 4))
                    call("setitem_", x, leading, make(value, dtype, "transposed", 4))
                call(
                    "setitem_",
                    x,
                    (..., trailing),
                    make((*shape[:d], int(trailing.sum())), dtype, "contiguous", 4),
                )


def test_paths_of_masks() -> None:
    x, mask = torch.zeros(40, 50), torch.arange(40) % 3 == 0
    call("setitem_", x, mask, 1.0, path="mask_rows")
    call("setitem_", x, mask, torch.rand(14, 50), path="mask_rows")
    call("setitem_", x, mask, torch.rand(50), path="mask_rows")
    call("setitem_", x, mask, torch.rand(14, 1), path="mask_rows")
    # These become indices, for which a device would have to be waited for.
    call("setitem_", x, mask, torch.rand(50, 14).t(), path=("index_rows", "torch"))
    columns = torch.arange(50) % 2 == 0
    call("setitem_", x, (slice(None), columns), torch.rand(40, 25), path=("index_elements", "torch"))
    call("setitem_", x.t(), torch.rand(50, 40) > 0.5, 1.0)
    call("masked_scatter_", x[:, ::2], x[:, ::2] == 0, torch.rand(1000), path="mask_elements")
    call("masked_scatter_", x, mask[:, None], torch.rand(1000), path="mask_blocks")
    # The same for a whole chain of dims as for one.
    y = torch.zeros(4, 10, 50)
    call("setitem_", y, mask.view(4, 10), 1.0, path="mask_rows")


def test_masked_scatter_of_odd_arguments() -> None:
    x, mask = torch.zeros(3), torch.tensor([True, False, True])
    for source in (
        torch.ones(1),
        torch.ones(2),
        torch.ones(0),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, 2).t(),
    ):
        call("masked_scatter_", x, mask, source)
    call("masked_scatter_", x, mask.to(torch.uint8), torch.ones(2))
    call("masked_scatter_", x, mask.expand(2, 3), torch.ones(6))
    call("masked_scatter_", torch.zeros(()), torch.tensor(True), torch.ones(2))
    call("masked_scatter_", torch.zeros(2, 3), mask, torch.arange(9.0))
    call("masked_scatter_", torch.zeros(0), mask[:0], torch.ones(0))
    call("masked_scatter_", torch.zeros(2, 3), mask, torch.arange(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_masks_of_large_tensors_on_threads(dtype: torch.dtype, density: float) -> None:
    mask = mask_of((400, 1000), density, 1)
    source = make((400_000,), dtype, seed=2)
    rows, lines = mask[:, 0].contiguous(), make((400, 1000), dtype, seed=3)
    for count in (1, 2, 3):
        with threads(count):
            x = make((400, 1000), dtype)
            call("masked_scatter_", x, mask, source, path="mask_blocks")
            call("setitem_", x, mask, 1, path=("mask_blocks", "program"))
            call("setitem_", x, rows, lines[: int(rows.sum())], path="mask_rows")
            call("masked_scatter_", x.t(), mask.t(), source, path="mask_elements")


# ---- x[index] = value -------------------------------------------------------------------------------------

L = torch.tensor
MASK = L([True, False, True, False, True])
INDICES: list[Any] = [
    *(
        0,
        -1,
        4,
        5,
        -6,
        slice(None),
        slice(1, 3),
        slice(None, None, 2),
        slice(-2, None),
        slice(3, 1),
        slice(0, 99),
    ),
    *(
        slice(None, None, -1),
        slice(None, None, 0),
        ...,
        None,
        True,
        False,
        (),
        [],
        [0, 2],
        MASK.tolist(),
        [0, 7],
    ),
    *([0.5], ["a"], [0, True], (0, 1), (0, 9), (0, 1, 2), (0, ...), (..., 0), (..., 1, 0), (None, 0)),
    *(
        (0, None, ...),
        (..., None),
        (slice(1, 3), 1),
        (slice(1, 3), slice(None, None, 3)),
        (..., ...),
        (0, True),
    ),
    *((False, 0), L(1), L(-1), L(9), L([0, 2]), L([0, -5]), L([5]), L([-6]), L([0, 2], dtype=torch.int32)),
    *(
        L([0], dtype=torch.int16),
        L([0.0]),
        L([1, 0, 1, 0, 1], dtype=torch.uint8),
        MASK,
        L([True, False]),
        L(True),
    ),
    *(L([[0, 1], [2, 3]]), L([], dtype=torch.int64), (L([0, 2]), 1), (L([0, 2]), L([1, 3]))),
    *(
        (L([0, 2]), L([[1], [3]])),
        (L([0, 2]), L([1, 2, 3])),
        (slice(1, 4), L([1, 3])),
        (L([1, 3]), slice(1, 4)),
    ),
    *((1, L([1, 3])), (L([1, 3]), None), (L([0, 2]), None, L([1, 3])), (None, L([0, 2]), L([1, 3]))),
    *(([0, 2], [1, 3]), (MASK, L([0, 1])), (MASK, L([0, 1, 2])), (slice(None), L([True] * 3 + [False] * 4))),
    *(
        (MASK, slice(2, 5)),
        (slice(None), L([7])),
        (slice(1, 3), L([6, -7])),
        torch.ones(5, 7, dtype=torch.bool),
    ),
    *(torch.ones(5, 6, dtype=torch.bool), torch.ones(5, 7, 1, dtype=torch.bool), (L([0]), L([0]), L([0]))),
    *([L([0]), L([1])], [[0, 1], [1, 2]], [slice(0, 2)], "a", 1.5, (L([0, 2]), L(1)), (L(1), slice(None))),
    *([-1, -2], range(2), (0, L([7]))),
]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: str(index).replace("\n", ""))
def test_setitem(index: Any) -> None:
    for dtype in (torch.float32, torch.uint8):
        for layout in ("contiguous", "transposed", "rows"):
            x = make((5, 7), dtype, layout)
            call("setitem_", x, index, 3)
            call("setitem_", x, index, True)
            call("setitem_", x, index, torch.tensor(3, dtype=dtype))
            call("setitem_", x, index, torch.tensor(3, dtype=torch.int64))
            try:
                selected = x[index].shape
            except (IndexError, TypeError, ValueError):
                continue
            for shape in (selected, (1, 1, *selected), selected[1:], (1,) * len(selected), (2, *selected)):
                call("setitem_", x, index, make(shape, dtype, "contiguous", 3))
                call("setitem_", x, index, make(shape, torch.float64, "contiguous", 3))
            call("setitem_", x, index, make(selected, dtype, "transposed", 3))


def test_dims_of_indices_that_are_apart_come_first() -> None:
    i, j = torch.tensor([0, 2, 1]), torch.tensor([[1], [3]])
    for index in (
        (slice(None), i, slice(None), j),
        (None, i, slice(1, 3), slice(None), j),
        (slice(1, None), i, j),
        (..., i, slice(None), j),
    ):
        x = make((3, 4, 5, 6), torch.float32)
        # By the kernel: what it takes for a value that does not broadcast goes to torch.
        path = "index_rows" if index[-2] is i else "index_elements"
        call("setitem_", x, index, make(tuple(x[index].shape), torch.float32, "contiguous", 3), path=path)


def test_setitem_of_odd_values_and_shapes() -> None:
    mask, index = torch.tensor([True, False, True]), torch.tensor([1])
    for item in (0, slice(1, None), mask, index, ...):
        for value in (
            1.5,
            300,
            -1,
            True,
            10**30,
            1j,
            None,
            "a",
            [1, 2, 3],
            torch.ones(3),
            torch.tensor(1.5),
            float("nan"),
        ):
            for dtype in (torch.float32, torch.float16, torch.uint8, torch.int64, torch.bool):
                call("setitem_", torch.zeros(3, dtype=dtype), item, value)
    for item in (..., (), torch.tensor(True), None, True, 0):
        call("setitem_", torch.zeros(()), item, 7)
    for item in (0, torch.tensor([7]), mask, slice(None)):
        call("setitem_", torch.zeros(3, 0), item, 7)
        call("setitem_", torch.zeros(0, 3), item, 7)


def test_paths_of_setitem() -> None:
    x = torch.zeros(6, 50)
    index = torch.tensor([1, 4])
    call("setitem_", x, slice(1, 3), 2.0, path="move")
    call("setitem_", x, (slice(None), 3), 2.0, path="move")
    call("setitem_", x, 2, torch.ones(50), path="move")
    call("setitem_", x, index, 2.0, path="index_rows")
    call("setitem_", x, [1, -2], 2.0, path="index_rows")
    call("setitem_", x, index, torch.ones(2, 50), path="index_rows")
    call("setitem_", x, index, torch.ones(50), path="index_rows")
    call("setitem_", x, index, torch.ones(2, 1), path="index_rows")
    call("setitem_", x, (index, index), torch.ones(2), path="index_elements")
    call("setitem_", x, (slice(None), index), torch.ones(2), path="index_elements")
    call("setitem_", x, (slice(1, 5), torch.tensor([[3, 4]])), torch.rand(4, 1, 2), path="index_elements")
    call("index_put_", x, (index, index), torch.ones(()), path="index_elements")
    call("index_put_", x, [index], torch.ones(()), path="index_rows")


@by_dtype
def test_index_put(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    for layout in ("contiguous", "transposed", "step"):
        for shape, count in (((5, 6), 2), ((5, 6), 1), ((4, 3, 5), 2), ((3, 4, 2, 3), 3)):
            x = make(shape, dtype, layout)
            indices = tuple(torch.randint(-n, n, (2, 9), generator=g) for n in shape[:count])
            values = make((2, 9, *shape[count:]), dtype, "contiguous", 4, specials=0)
            call("index_put_", x, indices, values)
            call("index_put_", x, indices, values[:1])
            call("index_put_", x, tuple(i.int() for i in indices), values)
            call("index_put_", x, list(indices), values[0, 0])
            begin, want = clone_strided(x), clone_strided(x)
            for place in itertools.product(range(2), range(9)):
                want[tuple(i[place] for i in indices)] += values[place]
            call("index_put_", x, indices, values, True, want=want)
            call("index_put_", clone_strided(begin), indices, values, accumulate=True, want=want)


def test_index_put_of_odd_arguments() -> None:
    x, one, index = torch.zeros(3, 2), torch.tensor(5.0), torch.tensor([1])
    mask = torch.tensor([True, False, True])
    for indices in [
        (None, index), [index], (), (index, index, index), (mask,), (mask, index), (mask[:2],),
        (mask.to(torch.uint8),), (torch.tensor(1),), (torch.tensor(1), torch.tensor(0)),
        index, (index.short(),), (torch.tensor([], dtype=torch.int64),),
    ]:  # fmt: skip
        for values in (
            one,
            torch.ones(1),
            torch.ones(2),
            torch.ones(1, 1, 2),
            torch.ones(()).double(),
            5.0,
            torch.ones(3),
        ):
            call("index_put_", x, indices, values)
            call("index_put_", x, indices, values, True)
    call("index_put_", x, (torch.tensor([4]),), one)


@st.composite
def assignments(draw: st.DrawFn) -> tuple[torch.Tensor, Any, Any]:
    """A tensor, anything that may index it, and a value that broadcasts to what is selected."""
    shape = draw(shapes.filter(lambda s: math.prod(s) <= 600))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int64, torch.bool]))
    x = draw(strided(shape, dtype))
    items: list[Any] = []
    points = draw(st.sampled_from([(1,), (3,), (2, 2), (20,)]))
    left = list(shape)
    while left:
        size = left[0]
        kind = draw(
            st.sampled_from(["int", "slice", "slice", "index", "index", "mask", "none", "list", "stop"])
        )
        g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        if kind == "none":
            items.append(None)
            continue
        if kind == "stop":
            if draw(st.booleans()):
                items.append(...)
            break
        left.pop(0)
        if kind == "slice" or size == 0:
            items.append(
                slice(
                    *(draw(st.none() | st.integers(-size - 1, size + 1)) for _ in range(2)),
                    draw(st.integers(1, 3)),
                )
            )
        elif kind == "int":
            items.append(draw(st.integers(-size, size - 1)))
        elif kind == "list":
            items.append([draw(st.integers(-size, size - 1)) for _ in range(points[-1])])
        elif kind == "mask":
            items.append(torch.rand(size, generator=g) < 0.5)
        else:
            own = points[draw(st.integers(0, len(points) - 1)) :]
            items.append(
                torch.randint(-size, size, own, generator=g).to(
                    draw(st.sampled_from([torch.int64, torch.int32]))
                )
            )
    index = items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)
    try:
        selected = list(x[index].shape)
    except (IndexError, TypeError):
        selected = []
    if draw(st.integers(0, 3)) == 0:
        return x, index, draw(st.sampled_from([0, 1, True]))
    kept = [1 if draw(st.integers(0, 4)) == 0 else n for n in selected[draw(st.integers(0, len(selected))) :]]
    return x, index, draw(strided(kept, dtype, writable=False))


@common
@given(assignments())
def test_assignments(assignment: tuple[torch.Tensor, Any, Any]) -> None:
    call("setitem_", *assignment)


@st.composite
def along(draw: st.DrawFn) -> tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]:
    shape = draw(shapes.filter(lambda s: len(s) > 0 and 0 < math.prod(s) <= 600))
    dtype = draw(st.sampled_from(DTYPES))
    x = draw(strided(shape, dtype))
    dim = draw(st.integers(0, len(shape) - 1))
    n = draw(st.sampled_from([1, 2, 5, 40]))
    source = draw(strided([n if d == dim else size for d, size in enumerate(shape)], dtype, writable=False))
    index = index_of(n, shape[dim], draw(st.integers(0, 99)))
    return x, dim, index, source


@common
@given(along())
def test_random_shapes_along_a_dim(case: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]) -> None:
    x, dim, index, source = case
    call("index_copy_", x, dim, index, source)
    call("index_fill_", x, dim, index - x.size(dim), 1)
    call("index_add_", x, dim, index, source, want=added(x, dim, index, source))


@st.composite
def scatters(draw: st.DrawFn) -> tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]:
    shape = draw(shapes.filter(lambda s: len(s) > 0 and 0 < math.prod(s) <= 300))
    dtype = draw(st.sampled_from(DTYPES))
    x = draw(strided(shape, dtype))
    dim = draw(st.integers(0, len(shape) - 1))
    sizes = [draw(st.integers(1, 6)) if d == dim else draw(st.integers(1, n)) for d, n in enumerate(shape)]
    source = draw(strided([n + draw(st.integers(0, 1)) for n in sizes], dtype, writable=False))
    index = draw(strided(sizes, torch.int64))
    index.copy_(index_of(math.prod(sizes), shape[dim], draw(st.integers(0, 99))).view(sizes))
    return x, dim, index, source


@common
@given(scatters())
def test_random_scatters(case: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]) -> None:
    x, dim, index, source = case
    call("scatter_", x, dim, index, source)
    call("scatter_", x, dim, index, 1)
    call("scatter_add_", x, dim, index, source, want=scatter_added(x, dim, index, source))


# ---- duplicates and threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.bool], ids=dtype_name)
@pytest.mark.parametrize(
    "shape, dim",
    [((50, 2000), 0), ((50, 40), 0), ((2000, 50), 1), ((60_000,), 0), ((30, 40, 50), 1), ((7, 3, 5), 1)],
)
def test_duplicates_do_not_depend_on_threads(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    size = shape[dim]
    n = max(200_000 * size // math.prod(shape), 2 * size)
    index = index_of(n, size, 1)
    some = [n if d == dim else s for d, s in enumerate(shape)]
    source, x = make(some, dtype, seed=2, specials=0), make(shape, dtype, specials=0)
    wide = make(some, torch.int64, data=index_of(math.prod(some), size, 2))
    last = {int(at): i for i, at in enumerate(index.tolist())}
    want_copy = clone_strided(x)
    for at, i in last.items():
        want_copy.select(dim, at).copy_(source.select(dim, i))
    results: dict[str, list[torch.Tensor]] = {}
    for where, count in itertools.product(CAPABILITIES, (1, 2, 3)):
        with backend(where), threads(count):
            for name, result in {
                "copy": ie.index_copy_(clone_strided(x), dim, index, source),
                "add": ie.index_add_(clone_strided(x), dim, index, source),
                "fill": ie.index_fill_(clone_strided(x), dim, index[: n // 2], 1),
                "scatter": ie.scatter_(clone_strided(x), dim, wide, source),
                "scatter_add": ie.scatter_add_(clone_strided(x), dim, wide, source),
                "put": ie.put_(clone_strided(x), wide, source),
                "accumulate": ie.put_(clone_strided(x), wide, source, True),
                "pairs": ie.index_put_(clone_strided(x), (index,) * x.dim(), source.reshape(-1)[:n], True)
                if len(set(shape)) == 1
                else x,
                "assigned": ie.setitem_(clone_strided(x), (slice(None),) * dim + (index,), source),
            }.items():
                assert testing.last_path().startswith(where)
                results.setdefault(name, []).append(result)
    for name, found in results.items():
        for result in found[1:]:
            assert same_bits(result, found[0]), (name, shape, dim, dtype)
    if not results:
        return
    assert same_bits(results["copy"][0], want_copy) and same_bits(results["assigned"][0], want_copy)
    assert same_bits(results["scatter"][0], torch.Tensor.scatter_(clone_strided(x), dim, wide, source))
    assert same_bits(results["fill"][0], torch.Tensor.index_fill_(clone_strided(x), dim, index[: n // 2], 1))
    assert same_bits(results["put"][0], torch.Tensor.put_(clone_strided(x), wide, source))
    if dtype in (torch.int32, torch.bool):  # sums that have no order
        assert same_bits(results["add"][0], torch.Tensor.index_add_(clone_strided(x), dim, index, source))
        assert same_bits(
            results["scatter_add"][0], torch.Tensor.scatter_add_(clone_strided(x), dim, wide, source)
        )


def test_sums_are_taken_in_the_order_of_the_index() -> None:
    # 2^24 + 1 is not a float: what is added after it is lost one by one, and before it counts.
    values = [1.0] * 9 + [2.0**24] + [1.0] * 9
    for shape in ((3,), (3, 40), (3, 2)):
        x, index = torch.zeros(shape), torch.ones(len(values), dtype=torch.int64)
        source = (
            torch.tensor(values)
            .view(-1, *[1] * (len(shape) - 1))
            .expand(len(values), *shape[1:])
            .contiguous()
        )
        want = torch.tensor(0.0)
        for value in values:
            want = want + value
        for count, where in itertools.product((1, 2), CAPABILITIES):
            with threads(count), backend(where):
                assert (ie.index_add_(x.clone(), 0, index, source)[1] == want).all()
                assert (ie.index_put_(x.clone(), (index,), source, True)[1] == want).all()
                wide = index.view(-1, *[1] * (len(shape) - 1)).expand_as(source)
                assert (ie.scatter_add_(x.clone(), 0, wide, source)[1] == want).all()


# ---- errors -----------------------------------------------------------------------------------------------


def out_of_range(name: str, x: torch.Tensor, bad: int) -> tuple[Any, ...]:
    """A call with one index out of range, the last of many."""
    index = torch.zeros(300, dtype=torch.int64)
    index[-1] = bad
    source = torch.ones(300, *x.shape[1:], dtype=x.dtype)
    return {
        "index_fill_": (0, index, 1),
        "index_copy_": (0, index, source),
        "index_add_": (0, index, source),
        "index_put_": ((index,), source),
        "scatter_": (0, index.view(-1, *[1] * (x.dim() - 1)).expand_as(source), source),
        "scatter_add_": (0, index.view(-1, *[1] * (x.dim() - 1)).expand_as(source), source),
        "put_": (index, torch.ones(300, dtype=x.dtype)),
        "setitem_": (index, source),
    }[name]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "masked_scatter_"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.complex64], ids=dtype_name)
def test_indices_out_of_range_leave_the_tensor_as_it_is(
    name: str, dtype: torch.dtype, any_backend: str
) -> None:
    for shape, count in itertools.product(((9,), (9, 30)), (1, 2)):
        size = math.prod(shape) if name == "put_" else shape[0]
        for bad in (size, -size - 1, 2**40, -(2**63)):
            x = make(shape, dtype)
            args = out_of_range(name, x, bad)
            before, version = storage_bytes(x).clone(), x._version
            with threads(count), pytest.raises((RANGE_ERROR[name], RuntimeError)) as error:
                getattr(ie, name)(x, *args)
            message = str(error.value)
            if not asserted(any_backend, error.value):
                assert type(error.value) is RANGE_ERROR[name]
                assert message.startswith(f"{name}: ") and str(bad) in message and str(size) in message, (
                    message
                )
            assert torch.equal(storage_bytes(x), before) and x._version == version
        if name not in ("index_fill_", "put_", "index_put_", "setitem_"):
            with pytest.raises((RANGE_ERROR[name], RuntimeError)) as error:
                getattr(ie, name)(make(shape, dtype), *out_of_range(name, make(shape, dtype), -1))
            assert type(error.value) is RANGE_ERROR[name] or asserted(any_backend, error.value)


def test_narrow_indices_out_of_range() -> None:
    for bad in (3, -4, 2**31 - 1, -(2**31)):
        index = torch.tensor([0, bad], dtype=torch.int32)
        call("index_put_", torch.zeros(3), (index,), torch.ones(2))
        call("scatter_", torch.zeros(3), 0, index, torch.ones(2))
        call("setitem_", torch.zeros(3, 4), (slice(None), index), 1.0)


def test_masks_with_too_few_elements_leave_the_tensor_as_it_is(any_backend: str) -> None:
    for dtype in (torch.float32, torch.complex64):
        x, mask = make((500,), dtype), torch.ones(500, dtype=torch.bool)
        before = storage_bytes(x).clone()
        with pytest.raises(RuntimeError, match=r"500.*499|device-side assertion.* more elements than source"):
            ie.masked_scatter_(x, mask, torch.ones(499, dtype=dtype))
        assert torch.equal(storage_bytes(x), before)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_explained(name: str) -> None:
    for function in (getattr(ie, name), _ops._fallback(INDEXED[name])):
        for args in ((), (torch.ones(3),), (3, 0, 0, 0), (torch.ones(3), "a", "b", "c")):
            with pytest.raises((TypeError, IndexError, ValueError)) as error:
                function(*args)
            assert str(error.value).startswith(f"{name}: "), error.value


# ---- overlap ----------------------------------------------------------------------------------------------


def test_operands_that_share_memory() -> None:
    """Right, or an error and nothing written: as if the operand had been copied before."""
    for step, name in itertools.product((1, 2), NAMES):
        for begin, end in ((0, 6), (1, 7), (3, 9)):
            for reversed_index in (False, True):
                base = torch.arange(24.0)
                x, source = base[0 : 6 * step : step], base[begin:end]
                index = torch.arange(6).flip(0) if reversed_index else torch.arange(6)
                args: dict[str, tuple[Any, ...]] = {
                    "index_fill_": (0, index, 1),
                    "index_copy_": (0, index, source),
                    "index_add_": (0, index, source),
                    "index_put_": ((index,), source),
                    "scatter_": (0, index, source),
                    "scatter_add_": (0, index, source),
                    "put_": (index, source),
                    "setitem_": (index, source),
                    "masked_scatter_": (index % 2 == 0, source),
                }
                want = x.clone()
                torch_method(INDEXED[name])(want, *copied(*args[name]))
                for where in [*CAPABILITIES, "torch"]:
                    base.copy_(torch.arange(24.0))
                    with backend(where):
                        try:
                            getattr(ie, name)(x, *args[name])
                        except RuntimeError as error:
                            assert "single memory location" in str(error), error
                            assert torch.equal(base, torch.arange(24.0))
                        else:
                            assert torch.equal(x, want), (name, step, begin, reversed_index, where)


def test_indices_and_masks_that_share_memory() -> None:
    for where in [*CAPABILITIES, "torch"]:
        with backend(where):
            for name in NAMES:
                base = torch.arange(12)
                x, index = base[:6], base[::2]
                ones = torch.ones(6, dtype=torch.int64)
                args: dict[str, tuple[Any, ...]] = {
                    "index_fill_": (0, base[0:3], 7),
                    "index_copy_": (0, base[0:3], ones[:3]),
                    "index_add_": (0, base[0:6:2], ones[:3]),
                    "index_put_": ((index[:3],), ones[:3]),
                    "scatter_": (0, index[:3], ones[:3]),
                    "scatter_add_": (0, index[:3], ones[:3]),
                    "put_": (index[:3], ones[:3]),
                    "setitem_": (index[:3], 9),
                    "masked_scatter_": (base.view(torch.bool)[40:46], ones),
                }
                want = x.clone()
                torch_method(INDEXED[name])(want, *copied(*args[name]))
                try:
                    getattr(ie, name)(x, *args[name])
                except RuntimeError as error:
                    assert "single memory location" in str(error), error
                    assert torch.equal(base, torch.arange(12))
                else:
                    assert torch.equal(x, want), (name, where)
            # A bool tensor that is its own mask.
            x = torch.rand(300) < 0.5
            assert not ie.setitem_(x, x, False).any()


def test_shared_operands_that_are_too_large() -> None:
    if not CAPABILITIES:
        pytest.skip("no compiled module")
    base = torch.zeros(1 << 20)
    x, source = base[::2], base[: 1 << 19]
    with pytest.raises(RuntimeError, match=r"clone\(\)"):
        ie.index_copy_(x, 0, torch.arange(1 << 19), source)


def test_assignment_between_parts_of_one_tensor() -> None:
    for where in [*CAPABILITIES, "torch"]:
        with backend(where):
            x = torch.arange(10.0)
            ie.setitem_(x, slice(0, 4), x[6:])
            assert x.tolist() == [6, 7, 8, 9, 4, 5, 6, 7, 8, 9]
            ie.setitem_(x, slice(None), x)
            ie.setitem_(x, slice(None, None, 2), x[1::2])
            assert x.tolist() == [7, 7, 9, 9, 5, 5, 7, 7, 9, 9]
            with pytest.raises(RuntimeError, match="single memory location"):
                ie.setitem_(x, slice(1, None), x[:-1])


# ---- delegation -------------------------------------------------------------------------------------------


def sample(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    index = torch.tensor([2, 0])
    source = torch.arange(8).view(2, 4).to(dtype)
    return {
        "index_fill_": (0, index, 3),
        "index_copy_": (0, index, source),
        "index_add_": (0, index, source),
        "index_put_": ((index,), source),
        "masked_scatter_": (torch.eye(3, 4, dtype=torch.bool), source),
        "scatter_": (0, index.view(2, 1).expand(2, 4), source),
        "scatter_add_": (0, index.view(2, 1).expand(2, 4), source),
        "put_": (index, source[0, :2]),
        "setitem_": (index, source),
    }[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", COMPLEX, ids=dtype_name)
def test_complex_tensors_go_to_torch(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    want = torch_method(INDEXED[name])(x.clone(), *sample(name, dtype))
    assert ie.__dict__[name](x, *sample(name, dtype)) is x and testing.last_path() == "torch"
    assert torch.equal(x, want)


@pytest.mark.parametrize("name", NAMES)
def test_autograd(name: str) -> None:
    def run(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaf = torch.arange(12.0).view(3, 4).requires_grad_()
        args = [
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in sample(name)
        ]
        x = leaf * 2
        function(x, *args)
        (x * torch.arange(12.0).view(3, 4)).sum().backward()
        return [leaf.grad, *(a.grad for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())]

    for ours, theirs in zip(run(getattr(ie, name)), run(torch_method(INDEXED[name])), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="leaf"):
        getattr(ie, name)(torch.zeros(3, 4, requires_grad=True), *sample(name))
    with torch.inference_mode():
        x = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match="inference"):
        getattr(ie, name)(x, *sample(name))
    # A saved tensor that is changed is noticed.
    leaf = torch.ones(3, 4, requires_grad=True)
    saved = torch.ones(3, 4)
    product = leaf * saved
    getattr(ie, name)(saved, *sample(name))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.no_grad():
        getattr(ie, name)(leaf, *sample(name))


@pytest.mark.parametrize("name", NAMES)
def test_expanded_tensors(name: str) -> None:
    x = torch.zeros(1, 4).expand(3, 4)
    call(name, x, *sample(name))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("put_", "masked_scatter_")])
def test_vmap(name: str) -> None:
    x = torch.zeros(5, 3, 4)
    args = sample(name)
    want = torch.vmap(lambda t: torch_method(INDEXED[name])(t, *args))(x.clone())
    assert torch.equal(torch.vmap(lambda t: getattr(ie, name)(t, *args))(x.clone()), want)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_subclasses_and_modes(name: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    x = torch.zeros(3, 4).as_subclass(Subclass)
    want = torch_method(INDEXED[name])(torch.zeros(3, 4), *sample(name))
    assert getattr(ie, name)(x, *sample(name)) is x and testing.last_path() == "torch"
    assert torch.equal(x.as_subclass(torch.Tensor), want)
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        getattr(ie, name)(torch.zeros(3, 4), *sample(name))
    assert seen and testing.last_path() == "torch"


@pytest.mark.parametrize("name", NAMES)
def test_many_dims(name: str) -> None:
    x = torch.zeros([1] * 10 + [2] * 8)
    index = torch.tensor([1])
    sources = {
        "index_fill_": (17, index, 3),
        "index_copy_": (17, index, torch.ones([1] * 10 + [2] * 7 + [1])),
        "index_add_": (17, index, torch.ones([1] * 10 + [2] * 7 + [1])),
        "index_put_": ((torch.tensor([0]),), torch.ones(())),
        "masked_scatter_": (torch.rand(x.shape) < 0.5, torch.ones(x.shape)),
        "scatter_": (17, torch.ones(x.shape, dtype=torch.int64), 1),
        "scatter_add_": (17, torch.ones(x.shape, dtype=torch.int64), torch.ones(x.shape)),
        "put_": (index, torch.ones(1)),
        "setitem_": ((..., index), 1),
    }
    call(name, x, *sources[name])
    call(name, x.permute(*range(17, -1, -1)).contiguous().permute(*range(17, -1, -1)), *sources[name])


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    args = sample(name)
    want = torch_method(INDEXED[name])(torch.zeros(3, 4), *args)
    for function in (getattr(ie, name), _ops._fallback(INDEXED[name])):
        x = torch.zeros(3, 4)
        compiled = torch.compile(lambda t, f=function: f(t, *args), backend="aot_eager", fullgraph=True)
        assert compiled(x) is x and torch.equal(x, want)


@pytest.mark.parametrize("name", NAMES)
def test_fallback(name: str) -> None:
    want = torch_method(INDEXED[name])(torch.zeros(3, 4), *sample(name))
    x = torch.zeros(3, 4)
    assert _ops._fallback(INDEXED[name])(x, *sample(name)) is x and torch.equal(x, want)


@pytest.mark.parametrize("name", NAMES)
def test_keywords(name: str) -> None:
    args = sample(name)
    x = torch.zeros(3, 4)
    want = torch_method(INDEXED[name])(x.clone(), *args)
    names = INDEXED[name].positional_names
    for count in range(len(args)):
        keywords = dict(zip(names[count + 1 :], args[count:], strict=False))
        if name == "index_put_" and not is_native():
            continue
        assert torch.equal(getattr(ie, name)(x.clone(), *args[:count], **keywords), want)


# ---- OpInfo -----------------------------------------------------------------------------------------------

OPINFOS = [(f"{info.name}_", info) for info in op_db if f"{info.name}_" in NAMES]


def test_opinfo_covers_the_operations() -> None:
    assert {name for name, _ in OPINFOS} == set(NAMES) - {"setitem_"}


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "step"])
@pytest.mark.parametrize("name, info", OPINFOS, ids=[name for name, _ in OPINFOS])
def test_opinfo(name: str, info: Any, layout: str) -> None:
    ran = 0
    for dtype in sorted(info.supported_dtypes("cpu") & set(DTYPES), key=str):
        for seed, case in enumerate(info.sample_inputs("cpu", dtype, requires_grad=False)):
            x = make(case.input.shape, dtype, layout, seed, data=case.input)
            accumulates = (
                name in ("index_add_", "scatter_add_")
                or case.kwargs.get("accumulate")
                or any(a is True for a in case.args)
            )
            if accumulates and dtype in HALVES:
                continue  # torch rounds once, or after each addition
            if name == "index_add_" and case.kwargs.get("alpha", 1) != 1 and dtype in FLOATS:
                want = torch.Tensor.index_add_(x.clone(), *case.args, **case.kwargs)
                torch.testing.assert_close(ie.index_add_(x.clone(), *case.args, **case.kwargs), want)
            else:
                call(name, x, *case.args, **case.kwargs)
            ran += 1
    assert ran >= 10


def test_opinfo_of_reading_serves_for_writing() -> None:
    (info,) = [info for info in op_db if info.name == "__getitem__"]
    r = random.Random(1)
    for dtype in (torch.float32, torch.int64):
        for case in info.sample_inputs("cpu", dtype, requires_grad=False):
            x, (index,) = case.input.detach(), case.args
            value = make(list(x[index].shape), dtype, "contiguous", r.randrange(99))
            call("setitem_", x.clone(), index, value)
            call("setitem_", x.clone(), index, 1)
