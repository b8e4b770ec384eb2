import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from analytic.errors import UsageError
from analytic.hardware import (
    Gpu,
    context_range,
    custom_gpu,
    find_gpu,
    gpus,
    kept_like_others,
    parse_gpu,
    precision_warnings,
)

MIB = 1024**2
GIB = 1024**3
ROOT = Path(__file__).parent.parent
SEEN = {
    row["name"]: row
    for row in tomllib.loads((ROOT / "analytic/gpus.toml").read_text("utf-8"))["gpu"]
    if "cuda_mib" in row
}
ROUNDING_MIB = 6  # half of 0.01 GiB is 5.12 MiB, and the table rounds it outwards


def warnings(name: str, dtype: str = "float16", weights: str | None = "none", cache: str = "float16") -> list[str]:
    return precision_warnings(find_gpu(name), dtype=dtype, weight_format=weights, kv_cache_dtype=cache)


def test_table_has_a_hundred_gpus_of_every_kind():
    assert len(gpus()) >= 100
    assert {gpu.kind for gpu in gpus()} == {"data-centre", "workstation", "consumer", "laptop", "mig"}


def test_a_name_or_alias_means_one_gpu():
    names = [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    for gpu in gpus():
        assert [find_gpu(name) for name in (gpu.name, *gpu.aliases)] == [gpu] * (1 + len(gpu.aliases))


def test_names_are_lower_case_slugs():
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for gpu in gpus() for name in (gpu.name, *gpu.aliases))


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_source_quotes_the_memory_that_the_row_has(gpu: Gpu):
    assert str(gpu.total_bytes // MIB) in gpu.source
    assert "memory" in gpu.source or gpu.kind == "mig"


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_memory_is_at_most_the_size_in_the_name(gpu: Gpu):
    sizes = [int(size) for name in (gpu.name, *gpu.aliases) for size in re.findall(r"(\d+)gb", name)]
    assert all(gpu.total_bytes <= size * GIB for size in sizes[-1:])


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("h100-80gb", 81559),
        ("h200", 143771),
        ("a100-80gb", 81920),
        ("rtx-4090", 24564),
        ("rtx-3090", 24576),
        ("t4", 15360),
    ],
)
def test_memory_is_what_the_driver_reports(name: str, mib: int):
    assert find_gpu(name).total_bytes == mib * 1024 * 1024


def test_h100_has_less_than_80_gib():
    assert 80 * GIB - find_gpu("h100").total_bytes == (80 * 1024 - 81559) * MIB  # 81920 - 81559 = 361 MiB missing


def test_bandwidth_is_in_decimal_bytes():
    assert find_gpu("h100").bandwidth_bytes_per_s == 3350 * 10**9
    assert find_gpu("rtx-4090").bandwidth_bytes_per_s == 384 // 8 * 21 * 10**9  # 384 bit x 21 Gbps = 1008 GB/s


@pytest.mark.parametrize("gpu", [gpu for gpu in gpus() if gpu.kind == "mig"], ids=lambda gpu: gpu.name)
def test_a_mig_slice_is_smaller_than_its_parent(gpu: Gpu):
    parent = find_gpu(gpu.name.rpartition("-")[0])
    assert gpu.total_bytes < parent.total_bytes
    assert gpu.capability == parent.capability
    assert gpu.sms is None or parent.sms is None or gpu.sms < parent.sms


@pytest.mark.parametrize(
    "name", ["rtx-4090", "RTX 4090", "rtx4090", "4090", "NVIDIA GeForce RTX 4090", "GeForce RTX 4090"]
)
def test_spelling_case_and_vendor_do_not_matter(name: str):
    assert find_gpu(name).name == "rtx-4090"


def test_the_drivers_name_finds_the_row():
    assert find_gpu("NVIDIA H100 80GB HBM3").name == "h100-80gb"
    assert find_gpu("NVIDIA H200 MIG 1g.18gb").name == "h200-1g.18gb"


def test_a_laptop_gpu_is_not_its_desktop_namesake():
    assert find_gpu("rtx-4090-laptop").total_bytes < find_gpu("rtx-4090").total_bytes


def test_a_card_of_two_sizes_asks_which():
    with pytest.raises(UsageError, match="several sizes") as error:
        find_gpu("rtx-3080")
    assert error.value.hint == "say which: rtx-3080-10gb, rtx-3080-12gb"


