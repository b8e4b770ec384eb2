"""The page answers as the command does, sends nothing, and can be used by keyboard, on a phone and without sight."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs

import pytest
from browser import axe, chromium
from filelock import FileLock
from playwright.sync_api import Browser, Page

from analytic.calibration import Calibration, Environment, Residual, Term
from analytic.errors import UllageError
from analytic.estimator import NOT_MODELED, estimate
from analytic.hardware import gpus
from analytic.ledger import COMPONENTS
from analytic.loaded.vllm import vllm_weights
from analytic.models.catalog import entries, load
from analytic.plans.budget import budget_map
from analytic.report.command import command_of
from analytic.report.estimate import document
from analytic.report.sentences import assumptions, cells, gib, lever_words, verdict
from analytic.state.vllm_specs import CACHE_DTYPES
from analytic.webpage.linear import independent, solved
from analytic.webpage.page import data, script, write
from analytic.webpage.ranks import PACKED
from analytic.webpage.tables import OFFERED
from analytic.weights import DTYPES

REQUESTS = 210
MOST_BYTES = 1_500_000

CONTROLS = ("engine", "model", "gpu", "gpus", "format", "prompt-tokens", "output-tokens", "batch-size")
RARE = {
    "transformers": ("attention", "cache-implementation", "padded", "gpu-memory-utilization"),
    "vllm": ("max-num-seqs", "max-num-batched-tokens", "kv-cache-dtype", "enforce-eager", "gpu-memory-utilization"),
}
FITS = "#model=llama-3.1-8b&gpu=h100-80gb"
SHORT = "#model=llama-3.1-70b&gpu=h100-80gb&gpus=2&prompt-tokens=32k&batch-size=8&quantization=bnb-nf4&double-quant=on"
VAST = (
    "#model=llama-3.1-405b&gpu=gtx-1080-ti&gpus=8&prompt-tokens=9000000&batch-size=9000&dtype=float32&attention=eager"
)
REFUSED = "#model=gpt-oss-120b&gpu=h100-80gb&quantization=bnb-nf4"
VLLM = "#engine=vllm&model=llama-3.1-70b&gpu=h100-80gb&gpus=2&prompt-tokens=32k&batch-size=8"
UNLIMITED = "#model=qwen3-30b-a3b&gpu=&dtype=float16"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, also where several processes test it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "site.lock"):
        made = shared / "site" / "index.html"
        return made if made.exists() else write(made.parent)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def opened(browser: Browser, file: Path) -> Iterator[Page]:
    page = browser.new_context(reduced_motion="reduce").new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    _open(page, file, FITS)
    yield page
    assert not failures


@pytest.fixture
def page(opened: Page) -> Page:
    """The page as it is when it is opened, but for its history."""
    opened.evaluate("document.getElementById('more').open = false")
    _ask(opened, FITS)
    return opened


def _open(page: Page, file: Path, state: str) -> None:
    """The page afresh in a state, once everything is shown."""
    page.goto("about:blank")
    page.goto(f"{file.as_uri()}{state}")
    page.wait_for_selector("#answer:not([hidden])")
    page.wait_for_selector(".stale", state="detached")


def _ask(page: Page, state: str) -> None:
    """The page in another state, without opening it again; the map of what else fits comes later."""
    page.evaluate("(state) => { history.replaceState(null, '', state); $restore(); $ask(); }", state)
    _wait_for_figures(page)


def _wait_for_figures(page: Page) -> None:
    page.wait_for_selector("#figures.stale", state="detached")


# ---------------------------------------------------------------- the same answers


def _requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Of all models and GPUs in turn, in no order, and anything else by chance."""
    random = Random(seed)
    models, devices = [entry.name for entry in entries()], [gpu.name for gpu in gpus()]
    random.shuffle(models)
    random.shuffle(devices)
    return [_request(random, i, models[i % len(models)], devices[i % len(devices)]) for i in range(count)]


def _request(random: Random, index: int, model: str, gpu: str) -> dict[str, Any]:
    """Two of five are vLLM's."""
    return {
        "model": model,
        "gpu": gpu,
        "gpus": random.randint(1, 8),
        "prompt_tokens": int(200_000 ** random.random()),
        "output_tokens": random.choice((1, 256, random.randint(1, 4000))),
        "batch_size": random.choice((1, random.randint(1, 512))),
        **(_of_vllm(random) if index % 5 < 2 else _of_transformers(random)),
    }


