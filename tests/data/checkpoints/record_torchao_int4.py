"""Record what torchao's plain int4 tensors hold: `python record_torchao_int4.py FOLDER torchao_int4.json`.

Needs torchao, transformers and, in FOLDER, the Python sources of MSLK (github.com/meta-pytorch/MSLK at 2a3c897), whose
packages are for GPUs. Its int4 quantiser is plain PyTorch and runs on a processor; only the Triton module beside it is
left out.
"""

import itertools
import json
import os
import struct
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

FOLDER, OUT = sys.argv[1:]
os.environ["MSLK_PYTHON_ONLY"] = "1"
sys.path.insert(0, FOLDER)
triton = ModuleType("mslk.quantize.triton.fp8_quantize")
triton.quantize_fp8_row = None  # of the preshuffled packing, which needs CUDA
sys.modules |= {"mslk.quantize.triton": ModuleType("mslk.quantize.triton"), triton.__name__: triton}

import torch  # noqa: E402
from torchao.core.config import config_to_dict  # noqa: E402
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict  # noqa: E402
from torchao.quantization import Float8DynamicActivationInt4WeightConfig, Int4WeightOnlyConfig, quantize_  # noqa: E402
from torchao.quantization.quant_api import _int4_weight_only_quantize_tensor  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig  # noqa: E402

DTYPES = {torch.int8: "I8", torch.bfloat16: "BF16", torch.float16: "F16"}
SHAPES = ((256, 512), (1024, 256), (4, 256, 512))
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
FLOAT8 = Float8DynamicActivationInt4WeightConfig(int4_packing_format="plain")


def matrix(config, weight):
    """The tensors of one matrix, by their suffix."""
    if config is FLOAT8:
        layer = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        quantize_(layer, config)
        packed = layer.weight.data
    else:
        packed = _int4_weight_only_quantize_tensor(weight, config)
    flat, _ = flatten_tensor_state_dict({"m.weight": packed})
    tensors = {name.removeprefix("m."): [DTYPES[t.dtype], list(t.shape)] for name, t in flat.items()}
    return {"config": config_to_dict(config), "shape": list(weight.shape), "tensors": tensors}


def checkpoint(config):
    """What transformers saves of a tiny Llama."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(f"{folder}/dense")
        asked = TorchAoConfig(config)
        model = AutoModelForCausalLM.from_pretrained(
            f"{folder}/dense", dtype=torch.bfloat16, quantization_config=asked, device_map={"": "cpu"}
        )
        model.save_pretrained(f"{folder}/packed")
        native = json.loads(Path(folder, "packed", "config.json").read_text())["quantization_config"]
        blob = Path(folder, "packed", "model.safetensors").read_bytes()
        entries = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]])
    header = {name: [entry["dtype"], entry["shape"]] for name, entry in entries.items() if name != "__metadata__"}
    return {"quantization_config": native, "header": header}


cases = [
    *[
        matrix(Int4WeightOnlyConfig(group_size=group), torch.randn(shape, dtype=dtype))
        for group, shape, dtype in itertools.product((32, 64, 128, 256), SHAPES, (torch.bfloat16, torch.float16))
    ],
    *[matrix(FLOAT8, torch.randn(shape, dtype=torch.bfloat16)) for shape in SHAPES[:2]],
    checkpoint(Int4WeightOnlyConfig(group_size=128)),
    checkpoint(FLOAT8),
]
rows = ",\n".join(f"  {json.dumps(case)}" for case in cases)
head = ", ".join(f'"{name}": "{version(name)}"' for name in ("torchao", "torch", "transformers"))
Path(OUT).write_text(f'{{\n {head}, "cases": [\n{rows}\n ]\n}}\n')
