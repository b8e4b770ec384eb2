"""Write analytic/models/config_defaults.json: what the installed configuration classes add to a published config.

Run ``python -m profiler.config_defaults`` after an upgrade of transformers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import analytic.models
from analytic.models.config_keys import KEYS
from analytic.models.config_reader import ALIASES, ENCODER_DECODERS, FAMILIES, WRAPPERS

PATH = Path(analytic.models.__file__).parent / "config_defaults.json"


def fresh_defaults() -> dict[str, dict[str, Any]]:
    """A row a supported model type, from the installed classes."""
    return {
        model_type: _row(model_type) for model_type in sorted({*FAMILIES, *ENCODER_DECODERS, *WRAPPERS} - set(ALIASES))
    }


def rendered(rows: dict[str, dict[str, Any]]) -> str:
    """The file's text."""
    return json.dumps(rows, indent=1) + "\n"


def _row(model_type: str) -> dict[str, Any]:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    text = config.get_text_config(decoder=True)
    own = text is config or model_type in ENCODER_DECODERS
    nested = None if own else text.model_type
    cls: Any = type(text if own else config)
    fields = {field.name: _default(field) for field in dataclasses.fields(cls)}
    names = {*KEYS, *(cls.attribute_map.get(key, key) for key in KEYS)}
    return {
        "attribute_map": {key: own for key, own in cls.attribute_map.items() if key in KEYS},
        "defaults": {} if nested else {name: fields[name] for name in sorted(names & {*fields})},
        "text_config": nested,
        "tie_word_embeddings": getattr(cls, "tie_word_embeddings", None),
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default before ``__post_init__`` computes anything."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


if __name__ == "__main__":
    PATH.write_text(rendered(fresh_defaults()), encoding="utf-8")
