"""What must not take the fast path and does what torch does: autograd, modes, subclasses, other tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from helpers import BACKENDS, BINARY, MOVES, NATIVE, OPS, UNARY, backend, expect_path, form, same_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import inplace_ext as ie
from inplace_ext import testing
from inplace_ext._table import OPS as TABLE


# Which instruction set is active has no say in what is delegated.
@pytest.fixture(autouse=True, params=list(dict.fromkeys([BACKENDS[0], "torch"])))
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backend(request.param) as name:
        yield name


#: The operations that are methods of torch.Tensor.
METHODS = [name for name in NATIVE if not TABLE[name].like]


def reads_a_tensor(name: str) -> bool:
    """Whether an operand that is a tensor of several elements may be given."""
    return TABLE[name].takes_tensors and name not in ("fill_", "masked_fill_")


def path_of(name: str) -> str:
    return "move" if name in MOVES else "loop"


def operands(name: str, y: torch.Tensor | None = None) -> list[Any]:
    """Arguments that keep values in the range where all operations are smooth."""
    if name == "fill_":
        return [0.5]
    if name == "threshold_":
        return [0.1, 7]
    if name in ("masked_fill_", "where_"):
        return [torch.tensor(True), 0.5 if y is None or name == "masked_fill_" else y]
    if "other" in TABLE[name].parameter_names or name in BINARY or name in ("clamp_", "copy_"):
        if y is None:
            tensor = name in ("copy_", "maximum_", "minimum_")
            y = torch.tensor(1.25) if tensor else 1.25  # type: ignore[assignment]
        return [y, y + 1] if name == "clamp_" else [y]  # type: ignore[operator]
    y = torch.tensor(1.25) if y is None else y
    return {"addcmul_": [y, y], "addcdiv_": [y, y], "lerp_": [y, 0.3]}.get(name, [])


def run(module: Any, name: str, x: torch.Tensor, *args: Any) -> torch.Tensor:
    """The operation of this package, or torch's own form."""
    if module is ie:
        result = getattr(ie, name)(x, *args)
        assert result is x
        return result  # type: ignore[no-any-return]
    return form(name)(x, *args)


# ---- autograd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_leaf_that_requires_grad(name: str) -> None:
    x = torch.rand(5, requires_grad=True)
    before, version = x.detach().clone(), x._version
    with pytest.raises(RuntimeError, match="leaf"):
        getattr(ie, name)(x, *operands(name))
    assert same_bits(x.detach(), before) and x._version == version
    view = x[1:3]
    with pytest.raises(RuntimeError, match="leaf"):
        getattr(ie, name)(view, *operands(name))
    assert same_bits(x.detach(), before) and x._version == version
    expect_path("torch")


@pytest.mark.parametrize("name", NATIVE)
def test_leaf_without_grad_mode(name: str) -> None:
    """As optimizers do: native, and it moves the version."""
    for x in (torch.rand(5, requires_grad=True), torch.nn.Parameter(torch.rand(5))):
        twin = x.detach().clone().requires_grad_()
        with torch.no_grad():
            assert getattr(ie, name)(x, *operands(name)) is x
            if type(x) is torch.Tensor:
                expect_path(path_of(name))
            form(name)(twin, *operands(name))
        assert x.requires_grad and x.is_leaf and x.grad_fn is None
        assert x._version == twin._version == 1
        torch.testing.assert_close(x.detach(), twin.detach())


