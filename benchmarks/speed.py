"""How fast ullage answers, beside other estimators, in one run: ``python benchmarks/speed.py [--runs 7] [--json]``.

Each tool runs as a whole process, in turn, against a Hub on the loopback with a model in the shape of Llama 2 70B.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from platform import python_version
from shutil import which
from statistics import median
from time import perf_counter

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.loopback_hub, which is not installed

from analytic.estimator import run as estimate
from analytic.hardware import find_gpu
from analytic.models.catalog import load
from analytic.models.model import Model
from analytic.request import Request
from tests.loopback_hub import LoopbackHub, SparseFile, safetensors_head

CATALOGUE_NAME = "llama-2-70b"
HUB_ID = "loopback/llama-2-70b-shaped"
SHARD_BYTES = 10 * 10**9
"""Most bytes of one shard, as the published repository was cut (into 15)."""

GOAL_SECONDS = 0.15
GOAL_BYTES = 45 * 10**6
GOAL_ESTIMATES_SECONDS = 3.0
ESTIMATES = 10_000

COMPARED = ("ullage", "huggingface_hub", "accelerate", "transformers", "torch", "hf-mem")

STOPWATCH = """
import os, sys, time
output = [(os.POSIX_SPAWN_OPEN, fd, sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for fd in (1, 2)]
start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=output)
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
print(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))
"""
"""Times a command from a process of 9 MB: Linux counts the parent's peak as the child's."""

HF_MEM = """
import os, httpx2
from hf_mem.cli import main
loopback, build = httpx2.URL(os.environ["HF_ENDPOINT"]), httpx2.AsyncClient.build_request
def redirected(self, method, url, **options):
    url = httpx2.URL(url).copy_with(scheme=loopback.scheme, host=loopback.host, port=loopback.port)
    return build(self, method, url, **options)
