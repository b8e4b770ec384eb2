"""Whole command lines of vLLM, read as vLLM 0.33.0 reads them (tests/record_vllm_options.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from analytic.engines.vllm.options import (
    GONE,
    GONE_IGNORED,
    GONE_MODELLED,
    IGNORED,
    MODELLED,
    OTHERS,
    STRUCTURE,
    UNMODELLED,
    options,
)
from analytic.engines.vllm.serve_line import read_serve_line
from analytic.errors import UsageError

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "serve_lines.json").read_text())["lines"]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: r["line"][11:60])
def test_a_line_is_read_as_vllm_reads_it(recorded: dict[str, Any]) -> None:
    if "refused" in recorded or recorded["model"] is None:
        with pytest.raises(UsageError):
            read_serve_line(recorded["line"])
        return
    line = read_serve_line(recorded["line"])
    assert line.model == recorded["model"]
    assert line.options == {name: value for name, value in recorded["values"].items() if name in MODELLED}
    named = {text.split()[0] for text in (*line.ignored, *line.unmodelled)}
    others = {name for name in recorded["values"] if name not in MODELLED}
    assert {name for name in others if not named & {*options()[name].names, *options()[name].off}} == set()


def test_recorded_lines_are_enough() -> None:
    assert len(RECORDED) >= 300
    assert sum("refused" in recorded for recorded in RECORDED) >= 10
    read = {name for recorded in RECORDED for name in recorded.get("values", {})}
    assert len(read & MODELLED) >= 0.9 * len(MODELLED)


def test_every_option_is_of_one_class() -> None:
    classes = (MODELLED, UNMODELLED, IGNORED, STRUCTURE)
    present = {name for name, option in options().items() if not option.is_gone}
    assert set().union(*classes) == present
    assert sum(len(names) for names in classes) == len(present) == 321
    assert {option.name for option in GONE} >= GONE_MODELLED | GONE_IGNORED
    assert not {option.name for option in GONE} & present


def test_flags_of_other_engines_are_not_vllms_own() -> None:
    names = {name for option in options().values() for name in (*option.names, *option.off)}
    assert not names & {flag for flags in OTHERS.values() for flag in flags}


SPELLINGS = (
    ("--max-model-len=32k", {"max_model_len": 32_000}),
    ("--max-model-len 32K", {"max_model_len": 32_768}),
    ("--max_model_len 25.6k", {"max_model_len": 25_600}),
    ("--max-model-len auto", {"max_model_len": -1}),
    ("--max-model-len -1", {"max_model_len": -1}),
    ("--max-num-batched-tokens 8k", {"max_num_batched_tokens": 8_000}),
    ("--kv-cache-memory-bytes 2G", {"kv_cache_memory_bytes": 2 * 2**30}),
    ("--kv-cache-memory 2g", {"kv_cache_memory_bytes": 2 * 10**9}),  # shortened
    ("--num-gpu-blocks-override None", {"num_gpu_blocks_override": None}),
    ("-tp 8 -pp 2 -dp 4", {"tensor_parallel_size": 8, "pipeline_parallel_size": 2, "data_parallel_size": 4}),
    ("-tp=8", {"tensor_parallel_size": 8}),
    ("--tensor-parallel 8", {"tensor_parallel_size": 8}),  # shortened
    ("--gpu-mem 0.5", {"gpu_memory_utilization": 0.5}),
    ("--device-memory-utilization 0.5", {"gpu_memory_utilization": 0.5}),
    ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
    ("--disable-prefix-caching", {"enable_prefix_caching": False}),
    ("--enable_prefix_caching", {"enable_prefix_caching": True}),
    ("-ep --enforce-eager", {"enable_expert_parallel": True, "enforce_eager": True}),
    ("-q awq", {"quantization": "awq"}),
    ("-qawq", {"quantization": "awq"}),
    ("-O3", {"optimization_level": "3"}),
    ("-O=1", {"optimization_level": "1"}),
    ("-O 0", {"optimization_level": "0"}),
    ("-cc.mode 3", {"compilation_config": {"mode": 3}}),
    (
        "--compilation-config.cudagraph_capture_sizes+ 1,2 -cc.max_cudagraph_capture_size=1k",
        {"compilation_config": {"max_cudagraph_capture_size": 1000}},
    ),
    (
        "--compilation_config.pass_config.fuse_norm_quant true --compilation_config.mode=3",
        {"compilation_config": {"pass_config": {"fuse_norm_quant": True}, "mode": 3}},
    ),
    ("""--hf-overrides '{"num_hidden_layers": 2}'""", {"hf_overrides": {"num_hidden_layers": 2}}),
    ("--cudagraph-capture-sizes 1 2 4", {"cudagraph_capture_sizes": [1, 2, 4]}),
    (
        """--speculative-config '{"method": "mtp", "num_speculative_tokens": 3}'""",
        {"speculative_config": {"method": "mtp", "num_speculative_tokens": 3}},
    ),
    ("--enable-lora --max-loras 4 --max-lora-rank 64", {"enable_lora": True, "max_loras": 4, "max_lora_rank": 64}),
)
"""As vllm/utils/argparse_utils.py documents them; ``-cc`` and the long name are objects of their own."""


@pytest.mark.parametrize(("words", "expected"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_spellings(words: str, expected: dict[str, Any]) -> None:
    assert read_serve_line(f"vllm serve Qwen/Qwen3-8B {words}").options == expected


LAUNCHES = (
    "vllm serve a/b -tp 2",
    "vllm serve -tp 2 a/b",
    "vllm serve --model a/b -tp 2",
    "vllm serve -tp 2 --model=a/b",
    "/opt/venv/bin/vllm serve a/b -tp 2",
    "vllm serve a/b \\\n  -tp 2",
    "vllm serve a/b ^\r\n  -tp 2",
    "vllm serve a/b `\n  -tp 2",
    "CUDA_VISIBLE_DEVICES=0,1 vllm serve a/b -tp 2",
    "env VLLM_USE_V1=1 nohup vllm serve a/b -tp 2 > log.txt 2>&1 &",
    "sudo vllm serve a/b -tp 2 | tee log.txt",
    "vllm serve a/b -tp 2; echo done",
    "python -m vllm.entrypoints.openai.api_server --model a/b -tp 2",
    "python3.12 -m vllm.entrypoints.openai.api_server -tp 2 --model a/b",
    "python -m vllm.entrypoints.cli.main serve a/b -tp 2",
    "uv run vllm serve a/b -tp 2",
    "docker run --runtime nvidia --gpus all -v $PWD/cache:/cache -p 8000:8000 --ipc=host "
    "vllm/vllm-openai:latest --model a/b -tp 2",
    "docker run --name vllm -e HF_TOKEN=x --rm vllm/vllm-openai:v0.11.2 a/b -tp 2",
    "docker run --gpus all nvcr.io/nvidia/vllm:26.08-py3 vllm serve a/b -tp 2",
    "podman run ghcr.io/x/vllm-openai:v0.9.0@sha256:0123abcd serve a/b -tp 2",
)


@pytest.mark.parametrize("text", LAUNCHES)
def test_ways_to_start_it(text: str) -> None:
    line = read_serve_line(text)
    assert (line.model, line.options) == ("a/b", {"tensor_parallel_size": 2})
    assert (line.ignored, line.unmodelled, line.notes) == ((), (), ())


def test_the_container_says_the_version_and_the_environment() -> None:
    line = read_serve_line("docker run -e VLLM_USE_V1=0 --env A=b -p 1:1 vllm/vllm-openai:v0.8.5.post1 --model a/b")
    assert line.version == "0.8.5.post1"
    assert line.environment == {"VLLM_USE_V1": "0", "A": "b"}
    assert read_serve_line("A=1 B= vllm serve a/b").environment == {"A": "1", "B": ""}
    assert read_serve_line("docker run vllm/vllm-openai a/b").version is None


def test_what_has_no_effect_and_what_is_not_modelled_is_named() -> None:
    line = read_serve_line(
        "vllm serve a/b --port 8000 --served-model-name x y --no-enable-log-requests --moe-backend triton "
        """--kv-transfer-config '{"kv_connector": "X"}' --middleware m --middleware n"""
    )
    assert line.options == {}
    assert line.ignored == (
        "--port 8000",
        "--served-model-name x y",
        "--no-enable-log-requests",
        "--middleware m",
        "--middleware n",
    )
    assert line.unmodelled == ("--moe-backend triton", '--kv-transfer-config {"kv_connector": "X"}')


def test_the_last_of_two_values_counts_and_is_noted() -> None:
    line = read_serve_line(
        "vllm serve a/b -tp 2 --enable-prefix-caching --tensor-parallel-size 4 --disable-prefix-caching"
    )
    assert line.options == {"tensor_parallel_size": 4, "enable_prefix_caching": False}
    assert line.notes == (
        "--tensor-parallel-size 4 takes the place of -tp 2: the last counts",
        "--disable-prefix-caching takes the place of --enable-prefix-caching: the last counts",
    )
    assert read_serve_line("vllm serve a/b -tp 2 -tp 2").notes == ()


def test_options_of_older_versions_are_read_and_noted() -> None:
    line = read_serve_line("vllm serve a/b --swap-space 8 --num-scheduler-steps 4 --use-v2-block-manager")
    assert line.options == {"swap_space": 8.0}
    assert line.unmodelled == ("--num-scheduler-steps 4",)
    assert line.ignored == ("--use-v2-block-manager",)
    assert line.notes[0] == "--swap-space 8.0: an option of a version before 0.33"


REFUSED = (
    ("", "does not serve a model"),
    ("ls -l", "'ls -l' does not serve a model with vLLM"),
    ("vllm bench latency --model a/b", "does not serve a model"),
    ("vllm serve", "names no model"),
    ("python -m vllm.entrypoints.openai.api_server -tp 2", "names no model"),
    ("vllm serve a/b --tensor-paralel-size 2", "no option --tensor-paralel-size"),
    ("vllm serve a/b c/d", "takes one model"),
    ("vllm serve a/b -tp two", "argument --tensor-parallel-size/-tp: 'two' is not one of int"),
    ("vllm serve a/b -tp", "expected one argument"),
    ("vllm serve a/b --max-model-len 1.5K", "K is a binary multiple"),
    ("vllm serve a/b --max-model-len 32kB", "'32kB' is not one of length"),
    ("vllm serve a/b --max-num-batched-tokens " + "9" * 29 + "." + "9" * 30 + "k9", "is not one of count"),
    ("vllm serve a/b --gpu-memory-utilization 90%", "'90%' is not one of float"),
    ("vllm serve a/b --dtype int4", "invalid choice: 'int4'"),
    ("vllm serve a/b --max-num 4", "ambiguous option: --max-num"),
    ("vllm serve a/b --speculative-config {x}", "is not JSON"),
    ("vllm serve a/b --compilation-config 3", "is not a JSON object"),
    ("vllm serve a/b --hf-overrides '" + '{"a":' * 20_00 + "1" + "}" * 2000 + "'", "is not JSON"),
    ("vllm serve a/b --compilation-config.mode", "a value is missing"),
    ("vllm serve a/b -cc." + "a." * 40 + "b 1", "more than 32 keys"),
    ("vllm serve a/b -ngl 99", "no -ngl: that is a flag of llama.cpp"),
    ("vllm serve a/b -c 4096", "no -c: that is a flag of llama.cpp"),
    ("vllm serve a/b --mem-fraction-static 0.8", "that is a flag of SGLang"),
    ("vllm serve a/b --tp=8", "no --tp: that is a flag of SGLang"),
    ("vllm serve a/b --config serve.yaml", "options in a file are not read"),
    ("vllm serve a/b --help", "starts no server"),
    ("vllm serve $MODEL", r"\$MODEL is a variable of the shell"),
    ("vllm serve a/b --dtype 'auto", "quotes do not close"),
    ("vllm serve a/b --quantization ${Q}", "is a variable of the shell"),
    ("docker run ollama/ollama serve", "no word is an image of vLLM"),
    ("vllm serve a/b " + "x" * 2**16, "characters is not read"),
)


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: value[:50])
def test_what_is_refused_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        read_serve_line(text)
    assert refused.value.hint


def test_a_close_name_is_hinted() -> None:
    with pytest.raises(UsageError) as refused:
        read_serve_line("vllm serve a/b --tensor_paralel_size 2")
    assert refused.value.hint == "did you mean --tensor-parallel-size?"
