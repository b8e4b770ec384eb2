"""A whole command line that serves a model with vLLM: what of it changes memory, by vLLM's own names."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from analytic.engines.vllm.options import GONE_IGNORED, GONE_MODELLED, IGNORED, MODELLED, UNMODELLED
from analytic.engines.vllm.parser import Given, Value, parse
from analytic.errors import UsageError

LINE_CHARACTERS = 2**16

_CONTINUED = re.compile(r"[\\^`]\r?\n")
"""Of a POSIX shell, of cmd, and of PowerShell."""
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=")
_END = re.compile(r"(?:\d?[<>]|&>).*|[|&;].*|\|\||2>&1")
"""A word with which the shell, not vLLM, has to do; and all after it."""
_VARIABLE = re.compile(r"\$[\w{(]")
_BEFORE = ("sudo", "nohup", "exec", "time", "env", "command")
_IMAGE = re.compile(
    r"(?:[\w.-]+(?::\d+)?/)+[\w.-]*vllm[\w./-]*(?::(?P<tag>[\w.-]+))?(?:@sha256:[0-9a-f]+)?|vllm/[\w./-]+(?::(?P<vtag>[\w.-]+))?(?:@sha256:[0-9a-f]+)?"
)
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+[\w.]*)")
_PROGRAM = re.compile(
    r"(?:\S*/)?(?:vllm serve|python[\d.]* -m vllm\.entrypoints\.(?:openai\.)?api_server|"
    r"python[\d.]* -m vllm(?:\.entrypoints\.cli\.main)? serve)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeLine:
    """What a command line asks for."""

    model: str
    options: Mapping[str, Value]
    """Those that are modelled and given, by their names in vLLM's dataclasses; ``max_model_len`` -1 is ``auto``."""
    ignored: tuple[str, ...]
    """Options without effect on a GPU's memory, as given."""
    unmodelled: tuple[str, ...]
    """Options that change memory, or may, and are not modelled, as given: to be warned of, or refused."""
    environment: Mapping[str, str]
    """Variables that the line sets, for vLLM or for its container."""
    version: str | None
    """Of vLLM, where the container's tag says it."""
    notes: tuple[str, ...]
    """Options that are given again with another value, of which the last counts, and options of older versions."""


def read_serve_line(text: str) -> ServeLine:
    """Read ``vllm serve MODEL …``, ``python -m vllm.entrypoints.openai.api_server …`` or ``docker run … IMAGE …``.

    Raises:
        UsageError: not such a line, unclosed quotes, variables of a shell, options from a file, no model, an option
            that vLLM has not or a value that is none.
    """
    words = list(_until_redirected(_words(text)))
    environment: dict[str, str] = {}
    words = _after_assignments(words, environment)
    version = None
    if words[:2] in (["docker", "run"], ["podman", "run"], ["nerdctl", "run"]):
        words, version = _after_image(words[2:], environment)
    parsed = parse(_model_first(_arguments(words, has_image=version is not None)))
    given = _last(parsed.given)
    model = parsed.model or next((str(use.value) for use in parsed.given if use.option.name == "model"), None)
    if model is None:
        raise UsageError("the line names no model", hint="vllm serve MODEL …")
    for name, value in {"the model": model, **{u.text: u.value for u in given if _is_modelled(u)}}.items():
        if isinstance(value, str) and _VARIABLE.search(value):
            raise UsageError(f"{name}: {value} is a variable of the shell", hint="write its value in its place")
    return ServeLine(
        model=model,
        options={use.option.name: use.value for use in given if _is_modelled(use)},
        ignored=tuple(use.text for use in given if use.option.name in IGNORED | GONE_IGNORED),
        unmodelled=tuple(use.text for use in given if _is_unmodelled(use)),
        environment=environment,
        version=version or None,
        notes=tuple(_notes(parsed.given)),
    )


def _words(text: str) -> list[str]:
    if len(text) > LINE_CHARACTERS:
        raise UsageError(f"a command line of {len(text)} characters is not read", hint=f"at most {LINE_CHARACTERS}")
    try:
        return [word for word in shlex.split(_CONTINUED.sub(" ", text)) if word.strip()]
    except ValueError as error:
        raise UsageError(f"the line's quotes do not close: {error}", hint="JSON goes in single quotes") from error


def _until_redirected(words: list[str]) -> Iterator[str]:
    for word in words:
        if _END.fullmatch(word):
            return
        yield word.removesuffix(";")
        if word.endswith(";"):
            return


def _after_assignments(words: list[str], environment: dict[str, str]) -> list[str]:
    """The words after ``sudo``, ``nohup`` and the like and after ``NAME=value``."""
    for index, word in enumerate(words):
        if _ASSIGNED.match(word):
            name, _, value = word.partition("=")
            environment[name] = value
        elif word not in _BEFORE:
            return words[index:]
    return []


def _after_image(words: list[str], environment: dict[str, str]) -> tuple[list[str], str]:
    """What a container is given, and vLLM's version or an empty string by its tag."""
    images = [(index, match) for index, word in enumerate(words) if (match := _IMAGE.fullmatch(word))]
    if not images:
        raise UsageError("docker run: no word is an image of vLLM", hint="such as vllm/vllm-openai:v0.10.0")
    index, image = next((pair for pair in images if "openai" in pair[1][0]), images[0])
    for name, value in pairwise(words[:index]):
        if name in ("-e", "--env") and "=" in value:
            _after_assignments([value], environment)
    tag = _VERSION.fullmatch(image["tag"] or image["vtag"] or "")
    return words[index + 1 :], tag[1] if tag else ""


def _arguments(words: list[str], *, has_image: bool) -> list[str]:
    """What comes after the program; images run it by themselves."""
    words = words[2:] if words[:2] == ["uv", "run"] else words
    for size in (2, 3, 4):
        if _PROGRAM.fullmatch(" ".join(words[:size])):
            return words[size:]
    if has_image:
        return words[1:] if words[:1] == ["serve"] else words
    said = " ".join(words[:3]) or "an empty line"
    raise UsageError(f"{said!r} does not serve a model with vLLM", hint="vllm serve MODEL …")


def _model_first(words: list[str]) -> Sequence[str]:
    """``--model MODEL`` is moved to the front, as vLLM does; a file of options cannot be seen here."""
    for index, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == "--config":
            raise UsageError("--config: options in a file are not read", hint="write them on the line")
        if name == "--model" and (sign or words[index + 1 :]):
            return [value or words[index + 1], *words[:index], *words[index + (1 if sign else 2) :]]
    return words


def _last(given: list[Given]) -> list[Given]:
    """The last use of each option, and every use of one that adds values."""
    last = {use.option.name: use for use in given}
    return [use for use in given if use.option.repeats or last[use.option.name] is use]


def _is_modelled(use: Given) -> bool:
    return use.option.name in MODELLED | GONE_MODELLED


def _is_unmodelled(use: Given) -> bool:
    return use.option.name in UNMODELLED or (use.option.is_gone and use.option.name not in GONE_MODELLED | GONE_IGNORED)


def _notes(given: list[Given]) -> Iterator[str]:
    first: dict[str, Given] = {}
    for use in given:
        before = first.setdefault(use.option.name, use)
        if before.value != use.value and not use.option.repeats:
            yield f"{use.text} takes the place of {before.text}: the last counts"
            first[use.option.name] = use
        if use.option.is_gone:
            yield f"{use.text}: an option of a version before 0.33"
