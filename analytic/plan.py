"""Many deployments of one model side by side: which GPUs hold it, how long a context, how many sequences at once.

What a deployment needs hangs on the workload and on the kind of GPU (its kernels and its defaults), not on how much
memory it has: needs are computed once a kind, and laid against each GPU's capacity.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from analytic.deployment import Deployment
from analytic.engines.engine import find_engine
from analytic.errors import UllageError, UsageError
from analytic.estimator import Estimate, deploy, ledgers_of
from analytic.flags import Flags
from analytic.formats.quality import quality_cost
from analytic.formats.registry import presets
from analytic.hardware import Gpu, context_range, precision_warnings
from analytic.ledger import Ledger
from analytic.models.geometry import MixtureOfExperts
from analytic.models.model import Model
from analytic.parallel import Degrees
from analytic.request import LARGEST, Request
from analytic.weights import QUANTIZATIONS

Cell = Literal["fits", "tight", "no"]

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
"""Tokens of a sequence, prompt and output, that a matrix has by default."""

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Sequences at once that a matrix has by default."""

COUNTS = (1, 2, 4, 8)
"""How many GPUs are tried by default."""

FORMATS: Mapping[str, tuple[str | None, ...]] = {
    "transformers": (None, "bnb-int8", "bnb-nf4"),
    "vllm": (None, "fp8", "w4a16"),
    "llamacpp": (None, "Q8_0", "Q4_K_M"),
}
"""Formats that are tried by default; None is as published."""

_LIMITLESS_BYTES = 2**60


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a plan is asked."""

    target_context: int = 4096
    """Tokens of each sequence, prompt and output, that must fit."""
    target_concurrency: int = 1
    """Sequences at once that must fit."""
    output_tokens: int = 256
    """How many of a sequence's tokens are output."""
    contexts: tuple[int, ...] = CONTEXTS
    concurrencies: tuple[int, ...] = CONCURRENCIES
    counts: tuple[int, ...] = COUNTS
    formats: tuple[str | None, ...] = ()
    """Empty: those that are usual with the engine."""
    node_gpus: int = 8
    """GPUs of a node, over which no layer is split."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, values, most in (
            ("target-context", (self.target_context,), LARGEST["prompt_tokens"]),
            ("target-concurrency", (self.target_concurrency,), LARGEST["batch_size"]),
            ("contexts", self.contexts, LARGEST["prompt_tokens"]),
            ("concurrencies", self.concurrencies, LARGEST["batch_size"]),
            ("gpus", self.counts, 4096),
            ("node-gpus", (self.node_gpus,), 4096),
            ("output-tokens", (self.output_tokens,), LARGEST["output_tokens"]),
        ):
            for value in values:
                if not 1 <= value <= most:
                    raise UsageError(f"--{name}: {value} must lie between 1 and {most:,}")
            if list(values) != sorted(set(values)):
                raise UsageError(f"--{name}: {values} must rise", hint="give each number once, the smallest first")


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What the fullest GPU of a deployment is charged, on a GPU without a limit."""

    low_bytes: int
    bytes: int
    """Without what the allocator would give back."""
    high_bytes: int
    """Likewise."""
    kept_bytes: int
    """What it would give back."""
    kept_high_bytes: int