def _of_vllm(random: Random) -> dict[str, Any]:
    formats = [{}, {}, {"quantization": "none"}, *({"dtype": dtype} for dtype in DTYPES)]
    formats += [{"quantization": name} for name in PACKED]
    formats += [{"quantization": name, "dtype": dtype} for name in ("fp8", "w4a16") for dtype in DTYPES]
    rare = {
        "kv_cache_dtype": random.choice([*CACHE_DTYPES, *3 * ["fp8"]]),
        "max_num_seqs": random.choice((1, 64, 300)),
        "max_num_batched_tokens": random.choice((512, 2048, 16384)),
        "enforce_eager": True,
        "gpu_memory_utilization": 0.9,
    }
    return {
        "engine": "vllm",
        "gpus": random.choice((1, 2, 4, 8, random.randint(1, 8))),
        **random.choice(formats),
        **{name: value for name, value in rare.items() if random.random() < 0.2},
    }


def _of_transformers(random: Random) -> dict[str, Any]:
    formats = [{}, {}, {"quantization": "none"}, *({"dtype": dtype} for dtype in ("float16", "bfloat16", "float32"))]
    formats += [{"quantization": name} for name in ("bnb-nf4", "bnb-fp4", "bnb-int8", *OFFERED)]
    formats += [{"quantization": name, "double_quant": True} for name in ("bnb-nf4", "bnb-fp4")]
    formats += [{"quantization": "bnb-int8", "dtype": "float16"}, {"quantization": "bnb-nf4", "dtype": "float32"}]
    rare = {"attention": "eager", "padded": True, "cache_implementation": "static", "gpu_memory_utilization": 0.9}
    return {**random.choice(formats), **{name: value for name, value in rare.items() if random.random() < 0.2}}


def _told(asked: dict[str, Any]) -> Any:
    """What ``ullage estimate --json`` prints, or what it refuses with."""
    try:
        return json.loads(json.dumps(document(estimate(**asked))))
    except UllageError as refusal:
        return {"refused": [str(refusal), refusal.hint]}


TOLD = """(questions) => questions.map((question) => {
  try { return $document(question); } catch (error) {
    if (error instanceof $UllageError) return { refused: [error.message, error.hint] };
    throw error;
  }
})"""


def test_random_requests_are_answered_as_the_command_does(page: Page) -> None:
    asked = _requests(REQUESTS, seed=11)
    answers, wanted = page.evaluate(TOLD, asked), [_told(request) for request in asked]
    for request, answer, told in zip(asked, answers, wanted, strict=True):
        assert answer == told, request
    for field, all_of_them in (("model", entries()), ("gpu", gpus())):
        assert {request[field] for request in asked} == {row.name for row in all_of_them}
    told_of = [(request.get("engine"), told) for request, told in zip(asked, wanted, strict=True)]
    kinds = Counter((engine, "refused" if "refused" in told else told["verdict"]["fits"]) for engine, told in told_of)
    assert min(kinds[engine, kind] for engine in (None, "vllm") for kind in (True, False, "refused")) >= 10, kinds
    assert sum(count for (engine, _), count in kinds.items() if engine == "vllm") >= 80


def test_refusals_are_those_of_the_command(page: Page) -> None:
    usual = {"gpu": "h100-80gb", "gpus": 1, "prompt_tokens": 100, "output_tokens": 10, "batch_size": 1}
    asked = [
        {**usual, "model": "gpt-oss-120b", "quantization": "bnb-nf4"},  # published packed
        {**usual, "model": "bloom-176b"},  # names no dtype
        {**usual, "model": "smollm2-360m", "gpu": "t4", "quantization": "w4a16"},  # no multiple of the group
        {**usual, "model": "llama-3.1-8b", "gpu_memory_utilization": 1.5},
        {**usual, "model": "llama-3.1-8b", "double_quant": True},
        {**usual, "model": "llama-3.1-8b", "batch_size": 2_000_000},
        {**usual, "engine": "vllm", "model": "llama-3.1-8b", "gpus": 3},  # heads that do not divide
        {**usual, "engine": "vllm", "model": "llama-3.1-8b", "gpu": "t4", "quantization": "awq-int4"},  # not recorded
        {**usual, "engine": "vllm", "model": "llama-3.1-8b", "gpu": "t4", "dtype": "bfloat16"},
        {**usual, "engine": "vllm", "model": "deepseek-v3", "quantization": "none"},  # not dequantised
        {**usual, "engine": "vllm", "model": "qwen3-30b-a3b", "gpu": None, "quantization": "w4a16"},  # which GPU?
        {**usual, "engine": "vllm", "model": "llama-3.1-8b", "kv_cache_dtype": "fp8_ds_mla"},
        {**usual, "engine": "vllm", "model": "llama-3.1-8b", "max_num_seqs": 200_000_000},
    ]
    answers = page.evaluate(TOLD, asked)
    assert all("refused" in answer for answer in answers)
    assert answers == [_told(request) for request in asked]


