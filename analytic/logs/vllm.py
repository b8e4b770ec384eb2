"""vLLM's starts, put together from its lines (`analytic.logs.vllm_lines`): which line belongs to which run and rank."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from analytic.errors import UllageError
from analytic.logs import vllm_lines as lines_of
from analytic.logs.figures import contradiction_notes, contradictions, found, is_cut_off
from analytic.logs.literals import pairs
from analytic.logs.reading import Line
from analytic.logs.records import EngineRun, Fact, Setting

_ENGINES = ("EngineCore", "APIServer", "ApiServer", "AsyncLLM")
"""Processes of which there is one a run, or one a data-parallel rank; the others are workers."""


@dataclass(kw_only=True, slots=True)
class _Run:
    first: int
    server: str | None = None
    """The process that printed the arguments."""
    banners: int = 0
    """Engines: one, or one a data-parallel rank."""
    version: str | None = None
    model: str | None = None
    asked: dict[str, object] = field(default_factory=dict)
    resolved: dict[str, object] = field(default_factory=dict)
    seen: dict[str, Setting] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    processes: dict[str, str] = field(default_factory=dict)
    """Process identifiers, and their names."""
    is_mixed: bool = False
    """Lines of another run lie between its own."""
    has_nameless: bool = False
    """Some facts come from workers, or from no named process: whose they are is known by their place alone."""


def read_vllm(lines: list[Line]) -> Iterator[tuple[int, EngineRun]]:
    """Every start of vLLM in the lines of one source, with its first line.

    Raises:
        UllageError: two runs are interleaved, and no prefix tells which line is whose.
    """
    runs: list[_Run] = []
    for line in lines:
        _read_line(line, runs)
    _require_apart(runs)
    for run in runs:
        if run.facts or run.version:
            yield run.first, _finished(run)


def _read_line(line: Line, runs: list[_Run]) -> None:
    text = line.text
    banner, version = lines_of.BANNER.search(text), lines_of.ASKED.search(text)
    arguments = lines_of.NON_DEFAULT.search(text) or lines_of.NAMESPACE.search(text)
    process = _process(text)
    facts = list(found(line, lines_of.FIGURES, _place(process), decimals=2))
    settings = [match for pattern in lines_of.SETTINGS if (match := pattern.search(text))]
    model = lines_of.MODEL.search(text)
    if not (banner or version or arguments or facts or model or (settings and runs)):
        return
    run = _run_of(line, process, banner, bool(version or arguments), runs)
    if process:
        run.processes.setdefault(_identifier(process), process["name"])
    if banner or version:
        run.version = (banner or version)["version"]  # type: ignore[index]
    if banner:
        run.banners += 1
        run.resolved = pairs(banner["config"] or "", "=")
    if arguments:
        run.asked = pairs(arguments["arguments"], "=" if "Namespace" in arguments[0] else ":")
    for match in settings:
        run.seen.update({name: _number(value) for name, value in match.groupdict().items() if value})
    if model:
        run.model = run.model or model["model"]
    run.facts.extend(facts)
    run.has_nameless |= bool(facts) and not (process and process["name"].startswith(_ENGINES))
    if facts and lines_of.REPEATED.search(text):
        run.notes[f"line {line.number} stands for several ranks (Ray prints equal lines once)"] = None
    if is_cut_off(line, lines_of.FIGURES):
        run.notes[f"the file ends within a figure (line {line.number}), which was not read"] = None


def _process(text: str) -> re.Match[str] | None:
    """The innermost of ``(EngineCore_0 pid=1159) (RayWorkerWrapper pid=345, ip=…)``, after any bar of progress."""
    named = list(lines_of.PROCESS.finditer(text, 0, 2000))
    return named[-1] if named else None


def _place(process: re.Match[str] | None) -> str:
    """``TP1`` of ``(Worker_TP1 pid=…)``, ``rank 1`` of ``(VllmWorker rank=1 pid=…)``, the process of a nameless one."""
    if process is None:
        return ""
    ranks = " ".join(lines_of.RANKS.findall(process["name"]))
    if ranks or process["name"].startswith(_ENGINES):
        return ranks
    return (process["rank"] or "").strip().replace("=", " ") or _identifier(process)


def _identifier(process: re.Match[str]) -> str:
    """Ray's workers on several machines may have the same number."""
    return f"pid {process['pid']}" + (f" at {process['ip']}" if process["ip"] else "")


