"""The CUDA kernels: what needs no GPU (registrations, errors), and on a GPU everything beside CPU and torch.

What has run where is said in README.md. INPLACE_EXT_TEST_CUDA=1 says that the kernels are there, so that
their absence is an error (`make cuda`). With INPLACE_EXT_TEST_CUDA=emulated the emulated device stands for
the GPU where only values count, which shows that these tests are sound (`make emulate`).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import helpers
import pytest
import test_emulated_layouts as emulated_layouts
import test_engine
import test_layout_changes as layouts
import test_operations
import test_parity
import torch
from helpers import DTYPES, FLOATS, LAYOUTS, NATIVE, OPS, dtype_name, each, make, matches

import inplace_ext as ie
from inplace_ext import _build, _native, testing

ASKED = os.environ.get("INPLACE_EXT_TEST_CUDA", "0")
EMULATED = ASKED == "emulated"
built = pytest.mark.skipif(
    _native.cuda is None and ASKED != "1", reason=f"no CUDA kernels: {_native.cuda_reason}"
)
_no_gpu = _native.cuda is None or not torch.cuda.is_available()
gpu = pytest.mark.skipif(_no_gpu, reason="needs a GPU and a build with CUDA kernels")
#: Of values alone: the emulated device will do.
values = pytest.mark.skipif(_no_gpu and not EMULATED, reason="needs a GPU and a build with CUDA kernels")
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
OPERATORS = ("softmax_", "softmax", "dropout_", "dropout", "dropout_backward", "dropout_state")
GIB = 1 << 30

if EMULATED:
    import emulated

    helpers.gpu = helpers.Gpu("cpu", "emulated")


@pytest.fixture(autouse=True)
def no_error_is_left() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def on_device() -> Iterator[None]:
    """Calls with tensors of the GPU; the last of them took a kernel there."""
    with emulated.device() if EMULATED else nullcontext():
        yield
        assert path().startswith(helpers.gpu.path + ":"), path()


@pytest.fixture
def suite_on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """helpers.check() and the programs of test_engine.py run there alone."""
    monkeypatch.setattr(helpers, "CAPABILITIES", [helpers.GPU])
    monkeypatch.setattr(helpers, "_active", helpers.GPU)
    with emulated.device() if EMULATED else nullcontext():
        yield


def on_cuda(value: Any) -> Any:
    """The same on the device, tensors with their strides."""
    return helpers.clone_all([value], helpers.gpu.device)[0]


def path() -> str:
    return testing.last_path()


def beside_cpu(name: str, x: torch.Tensor, *args: Any) -> None:
    """On the device, and by the CPU's kernels on x itself: the same bits but for the payload of NaN."""
    y, device_args = on_cuda(x), [on_cuda(a) for a in args]
    version, pointer = y._version, y.data_ptr()
    getattr(ie, name)(x, *args)
    assert getattr(ie, name)(y, *device_args) is y
    assert y.data_ptr() == pointer and y._version == version + 1
    assert matches(y.cpu(), x).all(), (name, x.dtype, x.shape)


# ---- without a GPU ----------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_a_cuda_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"inplace_ext::{name}", "CUDA")


@built
def test_every_operation_has_a_cuda_kernel() -> None:
    module = _native.module
    assert module is not None
    operations = module.build_info()["operations"]
    assert {name for name in operations if not module.cuda_serves(name)} == set()
    assert not module.cuda_serves("no_such_operation_")


@built
def test_info_says_what_is_there() -> None:
    info = ie.info()
    assert info.cuda_reason is None, info.cuda_reason
    assert info.backends["cuda"].startswith("own kernels (elementwise operations, fuse, ")
    assert "-fmad=false" in info.flags["cuda"]
    assert info.cuda is not None and torch.version.cuda is not None
    assert info.cuda.partition(".")[0] == torch.version.cuda.partition(".")[0]
    assert all(architecture[0].isdigit() for architecture in info.cuda_architectures)
    assert info.cuda in str(info)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_is_torchs() -> None:
    with pytest.raises((RuntimeError, AssertionError)) as own:
        torch.zeros(2, device="cuda")
    for call in (
        lambda: ie.add_(torch.zeros(2, device="cuda"), 1),
        lambda: ie.softmax_(torch.zeros(2, device="cuda")),
        lambda: ie.fuse(lambda x: x.add_(1))(torch.zeros(2).cuda()),
    ):
        with pytest.raises(type(own.value)) as error:
            call()
        assert str(error.value) == str(own.value)


