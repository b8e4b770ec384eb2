"""Whole command lines of vLLM, from the text to the estimate."""

import json
from pathlib import Path

import pytest

import analytic
from analytic.asking import is_serve_line
from analytic.cli import main
from analytic.errors import UllageError, UsageError
from analytic.models import catalog


def test_a_line_is_the_same_as_its_flags() -> None:
    line = (
        "vllm serve meta-llama/Llama-3.1-8B --max-model-len 8192 --max-num-seqs 64 -tp 2 --gpu-memory-utilization 0.8"
    )
    told = analytic.estimate(line, gpu="l4:2")
    asked = analytic.estimate(
        "llama-3.1-8b",
        gpu="l4:2",
        engine="vllm",
        max_model_len=8192,
        max_num_seqs=64,
        gpu_memory_utilization=0.8,
        prompt_tokens=8192 - 256,
    )
    assert told.ledgers == asked.ledgers
    assert told.asked.flags.tensor_parallel_size == 2
    assert told.details == asked.details


def test_what_does_not_change_memory_is_listed_and_what_is_not_modelled_is_warned_of() -> None:
    answer = analytic.estimate(
        "VLLM_USE_V1=1 vllm serve meta-llama/Llama-3.1-8B --port 8000 --api-key x --enable-lora --max-model-len 4k"
    )
    assert answer.ignored == ("--port 8000", "--api-key x")
    assert any("--enable-lora" in warning for warning in answer.warnings)
    assert answer.asked.flags.max_model_len == 4000


def test_a_line_without_a_length_takes_the_models_and_says_so() -> None:
    answer = analytic.estimate("vllm serve meta-llama/Llama-3.1-8B")
    assert answer.asked.flags.max_model_len == 131_072
    assert any("131,072" in warning for warning in answer.warnings)


def test_kernels_of_a_packed_checkpoint_are_no_quantisation_of_it() -> None:
    told = analytic.estimate("vllm serve openai/gpt-oss-20b --quantization mxfp4 --max-model-len 4096", gpu="h100-80gb")
    assert told.request.quantization is None
    online = analytic.estimate("vllm serve meta-llama/Llama-3.1-8B --quantization fp8 --max-model-len 4096", gpu="l4")
    assert online.request.quantization == "fp8"


@pytest.mark.parametrize(
    ("line", "flags", "said"),
    [
        ("vllm serve meta-llama/Llama-3.1-8B --tensor-paralel-size 2", {}, "--tensor-paralel-size"),
        ("vllm serve meta-llama/Llama-3.1-8B -tp 2", {"tensor_parallel_size": 4}, "contradict each other"),
        ("vllm serve meta-llama/Llama-3.1-8B -tp 2", {"gpu": "l4:4"}, "makes 2 GPUs, and there are 4"),
        ("vllm serve meta-llama/Llama-3.1-8B -tp 3", {}, "3"),
        ("vllm serve meta-llama/Llama-3.1-8B --max-model-len auto", {}, "auto"),
        ("vllm serve meta-llama/Llama-3.1-8B --max-model-len x", {}, "max-model-len"),
        ("vllm serve meta-llama/Llama-3.1-8B --revision a", {"revision": "b"}, "contradict"),
        ("vllm serve meta-llama/Llama-3.1-8B -ngl 3", {}, "ngl"),
        ("vllm serve", {}, "names no model"),
        ("ollama run llama3", {}, "does not serve a model with vLLM"),
        ("vllm serve meta-llama/Llama-3.1-8B --max-model-len 4096", {"prompt_tokens": 8192}, "exceed --max-model-len"),
    ],
)
def test_bad_lines_are_refused_by_name(line: str, flags: dict[str, object], said: str) -> None:
    with pytest.raises(analytic.UllageError) as refusal:
        analytic.estimate(line, **flags)  # type: ignore[arg-type]
    assert said in f"{refusal.value.message} {refusal.value.hint}"


def test_a_line_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vllm serve meta-llama/Llama-3.1-8B --max-model-len 8192 --host 0.0.0.0"
    with pytest.raises(SystemExit) as stop:
        main(["estimate", line, "--gpu", "h100-80gb", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert document["engine"]["name"] == "vLLM"
    assert document["engine"]["ignored"] == ["--host 0.0.0.0"]
    assert document["engine"]["gpu_blocks"] * document["engine"]["block_bytes"] <= document["engine"]["budget_bytes"]
    assert document["engine"]["starts"] is True
    assert document["request"]["max_model_len"] == 8192
    with pytest.raises(SystemExit) as stop:
        main(["check", line, "--gpu", "l4"])
    assert "fits on 1 × l4" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["plan", line])
    assert "a plan takes a model" in capsys.readouterr().err


def test_a_usage_error_is_one() -> None:
    with pytest.raises(UsageError):
        analytic.estimate("vllm bench serve")


def test_a_folder_with_spaces_in_its_name_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "my own models"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(catalog.load("llama-3.2-1b").config)))
    assert not is_serve_line(str(folder))
    with pytest.raises(UllageError) as refusal:
        analytic.estimate(str(tmp_path / "no such model"))
    assert "does not serve a model with vLLM" in refusal.value.message


@pytest.mark.parametrize(
    ("option", "is_named"),
    [
        ("--no-enable-chunked-prefill", True),
        ("--enable-chunked-prefill", False),
        ("--attention-backend FLASHINFER", True),
        ("--tokenizer x", False),
    ],
)
def test_options_that_would_count_otherwise_are_named(option: str, is_named: bool) -> None:
    answer = analytic.estimate(f"vllm serve meta-llama/Llama-3.1-8B --max-model-len 4096 {option}")
    assert any(option.split()[0] in warning for warning in answer.warnings) is is_named
