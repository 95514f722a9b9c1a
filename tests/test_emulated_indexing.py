"""The kernels for indexing assignment on the emulated device: values, order, errors, and memory moved.

All of test_indexing.py runs there with `make emulate`; these are those of its tests that reach every path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import helpers
import pytest
import test_indexing
import torch
from emulated import SANITIZER, SECTOR, counted, device, launches, note, seen
from helpers import FLOATS, LAYOUTS, dtype_name, make, same_bits
from hypothesis import given, settings
from test_indexing import INDICES, added, assignments, index_of, mask_of

import inplace_ext as ie
from inplace_ext import testing

pytestmark = [
    emulated.needs_device,
    pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded"),
]
#: One of each size, and both kinds of arithmetic.
SOME = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
some_dtypes = pytest.mark.parametrize("dtype", SOME, ids=dtype_name)


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What test_indexing.call() does on all backends it does on the device alone."""
    monkeypatch.setattr(test_indexing, "CAPABILITIES", ["emulated"])
    monkeypatch.setattr(helpers, "CAPABILITIES", ["emulated"])
    monkeypatch.setattr(helpers, "_active", "emulated")
    launches()
    with device():
        yield
    note()


# ---- values -----------------------------------------------------------------------------------------------


@some_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_along_a_dim(dtype: torch.dtype, layout: str) -> None:
    test_indexing.test_along_a_dim(dtype, layout)


@test_indexing.by_dtype
def test_every_dtype(dtype: torch.dtype) -> None:
    test_indexing.test_paths_along_a_dim(dtype)
    test_indexing.test_put(dtype)
    test_indexing.test_masks(dtype, 0.4)
    if dtype != torch.bool:
        test_indexing.test_alpha(dtype)


@some_dtypes
def test_several_indices(dtype: torch.dtype) -> None:
    test_indexing.test_index_put(dtype)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "rows"])
def test_scatter(layout: str) -> None:
    test_indexing.test_scatter(torch.float32, layout)
    test_indexing.test_scatter(torch.int16, layout)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.9, 1.0])
def test_masks(density: float) -> None:
    for dtype in (torch.float32, torch.int8):
        test_indexing.test_masks(dtype, density)


@pytest.mark.parametrize("mask_layout", ["contiguous", "transposed", "step"])
def test_masks_of_any_layout(mask_layout: str) -> None:
    for layout in ("contiguous", "transposed", "offset"):
        test_indexing.test_masks_of_any_layout(layout, mask_layout)


def test_setitem() -> None:
    for index in INDICES[::2]:
        test_indexing.test_setitem(index)
    test_indexing.test_dims_of_indices_that_are_apart_come_first()


@settings(max_examples=60)
@given(assignments())
def test_assignments(assignment: tuple[torch.Tensor, Any, Any]) -> None:
    test_indexing.call("setitem_", *assignment)


def test_paths() -> None:
    test_indexing.test_paths_of_masks()
    test_indexing.test_paths_of_setitem()


def test_what_goes_to_torch() -> None:
    """What would have to be read here."""
    x, index, one = torch.zeros(4, 6), torch.tensor([1, 2]), torch.tensor(1)
    mask = torch.tensor([True, False, True, False])
    for name, args in [
        ("setitem_", (one, 2.0)),
        ("setitem_", ((slice(None), one), torch.ones(4))),
        ("setitem_", ((mask, index), 2.0)),
        ("index_put_", ((mask,), torch.ones(2, 6), True)),
    ]:
        test_indexing.call(name, x, *args, path="torch")
    test_indexing.call("setitem_", x, (slice(1, 3), 2), 3.0, path="move")


