"""dropout and its kin, where the call is not one for the kernel alone: by the operator, or through torch.

Which elements are kept is a function of the seed, the offset and the place of the element, here as in the
kernels: ``csrc/include/inplace_ext/philox.h`` says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from inplace_ext import _operators
from inplace_ext._assign import assign

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BITS = 24
#: Elements, a multiple of 4.
_PART = 1 << 22

Seed: TypeAlias = int | torch.Tensor


def draws(
    shape: tuple[int, ...] | torch.Size, seed: Seed, offset: Seed, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Number of each element times 2^24: the lower bits of its word of Philox4x32-10, an int32 tensor."""
    count = math.prod(shape)
    # A part at a time, since 64-bit words in several copies take many times the memory of the result.
    parts = [
        _words(begin, min(_PART, count - begin), seed, offset, device)
        for begin in range(0, max(count, 1), _PART)
    ]
    return torch.cat(parts).view(shape)


def _words(begin: int, count: int, seed: Seed, offset: Seed, device: torch.device | str) -> torch.Tensor:
    block = torch.arange(begin // 4, (begin + count + 3) // 4, device=device) + offset
    zero = torch.zeros_like(block)
    c0, c1, c2, c3 = block & _WORD, (block >> 32) & _WORD, zero, zero
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        # Of a product of 64 bits only the sign is lost.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _STEPS[0]) & _WORD, (k1 + _STEPS[1]) & _WORD
    words = torch.stack((c0, c1, c2, c3), -1).flatten()[:count]
    return (words & ((1 << _BITS) - 1)).to(torch.int32)


def _signed(word: int) -> int:
    """The int64 with the bits of a word."""
    return word - (1 << 64) if word >= 1 << 63 else word


def draw_seed(device: torch.device | str, generator: torch.Generator | None = None) -> torch.Tensor:
    """A seed from torch's generator, an int64 tensor: of the CPU's the one that the operator draws."""
    low, high = -(1 << 63), (1 << 63) - 1
    seed = torch.randint(low, high, (), dtype=torch.int64, device=device, generator=generator)
    return seed ^ low  # randint adds low to the word


def _parts(
    input: torch.Tensor, p: float, seed: Seed, offset: Seed, feature: bool, alpha: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``input`` is multiplied by, and what is added, each as torch's dropout computes it."""
    wide = input.dtype in (torch.float64, torch.complex128)
    dtype = torch.float64 if wide else torch.float32
    if p == 1:
        return torch.zeros((), dtype=dtype, device=input.device), None
    shape = tuple(input.shape)
    if feature:
        shape = shape[:2] + (1,) * (len(shape) - 2)
    keep = draws(shape, seed, offset, input.device) >= math.ceil(p * (1 << _BITS))
    noise = keep.to(dtype)
    if not alpha:
        return noise / (1 - p), None
    limit = 1.7580993408473766  # of selu at -inf, negated
    scale = 1 / math.sqrt((limit * limit * p + 1) * (1 - p))
    return noise * scale, (noise - 1) * (limit * scale) + limit * scale * p


def _through_torch(
    input: torch.Tensor, p: float, seed: Seed, offset: Seed, feature: bool, alpha: bool, bias: bool = True
) -> torch.Tensor:
    factor, shift = _parts(input, p, seed, offset, feature, alpha)
    scaled = input * factor.to(input.dtype) if input.dtype.is_complex else input * factor
    return (scaled + shift if shift is not None and bias else scaled).to(input.dtype)


def _dropout_under_transform(
    input: torch.Tensor, p: float, state: torch.Tensor, feature: bool = False, alpha: bool = False
) -> torch.Tensor:
    return _through_torch(input, p, state[0], state[1], feature, alpha)


def _dropout_under_transform_(
    input: torch.Tensor, p: float, state: torch.Tensor, feature: bool = False, alpha: bool = False
) -> torch.Tensor:
    return assign(input, _dropout_under_transform(input, p, state, feature, alpha))


def _backward_under_transform(
    grad: torch.Tensor, p: float, state: torch.Tensor, feature: bool = False, alpha: bool = False
) -> torch.Tensor:
    return _through_torch(grad, p, state[0], state[1], feature, alpha, bias=False)


def _state_under_transform(input: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    seed = draw_seed(input.device, generator)
    return torch.stack((seed, torch.zeros_like(seed)))


_operators.transform("dropout", _dropout_under_transform)
_operators.transform("dropout_", _dropout_under_transform_)
_operators.transform("dropout_backward", _backward_under_transform)
_operators.transform("dropout_state", _state_under_transform)


def _check(
    input: torch.Tensor, p: float, seed: int | None, offset: int, generator: torch.Generator | None
) -> None:
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(input).__name__}")
    if not isinstance(p, (int, float)):
        raise TypeError(f"p must be a number, not {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    for name, value in (("seed", seed), ("offset", offset)):
        if not isinstance(value, (int, torch.SymInt)) and not (name == "seed" and value is None):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if seed is not None and not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")
    if not 0 <= offset < 1 << 64:
        raise ValueError(f"offset must be in [0, 2**64), got {offset}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {type(generator).__name__}")
    if generator is not None and seed is not None:
        raise ValueError("seed and generator exclude each other: give one of them")


def _dropout(
    input: torch.Tensor,
    p: float,
    training: bool,
    seed: int | None,
    offset: int,
    generator: torch.Generator | None,
    *,
    in_place: bool,
    feature: bool = False,
    alpha: bool = False,
) -> torch.Tensor:
    _check(input, p, seed, offset, generator)
    if not training or p == 0 or input.numel() == 0:
        return input
    if feature and input.dim() < 2:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    if not (input.dtype.is_floating_point or input.dtype.is_complex):
        raise RuntimeError(f"result type Float can't be cast to the desired output type {input.dtype}")
    if _operators.take(input) and (generator is None or generator.device.type == input.device.type):
        operators = torch.ops.inplace_ext
        if seed is not None or p == 1:
            words = [_signed(seed or 0), _signed(offset)]
            state = torch.tensor(words, dtype=torch.int64, device="cpu")
        else:
            state = operators.dropout_state(input, generator)
            if offset != 0:
                more = torch.tensor([0, _signed(offset)], dtype=torch.int64, device=state.device)
                state = state + more
        if not in_place:
            result: torch.Tensor = operators.dropout(input, p, state, feature, alpha)
            return result
        operators.dropout_(input, p, state, feature, alpha)
        return input
    word: Seed = 0
    if seed is not None:
        word = _signed(seed)
    elif p != 1:
        word = draw_seed(input.device, generator)
    changed = _through_torch(input, p, word, _signed(offset), feature, alpha)
    return assign(input, changed) if in_place else changed


def _form(**options: bool) -> Callable[..., torch.Tensor]:
    def form(
        input: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        *,
        seed: int | None = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        return _dropout(input, p, training, seed, offset, generator, **options)

    return form


dropout_, dropout = (_form(in_place=here) for here in (True, False))
feature_dropout_, feature_dropout = (_form(in_place=here, feature=True) for here in (True, False))
alpha_dropout_, alpha_dropout = (_form(in_place=here, alpha=True) for here in (True, False))
feature_alpha_dropout_, feature_alpha_dropout = (
    _form(in_place=here, feature=True, alpha=True) for here in (True, False)
)
