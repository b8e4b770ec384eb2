"""ullage's arithmetic: how much GPU memory a model needs to be served, and how that is known.

``analytic.estimate("llama-2-70b", gpu="h100-80gb", quantization="bnb-nf4")`` answers without torch and without a GPU.
"""

from typing import TYPE_CHECKING, Any

from analytic.errors import UllageError

if TYPE_CHECKING:
    from analytic.estimator import Estimate, estimate
    from analytic.rule import apply_rule

__all__ = ["Estimate", "UllageError", "apply_rule", "estimate"]

_HOMES = {"Estimate": "analytic.estimator", "estimate": "analytic.estimator", "apply_rule": "analytic.rule"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analytic' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
