"""softmax and dropout beyond their kernels: autograd, its memory, torch.func, torch.compile, torch.export."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CAPABILITIES, FLOATS, HALVES, LAYOUTS, dtype_name, expect_path, is_native, make
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import inplace_ext as ie
from inplace_ext import testing

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[..., torch.Tensor]
BOOL = torch.tensor([[True, False, True, True], [True, True, True, True], [False, False, True, False]])

#: Name of a call -> the call in place. The twin has the name without the underscore.
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax_", {"dim": 0}),
    "softmax scaled": ("softmax_", {"scale": 0.7}),
    "softmax masked": ("softmax_", {"scale": 0.7, "mask": BOOL}),
    "log_softmax": ("log_softmax_", {"dim": 0}),
    "log_softmax scaled": ("log_softmax_", {"scale": -0.7}),
    "softmax_relu": ("softmax_relu_", {"scale": 0.7, "mask": BOOL}),
    "dropout": ("dropout_", {"p": 0.3, "seed": 5}),
    "dropout all": ("dropout_", {"p": 1}),
    "feature_dropout": ("feature_dropout_", {"p": 0.3, "seed": 5}),
    "alpha_dropout": ("alpha_dropout_", {"p": 0.3, "seed": 5}),
    "feature_alpha_dropout": ("feature_alpha_dropout_", {"p": 0.3, "seed": 5}),
}
every_call = pytest.mark.parametrize("call", CALLS)
either = pytest.mark.parametrize("in_place", [True, False], ids=["in_place", "twin"])


def function(call: str, in_place: bool) -> Function:
    """The call on a tensor that is not a leaf and may be written."""
    name, kwargs = CALLS[call]
    if not in_place:
        return lambda x: getattr(ie, name[:-1])(x, **kwargs)
    return lambda x: getattr(ie, name)(x * 1, **kwargs)


# ---- autograd ---------------------------------------------------------------------------------------------


@every_call
@either
def test_gradients(call: str, in_place: bool, any_backend: str) -> None:
    f = function(call, in_place)
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    f(x)
    assert (testing.last_path() != "torch") == is_native()
    assert torch.autograd.gradcheck(f, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("call", ["softmax scaled", "log_softmax scaled"])
@either
@pytest.mark.parametrize("shape", [(3, 4), (4,), (3, 1), ()])
def test_gradient_of_an_added_mask(
    call: str, in_place: bool, shape: tuple[int, ...], any_backend: str
) -> None:
    name, kwargs = CALLS[call]

    def f(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (
            getattr(ie, name)(x * 1, mask=mask, **kwargs)
            if in_place
            else getattr(ie, name[:-1])(x, mask=mask, **kwargs)
        )
        return y

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x, mask)) and torch.autograd.gradgradcheck(f, (x, mask))
    # Where only the mask has a gradient to record.
    assert torch.autograd.gradcheck(lambda m: f(x.detach(), m), (mask,))


@pytest.mark.parametrize("name", ["softmax_", "log_softmax_"])
@either
def test_gradient_of_a_dropped_score_is_zero(name: str, in_place: bool, any_backend: str) -> None:
    """Whatever comes back to it: of a logarithm, which is -inf there, as well."""
    mask = BOOL.clone()
    mask[2] = False  # a row of NaN
    leaf = torch.randn(3, 4, requires_grad=True)
    y = getattr(ie, name)(leaf * 1, mask=mask) if in_place else getattr(ie, name[:-1])(leaf, mask=mask)
    grad = torch.randn(3, 4)
    (got,) = torch.autograd.grad(y, leaf, grad)
    want = getattr(torch, name[:-1])(leaf.masked_fill(~mask, -math.inf), -1)
    torch.testing.assert_close(got, torch.autograd.grad(want, leaf, grad)[0])
    assert (got[~mask] == 0).all()


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
def test_gradients_are_near_those_of_doubles(call: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    grad = torch.randn(3, 4, dtype=torch.float64)
    results = []
    for d in (torch.float64, dtype):
        leaf = x.to(dtype).to(d).requires_grad_()
        y = function(call, True)(leaf)
        y.masked_fill(y.isinf(), 0).backward(grad.to(dtype).to(d))
        assert leaf.grad is not None and leaf.grad.dtype == d
        results.append(leaf.grad)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(results[1].double(), results[0], rtol=16 * eps, atol=16 * eps)


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_scaled_gradients_of_16_bit_floats_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    leaf = torch.randn(20, 30).to(dtype).requires_grad_()
    y = getattr(ie, name)(leaf, scale=0.7)
    grad = torch.randn(20, 30).to(dtype)
    (got,) = torch.autograd.grad(y, leaf, grad)
    backward = getattr(torch, f"_{name}_backward_data")
    want = backward(grad.float(), y.detach().float(), 1, torch.float32) * 0.7
    assert torch.equal(got, want.to(dtype))


@every_call
def test_version_leaf_view_and_stale_tensors(call: str, any_backend: str) -> None:
    name, kwargs = CALLS[call]
    f = getattr(ie, name)
    leaf = torch.randn(3, 4, requires_grad=True)
    for target in (leaf, leaf[:], leaf.view(3, 4)):
        before = target.detach().clone()
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            f(target, **kwargs)
        assert torch.equal(target, before) and target._version == 0
    x = leaf * 1
    version = x._version
    assert f(x, **kwargs) is x and x._version == version + 1 and x.requires_grad and not x.is_leaf
    # A view of a tensor with a history: the base takes part.
    base = leaf * 1
    with torch.no_grad():
        part = base.detach()[:, :4].clone()
    view = base[:, :4]
    f(view, **kwargs)
    assert base.grad_fn is not None and torch.equal(base, f(part, **kwargs))
    (grad,) = torch.autograd.grad(base.masked_fill(base.isinf(), 0).sum(), leaf)
    (same,) = torch.autograd.grad(x.masked_fill(x.isinf(), 0).sum(), leaf)
    torch.testing.assert_close(grad, same)
    # What another operation has saved.
    y = leaf * 1
    z = y * y
    f(y, **kwargs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    # What the operation itself has saved; through torch it is a copy.
    if "softmax" in name and is_native():
        y = function(call, True)(leaf)
        with torch.no_grad():
            y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    # One of several views.
    with pytest.raises(RuntimeError, match="multiple views"):
        f((leaf * 1).chunk(1)[0], **kwargs)


@every_call
def test_gradient_is_not_written(call: str, any_backend: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = function(call, True)(x)
    grad = torch.randn(3, 4)
    before = grad.clone()
    torch.autograd.grad(y, x, grad)
    assert torch.equal(grad, before) and grad._version == 0


@every_call
def test_no_grad_and_detached(call: str, any_backend: str) -> None:
    name, kwargs = CALLS[call]
    x = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        assert getattr(ie, name)(x, **kwargs) is x and x.is_leaf and x.requires_grad
    assert not getattr(ie, name[:-1])(x.detach(), **kwargs).requires_grad


# ---- memory between forward and backward ------------------------------------------------------------------


def balance(call: Callable[[], object]) -> int:
    """Bytes that torch's allocator has handed out during a call and not taken back."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        keep = call()
    del keep
    events = profile.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@every_call
