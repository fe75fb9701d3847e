"""Small faults in the server: what can be changed at each place of its code.

A mutant is one change of one expression or statement. Its key names its module, its function, the text of its line and
the change, so that it is still the same mutant after the lines around it have changed.

mutmut and cosmic-ray change code that the tests import, or run a whole test command for each mutant. Here, the server
is a process, and the tests stay loaded. So this module only lists changes, with the standard library's `ast`.
"""

import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
METHODS = {
    "startswith": "endswith",
    "endswith": "startswith",
    "partition": "rpartition",
    "rpartition": "partition",
    "lower": "upper",
    "upper": "lower",
    "fullmatch": "match",
}
LEFT_OUT = {"strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "lower"}  # methods that may do nothing
PROSE = re.compile(r"[a-z] [a-z]")  # a text for people: no test should look at its words


@dataclass(frozen=True)
class Mutant:
    """One change of the server's code. `before` and `after` are the text that is replaced, in one line."""

    module: str  # the path of the file in the repository
    function: str  # its qualified name; "" at the top of the module
    line: str  # the text of the line where the change begins, without the space around it
    before: str
    after: str
    count: int  # 1, or 2, 3, … for the same change of the same line in the same function
    number: int  # of the line
    lines: range  # the numbers of the lines that run if the change matters: those of the statement around it
    start: int  # where the text begins, in bytes
    end: int
    text: str
    name: str | None  # if it is in the value of a constant of the module, its name

    @cached_property
    def key(self) -> str:
        repeated = f" ({self.count})" if self.count > 1 else ""
        return f"{self.module} | {self.function} | {self.line} | {self.change}{repeated}"

    @property
    def change(self) -> str:
        return f"{self.before} → {self.after}"

    def rank(self, seed: int) -> bytes:
        """Return the mutant's place in the random order of this seed. Other changes of the code do not move it."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).digest()

    def apply(self, source: bytes) -> bytes:
        """Return the source of the module with this change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self) -> str:
        source = (ROOT / self.module).read_bytes()
        before, after = (text.decode().splitlines() for text in (source, self.apply(source)))
        return "\n".join(list(unified_diff(before, after, self.module, self.module, lineterm="", n=1))[2:])


