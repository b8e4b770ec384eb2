"""From the SVG that matplotlib writes to one that a page can hold: no id that another figure has, and both schemes."""

import re
from xml.sax.saxutils import escape

from analytic.report.drawing.canvas import MARK, SIZE
from analytic.report.drawing.palette import PALETTE, dark_rules
from analytic.report.parts import Figure

CLASS = "drawing"
"""Of every SVG."""

LEGIBLE = 9
"""Pixels below which the height of letters does not shrink on a small screen."""

_GROWTH = 4 / 3
"""By which a figure grows where there is room: its words are then as large as those of the page."""

_ROOM = 720
"""Width of a page's text, in pixels."""

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'

_DEFAULTS = {
    "font-size": f"{SIZE}px",
    "font-weight": "400",
    "text-anchor": "start",
    "stroke-dashoffset": "0",
    "stroke-width": "1",
    "stroke-linejoin": "round",
}
"""What is so without being said; the font is the page's."""

_STYLE = (
    f".{CLASS}{{font-family:system-ui,sans-serif;font-variant-numeric:tabular-nums}}"
    f"@media screen and (prefers-color-scheme:dark){{.{CLASS}{{background:{PALETTE['paper'].dark}}}}}"
    + dark_rules("." + CLASS)
)


def inline(drawn: str, figure: Figure) -> str:
    """For a page whose CSS has the palette's dark rules: as wide as there is room, down to what can be read."""
    _, width, _ = _body(drawn)
    largest = max(width, min(width * _GROWTH, _ROOM))
    style = f"width:100%;min-width:{width * LEGIBLE / SIZE:.0f}px;max-width:{largest:.0f}px;height:auto"
    return _svg(drawn, figure, attributes=f'style="{style}"', style="")


def standalone(drawn: str, figure: Figure) -> str:
    """For a file of its own, with both schemes."""
    _, width, height = _body(drawn)
    sized = f'{_NAMESPACES} width="{width:g}" height="{height:g}"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{_svg(drawn, figure, attributes=sized, style=_STYLE)}\n'


def _svg(drawn: str, figure: Figure, *, attributes: str, style: str) -> str:
    body, width, height = _body(drawn)
    title, description = f"{figure.name}-title", f"{figure.name}-description"
    return (
        f'<svg class="{CLASS}" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{title} {description}" '
        f'font-size="{SIZE}" stroke-linejoin="round" {attributes}>'
        f'<title id="{title}">{escape(figure.title)}</title>'
        f'<desc id="{description}">{escape(figure.description)}</desc>'
        f"{f'<style>{style}</style>' if style else ''}{body}</svg>"
    )


def _body(drawn: str) -> tuple[str, float, float]:
    found = re.search(r'<svg [^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>(.*)</svg>', drawn, re.DOTALL)
    assert found is not None, "matplotlib writes a viewBox"
    return _lean(found[3]), float(found[1]), float(found[2])


def _lean(body: str) -> str:
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), body)
    body = re.sub(rf'id="{MARK}([^"]*)"', r'data-mark="\1"', body)
    body = re.sub(r' id="[a-z0-9]+_\d+"', "", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r'(<path id="[^"]*"[^>]*?) stroke="[^"]*"', r"\1", body)
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
    body = re.sub(r"<g>\s*(<path [^>]*/>|<text [^>]*>[^<]*</text>)\s*</g>", r"\1", body)
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"\s*\n(?=[A-Zz\"])", " ", body)).strip()


def _attributes(style: str) -> str:
    """CSS as attributes, over which a style sheet prevails."""
    pairs = (declaration.split(":", 1) for declaration in style.split(";") if declaration.strip())
    said = ((name.strip(), value.strip()) for name, value in pairs)
    kept = (f'{name}="{value}"' for name, value in said if name != "font-family" and _DEFAULTS.get(name) != value)
    return " ".join(kept)
