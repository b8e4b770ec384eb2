"""A model ready to be estimated: its config and its tensor inventory, wherever they came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from analytic.models import inventory
from analytic.models.config_reader import read_geometry
from analytic.models.geometry import Geometry, MixtureOfExperts
from analytic.models.inventory import TensorGroup
from analytic.models.packed import quantization_of

Source = Literal["catalog", "local", "hub", "gguf", "meta"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model's identity, config and tensors."""

    id: str
    """Hub id, or the path it was read from."""
    source: Source
    revision: str | None = None
    """Commit of a Hub model; None otherwise."""
    architecture: str
    """Class name, as transformers has it."""
    dtype: str | None
    """The dtype that the publisher names (`dtype`, formerly `torch_dtype`); None if none is named."""
    config: Mapping[str, object]
    """The published config.json."""
    tensors: tuple[TensorGroup, ...]
    published_parameters: int | None = None
    """Parameters where packed tensors hide them; None to count the tensors."""
    stored_bytes: int | None = None
    """Bytes of all tensors in the checkpoint's files, those included that are not served; None without files."""
    notes: tuple[str, ...] = ()
    """What the reader should know about how this model was read."""

    @cached_property
    def parameters(self) -> int:
        """Parameters and persistent buffers that are served, each counted once."""
        if self.published_parameters is not None:
            return self.published_parameters
        return inventory.parameters(self.tensors)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: of the routed experts only those chosen."""
        routers = {
            layer.feed_forward for layer in self.geometry.layers if isinstance(layer.feed_forward, MixtureOfExperts)
        }
        if not routers:
            return self.parameters
        idle = max(1 - r.experts_per_token / r.experts for r in routers)
        routed = sum(g.elements * g.count for g in self.tensors if g.role == "expert")
        return self.parameters - round(routed * idle)

    @cached_property
    def geometry(self) -> Geometry:
        """What caches and activations follow from.

        Raises:
            UllageError: the config lacks a size, or its model type is not known.
        """
        return read_geometry(self.config)

    @cached_property
    def native_format(self) -> str | None:
        """``quant_method`` of an already quantised checkpoint, or None."""
        native = quantization_of(self.config)
        return None if native is None else str(native["quant_method"])

    @cached_property
    def _decoder_prefix(self) -> str:
        """What precedes the layer index in the names of the largest stack of layers (a vision tower is another)."""
        sizes: dict[str, int] = {}
        for group in self.tensors:
            if group.layers is not None:
                prefix = group.name.partition("{}")[0]
                sizes[prefix] = sizes.get(prefix, 0) + group.elements * group.count
        return max(sizes, key=sizes.__getitem__, default="")

    def is_decoder(self, group: TensorGroup) -> bool:
        """Whether ``group`` belongs to the decoder's layers, under their own names or GGUF's."""
        return group.layers is not None and group.name.startswith((self._decoder_prefix, "blk."))

    def is_after_layers(self, group: TensorGroup) -> bool:
        """Whether ``group`` follows the decoder's layers: the output head, or the final norm."""
        return group.role == "output" or (group.role == "norm" and group.layers is None)
