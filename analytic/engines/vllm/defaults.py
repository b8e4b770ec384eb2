"""What ``vllm serve`` of 0.33 takes where a flag is left out: tokens and sequences of a batch, sizes of CUDA graphs."""

from dataclasses import dataclass

from analytic.hardware import Gpu

GIB = 2**30

DATA_CENTRE_BLACKWELL = 10
"""Major compute capability of B200 and B300: vLLM captures larger batches there."""
GRAPH_TOKENS, BLACKWELL_GRAPH_TOKENS = 512, 1024
"""Largest batch that is captured (config/vllm.py, _set_cudagraph_sizes)."""
LARGEST_BY_TYPE = {"gpt_oss": 1024}
"""Model types that set it themselves, whatever the sequences (model_executor/models/config.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """Defaults of ``vllm serve`` from some memory on (engine/arg_utils.py, get_batch_defaults)."""

    from_bytes: int
    max_num_batched_tokens: int
    max_num_seqs: int
    slow: bool
    """Whether an A100 or a GB10 may be in it: it has the memory of a larger one and not its compute."""


TIERS = (
    Tier(from_bytes=160 * GIB, max_num_batched_tokens=16384, max_num_seqs=1024, slow=True),
    Tier(from_bytes=70 * GIB, max_num_batched_tokens=8192, max_num_seqs=1024, slow=False),
    Tier(from_bytes=0, max_num_batched_tokens=2048, max_num_seqs=256, slow=True),
)


def defaults(gpu: Gpu | None, *, max_model_len: int) -> tuple[int, int]:
    """``max_num_batched_tokens`` and ``max_num_seqs`` of ``vllm serve`` on ``gpu``.

    None is a GPU that vLLM cannot ask for its memory, for which it takes the smallest tier. Neither hangs on the
    degree of parallelism, nor, since 0.17, on the model.
    """
    tier = next(tier for tier in TIERS if _reaches(gpu, tier))
    tokens = min(tier.max_num_seqs * max_model_len, tier.max_num_batched_tokens)
    return tokens, min(tier.max_num_seqs, tokens)


def _reaches(gpu: Gpu | None, tier: Tier) -> bool:
    if gpu is None:
        return not tier.from_bytes
    slow = "a100" in (gpu.product or gpu.name).lower() or gpu.capability == (12, 1)
    return gpu.total_bytes >= tier.from_bytes and (tier.slow or not slow)


def sizes(
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    capability: tuple[int, int] | None,
    model_type: str | None = None,
) -> tuple[int, ...]:
    """Batches that decoding is captured for: 1, 2, 4, then steps of 8, and of 16 from 256 on.

    The largest is twice the sequences, within 512 tokens (1,024 on data-centre Blackwell) and within a batch, which is
    captured itself where it is smaller; so is a batch of all sequences.
    """
    blackwell = capability is not None and capability[0] == DATA_CENTRE_BLACKWELL
    ceiling = min(2 * max_num_seqs, BLACKWELL_GRAPH_TOKENS if blackwell else GRAPH_TOKENS)
    own = LARGEST_BY_TYPE.get(model_type or "")
    largest = min(max_num_batched_tokens, own or ceiling)
    found = {size for size in (1, 2, 4) if size <= largest}
    found |= set(range(8, min(largest + 1, 256), 8)) | set(range(256, largest + 1, 16))
    if max_num_batched_tokens <= largest:
        found.add(max_num_batched_tokens)
    if own is None and max_num_seqs <= min(ceiling, max_num_batched_tokens):
        found.add(max_num_seqs)
    return tuple(sorted(found))
