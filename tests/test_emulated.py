"""The kernels of csrc/cuda on the emulated device: values, layouts, and the memory they move. No GPU runs."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import test_dropout
import test_softmax
import torch
from emulated import SANITIZER, SECTOR, counted, device, launches, note, seen
from helpers import FLOATS, LAYOUTS, clone_strided, dtype_name, make, matches, same_bits

import inplace_ext as ie
from inplace_ext import testing

pytestmark = emulated.needs_device
INF, NAN = float("inf"), float("nan")
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)


@pytest.fixture(autouse=True)
def note_kernels() -> Iterator[None]:
    launches()
    yield
    note()


def wide(dtype: torch.dtype) -> bool:
    return dtype == torch.float64


# ---- softmax ----------------------------------------------------------------------------------------------


def short(dtype: torch.dtype) -> int:
    """The longest row that a warp holds."""
    return 512 if wide(dtype) else 1024


def held(dtype: torch.dtype) -> int:
    """The longest row that a block holds."""
    return 16 * short(dtype)


def kernel_of(n: int, dtype: torch.dtype) -> str:
    return "softmax_warp" if n <= short(dtype) else "softmax_block" if n <= held(dtype) else "softmax_long"


def softmax(name: str, x: torch.Tensor, *args: Any, kernel: str, **kwargs: Any) -> torch.Tensor:
    """On the device, in place; asserts that this kernel did it."""
    launches()
    with device():
        test_softmax.check(name, x, *args, **kwargs)
    if SANITIZER != "thread":
        (launch,) = note()
        assert launch.kernel.startswith(kernel + "<"), (launch.kernel, x.shape, x.stride())
    return x


@every_dtype
@pytest.mark.parametrize("name", ["softmax_", "log_softmax_"])
def test_softmax_of_every_length(name: str, dtype: torch.dtype) -> None:
    pack = 16 // dtype.itemsize
    lengths = [1, 2, pack - 1, pack, pack + 1, 31, 32, 33, 8 * pack, 32 * pack - 1, 32 * pack, 32 * pack + 1]
    lengths += [n + d for n in (short(dtype), held(dtype)) for d in (-1, 0, 1)] + [2 * held(dtype) + 100]
    for n in sorted({n for n in lengths if n > 0}):
        for layout in ("contiguous", "offset"):
            rows = 2 if n > short(dtype) else 5
            x = make((rows, n), dtype, layout, seed=n, specials=0)
            want = test_softmax.reference(name, x)
            softmax(name, x, kernel=kernel_of(n, dtype))
            test_softmax.assert_near(name, x, want, (n, layout))


def layouts_of(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, int]]:
    """The rows of x in layouts that other kernels are for; each with its name and dim."""
    rows, n = x.shape
    yield (
        "misaligned",
        torch.zeros(rows * (n + 1) + 1, dtype=x.dtype)[1:].view(rows, n + 1)[:, :n].copy_(x),
        -1,
    )
    yield "columns", x.t().contiguous(), 0
    yield "columns of columns", x.t().reshape(1, n, rows).repeat(1, 1, 1).contiguous(), 1
    yield "steps", torch.zeros(rows, 2 * n, dtype=x.dtype)[:, ::2].copy_(x), -1


@every_dtype
@pytest.mark.parametrize("name", ["softmax_", "log_softmax_"])
def test_layouts_change_no_bit_of_softmax(name: str, dtype: torch.dtype) -> None:
    for n in (3, 33, short(dtype), short(dtype) + 1, held(dtype) + 5):
        x = make((6, n), dtype, "contiguous", seed=n, specials=0)
        want = softmax(name, x.clone(), kernel=kernel_of(n, dtype))
        for layout, y, dim in layouts_of(x):
            kernel = kernel_of(n, dtype)
            if "columns" in layout:
                kernel = "softmax_columns" if n <= short(dtype) else "softmax_long_columns"
            softmax(name, y, dim, kernel=kernel)
            got = y.t() if layout == "columns" else y[0].t() if "columns" in layout else y
            assert matches(got, want).all(), (n, layout)


@every_dtype
def test_scores_of_any_size(dtype: torch.dtype) -> None:
    """Beyond a few hundred the exponentials are taken relative to the largest score."""
    large = 30000.0 if dtype == torch.float16 else 3e38 if dtype != torch.float64 else 1e300
    for n in (20, short(dtype) + 9, held(dtype) + 9):
        kernel = kernel_of(n, dtype)
        for scale in (1.0, 300.0, 5000.0, large):
            base = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
            x = (base.clamp(-1, 1) * scale).to(dtype)
            x[1] -= x[1].max() + torch.tensor(scale / 2).to(dtype)
            for name in ("softmax_", "log_softmax_"):
                # Of doubles torch subtracts the largest score and so rounds; the CPU's kernels do not.
                want = getattr(ie, name)(x.clone()) if wide(dtype) else test_softmax.reference(name, x)
                y = softmax(name, x.clone(), kernel=kernel)
                test_softmax.assert_near(name, y, want, (n, scale))
                by_column = "softmax_columns" if n <= short(dtype) else "softmax_long_columns"
                columns = x.repeat(3, 1).t().contiguous()
                softmax(name, columns, 0, kernel=by_column)
                assert matches(columns.t()[:2], y).all(), (n, scale, name)


@every_dtype
def test_special_scores(dtype: torch.dtype) -> None:
    for n in (7, short(dtype) + 3, held(dtype) + 3):
        x = torch.zeros(5, n, dtype=dtype)
        x[0, n // 2], x[1, n - 1], x[2, 0] = NAN, INF, -INF
        x[3], x[4] = -INF, torch.linspace(-INF, 3, n).nan_to_num(-INF, neginf=-INF)
        for name in ("softmax_", "log_softmax_"):
            want = test_softmax.reference(name, x)
            got = softmax(name, x.clone(), kernel=kernel_of(n, dtype))
            test_softmax.assert_near(name, got, want, n)
            columns = x.t().contiguous()
            softmax(
                name, columns, 0, kernel="softmax_columns" if n <= short(dtype) else "softmax_long_columns"
            )
            assert matches(columns.t(), got).all(), (name, n)


@every_dtype
def test_masks_and_scales(dtype: torch.dtype) -> None:
    for n in (24, 77, short(dtype) + 8, held(dtype) + 16):
        x = make((2, 5, n), dtype, "contiguous", seed=n, specials=0)
        keep = torch.rand(2, 5, n, generator=torch.Generator().manual_seed(n)) < 0.7
        keep[..., 0] = True
        add = torch.where(keep, 0.5, -INF).to(dtype)
        for mask in (keep, add, keep[:1], add[:, :1], keep[0, 0], add[:, :, :1], keep[:, :, 1:2] | True):
            want = test_softmax.reference("softmax_", x, -1, 0.37, mask)
            got = softmax("softmax_", x.clone(), scale=0.37, mask=mask, kernel=kernel_of(n, dtype))
            test_softmax.assert_near("softmax_", got, want, (n, mask.shape))
            odd = torch.zeros(mask.numel() + 1, dtype=mask.dtype)[1:].view(mask.shape).copy_(mask)
            other = softmax("softmax_", x.clone(), scale=0.37, mask=odd, kernel=kernel_of(n, dtype))
            assert matches(other, got).all(), "the mask's alignment counts"
            columns = x.transpose(1, 2).contiguous()
            by_column = "softmax_columns" if n <= short(dtype) else "softmax_long_columns"
            turned = mask.expand(x.shape).transpose(1, 2)
            softmax("softmax_", columns, 1, scale=0.37, mask=turned, kernel=by_column)
            assert matches(columns.transpose(1, 2), got).all(), "columns"


def test_softmax_out_of_place() -> None:
    x = make((7, 40), torch.float32, "contiguous", seed=1, specials=0)
    before = x.clone()
    with device():
        y = ie.softmax(x, -1)
    assert y is not x and same_bits(x, before)
    test_softmax.assert_near("softmax_", y, test_softmax.reference("softmax_", x))


# ---- dropout ----------------------------------------------------------------------------------------------


def assert_same_dropout(name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """On the device and on the CPU, bit for bit."""
    want = clone_strided(x)
    getattr(ie, name)(want, *args, **kwargs)
    assert testing.last_path() != "torch" and "emulated" not in testing.last_path()
    got = clone_strided(x)
    with device():
        test_dropout.check(name, got, *args, **kwargs)
        assert testing.last_path().startswith("emulated:")
    assert matches(got, want).all(), (name, x.shape, x.stride(), x.dtype)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_has_the_mask_of_the_cpu(layout: str, dtype: torch.dtype) -> None:
    shapes = [(1,), (3,), (63,), (1031,), (5, 7), (3, 129), (4, 3, 40), (2, 5, 3, 9), (70, 41)]
    for shape in shapes:
        x = make(shape, dtype, layout, seed=len(shape), specials=0.01)
        assert_same_dropout("dropout_", x, 0.3, seed=7, offset=5)


@every_dtype
@pytest.mark.parametrize("name", test_dropout.NAMES)
def test_all_forms_of_dropout(name: str, dtype: torch.dtype) -> None:
    for shape, p in itertools.product([(4, 3, 40), (3, 5, 7, 2), (66, 35)], (0.1, 0.5, 1.0)):
        for order in (range(len(shape)), reversed(range(len(shape)))):
            axes = list(order)
            base = make(tuple(shape[a] for a in axes), dtype, "contiguous", seed=3, specials=0.01)
            x = base.permute(*[axes.index(a) for a in range(len(shape))])
            assert_same_dropout(name, x, p, seed=-1, offset=2**64 - 3)


def test_seed_from_memory_of_the_device() -> None:
    """As while a graph is captured, when the generator's state is known to the device alone."""
    lib = emulated.library()
    lib.inplace_ext_emulate_seed_in_memory(1)
    try:
        for offset in (0, 999, 123456789):
            x = make((7, 61), torch.float32, "contiguous", seed=2)
            assert_same_dropout("dropout_", x, 0.5, seed=2**63 + 5, offset=offset)
            assert_same_dropout("dropout_", x.t(), 0.5, seed=11, offset=offset)
            assert_same_dropout("dropout_", x[:, ::2], 0.5, seed=11, offset=offset)
    finally:
        lib.inplace_ext_emulate_seed_in_memory(0)


