"""From a model and a request to the ledger of every GPU, the verdict, and what would change it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from analytic.asking import Asking, ask
from analytic.calibration import Calibration, read_calibration, require_gpu, shipped
from analytic.deployment import Deployment, precision_notes
from analytic.engine_constants import EngineCalibration, read_engine_calibration
from analytic.engines.engine import Engine, find_engine
from analytic.errors import UllageError, UsageError
from analytic.flags import Flags
from analytic.formats.registry import find_preset
from analytic.formats.table import itemsize
from analytic.hardware import Gpu, find_gpu, parse_gpu
from analytic.ledger import Ledger
from analytic.models.model import Model
from analytic.models.packed import quantization_of, weight_bits
from analytic.parallel import Degrees, Kind, degrees
from analytic.quantity import GiB
from analytic.request import LARGEST, Request, serving_dtype
from analytic.rule import BITS, Rule, apply_rule
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

    asked: Deployment
    """With the engine's defaults resolved."""
    ledgers: tuple[Ledger, ...]
    notes: tuple[str, ...] = ()
    """What the reader should know of the way it was asked for."""
    ignored: tuple[str, ...] = ()
    """Options that were given and change no memory."""

    @property
    def model(self) -> Model:
        """What is served."""
        return self.asked.model

    @property
    def request(self) -> Request:
        """How it is served."""
        return self.asked.request

    @property
    def dtype(self) -> str:
        """The dtype that ``auto`` became."""
        return self.asked.dtype

    @property
    def gpu(self) -> Gpu | None:
        """Where."""
        return self.asked.gpu

    @property
    def calibration(self) -> Calibration | None:
        """The constants that were fitted, where they were used."""
        return self.asked.calibration

    @property
    def calibrated_with(self) -> str | None:
        """The id of the constants that were used."""
        used = self.asked.calibration or self.asked.constants
        return None if used is None else used.id

    @property
    def engine(self) -> Engine:
        """Who serves it."""
        return find_engine(self.request.engine)

    @property
    def gpus(self) -> int:
        """How many GPUs share the work."""
        return len(self.ledgers)

    @cached_property
    def fullest(self) -> Ledger:
        """The GPU that decides."""
        return max(self.ledgers, key=lambda row: row.charged.bytes)

    @property
    def capacity_bytes(self) -> int | None:
        """What may be used of one GPU; None without a GPU."""
        return None if self.gpu is None else self.engine.usable_bytes(self.asked, self.gpu)

    @property
    def fits(self) -> bool | None:
        """Whether every GPU holds its share; None without a GPU."""
        return None if self.capacity_bytes is None else self.fullest.charged.bytes <= self.capacity_bytes

    @property
    def is_certain(self) -> bool:
        """Whether the verdict holds at both bounds."""
        if self.capacity_bytes is None or self.gpu is None:
            return True
        if not self.fits:
            return self.fullest.charged.low_bytes > self.capacity_bytes
        kept = self.fullest.reclaimable.high_bytes
        most = self.fullest.charged.high_bytes - kept
        return most + min(kept, max(0, self.gpu.total_bytes - most)) <= self.capacity_bytes

    @property
    def short_by_bytes(self) -> int | None:
        """What the fullest GPU lacks; 0 if it fits, None without a GPU."""
        return None if self.capacity_bytes is None else max(0, self.fullest.charged.bytes - self.capacity_bytes)

    @cached_property
    def needed(self) -> Degrees | None:
        """The fewest GPUs of this kind, and how they share the work; None without a GPU, or if no number holds it."""
        return None if self.capacity_bytes is None else self.engine.gpus_needed(self.asked, self.capacity_bytes)

    @property
    def gpus_needed(self) -> int | None:
        """How many those are."""
        return None if self.needed is None else self.needed.gpus

    @cached_property
    def weights(self) -> Weights:
        """The weights in detail, as the checkpoint has them."""
        return weigh(self.model, dtype=self.dtype, quantization=_made(self.request))

    @property
    def sequence_state_bytes_per_token(self) -> int:
        """What one more token would add to one sequence at the end of its generation, over all GPUs."""
        return self.engine.state_bytes_per_token(self.asked)

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

        def excess(value: int) -> int:
            try:
                return fullest_bytes(self.asked.asking(**{field: value})) - capacity
            except UllageError:  # no room was asked for, whatever the memory
                return capacity

        return largest(excess, start=getattr(self.request, field), limit=LARGEST[field])

    @cached_property
    def levers(self) -> tuple[Lever, ...]:
        """Changes that would save memory, those that fit and change least first."""
        if self.capacity_bytes is None:
            return ()
        found = [self._lever(change, asked) for change, asked in _changes(self)]
        saving = [lever for lever in found if lever is not None and lever.saved_bytes > 0]
        return tuple(sorted(saving, key=lambda lever: (not lever.fits, -lever.saved_bytes)))

    def _lever(self, change: str, asked: Deployment) -> Lever | None:
        try:
            row = max(ledgers_of(asked), key=lambda row: row.charged.bytes)
        except UllageError:
            return None
        return Lever(
            change=change,
            device_bytes=row.device.bytes,
            saved_bytes=self.fullest.device.bytes - row.device.bytes,
            fits=row.charged.bytes <= (self.capacity_bytes or 0),
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
    def details(self) -> dict[str, Any]:
        """What the engine would print or hold beside the GPUs, in its own terms."""
        return self.engine.details(self.asked, self.ledgers)

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
    calibration: str | Path | Calibration | EngineCalibration | None = None,
    **flags: Any,
) -> Estimate:
    """Estimate what serving ``model`` needs.

    Args:
        model: a catalogue name, Hub id, path, whole ``vllm serve …`` line, or a resolved model.
        gpu: a GPU of the table (``h100-80gb``, or ``h100-80gb:2`` for two), or None for a device without a limit.
        gpus: how many equal GPUs share the work; None for as many as ``gpu`` says, or the parallel sizes.
        revision: branch, tag or commit of a Hub model.
        calibration: a calibration of this GPU, of vLLM's own logs for that engine, or its file; None takes the shipped
            one, if there is one.
        **flags: fields of `Request` and of `Flags`.

    Raises:
        UllageError: what is unknown, missing or contradictory, by name.
    """
    asked = ask(model, flags, revision=revision) if isinstance(model, str) else Asking(model=model, flags=flags)
    device, count = _device(gpu, gpus)
    request, own = split_flags(asked.flags)
    fitted, constants = _fitted(calibration, device, request.engine)
    answer = run(asked.model, request, flags=own, gpu=device, gpus=count, calibration=fitted, constants=constants)
    return replace(answer, notes=asked.notes, ignored=asked.ignored)


