import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.packaging

ROOT: Final = Path(__file__).parents[2]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: Final[list[str]] = PYPROJECT["tool"]["setuptools"]["packages"]
TWINS: Final = ("adapters", "examples", "patterns")


def packages_in_the_folders() -> set[str]:
    tops = {"brokerkit": ROOT / "brokerkit", **{f"brokerkit.{twin}": ROOT / twin for twin in TWINS}}
    return {
        ".".join([name, *path.parent.relative_to(top).parts])
        for name, top in tops.items()
        for path in top.rglob("__init__.py")
        if name != "brokerkit" or path.resolve() == path
    }


def copy_of_the_tree(to: Path, *, symlinks: bool = True) -> Path:
    """Copy what a build reads. Without symlinks they become text files, as in a clone that has none."""
    to.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    for name in ("brokerkit", *TWINS):
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for twin in () if symlinks else TWINS:
        (to / "brokerkit" / twin).unlink()
        (to / "brokerkit" / twin).write_text(f"../{twin}", "utf-8")
    return to


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end, outside this run's coverage, and return its stdout."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTHON"))}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=ours, timeout=120, cwd=cwd
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(tree: Path, *what: str) -> Path:
    """Build and return the folder with the results; the back end is the installed, pinned one."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", *what, tree)
    return tree / "dist"


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def files_in_the_folders() -> set[str]:
    """Return every file below the three folders by the name it has to have in the wheel."""
    tops = {"brokerkit": ROOT / "brokerkit", **{f"brokerkit/{twin}": ROOT / twin for twin in TWINS}}
    return {
        f"{name}/{path.relative_to(top).as_posix()}"
        for name, top in tops.items()
        for path in top.rglob("*")
        if path.is_file() and path.resolve() == path and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it."""
    return build(copy_of_the_tree(tmp_path_factory.mktemp("sdist") / "tree"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that was built straight from the tree."""
    return only(build(copy_of_the_tree(tmp_path_factory.mktemp("wheel") / "tree"), "--wheel"), "*.whl")


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The interpreter of a new environment that holds the wheel.

    It borrows the dependencies from the environment of this run through a path file. Path files in
    the borrowed folders are not read, so the editable installation of this checkout is not seen.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(own, "borrowed.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    return python


def test_the_package_list_names_every_folder_with_code() -> None:
    assert set(PACKAGES) == packages_in_the_folders()


def test_the_package_list_is_sorted_and_names_nothing_twice() -> None:
    assert sorted(set(PACKAGES)) == PACKAGES


@pytest.mark.parametrize("twin", TWINS)
def test_the_twin_is_a_relative_symlink_to_the_folder_at_the_top(twin: str) -> None:
    assert Path("..", twin) == (ROOT / "brokerkit" / twin).readlink()


def test_the_wheel_carries_every_file_of_the_folders_and_nothing_else(wheel: Path) -> None:
    assert contents(wheel) == files_in_the_folders()


def test_the_wheel_built_from_the_sdist_is_the_same(wheel: Path, dist: Path) -> None:
    assert contents(only(dist, "*.whl")) == contents(wheel)


def test_the_wheel_of_a_clone_without_symlinks_is_the_same(wheel: Path, tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree", symlinks=False)

    assert contents(only(build(tree, "--wheel"), "*.whl")) == contents(wheel)


def test_the_sdist_holds_no_link_and_nothing_outside_its_folder(dist: Path) -> None:
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        members = archive.getmembers()

    assert {member.name for member in members if member.issym() or member.islnk()} == set()
    assert len({member.name.split("/")[0] for member in members}) == 1


def test_every_module_imports_from_the_installed_wheel(wheel: Path, clean_python: Path) -> None:
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in contents(wheel)
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = (
        "import importlib, json, sys\n"
        "names = json.loads(sys.argv[1])\n"
        "print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))"
    )

    found = json.loads(run(clean_python, "-c", code, json.dumps(modules), cwd=clean_python.parent))

    home = clean_python.parents[1].resolve()
    assert {name for name, place in found.items() if home not in Path(place).resolve().parents} == set()


@pytest.mark.parametrize("twin", TWINS)
def test_the_folder_at_the_top_is_not_importable_by_its_own_name(clean_python: Path, twin: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({twin!r}))"

    assert run(clean_python, "-c", code, cwd=clean_python.parent).strip() == "None"


def test_every_adapter_is_found_by_its_entry_point_in_the_installed_wheel(clean_python: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "print(*sorted(point.name for point in entry_points(group='brokerkit.adapters') if point.load()))"
    )
    declared = sorted(PYPROJECT["project"]["entry-points"]["brokerkit.adapters"])

    assert run(clean_python, "-c", code, cwd=clean_python.parent).split() == declared
