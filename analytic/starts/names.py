"""Which model and which GPU a log tells of, by the names that it has for them."""

import re
from pathlib import PurePosixPath

from analytic.errors import UllageError
from analytic.hardware import Gpu, find_gpu
from analytic.logs import EngineRun
from analytic.logs.reading import SHOWN
from analytic.models import catalog
from analytic.models.model import Model
from analytic.models.resolve import resolve

_HUB_CACHE = re.compile(r"models--(?P<org>[\w.-]{1,96}?)--(?P<name>[\w.-]{1,96})(?:/|$)")
"""A folder of the Hub's cache, which keeps the id (huggingface_hub, repo_folder_name)."""
_DOT = "___"
"""What ModelScope's cache writes for a dot."""


def model_of(run: EngineRun, given: str | None, source: str) -> tuple[Model, tuple[str, ...]]:
    """The model that was loaded, and what was assumed to find it.

    Raises:
        UllageError: the log names none, or one that is not known by that name.
    """
    if given is not None:
        said = () if run.model in (None, given) else (f"the log calls the model {run.model}: estimated is {given}",)
        return resolve(given), said
    if run.model is None:
        raise UllageError(f"{source}: the log does not say which model was loaded", hint="add --model NAME")
    name = run.model
    if cached := _HUB_CACHE.search(name):
        name = f"{cached['org']}/{cached['name']}"
    try:
        return resolve(name), () if name == run.model else (
            f"the model is taken by its folder of the Hub's cache: {name}",
        )
    except UllageError as unknown:
        if found := _by_last_part(name):
            return catalog.load(found), (
                f"the log names only a folder, {run.model}: taken for {found} of the catalogue",
            )
        hint = "say which model it is: --model NAME, and --quantization where it is a quantised copy"
        raise UllageError(f"{source}: {unknown.message[:SHOWN]}", hint=hint) from unknown


def _by_last_part(name: str) -> str | None:
    """The one catalogue model whose name, or the last part of whose id, a folder has; None of several, or an id."""
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    last = PurePosixPath(name).name.replace(_DOT, ".").lower()
    if is_id or not last:
        return None
    found = {
        entry.name
        for entry in catalog.entries()
        for known in (entry.name, entry.id, *entry.aliases)
        if known.rpartition("/")[2].lower() == last
    }
    return found.pop() if len(found) == 1 else None


def gpu_of(run: EngineRun, given: Gpu | None) -> tuple[Gpu | None, tuple[str, ...]]:
    """The GPU that was given, or that a line names the kernels' settings of."""
    printed = run.settings.get("gpu")
    if given is not None or not isinstance(printed, str):
        return given, ()
    try:
        found = find_gpu(printed.replace("_", " "))
    except UllageError:
        return None, (f"the log names the GPU {printed}, which is not known: name it with --gpu",)
    return found, (f"the GPU is the one that the log names: {found.name}",)
