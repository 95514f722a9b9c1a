"""A photograph pre-processed in place, each step beside torch's: ``python -m inplace_ext.demo``.

Each step is one entry of :func:`steps`; after the pre-processing the pixels stand in for the scores of an
attention. A step is run by both sides on the same values, compared, timed from a refilled buffer with the
sides alternating, and the allocations of both are counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import inplace_ext as ie
from inplace_ext import testing

GAMMA = 1 / 2.2
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BOUND = 2.5
DROPOUT = 0.1
SEED = 7

COLUMNS = (
    # heading, width, alignment
    ("step", 26, "<"),
    ("path", 16, "<"),
    ("parity", 9, "<"),
    ("inplace_ext", 12, ">"),
    ("torch", 11, ">"),
    ("ratio", 7, ">"),
    ("allocated", 10, ">"),
    ("torch", 11, ">"),
)


@dataclass(frozen=True)
class Step:
    """One step, as this package and as torch say it; ours changes and returns its argument."""

    name: str
    ours: Callable[[Tensor], Tensor]
    torch: Callable[[Tensor], Tensor]
    #: How far the two may lie apart, in units in the last place; 0 is bitwise.
    ulp: int = 0
    #: What gives the same values through torch, where torch itself draws other random numbers.
    reference: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Result:
    """What was measured of one step; times in seconds."""

    step: Step
    path: str
    ulp: int
    ours: float
    torch: float
    #: Bytes that each side allocates.
    allocated: int
    torch_allocated: int


def steps(photos: Tensor) -> list[Step]:
    """The pipeline over a float32 buffer of the shape of ``photos`` (uint8, N x 3 x H x W)."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    return [
        Step("uint8 to float32", lambda x: ie.copy_(x, photos), lambda x: x.copy_(photos)),
        Step("scale to [0, 1]", lambda x: ie.div_(x, 255), lambda x: x.div_(255)),
        # Both sides are within 2 ulp of the exact value, on opposite sides of it at worst.
        Step("gamma", lambda x: ie.pow_(x, GAMMA), lambda x: x.pow_(GAMMA), ulp=4),
        Step("subtract channel mean", lambda x: ie.sub_(x, mean), lambda x: x.sub_(mean)),
        Step("divide by channel std", lambda x: ie.div_(x, std), lambda x: x.div_(std)),
        Step("clamp", lambda x: ie.clamp_(x, -BOUND, BOUND), lambda x: x.clamp_(-BOUND, BOUND)),
    ]


def in_one_pass(photos: Tensor) -> Step:
    """The pipeline as one fused function, beside torch's calls; its values are those of our single steps."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    single = steps(photos)

    @ie.fuse
    def prepare_(x: Tensor, photos: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return x.copy_(photos).div_(255).pow_(GAMMA).sub_(mean).div_(std).clamp_(-BOUND, BOUND)

    def one_by_one(x: Tensor, ours: bool) -> Tensor:
        for step in single:
            x = (step.ours if ours else step.torch)(x)
        return x

    return Step(
        "1 to 6 in one pass",
        lambda x: prepare_(x, photos, mean, std),
        lambda x: one_by_one(x, ours=False),
        reference=lambda x: one_by_one(x, ours=True),
    )


def attention() -> list[Step]:
    """What attention does to scores: rows of the last dim become probabilities, some of which are dropped."""
    return [
        # Torch rounds the difference to the largest score, up to 5 here, of which half an ulp is 4 of 1.
        Step("softmax, relu", ie.softmax_relu_, lambda x: F.relu_(torch.softmax(x, -1)), ulp=12),
        Step(
            f"dropout, p = {DROPOUT}",
            lambda x: ie.dropout_(x, DROPOUT, seed=SEED),
            lambda x: F.dropout(x, DROPOUT, inplace=True),
            reference=dropout_through_torch,
        ),
    ]


def dropout_through_torch(x: Tensor) -> Tensor:
    """The same mask by torch's integer operations."""
    with testing.native_disabled():
        return ie.dropout_(x, DROPOUT, seed=SEED)


def load_photos(batch: int, size: int) -> Tensor:
    """``batch`` square crops of matplotlib's photograph of Grace Hopper, every other one mirrored."""
    import matplotlib.cbook
    import matplotlib.image

    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photo = torch.from_numpy(matplotlib.image.imread(path).copy())
    photo = photo.permute(2, 0, 1)
    height, width = photo.shape[1:]
    if not 1 <= size <= min(height, width):
        raise SystemExit(f"demo: --size must be in [1, {min(height, width)}], got {size}")
    crops = torch.empty(batch, 3, size, size, dtype=torch.uint8)
    for i in range(batch):
        top = (height - size) * i // max(batch - 1, 1)
        left = (width - size) * i // max(batch - 1, 1)
        crop = photo[:, top : top + size, left : left + size]
        crops[i] = crop.flip(2) if i % 2 else crop
    return crops


def ulp_distance(a: Tensor, b: Tensor) -> int:
    """The largest distance of two float32 tensors in units in the last place; 0 only where bitwise equal."""
    bits = a.view(torch.int32), b.view(torch.int32)
    if torch.equal(*bits):
        return 0
    ordered = [torch.where(i < 0, -(2**31) - i.long(), i.long()) for i in bits]
    # +0.0 and -0.0 are no distance apart and still not the same.
    return max(1, int((ordered[0] - ordered[1]).abs().max()))


