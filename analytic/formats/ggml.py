"""ggml's tensor types: elements and bytes of a block (``ggml/src/ggml-common.h``; ``gguf.GGML_QUANT_SIZES`` 0.19)."""

from dataclasses import dataclass
from math import prod

from analytic.errors import UllageError


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One type of tensors in a GGUF file."""

    id: int
    """As files write it (enum ggml_type)."""
    name: str
    block_elements: int
    block_bytes: int


_ROWS = (
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)

TYPES = {row[0]: GgmlType(*row) for row in _ROWS}
"""By id."""

BY_NAME = {row.name: row for row in TYPES.values()}

_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


def row_of(kind: GgmlType) -> str:
    """Name of the type's row in the table of formats."""
    return _PLAIN.get(kind.name, kind.name)


def tensor_bytes(kind: GgmlType, shape: tuple[int, ...], where: str) -> int:
    """Bytes of a tensor of ``shape``, columns last; ``where`` names it in errors.

    Raises:
        UllageError: a row is no whole number of blocks.
    """
    if shape[-1] % kind.block_elements:
        raise UllageError(f"{where}: rows of {shape[-1]} are no whole blocks of {kind.name} ({kind.block_elements})")
    return prod(shape) // kind.block_elements * kind.block_bytes
