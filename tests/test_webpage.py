"""The page answers as the command does, sends nothing, and can be used by keyboard, on a phone and without sight."""

import json
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
from playwright.sync_api import Browser, Page

from analytic.calibration import Calibration, Environment, Residual, Term
from analytic.errors import UllageError
from analytic.estimator import estimate
from analytic.hardware import gpus
from analytic.ledger import COMPONENTS
from analytic.models.catalog import entries
from analytic.plans.budget import budget_map
from analytic.report.command import command_of
from analytic.report.estimate import document
from analytic.report.sentences import assumptions, cells, gib, lever_words, verdict
from analytic.webpage.page import data, script, write
from analytic.webpage.tables import OFFERED

REQUESTS = 210
MOST_BYTES = 1_500_000

CONTROLS = ("model", "gpu", "gpus", "format", "prompt-tokens", "output-tokens", "batch-size")
RARE = ("attention", "cache-implementation", "padded", "gpu-memory-utilization")
FITS = "#model=llama-3.1-8b&gpu=h100-80gb"
SHORT = "#model=llama-3.1-70b&gpu=h100-80gb&gpus=2&prompt-tokens=32k&batch-size=8&quantization=bnb-nf4&double-quant=on"
VAST = (
    "#model=llama-3.1-405b&gpu=gtx-1080-ti&gpus=8&prompt-tokens=9000000&batch-size=9000&dtype=float32&attention=eager"
)
REFUSED = "#model=gpt-oss-120b&gpu=h100-80gb&quantization=bnb-nf4"
UNLIMITED = "#model=qwen3-30b-a3b&gpu=&dtype=float16"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("site"))


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
    """The page in another state, without opening it again."""
    page.evaluate("(state) => { history.replaceState(null, '', state); $restore(); $ask(); }", state)
    page.wait_for_selector(".stale", state="detached")


# ---------------------------------------------------------------- the same answers


def _requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Of all models and GPUs in turn, in no order, and anything else by chance."""
    random = Random(seed)
    models, devices = [entry.name for entry in entries()], [gpu.name for gpu in gpus()]
    random.shuffle(models)
    random.shuffle(devices)
    return [_request(random, models[i % len(models)], devices[i % len(devices)]) for i in range(count)]


def _request(random: Random, model: str, gpu: str) -> dict[str, Any]:
    formats = [{}, {}, {"quantization": "none"}, *({"dtype": dtype} for dtype in ("float16", "bfloat16", "float32"))]
    formats += [{"quantization": name} for name in ("bnb-nf4", "bnb-fp4", "bnb-int8", *OFFERED)]
    formats += [{"quantization": name, "double_quant": True} for name in ("bnb-nf4", "bnb-fp4")]
    formats += [{"quantization": "bnb-int8", "dtype": "float16"}, {"quantization": "bnb-nf4", "dtype": "float32"}]
    rare = {"attention": "eager", "padded": True, "cache_implementation": "static", "gpu_memory_utilization": 0.9}
    return {
        "model": model,
        "gpu": gpu,
        "gpus": random.randint(1, 8),
        "prompt_tokens": int(200_000 ** random.random()),
        "output_tokens": random.choice((1, 256, random.randint(1, 4000))),
        "batch_size": random.choice((1, random.randint(1, 512))),
        **random.choice(formats),
        **{name: value for name, value in rare.items() if random.random() < 0.2},
    }


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
    kinds = Counter("refused" if "refused" in told else str(told["verdict"]["fits"]) for told in wanted)
    assert min(kinds[kind] for kind in ("True", "False", "refused")) >= 10, kinds


def test_refusals_are_those_of_the_command(page: Page) -> None:
    usual = {"gpu": "h100-80gb", "gpus": 1, "prompt_tokens": 100, "output_tokens": 10, "batch_size": 1}
    asked = [
        {**usual, "model": "gpt-oss-120b", "quantization": "bnb-nf4"},  # published packed
        {**usual, "model": "bloom-176b"},  # names no dtype
        {**usual, "model": "smollm2-360m", "gpu": "t4", "quantization": "w4a16"},  # no multiple of the group
        {**usual, "model": "llama-3.1-8b", "gpu_memory_utilization": 1.5},
        {**usual, "model": "llama-3.1-8b", "double_quant": True},
        {**usual, "model": "llama-3.1-8b", "batch_size": 2_000_000},
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
        assert answer == json.loads(json.dumps([*words, fields])), request


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
    page.wait_for_selector("#map td.asked")
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
    for state in (UNLIMITED, f"{SHORT}&{rare}"):
        _open(page, file, state)
        kept = page.evaluate("$address().slice(1)")
        assert parse_qs(kept, keep_blank_values=True) == parse_qs(state[1:], keep_blank_values=True)
    asked: dict[str, Any] = {"prompt_tokens": 32_000, "batch_size": 8, "quantization": "bnb-nf4", "double_quant": True}
    asked |= {"attention": "eager", "padded": True, "cache_implementation": "static", "gpu_memory_utilization": 0.9}
    told = estimate("llama-3.1-70b", gpu="h100-80gb:2", **asked)
    assert page.inner_text("#sentence").casefold() == verdict(told).casefold()


def test_an_address_with_what_is_unknown_is_read_as_far_as_it_can(page: Page, file: Path) -> None:
    _open(page, file, "#model=no-such-model&gpu=no-such-gpu&gpus=99&quantization=no-such-format")
    assert [page.input_value(f"#{id}") for id in ("gpu", "gpus", "format")] == ["h100-80gb", "1", ""]
    assert "no-such-model is not in the catalogue" in page.inner_text("#sentence").casefold()


def test_models_are_found_by_hub_id_in_any_case(page: Page) -> None:
    page.fill("#model", "META-LLAMA/llama-3.1-70B")
    assert "meta-llama/Llama-3.1-70B" in page.inner_text("#assumptions")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_what_would_help_is_a_link_to_that_answer(page: Page, dtype: str) -> None:
    told = estimate("llama-3.1-70b", gpu="h100-80gb:2", prompt_tokens=8000, batch_size=4, dtype=dtype)
    state = "#model=llama-3.1-70b&gpu=h100-80gb&gpus=2&prompt-tokens=8k&batch-size=4"
    _ask(page, state + f"&dtype={dtype}" * (dtype != "auto"))
    assert page.locator("#help li").all_inner_texts() == [lever_words(lever) for lever in told.levers]
    for lever in told.levers:
        page.get_by_role("link", name=lever.change).click()
        page.wait_for_selector(".stale", state="detached")
        assert f"{gib(lever.device_bytes)} GiB" in page.inner_text("#figures"), lever
        page.go_back()
        page.wait_for_selector(".stale", state="detached")


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


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
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
    for state in (SHORT, REFUSED, UNLIMITED, VAST):
        _ask(page, state)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        if state == REFUSED:
            page.fill("#batch-size", "none")
        found = axe(page) if state in (SHORT, REFUSED) else []
        assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == [], state


def test_every_control_is_reached_by_tab_and_has_a_visible_focus(page: Page, file: Path) -> None:
    _open(page, file, FITS)
    page.evaluate("document.getElementById('more').open = true")
    reached: list[str] = []
    for _ in range(len(CONTROLS) + len(RARE) + 6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] != "BODY":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
    wanted = [*CONTROLS, "SUMMARY", *RARE, "copy-command", "copy-link"]
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
