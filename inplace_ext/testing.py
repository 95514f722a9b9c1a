"""For tests: which path a call took, and ways to force one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from inplace_ext import _native


def last_path() -> str:
    """The path of the last call on this thread: ``"avx2:loop"``, or ``"torch"`` where torch did the work.

    The part before the colon is the instruction set, the one after it the kind of kernel: ``loop`` over
    contiguous tensors, ``streaming`` over several that no cache holds (AVX2 code under AVX-512), ``staged``
    through buffers, ``blocked`` for a transposed tensor, ``program`` for a chain, ``move`` for fills and
    copies, ``streaming`` for those that write past the caches. Of the operations along a dim: ``rows`` for
    contiguous rows that a buffer in cache holds, ``columns`` for rows side by side, one in each lane, and
    ``gathered_rows`` for those of any other layout; ``long_rows``, ``long_columns`` and
    ``long_gathered_rows`` where the buffer holds a part at a time. Of dropout: ``draws`` for lines of
    neighbours in memory, ``tiled_draws`` for lines that lie beside each other, and ``gathered_draws`` for
    those of any other layout. Of ``contiguous_`` and ``reshape_``, where data moves: ``buffered`` for
    matrices that fit the buffer, ``tiles`` for squares, ``cycles`` for wide blocks, ``strips`` where one side
    is short, ``panels`` for other matrices, ``large_panels`` where no panel fits the buffer, ``gathered``
    where gaps are closed or all that changes places fits it; of several transpositions, the last. A device
    goes the same ways but for ``panels``, with shared memory in the buffer's place.
    Of indices: ``index_rows`` for rows that an index moves as a whole, ``index_elements`` for elements that
    go to places of their own, ``columns`` for those of a matrix that no cache holds, whose index says which
    row they go to. Of masks: ``mask_blocks`` for elements
    side by side, ``mask_rows`` for rows that one element of the mask is for, and ``mask_elements`` for any
    other layout. ``metadata`` where sizes and strides alone change, or nothing has to.
    """
    return "torch" if _native.module is None else str(_native.module.last_path())


def available_capabilities() -> list[str]:
    """The instruction sets whose kernels are built and can run here; none without the compiled module."""
    return [] if _native.module is None else _native.supported_capabilities()


@contextmanager
def use_capability(name: str) -> Iterator[None]:
    """Runs the kernels of one instruction set, on every thread."""
    if _native.module is None or name not in available_capabilities():
        raise RuntimeError(f"use_capability: {name!r} is not available, only {available_capabilities()}")
    previous = _native.module.capability()
    if name not in _native.module.loaded_capabilities():
        _native.module.load_kernels(str(_native.library(name)))
    _native.module.use_capability(name)
    try:
        yield
    finally:
        _native.module.use_capability(previous)


@contextmanager
def _bytes(what: str, setter: str, size: int) -> Iterator[None]:
    if _native.module is None:
        raise RuntimeError(f"{what}: there is no compiled module")
    previous = getattr(_native.module, setter)(size)
    try:
        yield
    finally:
        getattr(_native.module, setter)(previous)


def moves_stream_from(size: int) -> AbstractContextManager[None]:
    """Lets fills and copies of ``size`` bytes and more write past the caches."""
    return _bytes("moves_stream_from", "set_streaming_move_bytes", size)


def panels_of(size: int) -> AbstractContextManager[None]:
    """Gives ``contiguous_`` a buffer of ``size`` bytes: the ways of large matrices, for small ones."""
    return _bytes("panels_of", "set_panel_bytes", size)


@contextmanager
def native_disabled() -> Iterator[None]:
    """Sends every call to torch, on every thread."""
    before = _native.enabled()
    _native.set_enabled(False)
    try:
        yield
    finally:
        _native.set_enabled(before)
