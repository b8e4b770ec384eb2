"""Records the options of ``vllm serve``, and what its parser makes of command lines, from the real parser.

Into analytic/engines/vllm/options.json goes every option: the strings that set it (``off``: those that set it to
False), what kind of value it takes, how many, and the choices. Into tests/data/serve_lines.json go random command
lines made from that table, each with the values that the parser gave to the options in it, or with its refusal. The
values of options that are objects of vLLM's are those of the JSON that it accepted.

Run by hand, in a virtual environment with vllm; no device is needed, none is asked for:

    VENV/bin/python tests/record_vllm_options.py

Recorded with vLLM 0.33.0 (its wheel for CUDA 13.0), Python 3.12.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")

ROOT = Path(__file__).parent.parent
OPTIONS = ROOT / "analytic" / "engines" / "options.json"
LINES = Path(__file__).parent / "data" / "serve_lines.json"

COUNT = 300
SEED = 20_261_129
KINDS = {
    "int": "int",
    "float": "float",
    "str": "str",
    "human_readable_int": "count",
    "human_readable_int_or_auto": "length",
    "parse_dataclass": "object",
    "union_dict_and_str": "object or str",
    "loads": "json",
    "parse_reasoning_parser": "str",
    "<lambda>": "str",
    "NoneType": "str",
}


def real_parser() -> argparse.ArgumentParser:
    """The parser of ``vllm``, whose platform is a CUDA device by name alone."""
    import vllm.platforms
    from vllm.platforms.interface import Platform, PlatformEnum

    class Named(Platform):
        _enum = PlatformEnum.CUDA
        device_name = "cuda"
        device_type = "cuda"

    vllm.platforms._current_platform = Named()
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    parser.serve = serve
    return parser


def kind_of(action: argparse.Action) -> str:
    """One of KINDS, after ``none or`` where ``None`` and the empty string are no value; a flag is one by its class."""
    is_flag = isinstance(action, argparse._StoreTrueAction | argparse._HelpAction)
    if is_flag or hasattr(action, "negative_option_strings"):
        return "flag"
    return _kind(action.type)


def _kind(converter: Callable[[str], object] | None) -> str:
    name = type(None).__name__ if converter is None else converter.__name__
    if name in ("_optional_type", "_parse_type"):
        (inner,) = (cell.cell_contents for cell in converter.__closure__)
        return ("none or " if name == "_optional_type" else "") + _kind(inner)
    return KINDS[name]


def table(serve: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """A row for each option; hidden strings are among the parser's own."""
    rows: dict[str, dict[str, Any]] = {}
    for name, action in serve._option_string_actions.items():
        row = rows.setdefault(action.dest, {"names": [], "kind": kind_of(action)})
        negative = name in getattr(action, "negative_option_strings", ())
        row.setdefault("off", []).append(name) if negative else row["names"].append(name)
        if action.nargs in ("+", "?"):
            row["takes"] = action.nargs
        if isinstance(action, argparse._AppendAction):
            row["repeats"] = True
        if action.choices:
            row["choices"] = list(action.choices)
    return rows


def given_json(converter: Callable[[str], object]) -> Callable[[str], object]:
    """The converter of an object, which gives the JSON that it accepted."""
    from vllm.engine.arg_utils import _expand_json_human_readable_numbers

    def convert(text: str) -> object:
        converter(text)
        return json.loads(_expand_json_human_readable_numbers(text))

    return convert


OBJECTS = (
    ("--compilation-config", '{"mode": 3, "cudagraph_capture_sizes": [1, 2, 4]}'),
    ("-cc", '{"max_cudagraph_capture_size": 1k}'),
    ("--compilation-config.cudagraph_mode", "FULL"),
    ("-cc.cudagraph_capture_sizes+", "1,2"),
    ("-cc.pass_config.fuse_norm_quant", "true"),
    ("--hf-overrides", '{"num_hidden_layers": 2}'),
    ("--hf-overrides.rope_parameters.factor", "2.5"),
    ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'),
    ("--speculative_config.num_speculative_tokens", "5"),
    ("--limit-mm-per-prompt", '{"image": 2}'),
    ("--limit-mm-per-prompt.video", "0"),
    ("--kv-transfer-config", '{"kv_connector": "X", "kv_role": "kv_both"}'),
)
"""With values that vLLM takes."""
WORDS = {
    "int": ("0", "1", "2", "8", "64", "-1"),
    "float": ("0.5", "0.92", "1"),
    "str": ("auto", "fp8", "a-b_c"),
    "count": ("2048", "8k", "8K", "1.5k", "2M"),
    "length": ("4096", "32k", "32K", "auto", "-1", "AUTO", "25.6k"),
    "json": ('{"a": 1}', "[1, 2]"),
    "object or str": ('{"a": {"b": 2}}', "text"),
}
WRONG = {
    "int": ("x", "2.5", "4k"),
    "float": ("half", "90%"),
    "count": ("1.5K", "many", "2G5"),
    "length": ("25.6K", "long"),
    "json": ("{a}",),
    "object or str": ("{a}",),
}
WRONG_SHARE = 0.04