@pytest.mark.skipif(_native.module is None or shutil.which("c++") is None, reason="needs module and compiler")
def test_kernels_of_another_build_are_refused(tmp_path: Path) -> None:
    """Of this interface, but of another op table."""
    header = Path(__file__).parents[1] / "csrc" / "include" / "inplace_ext" / "cuda.h"
    abi = re.search(r"kCudaAbiVersion = (\d+);", header.read_text())
    assert abi is not None and _native.module is not None
    source, library = tmp_path / "kernels.cpp", tmp_path / "kernels.so"
    source.write_text(
        f"struct {{ unsigned abi, table; }} kernels = {{{abi[1]}, 1}};\n"
        'extern "C" const void* inplace_ext_cuda_kernels() { return &kernels; }\n'
    )
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(RuntimeError, match="of another build"):
        _native.module.load_cuda_kernels(str(library))


# ---- parity -----------------------------------------------------------------------------------------------


@values
@each(OPS)
@pytest.mark.usefixtures("suite_on_device")
def test_layouts(name: str, dtype: torch.dtype) -> None:
    test_parity.test_layouts_of_input(name, dtype)


@values
@each(test_operations.OTHERS)
@pytest.mark.usefixtures("suite_on_device")
def test_other_operations(name: str, dtype: torch.dtype) -> None:
    test_operations.test_layouts_and_tails(name, dtype)


@values
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.usefixtures("suite_on_device")
def test_samples(name: str) -> None:
    for own, info in test_parity.OPINFOS:
        if own == name:
            test_parity.test_opinfo(name, info, "step" if name in OPS else "contiguous")


@values
@each(["add_", "clamp_", "copy_", "exp_"])
@pytest.mark.usefixtures("suite_on_device")
def test_sizes(name: str, dtype: torch.dtype) -> None:
    sizes = (0, 1, 3, 15, 16, 17, 255, 1023, 4096, 4099)
    for n, layout in itertools.product(sizes, ("contiguous", "offset")):
        x = make((n,), dtype, layout, n)
        args, kwargs = helpers.default_args(name, x, n, layout)
        helpers.check(name, x, *args, **kwargs)


@values
@by_dtype
@pytest.mark.usefixtures("suite_on_device")
def test_conversions(dtype: torch.dtype) -> None:
    test_parity.test_conversions_of_copy(dtype)


@values
@by_dtype
@pytest.mark.parametrize("name", ["copy_", "add_", "mul_", "maximum_"])
@pytest.mark.usefixtures("suite_on_device")
def test_broadcast_and_mixed_dtypes(name: str, dtype: torch.dtype) -> None:
    for other, shape in itertools.product(DTYPES, ((7, 64), (64,), (7, 1), (1, 1))):
        x = make((7, 64), dtype, "contiguous", 1, specials=0)
        helpers.check(name, x, make(shape, other, "contiguous", 2, specials=0).clamp(0, 100))


@values
@pytest.mark.parametrize("compute", list(test_engine.COMPUTE))
@pytest.mark.usefixtures("suite_on_device")
def test_programs(compute: str) -> None:
    r = random.Random(list(test_engine.COMPUTE).index(compute))
    for _ in range(30):
        stages, tensors, scalars = test_engine.random_program(r, compute)
        test_engine.check_program(compute, stages, tensors, scalars)


@values
@floats
def test_chain(dtype: torch.dtype) -> None:
    @ie.fuse
    def normalize_(x, mean, std):  # type: ignore[no-untyped-def]
        y = x.sub_(mean).div_(std)
        return y.mul_(torch.where(y > 0, y, y * 0.5)).clamp_(-3, 3)

    for layout in LAYOUTS:
        x, mean, std = make((6, 5, 40), dtype, layout, 0), make((5, 1), dtype, "contiguous", 1), 1.5
        y, device_mean = on_cuda(x), on_cuda(mean)
        normalize_(x, mean, std)
        with on_device():
            normalize_(y, device_mean, std)
        assert matches(y.cpu(), x).all(), layout


