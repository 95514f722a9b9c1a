"""Work that no cache holds, with the same values as what a cache does hold.

Cheap loops over several tensors run AVX2 code under AVX-512; fills and copies write past the caches.
"""

from __future__ import annotations

import pytest
import torch

import inplace_ext as ie
from inplace_ext import testing

LARGE = 700_001  # times two float32 tensors is beyond the threshold of 4 MiB; odd, for the tail

both_widths = pytest.mark.skipif(
    not {"avx512", "avx2"} <= set(testing.available_capabilities()), reason="needs AVX-512 and AVX2 kernels"
)


@both_widths
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


@both_widths
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


@pytest.mark.parametrize("capability", testing.available_capabilities())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool])
def test_moves_past_the_caches(dtype: torch.dtype, capability: str) -> None:
    data = torch.arange(2000).remainder(2 if dtype == torch.bool else 200).to(dtype)
    with testing.use_capability(capability), testing.moves_stream_from(1):
        for offset in (0, 1, 3):
            for n in (1, 2, 15, 64, 255, 1000, 1961):
                buffer = torch.zeros(2000, dtype=dtype)
                ie.copy_(buffer[offset : offset + n], data[:n])
                assert testing.last_path() == f"{capability}:streaming"
                assert torch.equal(buffer[offset : offset + n], data[:n])
                ie.fill_(buffer[offset : offset + n], 1)
                assert testing.last_path() == f"{capability}:streaming"
                assert bool((buffer[offset : offset + n] == 1).all())
                assert not buffer[:offset].any() and not buffer[offset + n :].any()
    ie.fill_(data, 1)
    assert testing.last_path().endswith(":move")
