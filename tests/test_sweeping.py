"""Matrices and sweeps, with a stand-in for the measuring."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import made_up

from analytic.errors import UllageError, UsageError
from analytic.measurement import Failure, Measurement, read_measurement
from analytic.models import catalog
from profiler.case import Case
from profiler.matrix import read_matrix
from profiler.sweep import sweep

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

MATRIX = """
[defaults]
models = ["llama-2-7b", "qwen3-0.6b"]

[[runs]]
formats = ["bfloat16", "bnb-nf4-dq"]
batch_size = [1, 8]
prompt_tokens = "2K"

[[runs]]
value = 5
formats = "float16"
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    file = tmp_path / "m.toml"
    file.write_text(MATRIX)
    return file


def test_a_block_is_the_product_of_its_lists_and_the_most_valuable_comes_first(matrix: Path) -> None:
    cases = read_matrix(matrix)
    assert len(cases) == 2 * 2 * 2 + 2
    assert [case.request.dtype for case in cases[:3]] == ["float16", "float16", "bfloat16"]
    assert {case.request.prompt_tokens for case in cases[2:]} == {2048}
    assert any(case.request.double_quant for case in cases)


def test_a_case_that_comes_twice_is_measured_once(matrix: Path) -> None:
    matrix.write_text(MATRIX + '\n[[runs]]\nformats = "float16"\n')
    assert len(read_matrix(matrix)) == 10


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[runs]", "not TOML"),
        ("", "no runs"),
        ('[[runs]]\nmodels = "nosuch"\nformats = "bfloat16"', "run 1: models: model 'nosuch'"),
        ('[[runs]]\nmodels = "llama-2-7b"\nformats = "int3"', "run 1: formats: 'int3'"),
        ('[[runs]]\nmodels = "llama-2-7b"\nformats = []', "formats: the list is empty"),
        ('[[runs]]\nmodels = "llama-2-7b"\nformats = "bfloat16"\nbatch = 2', "'batch' is not known"),
        ('[[runs]]\nmodels = "llama-2-7b"\nformats = "bfloat16"\nbatch_size = 0', "batch-size"),
        ('[[runs]]\nformats = "bfloat16"', "no models"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, named: str, matrix: Path) -> None:
    matrix.write_text(text)
    with pytest.raises(UllageError, match=r"m\.toml") as raised:
        read_matrix(matrix)
    assert named in raised.value.message


def test_the_full_matrix_covers_what_it_claims() -> None:
    cases = read_matrix(BENCHMARKS / "full.toml")
    requests = [case.request for case in cases]
    assert len(cases) >= 60
    models = {catalog.load(str(catalog.find(case.model))) for case in cases}
    assert len({model.architecture for model in models}) >= 8
    assert min(m.parameters for m in models) < 10**9 < 60 * 10**9 < max(m.parameters for m in models)
    assert {r.dtype for r in requests} == {"float32", "float16", "bfloat16"}
    assert {r.weight_format for r in requests} >= {None, "bnb-int8", "bnb-nf4", "bnb-fp4", "bnb-nf4-dq"}
    assert {1, 32} <= {r.batch_size for r in requests}
    assert {128, 16384} <= {r.prompt_tokens for r in requests}
    assert {r.attention for r in requests} == {"sdpa", "eager"}


@pytest.mark.parametrize("name", ["short", "full", "virtual"])
def test_no_case_exceeds_an_h200_by_its_weights_alone(name: str) -> None:
    bits = {"bnb-int8": 8, "bnb-nf4": 4, "bnb-fp4": 4, None: 16}
    for case in read_matrix(BENCHMARKS / f"{name}.toml"):
        parameters = catalog.load(str(catalog.find(case.model))).parameters
        assert parameters * bits[case.request.quantization] / 8 < 143771 * 2**20


class Device:
    """A device that takes ten seconds a case, and what was asked of it."""

    def __init__(self, cases: tuple[Case, ...]) -> None:
        self.now, self.asked = 0.0, []  # type: tuple[float, list[str]]
        self.cases = cases

    def clock(self) -> float:
        return self.now

    def measure(self, case: Case, **_: Any) -> Measurement:
        self.now += 10
        self.asked.append(case.id)
        return made_up(id=case.id, weights=10)


@pytest.fixture
def cases(matrix: Path) -> tuple[Case, ...]:
    return read_matrix(matrix)[:4]


