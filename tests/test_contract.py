"""The contract beyond values: identity, threads, strides, memory, overlap, the GIL, sizes and ranks."""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    BINARY,
    CAPABILITIES,
    DTYPES,
    FLOATS,
    INTS,
    LAYOUTS,
    MOVES,
    OPS,
    UNARY,
    allowed,
    backend,
    check,
    clone_all,
    clone_strided,
    default_args,
    dtype_name,
    expect_path,
    is_native,
    make,
    make_data,
    matches,
    same_bits,
    scalar_args,
    storage_bytes,
    threads,
)

import inplace_ext as ie
from inplace_ext import testing

pytestmark = pytest.mark.usefixtures("one_thread")

needs_native = pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")


# ---- the object -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_returns_the_same_object_and_moves_no_storage(any_backend: str, name: str) -> None:
    for layout in ("contiguous", "step"):
        x = make((7, 9), torch.float32, layout)
        args, kwargs = default_args(name, x, 1, layout)
        view, storage = x[2:], x.untyped_storage()
        pointer, nbytes = storage.data_ptr(), storage.nbytes()
        for k in range(3):
            version = x._version
            assert getattr(ie, name)(x, *args, **kwargs) is x
            assert x._version == version + 1 == view._version, f"call {k}"
        assert (storage.data_ptr(), storage.nbytes()) == (pointer, nbytes)
        assert same_bits(view, x[2:])
        expect_path("move" if name in MOVES else "loop" if layout == "contiguous" else "staged")


@pytest.mark.parametrize("name", OPS)
def test_version_of_views_and_of_calls_that_change_nothing(any_backend: str, name: str) -> None:
    """The counter is shared by the views of a tensor, and moves even where there is no element."""
    base = make((4, 6), torch.float32)
    x = base[:, 1:3]
    args, kwargs = default_args(name, x, 1)
    version = base._version
    getattr(ie, name)(x, *args, **kwargs)
    assert base._version == version + 1
    empty = torch.empty(0, 3)
    theirs = torch.empty(0, 3)
    args, kwargs = default_args(name, empty, 1)
    getattr(ie, name)(empty, *args, **kwargs)
    getattr(theirs, name)(*args, **kwargs)
    assert empty._version == theirs._version


def test_same_tensor_as_operand() -> None:
    for name, dtype, layout in itertools.product(BINARY, FLOATS, ["contiguous", "transposed", "step"]):
        x = make((5, 70), dtype, layout, 3)
        check(name, x, x, path="staged" if layout == "step" else "loop")
        check(name, x, x, torch_too=True)
    x = make((5, 70), torch.float32)
    check("clamp_", x, x, x, path="loop")
    check("copy_", x, x, path="move")


def test_references_are_not_leaked(any_backend: str) -> None:
    """Neither a call nor an error keeps an argument or the result alive."""
    x, y = torch.rand(8), torch.rand(8)
    bad = torch.rand(3)
    number = 12345.678
    before = [sys.getrefcount(o) for o in (x, y, bad, number)]
    for _ in range(50):
        ie.add_(x, y, alpha=number)
        ie.add_(input=x, other=y)
        ie.mul_(x, number)
        with pytest.raises(RuntimeError):
            ie.add_(x, bad)
        with pytest.raises(TypeError):
            ie.add_(x, y, beta=number)
    gc.collect()
    assert [sys.getrefcount(o) for o in (x, y, bad, number)] == before


# ---- threads, strides, positions --------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_thread_count_does_not_change_the_result(capability: str, name: str) -> None:
    """Sizes above the grain, which end inside a vector, in one loop, by rows and in blocks."""
    n = 3 * 32768 + 17
    for dtype in (torch.float32, torch.bfloat16):
        data = make_data(n + 13, dtype, 1)
        cases: list[Callable[[], torch.Tensor]] = [
            lambda data=data: data.clone()[:n],
            lambda data=data: data.clone()[: 331 * 297].view(331, 297)[:, 1:296],
            lambda data=data, dtype=dtype: make((297, 333), dtype, "transposed", 2),
            lambda data=data: data.clone()[:98304].view(16, 6144)[:, :6001],
        ]
        for k, case in enumerate(cases):
            results = []
            for count in (1, 2):
                x = case()
                args, kwargs = default_args(name, x, 1, ["offset", "rows", "contiguous", "contiguous"][k])
                with threads(count):
                    getattr(ie, name)(x, *args, **kwargs)
                results.append(x.clone())
                assert testing.last_path() != "torch"
            assert matches(results[0], results[1]).all(), (dtype, k)


