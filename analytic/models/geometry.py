"""What a config says of the run: the token mixers and feed-forwards of each layer, in the field's own terms.

Weights come from the tensor inventory; only caches and activations are computed from these.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Softmax attention (MHA, GQA, MQA) with a key/value cache."""

    heads: int
    kv_heads: int
    head_dim: int
    """Size of a query or key head; not always hidden_size / heads."""
    v_head_dim: int
    window_tokens: int | None = None
    """Sliding window (``chunked`` False) or chunk size (``chunked`` True); None attends to everything."""
    chunked: bool = False
    rotary: bool = True
    """Whether queries and keys are rotated (positional temporaries exist)."""
    cached_heads: int | None = None
    """Heads that transformers caches where not ``kv_heads``: all of them in Falcon's new decoder, which caches expanded
    keys; 0 where an earlier layer's cache is read (Gemma 3n, Gemma 4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek V2/V3, Kimi K2), sparse with an indexer (DeepSeek V3.2, GLM 5)."""

    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_head_dim: int | None = None
    """Size of the one key a token that a sparse attention's indexer caches; None in layers without an indexer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent:
    """A mixer whose state does not grow with the context (Mamba, Mamba 2, gated delta net)."""

    kind: str
    """``mamba``, ``mamba2``, ``gated_delta_net``, ``kimi_delta``, ``lightning`` or ``short_conv``."""
    conv_channels: int
    """Channels of the causal convolution; 0 without one."""
    conv_kernel: int
    """Tokens that the convolution's state holds; 0 without one."""
    state_elements: int
    """Elements of the recurrent state of one sequence; 0 without one."""
    state_itemsize: int | None
    """Bytes of an element of the recurrent state; None stores it in the dtype of the run."""
    inner_size: int
    """Width of the mixer's own hidden stream."""
    heads: int | None = None
    """Heads of the state, where it has any."""
    chunk_tokens: int | None = None
    """Tokens that the chunked scan of a prefill takes at once; None where it does not go by chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForward:
    """A dense feed-forward."""

    intermediate_size: int
    gated: bool = True
    fused: bool = False
    """Gate and up in one projection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOfExperts:
    """Routed experts, with or without shared ones."""

    experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    gated: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One decoder layer; None where the layer lacks that half (hybrid models)."""

    mixer: Attention | LatentAttention | Recurrent | None
    feed_forward: FeedForward | MixtureOfExperts | None
    parallel: bool = False
    """Attention and feed-forward read the same input (Falcon, Phi)."""
    recurrent: Recurrent | None = None
    """A recurrent mixer beside the attention of the same layer (Falcon H1)."""
    cross: Attention | None = None
    """Attention to what the encoder made of its input (T5, BART, Whisper)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What the caches and the activations of a decoder follow from."""

    model_type: str
    """The text model's ``model_type`` as in config.json."""
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int | None
    """The advertised maximum context; never assumed as the workload."""
    layers: tuple[Layer, ...]
    per_layer_input_size: int = 0
    """Elements a token of the embeddings that all layers read beside the stream (Gemma 3n, Gemma 4's small models)."""
    encoder_tokens: int | None = None
    """Tokens that the encoder always hands on (Whisper: 1,500); None where they are those of its input, or none."""
    groups: tuple[tuple[Layer, int], ...] = field(init=False, repr=False, compare=False)
    """Each distinct layer with its count, in order of first appearance."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(Counter(self.layers).items()))
