"""How many GPUs work together, and at what: tensor, pipeline and data parallelism, a rank each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analytic.errors import UsageError

LARGEST_DEGREE = 4096
"""The most GPUs that may be asked for."""

Kind = Literal["tensor", "pipeline", "data"]

_FLAGS: dict[Kind, str] = {
    "tensor": "--tensor-parallel-size",
    "pipeline": "--pipeline-parallel-size",
    "data": "--data-parallel-size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrees:
    """GPUs of one deployment: data x pipeline x tensor."""

    tensor: int = 1
    """GPUs that share every layer."""
    pipeline: int = 1
    """Stages of whole layers."""
    data: int = 1
    """Copies, each with sequences of its own."""

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.data

    def ranks(self) -> Iterator[tuple[int, int, int]]:
        """Data, pipeline and tensor rank of each GPU, in vLLM's order (the tensor rank changes fastest)."""
        for data in range(self.data):
            for stage in range(self.pipeline):
                for tensor in range(self.tensor):
                    yield data, stage, tensor

    def name(self, data: int, stage: int, tensor: int) -> str:
        """``tp0/pp0``, or ``dp0/tp0/pp0`` among several copies."""
        return f"dp{data}/" * (self.data > 1) + f"tp{tensor}/pp{stage}"

    def __str__(self) -> str:
        named = (("tp", self.tensor), ("pp", self.pipeline), ("dp", self.data))
        return " ".join(f"{name} {degree}" for name, degree in named if degree > 1) or "one GPU"


def degrees(
    gpus: int | None, *, tensor: int | None = None, pipeline: int | None = None, data: int | None = None, rest: Kind
) -> Degrees:
    """The degrees that were asked for; GPUs beyond them work as ``rest`` says.

    Args:
        gpus: how many there are; None for as many as the degrees take.
        tensor: ``--tensor-parallel-size``; None where it was not given, as for the others.
        pipeline: ``--pipeline-parallel-size``.
        data: ``--data-parallel-size``.
        rest: the kind that takes what is left, if it was not given itself.

    Raises:
        UsageError: a degree below 1, or degrees that do not make up the GPUs.
    """
    given: dict[Kind, int | None] = {"tensor": tensor, "pipeline": pipeline, "data": data}
    for kind, degree in given.items():
        if degree is not None and not 1 <= degree <= LARGEST_DEGREE:
            raise UsageError(f"{_FLAGS[kind]}: {degree} must lie between 1 and {LARGEST_DEGREE:,}")
    made = {kind: degree or 1 for kind, degree in given.items()}
    asked = made["tensor"] * made["pipeline"] * made["data"]
    if gpus is not None and given[rest] is None and gpus % asked == 0:
        made[rest] = gpus // asked
    elif gpus is not None and gpus != asked:
        named = " x ".join(f"{_FLAGS[kind]} {degree}" for kind, degree in given.items() if degree is not None)
        raise UsageError(f"{named} makes {asked} GPUs, and there are {gpus}", hint="give GPUs and degrees that agree")
    return Degrees(**made)