def test_unknown_gpu_names_it_and_what_is_close():
    with pytest.raises(UsageError, match="unknown GPU 'h100-8gb'") as error:
        find_gpu("h100-8gb")
    assert "h100-80gb" in error.value.hint
    assert "ullage gpus" in error.value.hint
    assert "--gpu-memory 80GiB" in error.value.hint


@pytest.mark.parametrize("name", ["", "nvidia", "???"])
def test_a_name_without_a_model_is_unknown(name: str):
    with pytest.raises(UsageError, match="unknown GPU"):
        find_gpu(name)


@pytest.mark.parametrize(("spec", "count"), [("h100-80gb", 1), ("h100-80gb:1", 1), ("H100:8", 8)])
def test_a_spec_is_a_gpu_and_a_count(spec: str, count: int):
    assert parse_gpu(spec) == (find_gpu("h100-80gb"), count)


@pytest.mark.parametrize(
    "spec", ["h100-80gb:0", "h100-80gb:-1", "h100-80gb:", "h100-80gb:two", "h100-80gb:1.5", "h100:²"]
)
def test_a_count_below_one_is_refused(spec: str):
    with pytest.raises(UsageError, match="not a number from 1 on"):
        parse_gpu(spec)


def test_a_custom_gpu_knows_only_its_memory():
    gpu = custom_gpu(80 * GIB)
    assert (gpu.total_bytes, gpu.capability, gpu.sms, gpu.bandwidth_bytes_per_s) == (80 * GIB, None, None, None)
    assert precision_warnings(gpu, dtype="bfloat16", weight_format="nvfp4", kv_cache_dtype="fp8") == []


def _meant_mib(printed: str, unit: str) -> float:
    """MiB of a printed total: bytes as they stand, MB and MiB alike (PyTorch divides by 2**20), GB and GiB likewise."""
    return float(printed) * {"bytes": 1 / MIB, "M": 1, "G": 1024}[unit]


@pytest.mark.parametrize("name", SEEN)
def test_source_quotes_every_total_that_cuda_was_seen_to_report(name: str):
    row = SEEN[name]
    found = re.findall(r"([\d.]+) ?(M|G|bytes)|total_memory\": (\d{9,})", row["cuda_source"])
    quoted = [_meant_mib(printed or exact, unit or "bytes") for printed, unit, exact in found]
    for seen in row["cuda_mib"]:
        assert any(abs(seen - meant) <= ROUNDING_MIB + 0.12 for meant in quoted), seen


@pytest.mark.parametrize("name", [name for name in SEEN if find_gpu(name).kind != "mig"])
def test_cuda_has_less_than_nvml_by_at_most_half_a_gib_or_a_fortieth(name: str):
    row = SEEN[name]
    assert row["cuda_mib"] == sorted(set(row["cuda_mib"]))
    for seen in row["cuda_mib"]:
        # RTX 3070: 8192 - 7753 = 439 MiB (5.4 %); A10G: 23028 - 22512 = 516 MiB (2.2 %); GB300: 1078 MiB (0.4 %)
        assert 0 < row["memory_mib"] - seen <= max(512, row["memory_mib"] / 40)


def test_a_mig_slice_keeps_next_to_nothing():
    slices = [name for name in SEEN if find_gpu(name).kind == "mig"]
    assert len(slices) >= 3
    assert all(0 <= SEEN[name]["memory_mib"] - seen <= 128 for name in slices for seen in SEEN[name]["cuda_mib"])


def test_cudas_total_is_the_least_the_median_and_the_most_seen():
    gpu = find_gpu("rtx-5090")  # seen: 32102, 32109, 32119, 32120 MiB
    assert (gpu.cuda_low_bytes, gpu.cuda_bytes, gpu.cuda_high_bytes) == (32102 * MIB, 32109 * MIB, 32120 * MIB)
    assert gpu.kept_low_bytes == (32607 - 32120) * MIB
    h100 = find_gpu("h100")  # vLLM's well-known total_gpu_memory=79.11GiB and 79.19GiB
    assert h100.cuda_low_bytes < 79.11 * GIB < h100.cuda_bytes < 79.19 * GIB < h100.cuda_high_bytes < 79.65 * GIB


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_gpu_says_where_cudas_total_comes_from(gpu: Gpu):
    assert 0 <= gpu.kept_low_bytes <= gpu.kept_bytes <= gpu.kept_high_bytes < gpu.total_bytes // 8
    assert gpu.total_bytes >= gpu.cuda_high_bytes >= gpu.cuda_bytes >= gpu.cuda_low_bytes
    assert gpu.cuda_source
    assert ("not seen" in gpu.cuda_source) == (gpu.name not in SEEN)


