"""From a model and a request to the ledger of every GPU, the verdict, and what would change it."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from analytic.calibration import Calibration, read_calibration, require_gpu, shipped
from analytic.engines.activations import has_sdpa
from analytic.engines.transformers import ledger, require_served, share_of, state_bytes
from analytic.errors import UllageError, UsageError
from analytic.formats.registry import find_method, find_preset
from analytic.formats.table import itemsize
from analytic.hardware import Gpu, find_gpu, parse_gpu, precision_warnings
from analytic.ledger import Ledger
from analytic.models.geometry import Geometry
from analytic.models.model import Model
from analytic.models.packed import quantization_of, weight_bits
from analytic.models.resolve import resolve
from analytic.placement import balance
from analytic.quantity import GiB
from analytic.request import LARGEST, Request, serving_dtype
from analytic.rule import BITS, Rule, apply_rule
from analytic.state import cached_tokens, sequence_state_bytes_per_token
from analytic.weights import QUANTIZATIONS, Weights, is_packing, weigh

NOT_MODELED = (
    "the GPU memory that the driver keeps for itself (0.4–1.3 % of what it reports, where seen)",
    "other processes on the GPU, a display included",
    "the prompt's images, audio or video",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lever:
    """One change to a request, and what it would do."""

    change: str
    """The flag that makes it."""
    device_bytes: int
    """Bytes of the fullest GPU after the change."""
    saved_bytes: int
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The answer: a ledger for each GPU, and what follows from them."""

    model: Model
    request: Request
    dtype: str
    """The dtype that ``auto`` became."""
    gpu: Gpu | None
    ledgers: tuple[Ledger, ...]
    calibration: Calibration | None = None
    """The constants that were fitted, where they were used."""

    @property
    def gpus(self) -> int:
        """How many GPUs the layers are split over."""
        return len(self.ledgers)

    @cached_property
    def fullest(self) -> Ledger:
        """The GPU that decides."""
        return max(self.ledgers, key=lambda row: row.device.bytes)

    @property
    def capacity_bytes(self) -> int | None:
        """What may be used of one GPU; None without a GPU."""
        return None if self.gpu is None else int(self.gpu.total_bytes * self.request.gpu_memory_utilization)

    @property
    def fits(self) -> bool | None:
        """Whether every GPU holds its share; None without a GPU."""
        return None if self.capacity_bytes is None else self.fullest.device.bytes <= self.capacity_bytes

    @property
    def is_certain(self) -> bool:
        """Whether the verdict holds at both bounds."""
        if self.capacity_bytes is None:
            return True
        bound = self.fullest.device.high_bytes if self.fits else self.fullest.device.low_bytes
        return (bound <= self.capacity_bytes) == self.fits

    @property
    def short_by_bytes(self) -> int | None:
        """What the fullest GPU lacks; 0 if it fits, None without a GPU."""
        return None if self.capacity_bytes is None else max(0, self.fullest.device.bytes - self.capacity_bytes)

    @cached_property
    def gpus_needed(self) -> int | None:
        """The fewest GPUs of this kind, whole layers on each; None without a GPU, or if one layer is too much."""
        capacity = self.capacity_bytes
        if capacity is None:
            return None

        def fits(gpus: int) -> bool:
            return (
                _fullest(_ledgers(self.model, self.request, self.dtype, self.gpu, gpus, self.calibration)) <= capacity
            )

        counts = range(1, len(self.model.geometry.layers) + 1)
        found = bisect_left(counts, True, key=fits)
        return counts[found] if found < len(counts) else None

    @cached_property
    def weights(self) -> Weights:
        """The weights in detail."""
        return weigh(self.model, dtype=self.dtype, quantization=self.request.weight_format)

    @property
    def sequence_state_bytes_per_token(self) -> int:
        """What one more token would add to one sequence at the end of its generation, over all GPUs."""
        tokens = cached_tokens(prompt_tokens=self.request.prompt_tokens, output_tokens=self.request.output_tokens)
        return sequence_state_bytes_per_token(self.model.geometry, tokens=tokens, itemsize=itemsize(self.dtype))

    @cached_property
    def max_sequences(self) -> int | None:
        """The largest batch of such sequences that fits; None without a GPU."""
        return self._largest("batch_size")

    @cached_property
    def max_tokens(self) -> int | None:
        """The longest context (prompt and output) of each sequence that fits at this batch; None without a GPU."""
        prompt = self._largest("prompt_tokens")
        return prompt + self.request.output_tokens if prompt else prompt

    def _largest(self, field: str) -> int | None:
        """The largest value of a field of the request that fits; 0 if none does, None without a GPU."""
        capacity = self.capacity_bytes
        if capacity is None:
            return None

        def fits(value: int) -> bool:
            changed: Request = replace(self.request, **{field: value})  # type: ignore[arg-type]
            return (
                _fullest(_ledgers(self.model, changed, self.dtype, self.gpu, self.gpus, self.calibration)) <= capacity
            )

        return largest(fits, start=getattr(self.request, field), limit=LARGEST[field])

    @cached_property
    def levers(self) -> tuple[Lever, ...]:
        """Changes that would save memory, those that fit and change least first."""
        if self.capacity_bytes is None:
            return ()
        found = [self._lever(change, request, gpus) for change, request, gpus in _changes(self)]
        saving = [lever for lever in found if lever is not None and lever.saved_bytes > 0]
        return tuple(sorted(saving, key=lambda lever: (not lever.fits, -lever.saved_bytes)))

    def _lever(self, change: str, request: Request, gpus: int) -> Lever | None:
        try:
            device = _fullest(
                _ledgers(self.model, request, serving_dtype(self.model, request), self.gpu, gpus, self.calibration)
            )
        except UllageError:
            return None
        return Lever(
            change=change,
            device_bytes=device,
            saved_bytes=self.fullest.device.bytes - device,
            fits=device <= (self.capacity_bytes or 0),
        )

    @cached_property
    def rule_of_thumb(self) -> Rule:
        """What the classic rule says of the same question, at the next precision that it knows."""
        bits = _bits(self.model, self.request, self.dtype)
        return apply_rule(
            self.model.parameters,
            bits=min(known for known in BITS if known >= bits),
            gpu_memory_bytes=self.gpu.total_bytes if self.gpu else 80 * 10**9,
        )

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What the reader should know before renting."""
        return tuple(_warnings(self))


def estimate(
    model: str | Model,
    *,
    gpu: str | Gpu | None = None,
    gpus: int | None = None,
    revision: str | None = None,
    calibration: str | Path | Calibration | None = None,
    **flags: Any,
) -> Estimate:
    """Estimate what serving ``model`` needs.

    Args:
        model: a catalogue name, Hub id, path, or a resolved model.
        gpu: a GPU of the table (``h100-80gb``, or ``h100-80gb:2`` for two), or None for a device without a limit.
        gpus: how many equal GPUs the layers are split over.
        revision: branch, tag or commit of a Hub model.
        calibration: a calibration of this GPU, or its file; None takes the shipped one, if there is one.
        **flags: fields of `Request`.

    Raises:
        UllageError: what is unknown, missing or contradictory, by name.
    """
    resolved = resolve(model, revision=revision) if isinstance(model, str) else model
    device, count = _device(gpu, gpus)
    fitted = shipped(device) if calibration is None else _calibration(calibration, device)
    return run(resolved, _request(flags), gpu=device, gpus=count, calibration=fitted)


def _calibration(calibration: str | Path | Calibration, gpu: Gpu | None) -> Calibration:
    fitted = calibration if isinstance(calibration, Calibration) else read_calibration(Path(calibration))
    require_gpu(fitted, gpu)
    return fitted


def run(
    model: Model,
    request: Request,
    *,
    gpu: Gpu | None = None,
    gpus: int = 1,
    calibration: Calibration | None = None,
) -> Estimate:
    """Estimate a resolved model; the fast path for many requests.

    ``calibration`` is taken to be of ``gpu``; it is left out where its attention implementations are others.
    """
    if request.kv_cache_dtype not in ("auto", dtype := serving_dtype(model, request)):
        raise UllageError(
            f"transformers' {request.cache_implementation} cache keeps the model's dtype ({dtype}),"
            f" not {request.kv_cache_dtype}",
            hint="leave --kv-cache-dtype at auto",
        )
    require_served(model.geometry, request)
    request = _as_served(model, request, gpu)
    fitted = calibration if calibration and request.attention in calibration.attention else None
    rows = _ledgers(model, request, dtype, gpu, gpus, fitted)
    return Estimate(model=model, request=request, dtype=dtype, gpu=gpu, ledgers=rows, calibration=fitted)


def _request(flags: dict[str, Any]) -> Request:
    unknown = sorted(set(flags) - set(Request.__dataclass_fields__))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}", hint=f"known: {', '.join(Request.__dataclass_fields__)}")
    return Request(**flags)


def _device(gpu: str | Gpu | None, gpus: int | None) -> tuple[Gpu | None, int]:
    count = 1 if gpus is None else gpus
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"{count!r} GPUs: must be a whole number, at least 1")
    if isinstance(gpu, str) and ":" in gpu:
        named, spec = parse_gpu(gpu)
        if gpus not in (None, spec):
            raise UsageError(f"{gpu!r} and {gpus} GPUs contradict each other", hint="give the number once")
        return named, spec
    return (find_gpu(gpu) if isinstance(gpu, str) else gpu), count


def _as_served(model: Model, request: Request, gpu: Gpu | None) -> Request:
    """A quantised checkpoint that the GPU cannot run quantised is served dequantised."""
    needs = find_method(model.native_format).capability if model.native_format else None
    if request.quantization is None and needs and gpu and gpu.capability and gpu.capability < needs:
        return replace(request, quantization="none")
    return request


def _bits(model: Model, request: Request, dtype: str) -> int:
    """Bits of a weight, as someone would put them into the rule."""
    if request.quantization in QUANTIZATIONS:
        return 8 if request.quantization == "bnb-int8" else 4
    if is_packing(request.quantization):
        return find_preset(str(request.quantization))[0].scheme.weight_bits
    if request.quantization is None and (native := quantization_of(model.config)):
        weights = weigh(model, dtype=dtype, quantization=None).bytes
        return weight_bits(native) or ceil(8 * weights / model.parameters)
    return 8 * itemsize(dtype)


def _ledgers(
    model: Model, request: Request, dtype: str, gpu: Gpu | None, gpus: int, calibration: Calibration | None
) -> tuple[Ledger, ...]:
    on: dict[str, Any] = {"dtype": dtype, "gpu": gpu, "calibration": calibration}
    if gpus == 1:
        return (ledger(share_of(model, dtype, request.weight_format), request, **on),)
    layers = len(model.geometry.layers)
    if gpus > layers:
        raise UsageError(f"{gpus} GPUs for {layers} layers: a layer is not split", hint=f"at most {layers}")
    spans = balance(_sizes(model, request, dtype), gpus=gpus)
    shares = [share_of(model, dtype, request.weight_format, span) for span in spans]
    rows = {share: ledger(share, request, **on) for share in dict.fromkeys(shares)}
    return tuple(
        replace(rows[share], rank=f"tp0/pp{rank}", layers=span)
        for rank, (share, span) in enumerate(zip(shares, spans, strict=True))
    )


def _sizes(model: Model, request: Request, dtype: str) -> list[int]:
    """Weights and state of each layer; what stands before and after the layers stays with the first and the last."""
    weights, kinds, alone = _layers(model, dtype, request.weight_format)
    states = [state_bytes(geometry, request, dtype) for geometry in alone]
    return [held + states[kind] for held, kind in zip(weights, kinds, strict=True)]


@lru_cache(maxsize=1024)
def _layers(
    model: Model, dtype: str, quantization: str | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Geometry, ...]]:
    """Weight bytes of each layer, its kind, and each kind as a geometry of its own."""
    weights = [0] * len(model.geometry.layers)
    for served in weigh(model, dtype=dtype, quantization=quantization).served:
        group = served.group
        if group.layers is not None and model.is_decoder(group):
            for layer in group.layers:
                weights[layer] += served.each_bytes * group.copies
        else:
            weights[-1 if model.is_after_layers(group) else 0] += served.bytes
    kinds = [layer for layer, _ in model.geometry.groups]
    alone = tuple(replace(model.geometry, layers=(layer,)) for layer in kinds)
    return tuple(weights), tuple(kinds.index(layer) for layer in model.geometry.layers), alone


def _fullest(ledgers: tuple[Ledger, ...]) -> int:
    return max(row.device.bytes for row in ledgers)


def largest(fits: Callable[[int], bool], *, start: int, limit: int) -> int:
    """The largest value up to ``limit`` that fits, where fitting once means fitting everything smaller; 0 if none."""
    low, high = 0, start
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _changes(answer: Estimate) -> Iterator[tuple[str, Request, int]]:
    """What could be asked for instead, one flag at a time."""
    request, gpus = answer.request, answer.gpus
    if answer.model.native_format is None:
        if request.quantization in (None, "none"):
            yield "--quantization bnb-int8", replace(request, quantization="bnb-int8"), gpus
        if request.quantization in (None, "none", "bnb-int8"):
            yield "--quantization bnb-nf4", replace(request, quantization="bnb-nf4"), gpus
    if answer.dtype == "float32":
        yield "--dtype bfloat16", replace(request, dtype="bfloat16"), gpus
    if request.attention == "eager":
        yield "--attention sdpa", replace(request, attention="sdpa"), gpus
    if batch := answer.max_sequences:
        yield f"--batch-size {batch}", replace(request, batch_size=batch), gpus
    if answer.max_tokens:
        prompt = answer.max_tokens - request.output_tokens
        yield f"--prompt-tokens {prompt}", replace(request, prompt_tokens=prompt), gpus
    if answer.gpus_needed and answer.gpus_needed > gpus and answer.gpu:
        flag = f"--gpu {answer.gpu.name}:" if answer.gpu.kind != "custom" else "--pipeline-parallel-size "
        yield f"{flag}{answer.gpus_needed}", request, answer.gpus_needed


def _converter(answer: Estimate) -> str:
    """Who leaves matrices as they are."""
    asked = answer.request.quantization
    beforehand = is_packing(asked) and find_preset(str(asked))[0].beforehand
    return str(asked) if beforehand else "transformers"


def _format_notes(answer: Estimate) -> Iterator[str]:
    """What transformers makes of a packed format, and where it comes from."""
    asked, native = answer.request.quantization, answer.model.native_format
    if is_packing(asked):
        preset, method = find_preset(str(asked))
        if preset.beforehand:
            yield f"{preset.name} is made beforehand ({preset.source}): counted is a checkpoint of it"
        if method.transformers.note:
            yield method.transformers.note
    elif asked is None and native is not None and (note := find_method(native).transformers.note):
        yield note


def _warnings(answer: Estimate) -> Iterator[str]:
    yield from answer.model.notes
    yield from _format_notes(answer)
    native = {"fp8": "fp8-128x128"}.get(answer.model.native_format or "", answer.model.native_format)
    if answer.gpu is not None:
        yield from precision_warnings(
            answer.gpu,
            dtype=answer.dtype,
            weight_format=answer.request.quantization if answer.request.quantization not in (None, "none") else native,
            kv_cache_dtype=None,
        )
    if answer.request.attention == "sdpa" and not has_sdpa(answer.model.geometry):
        yield f"{answer.model.architecture} has no sdpa attention: transformers runs it eager, as counted here"
    left = answer.weights.unconverted
    if left:
        size, share = sum(left.values()), sum(left.values()) / answer.weights.bytes
        names = ", ".join(name.removesuffix(".weight") for name in list(left)[:3])
        yield (
            f"{size / GiB:.2f} GiB ({share:.0%} of the weights) stay in {answer.dtype}: "
            f"{_converter(answer)} does not convert {names}{' …' if len(left) > 3 else ''}"
        )
    loading = max(row.load_peak.bytes + row.components["context"].bytes for row in answer.ledgers)
    if answer.fits and answer.capacity_bytes is not None and loading > answer.capacity_bytes:
        yield f"serving fits, but loading peaks at {loading / GiB:.2f} GiB"
    if not answer.is_certain:
        yield "the verdict lies within the bounds: calibrate on this GPU, or leave more headroom"
    limit = answer.model.geometry.max_position_embeddings
    if limit is not None and answer.request.total_tokens > limit:
        yield f"{answer.request.total_tokens:,} tokens exceed the model's advertised context of {limit:,}"