def test_scatter_along_dims_of_every_kind() -> None:
    """Dims of x beside the index along which the index moves, or does not, in every order in memory."""
    taken = set()
    for seed, (shape, dim, still) in enumerate(
        [
            ((4, 6), 0, []), ((4, 6), 0, [1]), ((4, 6), 1, [0]), ((3, 4, 5), 1, []), ((3, 4, 5), 1, [2]),
            ((3, 4, 5), 1, [0]), ((3, 4, 5), 0, [2]), ((3, 4, 5), 0, [1]), ((3, 4, 5), 2, [1]),
            ((3, 4, 5), 1, [0, 2]), ((2, 3, 4, 5), 1, [3]), ((2, 3, 4, 5), 3, [0, 2]), ((2, 3, 4, 5), 2, [1]),
        ]
    ):  # fmt: skip
        for order in itertools.permutations(range(len(shape))):
            x = make([shape[d] for d in order], torch.float32, seed=seed).permute(
                [order.index(d) for d in range(len(shape))]
            )
            sizes = [1 if d in still else 2 * n if d == dim else n for d, n in enumerate(shape)]
            full = [2 * n if d == dim else n for d, n in enumerate(shape)]
            index = index_of(math.prod(sizes), shape[dim], seed).view(sizes).expand(full)
            source = make(full, torch.float32, seed=seed + 1)
            test_indexing.call("scatter_", x, dim, index, source)
            want = test_indexing.scatter_added(x, dim, index, source)
            test_indexing.call("scatter_add_", x, dim, index, source, want=want)
            test_indexing.call("scatter_", x, dim, index, 3.0)
            ie.scatter_add_(x.clone(), dim, index, source)
            taken.add(testing.last_path().split(":")[-1])
    assert taken == {"index_rows", "index_elements"}
    x, wide = torch.zeros(4, 6), torch.tensor([[0, 1], [2, 3]])
    rows = torch.tensor([[1], [2]]).expand(2, 6)
    test_indexing.call("scatter_", x, 0, rows, torch.rand(2, 6), path="index_rows")
    test_indexing.call("scatter_add_", x, 0, rows, torch.rand(2, 6), path="index_rows")
    test_indexing.call("scatter_", x, 0, wide, torch.ones(2, 2), path="index_elements")
    test_indexing.call("scatter_add_", x, 1, wide, torch.ones(2, 2), path="index_elements")
    test_indexing.call("scatter_", x, 1, wide, 3.0, path="index_elements")
    # As many indices as a call has: one for each dim, if no two lie as one.
    x = torch.zeros(4, 4, 4, 4, 4)[:3, :3, :3, :3, :3]
    index = torch.randint(3, x.shape)
    test_indexing.call("scatter_", x[0], 0, index[0], torch.rand(3, 3, 3, 3), path="index_elements")
    test_indexing.call("scatter_", x, 0, index, torch.rand(x.shape), path=("index_elements", "torch"))


# ---- rows of any length and place -------------------------------------------------------------------------


