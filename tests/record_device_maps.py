"""Record where transformers places catalogue models on several GPUs: ``tests/data/device_maps.json``.

Run ``PYTHONPATH=.:tests python tests/record_device_maps.py`` (recorded with transformers 5.23.0, accelerate 1.15.0,
bitsandbytes 0.50.2): it asks the functions that ``from_pretrained`` calls, for each model at full size on the meta
device. A row is what was asked, and the map with layers in a row under one key, or ``refused``.
"""

import json
import logging
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import BitsAndBytesConfig
from transformers.integrations import accelerate
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.generic import ContextManagers

from analytic.models import catalog
from analytic.weights import weigh
from profiler.models import build

PATH = Path(__file__).parent / "data" / "device_maps.json"

MODELS: dict[str, tuple[str | None, ...]] = {
    "apertus-8b": (None,),
    "aya-23-8b": (None, "bnb-int8"),
    "bloom-176b": (None, "bnb-int8"),
    "command-r": (None,),
    "deepseek-v2-lite": (None, "bnb-nf4"),
    "deepseek-v3": (None,),
    "falcon-40b": (None, "bnb-nf4"),
    "gemma-2-9b": (None, "bnb-nf4"),
    "gemma-3-1b": (None,),
    "gemma-3-27b": (None, "bnb-nf4", "bnb-int8"),
    "gemma-4-26b-a4b": (None, "bnb-nf4"),
    "glm-4-9b": (None,),
    "glm-4.5-air": (None,),
    "gpt-oss-20b": (None,),
    "gpt2-xl": (None, "bnb-int8"),
    "gpt-neox-20b": (None,),
    "granite-3.1-2b": (None,),
    "llama-2-70b": (None, "bnb-nf4", "bnb-int8"),
    "llama-3.2-3b": (None, "bnb-nf4"),
    "llama-4-scout": (None, "bnb-nf4"),
    "minimax-m2.5": (None, "none"),
    "mixtral-8x7b": (None, "bnb-nf4"),
    "nemotron-h-56b": (None,),
    "nemotron-3-nano-30b-a3b": (None,),
    "olmo-3-7b": (None,),
    "opt-66b": (None,),
    "phi-2": (None,),
    "phi-3.5-moe": (None,),
    "phi-4": (None, "bnb-int8"),
    "qwen2.5-7b": (None,),
    "qwen3-30b-a3b": (None, "bnb-nf4"),
    "qwen3-next-80b-a3b": (None,),
    "qwen3.5-27b": (None, "bnb-nf4"),
    "qwen3.5-35b-a3b": (None,),
    "stablelm-2-1.6b": (None,),
    "starcoder2-7b": (None,),
}
"""Catalogue models, and the formats that each is placed in."""

ROOMS: tuple[tuple[str, tuple[float, ...], float | None, bool], ...] = (
    ("auto", (0.75, 0.75), None, False),
    ("auto", (0.6, 0.6, 0.6), 1.0, True),
    ("auto", (0.5, 0.25, 1.0), 0.5, False),
    ("balanced", (0.2,) * 8, 1.0, False),
    ("balanced_low_0", (0.5, 0.5, 0.5, 0.5), None, False),
    ("sequential", (0.3, 0.5, 0.4, 0.1), 0.2, True),
    ("auto", (0.3, 0.3), 1.5, False),
    ("auto", (1.3,), 0.5, True),
)
"""Strategy, the memory of each GPU and of the host as shares of the weights, and whether it is what is free."""


