"""Scaled dot product attention as the target would run it: which kernel is chosen, and what it allocates.

A port of ATen's choice (native/transformers/cuda/sdp_utils.cpp: select_sdp_backend) and of the composite around the
kernels (native/transformers/attention.cpp: scaled_dot_product_attention), for inference on dense tensors.
"""

from collections.abc import Callable
from math import ceil, prod, sqrt
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import pad

from profiler.virtual.recorder import Sized, sized
from profiler.virtual.target import Target

Backend = Literal["cudnn", "flash", "efficient", "math"]


class Inputs(NamedTuple):
    """Query [B, H, S, D], key [B, Hk, L, D], value [B, Hk, L, Dv], and how they are combined."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    is_causal: bool
    enable_gqa: bool


Check = Callable[[Inputs, Target], bool]


def _is_half(given: Inputs, target: Target) -> bool:
    return given.query.dtype in (torch.float16, torch.bfloat16)


def _is_known_dtype(given: Inputs, target: Target) -> bool:
    if given.query.dtype == torch.bfloat16:
        return target.capability >= (8, 0)
    return given.query.dtype in (torch.float16, torch.float32)


def _is_unmasked(given: Inputs, target: Target) -> bool:
    return given.mask is None


def _has_flash_heads(given: Inputs, target: Target) -> bool:
    sizes = {tensor.size(-1) for tensor in given[:3]}
    return len(sizes) == 1 and max(sizes) <= 256


def _has_aligned_heads(given: Inputs, target: Target) -> bool:
    """Tensor cores take 16 bytes at a time (check_head_dim_size_mem_efficient, minimum_gemm_alignment)."""
    query, key, value = given[:3]
    if query.dtype == torch.float32:
        alignment = 4 if target.capability >= (8, 0) else 1
    else:
        alignment = 8 if target.capability >= (7, 0) else 1
    return query.size(-1) == key.size(-1) and not any(size % alignment for size in (query.size(-1), value.size(-1)))


def _has_cudnn_heads(given: Inputs, target: Target) -> bool:
    limit = 256 if target.capability[0] == 9 else 128
    return all(tensor.size(-1) % 8 == 0 and tensor.size(-1) <= limit for tensor in given[:3])


def _is_square_if_causal(given: Inputs, target: Target) -> bool:
    return not given.is_causal or given.query.size(-2) == given.key.size(-2)


def _has_equal_heads(given: Inputs, target: Target) -> bool:
    return given.query.shape[:2] == given.key.shape[:2] == given.value.shape[:2]


def _has_heads(given: Inputs, target: Target) -> bool:
    """Grouped ones if that is asked for (sdp_utils_cpp.h: check_grouped_query_attention)."""
    if not given.enable_gqa:
        return _has_equal_heads(given, target)
    query, key, value = given[:3]
    return query.size(0) == key.size(0) and key.shape[:2] == value.shape[:2] and query.size(1) % key.size(1) == 0


def _has_dense_rows(given: Inputs, target: Target) -> bool:
    return all(tensor.stride(-1) == 1 or tensor.size(-1) == 1 for tensor in given[:3])


def _from(major: int, minor: int) -> Check:
    return lambda given, target: target.capability >= (major, minor)


_CHECKS: dict[Backend, tuple[Check, ...]] = {
    "cudnn": (_from(8, 0), _is_half, _has_cudnn_heads, _has_heads, _has_dense_rows),
    "flash": (
        _from(8, 0),
        _is_half,
        _is_unmasked,
        _has_flash_heads,
        _is_square_if_causal,
        _has_heads,
        _has_dense_rows,
    ),
    "efficient": (_from(5, 0), _is_known_dtype, _has_aligned_heads, _has_equal_heads, _has_dense_rows),
    "math": (),
}


def choose_backend(given: Inputs, target: Target) -> Backend:
    """The first of the target's order of preference that takes the inputs."""
    return next(name for name in _order(target) if all(check(given, target) for check in _CHECKS[name]))


