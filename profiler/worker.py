"""The process that measures: ``python -m profiler.worker JOB EVENTS PARENT``. It tells events the moment they happen.

One event a line of JSON in the file EVENTS, so that what was measured survives whatever becomes of this process.
"""

import json
import os
import re
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any, TextIO

import torch

from analytic.errors import UllageError
from analytic.request import Request
from profiler.meters import CpuMeter, CudaMeter, Meter, require_cuda
from profiler.nvml import open_nvml
from profiler.scratch import partial_of
from profiler.serve import Job, measure
from profiler.telling import telling
from profiler.virtual.target import is_virtual

_CUDA_HISTORY = 1_000_000
"""Events that PyTorch's snapshot keeps at most."""


class _Events:
    """Writes events, and remembers which phase began last."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.phase = "context"

    def __call__(self, event: str, /, **fields: Any) -> None:
        if event == "begin":
            self.phase = fields["phase"]
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()


def run(job: Job, emit: _Events, *, cuda: Any = torch.cuda) -> None:
    """Measure ``job``; running out of memory is an answer, whatever else goes wrong is told by name."""
    meter: Meter | None = None
    asked: list[tuple[int, int]] = []
    try:
        if is_virtual(job.device):
            from profiler.virtual.measure import measure as measure_virtual

            return measure_virtual(job, emit)
        meter = CudaMeter(cuda, open_nvml()) if job.device == "cuda" else CpuMeter(job.device)  # type: ignore[arg-type]
        if job.device == "cuda":
            require_cuda(cuda)
            if job.request.quantization not in (None, "none"):
                require_bitsandbytes()
            _watch_for_oom(asked)
            _record_history(job, cuda)
        measure(job, meter, emit)
        emit("end", status="ok")
    except UllageError as error:
        emit("refused", message=error.message, hint=error.hint)
    except Exception as error:
        emit("end", **_failure(error, asked, emit.phase, meter))
    finally:
        if job.snapshot and job.device == "cuda":
            _dump_history(job.snapshot, cuda)


def require_bitsandbytes() -> None:
    """Raise where bitsandbytes has no library for this CUDA.

    Raises:
        UllageError: it has none, or is not installed.
    """
    try:
        from bitsandbytes import cextension
    except ImportError as error:
        raise UllageError("bitsandbytes is not installed", hint="pip install bitsandbytes") from error
    if not getattr(cextension.lib, "compiled_with_cuda", False):
        raise UllageError(
            f"bitsandbytes has no library for CUDA {torch.version.cuda}",
            hint="install a bitsandbytes that has one; python -m bitsandbytes tells what it looked for",
        )


def _watch_for_oom(asked: list[tuple[int, int]]) -> None:
    """Remember what the allocator was asked for, and what was free, whenever it fails (private, so optional)."""
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    if attach is not None:
        attach(lambda device, wanted, used, free: asked.append((wanted, free)))


def _record_history(job: Job, cuda: Any) -> None:
    if job.snapshot:
        cuda.memory._record_memory_history(max_entries=_CUDA_HISTORY)


def _dump_history(file: str, cuda: Any) -> None:
    partial = partial_of(file)
    try:
        cuda.memory._dump_snapshot(partial)
        os.replace(partial, file)
    except Exception as error:  # the measurement is worth more than its picture
        print(f"ullage: {file}: no snapshot: {error}", file=sys.stderr)


_FRAMES = 12
"""Calls that a record keeps of where a run failed."""

_CPU_OOM = re.compile(r"DefaultCPUAllocator: .*?you tried to allocate (\d+) bytes", re.S)
_CUDA_OOM = re.compile(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB)")
_LIBRARY_OOM = re.compile(r"CUDA error: out of memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED")
"""What a library says whose own allocation failed, outside PyTorch's allocator."""
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _failure(error: Exception, asked: list[tuple[int, int]], phase: str, meter: Meter | None) -> dict[str, Any]:
    """How the run ended: out of memory, or an error."""
    message = str(error).strip()
    is_told = _CPU_OOM.search(message) or _LIBRARY_OOM.search(message)
    is_oom = isinstance(error, torch.OutOfMemoryError | MemoryError) or is_told is not None
    wanted, free = asked[-1] if asked else (_asked_bytes(message), None)
    frames = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return {
        "status": "oom" if is_oom else "error",
        "failure": {
            "phase": phase,
            "message": message[:600] if is_oom else f"{type(error).__name__}: {message[:600]} ({frames[-1]})",
            "frames": frames[-_FRAMES:],
            "asked_bytes": wanted,
            "free_bytes": free,
        },
        "last": _last(meter, phase) if is_oom and meter is not None else None,
    }


def _last(meter: Meter, phase: str) -> dict[str, Any] | None:
    """The phase that ran out of memory, if the device still answers."""
    try:
        return asdict(meter.end(phase))  # type: ignore[arg-type]
    except Exception:
        return None


def _asked_bytes(message: str) -> int | None:
    """What an allocator's message says that it was asked for; CUDA's is rounded to two decimals of its unit."""
    if on_cpu := _CPU_OOM.search(message):
        return int(on_cpu[1])
    if on_cuda := _CUDA_OOM.search(message):
        return round(float(on_cuda[1]) * _UNITS[on_cuda[2]])
    return None


def _end_with(parent: int) -> None:
    """End this process when its parent has gone: nobody would hear it, and it holds a GPU."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(job_file: str, events_file: str, parent: str) -> None:
    """Read the job of the process ``parent``, run it."""
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    with open(job_file, encoding="utf-8") as file:
        told = json.load(file)
    job = Job(**{**told, "request": Request(**told["request"])})
    with open(events_file, "a", encoding="utf-8") as file:
        emit = _Events(file)
        with telling(emit):
            run(job, emit)


if __name__ == "__main__":
    main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is told: taking a model apart, module by module, would take a second
