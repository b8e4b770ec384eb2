"""Measured on the CPU by real loads and runs; the CUDA side against a fake that answers as a device was told to."""

import json
import os
import signal
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from tiny import TINY, tiny_config

from analytic.cli import main
from analytic.compare import compare
from analytic.errors import UllageError, UsageError
from analytic.measurement import Device, MeasuredModel, Measurement, Phase, measurement_document
from analytic.request import Request
from profiler import nvml, run, worker
from profiler.case import Case
from profiler.meters import CpuMeter, CudaMeter, Timeline
from profiler.nvml import Nvml, refuse_if_busy
from profiler.serve import Job, measure
from profiler.sparse import sparse_checkpoint

torch.set_num_threads(1)

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "bnb-int8"},
    "nf4": {"dtype": "bfloat16", "quantization": "bnb-nf4"},
    "fp4": {"dtype": "bfloat16", "quantization": "bnb-fp4"},
    "nf4+dq": {"dtype": "bfloat16", "quantization": "bnb-nf4", "double_quant": True},
}


FOUR_BIT = ("nf4", "fp4", "nf4+dq")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sparse checkpoint a family, as long as the module runs."""
    made: dict[str, Any] = {}

    @cache
    def folder(model_type: str) -> Path:
        parent = tmp_path_factory.mktemp(model_type)
        made[model_type] = sparse_checkpoint(config_of(model_type), dtype="bfloat16", folder=parent)
        return Path(made[model_type].__enter__().path)

    yield folder
    for context in made.values():
        context.__exit__(None, None, None)


def measured(
    model_type: str, folder: Path, request: Request, device: str = "cpu", *, serves: bool = True
) -> Measurement:
    """A measurement made in this process; of the weights alone where the model cannot serve."""
    told: dict[str, Any] = {"phases": []}

    def hear(event: str, /, **fields: Any) -> None:
        if event == "phase":
            told["phases"].append(Phase(**fields))
        elif event == "facts":
            told.update(fields)

    with nullcontext() if serves else patch("profiler.serve._serve"):
        measure(Job(folder=str(folder), request=request, device=device), CpuMeter(device), hear)
    return Measurement(
        id=model_type,
        created_at="",
        status="ok",
        model=MeasuredModel(
            id=model_type, source="meta", architecture="", config=config_of(model_type), weights="sparse"
        ),
        request=request,
        device=Device(**told["device"]),
        software=told["software"],
        phases=tuple(told["phases"]),
        weights_by_format=told["weights_by_format"],
        retained_bytes=told.get("retained_bytes") if serves else None,
    )


def attention_of(model_type: str) -> Any:
    return "eager" if model_type in ("gpt_oss", "gemma2") else "sdpa"


_SIZES = {
    "hidden_size": 128,
    "n_embd": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "head_dim": 64,
    "global_head_dim": 64,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 48,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}


def config_of(model_type: str) -> dict[str, Any]:
    """A tiny config whose matrices are multiples of 64: bitsandbytes' kernels for processors take no others."""
    config = tiny_config(model_type)
    config |= {key: value for key, value in _SIZES.items() if key in config}
    if nested := config.get("text_config"):
        config["text_config"] = nested | {key: value for key, value in _SIZES.items() if key in nested}
    return config