def test_words_levers_command_and_map_are_those_of_the_command(page: Page) -> None:
    asked = [request for request in _requests(30, seed=4) if "refused" not in _told(request)]
    answers = page.evaluate(
        """(questions) => questions.map((question) => {
          const answer = $estimate(question), say = $analytic$report$sentences;
          const map = $analytic$plans$budget.budget_map(answer);
          return [say.assumptions(answer), say.verdict(answer), answer.levers.map(say.lever_words), $command(answer),
            $list(answer.engine.lines(answer.asked, answer.ledgers)),
            [map.contexts, map.concurrencies, map.cells, map.asked]];
        })""",
        asked,
    )
    assert len(asked) > 20
    for request, answer in zip(asked, answers, strict=True):
        told = estimate(**request)
        found = budget_map(told)
        assert found is not None
        fields = (found.contexts, found.concurrencies, found.cells, found.asked)
        words = [assumptions(told), verdict(told), [lever_words(lever) for lever in told.levers], command_of(told)]
        lines = list(told.engine.lines(told.asked, told.ledgers))
        assert answer == json.loads(json.dumps([*words, lines, fields])), request


STAGES = """(points) => points.map(([name, dtype, quantization, capability, tensor, share]) => {
  const told = (...degrees) => {
    try { return $vllm_weights($model(name), dtype, quantization, capability, ...degrees)[0].bytes; } catch (error) {
      if (error instanceof $UllageError) return [error.message, error.hint];
      throw error;
    }
  };
  const { kinds, choices, variants } = $model(name).row.vllm;
  const { widest } = variants[choices[`${dtype} ${$str(quantization)}`][(capability ?? []).join(".")]];
  const pipeline = 2 + Math.floor(share * (kinds.length - 1)), stage = Math.floor(share * 1e6) % pipeline;
  return [told(tensor, 1, 0), widest ?? null, pipeline, stage, widest ? told(widest, pipeline, stage) : null];
})"""


def test_weights_of_a_gpu_and_of_a_stage_are_those_of_vllm(page: Page) -> None:
    random = Random(6)
    plain, known = (None, (9, 0), (10, 0)), sorted({gpu.capability for gpu in gpus() if gpu.capability})
    points = []
    for entry in entries():
        for quantization in random.sample((None, "none", *PACKED), 3):
            packed = quantization in PACKED or load(entry.name).native_format is not None
            capability = random.choice([None, *known] if packed else plain)
            dtype, tensor = random.choice(DTYPES), random.randint(1, 8)
            points.append([entry.name, dtype, quantization, capability, tensor, random.random()])
    answers, staged = page.evaluate(STAGES, points), 0
    for point, (alone, widest, pipeline, stage, of_stage) in zip(points, answers, strict=True):
        assert alone == _weights(point[:5]), point
        if widest is not None:
            wanted = _weights([*point[:4], widest], pipeline_parallel_size=pipeline, pipeline_rank=stage)
            assert of_stage == wanted or (isinstance(of_stage, list) and isinstance(wanted, list)), (point, pipeline)
            staged += isinstance(wanted, int)
    assert staged > 100


def _weights(point: list[Any], **degrees: int) -> Any:
    """Bytes, or message and hint of a refusal."""
    name, dtype, quantization, capability, tensor = point
    asked: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "capability": capability}
    try:
        return vllm_weights(load(name), tensor_parallel_size=tensor, **asked, **degrees)[0].bytes
    except UllageError as refusal:
        return [refusal.message, refusal.hint]


