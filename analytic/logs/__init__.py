"""What engines print when they start, read from their logs: what weights, KV cache and the rest really took."""

import os
from dataclasses import replace

from analytic.errors import UllageError
from analytic.logs import llamacpp, sglang, vllm_lines
from analytic.logs.llamacpp import read_llamacpp
from analytic.logs.reading import read_text
from analytic.logs.records import EngineRun, Fact
from analytic.logs.sglang import read_sglang
from analytic.logs.vllm import read_vllm

__all__ = ["EngineRun", "Fact", "read_log"]

_READERS = ((read_vllm, vllm_lines.HINTS), (read_llamacpp, llamacpp.HINTS), (read_sglang, sglang.HINTS))


def read_log(path: str | os.PathLike[str]) -> tuple[EngineRun, ...]:
    """Every start of vLLM, llama.cpp or SGLang that a log tells of, in its order.

    Args:
        path: of a text file, as it was printed or as docker, journald or Kubernetes keep it.

    Raises:
        UllageError: no such file, empty, not text, of none of these engines, or of runs that cannot be told apart.
    """
    text = read_text(path, [hint for _, hints in _READERS for hint in hints])
    runs = [
        run
        for lines in text.sources.values()
        for reader, hints in _READERS
        for run in reader([line for line in lines if any(hint in line.text for hint in hints)])
    ]
    if not runs:
        raise UllageError(
            f"no line of {os.fspath(path)} is one that vLLM, llama.cpp or SGLang prints when it starts",
            hint="other engines' logs are not read; give the whole log, from the start",
        )
    runs.sort(key=lambda run: run[0])
    return tuple(replace(run, notes=(*text.notes, *run.notes)) for _, run in runs)
