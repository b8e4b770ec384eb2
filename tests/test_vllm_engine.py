"""vLLM's ledger: what it is made of, against vLLM's own arithmetic and what it prints."""

import pytest

import analytic
from analytic.engines.vllm.engine import usable_bytes
from analytic.hardware import find_gpu


def test_the_budget_pays_for_everything_but_the_context() -> None:
    answer = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="h100-80gb")
    row, found = answer.fullest, answer.details
    fixed = row.charged.bytes - row.components["sequence_state"].bytes
    assert found["budget_bytes"] == -(-find_gpu("h100-80gb").cuda_bytes * 92 // 100)
    assert found["kv_cache_bytes"]["bytes"] == found["budget_bytes"] - fixed
    assert found["gpu_blocks"] == found["kv_cache_bytes"]["bytes"] // found["block_bytes"]
    assert found["block_bytes"] == 32 * 2 * 8 * 128 * 2 * 16  # layers, K and V, key heads, their size, bytes, tokens
    assert row.device.bytes - row.charged.bytes == row.uncounted.bytes > 0


def test_blocks_of_the_sequences_are_whole_and_one_is_the_null_block() -> None:
    answer = analytic.estimate("llama-3.1-8b", engine="vllm", batch_size=3, prompt_tokens=100, output_tokens=1)
    blocks = 3 * 7 + 1  # 101 tokens in blocks of 16
    assert answer.fullest.components["sequence_state"].bytes == blocks * answer.details["block_bytes"]


def test_the_longest_sequence_must_fit_even_if_none_is_asked_for() -> None:
    flags = {"engine": "vllm", "gpu": "l4", "prompt_tokens": 100}
    assert analytic.estimate("llama-3.1-8b", **flags).details["starts"]  # type: ignore[arg-type]
    longest = analytic.estimate("llama-3.1-8b", max_model_len=131_072, **flags)  # type: ignore[arg-type]
    assert not longest.fits
    assert not longest.details["starts"]


def test_max_sequences_is_the_concurrency_less_the_null_block() -> None:
    answer = analytic.estimate("qwen3-8b", engine="vllm", gpu="a100-80gb", prompt_tokens=4000, output_tokens=96)
    assert answer.max_sequences == int(answer.details["maximum_concurrency"])


def test_given_bytes_of_kv_cache_are_taken_whatever_the_utilisation() -> None:
    given = 10 * 2**30
    answer = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="a100-80gb", kv_cache_memory_bytes=given)
    assert answer.details["kv_cache_bytes"]["bytes"] == given
    assert answer.details["gpu_blocks"] == given // answer.details["block_bytes"]
    assert answer.fullest.components["sequence_state"].bytes == given
    assert answer.max_sequences == given // answer.details["block_bytes"] // (2304 // 16)
    with pytest.raises(analytic.UllageError, match="holds less than"):
        analytic.estimate("llama-3.1-8b", engine="vllm", gpu="a100-80gb", kv_cache_memory_bytes=2**20)