@values
@floats
def test_chain_on_lists(dtype: torch.dtype) -> None:
    adam_ = ie.fuse(helpers.adam_)
    sizes = [1 + 37 * i % 5000 for i in range(40)]
    # Some begin anywhere.
    host = [
        [make((n,), dtype, "offset" if n % 3 == 0 else "contiguous", k, specials=0).abs_() for n in sizes]
        for k in range(4)
    ]
    device = [[on_cuda(t) for t in tensors] for tensors in host]
    adam_(*host, 0.1)
    with on_device():
        adam_(*device, 0.1)
    for one, other in zip(host, device, strict=True):
        assert all(matches(a, b.cpu()).all() for a, b in zip(one, other, strict=True))


@gpu
def test_lists_are_a_few_launches() -> None:
    @ie.fuse
    def sgd_(p, grad, buf, lr):  # type: ignore[no-untyped-def]
        buf.mul_(0.9).add_(grad)
        p.add_(buf, alpha=-lr)

    sizes = [1 + 37 * i % 5000 for i in range(2000)]
    host = [[torch.randn(n) for n in sizes] for _ in range(3)]
    device = [[t.cuda() for t in tensors] for tensors in host]
    sgd_(*host, 0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sgd_(*device, 0.1)
        torch.cuda.synchronize()
    assert path() == "cuda:listed"
    assert sum(event.count for event in profile.key_averages() if "run_list" in event.key) <= 8
    for one, other in zip(host, device, strict=True):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(one, other, strict=True))


# ---- softmax, dropout, clipping ---------------------------------------------------------------------------


@values
@floats
@pytest.mark.parametrize("name", ["softmax_", "log_softmax_", "softmax_relu_"])
def test_softmax(name: str, dtype: torch.dtype) -> None:
    def compare(x: torch.Tensor, dim: int, mask: torch.Tensor | None = None) -> None:
        y, device_mask = on_cuda(x), on_cuda(mask)
        getattr(ie, name)(x, dim, scale=0.5, mask=mask)
        with on_device():
            getattr(ie, name)(y, dim, scale=0.5, mask=device_mask)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y.cpu(), x, rtol=8 * eps, atol=8 * eps if "log" in name else eps * 1e-3)

    for n in (1, 7, 33, 512, 1025, 5000, 40_000):
        for dim in (-1, 0):
            compare(torch.randn((n, 6) if dim == 0 else (6, n)).to(dtype), dim)
    keep = torch.rand(6, 1, 700) < 0.7
    for layout in LAYOUTS:
        for mask in (keep, torch.where(keep, 0.5, -30.0).to(dtype)):
            compare(make((6, 5, 700), dtype, layout, 1, specials=0), -1, mask)
            compare(make((6, 700, 5), dtype, layout, 1, specials=0), 1, mask.transpose(1, 2))


@values
@floats
@pytest.mark.parametrize("name", ["dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"])
def test_dropout_has_the_mask_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x = make((3, 4, 5, 33), dtype, layout, 0)
        y = on_cuda(x)
        getattr(ie, name)(x, 0.3, seed=11, offset=5)
        with on_device():
            out = getattr(ie, name.removesuffix("_"))(y, 0.3, seed=11, offset=5)
            getattr(ie, name)(y, 0.3, seed=11, offset=5)
        assert matches(y.cpu(), x).all() and matches(out.cpu(), x).all(), layout


@gpu
@floats
def test_draws_of_a_chain_are_those_of_the_calls(dtype: torch.dtype) -> None:
    """Without a seed, too: in one pass, with seed and offset in memory of the device."""

    def draws_(x, generator):  # type: ignore[no-untyped-def]
        ie.dropout_(x, 0.5)
        ie.dropout_(ie.mul_(x, 2), 0.5, offset=3, generator=generator)

    chain_, own = ie.fuse(draws_), torch.Generator("cuda")
    results = []
    for run in (draws_, chain_, chain_):
        torch.manual_seed(1)
        own.manual_seed(2)
        x = torch.ones(50, 41, dtype=dtype, device="cuda")[:, 1:]
        run(x, own)
        assert run is draws_ or path().removeprefix("cuda:") in helpers.DEVICE_PATHS
        results.append((x, torch.cuda.get_rng_state(), own.get_state()))
    for x, state, owns in results[1:]:
        assert torch.equal(x, results[0][0])
        assert torch.equal(state, results[0][1]) and torch.equal(owns, results[0][2])
    x = torch.ones(50, 41, device="cuda")
    chain_(x, own)
    assert not torch.equal(x[:, 1:].to(dtype), results[0][0])
    with pytest.raises(RuntimeError):
        chain_(x, torch.Generator())  # of the CPU


