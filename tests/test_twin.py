"""A twin has the tensors that transformers builds of the cut config."""

import pytest
import torch
from tiny import TINY, tiny_config

from analytic.errors import UsageError
from analytic.models import catalog
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.models.twin import twin, twin_config
from profiler.models import describe

torch.set_num_threads(1)


def model_of(config: dict[str, object]) -> Model:
    made = describe(config)
    return Model(
        id="x", source="meta", architecture=made["architecture"], dtype=None, config=config, tensors=made["tensors"]
    )


def stored(model: Model) -> set[TensorGroup]:
    """All but rotary tables, of which a model has one a kind of layer."""
    return {group for group in model.tensors if group.persistent}


@pytest.mark.parametrize("model_type", sorted({*TINY} - {"gemma4"}))
def test_the_twin_of_an_inventory_is_the_inventory_of_the_twin(model_type: str) -> None:
    config = tiny_config(model_type)
    assert stored(twin(model_of(config), layers=1)) == stored(model_of(twin_config(config, layers=1)))


@pytest.mark.parametrize("name", ["llama-2-7b", "gemma-3-1b", "nemotron-3-nano-30b-a3b", "qwen3-next-80b-a3b"])
def test_the_twin_of_a_model_of_the_catalogue(name: str) -> None:
    whole = catalog.load(name)
    two = twin(whole, layers=2)
    assert len(two.geometry.layers) == 2
    assert stored(two) == stored(model_of(dict(two.config)))


def test_llama_2_7b_loses_a_layer_at_a_time() -> None:
    whole = catalog.load("llama-2-7b")
    # attention 4 x 4096 x 4096, feed-forward 3 x 4096 x 11008, two norms of 4096
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert whole.parameters - twin(whole, layers=2).parameters == 30 * layer


@pytest.mark.parametrize("layers", [0, 33])
def test_layers_that_a_model_does_not_have(layers: int) -> None:
    with pytest.raises(UsageError, match="32 layers"):
        twin(catalog.load("llama-2-7b"), layers=layers)


def test_a_twin_that_transformers_would_build_otherwise_is_refused() -> None:
    with pytest.raises(UsageError, match="full attention"):
        twin_config({**tiny_config("gemma4")["text_config"], "model_type": "gemma4_text"}, layers=1)
