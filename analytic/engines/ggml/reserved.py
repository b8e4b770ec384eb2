"""The graphs that llama.cpp builds of a model's largest batches, and what they need on each device.

After ``graph_reserve`` of ``src/llama-context.cpp`` (llama.cpp 0.5).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from analytic.engines.ggml import tensors as ops
from analytic.engines.ggml.attention import Attentions, Cache
from analytic.engines.ggml.blocks import Batch, Builder
from analytic.engines.ggml.models import ModelGraph, scale_input
from analytic.engines.ggml.recipes import RECIPES, Routing
from analytic.engines.ggml.recurrent import Recurrences, States
from analytic.engines.ggml.sched import Devices, buffer_sizes
from analytic.engines.ggml.tensors import Tensor
from analytic.loaded.gguf_file import GgufFile
from analytic.loaded.llamacpp import layer_devices, placed_tensors
from analytic.models.geometry import Attention, Geometry, LatentAttention, Recurrent
from analytic.models.model import Model
from analytic.quantity import round_up
from analytic.state.llamacpp import SLIDES, Slots, cache_type


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Of the context."""

    slots: Slots
    batch_size: int
    flash: bool
    key_type: str
    value_type: str
    swa_full: bool
    max_outputs: int
    mixed: bool

    @property
    def tokens(self) -> int:
        """Of the largest physical batch, before it is made a multiple of the slots."""
        batch = min(self.slots.ctx_size, self.batch_size)
        return min(self.context, batch, self.slots.ubatch_size)

    @property
    def context(self) -> int:
        """Cells of all slots."""
        return self.slots.cells * self.slots.streams

    def batches(self) -> Iterator[Batch]:
        """The two that are reserved for: a prompt's, and one token of every slot."""
        slots = self.slots.parallel
        for tokens in (self.tokens, slots):
            yield Batch(
                tokens=round_up(tokens, slots),
                sequences=slots,
                outputs=min(tokens, self.max_outputs),
                streams=self.slots.streams,
                flash=self.flash,
                mixed=self.mixed,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """Where the file's tensors are."""

    file: GgufFile
    gpu_layers: int
    cpu_moe_layers: int
    backend: str
    tensor_split: tuple[float, ...]

    def devices(self, gpus: int) -> Devices:
        """The device of each layer, and whether batches overlap (llama_context's constructor)."""
        blocks = self.file.blocks
        layers = layer_devices(blocks, gpu_layers=self.gpu_layers, tensor_split=self.tensor_split)
        return Devices(
            gpus=gpus,
            layers=tuple(gpus if gpu is None or not gpus else gpu for gpu in layers),
            overlapped=gpus > 1 and self.gpu_layers > blocks and not self.cpu_moe_layers,
        )

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        by_name = {tensor.name: tensor for tensor in self.file.tensors}
        return (by_name.get("output.weight") or by_name["token_embd.weight"]).shape[-2]

    @property
    def mamba2(self) -> bool:
        """Whether decays are of heads, which files write as rows of one element."""
        return any(
            isinstance(mixer, Recurrent) and mixer.kind == "mamba2"
            for layer in self.file.geometry.layers
            for mixer in (layer.mixer, layer.recurrent)
        )

    def weights(self) -> Mapping[str, Tensor]:
        """By name as `Builder` asks: a tied head as the head, rotary factors once a layer."""
        placed = placed_tensors(
            self.file,
            gpu_layers=self.gpu_layers,
            cpu_moe_layers=self.cpu_moe_layers,
            backend=self.backend,
            tensor_split=self.tensor_split,
        )
        made: dict[str, Tensor] = {}
        shared: dict[tuple[str, str], Tensor] = {}
        for one in placed:
            place = "repacked" if one.repacked else "host" if one.gpu is None else f"GPU{one.gpu}"
            name = one.tensor.name
            if name.startswith("rope_f"):
                name = f"rope@{one.layer}"
            elif name == "token_embd.weight" and one.layer is not None:
                name = "output.weight"
            shape = one.tensor.shape[::-1]
            if one.tensor.module == "ssm_a" and self.mamba2:
                shape = (1, *shape) if len(shape) == 1 else shape
            weight = ops.held(one.tensor.type, *shape, place=place, is_weight=True)
            made[name] = shared.setdefault((one.tensor.name, place), weight)
        return made


def reserved_sizes(model: Model, placing: Placing, devices: Devices, settings: Settings) -> tuple[int, ...]:
    """Bytes on each device; buffers are never made smaller again."""
    reserved = [_reserved(model, placing, devices, settings, batch) for batch in settings.batches()]
    return tuple(max(each) for each in zip(*reserved, strict=True))


def _reserved(model: Model, placing: Placing, devices: Devices, settings: Settings, batch: Batch) -> tuple[int, ...]:
    """Bytes on each device for one batch."""
    geometry, recipe = placing.file.geometry, RECIPES[placing.file.architecture]
    builder = Builder(batch=batch, weights=placing.weights())
    attentions = [layer.mixer for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    graph = ModelGraph(
        recipe=recipe,
        geometry=geometry,
        routing=_routing(model, placing.file),
        builder=builder,
        caches=dict(_caches(geometry, devices, settings)),
        states=dict(_states(geometry, devices, builder)),
        attentions=Attentions(builder),
        recurrences=Recurrences(builder),
        value_width=max((mixer.kv_heads * mixer.v_head_dim for mixer in attentions), default=0),
        positions=builder.positions(recipe.position_axes),
        wanted=builder.wanted(),
        attention_scale=scale_input(batch.tokens) if placing.file.architecture == "llama4" else None,
    )
    graph.build()
    return buffer_sizes(builder.graph, devices, tokens=batch.tokens)


def _place(devices: Devices, layer: int) -> str:
    return devices.name(devices.layers[layer])


def _caches(geometry: Geometry, devices: Devices, settings: Settings) -> Iterator[tuple[int, Cache]]:
    """Layers with windows that llama.cpp knows share a cache of their own (llama_kv_cache_iswa)."""
    key, value = cache_type(settings.key_type, "-ctk"), cache_type(settings.value_type, "-ctv")
    for index, layer in enumerate(geometry.layers):
        mixer = layer.mixer
        if isinstance(mixer, Attention | LatentAttention):
            window = getattr(mixer, "window_tokens", None) if geometry.model_type in SLIDES else None
            slides = window is not None and not settings.swa_full
            cells = settings.slots.window_cells(window) if slides and window else settings.slots.cells
            yield index, Cache(window=window, cells=cells, place=_place(devices, index), key_type=key, value_type=value)


def _states(geometry: Geometry, devices: Devices, builder: Builder) -> Iterator[tuple[int, States]]:
    for index, layer in enumerate(geometry.layers):
        for mixer in (layer.mixer, layer.recurrent):
            if isinstance(mixer, Recurrent):
                size = mixer.state_elements // mixer.inner_size
                heads = mixer.heads or 1
                if mixer.kind == "mamba":  # the rank of its time step stands in for heads
                    heads = builder.need("ssm_dt.weight", index).ne[0]
                yield (
                    index,
                    States(
                        place=_place(devices, index),
                        inner=mixer.inner_size,
                        heads=heads,
                        state=size,
                        groups=(mixer.conv_channels - mixer.inner_size) // (2 * size) if size else 0,
                        kernel=mixer.conv_kernel,
                        channels=mixer.conv_channels,
                    ),
                )


_ROUTING: Mapping[str, str] = {
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
}
"""A file's own metadata, and the config's key."""


def _routing(model: Model, file: GgufFile) -> Routing:
    """Of the file, or of the config that it is converted from; what is missing has no part in the graph."""
    text = model.config.get("text_config")
    config = text if isinstance(text, Mapping) else model.config
    given: Mapping[str, object] = file.numbers or {name: config.get(key) for name, key in _ROUTING.items()}
    numbers = {
        name: float(value) for name, value in given.items() if name in _ROUTING and isinstance(value, int | float)
    }
    normed = numbers.get("expert_weights_norm")
    return Routing(
        groups=int(numbers.get("expert_group_count", 1)),
        used_groups=int(numbers.get("expert_group_used_count", 1)),
        scaled=numbers.get("expert_weights_scale", 0.0) not in (0.0, 1.0),
        normed=None if normed is None else normed > 0,
    )