NOT_ON_A_PROCESSOR = {
    ("deepseek_v3", "int8"): "bitsandbytes' int8 kernel for processors takes matrices, and gets [B,S,H]",
    **{
        ("gemma4", name): "bitsandbytes' 4-bit kernel for processors refuses a router of 4 rows"
        for name in FOUR_BIT
        if has_avx512bf16()  # without it, bitsandbytes computes in plain torch
    },
}
"""What loads, but cannot run: its weights are compared all the same."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model_type", TINY)
def test_resident_weights_and_cache_are_those_of_the_estimate_to_the_byte(
    model_type: str, name: str, folders: Any
) -> None:
    request = Request(**FORMATS[name], prompt_tokens=24, output_tokens=3, attention=attention_of(model_type))
    serves = (model_type, name) not in NOT_ON_A_PROCESSOR
    rows = compare([measured(model_type, folders(model_type), request, serves=serves)]).rows
    errors = {row.figure: row.error_bytes for row in rows}
    assert errors.pop("weights") == 0
    if serves:
        assert errors.pop("sequence_state") == 0
    assert set(errors) == (set() if request.quantization else {"activations"})


@pytest.mark.parametrize(("model_type", "name"), NOT_ON_A_PROCESSOR)
def test_what_is_said_not_to_run_on_a_processor_does_not(model_type: str, name: str, folders: Any) -> None:
    request = Request(**FORMATS[name], prompt_tokens=24, output_tokens=3)
    with pytest.raises((RuntimeError, AssertionError)):
        measured(model_type, folders(model_type), request)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_the_meta_device_tells_the_weights_of_a_real_load(model_type: str, name: str, folders: Any) -> None:
    request = Request(**FORMATS[name], prompt_tokens=8, output_tokens=1, attention=attention_of(model_type))
    on_meta = measured(model_type, folders(model_type), request, "meta")
    assert on_meta.weights_by_format == measured(model_type, folders(model_type), request).weights_by_format
    assert on_meta.components.activations is None
    assert [phase.name for phase in on_meta.phases] == ["context", "load"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("tiny") / "config.json"
    file.write_text(json.dumps(tiny_config("llama")))
    return str(file)


SHORT = Request(prompt_tokens=16, output_tokens=4)


def test_a_measurement_in_a_process_of_its_own(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULLAGE_SPARSE_DIR", str(tmp_path))
    phases: list[str] = []
    found = run.profile(Case(model=tiny, request=SHORT), device="cpu", on_phase=phases.append)
    assert found.status == "ok"
    assert phases == ["context", "load", "prefill", "decode"] == [phase.name for phase in found.phases]
    assert found.model.weights == "sparse"
    assert found.request.dtype == "bfloat16"
    assert found.software["torch"] == torch.__version__
    # two layers, 19 tokens in the cache, keys and values of 2 heads x 16 in 2 bytes
    assert found.phases[-1].sequence_state_bytes == 2 * 19 * 2 * 2 * 16 * 2
    assert found.totals.reserved is found.totals.device is None
    assert found.meter is not None
    assert found.meter.host_bytes < 0.01 * (found.phases[-1].max_rss_bytes or 0)
    assert list(tmp_path.iterdir()) == []


def test_a_twin_has_the_layers_asked_for(tiny: str) -> None:
    found = run.profile(Case(model=tiny, request=SHORT, twin_layers=1), device="meta")
    rows = {row.name: row.count for row in found.modules}
    assert rows["model.layers.{}.mlp.up_proj"] == 1
    assert [row.error_bytes for row in compare([found]).rows] == [0]


def test_running_out_of_memory_is_a_result(tiny: str) -> None:
    # the prompt's ids alone: 10^6 sequences x 10^7 tokens x 8 bytes
    request = replace(SHORT, batch_size=10**6, prompt_tokens=10**7)
    found = run.profile(Case(model=tiny, request=request), device="cpu")
    assert found.status == "oom"
    assert found.failure is not None
    assert (found.failure.phase, found.failure.asked_bytes) == ("prefill", 8 * 10**13)
    assert found.components.weights
    assert found.components.activations is None
    assert found.totals.allocated is None


def test_a_killed_worker_leaves_what_it_measured(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[Any] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    kill = {"prefill": lambda: processes[0].send_signal(signal.SIGKILL)}
    long = replace(SHORT, output_tokens=400)
    found = run.profile(
        Case(model=tiny, request=long), device="cpu", on_phase=lambda phase: kill.get(phase, lambda: None)()
    )
    assert found.status == "error"
    assert found.failure is not None
    assert found.failure.phase in ("prefill", "decode")
    assert "signal 9" in found.failure.message
    assert [phase.name for phase in found.phases][:2] == ["context", "load"]


def test_a_worker_that_takes_too_long_is_stopped(tiny: str) -> None:
    with pytest.raises(UllageError, match="stopped after 0 s"):
        run.profile(Case(model=tiny, request=SHORT), device="cpu", timeout_s=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here CUDA is there")
def test_without_cuda_it_says_so(tiny: str) -> None:
    with pytest.raises(UllageError, match=r"without CUDA|no CUDA device"):
        run.profile(Case(model=tiny, request=SHORT), device="cuda")


def test_a_snapshot_needs_cuda(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="snapshot"):
        run.profile(Case(model=tiny, request=SHORT), device="cpu", snapshot=tmp_path / "x.pickle")


def test_bitsandbytes_without_a_cuda_library_is_named() -> None:
    with pytest.raises(UllageError, match="bitsandbytes has no library"):
        worker.require_bitsandbytes()


def test_the_command_writes_the_measurement_and_prints_it(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "m.json"
    asked = [tiny, "--device", "cpu", "--prompt-tokens", "16", "--output-tokens", "2", "-o", str(file)]
    with pytest.raises(SystemExit) as stop:
        main(["profile", *asked])
    assert stop.value.code == 0
    assert "prefill" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["kind"] == "measurement"
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(file), "--figure", "weights", "--fail-over", "0%", "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["summary"][0]["max_bytes"] == 0


# The CUDA meter, against a fake of torch.cuda and of NVML. Its figures are made up and never leave this file.

MIB = 2**20
UUID = "12345678-aaaa"


class FakeCuda:
    """Answers like torch.cuda of a GPU of 1 GiB; ``stats`` is what its allocator would say next."""

    def __init__(self) -> None:
        self.stats = dict.fromkeys(
            [
                f"{kind}_bytes.all.{when}"
                for kind in ("allocated", "reserved", "requested")
                for when in ("current", "peak")
            ]
            + ["num_alloc_retries", "segment.all.current"],
            0,
        )
        self.calls: list[str] = []

    def init(self) -> None:
        self.calls.append("init")

    def is_initialized(self) -> bool:
        return "init" in self.calls

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(
            uuid=UUID, name="Fake GPU", major=9, minor=0, total_memory=1000 * MIB, multi_processor_count=4
        )

    def memory_stats(self) -> dict[str, int]:
        return self.stats

    def memory_allocated(self) -> int:
        return self.stats["allocated_bytes.all.current"]

    def memory_reserved(self) -> int:
        return self.stats["reserved_bytes.all.current"]

    def mem_get_info(self) -> tuple[int, int]:
        return 300 * MIB, 1000 * MIB


class FakeNvml:
    """Answers like pynvml for that GPU."""

    class NVMLError(Exception):
        pass

    nvmlMemory_v2 = 2

    def __init__(self, *, used: int = 10 * MIB, processes: tuple[Any, ...] = ()) -> None:
        self.used, self.processes = used, processes

    def nvmlInit(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"590.1"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle of {UUID}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return f"handle of {uuid}"

    def nvmlDeviceGetUUID(self, _: str) -> str:
        return f"GPU-{UUID}"

    def nvmlDeviceGetName(self, _: str) -> str:
        return "Fake GPU"

    def nvmlDeviceGetMemoryInfo(self, _: str, version: int = 1) -> Any:
        return SimpleNamespace(total=1024 * MIB, used=self.used, reserved=4 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, _: str) -> tuple[Any, ...]:
        return self.processes

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        return "someone's trainer"


def test_the_cuda_meter_reads_the_allocator_and_resets_its_peaks() -> None:
    cuda = FakeCuda()
    meter = CudaMeter(cuda, None)
    assert meter.open().used_basis == "mem-get-info"
    meter.begin()
    assert cuda.calls == ["init", "synchronize", "synchronize", "reset"]
    cuda.stats |= {"allocated_bytes.all.current": 5, "allocated_bytes.all.peak": 9, "reserved_bytes.all.peak": 20}
    cuda.stats |= {"requested_bytes.all.peak": 8, "num_alloc_retries": 2, "segment.all.current": 3}
    phase = meter.end("load")
    assert (phase.allocated_bytes, phase.max_allocated_bytes, phase.max_reserved_bytes) == (5, 9, 20)
    assert (phase.max_requested_bytes, phase.num_alloc_retries, phase.num_segments) == (8, 2, 3)
    assert phase.device_used_bytes == (1000 - 300) * MIB
    assert meter.cost()[0] == 0


def test_the_driver_is_asked_for_this_process_first() -> None:
    library = FakeNvml(processes=(SimpleNamespace(pid=os.getpid(), usedGpuMemory=77 * MIB),))
    meter = CudaMeter(FakeCuda(), Nvml(library))
    device = meter.open()
    assert (device.used_basis, device.total_bytes, device.driver) == ("nvml-process", 1024 * MIB, "590.1")
    meter.begin()
    assert meter.end("load").device_used_bytes == 77 * MIB


def test_where_the_driver_does_not_know_this_process_its_growth_since_before_the_context_counts() -> None:
    library = FakeNvml(used=10 * MIB)
    meter = CudaMeter(FakeCuda(), Nvml(library))
    assert meter.open().used_basis == "nvml-device-delta"
    library.used = 510 * MIB
    meter.begin()
    assert meter.end("load").device_used_bytes == 500 * MIB


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_SETTLING_SECONDS", 0.05)
    monkeypatch.setattr(nvml, "_SETTLING_STEP_SECONDS", 0.001)


def test_memory_that_an_ended_process_gives_back_late_is_waited_for(impatient: None) -> None:
    class Draining(FakeNvml):
        def nvmlDeviceGetMemoryInfo(self, handle: str, **flags: Any) -> Any:
            self.used = max(4 * MIB, self.used // 2)
            return super().nvmlDeviceGetMemoryInfo(handle, **flags)

    refuse_if_busy(Nvml(Draining(used=600 * MIB)), f"GPU-{UUID}")


def test_a_growth_that_others_have_undone_is_not_known() -> None:
    library = FakeNvml(used=100 * MIB)
    meter = CudaMeter(FakeCuda(), Nvml(library))
    meter.open()
    library.used = 40 * MIB
    assert meter.end("load").device_used_bytes is None


@pytest.mark.usefixtures("impatient")
def test_a_busy_gpu_is_refused_with_who_and_how_much() -> None:
    busy = Nvml(FakeNvml(used=600 * MIB, processes=(SimpleNamespace(pid=41, usedGpuMemory=590 * MIB),)))
    with pytest.raises(UllageError, match=r"600 MiB are used by someone's trainer \(pid 41, 590 MiB\)"):
        refuse_if_busy(busy, f"GPU-{UUID}")
    with pytest.raises(UllageError, match="not visible from here"):
        refuse_if_busy(Nvml(FakeNvml(used=600 * MIB)), f"GPU-{UUID}")
    refuse_if_busy(Nvml(FakeNvml(used=4 * MIB)), f"GPU-{UUID}")


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("CUDA error: out of memory", "oom"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        ("CUDA error: an illegal memory access was encountered", "error"),
    ],
)
def test_what_a_library_could_not_allocate_is_out_of_memory_too(message: str, status: str) -> None:
    def broken() -> None:
        raise RuntimeError("no device")

    meter = CudaMeter(SimpleNamespace(synchronize=broken), None)
    try:
        raise RuntimeError(message)
    except RuntimeError as raised:
        told = worker._failure(raised, [], "decode", meter)
    assert (told["status"], told["last"]) == (status, None)


def test_an_out_of_memory_error_tells_what_was_asked_and_free(tmp_path: Path) -> None:
    meter = CudaMeter(FakeCuda(), None)
    meter.open()
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …")
    try:
        raise error
    except torch.OutOfMemoryError as raised:
        told = worker._failure(raised, [], "decode", meter)
        exact = worker._failure(raised, [(2684354561, 7)], "decode", meter)
    assert told["status"] == "oom"
    assert told["failure"]["frames"][-1].startswith("test_profile.py:")
    assert told["failure"]["asked_bytes"] == 2.5 * 2**30
    assert (exact["failure"]["asked_bytes"], exact["failure"]["free_bytes"]) == (2684354561, 7)


def test_a_timeline_thins_itself_out() -> None:
    import time

    with Timeline(lambda: (1, 2, 3), interval_seconds=0.0005, limit=20) as timeline:
        time.sleep(0.1)
    seconds = [sample[0] for sample in timeline.samples]
    assert 5 <= len(seconds) < 20
    assert seconds == sorted(seconds)


def test_the_observed_ledger_is_arithmetic_on_what_the_device_returned() -> None:
    def phase(name: Any, peak: int, state: int | None) -> Phase:
        return Phase(
            name=name,
            seconds=1.0,
            max_allocated_bytes=peak,
            reserved_bytes=1200,
            max_reserved_bytes=1200,
            device_used_bytes=1700,
            sequence_state_bytes=state,
        )

    found = Measurement(
        id="x",
        created_at="",
        status="ok",
        model=MeasuredModel(id="x", source="meta", architecture="x", config={}, weights="sparse"),
        request=SHORT,
        device=Device(kind="cuda", name="Fake GPU"),
        software={},
        phases=(phase("load", 1100, None), phase("prefill", 1000, 60), phase("decode", 990, 70)),
        weights_by_format={"bfloat16": 800},
        retained_bytes=830,
    )
    document = measurement_document(found)
    assert document["components"] == {
        "weights": 800,
        "sequence_state": 60,
        "activations": 1000 - 830 - 60,
        "workspace": 830 - 800,
        "allocator_slack": 1200 - 1000,
        "context": 1700 - 1200,
    }
    assert sum(document["components"].values()) == 1700
    assert document["totals"] == {"allocated": 1000, "reserved": 1200, "device": 1700, "load_peak": 1100}


def test_a_worker_ends_when_whoever_asked_was_killed(tiny: str, tmp_path: Path) -> None:
    import sys
    import time

    code = (
        "from profiler import run; from profiler.case import Case; from analytic.request import Request\n"
        f"run.profile(Case(model={tiny!r}, request=Request(prompt_tokens=8, output_tokens=500)), device='cpu',\n"
        "            on_phase=lambda phase: print(phase, flush=True))"
    )
    environment = {**os.environ, "ULLAGE_SPARSE_DIR": str(tmp_path)}
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert asking.stdout is not None
    while asking.stdout.readline().strip() != "load":
        pass
    (worker_pid,) = (int(pid) for pid in children(asking.pid))
    asking.kill()
    asking.wait()
    asking.stdout.close()
    for _ in range(100):
        if (
            not Path(f"/proc/{worker_pid}/stat").exists()
            or Path(f"/proc/{worker_pid}/stat").read_text().split()[2] == "Z"
        ):
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