@either
def test_nothing_of_the_size_of_the_tensor_is_kept(call: str, in_place: bool) -> None:
    name, kwargs = CALLS[call]
    kwargs = {key: value for key, value in kwargs.items() if key != "mask"}
    leaf = torch.randn(500, 400, requires_grad=True)
    x = leaf * 1
    packed: list[torch.Tensor] = []
    result: list[torch.Tensor] = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        packed.append(saved)
        return saved

    def run() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            result.append(getattr(ie, name if in_place else name[:-1])(x, **kwargs))

    grown = balance(run)
    expected = 0 if in_place else x.nbytes
    assert 0 <= grown - expected < 1024, grown
    assert testing.last_path() != "torch"
    (saved,) = packed
    if "softmax" in name:
        assert saved.data_ptr() == result[0].data_ptr()
    else:
        assert saved.dtype == torch.int64 and saved.numel() == 2
    result[0].sum().backward()
    assert leaf.grad is not None


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_dropout_keeps_its_input_no_longer() -> None:
    leaf = torch.randn(500, 400, requires_grad=True)
    x = leaf * 1
    before = weakref.ref(x.untyped_storage())
    y = ie.dropout(x, seed=1)
    del x
    assert before() is None
    y.sum().backward()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["dropout_", "feature_dropout_", "alpha_dropout_"])
