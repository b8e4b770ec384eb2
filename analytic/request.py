"""What is asked: how a model is to be served, every flag resolved."""

from dataclasses import dataclass
from typing import Literal

from analytic.errors import UllageError, UsageError
from analytic.formats.registry import find_preset
from analytic.models.model import Model
from analytic.weights import DTYPES, QUANTIZATIONS

Engine = Literal["transformers", "vllm", "llamacpp"]
ENGINES: tuple[Engine, ...] = ("transformers", "vllm", "llamacpp")
Attention = Literal["sdpa", "eager"]
CacheImplementation = Literal["dynamic", "static"]

LARGEST = {"batch_size": 1_000_000, "prompt_tokens": 100_000_000, "output_tokens": 100_000_000}
"""The most that may be asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A way of serving; flags that only some engines have are `Flags`."""

    engine: Engine = "transformers"
    dtype: str = "auto"
    """float32, float16, bfloat16, or auto: as the publisher names it."""
    quantization: str | None = None
    """bnb-nf4, bnb-fp4, bnb-int8, a packed format (`analytic.formats`: gptq, awq, w4a16, fp8, nvfp4 …), none (serve a
    quantised checkpoint dequantised), or None (as published)."""
    double_quant: bool = False
    compute_dtype: str | None = None
    """Dtype that 4-bit weights are multiplied in (bnb_4bit_compute_dtype); None: the serving dtype."""
    kv_cache_dtype: str = "auto"
    batch_size: int = 1
    prompt_tokens: int = 2048
    output_tokens: int = 256
    padded: bool = False
    """Whether sequences of one batch differ in length, so that an attention mask exists."""
    attention: Attention = "sdpa"
    cache_implementation: CacheImplementation = "dynamic"
    """Whether transformers' cache grows with every token, or has all its room from the first on."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU's capacity that may be used; None: all of it, or vLLM's default."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
                raise UsageError(f"--{name.replace('_', '-')}: {value!r} must lie between 1 and {largest:,}")
        _choose("engine", self.engine, ENGINES)
        _choose("attention", self.attention, ("sdpa", "eager"))
        _choose("cache-implementation", self.cache_implementation, ("dynamic", "static"))
        _choose("dtype", self.dtype, ("auto", *DTYPES))
        if self.quantization is not None and self.quantization not in ("none", *QUANTIZATIONS, *_made_by(self.engine)):
            find_preset(self.quantization)
        _choose("compute-dtype", self.compute_dtype, (None, *DTYPES))
        _choose("kv-cache-dtype", self.kv_cache_dtype, _cache_dtypes(self.engine))
        if self.double_quant and self.quantization not in ("bnb-nf4", "bnb-fp4"):
            raise UsageError("--double-quant needs a 4-bit format", hint="add --quantization bnb-nf4")
        if self.compute_dtype and self.quantization not in ("bnb-nf4", "bnb-fp4"):
            raise UsageError("--compute-dtype needs a 4-bit format", hint="add --quantization bnb-nf4")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(
                f"--gpu-memory-utilization: {self.gpu_memory_utilization} must be more than 0 and at most 1"
            )

    @property
    def weight_format(self) -> str | None:
        """The format row that convertible weights take."""
        if self.quantization in (None, "none"):
            return self.quantization
        return f"{self.quantization}-dq" if self.double_quant else self.quantization

    @property
    def total_tokens(self) -> int:
        """Context of one sequence at the end: prompt and output."""
        return self.prompt_tokens + self.output_tokens


def _cache_dtypes(engine: Engine) -> tuple[str, ...]:
    """What ``--kv-cache-dtype`` takes; llama.cpp has ``-ctk`` and ``-ctv`` instead."""
    if engine == "vllm":
        from analytic.state.vllm_specs import CACHE_DTYPES

        return tuple(CACHE_DTYPES)
    return ("auto", *DTYPES) if engine == "transformers" else ("auto",)


def _made_by(engine: Engine) -> tuple[str, ...]:
    """Quantisations that an engine has beside the formats: what vLLM makes while it loads."""
    if engine == "vllm":
        from analytic.loaded.vllm import ONLINE

        return tuple(ONLINE)
    return ()


def _choose(flag: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        named = ", ".join(str(choice) for choice in choices if choice is not None)
        raise UsageError(f"--{flag}: {value!r} is not known", hint=f"one of {named}")


def serving_dtype(model: Model, request: Request) -> str:
    """The dtype that the unquantised tensors are served in.

    Raises:
        UllageError: the model names none and the request neither, or it is not served.
    """
    dtype = model.dtype if request.dtype == "auto" else request.dtype
    if dtype is None:
        raise UllageError(f"{model.id} does not name its dtype", hint="add --dtype bfloat16, float16 or float32")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UllageError(f"{model.id}: dtype {dtype!r} is not served", hint="add --dtype bfloat16")
    return dtype