def place(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The same, `offset` elements after where a pack begins."""
    return torch.zeros(x.numel() + offset, dtype=x.dtype)[offset:].view(x.shape).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=dtype_name)
def test_the_width_of_accesses_follows_alignment(dtype: torch.dtype) -> None:
    item = dtype.itemsize
    index = torch.tensor([3, 0, 3, 1])
    for row in (16 // item, 48 // item, 3, 24 // item, 40_000 // item, 33_000 // item + 1):
        for offset in (0, 1, 2):
            x = place(make((4, row), dtype, "contiguous", row, 0), offset)
            source = place(make((4, row), dtype, "contiguous", row + 1, 0), 2 * offset)
            bits = row * item | offset * item | 16
            width = bits & -bits
            for name, args in (
                ("index_fill_", (0, index, 1)),
                ("index_copy_", (0, index, source)),
                ("index_add_", (0, index, source)),
            ):
                want = added(x, 0, index, source) if name == "index_add_" else None
                note()
                test_indexing.call(name, x, *args, want=want, path="index_rows")
                if SANITIZER != "thread":
                    (done,) = [run for run in note() if not run.kernel.startswith("check")]
                    most = width if name != "index_add_" or width == 16 else item
                    assert done.widest_write == most, (name, row, offset, done)
            mask = torch.tensor([True, False, True, True])
            test_indexing.call("setitem_", x, mask, source[:3], path="mask_rows")
            test_indexing.call("setitem_", x, mask, source[0], path="mask_rows")
            # Short rows are filled an element at a time, by a program.
            filled = "mask_rows" if row * item >= 64 else "program"
            test_indexing.call("setitem_", x, mask, 1, path=filled)
            if SANITIZER != "thread":
                widths = {done.widest_write for done in note() if done.kernel.startswith("put_mask<")}
                assert widths == {width}, (row, offset, widths)


def test_places_beyond_32_bits() -> None:
    far = (1 << 32) + 48
    base = torch.empty(2 * far + 64, dtype=torch.uint8)  # of which a few pages are touched
    for row in (16, 3):
        x = base.as_strided((3, row), (far, 1))
        x.zero_()
        source = torch.arange(1, 2 * row + 1, dtype=torch.uint8).view(2, row)
        ie.index_copy_(x, 0, torch.tensor([2, 1]), source)
        assert testing.last_path() == "emulated:index_rows"
        assert torch.equal(x, torch.stack((x[0] * 0, source[1], source[0])))
        ie.index_add_(x, 0, torch.tensor([2, 2]), source)
        assert torch.equal(x[2], 2 * source[0] + source[1])
        ie.setitem_(x, torch.tensor([False, True, True]), source)
        assert torch.equal(x, torch.stack((x[0] * 0, *source)))
    # As numbers of places, of which there are as many.
    last = base.numel() - 1
    assert base.is_contiguous() and base.numel() > 1 << 32
    ie.put_(base, torch.tensor([last, 7, -1, 7]), torch.tensor([1, 2, 3, 4], dtype=torch.uint8))
    assert testing.last_path() == "emulated:index_elements"
    assert {"check_indices<long>"} <= {launch.kernel for launch in launches()} or SANITIZER == "thread"
    assert base[last] == 3 and base[7] == 4
    ie.put_(base, torch.tensor([last, last]), torch.tensor([4, 5], dtype=torch.uint8), True)
    assert base[last] == 12


# ---- order ------------------------------------------------------------------------------------------------


def every_call() -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Calls with many duplicates that reach all kernels."""
    index, pairs = index_of(700, 40, 1), (index_of(900, 7, 2), index_of(900, 5, 3))
    for dtype in (torch.float32, torch.float16, torch.uint8):
        for shape, dim in (((40, 24), 0), ((40, 3), 0), ((3, 40), 1), ((40,), 0), ((2, 40, 16), 1)):
            x = make(shape, dtype, "contiguous", 5, 0)
            source = make([700 if d == dim else n for d, n in enumerate(shape)], dtype, "contiguous", 6, 0)
            for name in ("index_copy_", "index_add_"):

                def run(name: str = name, x: Any = x, dim: int = dim, source: Any = source) -> torch.Tensor:
                    return getattr(ie, name)(x.clone(), dim, index, source)  # type: ignore[no-any-return]

                yield f"{name} {shape} {dtype}", run
        x, source = make((7, 5, 9), dtype, "contiguous", 7, 0), make((900, 9), dtype, "contiguous", 8, 0)
        for accumulate in (False, True):
            yield (
                f"index_put_ {accumulate} {dtype}",
                lambda x=x, source=source, a=accumulate: ie.index_put_(x.clone(), pairs, source, a),
            )
        x, mask = make((90, 200), dtype, "contiguous", 1, 0), mask_of((90, 200), 0.3, 2)
        values = make((18_000,), dtype, "contiguous", 3, 0)
        yield f"masked_scatter_ {dtype}", lambda x=x, m=mask, v=values: ie.masked_scatter_(x.clone(), m, v)
        rows = mask[:, 0].contiguous()
        values = x[: int(rows.sum())].clone()
        yield f"setitem_ {dtype}", lambda x=x, m=rows, v=values: ie.setitem_(x.clone(), m, v)


def test_neither_the_grid_nor_the_order_of_threads_counts() -> None:
    want = {}
    with device(processors=132, threads=2048):
        for name, call in every_call():
            want[name] = call()
    with helpers.backend(testing.available_capabilities()[0]):  # the CPU's
        for name, call in every_call():
            assert same_bits(call(), want[name]), name
            assert "emulated" not in testing.last_path() and testing.last_path() != "torch"
    for processors, order in ((1, "backward"), (3, "shuffled")):
        with device(processors=processors, threads=512, order=order):
            for name, call in every_call():
                assert same_bits(call(), want[name]), (name, processors, order)
                assert testing.last_path().startswith("emulated:")


def test_sums_are_taken_in_the_order_of_the_index() -> None:
    test_indexing.test_sums_are_taken_in_the_order_of_the_index()


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in test_indexing.NAMES if name != "masked_scatter_"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=dtype_name)
def test_indices_out_of_range_end_the_work_before_a_write(name: str, dtype: torch.dtype) -> None:
    test_indexing.test_indices_out_of_range_leave_the_tensor_as_it_is(name, dtype, "emulated")
    x = make((9, 30), dtype)
    note()
    with pytest.raises(RuntimeError, match="device-side assertion failed: index out of bounds"):
        getattr(ie, name)(x, *test_indexing.out_of_range(name, x, 1 << 40))
    assert [launch.kernel for launch in note()] == []  # those that came to their end


def test_masks_that_do_not_fit_end_the_work_before_a_write() -> None:
    test_indexing.test_masks_with_too_few_elements_leave_the_tensor_as_it_is("emulated")
    x, mask = torch.zeros(50_000), torch.ones(50_000, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="more elements than source"):
        ie.masked_scatter_(x, mask, torch.ones(49_999))
    mask[7] = False
    for count in (49_998, 50_000):
        with pytest.raises(RuntimeError, match="another number of elements"):
            ie.setitem_(x, mask, torch.ones(count))
    assert not x.any()
    ie.setitem_(x, mask, torch.ones(49_999))
    assert x.sum() == 49_999 and x[7] == 0


