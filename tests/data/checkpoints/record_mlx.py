"""Record the arrays that MLX quantises a matrix to: `python record_mlx.py mlx.json`.

Needs mlx ("mlx[cpu]" on Linux).
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

DTYPES = {"uint32": "U32", "uint8": "U8", "bfloat16": "BF16"}
AFFINE = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
SHAPES = ((256, 512), (4, 128, 256))


def case(mode, bits, group, shape):
    weight = mx.random.normal(shape).astype(mx.bfloat16)
    arrays = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    held = {
        name: [DTYPES[str(array.dtype).rpartition(".")[2]], list(array.shape)]
        for name, array in zip(("weight", "scales", "biases"), arrays, strict=False)
    }
    return {"mode": mode, "bits": bits, "group_size": group, "shape": list(shape), "tensors": held}


kinds = [*AFFINE, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
rows = ",\n".join(f"  {json.dumps(case(*kind, shape))}" for kind in kinds for shape in SHAPES)
Path(sys.argv[1]).write_text(f'{{\n "mlx": "{version("mlx")}", "cases": [\n{rows}\n ]\n}}\n')
