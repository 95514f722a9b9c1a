"""clip_grad_norm_ and clip_grad_value_ beside torch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import CAPABILITIES, is_native, threads

import inplace_ext as ie
from inplace_ext import _gradients, testing

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(5,), (64, 3), (), (0,), (1,), (333,), (2, 3, 4), (70000,), (17,)]
INF, NAN = float("inf"), float("nan")


def parameters(dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for shape in [*SHAPES, (3,)]:
        p = torch.zeros(shape, dtype=dtype, requires_grad=True)
        p.grad = (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype)
        found.append(p)
    found[-1].grad = None
    found[1].grad = torch.randn(3, 64, generator=g).to(dtype).t()
    return found


def grads(ps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.grad for p in ps if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [2.0, 1.0, INF, 2, 3.0, -INF, 0.5, "inf"])
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e9, 0.0])
def test_norm(max_norm: float, order: Any, dtype: torch.dtype, any_backend: str) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    if abs(float(order)) == INF:  # which torch refuses of an empty tensor
        ours, theirs = ([p for p in ps if p.numel() > 0] for ps in (ours, theirs))
    versions = [g._version for g in grads(ours)]
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm, order)
    got = ie.clip_grad_norm_(ours, max_norm, order)
    native = is_native() and float(order) in (1, 2, INF)
    assert (testing.last_path() != "torch") == native or not native
    assert got.dtype == want.dtype and got.shape == want.shape and not got.requires_grad
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0)
    assert all(g._version == v + 1 for g, v in zip(grads(ours), versions, strict=True) if native)
    assert ours[-1].grad is None


def test_norm_is_summed_in_double_precision(capability: str) -> None:
    # In float32 the small ones would vanish beside the large one.
    ps = [torch.zeros(n, requires_grad=True) for n in (1, 1 << 20)]
    ps[0].grad, ps[1].grad = torch.tensor([4096.0]), torch.full((1 << 20,), 0.5)
    want = math.sqrt(4096**2 + 0.25 * (1 << 20))
    assert ie.clip_grad_norm_(ps, 1e9).item() == torch.tensor(want).item()
    large = [torch.zeros(3, requires_grad=True)]
    large[0].grad = torch.full((3,), 1e30)
    assert math.isclose(ie.clip_grad_norm_(large, 1.0).item(), 1e30 * math.sqrt(3), rel_tol=1e-6)
    torch.testing.assert_close(large[0].grad, torch.full((3,), 1 / math.sqrt(3)))


@pytest.mark.parametrize("order", [1, 2, INF])
@pytest.mark.parametrize(
    "n", [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 65535, 65536, 65537, 200000]
)
def test_lengths(n: int, order: float, capability: str) -> None:
    for dtype in (torch.float32, torch.float64):
        p = torch.zeros(n, dtype=dtype, requires_grad=True)
        p.grad = torch.randn(n, dtype=torch.float64).to(dtype)
        want = torch.linalg.vector_norm(p.grad.double(), order)
        got = ie.clip_grad_norm_(p, 1e9, order)
        torch.testing.assert_close(got.double(), want, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(ie.clip_grad_norm_(p, 1e9, order).item())
        assert len(set(results)) == 1


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("order", [1.0, 2.0, INF])
@pytest.mark.parametrize("at", [0, 3, 16, 40, 99])
def test_nonfinite(at: int, order: float, value: float, any_backend: str) -> None:
    def make() -> list[torch.Tensor]:
        ps = [torch.zeros(100, requires_grad=True) for _ in range(2)]
        for p in ps:
            p.grad = torch.linspace(-1, 1, 100)
        ps[1].grad[at] = value
        return ps

    ours, theirs = make(), make()
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped") as caught:
        ie.clip_grad_norm_(ours, 1.0, order, error_if_nonfinite=True)
    with pytest.raises(RuntimeError) as expected:
        torch.nn.utils.clip_grad_norm_(theirs, 1.0, order, error_if_nonfinite=True)
    assert str(caught.value) == str(expected.value)
    for a, b in zip(grads(ours), grads(make()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    got = ie.clip_grad_norm_(ours, 1.0, order)
    want = torch.nn.utils.clip_grad_norm_(theirs, 1.0, order)
    torch.testing.assert_close(got, want, equal_nan=True)
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.5, 1, 0.0, INF])
def test_value(value: float, dtype: torch.dtype, any_backend: str) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    ours[0].grad[1] = theirs[0].grad[1] = NAN
    assert ie.clip_grad_value_(ours, value) is None
    assert (testing.last_path() != "torch") == is_native()
    torch.nn.utils.clip_grad_value_(theirs, value)
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def test_what_torch_carries_out() -> None:
    for make in (
        lambda: [torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)],
        lambda: [torch.zeros(3), torch.ones(3, dtype=torch.float64)],
        lambda: [torch.zeros(3), torch.randn(6)[::2]],
    ):
        torch.manual_seed(0)
        results = []
        for clip in (ie.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
            torch.manual_seed(0)
            ps = [torch.zeros(g.shape, dtype=g.dtype, requires_grad=True) for g in make()]
            torch.manual_seed(0)
            for p, g in zip(ps, make(), strict=True):
                p.grad = g
            results.append((clip(ps, 0.5), [p.grad.to_dense() for p in ps]))
        torch.testing.assert_close(*results)
    sub = torch.zeros(3, requires_grad=True)
    sub.grad = torch.ones(3).as_subclass(type("Sub", (torch.Tensor,), {}))
    assert math.isclose(ie.clip_grad_norm_([sub], 0.5), math.sqrt(3), rel_tol=1e-6)
    sub.grad = torch.ones(3).as_subclass(type("Sub", (torch.Tensor,), {}))
    ie.clip_grad_value_([sub], 0.5)
    assert (sub.grad == 0.5).all()


def test_calls(any_backend: str) -> None:
    p = torch.zeros(2, requires_grad=True)
    assert ie.clip_grad_norm_([p], 1.0).item() == 0 and ie.clip_grad_value_([p], 1.0) is None
    assert ie.clip_grad_norm_([], 1.0).item() == 0
    p.grad = torch.tensor([3.0, 4.0])
    assert ie.clip_grad_norm_((q for q in [p]), 1.0, foreach=False).item() == 5
    ie.clip_grad_value_((q for q in [p]), 0.7, foreach=True)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.7]))
    ie.clip_grad_norm_(p, max_norm=0.1, norm_type="inf")
    assert float(p.grad.max()) < 0.11


@pytest.mark.skipif(not CAPABILITIES, reason="no compiled module")
def test_paths() -> None:
    ps = parameters()
    ie.clip_grad_norm_(ps, 0.1)
    assert testing.last_path().rpartition(":")[2] in ("loop", "program")
    ie.clip_grad_value_(ps, 0.1)
    assert testing.last_path().rpartition(":")[2] in ("loop", "program")


def test_gradients_are_found_as_python_finds_them() -> None:
    class Own(torch.Tensor):
        @property
        def grad(self) -> Any:
            return torch.tensor([2.0])

    leaf, bare = torch.zeros(2, requires_grad=True), torch.zeros(2)
    leaf.grad = torch.ones(2)
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), 5.0)
    own = torch.zeros(1).as_subclass(Own)
    found = _gradients._gradients([leaf, bare, parameter, own])
    assert found[0] is leaf.grad and found[1] is parameter.grad and len(found) == 3
    assert torch.equal(found[2], torch.tensor([2.0]))
    kept = leaf * 2
    with pytest.warns(UserWarning, match="not a leaf"):
        assert _gradients._gradients([kept]) == []
    with pytest.raises(AttributeError, match="grad"):
        _gradients._gradients([1])  # type: ignore[list-item]
