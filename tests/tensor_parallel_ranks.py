"""Ranks of tensor parallelism on the CPU: each loads every checkpoint of a folder and generates a few tokens.

``python tests/tensor_parallel_ranks.py FOLDER`` forks two ranks and four, as torch and transformers take long to
import. They load what ``FOLDER/load-<size>.json`` lists, and write ``FOLDER/ranks-<size>-<rank>.json``: each tensor's
shape and bytes on that rank, the bytes of the cache, how wide what goes into each last projection is, or what failed.
"""

import json
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

SIZES = (2, 4)
PROMPT_TOKENS = 11
OUTPUT_TOKENS = 3
SEQUENCES = 2
LAST = ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")


def join(folder: Path, size: int, rank: int) -> None:
    """Become a rank, and say what it holds of every checkpoint."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'store-{size}'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    names = json.loads((folder / f"load-{size}.json").read_bytes())
    plan = DistributedConfig(tp_plan="auto")
    held = {name: of_one(folder / name, plan) for name in names}
    (folder / f"ranks-{size}-{rank}.json").write_text(json.dumps(held))
    torch.distributed.destroy_process_group()


def of_one(path: Path, plan: DistributedConfig | None) -> dict[str, Any]:
    """One checkpoint. Stored in float32, so that casting gives each rank's part a storage of its own."""
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, distributed_config=plan)
        named = {name: local(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        tensors = {name: [list(t.shape), t.untyped_storage().nbytes()] for name, t in named.items()}
        widths = watch(model)
        prompt = torch.arange(SEQUENCES * PROMPT_TOKENS).view(SEQUENCES, -1) + 3
        options = {"max_new_tokens": OUTPUT_TOKENS, "min_new_tokens": OUTPUT_TOKENS, "do_sample": False}
        result = model.generate(prompt, return_dict_in_generate=True, **options)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {"tensors": tensors, "state_bytes": stored_bytes(result.past_key_values), "widths": widths}


def watch(model: torch.nn.Module) -> dict[str, int]:
    """The width of what goes into the last projection of each attention and feed-forward, as the model runs."""
    widths: dict[str, int] = {}

    def note(name: str, entering: torch.Tensor) -> None:
        widths[name] = local(entering).shape[-1]

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(LAST):
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
    return widths


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def stored_bytes(cache: Any) -> int:
    """Bytes of the distinct storages that a cache holds, whatever the attribute."""
    held = [list(vars(layer).values()) for layer in cache.layers]
    return sum(dict(storages([held, getattr(cache, "linear_cache", None)])).values())


def storages(value: object) -> Iterator[tuple[int, int]]:
    """Address and bytes of all tensors in nested values."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        yield from storages(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from storages(item)


def main(folder: Path) -> int:
    """Fork all ranks, and wait for them: 0 if none failed."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    of_one(folder / json.loads((folder / f"load-{SIZES[0]}.json").read_bytes())[0], plan=None)  # imports for all
    children = []
    for size in SIZES:
        for rank in range(size):
            child = os.fork()
            if child == 0:
                join(folder, size, rank)
                os._exit(0)
            children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
