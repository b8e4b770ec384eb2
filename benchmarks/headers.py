"""How long the headers of a checkpoint of a trillion parameters take: from the Hub, from the cache, from the disk.

`python benchmarks/headers.py` makes a repository like Kimi K2's (160 shards, 90,000 tensors; the weights are holes),
serves it from another process on this machine with a delay before every answer, and runs `ullage inspect` on it. What
it prints is the whole process, Python's start included.
"""

import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SHARDS, EXPERTS, STALL_SECONDS = 160, 248, 0.02
MODEL = "kimi-k2"


def config() -> dict[str, Any]:
    """Kimi K2's, with as many experts as make 90,000 tensors."""
    from analytic.models import catalog

    return {**catalog.load(MODEL).config, "n_routed_experts": EXPERTS}


def tensors() -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Name, dtype, shape and bytes of every tensor."""
    from analytic.models import catalog

    for group in catalog.load(MODEL).tensors:
        for layer in (group.layers or (None,)) if group.persistent else ():
            name = group.name if layer is None else group.name.replace("{}", str(layer))
            name = name.replace(".router.weight", ".weight").replace(".mlp.router.", ".mlp.gate.")
            if group.role == "expert" and len(group.shape) == 3:
                yield from _experts(name.rpartition(".")[0], group.name, group.shape)
            elif group.stored.startswith("fp8"):
                yield from _tiles(name, group.shape)
            else:
                shape = (EXPERTS, *group.shape[1:]) if group.role == "router" else group.shape
                size = 4 if group.stored == "float32" else 2
                yield name, "F32" if size == 4 else "BF16", shape, size * _elements(shape)


def _experts(module: str, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    parts = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
    for expert in range(EXPERTS):
        for part in parts:
            yield from _tiles(f"{module}.{expert}.{part}.weight", (shape[1] // len(parts), shape[2]))


def _tiles(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    scales = (-(-shape[0] // 128), -(-shape[1] // 128))
    yield name, "F8_E4M3", shape, _elements(shape)
    yield f"{name}_scale_inv", "F32", scales, 4 * _elements(scales)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def files() -> dict[str, Any]:
    """The repository: config, index and shards without their data."""
    from loopback_hub import safetensors_head  # type: ignore[import-not-found]

    every = list(tensors())
    names = [f"model-{number:05d}-of-{SHARDS:05d}.safetensors" for number in range(1, SHARDS + 1)]
    each = -(-len(every) // SHARDS)
    held = {name: every[i * each : (i + 1) * each] for i, name in enumerate(names)}
    index = {tensor[0]: name for name, rows in held.items() for tensor in rows}
    print(f"{len(every):,} tensors in {SHARDS} shards", file=sys.stderr)
    return {
        "config.json": json.dumps(config()).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
        **{name: safetensors_head({n: (d, s, b) for n, d, s, b in rows}) for name, rows in held.items()},
    }


def serve() -> None:
    """The loopback Hub, until standard input ends; its address on standard output, then how many it served at once."""
    from loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        hub.add("acme/trillion", files())
        hub.stall_seconds = STALL_SECONDS
        print(hub.url, flush=True)
        sys.stdin.read()
        print(hub.most_in_flight, flush=True)


def timed(environment: dict[str, str], *arguments: str) -> tuple[float, float]:
    """Seconds and MiB of one process of ullage, the best of three."""
    code = "from analytic.cli import main; main()"
    best = (float("inf"), 0.0)
    for _ in range(1 if "ULLAGE_ONCE" in environment else 3):
        begun = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"ullage {' '.join(arguments)} failed")
        best = min(best, (time.perf_counter() - begun, usage.ru_maxrss / 1024))
    return best


def main() -> None:
    """Print the table."""
    compileall.compile_dir(ROOT / "analytic", quiet=1)  # as pip does when it installs
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdin
        assert server.stdout
        hub = {
            "HF_ENDPOINT": server.stdout.readline().strip(),
            "HF_HOME": f"{folder}/hf",
            "NO_PROXY": "127.0.0.1",
            "ULLAGE_CACHE_DIR": f"{folder}/ullage",
        }
        disk = Path(folder) / "trillion"
        disk.mkdir()
        for name, file in files().items():
            with (disk / name).open("wb") as stream:
                stream.write(file if isinstance(file, bytes) else file.head)
                if not isinstance(file, bytes):
                    stream.truncate(file.size)
        rows = {
            "from the Hub": timed({**hub, "ULLAGE_ONCE": "1"}, "inspect", "acme/trillion"),
            "from the cache": timed(hub, "inspect", "acme/trillion"),
            "from the disk": timed(hub, "inspect", str(disk)),
            "start alone": timed(hub, "rule", "70B"),
        }
        server.stdin.close()
        print(f"requests in flight: {server.stdout.readline().strip()}")
        for name, (seconds, size) in rows.items():
            print(f"{name:16} {seconds:6.2f} s {size:6.0f} MiB")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
