"""What llama.cpp allocates to compute: a buffer on each GPU, one on the host, and the outputs.

It reserves its buffers once, for the largest batch (``graph_reserve`` of ``src/llama-context.cpp``, llama.cpp 0.5):
the graph of that batch is built here tensor by tensor, scheduled, and put through its allocator. The tests hold the
sizes to those of the library, over architectures, settings and devices (tests/record_llamacpp_compute.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from analytic.engines.llamacpp.reserved import Settings, reserved_sizes
from analytic.engines.llamacpp.stack import stacks
from analytic.errors import UllageError, UsageError
from analytic.loaded import ALL_LAYERS
from analytic.models.model import Model
from analytic.state.llamacpp import Slots, llamacpp_state

LOGIT_BYTES = 4
"""Logits are float32."""

RELEASES: Mapping[str, bool] = {"0.5": False, "0.6": True}
"""Releases whose graphs differ, oldest first: whether batches may mix tokens and embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """One allocation."""

    place: str
    """``GPU0``, ``GPU1``… or ``host``."""
    bytes: int
    low: int
    high: int
    note: str
    """What it is for."""


def compute_buffers(
    model: Model,
    *,
    dtype: str,
    quantization: str | None,
    ctx_size: int,
    parallel: int = 1,
    kv_unified: bool = False,
    batch_size: int = 2048,
    ubatch_size: int = 512,
    flash_attention: bool = True,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    gpu_layers: int = ALL_LAYERS,
    cpu_moe_layers: int = 0,
    swa_full: bool = False,
    tensor_split: tuple[float, ...] = (1.0,),
    split_mode: str = "layer",
    main_gpu: int = 0,
    backend: str = "cuda",
    max_outputs: int | None = None,
    release: str | None = None,
) -> tuple[Buffer, ...]:
    """The compute buffers of ``model`` on each GPU and the host, and the outputs on the host.

    Args:
        model: see `analytic.loaded.llamacpp.llamacpp_weights`, as for all that is not named here.
        dtype: of the file before it is quantised.
        quantization: a mixture; None for the file as it is.
        ctx_size: ``-c``, of all slots together.
        parallel: slots (``-np``).
        kv_unified: slots share the cells (``--kv-unified``).
        batch_size: ``-b``.
        ubatch_size: ``-ub``, tokens of a physical batch.
        flash_attention: ``-fa on``; llama.cpp's ``auto`` is on where the device has it.
        cache_type_k: ``-ctk``.
        cache_type_v: ``-ctv``.
        gpu_layers: ``-ngl``.
        cpu_moe_layers: ``--n-cpu-moe``.
        swa_full: ``--swa-full``.
        tensor_split: ``-ts``, a share for each GPU.
        split_mode: ``-sm``: ``layer``, or ``none``, which takes ``main_gpu`` alone.
        main_gpu: ``-mg``.
        backend: ``cuda`` or ``cpu``.
        max_outputs: tokens of a batch whose logits are wanted. None for one of each slot, as llama-server asks since
            0.5; llama-cli, llama-bench and servers before it reserve for ``batch_size``.
        release: of llama.cpp, one of `RELEASES`; None for the newest, the others being the bounds.

    Raises:
        UllageError: how llama.cpp computes such a model, or with such settings, is not known.
    """
    max_outputs = parallel if max_outputs is None else max_outputs
    if min(ctx_size, parallel, batch_size, ubatch_size, max_outputs) < 1:
        raise UsageError("llama.cpp's context, slots, batches and outputs are 1 or more", hint="-c 4096 -np 1 -ub 512")
    _require_known(backend, split_mode, main_gpu, tensor_split, release)
    first = 0
    if split_mode == "none":
        first, tensor_split = main_gpu, (1.0,)
    slots = Slots(ctx_size=ctx_size, parallel=parallel, unified=kv_unified, ubatch_size=ubatch_size)
    settings = Settings(
        slots=slots,
        batch_size=batch_size,
        flash=flash_attention,
        key_type=cache_type_k,
        value_type=cache_type_v,
        swa_full=swa_full,
        max_outputs=max_outputs,
        mixed=True,
    )
    placed = stacks(
        model,
        dtype=dtype,
        quantization=quantization,
        gpu_layers=gpu_layers,
        cpu_moe_layers=cpu_moe_layers,
        backend=backend,
        tensor_split=tensor_split,
    )
    llamacpp_state(
        placed.file.geometry,
        ctx_size=ctx_size,
        parallel=parallel,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        flash_attention=flash_attention,
    )  # refuses caches that llama.cpp does
    gpus = placed.devices.gpus
    of_releases = [
        reserved_sizes(placed, replace(settings, mixed=mixed))
        for name, mixed in RELEASES.items()
        if release in (None, name)
    ]
    outputs = placed.vocabulary * parallel * LOGIT_BYTES
    names = (*(f"GPU{first + gpu}" for gpu in range(gpus)), "host")
    return (
        *(_buffer(name, own, "graph") for name, own in zip(names, zip(*of_releases, strict=True), strict=True)),
        _buffer("host", (outputs,), f"logits of {parallel} token{'s' * (parallel > 1)}"),
    )


def _require_known(
    backend: str, split_mode: str, main_gpu: int, tensor_split: tuple[float, ...], release: str | None
) -> None:
    if release is not None and release not in RELEASES:
        raise UsageError(f"graphs of llama.cpp {release} are not known to ullage", hint=f"one of {', '.join(RELEASES)}")
    if backend not in ("cuda", "cpu"):
        raise UsageError(f"compute buffers of llama.cpp's backend {backend!r} are not modelled", hint="cuda or cpu")
    if split_mode not in ("layer", "none"):
        raise UllageError(f"llama.cpp's --split-mode {split_mode} is not modelled", hint="layer or none")
    if not 0 <= main_gpu < len(tensor_split):
        raise UsageError(f"-mg {main_gpu}: there are {len(tensor_split)} GPUs", hint="they count from 0")


def _buffer(place: str, sizes: tuple[int, ...], note: str) -> Buffer:
    return Buffer(place=place, bytes=sizes[-1], low=min(sizes), high=max(sizes), note=note)
