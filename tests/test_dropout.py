"""dropout_ and its kin: the mask, values, layouts, seeds, statistics, and the promises of the contract."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    CAPABILITIES,
    FLOATS,
    HALVES,
    LAYOUTS,
    backend,
    clone_strided,
    dtype_name,
    expect_path,
    is_native,
    make,
    matches,
    same_bits,
    storage_bytes,
    threads,
)

import inplace_ext as ie
from inplace_ext import _dropout, testing
from inplace_ext._table import RANDOM

NAMES = ["dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"]
assert sorted(NAMES) == sorted(RANDOM)
INF, NAN = float("inf"), float("nan")
#: Numbers that the kernels draw at a time, and lines that they work on together.
CHUNK, TILE = 512, 32

pytestmark = pytest.mark.usefixtures("one_thread")
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
every_name = pytest.mark.parametrize("name", NAMES)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 of arrays of 32-bit words, from the paper, with nothing of the package."""
    c = [word.astype(np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & low, (p0 >> shift) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def draws(shape: tuple[int, ...], seed: int, offset: int = 0) -> torch.Tensor:
    """The number of each element times 2^24, by the documentation of the mapping."""
    count = math.prod(shape)
    block = np.array([(offset + i) % 2**64 for i in range((count + 3) // 4)], dtype=np.uint64)
    low, shift, zero = np.uint64(0xFFFFFFFF), np.uint64(32), np.zeros(len(block), dtype=np.uint64)
    seed %= 2**64
    words = philox([block & low, block >> shift, zero, zero], (seed & 0xFFFFFFFF, seed >> 32))
    numbers = np.stack(words, -1).reshape(-1)[:count] & np.uint64(0xFFFFFF)
    return torch.from_numpy(numbers.astype(np.int64)).view(shape)


def expected(
    name: str, x: torch.Tensor, p: float, seed: int, offset: int = 0, bias: bool = True
) -> torch.Tensor:
    """What torch's own formula makes of the mask, in float32 or float64."""
    shape = tuple(x.shape)
    if "feature" in name:
        shape = shape[:2] + (1,) * (x.dim() - 2)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    if p == 1:
        return (wide * 0).to(x.dtype)
    noise = (draws(shape, seed, offset).double() * 2.0**-24 >= p).to(wide.dtype)
    if "alpha" not in name:
        return (wide * noise.div_(1 - p)).to(x.dtype)
    alpha = 1.7580993408473766
    a = 1 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    b = noise.add(-1).mul_(alpha * a).add_(alpha * a * p)
    return (wide * noise.mul_(a) + (b if bias else 0)).to(x.dtype)


def check(name: str, x: torch.Tensor, *args: Any, path: str | None = None, **kwargs: Any) -> torch.Tensor:
    """Calls the function and checks everything about the call but the values; returns x."""
    begin, version, pointer = clone_strided(x), x._version, x.data_ptr()
    layout = (x.shape, x.stride(), x.storage_offset())
    assert getattr(ie, name)(x, *args, **kwargs) is x
    if path is not None:
        expect_path(path, (name, x.dtype, tuple(x.shape), x.stride(), args))
    assert x._version == version + 1 and x.data_ptr() == pointer
    assert layout == (x.shape, x.stride(), x.storage_offset())
    restored = clone_strided(x).copy_(begin)
    assert torch.equal(storage_bytes(restored), storage_bytes(begin)), "wrote outside"
    return x


# ---- the mask ---------------------------------------------------------------------------------------------


def test_known_answers(any_backend: str) -> None:
    zero = np.zeros(1, dtype=np.uint64)
    ones = zero + np.uint64(0xFFFFFFFF)
    assert [int(w[0]) for w in philox([zero] * 4, (0, 0))] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(w[0]) for w in philox([ones] * 4, (0xFFFFFFFF, 0xFFFFFFFF))] == [
        *(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    ]
    # Of version 1 of the mapping: what was drawn once is drawn for ever.
    answers = {
        (0, 0): [0x27E8D5, 0x69C58D, 0x57AC4C, 0x00DBD8],
        (7, 3): draws((4,), 7, 3).tolist(),
    }
    for (seed, offset), numbers in answers.items():
        for i, number in enumerate(numbers):
            for more, keeps in ((0, True), (0.5, False), (1, False)):
                p = (number + more) * 2.0**-24
                x = ie.dropout_(torch.ones(4), p, seed=seed, offset=offset)
                assert bool(x[i] != 0) == keeps, (seed, offset, i)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_channels_are_kept_from_their_number_on(length: int, any_backend: str) -> None:
    for i, number in enumerate(draws((1, 4, 1), 7).flatten().tolist()):
        for p, keeps in ((number * 2.0**-24, True), ((number + 1) * 2.0**-24, False)):
            x = ie.feature_dropout_(torch.ones(1, 4, length), p, seed=7)
            assert bool((x[0, i] != 0).all()) == keeps == bool((x[0, i] != 0).any())


@pytest.mark.parametrize("seed", [0, 1, -1, 7 << 32, -(2**63), 2**63, 2**64 - 1])
@pytest.mark.parametrize("offset", [0, 1, 2**32 - 5, 2**32 - 1, 2**32, 2**63, 2**64 - 7])
def test_mask_is_the_documented_one(seed: int, offset: int, any_backend: str) -> None:
    # Long enough for counters to pass 2^32 and 2^64 within a batch, even the only one, and between two.
    for n in (1, 5, 300):
        x = check("dropout_", torch.ones(n), 0.5, seed=seed, offset=offset, path="draws")
        assert torch.equal(x != 0, draws((n,), seed, offset) >= 1 << 23), n
    assert torch.equal(
        draws((50,), seed, offset), _dropout.draws((50,), *map(_dropout._signed, (seed, offset)))
    )


def test_mask_through_torch_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dropout, "_PART", 8)
    assert torch.equal(draws((50,), 7, 3), _dropout.draws((50,), 7, 3))


def test_mask_is_that_of_torchs_stateless_generator() -> None:
    try:
        random = importlib.import_module("torch.func._random")
        key = torch.tensor([7, 3], dtype=torch.uint64, device="cuda" if torch.cuda.is_available() else "cpu")
        uniform = random.uniform(key, (1000,)).cpu()
    except (ImportError, NotImplementedError, RuntimeError) as error:
        pytest.skip(f"not in this torch on this device: {str(error)[:60]}")
    assert torch.equal(uniform * 2.0**24, draws((1000,), 7, 3).float())
    assert torch.equal(ie.dropout(torch.ones(1000), 0.3, seed=7, offset=3) != 0, uniform >= 0.3)


@pytest.mark.parametrize("p", [2.0**-24, 1 - 2.0**-24, 0.1, 1 / 3, 2.0**-30, 1 - 2.0**-30])
def test_probabilities_between_the_steps_of_a_draw(p: float, any_backend: str) -> None:
    x = ie.dropout_(torch.ones(5000, dtype=torch.float64), p, seed=2)
    assert torch.equal(x != 0, draws((5000,), 2).double() * 2.0**-24 >= p)


# ---- values and paths -------------------------------------------------------------------------------------


@every_dtype
@every_name
def test_lines_of_every_length(name: str, dtype: torch.dtype, any_backend: str) -> None:
    lengths = [
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        15,
        16,
        17,
        31,
        32,
        33,
        63,
        65,
        127,
        129,
        509,
        511,
        512,
        513,
        515,
        1024,
        1537,
    ]
    for n in lengths:
        for p in (0.1, 0.5, 0.75):
            x = make((n, 3) if "feature" in name else (n,), dtype, "offset", seed=n)
            want = expected(name, x, p, n, 5)
            check(name, x, p, seed=n, offset=5, path="draws")
            assert matches(x, want).all(), (n, p)


@every_dtype
@every_name
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, name: str, dtype: torch.dtype, any_backend: str) -> None:
    shapes = [(5, 3), (1, 1), (2, 3, 70), (70, 3), (3, 4, 5, 6), (2, 1, 17, 1), (2, 3, 4, 3, 5)]
    for shape in shapes:
        x = make(shape, dtype, layout, seed=len(shape))
        want = expected(name, x, 0.4, 9, 2)
        check(name, x, 0.4, seed=9, offset=2)
        assert (testing.last_path() != "torch") == is_native()
        assert matches(x, want).all(), shape


@every_dtype
def test_paths_have_one_mask(dtype: torch.dtype, capability: str) -> None:
    for rows in (1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7):
        for n in (2, 63, 64, 65, 67, CHUNK + 3):
            plain = make((rows, n), dtype, "contiguous", seed=n)
            want = expected("dropout_", plain, 0.4, 3)
            single = "draws" if rows == 1 else "tiled_draws"
            for layout, path in (
                ("contiguous", "draws"),
                ("rows", "draws"),
                ("step", "gathered_draws"),
                ("transposed", single),
                ("transposed_rows", "gathered_draws" if rows == 1 else "tiled_draws"),
            ):
                x = make((rows, n), dtype, layout, data=plain)
                if rows == 1 and layout == "transposed_rows":
                    path = "gathered_draws" if x.stride(1) != 1 else "draws"
                check("dropout_", x, 0.4, seed=3, path=path)
                assert matches(x, want).all(), (rows, n, layout)


@every_dtype
@pytest.mark.parametrize("name", ["feature_dropout_", "feature_alpha_dropout_"])
def test_channels(name: str, dtype: torch.dtype, capability: str) -> None:
    shapes = [
        (2, 3),
        (2, 40, 1),
        (2, 3, 700),
        (1, 5, 9, 11),
        (3, 1, 2, 2),
        (2, 33, 3, 3),
        (3, 700, 2),
        (2, 4100, 3),
    ]
    for shape in shapes:
        for layout, path in (
            ("contiguous", "draws"),
            ("rows", None),  # of which short channels are not next to each other
            ("step", "gathered_draws"),
            ("channels_last", None),
        ):
            x = make(shape, dtype, layout, specials=0)
            want = expected(name, x, 0.5, 4)
            check(name, x, 0.5, seed=4, path=path)
            assert matches(x, want).all(), (shape, layout)


@every_dtype
def test_more_dims_than_merge(dtype: torch.dtype, capability: str) -> None:
    base = make((2, 3, 4, 3, 2, 8), dtype)
    for x in (
        base.permute(4, 1, 5, 0, 2, 3)[..., ::2],
        base.permute(5, 4, 3, 2, 1, 0),
        base[:, :, ::2, :, :, ::3],
    ):
        for name in NAMES:
            y = clone_strided(x)
            want = expected(name, y, 0.5, 1)
            check(name, y, 0.5, seed=1)
            assert testing.last_path() != "torch"
            assert matches(y, want).all(), name


@every_dtype
@every_name
def test_special_values(name: str, dtype: torch.dtype, any_backend: str) -> None:
    info = torch.finfo(dtype)
    values = [0.0, -0.0, INF, -INF, NAN, info.max, -info.max, info.smallest_normal, -info.smallest_normal / 2]
    x = torch.tensor(values * 20, dtype=torch.float64).to(dtype).view(20, -1)
    for p in (0.5, 1):
        y = x.clone()
        want = expected(name, y, p, 6)
        check(name, y, p, seed=6)
        same = matches(y, want)
        assert same.all(), (y[~same], want[~same])
    if "alpha" not in name:  # as torch, which multiplies by 0
        assert y.isnan()[:, 2:5].all() and (y[:, 1] == 0).all() and y[:, 1].signbit().all()


@every_dtype
@every_name
def test_nothing_is_dropped(name: str, dtype: torch.dtype, any_backend: str) -> None:
    x = make((2, 9, 3), dtype)
    before, state = x.clone(), torch.get_rng_state()
    for args in ((0,), (0.0, True), (0.5, False), (1, False)):
        version = x._version
        assert getattr(ie, name)(x, *args) is x
        assert getattr(ie, name[:-1])(x, *args) is x  # as in torch
        assert x._version == version and same_bits(x, before)
    empty = torch.empty(0, 3, dtype=dtype)
    assert getattr(ie, name)(empty) is empty and getattr(ie, name[:-1])(empty) is empty
    getattr(ie, name)(x, 1)
    assert torch.equal(torch.get_rng_state(), state), "drew a seed for nothing"


@every_name
def test_values_are_those_of_torchs_dropout(name: str, any_backend: str) -> None:
    """Of an element that both keep, and of one that both drop."""
    torchs = getattr(torch, name)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for p in (0.1, 0.15, 0.3, 0.5, 0.9):  # 1 / 0.85 of doubles rounds to another float
            x = make((1000, 7), dtype, specials=0)
            theirs, ours = torchs(x.clone(), p, True), getattr(ie, name)(x.clone(), p, seed=8)
            kept = draws((1000, 7), 8).double() * 2.0**-24 >= p
            # What is dropped becomes one number, 0 or that of alpha dropout.
            dropped = theirs - theirs.flatten().mode().values
            both, neither = kept & (dropped != 0), ~kept & (dropped == 0)
            assert both.any() and neither.any()
            assert same_bits(ours[both], theirs[both]) and same_bits(ours[neither], theirs[neither])


@every_name
def test_sixteen_bit_floats_are_rounded_once(name: str, capability: str) -> None:
    for dtype in HALVES:
        x = make((40, 30), dtype)
        wide = getattr(ie, name)(x.float(), 0.3, seed=1)
        assert matches(getattr(ie, name)(x, 0.3, seed=1), wide.to(dtype)).all()


@every_name
def test_complex_goes_to_torch(name: str, any_backend: str) -> None:
    x = torch.randn(4, 5, dtype=torch.complex64)
    want = torch.complex(*(expected(name, part, 0.5, 3, bias=False) for part in (x.real, x.imag)))
    ours = getattr(ie, name)(x.clone(), 0.5, seed=3)
    expect_path("torch")
    if "alpha" not in name:
        torch.testing.assert_close(ours, want)


# ---- twins ------------------------------------------------------------------------------------------------


@every_dtype
@every_name
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twin_leaves_its_input(name: str, layout: str, dtype: torch.dtype, any_backend: str) -> None:
    for shape in ((3, 4, 50), (40, 70), (2, 5)):
        x = make(shape, dtype, layout)
        begin, version = storage_bytes(x).clone(), x._version
        y = getattr(ie, name[:-1])(x, 0.3, seed=5)
        assert torch.equal(storage_bytes(x), begin) and x._version == version
        assert y is not x and y.dtype == dtype and y.shape == x.shape and y._version == 0
        assert y.stride() == torch.empty_like(x).stride()
        assert matches(y, expected(name, x, 0.3, 5)).all()
    x = torch.randn(2, 1, dtype=torch.float64).to(dtype).expand(2, 6)
    y = getattr(ie, name[:-1])(x, 0.3, seed=5)
    assert matches(y, expected(name, x.contiguous(), 0.3, 5)).all()


# ---- seeds ------------------------------------------------------------------------------------------------


@every_name
def test_manual_seed_reproduces(name: str, any_backend: str) -> None:
    x = torch.ones(30, 40)
    f: Callable[..., torch.Tensor] = getattr(ie, name[:-1])
    torch.manual_seed(5)
    first, second = f(x), f(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    in_place = getattr(ie, name)(x.clone())
    assert torch.equal(in_place, first) and torch.equal(f(x), second)
    # Every backend, and one with a gradient to record, draws the same seed.
    torch.manual_seed(5)
    with testing.native_disabled():
        assert torch.equal(f(x), first)
    assert torch.equal(f(x.clone().requires_grad_()), second)
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(f(x, generator=generator), first)
    assert torch.equal(f(x.clone().requires_grad_(), generator=generator), second)
    assert torch.equal(f(x, seed=3), f(x, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_offset_with_a_drawn_seed(any_backend: str) -> None:
    x = torch.ones(100)
    masks = []
    for grad in (False, True):
        torch.manual_seed(1)
        masks.append(ie.dropout(x.clone().requires_grad_(grad), offset=25).detach())
    torch.manual_seed(1)
    longer = ie.dropout(torch.ones(200))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], longer[100:])


def test_offset_counts_blocks_of_four_elements(any_backend: str) -> None:
    whole = ie.dropout(torch.ones(4000), 0.5, seed=9)
    assert torch.equal(ie.dropout(torch.ones(1000), 0.5, seed=9, offset=250), whole[1000:2000])


# ---- what a result may not depend on ----------------------------------------------------------------------


@every_dtype
@every_name
def test_threads_change_no_bit(name: str, dtype: torch.dtype, capability: str) -> None:
    x = make((3, 40, 1700), dtype)
    views = [x, x.mT.contiguous().mT, x.transpose(0, 2).contiguous().transpose(0, 2)[:, :, ::3]]
    for view in views:
        results = []
        for count in (1, 2, 3, 7):
            with threads(count):
                results.append(check(name, clone_strided(view), 0.5, seed=1))
        for other in results[1:]:
            assert matches(results[0], other).all()


def test_alignment_and_place_change_no_bit(capability: str) -> None:
    data = torch.arange(1.0, 201.0)
    buffer = torch.zeros(300)
    for n in (5, 16, 33, 100, 200):
        want = ie.dropout(data[:n], 0.3, seed=4)
        for offset in range(17):
            x = buffer[offset : offset + n].copy_(data[:n])
            assert same_bits(ie.dropout_(x, 0.3, seed=4), want)


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_instruction_sets_agree() -> None:
    for dtype in FLOATS:
        x = make((50, 60), dtype)
        for name in NAMES:
            results = []
            for capability in CAPABILITIES:
                with backend(capability):
                    results.append(getattr(ie, name)(x.clone(), 0.4, seed=1))
            for other in results[1:]:
                assert matches(results[0], other).all()


# ---- statistics, with fixed seeds: a mask that passes once passes always -----------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 12345, 2**40])
def test_statistics(p: float, seed: int) -> None:
    n = 1 << 20
    x = ie.dropout(torch.ones(n, dtype=torch.float64), p, seed=seed)
    kept = (x != 0).double()
    sigma = math.sqrt(p * (1 - p) / n)
    assert abs(float(kept.mean()) - (1 - p)) < 4 * sigma
    assert abs(float(x.mean()) - 1) < 4 * sigma / (1 - p)
    assert abs(float(x.var()) - p / (1 - p)) < 0.03 * p / (1 - p)
    centered = (kept - (1 - p)) / math.sqrt(p * (1 - p))
    # Neighbours, those in the next block, in the next vector, chunk and row: a correlation has sigma n^-1/2.
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 64, 512, 1024):
        assert abs(float((centered[lag:] * centered[:-lag]).mean())) < 4.5 / math.sqrt(n), lag
    # Consecutive offsets and seeds: calls that take the next block each, or the next seed.
    for other in (
        ie.dropout(torch.ones(n, dtype=torch.float64), p, seed=seed, offset=n // 4),
        ie.dropout(torch.ones(n, dtype=torch.float64), p, seed=seed + 1),
    ):
        second = ((other != 0).double() - (1 - p)) / math.sqrt(p * (1 - p))
        assert abs(float((centered * second).mean())) < 4.5 / math.sqrt(n)
    # Four positions of a block, and bytes of eight masks: each as frequent as it should be.
    for position in range(4):
        assert abs(float(kept[position::4].mean()) - (1 - p)) < 4.5 * sigma * 2
    bits = kept.view(-1, 8).long()
    counts = torch.bincount((bits << torch.arange(8)).sum(1), minlength=256).double()
    ones = torch.tensor([bin(i).count("1") for i in range(256)], dtype=torch.float64)
    wanted = n / 8 * (1 - p) ** ones * p ** (8 - ones)
    frequent = wanted >= 10
    chi2 = float(((counts - wanted) ** 2 / wanted)[frequent].sum())
    degrees = int(frequent.sum()) - 1
    assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(1 << 20, dtype=torch.float64)
    ie.selu_(x)
    y = ie.alpha_dropout(x, 0.2, seed=3)
    assert abs(float(y.mean() - x.mean())) < 0.005 and abs(float(y.var() / x.var()) - 1) < 0.01


# ---- errors -----------------------------------------------------------------------------------------------

ERRORS: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (torch.ones(2, 3), (1.5,), {}, ValueError, "p must be in [0, 1], got 1.5"),
    (torch.ones(2, 3), (-0.1,), {}, ValueError, "p must be in [0, 1], got -0.1"),
    (torch.ones(2, 3), (NAN,), {}, ValueError, "p must be in [0, 1], got nan"),
    (torch.ones(2, 3), (2,), {"training": False}, ValueError, "p must be in [0, 1], got 2"),
    (torch.ones(2, 3), ("1",), {}, TypeError, "p must be a number, not str"),
    (torch.ones(2, 3), (), {"seed": 1.0}, TypeError, "seed must be an int, not float"),
    (torch.ones(2, 3), (), {"seed": 2**64}, ValueError, "seed must be in [-2**63, 2**64)"),
    (torch.ones(2, 3), (), {"seed": -(2**63) - 1}, ValueError, "seed must be in"),
    (torch.ones(2, 3), (), {"offset": -1}, ValueError, "offset must be in [0, 2**64), got -1"),
    (torch.ones(2, 3), (), {"offset": None}, TypeError, "offset must be an int, not NoneType"),
    (torch.ones(2, 3), (), {"generator": 1}, TypeError, "generator must be a torch.Generator, not int"),
    (torch.ones(2, 3), (), {"seed": 1, "generator": torch.Generator()}, ValueError, "exclude each other"),
    (torch.ones(2, 3), (0.5, True, 1), {}, TypeError, "The signature is"),
    (torch.ones(2, 3), (), {"rate": 1}, TypeError, "The signature is"),
    (torch.ones(2, 3, dtype=torch.int64), (), {}, RuntimeError, "can't be cast"),
    (torch.ones(2, 3, dtype=torch.bool), (), {}, RuntimeError, "can't be cast"),
    (torch.ones(2, 1).expand(2, 3), (), {}, RuntimeError, "input.clone()"),
    (torch.ones(2, 3, requires_grad=True), (), {}, RuntimeError, "torch.no_grad()"),
    (torch.ones(2, 3, requires_grad=True)[:1], (), {}, RuntimeError, "torch.no_grad()"),
]


@every_name
@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case[4])
def test_errors_leave_the_tensor_untouched(
    name: str,
    case: tuple[torch.Tensor, tuple[Any, ...], dict[str, Any], type[Exception], str],
    any_backend: str,
) -> None:
    x, args, kwargs, error, message = case
    before, version = x.detach().clone(), x._version
    with pytest.raises(error) as caught:
        getattr(ie, name)(x, *args, **kwargs)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)
    assert torch.equal(x, before) and x._version == version


@pytest.mark.parametrize("name", ["feature_dropout_", "feature_alpha_dropout_"])
def test_channels_need_two_dims(name: str, any_backend: str) -> None:
    x = torch.ones(3)
    for function in (getattr(torch, name), getattr(ie, name)):
        with pytest.raises(RuntimeError, match="at least 2 dimensions"):
            function(x, 0.5, True)
    assert torch.equal(x, torch.ones(3))


@every_name
def test_types_of_errors_are_those_of_torch(name: str, any_backend: str) -> None:
    module = {"dropout_": "dropout", "alpha_dropout_": "alpha_dropout"}.get(name)
    for x, p in (
        (torch.ones(2, 3), 1.5),
        (torch.ones(2, 3, dtype=torch.int32), 0.5),
        (torch.ones(1).expand(2, 3), 0.5),
    ):
        with pytest.raises(Exception) as theirs:
            if module is None or x.dtype == torch.int32:
                torch.dropout_(x, p, True) if p <= 1 else torch.nn.functional.dropout2d(
                    x[None], p, True, True
                )
            else:
                getattr(torch.nn.functional, module)(x, p, True, True)
        with pytest.raises(type(theirs.value)):
            getattr(ie, name)(x, p)


@every_name
def test_inference_tensor(name: str, any_backend: str) -> None:
    with torch.inference_mode():
        x = torch.ones(3, 3)
        getattr(ie, name)(x, seed=1)
    before = x.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        getattr(ie, name)(x)
    assert torch.equal(x, before)
    getattr(ie, name[:-1])(x)  # which it only reads


# ---- memory -----------------------------------------------------------------------------------------------


@pytest.mark.nosanitize  # which keeps what is freed
def test_memory_does_not_grow() -> None:
    """The peak of a process that works on 256 MiB, of every kind of layout."""
    if not CAPABILITIES:
        pytest.skip("no compiled module")
    code = """
    import resource
    import torch
    import inplace_ext as ie
    from inplace_ext import testing

    x = torch.zeros(1 << 13, 1 << 13)
    views = [x, x.t(), x[:, ::2], x.view(64, 128, -1)]
    for view in views:
        ie.dropout_(view[:100]), ie.feature_dropout_(view[:100])  # code and stacks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for view in views:
        for function in (ie.dropout_, ie.feature_dropout_):
            function(view)
            assert testing.last_path() != "torch"
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 16 << 10  # KiB
