import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import ullage

HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "scipy", "matplotlib", "numpy", "huggingface_hub")


def test_the_rule_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ullage("rule", "70B", "--bits", "16", "--gpu-memory", "80GB", "--json", capsys=capsys)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "schema_version": "1",
        "parameters": 70 * 10**9,
        "bits": 16,
        "base_bytes": 280 * 10**9,
        "quantized_bytes": 140 * 10**9,
        "overhead_fraction": 0.2,
        "total_bytes": 168 * 10**9,
        "gpu_memory_bytes": 80 * 10**9,
        "gpus_needed": 3,
    }


def test_the_estimate_as_json_holds_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ullage("estimate", "llama-2-70b", "--gpu", "h100-80gb:2", "--json", capsys=capsys)
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert {"schema_version", "model", "request", "per_gpu", "sequence_state_bytes_per_token"} <= set(document)
    assert {"verdict", "capacity", "rule_of_thumb", "warnings", "not_modeled", "calibration"} <= set(document)
    assert document["model"]["parameters"] == 68_976_648_192
    assert document["request"]["pipeline_parallel_size"] == 2
    row = document["per_gpu"][1]
    assert row["rank"] == "tp0/pp1"
    assert row["capacity_bytes"] == 81559 * 2**20
    assert set(row["components"]) == {
        "weights",
        "sequence_state",
        "activations",
        "workspace",
        "allocator_slack",
        "context",
    }
    for quantity in [*row["components"].values(), *row["totals"].values(), row["load_peak"]]:
        assert quantity["low_bytes"] <= quantity["bytes"] <= quantity["high_bytes"]
        assert quantity["basis"] in {"exact", "measured", "traced", "fitted", "assumed"}


def test_does_not_fit_is_exit_code_3_with_the_levers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ullage("estimate", "llama-2-70b", "--gpu", "h100-80gb", capsys=capsys)
    assert code == 3
    assert "does not fit" in out
    assert "2 of them hold it" in out
    assert "--quantization bnb-nf4" in out


def test_without_a_gpu_there_is_one_row_without_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ullage("estimate", "llama-2-7b", "--json", capsys=capsys)
    document = json.loads(out)
    assert code == 0
    assert len(document["per_gpu"]) == 1
    assert document["per_gpu"][0]["capacity_bytes"] is None
    assert document["verdict"] == {"fits": None, "certain": True, "gpus_needed": None, "short_by_bytes": None}


def test_tokens_are_read_as_vllm_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    for text, tokens in (("32k", 32_000), ("32K", 32_768), ("1.5k", 1_500)):
        _, out, _ = ullage("estimate", "llama-2-7b", "--prompt-tokens", text, "--json", capsys=capsys)
        assert json.loads(out)["request"]["prompt_tokens"] == tokens


def test_the_document_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.json"
    code, out, _ = ullage("estimate", "gpt2", "--dtype", "float32", "-o", str(file), capsys=capsys)
    assert code == 0
    assert json.loads(file.read_text())["model"]["id"]
    assert "weights" in out


@pytest.mark.parametrize("command", ["gpus", "models"])
def test_the_tables_as_text_and_as_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ullage(command, capsys=capsys)[0] == 0
    code, out, _ = ullage(command, "--json", capsys=capsys)
    assert code == 0
    assert len(json.loads(out)[command]) >= 40


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["estimate", "no-such-model"], 1, "no-such-model"),
        (["estimate", "./no/such/path"], 1, "no/such/path"),
        (["estimate", "llama-2-7b", "--gpu", "h1000"], 2, "h1000"),
        (["estimate", "llama-2-7b", "--dtype", "int3"], 2, "int3"),
        (["estimate", "llama-2-7b", "--quantization", "q9"], 2, "q9"),
        (["estimate", "llama-2-7b", "--batch-size", "0"], 2, "batch-size"),
        (["estimate", "llama-2-7b", "--batch-size", "many"], 2, "many"),
        (["estimate", "llama-2-7b", "--batch-size", "1.5"], 2, "1.5"),
        (["estimate", "llama-2-7b", "-pp", "1.6"], 2, "1.6"),
        (["estimate", "llama-2-7b", "--compute-dtype", "float32"], 2, "compute-dtype"),
        (["estimate", "llama-2-7b", "-o", ""], 2, "output"),
        (["estimate", "llama-2-7b", "--prompt-tokens", "-5"], 2, "prompt-tokens"),
        (["estimate", "llama-2-7b", "--prompt-tokens", "nan"], 2, "nan"),
        (["estimate", "llama-2-7b", "--gpu", "l4", "--gpu-memory", "10GB"], 2, "contradict"),
        (["estimate", "llama-2-7b", "--gpu-memory", "0GB"], 2, "0GB"),
        (["estimate", "llama-2-7b", "--gpu-memory", "80"], 2, "80GiB"),
        (["estimate", "llama-2-7b", "--frobnicate"], 2, "frobnicate"),
        (["estimate", "llama-2-7b", "-o", "/no/such/folder/x.json"], 1, "/no/such/folder"),
        (["estimate"], 2, "MODEL"),
        (["rule", "many"], 2, "many"),
        (["rule", "70B", "--bits", "7"], 2, "7"),
        (["rule", "70B", "--bits", "15.7"], 2, "15.7"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    arguments: list[str], code: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = ullage(*arguments, capsys=capsys)
    assert got == code
    assert out == ""
    assert named in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


def test_an_estimate_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom analytic.cli import main\n"
        "try:\n    main(['estimate', 'llama-2-70b', '--json'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_terminal_without_unicode_still_gets_an_answer() -> None:
    command = [sys.executable, "-c", "from analytic.cli import main; main(['estimate', 'llama-2-7b', '--gpu', 'l4'])"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True)
    assert b"weights" in done.stdout
    assert b"###" in done.stdout


@pytest.mark.parametrize("flags", ["", "--json"])
def test_a_reader_that_stops_early_changes_no_exit_code(flags: str) -> None:
    asked = f"estimate llama-2-70b --gpu l4 {flags}"
    command = f"{sys.executable} -c 'from analytic.cli import main; main()' {asked} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full is Linux's")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_is_one_line(flags: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "from analytic.cli import main; main()", "estimate", "llama-2-70b", *flags]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left" in done.stderr


def test_a_lever_of_a_gpu_that_has_no_name_can_be_followed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("estimate", "llama-2-70b", "--gpu-memory", "80GiB")
    code, out, _ = ullage(*asked, capsys=capsys)
    assert code == 3
    lever = next(line.strip() for line in out.splitlines() if "parallel" in line).partition(":")[0]
    assert ullage(*asked, *lever.split(), capsys=capsys)[0] == 0


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_figure_is_cut_short(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = ullage("estimate", "llama-3.1-405b", "--gpu", "h100-80gb:12", "--batch-size", "64", capsys=capsys)
    assert "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_the_human_output_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["estimate", "llama-3.1-405b", "--gpu", "h100-80gb:12"], ["rule", "70B"], ["gpus"], ["models"]):
        _, out, _ = ullage(*arguments, capsys=capsys)
        assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-tp", "2", "-o", "made.json"), "measurements say how they were served"),
        (("--gpu", "l4", "-o", "made.json"), "measurements say how they were served"),
        (("--engine-log", "a.log", "--hold-out", "b"), "--hold-out is of measurements"),
    ],
)
def test_a_calibration_refuses_flags_of_the_other_kind(
    flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ullage("calibrate", *flags, capsys=capsys)
    assert code == 2
    assert said in err
