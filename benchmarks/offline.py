"""Run a matrix on a GPU machine without network.

Where there is an index, ``offline.py pack`` downloads the wheels that the machine lacks; carry them there with the
repository. There, ``offline.py run MATRIX --out DIR`` installs them into a temporary folder and sweeps. Needs only
Python and pip on either side.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

LARGEST_BYTES = 60 * 10**6
"""Most that a pack may weigh."""

EXTRA = "profiler"
"""The extra of ullage that measuring needs."""

ASSUMED = ("torch", "transformers", "accelerate", "safetensors", "numpy", "huggingface_hub", "rich")
"""What a GPU machine is taken to have where no ``--have`` says, in a version that meets every need."""

GLIBC_MINOR = 35
"""Newest glibc 2.x that a wheel may ask for: that of Ubuntu 22.04."""


class OfflineError(Exception):
    """What is wrong, for people."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The machine that the wheels are for."""

    python: str
    """3.12"""
    machine: str
    """x86_64 or aarch64, as ``platform.machine()`` says there."""

    @property
    def environment(self) -> dict[str, str]:
        """What markers are evaluated against (packaging.python.org, environment markers)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    @property
    def pip_options(self) -> list[str]:
        """pip matches the tags of a platform exactly, so each is named, the newest first."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(GLIBC_MINOR, 4, -1)]
        tags += [f"manylinux{old}_{self.machine}" for old in ("2014", "2010", "1")]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        return options + [word for tag in tags for word in ("--platform", tag)]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel's file, and what its metadata says."""

    file: Path
    name: str
    version: str
    requires: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.file.stat().st_size


Fetch = Callable[[str], Path]
"""The wheel that meets a requirement (``name>=1,<2``), fetched from an index."""


def read_wheel(file: Path) -> Wheel:
    """Name, version and needs, from the metadata inside.

    Raises:
        OfflineError: no wheel.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inside = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            headers = BytesHeaderParser().parsebytes(archive.read(inside))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise OfflineError(f"{file}: no wheel") from error
    return Wheel(
        file=file,
        name=headers["Name"],
        version=headers["Version"],
        requires=tuple(headers.get_all("Requires-Dist", ())),
    )


def lacking(
    requirements: Iterable[str], *, have: Mapping[str, str | None], target: Target, fetch: Fetch
) -> tuple[Wheel, ...]:
    """The wheels that meet ``requirements``, and those that these need in turn, without what ``have`` meets.

    Args:
        requirements: requirements, as in a project's metadata.
        have: versions by normalised name; None where the version is not known, which meets everything.
        target: the machine.
        fetch: gets a wheel.

    Raises:
        OfflineError: the wheels weigh too much, or two requirements contradict each other.
    """
    chosen: dict[str, Wheel] = {}
    asked: dict[str, Any] = {}
    looked_at: set[tuple[str, str]] = set()
    queue = [(parsed, "") for text in requirements for parsed in _applying(text, target, ("",))]
    while queue:
        requirement, by = queue.pop(0)
        name = _normal(requirement.name)
        if name in have and _meets(have[name], requirement.specifier):
            continue
        asked[name] = asked[name] & requirement.specifier if name in asked else requirement.specifier
        if name not in chosen or not _meets(chosen[name].version, asked[name]):
            chosen[name] = _fetched(f"{requirement.name}{asked[name]}", by, fetch)
            _refuse_heavy(chosen.values())
        wheel = chosen[name]
        for extra in ("", *sorted(requirement.extras)):
            if (wheel.file.name, extra) not in looked_at:
                looked_at.add((wheel.file.name, extra))
                queue += [(need, name) for text in wheel.requires for need in _applying(text, target, (extra,))]
    return tuple(chosen.values())


def _fetched(requirement: str, by: str, fetch: Fetch) -> Wheel:
    try:
        return read_wheel(fetch(requirement))
    except OfflineError as error:
        raise OfflineError(f"{requirement}{f' (for {by})' if by else ''}: {error}") from error


def _refuse_heavy(wheels: Iterable[Wheel]) -> None:
    heaviest = sorted(wheels, key=lambda wheel: -wheel.bytes)
    weight = sum(wheel.bytes for wheel in heaviest)
    if weight > LARGEST_BYTES:
        raise OfflineError(
            f"the wheels weigh {weight / 1e6:.1f} MB, more than {LARGEST_BYTES / 1e6:.0f} MB; the largest is "
            f"{heaviest[0].file.name} with {heaviest[0].bytes / 1e6:.1f} MB: "
            "if the machine has it, name it in the file of --have"
        )


def _packaging(module: str) -> Any:
    """`packaging`, as pip brings it."""
    from importlib import import_module

    return import_module(f"pip._vendor.packaging.{module}")


def _normal(name: str) -> str:
    return str(_packaging("utils").canonicalize_name(name))


def _applying(text: str, target: Target, extras: Sequence[str]) -> list[Any]:
    """The requirement, if its marker holds on the machine for one of the extras."""
    requirement = _packaging("requirements").Requirement(text)
    environments = [{**target.environment, "extra": extra} for extra in extras]
    holds = requirement.marker is None and "" in extras
    return [requirement] if holds or _any_holds(requirement.marker, environments) else []


def _any_holds(marker: Any, environments: Iterable[dict[str, str]]) -> bool:
    return marker is not None and any(marker.evaluate(environment) for environment in environments)


def _meets(version: str | None, specifier: Any) -> bool:
    return version is None or bool(specifier.contains(version, prereleases=True))


def own_requirements(pyproject: Path) -> tuple[str, ...]:
    """What ullage needs at run time, and what measuring needs beside it."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return (*project["dependencies"], *project["optional-dependencies"][EXTRA])


