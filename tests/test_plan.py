"""Plans: every option beside the estimate of its own request, published deployments, prices, and bad input."""

import json
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from command_line import ullage

from analytic.errors import UllageError, UsageError
from analytic.estimator import run
from analytic.flags import Flags
from analytic.hardware import find_gpu, gpus
from analytic.loaded.vllm import ONLINE
from analytic.models import catalog
from analytic.plans.options import Option, Plan
from analytic.plans.plan import plan
from analytic.plans.prices import read_prices
from analytic.plans.question import Question, every_format
from analytic.plans.typed import plan_asked
from analytic.request import Request

SMALL = Question(contexts=(512, 4096, 32768), concurrencies=(1, 8, 64), counts=(1, 2))


def ask(name: str, engine: str, *kinds: str, question: Question = SMALL, **request: Any) -> Plan:
    return plan(
        catalog.load(name),
        Request(engine=engine, **request),
        gpus=map(find_gpu, kinds),
        question=question,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("llama-3.1-8b", "transformers"),
        ("gemma-3-4b", "transformers"),
        ("llama-3.1-8b", "vllm"),
        ("qwen3-8b", "llamacpp"),
    ],
)
def test_every_cell_is_what_an_estimate_of_its_own_says(name: str, engine: str) -> None:
    found = ask(name, engine, "l4", "rtx-4090", "a100-80gb")
    assert len(found.options) >= 12
    for option in found.options:
        for row, context in zip(option.matrix(3), SMALL.contexts, strict=True):
            for cell, concurrency in zip(row, SMALL.concurrencies, strict=True):
                answer = estimate_of(option, context, concurrency)
                certain = "fits" if answer.fits else "no"
                assert cell == (certain if answer.is_certain else "tight")


def estimate_of(option: Option, context: int, concurrency: int) -> Any:
    output = min(SMALL.output_tokens, context - 1)
    request = replace(
        option.asked.request, prompt_tokens=context - output, output_tokens=output, batch_size=concurrency
    )
    flags = option.asked.flags
    if flags.max_model_len is not None:
        flags = replace(flags, max_model_len=context)
    return run(option.asked.model, request, flags=flags, gpu=option.gpu, gpus=option.degrees.gpus)


def test_modules_that_are_placed_by_memory_are_planned_on_each_gpu() -> None:
    found = plan(
        catalog.load("llama-2-13b"),
        Request(),
        gpus=map(find_gpu, ("l4", "rtx-4090", "a100-80gb")),
        question=replace(SMALL, counts=(2,)),
        flags=Flags(device_map="sequential"),
    )
    assert {(option.gpu.name, option.quantization) for option in found.options} >= {("l4", None), ("a100-80gb", None)}
    for option in found.options:
        for row, context in zip(option.matrix(3), SMALL.contexts, strict=True):
            for cell, concurrency in zip(row, SMALL.concurrencies, strict=True):
                answer = estimate_of(option, context, concurrency)
                assert cell == ("tight" if not answer.is_certain else "fits" if answer.fits else "no")


def test_used_and_left_are_those_of_the_estimate() -> None:
    for option in ask("llama-3.1-8b", "transformers", "l4", "h100-80gb").options:
        assert option.used_bytes == option.answer.fullest.charged.bytes
        assert option.fits == option.answer.fits
        assert option.is_certain == option.answer.is_certain


def test_the_largest_context_and_concurrency_fit_and_one_more_does_not() -> None:
    option = ask("llama-3.1-8b", "transformers", "l4").best
    assert option is not None
    prompt = option.largest_context - option.asked.request.output_tokens
    for field, value in (("batch_size", option.largest_concurrency), ("prompt_tokens", prompt)):
        for more, fits in ((0, True), (1, False)):
            request = replace(option.asked.request, **{field: value + more})
            assert run(option.asked.model, request, gpu=option.gpu).fits is fits


