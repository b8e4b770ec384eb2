r"""The compute buffers that the real llama.cpp reserves for models of real sizes, to the byte.

`python tests/record_llamacpp_compute.py LLAMA_CPP BUILD CUDA_LIBRARY NULL_DEVICE [MODEL...]`, with
PYTHONPATH=.:LLAMA_CPP:LLAMA_CPP/gguf-py, writes tests/data/llamacpp/compute.json.

The files are those of record_llamacpp_weights.py, whose docstring says how they are built, but CUDA_LIBRARY also has
fattn.cu and topk-moe.cu, which decide what flash attention and the experts' router need:

    flags="-std=c++17 -O0 -arch=sm_80 -cudart none -extended-lambda -Xcompiler -fPIC -DGGML_BACKEND_SHARED -DGGML_SHARED
        -DGGML_CUDA_PEER_MAX_BATCH_SIZE=128 -Iggml/include -Iggml/src -Iggml/src/ggml-cuda"
    for k in F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 BF16; do for v in F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 BF16; do
        case $k-$v in Q4_0-Q4_0|Q8_0-Q8_0|F16-F16|BF16-BF16) on=1;; *) on=0;; esac
        flags="$flags -DGGML_CUDA_FA_${k}_$v=$on"
    done; done
    for name in ggml-cuda fattn topk-moe; do nvcc $flags -c ggml/src/ggml-cuda/$name.cu -o $name.o; done
    nm -u fattn.o | awk '/vec_case/ {print ".globl " $2 "\n" $2 ":"} END {print " ret"}' > vector.s && gcc -c vector.s
    g++ -shared -o CUDA_LIBRARY ggml-cuda.o fattn.o topk-moe.o vector.o -Wl,-z,lazy -LBUILD/bin -lggml-base \
        -Wl,-rpath,BUILD/bin

Models are those of the catalogue, converted by llama.cpp's own converter, with the types that a mixture gives their
tensors; and files of architectures that the catalogue lacks. Weights and caches are not allocated (`no_alloc`):
llama.cpp builds and schedules its graphs, and reserves its compute buffers for them.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

from llamacpp_runs import _GRANITE, _HEADS, _MISSING, _NORM, _PLAIN, _RMS, _SHAPE, _block
from made_gguf import LLAMA, Tensors, write_gguf

from analytic.formats.gguf_mixtures import quantized
from analytic.models.as_gguf import converted, facts_of
from analytic.models.resolve import resolve

DATA = Path(__file__).parent / "data" / "llamacpp" / "compute.json"

_PROBE = r"""
#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"
#include "llama.h"
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>

static int number(std::map<std::string, std::string> & given, const char * key, int otherwise) {
    return given.count(key) ? atoi(given[key].c_str()) : otherwise;
}

static ggml_type type(std::map<std::string, std::string> & given, const char * key) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * name = ggml_type_name((ggml_type) i);
        if (name && given[key] == name) return (ggml_type) i;
    }
    return GGML_TYPE_F16;
}

