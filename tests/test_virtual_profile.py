"""``ullage profile --device virtual:GPU``: answers, searches, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config

from analytic.cli import main
from analytic.compare import compare
from analytic.errors import UllageError
from analytic.measurement import Measurement, read_measurement
from analytic.request import Request
from profiler.virtual.generate import load_model, serve, virtual_gpu
from profiler.virtual.search import largest
from profiler.virtual.target import find_target

SMALL = ("--prompt-tokens", "300", "--output-tokens", "20", "--dtype", "bfloat16", "--attention", "eager")


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = {**tiny_config("llama"), "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def profile(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["profile", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Measurement]:
    file = tmp_path / "record.json"
    code, _, _ = profile(capsys, *arguments, "-o", str(file))
    return code, read_measurement(file)


def test_a_measurement_of_a_virtual_gpu(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = measured(tmp_path, capsys, model, "--device", "virtual:a100-80gb", *SMALL, "--advice")
    assert (code, told.status, told.device.kind) == (0, "ok", "virtual")
    assert told.device.capability == (8, 0)
    assert [phase.name for phase in told.phases] == ["context", "load", "prefill", "decode"]
    assert told.components.weights == sum(told.weights_by_format.values())
    assert told.totals.device == told.totals.reserved + told.components.context
    assert [peak.phase for peak in told.peaks] == ["load", "prefill", "decode"]
    assert told.peaks[1].module is not None
    assert {advice.alloc_conf for advice in told.advice} >= {"expandable_segments:True"}
    [*rows] = compare([told], figures=["weights", "sequence_state", "workspace", "load_peak"]).rows
    assert [row.error_bytes for row in rows] == [0, 0, 0, 0]


@pytest.mark.parametrize("quantization", [["bnb-nf4", "--double-quant"], ["bnb-fp4"], ["bnb-int8"]])
def test_quantised_weights_are_those_of_the_estimate(
    quantization: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--device", "virtual:h200", *SMALL, "--quantization", *quantization)
    code, told = measured(tmp_path, capsys, model, *flags)
    assert (code, told.status) == (0, "ok")
    [*rows] = compare([told], figures=["weights", "sequence_state"]).rows
    assert [row.error_bytes for row in rows] == [0, 0]


def test_running_out_of_memory_is_answered_in_advance(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--device", "virtual:t4", "--batch-size", "9000", "--prompt-tokens", "700", "--dtype", "float16")
    code, told = measured(tmp_path, capsys, model, *flags)
    assert (code, told.status) == (3, "oom")
    assert told.failure is not None
    assert told.failure.phase == "prefill"
    assert told.failure.module is not None
    assert told.failure.asked_bytes > told.failure.free_bytes


def test_it_says_at_which_token(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So many tokens come out, and not one more."""
    flags = (model, "--device", "virtual:t4", "--batch-size", "20000", "--prompt-tokens", "20", "--dtype", "float16")
    code, told = measured(tmp_path, capsys, *flags, "--output-tokens", "4000")
    assert (code, told.status) == (3, "oom")
    assert told.failure is not None
    assert told.failure.phase == "decode"
    assert told.failure.module is not None
    token = told.failure.token
    assert token is not None
    assert measured(tmp_path, capsys, *flags, "--output-tokens", str(token))[0] == 0
    assert measured(tmp_path, capsys, *flags, "--output-tokens", str(token + 1))[0] == 3