def test_a_few_rows_tell_all_that_are_sums_of_them() -> None:
    rows = [("a", [1, 1, 0]), ("b", [2, 2, 0]), ("c", [1, 3, 1]), ("d", [2, 4, 1]), ("e", [0, 1, 0]), ("f", [5, 6, 7])]
    kept = list(independent(rows))
    assert [name for name, _ in kept] == ["a", "c", "e"]  # b = 2 a, d = a + c
    factors = solved([row for _, row in kept], [7, 17, 5])  # 7 = 2 + 5; 17 = 2 + 3 * 5 + 0; 5
    assert factors == [2, 5, 0]


def test_fitted_constants_are_predicted_from_as_the_command_does(browser: Browser) -> None:
    fitted = _calibration("NVIDIA H100 80GB HBM3")
    usual = {"gpu": "h100-80gb", "output_tokens": 256}
    models = ("llama-3.1-8b", "qwen3-30b-a3b")
    asked = [
        {**usual, "model": model, "gpus": count, "prompt_tokens": tokens, "batch_size": 3, **asked}
        for model in models
        for count, tokens in ((1, 1000), (1, 30_000), (2, 5000))
        for asked in ({}, {"quantization": "bnb-nf4"}, {"quantization": "bnb-int8"}, {"attention": "eager"})
    ]
    code = (
        f"(questions) => {{ {script([fitted])}\n$tables = {json.dumps(data(models))};\nreturn ({TOLD})(questions); }}"
    )
    answers = browser.new_page().evaluate(code, asked)
    wanted = [json.loads(json.dumps(document(estimate(**request, calibration=fitted)))) for request in asked]
    assert answers == wanted
    assert {told["calibration"] for told in wanted} == {fitted.id, None}  # eager attention was not measured


def _calibration(gpu: str) -> Calibration:
    """Made by hand: a term for every feature."""
    terms = {
        ("context", "fixed"): 5e8,
        ("context", "bnb-4bit"): 2.5e7,
        ("context", "moe"): 1.25e7,
        ("workspace", "fixed"): 3.3e7,
        ("workspace", "bnb-int8"): 1e6,
        ("activations", "int8-outliers"): 0.0031,
        ("allocator_slack", "fixed"): 2.1e7,
        ("allocator_slack", "state"): 0.21,
        ("allocator_slack", "outgrown"): 0.31,
        ("allocator_slack", "staging"): 0.5,
    }
    nothing: dict[str, Any] = dict.fromkeys(("driver", "cuda", "torch", "transformers", "bitsandbytes", "alloc_conf"))
    return Calibration(
        id="by-hand",
        created_at=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        environment=Environment(gpu=gpu, kind="cuda", **nothing),
        attention=("sdpa",),
        terms=tuple(
            Term(component=component, feature=feature, value=value, low=value, high=value, measurements=9)
            for (component, feature), value in terms.items()
        ),
        residuals=(Residual(component="context", low_bytes=-(10**7), high_bytes=2 * 10**7),),
        left_out=(),
        overheads=(),
        lacking=(),
        measurements=(),
    )


