"""Shape and layout in place: metadata as torch changes it, and data that is rearranged where it lies."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import is_native, threads
from hypothesis import given, settings
from hypothesis import strategies as st

import inplace_ext as ie
from inplace_ext import _native, testing
from inplace_ext._table import LAYOUT

native = pytest.mark.skipif(not testing.available_capabilities(), reason="no compiled module")

#: One of each item size.
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex128]
MARGIN = 67  # elements before and behind the tensor in its storage, an odd number
SMALL = 64 << 10


def make(sizes: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits, the only one on its storage but for the base that it keeps alive."""
    item = torch.empty((), dtype=dtype).element_size()
    n = math.prod(sizes) + 2 * MARGIN
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (n * item,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype)[MARGIN : n - MARGIN].view(sizes)


def bits(x: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(-1).clone(memory_format=torch.contiguous_format)
    return torch.zeros(0, dtype=torch.uint8) if x.numel() == 0 else flat.view(torch.uint8)


def storage(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([], dtype=torch.uint8).set_(x.untyped_storage())


def check(x: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> str:
    """contiguous_ beside contiguous; the path that it took."""
    want = x.contiguous(memory_format=memory_format)
    strides = want.stride()
    if want.data_ptr() == x.data_ptr():  # x itself
        want = x.clone(memory_format=torch.preserve_format)
    before, start, end = storage(x).clone(), x.storage_offset(), 0
    if x.numel() > 0:
        end = start + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    state = (x.data_ptr(), x.storage_offset(), x.untyped_storage().nbytes())
    version, moves = x._version, not x.is_contiguous(memory_format=memory_format)
    assert ie.contiguous_(x, memory_format) is x
    path = testing.last_path()
    assert (x.data_ptr(), x.storage_offset(), x.untyped_storage().nbytes()) == state
    assert x.stride() == strides and x.shape == want.shape
    assert torch.equal(bits(x), bits(want))
    assert (x._version > version) == moves
    if moves:  # nothing is written outside of what the tensor had spanned
        after, item = storage(x), x.element_size()
        assert torch.equal(after[: start * item], before[: start * item])
        assert torch.equal(after[end * item :], before[end * item :])
        assert path == "torch" or (is_native() and path != "torch")
    return path.rpartition(":")[2]


PRIMES, POWERS = (2, 3, 5, 7, 11, 13), (1, 2, 4, 8, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5])
@pytest.mark.usefixtures("one_thread")
def test_every_permutation(dims: int, dtype: torch.dtype, any_backend: str) -> None:
    rng = random.Random(dims)
    for order in itertools.permutations(range(dims)):
        for pool in (PRIMES, POWERS, PRIMES + POWERS):
            check(make([rng.choice(pool) for _ in range(dims)], dtype).permute(order))


# Sizes for a buffer of 64 KiB, so that each way is gone with primes, powers of two and multiples.
WAYS: dict[str, list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]]] = {
    "buffered": [
        (torch.float32, (101, 103), (1, 0)),
        (torch.uint8, (500, 17, 13), (0, 2, 1)),
        (torch.float32, (3, 100, 101), (0, 2, 1)),
        (torch.complex128, (50, 37, 41), (0, 2, 1)),
        (torch.bfloat16, (5000, 2, 3), (0, 2, 1)),
        (torch.uint8, (60, 50, 3, 7), (1, 0, 2, 3)),
    ],
    "tiles": [
        *((dtype, (side, side), (1, 0)) for dtype in DTYPES for side in (288, 293, 331)),
        (torch.float32, (2, 129, 129), (0, 2, 1)),
        (torch.float32, (150, 150, 3), (1, 0, 2)),
        (torch.uint8, (30, 30, 4999), (1, 0, 2)),
    ],
    "cycles": [
        (torch.float32, (37, 64, 64), (1, 0, 2)),
        (torch.uint8, (13, 7, 5003), (1, 0, 2)),
        (torch.int64, (2, 30, 50, 33), (0, 2, 1, 3)),
        (torch.complex128, (100, 101, 17), (1, 0, 2)),
        (torch.uint8, (3, 2, 90001), (1, 0, 2)),
    ],
    "strips": [
        *((dtype, (n, 40009), (1, 0)) for dtype in DTYPES for n in (3, 16)),
        *((dtype, (40009, n), (1, 0)) for dtype in DTYPES for n in (3, 16)),
        (torch.float32, (2, 3, 30000), (0, 2, 1)),
        (torch.float32, (40009, 5, 3), (1, 0, 2)),
        (torch.uint8, (7, 10007, 3), (1, 0, 2)),
        (torch.float32, (256, 4096), (1, 0)),
    ],
    "panels": [
        (torch.uint8, (1031, 1033), (1, 0)),
        (torch.uint8, (1024, 2048), (1, 0)),
        (torch.bfloat16, (1031, 769), (1, 0)),
        (torch.float32, (1500, 769), (1, 0)),
        (torch.float32, (769, 1503), (1, 0)),
        (torch.float32, (2, 500, 1031), (0, 2, 1)),
        (torch.int64, (601, 701), (1, 0)),
        (torch.complex128, (401, 512), (1, 0)),
        (torch.float32, (300, 331, 3), (1, 0, 2)),
    ],
    "large_panels": [
        (torch.uint8, (2053, 2063), (1, 0)),
        (torch.bfloat16, (2050, 2600), (1, 0)),
        (torch.float32, (2048, 2304), (1, 0)),
        (torch.float32, (2063, 2053), (1, 0)),
        (torch.int64, (1601, 1400), (1, 0)),
        (torch.complex128, (1103, 1201), (1, 0)),
        (torch.float32, (1100, 900, 5), (1, 0, 2)),
    ],
    "gathered": [
        (torch.float32, (9, 11, 13, 10), (3, 2, 1, 0)),
        (torch.complex128, (40, 5, 6, 7), (0, 3, 2, 1)),
        (torch.uint8, (31, 17, 29), (2, 1, 0)),
    ],
}


