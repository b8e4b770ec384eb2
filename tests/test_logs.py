"""What engines printed when they started, quoted from public threads and logs, beside the figures read off by eye."""

import codecs
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from analytic.errors import UllageError
from analytic.logs import EngineRun, read_log
from analytic.logs.reading import FILE_BYTES, LINE_CHARACTERS

DATA = Path(__file__).parent / "data"
EXCERPTS: list[dict[str, Any]] = json.loads((DATA / "logs" / "excerpts.json").read_text(encoding="utf-8"))["excerpts"]
RECORDS: list[dict[str, Any]] = json.loads((DATA / "startup_logs.json").read_text())["records"]

UNITS = {"GiB": 2**30, "MiB": 2**20, "B": 1}


def log(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "engine.log"
    path.write_bytes(("\n".join(lines) + end).encode())
    return path


def one(folder: Path, *lines: str) -> EngineRun:
    (run,) = read_log(log(folder, *lines))
    return run


def bounds(figure: str, engine: str) -> tuple[Fraction, Fraction]:
    """Half a digit about a figure; vLLM leaves out zeros after the second, and what is "cut" was rounded down."""
    number, unit, *cut = figure.split()
    if unit == "B":
        return Fraction(number), Fraction(number)
    digits = len(number.partition(".")[2])
    half = Fraction(1, 2 * 10 ** max(digits, 2 if engine == "vllm" else 0))
    low, high = (Fraction(number), Fraction(number) + 1) if cut else (Fraction(number) - half, Fraction(number) + half)
    return low * UNITS[unit], high * UNITS[unit]


@pytest.mark.parametrize("index", range(len(EXCERPTS)), ids=lambda i: f"{i}-{EXCERPTS[i]['source'][19:60]}")
def test_figures_are_those_read_by_eye(index: int, tmp_path: Path) -> None:
    excerpt = EXCERPTS[index]
    run = one(tmp_path, *excerpt["lines"])
    assert (run.engine, run.version, run.model) == (excerpt["engine"], excerpt["version"], excerpt["model"])
    assert sorted((f.name, f.place) for f in run.facts) == sorted((name, place) for name, place, _ in excerpt["by_eye"])
    for name, place, figure in excerpt["by_eye"]:
        facts = run.of(name, place)
        if " " not in figure:
            assert float(figure) in [fact.count for fact in facts]
            continue
        low, high = bounds(figure, excerpt["engine"])
        assert any(
            fact.low_bytes is not None
            and fact.high_bytes is not None
            and 0 <= fact.low_bytes - low < 1
            and (0 <= high - fact.high_bytes <= 1)
            for fact in facts
        )
    assert {name: run.settings.get(name, "nothing") for name in excerpt["settings"]} == excerpt["settings"]
    for fact in run.facts:
        assert fact.text.strip("\r") in re.sub(r"\x1b?\[[0-9;]+m", "", excerpt["lines"][fact.line - 1])


def test_enough_excerpts_of_each_engine() -> None:
    count = {engine: sum(e["engine"] == engine for e in EXCERPTS) for engine in ("vllm", "llamacpp", "sglang")}
    assert count["vllm"] >= 15
    assert count["llamacpp"] >= 10
    assert count["sglang"] >= 8


BY_HAND = (
    ("weights", "weights", "{line} {value}"),
    ("kv_cache_memory", "kv_cache_memory", "Available KV cache memory: {value}"),
    ("gpu_blocks", "gpu_blocks", "# GPU blocks: {value}, # CPU blocks: 1"),
    ("kv_cache_tokens", "kv_cache_tokens", "GPU KV cache size: {value:,} tokens"),
    ("maximum_concurrency", "max_concurrency", "Maximum concurrency for {value}"),
    ("graph_capturing", "cuda_graphs", "Graph capturing finished in {value}"),
    ("activation_peak", "peak_activation", "PyTorch activation peak memory takes {value}; the rest"),
    ("non_torch", "non_torch", "non_torch_memory takes {value};"),
)
"""Columns of startup_logs.json, our names, and vLLM's wording around the figure."""


@pytest.mark.parametrize("record", [r for r in RECORDS if r["weights"]], ids=lambda r: r["source"][-60:])
def test_the_records_read_by_hand_are_read_alike(record: dict[str, Any], tmp_path: Path) -> None:
    version = record["version"] or "0.9.0"
    lines = [f"INFO 01-01 00:00:00 [core.py:1] Initializing a V1 LLM engine (v{version}) with config: model='m', x=1"]
    expected: dict[str, str] = {}
    for column, name, wording in BY_HAND:
        value = record[column]
        if value is not None and (column != "graph_capturing" or "took" in value):
            line = record["weights_line"] or "Model loading took"
            lines.append("INFO 01-01 00:00:00 [x.py:1] " + wording.format(value=value, line=line))
            expected[name] = str(value)
    run = one(tmp_path, *lines)
    assert run.version == version
    for name, value in expected.items():
        figure = re.findall(r"-?[\d.]+", value)[-1]
        (fact,) = run.of(name)
        if fact.bytes is None:
            assert fact.count == float(figure)
        else:
            assert abs(fact.bytes - float(figure) * 2**30) <= 1


def test_resolution_is_half_a_digit(tmp_path: Path) -> None:
    run = one(
        tmp_path,
        "[x.py:1] Model loading took 14.9889 GiB and 3.2 seconds",
        "[x.py:2] Model loading took 14.9 GiB memory",
    )
    exact, rounded = run.of("weights")
    assert exact.low_bytes == -(-1498885 * 2**30 // 100_000)  # 14.98885, the least that is printed 14.9889
    assert exact.high_bytes == 1498895 * 2**30 // 100_000
    assert rounded.low_bytes == -(-14895 * 2**30 // 1000)  # round(…, 2) leaves out the zero of 14.90
    assert rounded.high_bytes == 14905 * 2**30 // 1000


def test_gb_of_old_versions_is_gib(tmp_path: Path) -> None:
    run = one(tmp_path, "INFO 03-21 [model_runner.py:1] Model loading took 14.2487 GB and 5.1 seconds")
    assert run.facts[0].bytes == round(14.2487 * 2**30)


def test_the_label_changed_at_0_8_3() -> None:
    labels = {
        tuple(int(part) for part in re.findall(r"\d+", r["version"])[:3]): r["weights"].split()[1]
        for r in RECORDS
        if r["version"] and (r["weights_line"] or "").endswith("took") and "0.1.dev" not in r["version"]
    }
    assert {version for version, label in labels.items() if label == "GB"} == {v for v in labels if v < (0, 8, 3)}
    assert (0, 8, 2) in labels
    assert (0, 8, 3) in labels


def test_ranks_that_say_nothing_are_counted(tmp_path: Path) -> None:
    lines = [line.replace("tensor_parallel_size=1", "tensor_parallel_size=4") for line in VLLM]
    run = one(tmp_path, *(line.replace("EngineCore", "Worker_TP0") if "took" in line else line for line in lines))
    assert "1 of 4 ranks say what their weights took" in run.notes


def test_since_0_28_weights_and_non_torch_are_one_figure(tmp_path: Path) -> None:
    """Worded as in vLLM 0.33 (v1/worker/gpu_worker.py, compile_or_warm_up_model; v1/core/kv_cache_utils.py)."""
    run = one(
        tmp_path,
        "(Worker_TP0_EP0 pid=9) INFO 09-04 11:00:17 [gpu_worker.py:1059] Free memory on device (91.64/94.97 GiB) on "
        "startup. Desired GPU memory utilization is (0.91, 86.42 GiB). Actual usage is 64.44 GiB for consumed memory "
        "(weights + non-torch), 4.19 GiB for peak activation, and 0.25 GiB for CUDAGraph memory. Replace "
        "gpu_memory_utilization config with `--kv-cache-memory=18676332626` (17.39 GiB) to fit into requested memory, "
        "or `--kv-cache-memory=24274632704` (22.61 GiB) to fully utilize gpu memory. Current kv cache memory in use is "
        "17.79 GiB.",
        "(EngineCore pid=3) INFO 09-04 11:00:18 [kv_cache_utils.py:1147] GPU + host KV cache size: 315,039 tokens, "
        "Maximum concurrency for 262,144 tokens per request: 1.20x",
    )
    figures = {f.name: f.count if f.bytes is None else round(f.bytes / 2**30, 2) for f in run.facts}
    assert figures["consumed"] == 64.44
    assert figures["peak_activation"] == 4.19
    assert (figures["cuda_graphs"], figures["kv_cache_memory"]) == (0.25, 17.79)
    assert run.of("kv_cache_memory_to_budget")[0].bytes == 18_676_332_626
    assert run.of("kv_cache_memory_to_device")[0].bytes == 24_274_632_704
    assert (figures["kv_cache_tokens"], figures["max_concurrency"]) == (315_039, 1.2)
    assert run.facts[0].place == "TP0 EP0"
    assert run.settings["gpu_memory_utilization"] == 0.91


# -- files that are not as they should be


VLLM = (
    "(EngineCore pid=7) INFO 01-01 00:00:01 [core.py:9] Initializing a V1 LLM engine (v0.20.0) with config: "
    "model='a/b', dtype=torch.float16, max_seq_len=4096, tensor_parallel_size=1, quantization=None, "
    "enforce_eager=True, compilation_config={'mode': 3, 'model': 'none'}",
    "(EngineCore pid=7) INFO 01-01 00:00:02 [gpu_model_runner.py:9] Model loading took 1.25 GiB memory and 2.0 seconds",
    "(EngineCore pid=7) INFO 01-01 00:00:03 [gpu_worker.py:9] Available KV cache memory: 2.5 GiB",
)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UllageError, match="is empty"):
        read_log(log(tmp_path, ""))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UllageError, match=r"none\.log: No such file"):
        read_log(tmp_path / "none.log")
    with pytest.raises(UllageError, match="Is a directory"):
        read_log(tmp_path)


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\0\0\0\0\0", b"GGUF\3\0\0\0", "Model loading".encode("utf-16-le")])
def test_a_binary_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(content)
    with pytest.raises(UllageError, match="is not text"):
        read_log(path)


def test_another_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UllageError, match=r"no line of .* is one that vLLM, llama.cpp or SGLang prints"):
        read_log(log(tmp_path, "[TensorRT-LLM][INFO] Total Weight Memory: 16060891136 bytes", "GiB of nothing else"))