PUBLISHED = (  # model, engine, format, GPU, the fewest of them that are said to hold it
    ("gpt-oss-120b", "vllm", None, "h100-80gb", 1),
    ("llama-3.1-70b", "vllm", None, "h100-80gb", 2),
    ("llama-3.1-405b", "vllm", "fp8-dynamic", "h100-80gb", 8),
    ("llama-3.1-405b", "vllm", None, "h100-80gb", 16),
)
"""openai/gpt-oss-120b: "fits into a single 80GB GPU". meta-llama/Llama-3.1-405B: FP8 for "a single server node" of
eight H100, BF16 for two. Llama 3.1 70B: two (140 GB of weights)."""


@pytest.mark.parametrize(("name", "engine", "quantization", "gpu", "fewest"), PUBLISHED)
def test_published_deployments_are_found(
    name: str, engine: str, quantization: str | None, gpu: str, fewest: int
) -> None:
    question = Question(formats=(quantization,), counts=(1, 2, 4, 8, 16), contexts=(4096,), concurrencies=(1,))
    found = ask(name, engine, gpu, question=question)
    assert found.smallest is not None
    assert found.smallest.degrees.gpus == fewest


def test_the_smallest_has_least_memory_and_the_cheapest_the_lowest_price() -> None:
    prices = {"l4": 0.8, "a100-80gb": 1.5, "rtx-4090": 0.4}
    kinds = tuple(map(find_gpu, ("l4", "rtx-4090", "a100-80gb", "h100-80gb")))
    found = plan(catalog.load("llama-3.1-8b"), Request(), gpus=kinds, question=SMALL, prices=prices)
    smallest, cheapest = found.smallest, found.cheapest
    assert smallest is not None
    assert cheapest is not None
    assert smallest.memory_bytes == min(option.memory_bytes for option in found.fitting)
    assert cheapest.price_per_hour == 0.4
    assert found.best is cheapest
    assert all(option.price_per_hour is None for option in found.options if option.gpu.name == "h100-80gb")


def test_a_layer_is_split_over_no_more_than_a_node() -> None:
    question = replace(SMALL, counts=(8,), node_gpus=4, formats=(None,))
    found = ask("llama-3.1-70b", "vllm", "h100-80gb", question=question)
    assert {(option.degrees.tensor, option.degrees.pipeline) for option in found.options} == {(1, 8), (2, 4), (4, 2)}


def test_degrees_that_do_not_divide_are_said_to_be_impossible() -> None:
    found = ask("llama-3.1-8b", "vllm", "l4", question=replace(SMALL, counts=(3,), formats=(None,)))
    assert {option.degrees.tensor for option in found.options} == {1}
    assert any("3" in row.gpus and "tp 3" in row.gpus for row in found.refused)


