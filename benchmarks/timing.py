"""Sides timed in turn, in one process, on tensors with fresh values.

The figures of a case belong together: its sides alternate, each as often first as the others, so that what
the machine does meanwhile falls on all of them alike. Ratios within a case can be trusted, times only so far
as the machine was quiet.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Measurement, TaskSpec
from torch.utils.benchmark.utils.timer import timer

import inplace_ext as ie
from benchmarks import machine
from benchmarks.case import LIMIT, OURS, Case, Side, Work, close, optional
from inplace_ext import testing

#: Tensors of this size and more are measured in memory: each call gets one that no cache holds any more.
COLD_BYTES = 32 << 20
#: Smaller ones are measured in cache: as many as fit are refilled, then each is worked on once.
HOT_BYTES = 256 << 10
_HOT_COUNT = 256
_ALIGNMENT = 64
_MOST_ROUNDS = 200
#: Without these a tensor is too small for a scaling loop to be more than its call.
_LIMIT_BYTES = 16 << 10


@dataclass(frozen=True)
class Effort:
    """Seconds for all sides of a case together, about, and the least number of times that each is timed."""

    budget: float
    rounds: int


FULL = Effort(0.2, 6)
QUICK = Effort(0.08, 5)


@dataclass(frozen=True)
class Timed:
    """How long a call of a side took, and the way that ours went."""

    provider: str
    threads: int
    measurement: Measurement
    #: Bytes that a call moves.
    moved: int
    path: str = ""

    @property
    def median(self) -> float:
        return float(self.measurement.median)

    def quantiles(self) -> tuple[float, float]:
        """The 20th and the 80th percentile, in seconds."""
        times = self.measurement.times
        fifths = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
        return fifths[0], fifths[3]

    @property
    def speed(self) -> float:
        """Bytes a second; 0 where memory is not the subject."""
        return self.moved / self.median


class Arena:
    """Memory that the tensors of all cases lie in, one after the other.

    Allocated once: the page faults of a fresh gigabyte take longer than most cases.
    """

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def tensors(self, like: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Contiguous tensors that start at multiples of a cache line; none is a view."""
        step = -(-like.nbytes // _ALIGNMENT) * _ALIGNMENT
        device = like.device.type
        memory = self._memory.get(device)
        if memory is None or memory.nbytes < step * count + _ALIGNMENT:
            self._memory.pop(device, None)
            del memory
            memory = self._memory[device] = torch.empty(
                step * count + _ALIGNMENT, dtype=torch.uint8, device=device
            )
        first = -memory.data_ptr() % _ALIGNMENT
        offsets = [(first + k * step) // like.itemsize for k in range(count)]
        empty = [torch.empty(0, dtype=like.dtype, device=device) for _ in offsets]
        storage = memory.untyped_storage()
        return [
            x.set_(storage, offset, like.shape, like.stride())
            for x, offset in zip(empty, offsets, strict=True)
        ]


_ARENA = Arena()


def ring_length(nbytes: int, device: str) -> int:
    """How many tensors of a size are worked on in turn, so that none is in a cache when its turn comes.

    Twice the last-level cache, since hardware does not forget in the order of use; a quarter of the memory
    at most, and four tensors at least.
    """
    wanted = 2 * machine.last_level_cache(device)
    return max(4, min(wanted, machine.available_memory(device) // 4) // nbytes)


class Buffers:
    """The tensors that calls work on, refilled from the source before they are used again."""

    def __init__(self, work: Work) -> None:
        assert work.source is not None
        self.source = work.source
        nbytes = max(1, self.source.nbytes)
        self.cold = nbytes >= COLD_BYTES
        if self.cold:
            count = ring_length(nbytes, self.source.device.type)
        else:
            count = max(1, min(_HOT_COUNT, HOT_BYTES // nbytes))
        self.tensors = _ARENA.tensors(self.source, count)
        self.views = [work.view(x) for x in self.tensors]
        self._next = count
        step = self.tensors[1].storage_offset() - self.tensors[0].storage_offset() if count > 1 else 0
        self._all = self.tensors[0].as_strided(
            (count, self.source.numel()), (step, 1), self.tensors[0].storage_offset()
        )

    def refill(self) -> None:
        self._all.copy_(self.source.view(1, -1))
        self._next = 0

    def take(self) -> range:
        """Numbers of the tensors for the next block of calls, with fresh values."""
        if not self.cold:
            self.refill()
            return range(len(self.tensors))
        if self._next == len(self.tensors):
            self.refill()
        self._next += 1
        return range(self._next - 1, self._next)


def _elapsed(call: Callable[[Any], object], batch: Sequence[Any], device: str) -> float:
    """Seconds for a call on each of the batch: by the clock on the CPU, by events on a GPU."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for x in batch:
            call(x)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    before = timer()
    for x in batch:
        call(x)
    return timer() - before


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    numexpr = optional("numexpr")
    if numexpr is not None and numexpr.get_num_threads() != 1:
        numexpr.set_num_threads(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the garbage collector, and with the number of threads put back at the end."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _set_threads(threads)
        if collecting:
            gc.enable()


#: Loops that scale a tensor in place: what a pass over its memory costs, by us and by torch.
_SCALING = [Side(LIMIT, lambda x: ie.mul_(x, 1.25)), Side(LIMIT, lambda x: x.mul_(1.25))]


def _as_floats(x: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The memory of a tensor as floats that a scaling loop may multiply: float32, or float64 as it is."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.view(-1).view(torch.uint8)[: nbytes // 8 * 8].view(dtype)


@dataclass
class _Runner:
    """One side with a number of threads, and what it is given for each of the tensors."""

    side: Side
    threads: int
    inputs: list[Any]
    moved: int
    path: str = ""

    def block(self, buffers: Buffers | None, device: str) -> float:
        """Seconds a call, over one block of calls."""
        _set_threads(self.threads)
        numbers = range(1) if buffers is None else buffers.take()
        batch = [self.inputs[i] for i in numbers]
        return _elapsed(self.side.call, batch, device) / len(batch)


def _chosen(case: Case, work: Work, providers: Sequence[str] | None) -> list[Side]:
    if providers is None:
        return [side for side in work.sides if not side.on_request]
    return [side for side in work.sides if side.provider in providers]


def _result(side: Side, buffers: Buffers) -> torch.Tensor:
    """What the side makes of fresh values: what it returns, or what it leaves in the tensor."""
    buffers.tensors[0].copy_(buffers.source)
    view = buffers.views[0]
    result = side.call(view if side.convert is None else side.convert(view))
    return result if isinstance(result, torch.Tensor) else view


def measure(case: Case, effort: Effort = FULL, providers: Sequence[str] | None = None) -> list[Timed]:
    """Checks the results of all sides, then times them in turn; a row for each provider and thread count."""
    with _quiet():
        _set_threads(case.threads[0])
        work = case.prepare()
        buffers = None if work.source is None else Buffers(work)
        runners = _prepare(case, work, buffers, providers)
        timed: list[Timed] = []
        for threads in case.threads:
            group = [runner for runner in runners if runner.threads == threads]
            for runner, seconds in zip(group, _alternate(group, buffers, effort, case.device), strict=True):
                task = TaskSpec(str(case), "pass", num_threads=threads)
                measurement = Measurement(1, seconds, task)
                timed.append(Timed(runner.side.provider, threads, measurement, runner.moved, runner.path))
    return _best_limits(timed)


def _alternate(
    runners: Sequence[_Runner], buffers: Buffers | None, effort: Effort, device: str
) -> list[list[float]]:
    """Seconds a call of each, round by round; each is as often first as the others.

    All have the same number of threads: threads that have just worked spin for a while, and would slow down
    a side that has one.
    """
    warm = sum(runner.block(buffers, device) for runner in runners)
    calls = 1 if buffers is None or buffers.cold else len(buffers.tensors)
    rounds = min(_MOST_ROUNDS, max(effort.rounds, int(effort.budget / max(warm * calls, 1e-9))))
    times: list[list[float]] = [[] for _ in runners]
    for i in range(rounds):
        for k in range(len(runners)):
            one = (i + k) % len(runners)
            times[one].append(runners[one].block(buffers, device))
    return times


def _prepare(
    case: Case, work: Work, buffers: Buffers | None, providers: Sequence[str] | None
) -> list[_Runner]:
    """The sides to time, each called once and its result checked."""
    sides = _chosen(case, work, providers)
    want = None
    if buffers is None:
        assert work.verify is not None
        work.verify()
    else:
        reference = next(side for side in work.sides if side.provider == work.reference)
        want = _result(reference, buffers).clone(memory_format=torch.contiguous_format)
    check = work.check or close()
    runners = []
    for threads in case.threads:
        _set_threads(threads)
        for side in sides:
            if side.single_threaded and threads != 1:
                continue
            if buffers is not None and want is not None:
                check(side.provider, _result(side, buffers), want)
                inputs = buffers.views if side.convert is None else [*map(side.convert, buffers.views)]
            else:
                side.call(None)
                inputs = [None]
            path = testing.last_path() if side.provider == OURS else ""
            runners.append(_Runner(side, threads, inputs, work.moved, path))
        if buffers is not None and work.moved and (providers is None or LIMIT in providers):
            runners += _limits(buffers, threads)
    return runners


def _limits(buffers: Buffers, threads: int) -> list[_Runner]:
    nbytes = buffers.views[0].numel() * buffers.source.itemsize
    if nbytes < _LIMIT_BYTES or not buffers.source.is_floating_point():
        return []
    inputs = [_as_floats(x, nbytes) for x in buffers.tensors]
    return [_Runner(side, threads, inputs, 2 * inputs[0].nbytes) for side in _SCALING]


def _best_limits(timed: Sequence[Timed]) -> list[Timed]:
    """Of the scaling loops of a thread count, the faster."""
    best: dict[int, Timed] = {}
    for row in timed:
        if row.provider == LIMIT and (row.threads not in best or row.median < best[row.threads].median):
            best[row.threads] = row
    return [row for row in timed if row.provider != LIMIT or row is best[row.threads]]