@pytest.mark.parametrize("name", OPS)
def test_layout_does_not_change_the_result(capability: str, name: str) -> None:
    """Input and operands in all layouts, element for element the same bits, also where torch's differ."""
    shape = (5, 7, 37)
    for dtype in DTYPES:
        if not allowed(name, dtype):
            continue
        first: torch.Tensor | None = None
        base = make(shape, dtype, "contiguous", 11)
        args, kwargs = default_args(name, base, 12)
        for ours, theirs in [
            (a, b) for k, a in enumerate(LAYOUTS) for b in (LAYOUTS[k], LAYOUTS[k - 3], "offset")
        ]:
            x = make(shape, dtype, ours, 11, data=base)
            moved = [make(shape, dtype, theirs, 1, data=a) if a.dim() else a for a in args]
            getattr(ie, name)(x, *moved, **kwargs)
            assert testing.last_path() != "torch"
            if first is None:
                first = x.clone()
            assert matches(x, first).all(), (dtype, ours, theirs)


def test_number_and_expanded_tensor_agree(capability: str) -> None:
    """A number, a tensor without dims, one element and an expanded one: the same arithmetic."""
    for name, dtype in itertools.product(["mul_", "div_"], FLOATS):
        value = torch.tensor(1.7, dtype=dtype)
        x = make_data(300, dtype, 4)
        results = [
            getattr(ie, name)(x.clone(), other)
            for other in (value.item(), value, value[None], value.expand(300), value.repeat(300))
        ]
        for r in results[1:]:
            assert matches(r, results[0]).all(), (name, dtype)


# ---- memory -----------------------------------------------------------------------------------------------

BIG = (1024, 1031)


