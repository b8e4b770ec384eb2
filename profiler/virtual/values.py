"""Integers and booleans that a run would know: masks, positions, lengths. Activations have no values here."""

from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_any, tree_map

_MOST_ELEMENTS = {True: 2**24, False: 2**20}
"""Larger tensors are not followed: more of a row a sequence (True), of which lengths are asked, than of others."""


class UnknownValueError(Exception):
    """A value is asked for that depends on activations."""


class Values:
    """The values of small tensors that do not depend on activations, carried along on the processor."""

    def __init__(self) -> None:
        self._stale: set[int] = set()
        """Storages of values that were overwritten with something unknown."""

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What ``func`` returns: a Python number, or a fake tensor of the right shape whose values are known.

        Raises:
            UnknownValueError: it depends on values that are not known.
        """
        if not self._are_known((args, kwargs)):
            raise UnknownValueError(str(func))
        device = next(t.device for t in _tensors((args, kwargs)))
        real = self._run(func, args, kwargs)
        if not isinstance(real, torch.Tensor):
            return real
        fake = torch.empty(real.shape, dtype=real.dtype, device=device)
        fake._ullage_value = real  # type: ignore[attr-defined]
        return fake

    def follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Run ``func`` on the values too, where all of them are known."""
        if not isinstance(result, torch.Tensor) or result.dtype.is_floating_point or result.is_complex():
            return
        if getattr(result, "_ullage_value", None) is not None and not func._schema.is_mutable:
            return
        if result.numel() <= _MOST_ELEMENTS[result.ndim <= 2] and self._are_known((args, kwargs)):
            result._ullage_value = self._run(func, args, kwargs)  # type: ignore[attr-defined]
        elif (old := getattr(result, "_ullage_value", None)) is not None:
            self._stale.add(old.untyped_storage()._cdata)

    def _are_known(self, told: Any) -> bool:
        return not tree_any(lambda leaf: isinstance(leaf, torch.Tensor) and self._value(leaf) is None, told)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        value = getattr(tensor, "_ullage_value", None)
        if value is None:
            value = getattr(tensor, "constant", None)
        if value is not None and value.untyped_storage()._cdata in self._stale:
            return None
        return value

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        with no_dispatch():
            return func(*tree_map(self._here, args), **tree_map(self._here, kwargs))

    def _here(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return self._value(leaf)
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _tensors(told: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, told)
    return found
