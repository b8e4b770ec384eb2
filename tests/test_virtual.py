"""The virtual GPU against what is real: transformers on a processor, PyTorch's allocator, full traces."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from tiny import TINY, tiny_config
from transformers.integrations.moe import ExpertsInterface, batched_mm_experts_forward

from analytic.request import Request
from profiler.live_bytes import LiveBytes, LiveStorage
from profiler.models import build
from profiler.serve import generate
from profiler.virtual.generate import Run, load_model, serve, virtual_gpu
from profiler.virtual.peaks import peaks
from profiler.virtual.simulate import simulate
from profiler.virtual.target import find_target

A100 = find_target("virtual:a100-80gb")
PLENTY = 2**45

REQUEST = Request(dtype="float32", attention="eager", batch_size=2, prompt_tokens=24, output_tokens=4)


pytestmark = pytest.mark.usefixtures("one_thread")


class Stream(LiveBytes):
    """Births and deaths of a real run, in order."""

    def __init__(self, resident: Any) -> None:
        super().__init__(resident)
        self.events: list[tuple[Any, ...]] = []
        self._numbers: dict[int, int] = {}

    def born(self, storage_bytes: int, tensor: torch.Tensor, op: str) -> LiveStorage:
        key = tensor.untyped_storage()._cdata
        self._numbers[key] = len(self.events)
        self.events.append(("born", storage_bytes, op.partition(".default")[0], tuple(tensor.shape), tensor.dtype))
        return super().born(storage_bytes, tensor, op)

    def _forget(self, key: int) -> None:
        self.events.append(("died", self._numbers[key]))
        super()._forget(key)


def stream_on_cpu(config: dict[str, Any], request: Request) -> list[tuple[Any, ...]]:
    blank = build(config)
    model = type(blank)._from_config(
        blank.config, dtype=getattr(torch, request.dtype), attn_implementation=request.attention
    )
    model.eval()
    stream = Stream([*model.parameters(), *model.buffers()])
    with torch.no_grad(), stream:
        out = generate(model, request)
        del out
    return without_numbers(stream.events)


def stream_on_virtual_gpu(config: dict[str, Any], request: Request) -> list[tuple[Any, ...]]:
    with virtual_gpu(A100, request) as recorder:
        loaded = load_model(config, request, recorder, stored=request.dtype)
        out = generate(loaded.model, request)
        del out
    trace, events, numbers = recorder.trace, [], {}
    for number in trace.events[loaded.load_end :]:
        if number >= 0 and trace.births[number].purpose == "result":
            birth = trace.births[number]
            numbers[number] = len(events)
            dtype = getattr(torch, birth.dtype)
            events.append(("born", birth.bytes, birth.op.replace("::", "."), birth.shape, dtype))
        elif ~number in numbers:
            events.append(("died", numbers[~number]))
    return without_numbers(events)


def without_numbers(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Sizes and order, but for tensors made of one Python integer: a GPU copies those that are made on it, and a
    processor's need no copy."""
    dropped = {
        at
        for at, (what, *told) in enumerate(events)
        if what == "born" and told[1] in ("aten.lift_fresh", "aten._to_copy") and told[2:] == [(), torch.int64]
    }
    kept = [event for at, event in enumerate(events) if at not in dropped and event[1:] not in {(d,) for d in dropped}]
    births = [at for at, (what, *_) in enumerate(events) if what == "born" and at not in dropped]
    place = {at: number for number, at in enumerate(births)}
    return [("born", event[1]) if event[0] == "born" else ("died", place[event[1]]) for event in kept]


