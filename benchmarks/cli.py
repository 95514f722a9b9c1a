"""The command line: ``python -m benchmarks list|run|compare|plot|tables|check|predict``."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import floors, machine, results
from benchmarks.case import OURS, TORCH, Case, Selection, dtype_name, format_size, optional, parse_size
from benchmarks.comparison import compare
from benchmarks.results import Row
from benchmarks.suites import SUITES
from benchmarks.timing import COLD_BYTES, FULL, QUICK, Effort, Timed, measure

INTERRUPTED = 130
#: What ``run`` returns where its minutes were up: some cases are left.
LEFT = 3


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype):
        raise argparse.ArgumentTypeError(f"not a dtype of torch: {text!r}")
    return found


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threads(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", nargs="+", choices=SUITES, help="all where left out")
    parser.add_argument("--op", nargs="+", help="operations or cases, by name: exp_ 'mul_ number'")
    parser.add_argument("--dtype", nargs="+", type=_dtype, help="float32 bfloat16 ...")
    parser.add_argument("--size", nargs="+", type=_size, help="elements: 16 4Ki 1Mi ...")
    parser.add_argument("--layout", nargs="+", help="layouts, by name: 'x.t()' 'rows of 64' ...")
    parser.add_argument("--threads", nargs="+", type=_threads, help="numbers of threads, each measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="few and short measurements")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="show the cases that run would measure, and measure nothing")
    _add_selection(listing)

    run = commands.add_parser("run", help="measure, and append to a file of results")
    _add_selection(run)
    run.add_argument("--provider", nargs="+", help="sides to measure; all but slow ones where left out")
    run.add_argument("--output", type=Path, default=results.DEFAULT, help="file of results (%(default)s)")
    run.add_argument("--resume", action="store_true", help="leave out what the file has of this commit")
    run.add_argument(
        "--minutes", type=float, help=f"stop after so many; exit status {LEFT} if cases are left"
    )

    comparing = commands.add_parser(
        "compare", help="print the ratios between two files, commits or providers"
    )
    comparing.add_argument("first", help="the base: a .csv file, a commit, or a provider")
    comparing.add_argument("second", help="what is compared with it")
    comparing.add_argument("--results", type=Path, help="file in which commits and providers are looked up")
    comparing.add_argument("--provider", default=OURS, help="whose times, of files and commits (%(default)s)")
    comparing.add_argument("--relative-to", metavar="PROVIDER", help=f"of files and commits ({TORCH})")
    comparing.add_argument("--absolute", action="store_true", help="compare the times of the two runs")
    comparing.add_argument("--loss", type=float, help="exit with 1 where more of the speed is lost: 0.05")
    for name in ("suite", "op", "dtype", "layout"):
        comparing.add_argument(f"--{name}", nargs="+")
    comparing.add_argument("--size", nargs="+", type=_size)
    comparing.add_argument("--threads", nargs="+", type=int)

    plot = commands.add_parser("plot", help="draw a file of results")
    plot.add_argument("--results", type=Path, help="file of results")
    plot.add_argument(
        "--output", type=Path, default=machine.ROOT / "docs" / "images", help="folder (%(default)s)"
    )
    plot.add_argument("--format", nargs="+", choices=("svg", "png"), default=["svg"])
    plot.add_argument("--only", nargs="+", help="pictures, by name")

    tables = commands.add_parser("tables", help="write the tables of README.md from a file of results")
    tables.add_argument("--results", type=Path, help="file of results")
    tables.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where they are stale"
    )

    check = commands.add_parser("check", help="fail where a floor of benchmarks/floors.toml is not reached")
    _add_selection(check)

    predicting = commands.add_parser(
        "predict", help="predict times on GPUs from the memory moved on the emulated device; measures nothing"
    )
    predicting.add_argument("--size", type=_size, default=1 << 20, help="elements: 64Ki 1Mi ... (1Mi)")
    predicting.add_argument("--call", nargs="+", help="calls, by name; all where left out")
    return parser


def _selection(options: argparse.Namespace) -> Selection:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use")
    return Selection(
        options.op,
        options.dtype,
        options.size,
        options.layout,
        options.threads,
        options.device,
        options.quick,
    )


def _select(options: argparse.Namespace) -> list[Case]:
    selection = _selection(options)
    return [case for name in options.suite or SUITES for case in SUITES[name].select(selection)]


def _list(options: argparse.Namespace) -> int:
    cases = _select(options)
    for case in cases:
        print(case)
    names = ", ".join(dict.fromkeys(case.suite for case in cases))
    print(f"{len(cases)} cases" + (f" of {names}" if names else ""), file=sys.stderr)
    return 0


class _Progress:
    """A bar with the time left on a terminal; lines of results are printed above it."""

    def __init__(self, total: int) -> None:
        tqdm = optional("tqdm")
        self._bar: Any = None
        if tqdm is not None:
            self._bar = tqdm.tqdm(total=total, unit="case", disable=None, dynamic_ncols=True)
        elif sys.stderr.isatty():
            print(
                "no progress bar: tqdm is not installed (pip install 'inplace_ext[bench]')", file=sys.stderr
            )

    def line(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _progress(total: int) -> Iterator[_Progress]:
    bar = _Progress(total)
    try:
        yield bar
    finally:
        bar.close()


def _introduce(device: str) -> None:
    facts = machine.facts(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    cache = machine.last_level_cache(device) / 2**20
    cold = COLD_BYTES / 2**20
    print(
        f"last-level cache {cache:.0f} MiB; tensors of {cold:.0f} MiB and more rotate through twice as much"
    )
    missing = [name for name in ("numpy", "numexpr") if optional(name) is None]
    if missing and device == "cpu":
        print(f"left out, not installed: {', '.join(missing)} (pip install 'inplace_ext[bench]')")


def _describe(case: Case, timed: Sequence[Timed]) -> Iterator[str]:
    for threads in dict.fromkeys(t.threads for t in timed):
        group = {t.provider: t for t in timed if t.threads == threads}
        ours = group.get(OURS)
        cells = []
        for provider, one in group.items():
            ratio = f" ({floors.ratio(ours, one):.2f}x)" if ours and one is not ours else ""
            cells.append(f"{provider} {one.median * 1e6:.4g}us{ratio}")
        label = f"{case.suite}: {case.name}, {format_size(case.size)} {dtype_name(case.dtype)}"
        label += f", {case.layout}" if case.layout != "contiguous" else ""
        label += f", {threads} threads" if threads > 1 else ""
        yield f"{label:60} {'  '.join(cells)}" + (f"  [{ours.path}]" if ours and ours.path else "")


def _measured_here(path: Path, device: str) -> set[tuple[object, ...]]:
    """The cases that a file has of this machine, torch and commit."""
    if not path.exists():
        return set()
    here = tuple(machine.facts(device).values())
    return {row.subject for row in results.read(path) if row.place == here}


def _run(options: argparse.Namespace) -> int:
    cases = _select(options)
    if options.resume:
        done = _measured_here(options.output, options.device)
        cases = [
            case
            for case in cases
            if not all(
                (case.suite, case.name, dtype_name(case.dtype), case.size, case.layout, n) in done
                for n in case.threads
            )
        ]
    if not cases:
        print("nothing to measure: no case is selected" + (" that the file lacks" if options.resume else ""))
        return 0 if options.resume else 2
    _introduce(options.device)
    effort = QUICK if options.quick else FULL
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    measured, status = 0, 0
    try:
        with _progress(len(cases)) as progress:
            for case in cases:
                if deadline is not None and time.monotonic() > deadline:
                    status = LEFT
                    break
                timed = measure(case, effort, options.provider)
                results.append(options.output, results.rows_of(case, timed))
                for line in _describe(case, timed):
                    progress.line(line)
                measured += 1
                progress.step()
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        results.compact(options.output)
        how = {INTERRUPTED: "interrupted: ", LEFT: "time is up: "}.get(status, "")
        more = "; --resume measures the others" if status else ""
        print(f"{how}{measured} of {len(cases)} cases are in {options.output}{more}", flush=True)
    return status


def _compare(options: argparse.Namespace) -> int:
    def keep(row: Row) -> bool:
        return (
            (options.suite is None or row.suite in options.suite)
            and (options.op is None or row.op in options.op or row.case in options.op)
            and (options.dtype is None or row.dtype in options.dtype)
            and (options.size is None or row.size in options.size)
            and (options.layout is None or row.layout in options.layout)
            and (options.threads is None or row.threads in options.threads)
        )

    relative = None if options.absolute else options.relative_to or "auto"
    file = options.results or results.default_file()
    return compare(options.first, options.second, file, options.provider, relative, options.loss, keep)


def _plot(options: argparse.Namespace) -> int:
    try:
        from benchmarks import plots
    except ImportError as error:
        raise ValueError(f"plot: needs matplotlib ({error}): pip install 'inplace_ext[bench]'") from None
    rows = results.read(options.results or results.default_file())
    for path in plots.draw(rows, options.output, options.format, options.only):
        print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


def _tables(options: argparse.Namespace) -> int:
    from benchmarks import tables

    return tables.update(results.read(options.results or results.committed()), write=not options.check)


def _predict(options: argparse.Namespace) -> int:
    from benchmarks import predict

    predict.show(options.size, options.call)
    return 0


def gate(options: argparse.Namespace, least: floors.Floors) -> list[Case]:
    """The quick cases, and those that a floor of their own names."""
    wide = argparse.Namespace(**{**vars(options), "quick": False, "threads": options.threads or [1]})
    quick = argparse.Namespace(**{**vars(options), "quick": True})
    cases = {str(case): case for case in _select(quick)}
    if not options.quick:
        cases |= {str(case): case for case in _select(wide) if least.singled_out(case)}
    return list(cases.values())


def _check(options: argparse.Namespace) -> int:
    least = floors.load()
    cases = gate(options, least)
    _introduce(options.device)
    missed: list[floors.Miss] = []
    with _progress(len(cases)) as progress:
        for case in cases:
            timed, short = hold(
                case, least.of(case), lambda case, effort, sides: measure(case, effort, sides)
            )
            for line in _describe(case, timed):
                progress.line(line + "".join(f"  BELOW {m.least:g} of {m.against}" for m in short))
            missed += short
            progress.step()
    print(f"\n{len(cases)} cases, {len(missed)} floors missed" + "".join(f"\n  {m}" for m in missed))
    return 1 if missed else 0


#: A floor is missed where it is missed every time: noise passes, a loss stays.
_TRIES = (QUICK, FULL, Effort(1.0, 15))


def hold(
    case: Case,
    least: dict[str, float],
    measured: Callable[[Case, Effort, Sequence[str]], list[Timed]],
) -> tuple[list[Timed], list[floors.Miss]]:
    """Measures a case against its floors, again and longer while one has been missed every time."""
    left: list[floors.Miss] = []
    for effort in _TRIES:
        timed = measured(case, effort, [OURS, *least])
        still = floors.misses(case, timed, least)
        if effort is not _TRIES[0]:
            before = {(m.against, m.threads) for m in left}
            still = [m for m in still if (m.against, m.threads) in before]
        left = still
        if not left:
            break
    return timed, left


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command = {
        "list": _list, "run": _run, "compare": _compare, "plot": _plot, "tables": _tables, "check": _check,
        "predict": _predict,
    }[options.command]  # fmt: skip
    torch.manual_seed(0)
    random.seed(0)
    try:
        return command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