def _run_of(
    line: Line, process: re.Match[str] | None, banner: re.Match[str] | None, is_server: bool, runs: list[_Run]
) -> _Run:
    """The run that a line belongs to: by its process where that is known, else the one that began last."""
    pid = _identifier(process) if process else None
    waiting = [run for run in runs if run.server and not run.banners]
    if banner and waiting and waiting != [runs[-1]]:
        return _waiting_for(pairs(banner["config"] or "", "=").get("model"), waiting)
    if not runs or _begins(runs[-1], process, bool(banner), is_server):
        runs.append(_Run(first=line.number, server=pid if is_server else None))
        return runs[-1]
    known = [run for run in runs if pid in run.processes]
    if not known or known[-1] is runs[-1]:
        return runs[-1]
    known[-1].is_mixed = runs[-1].is_mixed = True
    return known[-1]


def _begins(last: _Run, process: re.Match[str] | None, is_engine: bool, is_server: bool) -> bool:
    """Whether a line is the first of a run after ``last``.

    A second engine is another rank of the same run (data parallel) where its name is another.
    """
    if is_server:
        is_other = process is not None and last.server is not None and _identifier(process) != last.server
        return bool(last.banners or last.facts or is_other)
    if not is_engine or not last.banners:
        return False
    return process is None or "DP" not in process["name"] or process["name"] in last.processes.values()


def _waiting_for(model: object, waiting: list[_Run]) -> _Run:
    """Of several servers that have no engine yet, the one that asked for its model."""
    same = [run for run in waiting if model in (run.asked.get("model"), run.asked.get("model_tag"))]
    if not same or any(run.asked != same[-1].asked for run in same):
        raise _interleaved(waiting[0], waiting[-1])
    for run in waiting if len(waiting) > 1 else ():
        run.is_mixed = True
    return same[-1]


def _require_apart(runs: list[_Run]) -> None:
    """A figure that a run lacks, and that the next one gives twice, is of lines that cannot be told apart."""
    for run, later in pairwise(runs):
        twice = {pair[0].name for pair in contradictions(later.facts)} & {"weights", *lines_of.KV}
        if run.banners and twice - {fact.name for fact in run.facts}:
            raise _interleaved(run, later)
    mixed = [run for run in runs if run.is_mixed]
    if any(run.has_nameless for run in mixed):
        raise _interleaved(mixed[0], mixed[-1])
    for run in mixed:
        run.notes["another run's lines lie between: told apart by their processes"] = None


def _interleaved(run: _Run, later: _Run) -> UllageError:
    return UllageError(
        f"two runs of vLLM are interleaved (they begin at lines {run.first} and {later.first})",
        hint="their lines do not say whose they are: give one file for each run",
    )


def _number(value: str) -> Setting:
    return int(value) if value.isdigit() else float(value) if re.fullmatch(r"\d\.\d+", value) else value


def _finished(run: _Run) -> EngineRun:
    return EngineRun(
        engine="vllm",
        version=run.version,
        model=_model(run),
        settings=_settings(run),
        facts=tuple(run.facts),
        notes=(*run.notes, *_notes(run)),
    )


def _model(run: _Run) -> str | None:
    said = run.resolved.get("model") or run.asked.get("model") or run.asked.get("model_tag") or run.model
    return said if isinstance(said, str) else None


def _settings(run: _Run) -> Mapping[str, Setting]:
    """What was asked for, then what is seen to be used, then the engine's own line, which is resolved."""
    asked = {name: run.asked[name] for name in lines_of.ARGUMENTS if run.asked.get(name) is not None}
    resolved = {ours: run.resolved[name] for name, ours in lines_of.ENGINE_CONFIG.items() if name in run.resolved}
    return {name: _plain(value) for name, value in {**asked, **run.seen, **resolved}.items()}


def _size(run: _Run, name: str) -> int:
    said = run.resolved.get(name, run.asked.get(name))
    return said if isinstance(said, int) else 1


def _plain(value: object) -> Setting:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _notes(run: _Run) -> Iterator[str]:
    names = {fact.name for fact in run.facts}
    if run.version is None:
        yield "no line says which version of vLLM this is"
    elif not lines_of.CHECKED.match(run.version):
        yield f"vLLM {run.version}: the wording was checked for 0.6 to 0.33; what is recognised was read"
    if not names & {"weights", "consumed"}:
        yield "no line says what the weights took"
    ranks = {fact.place for fact in run.facts if fact.name in ("weights", "consumed")}
    world = _size(run, "tensor_parallel_size") * _size(run, "pipeline_parallel_size")
    if 0 < len(ranks) < world:
        yield f"{len(ranks)} of {world} ranks say what their weights took"
    if not names & set(lines_of.KV):
        yield "no line says what the KV cache has: the start ended before, or the lines are missing"
    elif not names & {"cuda_graphs", "cuda_graph_pool"} and run.resolved.get("enforce_eager") is not True:
        yield "no line says what CUDA graphs took"
    yield from contradiction_notes(run.facts, "a second model (a draft), or runs that are mixed up")
