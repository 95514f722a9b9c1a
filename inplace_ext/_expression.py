"""Expressions of one's own operations: read once, written as C++ for the kernels and as torch for the rest.

The language is Python's, of numbers: names, constants, operators, comparisons, ``a if condition else b`` and
the functions of ``FUNCTIONS``. Everything that can be wrong is found here, and said in terms of the
expression.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

#: What a part of an expression is: numbers of the compute type, or the truth of a condition in each lane.
VALUE, CONDITION = "value", "condition"


class ExpressionError(ValueError):
    """The expression of an operation cannot be compiled. The message shows where."""


@dataclass(frozen=True)
class Function:
    """A function that expressions may call; ``{0}`` in its forms is the first argument."""

    arguments: int
    cpp: str
    torch: str
    #: In units of a multiplication, as in the op table.
    cost: float = 0.25
    #: Whether integers have it.
    integers: bool = False


def _named(cpp: str, cost: float, torch: str | None = None) -> Function:
    return Function(1, f"{cpp}({{0}})", f"torch.{torch or cpp}({{0}})", cost)


_MAXIMUM = Function(2, "Maximum::apply({0}, {1})", "torch.maximum({0}, {1})", integers=True)
_MINIMUM = Function(2, "Minimum::apply({0}, {1})", "torch.minimum({0}, {1})", integers=True)

#: With torch's names, values and treatment of NaN; ``where`` is written out in the compiler below.
FUNCTIONS: dict[str, Function] = {
    "abs": Function(1, "abs({0})", "torch.abs({0})", integers=True),
    "sign": Function(1, "Sign::apply({0})", "torch.sign({0})", 0.5, integers=True),
    "square": Function(1, "Square::apply({0})", "torch.square({0})", integers=True),
    "relu": Function(1, "Relu::apply({0})", "torch.relu({0})", integers=True),
    "maximum": _MAXIMUM,
    "max": _MAXIMUM,
    "minimum": _MINIMUM,
    "min": _MINIMUM,
    "clamp": Function(
        3, "ClampBetween::apply({0}, {1}, {2})", "torch.clamp({0}, {1}, {2})", 0.5, integers=True
    ),
    "reciprocal": Function(1, "Reciprocal::apply({0})", "torch.reciprocal({0})", 1),
    "sqrt": _named("square_root", 2, "sqrt"),
    "rsqrt": _named("inverse_square_root", 3, "rsqrt"),
    "floor": _named("floor", 0.25),
    "ceil": _named("ceil", 0.25),
    "trunc": _named("trunc", 0.25),
    "round": _named("rint", 0.25, "round"),
    "frac": Function(1, "Frac::apply({0})", "torch.frac({0})"),
    "exp": _named("exp", 4),
    "exp2": _named("exp2", 4),
    "expm1": _named("expm1", 5),
    "log": _named("log", 5),
    "log2": _named("log2", 5),
    "log10": _named("log10", 5),
    "log1p": _named("log1p", 6),
    "sin": _named("sin", 6),
    "cos": _named("cos", 6),
    "tanh": _named("tanh", 6),
    "sigmoid": _named("sigmoid", 6),
    "erf": _named("erf", 6),
    "silu": _named("silu", 6, "nn.functional.silu"),
    "mish": _named("mish", 8, "nn.functional.mish"),
    "gelu": _named("gelu", 8, "nn.functional.gelu"),
    "pow": Function(2, "pow({0}, {1})", "torch.pow({0}, {1})", 12),
    "fmod": Function(2, "Fmod::apply({0}, {1})", "torch.fmod({0}, {1})", 5),
    "remainder": Function(2, "Remainder::apply({0}, {1})", "torch.remainder({0}, {1})", 6),
    "copysign": Function(2, "copysign({0}, {1})", "torch.copysign({0}, {1})"),
}

_CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan}
_OPERATORS: dict[type[ast.operator], tuple[str, float, bool]] = {
    ast.Add: ("+", 0.25, True),
    ast.Sub: ("-", 0.25, True),
    ast.Mult: ("*", 0.25, True),
    ast.Div: ("/", 1, False),
}
_CALLED = {ast.Mod: ("remainder", "%"), ast.FloorDiv: ("//", "//"), ast.Pow: ("pow", "**")}
_FLOOR_DIVIDE = Function(2, "DivFloor::apply({0}, {1})", "torch.floor_divide({0}, {1})", 8)
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_LOGIC: dict[type[ast.operator] | type[ast.boolop], str] = {
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.And: "&",
    ast.Or: "|",
}
#: Powers that are products, roots and reciprocals, as in torch.
_POWERS: dict[float, str] = {2: "square", 3: "cube", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
_CUBE = Function(1, "Cube::apply({0})", "torch.pow({0}, 3)", 0.5, integers=True)


@dataclass(frozen=True)
class Part:
    """A part of an expression in both languages."""

    cpp: str
    torch: str
    kind: str = VALUE
    #: A constant, which torch takes as a Python number.
    literal: bool = False


@dataclass(frozen=True)
class Expression:
    """A checked expression."""

    text: str
    #: C++ that returns the value; and statements and a value of Python.
    cpp: str
    torch: tuple[Sequence[str], str]
    cost: float


class _Compiler:
    def __init__(self, name: str, text: str, names: Sequence[str], integers: bool) -> None:
        self.name, self.text, self.integers = name, text, integers
        self.parts: dict[str, Part] = {known: Part(cpp_name(known), known) for known in names}
        self.used: set[str] = set()
        self.cost = 0.0
        self.cpp: list[str] = []
        self.torch: list[str] = []

    # -- errors --

    def fail(self, what: str, node: ast.AST | None = None) -> NoReturn:
        lines = self.text.splitlines() or [""]
        if node is None:
            raise ExpressionError(f"{self.name}: {what}\n    " + "\n    ".join(lines))
        row, begin = node.lineno, node.col_offset  # type: ignore[attr-defined]
        end = node.end_col_offset if node.end_lineno == row else None  # type: ignore[attr-defined]
        raise ExpressionError(f"{self.name}: {what}\n{_pointed(lines, row, begin, end)}")

    def unknown(self, what: str, name: str, known: Sequence[str], node: ast.AST) -> NoReturn:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        self.fail(f"unknown {what} {name}; {hint}", node)

    # -- statements --

    def run(self) -> Expression:
        try:
            tree = ast.parse(self.text.strip() and self.text, mode="exec")
        except SyntaxError as error:
            lines = self.text.splitlines() or [""]
            row, begin = error.lineno or 1, (error.offset or 1) - 1
            end = error.end_offset - 1 if error.end_offset and error.end_lineno == row else None
            where = _pointed(
                lines, row, len(lines[row - 1][:begin].encode()) if row <= len(lines) else 0, end
            )
            raise ExpressionError(f"{self.name}: {error.msg}\n{where}") from None
        if not tree.body:
            self.fail("the expression is empty")
        *statements, last = tree.body
        for statement in statements:
            self.assign(statement)
        if not isinstance(last, ast.Expr):
            self.fail("the last line is the value, an expression", last)
        result = self.value(last.value)
        if "x" not in self.used:
            self.fail("the expression does not use x, the element of input")
        for unused in self.parts:
            if unused not in self.used:
                self.fail(f"{unused} is not used")
        cpp = "\n".join([*self.cpp, f"return {result.cpp};"])
        return Expression(self.text, cpp, (self.torch, self.as_tensor(result)), self.cost)

    def assign(self, node: ast.stmt) -> None:
        if not (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and len(node.targets) == 1
        ):
            self.fail("before the value come lines of the form name = expression", node)
        name = node.targets[0].id
        if name in self.parts or name in FUNCTIONS or name in _CONSTANTS or name in ("where", "V"):
            self.fail(f"{name} has a meaning already", node.targets[0])
        part = self.part(node.value)
        local = f"local_{name}"
        self.cpp.append(f"const auto {local} = {part.cpp};")
        self.torch.append(f"{local} = {self.as_tensor(part)}")
        self.parts[name] = Part(local, local, part.kind)

    # -- expressions --

    def value(self, node: ast.expr) -> Part:
        """The numbers of an expression; a condition counts as 1 where it holds and 0 elsewhere."""
        part = self.part(node)
        if part.kind == VALUE:
            return part
        return Part(f"select({part.cpp}, V(T(1)), V(T(0)))", f"_numbers({part.torch}, x)")

    def condition(self, node: ast.expr) -> Part:
        part = self.part(node)
        if part.kind != CONDITION:
            self.fail("a condition is wanted here, such as x > 0", node)
        return part

    @staticmethod
    def as_tensor(part: Part) -> str:
        return f"_number({part.torch}, x)" if part.literal else part.torch

    def part(self, node: ast.expr) -> Part:
        method: Callable[[ast.expr], Part] | None = getattr(self, f"of_{type(node).__name__}", None)
        if method is None:
            self.fail(f"an expression has no {_WORDS.get(type(node), type(node).__name__)}", node)
        return method(node)

    def of_Constant(self, node: ast.Constant) -> Part:
        return self.number(node.value, node)

    def number(self, value: object, node: ast.expr) -> Part:
        if type(value) is int:
            if not -(2**63) <= value < 2**63:
                self.fail("this integer has more than 64 bits", node)
            return Part(f"V(T({value}))", repr(value), literal=True)
        if type(value) is not float:
            self.fail(f"a constant is a number, not {type(value).__name__}", node)
        if self.integers:
            self.fail("a float constant has no place among integers; leave the integer dtypes out", node)
        if math.isnan(value):
            return Part("V(std::numeric_limits<T>::quiet_NaN())", "float('nan')", literal=True)
        if math.isinf(value):
            return Part("V(std::numeric_limits<T>::infinity())", "float('inf')", literal=True)
        return Part(f"V(T({value.hex()}))", repr(value), literal=True)

    def of_Name(self, node: ast.Name) -> Part:
        if node.id in self.parts:
            self.used.add(node.id)
            return self.parts[node.id]
        if node.id in _CONSTANTS:
            return self.number(_CONSTANTS[node.id], node)
        if node.id in FUNCTIONS or node.id == "where":
            self.fail(f"{node.id} is a function", node)
        self.unknown("name", node.id, [*self.parts, *_CONSTANTS], node)

    def of_UnaryOp(self, node: ast.UnaryOp) -> Part:
        if isinstance(node.op, ast.UAdd):
            return self.value(node.operand)
        if isinstance(node.op, ast.USub):
            part = self.value(node.operand)
            return Part(f"(-{part.cpp})", f"(-{part.torch})", literal=part.literal)
        part = self.condition(node.operand)
        return Part(f"(!{part.cpp})", f"(~{part.torch})", CONDITION)

    def of_BinOp(self, node: ast.BinOp) -> Part:
        if type(node.op) in _LOGIC:
            return self.logic(_LOGIC[type(node.op)], [node.left, node.right])
        if isinstance(node.op, ast.Pow):
            return self.power(node)
        if isinstance(node.op, ast.FloorDiv):
            return self.call(_FLOOR_DIVIDE, "//", [node.left, node.right], node)
        if isinstance(node.op, ast.Mod):
            return self.call(FUNCTIONS["remainder"], "%", [node.left, node.right], node)
        if type(node.op) not in _OPERATORS:
            self.fail("this operator is none of numbers", node)
        sign, cost, integers = _OPERATORS[type(node.op)]
        self.takes(integers, sign, node)
        self.cost += cost
        left, right = self.value(node.left), self.value(node.right)
        both = left.literal and right.literal
        first = self.as_tensor(left) if both else left.torch
        return Part(f"({left.cpp} {sign} {right.cpp})", f"({first} {sign} {right.torch})")

    def power(self, node: ast.BinOp) -> Part:
        negated = isinstance(node.right, ast.UnaryOp) and isinstance(node.right.op, ast.USub)
        exponent: ast.expr = node.right.operand if negated else node.right  # type: ignore[attr-defined]
        if isinstance(exponent, ast.Constant) and isinstance(exponent.value, (int, float)):
            name = _POWERS.get(-exponent.value if negated else exponent.value)
            if name is not None:
                return self.call(_CUBE if name == "cube" else FUNCTIONS[name], "**", [node.left], node)
        return self.call(FUNCTIONS["pow"], "**", [node.left, node.right], node)

    def of_BoolOp(self, node: ast.BoolOp) -> Part:
        return self.logic(_LOGIC[type(node.op)], node.values)

    def logic(self, sign: str, nodes: Sequence[ast.expr]) -> Part:
        parts = [self.condition(node) for node in nodes]
        self.cost += 0.25 * (len(parts) - 1)
        return Part(
            "(" + f" {sign} ".join(part.cpp for part in parts) + ")",
            "(" + f" {sign} ".join(part.torch for part in parts) + ")",
            CONDITION,
        )

    def of_Compare(self, node: ast.Compare) -> Part:
        left = self.value(node.left)
        found: list[tuple[str, str]] = []
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARISONS:
                self.fail("this comparison is none of numbers", node)
            sign = _COMPARISONS[type(op)]
            right = self.value(right_node)
            both = left.literal and right.literal
            first = self.as_tensor(left) if both else left.torch
            found.append((f"({left.cpp} {sign} {right.cpp})", f"({first} {sign} {right.torch})"))
            self.cost += 0.25
            left = right
        if len(found) == 1:
            return Part(*found[0], CONDITION)
        cpp, torch = (" & ".join(side) for side in zip(*found, strict=True))
        return Part(f"({cpp})", f"({torch})", CONDITION)

    def of_IfExp(self, node: ast.IfExp) -> Part:
        return self.where(node.test, node.body, node.orelse)

    def where(self, test: ast.expr, a: ast.expr, b: ast.expr) -> Part:
        condition, first, second = self.condition(test), self.value(a), self.value(b)
        self.cost += 0.25
        return Part(
            f"select({condition.cpp}, {first.cpp}, {second.cpp})",
            f"torch.where({condition.torch}, {self.as_tensor(first)}, {self.as_tensor(second)})",
        )

    def of_Call(self, node: ast.Call) -> Part:
        if not isinstance(node.func, ast.Name):
            self.fail("a function is called by its name", node.func)
        name = node.func.id
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            self.fail(f"{name} takes its arguments by position", node)
        if name == "V":  # a number as the kernels write it
            if len(node.args) != 1:
                self.fail(f"V takes 1 argument, got {len(node.args)}", node)
            return self.value(node.args[0])
        if name == "where":
            if len(node.args) != 3:
                self.fail(f"where takes 3 arguments, got {len(node.args)}", node)
            return self.where(*node.args)
        if name in ("isnan", "isinf", "isfinite"):
            return self.classified(name, node)
        if name not in FUNCTIONS:
            known = [*FUNCTIONS, "where", "isnan", "isinf", "isfinite"]
            if name in self.parts:
                self.fail(f"{name} is no function", node.func)
            self.unknown("function", name, known, node.func)
        return self.call(FUNCTIONS[name], name, node.args, node)

    def classified(self, name: str, node: ast.Call) -> Part:
        if len(node.args) != 1:
            self.fail(f"{name} takes 1 argument, got {len(node.args)}", node)
        self.takes(False, name, node)
        part = self.value(node.args[0])
        self.cost += 0.5
        infinity = "V(std::numeric_limits<T>::infinity())"
        cpp = {
            "isnan": f"({part.cpp} != {part.cpp})",
            "isinf": f"(abs({part.cpp}) == {infinity})",
            "isfinite": f"(abs({part.cpp}) < {infinity})",
        }[name]
        return Part(cpp, f"torch.{name}({self.as_tensor(part)})", CONDITION)

    def takes(self, integers: bool, what: str, node: ast.AST) -> None:
        if self.integers and not integers:
            self.fail(f"{what} is none of integers; leave the integer dtypes out", node)

    def call(self, function: Function, name: str, nodes: Sequence[ast.expr], node: ast.AST) -> Part:
        if len(nodes) != function.arguments:
            some = "1 argument" if function.arguments == 1 else f"{function.arguments} arguments"
            self.fail(f"{name} takes {some}, got {len(nodes)}", node)
        self.takes(function.integers, name, node)
        self.cost += function.cost
        parts = [self.value(argument) for argument in nodes]
        return Part(
            function.cpp.format(*(part.cpp for part in parts)),
            function.torch.format(*map(self.as_tensor, parts)),
        )


_WORDS: dict[type[ast.expr], str] = {
    ast.Attribute: "attributes",
    ast.Subscript: "indices",
    ast.Lambda: "lambda",
    ast.NamedExpr: "walrus; write name = expression in a line of its own",
    ast.List: "lists",
    ast.Tuple: "tuples: an operation has one result",
    ast.Dict: "dicts",
    ast.Set: "sets",
    ast.JoinedStr: "strings",
}


def _pointed(lines: Sequence[str], row: int, begin: int, end: int | None) -> str:
    """The lines, with carets under bytes ``begin`` to ``end`` of line ``row``, counted from 1."""
    shown: list[str] = []
    for number, line in enumerate(lines, 1):
        shown.append(f"    {line}")
        if number == row:
            raw = line.encode()
            start = len(raw[:begin].decode(errors="ignore"))
            width = len(raw[begin:end].decode(errors="ignore")) if end is not None else 1
            shown.append("    " + " " * start + "^" * max(width, 1))
    return "\n".join(shown)


def cpp_name(name: str) -> str:
    """A name that is none of C++'s own, nor of the kernels'."""
    return name if name == "x" else f"arg_{name}"


def compile_expression(name: str, text: str, names: Sequence[str], integers: bool) -> Expression:
    """Checks an expression over ``names``, of which x is the element that is changed.

    With ``integers`` it has to have a meaning for integers as well.
    """
    return _Compiler(name, text, names, integers).run()