def _order(target: Target) -> tuple[Backend, ...]:
    """cuDNN comes first on Hopper and B200 since torch 2.11 (check_prefer_cudnn_attention), and last elsewhere."""
    if target.capability in ((9, 0), (10, 0)):
        return ("cudnn", "flash", "efficient", "math")
    return ("flash", "efficient", "math")


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    target: Target,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention on ``target``, without dropout."""
    given = Inputs(query, key, value, attn_mask, is_causal, enable_gqa)
    return _RUNS[choose_backend(given, target)](given, scale, target)


def _run_cudnn(given: Inputs, scale: float | None, target: Target) -> torch.Tensor:
    mask = _additive(given)
    result: tuple[torch.Tensor, ...] = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *given[:3], mask, False, 0.0, given.is_causal, False, scale=scale
    )
    return result[0]


def _run_flash(given: Inputs, scale: float | None, target: Target) -> torch.Tensor:
    """What flash_attn/flash_api.cpp, mha_fwd, allocates, in its order; heads are padded to 8 first (pad_last_dim).

    Few rows are split over the keys (set_params_splitkv), whose accumulators come before the state of the dropout.
    """
    size = given.query.size(-1)
    query, _key, _value = (pad(tensor, (0, -size % 8)) if size % 8 else tensor for tensor in given[:3])
    out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
    sums = torch.empty(query.shape[:-1], dtype=torch.float32, device="cuda")
    splits = FlashSplits.of(given, target)
    split_sums, split_out = sized(splits.at("lse")), sized(splits.at("out"))
    state = torch.empty(2, dtype=torch.uint64, device="cuda")
    offset = torch.empty((), dtype=torch.uint64, device="cuda")
    del split_sums, split_out
    del sums, state, offset
    return out[..., :size] if size % 8 else out


class FlashSplits(NamedTuple):
    """Accumulators of a flash kernel whose keys are split (flash_attn/flash_api.cpp: set_params_splitkv)."""

    batches: int
    heads: int
    rows: int
    """Of the query."""
    head_size: int
    keys: int
    sms: int

    @classmethod
    def of(cls, given: Inputs, target: Target) -> "FlashSplits":
        """For one row, the query heads of a group are the rows of its key's head (seqlenq_ngroups_swapped)."""
        batches, heads, rows, size = given.query.shape
        groups = heads // given.key.size(1) if rows == 1 else 1
        return cls(batches, heads // groups, rows * groups, size + -size % 8, given.key.size(-2), target.sms)

    @property
    def number(self) -> int:
        """How many; 1 without accumulators."""
        block = 256 if self.head_size <= 64 else 128 if self.head_size <= 128 else 64
        blocks = ceil(self.keys / block)
        return num_splits(self.batches * self.heads * ceil(self.rows / 64), 2 * self.sms, blocks)

    def at(self, part: str) -> Sized:
        """The size of the accumulator of the sums, or of the output, in float32, as the keys become more."""

        def size(more: int) -> int:
            split = self._replace(keys=self.keys + more)
            step = 32 if self.head_size <= 128 else 64
            columns = 1 if part == "lse" else ceil(self.head_size / step) * step
            return 4 * split.number * self.batches * self.heads * self.rows * columns if split.number > 1 else 0

        return Sized((self, part), size)


def num_splits(blocks: int, processors: int, key_blocks: int, most: int = 128) -> int:
    """Parts of the keys that keep the processors busiest within 15 % (flash_api.cpp: num_splits_heuristic)."""
    if blocks >= 0.8 * processors:
        return 1
    most = min(most, processors, key_blocks)
    efficiencies = {}
    for splits in range(1, most + 1):
        if splits == 1 or ceil(key_blocks / splits) != ceil(key_blocks / (splits - 1)):
            waves = blocks * splits / processors
            efficiencies[splits] = waves / ceil(waves)
    best = max(efficiencies.values())
    return next(splits for splits, efficiency in efficiencies.items() if efficiency >= 0.85 * best)


def _run_efficient(given: Inputs, scale: float | None, target: Target) -> torch.Tensor:
    """What attention.cu, _efficient_attention_forward, allocates.

    Kernels for heads of up to 128 keep their output in registers; the one for longer heads adds it up in a buffer in
    float32, unless that is its output (mem_eff_attention/kernel_forward.h: kNeedsOutputAccumulatorBuffer).
    """
    query, key, value = given[:3]
    mask = _additive(given)
    if mask is not None:
        mask = _padded(mask).expand(query.size(0), query.size(1), query.size(-2), key.size(-2))
    batches, heads, rows, size = query.shape
    shape = (batches, rows, heads, value.size(-1))
    out = torch.empty(shape, dtype=query.dtype, device="cuda")
    if max(size, value.size(-1)) > _REGISTER_HEADS and query.dtype != torch.float32:
        torch.empty(shape, dtype=torch.float32, device="cuda")
    return out.transpose(1, 2)


_REGISTER_HEADS = 128
"""Longest heads whose output stays in registers (mem_eff_attention/kernels/cutlassF.h: the ``rf`` kernels)."""


def _padded(mask: torch.Tensor, alignment: int = 8) -> torch.Tensor:
    """Rows that start at multiples of the alignment (attention.cpp: preprocess_mask, pad_bias)."""
    *rows, keys = mask.shape
    row_bytes = prod(rows) * mask.itemsize

    def size(more: int) -> int:
        return ceil((keys + more) / alignment) * alignment * row_bytes if (keys + more) % alignment else 0

    scratch = sized(Sized((row_bytes, keys), size))
    return scratch.view(mask.dtype).view(*rows, -1)[..., :keys] if scratch.numel() else mask


def _additive(given: Inputs) -> torch.Tensor | None:
    """A boolean mask as what is added to the scores (attention.cpp: convert_boolean_attn_mask)."""
    return _as_additive(given.mask, given.query.dtype) if given.mask is not None else None


def _as_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    hidden = torch.scalar_tensor(float("-inf"), dtype=dtype, device="cuda")
    shown = torch.scalar_tensor(0.0, dtype=dtype, device="cuda")
    return torch.where(mask, shown, hidden)


def _run_math(given: Inputs, scale: float | None, target: Target) -> torch.Tensor:
    """attention.cpp, _scaled_dot_product_attention_math, as it runs on tensors that are no subclass.

    Those it adds to in place, and their softmax is a composite; those in half precision it computes in float32, and
    what it does not return, the probabilities, it converts back all the same.
    """
    dtype = given.query.dtype
    mask = _additive(given)
    half = dtype in (torch.float16, torch.bfloat16)
    whole = [tensor.float() if half else tensor for tensor in given[:3]]
    factor = sqrt(given.query.size(-1) ** -0.5 if scale is None else abs(scale))
    query = whole[0] * factor
    if given.is_causal:
        mask = _causal(query, whole[1])
    groups = query.size(1) // whole[1].size(1) if given.enable_gqa else 1
    key, value = (tensor.repeat_interleave(groups, -3) if groups > 1 else tensor for tensor in whole[1:])
    scores = query @ (key.transpose(-2, -1) * factor)
    if mask is not None:
        scores.add_(mask)
    scores = _safe_softmax(scores)
    returned = scores.to(dtype)
    out = (scores @ value).to(dtype)
    del scores, query, key, value
    while whole:
        del whole[-1]
    del returned
    return out


def _causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device="cuda").tril()
    return _as_additive(mask, query.dtype)


def _safe_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Nothing where a row is all masked (SoftMax.cpp: _safe_softmax)."""
    out = torch.softmax(scores, -1)
    masked = scores == float("-inf")
    rows = torch.all(masked, dim=-1, keepdim=True)
    out.masked_fill_(rows, torch.scalar_tensor(0.0, dtype=out.dtype, device="cuda"))
    del rows, masked
    return out


_RUNS: dict[Backend, Callable[[Inputs, float | None, Target], torch.Tensor]] = {
    "cudnn": _run_cudnn,
    "flash": _run_flash,
    "efficient": _run_efficient,
    "math": _run_math,
}
