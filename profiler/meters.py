"""Meters: how much memory is held, and was held at most, since a phase began. One for CUDA, one for a processor."""

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from analytic.errors import UllageError
from analytic.measurement import Device, Phase, PhaseName
from profiler.live_bytes import LiveBytes, cache_storages
from profiler.nvml import Nvml
from profiler.tensors import resident_tensors

Sample = tuple[int | None, int | None, int | None]
"""Allocated, reserved, device bytes."""


class Meter(Protocol):
    """What a worker asks of a device."""

    seconds: float
    """Time spent reading."""

    def open(self) -> Device:
        """Wake the device up; what stands before this is not measured."""

    def begin(self) -> None:
        """Start a phase: peaks count from here."""

    def end(self, name: PhaseName, *, cache: Any = None) -> Phase:
        """End the phase that began last."""

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """Follow what ``model`` allocates, where that takes more than asking."""

    def held_bytes(self) -> int | None:
        """What is allocated now."""

    def sample(self) -> Sample:
        """A point of the timeline, from any thread."""

    def cost(self) -> tuple[int | None, int]:
        """Device and host bytes that the meter itself took."""


def require_cuda(cuda: Any = torch.cuda) -> None:
    """Raise where there is no CUDA device; asks the driver, so that no context is made.

    Raises:
        UllageError: torch was built without CUDA, or finds no device.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if not cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise UllageError(
            f"torch {torch.__version__} {why}", hint="measure on a GPU machine, or with --device cpu or --device meta"
        )


class CudaMeter:
    """Reads PyTorch's caching allocator, and the driver through NVML.

    Args:
        cuda: `torch.cuda`, or what answers like it.
        nvml: NVML, or None: the device is then read through ``mem_get_info``.
    """

    def __init__(self, cuda: Any, nvml: Nvml | None) -> None:
        self.seconds = 0.0
        self._cuda, self._nvml = cuda, nvml
        self._before = {uuid: nvml.memory(uuid).used_bytes for uuid in nvml.uuids()} if nvml else {}
        self._uuid: str | None = None
        self._allocated_by_meter = 0
        self._began = time.perf_counter()

    def open(self) -> Device:
        """Make the CUDA context."""
        self._cuda.init()
        self._cuda.synchronize()
        told = self._cuda.get_device_properties(0)
        uuid = f"GPU-{told.uuid}"
        self._uuid = uuid if uuid in self._before else None
        total = self._nvml.memory(uuid).total_bytes if self._nvml and self._uuid else told.total_memory
        return Device(
            kind="cuda",
            name=told.name,
            capability=(told.major, told.minor),
            total_bytes=total,
            sms=told.multi_processor_count,
            driver=self._nvml.driver if self._nvml else None,
            cuda=torch.version.cuda,
            used_basis=self._basis(),
        )

    def begin(self) -> None:
        """Reset the allocator's peaks, once there is a context."""
        if self._cuda.is_initialized():
            self._cuda.synchronize()
            self._cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def end(self, name: PhaseName, *, cache: Any = None) -> Phase:
        """Read the allocator's statistics and the device."""
        self._cuda.synchronize()
        ended = time.perf_counter()
        stats = self._cuda.memory_stats()
        phase = Phase(
            name=name,
            seconds=round(ended - self._began, 3),
            allocated_bytes=stats.get("allocated_bytes.all.current"),
            max_allocated_bytes=stats.get("allocated_bytes.all.peak"),
            reserved_bytes=stats.get("reserved_bytes.all.current"),
            max_reserved_bytes=stats.get("reserved_bytes.all.peak"),
            requested_bytes=stats.get("requested_bytes.all.current"),
            max_requested_bytes=stats.get("requested_bytes.all.peak"),
            device_used_bytes=self._device_bytes(),
            sequence_state_bytes=sum(cache_storages(cache).values()) if cache is not None else None,
            num_alloc_retries=stats.get("num_alloc_retries"),
            num_segments=stats.get("segment.all.current"),
            max_rss_bytes=max_rss_bytes(),
        )
        self._allocated_by_meter += abs(self._cuda.memory_allocated() - (phase.allocated_bytes or 0))
        self.seconds += time.perf_counter() - ended
        return phase

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """The allocator follows by itself."""
        return nullcontext()

    def held_bytes(self) -> int | None:
        """`torch.cuda.memory_allocated`."""
        gc.collect()
        self._cuda.synchronize()
        return int(self._cuda.memory_allocated())

    def sample(self) -> Sample:
        """Allocator and device, without waiting for kernels."""
        return self._cuda.memory_allocated(), self._cuda.memory_reserved(), self._device_bytes()

    def cost(self) -> tuple[int | None, int]:
        """What reading allocated; the statistics are one dictionary."""
        return self._allocated_by_meter, sys.getsizeof(self._cuda.memory_stats())

    def _basis(self) -> Any:
        if self._nvml is None or self._uuid is None:
            return "mem-get-info"
        told = self._nvml.process_bytes(self._uuid, os.getpid())
        return "nvml-device-delta" if told is None else "nvml-process"

    def _device_bytes(self) -> int | None:
        """None where others gave back more than this process took, so that the growth says nothing."""
        if self._nvml is None or self._uuid is None:
            free, total = self._cuda.mem_get_info()
            return int(total - free)
        own = self._nvml.process_bytes(self._uuid, os.getpid())
        if own is not None:
            return own
        grown = self._nvml.memory(self._uuid).used_bytes - self._before[self._uuid]
        return grown if grown >= 0 else None