DENSE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "falcon", "gpt_neox")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", DENSE)
def test_allocations_are_those_of_a_real_run(family: str, padded: bool) -> None:
    """In size and order, byte for byte: eager attention in float32, whose kernels a processor and a GPU share."""
    request = replace(REQUEST, padded=padded)
    real = stream_on_cpu(tiny_config(family), request)
    assert stream_on_virtual_gpu(tiny_config(family), request) == real
    assert len(real) > 500


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "gemma4"])
def test_so_are_those_in_bfloat16(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer norms aside, whose statistics a processor keeps in bfloat16, and the product that decodes experts."""
    monkeypatch.setattr(transformers.GenerationMixin, "_optimize_model_for_decode", lambda _: nullcontext())
    request = replace(REQUEST, dtype="bfloat16")
    assert stream_on_virtual_gpu(tiny_config(family), request) == stream_on_cpu(tiny_config(family), request)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "gemma4"])
def test_so_are_those_of_experts_in_one_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product that decodes experts on a GPU, on both from the prefill on."""
    monkeypatch.setitem(ExpertsInterface._global_mapping, "grouped_mm", batched_mm_experts_forward)
    request = replace(REQUEST, dtype="bfloat16")
    assert stream_on_virtual_gpu(tiny_config(family), request) == stream_on_cpu(tiny_config(family), request)


WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "num_hidden_layers": 5}
"""Enough layers for some to repeat, and a cache in the large pool."""


SETTINGS = (None, "expandable_segments:True", "max_split_size_mb:20", "roundup_power2_divisions:4")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", WIDE),
        ("llama", {**WIDE, "quantization": "bnb-nf4"}),
        ("llama", {**WIDE, "quantization": "bnb-int8"}),
        ("gemma2", WIDE | {"layer_types": ["full_attention"] * 5}),
        ("gemma3_text", WIDE | {"sliding_window": 64}),
        ("falcon", {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 5}),
        ("mixtral", WIDE),
        ("deepseek_v3", {"num_hidden_layers": 5}),
        ("qwen3_next", {}),
        ("falcon_mamba", {"prompt_tokens": 130}),  # a scan traces every token
    ],
)
def test_extrapolated_steps_are_those_of_a_full_trace(family: str, changes: dict[str, Any]) -> None:
    changes = dict(changes)
    tokens = 30
    request = replace(
        REQUEST,
        dtype="bfloat16",
        batch_size=3,
        prompt_tokens=changes.pop("prompt_tokens", 530),
        output_tokens=tokens,
        quantization=changes.pop("quantization", None),
    )
    config = tiny_config(family) if family in TINY else tiny_models.tiny_config(family)
    with virtual_gpu(A100, request) as recorder:
        loaded = load_model({**config, **changes}, request, recorder, stored="bfloat16")
        short, full = serve(loaded, request), serve(loaded, request, traced_tokens=tokens)
    assert short.program.decode is not None
    assert len(short.program.trace.events) < len(full.program.trace.events)
    require_equal(short, full)
    assert [*peaks(short.program)][1].tensors == [*peaks(full.program)][1].tensors


def require_equal(short: Run, full: Run) -> None:
    assert short.sequence_state_bytes == full.sequence_state_bytes
    told, truth = [*peaks(short.program)], [*peaks(full.program)]
    assert [peak.requested_bytes for peak in told] == [peak.requested_bytes for peak in truth]
    for conf in SETTINGS:
        first, second = (simulate(run.program, capacity_bytes=PLENTY, alloc_conf=conf) for run in (short, full))
        assert first.phases == second.phases, conf
        assert first.retained_bytes == second.retained_bytes, conf


@pytest.mark.parametrize(
    ("family", "changes", "output"),
    [
        ("gemma3_text", WIDE | {"sliding_window": 560, "max_position_embeddings": 590}, 80),
        ("gemma2", WIDE | {"sliding_window": 555}, 26),
        ("mistral", WIDE | {"sliding_window": 550}, 40),
        ("llama4_text", WIDE | {"attention_chunk_size": 560}, 45),
    ],
)
def test_steps_far_before_a_window_fills_are_those_of_a_full_trace(
    family: str, changes: dict[str, Any], output: int
) -> None:
    request = replace(REQUEST, dtype="bfloat16", batch_size=3, prompt_tokens=530, output_tokens=output)
    config = tiny_config(family) if family in TINY else tiny_models.tiny_config(family)
    with virtual_gpu(A100, request) as recorder:
        loaded = load_model({**config, **changes}, request, recorder, stored="bfloat16")
        forwards: list[int] = []
        hook = loaded.model.register_forward_pre_hook(lambda *_: forwards.append(1))
        short = serve(loaded, request)
        hook.remove()
        full = serve(loaded, request, traced_tokens=output)
    assert len(forwards) < output
    require_equal(short, full)