@pytest.mark.parametrize("version", ["0.34.0", "0.1.dev1+gda1daf40b", "dev", "0.5.5"])
def test_an_unchecked_version_is_read_and_noted(version: str, tmp_path: Path) -> None:
    run = one(tmp_path, *(line.replace("0.20.0", version) for line in VLLM))
    assert run.version == version
    assert len(run.facts) == 2
    assert any(version in note and "0.6 to 0.33" in note for note in run.notes)


def test_a_log_that_ends_early_says_so(tmp_path: Path) -> None:
    run = one(tmp_path, *VLLM[:2])
    assert [fact.name for fact in run.facts] == ["weights"]
    assert any("no line says what the KV cache has" in note for note in run.notes)


def test_a_figure_cut_in_the_middle_is_not_read(tmp_path: Path) -> None:
    whole = "INFO 01-01 [executor_base.py:1] # CUDA blocks: 2356, # CPU blocks: 2048"
    for missing in range(1, len("2048")):
        path = log(tmp_path, *VLLM, whole[:-missing], end="")
        (run,) = read_log(path)
        assert [f.count for f in run.of("gpu_blocks")] == [2356]
        assert not run.of("cpu_blocks")
        assert any("ends within a figure" in note for note in run.notes)
    (run,) = read_log(log(tmp_path, *VLLM, whole))
    assert [f.count for f in run.of("cpu_blocks")] == [2048]