def _fitted(
    given: str | Path | Calibration | EngineCalibration | None, gpu: Gpu | None, engine: str
) -> tuple[Calibration | None, EngineCalibration | None]:
    """The constants of a device, for transformers, or those of an engine's logs."""
    if engine == "transformers":
        if isinstance(given, EngineCalibration):
            raise UsageError("constants of vLLM's logs say nothing of transformers", hint="add --engine vllm")
        if given is None:
            return shipped(gpu), None
        fitted = given if isinstance(given, Calibration) else read_calibration(Path(given))
        require_gpu(fitted, gpu)
        return fitted, None
    if given is None:
        return None, None
    constants = given if isinstance(given, EngineCalibration | Calibration) else read_engine_calibration(Path(given))
    if not isinstance(constants, EngineCalibration) or constants.engine != engine:
        raise UsageError(f"no constants of {engine} in the calibration", hint="fit some: ullage calibrate --engine-log")
    return None, constants


def run(
    model: Model,
    request: Request,
    *,
    flags: Flags | None = None,
    gpu: Gpu | None = None,
    gpus: int | None = None,
    calibration: Calibration | None = None,
    constants: EngineCalibration | None = None,
) -> Estimate:
    """Estimate a resolved model; the fast path for many requests.

    ``calibration`` is taken to be of ``gpu``; it is left out where its attention implementations are others.
    """
    asked = deploy(model, request, flags=flags, gpu=gpu, gpus=gpus, calibration=calibration, constants=constants)
    return Estimate(asked=asked, ledgers=ledgers_of(asked))


def deploy(
    model: Model,
    request: Request,
    *,
    flags: Flags | None = None,
    gpu: Gpu | None = None,
    gpus: int | None = None,
    calibration: Calibration | None = None,
    constants: EngineCalibration | None = None,
) -> Deployment:
    """Everything that the ledgers follow from, the engine's defaults resolved.

    Raises:
        UllageError: what the engine cannot do, or flags that contradict each other, by name.
    """
    own, engine = flags or Flags(), find_engine(request.engine)
    own.require_of(request.engine)
    asked = Deployment(
        model=model,
        request=request,
        flags=own,
        dtype=serving_dtype(model, request),
        gpu=gpu,
        degrees=degrees(
            gpus,
            tensor=own.tensor_parallel_size,
            pipeline=own.pipeline_parallel_size,
            data=own.data_parallel_size,
            rest=engine.REST,
        ),
        calibration=calibration,
        constants=constants,
    )
    return engine.prepare(asked)


def ledgers_of(asked: Deployment) -> tuple[Ledger, ...]:
    """One a GPU; every copy of the model has its part of the sequences."""
    copies = asked.degrees.data
    engine = find_engine(asked.request.engine)
    if copies == 1:
        return engine.ledgers(asked)
    rows = engine.ledgers(asked.asking(batch_size=ceil(asked.request.batch_size / copies)))
    ranks = [row.rank.removeprefix("dp0/") for row in rows]
    return tuple(
        replace(row, rank=f"dp{copy}/{rank}") for copy in range(copies) for row, rank in zip(rows, ranks, strict=True)
    )


def fullest_bytes(asked: Deployment) -> int:
    """What counts against the memory of the GPU that decides."""
    return max(row.charged.bytes for row in ledgers_of(asked))


