"""What ggml's CUDA backend runs of a graph, how large its results are there, and what it keeps for its fusions.

After ``ggml/src/ggml-cuda/ggml-cuda.cu``, ``fattn.cu`` and ``topk-moe.cu`` of llama.cpp 0.5 (ggml 0.25) with the
defaults of its build, for devices with tensor cores (compute capability 7.5 or more).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from analytic.engines.llamacpp.tensors import F16, F32, HOST_STAND_IN, I32, I64, Tensor
from analytic.quantity import round_up

ALIGNMENT_BYTES = 128
OFFLOAD_ROWS = 32
"""Results of so many rows are worth copying a weight of the host for (op_offload_min_batch_size)."""
_ROW_ELEMENTS = 512
"""MATRIX_ROW_PADDING."""
_MOST_EXPERTS = 15
"""MOE_WEIGHTED_REDUCTION_MAX_EXPERTS."""
_ATTENTION_STRIDE = 256
"""FATTN_KQ_STRIDE: cells are multiples of it."""

_HEADS = frozenset((64, 80, 96, 112, 128, 256))
_LATENT_HEADS: Mapping[int, tuple[int, int]] = {192: (128, 8), 320: (256, 32), 512: (512, 1), 576: (512, 1)}
"""Sizes of heads whose values have another size, or that are shared: key size to (value size, ratio's divisor)."""
_CACHES = frozenset(("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
_VECTOR_PAIRS = frozenset((name, name) for name in ("F16", "BF16", "Q4_0", "Q8_0"))
"""Key and value types for which the default build has a vector kernel (GGML_CUDA_FA_QUANTS)."""
NOT_MULTIPLIED = frozenset(("TQ1_0", "TQ2_0", HOST_STAND_IN.name))
"""Types of weights."""
_NO_ROWS = frozenset(("TQ1_0", "TQ2_0", "NVFP4", "Q8_K", "Q8_1"))
_WRITTEN = frozenset(("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"))


def alloc_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in a buffer of the device (ggml_backend_cuda_buffer_type_get_alloc_size)."""
    size = _attention_bytes(tensor) if tensor.op == "flash_attn_ext" else tensor.bytes
    if tensor.type.block_elements > 1 and tensor.ne[0] % _ROW_ELEMENTS:
        size += tensor.row_bytes(_ROW_ELEMENTS - tensor.ne[0] % _ROW_ELEMENTS)
    return size


def _attention_bytes(tensor: Tensor) -> int:
    """The result, and float16 copies of keys and values of any other type behind it."""
    query, key, value = tensor.src[:3]
    end = tensor.bytes
    if query.ne[1] == 1 and _has_vector_kernel(query, key, value):
        return end
    shared = value.base is not None and value.base is key.base and value.offset == key.offset
    for source in (key,) if shared else (key, value):
        if source.type is not F16:
            end = round_up(end, ALIGNMENT_BYTES) + source.elements * F16.block_bytes
    return end


def _has_vector_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    size = query.ne[0]
    return size in (64, 128, 256) and (key.type.name, value.type.name) in _VECTOR_PAIRS


def runs(node: Tensor) -> bool:
    """Whether the device runs an operation at all (ggml_backend_cuda_device_supports_op)."""
    rule = _RULES.get(node.op)
    return rule is None or rule(node)


def offloads(node: Tensor) -> bool:
    """Whether it takes an operation over from the host, whose weight is copied to it (…_device_offload_op)."""
    rows = {"get_rows": 0, "mul_mat": node.ne[1], "mul_mat_id": node.ne[2], "rope": node.ne[2]}.get(node.op, node.rows)
    return rows >= OFFLOAD_ROWS


def _attends(node: Tensor) -> bool:
    query, key, value, mask = node.src[:4]
    ratio = query.ne[2] // key.ne[2]
    grouped = ratio >= 2 and key.ne[1] % _ATTENTION_STRIDE == 0 and mask.ne[2] == 1
    if {key.type.name, value.type.name} - _CACHES:
        return False
    if key.ne[0] in _LATENT_HEADS:
        size, divisor = _LATENT_HEADS[key.ne[0]]
        return value.ne[0] == size and grouped and ratio % divisor == 0
    return key.ne[0] in (*_HEADS, 40, 72) and value.ne[0] == key.ne[0]


def _scans(node: Tensor) -> bool:
    state, decay, groups = node.src[0], node.src[3], node.src[4]
    if decay.ne[0] == 1:
        return state.ne[0] in (96, 128, 256) and state.ne[1] % 16 == 0
    return state.ne[0] == 16 and state.ne[1] == 1 and state.ne[2] % 128 == 0 and groups.ne[1] == 1


def _even_rows(node: Tensor) -> bool:
    source = node.src[0]
    return source.nb[0] == source.type.block_bytes


def _looks_up(node: Tensor) -> bool:
    table = node.src[0]
    return table.type.name not in _NO_ROWS and (table.type.name not in ("IQ4_NL", "MXFP4") or table.ne[0] % 256 == 0)


def _writes(node: Tensor) -> bool:
    source, index = node.src[:2]
    kinds = (node.type.name in _WRITTEN and source.type is F32) or (node.type is F16 and source.type is F16)
    return kinds and index.type in (I32, I64)


_RULES: Mapping[str, Callable[[Tensor], bool]] = {
    "flash_attn_ext": _attends,
    "ssm_scan": _scans,
    "ssm_conv": lambda node: node.src[0].ne[1] % 128 == 0,
    "mul_mat": lambda node: node.src[0].type.name not in NOT_MULTIPLIED,
    "mul_mat_id": lambda node: node.src[0].type.name not in NOT_MULTIPLIED,
    "get_rows": _looks_up,
    "set_rows": _writes,
    "unary": lambda node: node.src[0].contiguous,
    "norm": _even_rows,
    "rms_norm": _even_rows,
    "sum_rows": _even_rows,
    "rope": _even_rows,
}
"""Operations that are not always run; what is missing here is."""

Kept = tuple[Tensor, Tensor]
"""A tensor, and the node until which it is not freed."""


def kept(nodes: Sequence[Tensor]) -> Iterator[Kept]:
    """What fused operations still read after the graph is done with it (ggml_backend_cuda_graph_optimize)."""
    index = 0
    while index < len(nodes):
        if reduction := _reduction(nodes, index):
            sources, last = reduction
            yield from ((source, nodes[last]) for source in sources)
            index = last
        elif chosen := _choice(nodes, index):
            for node in nodes[index : index + chosen]:
                yield from ((tensor, nodes[index + chosen]) for tensor in (node, *node.src))
            index += chosen - 1
        index += 1


def _reduction(nodes: Sequence[Tensor], index: int) -> tuple[list[Tensor], int] | None:
    """Experts' results weighted, looked at one by one and added up: kept are the results and their weights."""
    first = nodes[index]
    if first.op != "mul" or len(first.src) < 2 or not _weighs(first):
        return None
    sources, muls = list(first.src), 1
    following = nodes[index + 1] if index + 1 < len(nodes) else first
    if following.op == "mul" and following.src[0] is first and _weighs(following):
        sources, muls, first = [*first.src, following.src[1]], 2, following
    experts = first.ne[1]
    expected = ["view"] * experts + ["add"] * (experts - 1)
    begin = index + muls
    if not 2 <= experts <= _MOST_EXPERTS or [node.op for node in nodes[begin : begin + len(expected)]] != expected:
        return None
    if any(node.src[0] is not first for node in nodes[begin : begin + experts]):
        return None
    return sources, begin + len(expected) - 1


def _weighs(node: Tensor) -> bool:
    full, weights = node.src[:2]
    return full.ne == node.ne and weights.ne == (1, *node.ne[1:]) and full.contiguous and weights.contiguous


def _choice(nodes: Sequence[Tensor], index: int) -> int:
    """How many nodes from a router's softmax or sigmoid to the experts' weights are one kernel; 0 where none."""
    first = nodes[index]
    if (first.op != "soft_max" and (first.op, first.detail) != ("unary", "sigmoid")) or len(first.src) > 1:
        return 0
    experts = first.ne[0]
    if (experts & (experts - 1) or experts > 512) and experts not in (288, 576):
        return 0
    ops = [node.op for node in nodes[index : index + 14]]
    for begin in (["reshape"], ["reshape", "add"]):
        length = 1 + len(begin) + 3
        if ops[1:length] == [*begin, "argsort", "view", "get_rows"]:
            break
    else:
        return 0
    if ops[length : length + 5] == ["reshape", "sum_rows", "clamp", "div", "reshape"]:
        length += 5
    if ops[length : length + 1] == ["scale"]:
        length += 1
    return length if index + length < len(nodes) else 0
