"""Reports of measurements, comparisons, calibrations and engine logs: what they show is what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import ullage
from made import SYNTHETIC, made_up
from start_banners import banner, starts
from test_calibrate import CONSTANTS, MIB, campaign

from analytic.calibrate import calibrate
from analytic.compare import Comparison, Row, compare, estimate_of
from analytic.course import course_of
from analytic.measurement import Device, Failure, LiveTensors, Measurement, ModuleRow, Peak, Phase, read_measurement
from analytic.quantity import bounded
from analytic.report.calibration import report as calibration_report
from analytic.report.compare import document as comparison_document
from analytic.report.compare import report as comparison_report
from analytic.report.markdown import markdown
from analytic.report.measurement import report as measurement_report
from analytic.report.parts import Figure, Intervals, Lines, Predicted, Report, StackedBars, Table, Timeline, Waterfall
from analytic.report.starts import Compared
from analytic.report.starts import report as starts_report
from analytic.starts.fit import fit

GIB = 2**30
RECORDS = Path(__file__).parent.parent / "results" / "cpu"
WEIGHTS = 6_738_415_616 * 2  # Llama 2 7B's parameters in bfloat16
STATE = 128 * 32 * 2 * 32 * 128 * 2  # tokens x layers x keys and values x heads x head size x bytes
RETAINED, ALLOCATED, RESERVED, DEVICE = (WEIGHTS + size * MIB for size in (32, 200, 240, 740))


def run(**more: Any) -> Measurement:
    """200 MiB above the weights, 40 MiB of slack and 500 MiB of context."""
    sizes = {"weights": WEIGHTS, "state": STATE, "retained": RETAINED, "allocated": ALLOCATED, "reserved": RESERVED}
    return made_up(**{**sizes, "device_bytes": DEVICE, **more})


def simulated(**more: Any) -> Measurement:
    return run(device=replace(SYNTHETIC, kind="virtual", used_basis="assumed-context"), **more)


def of(report: Report, kind: type[Any], name: str | None = None) -> Any:
    (found,) = [f for f in report.figures if isinstance(f, kind) and name in (None, f.name)]
    return found


def table(report: Report, title: str) -> Table:
    (found,) = [b for b in report.blocks if isinstance(b, Table) and b.title.startswith(title)]
    return found


def test_the_observed_ledger_stands_on_what_was_measured_beside_the_estimate() -> None:
    report = measurement_report(run())
    bars = of(report, StackedBars)
    seen, estimated = bars.bars
    # activations: 200 MiB less the 32 that stay and the 64 of keys and values
    parts = {"weights": WEIGHTS, "sequence state": 64 * MIB, "activations": 104 * MIB, "workspace": 32 * MIB}
    parts |= {"allocator slack": 40 * MIB, "context": 500 * MIB}
    assert {part.label: part.bytes for part in seen.segments} == parts
    assert (seen.low_bytes, seen.high_bytes) == (DEVICE, DEVICE)
    assert {part.basis for part in seen.segments} == {"measured"}
    assert {part.label: part.bytes for part in estimated.segments}["weights"] == WEIGHTS
    assert bars.capacity_bytes == 80 * GIB
    assert report.status == "fits"
    assert f"{DEVICE / GIB:.2f} GiB of the device's 80.00" in report.headline


def test_what_was_simulated_is_not_called_measured() -> None:
    report = measurement_report(simulated())
    seen = of(report, StackedBars).bars[0]
    assert {part.basis for part in seen.segments} == {"traced", "assumed"}
    assert [part.label for part in seen.segments if part.basis == "assumed"] == ["context"]
    way = of(report, Waterfall)
    assert (way.steps[-1].label, way.steps[-1].basis, way.steps[-1].bytes) == ("simulated", "traced", DEVICE)
    assert "measured" not in markdown(report)


def test_the_way_from_the_rule_ends_at_what_was_measured() -> None:
    steps = of(measurement_report(run()), Waterfall).steps
    reached = 0
    for step in steps:
        reached = reached + step.bytes if not step.is_level else reached or step.bytes
        assert not step.is_level or reached == step.bytes, step
    assert (steps[-1].label, reached) == ("measured", DEVICE)


def test_the_table_beside_the_bars_has_the_bytes_and_the_error() -> None:
    rows = {row[0]: row for row in table(measurement_report(run()), "The ledger").rows}
    estimated = estimate_of(run()).fullest.device.bytes
    error = f"{estimated / DEVICE - 1:+.2%}".replace("%", " %")
    assert rows["= device"][1:3] == (f"{DEVICE / GIB:.2f}", f"{estimated / GIB:.2f}")
    assert rows["= device"][5:] == (error, f"{DEVICE:,}")
    assert rows["weights"][5] == "0 %"


def test_a_model_that_is_not_estimated_is_shown_without_with_the_reason() -> None:
    report = measurement_report(run(twin_layers=33))
    (only,) = of(report, StackedBars).bars
    assert only.label == "measured"
    assert any("33 of 32 layers" in line for block in report.blocks if isinstance(block, Lines) for line in block.lines)
    assert not [figure for figure in report.figures if isinstance(figure, Waterfall)]


def samples(*allocated_mib: int) -> tuple[tuple[float, int, int, int], ...]:
    return tuple((7.0 * at, size * MIB, 300 * MIB, 400 * MIB) for at, size in enumerate(allocated_mib, 1))


def ended(name: Any, allocated_mib: int, peak_mib: int, seconds: float = 0.0) -> Phase:
    return Phase(
        name=name,
        seconds=seconds,
        allocated_bytes=allocated_mib * MIB,
        max_allocated_bytes=peak_mib * MIB,
        reserved_bytes=300 * MIB,
    )


COURSE = {
    "phases": (ended("context", 0, 0), ended("load", 100, 100), ended("prefill", 150, 210), ended("decode", 160, 170)),
    "timeline": samples(50, 100, 120, 200, 150, 155, 160),
}


def test_phases_of_a_simulated_run_end_where_their_bytes_stand() -> None:
    course = course_of(replace(simulated(), **COURSE))
    assert course is not None
    assert [(part.name, part.start, part.end) for part in course.parts] == [
        ("load", 0, 1),
        ("prefill", 1, 4),
        ("decode", 4, 6),
    ]
    # the sample of 200 MiB is the nearest to the peak of 210
    assert course.peak == (3, 210 * MIB)
    assert [sample.place for sample in course.samples] == list(range(7))


def test_phases_of_a_device_are_as_long_as_they_took() -> None:
    phases = (ended("context", 0, 0, 9.0), ended("load", 100, 100, 14.5), ended("prefill", 150, 210, 20.0))
    course = course_of(replace(run(), phases=phases, timeline=COURSE["timeline"]))
    assert course is not None
    assert [(part.name, part.start, part.end) for part in course.parts] == [
        ("load", 0, 14.5),
        ("prefill", 14.5, 34.5),
    ]
    assert course.peak == (28.0, 210 * MIB)


def test_the_timeline_has_the_lines_that_the_device_tells_and_what_held_the_peak() -> None:
    peak = Peak(phase="prefill", requested_bytes=210 * MIB, op="aten::mm", module="model.layers.3.mlp")
    timeline = of(measurement_report(replace(simulated(), **COURSE, peaks=(peak,))), Timeline)
    assert [line.label for line in timeline.lines] == ["allocated", "reserved", "device"]
    assert timeline.peak_label == "prefill, aten::mm in model.layers.3.mlp"
    assert dict(timeline.basis) == {"allocated": "traced", "reserved": "traced", "device": "assumed"}
    measured = replace(run(), timeline=tuple((at, size, None, None) for at, size, *_ in COURSE["timeline"]))
    timeline = of(measurement_report(measured), Timeline)
    assert [line.label for line in timeline.lines] == ["allocated"]
    assert timeline.peak_label == (
        "prefill, weights 12.55 GiB, sequence state 0.06 GiB, activations 0.10 GiB, workspace 32.00 MiB"
    )


def test_a_run_without_samples_has_no_timeline() -> None:
    assert not [figure for figure in measurement_report(run()).figures if isinstance(figure, Timeline)]


def out_of_memory() -> Measurement:
    tensors = (LiveTensors(bytes=64 * MIB, count=2, shape=(1, 8), dtype="bfloat16", op="aten::cat", module="model"),)
    return replace(
        simulated(),
        status="oom",
        failure=Failure(phase="prefill", message="asked", asked_bytes=GIB, free_bytes=0, module="model.layers.3.mlp"),
        peaks=(Peak(phase="prefill", requested_bytes=210 * MIB, op="aten::mm", module="model", tensors=tensors),),
        **COURSE,
    )


def test_a_run_out_of_memory_shows_where_it_ended_and_what_the_estimate_says() -> None:
    report = measurement_report(out_of_memory())
    assert report.status == "no"
    assert report.headline == "Out of memory in prefill, model.layers.3.mlp, asked for 1.00 GiB with 0.00 GiB free."
    (bar,) = of(report, StackedBars).bars
    estimated = estimate_of(out_of_memory()).fullest
    assert (bar.label, sum(part.bytes for part in bar.segments)) == ("estimated", estimated.device.bytes)
    rows = {cells[0]: cells for cells in table(report, "The ledger").rows}
    assert rows["= device"][1:3] == ("", f"{estimated.device.bytes / GIB:.2f}")
    assert of(report, Timeline).peak_label == "prefill, then out of memory in model.layers.3.mlp"
    assert table(report, "Largest at the prefill peak with memory enough").rows[0][2:] == ("2", "64.0")


def test_of_many_modules_the_largest_are_listed_and_the_rest_is_counted() -> None:
    rows = tuple(ModuleRow(name=f"layer.{at}", kind="Linear", count=1, bytes=at * MIB) for at in range(50))
    listed = table(measurement_report(replace(run(), modules=rows)), "Modules")
    assert [row[0] for row in listed.rows] == [f"layer.{at}" for at in range(49, 29, -1)]
    assert listed.note == "… and 30 more: the JSON has all."


def test_a_processors_record_is_shown_as_far_as_it_tells() -> None:
    (file,) = RECORDS.glob("gpt2_float32_*.json")
    measured = read_measurement(file)
    report = measurement_report(measured)
    seen, estimated = of(report, StackedBars).bars
    shared = ["weights", "sequence state", "activations"]
    assert [part.label for part in seen.segments] == [part.label for part in estimated.segments] == shared
    assert seen.segments[0].bytes == 124_439_808 * 4  # GPT-2's parameters in float32
    assert of(report, StackedBars).capacity_bytes is None
    assert not [figure for figure in report.figures if isinstance(figure, Waterfall)]


def row(figure: str, measured: int, estimated: int, *, name: str = "a", device: Device = SYNTHETIC) -> Row:
    quantity = bounded(min(90, estimated), estimated, max(110, estimated), "assumed")
    measurement = made_up(id=name, device=device)
    return Row(measurement=measurement, figure=figure, measured_bytes=measured, estimated=quantity)


def test_a_comparison_draws_totals_before_components_of_each_device() -> None:
    processor = Device(kind="cpu", name="a processor")
    rows = (
        row("context", 50, 100),
        row("activations", 100, 101, device=processor),
        row("device", 100, 101),
        row("reserved", 100, 100),
    )
    report = comparison_report(Comparison(rows=rows, without_figures=(made_up(id="full", status="oom"),)))
    assert [figure.name for figure in report.figures] == [
        "predicted-totals-1",
        "predicted-components-1",
        "predicted-components-2",
    ]
    totals = of(report, Predicted, "predicted-totals-1")
    assert [(p.series, p.measured_bytes, p.predicted_bytes) for p in totals.points] == [
        ("device", 100, 101),
        ("reserved", 100, 100),
    ]
    assert "a processor" in report.figures[-1].title
    # 50 is outside of 90 to 110
    assert report.headline == (
        "3 of 4 figures lie within the bounds of their estimate; furthest off are the context of a, by +100.00 %."
    )
    assert report.blocks[-1] == Lines(title="Not compared", lines=("full on synthetic: out of memory",))


def test_the_worst_rows_are_shown_and_the_document_has_all() -> None:
    rows = tuple(row("device", 100, 200 - at, name=f"run-{at}") for at in range(40))
    found = Comparison(rows=rows, without_figures=())
    worst = table(comparison_report(found), "Totals on synthetic, worst first")
    assert [(cells[0], cells[2]) for cells in worst.rows][:2] == [("run-0", "+100.00 %"), ("run-1", "+99.00 %")]
    assert (len(worst.rows), worst.note) == (12, "… and 28 more: the JSON has all.")
    assert len(comparison_document(found)["rows"]) == 40


def test_the_calibration_that_was_used_is_an_assumption(fitted: Any) -> None:
    found = compare([campaign()[0]], calibration=fitted)
    assert fitted.id in comparison_report(found).assumptions
    assert comparison_document(found)["calibration"] == fitted.id
    assert comparison_document(compare([run()]))["calibration"] is None


@pytest.fixture(scope="module")
def fitted() -> Any:
    return calibrate(campaign())


def test_a_calibration_shows_each_constant_with_its_interval_in_its_unit(fitted: Any) -> None:
    report = calibration_report(fitted)
    constants = {i.label: i for i in of(report, Intervals, "constants").intervals}
    ratios = {i.label: i for i in of(report, Intervals, "ratios").intervals}
    assert constants["context: fixed"].value == pytest.approx(CONSTANTS["context", "fixed"] / MIB, rel=0.01)
    assert constants["context: fixed"].text == "500.0 MiB (500.0 to 500.0 MiB)"
    assert ratios["allocator slack: state"].value == pytest.approx(0.2, rel=0.01)
    assert {*constants, *ratios} == {f"{t.component.replace('_', ' ')}: {t.feature}" for t in fitted.terms}
    for interval in (*constants.values(), *ratios.values()):
        assert interval.low <= interval.value <= interval.high
    assert any(
        "moe" in line for b in report.blocks if isinstance(b, Lines) and b.title == "Not fitted" for line in b.lines
    )


def test_the_rules_overhead_stands_beside_the_guides_twenty_percent(fitted: Any) -> None:
    overhead = of(calibration_report(fitted), Intervals, "overhead")
    assert (overhead.unit, overhead.reference) == ("%", 20.0)
    told = {o.precision: o for o in fitted.overheads}
    assert {i.label: i.value for i in overhead.intervals} == {p: 100 * o.median_fraction for p, o in told.items()}
    assert dict(overhead.basis)["median and its 95 % bootstrap interval"] == "measured"
    virtual = replace(fitted, environment=replace(fitted.environment, kind="virtual"))
    grounds = [ground for _, ground in of(calibration_report(virtual), Intervals, "overhead").basis]
    assert grounds == ["traced", "assumed"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    lines = (
        banner("0.33.0"),
        "(EngineCore pid=7) INFO Model loading took 14.99 GiB memory and 5 seconds",
        "(EngineCore pid=7) INFO GPU KV cache size: 438,400 tokens",
        "(EngineCore pid=7) INFO Available KV cache memory: 53.52 GiB",
        "(EngineCore pid=7) INFO Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization is "
        "(0.92, 72.85 GiB). Actual usage is 14.99 GiB for weight, 1.51 GiB for peak activation, 0.25 GiB for non-torch "
        "memory, and -0.10 GiB for CUDAGraph memory.",
    )
    found = tuple(starts(tmp_path_factory.mktemp("logs"), *lines))
    return Compared(besides=found, fitted=fit(found))


def test_what_engines_print_stands_beside_its_estimate(logs: Compared) -> None:
    report = starts_report(logs)
    points = {point.series: point for point in of(report, Predicted).points}
    assert points["weights"].measured_bytes == round(14.99 * GIB)
    # printed with two digits: what they leave open counts for the bounds
    shown = [row for row in logs.besides[0].rows if row.component in points]
    for point, printed in zip(of(report, Predicted).points, shown, strict=True):
        assert (point.low_bytes <= point.measured_bytes <= point.high_bytes) is printed.is_within
    # counts are no bytes, and what is less than nothing tells of other processes
    assert not {"tokens", "graphs"} & {*points}
    listed = table(report, "engine.log: vllm 0.33.0")
    assert {"tokens", "graphs", "weights"} <= {cells[0] for cells in listed.rows}
    assert len(listed.rows) == len(logs.besides[0].rows)
    inside = sum(cells[-1] == "yes" for cells in listed.rows)
    assert report.headline.startswith(f"{inside} of {len(listed.rows)} printed figures")


def test_fitted_scales_stand_beside_one(logs: Compared) -> None:
    report = starts_report(logs)
    scales = of(report, Intervals)
    assert scales.reference == 1.0
    assert logs.fitted is not None
    assert [i.value for i in scales.intervals] == [scale.value for scale in logs.fitted.scales]
    assert not [f for f in starts_report(replace(logs, fitted=None)).figures if isinstance(f, Intervals)]


def test_every_figure_says_what_it_assumes_what_it_stands_on_and_what_it_shows(fitted: Any, logs: Compared) -> None:
    reports = (
        measurement_report(run()),
        measurement_report(out_of_memory()),
        comparison_report(compare([run(), simulated(), read_measurement(next(RECORDS.glob("gpt2_float32_*.json")))])),
        calibration_report(fitted),
        starts_report(logs),
    )
    for report in reports:
        assert len({figure.name for figure in report.figures}) == len(report.figures)
        for figure in report.figures:
            assert figure.assumptions
            assert figure.basis
            assert figure.description
            assert figure.data is not None or followed_by_a_table(figure, report)
        assert report.headline in markdown(report)


def followed_by_a_table(figure: Figure, report: Report) -> bool:
    rest = report.blocks[report.blocks.index(figure) + 1 :]
    return any(isinstance(block, Table) for block in rest)


def test_logs_without_constants_to_fit_have_a_report_and_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, page, record = tmp_path / "llama.log", tmp_path / "report.html", tmp_path / "constants.json"
    log.write_text(
        "print_info: file type   = Q4_K - Medium\nload_tensors:        CUDA0 model buffer size =  4403.50 MiB\n"
    )
    asked = ("calibrate", "--engine-log", str(log), "--model", "llama-3.1-8b")
    assert ullage(*asked, "-o", str(page), capsys=capsys)[0] == 0
    assert "Constants that were fitted" not in page.read_text()
    code, _, error = ullage(*asked, "-o", str(record), capsys=capsys)
    assert code == 1
    assert "no constants to fit" in error
    assert not record.exists()
