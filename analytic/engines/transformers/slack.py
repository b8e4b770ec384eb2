"""What PyTorch's caching allocator keeps beside what is allocated, while transformers serves."""

from analytic.ledger import Phase
from analytic.models.geometry import Geometry
from analytic.quantity import Quantity, bounded
from analytic.state import storage_growth

_MIB = 2**20
LARGE_SEGMENT_BYTES = 10 * _MIB
"""Smaller requests of over 1 MiB share segments of twice as much (c10/core/AllocatorConfig.h)."""

SEGMENT_STEP_BYTES = 2 * _MIB
"""From 10 MiB a request gets its own segment, in steps of 2 MiB (c10/core/AllocatorConfig.h)."""

RESTING_SLACK = (0.4, 0.7)
"""Assumed share of the cache's bytes that its segments waste (middle, high; the low bound is none). These and the next
are fitted to 176 runs of benchmarks/virtual.toml and 2 of gpt-oss-20b; of all 192 of it they tell the reserved bytes
to 0.9 % in the mean."""

RESTING_SLACK_ACTIVATIONS = (0.1, 0.6)
"""The same of the most that activations take."""

RESTING_SLACK_BYTES = (16 * _MIB, 64 * _MIB)
"""The same of everything small: segments of 20 MiB for blocks below 10, of 2 MiB for those up to 1."""

GROWN_SLACK = (0.45, 0.6)
"""Assumed share of outgrown segments that stay cached beside the final cache (middle, high)."""

GROWN_SLACK_USED = 0.75
"""What of it the growing cache finds in the segments of prefill, as a share of its final bytes."""


def slack_of(
    phases: tuple[Phase, ...], *, outgrown: int, leftover_bytes: int, staging_bytes: int, room: tuple[int, int] | None
) -> tuple[Quantity, Quantity]:
    """The most that is reserved beyond the most that is allocated, and what of it would be given back.

    What loading leaves cached (``leftover_bytes``) serves the cache and the activations, as far as it goes.

    Segments that the cache outgrew stay beside it, where they take up what prefill has freed; when the GPU has no
    ``room`` left, the allocator gives them back (CUDACachingAllocator.cpp, release_cached_blocks), as they are whole.
    """
    first, last = phases[0], phases[-1]
    peak = max(phase.bytes for phase in phases)
    middle, high = ([_resting(phase, at) for phase in phases] for at in (0, 1))
    grown = grown_slack(outgrown, last.sequence_state.bytes)
    stays = max(first.bytes + middle[0], last.bytes + middle[-1]) - peak
    outlasts = max(0, max(last.bytes + grown[0], leftover_bytes) - peak - stays)
    kept = _kept(stays, outlasts, room and room[0])
    most_stays = max(high) + staging_bytes
    most_kept = _kept(most_stays, max(grown[1], leftover_bytes - peak), room and room[1])
    most = max(stays + kept, most_stays + most_kept)
    return bounded(0, stays + kept, most, "assumed"), bounded(0, kept, max(kept, most - most_stays), "assumed")


def _resting(phase: Phase, at: int) -> int:
    """Unused parts of the segments that hold the cache and the activations, with the middle (0) or high (1) figures."""
    activations = phase.bytes - phase.sequence_state.bytes
    shares = RESTING_SLACK[at] * phase.sequence_state.bytes + RESTING_SLACK_ACTIVATIONS[at] * activations
    return RESTING_SLACK_BYTES[at] + round(shares)


def grown_slack(outgrown: int, state: float) -> list[int]:
    """Segments that the cache outgrew and that nothing has taken: the middle figure, and the high one."""
    return [max(0, round(part * outgrown - GROWN_SLACK_USED * state)) for part in GROWN_SLACK]


def within(slack: Quantity, room: int | None, grown: int) -> tuple[Quantity, Quantity]:
    """``slack`` less the part of outgrown segments for which a GPU has no ``room``, and what is left of that part."""
    over = 0 if room is None else min(grown, max(0, slack.bytes - room))
    middle, kept = slack.bytes - over, min(grown - over, slack.bytes - over)
    less = bounded(min(slack.low_bytes, middle), middle, slack.high_bytes, slack.basis)
    return less, bounded(0, kept, kept, slack.basis)


def _kept(stays: int, grown: int, room: int | None) -> int:
    """What of outgrown segments a GPU with so much ``room`` keeps."""
    return grown if room is None else min(grown, max(0, room - stays))


def outgrown_bytes(geometry: Geometry, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
    """Segments of every size that the cache's tensors had before their last: a tensor grows a token a step."""
    grown = storage_growth(
        geometry,
        prompt_tokens=prompt_tokens,
        total_tokens=total_tokens,
        sequences=sequences,
        itemsize=itemsize,
    )
    own_segment = ((count, max(LARGE_SEGMENT_BYTES, first), last) for count, first, last in grown)
    return sum(n * max(0, last**2 - first**2) // (2 * SEGMENT_STEP_BYTES) for n, first, last in own_segment)