def mutants(module: str, source: bytes | None = None) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines. `source` is what it contains, if not the file."""
    source = (ROOT / module).read_bytes() if source is None else source
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    counts: Counter[tuple[str, ...]] = Counter()
    for place in places(ast.parse(source)):
        for change in changes(place.node, place.is_text):
            start = starts[change.at.lineno - 1] + change.at.col_offset
            end = starts[change.until.end_lineno - 1] + change.until.end_col_offset
            line = lines[change.at.lineno - 1].decode().strip()
            before = change.before or shortened(source[start:end].decode())
            after = change.after or shortened(change.text)
            key = (place.function, line, before, after)
            counts[key] += 1
            found.append(
                Mutant(
                    module,
                    place.function,
                    line,
                    before,
                    after,
                    counts[key],
                    number=change.at.lineno,
                    lines=place.lines,
                    start=start,
                    end=end,
                    text=change.text,
                    name=place.name,
                )  # fmt: skip
            )
    return found


def shortened(text: str) -> str:
    return " ".join(text.split())


# ---- Where -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    node: ast.AST
    function: str
    name: str | None  # of the constant
    lines: range  # of the statement around it
    is_text: bool  # whether a string here is a text, not a docstring or a part of an f-string


def places(tree: ast.Module) -> Iterator[Place]:
    """Yield each node whose change matters: not those of annotations, decorators, docstrings and imports."""

    def walk(node: Any, function: str, name: str | None, lines: range, is_text: bool) -> Iterator[Place]:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            lines = own_lines(node)
        yield Place(node, function, name, lines, is_text)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not function:
            (target, *_) = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = target.id if isinstance(target, ast.Name) else None
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    is_part = isinstance(node, ast.JoinedStr | ast.FormattedValue) and field != "value"
                    yield from walk(child, function, name, lines, not is_part and not is_docstring(node))

    yield from walk(tree, "", None, range(0), True)


def own_lines(node: ast.stmt | ast.ExceptHandler) -> range:
    """Return the lines of a statement, without those of the statements in it. Of a function, return its body."""
    first, last = node.lineno, node.end_lineno or node.lineno
    if isinstance(node, ast.FunctionDef):
        return range(node.body[0].lineno, last + 1)
    body = getattr(node, "body", None)
    return range(first, max(body[0].lineno, first + 1) if body else last + 1)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


# ---- What ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """The code from the beginning of `at` to the end of `until` becomes `text`."""

    at: Any
    until: Any
    text: str
    before: str = ""  # what is shown instead of the code, if that is long
    after: str = ""


def changes(node: Any, is_text: bool) -> Iterator[Change]:
    """Yield what a node may become. Each is valid Python."""
    for new in expressions(node, is_text):
        yield Change(node, node, f"({ast.unparse(new)})" if isinstance(new, OPEN) else ast.unparse(new))
    match node:
        case ast.Call(keywords=keywords):
            for index, keyword in enumerate(keywords):
                if keyword.arg:
                    new = changed(node, keywords=[*keywords[:index], *keywords[index + 1 :]])
                    yield Change(node, node, ast.unparse(new), f"{keyword.arg}=", "left out")
        case ast.If(test=test):
            yield from (Change(test, test, each) for each in ("True", "False"))
        case ast.While(test=test):
            yield Change(test, test, "False")
        case ast.comprehension(ifs=ifs):
            yield from (Change(test, test, "True") for test in ifs)
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete() | ast.Break():
            yield Change(node, node, "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield Change(node, node, "pass")
        case ast.Continue():
            yield Change(node, node, "break")
        case ast.Return(value=value) if value is not None and not is_none(value):
            yield Change(node, node, "return None")
        case ast.With(items=items) if not any(item.optional_vars for item in items):
            yield Change(node, items[-1].context_expr, "if True")
        case ast.ExceptHandler(type=kind) if kind is not None:
            yield Change(kind, kind, "()")
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield Change(node, node, ast.unparse(changed(node, op=OPERATORS[type(node.op)]())))


OPEN = (ast.BoolOp, ast.Compare, ast.BinOp, ast.UnaryOp, ast.IfExp)  # what needs parentheses inside an expression


def expressions(node: Any, is_text: bool) -> Iterator[ast.AST]:
    """Yield what an expression may become."""
    match node:
        case ast.Compare(ops=ops):
            for index, each in enumerate(ops):
                yield changed(node, ops=[*ops[:index], COMPARISONS[type(each)](), *ops[index + 1 :]])
        case ast.BoolOp(op=op, values=values):
            yield changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for index in range(len(values)):
                left = [*values[:index], *values[index + 1 :]]
                yield changed(node, values=left) if len(left) > 1 else left[0]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield changed(node, op=OPERATORS[type(op)]())
        case ast.IfExp(body=body, orelse=orelse):
            yield from (body, orelse)
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield changed(node, lower=None)
            if upper is not None:
                yield changed(node, upper=None)
        case ast.Call():
            yield from calls(node)
        case ast.Constant(value=value) if is_text:
            yield from (ast.Constant(each) for each in constants(value))


def calls(node: ast.Call) -> Iterator[ast.AST]:
    """Yield what a call may become."""
    match node.func:
        case ast.Name(id=name) if name in FUNCTIONS:
            yield changed(node, func=ast.Name(FUNCTIONS[name]))
        case ast.Attribute(value=value, attr=name):
            if name in METHODS:
                yield changed(node, func=ast.Attribute(value, METHODS[name]))
            if name in LEFT_OUT:
                yield value


def constants(value: object) -> list[Any]:
    """Return what a constant may become."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value - 1] if value > 0 else [value + 1]
        case str() if not PROSE.search(value):
            return [f"{value}x"]
        case bytes():
            return [value + b"x"]
    return []


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def changed(node: ast.AST, **fields: Any) -> Any:
    """Return a copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return ast.fix_missing_locations(new)