# ---- memory moved -----------------------------------------------------------------------------------------


def counted_launches(f: Callable[[], Any]) -> dict[str, emulated.Launch]:
    launches()
    with device(processors=64, threads=2048):
        f()
        assert testing.last_path().startswith("emulated:")
    made = note()
    return {launch.kernel.split("<")[0]: launch for launch in made}


@counted
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=dtype_name)
def test_rows_move_no_more_than_they_must(dtype: torch.dtype) -> None:
    """Each row is read and written once, 16 bytes at a time, and the index is next to nothing."""
    for rows, row in ((4096, 1024), (60, 9984), (4, 160_000)):  # bytes; the last are cut into pieces
        shape = (rows, row // dtype.itemsize)
        x, source = make(shape, dtype, "contiguous", 1, 0), make(shape, dtype, "contiguous", 2, 0)
        index = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
        least = rows * row / SECTOR
        for f, reads in (
            (lambda x=x, index=index: ie.index_fill_(x, 0, index, 1), 0),
            (lambda x=x, index=index, source=source: ie.index_copy_(x, 0, index, source), 1),
            (lambda x=x, index=index, source=source: ie.index_add_(x, 0, index, source), 2),
        ):
            made = counted_launches(f)
            done = made.get("put_lines") or made["add_lines"]
            assert least <= done.sectors_written <= 1.001 * least, done
            assert reads * least <= done.sectors_read and done.sectors <= 1.02 * (reads + 1) * least, done
            assert done.widest_write == 16
            assert made["check_indices"].sectors <= 1.01 * (8 + 4 * (reads > 0)) * rows / SECTOR + 2
        mask = torch.arange(rows) % 3 > 0
        count = int(mask.sum())
        made = counted_launches(
            lambda x=x, mask=mask, source=source, n=count: ie.setitem_(x, mask, source[:n])
        )
        least = count * row / SECTOR
        assert least <= made["put_mask"].sectors_written <= 1.001 * least
        assert 2 * least <= made["put_mask"].sectors <= 1.02 * 2 * least, made
        assert made["count_mask"].sectors + made["sum_counts"].sectors <= 0.02 * least + 4 * rows


@counted
def test_rows_that_are_not_aligned_touch_their_sectors() -> None:
    whole = torch.zeros(600, 301)
    x = whole[:, 1:300]  # 128 bytes of a warp lie in five sectors, not four
    made = counted_launches(lambda: ie.index_fill_(x, 0, torch.randperm(600), 1))
    least = 600 * 299 * 4 / SECTOR
    assert least <= made["put_lines"].sectors_written <= 1.26 * least


@counted
def test_elements_move_no_more_than_their_sectors() -> None:
    n = 1 << 16
    x, index = torch.zeros(4 * n), torch.randperm(4 * n)[:n]
    made = counted_launches(lambda: ie.put_(x, index, torch.rand(n)))
    # A sector for each element that is written or read by an order, and what that is.
    assert made["put_lines"].sectors_written <= n
    assert made["put_lines"].sectors_read <= n + 1.02 * n * (4 + 5 + 8) / SECTOR  # of the next one, too
    made = counted_launches(lambda: ie.index_fill_(x, 0, index, 1))
    assert made["put_lines"].sectors_written <= n and made["put_lines"].sectors_read <= 1.02 * n * 8 / SECTOR


@counted
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_masks_move_no_more_than_their_sectors(density: float) -> None:
    n = 1 << 17
    x, source, mask = torch.zeros(n), torch.rand(n), mask_of((n,), density, 1)
    made = counted_launches(lambda: ie.masked_scatter_(x, mask, source))
    assert (
        1 <= made["count_mask"].sectors_read / (n / SECTOR) <= 1.02 and made["count_mask"].widest_read == 16
    )
    touched = int(mask.view(-1, SECTOR // 4).any(1).sum())
    # Where the elements of a warp end the next one begins, in the same sector.
    assert touched <= made["put_mask"].sectors_written <= 1.26 * touched + 600
    asked = int(mask.sum()) * 4 / SECTOR
    assert made["put_mask"].sectors_read <= n / SECTOR + 1.26 * asked + 1000


@counted
def test_every_kernel_has_run() -> None:
    """Runs last: the kernels of the header are those that the tests above have launched."""
    if not seen & {"put_mask"} or not seen & {"add_lines"}:
        pytest.skip("the other tests of this module have not run")
    kernels = emulated.kernels_of("index.cuh")
    assert len(kernels) == 6 and kernels <= seen, kernels - seen
