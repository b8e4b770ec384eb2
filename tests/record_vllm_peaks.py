"""Records what vLLM allocates beside weights while it starts, into tests/data/vllm_peaks.json.

vLLM's own worker (``Worker.init_device``, ``load_model``, ``determine_available_memory``) runs on a CUDA device without
hardware (tests/nullcuda), at full width; layers are cut, as each frees what the one before used. Nothing of the figures
is computed here, they are PyTorch's own counters of bytes requested:

``runner``   what the model runner holds when loading is done, beside the model: buffers of requests and of the sampler
``forward``  the peak of the profiling pass over ``tokens`` tokens, above what was held before it
``sampler``  the peak of the dummy sampler run of ``seqs`` requests after it, above the same
``left``     what both leave: workspaces of experts, FlashInfer's buffers
``cold``     the peak of compiled runs that find no compiled graphs on disk: Inductor tunes kernels on example tensors
``allocated``  the peak of both as the caching allocator counts it, which is what vLLM subtracts
``largest``  the largest tensors alive at the peak of the pass: bytes, and where they were made

Views of pinned host memory, which that device copies, are no part of ``runner``. Kernels of FlashInfer are not there,
its Python is, which allocates for them. Several ranks are torch's fake process group; what a collective returns is a
new tensor, as NCCL's communicator of vLLM makes it.

Run by hand, in the environment and with the driver of record_vllm_weights.py, of which one function must answer more,
since kernels are launched here that are only compiled there:

    sed -i 's/GIVES(cuFuncGetAttribute, int, 0)/GIVES(cuFuncGetAttribute, int, 1024)/' stubs.c
    for sm in 80 90; do NULLCUDA_SM=$sm ./run.sh VENV/bin/python ../record_vllm_peaks.py; done

Recorded with vLLM 0.33.0, torch 2.14.0+cu130, FlashInfer 0.7.2.post1, transformers 5.20.2, Python 3.12.
"""

import gc
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "vllm_peaks.json"
FOLDER = Path(tempfile.gettempdir()) / "vllm-peaks"