def random_line(chance: random.Random, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Words after ``vllm serve``: a model, and one to eight options, some by another spelling, some twice."""
    unlike = ("help", "config", "model", "lora_modules")
    names = [name for name, row in rows.items() if name not in unlike and not row["kind"].endswith("object")]
    memory = [name for name in names if re.search(r"size|max_|dtype|lora|enforce|quant|gpu_mem|block|cach|cuda", name)]
    words: list[str] = []
    for _ in range(chance.randint(1, 8)):
        if chance.random() < 0.15:
            words += chance.choice(OBJECTS)
            continue
        words += random_option(chance, rows[chance.choice(memory if chance.random() < 0.6 else names)])
    model = [chance.choice(("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", "./model"))]
    if chance.random() < 0.1:
        return [*words[:2], "--model", *model, *words[2:]]
    return model + words if chance.random() < 0.8 else words + model


def random_option(chance: random.Random, row: dict[str, Any]) -> list[str]:
    """An option with its value: joined by a sign, with underscores, or shortened, by chance."""
    name = chance.choice(row["names"] + row.get("off", []))
    if name.startswith("--") and chance.random() < 0.2:
        name = "--" + name[2:].replace("-", "_")
    elif name.startswith("--") and chance.random() < 0.1:
        name = name[: max(6, len(name) - chance.randint(1, 6))]
    kind = row["kind"].removeprefix("none or ")
    if kind == "flag":
        return [name]
    values = [str(choice) for choice in row.get("choices", [])] or list(WORDS[kind])
    value = chance.choice(["None", *values] if row["kind"].startswith("none") else values)
    if chance.random() < WRONG_SHARE:
        value = chance.choice(("other",) if row.get("choices") else WRONG.get(kind, ("other",)))
    if row.get("takes") == "+":
        return [name, value, chance.choice(values)]
    if row.get("takes") == "?" and chance.random() < 0.5:
        return [name]
    return [f"{name}={value}"] if chance.random() < 0.25 else [name, value]


def outcome(parser: argparse.ArgumentParser, words: list[str], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The model (None: no word is left for it) and the value of every option that is given, or the refusal."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            space = vars(parser.parse_args(["serve", *words]))
    except SystemExit:
        said = errors.getvalue().strip().splitlines()[-1]
        return {"refused": said.partition("error: ")[2][:160]}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"[:160]}
    given = {name: space[name] for name in rows if name in space}
    return {"model": given.pop("model", None) or space.get("model_tag"), "values": given}


def main() -> None:
    """Write both files."""
    import vllm

    parser = real_parser()
    rows = table(parser.serve)
    body = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    OPTIONS.write_text(f'{{"vllm": "{vllm.__version__}", "options": {{\n{body}\n}}}}\n')
    for action in parser.serve._actions:
        action.default = argparse.SUPPRESS
        if kind_of(action) in ("object", "none or object"):
            action.type = given_json(action.type)
    chance = random.Random(SEED)
    lines = []
    while len(lines) < COUNT:
        words = random_line(chance, rows)
        lines.append({"line": f"vllm serve {shlex.join(words)}", **outcome(parser, words, rows)})
    text = ",\n".join(json.dumps(line) for line in lines)
    LINES.write_text(f'{{"vllm": "{vllm.__version__}", "lines": [\n{text}\n]}}\n')
    print(len(rows), "options;", sum("refused" in line for line in lines), "lines refused", file=sys.stderr)


if __name__ == "__main__":
    main()
