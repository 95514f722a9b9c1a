"""Cheap loops over several tensors that no cache holds run AVX2 code under AVX-512, with the same values."""

from __future__ import annotations

import pytest
import torch

import inplace_ext as ie
from inplace_ext import testing

LARGE = 700_001  # times two float32 tensors is beyond the threshold of 4 MiB; odd, for the tail

pytestmark = pytest.mark.skipif(
    not {"avx512", "avx2"} <= set(testing.available_capabilities()), reason="needs AVX-512 and AVX2 kernels"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "clamp_"])
def test_same_values_as_the_avx512_loop(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x, *operands = (torch.randn(LARGE, generator=generator).mul(50).to(dtype) for _ in range(3))
    args = operands if name == "clamp_" else operands[:1]
    kwargs = {"alpha": 3} if name == "add_" else {}
    with testing.use_capability("avx512"):
        large = x.clone()
        getattr(ie, name)(large, *args, **kwargs)
        assert testing.last_path() == "avx512:streaming"
        parts = x.clone()
        for part, *small in zip(parts.split(9999), *(a.split(9999) for a in args), strict=True):
            getattr(ie, name)(part, *small, **kwargs)
            assert testing.last_path() == "avx512:loop"
    assert torch.equal(large, parts)


def test_only_where_it_helps() -> None:
    x = torch.rand(LARGE)
    with testing.use_capability("avx512"):
        ie.mul_(x, 2.0)
        assert testing.last_path() == "avx512:loop"  # one stream
        ie.pow_(x, torch.ones(LARGE))
        assert testing.last_path() == "avx512:loop"  # not bound by memory, and not exact
    with testing.use_capability("avx2"):
        ie.mul_(x, x.clone())
        assert testing.last_path() == "avx2:loop"
