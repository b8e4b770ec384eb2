"""What vLLM allocates that no tensor of a pass explains: CUDA graphs, and what libraries take.

Both are fitted to what vLLM printed on real GPUs (``tests/data/vllm_logs.json``, held by ``tests/test_vllm_logs.py``):
no code says what a driver needs for a graph. Since 0.21 an estimate of the graphs is part of vLLM's budget; before,
they came out of the share that ``gpu_memory_utilization`` leaves.
"""

from dataclasses import dataclass

from analytic.quantity import Quantity, bounded

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Bytes as a constant and so much for each layer of each captured batch."""

    constant_bytes: int
    bytes_per_layer: int

    def at(self, layers: int) -> int:
        """For ``layers`` x graphs."""
        return self.constant_bytes + self.bytes_per_layer * layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Graphs:
    """A kind of model's graphs: an interval that holds every log, and what releases from 0.27 on print."""

    low: Line
    typical: Line
    high: Line


DENSE = Graphs(
    low=Line(constant_bytes=0, bytes_per_layer=0),
    typical=Line(constant_bytes=160 * MIB, bytes_per_layer=75 * KIB),
    high=Line(constant_bytes=560 * MIB, bytes_per_layer=190 * KIB),
)
"""42 logs of 0.19 on H100 lie within 0.33 GiB + 166 KiB a layer and graph, by 0.23 GiB either way; on the same model
releases on CUDA 13 print a half to a third of that, and little GPUs nearly nothing."""
ROUTED = Graphs(
    low=Line(constant_bytes=0, bytes_per_layer=0),
    typical=Line(constant_bytes=320 * MIB, bytes_per_layer=120 * KIB),
    high=Line(constant_bytes=1024 * MIB, bytes_per_layer=380 * KIB),
)
"""Experts are several kernels more a layer: 9 logs of 0.19 lie between 175 and 450 KiB a layer and graph."""

HOPPER = 9
"""Major compute capability."""

LIBRARIES = {
    (False, False): (30 * MIB, 130 * MIB, 700 * MIB),
    (False, True): (30 * MIB, 256 * MIB, 700 * MIB),
    (True, False): (100 * MIB, 1000 * MIB, 2400 * MIB),
    (True, True): (100 * MIB, 2150 * MIB, 2400 * MIB),
}
"""Low, typical, high by whether there is tensor parallelism and whether the GPU is a Hopper. On one GPU kernels' code
as it is loaded by the first pass, 0.07 to 0.46 GiB in the logs, on H100 0.24 to 0.27 in 22 of 24; with tensor
parallelism NCCL takes buffers as well at its first use, 0.1 to 2.2 GiB, on H100 2.06 to 2.21 in eleven of 0.19 (0.11
printed 0.54)."""


def graphs(layers: int, captured: int, *, routed: bool) -> Quantity:
    """``captured`` graphs of a model of so many layers."""
    row, count = (ROUTED if routed else DENSE), layers * captured
    return bounded(row.low.at(count), row.typical.at(count), row.high.at(count), "fitted")


def libraries(tensor_parallel_size: int, capability: tuple[int, int] | None = None) -> Quantity:
    """Growth of what is used outside of PyTorch's allocator."""
    is_hopper = capability is not None and capability[0] == HOPPER
    return bounded(*LIBRARIES[tensor_parallel_size > 1, is_hopper], "fitted")