def test_a_sweep_goes_on_where_it_ended(cases: tuple[Case, ...], tmp_path: Path) -> None:
    device, out = Device(cases), tmp_path / "out"
    first = sweep(cases[:2], device="cpu", out=out, measure=device.measure, clock=device.clock)
    again = sweep(cases, device="cpu", out=out, measure=device.measure, clock=device.clock)
    assert (len(first.done), len(again.skipped), len(again.done)) == (2, 2, 2)
    assert device.asked == [case.id for case in cases]
    assert sorted(file.stem for file in out.iterdir()) == sorted(case.id for case in cases)


def test_a_budget_stops_before_a_case_that_would_not_end(cases: tuple[Case, ...], tmp_path: Path) -> None:
    device = Device(cases)
    done = sweep(cases, device="cpu", out=tmp_path / "o", budget_s=25, measure=device.measure, clock=device.clock)
    assert device.now <= 25
    assert set(done.done) | set(done.left_out) == {case.id for case in cases}
    assert done.left_out
    with pytest.raises(UsageError, match="budget"):
        sweep(cases, device="cpu", out=tmp_path / "o", budget_s=-1, measure=device.measure)


def test_a_case_too_long_for_what_is_left_makes_room_for_shorter_ones(
    cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {case.id: 10**9 for case in cases} | {cases[1].id: 10**12}
    monkeypatch.setattr("profiler.sweep._parameters", lambda case: sizes[case.id])
    device = Device(cases)
    done = sweep(cases, device="cpu", out=tmp_path / "o", budget_s=100, measure=device.measure, clock=device.clock)
    assert (done.left_out, device.asked) == ((cases[1].id,), [cases[0].id, cases[2].id, cases[3].id])


@pytest.mark.parametrize(("budget_s", "timeout_s", "limit"), [(None, 7, 7), (100, 7, 7), (5, 7, 5), (None, None, None)])
def test_a_case_gets_what_is_left_or_its_own_limit(
    cases: tuple[Case, ...], budget_s: float | None, timeout_s: float | None, limit: float | None, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def measure(case: Case, **flags: Any) -> Measurement:
        asked.append(flags["timeout_s"])
        return made_up(id=case.id, weights=10)

    times = {"budget_s": budget_s, "timeout_s": timeout_s}
    sweep(cases[:1], device="cpu", out=tmp_path / "o", measure=measure, clock=lambda: 0.0, **times)
    assert asked == [limit]


def test_a_damaged_record_is_measured_again_and_kept(cases: tuple[Case, ...], tmp_path: Path) -> None:
    file = tmp_path / f"{cases[0].id}.json"
    file.write_text('{"half": ')
    done = sweep(cases[:1], device="cpu", out=tmp_path, measure=Device(cases).measure)
    assert done.done == (cases[0].id,)
    assert read_measurement(file).id == cases[0].id
    assert (tmp_path / f"{file.name}.damaged").read_text() == '{"half": '


def test_what_fails_does_not_stop_the_rest(cases: tuple[Case, ...], tmp_path: Path) -> None:
    device = Device(cases)

    def measure(case: Case, **_: Any) -> Measurement:
        if case is cases[0]:
            raise UllageError("no room")
        found = device.measure(case)
        if case is cases[1]:
            return replace(found, status="error", failure=Failure(phase="load", message="broken"))
        return replace(found, status="oom") if case is cases[2] else found

    done = sweep(cases, device="cpu", out=tmp_path / "o", measure=measure)
    assert done.failed == {cases[0].id: "no room", cases[1].id: "broken"}
    assert done.done == (cases[2].id, cases[3].id)
    again = sweep(cases, device="cpu", out=tmp_path / "o", measure=device.measure)
    assert again.done == (cases[0].id, cases[1].id)


def test_an_interrupt_loses_at_most_the_case_that_runs(cases: tuple[Case, ...], tmp_path: Path) -> None:
    device = Device(cases)

    def measure(case: Case, **_: Any) -> Measurement:
        if case is cases[2]:
            raise KeyboardInterrupt
        return device.measure(case)

    done = sweep(cases, device="cpu", out=tmp_path / "o", measure=measure)
    assert done.interrupted
    assert len(done.done) == 2
    assert all(json.loads(file.read_text())["kind"] == "measurement" for file in (tmp_path / "o").iterdir())
