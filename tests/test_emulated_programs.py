"""The interpreter kernels on the emulated device: tests of the CPU's kernels, of which it is one more backend.

All of them run there with `make emulate`; these are those that reach every path in little time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
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


@pytest.mark.parametrize("compute", list(test_engine.COMPUTE))
def test_programs(compute: str) -> None:
    r = random.Random(100 + list(test_engine.COMPUTE).index(compute))
    for _ in range(20):
        stages, tensors, scalars = test_engine.random_program(r, compute)
        test_engine.check_program(compute, stages, tensors, scalars)


def test_limits() -> None:
    test_engine.test_a_program_at_every_limit()


def counted_launch(f: Any) -> emulated.Launch:
    lib = emulated.library()
    launches()
    lib.inplace_ext_emulate_counting(1)
    with device(processors=64, threads=2048):
        f()
        assert testing.last_path().startswith("emulated:")
    lib.inplace_ext_emulate_counting(0)
    (launch,) = launches()
    return launch


@counted
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int32, torch.int64], ids=dtype_name)
def test_programs_move_no_more_than_they_must(dtype: torch.dtype) -> None:
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
    ]
    if dtype.is_floating_point:
        calls += [(lambda: ie.exp_(x), 1), (lambda: ie.lerp_(x, y, z), 3)]
    for call, reads in calls:
        launch = counted_launch(call)
        assert reads * row <= launch.sectors_read <= 1.02 * reads * row, launch
        assert row <= launch.sectors_written <= 1.02 * row, launch
        assert launch.widest_read == launch.widest_write == 16, launch


@counted
def test_strided_tensors_are_read_by_sectors() -> None:
    """Every sector that holds an element once, whatever the layout of the rows."""
    whole = make((512, 1024), torch.float32, "contiguous", seed=1, specials=0)
    for x, share in ((whole[:, :512], 0.5), (whole[:, ::2], 1.0), (whole[1:, 1:], 1.0)):
        launch = counted_launch(lambda x=x: ie.mul_(x, 1.5))
        least = share * whole.numel() * 4 // SECTOR
        assert launch.sectors_read <= 1.05 * least and launch.sectors_written <= 1.05 * least, (launch, share)
    x, row = make((512, 1024), torch.float32, "contiguous", seed=2), torch.randn(1024)
    launch = counted_launch(lambda: ie.add_(x, row))
    assert launch.sectors_written == x.numel() * 4 // SECTOR
    assert launch.sectors_read <= 2.02 * x.numel() * 4 // SECTOR  # the row comes out of the caches
