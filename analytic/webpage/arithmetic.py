"""What of ullage's Python the page runs: an estimate with transformers, whole layers on up to so many GPUs."""

from analytic.webpage.translate import Program

_ENGINE = "analytic.engines.transformers.engine"


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


ROOTS = (
    *_of("analytic.estimator", "run"),
    *_of("analytic.request", "Request"),
    *_of("analytic.report.estimate", "document"),
    *_of("analytic.report.command", "command_of"),
    *_of("analytic.report.sentences", "assumptions verdict status_of lever_words most gib sentence cells"),
    *_of("analytic.plans.budget", "budget_map"),
    *_of("analytic.ledger", "COMPONENTS"),
    *_of(_ENGINE, "NAME VERSION REST CHARGES_CONTEXT NOT_MODELED prepare kind usable_bytes ledgers gpus_needed"),
    *_of(_ENGINE, "state_bytes_per_token changes setting warnings details lines"),
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
    "analytic.request._cache_dtypes": '() => ["auto"]',
    "analytic.request._made_by": "() => []",
}
"""What stands for tables of formats and for errors."""

ABSENT = (
    *_of("analytic.engines.transformers.share", "rank_of"),
    *_of(_ENGINE, "_placed"),
    *_of("analytic.engine_constants", "EngineCalibration"),
    *_of("analytic.hardware", "find_gpu"),
)
"""What the page does not offer: tensor parallelism, device maps, constants of vLLM's logs."""


def program() -> Program:
    """The translation, to which data can still refer."""
    given = GIVEN | dict.fromkeys(ABSENT, "$absent")
    return Program(roots=ROOTS, given=given, frozen=("analytic.hardware._contexts",), shapes=SHAPES)
