"""How transformers divides tensors over ranks: the plan of each class, and what each style of it cuts.

After transformers 5.23 (``distributed/tensor_parallel.py``). The plan of a class is a row of ``tp_plans.json``
(``tests/record_distribution.py``): a module or parameter, with ``*`` for indices, and the style that it is divided in.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from analytic.errors import UllageError
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model

REPLICATED = "replicated"
"""Of a tensor that every rank holds whole."""
APART = ("colwise", "packed_colwise", "packed_rowwise")
"""Styles whose outputs are not gathered; ``packed_rowwise`` is of weights that are stored as [in, out]."""
BY_LAYERS = "--pipeline-parallel-size puts whole layers on each GPU"

Cut = tuple[int, int]
"""The dimension that is divided, and how many parts of it are divided each for itself."""

_WHOLE = (
    *(REPLICATED, "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce", "moe_tp_experts"),
    *("moe_identity_expert", "local_params", "replicate"),
)
"""Styles that leave parameters whole, and change at most what goes in or comes out."""


def plan_of(model: Model) -> Mapping[str, str]:
    """Style by module or parameter of the model's class.

    Raises:
        UllageError: the class has none.
    """
    if not has_plan(model):
        raise UllageError(f"transformers has no plan for a {model.architecture}", hint=BY_LAYERS)
    return _plans()[model.architecture]


def has_plan(model: Model) -> bool:
    """Whether transformers has a plan for the model's class."""
    return model.architecture in _plans()


def style_of(group: TensorGroup, plan: Mapping[str, str]) -> str:
    """The style of a group's tensors: their own, else that of the module that owns them."""
    pattern = re.sub(r"\.\d{1,9}(?=\.|$)", ".*", group.name.replace("{}", "*").replace("{e}", "*"))
    return plan.get(pattern) or plan.get(pattern.rpartition(".")[0]) or REPLICATED


@cache
def _plans() -> Mapping[str, Mapping[str, str]]:
    plans: Mapping[str, Mapping[str, str]] = json.loads((files("analytic.models") / "tp_plans.json").read_bytes())
    return plans


def cut_of(style: str, group: TensorGroup) -> Cut | None:
    """Where a style divides a tensor; None where every rank holds it whole (each style's ``shard_param``)."""
    dimensions, name = len(group.shape), group.name.rpartition(".")[2]
    rows, last = max(dimensions - 2, 0), dimensions - 1
    if group.role == "buffer" or not dimensions:
        return None
    match style:
        case "colwise" | "colwise_gather_output" | "colwise_rep":
            return rows, 1
        case "rowwise" | "rowwise_split_input" | "rowwise_rep":
            return None if name == "bias" else (last, 1)
        case "embedding_rowwise":
            return 0, 1
        case "embedding_colwise":
            return 1, 1
        case "packed_colwise":
            return rows, 1 if dimensions == 1 else 2
        case "packed_rowwise":
            return None if dimensions == 1 else (last, 2)
        case _ if style in _WHOLE:
            return None
    raise UllageError(f"how transformers divides {group.name} ({style[:60]}) is not known")


def part_of(shape: tuple[int, ...], cut: Cut, degree: int, rank: int) -> tuple[int, ...]:
    """The shape of a rank's part: chunks as large as the first, so that the last ranks hold less, or nothing."""
    dimension, parts = cut
    size, held = shape[dimension], 0
    width = -(-size // parts)
    for start in range(0, size, width):
        part = min(width, size - start)
        chunk = -(-part // degree)
        held += max(0, min(chunk, part - rank * chunk))
    return (*shape[:dimension], held, *shape[dimension + 1 :])