def test_a_figure_cut_before_its_unit_is_not_read(tmp_path: Path) -> None:
    for end in range(len("Available KV cache memory: 2.5 ")):
        (run,) = read_log(log(tmp_path, *VLLM[:2], VLLM[2][: -len(" GiB")][: -end or None], end=""))
        assert not run.of("kv_cache_memory")


def test_settings_come_from_the_top_level_alone(tmp_path: Path) -> None:
    run = one(tmp_path, *VLLM)
    assert run.model == "a/b"
    assert run.settings["dtype"] == "float16"
    assert run.settings["max_model_len"] == 4096
    assert run.settings["enforce_eager"] is True
    assert run.settings["quantization"] is None
    assert "mode" not in run.settings


def test_arguments_are_read_and_never_run(tmp_path: Path) -> None:
    evil = "__import__('os').system('touch " + str(tmp_path / "ran") + "')"
    deep = "[" * 5000
    line = f"(APIServer pid=1) INFO [u.py:1] non-default args: {{'model': 'x/y', 'max_num_seqs': 8, 'dtype': {evil}, "
    run = one(tmp_path, line + f"'block_size': 32, 'quantization': {deep}", *VLLM)
    assert not (tmp_path / "ran").exists()
    assert run.settings["max_num_seqs"] == 8
    assert run.settings["block_size"] == 32


