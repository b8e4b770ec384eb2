"""Memory statistics of transformers on the null device: what the virtual GPU is held to.

SITE/bin/python record_phases.py PHASES.json    run every case of the file again, and write what they say
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

FIGURES = {
    "allocated_bytes": "allocated_bytes.all.current",
    "max_allocated_bytes": "allocated_bytes.all.peak",
    "reserved_bytes": "reserved_bytes.all.current",
    "max_reserved_bytes": "reserved_bytes.all.peak",
    "requested_bytes": "requested_bytes.all.current",
    "max_requested_bytes": "requested_bytes.all.peak",
    "num_segments": "segment.all.current",
    "num_alloc_retries": "num_alloc_retries",
}


def play(case: dict[str, Any]) -> dict[str, Any]:
    """Load and generate in this process; the statistics at the end of each phase, peaks since the one before."""
    import torch
    import transformers

    from analytic.models.resolve import resolve
    from analytic.models.twin import twin_config
    from analytic.request import Request
    from profiler.serve import Job, generate, load
    from profiler.sparse import sparse_checkpoint

    request = Request(**case["request"])
    config = twin_config(resolve(case["model"]).config, layers=case["layers"])
    config.pop("quantization_config", None)
    phases: dict[str, Any] = {}
    forwards = 0

    def end(name: str) -> None:
        told = torch.cuda.memory_stats()
        phases[name] = {figure: told[key] for figure, key in FIGURES.items()}
        torch.cuda.reset_peak_memory_stats()

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 2:
            end("prefill")

    unfinished = "_has_unfinished_sequences"
    setattr(transformers.GenerationMixin, unfinished, lambda *_, **__: forwards < request.output_tokens)
    torch.cuda.init()
    try:
        with sparse_checkpoint(config, dtype=case["stored"]) as checkpoint:
            model = load(Job(folder=str(checkpoint.path), request=request, device="cuda"))
            end("load")
            model.register_forward_pre_hook(count, with_kwargs=True)
            with torch.no_grad():
                out = generate(model, request)
                end("decode")
                del out
    except torch.OutOfMemoryError:
        told = torch.cuda.memory_stats()
        lasting = {figure: told[key] for figure, key in FIGURES.items() if "current" not in key}
        phases["out_of_memory"] = {"forwards": forwards, **lasting}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**case, "versions": versions, "phases": phases}


def on_device(case: dict[str, Any]) -> dict[str, Any]:
    """`play` in a process of its own, on the null device as the target's GPU."""
    from profiler.virtual.target import find_target

    target = find_target(f"virtual:{case['target']}")
    major, minor = target.capability
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_")} | {
        "NULLCUDA_SM": f"{major}{minor}",
        "NULLCUDA_SMS": str(target.sms),
        "NULLCUDA_CAPACITY_BYTES": str(case["total_bytes"] or target.gpu.total_bytes),
        "NULLCUDA_CONTEXT_BYTES": str(target.context_bytes),
        "NULLCUDA_BOOL": "0" if case["request"].get("padded") else "1",
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
    }
    if case["alloc_conf"]:
        env["PYTORCH_ALLOC_CONF"] = case["alloc_conf"]
    command = [str(HERE / "run.sh"), sys.executable, __file__, "--play"]
    done = subprocess.run(command, input=json.dumps(case), text=True, capture_output=True, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def record(path: Path) -> None:
    """The file is whole after every case."""
    cases = json.loads(path.read_text())
    for number, case in enumerate(cases):
        print(case["model"], case["target"], case["request"], flush=True)
        cases[number] = on_device(case)
        path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    if sys.argv[1] == "--play":
        print(json.dumps(play(json.load(sys.stdin))))
    else:
        record(Path(sys.argv[1]))
