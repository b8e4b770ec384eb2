r"""Where the real llama.cpp puts the weights of tiny sparse GGUF files: its model buffers, to the byte.

`python tests/record_llamacpp_weights.py LLAMA_CPP BUILD CUDA_LIBRARY NULL_DEVICE`, with
PYTHONPATH=.:LLAMA_CPP:LLAMA_CPP/gguf-py, writes tests/data/llamacpp/weights.json.

LLAMA_CPP is the source tree of llama.cpp (recorded: 0.5.0 with ggml 0.25.3, commit 0c1e57098, as in the source
distribution of llama-cpp-python 0.3.36), BUILD its build:

    cmake -B BUILD -DGGML_RPC=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF
    cmake --build BUILD -j2 -t llama ggml-rpc-server llama-gguf-split llama-quantize

Three backends are asked. `cpu` has no GPU; its processor code is that of AVX2. `rpc` offloads to ggml-rpc-server, for
which this machine's processor plays the GPU. `cuda` is ggml's CUDA backend on the null device of tests/nullcuda: its
host code (ggml-cuda.cu) without the kernels of the other files, which loading does not call. With CUDA 13.0's nvcc:

    cd LLAMA_CPP && nvcc -std=c++17 -O0 -arch=sm_80 -cudart none -Xcompiler -fPIC -DGGML_BACKEND_SHARED -DGGML_SHARED \
        -DGGML_CUDA_PEER_MAX_BATCH_SIZE=128 -Iggml/include -Iggml/src -Iggml/src/ggml-cuda \
        -c ggml/src/ggml-cuda/ggml-cuda.cu -o ggml-cuda.o
    g++ -shared -o CUDA_LIBRARY ggml-cuda.o -Wl,-z,lazy -LBUILD/bin -lggml-base -Wl,-rpath,BUILD/bin
    cd tests/nullcuda && sh stubs.sh nullcuda.c CUDA_LIBRARY > stubs.c
    gcc -shared -fPIC -I. -o NULL_DEVICE/libnullcuda.so nullcuda.c stubs.c -ldl -lpthread
    ln -s libnullcuda.so NULL_DEVICE/libcuda.so.1
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llamacpp_runs
from llamacpp_runs import _HEADS, _MISSING, _MOE, _NORM, _PLAIN, _SHAPE, _SSM, _block
from made_gguf import LLAMA, Tensors, llama_tensors, write_gguf
from record_gguf_mixtures import PUBLISHED

from analytic.formats.ggml import BY_NAME
from analytic.models.resolve import resolve
from profiler.sparse import sparse_checkpoint

DATA = Path(__file__).parent / "data" / "llamacpp" / "weights.json"

_LOADER = r"""
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama-model.h"
#include "llama.h"
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>