int main(int, char ** argv) {  // MODEL CUDA_LIBRARY; each line of the input: KEY=VALUE ...
    llama_log_set([](ggml_log_level, const char * text, void *) { fputs(text, stderr); }, nullptr);
    if (argv[2][0]) {
        void * library = dlopen(argv[2], RTLD_LAZY | RTLD_GLOBAL);
        ggml_backend_register(((ggml_backend_reg_t (*)()) dlsym(library, "ggml_backend_cuda_reg"))());
    }
    char line[4096];
    while (fgets(line, sizeof line, stdin)) {
        std::map<std::string, std::string> given;
        for (char * word = strtok(line, " \n"); word; word = strtok(nullptr, " \n")) {
            char * equals = strchr(word, '=');
            given[std::string(word, equals)] = equals + 1;
        }
        auto own = llama_model_default_params();
        own.n_gpu_layers = number(given, "gpu_layers", 999);
        own.no_alloc = true;
        own.load_mode = LLAMA_LOAD_MODE_NONE;
        std::vector<float> split(128, 0.0f);
        std::string text = given["tensor_split"];
        int gpus = 0;
        for (char * word = strtok(text.data(), ","); word; word = strtok(nullptr, ",")) split[gpus++] = atof(word);
        if (gpus) own.tensor_split = split.data();
        std::vector<std::string> patterns;
        for (int i = 0; i < number(given, "cpu_moe_layers", 0); ++i) {
            patterns.push_back("blk\\." + std::to_string(i) + "\\.ffn_(up|down|gate|gate_up)_(ch|)exps");
        }
        std::vector<llama_model_tensor_buft_override> overrides;
        for (const auto & pattern : patterns) overrides.push_back({ pattern.c_str(), ggml_backend_cpu_buffer_type() });
        overrides.push_back({ nullptr, nullptr });
        if (!patterns.empty()) own.tensor_buft_overrides = overrides.data();
        auto context = llama_context_default_params();
        context.n_ctx = number(given, "ctx_size", 4096);
        context.n_batch = number(given, "batch_size", 2048);
        context.n_ubatch = number(given, "ubatch_size", 512);
        context.n_seq_max = number(given, "parallel", 1);
        context.kv_unified = number(given, "kv_unified", 0);
        context.swa_full = number(given, "swa_full", 0);
        context.n_outputs_max = number(given, "max_outputs", context.n_seq_max);
        context.flash_attn_type = number(given, "flash_attention", 1) ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                                                      : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context.type_k = type(given, "cache_type_k");
        context.type_v = type(given, "cache_type_v");
        llama_model * model = llama_model_load_from_file(argv[1], own);
        llama_context * made = model ? llama_init_from_model(model, context) : nullptr;
        printf("{");
        if (made) {  // as sched_reserve does; what it does without memory forgets where norms are to go
            const uint32_t tokens = std::min(llama_n_ctx(made), llama_n_ubatch(made)), slots = context.n_seq_max;
            const uint32_t outputs = std::min(tokens, context.n_outputs_max);
            llama_graph_reserve(made, tokens, slots, outputs);
            llama_graph_reserve(made, slots, slots, slots);
            llama_graph_reserve(made, tokens, slots, outputs);
            std::map<std::string, std::array<size_t, 3>> bytes;
            for (const auto & [buffer, sizes] : made->memory_breakdown()) {
                bytes[ggml_backend_buft_name(buffer)] = { sizes.model, sizes.context, 0 };
            }
            ggml_backend_sched_t sched = made->get_sched();
            for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
                ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
                const char * name = ggml_backend_buft_name(ggml_backend_sched_get_buffer_type(sched, backend));
                bytes[name][2] = ggml_backend_sched_get_buffer_size(sched, backend);
            }
            const char * comma = "";
            for (const auto & [name, sizes] : bytes) {
                printf("%s\"%s\": [%zu, %zu, %zu]", comma, name.c_str(), sizes[0], sizes[1], sizes[2]);
                comma = ", ";
            }
        }
        printf("}\n");
        fflush(stdout);
        if (made) llama_free(made);
        if (model) llama_model_free(model);
    }
    _Exit(0);
}
"""

_SEVERAL = r"""
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
static __thread int current;
static int devices(void) { const char * n = getenv("NULLCUDA_DEVICES"); return n ? atoi(n) : 1; }
cudaError_t cudaGetDeviceCount(int * n) { *n = devices(); return 0; }
cudaError_t cudaGetDevice(int * n) { *n = current; return 0; }
cudaError_t cudaSetDevice(int n) { current = n; return n < devices() ? 0 : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp * p, int n) {
    cudaError_t (*own)(struct cudaDeviceProp *, int) = dlsym(RTLD_NEXT, "cudaGetDeviceProperties");
    cudaError_t error = own(p, 0);
    p->pciBusID = n + 1;
    return error;
}
cudaError_t cudaDeviceGetPCIBusId(char * text, int size, int n) {
    snprintf(text, size, "0000:%02x:00.0", n + 1);
    return 0;
}
"""
"""The null device as several (each on a bus of its own, or llama.cpp takes them for one)."""


class Probe:
    """llama.cpp without memory, in a process a model."""

    def __init__(self, sources: Path, build: Path, cuda: Path, null: Path, folder: Path) -> None:
        self.program, self.cuda, self.null, self.several = folder / "probe", cuda, null, folder / "several.so"
        (folder / "probe.cpp").write_text(_PROBE)
        (folder / "several.c").write_text(_SEVERAL)
        includes = [f"-I{sources / part}" for part in ("include", "src", "ggml/include")]
        libraries = [f"-L{build}/bin", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{build}/bin"]
        compiled = ["g++", "-std=c++17", folder / "probe.cpp", *includes, *libraries, "-ldl", "-o", self.program]
        subprocess.run(compiled, check=True)
        headers = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
        shared = ["gcc", "-shared", "-fPIC", f"-I{headers}", folder / "several.c", "-ldl", "-o", self.several]
        subprocess.run(shared, check=True)

    def log(self, path: Path) -> str:
        """What loading a file prints."""
        command, line = [str(self.program), str(path), ""], "ctx_size=512\n"
        return subprocess.run(command, input=line, capture_output=True, text=True, errors="replace").stderr

    def run(self, path: Path, runs: list[dict[str, Any]], *, gpus: int) -> list[dict[str, list[int]]]:
        """Model, context and compute bytes of each buffer type; nothing where llama.cpp refuses."""
        preloaded = {"LD_PRELOAD": f"{self.several} {self.null / 'libnullcuda.so'}", "LD_LIBRARY_PATH": str(self.null)}
        env = os.environ | ({"NULLCUDA_DEVICES": str(gpus)} | preloaded if gpus else {})
        lines = "".join(" ".join(f"{key}={_word(value)}" for key, value in run.items()) + "\n" for run in runs)
        command = [str(self.program), str(path), str(self.cuda) if gpus else ""]
        done = subprocess.run(command, input=lines, capture_output=True, text=True, errors="replace", env=env)
        made = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(made) == len(runs), done.stderr[-2000:]
        return made


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def places(buffers: dict[str, list[int]]) -> dict[str, list[int]]:
    """Model, context and compute bytes by GPU and, of all its buffer types, the host."""
    made: dict[str, list[int]] = {}
    for name, sizes in buffers.items():
        place = re.sub(r"^CUDA(\d+)$", r"GPU\1", name) if re.match(r"CUDA\d", name) else "host"
        made[place] = [one + more for one, more in zip(made.get(place, [0, 0, 0]), sizes, strict=True)]
    return made


CATALOGUE: dict[str, str | None] = {
    "llama-3.1-8b": "Q4_K_M",
    "llama-3.1-70b": "Q4_K_M",
    "mixtral-8x7b": "Q4_K_M",
    "qwen2.5-7b": "Q8_0",
    "qwen3-8b": "Q4_K_M",
    "qwen3-30b-a3b": "Q4_K_M",
    "qwen3-next-80b-a3b": "Q4_K_M",
    "qwen3.5-9b": "Q4_K_M",
    "qwen3.5-35b-a3b": "Q4_K_M",
    "gemma-7b": "Q4_K_M",
    "gemma-2-9b": "Q4_K_M",
    "phi-3-mini": "Q4_K_M",
    "phi-2": "Q8_0",
    "deepseek-v2-lite": "Q4_K_M",
    "deepseek-v2": "Q4_K_M",
    "glm-4-9b": "Q4_K_M",
    "glm-4.5-air": "Q4_K_M",
    "falcon-40b": "Q4_K_M",
    "starcoder2-7b": "Q4_K_M",
    "command-r": "Q4_K_M",
    "olmo-2-7b": "Q4_K_M",
    "olmo-3-7b": "Q4_K_M",
    "bloom-176b": "Q4_K_M",
    "gpt2-xl": None,
    "pythia-12b": "Q8_0",
    "granite-3.3-8b": "Q4_K_M",
    "nemotron-3-nano-30b-a3b": "Q4_K_M",
    "llama-4-scout": "Q4_K_M",
    "seed-oss-36b": "Q4_K_M",
    "smollm3-3b": "Q4_K_M",
    "stablelm-3b": "Q8_0",
}
"""Models of the catalogue, whole, and their mixtures; None as converted."""

_MAMBA = {"ssm.conv_kernel": 4, **_RMS, "attention.head_count": 0, "feed_forward_length": 0, "context_length": 65536}
_HYBRID = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 128, "context_length": 131072}

FILES: dict[str, dict[str, Any]] = {
    "gpt-oss": {
        **{**LLAMA, **_HEADS, "block_count": 6, "embedding_length": 2880, "vocab_size": 201088},
        **{"attention.head_count": 64, "attention.head_count_kv": 8, "attention.sliding_window": 128},
        **{"expert_count": 32, "expert_used_count": 4, "expert_feed_forward_length": 2880, "feed_forward_length": 2880},
    },
    "gemma3": {
        **{**LLAMA, "block_count": 12, "embedding_length": 3840, "feed_forward_length": 15360, "vocab_size": 262144},
        **{"attention.head_count": 16, "attention.head_count_kv": 8, "attention.sliding_window": 1024},
        **{"attention.key_length": 256, "attention.value_length": 256},
    },
    "minimax-m2": {
        **{**LLAMA, "block_count": 4, "embedding_length": 3072, "feed_forward_length": 1536, "vocab_size": 200064},
        **{"attention.head_count": 48, "attention.head_count_kv": 8, "rope.dimension_count": 64},
        **{"attention.key_length": 128, "attention.value_length": 128, "expert_gating_func": 2},
        **{"expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 1536},
    },
    "mamba": {
        **{**_MAMBA, "block_count": 4, "embedding_length": 2560, "vocab_size": 50280},
        **{"ssm.inner_size": 5120, "ssm.state_size": 16, "ssm.time_step_rank": 160},
    },
    "mamba2": {
        **{**_MAMBA, "block_count": 4, "embedding_length": 4096, "vocab_size": 32768},
        **{"ssm.inner_size": 8192, "ssm.state_size": 128, "ssm.time_step_rank": 128, "ssm.group_count": 8},
    },
    "falcon-h1": {
        **{**_HYBRID, "block_count": 4, "embedding_length": 3072, "feed_forward_length": 12288, "vocab_size": 130048},
        **{"attention.head_count": 12, "attention.head_count_kv": 2, "ssm.conv_kernel": 4, "ssm.group_count": 1},
        **{"attention.key_length": 128, "attention.value_length": 128},
        **{"ssm.inner_size": 3072, "ssm.state_size": 256, "ssm.time_step_rank": 24},
    },
    "granitehybrid": {
        **{**_HYBRID, **_GRANITE, "block_count": 6, "embedding_length": 1536, "vocab_size": 100352},
        **{"feed_forward_length": 512, "attention.head_count": 12, "attention.head_count_kv": [0, 0, 4, 0, 0, 4]},
        **{"expert_count": 64, "expert_used_count": 6, "expert_shared_feed_forward_length": 1024},
        **{"ssm.inner_size": 3072, "ssm.state_size": 128, "ssm.time_step_rank": 48, "ssm.group_count": 1},
        **{"ssm.conv_kernel": 4, "rope.scaling.finetuned": False},
    },
    "lfm2": {
        **{**LLAMA, "block_count": 6, "embedding_length": 2048, "feed_forward_length": 8192, "vocab_size": 65536},
        **{"attention.head_count": 32, "attention.head_count_kv": [0, 0, 8, 0, 0, 8], "shortconv.l_cache": 3},
    },
    "glm4": {
        **{**LLAMA, "block_count": 4, "embedding_length": 6144, "feed_forward_length": 23040, "vocab_size": 151552},
        **{"attention.head_count": 48, "attention.head_count_kv": 2},
        **{"attention.key_length": 128, "attention.value_length": 128},
    },
    "cohere2": {
        **{**LLAMA, **_NORM, "block_count": 8, "embedding_length": 4096, "feed_forward_length": 14336},
        **{"vocab_size": 256000, "attention.head_count": 32, "attention.head_count_kv": 8, "logit_scale": 0.25},
        **{"attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128},
        **{"attention.sliding_window": 4096},
    },
    "deepseek2": {
        **{**LLAMA, "block_count": 5, "embedding_length": 7168, "feed_forward_length": 18432, "vocab_size": 129280},
        **{"attention.head_count": 128, "attention.head_count_kv": 1, "attention.q_lora_rank": 1536},
        **{"attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512},
        **{"attention.key_length_mla": 192, "attention.value_length_mla": 128, "leading_dense_block_count": 3},
        **{"expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1},
        **{"expert_weights_scale": 2.5, "expert_gating_func": 2, "expert_weights_norm": True},
        **{"expert_group_count": 8, "expert_group_used_count": 4},
    },
}
"""Metadata of published models of the architectures that the catalogue or the converter lacks, with fewer layers:
gpt-oss 20B, Gemma 3 12B, MiniMax M2, Mamba 2.8B, Mamba-Codestral 7B, Falcon-H1 7B, Granite 4.0 H Tiny, LFM2 1.2B, GLM-4
32B 0414, Command R7B, DeepSeek V3."""

_UNASKED: dict[str, Tensors] = {
    "falcon-h1": {f"blk.{layer}.ssm_conv1d.bias": ("F32", (3072 + 2 * 256,)) for layer in range(4)},
    "granitehybrid": {f"blk.{layer}.ssm_conv1d.bias": ("F32", (3072 + 2 * 128,)) for layer in (0, 1, 3, 4)},
    "minimax-m2": {f"blk.{layer}.exp_probs_b.bias": ("F32", (256,)) for layer in range(4)},
    "deepseek2": {f"blk.{layer}.exp_probs_b.bias": ("F32", (256,)) for layer in (3, 4)},
}
"""Tensors that llama.cpp takes but does not miss."""

_SPREAD: tuple[dict[str, Any], ...] = (
    {"ctx_size": 4096},
    {"ctx_size": 32768, "ubatch_size": 2048, "max_outputs": 2048},
    {"ctx_size": 16384, "parallel": 4, "flash_attention": False},
    {"ctx_size": 32768, "parallel": 4, "kv_unified": True, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    {"ctx_size": 512, "ubatch_size": 128, "flash_attention": False, "max_outputs": 128},
    {"ctx_size": 8192, "gpu_layers": 10},
    {"ctx_size": 8192, "backend": "cpu"},
    {"ctx_size": 16384, "tensor_split": [1, 1]},
    {"ctx_size": 8192, "tensor_split": [3, 1], "parallel": 2, "max_outputs": 512},
)
_EXPERTS: dict[str, Any] = {"ctx_size": 8192, "cpu_moe_layers": 999}


def runs_of(experts: bool) -> list[dict[str, Any]]:
    """The settings of one model, in the words of `analytic.engines.llamacpp.graph.compute_buffers`."""
    return [*_SPREAD, *([{**_EXPERTS, "cpu_moe_layers": 10}] if experts else [])]


def quantised_file(name: str, mixture: str | None, folder: Path) -> tuple[Path, bool]:
    """A catalogue model as converted, its tensors then of the mixture's types (the data is a hole); has it experts?"""
    from gguf import GGUFReader
    from record_llamacpp_weights import convert

    model = resolve(name)
    plain = folder / "converted.gguf"
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    geometry = model.geometry
    convert({"vocab_size": geometry.vocab_size, "n_ctx": geometry.max_position_embeddings, **config}, folder, plain)
    reader = GGUFReader(plain)
    made = converted(model, dtype="bfloat16")
    if mixture is not None:
        made = quantized(made, mixture, facts_of(model))
    theirs = {tensor.name: tuple(int(size) for size in tensor.shape[::-1]) for tensor in reader.tensors}
    assert {tensor.name: prod(tensor.shape) for tensor in made} == {key: prod(size) for key, size in theirs.items()}
    metadata = {}
    prefix = reader.fields["general.architecture"].contents() + "."
    for key, value in reader.fields.items():
        if key.startswith(prefix):
            metadata[key.removeprefix(prefix)] = value.contents()
    metadata["vocab_size"] = theirs["token_embd.weight"][0]
    types = {tensor.name: tensor.type.name for tensor in made}
    tensors = {key: (types[key], size) for key, size in theirs.items()}
    path = write_gguf(folder / "model.gguf", prefix[:-1], metadata, tensors)
    plain.unlink()
    return path, any("_exps" in tensor for tensor in theirs)


