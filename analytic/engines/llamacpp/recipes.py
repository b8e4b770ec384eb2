"""What tells llama.cpp's graph of one architecture from another's, beside what the file's tensors say.

A row each, after ``src/models/*.cpp`` of llama.cpp 0.5; what is not here has not been compared with the library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What tells one architecture's graph from another's."""

    flow: str = "sequential"
    """Or ``parallel``: attention and feed-forward read the same stream; ``single``: a layer is one mixer or one
    feed-forward; ``beside``: a recurrent mixer beside every layer's attention."""
    norm: str = "rms_norm"
    """Or ``norm``, which does not write over its source."""
    act: str = "swiglu"
    """Of feed-forwards; ``halves`` is gate and up in one matrix."""
    expert_act: str = "swiglu"
    gating: str = "softmax"
    """Of a router without a correction; one with has ``sigmoid``."""
    normed: bool = True
    """Whether the chosen experts' weights are divided by their sum."""
    normed_by_file: bool = False
    """Whether the file may say otherwise."""
    ffn_norm: str = "ffn_norm"
    """Which norm comes before the feed-forward."""
    whole_heads_norm: bool = False
    """Queries and keys are normed before they are cut into heads."""
    gated_attention: bool = False
    """Queries come with a gate of the attention's result."""
    scales_query: bool = False
    """Queries are scaled, not their scores."""
    scales_embedding: bool = False
    scales_residual: bool = False
    scales_logits: bool = False
    softcap: bool = False
    """Logits go through a tanh."""
    score_softcap: bool = False
    """Attention's scores go through a tanh."""
    rows: str = "last layer"
    """Where the wanted tokens are taken from the rest: in the last layer; or ``before norm`` or ``after norm`` at the
    end, where the rows of all tokens are kept for a prediction layer."""
    position_axes: int = 1
    """Numbers of a token's position."""
    repeats_keys: bool = False
    """A delta net's keys are repeated up to the number of its value heads."""
    weigh_first: bool = False
    """Experts' weights are applied before them."""
    summed: str = "fed attended stream"
    """In what order a parallel layer adds up."""
    feeds_attended_input: bool = False
    """A feed-forward without a norm of its own reads what attention read (StableLM 2 12B)."""
    stream_first: tuple[bool, bool] = (False, False)
    """Whether the stream comes first where a mixer's, and a feed-forward's, results are added to it: sums are written
    over their first operand."""


_GEMMA = Recipe(act="geglu", scales_query=True, scales_embedding=True)
_CLASSIC = Recipe(norm="norm", act="gelu")
_DELTA = Recipe(gated_attention=True, ffn_norm="post_attention_norm", rows="after norm")
_GRANITE = Recipe(scales_embedding=True, scales_residual=True, scales_logits=True)
_COMMAND = Recipe(norm="norm", flow="parallel", scales_logits=True, summed="fed stream attended")
_POST_NORM = Recipe(ffn_norm="post_attention_norm")
_WHOLE = Recipe(whole_heads_norm=True)
_SINGLE = Recipe(flow="single")
_NEMOTRON = replace(_SINGLE, act="relu_sqr", expert_act="relu_sqr", normed_by_file=True, rows="after norm")

RECIPES: Mapping[str, Recipe] = {
    **{name: Recipe() for name in ("llama", "qwen2", "qwen3", "qwen3moe", "smollm3")},
    "phi3": Recipe(act="halves", scales_query=True, stream_first=(False, True)),
    "lfm2": Recipe(stream_first=(True, True)),
    "chatglm": Recipe(act="halves"),
    "glm4": Recipe(act="halves"),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, softcap=True, score_softcap=True),
    "gemma3": _GEMMA,
    "gpt-oss": replace(_POST_NORM, expert_act="swiglu_oai", gating="softmax_weight", normed=False, rows="before norm"),
    "deepseek2": Recipe(normed=False, normed_by_file=True),
    "glm4moe": replace(_POST_NORM, normed_by_file=True),
    "seed_oss": _POST_NORM,
    "minimax-m2": _WHOLE,
    "olmo2": _WHOLE,
    "llama4": Recipe(gating="sigmoid", normed=False, weigh_first=True),
    "granite": _GRANITE,
    "granitehybrid": _GRANITE,
    "gpt2": _CLASSIC,
    "bloom": _CLASSIC,
    "starcoder2": _CLASSIC,
    "stablelm": Recipe(norm="norm", feeds_attended_input=True),
    "falcon": replace(_CLASSIC, flow="parallel"),
    "phi2": replace(_CLASSIC, flow="parallel", scales_query=True, summed="attended fed stream"),
    "gptneox": replace(_CLASSIC, flow="parallel", summed="fed stream attended"),
    "command-r": _COMMAND,
    "cohere2": _COMMAND,
    "mamba": _SINGLE,
    "mamba2": _SINGLE,
    "nemotron_h": _NEMOTRON,
    "nemotron_h_moe": _NEMOTRON,
    "falcon-h1": Recipe(flow="beside"),
    "qwen3next": replace(_DELTA, repeats_keys=True),
    "qwen35": replace(_DELTA, position_axes=4),
    "qwen35moe": replace(_DELTA, position_axes=4),
}
"""By GGUF's name of the architecture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What a config says of the experts beside their number."""

    groups: int = 1
    used_groups: int = 1
    scaled: bool = False
    normed: bool | None = None
    """Whether the chosen experts' weights are divided by their sum; None where it does not say."""
