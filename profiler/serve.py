"""What is measured: transformers' own ``from_pretrained`` and ``generate``, phase by phase."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
import transformers

from analytic.measurement import PhaseName
from analytic.request import Request
from profiler.live_bytes import cache_in
from profiler.meters import Meter, Timeline
from profiler.models import model_class
from profiler.telling import reached
from profiler.tensors import held, module_rows, weights_by_format

Emit = Callable[..., None]
"""Called with the name of an event and its fields, the moment it happens."""

PROMPT_IDS = (3, 1000)
"""Prompt tokens are drawn from these ids: the rows of a sparse checkpoint's embedding that are not zero."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to do."""

    folder: str
    """Directory or Hub id that `from_pretrained` takes."""
    revision: str | None = None
    request: Request
    """``dtype`` resolved."""
    device: str
    """``cuda``, ``cpu`` or ``meta``."""
    snapshot: str | None = None
    """File for PyTorch's own memory snapshot."""
    config: dict[str, Any] | None = None
    """What a virtual GPU builds; it loads no folder. The rest is for it alone too."""
    stored: str = "bfloat16"
    """Dtype of the checkpoint."""
    torch_version: str | None = None
    alloc_conf: str | None = None
    advice: bool = False
    find: str | None = None
    context_bytes: int | None = None


def measure(job: Job, meter: Meter, emit: Emit) -> None:
    """Run ``job`` and tell every phase as it ends."""
    phases = _Phases(meter, emit)
    phases.begin("context")
    device = meter.open()
    phases.end()
    emit("facts", device=asdict(device), software=software())
    with Timeline(meter.sample) as timeline:
        phases.begin("load")
        model = load(job)
        phases.end()
        tensors = list(held(model, meta_format=job.request.weight_format if job.device == "meta" else None))
        emit(
            "facts",
            parameters=sum(t.elements for t in tensors if t.persistent),
            weights_by_format=weights_by_format(tensors),
            modules=[asdict(row) for row in module_rows(tensors)],
        )
        if job.device != "meta":
            _serve(model, job.request, meter, phases)
            emit("facts", retained_bytes=meter.held_bytes())
    device_bytes, host_bytes = meter.cost()
    cost = {"device_bytes": device_bytes, "host_bytes": host_bytes, "seconds": round(meter.seconds, 4)}
    emit("facts", timeline=timeline.samples, meter=cost)


class _Phases:
    """The phase that runs, told when it begins and when it ends."""

    def __init__(self, meter: Meter, emit: Emit) -> None:
        self._meter, self._emit = meter, emit
        self._name: PhaseName = "context"
        self.cache: Any = None
        """The one that decodes."""

    def begin(self, name: PhaseName) -> None:
        self._name = name
        self._emit("begin", phase=name)
        self._meter.begin()

    def end(self, cache: Any = None) -> None:
        self._emit("phase", **asdict(self._meter.end(self._name, cache=cache)))


def load(job: Job) -> Any:
    """The model as anyone would load it on one device."""
    quiet()
    request = job.request
    config = transformers.AutoConfig.from_pretrained(job.folder, revision=job.revision)
    with counting_tensors():
        return model_class(config).from_pretrained(
            job.folder,
            revision=job.revision,
            dtype=getattr(torch, request.dtype),
            quantization_config=quantization_config(request, device=job.device),
            device_map={"": 0 if job.device == "cuda" else job.device},
            attn_implementation=request.attention,
        )


@contextmanager
def counting_tensors() -> Iterator[None]:
    """What transformers would show a bar of while loading is told, tensor by tensor."""
    before = transformers.utils.logging.set_tqdm_hook(_counted)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


def _counted(bar: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if not arguments or not isinstance(arguments[0], Sized):
        return bar(*arguments, **options)
    return bar(_told(arguments[0]), *arguments[1:], **options)


def _told(rows: Any) -> Iterator[Any]:
    for number, row in enumerate(rows):
        reached(number, len(rows), "tensors")
        yield row


def quantization_config(request: Request, *, device: str) -> Any:
    """What the request means to transformers; None to load as stored."""
    if request.quantization in (None, "none"):
        return None
    if request.quantization == "bnb-int8" and device != "meta":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(  # on the meta device int8 replaces the same modules, but cannot be loaded
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4" if request.quantization == "bnb-fp4" else "nf4",
        bnb_4bit_use_double_quant=request.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, request.compute_dtype or request.dtype),
    )


def _serve(model: Any, request: Request, meter: Meter, phases: _Phases) -> None:
    with meter.watching(model), torch.no_grad(), _each_forward(model, phases, tokens=request.output_tokens):
        phases.begin("prefill")
        out = generate(model, request)
        phases.end(out.past_key_values or phases.cache)
        phases.cache = None
        del out


def generate(model: Any, request: Request, *, total_tokens: int | None = None) -> Any:
    """What ``model.generate`` returns for a random prompt: greedy, and never ended early.

    A static cache has room for ``total_tokens`` (None: of the request), or more.
    """
    ids, mask = _prompt(model, request)
    static: dict[str, Any] = {}
    if request.cache_implementation == "static":
        model._previous_max_cache_length = -1  # or it would be as large as an earlier call's
        room = (total_tokens or request.total_tokens) - 1
        static = {"cache_implementation": "static", "max_cache_len": room, "disable_compile": True}
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=request.output_tokens,
        min_new_tokens=request.output_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        **static,
    )


def _prompt(model: Any, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids [B,P] and their mask; a padded batch has a first sequence a quarter shorter, as real ones differ."""
    low, high = PROMPT_IDS
    vocabulary = model.config.get_text_config().vocab_size
    shape = (request.batch_size, request.prompt_tokens)
    ids = torch.randint(min(low, vocabulary - 1), min(high, vocabulary), shape, device=model.device)
    mask = torch.ones_like(ids)
    if request.padded:
        mask[0, : request.prompt_tokens // 4] = 0
    return ids, mask


@contextmanager
def _each_forward(model: Any, phases: _Phases, *, tokens: int) -> Iterator[None]:
    """Prefill is the first forward pass; decode begins with the second, and each gives one of the ``tokens``."""
    calls = 0

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            phases.cache = cache_in(kwargs)
            phases.end(phases.cache)
            phases.begin("decode")
        if calls > 1:
            reached(calls - 1, tokens, "tokens")

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def software() -> dict[str, str | None]:
    """What was installed."""
    return {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in ("ullage", "transformers", "accelerate", "bitsandbytes", "safetensors")},
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version() or "") or None,  # type: ignore[no-untyped-call]
        "alloc_conf": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }


def _version(name: str) -> str | None:
    try:
        return str(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def quiet() -> None:
    """Libraries' own words and bars go nowhere."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