def discovered(probe: Probe, architecture: str, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that llama.cpp wants of a file of `FILES`, by its own errors (see llamacpp_runs)."""
    metadata = FILES[architecture]
    tensors = {"token_embd.weight": ("F16", (metadata["vocab_size"], metadata["embedding_length"]))}
    tensors |= _UNASKED.get(architecture, {})
    for _ in range(900):
        log = probe.log(write_gguf(path, architecture, metadata, tensors))
        if shape := _SHAPE.search(log):
            sizes = tuple(int(n) for n in shape[2].split(","))
            while len(sizes) > 1 and sizes[-1] == 1:
                sizes = sizes[:-1]
            plain = len(sizes) == 1 or _PLAIN.search(shape[1])
            tensors[shape[1]] = ("F32" if plain else "F16", sizes[::-1])
        elif missing := _MISSING.search(log):
            alike = (name for name in tensors if _block(name) == _block(missing[1]))
            tensors[missing[1]] = tensors.get(next(alike, ""), ("F32", (1,)))
        elif "n_ctx_seq" in log:
            return tensors
        else:
            raise RuntimeError(f"{architecture}: {log[-500:]}")
    raise RuntimeError(f"{architecture}: no end of tensors")


def record(sources: Path, build: Path, cuda: Path, null: Path, only: list[str]) -> None:
    """Write what llama.cpp would allocate of every model."""
    known = json.loads(DATA.read_text()) if DATA.exists() and only else {"catalogue": {}, "files": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        probe = Probe(sources, build, cuda, null, folder)
        for own, mixture in CATALOGUE.items():
            if only and own not in only:
                continue
            path, experts = quantised_file(own, mixture, folder)
            known["catalogue"][own] = {"quantization": mixture, "runs": _runs(probe, path, experts)}
            path.unlink()
            _save(known)
            print(own, known["catalogue"][own]["runs"][0], file=sys.stderr)
        for own, metadata in FILES.items():
            if only and own not in only:
                continue
            path = folder / "model.gguf"
            tensors = discovered(probe, own, path)
            runs = _runs(probe, path, "expert_count" in metadata)
            known["files"][own] = {"tensors": tensors, "runs": runs}
            _save(known)
            print(own, runs[0], file=sys.stderr)


def _runs(probe: Probe, path: Path, experts: bool) -> list[list[Any]]:
    wanted = runs_of(experts)
    made: list[list[Any]] = []
    for run in wanted:
        gpus = 0 if run.get("backend") == "cpu" else len(run.get("tensor_split", [1]))
        asked = {key: value for key, value in run.items() if key != "backend"}
        (buffers,) = probe.run(path, [asked], gpus=gpus)
        made.append([run, places(buffers)])
    return made


def _save(known: dict[str, Any]) -> None:
    parts = []
    for part in ("catalogue", "files"):
        rows = (f'  "{name}": {json.dumps(row, separators=(",", ":"))}' for name, row in known[part].items())
        parts.append(f' "{part}": {{\n' + ",\n".join(rows) + "\n }")
    DATA.write_text('{\n "llama.cpp": "0.5.0 (0c1e57098)", "ggml": "0.25.3",\n' + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    record(*(Path(argument).resolve() for argument in sys.argv[1:5]), sys.argv[5:])
