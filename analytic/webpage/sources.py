"""Python modules as syntax trees: what each defines, and where an imported name comes from."""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from analytic.errors import UllageError

Function = ast.FunctionDef | ast.Lambda

Symbol = tuple[str, str]
"""A module, and a name that it defines."""


class Untranslatable(UllageError):  # noqa: N818 - a statement about the source
    """Python outside the subset that is translated, by file, line and construct."""

    def __init__(self, module: str, node: ast.AST | None, what: str) -> None:
        line = f":{node.lineno}" if isinstance(node, ast.stmt | ast.expr) else ""
        super().__init__(f"{module.replace('.', '/')}.py{line}: {what} is outside the subset that is translated")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A callable's parameters in order, ``self`` left out."""

    names: tuple[str, ...]
    rest: str | None = None
    """The name of ``**keywords``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Module:
    """One module."""

    name: str
    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, Symbol]
    registered: Mapping[str, tuple[ast.FunctionDef, ...]]
    """Implementations of a ``singledispatch`` function, by its name."""

    def value(self, name: str) -> object:
        """What the name holds once the module is imported."""
        return getattr(import_module(self.name), name)


@cache
def load(name: str) -> Module:
    """The module of that name."""
    spec = find_spec(name)
    file = spec.origin if spec else None
    assert file is not None, name
    tree = ast.parse(Path(file).read_text("utf-8"))
    registered: dict[str, tuple[ast.FunctionDef, ...]] = {}
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        base = _registered(node)
        if base is not None and isinstance(node, ast.FunctionDef):
            registered[base] = (*registered.get(base, ()), node)
        else:
            definitions |= dict.fromkeys(_defined(node), node)
    return Module(name=name, definitions=definitions, imports=dict(imported(tree.body)), registered=registered)


def imported(body: Iterable[ast.stmt]) -> Iterator[tuple[str, Symbol]]:
    """Names that the imports directly in a body bind, and what they stand for: a module under no name."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, (node.module, alias.name)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, (alias.name, "")


def origin(module: Module, name: str) -> Symbol | None:
    """Where a name of a module is defined: there, or in what it is imported from; None if nowhere."""
    if name in module.definitions:
        return module.name, name
    source = module.imports.get(name)
    return None if source is None else follow(source)


def follow(symbol: Symbol) -> Symbol:
    """The module that defines a symbol which others only hand on."""
    where, name = symbol
    if not name or is_foreign(where):
        return symbol
    module = load(where)
    return symbol if name in module.definitions or name not in module.imports else follow(module.imports[name])


def is_foreign(module: str) -> bool:
    """Whether a module is Python's own: nothing of it is translated."""
    return module.partition(".")[0] in sys.stdlib_module_names


def _registered(node: ast.stmt) -> str | None:
    """The ``singledispatch`` function that a definition is an implementation of."""
    match node:
        case ast.FunctionDef(decorator_list=[ast.Attribute(value=ast.Name(id=base), attr="register")]):
            return base
    return None


def _defined(node: ast.stmt) -> tuple[str, ...]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.Assign(targets=[ast.Name(id=name)]):
            return (name,)
        case ast.Assign(targets=[ast.Tuple(elts=parts)]):
            return tuple(part.id for part in parts if isinstance(part, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return (name,)
    return ()


def decorators(node: ast.FunctionDef | ast.ClassDef) -> dict[str, ast.expr]:
    """Each decorator by the last part of its name."""
    return {_last_name(decorator): decorator for decorator in node.decorator_list}


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Call(func=called):
            return _last_name(called)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def signature(node: Function, *, method: bool = False) -> Signature:
    """A function's parameters."""
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return Signature(names=tuple(names[method:]), rest=given.kwarg.arg if given.kwarg else None)


def defaults(node: Function) -> dict[str, ast.expr]:
    """Default of each parameter that has one."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    found = zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True)
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {argument.arg: value for argument, value in (*found, *named) if value is not None}


def fields(module: Module, node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """A dataclass's fields that its constructor takes, those of its bases first, with their defaults."""
    found: dict[str, ast.expr | None] = {}
    for above, base in bases(module, node):
        found |= fields(above, base)
    return found | own_fields(node)


def bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """The classes that a class is directly built on, Python's own left out."""
    for base in node.bases:
        symbol = origin(module, base.id) if isinstance(base, ast.Name) else None
        if symbol is not None and not is_foreign(symbol[0]):
            above = load(symbol[0])
            definition = above.definitions[symbol[1]]
            assert isinstance(definition, ast.ClassDef)
            yield above, definition


def own_fields(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """The same without those of its bases."""
    others = class_variables(node)
    return {name: value for name, value in annotated(node).items() if name not in others and not _is_made_later(value)}


def class_variables(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """What is the same of all instances: annotated ``ClassVar``."""
    lines = (line for line in node.body if isinstance(line, ast.AnnAssign))
    return {line.target.id: line.value for line in lines if isinstance(line.target, ast.Name) and _is_of_class(line)}


def annotated(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """Every name that a class annotates, those that its constructor does not take included."""
    lines = (line for line in node.body if isinstance(line, ast.AnnAssign))
    return {line.target.id: line.value for line in lines if isinstance(line.target, ast.Name)}


def _is_of_class(node: ast.AnnAssign) -> bool:
    return isinstance(node.annotation, ast.Subscript) and _last_name(node.annotation.value) == "ClassVar"


def _is_made_later(value: ast.expr | None) -> bool:
    """Whether a field is none that the constructor takes: ``field(init=False)``."""
    return isinstance(value, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in value.keywords
    )