@gpu
def test_dropout_without_a_seed_follows_the_devices_generator() -> None:
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(ie.dropout_(torch.ones(1000, device="cuda"), 0.5))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    x = torch.ones(1000, device="cuda", requires_grad=True)
    y = ie.dropout(x, 0.5)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


@gpu
@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
def test_clipping(order: float) -> None:
    def parameters(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        made = []
        for n in (1, 100, 70_000, 5):
            p = torch.zeros(n, device=device)
            p.grad = torch.randn(n).to(device)
            made.append(p)
        return made

    host, device = parameters("cpu"), parameters("cuda")
    want, got = (ie.clip_grad_norm_(ps, 1.0, order) for ps in (host, device))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=0)
    for p, q in zip(host, device, strict=True):
        torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-6, atol=0)
    device[0].grad.fill_(float("inf"))
    before = device[1].grad.clone()
    with pytest.raises(RuntimeError, match="non-finite"):
        ie.clip_grad_norm_(device, 1.0, order, error_if_nonfinite=True)
    assert torch.equal(device[1].grad, before)


# ---- layouts ----------------------------------------------------------------------------------------------


def rearranged(x: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> None:
    """Beside the CPU, bit for bit, whatever the elements."""
    y = on_cuda(x)
    state = y.data_ptr(), y._version
    want = x.contiguous(memory_format=memory_format)
    assert ie.contiguous_(y, memory_format) is y
    assert (y.data_ptr(), y._version) == (state[0], state[1] + 1) and path().startswith("cuda:")
    assert y.stride() == want.stride() and torch.equal(layouts.bits(y.cpu()), layouts.bits(want))


@gpu
@pytest.mark.parametrize("way", emulated_layouts.WAYS)
def test_layout_ways(way: str) -> None:
    for dtype, sizes, order in emulated_layouts.WAYS[way]:
        with testing.panels_of(layouts.SMALL):
            rearranged(layouts.make(sizes, dtype).permute(order))
            assert path() == f"cuda:{way}", (dtype, sizes, order)


@gpu
@pytest.mark.parametrize("dtype", layouts.DTYPES, ids=dtype_name)
def test_layouts_of_every_kind(dtype: torch.dtype) -> None:
    for sizes in ((3, 5, 7, 2, 4), (16, 8, 4, 2, 8), (41, 1, 37, 3, 2)):
        for order in itertools.permutations(range(5)):
            x = layouts.make(sizes, dtype).permute(order)
            if not x.is_contiguous():
                rearranged(x)
    for make_view in layouts.GAPS:
        rearranged(make_view(layouts.make((31, 17, 19), dtype)))
    rearranged(layouts.make((2, 3, 64, 65), dtype), torch.channels_last)
    rearranged(layouts.make((2, 3, 9, 8, 7), dtype), torch.channels_last_3d)


@gpu
@pytest.mark.parametrize("sizes", [(4096, 4096), (5000, 3373), (4099, 4091), (3, 5592409), (5592409, 3)])
def test_memory_beside_a_large_layout(sizes: tuple[int, int]) -> None:
    x = torch.rand(sizes, device="cuda")
    x.t_()
    want = x.contiguous().cpu()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ie.contiguous_(x)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 0.01 * x.nbytes
    assert sum(event.count for event in profile.key_averages() if "layouts::" in event.key) < 700
    assert torch.equal(x.cpu(), want)


@gpu
def test_reshape_where_it_must_move() -> None:
    x = torch.rand(60, 50, 40, device="cuda").permute(2, 0, 1)
    want, pointer = x.reshape(-1, 100).clone(), x.data_ptr()
    assert ie.reshape_(x, -1, 100) is x and path().startswith("cuda:")
    assert x.data_ptr() == pointer and torch.equal(x, want)


@gpu
def test_layouts_wait_for_nothing_and_are_captured() -> None:
    x = torch.rand(700, 900, device="cuda").t()
    want, gate = x.clone(memory_format=torch.contiguous_format), torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    gate.record()
    ie.contiguous_(x)
    assert not gate.query() and torch.equal(x, want)
    y = torch.rand(700, 900, device="cuda")
    first = y.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ie.contiguous_(y.t_())
    graph.replay()
    assert torch.equal(y, first.t())


@gpu
def test_layouts_of_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 8 * GIB:
        pytest.skip("needs 8 GiB of device memory")
    for sizes in ((46400, 46400), (40000, 55000), (3, 5, 1 << 28)):
        x = torch.randint(0, 256, sizes, dtype=torch.uint8, device="cuda").transpose(0, 1)
        want = x.cpu().contiguous()
        ie.contiguous_(x)
        assert path().startswith("cuda:") and torch.equal(x.cpu(), want)


# ---- indexing assignment ----------------------------------------------------------------------------------


@gpu
@by_dtype
def test_indexing_along_a_dim(dtype: torch.dtype) -> None:
    index = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(1))  # each place several times
    for shape, dim in (
        ((9, 64), 0),
        ((9, 33), 0),
        ((9, 50_000), 0),
        ((9,), 0),
        ((70, 9), 1),
        ((3, 9, 16), 1),
    ):
        sizes = [40 if d == dim else n for d, n in enumerate(shape)]
        for layout in LAYOUTS:
            x, source = make(shape, dtype, layout, 1), make(sizes, dtype, layout, 2, 0)
            beside_cpu("index_fill_", x, dim, index - 9, 1)
            assert path().startswith("cuda:index_")
            beside_cpu("index_copy_", x, dim, index, source)
            beside_cpu("index_add_", x, dim, index.int(), source)
            assert path().startswith("cuda:index_")
            wide = index.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(sizes)
            beside_cpu("scatter_", x, dim, wide, source)
            beside_cpu("scatter_add_", x, dim, wide, source)
            assert path().startswith("cuda:index_")
            own = torch.randint(0, 9, sizes, generator=torch.Generator().manual_seed(2))
            beside_cpu("scatter_", x, dim, own, 1)
            assert path().startswith("cuda:index_")
            beside_cpu("scatter_", x, dim, own, source)
            beside_cpu("scatter_add_", x, dim, own, source)
            assert path().startswith("cuda:index_")


