"""What llama.cpp prints when it starts, since November 2024 (src/llama-model.cpp, llama-kv-cache*.cpp,
llama-memory-recurrent.cpp, llama-context.cpp, common/fit.cpp; before: llama.cpp). MiB and GiB are what they say.

``llama-server`` and ``llama-cli`` print buffers only from verbosity 4 (``-lv 4``) since 2026.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from analytic.logs.figures import compiled, contradiction_notes, found, is_cut_off
from analytic.logs.reading import Line
from analytic.logs.records import EngineRun, Fact, Setting

_DEVICE = r"(?<![\w.:-])(?P<place>[A-Za-z][\w.:-]{0,40}(?:\[[\w.:-]{1,80}\]|\(\))?)"
_BREAKDOWN = r"memory_breakdown(?:_print)?: (?:\| )? *- " + r"(?P<place>[A-Za-z]\w{0,40})(?: \([^|=]{0,80}\))? *[|:] *"

FIGURES = compiled(
    rf"{_DEVICE} +model buffer size = +<model_buffer__mib> MiB",
    rf"load_tensors: +{_DEVICE} +buffer size = +<model_buffer__mib> MiB",
    rf"{_DEVICE} +KV buffer size = +<kv_buffer__mib> MiB",
    rf"{_DEVICE} +RS buffer size = +<recurrent_buffer__mib> MiB",
    rf"{_DEVICE} +DSV4 [\w ]{{1,30}}state buffer size = +<dsv4_state_buffer__mib> MiB",
    rf"{_DEVICE} +compute buffer size = +<compute_buffer__mib> MiB",
    rf"{_DEVICE} +output buffer size = +<output_buffer__mib> MiB",
    rf"{_DEVICE} +LoRA buffer size = +<lora_buffer__mib> MiB",
    r"KV self size += +<kv_size__mib> MiB(?:, K \(\w+\): +<kv_k__mib> MiB, V \(\w+\): +<kv_v__mib> MiB)?",
    r"kv_cache\w*: size = +<kv_size__mib> MiB \( *<kv_cells__n> cells, +<kv_layers__n> layers, +<kv_sequences__n>"
    r"(?:/ *\d+)? seqs\), K \(\w+\): +<kv_k__mib> MiB, V \(\w+\): +<kv_v__mib> MiB",
    r"memory_recurrent: size = +<recurrent_size__mib> MiB \( *<recurrent_cells__n> cells, "
    r"+<recurrent_layers__n> layers",
    r"offloaded <offloaded_layers__n>/<layers__n> layers to GPU",
    r"(?:model|file) size += +<file_size__mib> MiB \(",
    r"(?:model|file) size += +<file_size__gib> GiB \(",
    r"using device (?P<place>\w{1,40}) \(.{1,120}\) - <device_free__mibfloor> MiB free",
    r"^[^-]{0,60}- (?P<place>\w{1,40}) *: .{1,120} \(<device_total__mibfloor> MiB, <device_free__mibfloor> MiB free\)",
    _BREAKDOWN
    + r"<device_total__mibfloor> = +<device_free__mibfloor> \+ \( *-?\d+ = +<model__mibfloor> \+ +<context__mibfloor>"
    r" \+ +<compute__mibfloor>\)",
    _BREAKDOWN + r"(?:\d+ +)?-?\d+ = +<model__mibfloor> \+ +<context__mibfloor> \+ +<compute__mibfloor>",
)
"""Of the breakdown, which cuts to whole MiB, ``context`` is the state of sequences; before a model is loaded it is a
projection (``projected_model`` and so on), by which ``--fit`` chooses."""
_REPEATS = {
    *("kv_buffer", "kv_size", "kv_k", "kv_v", "kv_cells", "kv_layers", "kv_sequences", "dsv4_state_buffer"),
    *("device_free", "model", "context", "compute", "projected_model", "projected_context", "projected_compute"),
}
"""Printed once a cache (full and sliding attention have one each), or at several times."""

_SETTINGS = re.compile(
    r"(?:llama_\w+|new_context_with_model): (?P<name>n_seq_max|n_ctx|n_ctx_per_seq|n_ctx_seq|n_batch|n_ubatch|"
    r"flash_attn|kv_unified|causal_attn|n_rs_seq|n_outputs_max) += (?P<value>[\w.-]{1,24})"
)
_RESOLVED_FLASH = re.compile(r"Flash Attention was auto, set to (?P<value>\w{1,16})")
_TYPES = re.compile(r"K \((?P<type_k>\w{1,16})\): .{1,20}V \((?P<type_v>\w{1,16})\)")
_BUILD = re.compile(
    r"(?:\bbuild(?:_info)?: (?:b)?|main: build = |^version: )(?P<version>\d{3,6})(?: \(|-)[0-9a-f]{6,12}"
)
_LOADED = re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (?P<path>.{1,400}?) \(version ")
_LOADING = re.compile(r"load_model: loading model '(?P<path>.{1,400}?)'")
_MODEL = re.compile(r"general\.name += (?P<name>\S.{0,100}?) *$")
_FILE_TYPE = re.compile(r"(?:model ftype|file type) += (?P<type>\S.{0,60}?) *$")
_DEVICES = (
    re.compile(r"^ *Device (?P<index>\d{1,3}): (?P<name>[^,]{1,80}), compute capability"),
    re.compile(r"using device (?P<device>\w{1,40}) \((?P<name>[^()]{1,80}(?:\([^()]{0,40}\)[^()]{0,40})?)\)"),
    re.compile(r"^[^-]{0,60}- (?P<device>\w{1,40}) *: (?P<name>.{1,80}) \(\d+ MiB, \d+ MiB free\)"),
)
_FIT = re.compile(r"(?:params_fit|fit_params)(?:_impl)?: ")
HINTS = (
    *(" MiB", " GiB (", "n_ctx", "batch ", "n_seq_max", "flash_attn", "Flash Attention", "kv_unified", "causal_attn"),
    *("build", "version: ", "meta data with", "loading model '", "general.name", "ftype", "file type", "n_rs_seq"),
    *("  Device ", "layers to GPU", "fit_params", "params_fit", "n_outputs_max", "breakdown"),
)
"""Every line of interest has one of these."""


@dataclass(kw_only=True, slots=True)
class _Run:
    first: int
    version: str | None = None
    path: str | None = None
    name: str | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    fitted: int = 0
    """The last line of ``--fit``."""


def read_llamacpp(lines: list[Line]) -> Iterator[tuple[int, EngineRun]]:
    """Every model that llama.cpp loads in the lines of one source, with its first line."""
    runs: list[_Run] = []
    for line in lines:
        _read_line(line, runs)
    for run in runs:
        if run.facts or (run.path and run.version):
            yield run.first, _finished(run)


def _read_line(line: Line, runs: list[_Run]) -> None:
    text = line.text
    build, loaded = _BUILD.search(text), _LOADED.search(text)
    facts = list(found(line, FIGURES, ""))
    is_setting = any(pattern.search(text) for pattern in (_SETTINGS, _MODEL, _FILE_TYPE, *_DEVICES[:2]))
    if not (build or loaded or facts or is_setting or runs):
        return
    run = _run_of(line, build, loaded, runs)
    run.facts.extend(facts)
    if build:
        run.version = build["version"]
    if path := loaded or _LOADING.search(text):
        run.path = path["path"]
    if name := _MODEL.search(text):
        run.name = name["name"]
    if kind := _FILE_TYPE.search(text):
        run.settings["file_type"] = kind["type"]
    _read_settings(text, run)
    if _FIT.search(text):
        run.fitted = line.number
    if is_cut_off(line, FIGURES):
        run.notes[f"the file ends within a figure (line {line.number}), which was not read"] = None


def _run_of(line: Line, build: re.Match[str] | None, loaded: re.Match[str] | None, runs: list[_Run]) -> _Run:
    last = runs[-1] if runs else None
    has_loaded = last is not None and any(fact.name == "model_buffer" for fact in last.facts)
    if last is None or (build and (last.version or has_loaded)):
        runs.append(_Run(first=line.number))
    elif loaded and has_loaded:
        note = "a further model of the same process, such as a draft"
        runs.append(_Run(first=line.number, version=last.version, devices=dict(last.devices), notes={note: None}))
    return runs[-1]


def _read_settings(text: str, run: _Run) -> None:
    if setting := _SETTINGS.search(text):
        value = setting["value"]
        run.settings[setting["name"]] = int(value) if value.isdigit() else value
    if flash := _RESOLVED_FLASH.search(text):
        run.settings["flash_attn"] = flash["value"]
    if types := _TYPES.search(text):
        run.settings.setdefault("type_k", types["type_k"])
        run.settings.setdefault("type_v", types["type_v"])
    for pattern in _DEVICES:
        if device := pattern.search(text):
            groups = device.groupdict()
            run.devices.setdefault(groups.get("device") or groups["index"], device["name"])


def _finished(run: _Run) -> EngineRun:
    facts = tuple(_projected(fact) if fact.line < run.fitted else fact for fact in run.facts)
    settings: dict[str, Setting] = {**run.settings, **({"devices": run.devices} if run.devices else {})}
    return EngineRun(
        engine="llamacpp",
        version=run.version,
        model=run.path or run.name,
        settings=settings,
        facts=facts,
        notes=(*run.notes, *_notes(run, facts)),
    )


def _projected(fact: Fact) -> Fact:
    is_breakdown = fact.name in ("model", "context", "compute")
    return replace(fact, name=f"projected_{fact.name}") if is_breakdown else fact


def _notes(run: _Run, facts: tuple[Fact, ...]) -> Iterator[str]:
    names = {fact.name for fact in facts}
    if run.version is None:
        yield "no line says which build of llama.cpp this is"
    if "model" in names:
        yield "a breakdown counts whole MiB, cut: each figure may be up to 1 MiB more"
    if not names & {"model_buffer", "model"}:
        yield "no line says what the weights took: llama-server prints its buffers with -lv 4"
    if not names & {"kv_buffer", "kv_size", "recurrent_buffer", "context"}:
        yield "no line says what the KV cache took"
    if not names & {"compute_buffer", "compute"}:
        yield "no line says what the compute buffers took"
    yield from contradiction_notes((f for f in facts if f.name not in _REPEATS), "reserved again, or a second model")
