"""Records what one of several GPUs holds of a model's weights under vLLM, into tests/data/vllm_weights_parallel.json.

As ``record_vllm_weights.py``, whose build, command and versions hold here too, but in a world of several ranks of which
this process is one: torch's fake process group (``torch.testing._internal.distributed.fake_pg``) says that the others
are there, and vLLM's groups are made on it, without the communicators that would reach them. vLLM's loader asks a group
only for sizes and ranks. ``rank`` is that of the world: data parallel outermost, then pipeline, then tensor parallel.

    for sm in 80 86 89 90 100 120; do NULLCUDA_SM=$sm ./run.sh VENV/bin/python ../record_vllm_weights_parallel.py; done

The configs are those of vllm_weights.json. Of the tensors only their sum is kept: ``TENSORS=FILE`` appends them
to a file, a case a line.
"""

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import record_vllm_weights as single
from record_vllm_weights import FORMATS, case, compact

FILE = Path(__file__).parent / "data" / "vllm_weights_parallel.json"
PARALLEL = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "ep": "enable_expert_parallel",
    "dp": "data_parallel_size",
}


def enter(config: Any, rank: int) -> None:
    """Become ``rank`` of the world that ``config`` asks for."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import destroy_model_parallel, parallel_state

    destroy_model_parallel()
    parallel_state._WORLD = None
    if distributed.is_initialized():
        distributed.destroy_process_group()
    parallel = config.parallel_config
    world = parallel.world_size_across_dp
    distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    coordinator = parallel_state.GroupCoordinator
    new_group, init = distributed.new_group, coordinator.__init__

    def fake(ranks: Any = None, **_: Any) -> Any:
        return new_group(ranks, backend="fake")

    def alone(self: Any, group_ranks: Any, *_: Any, group_name: str | None = None, **__: Any) -> None:
        init(self, group_ranks, 0, "fake", use_device_communicator=False, group_name=group_name)
        all2all = SimpleNamespace(world_size=self.world_size)
        self.device_communicator = SimpleNamespace(all2all_manager=all2all, destroy=lambda: None)

    distributed.new_group, coordinator.__init__ = fake, alone
    try:
        parallel_state._WORLD = parallel_state.init_world_group(list(range(world)), 0, "fake")
        parallel_state._NODE_COUNT = 1
        parallel_state.initialize_model_parallel(
            parallel.tensor_parallel_size, parallel.pipeline_parallel_size, backend="fake"
        )
    finally:
        distributed.new_group, coordinator.__init__ = new_group, init


def load(wanted: dict[str, Any]) -> tuple[Any, int]:
    """The part of the model that one rank holds, and what its device was asked for meanwhile."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader import get_model

    parallel = {name: wanted[key] for key, name in PARALLEL.items() if key in wanted}
    if "dp" in wanted:
        replica = wanted.get("rank", 0) // (wanted.get("tp", 1) * wanted.get("pp", 1))
        parallel |= {"data_parallel_rank": replica, "data_parallel_address": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(single.config_of(wanted)), encoding="utf-8")
        config = EngineArgs(
            model=folder,
            dtype=wanted["dtype"],
            quantization=wanted.get("quantization"),
            load_format="dummy",
            skip_tokenizer_init=True,
            distributed_executor_backend="mp",  # else it counts this machine's GPUs
            **parallel,
        ).create_engine_config()
        rotary_embedding._ROPE_DICT.clear()
        before = single.requested_bytes()
        gc.freeze()  # what is imported need not be searched again for garbage, which would take most of the time
        with set_current_vllm_config(config):
            enter(config, wanted.get("rank", 0))
            model = get_model(vllm_config=config)
        return model, single.requested_bytes() - before


