"""A case: what is to be measured, before any device has seen it."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal

from analytic.errors import UsageError
from analytic.request import Request

WEIGHTS = ("auto", "sparse", "real")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model and a request. Equal cases have equal ids, on every device."""

    model: str
    """A directory, config.json, catalogue name or Hub id."""
    request: Request
    revision: str | None = None
    twin_layers: int | None = None
    """Layers to keep of the model; None is all."""
    weights: Literal["auto", "sparse", "real"] = "auto"
    """Whether to load the values or only the shapes; auto loads values where they lie on this machine."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.twin_layers is not None and self.twin_layers < 1:
            raise UsageError(f"--twin-layers: {self.twin_layers} must be at least 1")
        if self.weights not in WEIGHTS:
            raise UsageError(f"--weights: {self.weights!r} is not known", hint=f"one of {', '.join(WEIGHTS)}")

    @property
    def id(self) -> str:
        """A file name for people, and eight digits that tell cases apart."""
        request = self.request
        told = asdict(self)
        if request.cache_implementation == "dynamic":  # as cases were called before there was another
            del told["request"]["cache_implementation"]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        parts = [
            re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")[-60:],
            f"{self.twin_layers}l" if self.twin_layers else "",
            request.weight_format or "",
            request.dtype,
            request.attention,
            f"b{request.batch_size}",
            f"p{request.prompt_tokens}",
            f"o{request.output_tokens}",
            "padded" if request.padded else "",
            "static" if request.cache_implementation == "static" else "",
        ]
        return "_".join([*filter(None, parts), digest[:8]])