def test_a_custom_gpu_gives_cuda_all_its_memory():
    gpu = custom_gpu(80 * GIB)
    assert gpu.cuda_low_bytes == gpu.cuda_bytes == gpu.cuda_high_bytes == 80 * GIB
    assert gpu.cuda_source == ""


def test_cudas_total_follows_a_replaced_total():
    gpu = find_gpu("h100")
    assert replace(gpu, total_bytes=2**60).cuda_bytes == 2**60 - gpu.kept_bytes


@pytest.mark.parametrize(
    ("name", "printed_gib", "where"),  # none of these is in the table
    [
        ("rtx-4090", 23.52, "github.com/Soul-AILab/SoulX-FlashTalk issue 5"),
        ("rtx-4090", 23.64, "github.com/3DTopia/Phidias-Diffusion issue 8"),
        ("l40s", 44.42, "github.com/stepfun-ai/Step-Video-T2V issue 8"),
        ("rtx-a6000", 47.53, "a public evaluation table: NVIDIA RTX A6000, 47.53 GiB, torch 2.6.0+cu124"),
        ("b200", 178.35, "an out-of-memory message beside the name in a public repository"),
        ("h200", 139.80, "an out-of-memory message beside the name in a public repository"),
        ("h100", 79.18, "github.com/llm-d-incubation/llm-d-planner docs/empirical-vllm-memory-results.md"),
    ],
)
def test_totals_that_the_table_did_not_use_lie_in_its_range(name: str, printed_gib: float, where: str):
    gpu = find_gpu(name)
    rounding = 0.005 * GIB
    assert gpu.cuda_low_bytes - rounding <= printed_gib * GIB <= gpu.cuda_high_bytes + rounding, where


def _logged_totals() -> list[tuple[str, float]]:
    """GPU and vLLM's total_gpu_memory, where a recorded start-up log prints both."""
    records = json.loads((ROOT / "tests/data/startup_logs.json").read_text("utf-8"))["records"]
    found = [(r["gpu"], re.search(r"total_gpu_memory[ =](\d+\.\d+)GiB", r["notes"] or "")) for r in records]
    return sorted({(name, float(total[1])) for name, total in found if name and total})


def test_totals_of_recorded_vllm_logs_lie_in_the_range():
    tabled = {(name, total) for name, total in _logged_totals() if name not in ("A100 40G", "7900 XTX (24G), ROCm")}
    with_ecc = ("NVIDIA RTX A6000", 44.55)  # ECC takes a sixteenth: 49140 * 15 / 16 = 46069 MiB, of which 45619 left
    assert len(tabled) == 5
    for name, total in tabled - {with_ecc}:
        gpu = find_gpu(name)
        assert gpu.cuda_low_bytes - 0.005 * GIB <= total * GIB <= gpu.cuda_high_bytes + 0.005 * GIB


def _miss_bytes(gpu: Gpu) -> int:
    """How far the range made of the other seen GPUs falls short of what this one was seen to report."""
    others = [find_gpu(name) for name in SEEN if name != gpu.name]
    made = kept_like_others(gpu, others)
    return max(made.kept_low_bytes - gpu.kept_low_bytes, gpu.kept_high_bytes - made.kept_high_bytes, 0)


def test_the_range_for_an_unseen_gpu_holds_51_of_55_seen_ones():
    missed = {name: _miss_bytes(find_gpu(name)) for name in SEEN if _miss_bytes(find_gpu(name))}
    assert len(SEEN) == 55
    assert missed == {
        "p100": (171 - 104) * MIB,  # the oldest generation keeps least
        "a100-80gb": (882 - 766) * MIB,
        "gb300": (1078 - 931) * MIB,  # the largest memory: no other reaches as far
        "a100-80gb-1g.10gb": 128 * MIB,  # the two other slices keep nothing
    }
    assert all(short <= find_gpu(name).total_bytes * 0.014 for name, short in missed.items())