def test_numbers_are_read_as_the_command_reads_them(page: Page) -> None:
    read = "(texts) => texts.map((text) => $analytic$quantity.parse_tokens(text, 'tokens'))"
    assert page.evaluate(read, ["32k", "32K", "1_000", "2.5k", " 7 "]) == [32_000, 32_768, 1000, 2500, 7]
    for text in ("", "0", "1.5", "ten", "-4"):
        page.fill("#prompt-tokens", text)
        assert page.get_attribute("#prompt-tokens", "aria-invalid") == "true"
        assert "--prompt-tokens" in page.inner_text("#sentence")
        assert page.locator(".result:visible").count() == 0
    page.fill("#prompt-tokens", "32K")
    assert "32,768 + 256 tokens" in page.inner_text("#assumptions")


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        (FITS, {"model": "llama-3.1-8b", "gpu": "h100-80gb"}),
        (
            SHORT,
            {"model": "llama-3.1-70b", "gpu": "h100-80gb:2", "prompt_tokens": 32_000, "batch_size": 8}
            | {"quantization": "bnb-nf4", "double_quant": True},
        ),
        (UNLIMITED, {"model": "qwen3-30b-a3b", "dtype": "float16"}),
        (
            VLLM,
            {"model": "llama-3.1-70b", "gpu": "h100-80gb:2", "prompt_tokens": 32_000, "batch_size": 8}
            | {"engine": "vllm"},
        ),
    ],
)
def test_verdict_ledger_and_notes_are_shown(page: Page, state: str, asked: dict[str, Any]) -> None:
    _ask(page, state)
    told = estimate(**asked)
    row = told.fullest
    assert page.inner_text("#sentence").casefold() == verdict(told).casefold()
    quantities = [
        *(row.components[name] for name in COMPONENTS),
        row.allocated,
        row.reserved,
        row.device,
        row.load_peak,
    ]
    shown = [tr.split("\t")[1:] for tr in page.locator("#ledger tbody tr").all_inner_texts()]
    assert shown == [list(cells(quantity)) for quantity in quantities]
    assert page.locator("#notes li").all_inner_texts() == list(told.warnings)
    assert page.locator("#terms li").all_inner_texts() == list(told.engine.lines(told.asked, told.ledgers))
    assert page.locator("#not-modeled li").all_inner_texts() == [*NOT_MODELED, *told.engine.NOT_MODELED]
    assert f"Modelled is {told.engine.NAME} {told.engine.VERSION};" in page.inner_text("footer")
    assert page.locator("#split tbody tr").count() == (told.gpus if told.gpus > 1 else 1)
    figures = page.inner_text("#figures")
    assert f"{gib(told.rule_of_thumb.total_bytes)} GiB" in figures
    assert told.gpu is None or f"{told.max_tokens:,}" in figures


def test_the_bar_is_drawn_to_scale(page: Page) -> None:
    told = estimate("llama-3.1-8b", gpu="h100-80gb")
    parts = page.locator("#bar .part")
    widths = [box["width"] for i in range(parts.count()) if (box := parts.nth(i).bounding_box())]
    whole = page.locator("#bar .stack").bounding_box()
    assert whole is not None
    assert told.capacity_bytes is not None
    for name, width in zip(COMPONENTS, widths, strict=True):
        wanted = whole["width"] * told.fullest.components[name].bytes / (1.001 * told.capacity_bytes)
        assert width == pytest.approx(wanted, abs=1.5), name  # a border is no narrower than a pixel


def test_the_map_marks_what_fits_and_the_question_itself(page: Page) -> None:
    _ask(page, SHORT)
    page.wait_for_selector(".stale", state="detached")
    assert page.locator("#map td.asked .away").inner_text() == "does not fit"
    assert {page.locator("#map .fits").count() > 0, page.locator("#map .tight").count() > 0} == {True}


# ---------------------------------------------------------------- the address


