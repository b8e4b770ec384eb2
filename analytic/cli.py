"""The command line: one thin command a question, errors turned into text in one place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from analytic.console import Flag, Output, Shown, Whole, print_lines, show
from analytic.errors import UllageError, UsageError
from analytic.report.plain import degrade
from analytic.serve_flags import ServeFlags
from analytic.stopping import Stopping

app = App(
    name="ullage",
    help="How much GPU memory an LLM needs to be served, and how that is known.",
    help_format="plaintext",
    version=lambda: _version(),
    suppress_keyboard_interrupt=False,
)

_PLAIN = Shown()
"""Text on a terminal, and no file."""

DOES_NOT_FIT = OUTSIDE_TOLERANCE = 3
"""Exit code of an answer that is no."""


@app.command
def rule(
    parameters: str,
    /,
    *,
    bits: Whole = 16,
    gpu_memory: str = "80GB",
    overhead: str = "0.2",
    json: Flag = False,
) -> int:
    """The classic six-step rule of thumb, its quantisation step put right.

    Parameters
    ----------
    parameters
        Number of parameters: 70B, 350M, or the whole number.
    bits
        Bits a parameter: 32, 16, 8 or 4.
    gpu_memory
        Memory of one GPU, decimal as in the guide: 80GB.
    overhead
        Assumed overhead as a fraction of the weights.
    json
        Print one JSON document.
    """
    from analytic.quantity import parse_bytes, parse_parameters
    from analytic.rule import apply_rule

    answer = apply_rule(
        parse_parameters(parameters),
        bits=bits,
        gpu_memory_bytes=parse_bytes(gpu_memory, what="--gpu-memory"),
        overhead=overhead,
    )
    show(answer, "analytic.report.rule", json=json)
    return 0


@app.command
def estimate(
    model: str,
    /,
    *,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    serving: ServeFlags | None = None,
    revision: str | None = None,
    calibration: Path | None = None,
    shown: Shown = _PLAIN,
) -> int:
    """Every component of the memory that serving MODEL needs, per GPU, with bounds.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory, config.json, .safetensors or .gguf file, or a whole "vllm serve …" line.
    gpu
        A GPU of `ullage gpus`, and how many: h100-80gb or h100-80gb:2.
    gpu_memory
        A GPU that is not in the table, by its memory: 80GiB.
    revision
        Branch, tag or commit of a Hub model.
    calibration
        Constants fitted on this GPU (ullage calibrate); default: the shipped ones, where there are any.
    """
    from analytic.estimator import estimate as ask

    answer = ask(
        model,
        gpu=_gpu(gpu, gpu_memory),
        revision=revision,
        calibration=calibration,
        **(serving or ServeFlags()).given(),
    )
    shown.show(answer, "analytic.report.estimate")
    return DOES_NOT_FIT if answer.fits is False else 0


@app.command
def plan(
    model: str,
    /,
    *models: str,
    gpu: tuple[str, ...] = (),
    gpus: str | None = None,
    formats: str | None = None,
    target_context: str = "4096",
    target_concurrency: Whole = 1,
    contexts: str | None = None,
    concurrencies: str | None = None,
    node_gpus: Whole = 8,
    prices: Path | None = None,
    serving: ServeFlags | None = None,
    revision: str | None = None,
    shown: Shown = _PLAIN,
) -> int:
    """Which GPUs hold MODEL, how a number of them would share it, how long a context, and how many sequences at once.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory, config.json, .safetensors or .gguf file.
    models
        More models, a plan each.
    gpu
        A kind of GPU to try, or data-centre, workstation, consumer, laptop, mig; can be given again (default: all but
        laptops and MIG slices).
    gpus
        How many of them: 1,2,4,8 (default).
    formats
        Formats to try: published,fp8,w4a16, or all (default: those usual with the engine).
    target_context
        Tokens of each sequence, prompt and output, that must fit.
    target_concurrency
        Sequences at once that must fit.
    contexts
        Rows of the matrix: 4096,32K,128K (default: 1,024 to 524,288).
    concurrencies
        Columns of the matrix (default: 1 to 512).
    node_gpus
        GPUs of a node: no layer is split over more.
    prices
        A TOML or JSON file with the price of a GPU an hour: h100-80gb = 2.49.
    revision
        Branch, tag or commit of a Hub model.
    """
    from analytic.plans.typed import plan_asked

    if models and (shown.output or shown.figures):
        raise UsageError("--output and --figures hold the plan of one model", hint="ask for one model")
    fitting = True
    for name in (model, *models):
        found = plan_asked(
            name,
            revision=revision,
            gpu=gpu,
            gpus=gpus,
            formats=formats,
            target_context=target_context,
            target_concurrency=target_concurrency,
            contexts=contexts,
            concurrencies=concurrencies,
            node_gpus=node_gpus,
            prices=prices,
            serving=(serving or ServeFlags()).given(),
        )
        fitting = fitting and found.smallest is not None
        shown.show(found, "analytic.report.plan")
    return 0 if fitting else DOES_NOT_FIT


@app.command
def check(
    model: str,
    /,
    *,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    strict: Flag = False,
    serving: ServeFlags | None = None,
    revision: str | None = None,
    json: Flag = False,
) -> int:
    """Whether MODEL fits, in one line and an exit code: 0 it does, 3 it does not.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory, config.json, .safetensors or .gguf file.
    gpu
        A GPU of `ullage gpus`, and how many: h100-80gb:2 (default: this machine's, with the memory that is free now).
    gpu_memory
        A GPU that is not in the table, by its memory: 80GiB.
    strict
        The high bound has to fit too.
    revision
        Branch, tag or commit of a Hub model.
    json
        Print one JSON document.
    """
    from analytic.checking import check as ask
    from analytic.hardware import parse_gpu

    named = _gpu(gpu, gpu_memory)
    device, count = parse_gpu(named) if isinstance(named, str) else (named, None)
    found = ask(
        model,
        gpu=device,
        gpus=count if isinstance(named, str) and ":" in named else None,
        strict=strict,
        revision=revision,
        flags=(serving or ServeFlags()).given(),
    )
    show(found, "analytic.report.check", json=json)
    return 0 if found.fits else DOES_NOT_FIT


@app.command
def gpus(*, json: Flag = False) -> int:
    """The GPU table: what the driver reports, with a source a row.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from analytic.hardware import gpus as table

    show(table(), "analytic.report.gpus", json=json)
    return 0


@app.command
def models(*, json: Flag = False) -> int:
    """The shipped catalogue of models.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from analytic.models.catalog import entries

    show(entries(), "analytic.report.models", json=json)
    return 0


@app.command
def inspect(
    model: str,
    /,
    *,
    gpu: str | None = None,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    quantization: str | None = None,
    tokens: Annotated[str, Parameter(alias=("--max-model-len", "--ctx-size", "-c"))] = "4096",
    sequences: Annotated[Whole, Parameter(alias=("--max-num-seqs", "--parallel", "-np"))] = 1,
    quantized_cache: str = "int4",
    kv_cache_dtype: str = "auto",
    block_size: Whole | None = None,
    cache_type_k: Annotated[str, Parameter(alias="-ctk")] = "f16",
    cache_type_v: Annotated[str, Parameter(alias="-ctv")] = "f16",
    ubatch_size: Annotated[Whole, Parameter(alias="-ub")] = 512,
    swa_full: Flag = False,
    n_gpu_layers: Annotated[int, Parameter(alias=("--gpu-layers", "-ngl"))] = 999,
    n_cpu_moe: Annotated[int, Parameter(alias="-ncmoe")] = 0,
    tensors: Flag = False,
    layers: Flag = False,
    revision: str | None = None,
    json: Flag = False,
    output: Output = (),
) -> int:
    """What MODEL is made of: tensors by role, format and layer, what is quantised, what a token of context costs.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory, config.json, .safetensors or .gguf file.
    gpu
        A GPU of `ullage gpus`, on which vLLM's kernels for packed weights depend.
    dtype
        Dtype of what is not quantised; auto takes the publisher's.
    quantization
        A format of `ullage formats` that an unquantised model would take, module by module.
    tokens
        Tokens of each sequence, for its cache: 4096, 32k (32,000) or 32K (32,768).
    sequences
        Sequences at once.
    quantized_cache
        Format of transformers' quantised cache: int8, int4, int3, int2, int1 (HQQ), fp8.
    kv_cache_dtype
        vLLM's cache dtype: auto, fp8, fp8_e4m3, fp8_e5m2, bfloat16, nvfp4 …
    block_size
        Tokens of a block of vLLM's cache (default: 16, or 64 of latent attention).
    cache_type_k
        llama.cpp's type of keys: f16, f32, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1.
    cache_type_v
        llama.cpp's type of values.
    ubatch_size
        Tokens of llama.cpp's physical batch, which its sliding caches have room for.
    swa_full
        llama.cpp gives sliding layers all cells.
    n_gpu_layers
        Layers that llama.cpp offloads to the GPU, the output head among them.
    n_cpu_moe
        First layers whose experts llama.cpp keeps on the host.
    tensors
        List every tensor.
    layers
        List every layer.
    revision
        Branch, tag or commit of a Hub model.
    json
        Print one JSON document.
    output
        Write the JSON document to this file.
    """
    from analytic.hardware import find_gpu
    from analytic.holding import EngineFlags
    from analytic.inspection import inspect as look
    from analytic.models.resolve import resolve
    from analytic.quantity import parse_tokens

    found = look(
        resolve(model, revision=revision),
        dtype=dtype,
        quantization=quantization,
        tokens=parse_tokens(tokens, what="--tokens"),
        sequences=sequences,
        flags=EngineFlags(
            capability=None if gpu is None else find_gpu(gpu).capability,
            gpu_layers=n_gpu_layers,
            cpu_moe_layers=n_cpu_moe,
            quantized_cache=quantized_cache,
            kv_cache_dtype=kv_cache_dtype,
            block_size=block_size,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            ubatch_size=ubatch_size,
            swa_full=swa_full,
        ),
    )
    show(found, "analytic.report.inspection", json=json, output=output, tensors=tensors, layers=layers)
    return 0


@app.command
def formats(*, json: Flag = False) -> int:
    """Every weight format: bits a weight with all that stands beside it, how it is read, and its source.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from analytic.formats.catalog import rows

    show(rows(), "analytic.report.formats", json=json)
    return 0


app.command("profiler.commands:profile", help="Load MODEL, generate, and measure what was really allocated.")
app.command("profiler.commands:sweep", help="Measure every case of a matrix, the most valuable first.")
app.command("profiler.commands:replay", help="What a memory snapshot would need under other allocator settings.")


@app.command
def page(*, output: Annotated[Path, Parameter(alias="-o")] = Path("site")) -> int:
    """A calculator as one web page: the catalogue, the GPUs and the arithmetic of `ullage estimate`, without a server.

    Parameters
    ----------
    output
        Folder of its index.html.
    """
    from analytic.webpage.page import write

    file = write(output)
    print_lines(f"{file}: {file.stat().st_size / 1e6:.2f} MB; open it in a browser, it needs no network.\n")
    return 0


@app.command
def compare(
    *results: Path,
    figure: tuple[str, ...] = (),
    fail_over: str | None = None,
    calibration: Path | None = None,
    scoreboard: Path | None = None,
    shown: Shown = _PLAIN,
) -> int:
    """The estimate beside every measurement of its own request, component by component, worst first.

    Parameters
    ----------
    results
        Files and folders of measurements (default: results/).
    figure
        Only this component or total; can be given again.
    fail_over
        Exit with 3 if an error is larger than this: 2% or 0.02.
    calibration
        Estimate with the constants of this file; keep to measurements that it was not fitted to.
    scoreboard
        Write the summary as Markdown to this file.
    """
    from analytic.calibration import read_calibration
    from analytic.compare import compare as lay_side_by_side
    from analytic.measurement import read_measurements
    from analytic.quantity import parse_fraction

    tolerance = None if fail_over is None else parse_fraction(fail_over, what="--fail-over")
    measurements = read_measurements(results or (Path("results"),))
    constants = None if calibration is None else read_calibration(calibration)
    found = lay_side_by_side(measurements, figures=figure, calibration=constants)
    if scoreboard is not None:
        from analytic.report.compare import write_scoreboard

        write_scoreboard(found, scoreboard)
    shown.show(found, "analytic.report.compare")
    return OUTSIDE_TOLERANCE if tolerance is not None and found.beyond(tolerance) else 0


@app.command
def calibrate(
    *results: Path,
    hold_out: tuple[str, ...] = (),
    engine_log: tuple[Path, ...] = (),
    model: str | None = None,
    gpu: str | None = None,
    serving: ServeFlags | None = None,
    shown: Shown = _PLAIN,
) -> int:
    """Fit the constants that no arithmetic gives, to measurements of one environment or to an engine's logs.

    Parameters
    ----------
    results
        Files and folders of measurements (default: results/). -o FILE keeps the constants; of logs it can be left out,
        to see them beside the estimate.
    hold_out
        Measurements whose id holds this text are not fitted, only predicted; can be given again.
    engine_log
        What vLLM, llama.cpp or SGLang printed when it started, instead of measurements; can be given again, and files
        beside it are logs too.
    model
        The model of the logs, where they name a local path.
    gpu
        The GPU of the logs, where they do not say.
    """
    given = (serving or ServeFlags()).given()
    if engine_log:
        if hold_out:
            raise UsageError("--hold-out is of measurements, not of logs", hint="leave it out")
        return _engine_logs((*engine_log, *results), model, gpu, given, shown)
    if model is not None or gpu is not None or given:
        raise UsageError(
            "measurements say how they were served", hint="leave --model, --gpu and the like to --engine-log"
        )
    if not shown.output:
        raise UsageError("--output is missing", hint="write -o FILE")
    from analytic.calibrate import calibrate as fit
    from analytic.measurement import read_measurements

    measurements = read_measurements(results or (Path("results"),))
    fitted = fit(measurements, held_out={m.id for m in measurements if any(text in m.id for text in hold_out)})
    shown.show(fitted, "analytic.report.calibration", make_folder=True)
    return 0


def _engine_logs(
    logs: tuple[Path, ...], model: str | None, gpu: str | None, given: dict[str, Any], shown: Shown
) -> int:
    from analytic.hardware import find_gpu
    from analytic.logs import read_log
    from analytic.progress import showing
    from analytic.report.starts import Compared
    from analytic.starts.beside import beside
    from analytic.starts.fit import fit

    device = None if gpu is None else find_gpu(gpu)
    with showing("logs", unit="logs") as task:
        found = tuple(
            beside(run, source=str(log), model=model, gpu=device, given=given)
            for log in task.over(logs)
            for run in read_log(log)
        )
    is_fitted = shown.keeps_record or (bool(shown.output) and any(row.run.engine == "vllm" for row in found))
    compared = Compared(besides=found, fitted=fit(found) if is_fitted else None)
    shown.show(compared, "analytic.report.starts", make_folder=True)
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ullage")
    except PackageNotFoundError:
        return "not installed, run from its source"


def _gpu(name: str | None, memory: str | None) -> Any:
    if memory is None:
        return name
    if name is not None:
        raise UsageError("--gpu and --gpu-memory contradict each other", hint="give one of them")
    from analytic.hardware import custom_gpu
    from analytic.quantity import parse_bytes

    return custom_gpu(parse_bytes(memory, what="--gpu-memory"))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command; a known error is one line and a hint on stderr."""
    for stream in (sys.stdout, sys.stderr):
        degrade(stream)
    stopping = Stopping()
    stopping.listen()
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except UllageError as error:
        code = _report(error)
    except CycloptsError as error:
        code = _report(UsageError(str(error).strip().replace("\n", " "), hint="see ullage --help"))
    except KeyboardInterrupt as stopped:
        code = stopping.report(stopped)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: UllageError) -> int:
    print(f"ullage: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
