"""The small changes that can be made to a module: one wrong comparison, constant, statement or argument each."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from typing import Final, NamedTuple, TypeAlias

COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
OPERATORS: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
OPPOSITES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
COMMUTATIVE: Final = {
    "add", "bitwise_or", "bitwise_xor", "compare_digest", "equal", "max", "maximum", "min", "minimum", "multiply",
    "xor",
}  # fmt: skip
"""Functions whose arguments may change places."""

FOR_TYPE_CHECKERS: Final = {"final", "override", "overload", "abstractmethod", "runtime_checkable"}
FOR_PYTHON: Final = {"__all__", "__slots__"}
NOT_PLANTED: Final = "pragma: no cover"

Edit: TypeAlias = tuple[int, int, str]
"""Bytes of the text from, up to, and what stands there instead."""


class Scope(NamedTuple):
    """A function: its qualified name, its first and its last line."""

    name: str
    first: int
    last: int


class Change(NamedTuple):
    """One small change of a module's text.

    Attributes:
        module: path inside the package.
        where: the function or class that it is in, dotted; empty at the top of the module.
        line: the first line of the statement that it is in.
        scope: the outermost function that it is in; None outside of functions.
        inside: whether it is in the body of that function, so that another code object makes the change.
        was, becomes: the lines that it touches, before and after, with single blanks. With `module` and `where`
            they name a change, whatever stands before it.
        text: the whole module after the change.
    """

    module: str
    where: str
    line: int
    scope: Scope | None
    inside: bool
    was: str
    becomes: str
    text: str


def changes_of(module: str, text: str) -> list[Change]:
    """Every small change of a module, in the order of its text. Each can be parsed, and differs from the others."""
    tree = ast.parse(text)
    planter = _Planter(text)
    planter.visit(tree)
    seen = {ast.dump(tree)}
    found = []
    for place, edit in sorted(planter.found, key=lambda each: each[1][:2]):
        changed = planter.edited(edit)
        try:
            dump = ast.dump(ast.parse(changed))
        except SyntaxError:
            continue
        if dump not in seen:
            seen.add(dump)
            was, becomes = planter.lines(edit)
            found.append(Change(module, *place, was, becomes, changed))
    return found


class _Place(NamedTuple):
    where: str
    line: int
    scope: Scope | None
    inside: bool


class _Planter(ast.NodeVisitor):
    """Walks over a module and collects edits, each with its place."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode()
        lines = self._bytes.splitlines(keepends=True)
        self._starts = [0, *itertools.accumulate(len(line) for line in lines)]
        self._spared = {number for number, line in enumerate(lines, 1) if NOT_PLANTED.encode() in line}
        self._names: list[str] = []
        self._scope: Scope | None = None
        self._inside = False
        self._line = 1
        self._assigned: Counter[str] = Counter()
        self.found: list[tuple[_Place, Edit]] = []

    # The text.

    def edited(self, edit: Edit) -> str:
        """The whole text after an edit."""
        start, end, new = edit
        return (self._bytes[:start] + new.encode() + self._bytes[end:]).decode()

    def lines(self, edit: Edit) -> tuple[str, str]:
        """The lines that an edit touches, before and after."""
        start, end, new = edit
        first = self._bytes.rfind(b"\n", 0, start) + 1
        last = self._bytes.find(b"\n", end)
        before, after = self._bytes[first:start], self._bytes[end:last]
        was, becomes = before + self._bytes[start:end] + after, before + new.encode() + after
        return " ".join(was.decode().split()), " ".join(becomes.decode().split())

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def _source(self, node: ast.expr) -> str:
        return self._bytes[self._start(node) : self._end(node)].decode()

    def _plant(self, start: int, end: int, new: str) -> None:
        if self._line not in self._spared:
            place = _Place(".".join(self._names), self._line, self._scope, self._inside)
            self.found.append((place, (start, end, new)))

    def _replace(self, node: ast.expr | ast.stmt, new: str) -> None:
        self._plant(self._start(node), self._end(node), new)

    def _replace_between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace an operator that stands between two operands."""
        start, end = self._end(left), self._start(right)
        between = self._bytes[start:end].decode()
        self._plant(start, end, between.replace(old, new, 1))

    # Statements.

    def visit(self, node: ast.AST) -> None:
        """Visit a node; statements set the line that a change is run with."""
        if isinstance(node, ast.stmt):
            if self._is_for_tools(node):
                return
            self._line = node.lineno
        super().visit(node)

    @staticmethod
    def _is_for_tools(node: ast.stmt) -> bool:
        """Whether a statement is for type checkers, or tells Python of names."""
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
            return node.test.id == "TYPE_CHECKING"
        if isinstance(node, ast.AnnAssign):
            return "TypeAlias" in ast.unparse(node.annotation) or node.value is None
        targets = node.targets if isinstance(node, ast.Assign) else []
        value = node.value if isinstance(node, ast.Assign) else None
        is_type = isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec")
        return is_type or any(isinstance(each, ast.Name) and each.id in FOR_PYTHON for each in targets)

    def _visit_definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        outer = self._names, self._scope, self._inside, self._assigned
        self._names = [*self._names, node.name]
        is_function = not isinstance(node, ast.ClassDef)
        if is_function and self._scope is None:
            self._scope = Scope(".".join(self._names), node.lineno, node.end_lineno or node.lineno)
        for decorator in node.decorator_list:
            name = ast.unparse(decorator).partition("(")[0].rpartition(".")[2]
            if name not in FOR_TYPE_CHECKERS:
                at = self._bytes.rindex(b"@", 0, self._start(decorator))
                self._plant(at, self._end(decorator), "")
            self.visit(decorator)
        if not isinstance(node, ast.ClassDef):
            self.visit(node.args)
            self._inside, self._assigned = True, _assigned_in(node)
            self._plant_early_return(node)
        for statement in node.body:
            self.visit(statement)
        self._names, self._scope, self._inside, self._assigned = outer

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _visit_definition

    def _plant_early_return(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        gives = any(isinstance(each, ast.Return) and each.value is not None for each in ast.walk(node))
        if len(body) > 1 and not gives:
            self._line = body[0].lineno
            start = self._start(body[0])
            self._plant(start, start, "return\n" + " " * body[0].col_offset)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Remove a call; a docstring stays."""
        if not isinstance(node.value, ast.Constant):
            self._replace(node, "pass")
            self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave it: an assertion is a test."""

    def _visit_removed(self, node: ast.Raise | ast.Delete | ast.AugAssign) -> None:
        self._replace(node, "pass")
        if isinstance(node, ast.AugAssign):
            old, new = OPERATORS[type(node.op)]
            self._replace_between(node.target, node.value, f"{old}=", f"{new}=")
        self.generic_visit(node)

    visit_Raise = visit_Delete = visit_AugAssign = _visit_removed

    def _visit_assignment(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        again = any(isinstance(each, ast.Name) and self._assigned[each.id] > 1 for each in targets)
        if again or any(isinstance(each, ast.Attribute | ast.Subscript) for each in targets):
            self._replace(node, "pass")
        for each in (*targets, node.value):
            if each is not None:
                self.visit(each)

    visit_Assign = visit_AnnAssign = _visit_assignment

    def visit_Return(self, node: ast.Return) -> None:
        """Return nothing."""
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node.value, "None")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        """Leave the loop."""
        self._replace(node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        """Stay in the loop."""
        self._replace(node, "continue")

    def _visit_loop(self, node: ast.For | ast.AsyncFor) -> None:
        if isinstance(node, ast.For):
            self._replace(node.iter, "()")
        self.generic_visit(node)

    visit_For = visit_AsyncFor = _visit_loop

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Let the exception through as it is."""
        self._line = node.body[0].lineno
        self._plant(self._start(node.body[0]), self._end(node.body[-1]), "raise")
        for statement in node.body:
            self.visit(statement)

    # Expressions.

    def _visit_condition(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    visit_If = visit_While = visit_IfExp = _visit_condition

    def _negate(self, test: ast.expr) -> None:
        """Turn a condition round that has no operator to change."""
        is_not = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if not is_not and not isinstance(test, ast.Compare | ast.BoolOp):
            self._replace(test, f"(not ({self._source(test)}))")

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Turn its conditions round."""
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Another operator; borders move by one."""
        for left, op, right in zip((node.left, *node.comparators), node.ops, node.comparators, strict=False):
            self._replace_between(left, right, *COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """The other operator, and each operand left out."""
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in itertools.pairwise(node.values):
            self._replace_between(left, right, old, new)
        for left_out in node.values:
            kept = [value for value in node.values if value is not left_out]
            short = kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
            self._replace(node, f"({ast.unparse(short)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Without its operator."""
        self._replace(node, f"({self._source(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Another operator."""
        if type(node.op) in OPERATORS:
            self._replace_between(node.left, node.right, *OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Another value. Sentences, which are for people, stay."""
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int | float):
            self._replace(node, repr(value + 1))
            if self._scope is None and value:
                self._replace(node, repr(value - 1))
        elif isinstance(value, bytes):
            self._replace(node, repr(value + b"X"))
        elif isinstance(value, str) and " " not in value:
            self._replace(node, repr(value + "X"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave it: texts are for people."""

    def visit_Slice(self, node: ast.Slice) -> None:
        """Without its start, and without its end."""
        for bound in (node.lower, node.upper):
            if bound is not None and not (isinstance(bound, ast.Constant) and bound.value == 0):
                self._replace(bound, "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Neighboring arguments change places; min for max; suppress nothing."""
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "cast":  # its type is for type checkers
            self.visit(node.args[1])
            return
        for left, right in itertools.pairwise(() if name in COMMUTATIVE else node.args):
            if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                between = self._bytes[self._end(left) : self._start(right)].decode()
                swapped = f"{self._source(right)}{between}{self._source(left)}"
                self._plant(self._start(left), self._end(right), swapped)
        if isinstance(node.func, ast.Name) and name in OPPOSITES:
            self._replace(node.func, OPPOSITES[name])
        if name == "suppress" and node.args:
            self._plant(self._start(node.args[0]), self._end(node.args[-1]), "")
        for argument in node.args:
            self._leave_out_of(argument)
        if name == "zip":  # its `strict` is an assertion
            node = ast.Call(node.func, node.args, [])
        self.generic_visit(node)

    def _visit_elements(self, node: ast.List | ast.Set) -> None:
        self._leave_out_of(node)
        self.generic_visit(node)

    visit_List = visit_Set = _visit_elements

    def visit_Dict(self, node: ast.Dict) -> None:
        """Without each of its entries."""
        keys = [key for key in node.keys if key is not None]
        if len(keys) == len(node.keys):
            self._leave_out(keys, node.values)
        self.generic_visit(node)

    def _leave_out_of(self, node: ast.expr) -> None:
        if isinstance(node, ast.List | ast.Set | ast.Tuple):
            self._leave_out(node.elts, node.elts)

    def _leave_out(self, firsts: list[ast.expr], lasts: list[ast.expr]) -> None:
        """Leave each element out of a list of two or more; it begins and ends with these expressions."""
        for i in range(len(firsts) if len(firsts) > 1 else 0):
            if i + 1 < len(firsts):
                self._plant(self._start(firsts[i]), self._start(firsts[i + 1]), "")
            else:
                self._plant(self._end(lasts[i - 1]), self._end(lasts[i]), "")

    def visit_arguments(self, node: ast.arguments) -> None:
        """Only defaults matter."""
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)


def _assigned_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Counter[str]:
    """How often a function gives each name a value, its arguments included."""
    names = Counter(each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg))
    found = (each for each in ast.walk(function) if isinstance(each, ast.Name))
    names.update(each.id for each in found if isinstance(each.ctx, ast.Store))
    return names
