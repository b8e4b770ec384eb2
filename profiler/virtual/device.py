"""A CUDA device that is not there: fake tensors, and what transformers asks ``torch.cuda``, answered for the target."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from analytic.errors import UllageError
from profiler.virtual.target import Target

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_CUDA, _META = 1, 14
"""c10/core/DeviceType.h"""


class _FakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Makes tensors from numbers on the processor first, whatever torch.cuda is told to answer."""

    avoid_device_init = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it costs as much as the dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, types, args, kwargs or {})


@contextmanager
def fake_cuda(target: Target) -> Iterator[None]:
    """Within it tensors on ``cuda:0`` have shapes and no bytes, and torch.cuda describes ``target``.

    Raises:
        UllageError: this torch has no fake CUDA tensors.
    """
    with ExitStack() as stack:
        for name, answer in _answers(target).items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(_FakeTensorMode(allow_non_fake_inputs=True))
        _require_fakes()
        yield


def _require_fakes() -> None:
    """Index a fake tensor, and make one from a number: the first to fail without a device guard."""
    try:
        _register_guard()
        worked = (torch.ones(2, 3, device="cuda")[1] + torch.tensor(1, device="cuda")).device.type == "cuda"
    except (OSError, ValueError, RuntimeError, NotImplementedError):
        worked = False
    if not worked:
        raise UllageError(
            f"torch {torch.__version__} has no fake CUDA tensors", hint="the virtual GPU needs torch 2.13 on Linux"
        )


def _register_guard() -> None:
    """Give CUDA the guard of the meta device, which does nothing, where a torch without CUDA has none.

    c10/core/impl/DeviceGuardImplInterface.h keeps a pointer for each type of device.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (_META + 1)).in_dll(library, _REGISTRY)
    if registry[_CUDA] is None:
        registry[_CUDA] = registry[_META]


def _answers(target: Target) -> dict[str, Callable[..., Any]]:
    """What is asked of torch.cuda while a model is loaded and generates. Nothing is allocated before."""
    gpu = target.gpu
    major, minor = target.capability
    properties = SimpleNamespace(
        name=gpu.product or gpu.name,
        major=major,
        minor=minor,
        multi_processor_count=target.sms,
        total_memory=gpu.total_bytes,
        warp_size=32,
    )
    free_bytes = gpu.total_bytes - target.context_bytes
    told: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": target.capability >= (8, 0),
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_capability": target.capability,
        "get_device_properties": properties,
        "mem_get_info": (free_bytes, gpu.total_bytes),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "synchronize": None,
        "empty_cache": None,
        "manual_seed_all": None,
        "_lazy_init": None,
    }
    return {name: _always(answer) for name, answer in told.items()}


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer
