"""What Python's own names are called in ``runtime.js``; anything that is not here is not translated."""

import ast
from collections.abc import Mapping

from analytic.webpage.sources import Symbol

RESERVED = frozenset(
    (
        *(
            "arguments",
            "await",
            "break",
            "case",
            "catch",
            "class",
            "const",
            "continue",
            "debugger",
            "default",
            "delete",
        ),
        *("do", "else", "enum", "eval", "export", "extends", "false", "finally", "for", "function", "if", "implements"),
        *("import", "in", "instanceof", "interface", "let", "new", "null", "package", "private", "protected", "public"),
        *("return", "static", "super", "switch", "this", "throw", "true", "try", "typeof", "undefined", "var", "void"),
        *("while", "with", "yield"),
    )
)
"""Words that JavaScript takes for no name (ECMA-262, 12.7.2, in strict mode)."""

OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: "$add",
    ast.Sub: "$sub",
    ast.Mult: "$mul",
    ast.Div: "$div",
    ast.FloorDiv: "$floordiv",
    ast.Mod: "$mod",
    ast.Pow: "$pow",
    ast.BitOr: "$bitor",
}

COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "$eq({}, {})",
    ast.NotEq: "!$eq({}, {})",
    ast.Lt: "$lt({}, {})",
    ast.LtE: "$le({}, {})",
    ast.Gt: "$gt({}, {})",
    ast.GtE: "$ge({}, {})",
    ast.Is: "({} === {})",
    ast.IsNot: "({} !== {})",
    ast.In: "$in({}, {})",
    ast.NotIn: "!$in({}, {})",
}

_SAME = (
    *(
        "abs",
        "all",
        "any",
        "dict",
        "divmod",
        "enumerate",
        "filter",
        "getattr",
        "id",
        "iter",
        "len",
        "list",
        "map",
        "max",
    ),
    *("min", "next", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum", "zip"),
)
ERRORS = ("KeyError", "ValueError", "ZeroDivisionError")

BUILTINS: Mapping[str, str] = {
    **{name: f"${name}" for name in (*_SAME, *ERRORS)},
    "AssertionError": "$Error",
    "bool": "$t",
    "float": "$toFloat",
    "frozenset": "$set",
    "int": "$toInt",
    "tuple": "$list",
    "type": "$typeOf",
}

FOREIGN: Mapping[Symbol, str] = {
    ("bisect", "bisect_left"): "$bisect_left",
    ("collections", "Counter"): "$Counter",
    ("dataclasses", "asdict"): "$asdict",
    ("dataclasses", "fields"): "$fields",
    ("dataclasses", "replace"): "$replace",
    ("fractions", "Fraction"): "$Fraction",
    ("itertools", "accumulate"): "$accumulate",
    ("math", "ceil"): "$ceil",
    ("math", "lcm"): "$lcm",
    ("math", "prod"): "$prod",
    ("re", "sub"): "$reSub",
    ("shlex", "join"): "$shellJoin",
}
"""Of the standard library."""

CONSTRUCTED = ("$Error", *(f"${name}" for name in ERRORS), "$Fraction")
"""Helpers that are classes."""

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "$accumulate": ("initial",),
    "$bisect_left": ("key",),
    "$max": ("key", "default"),
    "$min": ("key", "default"),
    "$sorted": ("key",),
    "$zip": ("strict",),
}
"""Keywords that helpers take: ``$max.with({key}, …)``; `$replace` takes any."""

MOST_ARGUMENTS: Mapping[str, int] = {
    **dict.fromkeys(("$abs", "$accumulate", "$all", "$any", "$asdict", "$ceil", "$Counter", "$dict", "$enumerate"), 1),
    **dict.fromkeys(("$fields", "$id", "$iter", "$len", "$list", "$prod", "$reversed", "$set", "$t"), 1),
    **dict.fromkeys(("$shellJoin", "$sorted", "$str", "$sum", "$toFloat", "$toInt", "$typeOf"), 1),
    **dict.fromkeys(("$bisect_left", "$divmod", "$filter", "$Fraction", "$next", "$round"), 2),
    **dict.fromkeys(("$getattr", "$range", "$reSub", "$slice"), 3),
}
"""Positional arguments that helpers heed; the others take any number."""

CONSUMING = ("$sum", "$list", "$set", "$max", "$min", "$sorted", "$dict", "$prod", "$accumulate")
"""Helpers that take every item of what they are given."""

TYPES = ("int", "bool", "str", "float", "tuple")
"""Of Python's own types those that an ``isinstance`` can tell apart; a list is as a tuple."""

METHODS: Mapping[str, int] = {
    **dict.fromkeys(("clear", "items", "keys", "lower", "upper", "values"), 0),
    **dict.fromkeys(("add", "append", "endswith", "fullmatch", "index", "join", "partition", "removeprefix"), 1),
    **dict.fromkeys(("removesuffix", "startswith"), 1),
    **dict.fromkeys(("get", "replace", "setdefault"), 2),
}
"""Methods of Python's own types, and the arguments that they heed."""

RENAMED_METHODS: Mapping[str, str] = {"replace": "replaceAll"}

FIELD_ATTRIBUTES = ("name", "init")
"""Attributes of what `dataclasses.fields` gives."""