def allocated(call: Callable[[], Any]) -> int:
    """The largest allocation of a call on the CPU, by the profiler's memory records."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max([s for s in sizes if s > 0], default=0)


@needs_native
def test_the_profiler_sees_an_allocation() -> None:
    """What the tests below rest on."""
    x = torch.rand(BIG)
    assert allocated(lambda: x + 1) >= x.numel() * 4


@pytest.mark.parametrize("name", OPS)
def test_no_allocation_grows_with_the_tensor(capability: str, name: str) -> None:
    x = make(BIG, torch.float32, specials=0)
    half = make(BIG, torch.float16, specials=0)
    strided = make(BIG, torch.float32, "step", specials=0)
    turned = make(BIG, torch.float32, "transposed", specials=0)
    row, column = make((BIG[1],), torch.float32, specials=0), make((BIG[0], 1), torch.float32, specials=0)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = [
        (x, clone_strided(x)),
        (x, x),
        (x, turned),
        (turned, x),
        (strided, turned),
        (x, row),
        (x, column),
        (x, half),
        (half, x),
        (x, x.double()),
        (strided, torch.ones(1)),
    ]
    for target, operand in pairs:
        if name in (*UNARY, "zero_"):
            args: list[Any] = []
        elif name == "fill_":
            args = [2.5]
        else:
            args = [operand, operand] if name == "clamp_" else [operand]
        getattr(ie, name)(target, *args)
        most = allocated(lambda target=target, args=args: getattr(ie, name)(target, *args))
        assert testing.last_path() != "torch"
        assert most <= 4096, (most, target.dtype, target.stride(), [getattr(a, "dtype", a) for a in args])
    for target in (x, strided, turned, half):
        args, kwargs = scalar_args(name, torch.float32, 1)
        if name != "copy_":
            call = functools.partial(getattr(ie, name), target, *args, **kwargs)
            most = allocated(call)
            assert most <= 4096, most


# ---- overlap ----------------------------------------------------------------------------------------------


def test_overlap_that_torch_refuses(any_backend: str) -> None:
    for name in BINARY:
        base = make_data(41, torch.float32, 1)
        before, version = base.clone(), base._version
        with pytest.raises(RuntimeError):
            getattr(base[1:], name)(base[:-1])
        for x, operand in [(base[1:], base[:-1]), (base[:-1], base[1:])]:
            with pytest.raises(RuntimeError):
                getattr(ie, name)(x, operand)
            assert same_bits(base, before) and base._version == version
    with pytest.raises(RuntimeError):
        ie.clamp_(base[1:], base[:-1], base[1:])
    with pytest.raises(RuntimeError):
        ie.copy_(base[1:], base[:-1])
    assert same_bits(base, before) and base._version == version


def test_broadcast_from_own_elements(any_backend: str) -> None:
    """a.sub_(a[:, :1]) and the like: as if the operand had been copied first."""
    refused = 0
    for name, dtype in itertools.product([*BINARY, "copy_"], (torch.float32, torch.int32, torch.bfloat16)):
        for pick in (
            lambda a: a[:, :1],
            lambda a: a[:, 70:71],
            lambda a: a[:1],
            lambda a: a[2],
            lambda a: a[1, 3:4],
            lambda a: a[:, 5:6].expand(a.shape),
        ):
            x = make((6, 140), dtype, "contiguous", 2).abs_().add_(1)
            if dtype == torch.int32:
                x.remainder_(7).add_(1)
            operand = pick(x)
            kwargs = {"rounding_mode": "floor"} if name == "div_" else {}
            x_copy, operand_copy = clone_all([x, operand])
            try:
                getattr(x_copy, name)(operand_copy, **kwargs)
            except RuntimeError:
                before = x.clone()
                with pytest.raises(RuntimeError):
                    getattr(ie, name)(x, operand, **kwargs)
                assert same_bits(x, before)
                refused += 1
                continue
            want = getattr(x.clone(), name)(operand.clone(), **kwargs)
            assert getattr(ie, name)(x, operand, **kwargs) is x
            if name in ("pow_", "div_") and dtype != torch.int32:
                torch.testing.assert_close(x, want, rtol=1e-2, atol=0, equal_nan=True)
            else:
                assert matches(x, want).all(), (name, dtype)
            if is_native():
                assert testing.last_path() != "torch"
    assert refused <= 3 * 8 * 3, "rows, which are dense, are all that torch sees"


def test_shared_memory_of_other_shapes(any_backend: str) -> None:
    """Diagonals, transposes and every second element, of the same memory."""
    base = make_data(64, torch.float32, 5, specials=0).view(8, 8)
    cases: list[tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = [
        (lambda t: t, lambda t: t.diagonal()),
        (lambda t: t.diagonal(), lambda t: t[0]),
        (lambda t: t[::2], lambda t: t[:4]),
        (lambda t: t[:, :4], lambda t: t[:, 2:6]),
        (lambda t: t[1:5, 1:5], lambda t: t[1:5, 1:5].t()),
        (lambda t: t.view(-1)[::3], lambda t: t.view(-1)[:22]),
        (lambda t: t[:, 0], lambda t: t[0]),
    ]
    for k, (ours, theirs) in enumerate(cases):
        memory = base.clone()
        want = ours(memory).clone().mul_(theirs(memory).clone())
        try:
            ours(memory).mul_(theirs(memory))
            refused = False
        except RuntimeError:
            refused = True
        memory = base.clone()
        if refused:
            with pytest.raises(RuntimeError):
                ie.mul_(ours(memory), theirs(memory))
            assert same_bits(memory, base)
        else:
            x = ie.mul_(ours(memory), theirs(memory))
            assert same_bits(x, want), k


def test_interleaved_views_are_native(capability: str) -> None:
    x = make_data(2000, torch.float32, 1)
    for name in (*BINARY, "copy_"):
        memory = x.clone().view(10, 200)
        even, odd = memory[:, ::2], memory[:, 1::2]
        check(name, even, odd, path="move" if name == "copy_" else "staged")
        memory = x.clone().view(200, 10)
        check(name, memory[:, :5], memory[:, 5:], path="move" if name == "copy_" else None)
        check(name, memory[::2], memory[1::2], path="move" if name == "copy_" else None)
    # So large that an operand which shared an element would be refused.
    memory = make_data(2 * 600_000, torch.float32, 1, specials=0).view(1000, 1200)
    want = memory[:, ::2] * memory[:, 1::2]
    assert same_bits(ie.mul_(memory[:, ::2], memory[:, 1::2]), want)
    expect_path("staged")


@needs_native
def test_large_operand_that_overlaps_is_refused() -> None:
    """Beyond 1 MiB a copy would cost what an in-place operation is to save: refused, with nothing written."""
    x = make_data(300 * 1100, torch.float32, 1).view(300, 1100)
    for capability in CAPABILITIES:
        with backend(capability):
            before, version = x.clone(), x._version
            with pytest.raises(RuntimeError, match="clone"):
                ie.mul_(x[:, :1000], x[:, 50:1050])
            assert same_bits(x, before) and x._version == version
            small = x[:, :100]
            want = small.clone() * x[:, 50:150].clone()
            assert same_bits(ie.mul_(small, x[:, 50:150]), want)
            assert testing.last_path() != "torch"
            x = before


def test_views_of_another_dtype(any_backend: str) -> None:
    """The same bytes as float32 and as int32."""
    for name in ("add_", "mul_", "copy_"):
        floats = torch.arange(1, 65, dtype=torch.float32)
        ints = floats.view(torch.int32)
        want = getattr(floats.clone(), name)(ints.clone())
        try:
            getattr(ie, name)(floats, ints)
        except RuntimeError:
            continue
        assert same_bits(floats, want), name


# ---- the GIL and threads of Python ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loop", "staged"])
def test_gil_is_released_around_a_kernel(capability: str, kind: str) -> None:
    x = torch.full((3_000_000,), 1.0001) if kind == "loop" else torch.full((6_000_000,), 1.0001)[::2]
    y = torch.full((3_000_000,), 1.0001)
    running = threading.Event()
    spans: list[tuple[float, float]] = []

    def work() -> None:
        running.set()
        for _ in range(6):
            begin = time.perf_counter()
            ie.pow_(x, y)
            spans.append((begin, time.perf_counter()))
            ie.fill_(x, 1.0001)

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    ticks = []
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0002)
    thread.join()
    inside = max(sum(begin < t < end for t in ticks) for begin, end in spans)
    # Held all the time, the GIL would let through the ticks at both ends of a call at most.
    assert inside >= 4, f"{inside} ticks of another thread inside the longest call"


def test_python_threads_on_different_tensors(any_backend: str) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work(seed: int) -> None:
        try:
            x = make_data(50_000, torch.float32, seed, specials=0)
            y = make_data(50_000, torch.float32, seed + 9, specials=0)
            want = x.clone().add_(y).mul_(0.5).clamp_(-1, 1)
            strided = x.repeat_interleave(2)[::2]
            barrier.wait()
            for _ in range(30):
                a, b = x.clone(), strided.clone(memory_format=torch.preserve_format)
                for t in (a, b):
                    ie.clamp_(ie.mul_(ie.add_(t, y), 0.5), -1, 1)
                    assert same_bits(t, want)
                with pytest.raises(RuntimeError):
                    ie.add_(a, y[:-1])
        except BaseException as e:
            errors.append(e)

    pool = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in pool:
        t.start()
    for t in pool:
        t.join()
    assert not errors, errors[0]


def test_last_path_is_per_thread(capability: str) -> None:
    ie.mul_(torch.ones(3), 2)
    seen = []

    def other() -> None:
        ie.atan_(torch.ones(3))
        seen.append(testing.last_path())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["torch"] and testing.last_path() == f"{capability}:loop"


# ---- ranks and sizes --------------------------------------------------------------------------------------


def many_dims(rank: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Dims of two elements, of which no two can be merged."""
    size = 3**rank if rank < 11 else 2 ** (rank + 1)
    strides = [3**d for d in range(rank)] if rank < 11 else [2 ** (d + 1) + 1 for d in range(rank)]
    extent = 1 + sum(strides)
    return make_data(max(size, extent), dtype, rank).as_strided([2] * rank, strides)