def test_dropout_out_of_place_where_results_lie_otherwise() -> None:
    whole = torch.randn(1000)
    x = whole[1:]  # the result is aligned
    with device():
        got = ie.dropout(x, 0.5, seed=3)
    assert same_bits(got, ie.dropout(x, 0.5, seed=3))


# ---- clip_grad_norm_ --------------------------------------------------------------------------------------

NORMS = {2.0: 0, 1.0: 1, INF: 2}
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def clip(tensors: list[torch.Tensor], most: float, order: float) -> tuple[torch.Tensor, torch.Tensor]:
    """On the device; the norm and the factor."""
    dtype = tensors[0].dtype
    total = torch.zeros((), dtype=dtype)
    factor = torch.zeros((), dtype=torch.float64 if wide(dtype) else torch.float32)
    pointers = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
    counts = (ctypes.c_int64 * len(tensors))(*[t.numel() for t in tensors])
    message = ctypes.create_string_buffer(1000)
    failed = emulated.library().inplace_ext_emulate_clip(
        pointers,
        counts,
        len(tensors),
        CODES[dtype],
        NORMS[order],
        ctypes.c_double(most),
        ctypes.c_void_p(total.data_ptr()),
        ctypes.c_void_p(factor.data_ptr()),
        message,
        len(message),
    )
    assert not failed, message.value.decode()
    return total, factor


