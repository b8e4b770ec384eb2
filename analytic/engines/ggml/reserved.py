"""The graphs that llama.cpp builds of a model's largest batches, and what they need on each device.

After ``graph_reserve`` of ``src/llama-context.cpp`` (llama.cpp 0.5).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.engines.ggml.attention import Attentions, Cache
from analytic.engines.ggml.blocks import Batch, Builder
from analytic.engines.ggml.models import ModelGraph, scale_input
from analytic.engines.ggml.recipes import RECIPES
from analytic.engines.ggml.recurrent import Recurrences, States
from analytic.engines.ggml.sched import buffer_sizes
from analytic.engines.ggml.stack import Stack, Stacks
from analytic.engines.ggml.tensors import Graph
from analytic.formats.ggml import GgmlType
from analytic.models.geometry import Attention, LatentAttention, Recurrent
from analytic.quantity import round_up
from analytic.state.llamacpp import SLIDES, Slots, cache_type


@dataclass(frozen=True, kw_only=True, slots=True)
class Caches:
    """Cells of one stream, and their types."""

    slots: Slots
    swa_full: bool
    key_type: GgmlType
    value_type: GgmlType

    def cells_of(self, window: int | None) -> int:
        """Of a layer with a window, or without one."""
        return self.slots.cells if window is None or self.swa_full else self.slots.window_cells(window)


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
    def caches(self) -> Caches:
        """Of every layer."""
        return Caches(
            slots=self.slots,
            swa_full=self.swa_full,
            key_type=cache_type(self.key_type, "-ctk"),
            value_type=cache_type(self.value_type, "-ctv"),
        )

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


def reserved_sizes(stacks: Stacks, settings: Settings) -> tuple[int, ...]:
    """Bytes on each device; buffers are never made smaller again."""
    reserved = [_reserved(stacks, settings.caches, batch) for batch in settings.batches()]
    return tuple(max(each) for each in zip(*reserved, strict=True))


def _reserved(stacks: Stacks, caches: Caches, batch: Batch) -> tuple[int, ...]:
    """Of one batch: by the short stack, or where that stands for nothing else, the whole."""
    short = sizes_of(stacks.short, caches, batch)
    if short is not None:
        return short
    whole = sizes_of(stacks.whole(), caches, batch)
    assert whole is not None
    return whole


def sizes_of(stack: Stack, caches: Caches, batch: Batch) -> tuple[int, ...] | None:
    """Bytes on each device for one batch; None where a general stack does not tell."""
    return buffer_sizes(_graph(stack, caches, batch), stack.devices, tokens=batch.tokens, general=stack.general)


def _graph(stack: Stack, caches: Caches, batch: Batch) -> Graph:
    geometry, recipe = stack.geometry, RECIPES[stack.architecture]
    builder = Builder(batch=batch, weights=stack.weights)
    attentions = [layer.mixer for layer, _ in geometry.groups if isinstance(layer.mixer, Attention)]
    ModelGraph(
        recipe=recipe,
        geometry=geometry,
        routing=stack.routing,
        builder=builder,
        caches=dict(_caches(stack, caches)),
        states=dict(_states(stack, builder)),
        attentions=Attentions(builder),
        recurrences=Recurrences(builder),
        value_width=max((mixer.kv_heads * mixer.v_head_dim for mixer in attentions), default=0),
        positions=builder.positions(recipe.position_axes),
        wanted=builder.wanted(),
        attention_scale=scale_input(batch.tokens) if stack.architecture == "llama4" else None,
    ).build()
    return builder.graph


def _place(stack: Stack, layer: int) -> str:
    return stack.devices.name(stack.devices.layers[layer])


def _caches(stack: Stack, caches: Caches) -> Iterator[tuple[int, Cache]]:
    """Layers with windows that llama.cpp knows share a cache of their own (llama_kv_cache_iswa)."""
    knows = stack.geometry.model_type in SLIDES
    for index, layer in enumerate(stack.geometry.layers):
        mixer = layer.mixer
        if isinstance(mixer, Attention | LatentAttention):
            window = getattr(mixer, "window_tokens", None) if knows else None
            yield (
                index,
                Cache(
                    window=window,
                    cells=caches.cells_of(window),
                    place=_place(stack, index),
                    key_type=caches.key_type,
                    value_type=caches.value_type,
                ),
            )


def _states(stack: Stack, builder: Builder) -> Iterator[tuple[int, States]]:
    for index, layer in enumerate(stack.geometry.layers):
        for mixer in (layer.mixer, layer.recurrent):
            if isinstance(mixer, Recurrent):
                size = mixer.state_elements // mixer.inner_size
                heads = mixer.heads or 1
                if mixer.kind == "mamba":  # the rank of its time step stands in for heads
                    heads = builder.need("ssm_dt.weight", index).ne[0]
                yield (
                    index,
                    States(
                        place=_place(stack, index),
                        inner=mixer.inner_size,
                        heads=heads,
                        state=size,
                        groups=(mixer.conv_channels - mixer.inner_size) // (2 * size) if size else 0,
                        kernel=mixer.conv_kernel,
                        channels=mixer.conv_channels,
                    ),
                )
