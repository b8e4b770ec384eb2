"""The commands that touch torch: one thin command a question. Nothing heavy is imported before it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from analytic.console import Flag, Output, Shown, Whole, show
from analytic.errors import UllageError, UsageError

_PLAIN = Shown()

Folder = Annotated[Path | None, Parameter(alias="-o")]


def profile(
    model: str,
    /,
    *,
    device: str,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    quantization: Literal["bnb-nf4", "bnb-fp4", "bnb-int8", "none"] | None = None,
    double_quant: Flag = False,
    compute_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    batch_size: Whole = 1,
    prompt_tokens: str = "2048",
    output_tokens: str = "256",
    padded: Flag = False,
    attention: Literal["sdpa", "eager"] = "sdpa",
    cache_implementation: Literal["dynamic", "static"] = "dynamic",
    twin_layers: Whole | None = None,
    weights: Literal["auto", "sparse", "real"] = "auto",
    revision: str | None = None,
    snapshot: Path | None = None,
    allow_busy: Flag = False,
    timeout_s: float | None = None,
    torch_version: str | None = None,
    alloc_conf: str | None = None,
    advice: Flag = False,
    find: Literal["max-batch", "max-prompt", "max-output"] | None = None,
    calibration: Path | None = None,
    shown: Shown = _PLAIN,
) -> int:
    """Load MODEL, generate, and measure what was really allocated, in a process of its own.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory or config.json. Its weights need not be here: their values do not matter.
    device
        cuda: PyTorch's allocator and the driver. cpu: tensor storages and the resident set. meta: weights alone.
        virtual:h200, virtual:rtx-4090, …: a simulated GPU, on any machine (`ullage gpus` lists them).
    dtype
        Dtype of what is not quantised; auto takes the publisher's.
    quantization
        Quantise while loading; none serves a quantised checkpoint dequantised.
    double_quant
        Quantise the 4-bit scales too (bnb_4bit_use_double_quant).
    compute_dtype
        Dtype that 4-bit weights are multiplied in (default: the serving dtype).
    batch_size
        Sequences at once.
    prompt_tokens
        Prompt of each sequence: 2048, 32k (32,000) or 32K (32,768).
    output_tokens
        New tokens of each sequence.
    padded
        The first sequence is a quarter shorter, so that the batch needs an attention mask.
    attention
        Attention implementation.
    cache_implementation
        static: all the cache's room at once, without the compilation that generate would add.
    twin_layers
        Measure a twin of so many layers, which loads nearly the same kernels.
    weights
        sparse: shapes without values, which need no disk. real: the values. auto: real where a directory has them.
    revision
        Branch, tag or commit of a Hub model.
    snapshot
        Write PyTorch's memory snapshot to this file (for pytorch.org/memory_viz).
    allow_busy
        Measure although other processes use the GPU.
    timeout_s
        Give up after so many seconds.
    torch_version
        PyTorch on the virtual GPU (default: as installed here).
    alloc_conf
        Allocator settings on the virtual GPU, as PYTORCH_ALLOC_CONF spells them.
    advice
        Run again on the virtual GPU under other allocator settings, and say what each would save.
    find
        Search the largest batch, prompt or output that the virtual GPU survives.
    calibration
        Take the virtual GPU's context from this file of `ullage calibrate` (default: assumed from reports).
    """
    from analytic.calibration import read_calibration
    from analytic.quantity import parse_tokens
    from analytic.request import Request
    from profiler.case import Case
    from profiler.virtual.target import VirtualOptions

    request = Request(
        dtype=dtype,
        quantization=quantization,
        double_quant=double_quant,
        compute_dtype=compute_dtype,
        batch_size=batch_size,
        prompt_tokens=parse_tokens(prompt_tokens, what="--prompt-tokens"),
        output_tokens=parse_tokens(output_tokens, what="--output-tokens"),
        padded=padded,
        attention=attention,
        cache_implementation=cache_implementation,
    )
    case = Case(model=model, request=request, revision=revision, twin_layers=twin_layers, weights=weights)
    with needing_torch():
        from profiler.run import profile as measure

        measured = measure(
            case,
            device=device,
            snapshot=snapshot,
            allow_busy=allow_busy,
            timeout_s=timeout_s,
            virtual=VirtualOptions(torch_version=torch_version, alloc_conf=alloc_conf, advice=advice, find=find),
            calibration=None if calibration is None else read_calibration(calibration),
        )
    shown.show(measured, "analytic.report.measurement", make_folder=True)
    return {"ok": 0, "oom": 3, "error": 1}[measured.status]


def sweep(
    matrix: Path,
    /,
    *,
    device: str,
    output: Folder = None,
    budget_s: float | None = None,
    timeout_s: float | None = None,
    allow_busy: Flag = False,
    json: Flag = False,
) -> int:
    """Measure every case of a matrix, the most valuable first; what is already recorded is skipped.

    Parameters
    ----------
    matrix
        TOML file of models, formats, batch sizes and prompts (see benchmarks/).
    device
        cuda, cpu, meta, or virtual:h200 and the like.
    output
        Folder of the records (default: results/ and the device's name; a virtual GPU has none).
    budget_s
        Leave out the cases that would not end within so many seconds in all.
    timeout_s
        Give up a case after so many seconds, and go on with the next.
    allow_busy
        Measure although other processes use the GPU.
    json
        Print one JSON document.
    """
    from functools import partial

    from profiler.matrix import read_matrix

    cases = read_matrix(matrix)
    with needing_torch():
        from profiler.run import device_slug, require_device
        from profiler.run import profile as measure
        from profiler.sweep import sweep_with_progress
        from profiler.virtual.target import is_virtual

        require_device(device)
        if output is None and is_virtual(device):
            raise UsageError("results/ is for what devices returned", hint="name a folder: -o simulated")
        folder = output or Path("results") / device_slug(device)
        done = sweep_with_progress(
            cases,
            device=device,
            out=folder,
            budget_s=budget_s,
            timeout_s=timeout_s,
            measure=partial(measure, allow_busy=allow_busy),
        )
    show(done, "profiler.swept", json=json)
    return 1 if done.failed else 0


def replay(
    snapshot: Path,
    /,
    *,
    alloc_conf: tuple[str, ...] = (),
    gpu: str | None = None,
    gpu_memory: str | None = None,
    device: Whole | None = None,
    json: Flag = False,
    output: Output = (),
) -> int:
    """What the allocations of a PyTorch memory snapshot need under other allocator settings or on another GPU.

    Parameters
    ----------
    snapshot
        A file of torch.cuda.memory._dump_snapshot, or the same as JSON; may be gzipped.
    alloc_conf
        Settings as in PYTORCH_ALLOC_CONF: expandable_segments:True; can be given again.
    gpu
        A GPU of `ullage gpus` that it has to fit on; an assumed context is taken off.
    gpu_memory
        Memory that PyTorch may reserve: 20GiB.
    device
        Device of the snapshot, where several have events.
    json
        Print one JSON document.
    output
        Write the JSON document to this file.
    """
    from profiler.virtual.replay import capacity, replay_snapshot
    from profiler.virtual.snapshot import read_snapshot

    capacity_bytes, context_bytes = capacity(gpu=gpu, gpu_memory=gpu_memory)
    answer = replay_snapshot(
        read_snapshot(snapshot, device=device),
        alloc_conf,
        capacity_bytes=capacity_bytes,
        context_bytes=context_bytes,
    )
    show(answer, "analytic.report.replay", json=json, output=output)
    return 3 if answer.fits is False else 0


@contextmanager
def needing_torch() -> Iterator[None]:
    """A missing library is named, with the way to install it."""
    try:
        yield
    except ImportError as error:
        raise UllageError(f"measuring needs {error.name or error}", hint="pip install 'ullage[profiler]'") from error