def test_the_largest_batch_survives_and_the_next_does_not(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (model, "--device", "virtual:t4", "--dtype", "float16", "--attention", "eager")
    flags = (*flags, "--prompt-tokens", "3000", "--output-tokens", "3")
    code, found = measured(tmp_path, capsys, *flags, "--find", "max-batch")
    assert (code, found.status) == (0, "ok")
    size = found.request.batch_size
    assert {tried.value: tried.status for tried in found.tried}[size + 1] == "oom"
    assert measured(tmp_path, capsys, *flags, "--batch-size", str(size))[0] == 0
    assert measured(tmp_path, capsys, *flags, "--batch-size", str(size + 1))[0] == 3


@pytest.mark.parametrize("truth", [0, 1, 2, 5, 63, 64, 99, 100])
def test_a_search_finds_the_largest(truth: int) -> None:
    tried = []

    def survives(value: int) -> bool:
        tried.append(value)
        return value <= truth

    assert largest(survives, limit=100) == truth
    assert len(tried) == len({*tried}) <= 14


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--device", "virtual:"), 2, "names no GPU"),
        (("--device", "virtual:h2000"), 2, "unknown GPU 'h2000'"),
        (("--device", "virtual:a100-40"), 2, "close: a100-40gb"),
        (("--device", "virtual:rtx-3080"), 2, "several sizes"),
        (("--device", "vritual:h200"), 2, "'vritual:h200' is not known"),
        (("--device", "virtual:h200", "--torch-version", "2.3"), 2, "--torch-version: '2.3' is not modelled"),
        (("--device", "virtual:h200", "--alloc-conf", "max_split:20"), 2, "max_split"),
        (("--device", "virtual:h200", "--weights", "real"), 2, "has no values"),
        (("--device", "virtual:h200", "--snapshot", "x.pickle"), 2, "--snapshot"),
        (("--device", "cpu", "--find", "max-batch"), 2, "is no virtual GPU"),
        (("--device", "cpu", "--alloc-conf", "expandable_segments:True"), 2, "is no virtual GPU"),
    ],
)
def test_what_is_refused(
    model: str, arguments: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = profile(capsys, model, *arguments)
    assert (ended, out) == (code, "")
    assert says in err


def test_a_model_that_needs_remote_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended, _, err = profile(capsys, str(tmp_path), "--device", "virtual:h200")
    assert ended == 1
    assert "own" in err


def test_too_small_a_gpu_is_said_before_a_search(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended, _, err = profile(
        capsys, "llama-2-70b", "--device", "virtual:t4", "--twin-layers", "10", "--find", "max-batch"
    )
    assert ended == 1
    assert "out of memory while loading" in err


REQUEST = Request(dtype="float32", attention="eager", prompt_tokens=8, output_tokens=2)


def _serve_with(change: Any) -> None:
    with virtual_gpu(find_target("virtual:h200"), REQUEST) as recorder:
        loaded = load_model(tiny_config("llama"), REQUEST, recorder, stored="float32")
        loaded.model.model.norm.register_forward_hook(lambda module, args, out: change(out))
        serve(loaded, REQUEST)


def test_control_flow_that_depends_on_activations_is_named() -> None:
    with pytest.raises(UllageError, match=r"model: .* depends on the values of activations"):
        _serve_with(lambda out: out if out.max() > 0 else -out)


def test_an_operation_without_a_fake_kernel_is_named() -> None:
    with torch.library._scoped_library("ullage_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        with pytest.raises(UllageError, match=r"model: ullage_test\.twice\.default has no kernel for fake tensors"):
            _serve_with(torch.ops.ullage_test.twice)


def test_what_people_see(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Phases, the picture of serving (what is reserved never stands below what is allocated), peaks and notes."""
    flags = ("--device", "virtual:h200", "--prompt-tokens", "300", "--output-tokens", "200", "--dtype", "bfloat16")
    code, out, _ = profile(capsys, model, *flags)
    assert code == 0
    lines = {line[:10].strip(): line[10:] for line in out.splitlines()}
    assert len(lines["allocated"]) == len(lines["reserved"]) == 60
    assert all(low <= high for low, high in zip(lines["allocated"], lines["reserved"], strict=True))
    assert "prefill peak: " in out
    assert "the workspace of cuDNN's attention" in " ".join(out.split())
    assert "hint" not in out


def test_a_sweep_of_a_virtual_gpu_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As results/ holds what devices returned."""
    matrix = tmp_path / "m.toml"
    matrix.write_text('[[runs]]\nvalue = 1\nmodels = "smollm2-360m"\nformats = "bfloat16"\n')
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(matrix), "--device", "virtual:h200"])
    assert ended.value.code == 2
    assert "results/ is for what devices returned" in capsys.readouterr().err