LAYERS = {"gemma-3-1b": 6, "gemma-3-4b": 6, "nemotron-h-56b": 20, "nemotron-h-47b": 20}
"""Models of which the first four layers would not have one of every kind."""
DENSE = (
    *("llama-3.1-8b", "llama-3.2-1b", "qwen2.5-7b", "qwen2.5-0.5b", "qwen3-8b", "qwen3-0.6b", "gemma-2-2b"),
    *("gemma-2-27b", "gemma-3-1b", "gemma-3-4b", "mistral-7b-v0.3", "phi-4-mini", "glm-4-9b", "aya-23-8b"),
    *("olmo-2-7b", "gpt2", "granite-3.1-2b", "apertus-8b", "bloom-176b", "falcon-7b", "gemma-7b", "gpt-j-6b"),
    *("nemotron-h-56b", "opt-1.3b", "phi-2", "pythia-6.9b", "qwen3.5-9b", "seed-oss-36b", "smollm3-3b"),
    *("stablelm-2-1.6b", "starcoder2-7b", "llama-2-70b", "qwen2.5-72b"),
)
ROUTED = (
    *("qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "gpt-oss-20b"),
    *("gpt-oss-120b", "glm-4.5-air", "llama-4-scout", "qwen3-next-80b-a3b", "minimax-m2.5", "phi-3.5-moe"),
    *("qwen3.5-35b-a3b", "nemotron-3-nano-30b-a3b"),
)
TENSOR = (2, 4, 8, 16)
EXPERT = ({"tp": 2}, {"tp": 8}, {"tp": 2, "dp": 4}, {"tp": 1, "dp": 8}, {"tp": 3})
PACKED = {
    "llama-3.1-8b": ("gptq", "awq", "w4a16", "w8a16", "w8a8", "ct-fp8", "fp8-static", "fp8-dynamic", "fp8-blocks"),
    "qwen3-30b-a3b": ("gptq", "awq-routed", "w4a16", "w8a8", "fp8-dynamic", "fp8-static", "fp8-blocks"),
    "qwen2.5-0.5b": ("gptq", "awq", "w4a16", "w8a8", "fp8-dynamic", "fp8-blocks"),
    "deepseek-v2-lite": ("w4a16", "awq-routed", "fp8-static"),
    "mixtral-8x7b": ("w4a16", "gptq", "awq-routed"),
    "qwen2.5-7b": ("gptq", "awq", "w4a16"),
    "gemma-3-4b": ("w4a16", "w8a8"),
    "mistral-7b-v0.3": ("awq", "ct-fp8"),
}
MORE = ("gptq-int8", "gptq-column", "w4a16-asym", "modelopt-fp8")
FOUR_BITS = ("nvfp4", "ct-nvfp4")
"""What the null device does not convert but on 8.0."""
ONLINE = ("fp8", "fp8_per_block", "fp8_per_channel")
NATIVE = ("gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "minimax-m2.5")


def cut(model: str, **request: Any) -> dict[str, Any]:
    return case(model, **{"layers": LAYERS.get(model, 4), **request})


def packed(model: str, name: str, **request: Any) -> dict[str, Any]:
    chosen = "format" if name in FORMATS else "quantization"
    return cut(model, **{"layers": LAYERS.get(model, 2), chosen: name, **request})


def cases() -> Iterator[dict[str, Any]]:
    for model in (*DENSE, *ROUTED):
        yield from (cut(model, tp=ranks) for ranks in TENSOR)
    for model in ROUTED:
        yield from (cut(model, ep=True, **degrees) for degrees in EXPERT)
        yield cut(model, tp=2, dp=4)  # experts are split over eight
    for capability in (90, 80):
        for model, names in PACKED.items():
            for name in names:
                yield from (packed(model, name, capability=capability, tp=ranks) for ranks in (2, 4, 8))
        for model in NATIVE[: 4 if capability == 80 else 0]:
            yield from (cut(model, capability=capability, tp=ranks) for ranks in (2, 4, 8))
            yield cut(model, capability=capability, tp=8, ep=True)
        for name in ("gptq", "w4a16", "w8a8", "fp8-dynamic", "fp8-blocks"):
            yield packed("qwen3-30b-a3b", name, capability=capability, tp=4, ep=True)
    for model in (*DENSE, *ROUTED):
        layers = max(5, LAYERS.get(model, 0))
        yield from (cut(model, layers=layers, pp=3, rank=stage) for stage in range(3))
    for model in ("llama-3.1-8b", "qwen2.5-0.5b", "gemma-3-4b", "qwen3-30b-a3b", "deepseek-v3"):
        yield from (cut(model, layers=max(5, LAYERS.get(model, 0)), pp=2, tp=2, rank=rank) for rank in (0, 1, 2, 3))
    for capability in (90, 80):
        for name in (*MORE, *ONLINE, *(FOUR_BITS if capability == 80 else ())):
            for model in ("llama-3.1-8b", "qwen3-30b-a3b"):
                yield from (packed(model, name, capability=capability, tp=ranks) for ranks in (2, 8))
    for model in ("llama-3.1-8b", "gpt2", "bloom-176b", "qwen3-30b-a3b", "deepseek-v2-lite", "llama-4-scout"):
        yield from (cut(model, tp=ranks, rank=ranks - 1) for ranks in (2, 8))
    yield from further()


def further() -> Iterator[dict[str, Any]]:
    """Degrees that are no powers of two, several kinds at once, and other capabilities."""
    for model, ranks in (("gpt2", 3), ("gpt2", 6), ("starcoder2-7b", 12), ("llama-3.2-3b", 6), ("llama-3.2-3b", 3)):
        yield cut(model, tp=ranks)
    for model in ("hunyuan-7b", "olmo-3-7b"):
        yield from (cut(model, tp=ranks) for ranks in (2, 16))
        yield from (cut(model, layers=5, pp=3, rank=stage) for stage in range(3))
    yield from (cut("nemotron-3-nano-30b-a3b", layers=9, pp=3, rank=stage) for stage in range(3))
    yield from (cut("qwen3-30b-a3b", tp=2, dp=3, ep=True, rank=rank) for rank in (0, 1, 4, 5))  # 128 experts over 6
    yield from (cut("deepseek-v2", tp=64, ep=True, rank=rank) for rank in (0, 63))  # 160 over 64
    yield cut("kimi-k2", tp=16)
    yield cut("kimi-k2", tp=8, dp=2, ep=True)
    for model in ("qwen3-30b-a3b", "deepseek-v3", "glm-4.5-air", "gpt-oss-20b"):
        yield from (cut(model, layers=5, pp=2, tp=2, ep=True, rank=rank) for rank in (0, 2))
    for capability in (80, 90):
        for name in ("gptq", "awq", "w4a16", "w8a8", "fp8-dynamic", "fp8-blocks"):
            yield packed("llama-3.1-8b", name, capability=capability, tp=16)
            yield from (
                packed("llama-3.1-8b", name, capability=capability, layers=5, pp=2, tp=2, rank=rank) for rank in (0, 2)
            )
        for model in ("qwen3-30b-a3b", "llama-3.1-8b"):
            yield packed(model, "fp8_per_block", capability=capability, tp=4)
    for capability in (86, 89, 100, 120):
        for name in ("gptq", "awq", "w4a16", "w8a8", "ct-fp8", "fp8-dynamic", "fp8-static", "fp8-blocks", "fp8"):
            yield from (packed("llama-3.1-8b", name, capability=capability, tp=ranks) for ranks in (2, 8))
        for name in ("gptq", "awq-routed", "w4a16", "w8a8", "fp8-dynamic", "fp8-blocks"):
            yield from (packed("qwen3-30b-a3b", name, capability=capability, tp=ranks) for ranks in (2, 4, 8))
        if capability != 100:  # whose kernels are compiled on the spot
            yield from (cut("gpt-oss-20b", capability=capability, tp=ranks) for ranks in (2, 4, 8))
        yield from (cut("minimax-m2.5", capability=capability, tp=ranks) for ranks in (4, 8))
        yield cut("deepseek-v3", capability=capability, tp=8)
        yield cut("llama-3.1-8b", capability=capability, tp=4)
        yield cut("mixtral-8x7b", capability=capability, tp=4)


def key_of(case: dict[str, Any]) -> str:
    return single.key_of(case) + json.dumps([case.get(key) or None for key in (*PARALLEL, "rank")])


SPANS = ((32, 2), (32, 3), (61, 4), (5, 2), (5, 3), (7, 4), (46, 4), (94, 8), (62, 5), (80, 16), (126, 4), (3, 3))
"""Layers and stages, of which vLLM is asked for each stage's layers."""


def spans() -> list[Any]:
    from vllm.distributed.utils import get_pp_indices

    return [[layers, size, [get_pp_indices(layers, rank, size) for rank in range(size)]] for layers, size in SPANS]


def write(done: dict[str, dict[str, Any]]) -> None:
    """A line a case."""
    rows = ({k: v for k, v in row.items() if v != 0 and k != "tensors"} for row in done.values())
    lines = ",\n".join(compact(row) for row in rows)
    FILE.write_text(f'{{"spans":{compact(spans())},\n"cases":[\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        | {"TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
    )
    from vllm.model_executor.models import registry

    single.keep_repeats()
    registry._run_in_subprocess = lambda inspect: inspect()  # another process would import all of vLLM for each class
    single.CONFIGS.update(json.loads(single.FILE.read_text("utf-8"))["configs"])
    found = json.loads(FILE.read_text("utf-8"))["cases"] if FILE.exists() else []
    done = {key_of(case): case for case in found}
    for wanted in cases():
        if wanted["capability"] != int(os.environ["NULLCUDA_SM"]) or key_of(wanted) in done:
            continue
        done[key_of(wanted)] = {**wanted, "failed": single.ENDED}  # stays where the process dies of it
        write(done)
        done[key_of(wanted)] = outcome = single.record(wanted, load)
        if "TENSORS" in os.environ:
            with Path(os.environ["TENSORS"]).open("a", encoding="utf-8") as log:
                log.write(compact(outcome) + "\n")
        print(*(str(value)[:160] for key, value in outcome.items() if value and key != "tensors"), flush=True)
    write(done)


if __name__ == "__main__":
    main()