@pytest.mark.parametrize("name", NATIVE)
def test_parameter_without_grad_mode_is_native(name: str) -> None:
    """A Parameter is a plain tensor under no_grad: the optimizer's case must be the fast one."""
    p = torch.nn.Parameter(torch.rand(5))
    with torch.no_grad():
        assert getattr(ie, name)(p, *operands(name, torch.nn.Parameter(torch.ones(5)))) is p
    expect_path(path_of(name))
    assert p._version == 1


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("name", NATIVE)
def test_gradients_by_delegation(name: str, layout: str) -> None:
    grads = []
    for module in (ie, torch):
        a = torch.linspace(0.5, 2, 12, dtype=torch.float64).requires_grad_()
        b = torch.linspace(0.7, 1.9, 12, dtype=torch.float64).requires_grad_()
        x = a * 1.5 if layout == "contiguous" else (a * 1.5).view(3, 4).t()
        y = b * 1.1 if layout == "contiguous" else (b * 1.1).view(4, 3)
        args = operands(name, y)
        x = run(module, name, x, *args)
        if module is ie:
            expect_path("torch")
        if x.requires_grad:
            (x * x).sum().backward()
        grads.append((x.detach().clone(), a.grad, b.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert same_bits(ours, theirs)


def test_gradients_flow_through_either_operand() -> None:
    """Only the operand requires grad: the input becomes part of the graph, as in torch."""
    w = torch.rand(4, requires_grad=True)
    x = torch.rand(4)
    x0 = x.clone()
    ie.mul_(x, w)
    expect_path("torch")
    assert x.requires_grad
    x.sum().backward()
    assert same_bits(w.grad, x0)
    with torch.no_grad():
        y = torch.rand(4)
        ie.mul_(y, w)
        expect_path("loop")
    assert not y.requires_grad
    z = ie.mul_(torch.rand(4), w.detach())
    expect_path("loop")
    assert not z.requires_grad


@pytest.mark.parametrize("name", NATIVE)
def test_stale_saved_tensor_is_caught(name: str) -> None:
    """exp saves its result: writing it afterwards makes backward raise, also when written under no_grad."""
    for guard in (torch.no_grad, torch.enable_grad):
        x = torch.rand(6, requires_grad=True)
        y = x.exp()
        target = y.detach() if guard is torch.enable_grad else y
        with guard():
            getattr(ie, name)(target, *operands(name))
        expect_path(path_of(name))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_stale_saved_tensor_through_a_graph() -> None:
    x = torch.rand(6, requires_grad=True)
    y = x.exp()
    ie.mul_(y, 2)
    expect_path("torch")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_view_of_a_graph_tensor() -> None:
    """Writing a view of a non-leaf changes the graph of its base."""
    results = []
    for module in (ie, torch):
        a = torch.linspace(1, 2, 6).requires_grad_()
        x = a * 1
        run(module, "mul_", x[1:4], 3.0)
        run(module, "add_", x[::2], x.detach()[::2].clone())
        x.sum().backward()
        results.append((x.detach(), a.grad))
    assert all(same_bits(p, q) for p, q in zip(*results, strict=True))


def test_views_that_may_not_be_written() -> None:
    base = torch.rand(4, 3, requires_grad=True) * 1
    first, *_ = base.unbind(0)
    with pytest.raises(RuntimeError):
        first.mul_(2)
    with pytest.raises(RuntimeError):
        ie.mul_(first, 2)
    with torch.no_grad():
        view = base[0]
    before = base.detach().clone()
    for method in (lambda: view.mul_(2), lambda: ie.mul_(view, 2)):
        with pytest.raises(RuntimeError):
            method()
    assert same_bits(base.detach(), before)


def test_hooks_and_retained_gradients() -> None:
    seen: list[torch.Tensor] = []
    a = torch.rand(3, requires_grad=True)
    x = a * 2
    ie.mul_(x, 3)
    x.retain_grad()
    x.register_hook(lambda g: seen.append(g))
    x.sum().backward()
    assert len(seen) == 1 and same_bits(x.grad, torch.ones(3)) and same_bits(a.grad, torch.full((3,), 6.0))


def test_gradcheck() -> None:
    def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x.clone()
        return ie.clamp_(ie.pow_(ie.div_(ie.add_(z, y, alpha=2), 3), 1.5), 0.1, 9)

    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    y = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chain, (x, y))
    assert torch.autograd.gradgradcheck(chain, (x, y))


# ---- inference mode ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_inference_tensors(name: str) -> None:
    with torch.inference_mode():
        inside = torch.rand(5)
        want = form(name)(inside.clone(), *operands(name))
        assert getattr(ie, name)(inside, *operands(name)) is inside
        expect_path(path_of(name))
        torch.testing.assert_close(inside, want)
    # Outside it is refused; torch says so when it has written, this package before.
    before = inside.clone()
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        getattr(ie, name)(inside, *operands(name))
    assert same_bits(inside.clone(), before)
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        form(name)(inside, *operands(name))


def test_inference_tensor_as_operand_and_normal_tensor_inside() -> None:
    with torch.inference_mode():
        inside = torch.rand(5)
    x = torch.rand(5)
    want = x.clone() * inside
    assert same_bits(ie.mul_(x, inside), want)
    expect_path("loop")
    version = x._version
    with torch.inference_mode():
        ie.mul_(x, 2)
        expect_path("loop")
    assert x._version == version + 1
    leaf = torch.rand(3, requires_grad=True)
    theirs = leaf.detach().clone().requires_grad_()
    with torch.inference_mode():
        outcomes = []
        for t, f in ((leaf, lambda t: ie.mul_(t, 2)), (theirs, lambda t: t.mul_(2))):
            try:
                f(t)
                outcomes.append(None)
            except RuntimeError as e:
                outcomes.append(type(e))
    assert outcomes[0] == outcomes[1] and same_bits(leaf.detach(), theirs.detach())


# ---- functorch and forward mode ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_vmap(name: str) -> None:
    x, y = torch.rand(3, 5) + 0.5, torch.rand(3, 5) + 0.5
    args = operands(name, y)
    args = [
        torch.tensor([True, False, True]) if isinstance(a, torch.Tensor) and a.dim() == 0 else a for a in args
    ]
    batched = [a for a in args if isinstance(a, torch.Tensor)]
    rest = [a for a in args if not isinstance(a, torch.Tensor)]
    paths = []

    def call(f: Callable[..., Any]) -> Callable[..., Any]:
        def body(row: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            row = row.clone()
            f(row, *tensors, *rest)
            paths.append(testing.last_path())
            return row

        return body

    ours = torch.func.vmap(call(lambda r, *a: run(ie, name, r, *a)))(x, *batched)
    assert paths == ["torch"]
    theirs = torch.func.vmap(call(lambda r, *a: run(torch, name, r, *a)))(x, *batched)
    assert same_bits(ours, theirs)


def test_grad_and_jvp_of_torch_func() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return ie.exp_(ie.mul_(x.clone(), 3)).sum()

    def g(x: torch.Tensor) -> torch.Tensor:
        return x.clone().mul_(3).exp_().sum()

    x, v = torch.rand(4), torch.rand(4)
    assert same_bits(torch.func.grad(f)(x), torch.func.grad(g)(x))
    for ours, theirs in zip(torch.func.jvp(f, (x,), (v,)), torch.func.jvp(g, (x,), (v,)), strict=True):
        assert same_bits(ours, theirs)
    assert same_bits(
        torch.func.vmap(torch.func.grad(f))(x[:, None]), torch.func.vmap(torch.func.grad(g))(x[:, None])
    )
    functional = torch.func.functionalize(f)(x)
    torch.testing.assert_close(functional, g(x))


@pytest.mark.parametrize("name", NATIVE)
def test_forward_mode(name: str) -> None:
    x, t = torch.rand(4, dtype=torch.float64) + 0.5, torch.rand(4, dtype=torch.float64)
    results = []
    for module in (ie, torch):
        with fwAD.dual_level():
            dual = fwAD.make_dual(x.clone(), t.clone())
            run(module, name, dual, *operands(name, torch.full((4,), 1.25, dtype=torch.float64)))
            if module is ie:
                expect_path("torch")
            primal, tangent = fwAD.unpack_dual(dual)
            results.append((primal.clone(), None if tangent is None else tangent.clone()))
    assert same_bits(results[0][0], results[1][0])
    assert (results[0][1] is None) == (results[1][1] is None)
    if results[0][1] is not None:
        assert same_bits(results[0][1], results[1][1])


def test_forward_mode_of_the_operand() -> None:
    with fwAD.dual_level():
        y = fwAD.make_dual(torch.full((4,), 3.0), torch.ones(4))
        x = torch.full((4,), 2.0)
        ie.mul_(x, y)
        expect_path("torch")
        tangent = fwAD.unpack_dual(x).tangent
        assert tangent is not None and same_bits(tangent.clone(), torch.full((4,), 2.0))


# ---- modes and subclasses ---------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionRecorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    seen: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.endswith("_") and not func.__name__.startswith("__"):
            cls.seen.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", METHODS)
def test_dispatch_mode_sees_the_operation(name: str) -> None:
    x = torch.rand(4)
    with Recorder() as mode:
        assert getattr(ie, name)(x, *operands(name)) is x
        expect_path("torch")
    also = {"relu_": "clamp_min_", "square_": "pow_"}.get(name, name)
    assert any(name in seen or also in seen for seen in mode.seen), mode.seen
    getattr(ie, name)(x, *operands(name))
    expect_path(path_of(name))


@pytest.mark.parametrize("name", METHODS)
def test_function_mode_sees_the_operation(name: str) -> None:
    x, y = torch.rand(4), torch.rand(4)
    with FunctionRecorder() as mode:
        getattr(ie, name)(x, *operands(name))
        expect_path("torch")
        getattr(ie, name)(x, *operands(name, y))
    assert mode.seen.count(name) == 2, mode.seen


@pytest.mark.parametrize("name", METHODS)
def test_subclass(name: str) -> None:
    Subclass.seen = []
    data = torch.rand(4)
    x = data.clone().as_subclass(Subclass)
    assert getattr(ie, name)(x, *operands(name)) is x
    expect_path("torch")
    assert type(x) is Subclass and Subclass.seen == [name]
    want = form(name)(data.clone(), *operands(name))
    assert same_bits(x.as_subclass(torch.Tensor), want)
    if reads_a_tensor(name):
        plain = torch.rand(4)
        y = torch.rand(4).as_subclass(Subclass)
        getattr(ie, name)(plain, *operands(name, y))
        expect_path("torch")
        assert Subclass.seen.count(name) >= 2


@pytest.mark.parametrize("name", [n for n in OPS if n not in (*UNARY, "zero_")])
def test_objects_with_torch_function(name: str) -> None:
    """Not a tensor at all, but a class that handles torch's functions."""

    class Duck:
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func.__name__

    args = [Duck(), None] if name == "clamp_" else [Duck()]
    assert getattr(ie, name)(torch.rand(3), *args) == name
    expect_path("torch")


@pytest.mark.parametrize("name", NATIVE)
def test_fake_tensors(name: str) -> None:
    with FakeTensorMode() as mode:
        x = torch.rand(4, 5)
        assert getattr(ie, name)(x, *operands(name)) is x
        expect_path("torch")
        assert x.shape == (4, 5)
    fake = mode.from_tensor(torch.rand(3))
    args = [
        mode.from_tensor(a) if type(a) is torch.Tensor else a
        for a in operands(name, mode.from_tensor(torch.rand(3)))
    ]
    getattr(ie, name)(fake, *args)
    expect_path("torch")


@pytest.mark.parametrize("name", NATIVE)
def test_make_fx_traces_the_operation(name: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: getattr(ie, name)(x.clone(), *operands(name)))(torch.rand(3))
    expect_path("torch")
    targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert len(targets) >= 2, targets


# ---- other kinds of tensor --------------------------------------------------------------------------------


def both(name: str, make: Callable[[], torch.Tensor], args: list[Any] | None = None) -> None:
    """The same result, or the same type of error with nothing written, and by torch."""
    args = operands(name) if args is None else args
    outcomes: list[Any] = []
    for module in (ie, torch):
        x = make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(module, name, x, *args)
                outcomes.append(x)
            except Exception as e:
                outcomes.append(type(e))
        if module is ie:
            expect_path("torch")
    ours, theirs = outcomes
    if isinstance(ours, type) or isinstance(theirs, type):
        assert ours is theirs
    elif ours.device.type == "meta":
        assert ours.shape == theirs.shape
    else:
        ours, theirs = (t.to_dense() if t.layout != torch.strided else t for t in (ours, theirs))
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype.itemsize == 1 or ours.dtype in (torch.uint16, torch.uint32, torch.uint64):
            ours, theirs = ours.to(torch.float64), theirs.to(torch.float64)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("name", NATIVE)
def test_complex(name: str) -> None:
    for dtype in (torch.complex64, torch.complex128, torch.complex32):
        both(name, lambda dtype=dtype: torch.tensor([1 + 2j, -3 + 0.5j]).to(dtype))
    if name in ("add_", "sub_", "mul_", "div_", "copy_", "pow_"):
        both(name, lambda: torch.tensor([1 + 2j, -3 + 0.5j]), [torch.tensor([2.0, 1j])])
        both(
            name, lambda: torch.rand(2, generator=torch.Generator().manual_seed(1)), [torch.tensor([2.0, 1j])]
        )


@pytest.mark.parametrize("name", NATIVE)
def test_conjugate_and_negative_views(name: str) -> None:
    """Lazy bits: the memory is not what the tensor means."""
    both(name, lambda: torch.tensor([1 + 2j, -3 + 0.5j]).conj())
    both(name, lambda: torch.tensor([1 + 2j, -3 + 0.5j]).conj().imag)
    if name not in (*UNARY, "zero_", "fill_"):
        negative = torch.tensor([1 + 2j, -3 + 0.5j]).conj().imag
        assert negative.is_neg()
        both(name, lambda: torch.tensor([1.0, 2.0]), [negative, None] if name == "clamp_" else [negative])


@pytest.mark.parametrize("name", NATIVE)
def test_meta_tensors(name: str) -> None:
    both(name, lambda: torch.empty(3, 4, device="meta"))
    if name in BINARY:
        both(name, lambda: torch.empty(3, 4, device="meta"), [torch.empty(4, device="meta")])
        both(name, lambda: torch.ones(3, 4), [torch.empty(4, device="meta")])


@pytest.mark.parametrize("name", NATIVE)
def test_sparse_tensors(name: str) -> None:
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    both(name, dense.to_sparse)
    both(name, dense.to_sparse_csr)
    if name in ("add_", "sub_", "mul_", "copy_"):
        both(name, dense.clone, [dense.to_sparse()])
        both(name, dense.to_sparse, [dense.to_sparse()])


@pytest.mark.skipif(not hasattr(torch.Tensor, "rename"), reason="this torch has no named tensors")
def test_named_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OPS:
            x = torch.ones(2, 3).refine_names("n", "c")
            getattr(ie, name)(x, *operands(name))
            expect_path("torch")
            assert x.names == ("n", "c")


@pytest.mark.parametrize("name", NATIVE)
def test_expanded_tensors(name: str) -> None:
    """fill_ and zero_ are allowed, the others raise: as in torch."""
    both(name, lambda: torch.ones(1, 3).expand(4, 3))
    both(name, lambda: torch.arange(12.0).as_strided((3, 4), (2, 1)))
    # Without elements there is nothing that could overlap.
    empty = torch.ones(1).expand(0)
    assert getattr(ie, name)(empty, *operands(name)) is empty


@pytest.mark.parametrize("name", NATIVE)
def test_unsupported_dtypes(name: str) -> None:
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn):
        both(name, lambda dtype=dtype: torch.ones(3).to(dtype))


def test_quantized_and_nested_and_mkldnn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds: list[Callable[[], torch.Tensor]] = [
            lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.quint8),
            lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
        ]
        if torch.backends.mkldnn.is_available():
            kinds.append(lambda: torch.rand(4, 4).to_mkldnn())
        for make in kinds:
            x = make()
            for name in ("mul_", "relu_", "add_"):
                errors = []
                for module in (ie, torch):
                    try:
                        run(module, name, make(), *operands(name))
                        errors.append(None)
                    except Exception as e:
                        errors.append(type(e))
                    if module is ie:
                        expect_path("torch")
                assert errors[0] == errors[1], (name, type(x))


def test_deterministic_and_default_dtype_settings() -> None:
    """Global settings change nothing that the operations may ignore."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        x = torch.ones(3, dtype=torch.float32)
        assert ie.mul_(x, 0.1).dtype == torch.float32
        expect_path("loop")
        assert same_bits(x, torch.ones(3, dtype=torch.float32).mul_(0.1))
    finally:
        torch.set_default_dtype(before)


def test_profiler_names_the_operation() -> None:
    x = torch.rand(100)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ie.clamp_(x, 0, 1)
    names = {e.key for e in profile.key_averages()}
    assert any("clamp_" in n for n in names), names