httpx2.AsyncClient.build_request = redirected
main()
"""
"""Runs hf-mem's own main with its requests sent to HF_ENDPOINT: the Hub's address is fixed in its source."""

MODULES = """
import sys
bare = set(sys.modules)
import analytic
analytic.estimate(sys.argv[1])
print(*sorted(set(sys.modules) - bare))
"""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A command to be timed."""

    name: str
    command: tuple[str, ...] | None
    """None if its package is not installed."""
    keeps_cache: bool
    """Whether its caches outlive a run (they are warm then, since the first run is not counted)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process, from its start to its end."""

    wall_seconds: float
    cpu_seconds: float
    """User and system time of all its threads: steadier than the wall where others share the machine."""
    peak_rss_bytes: int
    exit_code: int
    output: str
    """Standard output and error together."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was seen of one contender, or why nothing was."""

    name: str
    wall_seconds: tuple[float, ...] = ()
    cpu_seconds: tuple[float, ...] = ()
    peak_rss_bytes: int | None = None
    """The largest of its runs."""
    failure: str | None = None

    @property
    def median_seconds(self) -> float | None:
        """None if it did not run."""
        return median(self.wall_seconds) if self.wall_seconds else None

    @property
    def is_unstable(self) -> bool:
        """Whether its slowest run took half as long again as its fastest."""
        return max(self.wall_seconds, default=0.0) > 1.5 * min(self.wall_seconds, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one benchmark saw."""

    versions: Mapping[str, str | None]
    catalogue: Timing
    cold: Timing
    others: tuple[Timing, ...]
    estimates_seconds: Mapping[str, tuple[float, ...]]
    """Seconds for ESTIMATES estimates in one process, for each question."""
    modules: tuple[str, ...]
    """What one estimate imports beyond a bare interpreter."""

    @property
    def timings(self) -> tuple[Timing, ...]:
        """All contenders."""
        return (self.catalogue, self.cold, *self.others)

    @property
    def goals(self) -> dict[str, bool]:
        """Each goal, and whether it holds; a goal that could not be measured does not."""
        seconds, peak = self.catalogue.median_seconds, self.catalogue.peak_rss_bytes
        slowest = max(median(times) for times in self.estimates_seconds.values())
        return {
            f"{self.catalogue.name}: median ≤ {GOAL_SECONDS} s": seconds is not None and seconds <= GOAL_SECONDS,
            f"{self.catalogue.name}: peak RSS ≤ {GOAL_BYTES / 1e6:.0f} MB": peak is not None and peak <= GOAL_BYTES,
            f"{ESTIMATES:,} estimates: median < {GOAL_ESTIMATES_SECONDS:.0f} s": slowest < GOAL_ESTIMATES_SECONDS,
        }

    def times_ullage(self, timing: Timing) -> float | None:
        """How many times as long as ullage's cold start from the Hub, which does the most of its work."""
        seconds, base = timing.median_seconds, self.cold.median_seconds
        return seconds / base if seconds is not None and base is not None else None


def shards(model: Model) -> Iterator[dict[str, tuple[str, tuple[int, ...], int]]]:
    """The model's tensors in 16 bits, layer after layer, cut into files as they are published."""
    shard: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name, shape in tensors(model):
        size = 2 * prod(shape)
        if sum(held for *_, held in shard.values()) + size > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = ("F16", shape, size)
    yield shard


def tensors(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each stored tensor: embedding, layers in turn, the rest."""
    stored = [group for group in model.tensors if group.persistent]
    yield from ((g.name, g.shape) for g in stored if g.role == "embedding")
    for layer in range(len(model.geometry.layers)):
        yield from ((g.name.format(layer), g.shape) for g in stored if layer in (g.layers or ()))
    yield from ((g.name, g.shape) for g in stored if g.layers is None and g.role != "embedding")


def repository(model: Model) -> dict[str, bytes | SparseFile]:
    """The files of a Hub repository, their weights all zeros."""
    cut = list(shards(model))
    named = {f"model-{i:05}-of-{len(cut):05}.safetensors": shard for i, shard in enumerate(cut, start=1)}
    weight_map = {tensor: file for file, shard in named.items() for tensor in shard}
    return {
        "config.json": json.dumps(dict(model.config)).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        **{file: safetensors_head(shard, format="pt") for file, shard in named.items()},
    }


def peers_hub(model: Model) -> LoopbackHub:
    """A loopback Hub that also answers what the other tools ask: a model's library and config, and its file tree."""
    hub = LoopbackHub()
    published = hub.add(HUB_ID, repository(model))
    sizes = {name: file.size for name, file in published.files.items()}
    hub.pages[f"/api/models/{HUB_ID}"] = {
        "id": HUB_ID,
        "sha": published.commit,
        "library_name": "transformers",
        "config": {key: model.config[key] for key in ("architectures", "model_type")},
        "siblings": [{"rfilename": name, "size": size} for name, size in sizes.items()],
    }
    hub.pages[f"/api/models/{HUB_ID}/tree/main"] = [
        {"type": "file", "path": name, "size": size} for name, size in sizes.items()
    ]
    return hub


def contenders() -> tuple[Contender, ...]:
    """What is timed; the catalogue and the cold Hub first."""
    catalogue = command("ullage", "estimate", CATALOGUE_NAME, "--json")
    from_hub = command("ullage", "estimate", HUB_ID, "--json")
    hf_mem = command("python", "-c", HF_MEM, "--model-id", HUB_ID) if installed("hf-mem") else None
    return (
        Contender(name="ullage, catalogue", command=catalogue, keeps_cache=True),
        Contender(name="ullage, Hub, cold", command=from_hub, keeps_cache=False),
        Contender(name="ullage, Hub, warm", command=from_hub, keeps_cache=True),
        Contender(name="accelerate", command=command("accelerate", "estimate-memory", HUB_ID), keeps_cache=True),
        Contender(name="hf-mem", command=hf_mem, keeps_cache=True),
    )


def command(name: str, *arguments: str) -> tuple[str, ...] | None:
    """A script of this interpreter's environment and its arguments; None if it is not there."""
    script = which(name, path=sysconfig.get_path("scripts"))
    return (script, *arguments) if script else None


def environment(hub: LoopbackHub, caches: Path, bytecode: Path) -> dict[str, str]:
    """The outer environment without what would change a run, and the Hub on the loopback."""
    changing = re.compile("hf_.*|huggingface_.*|transformers_.*|ullage_.*|python.*|.*_proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not changing.fullmatch(name)}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **hub.environment(caches), **quiet, "PYTHONPYCACHEPREFIX": str(bytecode)}


def run(contender: Contender, hub: LoopbackHub, folder: Path) -> Run:
    """Run a contender once; every tool's bytecode is compiled by its first run and kept in ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        caches, log = folder / "kept" if contender.keeps_cache else Path(fresh), Path(fresh) / "log"
        command = (sys.executable, "-I", "-S", "-c", STOPWATCH, str(log), *(contender.command or ()))
        surroundings = environment(hub, caches, folder / "bytecode")
        figures = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, text=True, check=True).stdout
        wall, cpu, peak, code = figures.split()
        output = log.read_text(errors="replace")
    return Run(
        wall_seconds=float(wall),
        cpu_seconds=float(cpu),
        peak_rss_bytes=int(peak),
        exit_code=int(code),
        output=output,
    )


def compete(runs: int) -> tuple[Timing, ...]:
    """Run each contender once uncounted, then all of them in turn, ``runs`` times."""
    entered = contenders()
    with tempfile.TemporaryDirectory() as folder, peers_hub(load(CATALOGUE_NAME)) as hub:
        rounds = [
            [run(entry, hub, Path(folder)) if entry.command else None for entry in entered] for _ in range(1 + runs)
        ]
    return tuple(timing(entry.name, [seen[i] for seen in rounds][1:]) for i, entry in enumerate(entered))


def timing(name: str, runs: list[Run | None]) -> Timing:
    """Sum up the runs of one contender."""
    done = [seen for seen in runs if seen is not None]
    if len(done) < len(runs):
        return Timing(name=name, failure="not installed")
    if failed := next((seen for seen in done if seen.exit_code), None):
        last_line = (failed.output.strip().splitlines() or ["no output"])[-1]
        return Timing(name=name, failure=f"exit code {failed.exit_code}: {last_line}")
    return Timing(
        name=name,
        wall_seconds=tuple(seen.wall_seconds for seen in done),
        cpu_seconds=tuple(seen.cpu_seconds for seen in done),
        peak_rss_bytes=max(seen.peak_rss_bytes for seen in done),
    )


def time_estimates(gpu_name: str | None, gpus: int) -> float:
    """Seconds for ESTIMATES different requests to one model, the verdict read if there is a GPU."""
    model, gpu = load(CATALOGUE_NAME), find_gpu(gpu_name) if gpu_name else None
    side = round(ESTIMATES**0.5)
    start = perf_counter()
    for batch in range(1, side + 1):
        for prompt in range(100, 100 * side + 1, 100):
            answer = estimate(model, Request(batch_size=batch, prompt_tokens=prompt), gpu=gpu, gpus=gpus)
            assert (answer.fits is None) == (gpu is None)
    return perf_counter() - start


def imported() -> tuple[str, ...]:
    """Modules that one estimate imports, in a fresh interpreter."""
    command = (sys.executable, "-c", MODULES, CATALOGUE_NAME)
    return tuple(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split())


def measure(runs: int) -> Report:
    """Everything, once."""
    catalogue, cold, *others = compete(runs)
    asked = {"no GPU": (None, 1), "h100-80gb, .fits": ("h100-80gb", 1), "8 × h100-80gb, .fits": ("h100-80gb", 8)}
    return Report(
        versions={"python": python_version(), **{name: installed(name) for name in COMPARED}},
        catalogue=catalogue,
        cold=cold,
        others=tuple(others),
        estimates_seconds={name: tuple(time_estimates(*device) for _ in range(runs)) for name, device in asked.items()},
        modules=imported(),
    )


def installed(package: str) -> str | None:
    """Its version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def document(report: Report) -> dict[str, object]:
    """The report as one JSON object, raw values included."""
    timings = [
        {
            "name": timing.name,
            "median_seconds": timing.median_seconds,
            "wall_seconds": timing.wall_seconds,
            "cpu_seconds": timing.cpu_seconds,
            "peak_rss_bytes": timing.peak_rss_bytes,
            "times_ullage_cold": report.times_ullage(timing),
            "failure": timing.failure,
        }
        for timing in report.timings
    ]
    return {
        "versions": report.versions,
        "processes": timings,
        "estimates": ESTIMATES,
        "estimates_seconds": report.estimates_seconds,
        "modules": report.modules,
        "goals": report.goals,
    }


def render(report: Report, console: Console) -> None:
    """The report as tables."""
    console.print(", ".join(f"{name} {number or 'not installed'}" for name, number in report.versions.items()))
    console.print(processes(report), in_process(report), sep="\n")
    analytic = sum(name.split(".")[0] == "analytic" for name in report.modules)
    console.print(f"An estimate imports {len(report.modules)} modules, {analytic} of them ullage's own.")
    if any(timing.is_unstable for timing in report.timings):
        console.print("Unstable: a slowest run took over 1.5 × its fastest. Leave the machine alone, or add --runs.")
    for goal, holds in report.goals.items():
        console.print(f"{'holds ' if holds else 'MISSED'}  {goal}", highlight=False)


def processes(report: Report) -> Table:
    """A row for each contender."""
    table = Table("whole process")
    for heading in ("median s", "min–max s", "CPU s", "peak MB", "× cold"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in report.timings:
        if timing.failure is None:
            table.add_row(timing.name, *cells(timing, report.times_ullage(timing)))
        else:
            table.add_row(f"{timing.name}: {timing.failure}")
    return table


def cells(timing: Timing, ratio: float | None) -> tuple[str, ...]:
    """The figures of one contender that ran."""
    assert timing.peak_rss_bytes is not None
    return (
        f"{median(timing.wall_seconds):.3f}",
        f"{min(timing.wall_seconds):.3f}–{max(timing.wall_seconds):.3f}",
        f"{median(timing.cpu_seconds):.3f}",
        f"{timing.peak_rss_bytes / 1e6:.1f}",
        "" if ratio is None else f"{ratio:.2f}",
    )


def in_process(report: Report) -> Table:
    """A row for each thing asked in one process."""
    table = Table(f"{ESTIMATES:,} estimates of {CATALOGUE_NAME}")
    for heading in ("median s", "min–max s"):
        table.add_column(heading, justify="right")
    for name, times in report.estimates_seconds.items():
        table.add_row(name, f"{median(times):.2f}", f"{min(times):.2f}–{max(times):.2f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time ullage beside other estimators.")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each (7)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    report = measure(options.runs)
    if options.json:
        print(json.dumps(document(report), indent=1))
    else:
        render(report, Console())


if __name__ == "__main__":
    main()
