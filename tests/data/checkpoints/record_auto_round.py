"""Record what AutoRound exports of tiny models: `python record_auto_round.py auto_round.json`.

Needs auto-round, torch and transformers; runs on a processor and downloads nothing: weights are rounded to nearest,
calibration sees random tokens.
"""

import json
import os
import struct
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from auto_round import AutoRound
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
EXPERTS = {**SIZES, "head_dim": 64, "num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
FREE = {"model_free": True}  # shard by shard, without building the model: what AutoRound does where it can
MODEL = {"disable_model_free": True}

INTEGERS = [
    ("auto_round", {"scheme": f"W{bits}A16", "sym": sym, "group_size": group, **MODEL})
    for bits in (2, 3, 4, 5, 6, 7, 8)
    for sym in (True, False)
    for group in (32, 128, -1)
    if not (bits in (5, 6, 7) and sym) and not (bits == 8 and not sym)  # AutoRound refuses these
]
PACKINGS = [
    (packing, {"scheme": "W4A16", "sym": sym, "group_size": group, **MODEL})
    for packing in ("auto_round:auto_awq", "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_gptq", "auto_awq")
    for sym in (True, False)
    for group in (32, -1)
]
OTHERS = [
    ("auto_gptq", {"scheme": "W8A16", **MODEL}),
    ("auto_round:mlx", {"scheme": "W4A16", **MODEL}),
    ("auto_round:mlx", {"scheme": "W8A16", "group_size": 64, **MODEL}),
    ("auto_round:llm_compressor", {"scheme": "W4A16", **MODEL}),
    *[
        ("auto_round", {"scheme": scheme, **MODEL})
        for scheme in ("MXFP4", "MXFP4_RCEIL", "MXFP8", "NVFP4", "NVFP4_E5M3", "MXINT4")
    ],
    *[("auto_round", {"scheme": scheme, **MODEL}) for scheme in ("FPW8A16", "FP8_STATIC", "BF16")],
    *[(packing, {"scheme": "FP8_BLOCK", **FREE}) for packing in ("auto_round:fp8", "fp8", "auto_round:llm_compressor")],
    *[("auto_round", {"scheme": scheme, **FREE}) for scheme in ("W4A16", "W2A16G32", "W8A16", "MXFP4", "MXFP8")],
    ("auto_round", {"scheme": "W4A16", "quant_lm_head": True, **FREE}),
    (
        "auto_round",
        {"scheme": "W2A16G32", "layer_config": {"down_proj": {"bits": 8}, "self_attn": {"group_size": -1}}, **MODEL},
    ),
    ("auto_round", {"scheme": "W4A16", "layer_config": {"model.layers.0.self_attn.q_proj": {"bits": 16}}, **MODEL}),
    ("auto_round", {"scheme": "MXFP4", "layer_config": {"down_proj": {"bits": 8, "act_bits": 8}}, **MODEL}),
]
MIXTURES = [("auto_round", {"scheme": scheme, **how}) for scheme in ("W4A16", "MXFP4") for how in (MODEL, FREE)]


def build(kind):
    torch.manual_seed(0)
    model = (
        LlamaForCausalLM(LlamaConfig(**SIZES)) if kind == "llama" else Qwen3MoeForCausalLM(Qwen3MoeConfig(**EXPERTS))
    )
    model.config.architectures = [type(model).__name__]
    return model.to(torch.bfloat16)


def tokenizer():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")


def header(folder):
    """What each module holds; those that hold the same together: [[modules, {tensor: [dtype, shape]}], ...]."""
    modules = {}
    for path in sorted(folder.rglob("*.safetensors")):
        blob = path.read_bytes()
        entries = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]])
        for name, entry in entries.items():
            if name != "__metadata__":
                module, _, tensor = name.rpartition(".")
                modules.setdefault(module, {})[tensor] = [entry["dtype"], entry["shape"]]
    alike = {}
    for module, held in sorted(modules.items()):
        alike.setdefault(json.dumps(held, sort_keys=True), []).append(module)
    return [[names, json.loads(held)] for held, names in alike.items()]


def export(model, packing, asked, folder):
    """What AutoRound writes into a folder."""
    source = model, tokenizer()
    if "model_free" in asked:
        for part in source:
            part.save_pretrained(folder / "dense")
        source = (str(folder / "dense"),)
    tokens = [{"input_ids": torch.randint(0, 500, (1, 32))}] * 2
    calibration = {} if "model_free" in asked else {"dataset": tokens, "nsamples": 2, "seqlen": 32}
    made = AutoRound(*source, iters=0, disable_opt_rtn=True, device_map="cpu", **calibration, **asked)
    made.quantize_and_save(str(folder / "out"), format=packing)
    return folder / "out"


def case(kind, packing, asked):
    with tempfile.TemporaryDirectory() as folder:
        out = export(build(kind), packing, asked, Path(folder))
        config = json.loads(next(iter(out.rglob("config.json"))).read_text())
        made = {"quantization_config": config["quantization_config"], "header": header(out)}
    print(packing, asked, file=sys.stderr)
    return {"model": kind, "format": packing, "asked": asked, **made}


def matrix(packing, asked):
    """Of one matrix only, [256, 512]."""
    made = case("llama", packing, asked)
    held = next(held for names, held in made["header"] if "model.layers.0.mlp.down_proj" in names)
    return {"quantization_config": made["quantization_config"], "shape": [256, 512], "tensors": held}


if __name__ == "__main__":
    whole = [("llama", *row) for row in OTHERS] + [("qwen3_moe", *row) for row in MIXTURES]
    cases = [case(*row) for row in whole] + [matrix(*row) for row in (*INTEGERS, *PACKINGS)]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in cases)
    head = ", ".join(f'"{name}": "{version(name)}"' for name in ("auto-round", "torch", "transformers"))
    Path(sys.argv[1]).write_text(f'{{\n {head}, "cases": [\n{rows}\n ]\n}}\n')
