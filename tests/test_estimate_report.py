"""The report of an estimate and of a plan: what it shows is what was computed, and its command asks again."""

import json
import shlex
import subprocess
import sys

import pytest
from command_line import ullage

from analytic.estimator import estimate
from analytic.plans.budget import budget_map
from analytic.report import estimate as shown
from analytic.report import plan as shown_plan
from analytic.report.command import command_of
from analytic.report.markdown import markdown
from analytic.report.parts import FormatMap, HeatMap, StackedBars, Waterfall
from analytic.request import LARGEST
from analytic.waterfall import waterfall

SETTINGS = [
    ("llama-2-70b", {"gpu": "h100-80gb:2"}),
    ("qwen3-30b-a3b", {"gpu": "rtx-4090", "quantization": "bnb-nf4", "double_quant": True, "batch_size": 3}),
    ("gemma-3-4b", {"gpu": "l4", "attention": "eager", "padded": True, "batch_size": 2, "dtype": "float32"}),
    ("llama-3.1-8b", {"gpu": "l40s:2", "engine": "vllm", "tensor_parallel_size": 2, "enforce_eager": True}),
    ("llama-3.1-8b", {"gpu": "a100-80gb", "engine": "vllm", "enable_prefix_caching": False, "max_num_seqs": 7}),
    ("llama-3.1-8b", {"gpu": "rtx-4090", "engine": "llamacpp", "quantization": "Q4_K_M", "flash_attn": False}),
    (
        "qwen3-30b-a3b",
        {"gpu": "rtx-3090:2", "engine": "llamacpp", "quantization": "Q8_0", "tensor_split": (3.0, 1.0)},
    ),
    ("gpt2", {"dtype": "float32"}),
]


@pytest.mark.parametrize(("model", "flags"), SETTINGS)
def test_the_command_of_a_report_gives_the_same_answer(
    model: str, flags: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = estimate(model, **flags)
    words = shlex.split(command_of(answer) or "")
    assert words[:2] == ["ullage", "estimate"]
    _, out, _ = ullage(*words[1:], "--json", capsys=capsys)
    assert json.loads(out)["per_gpu"] == json.loads(json.dumps(shown.document(answer)))["per_gpu"]


def test_a_gpu_that_is_no_row_of_the_table_has_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ullage("estimate", "qwen3-0.6b", "--gpu-memory", "8GiB", "--markdown", capsys=capsys)
    assert code == 0
    assert "$ ullage" not in out


@pytest.mark.parametrize(("model", "flags"), SETTINGS)
def test_the_way_from_the_rule_adds_up(model: str, flags: dict[str, object]) -> None:
    answer = estimate(model, **flags)
    needed = sum(row.device.bytes for row in answer.ledgers)
    steps = waterfall(answer, needed + 12345)
    level = 0
    for step in steps:
        level = level + step.bytes if not step.is_level else step.bytes if level == 0 else level
        if step.is_level:
            assert level == step.bytes
    assert steps[-3].label == "estimate"
    assert steps[-3].bytes == needed
    assert [step.bytes for step in steps[-2:]] == [12345, needed + 12345]


def test_the_rule_is_right_and_what_the_guide_prints_is_said() -> None:
    answer = estimate("llama-2-70b")
    steps = {step.label: step.bytes for step in waterfall(answer)}
    parameters = 68_976_648_192  # as published: 68.98 B
    assert steps["parameters × 16 bits"] == parameters * 2
    assert steps["rule of thumb"] == -(-parameters * 2 * 12 // 10)  # + 20 %, rounded up to a byte
    printed = parameters * 4 * 32 / 16 / 2**30  # the published step 4
    assert f"{printed:,.2f} GiB" in shown.report(answer).figures[-1].assumptions
    at_32_bits = shown.report(estimate("gpt2", dtype="float32"))  # × 32 / 32 is right either way
    assert "prints" not in at_32_bits.figures[-1].assumptions


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("llama-3.1-8b", {"gpu": "l4"}),
        ("qwen3-30b-a3b", {"gpu": "h100-80gb", "engine": "vllm"}),
        ("llama-3.1-8b", {"gpu": "rtx-4090", "engine": "llamacpp", "quantization": "Q4_K_M"}),
        ("llama-2-70b", {"gpu": "h100-80gb:2", "device_map": "sequential"}),
        ("llama-3.1-70b", {"gpu": "h100-80gb:4", "prompt_tokens": 3000, "output_tokens": 100, "batch_size": 3}),
    ],
)
def test_a_cell_of_the_budget_is_the_estimate_of_its_request(model: str, flags: dict[str, object]) -> None:
    answer = estimate(model, **flags)
    found = budget_map(answer)
    assert found is not None
    assert found.asked == (answer.request.total_tokens, answer.request.batch_size)
    output = answer.request.output_tokens
    for row, tokens in enumerate(found.contexts):
        for column, sequences in list(enumerate(found.concurrencies))[::3]:
            asked = flags | {"prompt_tokens": tokens - output, "output_tokens": output, "batch_size": sequences}
            own = estimate(model, **asked)
            expected = "tight" if not own.is_certain else "fits" if own.fits else "no"
            assert found.cells[row][column] == expected, (tokens, sequences)


