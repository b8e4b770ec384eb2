"""What every engine answers: the module `engine` of each package here."""

from collections.abc import Hashable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

from analytic.deployment import Deployment
from analytic.hardware import Gpu
from analytic.ledger import Ledger
from analytic.parallel import Degrees, Kind


class Engine(Protocol):
    """The functions of an engine's module."""

    NAME: str
    """As its makers write it."""
    VERSION: str
    """That is modelled."""
    REST: Kind
    """How GPUs work together where nothing else is asked for."""
    CHARGES_CONTEXT: bool
    """Whether the CUDA context counts against the memory that may be used."""
    NOT_MODELED: tuple[str, ...]

    def prepare(self, asked: Deployment) -> Deployment:
        """Resolve the engine's defaults; refuse what it cannot do."""

    def kind(self, gpu: Gpu) -> Hashable:
        """GPUs of one kind need the same for the same work, their contexts aside."""

    def usable_bytes(self, asked: Deployment, gpu: Gpu) -> int:
        """What may be used of one GPU."""

    def ledgers(self, asked: Deployment) -> tuple[Ledger, ...]:
        """One a GPU of one copy of the model."""

    def gpus_needed(self, asked: Deployment, capacity_bytes: int) -> Degrees | None:
        """The fewest GPUs that hold it; None if no number does."""

    def state_bytes_per_token(self, asked: Deployment) -> int:
        """What one more token would add to one sequence at its end, over all GPUs."""

    def changes(self, asked: Deployment) -> Iterator[tuple[str, Deployment]]:
        """What could be asked for instead, one flag at a time, but for sizes and GPUs."""

    def setting(self, asked: Deployment) -> str:
        """How it serves, in a few words."""

    def warnings(self, asked: Deployment) -> Iterator[str]:
        """What the reader might not expect of the engine."""

    def lines(self, asked: Deployment, rows: tuple[Ledger, ...]) -> Iterator[str]:
        """The details in words."""

    def details(self, asked: Deployment, rows: tuple[Ledger, ...]) -> dict[str, Any]:
        """What the engine itself would print or hold beside the GPUs, in its own terms."""


@cache
def find_engine(name: str) -> Engine:
    """The module of an engine that a `Request` may name; imported only when it is asked for."""
    return cast(Engine, import_module(f"analytic.engines.{name}.engine"))
