"""What llama.cpp's own converter and `llama-quantize` make of whole models: every tensor's type, without a weight.

`python tests/record_gguf_mixtures.py LLAMA_CPP QUANTIZE [MODEL…]`, with the source tree of llama.cpp and its built
`llama-quantize`, converts sparse checkpoints of the catalogue's configs, asks `llama-quantize --dry-run` for each
mixture, and writes tests/data/gguf_mixtures.json.
"""

import json
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from analytic.models.resolve import resolve
from profiler.sparse import sparse_checkpoint

DATA = Path(__file__).parent / "data" / "gguf_mixtures.json"

MODELS = (
    "llama-3.1-8b llama-2-70b llama-3.2-1b llama-4-scout mistral-7b-v0.3 mixtral-8x7b qwen2.5-7b qwen2.5-0.5b "
    "qwen3-8b qwen3-0.6b qwen3-30b-a3b qwen3-next-80b-a3b qwen3.5-9b qwen3.5-35b-a3b gemma-7b gemma-2-9b "
    "gemma-3-4b gemma-3-27b gemma-4-26b-a4b phi-2 phi-3-mini phi-3-medium phi-4-mini phi-3.5-moe starcoder2-7b "
    "stablelm-2-1.6b stablelm-3b gpt2-xl pythia-6.9b gpt-neox-20b falcon-7b falcon-40b falcon3-7b bloom-176b "
    "command-r aya-23-8b olmo-2-7b olmo-3-7b granite-3.3-8b deepseek-v2-lite deepseek-v2 deepseek-v3 kimi-k2 "
    "glm-4-9b glm-4.5-air glm-4.5 gpt-oss-20b smollm3-3b nemotron-3-nano-30b-a3b hunyuan-7b seed-oss-36b "
    "minimax-m2.5 apertus-8b ministral-8b devstral-small yi-34b llama-3.1-405b"
)

PUBLISHED: dict[str, dict[str, Any]] = {
    "falcon-7b": {"num_kv_heads": 1},
    "gpt2-xl": {"n_ctx": 1024},
    "gpt-neox-20b": {"rotary_pct": 0.25},
    "llama-3.1-8b": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "phi-3.5-moe": {
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0] * 64,
            "short_factor": [1.0] * 64,
            "long_mscale": 1.25,
            "short_mscale": 1.25,
            "original_max_position_embeddings": 4096,
        },
    },
    "pythia-6.9b": {"rotary_pct": 0.25},
}
"""What published configs say and the catalogue leaves out; Falcon's shares one key/value head (multi_query)."""

GEMMA_3_TOKENS = 262_144
"""Its tokenizer's (llama.cpp, tests/snapshots/gemma-3-4b-it.schema); the config's vocab_size has rows to spare."""

MIXTURES = (
    "F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S IQ3_M "
    "IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0 MXFP4_MOE"
)

IMPORTANCE = "IQ3_XXS Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S"
"""Mixtures that `llama-quantize` refuses to make without an importance matrix."""

_TENSOR = re.compile(r"\] +(\S+) +- \[ *([\d, ]+)\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.MULTILINE)
_TOTAL = re.compile(r"quant size += +([\d.]+) MiB")


def convert(source: Path, target: Path) -> None:
    """Writes the header of the GGUF file that convert_hf_to_gguf.py would write, and a hole for its tensors."""
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    hparams = json.loads((source / "config.json").read_text()) | ModelBase.load_hparams(source, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    made = get_model_class(architecture)
    made.set_vocab = lambda self: None
    made.no_mtp = True
    bf16 = gguf.LlamaFileType.MOSTLY_BF16
    model = made(source, bf16, target, eager=False, hparams=hparams)
    writer = model.gguf_writer
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sizes = (info.nbytes for tensors in writer.tensors for info in tensors.values())
    writer.close()
    with target.open("r+b") as file:
        end = file.seek(0, 2)
        file.truncate(end + sum(size + 64 for size in sizes) + 64)


def quantized(quantize: str, path: Path, mixture: str) -> dict[str, Any] | str:
    """What ``llama-quantize --dry-run`` says: the tensors of each type, and MiB in all; or its error."""
    matrix = path.with_suffix(".imatrix")
    name, values = b"token_embd.weight", struct.pack("<f", 1.0)
    matrix.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 1, 1) + values)
    importance = ["--imatrix", str(matrix)] if mixture in IMPORTANCE.split() else []
    run = subprocess.run(
        [quantize, *importance, "--dry-run", str(path), mixture],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    total = _TOTAL.search(run.stdout + run.stderr)
    if run.returncode or not total:
        return next(line for line in (run.stdout + run.stderr).splitlines()[::-1] if line.strip())
    types = Counter((new or old).upper() for _, _, old, new in _TENSOR.findall(run.stdout + run.stderr))
    return {"mib": float(total[1]), "types": dict(sorted(types.items()))}


def main(source_tree: str, quantize: str, *names: str) -> None:
    """Records the models named, or all."""
    sys.path[:0] = [source_tree, f"{source_tree}/gguf-py"]
    records = json.loads(DATA.read_text())["models"] if names and DATA.exists() else {}
    for name in names or MODELS.split():
        try:
            records[name] = _record(name, quantize)
        except Exception as error:
            records[name] = {"refused": f"{type(error).__name__}: {error}"[:200]}
        print(name, str(records[name])[:150], flush=True)
        lines = (f"{json.dumps(name)}: {json.dumps(record, separators=(',', ':'))}" for name, record in records.items())
        DATA.write_text('{"llama.cpp": "0.5.0",\n"models": {\n' + ",\n".join(lines) + "\n}}\n")


def _record(name: str, quantize: str) -> dict[str, Any]:
    config = {key: value for key, value in resolve(name).config.items() if key != "quantization_config"}
    with (
        tempfile.TemporaryDirectory() as folder,
        sparse_checkpoint(config, dtype="bfloat16", folder=Path(folder)) as checkpoint,
    ):
        path = Path(folder) / "model.gguf"
        published = {**config, **PUBLISHED.get(name, {})}
        (checkpoint.path / "config.json").write_text(json.dumps(published))
        vocabulary = {str(token): token for token in range(GEMMA_3_TOKENS)}
        tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
        (checkpoint.path / "tokenizer.json").write_text(json.dumps(tokenizer))
        convert(checkpoint.path, path)
        return {
            "published": PUBLISHED.get(name, {}),
            "converted": _tensors(path),
            "mixtures": {mixture: quantized(quantize, path, mixture) for mixture in MIXTURES.split()},
        }


def _tensors(path: Path) -> list[list[Any]]:
    """[name, shape (columns last), type, how many] of the tensors that differ only in their block."""
    from gguf import GGUFReader

    alike = Counter(
        (re.sub(r"^blk\.\d+", "blk.{}", tensor.name), tuple(map(int, tensor.shape[::-1])), tensor.tensor_type.name)
        for tensor in GGUFReader(path).tensors
    )
    return [[name, shape, kind, count] for (name, shape, kind), count in sorted(alike.items())]


if __name__ == "__main__":
    main(*sys.argv[1:])
