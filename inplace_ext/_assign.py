"""How the result of a function of torch gets into the tensor that an in-place operation changes."""

from __future__ import annotations

import torch


def assign(input: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Copies a result into ``input``, where torch's in-place methods would leave it there."""
    if result.shape != input.shape:
        raise RuntimeError(
            f"output with shape {list(input.shape)} doesn't match the broadcast shape {list(result.shape)}"
        )
    # What torch.can_cast says, which its compiler cannot trace.
    real = input.dtype.is_floating_point or input.dtype.is_complex
    loses = (result.dtype.is_complex and not input.dtype.is_complex) or (
        result.dtype.is_floating_point and not real
    )
    if loses or (input.dtype == torch.bool and result.dtype != torch.bool):
        raise RuntimeError(
            f"result type {result.dtype} can't be cast to the desired output type {input.dtype}"
        )
    return input.copy_(result)
