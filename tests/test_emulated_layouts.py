"""Layouts changed in place on the emulated device: values, ways, scratch memory, and the memory moved."""

from __future__ import annotations

import ctypes
import itertools
import math
import random
import re
from collections.abc import Iterator

import emulated
import numpy as np
import pytest
import test_layout_changes as layouts
import torch
from emulated import ROOT, SANITIZER, SECTOR, counted, device, launches, note, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout_changes import DTYPES, GAPS, SMALL, bits, check, make, matrices

import inplace_ext as ie
from inplace_ext import _native, testing

pytestmark = emulated.needs_device


@pytest.fixture(autouse=True)
def note_kernels() -> Iterator[None]:
    launches()
    yield
    note()


def rearrange(x: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> str:
    """On the device, beside torch; the way that it went. x is to be the only one on its storage."""
    moves = not x.is_contiguous(memory_format=memory_format) and x.numel() > 1
    way = check(x, memory_format)
    if moves:
        assert testing.last_path() == f"emulated:{way}"
    return way


# For a panel of SMALL: what shared memory holds, what the panel holds, and the rest.
WAYS: dict[str, list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]]] = {
    "buffered": [
        (torch.float32, (101, 103), (1, 0)),
        (torch.uint8, (500, 17, 13), (0, 2, 1)),
        (torch.uint8, (9, 1000), (1, 0)),
        (torch.bfloat16, (5000, 2, 3), (0, 2, 1)),
        (torch.complex128, (5, 37, 41), (0, 2, 1)),
        (torch.uint8, (60, 50, 3, 7), (1, 0, 2, 3)),
        (torch.float32, (3, 2, 2000), (1, 0, 2)),
        (torch.float32, (5, 137, 151), (0, 2, 1)),
        (torch.int64, (89, 101), (1, 0)),
        (torch.uint8, (199, 401), (1, 0)),
    ],
    "tiles": [
        *((dtype, (side, side), (1, 0)) for dtype in DTYPES for side in (256, 293, 321)),
        (torch.float32, (3, 129, 129), (0, 2, 1)),
        (torch.float32, (150, 150, 3), (1, 0, 2)),
        (torch.float32, (65, 65, 11), (1, 0, 2)),
        (torch.uint8, (67, 67, 47), (1, 0, 2)),
        (torch.uint8, (301, 301, 2), (1, 0, 2)),
    ],
    "cycles": [
        (torch.float32, (37, 64, 64), (1, 0, 2)),
        (torch.uint8, (13, 7, 5003), (1, 0, 2)),
        (torch.int64, (2, 30, 50, 33), (0, 2, 1, 3)),
        (torch.complex128, (100, 101, 5), (1, 0, 2)),
        (torch.float32, (100, 101, 17), (1, 0, 2)),
        (torch.uint8, (3, 2, 90001), (1, 0, 2)),
        (torch.uint8, (30, 30, 999), (1, 0, 2)),
        (torch.uint8, (97, 307, 63), (1, 0, 2)),
        (torch.bfloat16, (3, 32, 64, 32), (0, 2, 1, 3)),
    ],
    "strips": [
        *((dtype, (n, 20011), (1, 0)) for dtype in DTYPES[1:] for n in (3, 16)),
        *((dtype, (20011, n), (1, 0)) for dtype in DTYPES[1:] for n in (3, 16)),
        (torch.uint8, (7, 20011), (1, 0)),
        (torch.float32, (2, 3, 30000), (0, 2, 1)),
        (torch.float32, (2, 8192, 16), (0, 2, 1)),
        (torch.float32, (10007, 5, 3), (1, 0, 2)),
        (torch.float32, (256, 1024), (1, 0)),
    ],
    "large_panels": [
        (torch.uint8, (601, 701), (1, 0)),
        (torch.uint8, (701, 601), (1, 0)),
        (torch.uint8, (263, 1601), (1, 0)),
        (torch.uint8, (2, 420, 450), (0, 2, 1)),
        (torch.uint8, (2, 420, 451), (0, 2, 1)),
        (torch.uint8, (2, 451, 420), (0, 2, 1)),
        (torch.bfloat16, (521, 523), (1, 0)),
        (torch.float32, (1031, 1033), (1, 0)),
        (torch.uint8, (263, 271, 3), (1, 0, 2)),
    ],
    "gathered": [
        (torch.float32, (9, 11, 13, 10), (3, 2, 1, 0)),
        (torch.complex128, (40, 5, 6, 7), (0, 3, 2, 1)),
        (torch.uint8, (31, 17, 29), (2, 1, 0)),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_way(way: str) -> None:
    for dtype, sizes, order in WAYS[way]:
        with device(), testing.panels_of(SMALL):
            x = make(sizes, dtype).permute(order)
            assert rearrange(x) == way, (dtype, sizes, order)


def test_every_permutation() -> None:
    rng = random.Random(0)
    with device():
        for dims in range(1, 6):
            for order in itertools.permutations(range(dims)):
                for pool in ((2, 3, 5), (1, 2, 4), (1, 2, 3, 4, 5, 7)):
                    rearrange(make([rng.choice(pool) for _ in order], rng.choice(DTYPES)).permute(order))


def test_several_transpositions_of_what_does_not_fit() -> None:
    """So many bytes that the panel does not hold them, in every order."""
    with device(), testing.panels_of(SMALL):
        for order in itertools.permutations(range(4)):
            rearrange(make((12, 15, 11, 16), torch.float32).permute(order))
        rearrange(make((3, 2, 4, 5, 2, 3, 4, 11, 7), torch.uint8).permute(8, 1, 6, 3, 5, 4, 2, 7, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(dtype: torch.dtype) -> None:
    with device():
        for sizes in ((2, 3, 5, 7), (1, 3, 32, 32), (4, 16, 9, 9), (2, 1, 5, 7), (0, 3, 2, 2)):
            x = make(sizes, dtype)
            rearrange(x, torch.channels_last)
            rearrange(x)
            rearrange(make(sizes, dtype).transpose(1, 2), torch.channels_last)
        x = make((2, 3, 4, 5, 7), dtype)
        rearrange(x, torch.channels_last_3d)
        rearrange(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaps_are_closed(dtype: torch.dtype) -> None:
    with device(), testing.panels_of(SMALL):
        for make_view in GAPS:
            x = make_view(make((31, 17, 19), dtype))
            assert rearrange(x) == "gathered"
        # More than the panel: parts go straight to their places once there is room before them.
        launches()
        for make_view in (
            lambda: make((400_000,), dtype)[::2],
            lambda: make((5, 700, 91), dtype)[:, 3:, ::3],
        ):
            x = make_view()
            assert rearrange(x) == "gathered"
        if SANITIZER != "thread":
            names = [launch.kernel.split("<")[0] for launch in note()]
            assert names.count("run_space") > names.count("copy_blocks") > 0


@settings(max_examples=80, deadline=None)
@given(layouts.layouts())
def test_any_layout(layout: tuple[torch.Tensor, torch.memory_format]) -> None:
    with device():
        rearrange(*layout)


@settings(max_examples=40, deadline=None)
@given(matrices())
def test_any_matrix(case: tuple[tuple[int, ...], tuple[int, ...], torch.dtype]) -> None:
    (batch, rows, columns, width), order, dtype = case
    while rows * columns > 60_000:
        rows, columns = (rows // 2 + 1, columns) if rows > columns else (rows, columns // 2 + 1)
    with device(), testing.panels_of(SMALL):
        rearrange(make((batch, rows, columns, width), dtype).permute(order))


def test_any_alignment() -> None:
    """Words are as wide as address and size allow, down to an element, and not beyond."""
    sizes = {"held": (40, 56), "tiles": (320, 320), "cycles": (37, 60, 48), "strips": (16, 20000)}
    kernels = {"held": "turn_tiles", "tiles": "swap_tiles", "cycles": "move_cycles", "strips": "turn_tiles"}
    for name, shape in sizes.items():
        for offset, item in itertools.product((0, 1, 2, 4, 8), (1, 4)):
            dtype = torch.uint8 if item == 1 else torch.float32
            base = torch.randint(0, 256, (math.prod(shape) * item + 64,), dtype=torch.uint8)
            start = -base.data_ptr() % 64 + offset * item
            x = base[start : start + math.prod(shape) * item].view(dtype).view(shape).transpose(0, 1)
            del base
            want = x.contiguous()
            launches()
            with device(), testing.panels_of(SMALL):
                ie.contiguous_(x)
            assert torch.equal(bits(x), bits(want)), (name, offset, item)
            if SANITIZER != "thread":
                widest = min(16, (x.data_ptr() | 16) & -(x.data_ptr() | 16))
                if name != "cycles":
                    widest = min(widest, item)
                ran = {launch.kernel for launch in note()}
                assert f"{kernels[name]}<{widest}>" in ran, (name, offset, item, ran)
    # Complex numbers at an address of one of their halves.
    memory = np.random.default_rng(0).integers(0, 256, (31 * 37 + 1) * 16, dtype=np.uint8)
    start = 8 if memory.ctypes.data % 16 == 0 else 0
    elements = memory[start : start + 31 * 37 * 16].reshape(31, 37, 16)
    want = elements.transpose(1, 0, 2).copy()
    x = torch.frombuffer(memory, dtype=torch.complex128, offset=start, count=31 * 37).view(31, 37).t()
    launches()
    with device():
        ie.contiguous_(x)
    assert np.array_equal(elements.reshape(37, 31, 16), want)
    assert SANITIZER == "thread" or [launch.kernel for launch in note()] == ["turn_tiles<8>"]
    # Other elements that are not aligned are left to torch: no device reads them.
    x = torch.frombuffer(bytearray(100 * 4 + 1), dtype=torch.float32, offset=1).view(10, 10).t()
    with device():
        ie.contiguous_(x)
        assert testing.last_path() == "torch" and x.is_contiguous()


def test_steps_of_more_than_32_bits() -> None:
    """A few elements far apart in memory of which little is ever touched."""
    far = (1 << 32) + (1 << 30) + 7
    for sizes, strides in (((2, 5), (far, 1)), ((5, 2), (3, far)), ((2, 2, 5), (50, far, 4))):
        x = torch.empty(far + 100, dtype=torch.uint8).as_strided(sizes, strides)
        want = x.copy_(torch.randint(0, 256, sizes, dtype=torch.uint8)).clone()
        with device():
            ie.contiguous_(x)
            assert testing.last_path() == "emulated:gathered"
        assert x.is_contiguous() and torch.equal(x, want)


def test_neither_the_grid_nor_the_order_of_threads_counts() -> None:
    for processors, order in ((1, "forward"), (2, "backward"), (3, "shuffled")):
        with device(processors=processors, threads=512, order=order), testing.panels_of(SMALL):
            for dtype, sizes, permutation in (
                (torch.bfloat16, (5, 23, 31), (0, 2, 1)),
                (torch.float32, (131, 131), (1, 0)),
                (torch.int64, (37, 40, 9), (1, 0, 2)),
                (torch.float32, (3, 20011), (1, 0)),
                (torch.uint8, (401, 307), (1, 0)),
                (torch.float32, (7, 9, 11), (2, 1, 0)),
            ):
                rearrange(make(sizes, dtype).permute(permutation))


def test_reshape_rearranges() -> None:
    x = make((60, 50, 40), torch.float32).transpose(0, 2)
    want, pointer = x.reshape(-1, 100).clone(), x.data_ptr()
    with device():
        assert ie.reshape_(x, -1, 100) is x and testing.last_path().startswith("emulated:")
    assert x.data_ptr() == pointer and torch.equal(bits(x), bits(want))


def test_errors_leave_the_tensor_alone() -> None:
    x = torch.rand(10).as_strided((3, 3), (2, 1)).t()
    before = bits(x)
    with device(), pytest.raises(RuntimeError, match="single memory location"):
        ie.contiguous_(x)
    assert x.stride() == (1, 2) and torch.equal(bits(x), before)


# ---- memory -----------------------------------------------------------------------------------------------


def test_scratch_memory_of_sides_that_leave_much_over() -> None:
    with device():
        for rows, columns, item in ((269, 79430, 3), (356, 36012, 5), (97, 10490, 63), (227, 300_000, 1)):
            for sizes in ((rows, columns), (columns, rows)):
                assert _native.module.scratch_bytes(1, *sizes, item) < 0.01 * rows * columns * item


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from([1, 1, 10, 1000]),
    st.integers(2, 1 << 20),
    st.integers(2, 1 << 20),
    st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 20, 33, 60, 64, 100, 1000]),
)
def test_scratch_memory_is_bounded(batch: int, rows: int, columns: int, item: int) -> None:
    with device():
        scratch = _native.module.scratch_bytes(batch, rows, columns, item)
    total = batch * rows * columns * item
    if total > 64e6:
        assert scratch < 0.01 * total
    # What is left over at the edges of large matrices is a few rows and columns.
    assert scratch < 18e6 or scratch < 10 * (rows + columns) * item
    if total < 64e6:
        assert scratch < 650_000 or scratch < 6 * (rows + columns) * item


def aligned(sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    base = torch.randint(0, 256, (math.prod(sizes) * dtype.itemsize + 64,), dtype=torch.uint8)
    start = -base.data_ptr() % 64
    return base[start : start + math.prod(sizes) * dtype.itemsize].view(dtype).view(sizes)


def moved(x: torch.Tensor, way: str | None = None) -> list[emulated.Launch]:
    want = x.contiguous()
    launches()
    with device(processors=64, threads=2048):
        ie.contiguous_(x)
        assert way is None or testing.last_path() == f"emulated:{way}"
    assert torch.equal(bits(x), bits(want))
    return note()


@counted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "order", "kernels"),
    [
        ((512, 512), (1, 0), ("swap_tiles",)),
        ((64, 32, 64), (0, 2, 1), ("turn_tiles",)),
        ((16, 32, 256), (1, 0, 2), ("save_marks", "move_cycles")),
        ((64, 2048), (1, 0), ("turn_tiles", "copy_blocks")),
    ],
)
def test_no_more_is_moved_than_must_be(
    sizes: tuple[int, ...], order: tuple[int, ...], kernels: tuple[str, ...], dtype: torch.dtype
) -> None:
    if kernels[-1] == "copy_blocks" and dtype.itemsize > 4:
        sizes = (sizes[0], sizes[1] * 4 // dtype.itemsize)
    x = aligned(sizes, dtype).permute(order)
    least = x.numel() * dtype.itemsize // SECTOR
    made = moved(x)
    assert tuple(launch.kernel.split("<")[0] for launch in made) == kernels
    if kernels[0] == "save_marks":
        assert made[0].sectors_read <= 0.02 * least
    for launch in made[kernels[0] == "save_marks" :]:
        # The first and the last block of a matrix stay.
        assert 0.99 * least <= launch.sectors_read <= 1.02 * least
        assert 0.99 * least <= launch.sectors_written <= 1.02 * least
    assert made[-1].widest_read == (16 if kernels[-1] in ("copy_blocks", "move_cycles") else dtype.itemsize)


@counted
def test_large_matrices_take_four_passes_and_few_launches() -> None:
    x = aligned((1024, 1536), torch.float32).t()
    made = moved(x, "large_panels")
    least = x.numel() * 4 // SECTOR
    assert len(made) <= 7
    assert sum(launch.sectors_read for launch in made) < 4.05 * least
    assert sum(launch.sectors_written for launch in made) < 4.05 * least
    # Of parts that leave nothing those that words of 16 bytes fill: 100 of 1300, not 130.
    words = {launch.kernel for launch in moved(aligned((1024, 1300), torch.float32).t(), "large_panels")}
    assert words == {"save_marks<16>", "move_cycles<16>", "turn_tiles<4>"}
    # All matrices of a batch together.
    for sizes, way, most in (((16, 210, 225), "strips", 4), ((4, 800, 900), "large_panels", 7)):
        with testing.panels_of(SMALL):
            x = aligned(sizes, torch.uint8 if most == 7 else torch.float32).transpose(1, 2)
            assert len(moved(x, way)) <= most


@pytest.mark.parametrize(("rows", "columns"), [(61, 100), (64, 96), (251, 509), (3, 5000), (1024, 32)])
def test_long_cycles_are_cut(rows: int, columns: int) -> None:
    """Each place that moves is in one piece, no piece is long, and about every mark begins one."""
    numbers = (ctypes.c_int64 * 3)()
    emulated.library().inplace_ext_emulate_pieces(
        ctypes.c_int64(rows), ctypes.c_int64(columns), ctypes.c_int(7), numbers
    )
    pieces, places, longest = numbers
    blocks = rows * columns
    assert places == blocks - 1 - math.gcd(rows - 1, columns - 1)  # the others stay
    assert pieces >= blocks // 128 - 2 and longest < 128 * 16


@counted
def test_every_kernel_has_run() -> None:
    """Runs last."""
    if not seen & {"move_cycles"} or not seen & {"copy_blocks"}:
        pytest.skip("the other tests of this module have not run")
    text = (ROOT / "csrc" / "cuda" / "transpose.cuh").read_text()
    kernels = set(re.findall(r"IE_GLOBAL void\s+IE_LAUNCH_BOUNDS\([^\n]*\)\s+(\w+)\(", text))
    assert len(kernels) == 5 and kernels <= seen, kernels - seen
