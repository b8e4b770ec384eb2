"""Python expressions as JavaScript; helpers of ``runtime.js`` begin with ``$``."""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from analytic.webpage.sources import (
    Module,
    Signature,
    Symbol,
    Untranslatable,
    follow,
    imported,
    is_foreign,
    origin,
    signature,
)
from analytic.webpage.vocabulary import BUILTINS, COMPARISONS, FOREIGN, OPERATORS, RESERVED

_SAFE_INTEGER = 2**53 - 1


class Context(Protocol):
    """What a module's translation needs to know of all that is translated."""

    def refer(self, symbol: Symbol, node: ast.AST, module: Module) -> str:
        """The JavaScript name of what a module defines, seen from another."""

    def signature(self, symbol: Symbol) -> Signature | None:
        """The parameters of what a module defines, if it can be called."""

    def is_class(self, symbol: Symbol) -> bool:
        """Whether it is constructed with ``new``."""

    def method(self, name: str) -> Signature | None:
        """The parameters that all methods of that name share; None where no class has one."""

    def knows_attribute(self, name: str) -> bool:
        """Whether some class that is translated has it."""


def identifier(name: str) -> str:
    """A Python name that JavaScript would not take, made to differ."""
    return f"{name}$" if name in RESERVED else name


def text(value: str) -> str:
    """A string literal that can stand in a ``<script>``."""
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def number(value: int | float) -> str:
    """A literal: a number, a BigInt where it is too large for one, or a boxed float."""
    if isinstance(value, float):
        return f"$F({value!r})"
    return str(value) if abs(value) <= _SAFE_INTEGER else f"{value}n"


