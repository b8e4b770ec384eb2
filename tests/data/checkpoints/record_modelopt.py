"""Record what ModelOpt exports of a tiny Llama: `python record_modelopt.py modelopt.json`.

Needs nvidia-modelopt, torch and transformers; runs on a processor.
"""

import json
import struct
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
CASES = {
    "fp8": (mtq.FP8_DEFAULT_CFG, False),
    "fp8-kv-fp8": (mtq.FP8_DEFAULT_CFG, True),
    "nvfp4": (mtq.NVFP4_DEFAULT_CFG, False),
    "nvfp4-kv-fp8": (mtq.NVFP4_DEFAULT_CFG, True),
    "int4-awq": (mtq.INT4_AWQ_CFG, False),
}


def header(folder):
    blob = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    entries = json.loads(blob[8 : 8 + length])
    return {name: [entry["dtype"], entry["shape"]] for name, entry in entries.items() if name != "__metadata__"}


def case(name):
    config, kv = CASES[name]
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).to(torch.bfloat16)
    model.config.architectures = ["LlamaForCausalLM"]
    if kv:
        config = mtq.utils.update_quant_cfg_with_kv_cache_quant(config, mtq.FP8_KV_CFG["quant_cfg"])
    mtq.quantize(model, config, forward_loop=lambda m: m(torch.randint(0, 500, (1, 16))))
    with tempfile.TemporaryDirectory() as folder:
        export_hf_checkpoint(model, export_dir=folder)
        return {
            "name": name,
            "config": json.loads((Path(folder) / "config.json").read_text()),
            "hf_quant_config": json.loads((Path(folder) / "hf_quant_config.json").read_text()),
            "header": header(Path(folder)),
        }


rows = ",\n".join(f"  {json.dumps(case(name))}" for name in CASES)
head = f'"modelopt": "{version("nvidia-modelopt")}", "torch": "{torch.__version__}"'
Path(sys.argv[1]).write_text(f'{{\n {head}, "cases": [\n{rows}\n ]\n}}\n')