def test_the_longest_prompt_has_a_budget() -> None:
    found = budget_map(estimate("llama-3.1-8b", gpu="l4", prompt_tokens=LARGEST["prompt_tokens"]))
    assert found is not None
    assert found.cells[found.contexts.index(found.asked[0])][0] == "no"


def test_no_gpu_no_budget() -> None:
    assert budget_map(estimate("gpt2", dtype="float32")) is None
    report = shown.report(estimate("gpt2", dtype="float32"))
    assert report.status is None
    assert [type(figure) for figure in report.figures] == [StackedBars, Waterfall]


def test_the_report_shows_the_ledger_and_the_verdict() -> None:
    answer = estimate("llama-2-70b", gpu="h100-80gb")
    report = shown.report(answer)
    assert report.status == "no"
    assert report.headline.startswith("Does not fit on 1 × h100-80gb")
    bars, budget, way = report.figures
    assert isinstance(bars, StackedBars)
    assert [segment.bytes for segment in bars.bars[0].segments] == [q.bytes for q in answer.fullest.components.values()]
    assert bars.capacity_bytes == answer.capacity_bytes
    assert isinstance(budget, HeatMap)
    assert isinstance(way, Waterfall)
    for figure in report.figures:
        assert "68.98 B" in figure.assumptions
        assert "2,048 + 256 tokens" in figure.assumptions
        assert figure.basis
        assert figure.description
    assert "69.95" not in markdown(report)
    assert f"{answer.fullest.device.bytes:,}" in markdown(report)


def test_equal_gpus_are_one_bar_and_many_are_the_fullest() -> None:
    bars = shown.report(estimate("llama-2-70b", gpu="h100-80gb:2", tensor_parallel_size=2)).figures[0]
    assert isinstance(bars, StackedBars)
    assert [bar.label for bar in bars.bars] == ["GPUs 0–1"]
    many = shown.report(estimate("llama-3.1-405b", gpu="h100-80gb:32")).figures[0]
    assert isinstance(many, StackedBars)
    assert 1 < len(many.bars) <= 8


def test_the_map_of_a_plan_has_the_best_of_each_gpu_and_format() -> None:
    from analytic.plans.typed import plan_asked

    asked = {"contexts": None, "concurrencies": None, "node_gpus": 8, "prices": None, "revision": None, "serving": {}}
    found = plan_asked(
        "llama-3.1-70b",
        gpu=("h100-80gb", "t4"),
        gpus="1,2,4",
        formats="published,bnb-nf4",
        target_context="4096",
        target_concurrency=1,
        **asked,
    )
    drawn = shown_plan.report(found).figures[0]
    assert isinstance(drawn, FormatMap)
    assert drawn.gpus == ("t4", "h100-80gb")  # 15 and 80 GiB
    for gpu, row in zip(drawn.gpus, drawn.spots, strict=True):
        for name, spot in zip((None, "bnb-nf4"), row, strict=True):
            own = [o for o in found.options if o.gpu.name == gpu and o.quantization == name]
            if any(option.fits for option in own):
                fewest = min(option.degrees.gpus for option in own if option.fits)
                assert spot is not None
                assert spot.status != "no"
                assert spot.text.startswith(str(fewest))
            else:
                assert spot is not None
                assert spot.status == ("no" if all(option.is_certain for option in own) else "tight")
                assert "short" in spot.text


def test_a_picture_is_not_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = ullage("estimate", "qwen3-0.6b", "-o", "x.png", capsys=capsys)
    assert code == 2
    assert "--figures" in error
    code, _, error = ullage("estimate", "qwen3-0.6b", "-o", "x.csv", capsys=capsys)
    assert code == 2
    assert ".json, .html or .md" in error
    code, _, error = ullage("estimate", "qwen3-0.6b", "--json", "--markdown", capsys=capsys)
    assert code == 2
    code, _, error = ullage("inspect", "qwen3-0.6b", "-o", "x.html", capsys=capsys)
    assert code == 2
    assert "JSON" in error


def test_several_outputs_in_one_run(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("a.json", "a.md", "a.html")]
    code, _, _ = ullage("estimate", "qwen3-0.6b", "--gpu", "t4", *(f"-o={file}" for file in files), capsys=capsys)
    assert code == 0
    assert json.loads(files[0].read_text())["verdict"]["fits"] is True
    assert files[1].read_text().startswith("### ")
    assert files[2].read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("arguments", [(), ("estimate", "qwen3-0.6b", "--gpu", "l4"), ("rule", "70B")])
def test_what_makes_reports_is_not_imported_before_it_is_asked_for(arguments: tuple[str, ...]) -> None:
    heavy = ("matplotlib", "jinja2", "analytic.report.parts", "analytic.plans", "analytic.compare", "analytic.webpage")
    code = (
        "import sys; from analytic.cli import app\n"
        f"if {arguments!r}: app({arguments!r}, result_action='return_value')\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
