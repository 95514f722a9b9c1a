"""Writes what is made from the op table: ``inplace_ext/_ops.pyi`` and the table of operations in README.md.

``--check`` writes nothing and fails where a file is stale. Needs neither torch nor the compiled module.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "inplace_ext" / "_ops.pyi"
README = ROOT / "README.md"
BEGIN, END = "<!-- operations:begin -->", "<!-- operations:end -->"


def load_table() -> ModuleType:
    """``inplace_ext._table``, without the package around it."""
    spec = importlib.util.spec_from_file_location("_table", ROOT / "inplace_ext" / "_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks it up
    spec.loader.exec_module(module)
    return module


table = load_table()


def stub() -> str:
    lines = [
        "# Generated from _table.py by tools/generate.py; do not edit.",
        "from collections.abc import Sequence",
        "from types import EllipsisType",
        "from typing import Literal, TypeAlias, TypeVar, overload",
        "",
        "from torch import Generator, Tensor",
        "from torch import memory_format as MemoryFormat",
        "",
        '_T = TypeVar("_T", bound=Tensor)',
        "Number: TypeAlias = bool | int | float | complex",
        'RoundingMode: TypeAlias = Literal["trunc", "floor"]',
        'Approximate: TypeAlias = Literal["none", "tanh"]',
        'Reduction: TypeAlias = Literal["add", "multiply"]',
        "Item: TypeAlias = int | slice | EllipsisType | Tensor | Sequence[object] | None",
        "Index: TypeAlias = Item | tuple[Item, ...]",
        "",
        "__all__ = [  # noqa: RUF022",
        *(f'    "{name}",' for name in table.ALL_OPS),
        "]",
        "",
    ]
    for op in table.ALL_OPS.values():
        for overload in op.overloads:
            if len(op.overloads) > 1:
                lines.append("@overload")
            parameters = ", ".join(filter(None, ["input: _T", overload]))
            if not op.in_place:
                parameters = parameters.replace("_T", "Tensor")
            end = f") -> {'_T' if op.in_place else 'Tensor'}: ..."
            # As ruff would have it.
            line = f"def {op.name}({parameters}{end}".replace("'", '"')
            if len(line) <= 110:
                lines.append(line)
            elif len(parameters) <= 106:
                lines += [f"def {op.name}(", f"    {parameters}", end]
            else:
                split = [f"    {parameter}," for parameter in parameters.split(", ")]
                lines += [f"def {op.name}(", *split, end]
    return "\n".join(lines) + "\n"


def operations() -> str:
    """The README's table: a row for an operation and its aliases."""
    ops = list(table.OPS.values())
    lines = []
    for title, native in (
        ("With kernels of their own:", True),
        ("Carried out by torch, under the same contract:", False),
    ):
        error = (" maximum error |", " --- |") if native else ("", "")
        lines += [title, "", f"| operation | formula | dtypes |{error[0]}", f"| --- | --- | --- |{error[1]}"]
        for op in ops:
            if op.native != native or op.alias_of:
                continue
            names = [f"`{op.name}`", *(f"`{other.name}`" for other in ops if other.alias_of == op.name)]
            formula = "`" + op.formula.replace("|", "\\|") + "`"
            cells = [", ".join(names), formula, op.dtypes.replace(" ", ", "), *([op.ulp] if native else [])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["Where an index or a mask says, with kernels of their own:", ""]
    lines += ["| operation | effect | dtypes | maximum error |", "| --- | --- | --- | --- |"]
    for op in table.INDEXED.values():
        lines.append(f"| `{op.name}` | `{op.formula}` | {op.dtypes.replace(' ', ', ')} | {op.ulp} |")
    lines.append("")
    for title, group in (("Along a dim", table.ROWS), ("At random", table.RANDOM)):
        lines += [f"{title}, with kernels of their own, in place and in a new tensor:", ""]
        lines += ["| operation | formula | dtypes | maximum error |", "| --- | --- | --- | --- |"]
        for op in group.values():
            names = f"`{op.name}`, `{op.name[:-1]}`"
            lines.append(f"| {names} | `{op.formula}` | {op.dtypes.replace(' ', ', ')} | {op.ulp} |")
        lines.append("")
    lines += [
        "Of shape and layout, of any dtype:",
        "",
        "| operation | what it does | moves data |",
        "| --- | --- | --- |",
    ]
    for op in table.LAYOUT.values():
        if op.alias_of:
            continue
        names = [op.name, *(other.name for other in table.LAYOUT.values() if other.alias_of == op.name)]
        moves = {"reshape_": "where it must", "contiguous_": "in place"}.get(op.name, "no")
        what = op.what.replace("``", "`")
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {what} | {moves} |")
    lines.append("")
    groups = [f"{name} is {', '.join(members)}" for name, members in table.DTYPE_GROUPS.items()]
    lines.append(f"x is an element of the input; {'; '.join(groups)}.")
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{operations()}{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a file is stale, and write nothing")
    check = parser.parse_args().check

    files = {STUB: stub()}
    text = README.read_text() if README.exists() else ""
    if BEGIN in text and END in text:
        files[README] = readme(text)
    else:
        print(f"README.md has no {BEGIN} ... {END}: its table is left out")

    stale = False
    for path, wanted in files.items():
        found = path.read_text() if path.exists() else ""
        if found == wanted:
            continue
        name = path.relative_to(ROOT).as_posix()
        if check:
            stale = True
            diff = difflib.unified_diff(found.splitlines(), wanted.splitlines(), name, "generated", "", "", 0)
            print(*list(diff)[:20], sep="\n")
            print(f"{name} is stale: run python tools/generate.py")
        else:
            path.write_text(wanted)
            print(f"wrote {name}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
