"""bitsandbytes on the virtual GPU: its own Python code for CUDA, whose kernels are never called.

What its CUDA backend (backends/cuda/ops.py) decides in Python, such as which products are fused on which GPU, and what
it allocates, stays its own. Only its native library answers nothing, and its parameter classes are fake tensors.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor

from analytic.errors import UllageError

Kernel = Callable[..., Any]


@contextmanager
def fake_bitsandbytes() -> Iterator[dict[str, Kernel]]:
    """Within it bitsandbytes quantises and multiplies fake CUDA tensors.

    Yields:
        Its CUDA kernels in Python by the name of their operation.

    Raises:
        UllageError: not installed, or not a version whose CUDA backend can be loaded.
    """
    try:
        import bitsandbytes as bnb

        kernels = _kernels()
        int8, fourbit = _parameters()
    except (ImportError, AttributeError) as error:
        raise UllageError(
            f"bitsandbytes cannot be put on a virtual GPU: {error}", hint="pip install 'bitsandbytes>=0.50.2'"
        ) from error
    _forget_gpu()
    with ExitStack() as stack:
        for module in (bnb.nn, bnb.nn.modules):
            stack.enter_context(patch.object(module, "Params4bit", fourbit))
            stack.enter_context(patch.object(module, "Int8Params", int8))
        codes = bnb.functional.create_dynamic_map().shape
        stack.enter_context(patch.object(bnb.functional, "create_dynamic_map", lambda: torch.empty(codes)))
        stack.enter_context(patch.dict(bnb.functional.name2qmap, clear=True))
        stack.enter_context(patch.object(FakeTensor, "data_ptr", lambda _: 0, create=True))
        yield kernels
    _forget_gpu()


@cache
def _backend() -> tuple[ModuleType, dict[str, Kernel]]:
    """A copy of the module of CUDA kernels, loaded without a GPU, and what it registers."""
    import bitsandbytes

    kernels: dict[str, Kernel] = {}

    def register(name: str, device: str) -> Callable[[Kernel], Kernel]:
        return lambda kernel: kernels.setdefault(name, kernel) if device == "cuda" else kernel

    where = importlib.util.find_spec("bitsandbytes.backends.cuda.ops")
    if where is None or where.origin is None:
        raise ImportError("it has no CUDA backend")
    spec = importlib.util.spec_from_file_location("bitsandbytes.backends.cuda.fake_ops", where.origin)
    if spec is None or spec.loader is None:
        raise ImportError("its CUDA backend is not a file")
    module = importlib.util.module_from_spec(spec)
    with (
        patch.object(bitsandbytes._ops, "register_kernel", register),
        patch.object(bitsandbytes.cextension, "lib", _Library()),
        patch.object(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, create=True),
    ):
        spec.loader.exec_module(module)
    module.CUBLAS_Context = SimpleNamespace(get_instance=lambda: SimpleNamespace(get_context=lambda _: None))  # type: ignore[attr-defined]
    return module, kernels


def _kernels() -> dict[str, Kernel]:
    return _backend()[1]


def _forget_gpu() -> None:
    """What the backend remembers of the GPU that it saw last."""
    for value in vars(_backend()[0]).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


class _Library:
    """A native library whose functions do nothing and succeed."""

    compiled_with_cuda = True

    def __getattr__(self, name: str) -> Any:
        function = lambda *_: 0  # noqa: E731
        setattr(self, name, function)
        return function


@cache
def _parameters() -> tuple[type, type]:
    """Int8Params and Params4bit as fake tensors: quantising one makes another instead of changing its data.

    A tensor's class can be changed, but a fake tensor's device not, as ``.data = `` would.
    """
    from bitsandbytes.nn import Int8Params, Params4bit

    class FakeInt8(FakeTensor, Int8Params):  # type: ignore[misc]
        def __new__(cls, data: Any, requires_grad: bool = False, has_fp16_weights: bool = False, **told: Any) -> Any:
            state = {name: told.get(name) for name in ("CB", "SCB")}
            return _parameter(cls, data, has_fp16_weights=has_fp16_weights, **state)

        def _quantize(self, device: Any) -> Any:
            from bitsandbytes.functional import int8_vectorwise_quant

            weight = self.detach().contiguous().to(device=device, dtype=torch.float16)
            columns, scales, _ = int8_vectorwise_quant(weight)
            return type(self)(columns, CB=columns, SCB=scales)

    class Fake4bit(FakeTensor, Params4bit):  # type: ignore[misc]
        def __new__(
            cls,
            data: Any,
            requires_grad: bool = False,
            quant_state: Any = None,
            blocksize: int | None = None,
            compress_statistics: bool = True,
            quant_type: str = "fp4",
            quant_storage: torch.dtype = torch.uint8,
            module: Any = None,
            bnb_quantized: bool = False,
            **_: Any,
        ) -> Any:
            return _parameter(
                cls,
                data,
                quant_state=quant_state,
                blocksize=blocksize or 64,
                compress_statistics=compress_statistics,
                quant_type=quant_type,
                quant_storage=quant_storage,
                module=module,
                bnb_quantized=bnb_quantized,
            )

        def _quantize(self, device: Any) -> Any:
            from bitsandbytes.functional import quantize_4bit

            told = {
                name: getattr(self, name)
                for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")
            }
            packed, state = quantize_4bit(self.detach().contiguous().to(device), **told)
            if self.module is not None:
                self.module.quant_state = state
            return type(self)(packed, quant_state=state, module=self.module, bnb_quantized=True, **told)

    return FakeInt8, Fake4bit


def _parameter(cls: type, data: torch.Tensor, **attributes: Any) -> Any:
    made: Any = data.detach()
    made.__class__ = cls
    made._is_param = True
    for name, value in attributes.items():
        setattr(made, name, value)
    return made