@gpu
@by_dtype
def test_places_and_masks(dtype: torch.dtype) -> None:
    x, g = make((60, 90), dtype), torch.Generator().manual_seed(3)
    places, values = (
        torch.randint(-5400, 5400, (9000,), generator=g),
        make((9000,), dtype, seed=4, specials=0),
    )
    for accumulate in (False, True):
        beside_cpu("put_", x, places, values, accumulate)
        assert path() == "cuda:index_elements"
        pairs = (places % 60, places % 90)
        want, y = ie.index_put_(x.clone(), pairs, values, accumulate), on_cuda(x)
        ie.index_put_(y, tuple(map(on_cuda, pairs)), on_cuda(values), accumulate)
        assert path() == "cuda:index_elements" and matches(y.cpu(), want).all()
    for mask in (torch.rand(60, 90, generator=g) < 0.3, torch.rand(60, 1, generator=g) < 0.5):
        beside_cpu("masked_scatter_", x, mask, values)
        assert path() == "cuda:mask_blocks"
    rows = torch.rand(60, generator=g) < 0.5
    beside_cpu("setitem_", x, rows, make((int(rows.sum()), 90), dtype, seed=5))
    assert path() == "cuda:mask_rows"
    beside_cpu("setitem_", x, rows, True)
    assert path() == "cuda:mask_rows"
    beside_cpu("setitem_", x, slice(3, 50, 2), 0)
    assert path().startswith("cuda:")
    for item in (on_cuda(places[:3]) % 60, [1, -2], torch.tensor(3, device="cuda"), torch.tensor([4])):
        y = on_cuda(x)
        ie.setitem_(y, item, 1)  # by torch where the index is not on the device
        want = x.clone()
        want[item.cpu() if isinstance(item, torch.Tensor) else item] = 1
        assert matches(y.cpu(), want).all(), item


