"""Models on the meta device: every tensor's name, shape and dtype, without a byte of weights.

The installed transformers builds the model; its own quantisers say which modules they convert.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers.auto import AutoHfQuantizer

from analytic.errors import UllageError
from analytic.models.inventory import TensorGroup, parameters
from analytic.models.roles import role_of

BUILT_AS = {"kimi_k2": "deepseek_v3"}
"""Published model types whose checkpoints name another type's classes as their architecture."""

STACKED_ON_DISK = frozenset({"qwen3_5_moe_text"})
"""Text model types whose published checkpoints hold experts stacked, though transformers would save them one by one."""

_AS_STORED = "give the checkpoint's safetensors beside its config: they are counted as stored"

_FIXED_DTYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
    torch.complex64: "complex64",
}


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tensor inventory of a published ``config``: ``architecture`` (class name), ``parameters`` and ``tensors``.

    Raises:
        UllageError: the installed transformers cannot build this config.
    """
    model = build(config)
    tensors = _with_conversions(list(_tensors(model)), model)
    groups = tuple(_group(_with_native_format(tensors, config)))
    return {"architecture": type(model).__name__, "parameters": parameters(groups), "tensors": groups}


def published_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of ``model`` under the names and in the shapes of a published checkpoint, ties once."""
    tied = model.all_tied_weights_keys
    state = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in tied}
    kept = {}
    if model.config.get_text_config().model_type in STACKED_ON_DISK:
        kept = {name: state.pop(name) for name in list(state) if ".experts." in name}
    return dict(revert_weight_conversion(model, state)) | kept


