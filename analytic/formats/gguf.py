"""GGUF: every tensor in blocks of a type of its own, which its header names (`analytic.formats.ggml`)."""

from analytic.formats.scheme import Method, Rules, Serving

METHOD = Method(
    names=("gguf",),
    read=lambda _: Rules(default=None),
    dequantizes=True,
    transformers=Serving(
        note="transformers keeps GGUF blocks where it has kernels for them, else it dequantises: --quantization none"
    ),
)