int main(int, char ** argv) {  // MODEL DEVICE N_GPU_LAYERS MMAP N_CPU_MOE
    llama_log_set([](ggml_log_level, const char * text, void *) { fputs(text, stdout); }, nullptr);
    const std::string device = argv[2];
    if (device.find(':') != std::string::npos) {
        auto * rpc = ggml_backend_reg_by_name("RPC");
        auto * add = ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
        ggml_backend_register(((ggml_backend_reg_t (*)(const char *)) add)(device.c_str()));
    } else if (!device.empty()) {
        void * library = dlopen(device.c_str(), RTLD_LAZY | RTLD_GLOBAL);
        ggml_backend_register(((ggml_backend_reg_t (*)()) dlsym(library, "ggml_backend_cuda_reg"))());
    }
    auto params = llama_model_default_params();
    params.n_gpu_layers = atoi(argv[3]);
    params.load_mode = atoi(argv[4]) ? LLAMA_LOAD_MODE_AUTO : LLAMA_LOAD_MODE_NONE;
    std::vector<std::string> patterns;  // common/common.h, llm_add_n_cpu_ffn_overrides
    for (int i = 0; i < atoi(argv[5]); ++i) {
        patterns.push_back("blk\\." + std::to_string(i) + "\\.ffn_(up|down|gate|gate_up)_(ch|)exps");
    }
    std::vector<llama_model_tensor_buft_override> overrides;
    for (const auto & pattern : patterns) overrides.push_back({ pattern.c_str(), ggml_backend_cpu_buffer_type() });
    overrides.push_back({ nullptr, nullptr });
    params.tensor_buft_overrides = overrides.data();
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (model) {
        for (const auto & [type, size] : model->memory_breakdown()) {
            printf("BUFFER %s %zu\n", ggml_backend_buft_name(type), size);
        }
    }
    fflush(stdout);
    _Exit(!model);
}
"""


class Loader:
    """llama.cpp's own loading, in a process a model."""

    def __init__(self, sources: Path, build: Path, folder: Path) -> None:
        self.program, self.build = folder / "load", build
        (folder / "load.cpp").write_text(_LOADER)
        includes = [f"-I{sources / part}" for part in ("include", "src", "ggml/include")]
        libraries = [f"-L{build}/bin", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{build}/bin"]
        command = ["g++", "-std=c++17", folder / "load.cpp", *includes, *libraries, "-ldl", "-o", self.program]
        subprocess.run(command, check=True)

    def log(
        self, path: Path, device: str = "", layers: int = 0, mmap: bool = True, experts: int = 0, **env: str
    ) -> str:
        command = [str(word) for word in (self.program, path, device, layers, int(mmap), experts)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | env)
        return done.stdout


@contextmanager
def rpc_server(build: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [build / "bin" / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        time.sleep(1)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


_PRINTED = re.compile(r"load_tensors: +(\S+) model buffer size = +([\d.]+) MiB")
_EXACT = re.compile(r"^BUFFER (\S+) (\d+)$", re.MULTILINE)


def buffers(log: str) -> dict[str, int]:
    """Bytes of each buffer type, which are those that llama.cpp prints."""
    exact = {("GPU" if re.match("RPC|CUDA\\d", name) else name): int(size) for name, size in _EXACT.findall(log)}
    printed = sum(float(size) for _, size in _PRINTED.findall(log))
    assert exact, log[-2000:]
    assert abs(sum(exact.values()) / 2**20 - printed) < 0.006 * len(exact) + 0.006, (exact, printed)
    return exact


def discover(loader: Loader, architecture: str, metadata: dict[str, Any], tensors: Tensors, path: Path) -> Tensors:
    """The tensors that llama.cpp wants of such a model, by its own errors (see llamacpp_runs)."""
    tensors = {"token_embd.weight": ("F16", (metadata["vocab_size"], metadata["embedding_length"])), **tensors}
    for _ in range(600):
        log = loader.log(write_gguf(path, architecture, metadata, tensors))
        if shape := _SHAPE.search(log):
            sizes = tuple(int(n) for n in shape[2].split(","))
            while len(sizes) > 1 and sizes[-1] == 1:
                sizes = sizes[:-1]
            plain = len(sizes) == 1 or _PLAIN.search(shape[1])
            tensors[shape[1]] = ("F32" if plain else "F16", sizes[::-1])
        elif missing := _MISSING.search(log):
            alike = (name for name in tensors if _block(name) == _block(missing[1]))
            tensors[missing[1]] = tensors.get(next(alike, ""), ("F32", (1,)))
        elif _EXACT.search(log):
            return tensors
        else:
            raise RuntimeError(f"{architecture}: {log[-500:]}")
    raise RuntimeError(f"{architecture}: no end of tensors")


_DELTA = {
    **{**LLAMA, **_HEADS, "block_count": 5, "full_attention_interval": 4, "nextn_predict_layers": 1},
    **{
        "ssm.conv_kernel": 4,
        "ssm.state_size": 32,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 128,
    },
}
_ROUTED = {**LLAMA, **_HEADS, **_MOE, "leading_dense_block_count": 1, "expert_shared_count": 1, "expert_gating_func": 2}

_GEMMA = {
    **{**LLAMA, **_HEADS, "block_count": 6, "attention.key_length_swa": 32, "attention.value_length_swa": 32},
    **{"attention.sliding_window": 512, "attention.sliding_window_pattern": [True, True, False] * 2},
    **{"attention.head_count_kv": [2] * 6, "feed_forward_length": [512] * 6, "attention.shared_kv_layers": 0},
    **{"embedding_length_per_layer_input": 32, "rope.dimension_count_swa": 32},
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "glm4moe": {**_ROUTED, "block_count": 4, "nextn_predict_layers": 1, "expert_weights_scale": 1.0},
    "gemma4": _GEMMA,
    "gemma4+large": {**_GEMMA, "vocab_size": 180_000, "embedding_length_per_layer_input": 2048},
    "gpt2": {**LLAMA, **_NORM},
    "phi3": {**LLAMA, "rope.scaling.type": "longrope"},
    "phi2": {**LLAMA, **_NORM},
    "nemotron_h": {
        **{**LLAMA, **_HEADS, **_SSM, **_NORM, "block_count": 4},
        **{"attention.head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 512, 0]},
        **{"ssm.inner_size": 512, "ssm.time_step_rank": 8, "ssm.group_count": 2, "ssm.state_size": 128},
    },
    "qwen35": {**_DELTA, "rope.dimension_sections": [8, 8, 8, 8]},
    "qwen3next+mtp": {**_DELTA, **_MOE, "expert_shared_feed_forward_length": 256},
    "minimax-m2": {**LLAMA, **_HEADS, **_MOE, "expert_gating_func": 2},
    "mistral3": {**LLAMA, **_HEADS},
    "exaone4": {**LLAMA, **_HEADS, "block_count": 4},
    "gptneox": {**LLAMA, **_NORM, "use_parallel_residual": True},
    "dots1": {**_ROUTED, "expert_weights_scale": 1.0},
}
"""Metadata of tiny models beside those of llamacpp_runs; what follows a plus is no part of an architecture's name."""

_NOT_ASKED_FOR: dict[str, Tensors] = {
    **{name: {"blk.0.attn_norm.weight": ("F32", (256,))} for name in ("qwen35", "qwen3next+mtp")},
    "glm4moe": {"blk.0.attn_norm.weight": ("F32", (256,)), "blk.3.nextn.eh_proj.weight": ("F16", (256, 512))},
    "phi3": {f"rope_factors_{which}.weight": ("F32", (32,)) for which in ("long", "short")},
    "llama": {"rope_freqs.weight": ("F32", (32,))},
    "exaone4": {"rope_freqs.weight": ("F32", (32,))},
}
"""Tensors that llama.cpp takes but does not miss."""

KINDS = ("Q4_K", "Q8_0", "Q4_0", "Q6_K", "MXFP4", "IQ4_NL", "Q5_K", "Q2_K", "IQ3_S", "Q5_1")

SPECIAL: dict[str, tuple[str, dict[str, Any], Tensors]] = {
    **{
        f"whole {kind}{' tied' * tied}": ("llama", LLAMA, llama_tensors(kind=kind, tied=tied))
        for kind in (*KINDS, "TQ1_0", "NVFP4", "BF16")
        for tied in (False, True)
    },
    **{
        f"rows of 320 {kind}": (
            "llama",
            {
                **LLAMA,
                "embedding_length": 320,
                "feed_forward_length": 544,
                "rope.dimension_count": 80,
                "vocab_size": 509,
            },
            {
                name: (t if t == "F32" else kind, tuple({256: 320, 512: 544, 128: 160}[n] for n in shape))
                for name, (t, shape) in llama_tensors(kind=kind, tied=True).items()
                if name != "token_embd.weight"
            }
            | {"token_embd.weight": (kind, (509, 320))},
        )
        for kind in ("Q4_0", "Q8_0", "MXFP4", "IQ4_NL")
    },
}
"""Files of every type, with rows that are and are not whole multiples of 512, with a head of their own and without."""


def quantised(tensors: Tensors, kind: str) -> Tensors:
    """Matrices in blocks of ``kind`` where their rows divide, as no quantiser would leave them."""
    block = BY_NAME[kind].block_elements
    return {
        name: (kind if own == "F16" and shape[-1] % block == 0 else own, shape)
        for name, (own, shape) in tensors.items()
    }


def files() -> Iterator[tuple[str, str, dict[str, Any], Tensors, int]]:
    """Every recorded file: its name, architecture, metadata, tensors, and how many of them a part of a set holds."""
    known = {case["architecture"]: case["tensors"] for case in json.loads(llamacpp_runs.DATA.read_text())["cases"]}
    known |= json.loads(DATA.read_text())["tensors"]
    metadata = llamacpp_runs.ARCHITECTURES | ARCHITECTURES
    for index, (name, own) in enumerate(known.items()):
        tensors = {key: (kind, tuple(shape)) for key, (kind, shape) in own.items()} | _NOT_ASKED_FOR.get(name, {})
        architecture, kind = name.partition("+")[0], KINDS[index % len(KINDS)]
        yield name, architecture, metadata[name], tensors, 0
        yield f"{name} {kind}", architecture, metadata[name], quantised(tensors, kind), 0
    for name, (architecture, own_metadata, tensors) in SPECIAL.items():
        yield name, architecture, own_metadata, tensors, 0
    for kind in ("Q4_K", "Q8_0"):
        yield f"parts of {kind}", "llama", LLAMA, llama_tensors(kind=kind, tied=True), 6


def write(folder: Path, architecture: str, metadata: dict[str, Any], tensors: Tensors, part: int) -> Path:
    """The file, or the first of its set."""
    if not part:
        return write_gguf(folder / "model.gguf", architecture, metadata, tensors)
    names = list(tensors)
    parts = [names[first : first + part] for first in range(0, len(names), part)]
    for number, own in enumerate(parts):
        said = {"split.no": number, "split.count": len(parts), "split.tensors.count": len(names)}
        path = folder / f"model-{number + 1:05d}-of-{len(parts):05d}.gguf"
        write_gguf(path, architecture, metadata | said, {name: tensors[name] for name in own})
    return folder / f"model-00001-of-{len(parts):05d}.gguf"


_SMALL = {
    **{"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1280, "vocab_size": 2000},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64},
}

HUB: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "llama": ("llama-3.2-1b", "Q4_K_M", {"rope_scaling": PUBLISHED["llama-3.1-8b"]["rope_scaling"]}),
    "llama as converted": ("llama-3.2-1b", None, {}),
    "llama in ternary": ("llama-3.2-1b", "TQ1_0", {}),
    "qwen3": ("qwen3-8b", "Q4_0", {}),
    "qwen3_moe": ("qwen3-30b-a3b", "IQ4_NL", {"num_experts": 8, "moe_intermediate_size": 256}),
    "mixtral": ("mixtral-8x7b", "Q5_K_M", {}),
    "gemma2": ("gemma-2-9b", "Q8_0", {}),
    "starcoder2": ("starcoder2-7b", "Q6_K", {}),
    "bloom": ("bloom-176b", "Q4_K_M", {"n_layer": 4, "n_head": 8}),
    "gpt2": ("gpt2-xl", "Q8_0", {"n_layer": 4, "n_embd": 512, "n_head": 8, "n_ctx": 1024}),
    "nemotron_h": (
        "nemotron-3-nano-30b-a3b",
        "Q4_K_M",
        {"num_hidden_layers": 52, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
        | {"moe_shared_expert_intermediate_size": 256},
    ),
}
"""Models of the catalogue made small, and the mixture that they are quantised to."""


def configs() -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Every model that was converted: its name, its mixture, and its config."""
    for name, (known, mixture, own) in HUB.items():
        plain = resolve(known).config.items()
        config = {key: value for key, value in plain if key not in ("quantization_config", "rope_scaling")}
        yield name, mixture, {**config, **{key: n for key, n in _SMALL.items() if key in config}, **own}


def convert(config: dict[str, Any], folder: Path, path: Path) -> None:
    """What convert_hf_to_gguf.py writes of a sparse checkpoint, with a hole for its tensors and no vocabulary."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from gguf import LlamaFileType

    with sparse_checkpoint(config, dtype="bfloat16", folder=folder) as checkpoint:
        (checkpoint.path / "config.json").write_text(json.dumps(config))
        hparams = config | ModelBase.load_hparams(checkpoint.path, False)
        made = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        made.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("no_vocab")
        made.no_mtp = True
        model = made(checkpoint.path, LlamaFileType.MOSTLY_BF16, path, eager=False, hparams=hparams)
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
        model.gguf_writer.add_vocab_size(config["vocab_size"])
        model.gguf_writer.write_header_to_file(path=path)
        model.gguf_writer.write_kv_data_to_file()
        model.gguf_writer.write_ti_data_to_file()
        sizes = [info.nbytes for tensors in model.gguf_writer.tensors for info in tensors.values()]
        model.gguf_writer.close()
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) + sum(size + 64 for size in sizes) + 64)


def settings(metadata: dict[str, Any]) -> Iterator[tuple[str, int, bool, int]]:
    """Backend, layers on the GPU, whether the file is mapped, layers with experts on the host."""
    blocks = metadata["block_count"]
    for backend in ("rpc", "cuda"):
        yield from ((backend, layers, True, 0) for layers in sorted({0, 1, (blocks + 1) // 2, blocks, 99}))
        yield from ((backend, layers, False, 0) for layers in sorted({0, (blocks + 1) // 2, 99}))
        if "expert_count" in metadata:
            yield from ((backend, 99, mmap, 1) for mmap in (True, False))
    yield from (("cpu", 99, mmap, 0) for mmap in (True, False))


HUB_SETTINGS = (
    *(("cuda", 99, True, 0), ("cuda", 99, True, 2), ("cuda", 2, True, 0), ("cuda", 0, True, 0), ("cuda", 3, False, 0)),
    *(("rpc", 99, True, 2), ("rpc", 2, True, 0), ("cpu", 0, True, 0)),
)


def record(sources: Path, build: Path, cuda: Path, null: Path) -> None:
    """Write what llama.cpp holds of every file."""
    with tempfile.TemporaryDirectory() as name, rpc_server(build) as endpoint:
        folder = Path(name)
        loader, path = Loader(sources, build, folder), folder / "model.gguf"
        found = {
            own: discover(loader, own.partition("+")[0], metadata, _NOT_ASKED_FOR.get(own, {}), path)
            for own, metadata in ARCHITECTURES.items()
        }
        devices = {
            "cpu": {},
            "rpc": {"device": endpoint},
            "cuda": {"device": str(cuda), "LD_PRELOAD": str(null / "libnullcuda.so"), "LD_LIBRARY_PATH": str(null)},
        }
        head = {"llama.cpp": "0.5.0 (0c1e57098)", "ggml": "0.25.3", "tensors": found}
        DATA.write_text(json.dumps(head))
        runs: dict[str, list[Any]] = {}
        for own, architecture, metadata, tensors, part in files():
            path = write(folder, architecture, metadata, tensors, 0)
            if part:  # parts say their numbers in 16 bits, which write_gguf does not
                split = [build / "bin" / "llama-gguf-split", "--split-max-tensors", str(part), path, folder / "part"]
                subprocess.run(split, check=True, stdout=subprocess.DEVNULL)
                (path,) = folder.glob("part-00001-of-*.gguf")
            rows = runs[own] = []
            for backend, layers, mmap, experts in settings(metadata):
                log = loader.log(path, layers=layers, mmap=mmap, experts=experts, **devices[backend])
                rows.append([backend, layers, mmap, experts, buffers(log)])
            for written in folder.glob("*.gguf"):
                written.unlink()
            print(own, rows[0], file=sys.stderr)
        hub: dict[str, list[Any]] = {}
        for own, mixture, config in configs():
            path = folder / "converted.gguf"
            convert(config, folder, path)
            if mixture is not None:
                done = [build / "bin" / "llama-quantize", path, folder / "quantised.gguf", mixture]
                subprocess.run(done, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                path = folder / "quantised.gguf"
            rows = hub[own] = []
            for backend, layers, mmap, experts in HUB_SETTINGS if mixture else HUB_SETTINGS[:1]:
                log = loader.log(path, layers=layers, mmap=mmap, experts=experts, **devices[backend])
                rows.append([backend, layers, mmap, experts, buffers(log)])
            print(own, rows[0], file=sys.stderr)
        parts = {"tensors": found, "runs": runs, "hub": hub}
        text = ",\n".join(f' "{key}": {{\n{_lines(part)}\n }}' for key, part in parts.items())
        DATA.write_text(f'{{\n "llama.cpp": "0.5.0 (0c1e57098)", "ggml": "0.25.3",\n{text}\n}}\n')


def _lines(part: dict[str, Any]) -> str:
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(row, separators=(',', ':'))}" for key, row in part.items())


if __name__ == "__main__":
    record(*(Path(argument).resolve() for argument in sys.argv[1:5]))
