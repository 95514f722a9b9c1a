"""What runs where: the answer to a bug report's first question."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import torch

from inplace_ext import _native


@dataclass(frozen=True)
class Info:
    """The state of the installed package; ``print`` shows one item a line."""

    version: str
    torch: str
    python: str
    machine: str
    #: Whether the compiled module is in use, and why it is not.
    native: bool
    reason: str | None
    #: Instruction set of the kernels in use, and those that could be.
    capability: str | None
    capabilities: list[str]
    threads: int
    #: The kernel library in use, which :func:`inplace_ext.jit.load` replaces.
    kernels: str | None
    #: The CUDA toolkit that compiled the device's kernels, for which architectures, or why there are none.
    cuda: str | None
    cuda_architectures: list[str]
    cuda_reason: str | None
    cuda_kernels: str | None
    #: What takes the tensors of each type of device.
    backends: dict[str, str]
    build: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        items = {**vars(self), **{f"build.{name}": value for name, value in self.build.items()}}
        del items["build"]
        width = max(map(len, items))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in items.items())


def info() -> Info:
    """Versions, the instruction set in use, and how the compiled module was built."""
    import inplace_ext

    native, cuda = _native.module, _native.cuda
    capability = native.capability() if native else None
    return Info(
        version=inplace_ext.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        native=native is not None,
        reason=_native.reason,
        capability=capability,
        capabilities=_native.supported_capabilities() if native else [],
        threads=torch.get_num_threads(),
        kernels=str(_native.library(capability)) if capability else None,
        cuda=None if cuda is None else f"{cuda[0] // 1000}.{cuda[0] % 1000 // 10}",
        cuda_architectures=[] if cuda is None else cuda[1].split(";"),
        cuda_reason=_native.cuda_reason,
        cuda_kernels=None if _native.cuda_library is None else str(_native.cuda_library),
        backends={
            "cpu": f"own kernels ({capability})" if native else "torch",
            "cuda": "own kernels" if cuda else "torch",
            "others": "torch",
        },
        build=native.build_info() if native else {},
    )
