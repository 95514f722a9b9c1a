"""The operations that ``jit.elementwise`` has added: what ``fuse`` and the error messages know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inplace_ext._table import Op


@dataclass(frozen=True)
class AddedOp(Op):
    """An operation of one's own, under its name in place."""

    #: The code of its kernels; None where there is no compiled module.
    code: int | None = None
    #: torch's form of it, in place and in a new tensor.
    change: Callable[..., Any] = field(default=lambda: None, repr=False)
    make: Callable[..., Any] = field(default=lambda: None, repr=False)

    @property
    def kernel(self) -> str | None:
        return None if self.code is None else f"@{self.code}"


#: By kernel, and the last one of each name.
by_kernel: dict[str, AddedOp] = {}
by_name: dict[str, AddedOp] = {}


def add(op: AddedOp) -> None:
    by_name[op.name] = op
    if op.kernel is not None:
        by_kernel[op.kernel] = op