def split_flags(flags: Mapping[str, Any]) -> tuple[Request, Flags]:
    """Fields of `Request` and of `Flags`, told apart by name.

    Raises:
        UsageError: a name that is neither's.
    """
    asking = {field.name for field in fields(Request)}
    own = {field.name for field in fields(Flags)}
    if unknown := sorted(set(flags) - asking - own):
        raise UsageError(f"unknown option {unknown[0]!r}", hint=f"known: {', '.join(sorted(asking | own))}")
    request = Request(**{name: value for name, value in flags.items() if name in asking})
    return request, Flags(**{name: value for name, value in flags.items() if name in own})


def _device(gpu: str | Gpu | None, gpus: int | None) -> tuple[Gpu | None, int | None]:
    if gpus is not None and (not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1):
        raise UsageError(f"{gpus!r} GPUs: must be a whole number, at least 1")
    if isinstance(gpu, str) and ":" in gpu:
        named, spec = parse_gpu(gpu)
        if gpus not in (None, spec):
            raise UsageError(f"{gpu!r} and {gpus} GPUs contradict each other", hint="give the number once")
        return named, spec
    return (find_gpu(gpu) if isinstance(gpu, str) else gpu), gpus


def _made(request: Request) -> str | None:
    """The format that the weights take, where the engine has a name of its own for it."""
    if request.engine != "vllm" or request.weight_format is None:
        return request.weight_format
    from analytic.loaded.vllm import ONLINE

    return ONLINE.get(request.weight_format, request.weight_format)


def _bits(model: Model, request: Request, dtype: str) -> int:
    """Bits of a weight, as someone would put them into the rule."""
    if request.quantization in QUANTIZATIONS:
        return 8 if request.quantization == "bnb-int8" else 4
    if is_packing(request.quantization):
        return find_preset(str(_made(request)))[0].scheme.weight_bits
    if request.quantization is None and (native := quantization_of(model.config)):
        weights = weigh(model, dtype=dtype, quantization=None).bytes
        return weight_bits(native) or ceil(8 * weights / model.parameters)
    return 8 * itemsize(dtype)


def largest(excess: Callable[[int], int], *, start: int, limit: int) -> int:
    """The largest value up to ``limit`` that fits, where fitting once means fitting everything smaller; 0 if none.

    Args:
        excess: what is too much at a value; 0 or less fits. Nearly straight lines take few calls.
        start: first value to try.
        limit: last value.
    """
    low, high, below, above = 0, min(start, limit), None, None
    while (over := excess(high)) <= 0:  # outwards, along the line through the last two values
        if high == limit:
            return limit
        rise = None if below is None or over <= below else (over - below) / (high - low)
        ahead = 2 * high if rise is None else high + int(-over / rise) + 1
        low, below, high = high, over, min(limit, max(high + 1, min(ahead, 64 * high)))
    above, halve = over, False
    while high - low > 1:
        width = high - low
        guess = (low + high) // 2
        if below is not None and not halve:
            guess = min(high - 1, max(low + 1, low + int(-below * width / (above - below))))
        over = excess(guess)
        low, below, high, above = (guess, over, high, above) if over <= 0 else (low, below, guess, over)
        halve = high - low > width // 2
    return low


def _changes(answer: Estimate) -> Iterator[tuple[str, Deployment]]:
    """What could be asked for instead, one flag at a time."""
    asked, request = answer.asked, answer.request
    yield from answer.engine.changes(asked)
    if batch := answer.max_sequences:
        yield f"--batch-size {batch}", asked.asking(batch_size=batch)
    if answer.max_tokens:
        prompt = answer.max_tokens - request.output_tokens
        yield f"--prompt-tokens {prompt}", asked.asking(prompt_tokens=prompt)
    needed = answer.needed
    if needed is not None and needed.gpus > answer.gpus and answer.gpu:
        yield _several(answer.gpu, needed, answer.engine.REST), replace(asked, degrees=needed)


def _several(gpu: Gpu, needed: Degrees, rest: Kind) -> str:
    """Flags of so many GPUs; how they share the work where the number alone would mean something else."""
    named = [] if gpu.kind == "custom" else [f"--gpu {gpu.name}:{needed.gpus}"]
    if named and degrees(needed.gpus, rest=rest) == needed:
        return named[0]
    sizes = (("tensor", needed.tensor), ("pipeline", needed.pipeline))
    return " ".join([*named, *(f"--{kind}-parallel-size {size}" for kind, size in sizes if size > 1)])


def _warnings(answer: Estimate) -> Iterator[str]:
    yield from answer.notes
    yield from answer.model.notes
    yield from precision_notes(answer.asked)
    yield from answer.engine.warnings(answer.asked)
    loading = max(row.load_peak.bytes + row.components["context"].bytes for row in answer.ledgers)
    if answer.fits and answer.capacity_bytes is not None and loading > answer.capacity_bytes:
        yield f"serving fits, but loading peaks at {loading / GiB:.2f} GiB"
    if not answer.is_certain:
        yield "the verdict lies within the bounds: calibrate on this GPU, or leave more headroom"
    limit = answer.model.geometry.max_position_embeddings
    if limit is not None and answer.request.total_tokens > limit:
        yield f"{answer.request.total_tokens:,} tokens exceed the model's advertised context of {limit:,}"
