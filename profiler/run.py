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

from analytic.errors import UllageError, UsageError
from analytic.estimator import serving_dtype
from analytic.measurement import (
    Device,
    Failure,
    MeasuredModel,
    Measurement,
    Meter,
    ModuleRow,
    Phase,
)
from analytic.models.model import Model
from analytic.models.resolve import resolve
from analytic.models.twin import twin_config
from profiler.case import Case
from profiler.nvml import first_visible, open_nvml, refuse_if_busy
from profiler.scratch import scratch_directory

DEVICES = ("cuda", "cpu", "meta")

_POLL_SECONDS = 0.05

OnPhase = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What the worker loads."""

    folder: str
    revision: str | None
    weights: str
    """real, sparse or none."""


def profile(
    case: Case,
    *,
    device: str,
    snapshot: Path | None = None,
    allow_busy: bool = False,
    timeout_s: float | None = None,
    on_phase: OnPhase | None = None,
) -> Measurement:
    """Measure ``case`` on ``device`` in a process of its own.

    Running out of memory, an error while loading or serving and a killed process are statuses of the measurement.

    Raises:
        UllageError: it cannot be tried: no such model or device, a busy GPU, no room for the checkpoint.
    """
    require_device(device)
    if snapshot is not None and device != "cuda":
        raise UsageError("--snapshot: only PyTorch's CUDA allocator keeps one", hint="add --device cuda")
    model = resolve(case.model, revision=case.revision)
    request = replace(case.request, dtype=serving_dtype(model, case.request))
    if device == "cuda" and not allow_busy:
        _refuse_busy_gpu()
    with _source(case, model, request.dtype, device) as source:
        job = {
            "folder": source.folder,
            "revision": source.revision,
            "request": asdict(request),
            "device": device,
            "snapshot": str(snapshot.absolute()) if snapshot else None,
        }
        told = _watch(job, timeout_s=timeout_s, on_phase=on_phase or (lambda _: None))
    return _measurement(case, model, request, source, told)


def require_device(device: str) -> None:
    """Raise where nothing can be measured on ``device``.

    Raises:
        UllageError: unknown, or not there.
    """
    if device not in DEVICES:
        raise UsageError(f"--device: {device!r} is not known", hint=f"one of {', '.join(DEVICES)}")
    if device == "cuda":
        from profiler.meters import require_cuda

        require_cuda()


def device_slug(device: str) -> str:
    """The folder of a device's records: ``cpu``, ``nvidia-h200``."""
    if device != "cuda":
        return device
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


def _source(case: Case, model: Model, dtype: str, device: str) -> AbstractContextManager[_Source]:
    """Real weights where they are asked for or lie in a directory, else a sparse checkpoint that goes away again."""
    local = Path(case.model).expanduser()
    here = local.is_dir() and any(local.glob("*.safetensors"))
    if case.weights == "real" or (case.weights == "auto" and here and case.twin_layers is None):
        if case.twin_layers is not None:
            raise UsageError("--twin-layers needs a sparse checkpoint", hint="leave --weights real out")
        folder = str(local) if local.is_dir() else model.id
        return nullcontext(_Source(folder=folder, revision=model.revision, weights="real"))
    return _sparse(case, model, dtype, "none" if device == "meta" else "sparse")


@contextmanager
def _sparse(case: Case, model: Model, dtype: str, weights: str) -> Iterator[_Source]:
    from profiler.models import BUILT_AS
    from profiler.sparse import sparse_checkpoint

    config = dict(model.config) if case.twin_layers is None else twin_config(model.config, layers=case.twin_layers)
    if case.request.quantization == "none":
        config.pop("quantization_config", None)
    model_type = str(config["model_type"])
    config["model_type"] = BUILT_AS.get(model_type, model_type)
    stored = model.dtype if model.dtype in ("float32", "float16", "bfloat16") else dtype
    with sparse_checkpoint(config, dtype=stored) as checkpoint:
        yield _Source(folder=str(checkpoint.path), revision=None, weights=weights)


@dataclass(kw_only=True)
class _Told:
    """What a worker said before it ended."""

    phases: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    phase: str = "context"

    def hear(self, line: str, on_phase: OnPhase) -> None:
        event = json.loads(line)
        match event.pop("event"):
            case "begin":
                self.phase = event["phase"]
                on_phase(self.phase)
            case "phase":
                self.phases.append(event)
            case "facts":
                self.facts |= event
            case "refused":
                raise UllageError(event["message"], hint=event["hint"])
            case "end":
                self.end = event


def _watch(job: dict[str, Any], *, timeout_s: float | None, on_phase: OnPhase) -> _Told:
    """Run a worker and hear it out; one that ends without a word has failed in the phase it was in."""
    told = _Told()
    with scratch_directory("job", Path(tempfile.gettempdir())) as folder:
        job_file, events, output = (folder / name for name in ("job.json", "events.jsonl", "output.txt"))
        job_file.write_text(json.dumps(job))
        events.touch()
        command = [sys.executable, "-m", "profiler.worker", str(job_file), str(events)]
        with output.open("wb") as sink, events.open(encoding="utf-8") as lines:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=_environment())
            try:
                ended = _follow(process, _whole_lines(lines), told, on_phase, timeout_s)
            finally:
                process.kill()
                process.wait()
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


def _measurement(case: Case, model: Model, request: Any, source: _Source, told: _Told) -> Measurement:
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
        request=request,
        device=Device(**{**device, "capability": device["capability"] and tuple(device["capability"])}),
        software=facts.get("software", {}),
        phases=tuple(Phase(**phase) for phase in told.phases),
        retained_bytes=facts.get("retained_bytes"),
        weights_by_format=facts.get("weights_by_format", {}),
        modules=tuple(ModuleRow(**row) for row in facts.get("modules", ())),
        timeline=tuple(tuple(sample) for sample in facts.get("timeline", ())),
        meter=Meter(**facts["meter"]) if "meter" in facts else None,
        failure=_failure(end["failure"]) if end.get("failure") else None,
    )


def _failure(told: dict[str, Any]) -> Failure:
    return Failure(**{**told, "frames": tuple(told.get("frames", ()))})
