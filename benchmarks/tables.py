"""``tables``: the tables of README.md, from the committed file of results, so that no number is typed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.case import COMPILE, NUMEXPR, NUMPY, OURS, TORCH, format_size
from benchmarks.machine import ROOT
from benchmarks.results import Row, by_subject
from inplace_ext._table import OPS

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
SIZES = {16: "16 elements", 4 << 10: "4 Ki", 1 << 20: "1 Mi", 16 << 20: "16 Mi"}
"""The columns of the table of operations."""

_BINARY = ("add_", "sub_", "mul_", "div_")
OPERATIONS: Sequence[tuple[str, Sequence[str]]] = (
    ("`add_ sub_ mul_ div_` by a number", [f"{op} number" for op in _BINARY]),
    ("`add_ sub_ mul_ div_` by a tensor", [f"{op} tensor" for op in _BINARY]),
    ("`clamp_`, numbers or tensors", ["clamp_ numbers", "clamp_ tensors"]),
    ("`remainder_ fmod_` by a number", ["remainder_ number", "fmod_ number"]),
    ("`sqrt_ rsqrt_`", ["sqrt_", "rsqrt_"]),
    ("`exp_ log_`", ["exp_", "log_"]),
    ("`expm1_ log1p_`", ["expm1_", "log1p_"]),
    ("`tanh_ sigmoid_`", ["tanh_", "sigmoid_"]),
    ("`pow_(1.5) pow_(tensor)`", ["pow_ 1.5", "pow_ tensor"]),
    ("`erf_ gelu_`", ["erf_", "gelu_"]),
    ("`silu_ elu_ mish_`", ["silu_", "elu_", "mish_"]),
    ("`masked_fill_`, `where_(mask, tensor)`", ["masked_fill_", "where_ tensor"]),
    ("`fill_ zero_ copy_`", ["fill_", "zero_", "copy_"]),
)
#: Label, (suite, case, size or None for the largest, layouts or None for all), and other providers.
_MI16 = 16 << 20
WORK: Sequence[tuple[str, tuple[str, str, int | None, Sequence[str] | None], Sequence[str]]] = (
    ("`fuse`, 3 operations, 16 elements", ("overhead", "chain of 3", 16, None), (TORCH, COMPILE, NUMEXPR)),
    ("`fuse`, 3 operations, 16 Mi", ("fuse", "chain of 3", _MI16, None), (TORCH, COMPILE, NUMEXPR, NUMPY)),
    ("`fuse`, 6 operations, 16 Mi", ("fuse", "chain of 6", _MI16, None), (TORCH, COMPILE, NUMEXPR, NUMPY)),
    ("`fuse`, 12 operations, 16 Mi", ("fuse", "chain of 12", _MI16, None), (TORCH, COMPILE, NUMEXPR, NUMPY)),
    (
        "normalisation per channel, 64x3x256x256",
        ("fuse", "per channel", None, None),
        (TORCH, COMPILE, NUMEXPR),
    ),
    (
        "uint8 to normalised floats, the same",
        ("fuse", "uint8 to normalised floats", None, None),
        (TORCH, COMPILE),
    ),
    ("sigmoid written out, 16 Mi", ("fuse", "sigmoid written out", _MI16, None), (TORCH, COMPILE, NUMEXPR)),
    ("SGD with momentum, 16 tensors of 1 Mi", ("lists", "SGD, momentum", None, None), ("fused", "foreach")),
    ("AdamW, the same", ("lists", "AdamW", None, None), ("fused", "foreach")),
    ("3 operations on 2000 tensors of 64", ("lists", "chain of 3", None, None), (TORCH, "foreach")),
    ("`clip_grad_norm_`, the same", ("lists", "clip_grad_norm_", None, None), (TORCH, "foreach")),
    ("`clip_grad_value_`, the same", ("lists", "clip_grad_value_", None, None), (TORCH, "foreach")),
    (
        "`softmax_relu_`, rows of 64 to 64 Ki",
        ("softmax", "softmax_relu_", _MI16, [f"rows of {4**k}" for k in range(3, 9)]),
        (TORCH, "torch_out", COMPILE),
    ),
    (
        "`softmax_relu_` along dim 0 of 1024 x 16 Ki",
        ("softmax", "softmax_relu_", _MI16, ["dim 0 of 1024 x 16384"]),
        (TORCH, "torch_out"),
    ),
    ("`dropout_`, 16 elements", ("overhead", "dropout_", 16, None), (TORCH,)),
    ("`dropout_`, 16 Mi", ("dropout", "dropout_", _MI16, ["contiguous"]), (TORCH, COMPILE)),
    (
        "`x[mask] = number`, 16 Mi, half of it",
        ("indexing", "x[...] = values", _MI16, ["a mask, p=0.5, a number"]),
        (TORCH,),
    ),
    ("`index_copy_` of rows of 256", ("indexing", "index_copy_", None, ["rows of 256"]), (TORCH,)),
    ("`index_add_` of rows of 256", ("indexing", "index_add_", None, ["rows of 256"]), (TORCH,)),
    (
        "`scatter_`, 4096 x 1024, along either dim",
        ("indexing", "scatter_", None, ["dim 0", "dim 1"]),
        (TORCH,),
    ),
    (
        "`contiguous_`, a transpose of 4096 x 4096",
        ("rearrange", "contiguous_", None, ["4096 x 4096"]),
        (TORCH,),
    ),
    (
        "`contiguous_`, a transpose of 5000 x 3001",
        ("rearrange", "contiguous_", None, ["5000 x 3001"]),
        (TORCH,),
    ),
)
_NAMES = {
    TORCH: "torch",
    COMPILE: "`torch.compile`",
    NUMEXPR: "numexpr",
    NUMPY: "NumPy",
    "torch_out": "`softmax(out=)`",
    "fused": "`fused=True`",
    "foreach": "foreach",
}
#: Ratios below this count as a loss in the list of README.
LOSS = 0.97


def times(ratios: Sequence[float]) -> str:
    """A ratio, or the least and the largest: ``"1.1x"``, ``"1.1-2.3x"``."""
    if not ratios:
        return ""
    low, high = (_short(r) for r in (min(ratios), max(ratios)))
    return f"{low}x" if low == high else f"{low}-{high}x"


def _short(ratio: float) -> str:
    if ratio >= 9.95:
        return f"{ratio:.0f}"
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}"


Group = dict[str, Row]


def ratios(
    groups: Iterable[Group],
    provider: str,
    suite: str,
    cases: Sequence[str],
    size: int | None = None,
    layouts: Sequence[str] | None = None,
) -> list[float]:
    """The provider's time by ours, in float32 on one thread; None stands for every size or layout."""
    return [
        group[provider].median_us / ours.median_us
        for group in groups
        if provider in group and (ours := group.get(OURS)) is not None
        if (ours.suite, ours.dtype, ours.threads) == (suite, "float32", 1) and ours.case in cases
        if size in (None, ours.size) and (layouts is None or ours.layout in layouts)
    ]


