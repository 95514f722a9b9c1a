"""The interpreter kernels on the emulated device: tests of the CPU's kernels, on one more backend.

All of them run there with `make emulate`; these are those that reach every path in little time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import helpers
import pytest
import test_engine
import test_parity
import torch
from emulated import SANITIZER, SECTOR, device, launches
from helpers import DTYPES, FLOATS, NATIVE, OPS, default_args, dtype_name, each, make

import inplace_ext as ie
from inplace_ext import testing

pytestmark = emulated.needs_device
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
counted = pytest.mark.skipif(SANITIZER == "thread", reason="threads are not counted")


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """helpers.check() and the programs of test_engine run on the device alone."""
    monkeypatch.setattr(helpers, "CAPABILITIES", ["emulated"])
    monkeypatch.setattr(helpers, "_active", "emulated")
    with device():
        emulated.library().inplace_ext_emulate_counting(0)
        yield
        emulated.library().inplace_ext_emulate_counting(1)


@each(OPS)
def test_layouts(name: str, dtype: torch.dtype) -> None:
    test_parity.test_layouts_of_input(name, dtype)


@each(["add_", "clamp_", "copy_", "exp_"])
def test_sizes(name: str, dtype: torch.dtype) -> None:
    for n in (1, 2, 15, 16, 17, 33, 255, 1023, 1024, 1025, 4097, 16385):
        for layout in ("contiguous", "offset", "step"):
            x = make((n,), dtype, layout, n)
            args, kwargs = default_args(name, x, n, layout)
            helpers.check(name, x, *args, **kwargs)


@pytest.mark.parametrize("name", NATIVE)
def test_samples(name: str) -> None:
    for own, info in test_parity.OPINFOS:
        if own == name:
            test_parity.test_opinfo(name, info, "step" if name in OPS else "contiguous")


@by_dtype
def test_conversions(dtype: torch.dtype) -> None:
    test_parity.test_conversions_of_copy(dtype)


#: How the emulated library runs programs: as the host of a device chooses; with 64-bit indices; and, where
#: all tensors are contiguous, as lists of short ones, or of long ones.
WAYS = {"chosen": 0, "wide": 1, "lists": 2, "long_lists": 3}


@pytest.fixture(params=[way for way in WAYS if way != "long_lists"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    emulated.library().inplace_ext_emulate_programs(WAYS[request.param])
    yield request.param
    emulated.library().inplace_ext_emulate_programs(0)


@pytest.mark.parametrize("compute", list(test_engine.COMPUTE))
def test_programs(compute: str, way: str) -> None:
    r = random.Random(100 + 10 * WAYS[way] + list(test_engine.COMPUTE).index(compute))
    for _ in range(12):
        stages, tensors, scalars = test_engine.random_program(r, compute)
        test_engine.check_program(compute, stages, tensors, scalars)


@each(["add_", "clamp_", "copy_", "exp_"])
def test_ways(name: str, dtype: torch.dtype, way: str) -> None:
    taken = set()
    for n in (1, 5, 700, 3001, 20000):
        for layout in ("contiguous", "offset", "step"):
            x = make((n,), dtype, layout, n)
            args, kwargs = default_args(name, x, n, layout)
            helpers.check(name, x, *args, **kwargs)
            taken.add(testing.last_path().split(":")[1])
    assert {"wide": "wide", "lists": "listed"}.get(way, "flat") in taken, taken


def test_limits() -> None:
    test_engine.test_a_program_at_every_limit()


def counted_launches(f: Callable[[], Any]) -> list[emulated.Launch]:
    lib = emulated.library()
    launches()
    lib.inplace_ext_emulate_counting(1)
    with device(processors=64, threads=2048):
        f()
        assert testing.last_path().startswith("emulated:")
    lib.inplace_ext_emulate_counting(0)
    return launches()


def assert_least(made: list[emulated.Launch], read: float, written: float, more: float = 1.02) -> None:
    """So many sectors are read and written by all together, which is the least there is, or 2% more."""
    assert read <= sum(launch.sectors_read for launch in made) <= more * read, (read, made)
    assert written <= sum(launch.sectors_written for launch in made) <= more * written, (written, made)


@counted
@pytest.mark.parametrize("way", ["chosen", "wide", "long_lists"], indirect=True)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int32, torch.int64], ids=dtype_name)
def test_programs_move_no_more_than_they_must(dtype: torch.dtype, way: str) -> None:
    """One read and one write of what is changed, one read of each operand, 16 bytes at a time."""
    n = 1 << 17
    x, y, z = (make((n,), dtype, "contiguous", seed=k, specials=0) for k in range(3))
    row = n * dtype.itemsize // SECTOR
    mask = torch.zeros(n, dtype=torch.bool)
    calls = [
        (lambda: ie.mul_(x, 2), 1),
        (lambda: ie.add_(x, y), 2),
        (lambda: ie.clamp_(x, y, z), 3),
        (lambda: ie.masked_fill_(x, mask, 1), 1 + 1 / dtype.itemsize),
        (lambda: ie.copy_(x, y), 1),
    ]
    if dtype.is_floating_point:
        calls += [(lambda: ie.exp_(x), 1), (lambda: ie.lerp_(x, y, z), 3)]
    for call, reads in calls:
        made = counted_launches(call)
        kernel = "run_list<" if way == "long_lists" else "run_space<"
        # The 64-bit form of a kernel, whose name says so at the end.
        assert all(
            launch.kernel.startswith(kernel) and ("long>" in launch.kernel) == (way == "wide")
            for launch in made
        ), made
        assert_least(made, reads * row, row)
        assert all(launch.widest_read == launch.widest_write == 16 for launch in made)


@counted
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_chains_move_no_more_than_they_must(dtype: torch.dtype) -> None:
    """Each tensor once, however many stages, temporaries and random numbers there are."""

    step_ = ie.fuse(helpers.adam_)

    @ie.fuse
    def drop_(x, y):  # type: ignore[no-untyped-def]
        ie.dropout_(x.mul_(2), 0.5, seed=1).add_(y)

    n = 1 << 17
    row = n * dtype.itemsize // SECTOR
    tensors = [make((n,), dtype, "contiguous", seed=k, specials=0) for k in range(4)]
    assert_least(counted_launches(lambda: step_(*tensors, 0.1)), 4 * row, 3 * row)
    made = counted_launches(lambda: drop_(*tensors[:2]))
    assert_least(made, 2 * row, row)
    assert len(made) == 1 and "true" in made[0].kernel


def drawn_in_a_chain(x: torch.Tensor, y: torch.Tensor, run: Callable[..., Any]) -> torch.Tensor:
    x = helpers.clone_strided(x)
    run(x, y)
    return x


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_draws_of_chains_from_memory_of_the_device(dtype: torch.dtype, layout: str) -> None:
    """As where a generator of the device draws the seeds: in one pass, and the draws of separate calls."""

    def draws_(x, y):  # type: ignore[no-untyped-def]
        ie.dropout_(ie.mul_(x, 2), 0.5, seed=2**63 + 5, offset=123456)
        ie.dropout_(ie.add_(x, y), 0.5, seed=11)

    chain_ = ie.fuse(draws_)
    lib = emulated.library()
    # Small integers, whose products and sums are exact in every dtype.
    data = torch.arange(37 * 65).view(37, 65) % 7 + 1
    x = make((37, 65), dtype, layout, data=data)
    y = data[0].to(dtype)
    got = drawn_in_a_chain(x, y, chain_)
    assert testing.last_path().removeprefix("emulated:") in helpers.DEVICE_PATHS
    assert torch.equal(got, drawn_in_a_chain(x, y, draws_))
    (by_value,) = counted_launches(lambda: drawn_in_a_chain(x, y, chain_))
    lib.inplace_ext_emulate_seed_in_memory(1)
    try:
        (in_memory,) = counted_launches(lambda: drawn_in_a_chain(x, y, chain_))
        assert torch.equal(drawn_in_a_chain(x, y, chain_), got)
        assert torch.equal(drawn_in_a_chain(x, y, draws_), got)
    finally:
        lib.inplace_ext_emulate_seed_in_memory(0)
    if SANITIZER != "thread":
        # Of each of the two draws a seed and an offset, once for each block.
        assert in_memory.bytes_read - by_value.bytes_read == by_value.blocks * 2 * 16


@counted
@pytest.mark.parametrize("way", ["chosen", "wide"], indirect=True)
def test_strided_tensors_are_read_by_sectors(way: str) -> None:
    """Every sector that holds an element once, whatever the layout of the rows."""
    whole = make((512, 1024), torch.float32, "contiguous", seed=1, specials=0)
    # Of rows that do not begin with a sector the 128 bytes of a warp lie in five of them, not four.
    for x, item, more in ((whole[:, :512], 4, 1.02), (whole[:, ::2], 8, 1.02), (whole[1:, 1:], 4, 1.26)):
        least = x.numel() * item // SECTOR
        made = counted_launches(lambda x=x: ie.mul_(x, 1.5))
        assert_least(made, least, least, more)
        assert ("long>" in made[0].kernel) == (way == "wide")
    x, row = make((512, 1024), torch.float32, "contiguous", seed=2), torch.randn(1024)
    (launch,) = counted_launches(lambda: ie.add_(x, row))
    assert launch.sectors_written == x.numel() * 4 // SECTOR
    assert launch.sectors_read <= 2.02 * x.numel() * 4 // SECTOR  # the row comes out of the caches
