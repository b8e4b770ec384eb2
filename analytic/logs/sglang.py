"""What SGLang prints when it starts (srt/model_executor/model_runner.py, srt/mem_cache/memory_pool.py,
srt/model_executor/cuda_graph_runner.py, srt/managers/scheduler.py), 2024 to 2026.

Its "GB" are GiB throughout: bytes are divided by ``1 << 30`` (srt/utils: get_available_gpu_memory; memory_pool.py: GB).
``mem usage`` is free memory before less free memory after: other processes of the GPU count too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from analytic.errors import UllageError
from analytic.logs.figures import compiled, contradiction_notes, contradictions, found, is_cut_off
from analytic.logs.literals import pairs
from analytic.logs.reading import Line
from analytic.logs.records import EngineRun, Fact, Setting

FIGURES = compiled(
    r"Load weight begin\. avail mem=<free_before_weights__gib> GB",
    r"Load weight end\..{0,300}? avail mem=<free_after_weights__gib> GB(?:, mem usage=<weights__gib> GB)?",
    r"\bKV Cache is allocated\..{0,60}?#tokens: <kv_cache_tokens__n>, K size: <kv_cache_k__gib> GB, "
    r"V size: <kv_cache_v__gib> GB",
    r"\bKV Cache is allocated\..{0,60}?#tokens: <kv_cache_tokens__n>, KV size: <kv_cache__gib> GB",
    r"Mamba Cache is allocated\..{0,60}?max_mamba_cache_size: <mamba_slots__n>, "
    r"conv_state size: <mamba_conv__gib> ?GB, ssm_state size: <mamba_ssm__gib> ?GB",
    r"SWAKVPool mem usage: <kv_cache__gib> GB, swa size: <swa_tokens__n>, full size: <full_tokens__n>",
    r"full_layer_tokens=<full_tokens__n>, swa_layer_tokens=<swa_tokens__n>",
    r"Memory pool end\. avail mem=<free_after_pool__gib> GB",
    r"Capture cuda graph end\..{0,60}? mem usage=<cuda_graphs__gib> GB\.? ?,? ?avail mem=<free_after_graphs__gib> GB",
    r"Capture target (?:decode|verify) CUDA graph end\..{0,60}? mem usage=<cuda_graphs__gib> GB",
    r"Capture (?:piecewise|prefill|target prefill) CUDA graph end\..{0,60}? mem usage=<prefill_graphs__gib> GB",
    r"Capture draft \w{0,20} ?(?:CUDA|cuda) graph end\..{0,60}? mem usage=<draft_graphs__gib> GB",
    r"\bmax_total_num_tokens=<max_total_tokens__n>",
    r"max_running_requests=<max_running_requests__n>",
    r"available_gpu_mem=<free_at_end__gib> GB",
    r"Init torch distributed ends\..{0,60}?mem usage=<distributed__gib> GB",
)

HINTS = (
    *("avail mem=", "mem usage", "KV Cache", "Mamba Cache", "SWAKV", "max_total_num_tokens", "ServerArgs", "sglang=="),
    *("SGLang Version", "layer_tokens=", "KV cache dtype"),
)
"""Every line of interest has one of these."""

_BANNER = re.compile(r"server_args=ServerArgs\((?P<arguments>.*)")
_RANKS = re.compile(
    r"^.{0,60}?\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?P<ranks>(?: [A-Z_]{2,12}\d{1,5}){1,6})\]|\[gpu=(?P<gpu>\d{1,4})\]"
)
_VERSION = re.compile(r"SGLang Version (?P<version>[\w.+-]{1,64})|\bsglang==(?P<pinned>[\w.+-]{1,64})")
_SCHEDULER = re.compile(
    r"(?P<name>chunked_prefill_size|max_prefill_tokens|context_len)=(?P<value>-?\d{1,12})(?=,|\s|$)"
)
_KV_DTYPE = re.compile(r"(?:Using KV cache dtype: |KV Cache is allocated\. dtype: )torch\.(?P<dtype>\w{1,32})")
_TYPE = re.compile(r"Load weight end\..{0,60}?type=(?P<type>\w{1,80})(?:, dtype=torch\.(?P<dtype>\w{1,16}))?")

_ARGUMENTS = {
    **{"tp_size": "tensor_parallel_size", "pp_size": "pipeline_parallel_size", "dp_size": "data_parallel_size"},
    **{"context_length": "max_model_len", "ep_size": "expert_parallel_size"},
    **{
        name: name
        for name in (
            *("dtype", "quantization", "kv_cache_dtype", "mem_fraction_static", "chunked_prefill_size", "page_size"),
            *("max_prefill_tokens", "max_running_requests", "max_total_tokens", "attention_backend", "load_format"),
            *("cuda_graph_max_bs", "disable_cuda_graph", "disable_radix_cache", "speculative_algorithm", "revision"),
            *("enable_dp_attention", "enable_lora", "cpu_offload_gb", "swa_full_tokens_ratio", "device"),
        )
    },
}
"""Names of ServerArgs: ours. What was asked for, with SGLang's defaults filled in."""


