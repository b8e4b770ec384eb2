"""Record the tensors that AutoAWQ packs a matrix to: `python record_autoawq.py autoawq.json`.

Needs AutoAWQ (pip install --no-deps autoawq) on a processor. Only its linear layer is imported: the package itself asks
for a transformers of its time.
"""

import importlib.util
import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(importlib.util.find_spec("awq").origin).parent
for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]

from awq.modules.linear.gemm import WQLinear_GEMM  # noqa: E402

DTYPES = {torch.int32: "I32", torch.float16: "F16"}
SHAPES = ((256, 512), (1024, 256))


def case(group, rows, columns):
    linear = torch.nn.Linear(columns, rows, bias=False).half()
    scales = torch.ones(columns // group, rows)
    packed = WQLinear_GEMM.from_linear(linear, 4, group, scales=scales, zeros=scales)
    tensors = {name: [DTYPES[t.dtype], list(t.shape)] for name, t in packed.state_dict().items()}
    return {"bits": 4, "group_size": group, "shape": [rows, columns], "tensors": tensors}


rows = ",\n".join(f"  {json.dumps(case(group, *shape))}" for group, shape in itertools.product((32, 64, 128), SHAPES))
head = f'"autoawq": "{version("autoawq")}", "torch": "{torch.__version__}"'
Path(sys.argv[1]).write_text(f'{{\n {head}, "cases": [\n{rows}\n ]\n}}\n')
