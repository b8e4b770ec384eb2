"""What of each tensor one rank of vLLM holds: a rule by the name of the tensor's module.

After vLLM 0.33: ``layers/linear.py`` (column, row and QKV parallel), ``layers/vocab_parallel_embedding.py``,
``layers/mamba/mamba_mixer2.py`` and ``layers/fused_moe``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from analytic.errors import UllageError
from analytic.loaded.vllm_parallel import Part, UnevenError, World, divided
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.models.inventory import TensorGroup
from analytic.quantity import round_up

VOCABULARY_ROWS = 64
"""What the rows of an embedding and of the output head are a multiple of (vocab_parallel_embedding.py)."""

KEYS = "key and value heads repeated on ranks"
GROUPS = "groups of the state repeated on ranks"
LATENTS = "latent projections on every rank"
BIASES = "biases of split inputs on every rank"
NORMS = "norms and routers on every rank"
POSITIONS = "learned positions on every rank"
SHARED = "shared experts on every rank"
VISION = "parts of the vision tower on every rank"
EXPERTS = "experts that do not divide among ranks"


_Rule = Callable[[TensorGroup, World], Part]


def _leaf(group: TensorGroup) -> tuple[str, bool]:
    """The name of the module that owns the tensor (or of a bare parameter), and whether it is its bias."""
    name = group.name
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            return name.removesuffix(suffix).rpartition(".")[2], suffix == ".bias"
    return name.rpartition(".")[2], False


def _replaced(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], size, *shape[axis + 1 :])


def _out_axis(group: TensorGroup) -> int:
    return 1 if group.module == "Conv1D" and len(group.shape) == 2 else 0


def _whole(why: str) -> _Rule:
    return lambda group, world: Part(group.shape, why)


def _outputs(group: TensorGroup, world: World) -> Part:
    axis = _out_axis(group)
    size = divided(group.shape[axis], world.degrees.tensor, f"outputs of {_leaf(group)[0]}")
    return Part(_replaced(group.shape, axis, size))


def _inputs(group: TensorGroup, world: World) -> Part:
    name, is_bias = _leaf(group)
    if is_bias:
        return Part(group.shape, BIASES)
    axis = 1 - _out_axis(group)
    size = divided(group.shape[axis], world.degrees.tensor, f"inputs of {name}")
    return Part(_replaced(group.shape, axis, size))


def _joined(group: TensorGroup, world: World) -> Part:
    """Gates and ups in one: each is split."""
    axis = _out_axis(group)
    size = 2 * divided(group.shape[axis] // 2, world.degrees.tensor, f"outputs of each half of {_leaf(group)[0]}")
    return Part(_replaced(group.shape, axis, size))


def _unknown(group: TensorGroup) -> UllageError:
    return UllageError(f"how vLLM splits {group.name} over GPUs is not known", hint="use --tensor-parallel-size 1")


def _layer(group: TensorGroup, world: World) -> Layer:
    """The first of the group's layers; all have the same shape."""
    index = (group.layers or (0,))[0]
    if index >= len(world.geometry.layers):
        raise _unknown(group)
    return world.geometry.layers[index]


def _attention(group: TensorGroup, world: World) -> Attention:
    mixer = _layer(group, world).mixer
    if not isinstance(mixer, Attention):
        raise _unknown(group)
    return mixer


def local_heads(heads: int, ranks: int) -> int:
    """Key and value heads of a rank: fewer than ranks are repeated.

    Raises:
        UnevenError: they neither divide nor repeat evenly.
    """
    if max(heads, ranks) % min(heads, ranks):
        raise UnevenError(f"{heads} key and value heads")
    return max(1, heads // ranks)


def _keys(group: TensorGroup, world: World) -> Part:
    ranks, heads = world.degrees.tensor, _attention(group, world).kv_heads
    axis = _out_axis(group)
    each = divided(group.shape[axis], heads, f"outputs of {_leaf(group)[0]} among {heads} heads")
    size = each * local_heads(heads, ranks)
    return Part(_replaced(group.shape, axis, size), KEYS if heads < ranks else "")


def _queries_keys_values(group: TensorGroup, world: World) -> Part:
    """In one: queries are split, and keys and values split or repeated."""
    ranks, mixer = world.degrees.tensor, _attention(group, world)
    axis = _out_axis(group)
    each = divided(group.shape[axis], mixer.heads + 2 * mixer.kv_heads, f"outputs of {_leaf(group)[0]} among heads")
    heads = divided(mixer.heads, ranks, "query heads") + 2 * local_heads(mixer.kv_heads, ranks)
    return Part(_replaced(group.shape, axis, each * heads), KEYS if mixer.kv_heads < ranks else "")


def _by_state(group: TensorGroup, world: World) -> Part:
    """Beside outputs by head, keys and queries of the state by group: Mamba 2 repeats one group, more must divide."""
    ranks, layer = world.degrees.tensor, _layer(group, world)
    mixer = layer.recurrent or layer.mixer
    if not isinstance(mixer, Recurrent) or not mixer.inner_size or not mixer.state_elements // mixer.inner_size:
        raise _unknown(group)
    divided(mixer.heads or ranks, ranks, "heads of the state")
    size = mixer.state_elements // mixer.inner_size
    groups = (mixer.conv_channels - mixer.inner_size) // (2 * size)
    repeats = mixer.kind == "mamba2" and groups == 1
    if groups % ranks and not repeats:
        raise UnevenError(f"{groups} groups of keys of the state")
    repeated = 2 * size * (ranks - 1) if repeats else 0
    rows = divided(group.shape[0] + repeated, ranks, f"outputs of {_leaf(group)[0]}")
    return Part(_replaced(group.shape, 0, rows), GROUPS if repeated else "")


def _head_norm(group: TensorGroup, world: World) -> Part:
    """Of all queries or all keys at once, where the model's file splits it."""
    if not world.head_norms:
        return Part(group.shape, NORMS)
    return _outputs(group, world) if _leaf(group)[0] == "q_norm" else _keys(group, world)


def _state_norm(group: TensorGroup, world: World) -> Part:
    layer = _layer(group, world)
    mixer = layer.recurrent or layer.mixer
    is_wide = isinstance(mixer, Recurrent) and mixer.kind == "mamba2" and ".mixer.norm." in group.name
    return _outputs(group, world) if is_wide else Part(group.shape, NORMS)


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "sinks"), _outputs),
    **dict.fromkeys(("fc1", "fc_in", "c_fc", "dense_h_to_4h"), _outputs),
    **dict.fromkeys(("in_proj_qkv", "in_proj_qkvz", "in_proj_z", "in_proj_ba", "in_proj_b", "in_proj_a"), _outputs),
    **dict.fromkeys(("A_log", "D", "dt_bias"), _outputs),
    **dict.fromkeys(("in_proj", "conv1d"), _by_state),
    **dict.fromkeys(("o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "c_proj"), _inputs),
    **dict.fromkeys(("k_proj", "v_proj"), _keys),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn"), _queries_keys_values),
    **dict.fromkeys(("q_norm", "k_norm"), _head_norm),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), _whole(LATENTS)),
    **dict.fromkeys(("wpe", "embed_positions"), _whole(POSITIONS)),
    **dict.fromkeys(("alpha_p", "alpha_n", "beta", "eps", "shared_expert_gate"), _whole(NORMS)),
    "gate_up_proj": _joined,
    "norm": _state_norm,
}
"""By the last part of a module's name, for the layers of the text model."""