def read_have(text: str) -> dict[str, str | None]:
    """The lines of ``pip list --format=freeze``: ``name==version``, or ``name @ address`` of an unknown version."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "-"))]
    if not lines:
        raise OfflineError("the list of what the machine has is empty; write it with pip list --format=freeze")
    have: dict[str, str | None] = {}
    for line in lines:
        name, found, version = line.partition("==")
        have[_normal(name.partition("@")[0].strip())] = version.strip() if found else None
    return have


def pack(folder: Path, *, have_file: Path | None, target: Target) -> None:
    """Download into ``folder`` the wheels that the machine lacks, and say what they weigh."""
    if list(folder.glob("*.whl")):
        raise OfflineError(f"{folder} holds wheels already, and all of a folder are installed; remove it first")
    assumed: dict[str, str | None] = dict.fromkeys(map(_normal, ASSUMED))
    have = assumed if have_file is None else read_have(_text(have_file))
    with tempfile.TemporaryDirectory() as scratch:
        wheels = lacking(
            own_requirements(REPOSITORY / "pyproject.toml"),
            have=have,
            target=target,
            fetch=lambda requirement: _download(requirement, target, Path(scratch)),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            (folder / wheel.file.name).write_bytes(wheel.file.read_bytes())
            print(f"{wheel.bytes / 1e6:6.2f} MB  {wheel.file.name}")
        print(f"{sum(wheel.bytes for wheel in wheels) / 1e6:6.2f} MB  {len(wheels)} wheels in {folder}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OfflineError(f"{file}: cannot be read: {error}") from error


def _download(requirement: str, target: Target, scratch: Path) -> Path:
    """One wheel, by pip, into a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    ended = subprocess.run([*command, *target.pip_options, requirement], capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if ended.returncode or len(found) != 1:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
        raise OfflineError(" ".join(errors[-1:]) or f"pip download ended with {ended.returncode}")
    return found[0]


def run(
    matrix: Path,
    *,
    out: Path,
    budget_s: float,
    folder: Path,
    archive: Path | None = None,
    options: Sequence[str] = (),
    call: Callable[..., int] = subprocess.call,
) -> int:
    """Install the wheels of ``folder`` for this run alone, and sweep ``matrix``; the exit code of the sweep.

    The seconds that installing takes are part of the budget. ``options`` are further ones of ``ullage sweep``.
    """
    if not folder.is_dir():
        raise OfflineError(f"{folder} is not there; make it with offline.py pack and carry it here")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ullage-site-") as site:
        wheels = sorted(str(wheel) for wheel in folder.glob("*.whl"))
        if wheels and call([*_INSTALL, "--target", site, *wheels]):
            raise OfflineError(f"pip could not install the wheels of {folder}")
        _say_version(Path(site))
        paths = [site, str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        left = budget_s - (time.monotonic() - began)
        if left <= 0:
            raise OfflineError(f"installing took all of the {budget_s:.0f} s")
        swept = [str(matrix), "--device", "cuda", "--output", str(out), "--budget-s", f"{left:.0f}", *options]
        with _archiving(out, archive):
            return call(
                [sys.executable, "-c", "from analytic.cli import main; main()", "sweep", *swept],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )


def _say_version(site: Path) -> None:
    """What an installed ullage would say of itself, so that records name the version that made them."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    told = site / f"ullage-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ullage\nVersion: {version}\n")


_ARCHIVE_STEP_SECONDS = 2.0


@contextmanager
def _archiving(folder: Path, archive: Path | None) -> Iterator[None]:
    """Keep ``archive`` (.tar.gz) up to date with the records of ``folder``, so that a kill loses at most the last."""
    if archive is None:
        yield
        return
    stop = threading.Event()
    keeper = threading.Thread(target=_keep_archive, args=(folder, archive, stop), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()


def _keep_archive(folder: Path, archive: Path, stop: threading.Event) -> None:
    packed: list[tuple[str, int]] = []
    is_last = False
    while not is_last:
        is_last = stop.wait(_ARCHIVE_STEP_SECONDS)
        found = sorted((file.name, file.stat().st_mtime_ns) for file in folder.glob("*.json"))
        if found != packed:
            packed = found
            partial = archive.with_name(f"{archive.name}.part")
            with tarfile.open(partial, "w:gz") as tar:
                for name, _ in found:
                    tar.add(folder / name, arcname=name)
            partial.replace(archive)


_INSTALL = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="download what the machine lacks")
    packing.add_argument("--python", default="3.12", help="Python there (default: %(default)s)")
    packing.add_argument("--platform", default="x86_64", help="processor there (default: %(default)s)")
    packing.add_argument("--have", type=Path, help="its `pip list --format=freeze`")
    running = commands.add_parser("run", help="sweep a matrix there")
    running.add_argument("matrix", type=Path)
    running.add_argument("--out", type=Path, required=True, help="folder of the records")
    running.add_argument("--budget-s", type=float, default=540, help="seconds in all (default: %(default)s)")
    running.add_argument("--archive", type=Path, help="a .tar.gz of the records, kept up to date")
    running.add_argument("options", nargs="*", help="after --: further options of ullage sweep, such as --allow-busy")
    for each in (packing, running):
        each.add_argument("--dir", type=Path, default=Path(".wheels"), help="folder of wheels (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """One subcommand; a known error is a line on stderr."""
    told = _arguments(arguments)
    try:
        if told.command == "run":
            return run(
                told.matrix,
                out=told.out,
                budget_s=told.budget_s,
                folder=told.dir,
                archive=told.archive,
                options=told.options,
            )
        pack(told.dir, have_file=told.have, target=Target(python=told.python, machine=told.platform))
    except OfflineError as error:
        print(f"offline: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
