"""One measurement, from the case to the record: what to load, a fresh process that loads it, and what it told."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analytic.calibration import Calibration, require_gpu
from analytic.errors import UllageError, UsageError
from analytic.estimator import run as estimate
from analytic.measurement import (
    Advice,
    Device,
    Failure,
    LiveTensors,
    MeasuredModel,
    Measurement,
    Meter,
    ModuleRow,
    Peak,
    Phase,
    Tried,
)
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.models.twin import twin_config
from analytic.progress import Task, showing
from analytic.request import Request, serving_dtype
from analytic.stopping import hinting, undisturbed
from profiler.case import Case
from profiler.nvml import first_visible, open_nvml, refuse_if_busy
from profiler.scratch import partial_of, scratch_directory
from profiler.virtual.target import PREFIX, VirtualOptions, find_target, is_virtual

DEVICES = ("cuda", "cpu", "meta", f"{PREFIX}GPU")

_POLL_SECONDS = 0.05

OnPhase = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the worker loads."""

    folder: str
    revision: str | None
    weights: str
    """real, sparse or none."""
    config: dict[str, Any] | None = None
    """What a virtual GPU builds instead, and the dtype of its checkpoint."""
    stored: str = "bfloat16"


@hinting("start it again: a measurement is recorded when it has ended")
def profile(
    case: Case,
    *,
    device: str,
    snapshot: Path | None = None,
    allow_busy: bool = False,
    timeout_s: float | None = None,
    on_phase: OnPhase | None = None,
    virtual: VirtualOptions | None = None,
    calibration: Calibration | None = None,
) -> Measurement:
    """Measure ``case`` on ``device`` in a process of its own; ``virtual`` and ``calibration`` are for virtual GPUs.

    Running out of memory, an error while loading or serving and a killed process are statuses of the measurement.

    Raises:
        UllageError: it cannot be tried: no such model or device, a busy GPU, no room for the checkpoint.
    """
    require_device(device)
    if snapshot is not None and device != "cuda":
        raise UsageError("--snapshot: only PyTorch's CUDA allocator keeps one", hint="add --device cuda")
    options = virtual or VirtualOptions()
    if is_virtual(device):
        find_target(device, torch=options.torch_version, alloc_conf=options.alloc_conf)
    elif options != VirtualOptions() or calibration is not None:
        raise UsageError(f"--device {device} is no virtual GPU", hint="add --device virtual:h200")
    model = resolve(case.model, revision=case.revision)
    request = replace(case.request, dtype=serving_dtype(model, case.request))
    if calibration is not None:
        options = replace(options, context_bytes=_context_bytes(calibration, model, request, device))
    if device == "cuda" and not allow_busy:
        _refuse_busy_gpu()
    shown = showing("checkpoint", of=case.model, after_s=0)
    with shown as task, _source(case, model, request.dtype, device) as source:
        job = {
            "folder": source.folder,
            "revision": source.revision,
            "request": asdict(request),
            "device": device,
            "snapshot": str(snapshot.absolute()) if snapshot else None,
            "config": source.config,
            "stored": source.stored,
            **asdict(options),
        }
        told = _watch(job, timeout_s=timeout_s, on_phase=on_phase or (lambda _: None), task=task)
    return _measurement(case, model, request, source, told)


def _context_bytes(calibration: Calibration, model: Model, request: Request, device: str) -> int:
    """The calibrated context of a process that serves ``model`` so."""
    gpu = find_target(device).gpu
    require_gpu(calibration, gpu)
    estimated = estimate(model, request, gpu=gpu, calibration=calibration)
    if estimated.calibration is None:
        raise UllageError(
            f"the calibration {calibration.id} knows no {request.attention} attention",
            hint=f"it was made with {', '.join(calibration.attention)}",
        )
    return estimated.fullest.components["context"].bytes


def require_device(device: str) -> None:
    """Raise where nothing can be measured on ``device``.

    Raises:
        UllageError: unknown, or not there.
    """
    if is_virtual(device):
        find_target(device)
    elif device not in DEVICES:
        raise UsageError(f"--device: {device!r} is not known", hint=f"one of {', '.join(DEVICES)}")
    if device == "cuda":
        from profiler.meters import require_cuda

        require_cuda()


