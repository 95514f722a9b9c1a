"""The modules: the in-place functions behind them, and what torch's modules of these names promise."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from helpers import CAPABILITIES

import inplace_ext as ie
from inplace_ext import testing

#: Arguments of each module beside ``inplace``.
MODULES: dict[str, tuple[object, ...]] = {
    "AlphaDropout": (0.3,),
    "CELU": (1.5,),
    "Clamp": (-0.5, 0.5),
    "Dropout": (0.3,),
    "ELU": (1.5,),
    "FeatureAlphaDropout": (0.3,),
    "FeatureDropout": (0.3,),
    "GELU": ("tanh",),
    "Hardsigmoid": (),
    "Hardswish": (),
    "Hardtanh": (-0.5, 0.5),
    "LeakyReLU": (0.3,),
    "LogSoftmax": (1,),
    "Mish": (),
    "ReLU": (),
    "ReLU6": (),
    "SELU": (),
    "Sigmoid": (),
    "SiLU": (),
    "Softmax": (1,),
    "SoftmaxReLU": (1,),
    "Softplus": (2, 10),
    "Tanh": (),
    "Threshold": (0.1, 2.0),
}
RANDOM = [name for name in MODULES if "Dropout" in name]
#: Those with a twin of torch's that computes the same.
SAME = [name for name in MODULES if name not in RANDOM and hasattr(torch.nn, name)]
every_module = pytest.mark.parametrize("name", MODULES)


def make(name: str, **kwargs: object) -> torch.nn.Module:
    module: torch.nn.Module = getattr(ie.nn, name)(*MODULES[name], **kwargs)
    return module


def test_every_module_is_here() -> None:
    assert sorted(MODULES) == sorted(ie.nn.__all__)


@every_module
def test_changes_its_input(name: str) -> None:
    module = make(name)
    x = torch.linspace(-2, 2, 24).view(2, 3, 4)
    before, version = x.clone(), x._version
    with torch.no_grad():
        assert module(x) is x
    assert x._version == version + 1 and not torch.equal(x, before)
    assert (testing.last_path() != "torch") == bool(CAPABILITIES)


@pytest.mark.parametrize("name", SAME)
def test_values_and_gradients_are_those_of_torchs_module(name: str) -> None:
    ours, theirs = make(name), getattr(torch.nn, name)(*MODULES[name])
    assert name in ("Softmax", "LogSoftmax") or isinstance(ours, type(theirs))
    leaf = torch.linspace(-2, 2, 24).view(2, 3, 4).requires_grad_()
    got, want = ours(leaf * 1), theirs(leaf * 1)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(y.sin().sum(), leaf)[0] for y in (got, want)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", SAME)
def test_arguments_are_those_of_torchs_module(name: str) -> None:
    ours = inspect.signature(getattr(ie.nn, name)).parameters
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    if name in ("Softmax", "LogSoftmax"):  # whose dim torch infers where it is not given
        assert list(ours) == ["dim", "scale", "inplace"] and list(theirs) == ["dim"]
        return
    names = [parameter for parameter in theirs if parameter not in ("min_value", "max_value")]  # deprecated
    assert list(ours) == names
    for parameter in names:
        wanted = True if parameter == "inplace" else theirs[parameter].default
        assert ours[parameter].default == wanted


@pytest.mark.parametrize(
    "name", [n for n in MODULES if "inplace" in inspect.signature(getattr(ie.nn, n)).parameters]
)
def test_not_in_place(name: str) -> None:
    module = make(name, inplace=False)
    x = torch.linspace(-2, 2, 24).view(2, 3, 4)
    before = x.clone()
    torch.manual_seed(0)
    y = module(x)
    assert y is not x and torch.equal(x, before) and x._version == 0
    torch.manual_seed(0)
    torch.testing.assert_close(make(name)(x), y)


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_while_training(name: str) -> None:
    module = make(name)
    x = torch.ones(20, 30, 2)
    torch.manual_seed(4)
    first, second = module(x.clone()), module(x.clone())
    torch.manual_seed(4)
    assert torch.equal(module(x.clone()), first) and not torch.equal(first, second)
    dropped = first != first.flatten().mode().values
    assert 0.15 < float(dropped.float().mean()) < 0.45
    assert "Feature" not in name or torch.equal(first[:, :, 0], first[:, :, 1])
    module.eval()
    assert module(x) is x and torch.equal(x, torch.ones(20, 30, 2))
    with pytest.raises(ValueError, match="probability"):
        getattr(ie.nn, name)(1.5)


def test_softmax_takes_a_mask_and_a_scale() -> None:
    x, mask = torch.randn(3, 4), torch.rand(3, 4) < 0.7
    mask[:, 0] = True
    for inplace in (True, False):
        for module, function in (
            (ie.nn.Softmax, ie.softmax),
            (ie.nn.LogSoftmax, ie.log_softmax),
            (ie.nn.SoftmaxReLU, ie.softmax_relu),
        ):
            y = module(1, scale=0.5, inplace=inplace)(x.clone(), mask)
            assert torch.equal(y, function(x, 1, scale=0.5, mask=mask))


@every_module
def test_repr_state_pickle_and_copy(name: str) -> None:
    module = make(name)
    assert not module.state_dict() and not list(module.parameters())
    printed = repr(module)
    assert printed.startswith(f"{name}(")
    theirs = getattr(torch.nn, name, None)
    if name in SAME and name not in ("Softmax", "LogSoftmax"):
        assert theirs is not None
        wanted = repr(theirs(*MODULES[name]))
        if "inplace" in inspect.signature(theirs).parameters:
            wanted = repr(theirs(*MODULES[name], inplace=True))
        assert printed == wanted
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    x = torch.linspace(-2, 2, 24).view(2, 3, 4)
    for other in (
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        torch.load(buffer, weights_only=False),
    ):
        assert repr(other) == printed and type(other) is type(module)
        torch.manual_seed(1)
        want = module(x.clone())
        torch.manual_seed(1)
        assert torch.equal(other(x.clone()), want)
        other.load_state_dict(module.state_dict())


def test_repr_of_those_that_torch_lacks() -> None:
    assert repr(ie.nn.SoftmaxReLU(0, 0.5)) == "SoftmaxReLU(dim=0, scale=0.5, inplace=True)"
    assert repr(ie.nn.Clamp(0, 1)) == "Clamp(min=0, max=1)"
    assert repr(ie.nn.FeatureDropout(0.1)) == "FeatureDropout(p=0.1, inplace=True)"
    with pytest.raises(ValueError, match="give min, max or both"):
        ie.nn.Clamp()


def test_trains_in_a_sequence() -> None:
    """A network of our modules takes the steps of one of torch's; but for dropout, whose mask is another."""
    torch.manual_seed(0)

    def build(nn: object) -> torch.nn.Sequential:
        torch.manual_seed(1)
        layer = torch.nn.Linear
        return torch.nn.Sequential(
            *(layer(8, 16), nn.ReLU(), layer(16, 16), nn.SiLU(), layer(16, 16), nn.Hardtanh()),  # type: ignore[attr-defined]
            *(layer(16, 16), nn.Sigmoid(), layer(16, 4), nn.Softmax(1)),  # type: ignore[attr-defined]
        )

    x, target = torch.randn(32, 8), torch.rand(32, 4)
    losses = []
    for nn in (ie.nn, torch.nn):
        model = build(nn)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses[:5]), torch.stack(losses[5:]))
    first, last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)
    for hidden in (
        [ie.nn.Dropout(0.5), ie.nn.ReLU()],
        [ie.nn.ReLU(), ie.nn.Dropout(0.5, inplace=False), ie.nn.Dropout(0.1)],
    ):
        model = torch.nn.Sequential(first, *hidden, last)
        model.zero_grad()
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.nn.Sequential(first, ie.nn.ReLU(), ie.nn.Dropout(0.5), last)(x).sum().backward()


@pytest.mark.parametrize("name", ["ReLU", "Dropout", "SoftmaxReLU", "Clamp", "GELU"])
def test_compiles(name: str) -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), make(name))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 8)
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), want)