class Expressions:
    """Translates the expressions of one module, within scopes of local names; calls are in `calls.Calls`."""

    def __init__(self, module: Module, context: Context) -> None:
        self.module, self.context = module, context
        self.scopes: list[set[str]] = []
        self.local_imports: dict[str, Symbol] = {}
        self.local_signatures: dict[str, Signature] = {}

    def fail(self, node: ast.AST, what: str) -> Untranslatable:
        """The error that names file, line and construct."""
        return Untranslatable(self.module.name, node, what)

    def expression(self, node: ast.expr) -> str:
        """An expression's value."""
        translate: Callable[[ast.expr], str] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if translate is None:
            raise self.fail(node, type(node).__name__)
        return translate(node)

    def items(self, nodes: Sequence[ast.expr]) -> str:
        """Elements, or positional arguments."""
        return ", ".join(map(self.expression, nodes))

    def condition(self, node: ast.expr) -> str:
        """An expression as a JavaScript boolean, by Python's idea of truth."""
        match node:
            case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Call(func=ast.Name(id="isinstance")):
                return self.expression(node)
            case ast.BoolOp():
                joint = " && " if isinstance(node.op, ast.And) else " || "
                return f"({joint.join(map(self.condition, node.values))})"
        return f"$t({self.expression(node)})"

    def symbol(self, name: str) -> Symbol | None:
        """What a name that is not local stands for; None for one of Python's own."""
        return follow(self.local_imports[name]) if name in self.local_imports else origin(self.module, name)

    def import_locally(self, node: ast.ImportFrom) -> None:
        """An import within a function."""
        self.local_imports |= dict(imported([node]))

    @contextmanager
    def scope(self, names: set[str]) -> Iterator[None]:
        """Names that are local for as long."""
        self.scopes.append(names)
        try:
            yield
        finally:
            self.scopes.pop()

    def is_local(self, name: str) -> bool:
        """Whether a name is bound within the function, or one around it."""
        return any(name in scope for scope in self.scopes)

    def pattern(self, node: ast.expr) -> str:
        """What values are bound to: names, nested as they are; ``_`` takes none, as there may be several."""
        match node:
            case ast.Name(id=name):
                return identifier(name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return f"[{', '.join('' if _is_unused(part) else self.pattern(part) for part in parts)}]"
            case ast.Starred(value=value):
                return f"...{self.pattern(value)}"
        raise self.fail(node, "a target of this kind")

    def refer(self, symbol: Symbol, node: ast.AST) -> str:
        """The JavaScript name of what a name stands for."""
        if not is_foreign(symbol[0]):
            return self.context.refer(symbol, node, self.module)
        if symbol not in FOREIGN:
            raise self.fail(node, ".".join(filter(None, symbol)))
        return FOREIGN[symbol]

    def _constant(self, node: ast.Constant) -> str:
        match node.value:
            case None:
                return "null"
            case bool():
                return "true" if node.value else "false"
            case int() | float():
                return number(node.value)
            case str():
                return text(node.value)
        raise self.fail(node, f"the constant {node.value!r}")

    def _name(self, node: ast.Name) -> str:
        if self.is_local(node.id):
            return identifier(node.id)
        symbol = self.symbol(node.id)
        if symbol is not None:
            return self.refer(symbol, node)
        if node.id in BUILTINS:
            return BUILTINS[node.id]
        raise self.fail(node, f"the name {node.id}")

    def _attribute(self, node: ast.Attribute) -> str:
        held = self.expression(node.value)
        match node.attr:
            case "__name__":
                return f"{held}.name"
            case "__getitem__":
                return f"((key) => $at({held}, key))"
        if not self.context.knows_attribute(node.attr):
            raise self.fail(node, f"the attribute {node.attr}")
        is_method = self.context.method(node.attr) is not None
        return f"$member({held}, {text(node.attr)})" if is_method else f"{held}.{node.attr}"

    def _subscript(self, node: ast.Subscript) -> str:
        return f"$at({self.expression(node.value)}, {self.expression(node.slice)})"

    def _slice(self, node: ast.Slice) -> str:
        parts = (node.lower, node.upper, node.step)
        return f"$slice({', '.join('null' if part is None else self.expression(part) for part in parts)})"

    def _binop(self, node: ast.BinOp) -> str:
        if type(node.op) not in OPERATORS:
            raise self.fail(node, type(node.op).__name__)
        return f"{OPERATORS[type(node.op)]}({self.expression(node.left)}, {self.expression(node.right)})"

    def _unaryop(self, node: ast.UnaryOp) -> str:
        match node:
            case ast.UnaryOp(op=ast.Not()):
                return f"!({self.condition(node.operand)})"
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
                return number(-value)
            case ast.UnaryOp(op=ast.USub()):
                return f"$neg({self.expression(node.operand)})"
        raise self.fail(node, type(node.op).__name__)

    def _boolop(self, node: ast.BoolOp) -> str:
        helper = "$and" if isinstance(node.op, ast.And) else "$or"
        value, *others = map(self.expression, node.values)
        for other in others:
            value = f"{helper}({value}, () => {other})"
        return value

    def _compare(self, node: ast.Compare) -> str:
        operands = [node.left, *node.comparators]
        if not all(map(_is_pure, operands[1:-1])):
            raise self.fail(node, "a chain of comparisons with a call in its middle")
        sides = [self.expression(operand) for operand in operands]
        compared = [COMPARISONS[type(op)].format(*sides[i : i + 2]) for i, op in enumerate(node.ops)]
        return compared[0] if len(compared) == 1 else f"({' && '.join(compared)})"

    def _ifexp(self, node: ast.IfExp) -> str:
        return f"({self.condition(node.test)} ? {self.expression(node.body)} : {self.expression(node.orelse)})"

    def _namedexpr(self, node: ast.NamedExpr) -> str:
        return f"({identifier(node.target.id)} = {self.expression(node.value)})"

    def _tuple(self, node: ast.Tuple | ast.List) -> str:
        return f"[{self.items(node.elts)}]"

    _list = _tuple

    def _set(self, node: ast.Set) -> str:
        return f"$set([{self.items(node.elts)}])"

    def _starred(self, node: ast.Starred) -> str:
        return f"...{self.expression(node.value)}"

    def _dict(self, node: ast.Dict) -> str:
        def pair(key: ast.expr | None, value: ast.expr) -> str:
            if key is None:
                return f"...{self.expression(value)}.items()"
            return f"[{self.expression(key)}, {self.expression(value)}]"

        return f"new $Dict([{', '.join(map(pair, node.keys, node.values))}])"

    def _generatorexp(self, node: ast.GeneratorExp) -> str:
        """A generator, whose first iterable is evaluated where it stands, as in Python."""
        first, *others = node.generators
        iterable = self.expression(first.iter)
        with self.scope({name for loop in node.generators for name in targets(loop.target)}):
            head = self._loop(first, "$first") + "".join(
                self._loop(loop, self.expression(loop.iter)) for loop in others
            )
            return f"(function* ($first) {{ {head}yield {self.expression(node.elt)}; }})({iterable})"

    def _loop(self, loop: ast.comprehension, iterable: str) -> str:
        tests = "".join(f"if ({self.condition(test)}) " for test in loop.ifs)
        return f"for (const {self.pattern(loop.target)} of {iterable}) {tests}"

    def _listcomp(self, node: ast.ListComp) -> str:
        return self.gathered(node.generators, lambda: self.expression(node.elt))

    def _setcomp(self, node: ast.SetComp) -> str:
        return f"$set({self.gathered(node.generators, lambda: self.expression(node.elt))})"

    def _dictcomp(self, node: ast.DictComp) -> str:
        def pair() -> str:
            return f"[{self.expression(node.key)}, {self.expression(node.value)}]"

        return f"new $Dict({self.gathered(node.generators, pair)})"

    def gathered(self, loops: list[ast.comprehension], element: Callable[[], str]) -> str:
        """The elements of a comprehension as an array; a loop in a loop is flattened."""
        first, *others = loops
        iterable = self.expression(first.iter)
        with self.scope(set(targets(first.target))):
            bound = f"({self.pattern(first.target)}) =>"
            made = self.gathered(others, element) if others else element()
            test = " && ".join(self.condition(test) for test in first.ifs)
        return f"$gather{'All' * bool(others)}({iterable}, {bound} {made}{f', {bound} {test}' if test else ''})"

    def _lambda(self, node: ast.Lambda) -> str:
        names = signature(node).names
        if node.args.vararg or node.args.kwarg or node.args.defaults:
            raise self.fail(node, "a lambda with defaults or any number of arguments")
        with self.scope(set(names)):
            return f"(({', '.join(map(identifier, names))}) => {self.expression(node.body)})"

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return f"({' + '.join(map(self.expression, node.values))})" if node.values else '""'

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        value = self.expression(node.value)
        match node:
            case ast.FormattedValue(conversion=-1, format_spec=None):
                return f"$str({value})"
            case ast.FormattedValue(conversion=114, format_spec=None):  # !r
                return f"$repr({value})"
            case ast.FormattedValue(
                conversion=-1, format_spec=ast.JoinedStr(values=[ast.Constant(value=str() as spec)])
            ):
                return f"$format({value}, {text(spec)})"
        raise self.fail(node, "a format that is computed, or a conversion other than !r,")


def targets(node: ast.AST) -> Iterator[str]:
    """The names that a target binds."""
    return (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _is_pure(node: ast.expr) -> bool:
    """Whether it can be evaluated twice."""
    return not any(isinstance(part, ast.Call | ast.NamedExpr | ast.Yield) for part in ast.walk(node))


def _is_unused(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "_"