def device_slug(device: str) -> str:
    """The folder of a device's records: ``cpu``, ``nvidia-h200``."""
    if device != "cuda":
        return slug(device)
    nvml = open_nvml()
    uuid = first_visible(nvml) if nvml else None
    return slug(nvml.name(uuid)) if nvml and uuid else "cuda"


def slug(name: str) -> str:
    """A device's name as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _refuse_busy_gpu() -> None:
    nvml = open_nvml()
    uuid = first_visible(nvml) if nvml else None
    if nvml and uuid:
        refuse_if_busy(nvml, uuid)


def _source(case: Case, model: Model, dtype: str, device: str) -> AbstractContextManager[Source]:
    """Real weights where they are asked for or lie in a directory, else a sparse checkpoint that goes away again."""
    if is_virtual(device):
        return nullcontext(shapes_of(case, model, dtype))
    local = Path(case.model).expanduser()
    here = local.is_dir() and any(local.glob("*.safetensors"))
    if case.weights == "real" or (case.weights == "auto" and here and case.twin_layers is None):
        if case.twin_layers is not None:
            raise UsageError("--twin-layers needs a sparse checkpoint", hint="leave --weights real out")
        folder = str(local) if local.is_dir() else model.id
        return nullcontext(Source(folder=folder, revision=model.revision, weights="real"))
    return _sparse(case, model, dtype, "none" if device == "meta" else "sparse")


@contextmanager
def _sparse(case: Case, model: Model, dtype: str, weights: str) -> Iterator[Source]:
    from profiler.sparse import sparse_checkpoint

    with sparse_checkpoint(_config(case, model), dtype=_stored(model, dtype)) as checkpoint:
        yield Source(folder=str(checkpoint.path), revision=None, weights=weights)


def shapes_of(case: Case, model: Model, dtype: str) -> Source:
    """What a virtual GPU builds of ``case``.

    Raises:
        UllageError: real weights, or a quantised checkpoint.
    """
    if case.weights != "auto":
        raise UsageError(f"--weights {case.weights}: a virtual GPU has no values", hint="leave --weights out")
    config = _config(case, model)
    if (native := config.pop("quantization_config", None)) is not None:
        raise UsageError(
            f"{model.id}: a virtual GPU does not load {native.get('quant_method')} checkpoints yet",
            hint="--quantization none profiles it dequantised",
        )
    return Source(folder="", revision=None, weights="none", config=config, stored=_stored(model, dtype))


def _config(case: Case, model: Model) -> dict[str, Any]:
    """What is built: the twin, unquantised if so asked."""
    config = dict(model.config) if case.twin_layers is None else twin_config(model.config, layers=case.twin_layers)
    if case.request.quantization == "none":
        config.pop("quantization_config", None)
    return config


def _stored(model: Model, dtype: str) -> str:
    return model.dtype if model.dtype in ("float32", "float16", "bfloat16") else dtype


@dataclass(kw_only=True)
class _Told:
    """What a worker said before it ended."""

    task: Task = field(default_factory=lambda: Task(what=""))
    """What is shown of it."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    phase: str = "context"

    def hear(self, line: str, on_phase: OnPhase) -> None:
        event = json.loads(line)
        match event.pop("event"):
            case "begin":
                self.phase = event["phase"]
                self.task.turn_to(self.phase)
                on_phase(self.phase)
            case "doing":
                self.task.turn_to(event["what"])
            case "step":
                self.task.at(**event)
            case "phase":
                self.phases.append(event)
            case "facts":
                self.facts |= event
            case "refused":
                raise UllageError(event["message"], hint=event["hint"])
            case "end":
                self.end = event


