"""What the driver says of a GPU's memory, through NVML: total, used, and by whom. Nothing here makes a CUDA context."""

import os
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from analytic.errors import UllageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Occupant:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    used_bytes: int | None
    """None where the driver does not tell (another user's, a MIG slice)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuMemory:
    """A GPU's memory as the driver counts it."""

    total_bytes: int
    used_bytes: int
    """By processes; the driver's own reservation is apart where the driver tells it apart."""
    reserved_bytes: int | None
    """What the driver keeps for itself; None where it does not tell."""


class Nvml:
    """NVML of this machine. ``library`` is the module ``pynvml`` (or one that answers like it)."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.nvmlInit()

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return _text(self._library.nvmlSystemGetDriverVersion())

    def uuids(self) -> tuple[str, ...]:
        """Every GPU, in the driver's order."""
        count = self._library.nvmlDeviceGetCount()
        handles = (self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count))
        return tuple(_text(self._library.nvmlDeviceGetUUID(handle)) for handle in handles)

    def name(self, uuid: str) -> str:
        """Product name of a GPU."""
        return _text(self._library.nvmlDeviceGetName(self._handle(uuid)))

    def memory(self, uuid: str) -> GpuMemory:
        """Memory of a GPU, all processes together."""
        handle = self._handle(uuid)
        try:
            told = self._library.nvmlDeviceGetMemoryInfo(handle, version=self._library.nvmlMemory_v2)
        except (AttributeError, TypeError, self._library.NVMLError):
            told = self._library.nvmlDeviceGetMemoryInfo(handle)
        return GpuMemory(total_bytes=told.total, used_bytes=told.used, reserved_bytes=getattr(told, "reserved", None))

    def occupants(self, uuid: str) -> tuple[Occupant, ...]:
        """Processes that compute on a GPU, as far as this one may see them."""
        try:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle(uuid))
        except self._library.NVMLError:
            return ()
        return tuple(Occupant(pid=p.pid, name=self._process(p.pid), used_bytes=p.usedGpuMemory) for p in running)

    def process_bytes(self, uuid: str, pid: int) -> int | None:
        """What the driver charges a process on a GPU; None where it cannot tell (in most containers)."""
        return next((o.used_bytes for o in self.occupants(uuid) if o.pid == pid), None)

    def _handle(self, uuid: str) -> Any:
        return self._library.nvmlDeviceGetHandleByUUID(uuid)

    def _process(self, pid: int) -> str:
        try:
            return _text(self._library.nvmlSystemGetProcessName(pid))
        except self._library.NVMLError:
            return "a process that is not visible from here"


def open_nvml() -> Nvml | None:
    """NVML, or None where its library or the driver is missing."""
    library = _library()
    if library is None:
        return None
    try:
        return Nvml(library)
    except library.NVMLError:
        return None


def _library() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml  # type: ignore[no-any-return]


def visible(nvml: Nvml) -> tuple[str, ...]:
    """The GPUs that CUDA would show, in its order, as far as ``CUDA_VISIBLE_DEVICES`` and the driver agree on them."""
    uuids = nvml.uuids()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not chosen:
        return uuids
    found: list[str] = []
    for name in map(str.strip, chosen.split(",")):
        named = [uuid for uuid in uuids if uuid.startswith(name)] if name.startswith("GPU-") else []
        if name.isdecimal() and int(name) < len(uuids):
            named = [uuids[int(name)]]
        if not named:  # CUDA stops at the first that it does not know
            break
        found.append(named[0])
    return tuple(found)


def first_visible(nvml: Nvml) -> str | None:
    """The GPU that CUDA calls 0; None where the driver may call another so."""
    return next(iter(visible(nvml)), None)


BUSY_FRACTION = 0.01
"""Share of a GPU that may be used by what is not visible (a display) before it counts as busy."""


_SETTLING_SECONDS = 5.0
_SETTLING_STEP_SECONDS = 0.2


def settle(nvml: Nvml, uuid: str) -> None:
    """Wait, for a few seconds at most, until what ended processes held has been given back."""
    deadline = time.monotonic() + _SETTLING_SECONDS
    used_bytes = nvml.memory(uuid).used_bytes
    while time.monotonic() < deadline:
        time.sleep(_SETTLING_STEP_SECONDS)
        before, used_bytes = used_bytes, nvml.memory(uuid).used_bytes
        if used_bytes == before and not nvml.occupants(uuid):
            return


def refuse_if_busy(nvml: Nvml, uuid: str) -> None:
    """Raise where other processes would blur the measurement.

    Raises:
        UllageError: who they are and what they hold.
    """
    settle(nvml, uuid)
    memory, occupants = nvml.memory(uuid), nvml.occupants(uuid)
    if not occupants and memory.used_bytes <= BUSY_FRACTION * memory.total_bytes:
        return
    who = ", ".join(f"{o.name} (pid {o.pid}, {_mib(o.used_bytes)})" for o in occupants)
    raise UllageError(
        f"{nvml.name(uuid)} is busy: {_mib(memory.used_bytes)} are used by {who or 'processes not visible from here'}",
        hint="wait for it, choose another GPU with CUDA_VISIBLE_DEVICES, or measure beside it with --allow-busy",
    )


def _mib(count: int | None) -> str:
    return "unknown bytes" if count is None else f"{count / 2**20:,.0f} MiB"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
