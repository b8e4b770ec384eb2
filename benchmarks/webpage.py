"""How long the page takes to answer a change, in Chromium, beside the command: ``python benchmarks/webpage.py``.

Controls are changed by chance, one at a time, over engines, models, GPUs and formats. A change has three parts, shown
one after another: the answer (verdict, ledger, GPU by GPU), the rest (limits, levers, notes) and the map of what else
fits. Wall time of one thread, so a busy machine shows in it.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.browser, which is not installed

from analytic.errors import UllageError
from analytic.estimator import estimate
from analytic.report.estimate import document
from analytic.webpage.page import write
from tests.browser import chromium

GOAL_MS = 50.0

CHANGES = """([count, seed]) => {
  let state = seed;
  const random = () => (state = (state * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;
  const pick = (items) => items[Math.floor(random() * items.length)];
  const timed = (run) => { const start = performance.now(); run(); return performance.now() - start; };
  const most = { "prompt-tokens": 200000, "output-tokens": 4000, "batch-size": 64 };
  const value = (id) => {
    if (id === "model") return pick(Object.keys($tables.models));
    return id in most ? 1 + Math.floor(random() * most[id]) : pick([...$on(id).options]).value;
  };
  return Array.from({ length: count }, () => {
    const id = pick(["engine", "model", "gpu", "gpus", "format", ...Object.keys(most)]);
    $on(id).value = value(id);
    const times = { answer: timed(() => $on(id).dispatchEvent(new Event("input", { bubbles: true }))) };
    clearTimeout($pending);
    const question = $question();
    try {
      const answer = $estimate(question);
      times.rest = timed(() => $showRest(answer));
      if (answer.gpu !== null) times.map = timed(() => $showMap(answer));
    } catch (error) { if (!(error instanceof $UllageError)) throw error; }
    return [question, times];
  });
}"""


def changes(count: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """The questions that came up, and the milliseconds of each part."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = browser.new_page()
        page.goto(write(Path(folder)).as_uri())
        page.wait_for_selector("#answer:not([hidden])")
        rows = page.evaluate(CHANGES, [count, seed])
    return [question for question, _ in rows], [times for _, times in rows]


def in_python(questions: Sequence[Mapping[str, Any]]) -> list[float]:
    """Milliseconds of the same answers, their limits and levers, in one Python process."""
    taken = []
    for question in questions:
        started = perf_counter()
        try:
            document(estimate(**question))
        except UllageError:
            continue
        taken.append(1000 * (perf_counter() - started))
    return taken


def as_command(model: str, gpu: str) -> float:
    """Milliseconds of one whole ``ullage estimate``."""
    command = Path(sysconfig.get_path("scripts")) / "ullage"
    started = perf_counter()
    subprocess.run([command, "estimate", model, "--gpu", gpu, "--json"], check=False, stdout=subprocess.DEVNULL)
    return 1000 * (perf_counter() - started)


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(times)
    shares = {"median_ms": 0.5, "p95_ms": 0.95, "max_ms": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in shares.items()}


def main() -> None:
    """Print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=300, help="changes that are timed (300)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    asked = parser.parse_args()
    questions, times = changes(asked.changes, asked.seed)
    found = {f"page, {part}": spread([row[part] for row in times if part in row]) for part in ("answer", "rest", "map")}
    found["Python, answer and rest"] = spread(in_python(questions))
    found["command, whole process"] = spread([as_command("llama-3.1-8b", "h100-80gb") for _ in range(5)])
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for name, row in found.items():
        figures = ", ".join(f"{key.removesuffix('_ms')} {value:.1f}" for key, value in row.items())
        print(f"{name}: {figures} ms")
    print(f"goal: an answer in under {GOAL_MS:g} ms; {asked.changes} changes, seed {asked.seed}")


if __name__ == "__main__":
    main()
