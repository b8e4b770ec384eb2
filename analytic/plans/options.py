"""Deployments that a plan lays side by side, and the plan itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from analytic.deployment import Deployment, precision_notes
from analytic.estimator import Estimate, ledgers_of
from analytic.formats.quality import quality_cost
from analytic.hardware import Gpu
from analytic.models.model import Model
from analytic.parallel import Degrees
from analytic.plans.needs import Need, Room
from analytic.plans.question import Question

Cell = Literal["fits", "tight", "no"]

Frontier = tuple[tuple[int, int], ...]
"""For each context, how many of the concurrencies fit, and how many perhaps do."""


def matrix_of(frontier: Frontier, concurrencies: int) -> tuple[tuple[Cell, ...], ...]:
    """A row a context, a cell a concurrency."""
    rows = (
        ("fits",) * fits + ("tight",) * (perhaps - fits) + ("no",) * (concurrencies - perhaps)
        for fits, perhaps in frontier
    )
    return tuple(rows)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One deployment: GPUs, how they share the work, and a format."""

    asked: Deployment
    """The target."""
    room: Room
    target: Need
    frontier: Frontier
    price_per_hour: float | None

    @property
    def gpu(self) -> Gpu:
        """Of which there are `degrees`.gpus."""
        assert self.asked.gpu is not None
        return self.asked.gpu

    @property
    def quantization(self) -> str | None:
        """None is as published."""
        return self.asked.request.quantization

    @property
    def degrees(self) -> Degrees:
        """How the GPUs share the work."""
        return self.asked.degrees

    @property
    def is_expert_parallel(self) -> bool:
        """Whether whole experts are divided among the GPUs."""
        return bool(self.asked.flags.enable_expert_parallel)

    @property
    def used_bytes(self) -> int:
        """Of the fullest GPU, as far as it counts."""
        return self.room.used_bytes(self.target)

    @property
    def headroom_bytes(self) -> int:
        """What is left on the fullest GPU; below 0 what it lacks."""
        return self.room.capacity_bytes - self.used_bytes

    @property
    def fits(self) -> bool:
        """Whether the target fits."""
        return self.headroom_bytes >= 0

    @property
    def is_certain(self) -> bool:
        """Whether that holds at both bounds."""
        return self.room.holds_certainly(self.target) if self.fits else not self.room.holds_perhaps(self.target)

    @property
    def memory_bytes(self) -> int:
        """Of all its GPUs."""
        return self.degrees.gpus * self.gpu.total_bytes

    def matrix(self, concurrencies: int) -> tuple[tuple[Cell, ...], ...]:
        """A row a context, a cell a concurrency."""
        return matrix_of(self.frontier, concurrencies)

    @cached_property
    def answer(self) -> Estimate:
        """The target in detail."""
        return Estimate(asked=self.asked, ledgers=ledgers_of(self.asked))

    @property
    def largest_context(self) -> int:
        """Tokens of each of the target's sequences that fit; 0 if none do."""
        return self.answer.max_tokens or 0

    @property
    def largest_concurrency(self) -> int:
        """Sequences of the target's length that fit at once; 0 if none do."""
        return self.answer.max_sequences or 0

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the GPU lacks for the format, and what the format is known to cost in quality."""
        return tuple(_notes(self.asked))


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A deployment that cannot be."""

    quantization: str | None
    gpus: str
    """Which, and how they would share the work."""
    reason: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every option, the best first."""

    model: Model
    engine: str
    question: Question
    options: tuple[Option, ...]
    refused: tuple[Refused, ...]

    @cached_property
    def fitting(self) -> tuple[Option, ...]:
        """Those that hold the target."""
        return tuple(option for option in self.options if option.fits)

    @property
    def smallest(self) -> Option | None:
        """The one with the least GPU memory that holds the target."""
        return min(self.fitting, key=_by_memory, default=None)

    @property
    def cheapest(self) -> Option | None:
        """The one with the lowest price that holds the target; None without prices."""
        priced = [option for option in self.fitting if option.price_per_hour is not None]
        return min(priced, key=_by_price, default=None)

    @property
    def best(self) -> Option | None:
        """The cheapest, or without prices the smallest."""
        return self.cheapest or self.smallest

    @cached_property
    def shortlist(self) -> tuple[Option, ...]:
        """Of each kind of GPU and format the best that holds the target."""
        listed: dict[tuple[str, str | None], Option] = {}
        for option in self.fitting:
            listed.setdefault((option.gpu.name, option.quantization), option)
        return tuple(listed.values())

    @cached_property
    def closest(self) -> dict[tuple[str, str | None], Option]:
        """Of each kind of GPU and format the best that holds the target, else the one that lacks least."""
        found: dict[tuple[str, str | None], Option] = {}
        for option in self.options:
            known = found.setdefault((option.gpu.name, option.quantization), option)
            if not known.fits and option.headroom_bytes > known.headroom_bytes:
                found[option.gpu.name, option.quantization] = option
        return found


def _by_memory(option: Option) -> tuple[object, ...]:
    """Layers that are split answer sooner than stages in a row, where both fit."""
    degrees = option.degrees
    return (
        option.memory_bytes,
        degrees.gpus,
        not option.is_certain,
        degrees.pipeline,
        option.is_expert_parallel,
        -option.headroom_bytes,
    )


def _by_price(option: Option) -> tuple[object, ...]:
    return (option.price_per_hour, not option.is_certain, *_by_memory(option))


def order_of(option: Option) -> tuple[object, ...]:
    """The cheapest first, those without a price last, and then the smallest."""
    price = option.price_per_hour
    return (float("inf") if price is None else price, *_by_memory(option))


def _notes(asked: Deployment) -> Iterator[str]:
    yield from precision_notes(asked)
    quantization = asked.request.quantization
    if (cost := quality_cost(quantization)) is not None:
        yield f"{quantization}: {cost[0]} ({cost[1]})"
