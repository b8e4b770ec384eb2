"""Packed weights: how a checkpoint format holds one matrix as several tensors, and which matrices it takes.

A format's file names its `Method`: how a ``quantization_config`` is read (`Rules`), and `Preset`s for models that are
not quantised yet. A `Scheme` answers with `Part`s, the tensors of one matrix: what is read from a checkpoint is held
against them, what is predicted is made of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

from analytic.errors import UllageError
from analytic.formats.dtypes import DTYPE_BITS

FLOATS = ("BF16", "F16", "F32")
"""Dtypes of scales: the first of a part's dtypes is what is predicted."""

_ANY = (4096, 4096)
"""A matrix that every group divides."""


class Held(NamedTuple):
    """One tensor of a checkpoint."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the tensors that hold a matrix."""

    suffix: str
    """What follows the matrix's name; ``""`` where the packed tensor keeps it."""
    dtypes: tuple[str, ...]
    """Dtypes (of safetensors) that it may have; the first is what quantisers write."""
    shape: tuple[int, ...]
    presence: Literal["always", "usual", "rare"] = "always"
    """``usual`` and ``rare`` parts may be missing; rare ones are not predicted."""
    cast: bool = False
    """Whether transformers holds it in the first dtype, whichever the file has."""

    @property
    def bytes(self) -> int:
        """Bytes in the first dtype."""
        return prod(self.shape) * DTYPE_BITS[self.dtypes[0]] // 8


class Scheme(ABC):
    """How one matrix is packed."""

    __slots__ = ()

    marker: ClassVar[str]
    """Suffix of the packed tensor."""
    packed_dtypes: ClassVar[tuple[str, ...]]
    """Dtypes of the packed tensor; in any other it is a plain weight."""
    packed_rank: ClassVar[int] = 2
    """Dimensions that the packed tensor has at least."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other suffixes that are in use for a part's."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it: ``gptq-int4-g128``."""

    @property
    @abstractmethod
    def weight_bits(self) -> int:
        """Bits of one packed element."""

    @abstractmethod
    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(…, rows, columns) of the matrix behind tensors that are ``held``, by suffix; the marker is among them."""

    @abstractmethod
    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensors that hold a matrix of (…, rows, columns)."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Every suffix that a part can have."""
        return (*(part.suffix for part in self.parts(_ANY)), *self.aliases)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Which scheme a checkpoint's config gives to which module."""

    default: Scheme | None
    overrides: tuple[tuple[Callable[[str], bool], Scheme | None], ...] = ()
    """The first that takes a module's name wins; None leaves it unpacked."""
    strict: bool = True
    """Whether a module that the rules leave out must not be packed."""

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that occurs."""
        found = (self.default, *(scheme for _, scheme in self.overrides))
        return tuple(dict.fromkeys(scheme for scheme in found if scheme is not None))

    def scheme(self, module: str) -> Scheme | None:
        """The scheme of ``module``, or None."""
        for takes, scheme in self.overrides:  # asked 100,000 times: a generator takes twice as long
            if takes(module):
                return scheme
        return self.default


LINEAR, EXPERT, EMBEDDING = "linear", "expert", "embedding"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What ``--quantization`` makes of a model that is not quantised."""

    name: str
    scheme: Scheme
    aliases: tuple[str, ...] = ()
    """Other names that it goes by."""
    takes: frozenset[str] = frozenset({LINEAR, EXPERT})
    """Kinds of matrices that it packs: linear layers, experts, and embeddings with the output head."""
    beforehand: bool = True
    """Whether a tool makes a checkpoint of it: the decoder's layers only, each expert's gate and up by themselves. Else
    transformers makes it while it loads: every linear layer but the output head, experts as it stacks them."""
    mixture: str = ""
    """The mixture of llama.cpp's that it is: ``scheme`` is then that of most tensors only."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What transformers makes of packed matrices."""

    decompresses: bool = False
    """Whether the first forward pass replaces each by one in the serving dtype."""
    keeps: tuple[str, ...] = ()
    """Suffixes that stay beside it then."""
    widens: tuple[str, ...] = ()
    """Those of them that become the serving dtype, if they are of a byte an element."""
    note: str = ""
    """What the reader should know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A family of formats, by the ``quant_method`` of its configs."""

    names: tuple[str, ...]
    """Values of ``quant_method``."""
    read: Callable[[Mapping[str, Any]], Rules]
    """From a ``quantization_config``."""
    presets: tuple[Preset, ...] = ()
    transformers: Serving = Serving()
    """What transformers makes of it."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability below which transformers dequantises it while it loads; None where it never does."""
    dequantizes: bool = False
    """Whether transformers can serve it dequantised (``--quantization none``)."""
    beside: str = r"(?!)"
    """Regular expression of names that stand beside packed matrices without being part of one (activation scales)."""
    dropped: str | None = None
    """Regular expression of names that no engine keeps (metadata that loading reads); None where it keeps all."""


def ceil(count: int, group: int) -> int:
    """``count / group``, rounded up."""
    return -(-count // group)


def divided(what: str, count: int, by: int, scheme: str) -> int:
    """``count / by``, which must be whole.

    Raises:
        UllageError: it is not.
    """
    if count % by:
        raise UllageError(
            f"{scheme}: {what} {count} is no multiple of {by}", hint="choose a format with other groups, or none"
        )
    return count // by
