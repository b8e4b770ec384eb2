"""The colours and hatchings of figures and pages, for light and for dark surroundings."""

from dataclasses import dataclass

from analytic.quantity import Basis


@dataclass(frozen=True, kw_only=True)
class Colour:
    """One colour in both schemes, as CSS writes it. No two have the same light one unless the dark one is too."""

    light: str
    dark: str


def _same(value: str) -> Colour:
    return Colour(light=value, dark=value)


PALETTE = {
    "ink": Colour(light="#1b1b1b", dark="#e8e8e8"),
    "muted": Colour(light="#5a5a5a", dark="#a9a9a9"),
    "rule": Colour(light="#dcdcdc", dark="#3c3c3c"),
    "band": Colour(light="#f3f3f3", dark="#1f1f1f"),
    "paper": Colour(light="#ffffff", dark="#141414"),
    "fits": Colour(light="#cbe8dc", dark="#12483a"),
    "tight": Colour(light="#fbe5b6", dark="#57400a"),
    "no": Colour(light="#f0f0f0", dark="#232323"),
    # Okabe and Ito's colours, told apart with any kind of colour vision; their yellow darker, to be seen on white.
    "blue": _same("#0072b2"),
    "green": _same("#009e73"),
    "orange": _same("#e69f00"),
    "purple": _same("#cc79a7"),
    "sky": _same("#56b4e9"),
    "grey": _same("#999999"),
    "vermilion": _same("#d55e00"),
    "yellow": Colour(light="#8f8400", dark="#f0e442"),
}
"""By the name that drawings use."""

_COMPONENTS = {
    "weights": "blue",
    "sequence state": "green",
    "activations": "orange",
    "workspace": "purple",
    "allocator slack": "sky",
    "context": "grey",
}
_OTHERS = ("vermilion", "yellow", "ink", "muted")

HATCHES: dict[Basis, str | None] = {
    "exact": None,
    "measured": None,
    "traced": None,
    "fitted": "///",
    "assumed": "xx",
}
"""How a basis looks on a surface, as matplotlib names patterns; the firm ones are solid."""


def light(name: str) -> str:
    """A colour for paper."""
    return PALETTE[name].light


def colours_of(labels: tuple[str, ...]) -> dict[str, str]:
    """A colour a label: a component's own, for others one of those left."""
    known = {label: _COMPONENTS.get(label.lower().replace("_", " ")) for label in labels}
    others = [label for label, colour in known.items() if colour is None]
    spare = {label: _OTHERS[place % len(_OTHERS)] for place, label in enumerate(others)}
    return {label: colour or spare[label] for label, colour in known.items()}


def dark_rules(scope: str) -> str:
    """CSS by which what is drawn in light colours inside ``scope`` is seen in the dark ones on a dark screen."""
    rules = (
        f'{scope} [{part}="{colour.light}"]{{{part}:{colour.dark}}}'
        for colour in PALETTE.values()
        if colour.light != colour.dark
        for part in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme:dark){{{''.join(rules)}}}"


def variables(scheme: str) -> str:
    """The palette as CSS variables of a scheme, ``light`` or ``dark``."""
    return ";".join(f"--{name}:{getattr(colour, scheme)}" for name, colour in PALETTE.items())