def rows(name: str) -> Iterator[list[Any]]:
    """What transformers says of one model, in each room."""
    model = catalog.load(name)
    for quantization in MODELS[name]:
        dtype = "float32" if name.startswith("gpt2") else "bfloat16"
        real, quantizer = prepared(model.config, quantization, dtype)
        total = weigh(model, dtype=dtype, quantization=quantization).bytes
        rooms = [
            (
                strategy,
                [int(total * share) for share in (*gpus, *([] if host is None else [host]))],
                host is not None,
                free,
            )
            for strategy, gpus, host, free in ROOMS
        ]
        least = least_room(real, quantizer, total)
        for strategy, sizes, has_host, is_free in [
            *rooms,
            *(("sequential", [least - n], False, False) for n in (0, 1)),
        ]:
            memory: dict[Any, int] = dict(enumerate(sizes))
            if has_host:
                memory["cpu"] = memory.pop(len(sizes) - 1)
            found = real_map(real, quantizer, strategy, memory, is_free=is_free)
            said = "refused" if isinstance(found, str) else folded(found)
            yield [name, dtype, quantization, strategy, sizes, has_host, is_free, said]


def least_room(real: Any, quantizer: Any, total: int) -> int:
    """The least memory of a single GPU that transformers puts the whole model on: its sizes, to the byte."""
    rooms = range(3 * total)
    return bisect_left(
        rooms, True, key=lambda room: real_map(real, quantizer, "sequential", {0: room}, is_free=False) == {"": 0}
    )


def prepared(config: Mapping[str, Any], quantization: str | None, dtype: str) -> tuple[Any, Any]:
    """The model on the meta device as it is when ``from_pretrained`` asks where it goes, and its quantiser."""
    real, native, quantizer = build(config), config.get("quantization_config"), None
    if dtype != "bfloat16":
        with torch.device("meta"):
            real = type(real)._from_config(real.config, dtype=getattr(torch, dtype))
    for name in real.all_tied_weights_keys:  # tied once they are loaded
        module, leaf = real.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(module, leaf, torch.nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))
    if native is not None:
        says = {"dequantize": True} if quantization == "none" else {}
        quantizer = AutoHfQuantizer.from_config({**native, **says}, pre_quantized=True)
    elif quantization == "bnb-int8":
        quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_8bit=True), pre_quantized=False)
    elif quantization == "bnb-nf4":
        config4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        quantizer = AutoHfQuantizer.from_config(config4, pre_quantized=False)
    if quantizer is not None:
        contexts = type(real).get_init_context(getattr(torch, dtype), True, False, False)
        kernels = patch("transformers.integrations.hub_kernels.get_kernel")  # fetches what no meta model runs
        with ContextManagers([*contexts, kernels]):
            # without kernels, mxfp4 is dequantised where there is no GPU
            quantizer._process_model_before_weight_loading(real, device_map="auto", use_kernels=True)
    return real, quantizer


def real_map(
    real: Any, quantizer: Any, strategy: str, memory: Mapping[Any, int], *, is_free: bool
) -> dict[str, int | str] | str:
    """The map that transformers makes, or the name of its error; ``is_free`` makes the machine have this memory."""
    limits = accelerate.accelerate_max_memory

    def has(given: Mapping[Any, int] | None) -> Mapping[Any, int]:
        return limits(given) if given is not None else dict(memory)

    with patch.object(accelerate, "accelerate_max_memory", has):
        try:
            return dict(accelerate._get_device_map(real, strategy, None if is_free else dict(memory), quantizer))
        except ValueError as error:
            return type(error).__name__


def folded(devices: Mapping[str, int | str]) -> dict[str, int | str]:
    """With one key for members of a list in a row that are on one device: ``model.layers.0-9``."""
    spans: list[tuple[str, int, int, int | str]] = []
    numbered = sorted((m[1], int(m[2]), d) for n, d in devices.items() if (m := re.fullmatch(r"(.*)\.(\d+)", n)))
    for prefix, index, device in numbered:
        if spans and spans[-1][:1] == (prefix,) and spans[-1][2:] == (index - 1, device):
            spans[-1] = (prefix, spans[-1][1], index, device)
        else:
            spans.append((prefix, index, index, device))
    others = {name: device for name, device in devices.items() if not re.fullmatch(r".*\.\d+", name)}
    return dict(sorted(others.items())) | {f"{name}.{first}-{last}": on for name, first, last, on in spans}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    lines = (json.dumps(row, separators=(",", ":")) for name in MODELS for row in rows(name))
    PATH.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
