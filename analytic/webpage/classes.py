"""Python classes as JavaScript: dataclasses, named tuples, and what they are built on."""

import ast
from collections.abc import Iterator
from itertools import starmap

from analytic.webpage.expressions import identifier
from analytic.webpage.functions import Functions, described, yields
from analytic.webpage.sources import annotated, class_variables, decorators, fields, own_fields, signature

PROPERTIES = ("property", "cached_property")
_ABSTRACT_BASE, _NAMED_TUPLE = ("abc", "ABC"), ("typing", "NamedTuple")


class Classes(Functions):
    """Translates classes too."""

    def class_(self, node: ast.ClassDef) -> str:
        """A class of a module."""
        named, symbols = decorators(node), [self._base(base) for base in node.bases]
        own = [base for base, symbol in zip(node.bases, symbols, strict=True) if symbol != _ABSTRACT_BASE]
        is_tuple = _NAMED_TUPLE in symbols
        if set(named) - {"dataclass"} or len(own) > 1 or node.keywords:
            raise self.fail(node, "a class of this kind")
        extends = f" extends {self.expression(own[0])}" if own and not is_tuple else ""
        lines = (
            f"class {identifier(node.name)}{extends} {{",
            f"static isClass = true; static compares = {str(_compares(node)).lower()};",
            *self._construction(node, extends=bool(extends)),
            *(("*[Symbol.iterator]() { for (const name of this.constructor.params) yield this[name]; }",) * is_tuple),
            *starmap(self._shared, class_variables(node).items()),
            *map(self._member, node.body),
            "}",
            *(self._signed(node, line) for line in node.body if isinstance(line, ast.FunctionDef) and _is_called(line)),
        )
        return "\n".join(filter(None, lines))

    def _base(self, base: ast.expr) -> object:
        return self.symbol(base.id) if isinstance(base, ast.Name) else None

    def _construction(self, node: ast.ClassDef, *, extends: bool) -> Iterator[str]:
        """The parameters' names, and the constructor: an ``__init__``, or what a dataclass has of its fields."""
        made = next((line for line in node.body if _is_named(line, "__init__")), None)
        if isinstance(made, ast.FunctionDef):
            yield f"static params = {list(signature(made, method=True).names)};"
            yield f"constructor{self.parameters_and_body(made, method=True)}"
            return
        everything, own = fields(self.module, node), own_fields(node)
        yield f"static params = {list(everything)};"
        if later := [name for name in annotated(node) if name not in own | class_variables(node)]:
            yield f"static later = {later};"
        heads = (
            identifier(name) if value is None else f"{identifier(name)} = {self._default(value)}"
            for name, value in everything.items()
        )
        inherited = ", ".join(identifier(name) for name in everything if name not in own)
        body = [f"super({inherited});"] if extends else []
        body += [f"this.{name} = {identifier(name)};" for name in own]
        body += ["this.__post_init__();"] if any(_is_named(line, "__post_init__") for line in node.body) else []
        yield f"constructor({', '.join(heads)}) {{ {' '.join(body)} }}"

    def _default(self, value: ast.expr) -> str:
        match value:
            case ast.Call(func=ast.Name(id="field"), args=[], keywords=[ast.keyword(arg="default_factory")]):
                made = ast.Call(func=value.keywords[0].value, args=[], keywords=[])
                return self.expression(ast.fix_missing_locations(ast.copy_location(made, value)))
        return self.expression(value)

    def _shared(self, name: str, value: ast.expr | None) -> str:
        """What all instances have, which the class has too."""
        held = None if value is None else self.expression(value)
        return "" if held is None else f"static {name} = {held}; get {name}() {{ return {held}; }}"

    def _member(self, node: ast.stmt) -> str:
        match node:
            case ast.AnnAssign() | ast.Expr(value=ast.Constant(value=str())):
                return ""
            case ast.Assign(targets=[ast.Name(id="__slots__")]):
                return ""
            case ast.FunctionDef():
                return "" if node.name == "__init__" else self._method(node)
        raise self.fail(node, "a member of this kind")

    def _method(self, node: ast.FunctionDef) -> str:
        named = set(decorators(node))
        if unknown := named - {*PROPERTIES, "abstractmethod"}:
            raise self.fail(node, f"the decorator {min(unknown)}")
        if "abstractmethod" in named:
            return ""
        made = self.parameters_and_body(node, method=True)
        if "cached_property" in named:
            return f'get {node.name}() {{ return $cached(this, "{node.name}", function {made}); }}'
        return f"{'get ' * ('property' in named)}{'*' * yields(node)}{node.name}{made}"

    def _signed(self, node: ast.ClassDef, method: ast.FunctionDef) -> str:
        return f"$signed({identifier(node.name)}.prototype.{method.name}, {described(method, method=True)});"


def _is_named(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _is_called(node: ast.FunctionDef) -> bool:
    """Whether it is a method that is called with arguments of its own."""
    takes = signature(node, method=True)
    is_method = not {*PROPERTIES, "abstractmethod"} & set(decorators(node)) and node.name != "__init__"
    return is_method and bool(takes.names or takes.rest)


def _compares(node: ast.ClassDef) -> bool:
    """Whether equal fields make equal objects: not with an ``__init__`` of its own, and not with ``eq=False``."""
    match decorators(node).get("dataclass"):
        case ast.Call(keywords=given):
            says = {keyword.arg: ast.unparse(keyword.value) for keyword in given}
            return says.get("eq") != "False"
    return not any(_is_named(line, "__init__") for line in node.body)