def allocated_bytes(call: Callable[[], object]) -> int:
    """Bytes that torch's allocator hands out during ``call``, freed again or not."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")


def measure(step: Step, before: Tensor, buffer: Tensor, runs: int) -> Result:
    """Compares and times one step that starts from ``before``; leaves its result in ``buffer``."""

    def refilled() -> Tensor:
        return buffer.copy_(before)

    expected = (step.reference or step.torch)(refilled()).clone()
    step.ours(refilled())
    path = testing.last_path()
    ulp = ulp_distance(buffer, expected)
    del expected
    refilled()
    allocated = allocated_bytes(lambda: step.ours(buffer))
    refilled()
    torch_allocated = allocated_bytes(lambda: step.torch(buffer))

    times: dict[str, list[float]] = {"ours": [], "torch": []}
    for run in range(runs):
        sides = [("ours", step.ours), ("torch", step.torch)]
        for name, function in sides if run % 2 else reversed(sides):
            refilled()
            start = time.perf_counter()
            function(buffer)
            times[name].append(time.perf_counter() - start)

    step.ours(refilled())
    ours, theirs = (statistics.median(times[name]) for name in ("ours", "torch"))
    return Result(step, path, ulp, ours, theirs, allocated, torch_allocated)


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(*cells: str) -> None:
    """One row of the table."""
    row = "  ".join(f"{cell:{align}{width}}" for cell, (_, width, align) in zip(cells, COLUMNS, strict=True))
    print(row.rstrip(), flush=True)


def size(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 2**20:.1f} MiB"


def show_result(label: str, result: Result) -> None:
    show(
        label,
        result.path or "torch",
        "bitwise" if result.ulp == 0 else f"{result.ulp} ulp",
        f"{result.ours * 1e3:.2f} ms",
        f"{result.torch * 1e3:.2f} ms",
        f"{result.torch / result.ours:.2f}x",
        size(result.allocated),
        size(result.torch_allocated),
    )


def draw(photo: Tensor, processed: Tensor, out: Path) -> None:
    """Before and after, each with the distribution of its channels, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), height_ratios=(3, 1), layout="constrained")
    shown = (
        ("before: uint8", photo, photo),
        (f"after: float32 in [{-BOUND}, {BOUND}]", processed, (processed + BOUND) / (2 * BOUND)),
    )
    for column, (title, values, picture) in enumerate(shown):
        top, bottom = axes[0][column], axes[1][column]
        top.set_title(title)
        top.imshow(picture.permute(1, 2, 0).numpy())
        top.axis("off")
        for channel, color in zip(values, ("tab:red", "tab:green", "tab:blue"), strict=True):
            bottom.hist(channel.float().flatten().numpy(), bins=64, histtype="step", color=color)
        bottom.set_yticks([])
        bottom.set_xlabel("pixel value")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m inplace_ext.demo", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("inplace_ext_demo.png"), help="the picture (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=32, help="photographs in the batch (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of a photograph in pixels (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of both sides (torch's default)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each side (%(default)s)")
    arguments = parser.parse_args(argv)
    for name in ("batch", "runs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    try:
        photos = load_photos(arguments.batch, arguments.size)
    except ImportError as error:
        raise SystemExit(
            f"demo: needs matplotlib and numpy ({error}): pip install 'inplace_ext[bench]'"
        ) from None

    # The profiler, which counts the allocations, reports its own start and stop below this level.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    info = ie.info()
    pipeline = [*steps(photos), *attention()]
    buffer = torch.empty(photos.shape, dtype=torch.float32)
    print(f"{processor()}, {platform.system()} {info.machine}, threads: {info.threads}")
    kernels = info.capability or f"torch on both sides: {info.reason}"
    torchs = torch.backends.cpu.get_cpu_capability()
    print(f"inplace_ext {info.version} ({kernels}), torch {info.torch} ({torchs})")
    shape = " x ".join(map(str, photos.shape))
    print(f"{shape} float32, {buffer.nbytes / 2**20:.0f} MiB; median of {arguments.runs} runs\n")
    show(*(heading for heading, _, _ in COLUMNS))
    show(*("-" * width for _, width, _ in COLUMNS))

    before = buffer.zero_().clone()
    results: list[Result] = []
    for i, step in enumerate(pipeline, 1):
        label = f"{i}/{len(pipeline)} {step.name}"
        if sys.stderr.isatty():
            print(f"{label} ...", end="\r", file=sys.stderr, flush=True)
        results.append(measure(step, before, buffer, arguments.runs))
        show_result(label, results[-1])
        before.copy_(buffer)
        if i == len(steps(photos)):
            processed = buffer[0].clone()
    ours, theirs = sum(r.ours for r in results), sum(r.torch for r in results)
    total = f"{ours * 1e3:.2f} ms", f"{theirs * 1e3:.2f} ms", f"{theirs / ours:.2f}x"
    allocated = sum(r.allocated for r in results), sum(r.torch_allocated for r in results)
    show("all steps", "", "", *total, *map(size, allocated))

    results.append(measure(in_one_pass(photos), before.zero_(), buffer, arguments.runs))
    show_result(results[-1].step.name, results[-1])

    draw(photos[0], processed, arguments.out)
    print(f"\nbefore and after: {arguments.out}")
    wrong = [f"{r.step.name} ({r.ulp} ulp)" for r in results if r.ulp > r.step.ulp]
    if wrong:
        print(f"demo: differs from torch: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