def need_of(rows: Iterable[Ledger]) -> Need:
    """Of the GPU that decides."""
    row = max(rows, key=lambda row: row.charged.bytes)
    charged, kept = row.charged, row.reclaimable
    return Need(
        low_bytes=charged.low_bytes,
        bytes=charged.bytes - kept.bytes,
        high_bytes=charged.high_bytes - kept.high_bytes,
        kept_bytes=kept.bytes,
        kept_high_bytes=kept.high_bytes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What one GPU has for a deployment."""

    capacity_bytes: int
    """That may be used."""
    total_bytes: int
    shift: tuple[int, int, int]
    """How much more (low, middle, high) its context costs than that of the GPU that needs were computed for."""

    def used_bytes(self, need: Need) -> int:
        """With what the allocator keeps as long as there is room for it."""
        held = need.bytes + self.shift[1]
        return held + min(need.kept_bytes, max(0, self.total_bytes - held))

    def holds_certainly(self, need: Need) -> bool:
        """Whether the high bound fits."""
        most = need.high_bytes + self.shift[2]
        return most + min(need.kept_high_bytes, max(0, self.total_bytes - most)) <= self.capacity_bytes

    def holds_perhaps(self, need: Need) -> bool:
        """Whether the low bound fits."""
        return need.low_bytes + self.shift[0] <= self.capacity_bytes


@dataclass(frozen=True, kw_only=True)
class Option:
    """One deployment: GPUs, how they share the work, and a format."""

    asked: Deployment
    """The target."""
    room: Room
    target: Need
    frontier: tuple[tuple[int, int], ...]
    """For each context, how many of the concurrencies fit, and how many perhaps do."""
    price_per_hour: float | None

    @property
    def gpu(self) -> Gpu:
        """Of which there are `degrees`.gpus."""
        assert self.asked.gpu is not None
        return self.asked.gpu

    @property
    def quantization(self) -> str | None:
        """None is as published."""
        return self.asked.request.quantization

    @property
    def degrees(self) -> Degrees:
        """How the GPUs share the work."""
        return self.asked.degrees

    @property
    def is_expert_parallel(self) -> bool:
        """Whether whole experts are divided among the GPUs."""
        return bool(self.asked.flags.enable_expert_parallel)

    @property
    def used_bytes(self) -> int:
        """Of the fullest GPU, as far as it counts."""
        return self.room.used_bytes(self.target)

    @property
    def headroom_bytes(self) -> int:
        """What is left on the fullest GPU; below 0 what it lacks."""
        return self.room.capacity_bytes - self.used_bytes

    @property
    def fits(self) -> bool:
        """Whether the target fits."""
        return self.headroom_bytes >= 0

    @property
    def is_certain(self) -> bool:
        """Whether that holds at both bounds."""
        return self.room.holds_certainly(self.target) if self.fits else not self.room.holds_perhaps(self.target)

    @property
    def memory_bytes(self) -> int:
        """Of all its GPUs."""
        return self.degrees.gpus * self.gpu.total_bytes

    def matrix(self, concurrencies: int) -> tuple[tuple[Cell, ...], ...]:
        """A row a context, a cell a concurrency."""
        rows = (
            ("fits",) * fits + ("tight",) * (perhaps - fits) + ("no",) * (concurrencies - perhaps)
            for fits, perhaps in self.frontier
        )
        return tuple(rows)  # type: ignore[arg-type]

    @cached_property
    def answer(self) -> Estimate:
        """The target in detail."""
        return Estimate(asked=self.asked, ledgers=ledgers_of(self.asked))

    @property
    def largest_context(self) -> int:
        """Tokens of each of the target's sequences that fit; 0 if none do."""
        return self.answer.max_tokens or 0

    @property
    def largest_concurrency(self) -> int:
        """Sequences of the target's length that fit at once; 0 if none do."""
        return self.answer.max_sequences or 0

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the GPU lacks for the format, and what the format is known to cost in quality."""
        return tuple(_notes(self.asked, self.gpu))


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A deployment that cannot be."""

    quantization: str | None
    gpus: str
    """Which, and how they would share the work."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every option, the best first."""

    model: Model
    engine: str
    question: Question
    options: tuple[Option, ...]
    refused: tuple[Refused, ...]

    @cached_property
    def fitting(self) -> tuple[Option, ...]:
        """Those that hold the target."""
        return tuple(option for option in self.options if option.fits)

    @property
    def smallest(self) -> Option | None:
        """The one with the least GPU memory that holds the target."""
        return min(self.fitting, key=_by_memory, default=None)

    @property
    def cheapest(self) -> Option | None:
        """The one with the lowest price that holds the target; None without prices."""
        priced = [option for option in self.fitting if option.price_per_hour is not None]
        return min(priced, key=_by_price, default=None)

    @property
    def best(self) -> Option | None:
        """The cheapest, or without prices the smallest."""
        return self.cheapest or self.smallest

    @cached_property
    def shortlist(self) -> tuple[Option, ...]:
        """Of each kind of GPU and format the best that holds the target."""
        listed: dict[tuple[str, str | None], Option] = {}
        for option in self.fitting:
            listed.setdefault((option.gpu.name, option.quantization), option)
        return tuple(listed.values())


def _by_memory(option: Option) -> tuple[object, ...]:
    """Layers that are split answer sooner than stages in a row, where both fit."""
    degrees = option.degrees
    return (
        option.memory_bytes,
        degrees.gpus,
        not option.is_certain,
        degrees.pipeline,
        option.is_expert_parallel,
        -option.headroom_bytes,
    )


def _by_price(option: Option) -> tuple[object, ...]:
    return (option.price_per_hour, not option.is_certain, *_by_memory(option))


def plan(
    model: Model,
    request: Request,
    *,
    gpus: Iterable[Gpu],
    question: Question | None = None,
    flags: Flags | None = None,
    prices: Mapping[str, float] | None = None,
) -> Plan:
    """Lay every deployment of ``model`` against the question.

    Args:
        model: resolved.
        request: engine, dtype and whatever else is the same in all of them; its tokens and sequences are replaced.
        gpus: kinds of GPU to try.
        question: what must fit, and what else is tried.
        flags: the engine's own flags; parallel sizes leave only those deployments.
        prices: of a GPU an hour, by its name; the others have none.

    Raises:
        UllageError: nothing that was asked for can be, with the first reason.
    """
    asked = question or Question()
    kinds = tuple(gpus)
    if not kinds:
        raise UsageError("no GPU to plan for", hint="name some with --gpu, as ullage gpus lists them")
    formats = _formats(model, request.engine, asked)
    refused: list[Refused] = []
    options: list[Option] = []
    for name in formats:
        for count in asked.counts:
            for shape in shapes(model, request.engine, count, node_gpus=asked.node_gpus, flags=flags or Flags()):
                made, failed = _try(model, replace_format(request, name), shape, kinds, asked, prices or {})
                options += made
                refused += failed
    if not options:
        first = refused[0]
        raise UllageError(f"{model.id} on {first.gpus}: {first.reason}", hint="see ullage formats and ullage gpus")
    options.sort(key=lambda option: (not option.fits, *_order(option)))
    return Plan(model=model, engine=request.engine, question=asked, options=tuple(options), refused=tuple(refused))


def _order(option: Option) -> tuple[object, ...]:
    return (*((option.price_per_hour,) if option.price_per_hour is not None else (float("inf"),)), *_by_memory(option))


def replace_format(request: Request, name: str | None) -> Request:
    """``request`` in another format; of bitsandbytes' flags only where it is one of its formats."""
    four_bit = name in ("bnb-nf4", "bnb-fp4")
    return replace(
        request,
        quantization=name,
        double_quant=request.double_quant and four_bit,
        compute_dtype=request.compute_dtype if four_bit else None,
    )


def _formats(model: Model, engine: str, question: Question) -> tuple[str | None, ...]:
    """Those asked for, or the usual ones; a checkpoint that is packed already is taken as it is."""
    if question.formats:
        return question.formats
    return FORMATS[engine] if model.native_format is None and model.source != "gguf" else (None,)


def every_format() -> tuple[str | None, ...]:
    """As published, and all that ``--quantization`` can make."""
    named = dict.fromkeys(preset.name for preset, _ in presets().values())
    return (None, *QUANTIZATIONS, *named)


def shapes(model: Model, engine: str, count: int, *, node_gpus: int, flags: Flags) -> Iterator[Flags]:
    """How ``count`` GPUs can share the work: parallel sizes that multiply to it, tensor parallelism within a node."""
    if engine == "llamacpp":
        yield replace(flags, tensor_split=(1.0,) * count) if count > 1 else flags
        return
    copies = flags.data_parallel_size or 1
    for tensor in range(1, min(count, node_gpus) + 1):
        stages, left = divmod(count, tensor * copies)
        if (
            left
            or flags.tensor_parallel_size not in (None, tensor)
            or flags.pipeline_parallel_size not in (None, stages)
        ):
            continue
        shape = replace(flags, tensor_parallel_size=tensor, pipeline_parallel_size=stages)
        yield shape
        if engine == "vllm" and tensor * copies > 1 and flags.enable_expert_parallel is None and _has_experts(model):
            yield replace(shape, enable_expert_parallel=True)


def _has_experts(model: Model) -> bool:
    return any(isinstance(layer.feed_forward, MixtureOfExperts) for layer, _ in model.geometry.groups)


def _count(engine: str, flags: Flags) -> int | None:
    return len(flags.tensor_split or (1.0,)) if engine == "llamacpp" else None


def _try(
    model: Model,
    request: Request,
    flags: Flags,
    gpus: tuple[Gpu, ...],
    question: Question,
    prices: Mapping[str, float],
) -> tuple[list[Option], list[Refused]]:
    """One format and one way to share the work, on every kind of GPU."""
    engine = find_engine(request.engine)
    by_kind: dict[Hashable, _Needs | UllageError] = {}
    options: list[Option] = []
    refused: list[Refused] = []
    target = _workload(request, question.target_context, question.target_concurrency, question.output_tokens)
    most = max(gpu.total_bytes for gpu in gpus)
    for gpu in gpus:
        try:
            asked = deploy(model, target, flags=flags, gpu=gpu, gpus=_count(request.engine, flags))
            kind = (engine.kind(gpu), asked.flags, asked.request)
            if kind not in by_kind:
                by_kind[kind] = _needs(asked, question, most)
            needs = by_kind[kind]
            if isinstance(needs, UllageError):
                raise needs
            options.append(_option(asked, gpu, needs, prices))
        except UllageError as refusal:
            refused.append(Refused(quantization=request.quantization, gpus=_named(gpu, flags), reason=refusal.message))
    return options, refused


def _named(gpu: Gpu, flags: Flags) -> str:
    degrees = Degrees(tensor=flags.tensor_parallel_size or 1, pipeline=flags.pipeline_parallel_size or 1)
    several = len(flags.tensor_split or (1,)) if flags.tensor_split else degrees.gpus
    return f"{several} × {gpu.name}" + (f" ({degrees})" if degrees.gpus > 1 else "")


@lru_cache(maxsize=65536)
def _workload(request: Request, context: int, concurrency: int, output_tokens: int) -> Request:
    """Sequences of ``context`` tokens in all; at least one of them is prompt, and one output."""
    output = max(1, min(output_tokens, context - 1))
    return replace(request, prompt_tokens=max(1, context - output), output_tokens=output, batch_size=concurrency)


class _Needs:
    """Needs of one deployment on one kind of GPU, computed once: a row a context, each as far as some GPU has room."""

    def __init__(self, asked: Deployment, question: Question, most_bytes: int) -> None:
        assert asked.gpu is not None
        self.gpu = asked.gpu
        self._asked = replace(asked, gpu=replace(asked.gpu, total_bytes=_LIMITLESS_BYTES))
        self._output_tokens = question.output_tokens
        self.rows = [self._row(context, question.concurrencies, most_bytes) for context in question.contexts]
        self.target = self._need(question.target_context, question.target_concurrency)

    def _row(self, context: int, concurrencies: tuple[int, ...], most_bytes: int) -> list[Need]:
        row: list[Need] = []
        for concurrency in concurrencies:
            need = self._need(context, concurrency)
            if need.low_bytes > most_bytes:
                break
            row.append(need)
        return row

    def _need(self, context: int, concurrency: int) -> Need:
        flags = self._asked.flags
        if flags.max_model_len is not None:
            flags = replace(flags, max_model_len=max(context, 2))
        workload = _workload(self._asked.request, context, concurrency, self._output_tokens)
        return need_of(ledgers_of(replace(self._asked, request=workload, flags=flags)))


def _needs(asked: Deployment, question: Question, most_bytes: int) -> "_Needs | UllageError":
    """What it needs, or why that is not known."""
    try:
        return _Needs(asked, question, most_bytes)
    except UllageError as refusal:
        return refusal


def _option(asked: Deployment, gpu: Gpu, needs: _Needs, prices: Mapping[str, float]) -> Option:
    room = Room(
        capacity_bytes=find_engine(asked.request.engine).usable_bytes(asked, gpu),
        total_bytes=gpu.total_bytes,
        shift=_shift(gpu, needs.gpu, asked),
    )
    price = prices.get(gpu.name)
    return Option(
        asked=asked,
        room=room,
        target=needs.target,
        frontier=tuple((_held(row, room.holds_certainly), _held(row, room.holds_perhaps)) for row in needs.rows),
        price_per_hour=None if price is None else price * asked.degrees.gpus,
    )


def _held(row: list[Need], holds: Callable[[Need], bool]) -> int:
    """How many of a row's needs, which rise, are held."""
    return bisect_left(row, True, key=lambda need: not holds(need))


def _shift(gpu: Gpu, of: Gpu, asked: Deployment) -> tuple[int, int, int]:
    """How much more ``gpu``'s context costs than that of ``of``, where the engine charges it."""
    if asked.calibration is not None or not find_engine(asked.request.engine).CHARGES_CONTEXT:
        return 0, 0, 0
    mine, other = context_range(gpu), context_range(of)
    return mine.low_bytes - other.low_bytes, mine.bytes - other.bytes, mine.high_bytes - other.high_bytes


def _notes(asked: Deployment, gpu: Gpu) -> Iterator[str]:
    request = asked.request
    native = {"fp8": "fp8-128x128"}.get(asked.model.native_format or "", asked.model.native_format)
    packed = request.quantization if request.quantization not in (None, "none") else native
    yield from precision_warnings(gpu, dtype=asked.dtype, weight_format=packed, kv_cache_dtype=request.kv_cache_dtype)
    if (cost := quality_cost(request.quantization)) is not None:
        yield f"{request.quantization}: {cost[0]} ({cost[1]})"
