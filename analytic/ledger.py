"""The ledger: what lies on one GPU at the moment of its peak, component by component."""

from dataclasses import dataclass
from typing import Literal

from analytic.quantity import Quantity, total

Component = Literal["weights", "sequence_state", "activations", "workspace", "allocator_slack", "context"]

ALLOCATED: tuple[Component, ...] = ("weights", "sequence_state", "activations", "workspace")
"""Components that `torch.cuda.max_memory_allocated` counts."""

COMPONENTS: tuple[Component, ...] = (*ALLOCATED, "allocator_slack", "context")
"""All components; their sum is what the driver charges the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A named part of a component: which allocation it is, and why it has this size."""

    component: Component
    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """One GPU at its peak."""

    rank: str = "tp0/pp0"
    phase: Literal["prefill", "decode"]
    """The phase in which the peak falls."""
    moment: str
    """What sets the activation peak ("mlp", "attention", "logits"…)."""
    components: dict[Component, Quantity]
    load_peak: Quantity
    """Allocated bytes while loading; can exceed what serving needs."""
    parts: tuple[Part, ...] = ()
    layers: tuple[int, int] | None = None
    """First layer and one past the last layer that live on this GPU."""

    @property
    def allocated(self) -> Quantity:
        """As `torch.cuda.max_memory_allocated` counts."""
        return total([self.components[name] for name in ALLOCATED])

    @property
    def reserved(self) -> Quantity:
        """As `torch.cuda.max_memory_reserved` counts."""
        return self.allocated + self.components["allocator_slack"]

    @property
    def device(self) -> Quantity:
        """What the driver charges the process."""
        return self.reserved + self.components["context"]
