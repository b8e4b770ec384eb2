"""How many GPUs vLLM spreads a model over, which of its layers one of them gets, and what a part of a tensor is.

After vLLM 0.33: ``distributed/utils.py`` (pipeline stages), ``layers/fused_moe/config.py`` (experts).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from analytic.errors import UllageError
from analytic.models.geometry import Geometry, MixtureOfExperts
from analytic.models.model import Model

LONGEST = 1024
"""Ranks of one kind that are looked through for a possible degree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrees:
    """The ranks of a run, and the pipeline stage that is meant."""

    tensor: int = 1
    pipeline: int = 1
    stage: int = 0
    by_expert: bool = False
    """Whether whole experts are spread, not parts of each."""
    data: int = 1
    """Ranks that each serve requests of their own, and share the experts."""

    @property
    def expert_ranks(self) -> int:
        """Ranks that a layer's experts are spread over, whole or in parts."""
        return self.tensor * self.data

    @property
    def is_first(self) -> bool:
        """Whether the stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage has the final norm and the head."""
        return self.stage == self.pipeline - 1

    @property
    def is_sequence_parallel(self) -> bool:
        """Whether ranks share out the tokens of the experts, and each has all of the shared experts (parallel.py)."""
        return self.by_expert and self.tensor > 1 and self.data > 1


def pipeline_spans(layers: int, pipeline_parallel_size: int) -> tuple[tuple[int, int], ...]:
    """First layer, and the one after the last, of each pipeline stage: ``get_pp_indices`` (distributed/utils.py).

    What does not divide goes, a layer each, to the stages before the last, the latest first.

    Raises:
        UllageError: more stages than layers.
    """
    if not 0 < pipeline_parallel_size <= layers:
        raise UllageError(
            f"{layers} layers cannot be spread over {pipeline_parallel_size} pipeline stages",
            hint=f"--pipeline-parallel-size from 1 to {layers}",
        )
    least, rest = divmod(layers, pipeline_parallel_size)
    sizes = [least] * pipeline_parallel_size
    for stage in range(2, rest + 2):
        sizes[-stage] += 1
    ends = [sum(sizes[: stage + 1]) for stage in range(pipeline_parallel_size)]
    return tuple((end - size, end) for end, size in zip(ends, sizes, strict=True))


def degrees_of(
    model: Model,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    pipeline_rank: int,
    enable_expert_parallel: bool,
    data_parallel_size: int,
) -> Degrees:
    """The degrees, each looked at by itself.

    Raises:
        UllageError: one that is no positive number, a stage that does not exist, or experts that are not there.
    """
    sizes: Mapping[str, int] = {
        "tensor-parallel": tensor_parallel_size,
        "pipeline-parallel": pipeline_parallel_size,
        "data-parallel": data_parallel_size,
    }
    for name, size in sizes.items():
        if not 0 < size <= LONGEST:
            raise UllageError(f"--{name}-size cannot be {size}", hint=f"from 1 to {LONGEST}")
    if not 0 <= pipeline_rank < pipeline_parallel_size:
        raise UllageError(
            f"there is no pipeline stage {pipeline_rank} of {pipeline_parallel_size}",
            hint=f"from 0 to {pipeline_parallel_size - 1}",
        )
    pipeline_spans(len(model.geometry.layers), pipeline_parallel_size)
    is_routed = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer, _ in model.geometry.groups)
    if enable_expert_parallel and not is_routed:
        raise UllageError(
            f"--enable-expert-parallel: {model.id} has no experts", hint="leave it out: it would change nothing"
        )
    return Degrees(
        tensor=tensor_parallel_size,
        pipeline=pipeline_parallel_size,
        stage=pipeline_rank,
        by_expert=enable_expert_parallel and tensor_parallel_size * data_parallel_size > 1,
        data=data_parallel_size if is_routed else 1,
    )


class UnevenError(Exception):
    """Something does not divide among the ranks."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a tensor."""

    shape: tuple[int, ...]
    why: str = ""
    """Why it is no even part; empty where it is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What a rule may ask for."""

    geometry: Geometry
    degrees: Degrees
    splits_shared: bool
    """Whether shared experts are split where ranks share out the experts' tokens."""
    head_norms: bool
    """Whether norms over all heads are split with them."""


def divided(count: int, ranks: int, what: str) -> int:
    """``count / ranks``.

    Raises:
        UnevenError: it is not whole.
    """
    if count % ranks:
        raise UnevenError(f"{count:,} {what}")
    return count // ranks