_VISION: Mapping[str, _Rule] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv", "fc1", "linear_fc1"), _outputs),
    **dict.fromkeys(("out_proj", "o_proj", "fc2", "linear_fc2"), _inputs),
    **dict.fromkeys(("linear", "linear_1"), _outputs),
}
"""As `_RULES`, for a vision tower and what follows it; what is not named is on every rank."""


def part(group: TensorGroup, world: World) -> Part:
    """What one rank holds of each tensor of ``group``.

    Raises:
        UnevenError: something does not divide.
        UllageError: a tensor without a rule.
    """
    if group.role == "expert":
        return _expert(group, world)
    if is_vision(group):
        rule = _VISION.get("out_proj" if group.name.endswith(".attn.proj.weight") else _leaf(group)[0])
        return rule(group, world) if rule else Part(group.shape, VISION)
    if _is_vocabulary(group, world.geometry):
        rows = divided(round_up(group.shape[0], VOCABULARY_ROWS), world.degrees.tensor, "padded tokens")
        return Part(_replaced(group.shape, 0, rows))
    is_shared_whole = world.degrees.is_sequence_parallel and not world.splits_shared
    if is_shared_whole and ".shared_expert" in group.name and group.role == "mlp":
        return Part(group.shape, SHARED)
    rule = _RULES.get(_leaf(group)[0])
    if rule is None and group.role in ("norm", "router", "buffer"):
        rule = _whole(NORMS)
    if rule is None:
        raise _unknown(group)
    return rule(group, world)


def is_vision(group: TensorGroup) -> bool:
    """Whether it belongs to a vision tower, or to what joins it to the text model."""
    return any(name in group.name for name in ("vision", "visual", "multi_modal"))


def _is_vocabulary(group: TensorGroup, geometry: Geometry) -> bool:
    return group.role in ("embedding", "output") and group.layers is None and group.shape[0] == geometry.vocab_size


def _expert(group: TensorGroup, world: World) -> Part:
    """Whole experts, the first ranks the more; or of each a part."""
    ranks = world.degrees.expert_ranks
    if "{e}" in group.name:
        raise _unknown(group)
    if world.degrees.by_expert:
        experts = group.shape[0]
        if experts < ranks:
            raise UnevenError(f"{experts} whole experts")
        return Part((-(-experts // ranks), *group.shape[1:]), EXPERTS if experts % ranks else "")
    is_bias, is_down = group.name.endswith("_bias"), "down_proj" in group.name
    if is_bias and is_down:
        return Part(group.shape, BIASES)
    is_transposed = replace(group, shape=(1, 2)).matrix == (2, 1)
    axis = -1 if is_bias or is_down != is_transposed else -2
    each = group.shape[axis] // 2 if "gate_up" in group.name else group.shape[axis]
    size = divided(each, ranks, "elements of an expert's intermediate size") * (group.shape[axis] // each)
    return Part(_replaced(group.shape, axis, size))


def require_heads(geometry: Geometry, vision_heads: int, ranks: int) -> None:
    """As vLLM itself asks before it loads anything (config/model.py, verify_with_parallel_config), or as it loads.

    Raises:
        UnevenError: query heads, or those of a vision tower, that do not divide.
    """
    for layer, _ in geometry.groups:
        if isinstance(layer.mixer, Attention | LatentAttention):
            divided(layer.mixer.heads, ranks, "query heads")
    divided(vision_heads, ranks, "heads of the vision tower")
