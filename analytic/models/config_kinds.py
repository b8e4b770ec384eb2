"""What kind each layer of a model is, for the families whose files leave ``layer_types`` to their class."""

from collections.abc import Callable, Mapping

from analytic.models.config_keys import Config

FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
CONV, HYBRID, MLP, MOE, INDEXED = "conv", "hybrid", "mlp", "moe", "indexed_attention"


def uniform(config: Config) -> list[str]:
    """The same throughout, by the keys that ``cache_utils.get_layer_types_and_kwargs`` looks for in any config."""
    chunked = config.get("attention_chunk_size") is not None
    kind = SLIDING if config.get("sliding_window") is not None else CHUNKED if chunked else FULL
    return [kind] * config.size("num_hidden_layers")


def uniform_if_used(config: Config) -> list[str]:
    """As ``uniform``, where ``use_sliding_window`` is set."""
    return uniform(config) if config.flag("use_sliding_window") else [FULL] * config.size("num_hidden_layers")


def all_full(config: Config) -> list[str]:
    """Full attention throughout."""
    return [FULL] * config.size("num_hidden_layers")


def all_hybrid(config: Config) -> list[str]:
    """Attention beside a recurrent mixer throughout."""
    return [HYBRID] * config.size("num_hidden_layers")


def all_indexed(config: Config) -> list[str]:
    """Sparse attention with an indexer throughout."""
    return [INDEXED] * config.size("num_hidden_layers")


def all_linear(config: Config) -> list[str]:
    """A recurrent mixer throughout."""
    return [LINEAR] * config.size("num_hidden_layers")


def every(interval: int | str, kind: str = SLIDING, default: int = 0) -> Callable[[Config], list[str]]:
    """Full attention in every ``interval``-th layer, ``kind`` between."""

    def kinds(config: Config) -> list[str]:
        step = interval if isinstance(interval, int) else config.optional_size(interval) or default
        return [kind if (index + 1) % step else FULL for index in range(config.size("num_hidden_layers"))]

    return kinds


def every_from_first(interval: int) -> Callable[[Config], list[str]]:
    """Full attention in the first layer and every ``interval``-th after it, sliding between."""
    return lambda config: [SLIDING if i % interval else FULL for i in range(config.size("num_hidden_layers"))]


def mimo(config: Config) -> list[str]:
    """Full attention in the first layer and in every sixth, sliding between."""
    return [FULL, *every(6)(config)[1:]]


def kimi(config: Config) -> list[str]:
    """Layers as ``linear_attn_config`` numbers them from 1, or every fourth but the first with full attention."""
    layers = config.size("num_hidden_layers")
    given = config.get("linear_attn_config")
    listed = given.get("full_attn_layers") if isinstance(given, Mapping) else None
    if listed is None:
        return [FULL if index and index % 4 == 0 else LINEAR for index in range(layers)]
    if not isinstance(listed, list | tuple) or not all(isinstance(number, int) for number in listed):
        config.reject("linear_attn_config", listed)
    return [FULL if index + 1 in listed else LINEAR for index in range(layers)]


def exaone(config: Config) -> list[str]:
    """Interleaved where there is a window, else full."""
    return all_full(config) if config.get("sliding_window") is None else every("sliding_window_pattern")(config)


def gemma4(config: Config) -> list[str]:
    """Five layers of six slide, and never the last."""
    return [*every(6)(config)[:-1], FULL]


def shares_cache(config: Config, index: int) -> bool:
    """Whether a layer reads the keys and values of an earlier one and stores none (``models/gemma4``)."""
    return index >= config.size("num_hidden_layers") - config.count("num_kv_shared_layers")


def sliding_from(*, gated: bool) -> Callable[[Config], list[str]]:
    """Sliding from ``max_window_layers`` up; where ``gated``, only with ``use_sliding_window``."""

    def kinds(config: Config) -> list[str]:
        slides = config.get("sliding_window") is not None and (config.flag("use_sliding_window") or not gated)
        first = config.count("max_window_layers")
        return [SLIDING if slides and index >= first else FULL for index in range(config.size("num_hidden_layers"))]

    return kinds


def alternate_below(config: Config) -> list[str]:
    """Every other layer below ``max_window_layers`` slides (``models/qwen2_moe``)."""
    slides, last = config.flag("use_sliding_window"), config.count("max_window_layers")
    return [
        SLIDING if slides and index < last and index % 2 == 0 else FULL
        for index in range(config.size("num_hidden_layers"))
    ]


def rotated_layers(config: Config) -> list[bool]:
    """Which layers rotate, in configs with ``no_rope_layers`` (1 means that the layer *does* rotate)."""
    given = config.per_layer("no_rope_layers") if config.get("no_rope_layers") else None
    if given is not None:
        return [bool(item) for item in given]
    step = config.size("no_rope_layer_interval")
    return [bool((index + 1) % step) for index in range(config.size("num_hidden_layers"))]


def smollm(config: Config) -> list[str]:
    """Layers without rotation slide, where windows are used at all."""
    slides = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    return [SLIDING if slides and not rotated else FULL for rotated in rotated_layers(config)]


def llama4(config: Config) -> list[str]:
    """Layers with rotation attend in chunks."""
    return [CHUNKED if rotated else FULL for rotated in rotated_layers(config)]


def lightning(config: Config) -> list[str]:
    """Full and linear in turn (``models/minimax``)."""
    return [LINEAR if index % 2 else FULL for index in range(config.size("num_hidden_layers"))]


def conv_between(config: Config) -> list[str]:
    """Attention where listed, convolutions elsewhere (``models/lfm2``)."""
    layers = config.size("num_hidden_layers")
    attends = config.indices("full_attn_idxs") if config.get("full_attn_idxs") is not None else frozenset(range(layers))
    return [FULL if index in attends else CONV for index in range(layers)]


def jamba(config: Config) -> list[str]:
    """Attention every ``attn_layer_period``-th layer, from an offset."""
    period, offset = config.size("attn_layer_period"), config.count("attn_layer_offset")
    return [FULL if index % period == offset else LINEAR for index in range(config.size("num_hidden_layers"))]


def bamba(config: Config) -> list[str]:
    """Attention where listed, Mamba elsewhere."""
    attends = config.indices("attn_layer_indices")
    return [FULL if index in attends else LINEAR for index in range(config.size("num_hidden_layers"))]


_NEMOTRON_LETTERS: Mapping[str, str] = {"M": LINEAR, "E": MOE, "*": FULL, "-": MLP}


def nemotron(config: Config) -> list[str]:
    """One letter a layer."""
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern or set(pattern) - set(_NEMOTRON_LETTERS):
        config.reject("hybrid_override_pattern", pattern)
    return [_NEMOTRON_LETTERS[letter] for letter in pattern]
