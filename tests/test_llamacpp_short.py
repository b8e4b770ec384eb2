"""What is left out of the simulation to make it fast makes no difference: beside all layers, types and contexts."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_llamacpp_compute import RECORDED, asked, file_of, is_refused, some

from analytic.engines.llamacpp.reserved import Settings, reserved, reserved_sizes
from analytic.engines.llamacpp.stack import CYCLE, REPEATS, Stacks, kept_layers, stacks
from analytic.errors import UllageError
from analytic.loaded import ALL_LAYERS
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.state.llamacpp import Slots, llamacpp_state


def placed(model: Model, quantization: str | None, run: dict[str, Any]) -> Stacks:
    return stacks(
        model,
        dtype="bfloat16",
        quantization=quantization,
        gpu_layers=run.get("gpu_layers", ALL_LAYERS),
        cpu_moe_layers=run.get("cpu_moe_layers", 0),
        backend=run.get("backend", "cuda"),
        tensor_split=run.get("tensor_split", (1.0,)),
    )


def context(run: dict[str, Any]) -> Settings:
    parallel = run.get("parallel", 1)
    return Settings(
        slots=Slots(
            ctx_size=run["ctx_size"],
            parallel=parallel,
            unified=run.get("kv_unified", False),
            ubatch_size=run.get("ubatch_size", 512),
        ),
        batch_size=2048,
        flash=run.get("flash_attention", True),
        key_type=run.get("cache_type_k", "f16"),
        value_type=run.get("cache_type_v", "f16"),
        swa_full=run.get("swa_full", False),
        max_outputs=run.get("max_outputs", parallel),
        mixed=run.get("mixed", False),
    )


def whole(own: Stacks, asked_for: Settings) -> tuple[int, ...]:
    """Every layer with its own types, both batches, and no context from another's."""
    caches, cells = asked_for.caches(own.windows), asked_for.slots.cells
    made = [reserved(own.whole, caches, batch, cells) for batch in asked_for.batches()]
    return tuple(max(each) for each in zip(*(one.bytes for one in made if one is not None), strict=True))


def require_equal(model: Model, quantization: str | None, run: dict[str, Any]) -> None:
    own, asked_for = placed(model, quantization, run), context(run)
    assert reserved_sizes(own, asked_for) == whole(own, asked_for), run


@pytest.mark.parametrize("name", RECORDED["catalogue"])
def test_repeated_layers_and_types_change_nothing_of_the_recorded_models(name: str) -> None:
    row = RECORDED["catalogue"][name]
    for run, places in some("catalogue", name, row["runs"]):
        if places and not is_refused(name, run):
            require_equal(resolve(name), row["quantization"], asked(run))


@pytest.mark.parametrize("name", RECORDED["files"])
def test_nor_of_the_recorded_files(name: str, tmp_path: Path) -> None:
    model = file_of(name, tmp_path)
    for run, places in RECORDED["files"][name]["runs"]:
        if places:
            require_equal(model, None, asked(run))


NAMES = ("llama-3.1-8b", "qwen3-30b-a3b", "gemma-2-9b", "phi-2", "command-r", "pythia-12b", "deepseek-v2-lite")
FORMATS = (None, "Q8_0", "Q4_K_M", "Q5_K_S", "IQ4_XS")
CONTEXTS = [cells * 256 for cells in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    quantization=st.sampled_from(FORMATS),
    tokens=st.sampled_from(CONTEXTS),
    run=st.fixed_dictionaries(
        {
            "parallel": st.sampled_from((1, 1, 2, 3, 8)),
            "kv_unified": st.booleans(),
            "ubatch_size": st.sampled_from((64, 512, 2048)),
            "flash_attention": st.sampled_from((True, True, False)),
            "gpu_layers": st.sampled_from((ALL_LAYERS, ALL_LAYERS, 0, 1, 9)),
            "cpu_moe_layers": st.sampled_from((0, 0, 3, ALL_LAYERS)),
            "tensor_split": st.sampled_from(((1.0,), (1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 1.0))),
            "mixed": st.booleans(),
        }
    ),
)
def test_nor_with_settings_that_were_not_recorded(
    name: str, quantization: str | None, tokens: int, run: dict[str, Any]
) -> None:
    try:
        own = placed(resolve(name), quantization, run)
        llamacpp_state(own.file.geometry, ctx_size=tokens)
    except UllageError:  # the order of the tensors of an unquantised file is not known
        assume(False)
    require_equal(resolve(name), quantization, {**run, "ctx_size": tokens * run["parallel"]})


@pytest.mark.parametrize(("name", "flash"), [*product(("llama-3.1-8b", "olmo-3-7b", "qwen3.5-9b"), (True, False))])
def test_contexts_between_two_that_are_known_are_met_to_the_byte(name: str, flash: bool) -> None:
    for cells in (4096, 65536, *range(5120, 65536, 5120), 5376, 65280):
        require_equal(resolve(name), "Q4_K_M", {"ctx_size": cells, "flash_attention": flash})


def test_what_repeats_is_left_out_by_the_cycle() -> None:
    first = REPEATS + CYCLE  # of so many alike, CYCLE can go; of one less, none
    assert list(kept_layers([0] * first)) == list(range(REPEATS))
    assert list(kept_layers([0] * (first - 1))) == list(range(first - 1))
    assert len(list(kept_layers([0] * (REPEATS + 75)))) == REPEATS + 75 % CYCLE
    # a pattern of four layers, and what comes before and behind it
    kinds = [9, *([0, 0, 0, 1] * first), 2]
    assert [kinds[layer] for layer in kept_layers(kinds)] == [9, *([0, 0, 0, 1] * REPEATS), 2]
    assert list(kept_layers([0, 1, 2, 3])) == [0, 1, 2, 3]
