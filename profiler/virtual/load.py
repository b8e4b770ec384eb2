"""Loading onto the virtual GPU: transformers' own ``from_pretrained``, given a checkpoint that has shapes only."""

import os
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import GenerationConfig

from analytic.request import Request
from profiler.models import build, published_tensors
from profiler.serve import counting_tensors, quantization_config, quiet

_DEVICE = "cuda:0"


def load(config: Mapping[str, Any], request: Request, *, stored: str) -> Any:
    """The model as ``from_pretrained(..., device_map={"": 0})`` leaves it; within ``fake_cuda``.

    Tensors are taken one after another, as on-the-fly quantisation does; other loads have a few threads that read
    ahead, so that a few more may be staged at once.

    Args:
        config: config.json, without a quantisation of its own.
        request: ``dtype`` resolved.
        stored: dtype of the checkpoint's tensors.
    """
    quiet()
    with _disable_current_modes():  # on the meta device, where nothing is to be recorded
        blank = build(config)
        published = published_tensors(blank)
    blank.config.architectures = [type(blank).__name__]
    checkpoint = {name: _staged(tensor, stored) for name, tensor in published.items()}
    with patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"), counting_tensors():
        model = type(blank).from_pretrained(
            None,
            config=blank.config,
            state_dict=checkpoint,
            dtype=getattr(torch, request.dtype),
            quantization_config=quantization_config(request, device="cuda"),
            device_map={"": _DEVICE},
            attn_implementation=request.attention,
        )
    model.generation_config = GenerationConfig()  # as of a sparse checkpoint, which has none of its own
    return model


def _staged(tensor: torch.Tensor, stored: str) -> torch.Tensor:
    """As a file would give it: in the checkpoint's dtype, on the processor."""
    dtype = getattr(torch, stored) if tensor.dtype == torch.bfloat16 else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu")
