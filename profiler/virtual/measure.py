"""A measurement on the virtual GPU, told event by event as a worker tells a real one."""

import time
from collections.abc import Iterator
from dataclasses import asdict

from analytic.measurement import Advice, Device, Failure, Phase, PhaseName
from analytic.request import Request
from profiler.meters import max_rss_bytes
from profiler.serve import Emit, Job, software
from profiler.telling import doing
from profiler.tensors import held, module_rows, weights_by_format
from profiler.virtual.generate import Loaded, Run, load_model, serve, virtual_gpu
from profiler.virtual.peaks import peaks
from profiler.virtual.recorder import Recorder
from profiler.virtual.search import Found, search
from profiler.virtual.simulate import Program, Simulation, simulated
from profiler.virtual.target import Target, find_target

ADVISED = (
    "expandable_segments:True",
    "max_split_size_mb:128",
    "roundup_power2_divisions:8",
)
"""Settings that people set."""


def measure(job: Job, emit: Emit) -> None:
    """Run ``job`` on its virtual GPU and tell every phase; the worker's `measure` tells a real device's."""
    target = find_target(
        job.device, torch=job.torch_version, alloc_conf=job.alloc_conf, context_bytes=job.context_bytes
    )
    emit("facts", device=asdict(_device(target)), software=_software(target))
    emit("begin", phase="context")
    emit("phase", **asdict(_context(target)))
    with virtual_gpu(target, job.request) as recorder:
        emit("begin", phase="load")
        began = time.perf_counter()
        loaded = load_model(job.config or {}, job.request, recorder, stored=job.stored)
        loading = time.perf_counter() - began
        _tell_weights(loaded, emit)
        emit("begin", phase="prefill")
        found = search(loaded, target, job.request, job.find) if job.find else Found(request=job.request)
        doing("trace")
        run = serve(loaded, found.request)
        serving = time.perf_counter() - began - loading
    doing("allocator")
    told = simulated(run.program, target)
    for phase in _phases(told, run, target, seconds={"load": loading, "prefill": serving}):
        emit("phase", **asdict(phase))
    emit(
        "facts",
        retained_bytes=told.retained_bytes,
        timeline=[(float(at), *memory, memory[1] + target.context_bytes) for at, *memory in told.timeline],
        peaks=[asdict(peak) for peak in peaks(run.program)],
        advice=[asdict(advice) for advice in _advice(run.program, target, told)] if job.advice else [],
        notes=_notes(recorder, job.request),
        request=asdict(found.request),
        tried=[asdict(tried) for tried in found.tried],
    )
    if told.failure is None:
        emit("end", status="ok")
    else:
        emit("end", status="oom", failure=asdict(_failure(told, run.program)))


def _device(target: Target) -> Device:
    gpu = target.gpu
    return Device(
        kind="virtual",
        name=gpu.product or gpu.name,
        capability=target.capability,
        total_bytes=gpu.total_bytes,
        sms=target.sms,
        used_basis="assumed-context" if target.calibrated_context_bytes is None else "calibrated-context",
    )


def _software(target: Target) -> dict[str, str | None]:
    return {**software(), "alloc_conf": target.alloc_conf, "target_torch": ".".join(map(str, target.torch))}


def _context(target: Target) -> Phase:
    return Phase(
        name="context",
        seconds=0.0,
        allocated_bytes=0,
        max_allocated_bytes=0,
        reserved_bytes=0,
        max_reserved_bytes=0,
        device_used_bytes=target.context_bytes,
    )


def _tell_weights(loaded: Loaded, emit: Emit) -> None:
    tensors = list(held(loaded.model))
    emit(
        "facts",
        parameters=sum(t.elements for t in tensors if t.persistent),
        weights_by_format=weights_by_format(tensors),
        modules=[asdict(row) for row in module_rows(tensors)],
    )


def _phases(told: Simulation, run: Run, target: Target, *, seconds: dict[str, float]) -> Iterator[Phase]:
    state: dict[PhaseName, int] = dict(zip(("prefill", "decode"), run.sequence_state_bytes, strict=True))
    for memory in told.phases:
        figures = {field: getattr(memory, field) for field in memory.__slots__ if field != "name"}
        yield Phase(
            name=memory.name,
            seconds=round(seconds.get(memory.name, 0.0), 3),
            device_used_bytes=memory.max_reserved_bytes + target.context_bytes,
            sequence_state_bytes=state.get(memory.name),
            max_rss_bytes=max_rss_bytes(),
            **figures,
        )


def _failure(told: Simulation, program: Program) -> Failure:
    failed = told.failure
    assert failed is not None, "only asked for a run that ran out of memory"
    birth = program.trace.births[failed.birth]
    step = f", output token {failed.token}" if failed.phase == "decode" else ""
    return Failure(
        phase=failed.phase,
        message=f"{birth.op} in {birth.module or 'generate'}{step}: asked for {failed.asked_bytes:,} bytes, "
        f"{failed.free_bytes:,} free on the device, {failed.reserved_bytes - failed.allocated_bytes:,} cached",
        asked_bytes=failed.asked_bytes,
        free_bytes=failed.free_bytes,
        module=birth.module,
        token=failed.token if failed.phase == "decode" else None,
    )


def _advice(program: Program, target: Target, told: Simulation) -> Iterator[Advice]:
    """The same run under other settings, the most saving first."""
    before = max(phase.max_reserved_bytes for phase in told.phases)
    found = []
    others = [conf for conf in ADVISED if conf != target.alloc_conf]
    for number, conf in enumerate(others, start=1):
        doing(f"advice {number} of {len(others)}, {conf}")
        other = simulated(program, target, alloc_conf=conf)
        reserved = max(phase.max_reserved_bytes for phase in other.phases)
        found.append(
            Advice(
                alloc_conf=conf,
                status="oom" if other.failure else "ok",
                max_reserved_bytes=reserved,
                saved_bytes=before - reserved,
            )
        )
    yield from sorted(found, key=lambda advice: (advice.status != "ok", -advice.saved_bytes))


def _notes(recorder: Recorder, request: Request) -> list[str]:
    """What a virtual GPU cannot know."""
    notes = [f"not counted: {unknown}, which only a device tells." for unknown in sorted(recorder.unknown)]
    if request.quantization == "bnb-int8":
        notes.append("int8: no column of activations is an outlier; those of real weights are kept in float16 beside.")
    if request.quantization in (None, "none"):
        notes.append("load: tensors come one by one; transformers reads a few ahead, which may be staged at once.")
    return notes
