"""A model as a list of tensor groups: what exists, how often, and what it is for."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

ROLES = ("embedding", "attention", "ssm", "mlp", "expert", "router", "norm", "output", "buffer", "other")
"""What a tensor is for. ``ssm`` is a recurrent token mixer (Mamba, linear attention); ``buffer`` is not trained."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the tensors that hold a packed weight."""

    suffix: str
    """What follows the weight's name in the checkpoint."""
    dtype: str
    """As safetensors names it."""
    bytes: int
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """Tensors that differ only in their layer (or expert) index."""

    name: str
    """Name as the serving engine holds it; ``{}`` stands for the layer index, ``{e}`` for an expert index."""
    role: str
    """One of ROLES."""
    shape: tuple[int, ...]
    """Shape of one tensor, before any quantisation."""
    layers: tuple[int, ...] | None = None
    """Layer indices that fill ``{}``; None for a tensor outside the layers."""
    copies: int = 1
    """Tensors of this name in one layer (experts that are stored one by one)."""
    stored: str = "model"
    """``model``: the dtype that the model is served in; else a fixed dtype or format (``float32``, ``fp8-128x128``)."""
    pieces: tuple[Piece, ...] = ()
    """The tensors that hold each, where it is packed in a format that has no row in the table of formats."""
    module: str = ""
    """Class of the module that owns it (``Linear``, ``Conv1D``, ``Embedding``, ``MixtralExperts``…)."""
    converts: bool = False
    """Whether transformers replaces the owning module when it quantises with bitsandbytes."""
    persistent: bool = True
    """False for buffers that no checkpoint holds (rotary tables): resident, but not counted as parameters."""

    @property
    def count(self) -> int:
        """Number of tensors."""
        return self.copies * (1 if self.layers is None else len(self.layers))

    @property
    def elements(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(out features, in features) of a linear layer's weight, or of one expert's; some classes transpose it."""
        first, second = (1, *self.shape)[-2:]
        return (second, first) if self.module in _TRANSPOSED else (first, second)


_TRANSPOSED = ("Conv1D", "GptOssExperts", "Llama4TextExperts")
"""Modules that hold weights as [in, out] (GPT-2's linear layers, stacks of experts)."""


def parameters(groups: Iterable[TensorGroup]) -> int:
    """Parameters and persistent buffers, each counted once."""
    return sum(g.elements * g.count for g in groups if g.persistent)
