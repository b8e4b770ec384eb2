"""What vLLM holds more, or less, of a model's packed matrices than the checkpoint, and what goes beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import gcd, lcm, prod

from analytic.errors import UllageError
from analytic.formats.table import itemsize
from analytic.loaded import Change
from analytic.loaded.vllm_kernels import KERNELS, SERVING, Kernel
from analytic.models.geometry import Attention, Geometry
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.models.packed import quantization_of
from analytic.quantity import round_up
from analytic.weights import ServedGroup

_NAME = re.compile(r"(?P<format>.*?)(-g(?P<group>\d+))?(?P<asymmetric>-asym)?")

_JOINED: Mapping[str, str] = {
    "k_proj": "q_proj",
    "v_proj": "q_proj",
    "up_proj": "gate_proj",
    "kv_a_proj_with_mqa": "q_a_proj",
    "in_proj_z": "in_proj_qkv",
    "in_proj_a": "in_proj_b",
}
"""Matrices that vLLM joins to another of the same layer, where there is one: ``qkv_proj``, ``gate_up_proj``,
``fused_qkv_a_proj``, ``in_proj_qkvz``, ``in_proj_ba``."""


_SPLIT = tuple(f".{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
"""Matrices whose tiles of scales go over to the next that is joined, if they do not end with the matrix."""


def repacked(
    model: Model,
    geometry: Geometry,
    served: Iterable[ServedGroup],
    *,
    dtype: str,
    capability: tuple[int, int] | None,
    online: bool,
    router: str | None,
) -> Iterator[Change]:
    """What kernels hold more, or less, of packed matrices than the checkpoint.

    ``geometry`` and ``served`` are what the rank has of them. ``online`` says that they were quantised while loading,
    and ``router`` to what the routers were, which no checkpoint does.

    Raises:
        UllageError: a format or a capability without a row, or a matrix that its kernel would pad.
    """
    _require_known(model)
    serving = itemsize(dtype)
    served = tuple(served)
    packed = [s for s in served if s.group.pieces or s.format not in (dtype, "float32")]
    if packed and dtype == "float32":
        raise UllageError(
            f"vLLM 0.33 does not serve {packed[0].format} in float32", hint="use --dtype bfloat16 or float16"
        )
    sums: dict[str, int] = {}
    if router is not None:
        packed += [replace(s, format=router) for s in served if s.group.role == "router" and len(s.group.shape) == 2]
    for s in packed:
        kernel, group_size = _kernel(model, s, capability)
        if online and kernel.group:  # whole blocks are made of what a rank has
            kernel = replace(kernel, pads=(1, kernel.group), uneven=None)
        change = _held(s.group, kernel, group_size, serving, model) - s.bytes
        sums[s.format] = sums.get(s.format, 0) + change
        for bias in (other for other in served if other.group.name == f"{s.group.name}_bias"):
            held = _padded(s.group, kernel)[0] * bias.group.count * bias.group.shape[0] * (kernel.bias_bytes or serving)
            sums[s.format] += held - bias.bytes
    for name, change in sums.items():
        yield Change(what=f"{name}, repacked", bytes=change)
    if packed:
        yield from _beside(geometry, packed, serving, online=online)


def _require_known(model: Model) -> None:
    """Refuse what vLLM's readers of a ``quantization_config`` refuse."""
    native = quantization_of(model.config) or {}
    if native and any(group.module == "FalconLinear" and not group.pieces for group in model.tensors):
        raise UllageError(
            f"{model.id}: whether FalconLinear is packed differs by tool", hint="give the checkpoint's safetensors"
        )
    if native.get("quant_method") != "gptq":
        return
    if native.get("desc_act") and native.get("group_size") != -1:
        raise UllageError(
            f"{model.id}: vLLM 0.33 does not load GPTQ with desc_act (activation order)",
            hint="use a checkpoint without it",
        )
    if native.get("sym") is False:
        raise UllageError(f"{model.id}: vLLM 0.33 does not load GPTQ with zero points (sym false)", hint="use AWQ")


def _kernel(model: Model, served: ServedGroup, capability: tuple[int, int] | None) -> tuple[Kernel, int]:
    match = _NAME.fullmatch(served.format)
    assert match is not None
    kind = "experts" if served.group.role == "expert" else "linear"
    marker = served.group.pieces[0].suffix if served.group.pieces else ""
    name = f"{match['format']}{match['asymmetric'] or ''}{'-packed' if marker == '.weight_packed' else ''}"
    native = quantization_of(model.config) or {}
    if native.get("activation_scheme") == "static":
        name += "-static"
    rows = KERNELS.get((name, kind))
    if rows is None:
        known = ", ".join(sorted({name for name, _ in KERNELS}))
        raise UllageError(
            f"what vLLM holds of {kind} in {served.format} is not known", hint=f"recorded formats: {known}"
        )
    if capability is None:
        raise UllageError(f"what vLLM holds of {served.format} depends on the GPU", hint="name it: --gpu h100-80gb")
    row = rows.get(10 * capability[0] + capability[1])
    if row is None:
        said = ", ".join(f"{number / 10:.1f}" for number in rows)
        raise UllageError(
            f"what vLLM holds of {served.format} on compute capability {capability[0]}.{capability[1]} is not known",
            hint=f"recorded: {said}",
        )
    return row, int(match["group"] or 0)