def test_runs_after_each_other_are_apart(tmp_path: Path) -> None:
    second = [line.replace("pid=7", "pid=8").replace("1.25", "7.75").replace("a/b", "c/d") for line in VLLM]
    first_run, second_run = read_log(log(tmp_path, *VLLM, *second))
    assert (first_run.model, second_run.model) == ("a/b", "c/d")
    assert [fact.bytes for fact in first_run.of("weights")] == [5 * 2**28]
    assert [fact.bytes for fact in second_run.of("weights")] == [31 * 2**28]


def test_runs_at_once_are_told_apart_by_their_processes(tmp_path: Path) -> None:
    second = [line.replace("pid=7", "pid=8").replace("1.25", "7.75").replace("a/b", "c/d") for line in VLLM]
    mixed = [line for pair in zip(VLLM, second, strict=True) for line in pair]
    first_run, second_run = read_log(log(tmp_path, *mixed))
    assert [fact.bytes for fact in first_run.of("weights")] == [5 * 2**28]
    assert [fact.bytes for fact in second_run.of("weights")] == [31 * 2**28]
    assert any("told apart by their processes" in note for note in first_run.notes)


def test_servers_at_once_find_their_engines_by_the_model(tmp_path: Path) -> None:
    def server(pid: int, model: str) -> str:
        return (
            f"(APIServer pid={pid}) INFO 01-01 [u.py:1] non-default args: {{'model': '{model}', 'max_num_seqs': {pid}}}"
        )

    second = [line.replace("pid=7", "pid=8").replace("a/b", "c/d") for line in VLLM]
    first_run, second_run = read_log(log(tmp_path, server(1, "a/b"), server(2, "c/d"), *second, *VLLM))
    assert (first_run.model, first_run.settings["max_num_seqs"]) == ("a/b", 1)
    assert (second_run.model, second_run.settings["max_num_seqs"]) == ("c/d", 2)
    with pytest.raises(UllageError, match="two runs of vLLM are interleaved"):
        read_log(log(tmp_path, server(1, "a/b"), server(2, "a/b"), *VLLM))


