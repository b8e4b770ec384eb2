"""Recurrent token mixers (Mamba, delta nets, short convolutions) from a family's keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from analytic.models.config_keys import Config, checked_size
from analytic.models.config_mixers import head_size
from analytic.models.geometry import Recurrent

FLOAT32_BYTES = 4


def mamba(*, expand: str, state: str, kernel: str) -> Callable[[Config], Recurrent]:
    """Mamba: state [inner, state_size], convolution over the inner stream."""

    def recurrent(config: Config) -> Recurrent:
        inner = config.size(expand) * config.size("hidden_size")
        return Recurrent(
            kind="mamba",
            conv_channels=inner,
            conv_kernel=config.size(kernel),
            state_elements=inner * config.size(state),
            state_itemsize=FLOAT32_BYTES,
            inner_size=inner,
        )

    return recurrent


DELTA_CHUNK_TOKENS = 64
"""Chunk of a gated delta rule (``models/qwen3_next``, torch_chunk_gated_delta_rule)."""


def mamba2(inner: int, *, heads: int, head_dim: int, groups: int, state: int, kernel: int, chunk: int) -> Recurrent:
    """Mamba 2: state [heads, head_dim, state_size], convolution over the inner stream, B and C."""
    return Recurrent(
        kind="mamba2",
        conv_channels=inner + 2 * groups * state,
        conv_kernel=kernel,
        state_elements=heads * head_dim * state,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
        heads=heads,
        chunk_tokens=chunk,
    )


def mamba2_plain(config: Config) -> Recurrent:
    """Mamba 2 by its own model's keys."""
    return mamba2(
        config.size("expand") * config.size("hidden_size"),
        heads=config.size("num_heads"),
        head_dim=config.size("head_dim"),
        groups=config.size("n_groups"),
        state=config.size("state_size"),
        kernel=config.size("conv_kernel"),
        chunk=config.size("chunk_size"),
    )


def mamba2_nemotron(config: Config) -> Recurrent:
    """Mamba 2 by Nemotron H's keys."""
    heads, head_dim = config.size("mamba_num_heads"), config.size("mamba_head_dim")
    return mamba2(
        heads * head_dim,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("n_groups"),
        state=config.size("ssm_state_size"),
        kernel=config.size("conv_kernel"),
        chunk=config.size("chunk_size"),
    )


def mamba2_hybrid(config: Config) -> Recurrent:
    """Mamba 2 by the keys of Bamba, Falcon H1 and Granite 4."""
    inner = config.optional_size("mamba_d_ssm") or config.size("mamba_expand") * config.size("hidden_size")
    heads = config.size("mamba_n_heads")
    head_dim = inner // heads if config.get("mamba_d_head") == "auto" else config.size("mamba_d_head")
    return mamba2(
        inner,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("mamba_n_groups"),
        state=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        chunk=config.size("mamba_chunk_size"),
    )


def gated_delta_net(config: Config) -> Recurrent:
    """State [value heads, key dim, value dim], convolution over queries, keys and values."""
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    value_heads = config.size("linear_num_value_heads")
    inner = value_heads * value_dim
    return Recurrent(
        kind="gated_delta_net",
        conv_channels=2 * config.size("linear_num_key_heads") * key_dim + inner,
        conv_kernel=config.size("linear_conv_kernel_dim"),
        state_elements=inner * key_dim,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
        heads=value_heads,
        chunk_tokens=DELTA_CHUNK_TOKENS,
    )


def kimi_delta(config: Config) -> Recurrent:
    """State [heads, head dim, head dim] in float32, convolution over queries, keys and values (``models/kimi_linear``).

    Published files nest the sizes under ``linear_attn_config``.
    """
    nested = config.get("linear_attn_config")
    given = nested if isinstance(nested, Mapping) else {}

    def size(inside: str, key: str) -> int:
        return checked_size(config.model_type, inside, given[inside]) if inside in given else config.size(key)

    return _delta(
        size("num_heads", "linear_num_heads"),
        size("head_dim", "linear_head_dim"),
        size("short_conv_kernel_size", "linear_conv_kernel_dim"),
    )


def bailing_delta(config: Config) -> Recurrent:
    """The same by the keys of Ling's hybrids (``models/bailing_hybrid``)."""
    head_dim = config.optional_size("linear_head_dim") or config.size("head_dim")
    return _delta(config.size("num_attention_heads"), head_dim, config.size("short_conv_kernel_size"))


def _delta(heads: int, head_dim: int, kernel: int) -> Recurrent:
    inner = heads * head_dim
    return Recurrent(
        kind="kimi_delta",
        conv_channels=3 * inner,
        conv_kernel=kernel,
        state_elements=inner * head_dim,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
        heads=heads,
        chunk_tokens=DELTA_CHUNK_TOKENS,
    )


def gated_delta_net_from_heads(config: Config) -> Recurrent:
    """A gated delta net whose sizes follow from the attention's where not given (``models/olmo_hybrid``)."""
    heads = config.size("num_attention_heads")
    sizes = {key: config.optional_size(key) or heads for key in ("linear_num_key_heads", "linear_num_value_heads")}
    key_dim = config.optional_size("linear_key_head_dim") or 3 * config.size("hidden_size") // (
        4 * sizes["linear_num_key_heads"]
    )
    value_dim = config.optional_size("linear_value_head_dim") or 2 * key_dim
    sizes |= {"linear_key_head_dim": key_dim, "linear_value_head_dim": value_dim}
    return gated_delta_net(replace(config, given={**config.given, **sizes}))


def lightning_attention(config: Config) -> Recurrent:
    """State [heads, head_dim, head_dim] and no convolution (``models/minimax``)."""
    heads, head_dim = config.size("num_attention_heads"), head_size(config)
    return Recurrent(
        kind="lightning",
        conv_channels=0,
        conv_kernel=0,
        state_elements=heads * head_dim * head_dim,
        state_itemsize=None,
        inner_size=heads * head_dim,
    )


def short_convolution(config: Config) -> Recurrent:
    """A gated convolution and no state (``models/lfm2``)."""
    hidden = config.size("hidden_size")
    return Recurrent(
        kind="short_conv",
        conv_channels=hidden,
        conv_kernel=config.size("conv_L_cache"),
        state_elements=0,
        state_itemsize=None,
        inner_size=hidden,
    )