def _held(group: TensorGroup, kernel: Kernel, group_size: int, serving: int, model: Model) -> int:
    if kernel.scale_bytes == SERVING and not kernel.group and group_size not in kernel.groups:
        raise UllageError(
            f"what vLLM holds of {group.stored} with groups of {group_size or 'all inputs'} on this GPU is not known",
            hint=f"recorded groups: {', '.join(str(size or 'all inputs') for size in kernel.groups)}",
        )
    kernel, group_size = _for_experts(group, kernel, group_size or kernel.group)
    shape = _padded(group, kernel)
    out, into = (
        _tiled(group, model, shape, group_size) if kernel.tiles else _aligned(group, model, shape, kernel.aligns)
    )
    if out % kernel.multiples[0] or into % kernel.multiples[1]:
        raise _misfit(group)
    matrices = group.elements * group.count // prod(group.matrix)
    if kernel.rows > 1 and out % kernel.rows and group.name.endswith(_SPLIT):
        raise _misfit(group)
    scalars, stacks = 0 if _is_joined(group, model) else kernel.layer_bytes, 0
    if group.role == "expert":
        scalars = kernel.expert_bytes["down" in group.name] + kernel.shape_elements * serving
        stacks = len(group.layers or ()) * kernel.stack_bytes
    return stacks + matrices * (kernel.bytes((out, into), group=group_size, serving=serving) + scalars)


def _for_experts(group: TensorGroup, kernel: Kernel, group_size: int) -> tuple[Kernel, int]:
    """Experts of an intermediate size that groups do not divide get another kernel, and groups that do.

    Tensor parallelism leaves such sizes. The groups' new size is for the hidden size too.
    """
    size = _intermediate(group)
    if group.role != "expert" or kernel.uneven is None or not group_size or size % max(64, group_size) == 0:
        return kernel, group_size
    return replace(kernel.uneven, rows=gcd(kernel.uneven.rows, size)), gcd(group_size, size)


def _intermediate(group: TensorGroup) -> int:
    out, into = group.matrix
    if "down" in group.name:
        return into
    return out // 2 if "gate_up" in group.name else out


def _misfit(group: TensorGroup) -> UllageError:
    out, into = group.matrix
    return UllageError(f"how vLLM holds {group.name} ({out} x {into}) is not known", hint="no such shape was recorded")


def _tiled(group: TensorGroup, model: Model, shape: tuple[int, int], group_size: int) -> tuple[int, int]:
    """As Marlin pads a matrix to its tiles and to whole groups (quantization/utils/marlin_utils.py, marlin_padded_nk).

    Raises:
        UllageError: one whose padding depends on what it is joined to, or one of many experts.
    """
    out, into = shape
    wide, narrow = lcm(128, group_size or 1), lcm(64, group_size or 1)
    if group.role == "expert":
        if out % 128 or into % narrow:
            raise _misfit(group)
        return shape
    joined = _halves(group, model)
    rows = joined * out
    candidates = ((round_up(rows, 64), round_up(into, wide)), (round_up(rows, 128), round_up(into, narrow)))
    padded = min(candidates, key=lambda size: (size[0] * size[1], sum(size)))
    if joined == 1 and (out % 128 and padded != shape) and group.name.endswith(_JOINABLE):
        raise _misfit(group)
    return padded[0] // joined, padded[1]


def _aligned(group: TensorGroup, model: Model, shape: tuple[int, int], aligns: int) -> tuple[int, int]:
    """As CUTLASS's float8 pads a matrix (kernels/linear/scaled_mm/cutlass.py).

    Raises:
        UllageError: one whose padding depends on what it is joined to.
    """
    if group.role == "expert":
        return shape
    out, into = shape
    joined = _halves(group, model)
    rows = round_up(joined * out, aligns)
    if rows != joined * out and joined == 1 and group.name.endswith(_JOINABLE):
        raise _misfit(group)
    return rows // joined, round_up(into, aligns)


_JOINABLE = tuple(f".{name}.weight" for pair in _JOINED.items() for name in pair)


def _halves(group: TensorGroup, model: Model) -> int:
    """2 for a gate and an up, which are of one size and are padded as one matrix; else 1."""
    module = group.name.removesuffix(".weight").rpartition(".")[0]
    pair = {f"{module}.{name}.weight" for name in ("gate_proj", "up_proj")}
    return 2 if group.name in pair and pair <= {other.name for other in model.tensors} else 1


def _padded(group: TensorGroup, kernel: Kernel) -> tuple[int, int]:
    """(out, in) of one matrix as the kernel pads it; gates and ups are padded each by themselves."""
    out, into = group.matrix
    if group.role != "expert":
        return out, into
    hidden, intermediate = kernel.pads
    if "down" in group.name:
        return round_up(out, hidden), round_up(into, intermediate)
    halves = 2 if "gate_up" in group.name else 1
    return halves * round_up(out // halves, intermediate), round_up(into, hidden)


def _beside(geometry: Geometry, packed: Iterable[ServedGroup], serving: int, *, online: bool) -> Iterator[Change]:
    if not online and any(s.format.startswith(_SCALED_CACHE) for s in packed):
        attentions = sum(isinstance(layer.mixer, Attention) for layer in geometry.layers)
        yield Change(what="scales of keys and values, a second time", bytes=2 * 4 * attentions)
    absorbed = sum(
        s.group.elements * s.group.count * serving for s in packed if s.group.name.endswith(".kv_b_proj.weight")
    )
    yield Change(what="W_UK_T and W_UV, dequantised beside kv_b_proj", bytes=absorbed)


_SCALED_CACHE = ("fp8-", "modelopt-fp8", "nvfp4", "ct-")
"""Formats whose checkpoints may scale the cache: the copies for the host are made on the GPU (attention.py)."""


def _is_joined(group: TensorGroup, model: Model) -> bool:
    module, _, own = group.name.removesuffix(".weight").rpartition(".")
    return own in _JOINED and any(other.name == f"{module}.{_JOINED[own]}.weight" for other in model.tensors)
