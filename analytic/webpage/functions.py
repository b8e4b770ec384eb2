"""Python functions, statement by statement, as JavaScript."""

import ast
from collections.abc import Iterator, Sequence

from analytic.webpage.calls import Calls
from analytic.webpage.expressions import identifier, targets
from analytic.webpage.sources import decorators, defaults, signature

_NESTED = (ast.FunctionDef, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
_EXPRESSIONS = (*_NESTED[1:], ast.NamedExpr)
_CACHES = ("lru_cache", "cache")


class Functions(Calls):
    """Translates functions too."""

    def function(self, node: ast.FunctionDef) -> str:
        """A function of a module, with what its decorators make of it."""
        named = decorators(node)
        if unknown := set(named) - {*_CACHES, "singledispatch"}:
            raise self.fail(node, f"the decorator {min(unknown)}")
        if not named:
            return f"{self._function(node)}\n$signed({identifier(node.name)}, {described(node)});"
        made = f"$signed({self._function(node)}, {described(node)})"
        for decorator, expression in named.items():
            cached = decorator in _CACHES
            made = f"$memo({self.cache_size(expression)}, {made})" if cached else f"$singledispatch({made})"
        return "\n".join((f"const {identifier(node.name)} = {made};", *self._implementations(node)))

    def _implementations(self, node: ast.FunctionDef) -> Iterator[str]:
        """Of a ``singledispatch`` function, each for the class that its first parameter is annotated with."""
        for implementation in self.module.registered.get(node.name, ()):
            kind = implementation.args.args[0].annotation
            assert kind is not None
            yield f"{identifier(node.name)}.register({self.expression(kind)}, {self._function(implementation)});"

    def _function(self, node: ast.FunctionDef) -> str:
        return f"function{'*' * yields(node)} {identifier(node.name)}{self.parameters_and_body(node)}"

    def parameters_and_body(self, node: ast.FunctionDef, *, method: bool = False) -> str:
        """What follows a function's name; the locals of all of it are declared at its top, as Python has them."""
        if node.args.vararg:
            raise self.fail(node, "any number of arguments")
        known = signature(node, method=method)
        names = [*known.names, *filter(None, [known.rest])]
        usual = {name: self.expression(value) for name, value in defaults(node).items()}
        itself = [node.args.args[0].arg] if method else []
        own = set(_assigned(node.body)) - set(names)
        declared = sorted(own - _defined(node.body))
        lines = [f"const {name} = this;" for name in itself]
        lines += [f"let {', '.join(map(identifier, declared))};"] if declared else []
        imports, signatures = self.local_imports.copy(), self.local_signatures.copy()
        with self.scope({*names, *own, *itself}):
            lines.append(self.block(node.body))
        self.local_imports, self.local_signatures = imports, signatures
        heads = (f"{identifier(name)} = {usual[name]}" if name in usual else identifier(name) for name in names)
        return "\n".join((f"({', '.join(heads)}) {{", *lines, "}"))

    def block(self, nodes: Sequence[ast.stmt]) -> str:
        """Statements, one a line."""
        return "\n".join(filter(None, map(self.statement, nodes)))

    def statement(self, node: ast.stmt) -> str:
        """One statement."""
        translate = getattr(self, f"_do_{type(node).__name__.lower()}", None)
        if translate is None:
            raise self.fail(node, type(node).__name__)
        translated: str = translate(node)
        return translated

    def _do_expr(self, node: ast.Expr) -> str:
        match node.value:
            case ast.Constant(value=str()):
                return ""
            case ast.Yield(value=ast.expr() as value):
                return f"yield {self.expression(value)};"
            case ast.YieldFrom(value=value):
                return f"yield* {self.expression(value)};"
        return f"{self.expression(node.value)};"

    def _do_pass(self, node: ast.Pass) -> str:
        return ""

    def _do_continue(self, node: ast.Continue) -> str:
        return "continue;"

    def _do_break(self, node: ast.Break) -> str:
        return "break;"

    def _do_return(self, node: ast.Return) -> str:
        return f"return {'null' if node.value is None else self.expression(node.value)};"

    def _do_assign(self, node: ast.Assign) -> str:
        value = self.expression(node.value)
        if len(node.targets) == 1:
            return self._bound(node.targets[0], value)
        return f"{{ const $value = {value}; {' '.join(self._bound(target, '$value') for target in node.targets)} }}"

    def _bound(self, target: ast.expr, value: str) -> str:
        match target:
            case ast.Subscript(value=held, slice=key):
                return f"$put({self.expression(held)}, {self.expression(key)}, {value});"
            case ast.Attribute(value=ast.Name() as held, attr=name):
                return f"{self.expression(held)}.{name} = {value};"
            case ast.Name() | ast.Tuple() | ast.List():
                return f"{self.pattern(target)} = {value};"
        raise self.fail(target, "an assignment to this")

    def _do_annassign(self, node: ast.AnnAssign) -> str:
        return "" if node.value is None else self._bound(node.target, self.expression(node.value))

    def _do_augassign(self, node: ast.AugAssign) -> str:
        """By a new value; Python changes a list or a dict in place, which only another name for it would show."""
        match node.target:
            case ast.Name(id=name):
                return f"{identifier(name)} = {self._changed(name, node)};"
            case ast.Subscript(value=held, slice=key):
                with self.scope({"$held"}):
                    changed = self._changed("$held", node)
                return f"$change({self.expression(held)}, {self.expression(key)}, ($held) => {changed});"
        raise self.fail(node, "an assignment to this")

    def _changed(self, name: str, node: ast.AugAssign) -> str:
        changed = ast.BinOp(left=ast.Name(id=name, ctx=ast.Load()), op=node.op, right=node.value)
        return self.expression(ast.fix_missing_locations(ast.copy_location(changed, node)))

    def _do_if(self, node: ast.If) -> str:
        head = f"if ({self.condition(node.test)}) {{\n{self.block(node.body)}\n}}"
        return f"{head} else {{\n{self.block(node.orelse)}\n}}" if node.orelse else head

    def _do_for(self, node: ast.For) -> str:
        return self._repeated(node, f"for ({self.pattern(node.target)} of {self.expression(node.iter)})")

    def _do_while(self, node: ast.While) -> str:
        return self._repeated(node, f"while ({self.condition(node.test)})")

    def _repeated(self, node: ast.For | ast.While, head: str) -> str:
        if node.orelse:
            raise self.fail(node, "else after a loop")
        return f"{head} {{\n{self.block(node.body)}\n}}"

    def _do_raise(self, node: ast.Raise) -> str:
        if node.exc is None:
            raise self.fail(node, "raising again")
        return f"throw {self.expression(node.exc)};"

    def _do_assert(self, node: ast.Assert) -> str:
        where = f"{self.module.name}:{node.lineno}"
        return f'if (!({self.condition(node.test)})) throw new $Error("assertion at {where}");'

    def _do_try(self, node: ast.Try) -> str:
        match node:
            case ast.Try(handlers=[ast.ExceptHandler(type=ast.expr() as kind, name=None)], orelse=[], finalbody=[]):
                others = f"if (!$isinstance($error, {self.types(kind)})) throw $error;"
                caught = self.block(node.handlers[0].body)
                return f"try {{\n{self.block(node.body)}\n}} catch ($error) {{\n{others}\n{caught}\n}}"
        raise self.fail(node, "a try of this kind")

    def _do_importfrom(self, node: ast.ImportFrom) -> str:
        self.import_locally(node)
        return ""

    def _do_functiondef(self, node: ast.FunctionDef) -> str:
        if node.decorator_list:
            raise self.fail(node, "a decorator within a function")
        self.local_signatures[node.name] = signature(node)
        return f"{self._function(node)}\n$signed({identifier(node.name)}, {described(node)});"


def described(node: ast.FunctionDef, *, method: bool = False) -> str:
    """A function's parameters as `$signed` takes them."""
    known = signature(node, method=method)
    return f"{list(known.names)}{', true' if known.rest else ''}"


def yields(node: ast.FunctionDef) -> bool:
    """Whether it is a generator."""
    return any(isinstance(part, ast.Yield | ast.YieldFrom) for part in _within(node.body))


def _within(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Everything in a function's body that is not in a function of its own."""
    for node in nodes:
        yield node
        if not isinstance(node, _NESTED):
            yield from _within(list(ast.iter_child_nodes(node)))


def _defined(nodes: Sequence[ast.stmt]) -> set[str]:
    """Functions that are defined directly in a body."""
    return {part.name for part in _within(nodes) if isinstance(part, ast.FunctionDef)}


def _assigned(nodes: Sequence[ast.stmt]) -> Iterator[str]:
    """The names that a function's body binds, by an assignment within a comprehension too."""
    yield from _defined(nodes)
    for node in _within(nodes):
        match node:
            case ast.Assign(targets=bound):
                names = (t for t in bound if not isinstance(t, ast.Subscript | ast.Attribute))
                yield from (name for target in names for name in targets(target))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
                yield name
            case ast.For(target=target):
                yield from targets(target)
        if isinstance(node, _EXPRESSIONS):
            yield from (part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
