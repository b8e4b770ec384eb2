"""Targets: the GPU and the software that a virtual run stands for, as data; this machine is not asked."""

import re
from dataclasses import dataclass
from importlib.metadata import version

from analytic.errors import UsageError
from analytic.hardware import Gpu, context_range, find_gpu
from profiler.virtual.alloc_conf import AllocConf

PREFIX = "virtual:"

TorchVersion = tuple[int, int]

OLDEST_TORCH: TorchVersion = (2, 11)
"""Oldest torch whose CUDA choices are in the tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A GPU with a PyTorch on it."""

    gpu: Gpu
    torch: TorchVersion
    """Major and minor version of the PyTorch that would run there."""
    alloc_conf: str | None = None
    """PYTORCH_ALLOC_CONF there."""
    calibrated_context_bytes: int | None = None

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA compute capability."""
        if self.gpu.capability is None:
            raise UsageError(f"{self.gpu.name}: its compute capability is not known", hint="see `ullage gpus`")
        return self.gpu.capability

    @property
    def sms(self) -> int:
        """Streaming multiprocessors."""
        if self.gpu.sms is None:
            raise UsageError(f"{self.gpu.name}: its number of multiprocessors is not known", hint="see `ullage gpus`")
        return self.gpu.sms

    @property
    def context_bytes(self) -> int:
        """Device memory beside the allocator: as calibrated, else assumed from reports."""
        return context_range(self.gpu).bytes if self.calibrated_context_bytes is None else self.calibrated_context_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualOptions:
    """What is asked of a virtual GPU beside a case."""

    torch_version: str | None = None
    """PyTorch there; None: as installed here."""
    alloc_conf: str | None = None
    """PYTORCH_ALLOC_CONF there."""
    advice: bool = False
    """Whether to try other settings."""
    find: str | None = None
    """One of `FINDS`."""
    context_bytes: int | None = None
    """Device memory beside the allocator; None: assumed."""

    def __post_init__(self) -> None:
        """Refuse what is not known."""
        if self.find is not None and self.find not in FINDS:
            raise UsageError(f"--find: {self.find!r} is not known", hint=f"one of {', '.join(FINDS)}")


FINDS = {"max-batch": "batch_size", "max-prompt": "prompt_tokens", "max-output": "output_tokens"}
"""What a search can find, and the field of the request that it varies."""


def is_virtual(device: str) -> bool:
    """Whether ``device`` names a virtual GPU."""
    return device.startswith(PREFIX) or device == PREFIX.rstrip(":")


def find_target(
    device: str, *, torch: str | None = None, alloc_conf: str | None = None, context_bytes: int | None = None
) -> Target:
    """The target that ``virtual:h200`` names.

    Args:
        device: ``virtual:`` and a GPU of the table.
        torch: version of PyTorch there; None: as installed here.
        alloc_conf: PYTORCH_ALLOC_CONF there.
        context_bytes: device memory beside the allocator; None: assumed.

    Raises:
        UsageError: no such GPU, or a torch whose choices are not known.
    """
    name = device.removeprefix(PREFIX)
    if not is_virtual(device) or not name or name == device:
        raise UsageError(f"--device: {device!r} names no GPU", hint="write virtual:h200; `ullage gpus` lists them")
    AllocConf.parse(alloc_conf)
    target = Target(
        gpu=find_gpu(name),
        torch=_torch_version(torch or version("torch")),
        alloc_conf=alloc_conf,
        calibrated_context_bytes=context_bytes,
    )
    _ = target.capability, target.sms
    return target


def _torch_version(text: str) -> TorchVersion:
    told = re.match(r"(\d+)\.(\d+)", text)
    found = (int(told[1]), int(told[2])) if told else None
    if found is None or found < OLDEST_TORCH:
        raise UsageError(
            f"--torch-version: {text!r} is not modelled", hint=f"{'.'.join(map(str, OLDEST_TORCH))} or newer"
        )
    return found
