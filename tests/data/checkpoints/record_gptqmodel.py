"""Record the tensors that GPTQModel's linear layers hold: `python record_gptqmodel.py gptqmodel.json`.

Needs GPTQModel (pip install gptqmodel) on a processor; nothing is quantised, the layers are only built.
"""

import itertools
import json
import sys
from pathlib import Path

import gptqmodel
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

NAMES = {torch.int32: "I32", torch.float16: "F16"}
SIZES = ((256, 512), (1024, 256))


def tensors(layer):
    return {name: [NAMES[t.dtype], list(t.shape)] for name, t in layer.named_buffers()}


def layer(kind, bits, group, rows, columns):
    return kind(
        bits=bits,
        group_size=group,
        sym=True,
        desc_act=False,
        in_features=columns,
        out_features=rows,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
    )


cases = [
    {"method": method, "bits": bits, "group_size": group, "shape": [rows, columns], "tensors": tensors(made)}
    for method, kind, widths in (("gptq", TorchLinear, (2, 3, 4, 8)), ("awq", AwqTorchLinear, (4,)))
    for bits, group, (rows, columns) in itertools.product(widths, (-1, 32, 128), SIZES)
    if (made := layer(kind, bits, group, rows, columns))
]
rows = ",\n".join(f"  {json.dumps(case)}" for case in cases)
head = f'"gptqmodel": {json.dumps(gptqmodel.__version__)}, "torch": {json.dumps(torch.__version__)}'
Path(sys.argv[1]).write_text(f'{{\n {head}, "cases": [\n{rows}\n ]\n}}\n')