def operations(groups: Sequence[Group]) -> list[str]:
    """Time of torch by time of ours, in groups of operations, by size."""
    lines = [f"| operation | {' | '.join(SIZES.values())} |", "| --- |" + " --- |" * len(SIZES)]
    for label, cases in OPERATIONS:
        cells = [times(ratios(groups, TORCH, "ops", cases, size)) for size in SIZES]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def work(groups: Sequence[Group]) -> list[str]:
    """Chains, lists, softmax and dropout beside each of the others."""
    lines = ["| work, float32 | time of the others divided by ours |", "| --- | --- |"]
    for label, (suite, case, size, layouts), providers in WORK:
        found = {p: ratios(groups, p, suite, [case], size, layouts) for p in providers}
        cells = [f"{_NAMES[p]} {times(values)}" for p, values in found.items() if values]
        lines.append(f"| {label} | {', '.join(cells)} |")
    return lines


def advice(groups: Sequence[Group]) -> list[str]:
    """When it helps, and when it does not."""

    def t(provider: str, suite: str, *cases: str, size: int | None = None, layout: str | None = None) -> str:
        found = ratios(groups, provider, suite, cases, size, None if layout is None else [layout])
        return times(found) or "(not measured)"

    carried = [op.name for op in OPS.values() if not op.native]
    cheap = [f"{op} {what}" for op in _BINARY for what in ("number", "tensor")]
    heavy = ["pow_ 1.5", "expm1_", "mish_", "elu_", "remainder_ number", "masked_fill_"]
    rows = [f"rows of {4**k}" for k in range(3, 9)]
    soft = times(ratios(groups, TORCH, "softmax", ["softmax_relu_"], None, rows)) or "(not measured)"
    mi, large = 1 << 20, _MI16
    return [
        "It helps",
        "",
        f"- on small tensors, where calls cost most: {t(TORCH, 'ops', *cheap, size=16)} torch's speed in "
        f"arithmetic on 16 elements, {t(TORCH, 'ops', *cheap, size=4 << 10)} on 4 Ki;",
        f"- in chains: {t(TORCH, 'fuse', 'chain of 3', size=large)} for 3 operations on 16 Mi elements, "
        f"{t(TORCH, 'fuse', 'chain of 12', size=large)} for 12;",
        f"- in operations that take arithmetic (`pow_ expm1_ mish_ elu_ remainder_ masked_fill_`, 1 Mi): "
        f"{t(TORCH, 'ops', *heavy, size=mi)};",
        f"- in softmax with relu ({soft}), and on thousands of small tensors "
        f"({t(TORCH, 'lists', 'chain of 3')} a loop, {t('foreach', 'lists', 'chain of 3')} foreach).",
        "",
        "It does not help, or little,",
        "",
        f"- with one cheap operation on a tensor that no cache holds: {t(TORCH, 'ops', *cheap, size=large)} "
        "in arithmetic on 16 Mi, all of it at the speed of memory;",
        f"- in `exp_ log_ tanh_ sigmoid_ sqrt_` on Intel processors: "
        f"{t(TORCH, 'ops', 'exp_', 'log_', 'tanh_', 'sigmoid_', 'sqrt_', size=mi)} on 1 Mi;",
        f"- beside torch's `fused=True` optimizers ({t('fused', 'lists', 'SGD, momentum')} in SGD, "
        f"{t('fused', 'lists', 'AdamW')} in AdamW), and beside Inductor, once it has compiled, in "
        f"converting uint8 images ({t(COMPILE, 'fuse', 'uint8 to normalised floats')});",
        f"- for operations without a kernel of their own, which torch carries out: "
        f"{t(TORCH, 'ops', *carried)}.",
    ]