def gradients(dtype: torch.dtype, counts: list[int]) -> list[torch.Tensor]:
    made = [make((n + 1,), dtype, "contiguous", seed=n, specials=0) for n in counts]
    return [t[1:] if i % 3 == 1 else t[:-1] for i, t in enumerate(made)]


@every_dtype
@pytest.mark.parametrize("order", NORMS)
def test_clipping(order: float, dtype: torch.dtype) -> None:
    pack = 16 // dtype.itemsize
    counts = [1, pack, 3 * pack + 1, 512 * pack, 512 * pack + 5, 65536, 65537]
    grads = gradients(dtype, counts)
    values = [abs(v) for g in grads for v in g.tolist()]
    norms = {1.0: math.fsum(values), 2.0: math.sqrt(math.fsum(v * v for v in values)), INF: max(values)}
    exact = torch.tensor(norms[order], dtype=torch.float64)
    for most in (float(exact) / 3, float(exact) * 3):
        clipped = [g.clone() for g in grads]
        with device():
            total, factor = clip(clipped, most, order)
        torch.testing.assert_close(total, exact.to(dtype), rtol=2e-15 if wide(dtype) else 1e-7, atol=0)
        # In the dtype of the gradients, as torch has it.
        wanted = (most / (total + 1e-6)).clamp(max=1.0)
        assert float(factor) == float(wanted), (factor, wanted)
        for before, after in zip(grads, clipped, strict=True):
            assert same_bits(after, before * wanted)