class CpuMeter:
    """Follows tensor storages on a processor; what only an allocator of a GPU has stays None.

    Args:
        kind: ``cpu``, or ``meta`` where tensors have shapes only.
    """

    def __init__(self, kind: Literal["cpu", "meta"] = "cpu") -> None:
        self.seconds = 0.0
        self._kind = kind
        self._resident_bytes: int | None = None
        self._live: LiveBytes | None = None
        self._began = time.perf_counter()

    def open(self) -> Device:
        """Nothing to wake up."""
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return Device(kind=self._kind, name=processor_name(), total_bytes=pages * size)

    def begin(self) -> None:
        """Start a new peak."""
        if self._live is not None:
            self._live.reset_peak()
        self._began = time.perf_counter()

    def end(self, name: PhaseName, *, cache: Any = None) -> Phase:
        """What is live, and was live at most; while loading nothing is followed."""
        ended = time.perf_counter()
        live, held = self._live, self._resident_bytes
        phase = Phase(
            name=name,
            seconds=round(ended - self._began, 3),
            allocated_bytes=None if live is None or held is None else held + live.live_bytes,
            max_allocated_bytes=None if live is None or held is None else held + live.max_live_bytes,
            sequence_state_bytes=sum(cache_storages(cache).values()) if cache is not None else None,
            max_rss_bytes=max_rss_bytes(),
        )
        self.seconds += time.perf_counter() - ended
        return phase

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Follow every operation's storages."""
        resident = {t.untyped_storage()._cdata: t for t in resident_tensors(model)}
        self._resident_bytes = sum(t.untyped_storage().nbytes() for t in resident.values())
        self._live = LiveBytes(resident.values())
        with self._live:
            yield

    def held_bytes(self) -> int | None:
        """Storages that are still live."""
        gc.collect()
        return None if self._live is None else (self._resident_bytes or 0) + self._live.live_bytes

    def sample(self) -> Sample:
        """Live storages."""
        live = self._live
        return (None if live is None else (self._resident_bytes or 0) + live.live_bytes, None, None)

    def cost(self) -> tuple[int | None, int]:
        """The records of live storages."""
        return None, 0 if self._live is None else self._live.host_bytes


class Timeline:
    """Samples a meter beside the work; thinned out by half whenever it is full."""

    def __init__(self, sample: Callable[[], Sample], *, interval_seconds: float = 0.02, limit: int = 1000) -> None:
        self._sample, self._interval, self._limit = sample, interval_seconds, limit
        self._samples: list[tuple[float, int | None, int | None, int | None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def samples(self) -> list[tuple[float, int | None, int | None, int | None]]:
        """Seconds since the start, allocated, reserved, device bytes."""
        return list(self._samples)

    def __enter__(self) -> "Timeline":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.perf_counter()
        while not self._stop.wait(self._interval):
            sample = self._sample()
            if sample != (None, None, None):
                self._samples.append((round(time.perf_counter() - start, 3), *sample))
            if len(self._samples) >= self._limit:
                self._samples = self._samples[::2]
                self._interval *= 2


def max_rss_bytes() -> int:
    """Peak resident set of this process (getrusage: kibibytes on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_name() -> str:
    """As Linux names it, else the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, os.uname().machine)