def test_checkpointing_draws_the_same_mask(
    name: str, reentrant: bool, in_place: bool, any_backend: str
) -> None:
    masks: list[torch.Tensor] = []

    def block(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(ie, name)(x * 2) if in_place else getattr(ie, name[:-1])(x * 2)
        masks.append(y.detach().clone())
        return y.sin()

    x = torch.ones(30, 40, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=reentrant)
    torch.rand(3)  # drawn between forward and backward
    y.sum().backward()
    assert len(masks) == 2 and torch.equal(*masks) and 0 < int((masks[0] == masks[0][0, 0]).sum()) < 1200
    if name == "dropout_":  # of which y is sin(2 m x) with the mask m of 0 and 2
        assert x.grad is not None
        torch.testing.assert_close(x.grad, masks[0] * masks[0].cos())


# ---- torch.func and forward mode --------------------------------------------------------------------------


@every_call
@either
def test_vmap(call: str, in_place: bool, any_backend: str) -> None:
    f = function(call, in_place)
    x = torch.randn(5, 3, 4)
    want = torch.stack([f(t) for t in x])
    torch.testing.assert_close(torch.func.vmap(f)(x), want)
    torch.testing.assert_close(torch.func.vmap(f, 1, 1)(x.transpose(0, 1)), want.transpose(0, 1))


@every_call
def test_vmap_of_a_backward(call: str, any_backend: str) -> None:
    """Of a graph that was recorded outside of it."""
    leaf = torch.randn(3, 4, requires_grad=True)
    y = function(call, False)(leaf)

    def backward(grad: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(y, leaf, grad, retain_graph=True)[0]

    grads = torch.randn(5, 3, 4)
    want = torch.stack([backward(grad) for grad in grads])
    torch.testing.assert_close(torch.func.vmap(backward)(grads), want)


@either
@pytest.mark.parametrize("name", ["dropout_", "feature_dropout_", "alpha_dropout_"])
def test_vmap_asks_for_its_randomness(name: str, in_place: bool, any_backend: str) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(ie, name)(x * 1) if in_place else getattr(ie, name[:-1])(x)
        return y

    x = torch.ones(3, 20, 30)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(f)(x)
    same = torch.func.vmap(f, randomness="same")(x)
    different = torch.func.vmap(f, randomness="different")(x)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert not torch.equal(different[0], different[1]) and not torch.equal(different[1], different[2])
    generator = torch.Generator().manual_seed(5)
    drawn = torch.func.vmap(lambda t: ie.dropout(t, generator=generator), randomness="same")(x)
    assert torch.equal(drawn[0], ie.dropout(x[0], generator=torch.Generator().manual_seed(5)))
    assert 0 < int((same == same[0, 0, 0]).sum()) < same.numel()


@every_call
@either
def test_func_grad_and_forward_mode(call: str, in_place: bool, any_backend: str) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = function(call, in_place)(x)
        return y.masked_fill(y.isinf(), 0).sin().sum()

    x = torch.randn(3, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(f(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(f)(x), want)
    tangent = torch.randn(3, 4, dtype=torch.float64)
    directional = (want * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(f, (x,), (tangent,))[1], directional)
    with forward_ad.dual_level():
        dual = f(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, directional)
    assert torch.func.hessian(f)(x).shape == (3, 4, 3, 4)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_forward_mode_of_a_mask(name: str, any_backend: str) -> None:
    x, mask, tangent = torch.randn(3, 3, 4, dtype=torch.float64)
    want = torch.func.jvp(lambda m: getattr(torch, name)(x + m, -1), (mask,), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mask, tangent)
        for y in (getattr(ie, name)(x, mask=dual), getattr(ie, f"{name}_")(x.clone(), mask=dual)):
            torch.testing.assert_close(tuple(forward_ad.unpack_dual(y)), want)


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_operators_refuse_forward_mode_before_they_write() -> None:
    state = torch.tensor([1, 0])
    with forward_ad.dual_level():
        x = torch.randn(3, 4)
        dual = forward_ad.make_dual(x, torch.ones(3, 4))
        before = x.clone()
        for operator, args in (
            ("softmax_", (0,)),
            ("softmax", (0,)),
            ("dropout_", (0.5, state)),
            ("dropout", (0.5, state)),
        ):
            with pytest.raises(NotImplementedError, match="forward-mode AD"):
                getattr(torch.ops.inplace_ext, operator)(dual, *args)
        assert torch.equal(x, before)
        for operator in ("softmax_", "softmax"):  # with a mask that has a tangent
            with pytest.raises(NotImplementedError, match="forward-mode AD"):
                getattr(torch.ops.inplace_ext, operator)(x, 0, 1.0, dual)
        assert torch.equal(x, before)


# ---- the operators themselves -----------------------------------------------------------------------------

STATE = torch.tensor([7, 3])
OPERATORS: list[tuple[str, tuple[Any, ...]]] = [
    ("softmax_", (-1, 0.5, BOOL)),
    ("softmax_", (0, 1.0, torch.randn(4), True)),
    ("softmax", (-1, 0.5, BOOL, True)),
    ("softmax", (0, 1.0, torch.randn(4))),
    ("dropout_", (0.3, STATE)),
    ("dropout_", (0.3, STATE, True, True)),
    ("dropout", (0.3, STATE)),
    ("dropout", (0.3, STATE, True, True)),
    ("dropout_backward", (0.3, STATE, False, True)),
]


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("operator, args", OPERATORS)
def test_opcheck(operator: str, args: tuple[Any, ...], grad: bool) -> None:
    x = torch.randn(3, 4, requires_grad=grad)
    if grad and operator.endswith("_"):
        x = x * 1
    result = torch.library.opcheck(getattr(torch.ops.inplace_ext, operator).default, (x, *args))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("operator, args", [case for case in OPERATORS if not case[0].endswith("_")])
def test_shapes_alone_have_dtype_and_strides_of_the_result(
    operator: str, args: tuple[Any, ...], dtype: torch.dtype
) -> None:
    """Which opcheck looks at for the one tensor that it is given."""
    f = getattr(torch.ops.inplace_ext, operator)
    mask = args[2] if operator == "softmax" else None
    if mask is not None and mask.dtype != torch.bool:
        args = (*args[:2], mask.to(dtype), *args[3:])
    for layout in LAYOUTS:
        x = make((5, 3, 4), dtype, layout)
        want = f(x, *args)
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in (x, *args)]
            fake = f(*fakes)
        assert fake.dtype == want.dtype and fake.shape == want.shape, layout
        assert fake.stride() == want.stride(), layout


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_shapes_alone_of_a_state() -> None:
    x = torch.ones(3, 4)
    want = torch.ops.inplace_ext.dropout_state(x)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = torch.ops.inplace_ext.dropout_state(mode.from_tensor(x))
    assert (fake.dtype, fake.shape, fake.device) == (want.dtype, want.shape, want.device)
    assert want.dtype == torch.int64 and want[1] == 0


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@pytest.mark.parametrize("operator, args", [case for case in OPERATORS if case[0].endswith("_")])
def test_operators_change_the_version_once(operator: str, args: tuple[Any, ...]) -> None:
    f = getattr(torch.ops.inplace_ext, operator)
    leaf = torch.randn(3, 4, requires_grad=True)
    recorded = leaf * 1
    f(recorded, *args)
    with torch.no_grad():
        f(leaf, *args)
    plain = torch.randn(3, 4)
    f(plain, *args)
    assert (recorded._version, leaf._version, plain._version) == (1, 1, 1)
    assert recorded.grad_fn is not None and leaf.is_leaf and not plain.requires_grad


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_state_of_any_stride() -> None:
    x = torch.ones(3, 40)
    state = torch.tensor([7, 1, 3, 1])[::2]
    for operator in ("dropout", "dropout_backward"):
        got = getattr(torch.ops.inplace_ext, operator)(x, 0.5, state)
        assert torch.equal(got, ie.dropout(x, 0.5, seed=7, offset=3))


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_errors_of_the_operators() -> None:
    operators = torch.ops.inplace_ext
    x = torch.ones(3, 4)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: operators.softmax_(x, 2), IndexError, "Dimension out of range"),
        (lambda: operators.softmax_(x.long(), 0), NotImplementedError, "softmax: input must be float32"),
        (lambda: operators.softmax(x, 0, 1.0, torch.ones(3)), RuntimeError, "mask must be bool or of"),
        (lambda: operators.softmax(x, 0, 1.0, torch.ones(4).double()), RuntimeError, "got Double of shape"),
        (lambda: operators.softmax_(torch.ones(1).expand(3), 0), RuntimeError, "single memory location"),
        (lambda: operators.dropout_(x, 1.5, STATE), ValueError, r"p must be in \[0, 1\], got 1.5"),
        (lambda: operators.dropout_(x, 0.5, STATE.int()), RuntimeError, "state must be an int64 tensor"),
        (lambda: operators.dropout(x, 0.5, STATE[:1]), RuntimeError, "state must be an int64 tensor"),
        (lambda: operators.dropout(x.long(), 0.5, STATE), RuntimeError, "dropout: input must be float32"),
        (lambda: operators.dropout(x[0], 0.5, STATE, True), RuntimeError, "at least 2"),
        (lambda: operators.dropout_(torch.ones(1).expand(3), 0.5, STATE), RuntimeError, "single memory"),
    ]  # fmt: skip
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    assert torch.equal(x, torch.ones(3, 4)) and x._version == 0
    with torch.inference_mode():
        inference = torch.ones(3)
    for call in (lambda: operators.softmax_(inference, 0), lambda: operators.dropout_(inference, 0.5, STATE)):
        with pytest.raises(RuntimeError, match="inference tensor"):
            call()
    assert torch.equal(inference, torch.ones(3))
    # A mask in the memory of input is read before that is written.
    y = torch.randn(3, 4)
    want = torch.softmax(y + y, 0)
    torch.testing.assert_close(operators.softmax_(y, 0, 1.0, y), want)


# ---- torch.compile and torch.export -----------------------------------------------------------------------


@every_call
@either
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(call: str, in_place: bool, compiler: str) -> None:
    torch._dynamo.reset()
    f = function(call, in_place)
    compiled = torch.compile(f, fullgraph=True, backend=compiler)
    for grad in (False, True):
        x, y = (torch.linspace(-2, 2, 12).view(3, 4).requires_grad_(grad) for _ in range(2))
        want, got = f(x), compiled(y)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        if grad:
            for result in (want, got):
                result.masked_fill(result.isinf(), 0).sin().sum().backward()
            torch.testing.assert_close(y.grad, x.grad)
    if in_place:  # of the argument itself
        name, kwargs = CALLS[call]
        direct = torch.compile(lambda t: getattr(ie, name)(t, **kwargs), fullgraph=True, backend=compiler)
        x = torch.linspace(-2, 2, 12).view(3, 4)
        want = f(x)
        assert direct(x) is x
        torch.testing.assert_close(x, want, rtol=0, atol=0)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["dropout_", "dropout", "alpha_dropout"])