def test_a_change_by_keyboard_changes_verdict_and_address(page: Page) -> None:
    before = page.inner_text("#sentence")
    page.focus("#gpus")
    page.keyboard.press("ArrowDown")
    assert "2 × h100-80gb" in page.inner_text("#sentence") != before
    assert "gpus=2" in page.evaluate("location.hash")
    page.focus("#prompt-tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("64k")
    assert "64,000 + 256 tokens" in page.inner_text("#assumptions")
    page.keyboard.press("Tab")
    assert "prompt-tokens=64k" in page.evaluate("location.hash")


def test_back_and_forward_restore_the_question(page: Page) -> None:
    page.select_option("#gpus", "4")
    page.select_option("#gpu", "t4")
    page.go_back()
    assert page.input_value("#gpu") == "h100-80gb"
    assert "4 × h100-80gb" in page.inner_text("#sentence")
    page.go_back()
    assert "1 × h100-80gb" in page.inner_text("#sentence")
    page.go_forward()
    page.go_forward()
    assert "4 × t4" in page.inner_text("#sentence")


def test_an_address_restores_every_control(page: Page, file: Path) -> None:
    rare = "attention=eager&padded=on&cache-implementation=static&gpu-memory-utilization=0.9"
    of_vllm = "max-num-seqs=64&max-num-batched-tokens=4k&kv-cache-dtype=fp8&enforce-eager=on&quantization=fp8"
    for state in (UNLIMITED, f"{VLLM}&{of_vllm}&gpu-memory-utilization=0.8", f"{SHORT}&{rare}"):
        _open(page, file, state)
        kept = page.evaluate("$address().slice(1)")
        assert parse_qs(kept, keep_blank_values=True) == parse_qs(state[1:], keep_blank_values=True)
    asked: dict[str, Any] = {"prompt_tokens": 32_000, "batch_size": 8, "quantization": "bnb-nf4", "double_quant": True}
    asked |= {"attention": "eager", "padded": True, "cache_implementation": "static", "gpu_memory_utilization": 0.9}
    told = estimate("llama-3.1-70b", gpu="h100-80gb:2", **asked)
    assert page.inner_text("#sentence").casefold() == verdict(told).casefold()


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ("#model=no-such-model&gpu=l4", "no-such-model is not in the catalogue"),
        ("#model=llama-3.1-8b&gpu=no-such-gpu", "gpu 'no-such-gpu'"),
        ("#model=llama-3.1-8b&gpu=constructor", "gpu 'constructor'"),
        ("#model=llama-3.1-8b&gpus=99", "gpus '99'"),
        ("#model=llama-3.1-8b&engine=sglang", "engine 'sglang'"),
        ("#model=llama-3.1-8b&quantization=no-such-format", "no-such-format"),
        ("#model=llama-3.1-8b&engine=vllm&attention=eager", "'attention', which is not known to vllm"),
        ("#model=llama-3.1-8b&batchsize=8", "'batchsize'"),
        ("#model=llama-3.1-8b&constructor=8", "'constructor'"),
    ],
)
def test_an_address_with_what_is_unknown_is_not_answered(page: Page, file: Path, state: str, named: str) -> None:
    _open(page, file, state)
    assert named in page.inner_text("#sentence").casefold()
    assert page.locator("#ledger").first.is_hidden()
    page.select_option("#gpu", "l4")
    if "no-such-model" not in state:
        assert "on 1 × l4" in page.inner_text("#sentence")


def test_models_are_found_by_hub_id_in_any_case(page: Page) -> None:
    page.fill("#model", "META-LLAMA/llama-3.1-70B")
    assert "meta-llama/Llama-3.1-70B" in page.inner_text("#assumptions")


def test_the_engine_changes_what_can_be_asked_for(page: Page) -> None:
    page.select_option("#format", "quantization=w4a16")
    page.evaluate("document.getElementById('more').open = true")
    for engine, other in (("vllm", "transformers"), ("transformers", "vllm")):
        page.focus("#engine")
        page.keyboard.press("ArrowDown" if engine == "vllm" else "ArrowUp")
        assert all(page.is_visible(f"#{name}") for name in RARE[engine])
        assert not any(page.is_visible(f"#{name}") for name in set(RARE[other]) - set(RARE[engine]))
        assert page.input_value("#format") == "quantization=w4a16"
        told = estimate("llama-3.1-8b", gpu="h100-80gb", engine=engine, quantization="w4a16")
        assert page.inner_text("#sentence").casefold() == verdict(told).casefold()
        assert ("engine=vllm" in page.evaluate("$address()")) is (engine == "vllm")
    page.select_option("#format", "quantization=bnb-nf4")
    page.select_option("#engine", "vllm")
    assert page.input_value("#format") == ""  # vLLM's kernels of it are not modelled


@pytest.mark.parametrize(
    ("engine", "dtype"), [("transformers", "auto"), ("transformers", "float32"), ("vllm", "float16")]
)
def test_what_would_help_is_a_link_to_that_answer(page: Page, engine: str, dtype: str) -> None:
    told = estimate("llama-3.1-70b", gpu="h100-80gb:2", prompt_tokens=8000, batch_size=4, dtype=dtype, engine=engine)
    state = "#model=llama-3.1-70b&gpu=h100-80gb&gpus=2&prompt-tokens=8k&batch-size=4"
    _ask(page, state + f"&dtype={dtype}" * (dtype != "auto") + "&engine=vllm" * (engine == "vllm"))
    assert page.locator("#help li").all_inner_texts() == [lever_words(lever) for lever in told.levers]
    for lever in told.levers:
        asked = page.evaluate("location.hash")
        page.get_by_role("link", name=lever.change).click()
        _wait_for_figures(page)
        assert f"{gib(lever.device_bytes)} GiB" in page.inner_text("#figures"), lever
        page.go_back()
        page.wait_for_function("(asked) => location.hash === asked", arg=asked)
        _wait_for_figures(page)


