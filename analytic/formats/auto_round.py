"""AutoRound: what it packs as GPTQ or AWQ do, by ``packing_format``; ``extra_config`` overrides single modules."""

from collections.abc import Callable, Mapping
from typing import Any

from analytic.formats.awq import Awq
from analytic.formats.gptq import BITS, GROUPS, Gptq
from analytic.formats.reading import choice, reject, whole
from analytic.formats.scheme import Method, Rules, Scheme


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an AutoRound config.

    Raises:
        UllageError: a packing, a width or a group size that is not known.
    """
    make = choice(native, "packing_format", _PACKINGS, default="auto_round:auto_gptq")
    extra = native.get("extra_config") or {}
    if not isinstance(extra, Mapping) or not all(isinstance(own, Mapping) for own in extra.values()):
        reject("extra_config", extra)
    overrides = tuple(_override(str(module), {**native, **own}, make) for module, own in extra.items())
    return Rules(default=make(native), overrides=overrides, strict=False)


def _override(
    module: str, own: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Scheme]
) -> tuple[Callable[[str], bool], Scheme | None]:
    scheme = None if own.get("bits") in (16, 32) else make(own)
    return (lambda name: name == module), scheme


def _gptq(native: Mapping[str, Any]) -> Scheme:
    return Gptq(bits=whole(native, "bits", among=BITS), group_size=whole(native, "group_size", among=GROUPS))


def _awq(native: Mapping[str, Any]) -> Scheme:
    whole(native, "bits", among=(4,))
    return Awq(group_size=whole(native, "group_size", among=GROUPS))


_PACKINGS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    **dict.fromkeys(("auto_round", "auto_round:gptq", "auto_round:auto_gptq", "auto_gptq"), _gptq),
    **dict.fromkeys(("auto_round:awq", "auto_round:auto_awq", "auto_awq"), _awq),
}

METHOD = Method(names=("auto-round",), read=read)