@native
@pytest.mark.parametrize("way", WAYS)
def test_way(way: str, capability: str) -> None:
    for dtype, sizes, order in WAYS[way]:
        found = []
        for count in (1, 2, 3):
            with threads(count), testing.panels_of(SMALL):
                x = make(sizes, dtype).permute(order)
                assert check(x) == way, (dtype, sizes, order)
                found.append(bits(x))
        assert all(torch.equal(found[0], other) for other in found[1:])


@native
@pytest.mark.parametrize(
    ("sizes", "way"),
    [((4096, 4096), "tiles"), ((5000, 3001), "panels"), ((3, 700001), "strips"), ((700001, 3), "strips")],
)
def test_way_of_large_matrices(sizes: tuple[int, int], way: str) -> None:
    x = make(sizes, torch.float32).t()  # not within assert, where pytest keeps the base
    assert check(x) == way


@native
def test_several_transpositions_of_what_does_not_fit(capability: str) -> None:
    sizes = (24, 30, 20, 28)
    with testing.panels_of(SMALL):
        for order in itertools.permutations(range(4)):
            check(make(sizes, torch.float32).permute(order))
        check(make((3, 2, 4, 5, 2, 3, 4, 33, 7), torch.uint8).permute(8, 1, 6, 3, 5, 4, 2, 7, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(dtype: torch.dtype, any_backend: str) -> None:
    for sizes in ((2, 3, 5, 7), (1, 3, 64, 64), (4, 16, 9, 9), (2, 1, 5, 7), (0, 3, 2, 2)):
        x = make(sizes, dtype)
        check(x, torch.channels_last)
        check(x, torch.channels_last)
        check(x)
        check(make(sizes, dtype).transpose(1, 2), torch.channels_last)
    for sizes in ((2, 3, 4, 5, 7), (2, 16, 8, 8, 8)):
        x = make(sizes, dtype)
        check(x, torch.channels_last_3d)
        check(x)
        check(make(sizes, dtype).transpose(0, 4), torch.channels_last_3d)


GAPS: list[Any] = [
    lambda x: x[:, ::2],
    lambda x: x[::3],
    lambda x: x[1:, 1:],
    lambda x: x[:, ::5].transpose(0, 1),
    lambda x: x[2:9, :, 1:].permute(2, 0, 1),
    lambda x: x[..., 3],
    lambda x: x[:, 2],
    lambda x: x[:1, :, :1],
    lambda x: x[::2, ::3, ::4].permute(1, 2, 0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(GAPS)))
def test_gaps_are_closed(index: int, dtype: torch.dtype, any_backend: str) -> None:
    path = check(GAPS[index](make((31, 17, 19), dtype)))
    assert path == ("gathered" if is_native() else "torch")
    if is_native():
        with testing.panels_of(SMALL):
            for count in (1, 2):
                with threads(count):
                    check(GAPS[index](make((61, 67, 71), dtype)))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.memory_format]:
    dims = draw(st.integers(0, 6))
    sizes = draw(st.lists(st.integers(0, 40), min_size=dims, max_size=dims))
    while math.prod(sizes) > 60000:
        sizes[sizes.index(max(sizes))] //= 2
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=dims, max_size=dims))
    order = draw(st.permutations(range(dims)))
    dtype = draw(st.sampled_from([*DTYPES, torch.bool, torch.float16, torch.complex64]))
    x = make(sizes, torch.uint8 if dtype == torch.bool else dtype, draw(st.integers(0, 9)))
    if dtype == torch.bool:
        x = x.remainder_(2).view(dtype)
    x = x[tuple(slice(None, None, step) for step in steps)].permute(order)
    formats = [torch.contiguous_format]
    formats += {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(dims, [])
    return x, draw(st.sampled_from(formats))


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=400, deadline=None)
@given(layouts())
def test_any_layout(layout: tuple[torch.Tensor, torch.memory_format]) -> None:
    check(*layout)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    item = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16, 40]))
    rows = draw(st.integers(2, 3000))
    columns = draw(st.integers(2, max(2, min(3000, 2_000_000 // (rows * item)))))
    batch = draw(st.integers(1, 3))
    width, dtype = {3: (3, torch.uint8), 12: (3, torch.float32), 40: (5, torch.int64)}.get(item, (1, None))
    dtype = dtype or next(d for d in DTYPES if d.itemsize == item)
    return (batch, rows, columns, width), (0, 2, 1, 3), dtype


@native
@settings(max_examples=150, deadline=None)
@given(matrices(), st.sampled_from([1, 2]))
def test_any_matrix(case: tuple[tuple[int, ...], tuple[int, ...], torch.dtype], count: int) -> None:
    sizes, order, dtype = case
    with testing.panels_of(SMALL), threads(count):
        check(make(sizes, dtype).permute(order))


# ---- reshape_ and view_ ---------------------------------------------------------------------------------

SHAPES: list[Any] = [
    (-1,),
    (24,),
    (4, 6),
    ((4, 6),),
    ([2, -1],),
    (torch.Size([24, 1]),),
    (2, 3, 2, 2),
    (1, 24),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_reshape(order: tuple[int, ...], shape: Any, any_backend: str) -> None:
    x = make((2, 3, 4), torch.float32).permute(order)
    want, pointer = x.reshape(*shape).clone(), x.data_ptr()
    assert ie.reshape_(x, *shape) is x
    assert x.shape == want.shape and x.data_ptr() == pointer
    assert torch.equal(bits(x), bits(want))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_view(order: tuple[int, ...], shape: Any, any_backend: str) -> None:
    x = make((2, 3, 4), torch.float32).permute(order)
    before = (x.shape, x.stride(), x._version)
    try:
        want = x.view(*shape)
    except RuntimeError as error:
        first = str(error).partition(". Use")[0]
        with pytest.raises(RuntimeError) as ours:
            ie.view_(x, *shape)
        assert first in str(ours.value) and "no neighbours in memory" in str(ours.value)
        assert (x.shape, x.stride(), x._version) == before
        return
    shape_and_strides, values = (want.shape, want.stride()), bits(want)
    assert ie.view_(x, *shape) is x
    assert (x.shape, x.stride()) == shape_and_strides and torch.equal(bits(x), values)
    assert x._version > before[2]


@pytest.mark.parametrize(
    ("make_view", "shape", "dims"),
    [
        (lambda: make((3, 4), torch.float32).t(), (12,), "dims 0 and 1 of input, of sizes 4 and 3"),
        (lambda: make((2, 3, 4), torch.float32).transpose(1, 2), (2, 12), "dims 1 and 2"),
        (lambda: make((2, 3, 4), torch.float32).transpose(0, 1), (6, 4), "dims 0 and 1"),
        (lambda: make((2, 3, 4), torch.float32)[:, :2], (4, 4), "dims 0 and 1 of input, of sizes 2 and 2"),
        (lambda: make((3, 1, 4), torch.float32).transpose(0, 2), (12,), "dims 0 and 2"),
        (lambda: make((5, 4), torch.float32)[:, ::2], (10,), "dims 0 and 1"),
    ],
)
def test_view_says_which_dims_clash(make_view: Any, shape: tuple[int, ...], dims: str) -> None:
    x = make_view()
    if dims == "dims 0 and 1" and x.stride(-1) == 2:  # one stride for all: a view after all
        assert ie.view_(x, *shape).stride() == (2,)
        return
    with pytest.raises(RuntimeError, match=dims):
        ie.view_(x, *shape)


def test_reshape_and_view_refuse_what_torch_refuses() -> None:
    for function in (ie.view_, ie.reshape_):
        for shape in ((5, -1), (5, 2), (-1, -1), (-2, 6), (0, -1)):
            for view in (lambda x: x, lambda x: x.t()):
                x = view(make((3, 4), torch.float32))
                before = (bits(x), x.shape, x.stride(), x._version)
                with pytest.raises(RuntimeError) as expected:
                    x.clone().reshape(shape)
                with pytest.raises(RuntimeError) as ours:
                    function(x, *shape)
                assert str(expected.value).partition("\n")[0].rstrip(".") in str(ours.value)
                assert (x.shape, x.stride(), x._version) == before[1:] and torch.equal(bits(x), before[0])
        with pytest.raises(TypeError, match=r"shape is missing"):
            function(torch.zeros(1))
        with pytest.raises(TypeError, match=r"not a torch\.dtype"):
            function(torch.zeros(1), torch.int32)
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
            function([1.0], 1)
        with pytest.raises(TypeError):
            function(torch.zeros(4), 2.0, 2)
        assert function(torch.zeros(1), ()).shape == ()
        assert function(torch.zeros(0, 3), 3, 0).shape == (3, 0)
    expanded = torch.zeros(3).expand(4, 3)
    with pytest.raises(RuntimeError, match="single memory location"):
        ie.reshape_(expanded, 12)
    assert expanded.shape == (4, 3)


# ---- who else sees the storage --------------------------------------------------------------------------


def test_refuses_while_another_tensor_would_change_meaning(any_backend: str) -> None:
    def attempt(x: torch.Tensor) -> None:
        before = (bits(x), x.shape, x.stride(), x._version)
        for function in (ie.contiguous_, lambda t: ie.reshape_(t, -1)):
            with pytest.raises(RuntimeError, match="in other places"):
                function(x)
        assert (x.shape, x.stride(), x._version) == before[1:] and torch.equal(bits(x), before[0])

    base = torch.rand(30, 50)
    x = base.t()
    attempt(x)
    other = base[:2]
    del base
    attempt(x)
    del other
    check(x)

    own = torch.rand(30, 50)
    own.t_()
    for make_other in (
        lambda t: t[0],
        lambda t: t.detach(),
        lambda t: t.data,
        lambda t: t.numpy(),
        lambda t: t.view(torch.int32),
    ):
        held = make_other(own)
        attempt(own)
        del held
    check(own)
    # Where nothing moves nobody sees anything.
    same = torch.rand(3, 4)
    view = same[1:]
    assert ie.contiguous_(same) is same and view.shape == (3 - 1, 4)


def test_base_may_be_dead_under_any_mode() -> None:
    with torch.no_grad():
        check(torch.rand(30, 50).t())
    with torch.inference_mode():
        x = torch.rand(30, 50).t()
        want = x.clone(memory_format=torch.contiguous_format)
        assert torch.equal(ie.contiguous_(x), want) and x.is_contiguous()
    check(torch.rand(10, 6, 5)[2].t())
    check(torch.nn.Parameter(torch.rand(30, 50), requires_grad=False).t())
    check(torch.stft(torch.rand(4000), 64, window=torch.ones(64), return_complex=True))


def test_errors_leave_the_tensor_alone() -> None:
    leaf = torch.rand(3, 4, requires_grad=True)
    differentiated = (torch.rand(3, 4, requires_grad=True) * 1).t()
    with torch.inference_mode():
        inference = torch.rand(3, 4).t()
    cases: list[tuple[torch.Tensor, tuple[Any, ...], type[Exception], str]] = [
        (leaf, (), RuntimeError, "a leaf Variable that requires grad"),
        (differentiated, (), RuntimeError, "autograd differentiates through"),
        (inference, (), RuntimeError, "inference tensor"),
        (torch.rand(4).expand(3, 4), (), RuntimeError, "single memory location"),
        (torch.rand(10).as_strided((3, 3), (2, 1)).t(), (), RuntimeError, "single memory location"),
        (torch.rand(4, 3).t(), (torch.channels_last,), RuntimeError, "required rank 4 tensor"),
        (torch.rand(2, 3, 4, 5), (torch.channels_last_3d,), RuntimeError, "required rank 5 tensor"),
        (torch.rand(4, 3).t(), (torch.preserve_format,), RuntimeError, "preserve_format is no layout"),
        (torch.rand(4, 3).t(), (1,), TypeError, "memory_format must be a torch.memory_format, not int"),
        (torch.rand(4, 3).t(), (None, 1), TypeError, "contiguous_"),
    ]
    for x, args, kind, said in cases:
        if "single" in said and not testing.available_capabilities() and x.stride(0) != 0:
            continue  # torch sees the simple cases
        before = (bits(x.detach()), x.shape, x.stride())
        with pytest.raises(kind, match=said):
            ie.contiguous_(x, *args)
        assert (x.shape, x.stride()) == before[1:] and torch.equal(bits(x.detach()), before[0])
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, not list"):
        ie.contiguous_([1])
    for function in (lambda x: ie.view_(x, 12), lambda x: ie.reshape_(x, 12), ie.t_):
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            function(leaf)
    assert leaf.shape == (3, 4)


# ---- autograd, compile, transforms ----------------------------------------------------------------------


def test_gradients_do_not_notice() -> None:
    w = torch.rand(4, 3)
    for change in (ie.contiguous_, lambda y: ie.reshape_(y, -1), lambda y: ie.view_(ie.t_(y), 12)):
        a = torch.rand(3, 4, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        y, z = a.t() * 2, b.t() * 2
        assert not y.is_contiguous() and not y._is_view()
        change(y)
        weights = w if y.shape == w.shape else w.reshape(-1) if change is not None else w
        if y.shape != w.shape and torch.equal(y, z.t().reshape(-1)):
            weights = w.t().reshape(-1)
        (y * weights).sum().backward()
        (z * w).sum().backward()
        assert torch.equal(a.grad, b.grad)


def test_a_stale_saved_tensor_is_noticed() -> None:
    a = torch.rand(3, 4, requires_grad=True)
    y = a.t() * 2
    z = y.square()
    ie.contiguous_(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    e = (a.t() * 2).exp()  # which its own backward keeps
    with pytest.raises(RuntimeError):
        ie.contiguous_(e)
        e.sum().backward()


def test_a_view_that_was_rearranged_keeps_its_place_in_the_graph() -> None:
    x = torch.rand(3, 4).t()
    values = x.clone()
    w = torch.rand(4, 3, requires_grad=True)
    ie.contiguous_(x)
    x.mul_(w)
    x.sum().backward()
    assert torch.equal(w.grad, values)


def test_parameter_keeps_its_identity() -> None:
    layer = torch.nn.Linear(5, 3)
    weight = layer.weight
    want = weight.detach().t().clone()
    with torch.no_grad():
        assert ie.contiguous_(ie.transpose_(weight, 0, 1)) is layer.weight
    assert layer.weight.is_contiguous() and torch.equal(layer.weight, want)
    assert layer.weight.requires_grad and layer.weight.is_leaf


def test_transforms_are_refused_and_subclasses_go_through_torch() -> None:
    for function in (ie.contiguous_, lambda x: ie.view_(x, 2, 2), lambda x: ie.reshape_(x, 2, 2)):
        with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
            torch.vmap(function)(torch.rand(3, 4))
        with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
            torch.func.grad(lambda x, f=function: f(x * 1).sum())(torch.rand(4))
    assert torch.vmap(ie.t_)(torch.rand(5, 2, 3)).shape == (5, 3, 2)

    class Mine(torch.Tensor):
        pass

    x = torch.rand(3, 4).t().as_subclass(Mine)
    want = x.clone(memory_format=torch.contiguous_format)
    assert ie.contiguous_(x) is x and x.is_contiguous() and torch.equal(x, want)
    assert testing.last_path() == "torch"
    meta = torch.empty(3, 4, device="meta").t()
    assert ie.contiguous_(meta).stride() == (3, 1)
    meta.t_()
    assert ie.reshape_(meta, 12).shape == (12,)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    def changed(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        ie.transpose_(y, 0, 1)
        ie.unsqueeze_(y, 0)
        ie.squeeze_(y)
        ie.t_(y)
        ie.view_(y, 2, -1)
        ie.reshape_(y, 12)
        return y * 2

    x = torch.rand(3, 4)
    compiled = torch.compile(changed, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), changed(x))

    def rearranged(x: torch.Tensor) -> torch.Tensor:
        return ie.contiguous_((x + 1).t() * 1) * 2

    with pytest.raises(torch._dynamo.exc.Unsupported, match="_rearrange"):
        torch.compile(rearranged, backend=backend, fullgraph=True)(x)
    torch._dynamo.reset()
    result = torch.compile(rearranged, backend=backend)(x)
    assert torch.equal(result, rearranged(x)) and result.is_contiguous()


# ---- the methods of torch -------------------------------------------------------------------------------

METHODS: dict[str, list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]] = {
    "transpose_": [((2, 3, 4), (0, 2), {}), ((2, 3), (-1, 0), {}), ((2, 3), (), {"dim0": 0, "dim1": 1}),
                   ((2, 3), (0, 2), {}), ((2, 3), (0,), {})],
    "swapaxes_": [((2, 3, 4), (0, 2), {}), ((2, 3), (), {"axis0": 0, "axis1": 1}), ((2, 3), (0, 5), {})],
    "swapdims_": [((2, 3, 4), (0, 2), {}), ((2, 3), (), {"dim0": 0, "dim1": 1})],
    "t_": [((2, 3), (), {}), ((3,), (), {}), ((2, 3, 4), (), {}), ((2, 3), (1,), {})],
    "squeeze_": [((1, 3, 1), (), {}), ((1, 3, 1), (0,), {}), ((1, 3, 1), ((0, 2),), {}), ((1, 3), (7,), {}),
                 ((1, 3, 1), (), {"dim": -1}), ((1, 3), (1.5,), {})],
    "unsqueeze_": [((2, 3), (1,), {}), ((2, 3), (-1,), {}), ((2, 3), (9,), {}), ((), (0,), {})],
    "as_strided_": [((2, 3), ((3, 2), (1, 3)), {}), ((2, 3), ((2,), (2,), 1), {}), ((2, 3), ((9,), (1,)), {}),
                    ((2, 3), (), {"size": (2,), "stride": (1,), "storage_offset": 2}), ((2, 3), ((2,),), {})],
    "resize_": [((2, 3), (3, 2), {}), ((2, 3), ((6,),), {}), ((2, 3), (2,), {}), ((2, 3), (-1,), {}),
                ((1, 2, 3, 1), (1, 2, 1, 3), {"memory_format": torch.channels_last})],
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_method_is_torchs(name: str) -> None:
    for sizes, args, kwargs in METHODS[name]:
        ours, theirs = make(sizes, torch.float32), make(sizes, torch.float32)
        try:
            want = getattr(theirs, name)(*args, **kwargs)
        except Exception as error:
            with pytest.raises(type(error)) as caught:
                getattr(ie, name)(ours, *args, **kwargs)
            assert str(caught.value).startswith(f"{name}: ")
            assert (ours.shape, ours.stride()) == ((same := make(sizes, torch.float32)).shape, same.stride())
            continue  # torch has set sizes that overflow by then
        assert getattr(ie, name)(ours, *args, **kwargs) is ours
        assert (ours.shape, ours.stride(), ours.storage_offset()) == (
            want.shape,
            want.stride(),
            want.storage_offset(),
        )
        assert torch.equal(ours, want) and ours._version == want._version
    assert set(METHODS) == {name for name, op in LAYOUT.items() if not op.like}


#: Tensors of all kinds that a change of sizes and strides meets; each call makes the same one anew.
SUBJECTS: dict[str, Any] = {
    "contiguous": lambda: make((2, 3, 4), torch.float32),
    "matrix": lambda: make((4, 6), torch.int64),
    "ones": lambda: make((1, 3, 1, 2), torch.complex128),
    "transposed": lambda: make((4, 6), torch.uint8).t(),
    "permuted": lambda: make((2, 3, 4), torch.bfloat16).permute(2, 0, 1),
    "gaps": lambda: make((5, 6), torch.float32)[::2, 1::2],
    "expanded": lambda: make((3, 1), torch.float32).expand(3, 4),
    "alone": lambda: torch.ones(4, 6),
    "row": lambda: make((6,), torch.float32),
    "0-d": lambda: torch.tensor(7.0),
    "empty": lambda: torch.empty(0, 3),
    "empty with size 1": lambda: torch.empty(1, 0, 1),
    "bool": lambda: torch.tensor([[True, False], [False, True]]),
    "parameter": lambda: torch.nn.Parameter(torch.ones(4, 6), requires_grad=False),
    "channels_last": lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
}
#: What goes to torch's own methods.
OTHERS: dict[str, Any] = {
    "leaf": lambda: torch.ones(4, 6, requires_grad=True),
    "recorded": lambda: torch.ones(4, 6, requires_grad=True) * 2,
    "view of recorded": lambda: (torch.ones(4, 6, requires_grad=True) * 2)[1:],
    "data": lambda: torch.ones(4, 6).data,
    "detached": lambda: torch.ones(4, 6).detach(),
    "conjugated": lambda: torch.ones(4, 6, dtype=torch.complex64).conj(),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "meta": lambda: torch.ones(4, 6, device="meta"),
}
#: Of those, what never comes to be plain.
LEFT = set(OTHERS) - {"data", "detached"}
CHANGES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "transpose_": [((0, 1), {}), ((-1, 0), {}), ((0, 0), {}), ((1,), {"dim1": 2}), ((0, True), {}),
                   ((0, 9), {})],
    "swapaxes_": [((), {"axis0": 0, "axis1": -1})],
    "t_": [((), {})],
    "squeeze_": [((), {}), ((0,), {}), ((-1,), {}), ((2,), {}), (((0, 2),), {})],
    "unsqueeze_": [((0,), {}), ((-1,), {}), ((1,), {}), ((-9,), {}), ((), {"dim": 0})],
    "as_strided_": [(((2, 2), (1, 2)), {}), (([2], [1], 3), {}), (((), ()), {}),
                    (((3, 2), (0, 1), 0), {}), (((0, 9**9), (1, 1)), {}), (((2,), (-1,)), {}),
                    (((2,), (1,), -1), {}), (((2, 2), (1,)), {}), (((9**9,), (1,)), {}),
                    (((2.0,), (1,)), {})],
    "resize_": [((2,), {}), ((1, 1, 2), {}), (((2, 1),), {}), ((torch.Size([1]),), {}), ((4, 6), {}),
                ((100, 3), {}), ((0,), {}), ((), {}), (((),), {}), ((1, 2.5), {}),
                ((1, 2, 1, 2), {"memory_format": torch.channels_last})],
}  # fmt: skip


def _change(function: Any, x: torch.Tensor, args: Any, kwargs: Any) -> tuple[Any, ...]:
    numel = x.numel()
    try:
        assert function(x, *args, **kwargs) is x
    except Exception as error:
        outcome: Any = type(error)
    else:
        outcome = "done"
    strides = () if x.is_sparse else (x.stride(), x.storage_offset(), x.untyped_storage().nbytes())
    # What resize_ finds behind the old storage is undefined, and of a storage without bytes torch lets
    # as_strided_ make anything.
    unknown = x.is_meta or max(x.shape, default=0) > 999
    unknown = unknown or (function in (ie.resize_, torch.Tensor.resize_) and x.numel() > numel)
    values = None if unknown else x.detach().to_dense().resolve_conj().tolist()
    version = None if x.is_inference() else x._version
    return outcome, x.shape, strides, version, values, x.grad_fn is None, x._is_view()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:.*Named tensors|.*non-writable|.*resize_.*|.*sparse.*:UserWarning")
def test_metadata_is_torchs(name: str, any_backend: str) -> None:
    ours, theirs, taken = getattr(ie, name), getattr(torch.Tensor, name), set()
    for subject, made in {**SUBJECTS, **OTHERS}.items():
        for args, kwargs in CHANGES[name]:
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    want = _change(theirs, made(), args, kwargs)
                    found = _change(ours, made(), args, kwargs)
                path = testing.last_path().rpartition(":")[2]
                assert repr(found) == repr(want), (subject, args, kwargs, mode)
                if found[0] == "done" and is_native() and subject in SUBJECTS:
                    taken.add(path)
                    ordinary = name not in ("squeeze_", "resize_") and subject != "parameter"
                    assert path == "metadata" or not ordinary, (subject, args, kwargs)
                elif mode is torch.enable_grad and subject in LEFT and found[0] == "done":
                    assert path == "torch", (subject, args, kwargs)
    assert taken <= {"metadata", "torch"} and ("metadata" in taken or not is_native())


@pytest.mark.parametrize("function", [ie.view_, ie.reshape_])
def test_views_are_torchs(function: Any, any_backend: str) -> None:
    shapes = [(-1,), (24,), (4, -1), ((2, 12),), (2, 3, 4), (1, 2, 1, 12), (0,), (-1, 0), (6,), (1,), (2, 2)]
    taken = set()
    for subject, made in SUBJECTS.items():
        for shape in shapes:
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    x = made()
                    before = x.untyped_storage().nbytes(), x.data_ptr()
                    try:
                        want = made().view(*shape)
                    except (RuntimeError, TypeError):
                        continue
                    assert function(x, *shape) is x
                    assert (x.shape, x.stride()) == (want.shape, want.stride()), (subject, shape)
                    assert torch.equal(bits(x), bits(want))
                    assert (x.untyped_storage().nbytes(), x.data_ptr()) == before
                    taken.add(testing.last_path().rpartition(":")[2])
    assert taken == ({"metadata"} if is_native() else {"torch"})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resize_", (-1,)),
        ("resize_", (2, -3)),
        pytest.param("resize_", (2**61,), marks=pytest.mark.nosanitize),  # no such memory
        pytest.param("resize_", (2**50,), marks=pytest.mark.nosanitize),
        ("resize_", (2**62, 2**62)),
        ("resize_", (2**62, 2**62, 0)),
        ("as_strided_", ((2, -3), (1, 1))),
        ("as_strided_", ((2**62, 2**62), (2**62, 1))),
        ("as_strided_", ((2**62, 2**62), (0, 0))),
    ],
)
def test_sizes_that_overflow_leave_the_tensor_alone(name: str, args: Any, any_backend: str) -> None:
    for made in (SUBJECTS["transposed"], SUBJECTS["matrix"], OTHERS["leaf"], OTHERS["recorded"]):
        x = made()
        before = _change(lambda x: x, x, (), {})
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"{name}: "):
            getattr(ie, name)(x, *args)
        assert _change(lambda x: x, x, (), {}) == before


def test_what_lies_so_already_is_left_alone(any_backend: str) -> None:
    x = torch.ones(2, 3, 4, 5)
    for memory_format in (None, torch.contiguous_format, torch.channels_last):
        ie.contiguous_(x, memory_format)
        version = x._version
        assert ie.contiguous_(x, memory_format) is x and x._version == version
        if is_native():
            assert testing.last_path().endswith(":metadata")


@pytest.mark.parametrize("name", CHANGES)
def test_metadata_of_an_inference_tensor_outside_of_its_mode(name: str) -> None:
    for args, kwargs in CHANGES[name]:  # where torch raises as well, but has changed the tensor by then
        with torch.inference_mode():
            x, same = torch.ones(4, 6), torch.ones(4, 6)
        found = _change(getattr(ie, name), x, args, kwargs)
        kind = _change(getattr(torch.Tensor, name), same.clone(), args, kwargs)[0]
        assert found[0] in (RuntimeError, kind) and found[0] != "done"
        assert found[1:] == _change(lambda x: x, same, (), {})[1:]


# ---- memory ---------------------------------------------------------------------------------------------

PEAK = """
import sys
import torch
import inplace_ext as ie

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

torch.set_num_threads(int(sys.argv[1]))
for sizes, order in (
    ((4096, 4096), (1, 0)), ((5000, 3373), (1, 0)), ((1536, 10987), (1, 0)), ((3, 5592409), (1, 0)),
    ((5592409, 3), (1, 0)),
    ((64, 512, 512), (1, 0, 2)), ((64, 3, 300, 300), (0, 2, 3, 1)), ((64, 65, 64, 64), (3, 1, 2, 0)),
):
    for change in (ie.contiguous_, lambda x: ie.reshape_(x, -1)):
        change(torch.zeros(200, 300).t())  # threads and code are there
        x = torch.rand(sizes).permute(order)
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
        before = status("VmRSS")
        change(x)
        print(x.nbytes, status("VmHWM") - before)
"""


@native
@pytest.mark.nosanitize
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_peak_memory(count: int) -> None:
    command = [sys.executable, "-c", PEAK, str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(lines) == 16
    for nbytes, peak in lines:
        assert nbytes > 64e6
        assert peak < 0.01 * nbytes and peak < 1e6, lines


@native
@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from([1, 1, 10]),
    st.integers(2, 1 << 20),
    st.integers(2, 1 << 20),
    st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 20, 33, 100, 200, 255, 256, 1000]),
    st.sampled_from([1, 2, 16]),
)
def test_scratch_memory_is_bounded(batch: int, rows: int, columns: int, item: int, count: int) -> None:
    with threads(count):
        scratch = _native.module.scratch_bytes(batch, rows, columns, item)
    total = batch * rows * columns * item
    if max(rows, columns) * item < 49152 or min(rows, columns) <= 512:
        assert scratch < 800_000
    assert scratch < 800_000 or scratch < 10 * (rows + columns) * item
    if total > 64e6:
        assert scratch < 0.01 * total


@native
def test_buffer_has_a_least_size() -> None:
    with pytest.raises(ValueError, match="at least 65536"), testing.panels_of(1000):
        pass