def test_stages_of_a_pipeline_are_told_and_not_linked(page: Page) -> None:
    told = estimate("llama-3.1-405b", gpu="a100-40gb", engine="vllm", quantization="fp8")
    assert told.needed is not None
    assert told.needed.pipeline > 1
    _ask(page, "#engine=vllm&model=llama-3.1-405b&gpu=a100-40gb&quantization=fp8")
    lever = f"--gpu a100-40gb:{told.needed.gpus}"
    assert lever in page.inner_text("#help")
    assert page.get_by_role("link", name=lever).count() == 0


# ---------------------------------------------------------------- one file, and nothing else


def test_nothing_is_requested_and_nothing_could_be(browser: Browser, file: Path) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
    _open(page, file, SHORT)
    refused = page.evaluate("fetch('data:text/plain,x').then(() => 'sent', () => 'refused')")
    policy = page.get_attribute("meta[http-equiv='Content-Security-Policy']", "content") or ""
    assert set(asked) <= {file.as_uri(), "about:blank", "data:,"}
    assert refused == "refused"
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    page.close()


def test_the_file_is_small_and_names_no_other(file: Path) -> None:
    text = file.read_text("utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert [*file.parent.iterdir()] == [file]
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "@import" not in text
    assert "url(" not in text


def test_without_javascript_the_page_says_what_to_do(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "ullage estimate MODEL --gpu GPU" in page.inner_text("main")
    assert not page.is_visible("#asked")
    context.close()


def test_an_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytic.webpage.page.html", lambda: "a page")
    (tmp_path / "site").write_text("a file", "utf-8")
    with pytest.raises(UllageError, match="site"):
        write(tmp_path / "site")


# ---------------------------------------------------------------- everyone can use it


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_and_nothing_is_cut_off(page: Page, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.getElementById('more').open = true")
    for state in (SHORT, VLLM, REFUSED, UNLIMITED, VAST, f"{VAST}&engine=vllm".replace("&attention=eager", "")):
        _ask(page, state)
        page.wait_for_selector(".stale", state="detached")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        if state == REFUSED:
            page.fill("#batch-size", "none")
        found = axe(page) if state in (SHORT, VLLM, REFUSED) else []
        assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == [], state


@pytest.mark.parametrize("engine", RARE)
def test_every_control_is_reached_by_tab_and_has_a_visible_focus(page: Page, file: Path, engine: str) -> None:
    _open(page, file, f"{FITS}&engine={engine}")
    page.evaluate("document.getElementById('more').open = true")
    reached: list[str] = []
    for _ in range(len(CONTROLS) + len(RARE[engine]) + 6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] != "BODY":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
    wanted = [*CONTROLS, "SUMMARY", *RARE[engine], "copy-command", "copy-link"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted


def test_the_verdict_is_announced_and_marks_are_not_colour_alone(page: Page) -> None:
    assert page.get_attribute("#verdict", "aria-live") == "polite"
    assert page.inner_text("#mark") == "●"
    page.select_option("#gpu", "t4")
    assert page.inner_text("#mark") == "×"
    numbers = page.locator("#ledger .swatch").all_inner_texts()
    assert numbers == [str(i) for i in range(1, len(COMPONENTS) + 1)]


def test_every_gpu_and_format_can_be_chosen(page: Page) -> None:
    offered = page.evaluate("[...document.getElementById('gpu').options].map((option) => option.value)")
    assert sorted(offered) == sorted(["", *(gpu.name for gpu in gpus())])
    formats = page.evaluate("[...document.getElementById('format').options].map((option) => option.value)")
    assert {f"quantization={name}" for name in ("none", "bnb-nf4", "bnb-fp4", "bnb-int8", *OFFERED)} <= set(formats)
    assert page.locator("#models option").count() == len(entries())
    page.select_option("#engine", "vllm")
    for control, wanted in (
        ("format", {"", *(f"dtype={dtype}" for dtype in DTYPES), *(f"quantization={name}" for name in PACKED)}),
        ("kv-cache-dtype", set(CACHE_DTYPES)),
    ):
        offered = page.evaluate(f"[...document.getElementById('{control}').options].map((option) => option.value)")
        assert set(offered) == wanted
