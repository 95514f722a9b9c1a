"""torch.compile traces every operation as the torch method; importing the package does not import Dynamo."""

import re
import textwrap

import pytest
import torch
from test_fallback import FALLBACK, run_python

import inplace_ext as ie
from inplace_ext import _native
from inplace_ext._delegate import torch_method
from inplace_ext._table import OPS

NATIVE_OPS = [name for name, op in OPS.items() if op.native]


class Recorder:
    """A backend that keeps the operations of the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.targets: list[object] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.targets += [node.target for node in graph.graph.nodes if node.op.startswith("call_")]
        return graph


def call_of_example(name: str, function: object) -> tuple[object, torch.Tensor]:
    """The example of the documentation, as a function of ``input`` alone, and that input."""
    first, rest = re.fullmatch(r"(\[[^\]]*\])(.*)", OPS[name].example).groups()
    rest = re.sub(r"\[[^\]]*\]", r"torch.tensor(\g<0>)", rest)
    scope = {"function": function, "torch": torch}
    exec(f"def call(x): return function(x{rest})", scope)
    return scope["call"], torch.tensor(eval(first))


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("functions", [vars(ie), FALLBACK], ids=["public", "fallback"])
@pytest.mark.parametrize("name", NATIVE_OPS)
def test_compiled_equals_eager(name, functions, backend):
    call, x = call_of_example(name, functions[name])
    expected, compiled = call(x.clone()), x.clone()
    result = torch.compile(call, fullgraph=True, backend=backend)(compiled)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(compiled, expected)
    assert result is compiled


@pytest.mark.parametrize("name", list(OPS))
def test_graph_is_that_of_the_torch_method(name):
    graphs = []
    for function in (getattr(ie, name), torch_method(OPS[name])):
        call, x = call_of_example(name, function)
        recorder = Recorder()
        torch.compile(call, fullgraph=True, backend=recorder)(x.double() if name == "float_power_" else x)
        graphs.append(recorder.targets)
    assert graphs[0] == graphs[1]
    # Dynamo takes these two apart itself.
    assert name in graphs[0] or name in ("addcmul_", "addcdiv_") or OPS[name].like


@pytest.mark.parametrize("functions", [vars(ie), FALLBACK], ids=["public", "fallback"])
def test_keywords_and_several_operations_in_one_graph(functions):
    def chain(x, y):
        functions["add_"](input=x, other=y, alpha=2)
        functions["copy_"](y, src=x)
        return functions["clamp_"](functions["div_"](x, 2, rounding_mode="floor"), max=y)

    arguments = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 3.0])
    expected = chain(*(a.clone() for a in arguments))
    recorder = Recorder()
    assert torch.equal(torch.compile(chain, fullgraph=True, backend=recorder)(*arguments), expected)
    assert [t for t in recorder.targets if str(t).endswith("_")] == ["add_", "copy_", "div_", "clamp_"]


def test_compiled_backward():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return ie.exp_(ie.mul_(x * 1, 2)).sum()

    x = torch.zeros(3, requires_grad=True)
    loss(x).backward()
    assert x.grad.tolist() == [2, 2, 2]


CHECK = """
    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(x):
        return ie.relu_(ie.add_(x, 1, alpha=2))
    assert f(torch.tensor([-5.0, 1.0])).tolist() == [0, 3]
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("inplace_ext")]
"""


@pytest.mark.parametrize("environment", [{}, {"INPLACE_EXT_DISABLE_NATIVE": "1"}], ids=["native", "fallback"])
def test_import_before_dynamo(environment):
    run_python(
        f"""
    import sys, torch
    import inplace_ext as ie
    assert "torch._dynamo" not in sys.modules
    {CHECK}
    """,
        **environment,
    )


def test_import_after_dynamo():
    run_python(f"import sys, torch, torch._dynamo\nimport inplace_ext as ie\n{textwrap.dedent(CHECK)}")


@pytest.mark.skipif(_native.module is None, reason="Dynamo needs no help with Python functions")
def test_failed_import_of_dynamo_is_not_the_last_chance():
    run_python(
        f"""
    import sys, torch
    import inplace_ext as ie
    sys.modules["torch._dynamo.convert_frame"] = None  # the import fails half way
    try:
        import torch._dynamo
    except ImportError:
        pass
    else:
        raise AssertionError
    for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
        del sys.modules[name]
    {CHECK}
    """
    )
