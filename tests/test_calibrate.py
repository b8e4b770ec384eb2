"""Known constants are put into made-up measurements of a device called "synthetic", and have to come out again."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import SYNTHETIC, made_up

from analytic.calibrate import calibrate, suggested_sweep
from analytic.calibration import Calibration, read_calibration, write_calibration
from analytic.cli import main
from analytic.compare import compare, gpu_of
from analytic.engines.transformers.share import OUTLIERS, overhead_features, share_of
from analytic.errors import UllageError, UsageError
from analytic.estimator import estimate, run
from analytic.measurement import Device, Measurement, read_measurement
from analytic.models import catalog
from analytic.request import Request

MIB = 2**20
CONSTANTS = {
    ("context", "fixed"): 500 * MIB,
    ("context", "bnb-4bit"): 100 * MIB,
    ("context", "bnb-int8"): 60 * MIB,
    ("workspace", "fixed"): 32 * MIB,
    ("allocator_slack", "fixed"): 20 * MIB,
    ("allocator_slack", "state"): 0.2,
    ("allocator_slack", "outgrown"): 0.1,
}
OUTLIER_SHARE = 0.004
GPU = gpu_of(SYNTHETIC)
SOFTWARE = {"torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": "0.50.2", "alloc_conf": None}


def explained(component: str, features: dict[str, float]) -> int:
    return round(sum(CONSTANTS.get((component, name), 0) * value for name, value in features.items()))


def synthetic(model: str, *, noise_bytes: int = 0, real: bool = False, **flags: Any) -> Measurement:
    """What a device would return whose overheads are CONSTANTS and whose other bytes are exact."""
    request = Request(**{"dtype": "bfloat16", "prompt_tokens": 256, "output_tokens": 4, **flags})
    whole = catalog.load(model)
    row = run(whole, request, gpu=GPU).fullest
    features = overhead_features(share_of(whole, "bfloat16", request.weight_format), request, "bfloat16")
    rounding = next(part.bytes for part in row.parts if part.name == "rounding")
    weights = row.components["weights"].bytes
    retained = weights + rounding + explained("workspace", features["workspace"])
    outliers = round(OUTLIER_SHARE * features["activations"][OUTLIERS]) if real else 0
    allocated = retained + row.peak.sequence_state.bytes + row.peak.transient.bytes + outliers
    reserved = allocated + explained("allocator_slack", features["allocator_slack"])
    chance = random.Random(f"{model}{flags}").randint(-noise_bytes, noise_bytes)
    return made_up(
        model,
        id="_".join([model, *(f"{k}-{v}" for k, v in flags.items())]),
        request=request,
        software=SOFTWARE,
        phase=row.peak.name,
        weights_are="real" if real else "sparse",
        weights=weights,
        state=row.peak.sequence_state.bytes,
        retained=retained,
        allocated=allocated,
        reserved=reserved,
        device_bytes=reserved + explained("context", features["context"]) + chance,
    )


MODELS = ("llama-2-7b", "qwen3-0.6b", "smollm2-360m", "mistral-7b-v0.1")


def campaign(**more: Any) -> list[Measurement]:
    return [
        synthetic(model, quantization=quantization, batch_size=batch, output_tokens=output, **more)
        for model in MODELS
        for quantization in (None, "bnb-nf4", "bnb-int8")
        for batch, output in ((1, 4), (8, 4), (8, 1024))
    ]


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return calibrate(campaign())


def test_known_constants_come_out_again(fitted: Calibration) -> None:
    found = {(term.component, term.feature): term for term in fitted.terms}
    for key, value in CONSTANTS.items():
        assert found[key].value == pytest.approx(value, rel=0.01), key
        assert found[key].low <= found[key].value <= found[key].high
    assert found["workspace", "bnb-4bit"].value == pytest.approx(0, abs=MIB / 100)


def test_with_noise_the_interval_holds_the_constant() -> None:
    # ± 10 MiB on each of 36
    terms = {(t.component, t.feature): t for t in calibrate(campaign(noise_bytes=10 * MIB)).terms}
    for key in (("context", "fixed"), ("context", "bnb-4bit")):
        assert abs(terms[key].value - CONSTANTS[key]) < 5 * MIB
        assert terms[key].low - 2 * MIB <= CONSTANTS[key] <= terms[key].high + 2 * MIB
        assert terms[key].low < terms[key].high


def test_the_error_of_a_left_out_model_is_what_the_others_predict() -> None:
    # contexts of 100, 110 and 120 MiB: the others predict 115, 110 and 105, so the residuals are -15, 0 and +15 MiB
    runs = [
        replace(
            synthetic(model),
            phases=tuple(
                replace(p, device_used_bytes=p.reserved_bytes and p.reserved_bytes + size * MIB)
                for p in synthetic(model).phases
            ),
        )
        for model, size in zip(MODELS[:3], (100, 110, 120), strict=True)
    ]
    made = calibrate(runs)
    assert [t.value for t in made.terms if t.component == "context"] == pytest.approx([110 * MIB])
    residual = next(r for r in made.residuals if r.component == "context")
    assert (residual.low_bytes, residual.high_bytes) == (-15 * MIB, 15 * MIB)
    context = run(catalog.load("llama-2-7b"), Request(), gpu=GPU, calibration=made).fullest.components["context"]
    assert context.basis == "fitted"
    assert (context.low_bytes, context.bytes, context.high_bytes) == (95 * MIB, 110 * MIB, 125 * MIB)


def test_outliers_are_told_by_real_weights_alone(fitted: Calibration) -> None:
    assert any(line.startswith(f"activations / {OUTLIERS}") for line in fitted.lacking)
    real = [synthetic(model, quantization="bnb-int8", real=True) for model in MODELS]
    terms = {t.feature: t.value for t in calibrate(real).terms if t.component == "activations"}
    assert terms[OUTLIERS] == pytest.approx(OUTLIER_SHARE, rel=0.01)


def test_an_estimate_with_it_meets_what_it_had_not_seen(fitted: Calibration) -> None:
    unseen = synthetic("qwen2.5-0.5b", batch_size=4, output_tokens=512)
    errors = {r.figure: r.error_fraction for r in compare([unseen], calibration=fitted).rows}
    assert abs(errors["device"] or 0) < 0.001
    assert abs(errors["context"] or 0) < 0.01
    assert max(row.max_fraction for row in fitted.left_out) < 0.001


def test_what_is_held_out_is_predicted_and_not_fitted() -> None:
    runs = campaign()
    made = calibrate(runs, held_out={m.id for m in runs if "mistral" in m.id})
    assert not any("mistral" in name for name in made.measurements)
    assert {row.figure for row in made.left_out if row.held_out} == {"allocated", "reserved", "device"}


def test_the_guides_percentage_by_hand() -> None:
    runs = [synthetic(model) for model in MODELS[:3]]
    row = next(o for o in calibrate(runs).overheads if o.precision == "bfloat16")
    shares = sorted(m.totals.device / (m.model.parameters * 2) - 1 for m in runs)  # type: ignore[operator]
    assert (row.min_fraction, row.median_fraction, row.max_fraction) == tuple(shares)
    assert row.min_at.startswith("llama-2-7b")


def test_a_twin_has_no_percentage() -> None:
    runs = [synthetic(model) for model in MODELS]
    twin = replace(runs[0], id="twin", model=replace(runs[0].model, twin_layers=32))
    assert calibrate([*runs, twin]).overheads[0].measurements == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: replace(m, software={**SOFTWARE, "torch": "2.12.0"}), "torch is 2.12.0 and 2.13.0"),
        (lambda m: replace(m, device=replace(m.device, driver="1")), "driver"),
        (lambda m: replace(m, device=replace(m.device, name="other")), "gpu is other and synthetic"),
        (lambda m: replace(m, device=replace(m.device, kind="virtual")), "kind is cuda and virtual"),
        (lambda m: replace(m, device=Device(kind="cpu", name="AMD EPYC")), "AMD EPYC"),
    ],
)
def test_environments_are_not_mixed(change: Any, named: str) -> None:
    runs = [synthetic(model) for model in MODELS]
    with pytest.raises(UllageError, match=named):
        calibrate([*runs[1:], change(runs[0])])


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(UllageError, match="2 measurements of 2 models"):
        calibrate([synthetic(model) for model in MODELS[:2]])
    with pytest.raises(UllageError, match="of 1 models"):
        calibrate([synthetic("qwen3-0.6b", batch_size=batch) for batch in (1, 2, 3)])
    with pytest.raises(UllageError, match="no measurement"):
        calibrate([])


def test_what_is_lacking_comes_with_a_matrix_that_can_be_measured(tmp_path: Path) -> None:
    from profiler.matrix import read_matrix

    made = calibrate([synthetic(model) for model in MODELS])
    assert any(line.startswith("context / bnb-4bit: in none") for line in made.lacking)
    file = tmp_path / "more.toml"
    file.write_text(suggested_sweep(made))
    asked = read_matrix(file)
    assert {"bnb-nf4", "bnb-int8", None} <= {case.request.quantization for case in asked}
    assert {"sdpa", "eager"} == {case.request.attention for case in asked}


def test_a_record_is_read_as_it_was_written(fitted: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    write_calibration(fitted, file)
    assert read_calibration(file) == fitted
    file.write_text(file.read_text().replace('"schema_version": "1"', '"schema_version": "9"'))
    with pytest.raises(UllageError, match=r"c\.json.*schema version '9'"):
        read_calibration(file)
    file.write_text('{"kind": "measurement"}')
    with pytest.raises(UllageError, match="not a calibration"):
        read_calibration(file)


def test_another_gpus_calibration_is_refused(fitted: Calibration, tmp_path: Path) -> None:
    with pytest.raises(UllageError, match="of synthetic, not of h200"):
        estimate("llama-2-7b", gpu="h200", calibration=fitted)
    with pytest.raises(UsageError, match="needs the GPU"):
        estimate("llama-2-7b", calibration=fitted)


def test_an_attention_that_was_not_measured_is_not_calibrated(fitted: Calibration) -> None:
    model = catalog.load("llama-2-7b")
    assert run(model, Request(), gpu=GPU, calibration=fitted).calibration is fitted
    eager = run(model, Request(attention="eager"), gpu=GPU, calibration=fitted)
    assert eager.calibration is None
    assert eager.fullest.components["context"].basis == "assumed"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from analytic.measurement import write_measurement

    h200 = Device(kind="cuda", name="NVIDIA H200", capability=(9, 0), total_bytes=143771 * MIB, sms=132)
    for measured in campaign():
        write_measurement(replace(measured, device=h200), tmp_path / "runs" / f"{measured.id}.json")
    file = str(tmp_path / "c.json")
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", str(tmp_path / "runs"), "-o", file])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "500.0 MiB" in out
    assert "the rule's overhead is" in out
    with pytest.raises(SystemExit) as stop:
        main(["estimate", "llama-2-7b", "--gpu", "h200", "--calibration", file, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["calibration"].startswith("nvidia-h200_torch-2.13.0")
    assert document["per_gpu"][0]["components"]["context"]["basis"] == "fitted"
    with pytest.raises(SystemExit) as stop:
        main(["estimate", "llama-2-7b", "--gpu", "l4", "--calibration", file])
    assert stop.value.code == 1


def test_a_shipped_calibration_is_used_where_gpu_and_versions_match(
    fitted: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    h200 = replace(fitted, environment=replace(fitted.environment, gpu="NVIDIA H200"))
    monkeypatch.setattr("analytic.calibration._shipped", lambda: (h200,))
    assert estimate("llama-2-7b", gpu="h200").calibration is h200
    assert estimate("llama-2-7b", gpu="l4").calibration is None
    assert estimate("llama-2-7b").calibration is None
    older = replace(h200, environment=replace(h200.environment, torch="2.3.0"))
    monkeypatch.setattr("analytic.calibration._shipped", lambda: (older,))
    assert estimate("llama-2-7b", gpu="h200").calibration is None


def test_no_room_for_outgrown_segments_means_that_they_are_given_back(fitted: Calibration) -> None:
    model, request = catalog.load("llama-2-7b"), Request(batch_size=8, prompt_tokens=256, output_tokens=1024)
    assert GPU is not None
    wide = run(model, request, gpu=GPU, calibration=fitted).fullest
    tight_gpu = replace(GPU, total_bytes=wide.device.bytes - 50 * MIB)
    tight = run(model, request, gpu=tight_gpu, calibration=fitted).fullest
    assert tight.device.bytes == tight_gpu.total_bytes


def test_a_virtual_gpu_takes_its_context_from_a_calibration(
    fitted: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, record = tmp_path / "h200.json", tmp_path / "record.json"
    write_calibration(replace(fitted, environment=replace(fitted.environment, gpu="NVIDIA H200")), file)
    flags = ["profile", "smollm2-360m", "--twin-layers", "1", "--prompt-tokens", "64", "--output-tokens", "2"]

    def code(*more: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main([*flags, "--calibration", str(file), *more])
        return ended.value.code or 0

    assert code("--device", "virtual:h200", "-o", str(record)) == 0
    measured = read_measurement(record)
    assert measured.components.context == pytest.approx(CONSTANTS["context", "fixed"], rel=1e-3)
    assert measured.device.used_basis == "calibrated-context"
    assert code("--device", "virtual:a100-80gb") == 1
    assert "is of NVIDIA H200, not of a100-80gb" in capsys.readouterr().err
    assert code("--device", "virtual:h200", "--attention", "eager") == 1
    assert "knows no eager attention" in capsys.readouterr().err
    assert code("--device", "cpu") == 2
