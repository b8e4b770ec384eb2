"""The graphs that llama.cpp builds of a model's largest batches, and what they need on each device.

After ``graph_reserve`` of ``src/llama-context.cpp`` (llama.cpp 0.5).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

from analytic.engines.llamacpp.attention import Attentions, Cache
from analytic.engines.llamacpp.blocks import Batch, Builder
from analytic.engines.llamacpp.models import ModelGraph, scale_input
from analytic.engines.llamacpp.recipes import RECIPES
from analytic.engines.llamacpp.recurrent import Recurrences, States
from analytic.engines.llamacpp.sched import Reserved, reserve
from analytic.engines.llamacpp.stack import Stack, Stacks, known_window
from analytic.engines.llamacpp.tensors import Graph
from analytic.formats.ggml import GgmlType
from analytic.models.geometry import Attention, LatentAttention, Recurrent
from analytic.quantity import round_up
from analytic.state.llamacpp import CELL_STEP, Slots, cache_type

_MOST_CELLS = 2**23
"""Of what is laid beside a context to tell what lies between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caches:
    """Their types, and cells of one stream."""

    windows: tuple[tuple[int, int | None], ...]
    """Of each window the cells of its layers; None where they have all cells."""
    key_type: GgmlType
    value_type: GgmlType

    def cells_of(self, window: int | None, cells: int) -> int:
        """Of a layer with a window, or without one, where other layers have ``cells``."""
        return next((own for size, own in self.windows if size == window and own is not None), cells)


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

    def caches(self, windows: tuple[int, ...]) -> Caches:
        """Of a model with such windows."""
        cells = {window: self.slots.window_cells(window) for window in windows if not self.swa_full}
        return Caches(
            windows=tuple((window, None if own == self.slots.cells else own) for window, own in cells.items()),
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

    def batches(self) -> tuple[Batch, Batch]:
        """The two that are reserved for: a prompt's, and one token of every slot."""
        return self._batch(self.tokens), self._batch(self.slots.parallel)

    def _batch(self, tokens: int) -> Batch:
        slots = self.slots.parallel
        return Batch(
            tokens=round_up(tokens, slots),
            sequences=slots,
            outputs=min(tokens, self.max_outputs),
            streams=self.slots.streams,
            flash=self.flash,
            mixed=self.mixed,
        )


def reserved_sizes(stacks: Stacks, settings: Settings) -> tuple[int, ...]:
    """Bytes on each device: by the short stack, or where that stands for nothing else, the whole."""
    short = _sizes(stacks.short, stacks.windows, settings)
    if short is not None:
        return short
    whole = _sizes(stacks.whole, stacks.windows, settings)
    assert whole is not None
    return whole


@lru_cache(maxsize=8192)
def _sizes(stack: Stack, windows: tuple[int, ...], settings: Settings) -> tuple[int, ...] | None:
    """Of both batches, for buffers are never made smaller again."""
    caches, cells = settings.caches(windows), settings.slots.cells
    prompt, token = (_line(stack, caches, batch) for batch in settings.batches())
    most, bound = prompt.at(cells), token.bound(cells)
    if most is None or (bound is not None and all(one <= own for one, own in zip(bound, most, strict=True))):
        return most
    least = token.at(cells)
    return None if least is None else tuple(max(each) for each in zip(most, least, strict=True))


@dataclass(slots=True)
class _Line:
    """What graphs need that differ in nothing but the cells of their caches; every size is linear in them."""

    build: Callable[[int], Reserved | None]
    known: dict[int, Reserved] = field(default_factory=dict)
    tells: bool = True
    """False for a stack that stands for no other."""

    def at(self, cells: int) -> tuple[int, ...] | None:
        """Of one number of cells."""
        if self.known and self._between(cells) is None:
            self._reserve(_MOST_CELLS if cells > min(self.known) else CELL_STEP)
        return self._between(cells) or self._reserve(cells)

    def bound(self, cells: int) -> tuple[int, ...] | None:
        """No less than is needed; None where not two are known from which it follows."""
        if len(self.known) < 2:
            return None
        low, high = min(self.known), max(self.known)
        return _on_line((low, self.known[low].taken), (high, self.known[high].taken), cells)

    def _reserve(self, cells: int) -> tuple[int, ...] | None:
        if self.tells and cells not in self.known:
            made = self.build(cells)
            if made is None:
                self.tells = False
            else:
                self.known[cells] = made
        return self.known[cells].bytes if self.tells else None

    def _between(self, cells: int) -> tuple[int, ...] | None:
        if cells in self.known:
            return self.known[cells].bytes
        below = max((one for one in self.known if one < cells), default=None)
        above = min((one for one in self.known if one > cells), default=None)
        if below is None or above is None or self.known[below].steps != self.known[above].steps:
            return None
        return _on_line((below, self.known[below].bytes), (above, self.known[above].bytes), cells)


def _on_line(low: tuple[int, tuple[int, ...]], high: tuple[int, tuple[int, ...]], cells: int) -> tuple[int, ...]:
    (first, ones), (last, others) = low, high
    return tuple(
        one + (other - one) * (cells - first) // (last - first) for one, other in zip(ones, others, strict=True)
    )


@lru_cache(maxsize=1024)
def _line(stack: Stack, caches: Caches, batch: Batch) -> _Line:
    return _Line(partial(reserved, stack, caches, batch))


def reserved(stack: Stack, caches: Caches, batch: Batch, cells: int) -> Reserved | None:
    """Of one batch with so many cells; None where a general stack does not tell."""
    graph = _graph(stack, caches, batch, cells)
    return reserve(graph, stack.devices, tokens=batch.tokens, general=stack.general)


def _graph(stack: Stack, caches: Caches, batch: Batch, cells: int) -> Graph:
    geometry, recipe = stack.geometry, RECIPES[stack.architecture]
    builder = Builder(batch=batch, weights=stack.weights)
    attentions = [layer.mixer for layer, _ in geometry.groups if isinstance(layer.mixer, Attention)]
    ModelGraph(
        recipe=recipe,
        geometry=geometry,
        routing=stack.routing,
        builder=builder,
        caches=dict(_caches(stack, caches, cells)),
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


def _caches(stack: Stack, caches: Caches, cells: int) -> Iterator[tuple[int, Cache]]:
    """Layers with windows that llama.cpp knows share a cache of their own (llama_kv_cache_iswa)."""
    for index, layer in enumerate(stack.geometry.layers):
        mixer = layer.mixer
        if isinstance(mixer, Attention | LatentAttention):
            window = known_window(stack.geometry, layer)
            yield (
                index,
                Cache(
                    window=window,
                    cells=caches.cells_of(window, cells),
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
