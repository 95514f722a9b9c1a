"""softmax_, log_softmax_ and softmax_relu_: values, layouts, masks, and the promises of the contract."""

from __future__ import annotations

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
    make,
    make_data,
    matches,
    same_bits,
    storage_bytes,
    threads,
)

import inplace_ext as ie
from inplace_ext import _forms, _ops, testing
from inplace_ext._table import ROWS

NAMES = ["softmax_", "log_softmax_", "softmax_relu_"]
assert sorted(NAMES) == sorted(ROWS)
INF, NAN = float("inf"), float("nan")
RTOL = {torch.float32: 4e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
#: Elements of a row that the buffer of the kernels holds, and those that the small one does.
HELD = {dtype: (256 << 10) // (8 if dtype == torch.float64 else 4) for dtype in FLOATS}
SMALL = {dtype: (16 << 10) // (8 if dtype == torch.float64 else 4) for dtype in FLOATS}

pytestmark = pytest.mark.usefixtures("one_thread")
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
every_name = pytest.mark.parametrize("name", NAMES)


def reference(
    name: str, x: torch.Tensor, dim: int = -1, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """In float64, not rounded to the dtype."""
    scores = x.double() * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(mask, scores, -INF)
    elif mask is not None:
        scores = scores + mask.double()
    return torch.log_softmax(scores, dim) if name == "log_softmax_" else torch.softmax(scores, dim)


def assert_near(name: str, x: torch.Tensor, want: torch.Tensor, what: object = "") -> None:
    # The score of a logarithm is rounded in the compute type, where it may be far from its result.
    finite = want[want.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    atol = float(torch.finfo(x.dtype).smallest_normal) if x.dtype != torch.float16 else 6e-8
    if name == "log_softmax_":
        atol = max(
            atol, RTOL[torch.float64 if x.dtype == torch.float64 else torch.float32] * min(largest, 1e3)
        )
    torch.testing.assert_close(
        x, want.to(x.dtype), rtol=RTOL[x.dtype], atol=atol, equal_nan=True, msg=lambda m: f"{m} {what}"
    )


def check(name: str, x: torch.Tensor, *args: Any, path: str | None = None, **kwargs: Any) -> torch.Tensor:
    """Calls the function and checks everything about the call but the values; returns x."""
    begin, version, pointer = clone_strided(x), x._version, x.data_ptr()
    layout = (x.shape, x.stride(), x.storage_offset())
    mask = kwargs.get("mask")
    mask_before = None if mask is None else storage_bytes(mask).clone()
    assert getattr(ie, name)(x, *args, **kwargs) is x
    if path is not None:
        expect_path(path, (name, x.dtype, tuple(x.shape), x.stride(), args))
    assert x._version == version + 1 and x.data_ptr() == pointer
    assert layout == (x.shape, x.stride(), x.storage_offset())
    restored = clone_strided(x).copy_(begin)
    assert torch.equal(storage_bytes(restored), storage_bytes(begin)), "wrote outside"
    if isinstance(mask, torch.Tensor):
        assert torch.equal(storage_bytes(mask), mask_before), "the mask was written"
    return x


def lengths(dtype: torch.dtype) -> list[int]:
    small, held = SMALL[dtype], HELD[dtype]
    around = [n + d for n in (small, held) for d in (-1, 0, 1)]
    return [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 127, 1009, 1023, 1024, 1025, 2049, *around]


# ---- values and paths -------------------------------------------------------------------------------------


@every_dtype
@every_name
def test_contiguous_rows_of_every_length(name: str, dtype: torch.dtype, capability: str) -> None:
    for n in lengths(dtype):
        x = make((3, n), dtype, "offset", seed=n, specials=0)
        want = reference(name, x)
        check(name, x, path="rows" if n <= HELD[dtype] else "long_rows")
        assert_near(name, x, want, n)


@every_dtype
@every_name
def test_rows_side_by_side_have_the_bits_of_contiguous_ones(
    name: str, dtype: torch.dtype, capability: str
) -> None:
    held = HELD[dtype]
    for n, columns in (
        *((n, 37) for n in (2, 3, 15, 16, 17, 64, 1023, 1024, 1025)),
        *((n, 150) for n in (5, 511, 512, 513, 1100)),
        *((n, 33) for n in (held // 16, held // 16 + 1)),
        *((n, 130) for n in (held // 16 - 1, held // 16 + 3)),
    ):
        x = make((n, columns), dtype, "rows", seed=n, specials=0.0005)
        want = x.t().clone(memory_format=torch.contiguous_format)
        held_rows = n * 16 <= held
        check(name, x, 0, path="columns" if held_rows else "long_columns")
        check(name, want, -1, path="rows")
        assert matches(x.t(), want).all(), (n, columns)


@every_dtype
@every_name
def test_gathered_rows_have_the_bits_of_contiguous_ones(
    name: str, dtype: torch.dtype, capability: str
) -> None:
    for n in (2, 15, 16, 17, 1023, 1024, 1025, SMALL[dtype] + 1, HELD[dtype], HELD[dtype] + 1):
        x = make((2, n), dtype, "step", seed=n, specials=0.0001)
        want = x.contiguous()
        check(name, x, -1, path="gathered_rows" if n <= HELD[dtype] else "long_gathered_rows")
        check(name, want, -1, path="rows" if n <= HELD[dtype] else "long_rows")
        assert matches(x, want).all(), n


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dim_of_every_layout(layout: str, dtype: torch.dtype, capability: str) -> None:
    for shape in [(5,), (3, 70), (70, 3), (2, 5, 19), (3, 4, 5, 6), (2, 1, 17, 1), (1, 1)]:
        for dim in range(-len(shape), len(shape)):
            x = make(shape, dtype, layout, seed=dim + 9, specials=0.02)
            moved = x.movedim(dim, -1).clone(memory_format=torch.contiguous_format)
            near = reference("softmax_", x, dim)
            check("softmax_", x, dim)
            assert testing.last_path() != "torch"
            check("softmax_", moved, path="rows")
            assert matches(x.movedim(dim, -1), moved).all(), (shape, dim)
            assert_near("softmax_", x, near, (shape, dim))


@every_dtype
@every_name
def test_more_dims_than_merge(name: str, dtype: torch.dtype, capability: str) -> None:
    base = make((2, 3, 4, 3, 2, 8), dtype, specials=0)
    x = base.permute(4, 1, 5, 0, 2, 3)[..., ::2]
    for dim in range(x.dim()):
        y = clone_strided(x)
        want = y.movedim(dim, -1).clone(memory_format=torch.contiguous_format)
        check(name, y, dim)
        check(name, want)
        assert matches(y.movedim(dim, -1), want).all(), dim


@every_name
def test_fewer_rows_side_by_side_than_a_quarter_of_a_vector_are_gathered(name: str, capability: str) -> None:
    check(name, torch.rand(9, 4), 0, path="columns")
    check(name, torch.rand(9, 3), 0, path="gathered_rows" if capability == "avx512" else "columns")


@every_dtype
@every_name
def test_special_values(name: str, dtype: torch.dtype, capability: str) -> None:
    largest, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [
        [0.0, 1.0, NAN, 2.0],
        [NAN, 1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, NAN],
        [0.0, 1.0, INF, 2.0],
        [INF, INF, -INF, 2.0],
        [-INF, -INF, -INF, -INF],
        [-INF, 1.0, -INF, 2.0],
        [-INF, -INF, -INF, 5.0],
        [largest, largest, -largest, 0.0],
        [-largest, -largest, -largest, -largest],
        [tiny, tiny / 4, -tiny / 4, 0.0],
        [0.0, -0.0, -0.0, 0.0],
        [1e4, 1e4 - 100, 0.0, -1e4],
        [0.0, -80.0, -90.0, -110.0],
    ]
    data = torch.tensor(rows, dtype=torch.float64).to(dtype)
    repeated = data.repeat(1, 9)  # beyond a vector, with a tail
    for x in (data, repeated, repeated[:, :33]):
        want = reference(name, x)
        for y, dim in (
            (x.clone(), 1),
            (x.t().clone(memory_format=torch.contiguous_format), 0),
            (clone_strided(x), -1),
        ):
            check(name, y, dim)
            assert testing.last_path() != "torch"
            assert_near(name, y if dim else y.t(), want)
    if name != "log_softmax_":
        y = check(name, data.clone())
        assert not y[~y.isnan()].signbit().any()


@every_dtype
@every_name
@pytest.mark.parametrize("top", [80.0, 100, 400, 450, 512, 600])
def test_largest_scores_whose_own_exponential_overflows(
    name: str, top: float, dtype: torch.dtype, capability: str
) -> None:
    """Or vanishes. Of one that is not large nothing is subtracted but from the exponents of the results."""
    below = 600 if dtype == torch.float64 else 80
    for sign in (1, -1):
        x = (torch.linspace(-below, 0, 37, dtype=torch.float64).repeat(16, 1) + sign * top).to(dtype)
        want = reference(name, x)
        for y, dim, path in ((x.clone(), 1, "rows"), (x.t().contiguous(), 0, "columns")):
            assert_near(name, check(name, y, dim, path=path).movedim(dim, 1), want, sign)
            assert (y.movedim(dim, 1)[want > torch.finfo(dtype).smallest_normal] > 0).all()


@every_name
@pytest.mark.parametrize("at", [0, 15, 16, 700, 1023, 1024, 1500])
def test_a_nan_anywhere_reaches_its_row_and_no_other(name: str, at: int, capability: str) -> None:
    for value in (NAN, INF):
        x = torch.randn(4, 1501)
        x[2, at] = value
        for y, dim in ((x.clone(), 1), (x.t().clone(memory_format=torch.contiguous_format), 0)):
            check(name, y, dim)
            rows = (y if dim else y.t()).isnan()
            assert rows[2].all() and not rows[[0, 1, 3]].any()


@every_name
def test_rows_of_one_element_and_tensors_without_dims(name: str, capability: str) -> None:
    one = 0.0 if name == "log_softmax_" else 1.0
    for dtype in FLOATS:
        for dim in (0, -1):
            x = torch.tensor(3.0, dtype=dtype)
            check(name, x, dim, path="rows")
            assert x.item() == one
        x = make((6, 1, 3), dtype, "step", specials=0)
        check(name, x, 1)
        assert (x == one).all()
    x = torch.tensor(NAN)
    assert check(name, x).isnan()


@every_name
@pytest.mark.parametrize("shape, dim", [((0,), 0), ((3, 0), 1), ((3, 0), 0), ((0, 4), 0), ((2, 0, 3), -1)])
def test_empty(name: str, shape: tuple[int, ...], dim: int, any_backend: str) -> None:
    x = torch.empty(shape)
    assert getattr(ie, name)(x, dim) is x
    assert x.shape == shape and x._version == 1


# ---- scale and mask ---------------------------------------------------------------------------------------


@every_dtype
@every_name
@pytest.mark.parametrize("scale", [0, 0.125, -1.5, 2, True, 1e30, -INF, INF, NAN])
def test_scale(name: str, scale: float, dtype: torch.dtype, capability: str) -> None:
    if abs(scale) == 1e30 and dtype == torch.float64:
        scale = 1e200
    for shape, dim in (((3, 70), 1), ((70, 33), 0)):
        x = make(shape, dtype, specials=0)
        compute = x.double() if dtype == torch.float64 else x.float()
        scores = compute * float(scale)
        check(name, x, dim, scale=scale)
        assert testing.last_path() != "torch"
        assert_near(name, x, reference(name, scores, dim), scale)


def masks(shape: tuple[int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Of both kinds, broadcast in every way, and laid out in several."""
    a, b, c = shape
    found = []
    g = torch.Generator().manual_seed(5)
    for kind in (torch.bool, dtype):
        for size in [(a, b, c), (b, c), (c,), (1, c), (b, 1), (a, 1, c), (a, b, 1), (a, 1, 1), (1, 1, 1), ()]:
            random = torch.randn(size, generator=g)
            found.append(random > -0.5 if kind == torch.bool else random.to(dtype))
        found.append(found[0].mT.contiguous().mT if kind == torch.bool else found[-1].expand(a, b, c))
        wide = torch.randn(a, b, 2 * c, generator=g)
        found.append((wide > 0 if kind == torch.bool else wide.to(dtype))[:, :, ::2])
    return found


@every_dtype
@every_name
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_masks(name: str, dim: int, dtype: torch.dtype, capability: str) -> None:
    shape = (5, 20, 37)
    for layout in ("contiguous", "step", "transposed"):
        for mask in masks(shape, dtype):
            x = make(shape, dtype, layout, seed=3, specials=0)
            scores = (x.double() if dtype == torch.float64 else x.float()) * 0.7
            if mask.dtype != torch.bool:
                scores = scores + mask.to(scores.dtype)
            kept = mask if mask.dtype == torch.bool else None
            want = reference(name, scores, dim, mask=kept)
            check(name, x, dim, scale=0.7, mask=mask)
            assert testing.last_path() != "torch"
            assert_near(name, x, want, (layout, mask.dtype, tuple(mask.shape)))


@every_dtype
@pytest.mark.parametrize("kind", ["keep", "add"])
def test_mask_of_long_rows(kind: str, dtype: torch.dtype, capability: str) -> None:
    n = HELD[dtype] + 5
    x = make((2, n), dtype, specials=0)
    mask = torch.rand(n) < 0.5
    want = reference("softmax_", x, mask=mask)
    if kind == "add":
        mask = torch.zeros(n).masked_fill(~mask, -INF).to(dtype)
    check("softmax_", x, mask=mask, path="long_rows")
    assert_near("softmax_", x, want)
    n = HELD[dtype] // 8
    x = make((n, 40), dtype, specials=0)
    mask = torch.rand(n, 40) < 0.5
    want = reference("softmax_", x, 0, mask=mask)
    if kind == "add":
        mask = torch.zeros(n, 40).masked_fill(~mask, -INF).to(dtype)
    check("softmax_", x, 0, mask=mask, path="long_columns")
    assert_near("softmax_", x, want)


@every_name
def test_masked_scores_do_not_count_whatever_they_are(name: str, capability: str) -> None:
    mask = torch.tensor([True, False, True, False, False])
    x = torch.tensor([1.0, NAN, 2.0, INF, -INF])
    want = reference(name, x, mask=mask)
    assert_near(name, check(name, x, mask=mask), want)
    assert check(name, torch.randn(3, 4), mask=torch.zeros(4, dtype=torch.bool)).isnan().all()
    # Any byte that is not 0 is true.
    odd = torch.tensor([[2, 1], [0, 1], [255, 1]], dtype=torch.uint8).view(torch.bool)
    for mask in (odd[:, 0], odd[:, 0].contiguous()):
        assert check("softmax_", torch.zeros(3), mask=mask).tolist() == [0.5, 0, 0.5]


@every_name
def test_mask_that_shares_memory_or_has_another_dtype_goes_to_torch(name: str, any_backend: str) -> None:
    base = torch.randn(2, 40)
    for mask in (
        *(base[:, :20], base[:, 10:30], base[:1, 10:30]),  # the last is written with the first row
        *(base[:1, 5:25].double(), base[:, :20].bfloat16()),
    ):
        x = base.clone()[:, 10:30] if mask.dtype != torch.float32 else base[:, 10:30]
        before = base.clone()
        want = reference(name, x, mask=mask.clone())
        getattr(ie, name)(x, mask=mask)
        assert_near(name, x, want)
        base.copy_(before)
    # x itself as its mask: every score is read before it is written.
    x = torch.randn(3, 50)
    want = reference(name, x, scale=2)
    assert_near(name, getattr(ie, name)(x, mask=x), want)


# ---- accuracy ---------------------------------------------------------------------------------------------


def errors(x: torch.Tensor, exact: np.ndarray, relative: bool) -> tuple[float, float]:
    got = x.double().numpy().astype(np.longdouble)
    error = np.abs(got - exact)
    if relative:
        error = error / exact
    return float(error.max()), float(error.mean())


@every_dtype
@pytest.mark.parametrize("name", ["softmax_", "log_softmax_"])
@pytest.mark.parametrize("n", [64, 1000, 5000, 100_000])
def test_errors_are_no_larger_than_torchs(name: str, n: int, dtype: torch.dtype, capability: str) -> None:
    ours, torchs = [], []
    for seed, spread in enumerate((0.1, 2, 2, 10)):
        g = torch.Generator().manual_seed(n + seed)
        data = (torch.randn(400_000 // n, n, generator=g, dtype=torch.float64) * spread).to(dtype)
        scores = data.double().numpy().astype(np.longdouble)
        scores = scores - scores.max(axis=1, keepdims=True)
        e = np.exp(scores)
        total = e.sum(axis=1, keepdims=True)
        exact = scores - np.log(total) if name == "log_softmax_" else e / total
        relative = name == "softmax_" and float(exact.min()) > torch.finfo(dtype).smallest_normal
        ours.append(errors(getattr(ie, name)(data.clone()), exact, relative))
        assert testing.last_path() != "torch"
        torchs.append(errors(getattr(torch, name[:-1])(data, -1), exact, relative))
    (our_max, our_mean), (torch_max, torch_mean) = (
        (max(m for m, _ in e), float(np.mean([m for _, m in e]))) for e in (ours, torchs)
    )
    # The 16-bit floats round far more than is computed wrongly: there the two means are the same.
    assert our_mean <= torch_mean * (1 + 1e-6), (our_mean, torch_mean)
    assert our_max <= torch_max * (1 + 1e-6), (our_max, torch_max)


@every_name
@pytest.mark.parametrize("score", [-0.1, -0.55, -1.7])
def test_sums_of_long_rows_do_not_drift(name: str, score: float, capability: str) -> None:
    """Each addition of the same number to a partial sum rounds to the same side: blocks keep them few."""
    x = torch.full((60_000, 16), score)
    x[0] = 0
    want = reference(name, x, 0)
    for y, dim, path in ((x.t().contiguous(), 1, "rows"), (x, 0, "long_columns")):
        check(name, y, dim, path=path)
        got = y if dim == 0 else y.t()
        # An error of a logarithm is one of the sum.
        error = (got - want).abs() if name == "log_softmax_" else (got / want - 1).abs()
        assert float(error.max()) < 4e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_results_vanish_where_they_round_to_zero(dtype: torch.dtype, capability: str) -> None:
    """And no earlier: the way through denormal numbers is cut short only below the smallest of them."""
    small, gone = [-87.0, -88, -95, -100, -103.1, -103.5, -103.9], [-104.1, -110, -1e4]
    if dtype == torch.float64:
        small, gone = [-708.0, -709, -720, -740, -744, -744.6, -745.1], [-745.3, -800, -1e5]
    info = torch.finfo(dtype)
    scores = torch.tensor([*small, *gone], dtype=dtype)
    want = torch.from_numpy(np.exp(scores.numpy().astype(np.longdouble)).astype(scores.numpy().dtype))
    assert (want > 0).tolist() == [True] * len(small) + [False] * len(gone)
    for top in (0.0, 8192.0):  # of which nothing and all is subtracted
        rows = torch.stack((torch.zeros_like(scores), scores), 1) + top
        exact = np.exp((rows[:, 1] - top).numpy().astype(np.longdouble)).astype(scores.numpy().dtype)
        for x, dim, path in ((rows.clone(), 1, "rows"), (rows.t().contiguous(), 0, "columns")):
            got = check("softmax_", x, dim, path=path).movedim(dim, 1)[:, 1]
            near = (got - torch.from_numpy(exact)).abs()
            assert float(near.max()) <= 2 * info.smallest_normal * info.eps
            assert torch.equal(got > 0, torch.from_numpy(exact > 0)), (got, exact)


@every_name
def test_sixteen_bit_floats_are_rounded_once(name: str, capability: str) -> None:
    for dtype in HALVES:
        for n, dim in ((100, 1), (HELD[dtype] + 9, 1), (300, 0), (HELD[dtype] // 8, 0)):
            x = make((n, 40) if dim == 0 else (2, n), dtype, specials=0)
            wide = getattr(ie, name)(x.float(), dim)
            assert same_bits(check(name, x, dim), wide.to(dtype))


@every_name
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_scaled_sixteen_bit_floats_are_rounded_once(name: str, dtype: torch.dtype, any_backend: str) -> None:
    x = make((20, 30), dtype, specials=0)
    wide = getattr(ie, name)(x.float(), scale=0.7)
    assert same_bits(check(name, x, scale=0.7), wide.to(dtype))


@every_name
def test_relu_changes_nothing(name: str, capability: str) -> None:
    x = make((9, 77), torch.float32, specials=0.01)
    softmax = ie.softmax_(x.clone())
    assert matches(torch.relu(softmax), ie.softmax_relu_(x)).all()


# ---- twins ------------------------------------------------------------------------------------------------


@every_dtype
@every_name
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twin_leaves_its_input_and_has_the_bits(
    name: str, layout: str, dtype: torch.dtype, any_backend: str
) -> None:
    twin = getattr(ie, name[:-1])
    for shape in ((3, 4, 50), (40, 70), (3, HELD[dtype] + 3)):
        for dim in (0, -1):
            x = make(shape, dtype, layout, seed=dim + 5, specials=0.001)
            mask = torch.rand(shape[-1]) < 0.8
            begin, version = storage_bytes(x).clone(), x._version
            y = twin(x, dim, scale=0.5, mask=mask)
            path = testing.last_path()
            assert torch.equal(storage_bytes(x), begin) and x._version == version
            assert y is not x and y.dtype == dtype and y.shape == x.shape and y._version == 0
            assert any_backend == "torch" or y.stride() == torch.empty_like(x).stride()
            z = getattr(ie, name)(torch.empty_like(x).copy_(x), dim, scale=0.5, mask=mask)
            assert testing.last_path() == path
            assert matches(y, z).all(), (shape, dim)
            if len(shape) == 2 and shape[1] > HELD[dtype]:
                break
    x = torch.randn(3, 1, dtype=torch.float64).to(dtype).expand(3, 6)
    assert matches(twin(x), getattr(ie, name)(x.contiguous())).all()
    assert twin(torch.empty(0, 3, dtype=dtype)).shape == (0, 3)


# ---- what a result may not depend on ----------------------------------------------------------------------


@every_dtype
@every_name
def test_threads_change_no_bit(name: str, dtype: torch.dtype, capability: str) -> None:
    for shape in ((257, 301), (5, HELD[dtype] + 7), (3, 40, 700)):
        data = make_data(int(np.prod(shape)), dtype, 1, 0.0001).reshape(shape)
        for dim in range(len(shape)):
            results = []
            for count in (1, 2, 3, 7):
                with threads(count):
                    results.append(check(name, data.clone(), dim))
            for other in results[1:]:
                assert matches(results[0], other).all(), (shape, dim)


@every_dtype
@every_name
def test_alignment_and_place_change_no_bit(name: str, dtype: torch.dtype, capability: str) -> None:
    data = make_data(200, dtype, 2, 0)
    buffer = torch.zeros(300, dtype=dtype)
    for n in (5, 16, 33, 100, 200):
        want = getattr(ie, name)(data[:n].clone())
        for offset in range(17):
            x = buffer[offset : offset + n].copy_(data[:n])
            assert same_bits(getattr(ie, name)(x), want)
        for column in range(0, 40, 3):
            across = torch.zeros(n, 40, dtype=dtype)
            across[:, column] = data[:n]
            assert same_bits(getattr(ie, name)(across, 0)[:, column], want)


# ---- errors -----------------------------------------------------------------------------------------------

F = torch.ones(2, 3)
ERRORS: list[tuple[torch.Tensor, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (F, (2,), {}, IndexError, "Give a dim that input has"),
    (F, (-3,), {}, IndexError, "Give a dim that input has"),
    (torch.tensor(1.0), (1,), {}, IndexError, "Give a dim that input has"),
    (F, (1.5,), {}, TypeError, "The signature is"),
    (F, ("1",), {}, TypeError, "The signature is"),
    (F, (0, 1), {}, TypeError, "The signature is"),
    (F, (), {"scale": "2"}, TypeError, "scale must be a number, not str"),
    (F, (), {"scale": 2j}, TypeError, "scale must be a number, not complex"),
    (F, (), {"mask": 1}, TypeError, "mask must be a torch.Tensor"),
    (F, (), {"mask": torch.ones(3, dtype=torch.int64)}, TypeError, "mask must be a bool or floating tensor"),
    (F, (), {"mask": torch.ones(2)}, RuntimeError, "give an operand that broadcasts to it"),
    (F, (), {"mask": torch.ones(4, 2, 3, dtype=torch.bool)}, RuntimeError, "float32 tensor of shape (2, 3)"),
    (F, (), {"temperature": 1}, TypeError, "The signature is"),
    (torch.ones(3, dtype=torch.int64), (), {}, NotImplementedError, "Convert input"),
    (torch.ones(3, dtype=torch.int64), (), {"scale": 0.5}, NotImplementedError, "Convert input"),
    (torch.ones(1).expand(3), (), {}, RuntimeError, "input.clone()"),
    (torch.ones(3, requires_grad=True), (), {}, RuntimeError, "torch.no_grad()"),
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


@every_name
def test_types_of_errors_are_those_of_torch(name: str, any_backend: str) -> None:
    for x, dim in (
        (F, 2),
        (torch.ones(2, dtype=torch.int32), 0),
        (torch.ones(2, dtype=torch.bool), 0),
        (3, 0),
    ):
        with pytest.raises(Exception) as theirs:
            getattr(torch, name.replace("_relu", "")[:-1])(x, dim)
        with pytest.raises(type(theirs.value)) as ours:
            getattr(ie, name)(x, dim)
        assert type(ours.value) is type(theirs.value)


@every_name
def test_inference_tensor(name: str, any_backend: str) -> None:
    with torch.inference_mode():
        x = torch.ones(3)
        getattr(ie, name)(x)
    before = x.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        getattr(ie, name)(x)
    assert torch.equal(x, before)


# ---- what torch carries out -------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("kind", ["none", "keep", "add"])
def test_autograd(name: str, kind: str, any_backend: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = {
        "none": None,
        "keep": torch.tensor([True, False, True, True]),
        "add": torch.randn(4, dtype=torch.float64, requires_grad=True),
    }[kind]

    def f(x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(ie, name)(x.clone(), 0, scale=0.5, mask=masks[0] if masks else mask)
        assert (testing.last_path() == "torch") == (any_backend == "torch")
        # Where softmax drops a score, log_softmax is -inf.
        return y.masked_fill(~mask, 0) if kind == "keep" and mask is not None else y

    arguments = (x, mask) if kind == "add" else (x,)
    assert torch.autograd.gradcheck(f, arguments)
    assert torch.autograd.gradgradcheck(f, arguments)


@every_name
def test_version_counter_guards_saved_tensors(name: str, any_backend: str) -> None:
    w = torch.randn(3, requires_grad=True)
    x = torch.randn(3)
    y = (w * x).sum()
    getattr(ie, name)(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@every_name
@pytest.mark.parametrize("functions", [vars(ie), "fallback"], ids=["public", "fallback"])
def test_compile(name: str, functions: dict[str, Callable[..., Any]] | str) -> None:
    torch._dynamo.reset()
    function = getattr(ie, name) if functions != "fallback" else _ops._fallback(ROWS[name])

    def f(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = function(x, 0, scale=0.5, mask=mask)
        return y

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for mask in (torch.rand(4, 5) < 0.8, torch.randn(5)):
        mask[..., 0] = 1
        x = torch.randn(4, 5)
        want = f(x.clone(), mask)
        assert compiled(x, mask) is x
        torch.testing.assert_close(x, want, equal_nan=True)


@every_name
def test_vmap_subclass_and_fake_tensor(name: str) -> None:
    function = getattr(ie, name)
    x = torch.randn(3, 4, 5)
    want = function(x.clone(), -1)
    torch.testing.assert_close(torch.func.vmap(lambda t: function(t, 1))(x.clone()), want)

    class Sub(torch.Tensor):
        pass

    sub = x.clone().as_subclass(Sub)
    assert function(sub) is sub and testing.last_path() == "torch"
    torch.testing.assert_close(sub.as_subclass(torch.Tensor), want)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.empty(3, 4)
        assert function(fake, 0) is fake


@every_name
def test_form_and_fallback(name: str) -> None:
    for dtype in FLOATS:
        x = make((4, 30), dtype, specials=0)
        mask = torch.rand(30) < 0.7
        want = reference(name, x, 1, 0.5, mask)
        for function in (getattr(_forms, name), _ops._fallback(ROWS[name])):
            y = x.clone()
            assert function(y, 1, scale=0.5, mask=mask) is y
            assert_near(name, y, want)


# ---- memory -----------------------------------------------------------------------------------------------


@pytest.mark.nosanitize  # which keeps what is freed
def test_memory_does_not_grow() -> None:
    """The peak of a process that works on 256 MiB, along every kind of dim."""
    if not CAPABILITIES:
        pytest.skip("no compiled module")
    code = """
    import resource
    import torch
    import inplace_ext as ie
    from inplace_ext import testing

    x = torch.zeros(64 << 20)
    mask = torch.ones(1, 1 << 13, dtype=torch.bool)
    views = [(x, 0), (x.view(1 << 13, 1 << 13), 0), (x.view(1 << 13, 1 << 13), 1), (x.view(-1, 2)[:, 0], 0)]
    for view, dim in [(v[:100], d) for v, d in views]:
        ie.softmax_(view, dim)  # code and stacks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for view, dim in views:
        ie.softmax_(view, dim)
        assert testing.last_path() != "torch"
    ie.softmax_(views[2][0], 1, mask=mask)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 16 << 10  # KiB


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_instruction_sets_agree_within_the_error() -> None:
    x = make((20, 1000), torch.float32, specials=0)
    results = []
    for name in CAPABILITIES:
        with backend(name):
            results.append(ie.softmax_(x.clone()))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=RTOL[torch.float32], atol=0)


@every_name
def test_samples_of_torchs_own_tests(name: str, capability: str) -> None:
    """The inputs on which torch tests its softmax: every shape and dim of them, and dtypes to convert to."""
    from torch.testing._internal.common_methods_invocations import op_db

    wanted = name.removesuffix("_").replace("_relu", "")
    infos = [op for op in op_db if op.name == wanted and not op.variant_test_name]
    assert infos
    count = 0
    for op in infos:
        for dtype in FLOATS:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=False):
                dim = sample.args[0] if sample.args else sample.kwargs["dim"]
                x = sample.input.clone()
                want = reference(name, x, dim)
                assert_near(name, getattr(ie, name)(x, dim), want)
                assert testing.last_path() != "torch"
                count += 1
    assert count > 10
