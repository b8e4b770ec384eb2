"""Synthetic starts of vLLM, of Llama 3.1 8B on H100 where nothing else is said, laid beside their estimates."""

from pathlib import Path

from analytic.engine_constants import EngineCalibration
from analytic.hardware import find_gpu
from analytic.logs import read_log
from analytic.starts.beside import Beside, beside


def start(folder: Path, *lines: str, version: str = "0.33.0", **settings: object) -> Beside:
    return starts(folder, banner(version, **settings), *lines)[0]


def banner(version: str, **settings: object) -> str:
    known = {"model": "'meta-llama/Llama-3.1-8B-Instruct'", "dtype": "torch.bfloat16", "max_seq_len": 8192, **settings}
    config = ", ".join(f"{name}={value}" for name, value in known.items())
    return f"(EngineCore pid=7) INFO [core.py:123] Initializing a V1 LLM engine (v{version}) with config: {config}"


def starts(
    folder: Path,
    *lines: str,
    gpu: str | None = "h100-80gb",
    constants: EngineCalibration | None = None,
    **given: object,
) -> list[Beside]:
    file = folder / "engine.log"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = given.pop("model", None)
    assert model is None or isinstance(model, str)
    device = None if gpu is None else find_gpu(gpu)
    return [
        beside(run, source="engine.log", model=model, gpu=device, given=given, constants=constants)
        for run in read_log(file)
    ]
