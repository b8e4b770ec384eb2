"""Published tensor names under the names that transformers serves them by, learned from the catalogue's models."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

from analytic.formats.table import NATIVE_FORMATS
from analytic.models import catalog
from analytic.models.config_keys import config_classes, reject
from analytic.models.config_reader import ALIASES
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model

_LONGEST_INDEX = 9
"""Digits of a layer's or an expert's index; a longer number is part of a name."""
_INDEX = re.compile(rf"(?<=\.)\d{{1,{_LONGEST_INDEX}}}(?=\.)")

# Older names, applied one after the other until the class knows the result (transformers/conversion_mapping.py).
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^embed_out\.", "lm_head."),
        (r"^backbone\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.mlp\.gate\.weight$", ".mlp.router.weight"),
    )
)

# Tensor of one expert to the tensors of all experts that may hold it, the first that the class has.
_FUSED = {
    "w1": ("gate_up_proj",),
    "w3": ("gate_up_proj",),
    "gate_proj": ("gate_up_proj",),
    "up_proj": ("gate_up_proj", "up_proj"),
    "w2": ("down_proj",),
    "down_proj": ("down_proj",),
}


class Served(NamedTuple):
    """Where a stored tensor goes."""

    rule: TensorGroup
    """The class's group of that name; its shape is another model's."""
    expert: int | None = None
    """Index of the expert whose part of a fused tensor it is."""
    part: str = ""
    """Which part of one expert."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the catalogue's models of one class know of every model of the class."""

    architecture: str
    """The class."""
    groups: Mapping[str, TensorGroup]
    """Every group that one of them has, by name, as it is without a quantised checkpoint."""
    always: frozenset[str]
    """Tensors outside the layers, the output head apart, that all of them hold."""
    tied_by_default: bool
    """Whether the class ties the output head where the config does not say."""
    decoder: str
    """What precedes the index of a decoder layer in a served name."""
    _found: dict[str, Served | None] = field(default_factory=dict, repr=False)

    def find(self, pattern: str) -> Served | None:
        """The place of a tensor, by its name with ``{}`` for the layer; None where the class has none."""
        experts, of, own = pattern.partition(".experts.")
        index, _, part = own.partition(".")
        if not of or not index.isdecimal() or len(index) > _LONGEST_INDEX:
            return self._remembered(pattern)
        found = self._remembered(f"{experts}{of}{{e}}.{part}")
        return found and Served(found.rule, int(index), found.part)

    def has_module(self, module: str) -> bool:
        """Whether the class has a module of this name that owns a weight."""
        return self.find(f"{module}.weight") is not None

    def is_decoder(self, prefix: str) -> bool:
        """Whether a stored name's ``prefix`` of an index becomes that of the decoder's layers."""
        return self.decoder in self._candidates(prefix)

    def _remembered(self, pattern: str) -> Served | None:
        if pattern not in self._found:
            self._found[pattern] = self._search(pattern)
        return self._found[pattern]

    def _search(self, pattern: str) -> Served | None:
        match = re.fullmatch(r"(?P<experts>.+\.experts)\.\{e\}\.(?P<part>\w+)\.weight", pattern)
        names = [f"{match['experts']}.{fused}" for fused in _FUSED.get(match["part"], ())] if match else [pattern]
        found = (self.groups[name] for own in names for name in self._candidates(own) if name in self.groups)
        rule = next(found, None)
        return None if rule is None else Served(rule=rule, part=match["part"] if match else "")

    def _candidates(self, pattern: str) -> Iterator[str]:
        """The name, then older ones renamed, then with the prefix that a checkpoint of the bare model lacks."""
        yield pattern
        for old, new in _RENAMES:
            pattern = old.sub(new, pattern)
            yield pattern
        for prefix in sorted({name.partition(".")[0] for name in self.groups}):
            yield f"{prefix}.{pattern}"


def family_of(architecture: str | None, model_type: str, *, quantized: str | None) -> Family | None:
    """The catalogue's models of a class (of a model type where the config names no class); None if there are none.

    ``quantized`` is the ``quant_method`` of the checkpoint: some methods fix a dtype of what they leave alone.
    """
    models = _catalogued(architecture, model_type)
    return _family(models, quantized) if models else None


@cache
def _family(models: tuple[Model, ...], quantized: str | None) -> Family:
    model_type = str(models[0].config["model_type"])
    top = [{g.name for g in m.tensors if g.layers is None and g.persistent and g.role != "output"} for m in models]
    return Family(
        architecture=models[0].architecture,
        groups={group.name: _as_built(group, model, quantized) for model in models for group in model.tensors},
        always=frozenset(set.intersection(*top)),
        decoder=next(g.name.partition("{}")[0] for m in models for g in m.tensors if m.is_decoder(g)),
        tied_by_default=config_classes()[ALIASES.get(model_type, model_type)].tie_word_embeddings is True,
    )


@cache
def _catalogued(architecture: str | None, model_type: str) -> tuple[Model, ...]:
    models = [catalog.load(entry.name) for entry in catalog.entries()]
    alike = (m for m in models if m.config["model_type"] == model_type)
    return tuple(m for m in alike if architecture in (None, m.architecture, *_published_classes(m)))


def _published_classes(model: Model) -> list[str]:
    names = model.config.get("architectures")
    return names if isinstance(names, list) else []


def _as_built(group: TensorGroup, model: Model, quantized: str | None) -> TensorGroup:
    """The group as its class builds it for another checkpoint, where the catalogue's model is published quantised."""
    fixed = group.stored == "float32" and group.role != "buffer" and model.native_format != quantized
    return replace(group, stored="model") if fixed or group.stored in NATIVE_FORMATS else group


def tied_in(config: Mapping[str, Any]) -> bool | None:
    """Whether a config ties the output head to the embedding; None where it does not say.

    Raises:
        UllageError: it says something else than true or false.
    """
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, Mapping) else {}):
        if part.get("tie_word_embeddings") is not None:
            if not isinstance(part["tie_word_embeddings"], bool):
                reject(str(config.get("model_type")), "tie_word_embeddings", part["tie_word_embeddings"])
            return part["tie_word_embeddings"]
    return None


def split_index(name: str) -> tuple[str, int | None]:
    """The name with ``{}`` for its first index, and that index."""
    match = _INDEX.search(name)
    if match is None:
        return name, None
    return f"{name[: match.start()]}{{}}{name[match.end() :]}", int(match[0])


def fold_index(pattern: str) -> str:
    """The name with ``{e}`` for every index left in it."""
    return _INDEX.sub("{e}", pattern)
