"""The examples: what they compute is what torch computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import CAPABILITIES

from inplace_ext import testing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SHAPES = [(50,), (7, 9), (3, 4, 5), (), (1,)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_torchs_step_for_step(weight_decay: float) -> None:
    example = load("optimizers")
    torch.manual_seed(0)
    ours = [torch.randn(shape) for shape in SHAPES]
    theirs = [p.clone().requires_grad_() for p in ours]
    buffers = [torch.zeros_like(p) for p in ours]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    for _ in range(10):
        for q in theirs:
            q.grad = torch.randn_like(q)
        example.sgd_(ours, [q.grad for q in theirs], buffers, 0.1, 0.9, weight_decay)
        assert (testing.last_path().endswith("program")) == bool(CAPABILITIES)
        optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs_step_for_step(weight_decay: float) -> None:
    example = load("optimizers")
    torch.manual_seed(0)
    theirs = [torch.randn(shape).requires_grad_() for shape in SHAPES]
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    options = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": weight_decay}
    optimizer, mine = torch.optim.AdamW(theirs, **options), example.AdamW(ours, **options)
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = torch.randn_like(q)
        optimizer.step()
        mine.step()
        assert (testing.last_path().endswith("program")) == bool(CAPABILITIES)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=5e-6, atol=2e-6)


def test_table() -> None:
    example = load("table")
    table, *columns = example.make(1000)
    want = example.clean_.__wrapped__(table.clone(), *columns)
    got = example.clean_(table, *columns)
    assert (testing.last_path().endswith("program")) == bool(CAPABILITIES)
    torch.testing.assert_close(got, want)
    assert got.isfinite().all()


@pytest.mark.parametrize("name", ["optimizers", "table"])
def test_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).main()
    assert capsys.readouterr().out
