"""Sphinx: the pages of this folder, and the API reference from the docstrings. `make docs` builds them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import inplace_ext

project = "inplace_ext"
author = "the inplace_ext authors"
version = release = inplace_ext.__version__
extensions = ["sphinx.ext.autodoc", "myst_parser"]
html_theme = "furo"
html_title = f"inplace_ext {version}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# README.md and its like lie outside of the folder that Sphinx sees.
suppress_warnings = ["myst.xref_missing", "toc.empty_glob"]
exclude_patterns: list[str] = []

# ---- docstrings -------------------------------------------------------------------------------------------
#
# They are written to be read in a terminal: a line for each of formula, shapes, dtypes and so on, and
# indented lists of arguments and errors. As reStructuredText these lines are fields, and the lists are lists.

_FIELD = re.compile(
    r"(Formula|Shapes|Dtypes|Maximum error|Note|Returns|Source|Autograd|Lists|Values|Args|Raises|"
    r"Runs as it is written|Errors)(, [^:]*)?: ?(.*)"
)
_ITEM = re.compile(r"    ([A-Za-z_][\w ,()]*): (.*)")


def _formula(text: str) -> str:
    return re.sub(r"^(.*?)(, for each element x of ``input``\.|$)", r"``\1``\2", text, count=1)


def as_fields(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText."""
    out: list[str] = []
    inside = listed = False  # a field, a list in it
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field:
            name, more, rest = field.groups()
            if not inside and out and out[-1]:
                out.append("")
            out.append(f":{name}{more or ''}: {_formula(rest) if name == 'Formula' else rest}".rstrip())
            inside, listed = True, False
        elif not inside or line.startswith(">>>"):
            if inside:
                out.append("")
            inside = False
            out.append(line if line.startswith(">>>") else line.replace("|x|", "``|x|``"))
        elif not line:
            inside = False
            out.append(line)
        elif item := _ITEM.fullmatch(line):
            if not listed:
                out.append("")
            listed = True
            out.append(f"    - ``{item[1]}``: {item[2]}")
        elif line.startswith("        "):
            out.append(f"      {line.strip()}")
        elif line.startswith("    ") and listed:
            out.append(f"    - {line.strip()}")
        else:
            out.append(f"    {line.strip()}")
    return out


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_fields(lines)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _process)
