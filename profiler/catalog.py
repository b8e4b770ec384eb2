"""Write the shipped catalogue's inventories from its configs: ``python -m profiler.catalog [NAME…]``."""

import json
import sys
from pathlib import Path
from typing import Any

import analytic.models
from analytic.models.catalog import row_from_group
from profiler.models import describe

_MODELS = Path(analytic.models.__path__[0])
FOLDER = _MODELS / "catalog"
INDEX = _MODELS / "catalog_index.json"
_GIVEN = ("id", "aliases", "source", "checkpoint_dtype", "config")
"""Keys that people write; all others are made here. ``checkpoint_dtype`` only where the config names none."""


def regenerate(document: dict[str, Any]) -> dict[str, Any]:
    """A catalogue document with its generated keys made anew from its config."""
    made = describe(document["config"])
    return {key: document[key] for key in _GIVEN if key in document} | {
        "architecture": made["architecture"],
        "parameters": made["parameters"],
        "tensors": [row_from_group(group) for group in made["tensors"]],
    }


def render(document: dict[str, Any]) -> str:
    """One line a key and a tensor row, so that a change reads well as a diff."""
    lines = [f" {json.dumps(key)}: {json.dumps(document[key])}" for key in document if key != "tensors"]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in document["tensors"])
    return "{\n" + ",\n".join([*lines, f' "tensors": [\n{rows}\n ]']) + "\n}\n"


def index_row(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """What ``ullage models`` lists of a document."""
    return {"name": name} | {key: document[key] for key in ("id", "architecture", "parameters", "aliases")}


def render_index(documents: dict[str, dict[str, Any]]) -> str:
    """The index of all documents, one line a model."""
    rows = (json.dumps(index_row(name, document)) for name, document in sorted(documents.items()))
    return "[\n" + ",\n".join(rows) + "\n]\n"


def main(names: list[str]) -> None:
    """Rewrite the named catalogue files (all of them without names), then the index."""
    for path in sorted(FOLDER.glob("*.json")):
        if not names or path.stem in names:
            print(path.stem, file=sys.stderr)
            path.write_text(render(regenerate(json.loads(path.read_bytes()))))
    documents = {path.stem: json.loads(path.read_bytes()) for path in FOLDER.glob("*.json")}
    INDEX.write_text(render_index({k: v for k, v in documents.items() if "tensors" in v}))


if __name__ == "__main__":
    main(sys.argv[1:])
