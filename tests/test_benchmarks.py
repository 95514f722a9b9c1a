"""The harness of the benchmarks: what it measures, keeps and compares; no time is asserted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import emulated
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind whatever inplace_ext is tested

pytest.importorskip("tomllib", reason="the benchmarks need Python 3.11")

from benchmarks import cli, floors, machine, predict, results, tables, timing  # noqa: E402
from benchmarks.case import LIMIT, OURS, TORCH, Case, Selection, Side, Work, close, parse_size  # noqa: E402
from benchmarks.comparison import compare  # noqa: E402
from benchmarks.results import Row  # noqa: E402
from benchmarks.suites import SUITES, ops  # noqa: E402
from benchmarks.timing import Effort, measure  # noqa: E402
from inplace_ext._table import ALL_OPS  # noqa: E402

ONCE = Effort(0.0, 1)
TINY = ["--quick", "--suite", "ops", "--op", "exp_", "mul_ number", "--size", "16"]

pytestmark = pytest.mark.usefixtures("one_thread")


def row(provider: str = OURS, median: float = 1.0, **changes: object) -> Row:
    made = Row(
        "ops", "exp_", "exp_", "float32", 16, "contiguous", 1, provider, median, median, median, 1.0, 50.0, 7,
        "", "a processor (2 cores)", "avx2", "2.13.0", "abc123", "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def write(path: Path, *rows: Row) -> str:
    results.append(path, rows)
    return str(path)


def case_of(*sides: Side, source: torch.Tensor | None = None, threads: tuple[int, ...] = (1,)) -> Case:
    source = torch.arange(16.0) if source is None else source
    work = Work([*sides, Side(TORCH, lambda x: x.mul_(2))], source, moved=2 * source.nbytes)
    return Case("ops", "double", "mul_", source.dtype, source.numel(), lambda: work, threads=threads)


# -- cases and floors


def test_every_operation_has_a_case_and_a_floor() -> None:
    cases = [case for suite in SUITES.values() for case in suite.select(Selection())]
    least = floors.load()
    held = cli.gate(cli._parser().parse_args(["check"]), least)
    for name, op in ALL_OPS.items():
        canonical = op.alias_of or name
        assert any(case.op == canonical for case in cases), f"{name} has no case in benchmarks/suites"
        checked = [case for case in held if case.op == canonical]
        assert checked, f"bench-check measures no case of {name}"
        for case in checked:
            if case.suite != "layouts" and case.layout != "nothing moves":
                assert least.of(case)[TORCH] >= 0.97, f"{case} may be slower than torch"


def test_no_case_is_listed_twice() -> None:
    for suite in SUITES.values():
        for quick in (True, False):
            names = [str(case) for case in suite.select(Selection(quick=quick))]
            assert len(names) == len(set(names))


def test_floors_and_exceptions_name_cases_that_exist() -> None:
    least = floors.load()
    selections = [Selection(), Selection(dtypes=[torch.float16, torch.bfloat16])]
    cases = [case for suite in SUITES.values() for s in selections for case in suite.select(s)]
    for floor in (*least.higher, *least.exceptions):
        anywhere = replace(floor, vendor=None)
        assert any(anywhere.applies(case) for case in cases), floor
        for key in ("case", "layout"):
            for value in getattr(floor, key) or ():
                assert any(replace(anywhere, **{key: (value,)}).applies(case) for case in cases), (
                    value,
                    floor,
                )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[floor]", "no .everywhere."),
        ("[everywhere]\nleast = 1\n[[floor]]\nleest = 2", "leest"),
        ("[everywhere]\nleast = 1\n[[floor]]\ncase = 'exp_'", "least is missing"),
        ("[everywhere]\nleast = 1\n[[exception]]\ncase = 'exp_'\nleast = 0.5", "must say why"),
        ("[everywhere]\nleast = 1\n[[floor]]\nsize = 'much'\nleast = 2", "number of elements"),
    ],
)
def test_a_mistake_in_the_floors_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "floors.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        floors.load(path)


def test_exceptions_lower_and_floors_raise(tmp_path: Path) -> None:
    path = tmp_path / "floors.toml"
    path.write_text(
        "[everywhere]\nleast = 0.9\n"
        "[[floor]]\ncase = 'double'\nsize = '16'\nleast = 3\n"
        "[[floor]]\ncase = 'double'\nagainst = 'limit'\nleast = 0.5\n"
        "[[exception]]\nlayout = 'odd'\nleast = 0.4\nwhy = 'odd'\n"
    )
    least, case = floors.load(path), case_of()
    assert least.of(case) == {TORCH: 3, LIMIT: 0.5}
    assert least.of(replace(case, size=17)) == {TORCH: 0.9, LIMIT: 0.5}
    assert least.of(replace(case, name="other", layout="odd")) == {TORCH: 0.4}


def timed(provider: str, median: float, moved: int = 8) -> timing.Timed:
    spec = timing.TaskSpec("", "pass")
    return timing.Timed(provider, 1, timing.Measurement(1, [median], spec), moved)


def test_a_floor_is_missed_only_where_every_try_misses_it() -> None:
    case, least = case_of(), {TORCH: 0.97}

    def trying(*torchs: float) -> list[floors.Miss]:
        left = [*torchs]

        def measured(case: Case, effort: Effort, providers: Sequence[str]) -> list[timing.Timed]:
            return [timed(OURS, 1.0), timed(TORCH, left.pop(0))]

        missed = cli.hold(case, least, measured)[1]
        assert not left  # measured as often as there is reason to, and no more
        return missed

    assert trying(1.0) == []
    assert trying(0.5, 1.0) == []
    (miss,) = trying(0.5, 0.6, 0.7)
    assert "of at least 0.97 against torch" in str(miss)


def test_of_two_floors_each_may_be_reached_in_another_try() -> None:
    tries = [{TORCH: 0.5, "fused": 1.0}, {TORCH: 1.0, "fused": 0.5}]

    def measured(case: Case, effort: Effort, providers: Sequence[str]) -> list[timing.Timed]:
        return [timed(OURS, 1.0), *(timed(name, median) for name, median in tries.pop(0).items())]

    assert cli.hold(case_of(), {TORCH: 0.97, "fused": 0.97}, measured)[1] == []


def test_ratios_to_the_limit_are_of_bytes() -> None:
    assert floors.ratio(timed(OURS, 3.0, moved=12), timed(LIMIT, 2.0, moved=8)) == 1.0
    assert floors.ratio(timed(OURS, 2.0), timed(TORCH, 3.0)) == 1.5


# -- measuring


@pytest.mark.parametrize("line", ops.LINES, ids=lambda line: line.name)
def test_lines_agree_with_torch_numpy_and_numexpr(line: ops.Line) -> None:
    case = ops.line_case(line, torch.float32, 1000, Selection())
    providers = {one.provider for one in measure(case, ONCE)}
    assert {OURS, TORCH} <= providers


@pytest.mark.parametrize("op", ops.without_line(), ids=lambda op: op.name)
def test_cases_made_from_examples_agree_with_torch(op: ops.Op) -> None:
    (case,) = SUITES["ops"].select(Selection(ops=[op.name], sizes=[100]))
    assert {one.provider for one in measure(case, ONCE)} >= {OURS, TORCH}


@pytest.mark.parametrize("suite", [name for name in SUITES if name not in ("ops", "lists")])
def test_suites_agree_with_torch(suite: str) -> None:
    cases = SUITES[suite].select(Selection(quick=True))
    small = [case for case in cases if case.size <= 1 << 20][:6]
    assert small
    for case in small:
        assert OURS in {one.provider for one in measure(case, ONCE, [OURS, TORCH])}


def test_lists_agree_with_torch() -> None:
    for case in SUITES["lists"].select(Selection(quick=True)):
        assert OURS in {one.provider for one in measure(case, ONCE)}


def test_a_wrong_result_stops_the_case() -> None:
    case = case_of(Side(OURS, lambda x: x.mul_(2).add_(x > 14)))
    with pytest.raises(AssertionError, match=r"inplace_ext.*off by up to 1"):
        measure(case, ONCE)
    with pytest.raises(AssertionError, match="shape"):
        close()("numpy", torch.zeros(3), torch.zeros(4))


def test_work_without_values_must_be_verified() -> None:
    with pytest.raises(TypeError, match="verify"):
        Work([])


@pytest.mark.parametrize("cold", [False, True])
def test_every_call_finds_fresh_values(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.arange(100.0)
    seen: dict[str, list[int]] = {OURS: [], TORCH: []}
    stale = []

    def call(provider: str) -> Side:
        def double(x: torch.Tensor) -> torch.Tensor:
            if not torch.equal(x, source):
                stale.append(provider)
            seen[provider].append(x.data_ptr())
            return x.mul_(2)

        return Side(provider, double)

    if cold:
        monkeypatch.setattr(timing, "COLD_BYTES", 1)
        monkeypatch.setattr(timing, "ring_length", lambda nbytes, device: 5)
    work = Work([call(OURS), call(TORCH)], source)
    measure(Case("ops", "double", "mul_", torch.float32, 100, lambda: work), Effort(0.0, 11))
    assert not stale
    if cold:  # one tensor after the other, round and round
        assert {len(set(pointers)) for pointers in seen.values()} == {5}


def test_sides_alternate_and_each_goes_first() -> None:
    order: list[str] = []

    def side(provider: str) -> Side:
        def call(_: object) -> None:
            order.append(provider)

        return Side(provider, call)

    work = Work([side("a"), side("b"), side("c")], verify=lambda: None)
    measure(Case("lists", "x", "x", torch.float32, 1, lambda: work), Effort(0.0, 3))
    assert "".join(order[-9:]) == "abcbcacab"


def test_threads_are_set_for_each_row_and_put_back() -> None:
    seen = []
    before = torch.get_num_threads()
    side = Side(OURS, lambda x: seen.append(torch.get_num_threads()) or x.mul_(2))
    alone = Side("numpy", lambda x: x.mul_(2), single_threaded=True)
    rows = measure(case_of(side, alone, threads=(1, 2)), ONCE)
    assert [(r.provider, r.threads) for r in rows] == [
        (OURS, 1), ("numpy", 1), (TORCH, 1), (OURS, 2), (TORCH, 2),
    ]  # fmt: skip
    assert set(seen) == {1, 2}
    assert torch.get_num_threads() == before


def test_the_ring_is_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 480 << 20)
    monkeypatch.setattr(machine, "available_memory", lambda device: 16 << 30)
    assert timing.ring_length(64 << 20, "cpu") * 64 >= 2 * 480
    monkeypatch.setattr(machine, "available_memory", lambda device: 1 << 30)
    assert timing.ring_length(64 << 20, "cpu") == 4


@emulated.needs_device
def test_predictions_are_of_the_memory_moved(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["x.add_(y)", "a step of Adam", "softmax_, rows of 65536"]
    assert cli.main(["predict", "--size", "256Ki", "--call", *wanted]) == 0
    out = capsys.readouterr().out
    assert out.startswith("PREDICTED") and "Nothing here was measured on a GPU." in out
    lines = [line.removeprefix(name).split() for name in wanted for line in out.splitlines() if name in line]
    # Rows that no block holds are read twice.
    assert [float(cells[0]) for cells in lines] == pytest.approx([1, 1, 1.5], rel=0.01)
    moved = (3 * 4 << 18, 7 * 4 << 18, 3 * 4 << 18)
    for (_, *times), total in zip(lines, moved, strict=True):
        assert [float(t) for t in times] == pytest.approx(
            [total / gigabytes / 1e3 for gigabytes in predict.CARDS.values()], rel=0.01, abs=0.06
        )
    assert cli.main(["predict", "--call", "x.no_such_(y)"]) == 2
    assert "no call 'x.no_such_(y)'" in capsys.readouterr().err


def test_cuda_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing._elapsed(lambda x: log.append("call"), [1, 2], "cuda") == 3e-3
    assert log == ["record", "call", "call", "record", "wait"]


@pytest.mark.parametrize(("text", "size"), [("16", 16), ("4Ki", 4096), ("1 Mi", 1 << 20)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5Mi", ""])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number of elements"):
        parse_size(text)


# -- the file of results


def test_a_run_writes_a_row_for_each_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.csv"
    assert cli.main(["run", *TINY, "--output", str(path)]) == 0
    assert "2 of 2 cases" in capsys.readouterr().out
    rows = results.read(path)
    assert {r.case for r in rows} == {"exp_", "mul_ number"}
    assert {r.provider for r in rows} >= {OURS, TORCH}
    for r in rows:
        assert 0 < r.p20_us <= r.median_us <= r.p80_us and r.runs >= 5
        assert (r.size, r.dtype, r.threads, r.torch) == (16, "float32", 1, torch.__version__)
        assert r.commit == machine.commit() and r.date.endswith("+00:00")


def test_rows_of_a_key_are_replaced_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write(path, row(median=1.0), row(TORCH, 5.0), row(median=2.0, commit="def456"))
    write(path, row(median=3.0, date="later"))
    expected = [(OURS, 3.0, "abc123"), (TORCH, 5.0, "abc123"), (OURS, 2.0, "def456")]
    assert [(r.provider, r.median_us, r.commit) for r in results.read(path)] == expected
    assert len(path.read_text().splitlines()) == 5
    results.compact(path)
    assert len(path.read_text().splitlines()) == 4
    assert [(r.provider, r.median_us, r.commit) for r in results.read(path)] == expected


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        results.read(path)
    path.write_text(",".join(results.FIELDS) + "\nops,exp_\n")
    with pytest.raises(ValueError, match="line 2"):
        results.read(path)


def test_percent_of_the_limit_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, limit = timed(OURS, 2e-6, moved=3000), timed(LIMIT, 1e-6, moved=2000)
    first, second = results.rows_of(case_of(), [ours, limit])
    assert (first.median_us, first.gb_per_s, first.percent_of_limit) == (2.0, 1.5, 75.0)
    assert second.percent_of_limit == 100.0


def test_resume_measures_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "r.csv")
    assert cli.main(["run", *TINY[:4], "exp_", *TINY[6:], "--output", path]) == 0
    before = results.read(Path(path))
    assert cli.main(["run", *TINY, "--resume", "--output", path]) == 0
    assert "1 of 1 cases" in capsys.readouterr().out
    assert results.read(Path(path))[: len(before)] == before
    assert cli.main(["run", *TINY, "--resume", "--output", path]) == 0
    assert "nothing to measure" in capsys.readouterr().out
    assert cli.main(["run", *TINY, "--minutes", "0", "--output", path]) == cli.LEFT


def test_list_and_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--suite", "softmax", "--op", "softmax_relu_", "--layout", "rows of 64"]) == 0
    assert capsys.readouterr().out == "softmax: softmax_relu_, 16 Mi float32, rows of 64\n"
    assert cli.main(["run", "--op", "no_such_op"]) == 2
    assert cli.main(["compare", "a", "b", "--results", "/no/such.csv"]) == 2
    if not torch.cuda.is_available():
        assert cli.main(["list", "--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    for wrong in (["--dtype", "float99"], ["--size", "x"], ["--threads", "0"], ["--suite", "x"]):
        with pytest.raises(SystemExit):
            cli.main(["list", *wrong])


@pytest.mark.nosanitize  # -m takes the package of this folder
def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        "--suite",
        "ops",
        "--size",
        "64",
        "--output",
        str(path),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # What runs in the background of a shell has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED, out
    assert "interrupted: " in out and "Traceback" not in out
    rows = results.read(path)
    assert {r.case for r in rows} >= {"add_ number"}
    assert len(path.read_text().splitlines()) == len(rows) + 1


# -- comparison


def test_compare_files_by_what_torch_took_in_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.csv", row(median=2.0), row(TORCH, 4.0))
    # A machine half as fast, and ours 10% slower relative to torch.
    new = write(tmp_path / "new.csv", row(median=4.4, commit="b"), row(TORCH, 8.0, commit="b"))
    assert compare(old, new, Path("unused.csv")) == 0
    assert "relative to torch" in capsys.readouterr().out
    assert compare(old, new, Path("unused.csv"), loss=0.2) == 0
    assert compare(old, new, Path("unused.csv"), loss=0.05) == 1
    assert "0.91  below 0.95" in capsys.readouterr().out
    assert compare(new, old, Path("unused.csv"), loss=0.05) == 0
    assert cli.main(["compare", old, new, "--absolute", "--loss", "0.5"]) == 1
    assert cli.main(["compare", old, new, "--absolute", "--loss", "0.6"]) == 0
    assert cli.main(["compare", old, new, "--loss", "0.05", "--op", "mul_"]) == 2  # nothing in common


def test_compare_commits_and_providers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "r.csv",
        row(median=2.0), row(TORCH, 4.0), row(median=3.0, commit="abd777"), row(TORCH, 4.0, commit="abd777"),
    )  # fmt: skip
    assert cli.main(["compare", "abc", "abd", "--results", path, "--loss", "0.3"]) == 1
    assert cli.main(["compare", "abd", "abc", "--results", path, "--loss", "0.3"]) == 0
    assert cli.main(["compare", TORCH, OURS, "--results", path]) == 0
    assert "1.33" in capsys.readouterr().out  # of the last commit
    assert cli.main(["compare", "ab", "abc", "--results", path]) == 2
    assert cli.main(["compare", "zzz", "abc", "--results", path]) == 2
    assert "neither a provider nor a commit" in capsys.readouterr().err
    assert cli.main(["compare", "abd", "abc", "--results", path, "--loss", "30"]) == 2
    # Providers are compared within one place, never across two.
    mixed = write(tmp_path / "mixed.csv", row(TORCH, 4.0), row(median=2.0, commit="def456"))
    assert cli.main(["compare", TORCH, OURS, "--results", mixed]) == 2


# -- pictures and tables


def made_up() -> list[Row]:
    rows = []
    for k, provider in enumerate((OURS, TORCH, LIMIT, "numpy", "numexpr", "compile"), 1):
        for size in (16, 4096, 1 << 20, 16 << 20):
            for case in ("mul_ number", "exp_"):
                rows.append(row(provider, k * size / 1e3, case=case, op=case.split()[0], size=size))
                rows.append(
                    row(provider, k * size / 2e3, case=case, op=case.split()[0], size=size, threads=2)
                )
        rows.append(row(provider, k, suite="overhead", case="mul_ number", op="mul_"))
        rows += [
            row(provider, k * n, suite="fuse", case=f"chain of {n}", op="fuse", size=1 << 20) for n in (1, 3)
        ]
    return rows


def test_pictures_are_valid_and_small(tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots")
    written = plots.draw(made_up(), tmp_path)
    assert [path.stem for path in written] == list(plots.PICTURES)
    for path in written:
        svg = ElementTree.parse(path)
        assert svg.getroot().tag == "{http://www.w3.org/2000/svg}svg"
        words = " ".join("".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text"))
        assert "inplace_ext" in words
        assert path.stat().st_size < 100_000
        again = path.read_bytes()
        plots.draw(made_up(), tmp_path, only=[path.stem])
        assert path.read_bytes() == again
    with pytest.raises(ValueError, match="no picture"):
        plots.draw(made_up(), tmp_path, only=["nothing"])


def test_plot_needs_no_complete_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "r.csv", row(), row(TORCH, 2.0))
    assert cli.main(["plot", "--results", path, "--output", str(tmp_path), "--format", "svg", "png"]) == 0
    assert "chains: the results have no rows" in capsys.readouterr().out
    assert (tmp_path / "speedup.svg").exists() and (tmp_path / "speedup.png").exists()


def test_committed_pictures_are_light() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*.svg"))
    assert pictures
    for path in pictures:
        ElementTree.parse(path)
        assert path.stat().st_size < 100_000, path


def test_tables_tell_losses_and_one_place() -> None:
    lost = row(median=3.0, case="slow_", op="exp_")
    text = tables.block([*made_up(), lost, replace(lost, provider=TORCH, median_us=1.5)])
    assert "- `slow_`, 16, float32: 0.50x" in text
    assert "| `fuse`, 3 operations" in text and "2.0x" in text
    with pytest.raises(ValueError, match="2 places"):
        tables.block([row(), row(commit="other")])


def test_readme_shows_the_committed_results() -> None:
    assert tables.update(results.read(results.committed()), write=False) == 0