def test_runs_at_once_without_processes_are_refused(tmp_path: Path) -> None:
    first = [line.replace("(EngineCore pid=7) ", "") for line in VLLM]
    second = [line.replace("1.25", "7.75").replace("2.5 GiB", "3.5 GiB") for line in first]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    with pytest.raises(UllageError, match="two runs of vLLM are interleaved"):
        read_log(log(tmp_path, *mixed))


def test_workers_of_runs_at_once_are_refused(tmp_path: Path) -> None:
    second = [line.replace("pid=7", "pid=8").replace("a/b", "c/d") for line in VLLM]
    worker = "(Worker_TP0 pid=9) INFO 01-01 [g.py:1] Available KV cache memory: 9.0 GiB"
    with pytest.raises(UllageError, match="two runs of vLLM are interleaved"):
        read_log(log(tmp_path, VLLM[0], second[0], worker, VLLM[1], second[1]))


def test_containers_are_apart_by_their_prefix(tmp_path: Path) -> None:
    first = [f"vllm-1  | {line}" for line in VLLM]
    second = [f"vllm-2  | {line}".replace("1.25", "7.75") for line in VLLM]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    assert [run.of("weights")[0].bytes for run in read_log(log(tmp_path, *mixed))] == [5 * 2**28, 31 * 2**28]


def test_data_parallel_engines_are_one_run(tmp_path: Path) -> None:
    ranks = [[line.replace("EngineCore pid=7", f"EngineCore_DP{n} pid={n}") for line in VLLM] for n in (0, 1)]
    run = one(tmp_path, *(line for pair in zip(*ranks, strict=True) for line in pair))
    assert [fact.place for fact in run.of("weights")] == ["DP0", "DP1"]


def test_contradictory_lines_are_named(tmp_path: Path) -> None:
    run = one(tmp_path, *VLLM, VLLM[1].replace("1.25", "0.75"))
    assert len(run.of("weights")) == 2
    assert any(note.startswith("weights is printed twice and differs (lines 2 and 4)") for note in run.notes)
    agreeing = one(tmp_path, *VLLM, VLLM[1].replace("1.25 GiB", "1.2519 GiB"))
    assert not any("printed twice" in note for note in agreeing.notes)


def sglang(text: str) -> str:
    return f"[2026-01-01 00:00:00 TP0] {text}"


def test_sglang_runs_at_once_are_refused(tmp_path: Path) -> None:
    banners = [f"[2026-01-01 00:00:00] server_args=ServerArgs(model_path='{name}', tp_size=1)" for name in "ab"]
    weights = [sglang(f"Load weight end. type=X, avail mem=9.00 GB, mem usage={size} GB.") for size in ("1.00", "2.00")]
    with pytest.raises(UllageError, match="two runs of SGLang are interleaved"):
        read_log(log(tmp_path, *banners, *weights))
    first, second = read_log(log(tmp_path, banners[0], weights[0], banners[1], weights[1]))
    assert (first.model, second.model) == ("a", "b")
    assert [fact.bytes for fact in second.of("weights")] == [2 * 2**30]


def test_a_draft_is_noted_where_sglang_loads_two_models(tmp_path: Path) -> None:
    run = one(
        tmp_path,
        sglang("Load weight end. elapsed=1.00 s, type=Target, avail mem=29.01 GB, mem usage=82.97 GB."),
        sglang("Load weight end. elapsed=1.00 s, type=TargetMTP, avail mem=27.15 GB, mem usage=1.86 GB."),
    )
    assert any("several models are loaded (Target, TargetMTP)" in note for note in run.notes)
    assert any(note.startswith("weights at TP0 is printed twice") for note in run.notes)