@pytest.mark.parametrize("rank", [5, 9, 10])
def test_dims_that_cannot_be_merged(rank: int) -> None:
    for name in ("add_", "mul_", "clamp_", "copy_"):
        x = many_dims(rank)
        operands = [
            make_data(2**rank, torch.float32, k).view([2] * rank) for k in range(1 + (name == "clamp_"))
        ]
        check(name, x, *operands, path="move" if name == "copy_" else "staged" if rank < 10 else None)


def test_more_dims_than_the_kernels_walk(any_backend: str) -> None:
    """20 dims with alternating strides cannot be merged to 16: torch does it."""
    x = torch.rand([2] * 20).permute(*range(1, 20, 2), *range(0, 20, 2))
    y = torch.rand([2] * 20)
    want = x.clone() + y
    assert same_bits(ie.add_(x, y), want)
    expect_path("torch")
    # Elementwise over the same memory, rank does not matter.
    z = torch.rand([2] * 20).permute(*range(1, 20, 2), *range(0, 20, 2))
    want = z.clone() * 3
    assert same_bits(ie.mul_(z, 3), want)
    expect_path("loop")


def test_dims_of_one_element_do_not_count(capability: str) -> None:
    x = torch.rand(3, 70).view([1] * 9 + [3] + [1] * 9 + [70] + [1] * 5)
    check("add_", x, torch.rand(70).view(70, 1, 1, 1, 1, 1), path="staged")
    # Strides of dims of one element are arbitrary.
    odd = torch.rand(70).as_strided([1, 70, 1], [12345, 1, 777])
    check("mul_", odd, 2.0, path="loop")