def test_an_unseen_gpu_is_like_those_of_half_to_twice_its_memory():
    gpu = find_gpu("h200-nvl")
    near = [find_gpu(name) for name in SEEN if 143771 / 2 <= SEEN[name]["memory_mib"] <= 143771 * 2]
    assert {"a100-80gb", "h200", "gb300"} <= {other.name for other in near}
    assert gpu.kept_high_bytes == max(other.kept_high_bytes for other in near)
    assert gpu.kept_low_bytes == min(other.kept_low_bytes for other in near)
    assert find_gpu("h200-3g.71gb").kept_high_bytes == 128 * MIB  # no slice is as large: all slices, never whole GPUs


def test_custom_memory_must_be_positive():
    with pytest.raises(UsageError, match="positive"):
        custom_gpu(0)


def test_context_is_the_gpus_own_where_reported():
    a100 = context_range(find_gpu("a100-40gb"))
    assert (a100.low_bytes, a100.bytes, a100.high_bytes) == ((414 - 10) * MIB, 414 * MIB, (414 + 10) * MIB)


def test_context_falls_back_to_the_capability_then_to_any():
    ampere = context_range(find_gpu("a30"))  # 8.0: both A100s, 414 to 522 MiB, 10 MiB either way
    assert (ampere.low_bytes, ampere.high_bytes) == ((414 - 10) * MIB, (522 + 10) * MIB)
    assert context_range(find_gpu("h100")) == context_range(find_gpu("gh200"))
    assert context_range(find_gpu("rtx-5090")) == context_range(custom_gpu(GIB)) == context_range(None)


def test_the_range_for_any_gpu_holds_every_other():
    widest = context_range(None)
    for gpu in gpus():
        found = context_range(gpu)
        assert widest.low_bytes <= found.low_bytes <= found.bytes <= found.high_bytes <= widest.high_bytes
        assert found.source


@pytest.mark.parametrize(
    ("gpu", "asked", "needs", "says"),
    [
        ("t4", {"dtype": "bfloat16"}, "8.0", "float16 runs natively"),
        ("v100-32gb", {"dtype": "bfloat16"}, "8.0", "emulates"),
        ("a100", {"weights": "fp8-128x128"}, "8.9", "twice the bytes"),
        ("rtx-3090", {"weights": "fp8"}, "8.9", "bfloat16"),
        ("v100-16gb", {"weights": "mxfp4"}, "7.5", "nearly four times"),
        ("h200", {"weights": "nvfp4"}, "10.0", "refuses"),
        ("v100-32gb", {"weights": "bnb-int8"}, "7.5", "bytes unchanged"),
        ("a100", {"cache": "fp8_e4m3"}, "8.9", "FP8 instructions"),
    ],
)
def test_a_precision_below_its_capability_says_what_happens(gpu: str, asked: dict[str, str], needs: str, says: str):
    (warning,) = warnings(gpu, **asked)
    assert f"needs compute capability {needs}, {find_gpu(gpu).name} has" in warning
    assert says in warning


@pytest.mark.parametrize(
    ("gpu", "asked"),
    [
        ("a100", {"dtype": "bfloat16"}),
        ("l4", {"weights": "fp8-128x128", "cache": "fp8"}),
        ("t4", {"weights": "mxfp4"}),
        ("t4", {"weights": "bnb-int8"}),
        ("b200", {"weights": "nvfp4"}),
        ("rtx-5090", {"weights": "nvfp4"}),  # 12.0 is above 10.0
        ("p40", {"weights": "bnb-nf4"}),
        ("p40", {"weights": None}),
    ],
)
def test_a_precision_at_its_capability_says_nothing(gpu: str, asked: dict[str, str]):
    assert warnings(gpu, **asked) == []


def test_each_unmet_precision_gets_its_own_warning():
    assert len(warnings("v100-32gb", dtype="bfloat16", weights="fp8", cache="fp8")) == 3


def test_importing_reads_no_table():
    code = "import sys, analytic.hardware as h; print(h.gpus.cache_info().currsize, 'torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0 False\n"
    )
