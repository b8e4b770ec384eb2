"""The arithmetic of comparing, on figures made up; and the records themselves, as files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from made import SYNTHETIC, made_up

from analytic.cli import main
from analytic.compare import Comparison, Row, compare, gpu_of
from analytic.errors import UllageError, UsageError
from analytic.measurement import Device, Measurement, Phase, read_measurement, read_measurements, write_measurement
from analytic.models import catalog
from analytic.quantity import bounded
from analytic.report.compare import scoreboard

WEIGHTS = 6_738_415_616 * 2  # Llama 2 7B's parameters in bfloat16
STATE = 128 * 32 * 2 * 32 * 128 * 2  # tokens x layers x keys and values x heads x head size x bytes


def test_exact_figures_have_no_error() -> None:
    found = compare([made_up(weights=WEIGHTS, state=STATE, retained=WEIGHTS + 1000, allocated=WEIGHTS + STATE + 2000)])
    errors = {row.figure: row.error_bytes for row in found.rows}
    assert errors["weights"] == 0
    assert errors["sequence_state"] == 0
    assert {"activations", "workspace", "allocated"} <= set(errors)
    assert "device" not in errors  # nobody measured it


def row(measured: int, estimated: int, *, low: int | None = None, high: int | None = None) -> Row:
    quantity = bounded(estimated if low is None else low, estimated, estimated if high is None else high, "assumed")
    return Row(measurement=made_up(), figure="context", measured_bytes=measured, estimated=quantity)


def test_an_error_is_relative_to_what_was_measured() -> None:
    assert row(200, 210).error_fraction == 0.05
    assert row(0, 0).error_fraction == 0
    assert row(0, 7).error_fraction is None
    assert row(100, 120, low=90, high=130).is_inside
    assert not row(100, 120).is_inside


def test_the_summary_is_quantiles_of_absolute_errors() -> None:
    rows = tuple(row(100, 100 + error, low=0, high=104) for error in (-4, 0, 1, 2, 4))
    (summary,) = Comparison(rows=rows, without_figures=()).summaries
    # sizes 0, 1, 2, 4, 4 %: the 95 % quantile lies at place 3.8, between 4 and 4
    assert (summary.median_fraction, summary.p95_fraction, summary.max_fraction) == (0.02, 0.04, 0.04)
    assert (summary.max_bytes, summary.inside_fraction) == (4, 1.0)


def test_an_estimate_of_something_where_nothing_was_measured_is_the_worst() -> None:
    (summary,) = Comparison(rows=(row(0, 7), row(100, 101)), without_figures=()).summaries
    assert summary.max_fraction == float("inf")


def test_a_run_that_did_not_end_is_counted_and_not_compared() -> None:
    found = compare([made_up(status="oom"), made_up(weights=WEIGHTS)])
    assert [m.status for m in found.without_figures] == ["oom"]
    assert [r.figure for r in found.rows] == ["weights"]


def test_one_figure_alone_and_an_unknown_one() -> None:
    measured = made_up(weights=WEIGHTS, load_peak=WEIGHTS)
    assert {r.figure for r in compare([measured], figures=("load_peak",)).rows} == {"load_peak"}
    with pytest.raises(UsageError, match="moonlight"):
        compare([measured], figures=("moonlight",))


def test_a_twin_is_compared_with_a_twin() -> None:
    # 30 of 32 layers less: attention 4 x 4096 x 4096, feed-forward 3 x 4096 x 11008, two norms of 4096
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    (found,) = compare([made_up(twin_layers=2, weights=WEIGHTS - 30 * layer * 2)]).rows
    assert found.error_bytes == 0


def test_a_gpu_is_what_the_device_told_under_the_name_of_the_table() -> None:
    told = Device(kind="cuda", name="NVIDIA H200", capability=(9, 0), total_bytes=150_000_000_000, sms=132)
    gpu = gpu_of(told)
    assert gpu is not None
    assert (gpu.name, gpu.total_bytes) == ("h200", 150_000_000_000)
    unknown = gpu_of(SYNTHETIC)
    assert unknown is not None
    assert (unknown.name, unknown.capability) == ("synthetic", (9, 0))
    assert gpu_of(Device(kind="cpu", name="AMD EPYC", total_bytes=1)) is None


def test_a_model_that_cannot_be_estimated_is_named_with_its_measurement() -> None:
    measured = made_up(id="no-such-run", weights=WEIGHTS)
    config = dict(catalog.load("llama-2-7b").config) | {"model_type": "no_such_type"}
    with pytest.raises(UllageError, match=r"no-such-run.*no_such_type"):
        compare([replace(measured, model=replace(measured.model, config=config))])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    file = tmp_path / "device" / "run.json"
    write_measurement(made_up(weights=WEIGHTS), file)
    return file


def test_a_record_is_read_as_it_was_written(record: Path) -> None:
    assert read_measurement(record) == made_up(weights=WEIGHTS)
    assert [path.name for path in record.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d | {"schema_version": "2"}, "schema version '2'"),
        (lambda d: d | {"kind": "recipe"}, "not a measurement"),
        (lambda d: d | {"status": "fine"}, "status"),
        (lambda d: {k: v for k, v in d.items() if k != "model"}, "model"),
        (lambda d: d | {"phases": [{"name": "load", "seconds": -1.0}]}, "negative"),
        (lambda d: d | {"request": d["request"] | {"batch_size": 0}}, "batch-size"),
        (lambda d: d | {"weights_by_format": {"bfloat16": "many"}}, "weights_by_format"),
        (lambda d: d | {"phases": [{"name": "load", "seconds": float("nan")}]}, "NaN"),
        (lambda d: [d], "not a measurement"),
    ],
)
def test_a_foreign_or_damaged_record_is_named(change: object, named: str, record: Path) -> None:
    record.write_text(json.dumps(change(json.loads(record.read_text()))))  # type: ignore[operator]
    with pytest.raises(UllageError, match=named) as raised:
        read_measurement(record)
    assert str(record) in raised.value.message


def test_a_record_that_was_cut_off_is_named(record: Path) -> None:
    record.write_text(record.read_text()[:100])
    with pytest.raises(UllageError, match=r"run\.json: not JSON"):
        read_measurements([record.parent])


def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UllageError, match="not a file"):
        read_measurements([tmp_path / "pipe.json"])


def test_folders_are_read_through_and_other_records_passed_over(record: Path, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"kind": "calibration"}')
    assert len(read_measurements([tmp_path])) == 1
    (tmp_path / "stray.json").write_text('{"kind": "recipe"}')
    with pytest.raises(UllageError, match=r"stray\.json"):
        read_measurements([tmp_path])
    with pytest.raises(UllageError, match="no measurements"):
        read_measurements([])


@pytest.mark.parametrize(("tolerance", "code"), [("5%", 3), ("0.11", 0), ("11 %", 0)])
def test_fail_over_a_tolerance(tolerance: str, code: int, tmp_path: Path) -> None:
    write_measurement(made_up(weights=round(WEIGHTS / 1.1)), tmp_path / "a.json")
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(tmp_path), "--fail-over", tolerance])
    assert stop.value.code == code


def test_what_is_not_a_share_is_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(record), "--fail-over", "little"])
    assert stop.value.code == 2
    assert "little" in capsys.readouterr().err


def test_the_scoreboard_has_a_part_a_device_and_names_what_is_missing() -> None:
    runs: list[Measurement] = [
        made_up(id="a", weights=WEIGHTS),
        made_up(id="b", weights=WEIGHTS, device=replace(SYNTHETIC, name="synthetic too")),
        made_up(id="c", status="oom"),
    ]
    text = scoreboard(compare(runs))
    assert text == scoreboard(compare(runs[::-1]))
    assert text.count("## synthetic") == 2
    assert "| weights | 1 | 0 % | 0 % | 0 % | 0.000 | 100 % |" in text
    assert "- `c`: out of memory" in text


def test_a_phase_refuses_what_no_device_returns() -> None:
    with pytest.raises(ValueError, match="allocated_bytes is negative"):
        Phase(name="load", seconds=1.0, allocated_bytes=-1)