def test_clipping_of_many_tensors_and_of_none() -> None:
    grads = gradients(torch.float32, [i % 7 for i in range(300)])
    exact = torch.linalg.vector_norm(torch.cat(grads).double())
    with device():
        launches()
        total, factor = clip(grads, 1.0, 2.0)
    assert float(total) == pytest.approx(float(exact), rel=1e-7) and float(factor) < 1
    if SANITIZER != "thread":
        # 257 of the 300 have elements.
        names = [launch.kernel.split("<")[0] for launch in note()]
        assert names == ["norm_parts"] * 3 + ["norm_final"] + ["scale_parts"] * 3
    for special in (NAN, INF):
        total, _ = clip([torch.tensor([1.0, special, 2.0])], 1.0, INF)
        assert same_bits(total, torch.tensor(special).abs())


# ---- whatever the device --------------------------------------------------------------------------------


def every_call() -> Iterator[tuple[str, Callable[[], list[torch.Tensor]]]]:
    """Calls that reach all kernels, each of which gives the tensors it has changed."""

    def on(
        shape: tuple[int, ...], f: Callable[[torch.Tensor], Any], layout: str = "contiguous"
    ) -> list[torch.Tensor]:
        x = make(shape, torch.float32, layout, seed=5, specials=0)
        f(x)
        return [x]

    for shape, dim in (
        ((9, 40), -1),
        ((37, 33), -1),
        ((3, 1500), -1),
        ((3, 17000), -1),
        ((1100, 9), 0),
        ((40, 45), 0),
    ):
        yield f"softmax {shape} {dim}", lambda s=shape, d=dim: on(s, lambda x: ie.softmax_(x, d))
        yield (
            f"log_softmax {shape} {dim}",
            lambda s=shape, d=dim: on(s, lambda x: ie.log_softmax_(x, d), "offset"),
        )
    yield "dropout", lambda: on((5000,), lambda x: ie.dropout_(x, 0.5, seed=1))
    yield "dropout of lines", lambda: on((50, 37), lambda x: ie.dropout_(x, 0.5, seed=1), "step")
    yield "dropout across", lambda: on((50, 37), lambda x: ie.dropout_(x.t(), 0.5, seed=1))

    def clipped() -> list[torch.Tensor]:
        grads = gradients(torch.float32, [5, 70000, 200000])
        return [*clip(grads, 1.0, 2.0), *grads]

    yield "clipping", clipped


