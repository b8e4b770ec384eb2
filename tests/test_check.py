"""A yes or a no for scripts, on a named GPU and on those that a driver shows."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import ullage

from profiler import nvml


def test_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ullage("check", "llama-3.1-8b", "--gpu", "l4", capsys=capsys)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert "fits on 1 × l4" in out
    code, out, _ = ullage("check", "llama-3.1-8b", "--gpu", "l4", "--batch-size", "64", capsys=capsys)
    assert (code, out.count("\n")) == (3, 1)
    assert "does not fit on 1 × l4" in out
    code, out, _ = ullage("check", "llama-3.1-8b", "--gpu", "l4:2", "--json", capsys=capsys)
    assert json.loads(out)["gpus"] == 2


def test_strict_asks_for_the_high_bound(capsys: pytest.CaptureFixture[str]) -> None:
    within = ("check", "llama-3.1-8b", "--gpu-memory", "16.2GiB")
    assert ullage(*within, capsys=capsys)[0] == 0
    assert ullage(*within, "--strict", capsys=capsys)[0] == 3


class Driver:
    """NVML of a machine with some GPUs."""

    NVMLError = RuntimeError
    nvmlMemory_v2 = 2  # noqa: N815

    def __init__(self, *gpus: tuple[str, int, int]) -> None:
        self.gpus = gpus

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.gpus[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> Any:  # noqa: N802
        _, total_mib, used_mib = self.gpus[handle]
        return SimpleNamespace(total=total_mib * 2**20, used=used_mib * 2**20, reserved=600 * 2**20)


L4 = ("NVIDIA L4", 23034, 0)


@pytest.mark.parametrize(
    ("gpus", "visible", "flags", "code", "said"),
    [
        ((L4,), None, (), 0, "fits on 1 × l4"),
        ((("NVIDIA L4", 23034, 12000),), None, (), 3, "of 10.19 GiB"),  # 23,034 - 12,000 - 600 MiB
        ((("NVIDIA L4", 23034, 12000), L4), "1", (), 0, "fits"),
        ((L4, L4), None, ("-pp", "2"), 0, "2 × l4"),
        ((L4,), None, ("-pp", "2"), 1, "1 NVIDIA GPU to be seen here, and 2 are needed"),
        ((L4,), "7", (), 1, "0 NVIDIA GPUs"),
        ((("Some GPU of tomorrow", 50000, 0),), None, (), 0, "1 × custom"),
        ((("NVIDIA L4", 20000, 0),), None, (), 0, "1 × custom"),  # a slice of one
    ],
)
def test_the_gpu_present_is_taken_with_what_is_free(
    gpus: tuple[tuple[str, int, int], ...],
    visible: str | None,
    flags: tuple[str, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvml, "open_nvml", lambda: nvml.Nvml(Driver(*gpus)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, out, err = ullage("check", "llama-3.1-8b", *flags, capsys=capsys)
    assert found == code
    assert said in out + err
