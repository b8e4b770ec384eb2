"""Sequence state as llama.cpp allocates it: all cells of all slots at once, windows in a cache of their own.

After ``src/llama-context.cpp``, ``llama-kv-cache.cpp``, ``llama-kv-cache-iswa.cpp`` and ``llama-memory-recurrent.cpp``
of the autumn of 2026 (xllamacpp 2026.10), whose own lines the tests hold this to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.errors import UllageError
from analytic.formats.ggml import BY_NAME, GgmlType
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.quantity import round_up
from analytic.state.held import Held

CELL_STEP = 256
"""A cache has a multiple of so many cells."""
STATE_BYTES = 4
"""Recurrent and convolution states are float32."""

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What ``-ctk`` and ``-ctv`` take (common/arg.cpp, kv_cache_types)."""

SLIDES = frozenset(
    ("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gpt_oss", "cohere2", "llama4_text", "exaone4", "olmo3")
)
"""Model types whose windows llama.cpp knows; it gives every layer of any other all cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """How a context is divided into slots."""

    ctx_size: int
    """As asked for (``-c``)."""
    parallel: int
    """Slots (``-np``)."""
    unified: bool
    """Whether all slots share the cells (``--kv-unified``)."""
    ubatch_size: int
    """Tokens of one physical batch (``-ub``)."""

    @property
    def cells(self) -> int:
        """Cells of one stream of the cache."""
        context = round_up(self.ctx_size, CELL_STEP)
        return context if self.unified else round_up(context // self.parallel, CELL_STEP)

    @property
    def streams(self) -> int:
        """Caches side by side: one for each slot that has cells of its own."""
        return 1 if self.unified else self.parallel

    def window_cells(self, window_tokens: int) -> int:
        """Cells of one stream of a sliding cache: the window of each slot in it, and a batch."""
        slots = self.parallel if self.unified else 1
        return min(self.cells, round_up(window_tokens * slots + self.ubatch_size, CELL_STEP))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """Keys and values of one layer, for a number of cells."""

    key_elements: int
    """Of one cell."""
    value_elements: int
    """Of one cell; 0 where values are part of the keys (MLA)."""
    head_dim: int
    v_head_dim: int

    def bytes(self, cells: int, key: GgmlType, value: GgmlType) -> int:
        """Of so many cells."""
        return cells * (_row_bytes(self.key_elements, key) + _row_bytes(self.value_elements, value))


def _row_bytes(elements: int, kind: GgmlType) -> int:
    return elements // kind.block_elements * kind.block_bytes


def llamacpp_state(
    geometry: Geometry,
    *,
    ctx_size: int,
    parallel: int = 1,
    ubatch_size: int = 512,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    swa_full: bool = False,
    kv_unified: bool = False,
    flash_attention: bool = True,
) -> tuple[Held, ...]:
    """What llama.cpp allocates for a context of ``ctx_size`` tokens, divided among ``parallel`` slots.

    Raises:
        UllageError: a cache type that is not known, that heads are no whole blocks of, or that needs flash attention.
    """
    key, value = cache_type(cache_type_k, "-ctk"), cache_type(cache_type_v, "-ctv")
    if value.block_elements > 1 and not flash_attention:
        raise UllageError(f"-ctv {cache_type_v} needs flash attention in llama.cpp", hint="add -fa on, or take f16")
    if key != value and any(isinstance(layer.mixer, LatentAttention) for layer, _ in geometry.groups):
        raise UllageError(
            f"llama.cpp keeps latent attention in one cache: -ctk {cache_type_k} and -ctv {cache_type_v} differ",
            hint="give both the same type",
        )
    slots = Slots(ctx_size=ctx_size, parallel=parallel, unified=kv_unified, ubatch_size=ubatch_size)
    return tuple(_rows(geometry, slots, key, value, swa_full=swa_full))


def cache_type(name: str, flag: str) -> GgmlType:
    """The type that ``-ctk`` or ``-ctv`` names.

    Raises:
        UllageError: it is none of `CACHE_TYPES`.
    """
    if name not in CACHE_TYPES:
        raise UllageError(f"{flag} {name!r} is no cache type of llama.cpp", hint=f"one of {', '.join(CACHE_TYPES)}")
    return BY_NAME[name.upper()]


def _rows(geometry: Geometry, slots: Slots, key: GgmlType, value: GgmlType, *, swa_full: bool) -> Iterator[Held]:
    full: list[tuple[Cells, int]] = []
    sliding: dict[int, list[tuple[Cells, int]]] = {}
    recurrent: list[tuple[Recurrent, int]] = []
    for layer, count in geometry.groups:
        for mixer in _mixers(layer):
            if isinstance(mixer, Recurrent):
                recurrent.append((mixer, count))
            elif (held := _cells(mixer, key, value)) is not None:
                window = _window(geometry, mixer)
                (full if window is None else sliding.setdefault(window, [])).append((held, count))
    for name, rows, cells in (
        ("full attention", full, slots.cells),
        *(
            (f"sliding window {window:,}", rows, slots.cells if swa_full else slots.window_cells(window))
            for window, rows in sliding.items()
        ),
    ):
        if rows:
            yield _held(name, rows, slots, cells, (key, value))
    if recurrent:
        yield _recurrent(recurrent, slots.parallel)


def _mixers(layer: Layer) -> Iterator[Attention | LatentAttention | Recurrent]:
    yield from (mixer for mixer in (layer.mixer, layer.recurrent) if mixer is not None)
    if layer.cross is not None:
        raise UllageError(
            "llama.cpp's cache of encoder-decoder models is not modelled", hint="see transformers' instead"
        )


def _window(geometry: Geometry, mixer: Attention | LatentAttention) -> int | None:
    return mixer.window_tokens if isinstance(mixer, Attention) and geometry.model_type in SLIDES else None


def _cells(mixer: Attention | LatentAttention, key: GgmlType, value: GgmlType) -> Cells | None:
    """What one cell of a layer holds; None where the layer reads another's."""
    if isinstance(mixer, LatentAttention):
        latent = mixer.kv_lora_rank + mixer.qk_rope_head_dim
        cells = Cells(key_elements=latent, value_elements=0, head_dim=latent, v_head_dim=0)
    elif mixer.cached_heads == 0:
        return None
    else:
        cells = Cells(
            key_elements=mixer.kv_heads * mixer.head_dim,
            value_elements=mixer.kv_heads * mixer.v_head_dim,
            head_dim=mixer.head_dim,
            v_head_dim=mixer.v_head_dim,
        )
    for kind, size in ((key, cells.head_dim), (value, cells.v_head_dim)):
        if size % kind.block_elements:
            raise UllageError(f"heads of {size} are no whole blocks of {kind.name} ({kind.block_elements} elements)")
    return cells


def _held(name: str, rows: list[tuple[Cells, int]], slots: Slots, cells: int, types: tuple[GgmlType, GgmlType]) -> Held:
    one = sum(count * row.bytes(1, *types) for row, count in rows)
    key, value = (kind.name.lower() for kind in types)
    streams = "" if slots.streams == 1 else f" in each of {slots.streams} slots"
    return Held(
        kind=name,
        layers=sum(count for _, count in rows),
        bytes=one * cells * slots.streams,
        bytes_per_token=one if cells == slots.cells else 0,
        note=f"{cells:,} cells{streams}, K {key}, V {value}",
    )


def _recurrent(rows: list[tuple[Recurrent, int]], slots: int) -> Held:
    """A convolution holds one token less than its kernel."""
    elements = sum(
        count * (mixer.conv_channels * max(mixer.conv_kernel - 1, 0) + mixer.state_elements) for mixer, count in rows
    )
    return Held(
        kind="recurrent",
        layers=sum(count for _, count in rows),
        bytes=elements * STATE_BYTES * slots,
        bytes_per_token=0,
        note=f"float32, {slots} slot{'s' * (slots > 1)}",
    )
