"""Dtypes of safetensors files: their bits, and the row of the format table that holds each."""

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element, by the format's name of the dtype (``safetensors/src/tensor.rs``, enum Dtype, 0.8)."""

ROW_OF_DTYPE = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), "float8"),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), "float6"),
    "F4": "float4",
    **dict.fromkeys(("I8", "U8"), "int8"),
    **dict.fromkeys(("I16", "U16"), "int16"),
    **dict.fromkeys(("I32", "U32"), "int32"),
    **dict.fromkeys(("I64", "U64"), "int64"),
    "BOOL": "bool",
    "C64": "complex64",
}
"""Format row of a dtype."""

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Dtypes that transformers casts to the one that the model is served in."""
