"""Arguments for every operation of the table, in any dtype."""

from typing import Any

import torch

from inplace_ext._table import DTYPE_GROUPS, Op

DTYPES = [getattr(torch, name) for group in DTYPE_GROUPS.values() for name in group] + [torch.bool]


def sample(op: Op, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """``input`` and the other arguments by name; operands are tensors of the same dtype where they may be."""

    def tensor(*values: float) -> torch.Tensor:
        return torch.tensor(values).to(dtype)

    special: dict[str, Any] = {
        "mask": torch.tensor([True, False, True]),
        "value": 1 if op.name == "threshold_" else tensor(1)[0],
        "threshold": 2,
        "min_val": 1,
        "max_val": 2,
        "n": 1,
        "p": 1,
    }
    arguments = {
        name: special.get(name, tensor(1, 3, 2))
        for name, default in op.parameters[1:]
        if name != "*" and (not default or name in ("min", "max", "min_val", "max_val"))
    }
    if "rounding_mode" in op.parameter_names and not (dtype.is_floating_point or dtype.is_complex):
        arguments["rounding_mode"] = "floor"
    return tensor(1, 2, 3), arguments