@dataclass(kw_only=True, slots=True)
class _Run:
    first: int
    has_banner: bool = False
    version: str | None = None
    architectures: list[str] = field(default_factory=list)
    asked: dict[str, object] = field(default_factory=dict)
    seen: dict[str, Setting] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)


def read_sglang(lines: list[Line]) -> Iterator[tuple[int, EngineRun]]:
    """Every start of SGLang in the lines of one source, with its first line.

    Raises:
        UllageError: two runs are interleaved: the lines name ranks, not processes.
    """
    runs: list[_Run] = []
    for line in lines:
        _read_line(line, runs)
    for run, later in pairwise(runs):
        twice = {pair[0].name for pair in contradictions(later.facts)} & {"weights", "kv_cache_tokens"}
        if twice - {fact.name for fact in run.facts}:
            raise UllageError(
                f"two runs of SGLang are interleaved (they begin at lines {run.first} and {later.first})",
                hint="their lines do not say whose they are: give one file for each run",
            )
    for run in runs:
        if run.facts or run.has_banner:
            yield run.first, _finished(run)


def _read_line(line: Line, runs: list[_Run]) -> None:
    text = line.text
    banner, version = _BANNER.search(text), _VERSION.search(text)
    ranks = _RANKS.search(text)
    place = (ranks["ranks"] or f"TP{ranks['gpu']}").strip() if ranks else ""
    facts = list(found(line, FIGURES, place))
    kind, dtype = _TYPE.search(text), _KV_DTYPE.search(text)
    if not (banner or version or facts or dtype):
        return
    if not runs or (banner and (runs[-1].has_banner or runs[-1].facts)):
        runs.append(_Run(first=line.number))
    run = runs[-1]
    run.facts.extend(facts)
    if banner:
        run.has_banner, run.asked = True, pairs(banner["arguments"], "=")
    if version:
        run.version = version["version"] or version["pinned"]
    if kind:
        run.architectures.append(kind["type"])
        run.seen.update({"dtype": kind["dtype"]} if kind["dtype"] else {})
    if dtype:
        run.seen.setdefault("kv_cache_dtype", dtype["dtype"])
    for match in _SCHEDULER.finditer(text) if facts else ():
        name = "max_model_len" if match["name"] == "context_len" else match["name"]
        run.seen[name] = int(match["value"])
    if is_cut_off(line, FIGURES):
        run.notes[f"the file ends within a figure (line {line.number}), which was not read"] = None


def _finished(run: _Run) -> EngineRun:
    asked = {ours: _plain(run.asked[name]) for name, ours in _ARGUMENTS.items() if name in run.asked}
    model = run.asked.get("model_path")
    return EngineRun(
        engine="sglang",
        version=run.version,
        model=model if isinstance(model, str) else None,
        settings={**asked, **run.seen},
        facts=tuple(run.facts),
        notes=(*run.notes, *_notes(run)),
    )


def _plain(value: object) -> Setting:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _notes(run: _Run) -> Iterator[str]:
    names = {fact.name for fact in run.facts}
    if run.version is None:
        yield "no line says which version of SGLang this is"
    if not run.has_banner:
        yield "no line of settings (server_args=ServerArgs(…))"
    if "weights" not in names:
        yield "no line says what the weights took"
    if not names & {"kv_cache_k", "kv_cache", "max_total_tokens"}:
        yield "no line says what the KV cache has: the start ended before, or the lines are missing"
    if len(set(run.architectures)) > 1:
        names_of = ", ".join(dict.fromkeys(run.architectures))
        yield f"several models are loaded ({names_of}): a draft's figures are among them"
    yield from contradiction_notes(run.facts, "a second model (a draft), or runs that are mixed up")