@gpu
@pytest.mark.parametrize(
    "call",
    [
        "ie.index_fill_(x, 0, torch.tensor([1, 9], device='cuda'), 1)",
        "ie.index_add_(x, 0, torch.tensor([1, -1], device='cuda'), x[:2].clone())",
        "ie.setitem_(x, (x[0] * 0 + 30).long(), 1)",
        "ie.masked_scatter_(x, x == 0, torch.ones(9, device='cuda'))",
    ],
)
def test_what_does_not_fit_ends_the_work(call: str) -> None:
    """In a process of its own, whose device is of no use from then on."""
    program = f"""
import torch, inplace_ext as ie
x = torch.zeros(9, 30, device="cuda")
{call}
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    print("raised", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("raised") and "assert" in done.stdout, done.stdout + done.stderr
    assert "index out of bounds" in done.stderr or "more elements than source" in done.stderr


@gpu
def test_indexing_waits_for_nothing_and_goes_into_graphs() -> None:
    x, source = torch.zeros(900, 64, device="cuda"), torch.ones(300, 64, device="cuda")
    index, mask = torch.arange(300, device="cuda") // 2, torch.arange(900, device="cuda")[:, None] % 3 == 0

    def calls() -> None:
        ie.index_copy_(x, 0, index, source)
        ie.index_add_(x, 0, index, source)
        ie.index_fill_(x, 0, index[:2], 7)
        ie.masked_scatter_(x, mask, x + 1)

    calls()
    want = x.clone()
    torch.cuda.synchronize()
    gate = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    gate.record()
    x.zero_()
    calls()
    assert not gate.query()
    assert torch.equal(x, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    x.zero_()
    graph.replay()
    assert torch.equal(x, want)


# ---- operations of one's own ------------------------------------------------------------------------------

own = pytest.mark.skipif(_build.missing_cuda() is not None, reason="needs nvcc")


@pytest.fixture(scope="module")
def mix_() -> Any:
    return ie.jit.elementwise(
        "mix_on_device_", "where(y > x, x + y * a, y - x)", tensors=["y"], scalars={"a": 2},
        dtypes=[*FLOATS, torch.int32],
    )  # fmt: skip


@gpu
@own
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=dtype_name)
def test_own_operation(mix_: Any, dtype: torch.dtype) -> None:
    for seed, layout in enumerate(LAYOUTS):
        x = make((3, 5, 9, 33), dtype, layout, seed)
        for shape in ((3, 5, 9, 33), (33,), (5, 1, 1)):
            y = make(shape, dtype, "contiguous", seed + 10)
            host, device = x.clone(), on_cuda(x)
            mix_(host, y)
            assert mix_(device, on_cuda(y)) is device and path().startswith("cuda:")
            assert matches(device.cpu(), host).all(), (layout, shape)
            mix_(host, 3, a=1)
            mix_(device, 3, a=1)
            assert matches(device.cpu(), host).all(), (layout, shape)


@gpu
@own
def test_own_operations_in_fused_functions(mix_: Any) -> None:
    clip = ie.jit.elementwise("clip_on_device", "x / (1 + abs(x) / limit)", scalars=["limit"])

    @ie.fuse
    def one_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mix_(x.mul_(2), y).clamp_(-3, 3)

    @ie.fuse
    def two_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mix_(x.mul_(2), y).add_(clip(y, 2.0))

    for function in (one_, two_):
        x, y = torch.randn(50, 60), torch.randn(60)
        device, other = x.cuda(), y.cuda()
        want = function(x.clone(), y)
        for _ in range(2):  # the first call compiles, and runs the function as it is written
            got = function(device.clone(), other)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
        assert path().startswith("cuda:")
    lists = [[torch.randn(n) for n in (3, 500, 70)] for _ in range(2)]
    on_device = [[t.cuda() for t in tensors] for tensors in lists]
    one_(*lists)
    one_(*on_device)
    assert path() == "cuda:listed"
    for a, b in zip(lists[0], on_device[0], strict=True):
        assert torch.equal(a, b.cpu())
    new = clip(on_device[0][1], 2.0)
    assert path().startswith("cuda:") and torch.equal(new.cpu(), clip(on_device[0][1].cpu(), 2.0))


@gpu
@own
def test_own_operation_is_compiled_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    late_ = ie.jit.elementwise("late_", "x * 2 + 41", verbose=True)
    late_(torch.ones(3))
    late_(torch.ones(3, device="cuda", requires_grad=True).clone())
    assert path() == "torch" and "CUDA devices" not in capfd.readouterr().err
    assert late_(torch.ones(3, device="cuda")).tolist() == [43.0] * 3
    assert path() == "cuda:flat" and "late_: kernels for CUDA devices" in capfd.readouterr().err


@gpu
@own
@pytest.mark.slow
def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    before = _native.cuda_library
    assert before is not None
    try:
        assert str(ie.jit.load(cuda=True).cuda_kernels).startswith(str(tmp_path))
        beside_cpu("add_", torch.randn(1000), 2)
        assert path().startswith("cuda:")
    finally:
        _native.use_cuda_library(before)


# ---- streams, graphs, devices, sizes ----------------------------------------------------------------------


def clipped(x: torch.Tensor) -> None:
    p = torch.zeros_like(x)
    p.grad = x
    ie.clip_grad_norm_([p], 1.0)


#: A call of each kind of kernel, on a tensor.
CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "operation": lambda x: ie.mul_(x, 3),
    "chain": ie.fuse(lambda x: x.mul_(3).add_(1)),
    "list": lambda x: ie.fuse(lambda p: p.mul_(3))([*x.view(4, -1).unbind()]),
    "softmax": lambda x: ie.softmax_(x.view(-1, 1024)),
    "softmax of columns": lambda x: ie.softmax_(x.view(1024, -1), 0),
    "dropout": lambda x: ie.dropout_(x, 0.5, seed=1),
    "clipping": clipped,
}


@gpu
@pytest.mark.parametrize("name", CALLS)
def test_current_stream(name: str) -> None:
    want = torch.full((1 << 22,), 2.0)
    CALLS[name](want)
    x, stream = torch.zeros(1 << 22, device="cuda"), torch.cuda.Stream()
    CALLS[name](x.clone())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.add_(2)
        CALLS[name](x)  # after the addition, which waits
    assert not stream.query()
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(x.cpu(), want)


@gpu
def test_nothing_waits() -> None:
    x, gate = torch.ones(1000, device="cuda"), torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    gate.record()
    ie.add_(x, 1)
    ie.softmax_(x)
    ie.dropout_(x, 0.5)
    assert not gate.query()  # all calls came back while the device was still asleep


@gpu
def test_nothing_is_allocated() -> None:
    x, b = torch.ones(1 << 22, device="cuda"), torch.ones(1 << 22, device="cuda")
    chain = ie.fuse(lambda x, b: x.mul_(b).add_(1).clamp_(0, 1))
    chain(x, b)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ie.add_(x, b)
    ie.softmax_(x)
    ie.dropout_(x, 0.5, seed=1)
    chain(x, b)
    assert torch.cuda.max_memory_allocated() == before


@gpu
def test_graphs() -> None:
    x, b = torch.zeros(5000, device="cuda"), torch.ones(5000, device="cuda")
    chain = ie.fuse(lambda x, b: x.add_(b).mul_(2))
    for _ in range(2):
        chain(x, b)
        ie.dropout_(x.clone(), 0.5)
    y = torch.ones(5000, device="cuda")
    torch.cuda.synchronize()
    x.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain(x, b)
        ie.sub_(x, 1)
        y.fill_(1)
        ie.dropout_(y, 0.5)
    x.zero_()
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y.clone())
    assert (x == 3).all()  # ((0 + 1) * 2 - 1, and again)
    assert not torch.equal(*masks), "each replay draws another mask"


@gpu
@pytest.mark.parametrize("name", CALLS)
def test_every_kernel_in_a_graph(name: str) -> None:
    x = torch.zeros(1 << 16, device="cuda")
    CALLS[name](x.clone())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        CALLS[name](x)
    for value in (2.0, 5.0):
        want = torch.full((1 << 16,), value)
        CALLS[name](want)
        x.fill_(value)
        graph.replay()
        torch.testing.assert_close(x.cpu(), want)


@gpu
def test_draws_of_a_chain_in_a_graph() -> None:
    chain_ = ie.fuse(lambda x: ie.dropout_(x.mul_(2), 0.5))
    x = torch.ones(5000, device="cuda")
    chain_(x.clone())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain_(x)
    assert path().removeprefix("cuda:") in helpers.DEVICE_PATHS
    masks = []
    for _ in range(3):
        x.fill_(1)
        graph.replay()
        assert set(x.tolist()) == {0.0, 4.0}
        masks.append(x.clone())
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@gpu
def test_more_than_two_to_the_31_elements() -> None:
    n = (1 << 31) + 1000
    if torch.cuda.mem_get_info()[0] < 8 * GIB:
        pytest.skip("needs 8 GiB of device memory")
    x = torch.full((n,), 7, dtype=torch.uint8, device="cuda")
    ie.add_(x, 1)
    assert path() == "cuda:wide"
    assert (x[:10] == 8).all() and (x[-10:] == 8).all() and int(x.sum(dtype=torch.int64)) == 8 * n
    ie.mul_(x.view(-1, 8)[:, ::2], 2)
    assert x[-8:].tolist() == [16, 8, 16, 8, 16, 8, 16, 8]


@gpu
def test_rows_and_draws_beyond_two_to_the_31_elements() -> None:
    n, tail = (1 << 31) + 4096, 4096
    if torch.cuda.mem_get_info()[0] < 6 * GIB:
        pytest.skip("needs 6 GiB of device memory")
    x = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    ie.dropout_(x, 0.5, seed=7)
    # Element i takes block i // 4, so that a tensor of the last ones alone is drawn from a later offset.
    want = ie.dropout(torch.ones(tail, dtype=torch.bfloat16), 0.5, seed=7, offset=(n - tail) // 4)
    assert torch.equal(x[-tail:].cpu(), want)
    x.fill_(1)
    ie.softmax_(x.view(-1, 1024))
    assert (x[:tail] == 2**-10).all() and (x[-tail:] == 2**-10).all()
    x.fill_(1)
    ie.softmax_(x.view(2, -1), 0)
    assert (x[:tail] == 0.5).all() and (x[-tail:] == 0.5).all()
    ie.fuse(lambda x: x.mul_(2).add_(1))(x)
    assert path() == "cuda:wide" and (x[-tail:] == 2).all()


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_devices() -> None:
    x, y = torch.ones(1000, device="cuda:0"), torch.ones(1000, device="cuda:1")
    with torch.cuda.device(0):
        ie.add_(y, 1)
        assert torch.cuda.current_device() == 0
    assert (y == 2).all() and path().startswith("cuda:")
    with pytest.raises(RuntimeError, match="same device"):
        ie.add_(x, y)
    assert (x == 1).all()
    ie.fuse(lambda p: p.mul_(2))([x, y, x.clone()])
    assert (x == 2).all() and (y == 4).all()


@gpu
def test_tensors_of_two_devices_are_torchs_error() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        ie.add_(x, torch.ones(4))
    assert (x == 1).all()
    ie.add_(x, torch.tensor(2.0))  # a number on the CPU
    assert (x == 3).all() and path().startswith("cuda:")
    ie.mul_(x, torch.tensor(2.0, device="cuda"))
    assert (x == 6).all() and path().startswith("cuda:")
    y = torch.ones(4)
    ie.copy_(y, x)
    assert (y == 6).all()


@gpu
def test_autograd_and_compile() -> None:
    x = torch.randn(8, 16, device="cuda", dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ie.softmax(t, -1, scale=0.7), (x,))
    assert torch.autograd.gradcheck(lambda t: ie.dropout(t, 0.5, seed=3), (x,))
    compiled = torch.compile(lambda t: ie.softmax_relu_(ie.mul_(t.clone(), 2)), fullgraph=True)
    z = torch.randn(8, 16, device="cuda")
    torch.testing.assert_close(compiled(z), (z * 2).softmax(-1))


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["ops", "fuse", "softmax", "dropout", "lists"])
def test_benchmarks_beside_eager_and_inductor(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run to the end, and all sides have the same results; what they measure is no test."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    from benchmarks import cli, results

    file = tmp_path / "results.csv"
    asked = ["run", "--device", "cuda", "--quick", "--suite", suite, "--dtype", "float32"]
    asked += [] if suite == "lists" else ["--provider", "inplace_ext", "torch", "compile"]
    assert cli.main([*asked, "--output", str(file)]) == 0
    rows = results.read(file)
    assert {"inplace_ext", "torch"} <= {row.provider for row in rows}
    assert suite == "lists" or "compile" in {row.provider for row in rows}
    assert all(row.path.startswith("cuda:") for row in rows if row.provider == "inplace_ext")


@gpu
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest"]
    command += ["-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k"]
    command += [
        "test_chain or test_clipping or test_softmax and float32 or test_dropout_has and float16 "
        "or test_indexing_along and float32 or test_places and float32"
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
