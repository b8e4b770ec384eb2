"""Packing wheels for a machine without a network, with wheels made here; no index is asked."""

import importlib.util
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def offline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("offline", BENCHMARKS / "offline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["offline"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path) -> Callable[[dict[str, tuple[str, ...]]], Callable[[str], Path]]:
    """An index of wheels of version 1.0 by name, with what each needs; a name like big-50 weighs 50 MB."""

    def made(needs: dict[str, tuple[str, ...]]) -> Callable[[str], Path]:
        def fetch(requirement: str) -> Path:
            name = next(name for name in sorted(needs, key=len, reverse=True) if requirement.startswith(name))
            file = tmp_path / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
            lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
            lines += [f"Requires-Dist: {need}" for need in needs[name]]
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(f"{file.stem}.dist-info/METADATA", "\n".join(lines) + "\n\n")
                if name.startswith("big-"):
                    archive.writestr("data", b"\0" * (int(name.partition("-")[2]) * 10**6))
            return file

        return fetch

    return made


def target(offline: ModuleType) -> Any:
    return offline.Target(python="3.12", machine="x86_64")


def test_needs_are_followed_and_what_is_there_is_left_out(offline: ModuleType, index: Any) -> None:
    fetch = index({"a": ("b>=1", "torch", 'c; python_version < "3"', 'd; extra == "more"'), "b": (), "c": (), "d": ()})
    found = offline.lacking(("a",), have={"torch": None}, target=target(offline), fetch=fetch)
    assert [wheel.name for wheel in found] == ["a", "b"]


def test_a_version_that_is_too_old_there_is_packed(offline: ModuleType, index: Any) -> None:
    fetch = index({"rich": ()})
    have = offline.read_have("rich==0.5\nnumpy @ file:///x\n")
    assert have == {"rich": "0.5", "numpy": None}
    assert [w.name for w in offline.lacking(("rich>=1",), have=have, target=target(offline), fetch=fetch)] == ["rich"]
    assert offline.lacking(("rich>=0.4",), have=have, target=target(offline), fetch=fetch) == ()


def test_more_than_60_mb_is_refused_with_the_largest(offline: ModuleType, index: Any) -> None:
    fetch = index({"big-40": (), "big-30": ()})
    with pytest.raises(offline.OfflineError, match=r"70\.0 MB.*big_40.*40\.0 MB"):
        offline.lacking(("big-40", "big-30"), have={}, target=target(offline), fetch=fetch)


def test_the_run_sees_the_wheels_and_the_repository_and_returns_the_exit_code(
    offline: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "x-1.0-py3-none-any.whl").touch()
    calls: list[tuple[list[str], dict[str, str]]] = []

    def call(command: list[str], env: dict[str, str] | None = None) -> int:
        calls.append((command, env or {}))
        return 0 if "pip" in command else 3

    code = offline.run(Path("m.toml"), out=tmp_path, budget_s=100, folder=tmp_path, call=call)
    assert code == 3
    (install, _), (sweep, environment) = calls
    assert install[-1].endswith("x-1.0-py3-none-any.whl")
    site = install[install.index("--target") + 1]
    assert environment["PYTHONPATH"].split(":")[:2] == [site, str(BENCHMARKS.parent)]
    assert sweep[3:7] == ["sweep", "m.toml", "--device", "cuda"]


def test_records_are_archived_even_where_the_sweep_fails(
    offline: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, wheels, archive = tmp_path / "out", tmp_path / "wheels", tmp_path / "records.tar.gz"
    out.mkdir()
    wheels.mkdir()
    monkeypatch.setattr(offline, "_ARCHIVE_STEP_SECONDS", 0.01)
    seen: list[list[str]] = []

    def call(command: list[str], env: dict[str, str] | None = None) -> int:
        assert command[-2:] == ["--timeout-s", "9"]
        for name in ("a", "b"):
            (out / f"{name}.json").write_text(name)
            deadline = time.monotonic() + 10
            while names(archive)[-1:] != [f"{name}.json"] and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(names(archive))
        return 1

    options = ["--timeout-s", "9"]
    code = offline.run(Path("m"), out=out, budget_s=9, folder=wheels, archive=archive, options=options, call=call)
    assert (code, seen) == (1, [["a.json"], ["a.json", "b.json"]])


def names(archive: Path) -> list[str]:
    if not archive.exists():
        return []
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_the_records_name_the_version_that_made_them(offline: ModuleType, tmp_path: Path) -> None:
    offline._say_version(tmp_path)
    (told,) = metadata.distributions(name="ullage", path=[str(tmp_path)])
    assert told.version == tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]["version"]


def test_what_is_missing_is_said(offline: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline.main(["run", "m.toml", "--out", "o", "--dir", str(tmp_path / "none")]) == 1
    assert "offline.py pack" in capsys.readouterr().err
    assert offline.main(["pack", "--dir", str(tmp_path), "--have", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_what_ullage_needs_is_read_from_its_own_metadata(offline: ModuleType) -> None:
    needs = offline.own_requirements(BENCHMARKS.parent / "pyproject.toml")
    assert {"cyclopts", "bitsandbytes", "nvidia-ml-py"} <= {need.partition(">")[0] for need in needs}