def summary(groups: Sequence[Group]) -> list[str]:
    """How often, how much, and every loss against torch call by call."""
    native = {name for name, op in OPS.items() if op.native}
    found: list[tuple[float, Row]] = []
    for group in groups:
        if OURS in group and TORCH in group:
            found.append((group[TORCH].median_us / group[OURS].median_us, group[OURS]))

    def mean(ratios: Iterable[float]) -> str:
        values = [*ratios]
        return f"{math.exp(statistics.fmean(map(math.log, values))):.1f}x"

    ops = [(ratio, r) for ratio, r in found if r.suite == "ops" and r.op in native and r.threads == 1]
    floats = [ratio for ratio, r in ops if r.dtype == "float32"]
    others = [ratio for ratio, r in ops if r.dtype != "float32"]
    lines = [
        f"Over the {len(floats)} cases of operations with kernels of their own in float32, the geometric "
        f"mean is {mean(floats)} torch's speed and the lowest {min(floats):.2f}x"
        + (
            f"; over {len(others)} cases of 1 Mi elements in float64, float16 and bfloat16, {mean(others)} "
            f"and {min(others):.2f}x."
            if others
            else "."
        )
    ]
    lost = [(ratio, r) for ratio, r in found if ratio < LOSS]
    together: dict[tuple[str, ...], list[tuple[float, Row]]] = {}
    for ratio, r in lost:
        together.setdefault(_circumstances(r), []).append((ratio, r))
    lines += [
        "",
        f"Slower than torch by more than {1 - LOSS:.0%} are {len(lost)} of {len(found)} cases measured:",
        "",
    ]
    lines += [
        f"- {' '.join(dict.fromkeys(f'`{r.case}`' for _, r in group))}, {', '.join(where)}: "
        f"{times([ratio for ratio, _ in group])}"
        + (
            f" ({'; '.join(dict.fromkeys(r.layout for _, r in group))})"
            if group[0][1].suite == "layouts"
            else ""
        )
        for where, group in together.items()
    ]
    return lines


def _circumstances(row: Row) -> tuple[str, ...]:
    """What losses that are told together have in common."""
    if row.suite == "layouts":
        return ("odd layouts",)
    where = [row.layout if row.layout != "contiguous" else format_size(row.size), row.dtype]
    return (*where, f"{row.threads} threads") if row.threads > 1 else (*where,)


def block(rows: Sequence[Row]) -> str:
    """What stands between the marks in README.md."""
    groups = list(by_subject(rows))
    places = {(r.device, r.capability, r.torch, r.commit) for r in rows}
    if len(places) != 1:
        raise ValueError(f"tables: the results come from {len(places)} places or commits, not from one")
    device, capability, torch, commit = places.pop()
    head = (
        f"Time of torch's method divided by ours: float32, contiguous, one thread, {device}, {capability} "
        f"kernels, torch {torch}, commit {commit}. Both sides alternate in one run, after their results have "
        "been compared."
    )
    parts = [advice(groups), [head], operations(groups), work(groups), summary(groups)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def update(rows: Sequence[Row], write: bool) -> int:
    """Puts the tables into README.md, or tells whether they are there."""
    text = README.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"tables: {README} has no {BEGIN} ... {END}")
    wanted = f"{head}{BEGIN}\n{block(rows)}{END}{tail}"
    if write:
        README.write_text(wanted)
        return 0
    if wanted != text:
        print(f"{README.name} does not show the results; run `python -m benchmarks tables`")
    return int(wanted != text)
