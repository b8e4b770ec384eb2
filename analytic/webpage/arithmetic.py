"""What of ullage's Python the page runs: estimates with transformers, layers a GPU, and with vLLM, parts of each."""

from analytic.webpage.translate import Program

_TRANSFORMERS = "analytic.engines.transformers.engine"
_VLLM = "analytic.engines.vllm.engine"


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


_ANSWERS = (
    "NAME VERSION REST CHARGES_CONTEXT NOT_MODELED prepare kind usable_bytes ledgers gpus_needed "
    "state_bytes_per_token changes setting warnings details lines"
)
"""Of an engine."""

ROOTS = (
    *_of("analytic.estimator", "run"),
    *_of("analytic.request", "Request"),
    *_of("analytic.report.estimate", "document"),
    *_of("analytic.report.command", "command_of"),
    *_of("analytic.report.sentences", "assumptions verdict status_of lever_words most gib sentence cells"),
    *_of("analytic.plans.budget", "budget_map"),
    *_of("analytic.ledger", "COMPONENTS"),
    *(name for engine in (_TRANSFORMERS, _VLLM) for name in _of(engine, _ANSWERS)),
    *_of("analytic.flags", "Flags"),
    *_of("analytic.loaded.vllm_parallel", "pipeline_spans"),
    *_of("analytic.loaded.vllm", "ONLINE"),
    *_of("analytic.state.vllm_specs", "CACHE_DTYPES"),
    *_of("analytic.webpage.ranks", "PACKED stage_row"),
    *_of("analytic.models.geometry", "Geometry Layer Attention LatentAttention Recurrent FeedForward MixtureOfExperts"),
    *_of("analytic.models.inventory", "TensorGroup"),
    *_of("analytic.weights", "ServedGroup"),
    *_of("analytic.calibration", "Calibration Environment Term Residual LeftOut Overhead"),
    *_of("analytic.quantity", "parse_tokens"),
)
"""What the page calls, and the classes of what it hands over."""

SHAPES = (
    *_of("analytic.models.model", "Model"),
    *_of("analytic.weights", "Weights"),
    *_of("analytic.formats.scheme", "Preset Method Serving Scheme"),
    *_of("analytic.engine_constants", "EngineCalibration"),
)
"""What the given objects look like."""

GIVEN = {
    "analytic.engines.engine.find_engine": "$find_engine",
    "analytic.errors.UllageError": "$UllageError",
    "analytic.errors.UsageError": "$UsageError",
    "analytic.weights.weigh": "$weigh",
    "analytic.formats.registry.find_method": "$find_method",
    "analytic.formats.registry.find_preset": "$find_preset",
    "analytic.formats.table.itemsize": "$itemsize",
    "analytic.models.packed.quantization_of": "$quantization_of",
    "analytic.models.packed.weight_bits": "$weight_bits",
    "analytic.loaded.vllm.vllm_weights": "$vllm_weights",
}
"""What stands for tables of formats and for errors."""

ABSENT = (
    *_of("analytic.engines.transformers.share", "rank_of"),
    *_of(_TRANSFORMERS, "_placed"),
    *_of("analytic.engine_constants", "EngineCalibration"),
    *_of("analytic.hardware", "find_gpu"),
)
"""What the page does not offer: tensor parallelism of transformers, device maps, constants of vLLM's logs."""


def program() -> Program:
    """The translation, to which data can still refer."""
    given = GIVEN | dict.fromkeys(ABSENT, "$absent")
    return Program(roots=ROOTS, given=given, frozen=("analytic.hardware._contexts",), shapes=SHAPES)