def test_neither_the_grid_nor_the_order_of_threads_counts() -> None:
    want = {}
    with device(processors=132, threads=2048):
        for name, call in every_call():
            want[name] = call()
    for processors, order in ((1, "forward"), (2, "backward"), (3, "shuffled")):
        with device(processors=processors, threads=512, order=order):
            for name, call in every_call():
                for got, one in zip(call(), want[name], strict=True):
                    assert same_bits(got, one), (name, processors, order)


# ---- memory moved -----------------------------------------------------------------------------------------


def counted_launch(f: Callable[[], Any]) -> emulated.Launch:
    launches()
    with device(processors=64, threads=2048):
        f()
    (launch,) = note()
    return launch


LARGE = 1 << 18
#: At large sizes the sectors of a launch are the least possible, and at most this much more.
MORE = 1.02


def assert_least(launch: emulated.Launch, read: float, written: float) -> None:
    """So many sectors are read and written, which is the least there is, or 2% more."""
    assert read <= launch.sectors_read <= MORE * read, (launch, read)
    assert written <= launch.sectors_written <= MORE * written, (launch, written)


@counted
@every_dtype
@pytest.mark.parametrize("name", ["softmax_", "log_softmax_"])
def test_softmax_moves_no_more_than_it_must(name: str, dtype: torch.dtype) -> None:
    for n in (64, short(dtype), 4 * short(dtype), 2 * held(dtype)):
        kernel, reads = kernel_of(n, dtype), 2 if n > held(dtype) else 1
        x = make((LARGE // n, n), dtype, "contiguous", seed=1, specials=0)
        least = x.numel() * dtype.itemsize // SECTOR
        launch = counted_launch(lambda x=x: getattr(ie, name)(x, -1))
        assert launch.kernel.startswith(kernel + "<")
        assert_least(launch, reads * least, least)
        assert launch.bytes_read == reads * least * SECTOR and launch.bytes_written == least * SECTOR
        assert launch.widest_read == launch.widest_write == 16
        # Every other element: all sectors of the whole.
        y = make((LARGE // n, 2 * n), dtype, "contiguous", seed=1, specials=0)[:, ::2]
        launch = counted_launch(lambda y=y: getattr(ie, name)(y, -1))
        assert launch.kernel.startswith(kernel + "<")
        assert_least(launch, 2 * reads * least, 2 * least)


@counted
@every_dtype
def test_softmax_of_columns_moves_no_more_than_it_must(dtype: torch.dtype) -> None:
    half = short(dtype) // 2
    for shape, dim in (
        ((64, LARGE // 64), 0),
        ((half, LARGE // half), 0),
        ((8, half, LARGE // half // 8), 1),
        ((4 * half, LARGE // half // 4), 0),
    ):
        long = shape[dim] > short(dtype)
        x = make(shape, dtype, "contiguous", seed=1, specials=0)
        least = x.numel() * dtype.itemsize // SECTOR
        launch = counted_launch(lambda x=x, dim=dim: ie.softmax_(x, dim))
        assert launch.kernel.startswith("softmax_long_columns<" if long else "softmax_columns<")
        assert_least(launch, (2 if long else 1) * least, least)


@counted
@pytest.mark.parametrize("n", [64, 1024, 4096, 32768, -64, -512, -2048], ids=str)
def test_a_mask_is_read_as_often_as_the_scores(n: int) -> None:
    """Of rows of n elements, or of columns of -n."""
    shape = (LARGE // n, n) if n > 0 else (-n, LARGE // -n)
    x = make(shape, torch.float32, "contiguous", seed=1, specials=0)
    reads = 2 if n > held(x.dtype) or -n > short(x.dtype) else 1
    for mask in (torch.ones(shape, dtype=torch.bool), torch.zeros(shape)):
        launch = counted_launch(lambda mask=mask: ie.softmax_(x, -1 if n > 0 else 0, mask=mask))
        least, of_mask = x.numel() * 4 // SECTOR, mask.numel() * mask.element_size() // SECTOR
        # A block of 16 columns uses half of a sector of bools, whose other half its neighbour needs.
        of_mask *= 2 if n == -512 and mask.dtype == torch.bool else 1
        assert_least(launch, reads * (least + of_mask), least)


@counted
@every_dtype
def test_dropout_moves_no_more_than_it_must(dtype: torch.dtype) -> None:
    side = 512
    whole = make((side, 2 * side), dtype, "contiguous", seed=1)
    # What lies between the elements of a step is in the same sectors.
    for x, kernel, item in (
        (whole[: side // 2].view(-1), "dropout_packs", dtype.itemsize),
        (whole[:, :side], "dropout_packs", dtype.itemsize),
        (whole[:, :side].t(), "dropout_tiles", dtype.itemsize),
        (whole.view(-1)[::2], "dropout_lanes", 2 * dtype.itemsize),
    ):
        least = x.numel() * item // SECTOR
        for name in ("dropout_", "alpha_dropout_"):
            launch = counted_launch(lambda name=name, x=x: getattr(ie, name)(x, 0.5, seed=1))
            assert launch.kernel.startswith(kernel + "<")
            assert_least(launch, least, least)
            assert (kernel == "dropout_packs") == (launch.widest_read == launch.widest_write == 16)
    least = whole.numel() * dtype.itemsize // SECTOR
    # Channels one after the other, whose elements lie side by side, and channels side by side.
    for x, kernel in (
        (whole.view(8, 32, -1), "dropout_packs"),
        (whole.view(8, -1, 32).transpose(1, 2), "dropout_packs"),
    ):
        for name in ("feature_dropout_", "feature_alpha_dropout_"):
            launch = counted_launch(lambda name=name, x=x: getattr(ie, name)(x, 0.5, seed=1))
            assert launch.kernel.startswith(kernel + "<"), (launch, x.stride())
            assert_least(launch, least, least)
    launch = counted_launch(lambda: ie.dropout(whole, 0.5, seed=1))
    assert launch.kernel.startswith("dropout_packs<")
    assert_least(launch, least, least)


@counted
@every_dtype
def test_clipping_moves_no_more_than_it_must(dtype: torch.dtype) -> None:
    grads = [make((n,), dtype, "contiguous", seed=n, specials=0) for n in (LARGE, 1 << 16)]
    least = sum(g.numel() for g in grads) * dtype.itemsize // SECTOR
    launches()
    with device(processors=64, threads=2048):
        clip(grads, 1e-3, 2.0)
    parts, final, scale = note()
    assert least <= parts.sectors_read <= 1.02 * least and parts.sectors_written < 0.02 * least
    assert final.sectors < 0.02 * least
    assert least <= scale.sectors_read <= 1.02 * least and least <= scale.sectors_written <= 1.02 * least
    assert parts.widest_read == scale.widest_read == scale.widest_write == 16
    # Nothing is written where the norm is small enough.
    with device(processors=64, threads=2048):
        clip(grads, 1e9, 2.0)
    *_, scale = note()
    assert scale.bytes_written == 0 and scale.sectors_read < 0.02 * least


@counted
def test_every_kernel_has_run() -> None:
    """Runs last: the kernels of the headers are those that the tests above have launched."""
    if not seen & {"softmax_long"} or not seen & {"scale_parts"}:
        pytest.skip("the other tests of this module have not run")
    kernels = emulated.kernels_of("softmax.cuh", "dropout.cuh", "norm.cuh")
    assert len(kernels) == 11 and kernels <= seen, kernels - seen