def _watch(job: dict[str, Any], *, timeout_s: float | None, on_phase: OnPhase, task: Task) -> _Told:
    """Run a worker and hear it out; one that ends without a word has failed in the phase it was in."""
    told = _Told(task=task)
    task.turn_to("worker")
    with scratch_directory("job", Path(tempfile.gettempdir())) as folder:
        job_file, events, output = (folder / name for name in ("job.json", "events.jsonl", "output.txt"))
        job_file.write_text(json.dumps(job))
        events.touch()
        command = [sys.executable, "-m", "profiler.worker", str(job_file), str(events), str(os.getpid())]
        with output.open("wb") as sink, events.open(encoding="utf-8") as lines:
            process = None
            try:
                with undisturbed():
                    process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=_environment())
                ended = _follow(process, _whole_lines(lines), told, on_phase, timeout_s)
            finally:
                if process is not None:
                    process.kill()
                    process.wait()
                if job["snapshot"]:
                    Path(partial_of(job["snapshot"])).unlink(missing_ok=True)
        if told.end is None:
            last = output.read_text(errors="replace").strip().splitlines()[-1:]
            told.end = {"status": "error", "failure": {"phase": told.phase, "message": " ".join([ended, *last])[:600]}}
    return told


def _environment() -> dict[str, str]:
    """This process's own, with its import path: a worker finds what its parent found."""
    paths = [path for path in (os.getcwd(), *sys.path) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "TOKENIZERS_PARALLELISM": "false"}


def _follow(
    process: subprocess.Popen[bytes],
    lines: Iterator[str | None],
    told: _Told,
    on_phase: OnPhase,
    timeout_s: float | None,
) -> str:
    """Hear a worker until it ends; how it ended, for people."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for line in lines:
        if line is not None:
            told.hear(line, on_phase)
        elif (code := process.poll()) is not None:
            for late in lines:
                if late is None:
                    break
                told.hear(late, on_phase)
            return f"worker killed by signal {-code}" if code < 0 else f"worker ended with exit code {code}"
        elif deadline is not None and time.monotonic() > deadline:
            return f"worker stopped after {timeout_s:.0f} s"
        else:
            time.sleep(_POLL_SECONDS)
    raise AssertionError("the lines of a file that is followed never end")


def _whole_lines(file: Any) -> Iterator[str | None]:
    """Lines as they are finished; None where there is no more for now."""
    partial = ""
    while True:
        partial += file.readline()
        if partial.endswith("\n"):
            yield partial
            partial = ""
        else:
            yield None


def _measurement(case: Case, model: Model, request: Any, source: Source, told: _Told) -> Measurement:
    end, facts = told.end or {}, told.facts
    device = facts.get("device")
    if device is None:
        raise UllageError(f"{case.model}: {end['failure']['message']}", hint="the worker never reached the device")
    if end.get("last"):
        told.phases.append(end["last"])
    return Measurement(
        id=case.id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        status=end["status"],
        model=MeasuredModel(
            id=model.id,
            source=model.source,
            revision=model.revision,
            architecture=model.architecture,
            parameters=facts.get("parameters"),
            config=model.config,
            weights=source.weights,  # type: ignore[arg-type]
            twin_layers=case.twin_layers,
        ),
        request=Request(**facts["request"]) if "request" in facts else request,
        device=Device(**{**device, "capability": device["capability"] and tuple(device["capability"])}),
        software=facts.get("software", {}),
        phases=tuple(Phase(**phase) for phase in told.phases),
        retained_bytes=facts.get("retained_bytes"),
        weights_by_format=facts.get("weights_by_format", {}),
        modules=tuple(ModuleRow(**row) for row in facts.get("modules", ())),
        timeline=tuple(tuple(sample) for sample in facts.get("timeline", ())),
        peaks=tuple(_peak(peak) for peak in facts.get("peaks", ())),
        advice=tuple(Advice(**advice) for advice in facts.get("advice", ())),
        tried=tuple(Tried(**tried) for tried in facts.get("tried", ())),
        notes=tuple(facts.get("notes", ())),
        meter=Meter(**facts["meter"]) if "meter" in facts else None,
        failure=_failure(end["failure"]) if end.get("failure") else None,
    )


def _peak(told: dict[str, Any]) -> Peak:
    tensors = (LiveTensors(**{**tensors, "shape": tuple(tensors["shape"])}) for tensors in told["tensors"])
    return Peak(**{**told, "tensors": tuple(tensors)})


def _failure(told: dict[str, Any]) -> Failure:
    return Failure(**{**told, "frames": tuple(told.get("frames", ()))})
