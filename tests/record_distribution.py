"""Write what dividing a model over GPUs follows from, by class: ``analytic/models/{module_trees,tp_plans}.json``.

Run ``PYTHONPATH=.:tests python tests/record_distribution.py`` after an upgrade of transformers (made with 5.23.0): it
builds a tiny model of every class on the meta device, and `tests/test_device_map.py` and
`tests/test_tensor_parallel.py` hold the files equal to a fresh run.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_models import IGNORED, tiny_config
from transformers.models.auto import modeling_auto

import analytic.models
from analytic.models.config_keys import config_classes
from analytic.models.config_reader import ALIASES, ENCODER_DECODERS, FAMILIES, WRAPPERS
from profiler.models import build

FOLDER = Path(analytic.models.__path__[0])
TREES = FOLDER / "module_trees.json"
PLANS = FOLDER / "tp_plans.json"

_NESTED = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
_PLAIN = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

_TOWER = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96}

OWN: dict[str, dict[str, Any]] = {
    "gemma4": {"vision_config": {"num_hidden_layers": 2}, "audio_config": {"num_hidden_layers": 2}},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", **_TOWER}},
    "whisper": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
"""What a model type needs beside its tiny config."""

UNBUILT = frozenset({"gemma3n"})
"""Model types whose towers need packages of their own (timm)."""


def model_types() -> list[str]:
    """That can be built."""
    return sorted({*FAMILIES, *ENCODER_DECODERS, *WRAPPERS} - set(ALIASES) - UNBUILT)


def classes(model_type: str) -> list[str]:
    """Classes that generate text from a config of the type; none for a text part that has no class of its own."""
    named = (mapping.get(model_type, ()) for mapping in (_NESTED if model_type in WRAPPERS else _PLAIN))
    return sorted({name for names in named for name in ([names] if isinstance(names, str) else names)})


def tied_config(model_type: str) -> dict[str, Any]:
    """A tiny config of the type, its embeddings tied where the class can."""
    if model_type not in WRAPPERS:
        return {**tiny_config(model_type), **IGNORED, "tie_word_embeddings": True, **OWN.get(model_type, {})}
    nested = tied_config(str(config_classes()[model_type].text_config))
    return {
        "model_type": model_type,
        "text_config": nested,
        "tie_word_embeddings": True,
        **OWN.get(model_type, {}),
    }


@cache
def models() -> dict[str, Any]:
    """A tiny model of every class."""
    return {
        name: build({**tied_config(model_type), "architectures": [name]})
        for model_type in model_types()
        for name in classes(model_type)
    }


def fresh_trees() -> dict[str, Any]:
    """A row a class: modules in order down to those that are never divided, tied parameters, its tower's type."""
    return {name: _row(model) for name, model in sorted(models().items())}


def fresh_plans() -> dict[str, Any]:
    """A row a class that has a plan: pattern of a module or parameter to its style."""
    return {name: dict(model.tp_plan) for name, model in sorted(models().items()) if model.tp_plan}


def rendered(rows: dict[str, Any]) -> str:
    """One line a class."""
    lines = (f"{json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}" for name, row in rows.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _row(model: torch.nn.Module) -> dict[str, Any]:
    assert getattr(model, "_no_placement_params", None) is None, type(model)
    assert not dict(model.named_parameters(recurse=False)), type(model)
    tower = getattr(model.config, "vision_config", None)
    return {
        "modules": _tree(model, model._no_split_modules),
        "tied": dict(model.all_tied_weights_keys),
        "vision": tower and tower.model_type,
    }


def _tree(module: torch.nn.Module, whole: set[str]) -> Any:
    """``bare`` without tensors, ``owns`` with its own alone, ``whole`` if never divided, else its children."""
    children = dict(module.named_children())
    owns = any(True for _ in _tensors(module))
    if type(module).__name__ in whole:
        assert owns, type(module)
        return "whole"
    if not children:
        return "owns" if owns else "bare"
    return _folded({name: _tree(child, whole) for name, child in children.items()})


def _folded(children: dict[str, Any]) -> dict[str, Any]:
    """With ``*`` for the indices of a list of modules alike, if they have tensors."""
    first, *others = children.values()
    is_list = all(name.isdecimal() for name in children) and all(other == first for other in others)
    return {"*": first} if is_list and {"owns", "whole"} & {*_leaves(first)} else children


def _leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for child in tree.values():
            yield from _leaves(child)


def _tensors(module: torch.nn.Module) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()


if __name__ == "__main__":
    TREES.write_text(rendered(fresh_trees()), encoding="utf-8")
    PLANS.write_text(rendered(fresh_plans()), encoding="utf-8")
