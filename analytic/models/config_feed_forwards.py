"""Feed-forwards and experts from a family's keys."""

from collections.abc import Callable

from analytic.errors import UllageError
from analytic.models.config_keys import Config, checked_size
from analytic.models.config_kinds import MLP, MOE, shares_cache
from analytic.models.geometry import FeedForward, MixtureOfExperts

FeedForwardKind = FeedForward | MixtureOfExperts | None


def dense(
    key: str = "intermediate_size", *, gated: bool = True, fused: bool = False, times_hidden: int | None = None
) -> Callable[[Config, str, int], FeedForwardKind]:
    """One width for every layer, ``times_hidden`` × hidden_size where the key is null."""

    def feed_forward(config: Config, kind: str, index: int) -> FeedForward:
        width = config.optional_size(key) if times_hidden else config.size(key)
        return FeedForward(
            intermediate_size=width or (times_hidden or 0) * config.size("hidden_size"), gated=gated, fused=fused
        )

    return feed_forward


def quadruple(config: Config, kind: str, index: int) -> FeedForward:
    """Always four times the hidden size (``models/bloom``, ``models/mpt`` despite its ``expansion_ratio``)."""
    return FeedForward(intermediate_size=4 * config.size("hidden_size"), gated=False)


def lfm_mlp(config: Config, kind: str, index: int) -> FeedForward:
    """Width adjusted as ``models/lfm2/modeling_lfm2.py`` does."""
    width = config.size("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        block = config.size("block_multiple_of")
        factor = config.get("block_ffn_dim_multiplier")
        width = int((1 if factor is None else factor) * (2 * width // 3))
        width = -(-width // block) * block
    return FeedForward(intermediate_size=width)


def listed_width(config: Config, kind: str, index: int) -> FeedForward:
    """One width for all layers, or a list with one a layer (``models/gemma3n``)."""
    listed = isinstance(config.get("intermediate_size"), list | tuple)
    widths = config.per_layer("intermediate_size") if listed else None
    width = checked_size(config.model_type, "intermediate_size", widths[index]) if widths else None
    return FeedForward(intermediate_size=width or config.size("intermediate_size"))


def hunyuan(config: Config, kind: str, index: int) -> FeedForwardKind:
    """Experts beside a shared one of the same width; how many a token takes may be listed (``hunyuan_v1_moe``)."""
    listed = isinstance(config.get("num_experts_per_tok"), list | tuple)
    chosen = config.per_layer("num_experts_per_tok") if listed else None
    width = config.size("intermediate_size")
    return MixtureOfExperts(
        experts=config.size("num_experts"),
        experts_per_token=checked_size(config.model_type, "moe_topk", chosen[index])
        if chosen
        else config.size("num_experts_per_tok"),
        intermediate_size=width,
        shared_intermediate_size=width,
    )


def no_mlp(config: Config, kind: str, index: int) -> None:
    """Mamba blocks have no feed-forward."""
    return


def experts(
    count: str = "num_local_experts",
    *,
    chosen: str = "num_experts_per_tok",
    width: str = "intermediate_size",
    shared: Callable[[Config], int] = lambda _: 0,
    sparse: Callable[[Config, int], bool] = lambda _config, _index: True,
    dense_width: str = "intermediate_size",
    gated: bool = True,
    fused: bool = False,
) -> Callable[[Config, str, int], FeedForwardKind]:
    """Routed experts where ``sparse`` says so, a dense feed-forward elsewhere."""

    def feed_forward(config: Config, kind: str, index: int) -> FeedForward | MixtureOfExperts:
        if not config.count(count) or not sparse(config, index):
            return FeedForward(intermediate_size=config.size(dense_width), gated=gated, fused=fused)
        return MixtureOfExperts(
            experts=config.size(count),
            experts_per_token=config.size(chosen),
            intermediate_size=config.size(width),
            shared_intermediate_size=shared(config),
            gated=gated,
        )

    return feed_forward


def shared_size(key: str) -> Callable[[Config], int]:
    """Shared experts of the width that a key gives."""
    return lambda config: config.count(key)


def shared_count(key: str) -> Callable[[Config], int]:
    """Shared experts as wide as the routed ones, in one feed-forward."""
    return lambda config: config.count(key) * config.size("moe_intermediate_size")


def listed_sparse(otherwise: Callable[[Config, int], bool]) -> Callable[[Config, int], bool]:
    """Sparse where ``mlp_layer_types`` says so; a file without it goes by ``otherwise``."""

    def sparse(config: Config, index: int) -> bool:
        listed = config.per_layer("mlp_layer_types")
        return otherwise(config, index) if listed is None else listed[index] == "sparse"

    return sparse


def qwen_sparse(config: Config, index: int) -> bool:
    """Every ``decoder_sparse_step``-th layer, but for those listed as dense."""
    return index not in config.indices("mlp_only_layers") and (index + 1) % config.size("decoder_sparse_step") == 0


def after_first(key: str, default: int = 0) -> Callable[[Config, int], bool]:
    """Sparse after as many dense layers as a key gives, or ``default`` where it is absent."""
    return lambda config, index: index >= (default if config.get(key) is None else config.count(key))


def after_one(config: Config, index: int) -> bool:
    """Sparse but for the first layer."""
    return index > 0


def llama4_sparse(config: Config, index: int) -> bool:
    """The layers listed, or every ``interleave_moe_layer_step``-th."""
    if config.get("moe_layers") is not None:
        return index in config.indices("moe_layers")
    return (index + 1) % config.size("interleave_moe_layer_step") == 0


def jamba_sparse(config: Config, index: int) -> bool:
    """Every ``expert_layer_period``-th layer, from an offset."""
    period = config.size("expert_layer_period")
    return config.size("num_experts") > 1 and index % period == config.count("expert_layer_offset")


def ernie_sparse(config: Config, index: int) -> bool:
    """``models/ernie4_5_moe``: -1 as the last index means the last layer."""
    last = config.get("moe_layer_end_index")
    end = config.size("num_hidden_layers") - 1 if last == -1 else config.count("moe_layer_end_index")
    on_step = (index + 1) % config.size("moe_layer_interval") == 0
    return on_step and config.count("moe_layer_start_index") <= index <= end


def gemma4(config: Config, kind: str, index: int) -> FeedForwardKind:
    """A dense feed-forward, twice as wide where a cache is shared if the config says so; beside experts if enabled."""
    doubled = config.flag("use_double_wide_mlp") and shares_cache(config, index)
    width = config.size("intermediate_size") * (2 if doubled else 1)
    if not config.flag("enable_moe_block"):
        return FeedForward(intermediate_size=width)
    beside = experts("num_experts", chosen="top_k_experts", width="moe_intermediate_size", shared=lambda _: width)
    return beside(config, kind, index)


def nemotron_mlp(config: Config, kind: str, index: int) -> FeedForwardKind:
    """A layer is a mixer, or a feed-forward, or experts: never two of them; squared ReLU, so no gate."""
    if kind == MOE:
        if (latent := config.get("moe_latent_size")) is not None:
            raise UllageError(
                f"config.json (nemotron_h): experts behind a moe_latent_size of {latent!r} are not modelled",
                hint="ullage models lists what is",
            )
        shared = shared_size("moe_shared_expert_intermediate_size")
        routed = experts("n_routed_experts", width="moe_intermediate_size", shared=shared, gated=False)
        return routed(config, kind, index)
    return dense(gated=False)(config, kind, index) if kind == MLP else None