def test_compiled_and_eager_calls_draw_the_same_seeds(name: str, compiler: str) -> None:
    torch._dynamo.reset()
    f = getattr(ie, name)
    compiled = torch.compile(lambda x: f(x * 1, 0.4), fullgraph=True, backend=compiler)
    x = torch.ones(100, requires_grad=True)
    torch.manual_seed(3)
    want = [f(x * 1, 0.4).detach() for _ in range(3)]
    torch.manual_seed(3)
    got = [compiled(x) for _ in range(3)]
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b.detach())
        (grad,) = torch.autograd.grad(b.sum(), x)
        if "alpha" not in name:
            assert torch.equal(grad, a)
    assert not torch.equal(want[0], want[1])


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_seed_as_an_argument_does_not_compile_again() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda x, s: ie.dropout(x, 0.5, seed=s), fullgraph=True, backend=counter, dynamic=True
    )
    for seed in (11, 12, 2**40, 5):
        x = torch.ones(50)
        assert torch.equal(compiled(x, seed), ie.dropout(x, 0.5, seed=seed))
    assert counter.frame_count <= 2


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
@every_call
def test_no_clone_in_the_compiled_graph(call: str) -> None:
    """Inductor writes where the in-place form does, forward and backward."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    name, kwargs = CALLS[call]
    for f in (lambda x: getattr(ie, name)(x, **kwargs), lambda x: getattr(ie, name)(x.sin(), **kwargs)):
        x = torch.linspace(-2, 2, 12).view(3, 4)
        want = f(x.clone())
        got, code = run_and_get_code(torch.compile(f, fullgraph=True), x)
        torch.testing.assert_close(got, want)
        source = "".join(code)
        assert f"inplace_ext.{'dropout' if 'dropout' in name else 'softmax'}_.default(" in source
        assert "clone" not in source.replace("_clone", "").replace("clone_", "")
        # One buffer at most, for sin: and none for the call itself.
        assert source.count("empty_strided_cpu((3, 4)") <= 1


@every_call
@pytest.mark.parametrize("strict", [True, False])
def test_export(call: str, strict: bool) -> None:
    f = function(call, True)

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return f(x)

    x = torch.linspace(-2, 2, 12).view(3, 4)
    exported = torch.export.export(Module(), (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), f(x))
    torch.testing.assert_close(exported.run_decompositions().module()(x), f(x))


def test_compiled_vmap() -> None:
    torch._dynamo.reset()
    f = torch.func.vmap(lambda t: ie.softmax(ie.dropout(t, 0.3, seed=3), 0))
    x = torch.randn(5, 6)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


# ---- what else stands in the way --------------------------------------------------------------------------


@every_call
def test_modes_and_subclasses_see_torchs_functions(call: str) -> None:
    name, kwargs = CALLS[call]
    seen: list[str] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 4)
    want = getattr(ie, name[:-1])(x, **kwargs)
    with Mode():
        got = getattr(ie, name)(x.clone(), **kwargs)
    expect_path("torch")
    torch.testing.assert_close(got, want)
    assert seen and not any("inplace_ext" in function for function in seen)

    class Sub(torch.Tensor):
        pass

    if "mask" in kwargs:
        getattr(ie, name)(x.clone(), **{**kwargs, "mask": kwargs["mask"].as_subclass(Sub)})
        expect_path("torch")
    sub = x.clone().as_subclass(Sub)
    assert getattr(ie, name)(sub, **kwargs) is sub
    torch.testing.assert_close(sub.as_subclass(torch.Tensor), want)
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(3, 4)
        arguments = {key: value for key, value in kwargs.items() if key != "mask"}
        assert getattr(ie, name)(fake, **arguments) is fake
        assert getattr(ie, name[:-1])(fake, **arguments).shape == (3, 4)


def test_more_dims_than_the_kernels_take(any_backend: str) -> None:
    x = torch.randn([2] * 17).transpose(0, 16)
    want = torch.softmax(x, 3)
    torch.testing.assert_close(ie.softmax_(x.clone().transpose(1, 5).contiguous().transpose(1, 5), 3), want)
    y = ie.dropout(x, 0.5, seed=1)
    assert math.isclose(float((y != 0).float().mean()), 0.5, abs_tol=0.01)
