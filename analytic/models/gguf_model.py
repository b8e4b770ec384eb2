"""A GGUF file as a model: its tensors as groups, in the blocks that they are stored in."""

import re
from collections.abc import Iterable, Iterator

from analytic.formats.ggml import row_of
from analytic.formats.gguf_mixtures import Tensor
from analytic.models.gguf import GgufHeader, GgufTensor
from analytic.models.gguf_config import config_of
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model, Source

# First match wins (gguf/constants.py, TENSOR_NAMES).
_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("embedding", r"^(token_embd|position_embd|per_layer_token_embd|token_types)\."),
        ("output", r"^output\."),
        ("buffer", r"^rope_f|rope_freqs|rope_factors|exp_probs_b"),
        ("norm", r"norm"),
        ("router", r"ffn_gate_inp"),
        ("expert", r"_(exps|chexps)\b"),
        ("mlp", r"\.ffn_"),
        ("ssm", r"\.(ssm|shortconv|time_mix)"),
        ("attention", r"\.attn_"),
    )
)
_BLOCK = re.compile(r"^blk\.(\d+)\.")


def from_gguf(header: GgufHeader, *, id: str, source: Source = "gguf", revision: str | None = None) -> Model:
    """The model in a GGUF file, its weights in the blocks that they are stored in.

    Raises:
        UllageError: an architecture that is not known.
    """
    config = config_of(header)
    return Model(
        id=id,
        source=source,
        revision=revision,
        architecture=header.architecture,
        dtype="bfloat16" if any(tensor.type.name == "BF16" for tensor in header.tensors) else "float16",
        config=config,
        tensors=tuple(group_tensors(header.tensors, layers=config["num_hidden_layers"])),
        stored_bytes=sum(tensor.bytes for tensor in header.tensors),
        notes=tuple(_notes(header.tensors, config["num_hidden_layers"])),
    )


def group_tensors(tensors: Iterable[GgufTensor | Tensor], *, layers: int) -> Iterator[TensorGroup]:
    """Tensors that differ only in their block as one group; blocks beyond ``layers`` are not served."""
    members: dict[tuple[str, tuple[int, ...], str], list[int | None]] = {}
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        index = int(match[1]) if match else None
        if index is None or index < layers:
            name = _BLOCK.sub("blk.{}.", tensor.name)
            members.setdefault((name, tensor.shape, row_of(tensor.type)), []).append(index)
    for (name, shape, stored), indices in members.items():
        own = tuple(sorted(index for index in indices if index is not None))
        yield TensorGroup(name=name, role=_role(name), shape=shape, stored=stored, layers=own or None)


def _role(name: str) -> str:
    return next((role for role, pattern in _ROLES if pattern.search(name)), "other")


def _notes(tensors: Iterable[GgufTensor], layers: int) -> Iterator[str]:
    extra = [t for t in tensors if (match := _BLOCK.match(t.name)) and int(match[1]) >= layers]
    if extra:
        size = sum(tensor.bytes for tensor in extra)
        yield f"stored but not served: {extra[0].name} and {len(extra) - 1} more ({size:,} bytes, prediction layers)"
