"""Python calls as JavaScript: keywords take their places where the callee is known."""

import ast
from collections.abc import Iterator

from analytic.webpage.expressions import Expressions
from analytic.webpage.sources import Signature, is_foreign
from analytic.webpage.vocabulary import (
    BUILTINS,
    CONSTRUCTED,
    CONSUMING,
    ERRORS,
    KEYWORDS,
    METHODS,
    MOST_ARGUMENTS,
    RENAMED_METHODS,
    TYPES,
)

LARGEST_CACHE = 4096
"""Results that a page remembers of one function."""


class Calls(Expressions):
    """Translates calls too."""

    def _call(self, node: ast.Call) -> str:
        match node.func:
            case ast.Name(id="isinstance"):
                return f"$isinstance({self.expression(node.args[0])}, {self.types(node.args[1])})"
            case ast.Name(id=name) if self.symbol(name) == ("typing", "cast"):
                return self.expression(node.args[1])
            case ast.Name():
                return self._call_name(node, node.func)
            case ast.Attribute(value=ast.Name(id="object"), attr="__setattr__"):
                target, attribute, value = map(self.expression, node.args)
                return f"({target}[{attribute}] = {value})"
            case ast.Attribute():
                return self._call_member(node, node.func)
            case ast.Call(func=ast.Name(id=name)) if self.symbol(name) == ("functools", "lru_cache"):
                return f"$memo({self.cache_size(node.func)}, {self.items(node.args)})"
            case ast.Subscript(value=ast.Name(id=name)) if self.is_local(name) or self.symbol(name) is not None:
                return self._placed(node, self.expression(node.func), None)
            case ast.Call():
                return self._placed(node, self.expression(node.func), None)
        raise self.fail(node, "a call of what an expression gives")

    def types(self, node: ast.expr) -> str:
        """The types of an ``isinstance``, or of what is caught."""
        return ", ".join(map(self._type, _flat(node)))

    def cache_size(self, node: ast.expr) -> str:
        """``maxsize`` of ``lru_cache(maxsize=…)``, as far as a page goes."""
        match node:
            case ast.Call(args=[], keywords=[ast.keyword(arg="maxsize", value=ast.Constant(value=int(size)))]):
                return str(min(size, LARGEST_CACHE))
            case ast.Name():
                return str(LARGEST_CACHE)
        raise self.fail(node, "a cache without a plain maxsize")

    def _type(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name) or self.symbol(node.id) is not None or node.id in ERRORS:
            return self.expression(node)
        if node.id not in TYPES:
            raise self.fail(node, f"a test for {node.id}")
        return f"$types.{node.id}"

    def _call_name(self, node: ast.Call, name: ast.Name) -> str:
        callee, symbol = self.expression(name), self.symbol(name.id)
        if self.is_local(name.id):
            return self._placed(node, callee, self.local_signatures.get(name.id))
        if symbol is None or is_foreign(symbol[0]):
            return self._call_helper(node, callee)
        new = "new " if self.context.is_class(symbol) else ""
        return self._placed(node, f"{new}{callee}", self.context.signature(symbol))

    def _call_helper(self, node: ast.Call, helper: str) -> str:
        if len(node.args) > MOST_ARGUMENTS.get(helper, len(node.args)):
            raise self.fail(node, f"{helper[1:]} of {len(node.args)} arguments")
        arguments = ", ".join(map(self._consumed if helper in CONSUMING else self.expression, node.args))
        match node:
            case _ if helper == "$replace":
                return f"$replace.with({self._keywords(node.keywords)}, {arguments})"
            case ast.Call(args=[ast.GeneratorExp()]) if helper == BUILTINS["tuple"]:
                return arguments
            case ast.Call(keywords=[]):
                return f"{'new ' * (helper in CONSTRUCTED)}{helper}({arguments})"
        if unknown := [str(k.arg) for k in node.keywords if k.arg not in KEYWORDS.get(helper, ())]:
            raise self.fail(node, f"{unknown[0]}= of {helper[1:]}")
        return f"{helper}.with({self._keywords(node.keywords)}, {arguments})"

    def _consumed(self, node: ast.expr) -> str:
        """An argument of which nothing is left over: it takes no generator."""
        if isinstance(node, ast.GeneratorExp):
            return self.gathered(node.generators, lambda: self.expression(node.elt))
        return self.expression(node)

    def _call_member(self, node: ast.Call, member: ast.Attribute) -> str:
        match member.value:
            case ast.Name(id="dict") if member.attr == "fromkeys":
                return f"$dict.fromkeys({self.items(node.args)})"
            case ast.Name(id=name) if (module := self.symbol(name)) is not None and module[1] == "":
                return f"{self.refer((module[0], member.attr), node)}({self.items(node.args)})"
        owner, known = self.expression(member.value), self.context.method(member.attr)
        if known is not None:
            return self._placed(node, f"{owner}.{member.attr}", known, owner=owner)
        if len(node.args) > METHODS.get(member.attr, -1) or node.keywords:
            raise self.fail(node, f"the method {member.attr}")
        return f"{owner}.{RENAMED_METHODS.get(member.attr, member.attr)}({self.items(node.args)})"

    def _placed(self, node: ast.Call, callee: str, known: Signature | None, *, owner: str = "") -> str:
        """Keywords in their places; where a ``*`` or ``**`` hides those, they are matched as the page runs."""
        if not node.keywords:
            return f"{callee}({self.items(node.args)})"
        hidden = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
        if known is None or hidden or known.rest is not None:
            given = f"[{self.items(node.args)}], {self._keywords(node.keywords)}"
            return f"$call({callee.removeprefix('new ')}, {given}{f', {owner}' if owner else ''})"
        placed = dict(zip(known.names, map(self.expression, node.args), strict=False))
        for keyword in node.keywords:
            if keyword.arg not in known.names or keyword.arg in placed:
                raise self.fail(node, f"the keyword {keyword.arg}")
            placed[keyword.arg] = self.expression(keyword.value)
        last = max(known.names.index(name) for name in placed)
        return f"{callee}({', '.join(placed.get(name, 'undefined') for name in known.names[: last + 1])})"

    def _keywords(self, keywords: list[ast.keyword]) -> str:
        def pair(keyword: ast.keyword) -> str:
            value = self.expression(keyword.value)
            return f"...$splat({value})" if keyword.arg is None else f"{keyword.arg}: {value}"

        return f"{{{', '.join(map(pair, keywords))}}}"


def _flat(node: ast.expr) -> Iterator[ast.expr]:
    """The types of a tuple, or of a union."""
    match node:
        case ast.Tuple(elts=parts):
            for part in parts:
                yield from _flat(part)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from _flat(left)
            yield from _flat(right)
        case _:
            yield node