DENSE = (
    *("llama-3.1-8b", "llama-2-7b", "qwen2.5-7b", "qwen3-8b", "gemma-7b", "gemma-2-9b", "gemma-3-1b", "phi-3-mini"),
    *("phi-2", "glm-4-9b", "granite-3.3-8b", "olmo-2-7b", "starcoder2-7b", "command-r", "opt-1.3b", "gpt2"),
    *("apertus-8b", "falcon-7b", "stablelm-2-1.6b", "pythia-6.9b", "bloom-176b", "gpt-j-6b", "hunyuan-7b", "olmo-3-7b"),
    *("seed-oss-36b", "smollm3-3b", "gemma-3-4b", "qwen2.5-0.5b", "mistral-7b-v0.3", "qwen3-4b"),
)
ROUTED = (
    *("qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "gpt-oss-20b", "glm-4.5-air"),
    *("phi-3.5-moe", "llama-4-scout", "minimax-m2.5", "kimi-k2"),
)
MIXED = ("nemotron-h-56b", "nemotron-3-nano-30b-a3b", "qwen3-next-80b-a3b", "qwen3.5-9b", "qwen3.5-35b-a3b")
COMPILED = (
    *(
        "llama-3.1-8b",
        "qwen2.5-7b",
        "qwen3-8b",
        "gemma-7b",
        "gemma-2-9b",
        "gemma-3-1b",
        "phi-3-mini",
        "mistral-7b-v0.3",
    ),
    *("granite-3.3-8b", "smollm3-3b", "olmo-2-7b", "apertus-8b", "glm-4-9b", "command-r", "starcoder2-7b"),
    *("qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b", "glm-4.5-air", "minimax-m2.5"),
    *("nemotron-h-56b", "qwen3-next-80b-a3b"),
)
LAYERS = {
    "deepseek-v3": 5,
    "nemotron-h-56b": 8,
    "nemotron-3-nano-30b-a3b": 8,
    "gemma-3-1b": 6,
    "gemma-3-4b": 6,
    "gpt-j-6b": 2,
}


def case(model: str, tokens: int, seqs: int, **more: Any) -> dict[str, Any]:
    layers = LAYERS.get(model, 4)
    return {"model": model, "layers": layers, "capability": 90, "tokens": tokens, "seqs": seqs, "eager": True, **more}


def cases() -> Iterator[dict[str, Any]]:
    for model in (*DENSE, *ROUTED, *MIXED):
        yield case(model, 8192, 64)
    for model in COMPILED:
        yield case(model, 8192, 64, eager=False)
    yield case("llama-3.1-8b", 2048, 256)
    yield case("gpt-oss-20b", 2048, 256)
    yield case("deepseek-v2-lite", 2048, 256)
    yield case("deepseek-v2-lite", 8192, 1024)
    yield case("gemma-3-1b", 16384, 1024)
    for name in ("fp8-blocks", "ct-fp8", "w8a8", "w4a16", "gptq", "awq"):
        yield case("llama-3.1-8b", 8192, 64, format=name)
    yield case("qwen3-30b-a3b", 8192, 64, format="fp8-blocks")
    for model in ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "mixtral-8x7b"):
        yield case(model, 8192, 64, tp=2)
    yield case("qwen3-30b-a3b", 8192, 64, tp=2, ep=True)
    yield case("llama-3.1-8b", 8192, 1024, tp=2, len=131072)
    for model in ("llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "qwen3.5-9b"):
        yield case(model, 8192, 64, capability=80)


class Nothing:
    """Stands for a library of kernels: each does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Communicator:
    """What collectives return, as vLLM's CudaCommunicator makes it with NCCL: new tensors."""

    def __init__(self, size: int) -> None:
        self.world_size = size
        self.use_all2all, self.all2all_manager = False, None

    def all_reduce(self, tensor: Any) -> Any:
        import torch

        return torch.empty_like(tensor)

    def all_gather(self, tensor: Any, dim: int = -1) -> Any:
        import torch

        dim %= tensor.dim()
        size = tensor.size()
        made = torch.empty((size[0] * self.world_size, *size[1:]), dtype=tensor.dtype, device=tensor.device)
        made = made.reshape((self.world_size, *size)).movedim(0, dim)
        return made.reshape((*size[:dim], self.world_size * size[dim], *size[dim + 1 :]))


def enter_world(config: Any, rank: int) -> None:
    """Torch's fake process group, and vLLM's groups on it."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state as state

    parallel = config.parallel_config
    size = parallel.world_size_across_dp
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    new_group, made = dist.new_group, state.GroupCoordinator.__init__

    def init(
        self: Any,
        group_ranks: Any,
        local_rank: int,
        torch_distributed_backend: Any,
        use_device_communicator: bool,
        use_message_queue_broadcaster: bool = False,
        group_name: str | None = None,
        use_all2all: bool = False,
    ) -> None:
        made(self, group_ranks, 0, "fake", False, False, group_name, False)
        self.device_communicator = Communicator(self.world_size) if self.world_size > 1 else None

    dist.new_group = lambda ranks=None, timeout=None, backend=None, **kwargs: new_group(ranks, backend="fake")
    state.GroupCoordinator.__init__ = init
    state._WORLD = state.init_world_group(list(range(size)), 0, "fake")
    state._NODE_COUNT = 1
    state.initialize_model_parallel(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, backend="fake")


def counted(kind: str) -> int:
    import torch

    return torch.cuda.memory_stats()[f"{kind}_bytes.all.current"]


def peak(kind: str) -> int:
    import torch

    return torch.cuda.memory_stats()[f"{kind}_bytes.all.peak"]


def config_of(wanted: dict[str, Any], folder: Path) -> Any:
    from record_vllm_weights import config_of
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    text = json.dumps(config_of(wanted), sort_keys=True)
    own = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    own.mkdir(parents=True, exist_ok=True)
    (own / "config.json").write_text(text, encoding="utf-8")
    degree = wanted.get("tp", 1)
    positions = json.loads(text).get("max_position_embeddings") or json.loads(text).get("n_positions") or 2048
    several = {"tensor_parallel_size": degree, "distributed_executor_backend": "mp"} if degree > 1 else {}
    return EngineArgs(
        model=str(own),
        dtype=wanted.get("dtype", "bfloat16"),
        quantization=wanted.get("quantization"),
        load_format="dummy",
        skip_tokenizer_init=True,
        limit_mm_per_prompt={"image": 0, "video": 0} if "text_config" in json.loads(text) else {},
        enforce_eager=wanted["eager"],
        max_model_len=wanted.get("len", min(4096, positions)),
        max_num_batched_tokens=wanted["tokens"],
        max_num_seqs=wanted["seqs"],
        enable_expert_parallel=wanted.get("ep", False),
        **several,
    ).create_engine_config(UsageContext.OPENAI_API_SERVER)


def start(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a worker allocates up to its KV cache."""
    import flashinfer.jit.core
    import torch
    import vllm.v1.worker.gpu.buffer_utils as buffers
    import vllm.v1.worker.gpu.model_runner as runners
    import vllm.v1.worker.gpu_worker as workers
    from record_vllm_weights import keep_repeats
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    keep_repeats()
    flashinfer.jit.core.JitSpec.build_and_load = lambda self, *args, **kwargs: Nothing()
    config = config_of(wanted, folder)
    type(current_platform).dist_backend = "gloo"
    if wanted.get("tp", 1) > 1:
        workers.init_worker_distributed_environment = lambda c, rank, *args: enter_world(c, rank)
    found: dict[str, Any] = {}
    loading: list[int] = []
    shared: list[int] = []
    view = buffers.get_accelerator_view_from_cpu_tensor

    def host_view(tensor: Any) -> Any:
        before = counted("requested")
        made = view(tensor)
        shared.append(counted("requested") - before)
        return made

    buffers.get_accelerator_view_from_cpu_tensor = host_view

    class Profiler(runners.DeviceMemoryProfiler):
        def __enter__(self) -> Any:
            loading.append(counted("requested"))
            return super().__enter__()

        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            loading.append(counted("requested"))

    runners.DeviceMemoryProfiler = Profiler
    with set_current_vllm_config(config):
        worker = workers.Worker(config, 0, 0, f"file://{tempfile.mkdtemp()}/store", is_driver_worker=True)
        make_runner = worker._init_workspace_and_model_runner

        def make() -> None:
            loading.append(counted("requested"))
            make_runner()

        worker._init_workspace_and_model_runner = make
        worker.init_device()
        worker.load_model()
        gc.collect()
        before, allocated = counted("requested"), counted("allocated")
        fixed, *ends = loading
        found["weights"] = ends[1] - ends[0]
        found["runner"] = before - fixed - found["weights"] - sum(shared)
        runner = worker.model_runner
        type(runner).profile_cudagraph_memory = lambda self: 0
        run, forward = runner.profile_run, runner._dummy_run
        known: dict[str, Any] = {}

        def dummy_run(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            found["forward"], known["allocated"] = peak("requested") - before, peak("allocated") - allocated
            known["history"] = torch.cuda.memory._snapshot()["device_traces"][0]
            torch.cuda.memory._record_memory_history(enabled=None)
            torch.accelerator.reset_peak_memory_stats()
            return result

        def profile_run(**kwargs: Any) -> None:
            torch.cuda.memory._record_memory_history(context="all", stacks="python", max_entries=400_000)
            run(**kwargs)
            found["sampler"] = peak("requested") - before
            found["allocated"] = max(known["allocated"], peak("allocated") - allocated)

        runner._dummy_run, runner.profile_run = dummy_run, profile_run
        worker.determine_available_memory()
        found["left"] = counted("requested") - before
        found["largest"] = largest(known["history"])
    return found


SHOWN, LEAST = 7, 2**20


def largest(history: list[dict[str, Any]]) -> list[list[Any]]:
    """Of the tensors alive at the peak of a history of allocations, those of 1 MiB and more."""
    alive: dict[int, Any] = {}
    at_peak: dict[int, Any] = {}
    size = most = 0
    for event in history:
        if event["action"] == "alloc":
            alive[event["addr"]] = event
            size += event["size"]
        elif event["action"] == "free_completed":
            size -= event["size"]
            alive.pop(event["addr"], None)
        if size > most:
            most, at_peak = size, dict(alive)
    rows = sorted(at_peak.values(), key=lambda event: -event["size"])
    return [[row["size"], made_at(row["frames"])] for row in rows[:SHOWN] if row["size"] >= LEAST]


def made_at(frames: list[dict[str, Any]]) -> str:
    """File and function of vLLM or of a library that asked for a tensor, or that a compiled graph did."""
    for frame in frames:
        name = frame["filename"]
        if "inductor_cache" in name or "/vllm-peaks/" in name:
            return "compiled graph"
        if "/vllm/" in name or "/flashinfer/" in name or "_inductor" in name:
            function = frame["name"]
            if function != "__torch_function__":
                return f"{re.split('/site-packages/', name)[-1].removeprefix('vllm/')}:{function}"
    return "?"


def isolated(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``start`` in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            found = start(wanted, folder)
        except BaseException as error:
            traceback.print_exc()
            said = re.sub(r"\S*/\S+", "", str(error))
            found = {"failed": f"{type(error).__name__}: {' '.join(said.split())[:160]}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"failed": "the process ended"}


def record(wanted: dict[str, Any]) -> dict[str, Any]:
    """A compiled run is made twice: the second finds the graphs of the first."""
    if wanted["eager"]:
        return {**wanted, **isolated(wanted, FOLDER)}
    shutil.rmtree(FOLDER / "cache" / "torch_compile_cache", ignore_errors=True)
    first = isolated(wanted, FOLDER)
    again = isolated(wanted, FOLDER) if "failed" not in first else first
    return {**wanted, **again, **({} if "failed" in again else {"cold": first["forward"]})}


def key_of(wanted: dict[str, Any]) -> str:
    keys = ("model", "layers", "capability", "tokens", "seqs", "eager", "dtype", "format", "quantization", "tp", "ep")
    return json.dumps([wanted.get(key) for key in (*keys, "len")])


def write(rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    FILE.write_text(f'{{"cases":[\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    cache = FOLDER / "cache"
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        | {"VLLM_CACHE_ROOT": str(cache), "TRITON_CACHE_DIR": str(cache / "triton"), "VLLM_LOGGING_LEVEL": "ERROR"}
    )
    sys.path.insert(0, str(Path(__file__).parent))
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import vllm.model_executor.models.registry as registry
    import vllm.v1.worker.gpu.model_runner
    import vllm.v1.worker.gpu_model_runner
    import vllm.v1.worker.gpu_worker  # noqa: F401 (before the processes part)

    registry._run_in_subprocess = lambda function: function()  # each case is a process of its own already
    found = json.loads(FILE.read_text("utf-8"))["cases"] if FILE.exists() else []
    done = {key_of(row): row for row in found if "failed" not in row}
    for wanted in cases():
        if key_of(wanted) not in done and wanted["capability"] == int(os.environ["NULLCUDA_SM"]):
            done[key_of(wanted)] = outcome = record(wanted)
            print({key: value for key, value in outcome.items() if key != "largest"}, flush=True)
            write(list(done.values()))
    write(list(done.values()))


if __name__ == "__main__":
    main()