@pytest.mark.parametrize(
    ("name", "gpu", "flags", "dtype"),
    [
        ("llama-3.1-8b", "t4:2", {}, "float16"),  # compute capability 7.5 has no bfloat16
        ("llama-3.1-8b", "l4", {}, "bfloat16"),
        ("gemma-2-9b", "t4:8", {}, "float32"),  # and Gemma 2 no float16
        ("llama-2-70b", "l4", {}, "float16"),
        ("llama-3.1-8b", "l4", {"dtype": "float32"}, "float32"),
    ],
)
def test_auto_is_what_the_gpu_and_the_model_run(name: str, gpu: str, flags: dict[str, object], dtype: str) -> None:
    assert analytic.estimate(name, engine="vllm", gpu=gpu, **flags).dtype == dtype  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("llama-3.1-8b", {"gpu": "t4", "dtype": "bfloat16"}, "in bfloat16 on t4"),
        ("gemma-2-9b", {"gpu": "l4", "dtype": "float16"}, "in float16"),
        ("llama-3.1-8b", {"gpu": "l4", "tensor_parallel_size": 3}, "may be 1, 2, 4, 8"),
        ("llama-3.1-8b", {"gpu": "l4", "pipeline_parallel_size": 64}, "stages"),
        ("llama-3.1-8b", {"gpu": "l4", "quantization": "bnb-nf4"}, "bnb-nf4"),
        ("llama-3.1-8b", {"gpu": "l4", "quantization": "Q4_K_M"}, "GGUF"),
        ("llama-3.1-8b", {"gpu": "l4", "kv_cache_dtype": "int3"}, "int3"),
        ("llama-3.1-8b", {"gpu": "l4", "block_size": 5}, "multiple of 16"),
        ("qwen2.5-0.5b", {"gpu": "l4", "tensor_parallel_size": 8}, "14"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_by_name(name: str, flags: dict[str, object], said: str) -> None:
    with pytest.raises(analytic.UllageError) as refusal:
        analytic.estimate(name, engine="vllm", **flags)  # type: ignore[arg-type]
    assert said in f"{refusal.value.message} {refusal.value.hint}"


def test_copies_divide_the_sequences_and_ranks_the_heads() -> None:
    one = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="h100-80gb", batch_size=8)
    two = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="h100-80gb:2", batch_size=8, data_parallel_size=2)
    tp = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="h100-80gb:2", batch_size=8)
    assert [row.rank for row in two.ledgers] == ["dp0/tp0/pp0", "dp1/tp0/pp0"]
    state = [answer.fullest.components["sequence_state"].bytes for answer in (one, two, tp)]
    block = one.details["block_bytes"]
    assert state[0] - block == 2 * (state[1] - block)
    assert state[0] == 2 * state[2]
    assert two.fullest.components["weights"] == one.fullest.components["weights"]


def test_the_fewest_gpus_are_found_in_a_node_first() -> None:
    answer = analytic.estimate("llama-3.1-70b", engine="vllm", gpu="h100-80gb")
    assert answer.fits is False
    assert (answer.needed.tensor, answer.needed.pipeline) == (2, 1)  # type: ignore[union-attr]
    assert any(lever.change == "--gpu h100-80gb:2" and lever.fits for lever in answer.levers)


def test_a_lever_of_stages_names_how_the_gpus_share_the_work() -> None:
    answer = analytic.estimate("llama-3.1-405b", engine="vllm", gpu="h100-80gb:4")
    (lever,) = (lever for lever in answer.levers if lever.change.startswith("--gpu"))
    assert lever.change == "--gpu h100-80gb:16 --tensor-parallel-size 8 --pipeline-parallel-size 2"
    same = analytic.estimate(
        "llama-3.1-405b", engine="vllm", gpu="h100-80gb:16", tensor_parallel_size=8, pipeline_parallel_size=2
    )
    assert same.fullest.device.bytes == lever.device_bytes


@pytest.mark.parametrize(
    ("name", "made"),
    [("fp8_per_block", "fp8-128x128"), ("fp8_per_tensor", "fp8-tensor"), ("fp8_per_channel", "ct-fp8-channel")],
)
def test_what_vllm_quantises_while_it_loads_is_told_by_format(name: str, made: str) -> None:
    answer = analytic.estimate("llama-3.1-8b", engine="vllm", gpu="h100-80gb", quantization=name)
    matrices = 32 * (4096 * 4096 * 2 + 2 * 1024 * 4096 + 3 * 14336 * 4096)  # a byte an element, and scales
    assert matrices < answer.weights.by_format[made] < matrices * 1.001
    assert answer.rule_of_thumb.bits == 8


def test_stages_are_of_the_widest_tensor_degree_that_can_be() -> None:
    answer = analytic.estimate("qwen2.5-7b", engine="vllm", gpu="t4", dtype="float16", batch_size=800)
    assert answer.needed is not None
    assert answer.needed.tensor == 4  # of 28 heads; 8 does not divide them
    assert answer.needed.pipeline > 1


def test_utilisation_is_of_what_cuda_calls_the_total() -> None:
    gpu = find_gpu("h100-80gb")
    asked = analytic.estimate("llama-3.1-8b", engine="vllm", gpu=gpu, gpu_memory_utilization=0.5).asked
    assert usable_bytes(asked, gpu) == -(-gpu.cuda_bytes // 2)
