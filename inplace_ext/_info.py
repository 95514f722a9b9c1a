"""What runs where: the answer to a bug report's first question."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import torch

from inplace_ext import _build, _native


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
    #: What the sources of each library are compiled with, beside torch's own flags.
    flags: dict[str, str]
    build: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        items: dict[str, object] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                items.update({f"{name}.{key}": of_key for key, of_key in value.items()})
            else:
                items[name] = value
        # Their names alone, of the forms and dtypes that they have.
        if isinstance(operations := items.get("build.operations"), dict):
            items["build.operations"] = list(operations)
        width = max(map(len, items))
        return "\n".join(
            f"{name:<{width}}  {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in items.items()
        )


#: What there are CUDA kernels for.
CUDA_SERVES = "elementwise operations, fuse, softmax, dropout, clip_grad_norm_, indexing assignment, layouts"


def _flags(cuda: bool) -> dict[str, str]:
    flags = {"bindings": _build.BINDING_FLAGS}
    flags |= {f"cpu.{name}": [*_build.KERNEL_FLAGS, *more] for name, more in _build.capabilities().items()}
    if cuda:
        flags["cuda"] = _build.CUDA_FLAGS
    return {name: " ".join(of_library) for name, of_library in flags.items()}


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
            "cuda": f"own kernels ({CUDA_SERVES}), else torch" if cuda else "torch",
            "others": "torch",
        },
        flags=_flags(cuda is not None) if native else {},
        build=native.build_info() if native else {},
    )