def test_llamacpp_models_of_one_process_are_apart(tmp_path: Path) -> None:
    def model(name: str, size: str) -> tuple[str, ...]:
        return (
            f"llama_model_loader: loaded meta data with 25 key-value pairs and 197 tensors from {name} (version 3)",
            f"load_tensors:        CUDA0 model buffer size =  {size} MiB",
        )

    build = "build: 4701 (be3bbd62) with cc"
    target, draft = read_log(log(tmp_path, build, *model("big.gguf", "4096.00"), *model("small.gguf", "512.00")))
    assert (target.model, draft.model) == ("big.gguf", "small.gguf")
    assert target.version == draft.version == "4701"
    assert [fact.bytes for fact in draft.of("model_buffer", "CUDA0")] == [512 * 2**20]
    assert any("such as a draft" in note for note in draft.notes)


def test_llamacpp_has_a_cache_of_each_kind(tmp_path: Path) -> None:
    run = one(
        tmp_path,
        "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =    18.00 MiB",
    )
    assert sum(fact.bytes or 0 for fact in run.of("kv_buffer", "CUDA0")) == 530 * 2**20
    assert not any("printed twice" in note for note in run.notes)


# -- how logs are kept


JSON = [json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-01-01T00:00:00.1Z"}) for line in VLLM]

KEPT: dict[str, bytes] = {
    "windows": "\r\n".join(VLLM).encode() + b"\r\n",
    "colours": "\n".join(f"\x1b[1;36m{line}\x1b[0;0m" for line in VLLM).encode(),
    "bare colours": "\n".join(f"[1;36m{line}[0;0m" for line in VLLM).encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + "\n".join(VLLM).encode(),
    "utf-16": "\n".join(VLLM).encode("utf-16"),
    "utf-16 big": codecs.BOM_UTF16_BE + "\r\n".join(VLLM).encode("utf-16-be"),
    "docker": "\n".join(JSON).encode(),
    "docker times": "\n".join(f"2026-01-01T00:00:00.123456789Z {line}" for line in VLLM).encode(),
    "compose": "\n".join(f"vllm-1  | {line}" for line in VLLM).encode(),
    "journald": "\n".join(f"Sep 11 01:16:1{n} host vllm[1{n}]: {line}" for n, line in enumerate(VLLM)).encode(),
    "kubectl": "\n".join(f"[pod/vllm-0/server] 2026-01-01T00:00:00Z {line}" for line in VLLM).encode(),
    "progress": "\n".join(f"Capturing:  99%|███ | 66/67 [00:03<00:00, 20.10it/s]{line}" for line in VLLM).encode(),
    "progress over": "\n".join(f"50%|███ | 1/2\r100%|███ | 2/2\r{line}" for line in VLLM).encode(),
    "not utf-8": b"caf\xe9\n" + "\n".join(VLLM).encode(),
}


@pytest.mark.parametrize("kept", KEPT)
def test_lines_are_read_however_they_are_kept(kept: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(KEPT[kept])
    (run,) = read_log(path)
    assert (run.version, run.model) == ("0.20.0", "a/b")
    assert [(fact.name, fact.bytes) for fact in run.facts] == [("weights", 5 * 2**28), ("kv_cache_memory", 5 * 2**29)]


def test_an_enormous_line_is_cut_and_noted(tmp_path: Path) -> None:
    run = one(tmp_path, "GiB" * LINE_CHARACTERS, *VLLM, VLLM[2] + "x" * LINE_CHARACTERS)
    assert [fact.line for fact in run.of("weights")] == [3]
    assert any(f"longer than {LINE_CHARACTERS} characters" in note for note in run.notes)


def test_an_enormous_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    late = VLLM[1].replace("1.25", "7.75")
    run = one(tmp_path, *VLLM, "x" * FILE_BYTES, late)
    assert [fact.bytes for fact in run.of("weights")] == [5 * 2**28]
    assert any("larger than 16 MiB" in note for note in run.notes)


def test_two_engines_in_one_file_are_two_runs(tmp_path: Path) -> None:
    runs = read_log(log(tmp_path, *VLLM, sglang("Memory pool end. avail mem=2.09 GB")))
    assert [run.engine for run in runs] == ["vllm", "sglang"]
