"""Live bytes of a real run, storage by storage: what a processor can tell of the memory that a GPU would need."""

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True, slots=True)
class LiveStorage:
    """A storage that is live: its bytes, and the tensor and the operation it was born as."""

    storage_bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    where: str = ""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation returns, from birth to death, but for ``resident`` tensors."""

    def __init__(self, resident: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resident = {tensor.untyped_storage()._cdata for tensor in resident}
        self.live: dict[int, LiveStorage] = {}
        """By the address of the storage."""
        self.live_bytes = 0
        self.max_live_bytes = 0
        self.max_records = 0

    def reset_peak(self) -> None:
        """Start a new peak from what is live."""
        self.max_live_bytes = self.live_bytes

    def follow(self, tensor: torch.Tensor, op: str) -> None:
        """Count ``tensor``'s storage until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live or key in self._resident or storage.nbytes() == 0:
            return
        self.live[key] = self.born(storage.nbytes(), tensor, op)
        self.live_bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def born(self, storage_bytes: int, tensor: torch.Tensor, op: str) -> LiveStorage:
        """The record of a new storage."""
        return LiveStorage(storage_bytes, tuple(tensor.shape), str(tensor.dtype)[6:], op)

    def look(self) -> None:
        """Called after every operation."""
        self.max_live_bytes = max(self.max_live_bytes, self.live_bytes)
        self.max_records = max(self.max_records, len(self.live))

    def _forget(self, key: int) -> None:
        self.live_bytes -= self.live.pop(key).storage_bytes

    @property
    def host_bytes(self) -> int:
        """Memory of the records at their most."""
        record = LiveStorage(0, (0, 0, 0), "", "")
        return self.max_records * (sys.getsizeof(record) + sys.getsizeof(record.shape) + sys.getsizeof({0: record}))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.follow(value, str(func))
        self.look()
        return result


def cache_storages(cache: Any) -> dict[int, int]:
    """Bytes of the storages of a transformers cache, by address: keys, values, recurrent states."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _cached(cache)}


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward pass; state space models call it otherwise."""
    return arguments.get("past_key_values", arguments.get("cache_params"))


def _cached(cache: Any) -> Iterator[torch.Tensor]:
    for layer in getattr(cache, "layers", []):
        yield from (value for value in tree_iter(vars(layer)) if isinstance(value, torch.Tensor))