def build(config: Mapping[str, Any]) -> Any:
    """The model of ``config`` on the meta device in bfloat16, before any quantisation.

    Raises:
        UllageError: unknown model type or class, or a config that its class refuses.
    """
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    plain = {k: deepcopy(v) for k, v in config.items() if k not in ("model_type", "quantization_config")}
    model_type = str(config["model_type"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # published configs keep older names
            resolved = transformers.AutoConfig.for_model(BUILT_AS.get(model_type, model_type), **plain)
        with torch.device("meta"):
            return model_class(resolved)._from_config(resolved, dtype=torch.bfloat16)
    except UllageError:
        raise
    except Exception as error:
        raise UllageError(
            f"transformers {transformers.__version__} cannot build a {model_type!r} model: {_first_line(error)}",
            hint="a newer transformers may know it; models that need remote code are not run",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def model_class(config: Any) -> Any:
    """The class that a transformers ``config`` names as its architecture, or the one that generates text for its type.

    Raises:
        UllageError: the installed transformers has no such class, or it does not generate text.
    """
    causal = transformers.AutoModelForCausalLM._model_mapping
    default = causal.get(type(config), None)
    name = next(iter(config.architectures or ()), None)
    model_class = default if name is None else getattr(transformers, name, default)
    if model_class is None or (name is not None and name.lower() != model_class.__name__.lower()):
        raise UllageError(
            f"transformers {transformers.__version__} has no class {name or config.model_type}",
            hint="a newer transformers may have it; models that need remote code are not run",
        )
    if not issubclass(model_class, transformers.GenerationMixin):
        raise UllageError(
            f"config.json: a {name} does not generate text",
            hint="give the config of a language model with its output head, such as LlamaForCausalLM",
        )
    return model_class


def _tensors(model: Any) -> Iterator[TensorGroup]:
    """Every tensor once, ties under the name that stays."""
    persistent = set(model.state_dict())
    parameter_names = {name for name, _ in model.named_parameters()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        yield TensorGroup(
            name=name,
            role=role_of(name, module=owner, parameter=name in parameter_names),
            shape=tuple(tensor.shape),
            stored=_stored(name, tensor, model),
            module=owner,
            persistent=name in persistent,
        )


def _stored(name: str, tensor: Any, model: Any) -> str:
    """The dtype that from_pretrained leaves it in (transformers/modeling_utils.py, dtype plan)."""
    if tensor.dtype != torch.bfloat16:
        return _FIXED_DTYPES[tensor.dtype]
    for keep, stored in (
        (model._keep_in_fp32_modules_strict, "float32-unless-float64"),
        (model._keep_in_fp32_modules, "float32-if-float16"),
    ):
        if any(re.search(pattern.replace("*", ".*"), name) for pattern in keep or ()):
            return stored
    return "model"


def _with_conversions(tensors: list[TensorGroup], model: Any) -> list[TensorGroup]:
    """Mark the weights whose modules transformers' bitsandbytes quantiser replaces in ``model`` (consumed)."""
    _untie(model)
    quantizer = AutoHfQuantizer.from_config(transformers.BitsAndBytesConfig(load_in_4bit=True), pre_quantized=False)
    quantizer._process_model_before_weight_loading(model, device_map={"": "cuda"})
    converted = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    return [replace(t, converts=True) if t.name in converted else t for t in tensors]


def _untie(model: Any) -> None:
    """As from_pretrained has it until its weights are loaded: the last parameter may be a head that will be tied."""
    for name in model.all_tied_weights_keys:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, leaf, torch.nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))


def _with_native_format(tensors: list[TensorGroup], config: Mapping[str, Any]) -> list[TensorGroup]:
    """Mark the tensors that the published checkpoint keeps in another dtype, by its own quantiser's rules."""
    native = config.get("quantization_config")
    if native is None:
        return tensors
    method = native.get("quant_method")
    if method not in _NATIVE:
        raise UllageError(
            f"quantization_config: {method!r} is not modelled from a config alone",
            hint=f"known: {', '.join(_NATIVE)}; {_AS_STORED}",
        )
    stored = _NATIVE[method](dict(native), build(config))
    return [replace(t, stored=stored.get(t.name, t.stored)) for t in tensors]


def _native_fp8(native: dict[str, Any], model: Any) -> dict[str, str]:
    block = native.get("weight_block_size")
    if block != [128, 128]:
        raise UllageError(f"quantization_config: fp8 with weight_block_size {block} is not modelled", hint=_AS_STORED)
    if (scale := native.get("scale_fmt") or "float") != "float":
        raise UllageError(f"quantization_config: fp8 with scale_fmt {scale!r} is not modelled", hint=_AS_STORED)
    AutoHfQuantizer.from_config(native, pre_quantized=True)._process_model_before_weight_loading(model)
    return {name: "fp8-128x128" for name, p in model.named_parameters() if p.dtype == torch.float8_e4m3fn}


def _native_mxfp4(native: dict[str, Any], model: Any) -> dict[str, str]:
    from transformers.integrations.mxfp4 import replace_with_mxfp4_linear

    quantizer = AutoHfQuantizer.from_config(native, pre_quantized=True)
    skipped = quantizer.get_modules_to_not_convert(
        model, quantizer.quantization_config.modules_to_not_convert, model._keep_in_fp32_modules
    )
    with patch("transformers.integrations.hub_kernels.get_kernel"):  # fetches GPU kernels that no meta model runs
        replace_with_mxfp4_linear(
            model, modules_to_not_convert=skipped, quantization_config=quantizer.quantization_config
        )
    formats = {torch.uint8: "mxfp4", torch.float32: "float32"}
    return {
        re.sub("_(blocks|scales)$", "", name): formats[p.dtype]
        for name, p in model.named_parameters()
        if p.dtype in formats
    }


_NATIVE = {"fp8": _native_fp8, "mxfp4": _native_mxfp4}


def _group(tensors: list[TensorGroup]) -> Iterator[TensorGroup]:
    """Fold tensors that differ only in their layer index into one row, in order of first appearance."""
    split = [_split_layer(t) for t in tensors]
    order = {key: i for i, key in reversed([*enumerate(key for key, _ in split)])}
    for key, members in groupby(sorted(split, key=lambda s: order[s[0]]), key=lambda s: s[0]):
        layers = [layer for _, layer in members]
        yield key if layers[0] is None else replace(key, layers=tuple(sorted(i for i in layers if i is not None)))


def _split_layer(tensor: TensorGroup) -> tuple[TensorGroup, int | None]:
    match = re.search(r"\.(\d+)\.", tensor.name)
    if match is None:
        return tensor, None
    return replace(tensor, name=f"{tensor.name[: match.start(1)]}{{}}{tensor.name[match.end(1) :]}"), int(match[1])
