"""Records what vLLM holds of a model's weights once it has loaded them, into tests/data/vllm_weights.json.

vLLM's own loader runs on a CUDA device without hardware (tests/nullcuda), at full size: memory there is address space.
Nothing of the figures is computed here: ``bytes`` is what PyTorch's allocator was asked for and not given back between
before and after ``get_model(load_format="dummy")``, ``process_weights_after_loading`` included, less cuBLAS's workspace
and the lookup tables that belong to no module (under 200 bytes). The tensors are those that the modules hold, each
storage once. What vLLM refuses is recorded as ``refused``, with its message, and what the null device cannot do as
``failed``.

Run by hand, in a virtual environment of Python 3.12 with vllm (and the torch that it pins), from tests/nullcuda:

    USERS=$(echo $SITE/torch/lib/lib{c10_cuda,torch_cuda,torch_python,torch_cuda_linalg}.so $SITE/vllm/*.so \\
        $SITE/vllm/vllm_flash_attn/*.so $SITE/vllm/third_party/deep_gemm/*.so)
    make stubs.c SITE=$SITE USERS="$USERS"
    python ../record_vllm_weights.py driver >> stubs.c
    make SITE=$SITE USERS="$USERS"
    export NULLCUDA_BOOL=0 NULLCUDA_CAPACITY_BYTES=65970697666560 LD_LIBRARY_PATH=$SITE/nvidia/cu13/lib
    for sm in 80 86 89 90 100 120; do NULLCUDA_SM=$sm ./run.sh VENV/bin/python ../record_vllm_weights.py record; done

A case of which the process dies stays ``failed``; run it again for the rest. vLLM's settings are its defaults:
``--enforce-eager`` would hold DeepSeek's rotary table in float32.

Recorded with vLLM 0.33.0 (its wheel for CUDA 13.0), torch 2.14.0+cu130, transformers 5.20.2, Python 3.12.
"""

import ctypes
import gc
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "vllm_weights.json"

DRIVER = """
#define NOTHING(name) int name(void) { return 0; }
#define GIVES(name, type, value) int name(type *result) { *result = (type)(value); return 0; }
NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryUnload)
NOTHING(cuModuleUnload)
NOTHING(cuPointerGetAttribute)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuTensorMapEncodeTiled)
void *dlsym(void *library, const char *name);
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    *function = dlsym((void *)0, name);
    if (status) *status = 0;
    return (void)version, (void)flags, *function ? 0 : 500;
}
GIVES(cuCtxGetLimit, unsigned long, 8 << 20)
GIVES(cuFuncGetAttribute, int, 0)
GIVES(cuKernelGetFunction, void *, 16)
GIVES(cuLibraryEnumerateKernels, void *, 16)
GIVES(cuLibraryGetKernelCount, unsigned, 1)
GIVES(cuLibraryLoadFromFile, void *, 16)
GIVES(cuModuleGetFunction, void *, 16)
GIVES(cuModuleLoad, void *, 16)
GIVES(cuModuleLoadData, void *, 16)
GIVES(cuModuleLoadDataEx, void *, 16)
GIVES(cuOccupancyMaxActiveClusters, int, 1)
"""
"""Functions of the driver that Triton, DeepGEMM and CUTLASS ask for, beside those of nullcuda.c."""

PUBLISHED = {
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 8, "topk_group": 4},
    "kimi_k2": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1},
    "minimax_m2": {"scoring_func": "sigmoid"},
}
"""Keys of published config.json files that vLLM reads and the catalogue, made for transformers, leaves out."""

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
TOKENS = {"strategy": "token", "dynamic": True, "symmetric": True}


def compressed(written: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    row = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": written,
        "config_groups": {"group_0": row},
        "ignore": ["lm_head", "re:.*(gate|router)$", "re:.*(vision|visual|multi_modal).*"],
        "quantization_status": "compressed",
    }


def gptq(**changes: Any) -> dict[str, Any]:
    own = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    return {**own, "dynamic": {r"-:.*mlp\.gate$": {}}, **changes}


def awq(**changes: Any) -> dict[str, Any]:
    own = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    return {**own, **changes}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ORIGINAL_4K = {"original_max_position_embeddings": 4096}
ORIGINAL_32K = {"original_max_position_embeddings": 32768}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}

SKIPPED = {"modules_to_not_convert": ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "lm_head"]}

FORMATS: dict[str, dict[str, Any]] = {
    "gptq": gptq(),
    "gptq-int8": gptq(bits=8),
    "gptq-column": gptq(group_size=-1),
    "gptq-ordered": gptq(desc_act=True),
    "gptq-asymmetric": gptq(sym=False),
    "awq": awq(),
    "awq-routed": awq(modules_to_not_convert=["mlp.gate"]),  # a part of a name: it would skip gate_up_proj as well
    "w4a16": compressed("pack-quantized", INT4),
    "w4a16-asym": compressed("pack-quantized", {**INT4, "symmetric": False}),
    "w8a16": compressed("pack-quantized", {**INT4, "num_bits": 8}),
    "w8a8": compressed(
        "int-quantized",
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        {"num_bits": 8, "type": "int", **TOKENS},
    ),
    "ct-fp8": compressed(
        "float-quantized",
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
        {"num_bits": 8, "type": "float", **TOKENS},
    ),
    "ct-nvfp4": compressed(
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
        {
            **{"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
            "dynamic": "local",
        },
    ),
    "fp8-static": {"quant_method": "fp8", "activation_scheme": "static", **SKIPPED},
    "fp8-dynamic": {"quant_method": "fp8", "activation_scheme": "dynamic", **SKIPPED},
    "fp8-blocks": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], **SKIPPED},
    "nvfp4": {
        **{"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None},
        "ignore": ["lm_head", "*mlp.gate"],
    },
    "modelopt-fp8": {
        **{"quant_method": "modelopt", "quant_algo": "FP8"},
        "ignore": ["lm_head", "*.gate", "*router*", "*shared_expert_gate", "*vision*", "*visual*", "*multi_modal*"],
    },
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "hqq": {"quant_method": "hqq", "bits": 4, "group_size": 64},
}
ONLINE = ("fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel")
QUANTIZED = {"llama-3.1-8b": 2, "qwen3-30b-a3b": 2, "qwen2.5-0.5b": 2, "deepseek-v2-lite": 2}
"""Models that formats are made of, cut to a few layers."""
LATENT = ("fp8-blocks", "fp8-static", "w4a16", "awq", "fp8_per_tensor")
"""Formats that are made of the one with latent attention too."""

SCALED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("llama-3.1-8b", 2, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3}}),
    ("llama-2-7b", 2, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("llama-2-7b", 2, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    ("falcon-7b", 2, {"alibi": True}),
    ("qwen3-8b", 2, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL_32K}}),
    ("gemma-3-4b", 6, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("deepseek-v2-lite", 2, {"rope_scaling": {"type": "yarn", "factor": 40, **ORIGINAL_4K}}),
    ("phi-4-mini", 2, {"rope_scaling": {"type": "longrope", **FACTORS}, **ORIGINAL_4K}),
)
"""Models with a ``rope_scaling``, which the catalogue's configs leave out."""

CAPABILITIES = (80, 86, 89, 90, 100, 120)


ENDED = "the process ended"
CONFIGS: dict[str, Any] = {}
"""The catalogue's configs as they were recorded."""


def case(model: str, *, layers: int | None = None, **request: Any) -> dict[str, Any]:
    return {"model": model, "layers": layers, "dtype": "bfloat16", "capability": 90, **request}


OTHERS = (
    *("apertus-8b", "aya-23-8b", "bloom-176b", "falcon-7b", "gemma-2-2b", "gemma-3-1b", "gemma-3-4b", "gemma-7b"),
    *("glm-4-9b", "glm-4.5-air", "gpt-j-6b", "gpt2", "granite-3.1-2b", "llama-4-scout", "mistral-7b-v0.3"),
    *("mixtral-8x7b", "nemotron-h-56b", "olmo-2-7b", "opt-1.3b", "phi-2", "phi-3.5-moe", "phi-4-mini"),
    *("pythia-6.9b", "qwen3-0.6b", "qwen3-next-80b-a3b", "qwen3.5-9b", "seed-oss-36b", "smollm3-3b"),
    *("stablelm-2-1.6b", "starcoder2-7b"),
)
"""A model of each other class, of which two formats are made: what is joined to one layer shows in their scalars."""


def cases(names: list[str]) -> Iterator[dict[str, Any]]:
    yield from (case(name) for name in names)
    for dtype in ("float16", "float32"):
        yield from (case(name, layers=2, dtype=dtype) for name in ("llama-3.2-1b", "gpt2", "qwen3-30b-a3b"))
    yield from (case(name, layers=4, dtype="float16") for name in ("glm-4.5-air", "qwen3-next-80b-a3b", "qwen3.5-9b"))
    yield from (case(name, layers=layers, config=rope) for name, layers, rope in SCALED)
    for capability in (80, 100):
        for name in ("llama-3.2-1b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "qwen3-next-80b-a3b"):
            yield case(name, layers=4, capability=capability)
    for capability in (80, 86, 89, 100, 120):
        for name in ("gpt-oss-20b", "deepseek-v3", "minimax-m2.5"):
            yield case(name, layers=4, capability=capability)
    for model in OTHERS:
        yield case(model, layers=4, format="w4a16")
        yield case(model, layers=4, capability=100, format="modelopt-fp8")
    for model, layers in QUANTIZED.items():
        for capability in CAPABILITIES:
            for name in (*FORMATS, *ONLINE):
                routed = name == ("awq" if "a3b" in model else "awq-routed")
                if not routed and ("deepseek" not in model or name in LATENT):
                    chosen = "format" if name in FORMATS else "quantization"
                    yield case(model, layers=layers, capability=capability, **{chosen: name})


def tensors_of(value: Any, seen: set[int], depth: int = 0) -> Iterator[Any]:
    """Every tensor that an object holds, modules apart."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
        return
    if depth == 8 or id(value) in seen or isinstance(value, type | torch.nn.Module | str | bytes):
        return
    seen.add(id(value))
    if isinstance(value, list | tuple | set):
        inner: Any = value
    elif type(value).__module__.startswith(("vllm.config", "transformers", "torch.distributed")):
        return
    else:
        inner = list((value if isinstance(value, dict) else getattr(value, "__dict__", {})).values())
    for item in inner:
        yield from tensors_of(item, seen, depth + 1)


def held_by(model: Any) -> Iterator[list[Any]]:
    """Name, shape, dtype and bytes of every storage on the device that a module of ``model`` holds."""
    import torch

    storages: set[int] = set()
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        for key, value in {**module._parameters, **module._buffers, **own}.items():
            for tensor in tensors_of(value, seen):
                storage = tensor.untyped_storage()
                is_workspace = key == "impl" and tensor.dtype == torch.uint8  # FlashInfer's, one a process
                if tensor.is_cuda and not is_workspace and storage.nbytes() and storage.data_ptr() not in storages:
                    storages.add(storage.data_ptr())
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    name = re.sub(r"(?<=\.)\d+(?=\.)", "{}", f"{module_name}.{key}")
                    yield [name, list(tensor.shape), dtype, storage.nbytes()]


def keep_repeats() -> None:
    """A device that stores nothing cannot say how long ``repeat_interleave`` gets: remember what it was told."""
    import torch

    answer = ctypes.c_int.in_dll(ctypes.CDLL(None), "nullcuda_bool")
    made, repeat, told = torch.Tensor.new_tensor, torch.Tensor.repeat_interleave, {}

    def new_tensor(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        tensor = made(self, data, *args, **kwargs)
        told[id(tensor)] = (tensor, data)
        return tensor

    def repeat_interleave(self: Any, repeats: Any, dim: Any = None, **kwargs: Any) -> Any:
        known = told.pop(id(repeats), None)
        if known is None:
            return repeat(self, repeats, dim, **kwargs)
        answer.value = 1  # "all of them are positive"
        try:
            return repeat(self, repeats, dim, output_size=sum(known[1]), **kwargs)
        finally:
            answer.value = 0

    torch.Tensor.new_tensor, torch.Tensor.repeat_interleave = new_tensor, repeat_interleave


def requested_bytes() -> int:
    import torch

    torch.cuda.init()
    gc.collect(), gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def config_of(wanted: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from analytic.models import catalog
    from analytic.models.twin import twin_config

    config = dict(CONFIGS.setdefault(wanted["model"], catalog.load(wanted["model"]).config))
    if wanted["layers"]:
        config = twin_config(config, layers=wanted["layers"])
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **wanted.get("config", {})}
    else:
        config |= wanted.get("config", {})
    if "format" in wanted:
        config["quantization_config"] = FORMATS[wanted["format"]]
    if config.get("rope_scaling", 0) is None:  # GPT-J's file has no such key, and vLLM's takes no null
        del config["rope_scaling"]
    return {**config, **PUBLISHED.get(str(config["model_type"]), {})}


def load(wanted: dict[str, Any]) -> tuple[Any, int]:
    """The model as vLLM's loader leaves it, and what the device was asked for meanwhile."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader import get_model

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_of(wanted)), encoding="utf-8")
        config = EngineArgs(
            model=folder,
            dtype=wanted["dtype"],
            quantization=wanted.get("quantization"),
            load_format="dummy",
            skip_tokenizer_init=True,
        ).create_engine_config()
        rotary_embedding._ROPE_DICT.clear()
        before = requested_bytes()
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                init_distributed_environment(1, 0, f"file://{tempfile.mkdtemp()}/store", 0, "gloo")
            destroy_model_parallel()
            ensure_model_parallel_initialized(1, 1)
            model = get_model(vllm_config=config)
        return model, requested_bytes() - before


def told(error: Exception) -> str:
    said = re.sub(r"\S*/\S+", "", str(error))
    return f"{type(error).__name__}: {' '.join(said.split())[:160]}"


def record(wanted: dict[str, Any], load: Callable[[dict[str, Any]], tuple[Any, int]] = load) -> dict[str, Any]:
    try:
        model, requested = load(wanted)
    except (ValueError, NotImplementedError, AssertionError, ZeroDivisionError) as error:
        return {**wanted, "refused": told(error)}
    except RuntimeError as error:  # of the null device: what is computed there is not computed
        return {**wanted, "failed": told(error)}
    rows = [(row[0], *map(str, row[1:3]), row[3]) for row in held_by(model)]
    held = sum(row[3] for row in rows)
    counts = Counter(rows)
    return {
        **wanted,
        "class": type(model).__name__,
        "bytes": held,
        "not_of_modules_bytes": requested - held,
        "tensors": [[*row, count] for row, count in counts.items()],
    }


def key_of(case: dict[str, Any]) -> str:
    keys = ("model", "layers", "dtype", "capability", "format", "quantization", "config")
    return json.dumps([case.get(key) for key in keys], sort_keys=True)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def write(cases: Iterable[dict[str, Any]]) -> None:
    """A line a case, with tensors the first of each class, and of each format by capability; of experts one."""
    shown: set[Any] = set()
    lines = []
    for case in cases:
        made = case.get("format") or case.get("quantization")
        routed = "a3b" in case["model"]
        kind = (made, "experts" if routed else case["capability"]) if made else case.get("class")
        if made and "tensors" in case:  # what is not packed is the same everywhere
            case["tensors"] = [
                row for row in case["tensors"] if "layers.{}." in row[0] and not re.search(r"norm|\._", row[0])
            ]
        hidden = {key for key, value in case.items() if value == 0 or (key == "tensors" and kind in shown)}
        lines.append(compact({key: value for key, value in case.items() if key not in hidden}))
        shown.add(kind)
    head = "".join(f'"{name}":{compact(value)},\n' for name, value in (("formats", FORMATS), ("configs", CONFIGS)))
    text = ",\n".join(lines)
    FILE.write_text(f'{{{head}"cases":[\n{text}\n]}}\n', encoding="utf-8")


def main() -> None:
    if sys.argv[1:] == ["driver"]:
        print(DRIVER)
        return
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        | {"TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
    )
    keep_repeats()
    names = sorted(path.stem for path in (Path(__file__).parents[1] / "analytic" / "models" / "catalog").glob("*.json"))
    found = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"configs": {}, "cases": []}
    CONFIGS.update(found["configs"])
    done = {key_of(case): case for case in found["cases"]}
    for wanted in cases(names):
        if wanted["capability"] != int(os.environ["NULLCUDA_SM"]) or key_of(wanted) in done:
            continue
        done[key_of(wanted)] = {**wanted, "failed": ENDED}  # stays where the process dies of it
        write(done.values())
        done[key_of(wanted)] = outcome = record(wanted)
        print(*(str(value)[:160] for key, value in outcome.items() if key != "tensors"), flush=True)
    write(done.values())


if __name__ == "__main__":
    main()
