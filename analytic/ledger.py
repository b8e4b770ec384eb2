"""The ledger: what lies on one GPU at the moment of its peak, component by component."""

from dataclasses import dataclass
from typing import Literal

from analytic.quantity import NOTHING, Quantity, total

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
class Phase:
    """One phase of serving: what is allocated at its peak beside the weights and what libraries keep."""

    name: Literal["prefill", "decode"]
    moment: str
    """What sets the activation peak ("mlp", "attention", "logits"…)."""
    sequence_state: Quantity
    activations: Quantity
    temporaries: Quantity
    """What quantised matrices need while they are multiplied, beside the activation peak."""

    @property
    def transient(self) -> Quantity:
        """Everything that goes again when the phase ends."""
        return self.activations + self.temporaries

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.sequence_state.bytes + self.activations.bytes + self.temporaries.bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """One GPU at its peak."""

    rank: str = "tp0/pp0"
    phases: tuple[Phase, ...]
    """Prefill, and the last decode step where there is one."""
    components: dict[Component, Quantity]
    retained: Quantity
    """The part of the workspace that stays after a request: library workspaces, rounding, rotary tables."""
    load_peak: Quantity
    """Allocated bytes while loading; can exceed what serving needs."""
    parts: tuple[Part, ...] = ()
    layers: tuple[int, int] | None = None
    """First layer and one past the last layer that live on this GPU."""
    reclaimable: Quantity = NOTHING
    """The part of the slack that the allocator would give back before it failed."""
    uncounted: Quantity = NOTHING
    """The part of the context that the engine does not charge to its budget."""

    @property
    def peak(self) -> Phase:
        """The phase in which the peak falls."""
        return max(self.phases, key=lambda phase: phase.bytes)

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

    @property
    def charged(self) -> Quantity:
        """What counts against the memory that may be used."""
        device, less = self.device, self.uncounted
        return Quantity(
            bytes=device.bytes - less.bytes,
            low_bytes=device.low_bytes - less.low_bytes,
            high_bytes=device.high_bytes - less.high_bytes,
            basis=device.basis,
        )
