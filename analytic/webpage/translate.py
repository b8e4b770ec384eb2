"""The Python that an answer follows from, translated to JavaScript: what is reached from some roots.

What is translated is a strict subset; anything outside it is an error that names its line. A constant is embedded by
its value, functions and classes by their source, so that a changed formula changes the page. What needs files or other
libraries is `given` instead: JavaScript written by hand in its place.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

from analytic.webpage.classes import PROPERTIES, Classes
from analytic.webpage.expressions import identifier
from analytic.webpage.sources import (
    Module,
    Signature,
    Symbol,
    Untranslatable,
    annotated,
    bases,
    decorators,
    fields,
    follow,
    load,
    signature,
)
from analytic.webpage.values import holds_callable, literal
from analytic.webpage.vocabulary import FIELD_ATTRIBUTES

_DIFFERS = Signature(names=(), rest="keywords")
"""Stands for signatures that differ, or are not known yet: keywords are matched as the page runs."""


@dataclass(kw_only=True)
class Program:
    """Everything that is translated."""

    roots: Iterable[str]
    """Dotted names of what the page calls; also called as members of their modules."""
    given: Mapping[str, str] = field(default_factory=dict)
    """JavaScript expressions that take the place of a definition, by its dotted name."""
    frozen: Iterable[str] = ()
    """Functions without arguments of which only the value is taken."""
    shapes: Iterable[str] = ()
    """Dotted names of classes that given objects look like: their attributes and methods are known."""
    _emitted: dict[Symbol, str] = field(init=False, default_factory=dict)
    _wanted: dict[Symbol, None] = field(init=False, default_factory=dict)
    _settled: bool = field(init=False, default=False)
    """Whether all classes are known, and with them all attributes and methods."""

    def javascript(self) -> str:
        """The modules, each a constant that holds its names.

        Raises:
            Untranslatable: something reached is outside the subset.
        """
        self._close()
        self._settled = True
        self._emitted.clear()
        self._close()
        modules: dict[str, dict[str, str]] = {}
        for where, name in self._order():
            modules.setdefault(where, {})[name] = self._emitted[where, name]
        return "\n".join(_module(where, definitions) for where, definitions in modules.items())

    def name(self, symbol: Symbol) -> str:
        """The JavaScript name of a definition, which is reached by that."""
        symbol = follow(symbol)
        self._wanted.setdefault(symbol)
        return f"{space(symbol[0])}.{identifier(symbol[1])}"

    def _close(self) -> None:
        """Translate the roots, what they refer to, and so on."""
        self._wanted |= dict.fromkeys(map(_symbol, self.roots))
        while missing := [symbol for symbol in self._wanted if symbol not in self._emitted]:
            for symbol in missing:
                self._emitted[symbol] = self._definition(*symbol)

    def _order(self) -> Iterator[Symbol]:
        """Modules after those that they import from, definitions as they stand in the source."""
        used = {where for where, _ in self._wanted}
        order: dict[str, None] = {}

        def visit(where: str) -> None:
            if where in used and where not in order:
                for source in {follow(source)[0] for source in load(where).imports.values()} - {where}:
                    visit(source)
                order.setdefault(where)

        for where in sorted(used):
            visit(where)
        return ((where, name) for where in order for name in load(where).definitions if (where, name) in self._wanted)

    def _definition(self, where: str, name: str) -> str:
        module, dotted, made = load(where), f"{where}.{name}", identifier(name)
        translator, seen = Classes(module, self), partial(self._seen, module)
        match module.definitions.get(name):
            case None:
                raise Untranslatable(where, None, f"the name {name}")
            case _ if dotted in self.given:
                return f"const {made} = {self.given[dotted]};"
            case ast.FunctionDef() if dotted in self.frozen:
                return f"const {made} = $frozen(() => {literal(module.value(name)(), seen)});"  # type: ignore[operator]
            case ast.FunctionDef() as node:
                return translator.function(node)
            case ast.ClassDef() as node:
                return translator.class_(node)
            case ast.Assign(value=ast.Dict(keys=[])) | ast.AnnAssign(value=ast.Dict(keys=[])):
                return f"const {made} = new $Dict([]);"  # what starts empty is no constant
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return f"const {made} = {self._constant(module.value(name), value, translator, seen)};"
            case node:
                raise Untranslatable(where, node, f"the definition of {name}")

    def _constant(self, value: object, node: ast.expr, translator: Classes, seen: "partial[str]") -> str:
        """By its value; by its expression where functions are part of it."""
        if not holds_callable(value):
            return literal(value, seen)
        if isinstance(node, ast.Tuple):
            raise translator.fail(node, "functions that are unpacked")
        return translator.expression(node)

    def refer(self, symbol: Symbol, node: ast.AST, module: Module) -> str:
        """The JavaScript name of what a module defines, seen from a module."""
        if follow(symbol)[1] == "":
            raise Untranslatable(module.name, node, f"the module {symbol[0]} as a value")
        return self._seen(module, symbol)

    def _seen(self, module: Module, symbol: Symbol) -> str:
        name = self.name(symbol)
        return name.partition(".")[2] if follow(symbol)[0] == module.name else name

    def signature(self, symbol: Symbol) -> Signature | None:
        """The parameters of what a module defines; None for a constant."""
        where, name = follow(symbol)
        match load(where).definitions.get(name):
            case ast.FunctionDef() as node:
                return signature(node)
            case ast.ClassDef() as node:
                return Signature(names=tuple(_parameters(load(where), node)))
        return None

    def is_class(self, symbol: Symbol) -> bool:
        """Whether it is constructed with ``new``."""
        where, name = follow(symbol)
        return isinstance(load(where).definitions.get(name), ast.ClassDef)

    def method(self, name: str) -> Signature | None:
        """The parameters that all methods of that name share, `_DIFFERS` where they do not; None where none has it."""
        if not self._settled:
            return _DIFFERS
        found = self._methods.get(name, frozenset())
        return None if not found else next(iter(found)) if len(found) == 1 else _DIFFERS

    def knows_attribute(self, name: str) -> bool:
        """Whether some class that is translated has it, or a module that is a root's."""
        return not self._settled or name in self._attributes

    @cached_property
    def _methods(self) -> Mapping[str, frozenset[Signature]]:
        """Of classes, and of the roots."""
        members = (line for _, node in self._classes for line in node.body if isinstance(line, ast.FunctionDef))
        called = (line for line in members if not {*PROPERTIES} & set(decorators(line)))
        found = [(member.name, signature(member, method=True)) for member in called]
        roots = [(symbol[1], self.signature(symbol)) for symbol in map(_symbol, self.roots)]
        found += [(name, made) for name, made in roots if made is not None]
        return {name: frozenset(made for other, made in found if other == name) for name, _ in found}

    @cached_property
    def _attributes(self) -> frozenset[str]:
        known = {*FIELD_ATTRIBUTES, *(name for _, name in map(_symbol, self.roots))}
        for module, node in self._classes:
            members = (line.name for line in node.body if isinstance(line, ast.FunctionDef))
            known |= {*fields(module, node), *annotated(node), *members, *_set_on(node)}
        return frozenset(known)

    @cached_property
    def _classes(self) -> list[tuple[Module, ast.ClassDef]]:
        found = ((load(where), load(where).definitions.get(name)) for where, name in self._reached())
        return [(module, node) for module, node in found if isinstance(node, ast.ClassDef)]

    def _reached(self) -> Iterator[Symbol]:
        """All that is translated, or looked like, and the bases of those."""
        for symbol in (*self._wanted, *map(_symbol, self.shapes)):
            yield symbol
            node = load(symbol[0]).definitions.get(symbol[1])
            if isinstance(node, ast.ClassDef):
                yield from ((module.name, base.name) for module, base in bases(load(symbol[0]), node))


def space(module: str) -> str:
    """The constant that holds a module's names."""
    return "$" + module.replace(".", "$")


def _symbol(dotted: str) -> Symbol:
    where, _, name = dotted.rpartition(".")
    return follow((where, name))


def _module(where: str, definitions: Mapping[str, str]) -> str:
    names = ", ".join(map(identifier, definitions))
    body = "\n".join(definitions.values())
    return f"const {space(where)} = (() => {{\n{body}\nreturn {{ {names} }};\n}})();"


def _parameters(module: Module, node: ast.ClassDef) -> Iterable[str]:
    """Of a class's constructor: its ``__init__``, or its fields, or what its base has."""
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return signature(line, method=True).names
    own = fields(module, node)
    return own or next((_parameters(*base) for base in bases(module, node)), ())


def _set_on(node: ast.ClassDef) -> Iterator[str]:
    """Attributes that a class's methods set."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr
