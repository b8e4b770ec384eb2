"""Many deployments of one model side by side: which GPUs hold it, how long a context, how many sequences at once.

What a deployment needs hangs on the workload and on the kind of GPU (its kernels and its defaults), not on how much
memory it has: needs are computed once a kind, and laid against each GPU's capacity.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from analytic.deployment import Deployment
from analytic.engines.engine import find_engine
from analytic.errors import UllageError, UsageError
from analytic.estimator import deploy
from analytic.flags import Flags
from analytic.hardware import Gpu
from analytic.models.geometry import MixtureOfExperts
from analytic.models.model import Model
from analytic.parallel import Degrees
from analytic.plans.needs import Needs, Room, held_of, kind_of, shift_of, workload
from analytic.plans.options import Option, Plan, Refused, order_of
from analytic.plans.question import Question, formats_of
from analytic.progress import showing
from analytic.request import Request


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
    (flags or Flags()).require_of(request.engine)
    kinds = tuple(gpus)
    if not kinds:
        raise UsageError("no GPU to plan for", hint="name some with --gpu, as ullage gpus lists them")
    formats = formats_of(model, request.engine, asked)
    refused: list[Refused] = []
    options: list[Option] = []
    splits = [
        shape
        for count in asked.counts
        for shape in shapes(model, request.engine, count, node_gpus=asked.node_gpus, flags=flags or Flags())
    ]
    with showing("plan", of=model.id, unit="deployments", total=len(formats) * len(splits) * len(kinds)) as task:
        for name, shape in product(formats, splits):
            made, failed = _try(model, replace_format(request, name), shape, kinds, asked, prices or {})
            options += made
            refused += failed
            task.done += len(kinds)
    if not options:
        first = refused[0]
        raise UllageError(f"{model.id} on {first.gpus}: {first.reason}", hint=first.hint)
    options.sort(key=lambda option: (not option.fits, *order_of(option)))
    return Plan(model=model, engine=request.engine, question=asked, options=tuple(options), refused=tuple(refused))


def replace_format(request: Request, name: str | None) -> Request:
    """``request`` in another format; of bitsandbytes' flags only where it is one of its formats."""
    four_bit = name in ("bnb-nf4", "bnb-fp4")
    return replace(
        request,
        quantization=name,
        double_quant=request.double_quant and four_bit,
        compute_dtype=request.compute_dtype if four_bit else None,
    )


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
    by_kind: dict[Hashable, Needs | UllageError] = {}
    options: list[Option] = []
    refused: list[Refused] = []
    target = workload(request, question.target_context, question.target_concurrency, question.output_tokens)
    most = max(gpu.total_bytes for gpu in gpus)
    for gpu in gpus:
        try:
            asked = deploy(model, target, flags=flags, gpu=gpu, gpus=_count(request.engine, flags))
            kind = kind_of(asked)
            if kind not in by_kind:
                by_kind[kind] = _needs(asked, question, most)
            needs = by_kind[kind]
            if isinstance(needs, UllageError):
                raise needs
            options.append(_option(asked, gpu, needs, prices))
        except UllageError as refusal:
            refused.append(
                Refused(
                    quantization=request.quantization,
                    gpus=_named(gpu, flags),
                    reason=refusal.message,
                    hint=refusal.hint,
                )
            )
    return options, refused


def _named(gpu: Gpu, flags: Flags) -> str:
    degrees = Degrees(tensor=flags.tensor_parallel_size or 1, pipeline=flags.pipeline_parallel_size or 1)
    several = len(flags.tensor_split or (1,)) if flags.tensor_split else degrees.gpus
    return f"{several} × {gpu.name}" + (f" ({degrees})" if degrees.gpus > 1 else "")


def _needs(asked: Deployment, question: Question, most_bytes: int) -> "Needs | UllageError":
    """What it needs, or why that is not known."""
    try:
        return Needs(asked, question, most_bytes)
    except UllageError as refusal:
        return refusal


def _option(asked: Deployment, gpu: Gpu, needs: Needs, prices: Mapping[str, float]) -> Option:
    room = Room(
        capacity_bytes=find_engine(asked.request.engine).usable_bytes(asked, gpu),
        total_bytes=gpu.total_bytes,
        shift=shift_of(gpu, needs.gpu, asked),
    )
    price = prices.get(gpu.name)
    return Option(
        asked=asked,
        room=room,
        target=needs.target,
        frontier=tuple((held_of(row, room.holds_certainly), held_of(row, room.holds_perhaps)) for row in needs.rows),
        price_per_hour=None if price is None else price * asked.degrees.gpus,
    )