def test_all_gpus_and_formats_have_a_row_or_a_reason() -> None:
    found = plan(
        catalog.load("qwen3-0.6b"), Request(), gpus=gpus(), question=replace(SMALL, formats=every_format(), counts=(1,))
    )
    assert len(found.options) + len(found.refused) == len(gpus()) * len(every_format())
    assert all(row.reason for row in found.refused)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"gpu": ("h1000",)}, "unknown GPU 'h1000'"),
        ({"gpu": ("h100-80gb:8",)}, "takes kinds of GPU"),
        ({"gpus": "1,x"}, "'x' is not a size"),
        ({"gpus": "2,1"}, "must rise"),
        ({"formats": "fp9"}, "'fp9' is not known"),
        ({"formats": ",,"}, "is no list"),
        ({"contexts": "0"}, "must be more than 0"),
        ({"target_concurrency": 0}, "--target-concurrency: 0"),
        ({"node_gpus": 0}, "--node-gpus: 0"),
        ({"serving": {"batch_size": 2}}, "--batch-size is what a plan varies"),
        ({"serving": {"ctx_size": 4096}}, "--ctx-size is what a plan varies"),
        ({"serving": {"quantization": "fp8"}}, "--quantization is what a plan varies"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(bad: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {
        **{"revision": None, "gpu": ("l4",), "gpus": None, "formats": None, "target_context": "4096"},
        **{"target_concurrency": 1, "contexts": None, "concurrencies": None, "node_gpus": 8, "prices": None},
        "serving": {},
    }
    with pytest.raises(UllageError, match=said):
        plan_asked("qwen3-0.6b", **(usual | bad))


@pytest.mark.parametrize(
    ("name", "text", "prices"),
    [
        ("a.toml", "h100-80gb = 2.49\nl4 = 1", {"h100-80gb": 2.49, "l4": 1.0}),
        ("a.json", '{"NVIDIA L4": 0.8}', {"l4": 0.8}),
    ],
)
def test_prices_are_read(tmp_path: Path, name: str, text: str, prices: dict[str, float]) -> None:
    (tmp_path / name).write_text(text)
    assert read_prices(tmp_path / name) == prices


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "h100 = [", "a.toml"),
        ("a.toml", "", "holds no prices"),
        ("a.json", "[1]", "holds no prices"),
        ("a.json", '{"l4": "cheap"}', "'cheap' is no price"),
        ("a.json", '{"l4": -1}', "-1 is no price"),
        ("a.json", '{"l4": NaN}', "is no price"),
        ("a.json", '{"l4": true}', "is no price"),
        ("a.toml", "h1000 = 1", "unknown GPU 'h1000'"),
        ("a.json", "[" * 100_000, "a.json"),
    ],
)
def test_what_is_no_price_list_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UllageError, match=said):
        read_prices(tmp_path / name)
    with pytest.raises(UllageError, match="cannot be read"):
        read_prices(tmp_path / "missing.toml")


def test_the_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ullage("plan", "qwen3-0.6b", "--gpu", "l4", "--gpus", "1,2", "--json", capsys=capsys)
    document = json.loads(out)
    assert (code, err) == (0, "")
    best = document["options"][document["smallest"]]
    assert (best["gpu"], best["gpus"], best["fits"]) == ("l4", 1, True)
    assert len(best["matrix"]) == len(document["question"]["contexts"])
    assert best["largest_context"] > 4096
    fitting = [sum(cell == "fits" for cell in row) for row in best["matrix"]]
    assert fitting == [fits for fits, _ in best["frontier"]]
    assert document["cheapest"] is None


def test_costs_in_quality_are_of_formats_that_exist_and_name_their_source() -> None:
    rows = tomllib.loads(files("analytic.formats").joinpath("quality.toml").read_text("utf-8"))["cost"]
    known = {str(name).lower() for name in every_format()} | set(ONLINE)
    assert {name.lower() for row in rows for name in row["formats"]} <= known
    assert all("arXiv" in row["source"] or "quantize.cpp" in row["source"] for row in rows)


def test_the_plan_as_text_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ullage("plan", "llama-3.1-8b", "--gpu", "l4", "--target-context", "8K", capsys=capsys)
    assert code == 0
    assert "1 sequence of 8,192 tokens" in " ".join(out.split())
    assert "smallest: 1 × l4" in out
    code, out, _ = ullage("plan", "llama-3.1-8b", "--gpu", "l4", "--markdown", capsys=capsys)
    assert "| GPU | as published | bnb-int8 | bnb-nf4 |" in out
    assert "| tokens | 1 | 2 | 4 |" in out
    code, out, _ = ullage("plan", "llama-3.1-405b", "--gpu", "t4", "--gpus", "1", capsys=capsys)
    assert code == 3
    assert "nothing tried holds it" in out


def test_several_models_are_a_plan_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ullage("plan", "qwen3-0.6b", "llama-3.2-1b", "--gpu", "l4", capsys=capsys)
    assert code == 0
    assert out.count("smallest:") == 2


def test_nothing_possible_is_an_error_with_the_reason() -> None:
    with pytest.raises(UllageError, match="vLLM"):
        ask("gemma-4-26b-a4b", "vllm", "l4")
    with pytest.raises(UsageError, match="no GPU"):
        plan(catalog.load("gpt2"), Request(), gpus=())
