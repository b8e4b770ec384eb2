#!/usr/bin/env python3
"""Time plans: one model on every GPU in every format with a 10 x 10 matrix, and a fleet of models on 40 GPUs.

`python benchmarks/planning.py [--engine transformers|vllm|llamacpp] [--fleet 500]` prints seconds of this process's own
time; the goals are 2 s and 60 s.
"""

import argparse
import time
from itertools import cycle, islice

from analytic.errors import UllageError
from analytic.hardware import gpus
from analytic.models import catalog
from analytic.plans.plan import plan
from analytic.plans.question import Question, every_format
from analytic.request import Engine, Request

FLEET_GPUS = 40
MATRIX_GOAL_S, FLEET_GOAL_S = 2.0, 60.0


def time_matrix(engine: Engine) -> tuple[float, int]:
    """Seconds, and how many deployments have a matrix."""
    model = catalog.load("llama-3.1-8b")
    started = time.process_time()
    question = Question(formats=every_format(), counts=(1,))
    found = plan(model, Request(engine=engine), gpus=gpus(), question=question)
    return time.process_time() - started, len(found.options)


def time_fleet(engine: Engine, models: int, counts: tuple[int, ...]) -> tuple[float, int, int]:
    """Seconds, models that have a plan, and deployments; models of the catalogue again and again, each read anew."""
    kinds = [gpu for gpu in gpus() if gpu.kind in ("data-centre", "workstation")][:FLEET_GPUS]
    names = islice(cycle(entry.name for entry in catalog.entries()), models)
    question = Question(contexts=(4096,), concurrencies=(1,), counts=counts)
    planned = deployments = 0
    started = time.process_time()
    for name in names:
        try:
            found = plan(catalog.load(name), Request(engine=engine), gpus=kinds, question=question)
        except UllageError:
            continue
        planned, deployments = planned + 1, deployments + len(found.options)
    return time.process_time() - started, planned, deployments


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("transformers", "vllm", "llamacpp"), default="transformers")
    parser.add_argument("--fleet", type=int, default=500, help="models (500); 0 for none")
    parser.add_argument("--counts", default="1,2,4,8", help="GPUs that each is tried on (1,2,4,8)")
    asked = parser.parse_args()
    seconds, options = time_matrix(asked.engine)
    print(f"{options:,} deployments of one model, 10 x 10 each: {seconds:.2f} s (goal {MATRIX_GOAL_S:g})")
    if asked.fleet:
        counts = tuple(map(int, asked.counts.split(",")))
        seconds, planned, options = time_fleet(asked.engine, asked.fleet, counts)
        print(
            f"{planned} of {asked.fleet} models on {FLEET_GPUS} GPUs, {options:,} deployments: {seconds:.1f} s "
            f"(goal {FLEET_GOAL_S:g})"
        )


if __name__ == "__main__":
    main()