@pytest.mark.slow
def test_more_than_2_31_elements(capability: str) -> None:
    n = 2**31 + 4099
    x = torch.zeros(n, dtype=torch.uint8)
    ie.add_(x, 7)
    expect_path("loop")
    assert x[0] == 7 and x[-1] == 7 and x[2**31] == 7 and int(x[2**31 - 64 :].sum()) == 7 * (n - 2**31 + 64)
    half = x[::2]
    ie.mul_(half, 3)
    expect_path("staged")
    assert x[-1].item() == (21 if (n - 1) % 2 == 0 else 7) and x[2**31] == 21 and x[2**31 + 1] == 7


def test_integers_wrap(capability: str) -> None:
    for dtype in INTS:
        info = torch.iinfo(dtype)
        x = torch.full((133,), info.max, dtype=dtype)
        ie.add_(x, 1)
        assert (x == info.min).all()
        assert (ie.sub_(x, torch.ones_like(x)) == info.max).all()
        expect_path("loop")


def test_storage_beside_a_strided_view_is_untouched(capability: str) -> None:
    """A gap between elements may be another thread's: it is not even rewritten with the same value."""
    x = torch.zeros(4000)
    view, gap = x[::2], x[1::2]
    stop = threading.Event()
    lost = []

    def other() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            gap.fill_(k)
            if not bool((gap == k).all()):
                lost.append(k)
                return

    thread = threading.Thread(target=other)
    thread.start()
    for _ in range(300):
        ie.add_(view, 1.0)
    stop.set()
    thread.join()
    assert not lost
    assert (view == 300).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_storage_that_ends_with_the_tensor(dtype: torch.dtype) -> None:
    """No read beyond the last element matters: sanitizers watch this one."""
    for name, n in itertools.product(OPS, (1, 7, 31, 65, 129)):
        if not allowed(name, dtype):
            continue
        x = make_data(n, dtype, n)
        x = x.clone()
        args, kwargs = default_args(name, x, n)
        args = [a.clone() for a in args]
        assert storage_bytes(x).numel() == n * x.element_size()
        for capability in CAPABILITIES:
            with backend(capability):
                getattr(ie, name)(x, *args, **kwargs)
