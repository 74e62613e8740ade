import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
TOPS = tuple(name.partition(".")[2] for name in SETUPTOOLS["package-dir"])  # the folders that are packages


def sources():
    """Every file of the packages that belongs into the wheel."""
    return sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py")) + [
        path
        for top in TOPS
        for path in [
            *(ROOT / top).rglob("py.typed"),
            *(ROOT / top / "texts").glob("*"),
            *(ROOT / top / "kernels/src").glob("*"),
            *(ROOT / top).glob("*.html"),
        ]
    ]


def test_the_packages_are_the_folders_that_hold_modules():
    folders = {path.parent.relative_to(ROOT) for path in sources() if path.suffix == ".py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted("piston." + ".".join(folder.parts) for folder in folders)


def test_every_package_has_an_init():
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in SETUPTOOLS["packages"])


def test_every_top_package_is_mapped_to_its_folder():
    tops = {name for name in SETUPTOOLS["packages"] if name.count(".") == 1}
    assert SETUPTOOLS["package-dir"] == {name: name.partition(".")[2] for name in tops}


def test_every_top_package_is_typed():
    assert all((ROOT / folder / "py.typed").is_file() for folder in SETUPTOOLS["package-dir"].values())


def test_the_command_is_importable():
    module, _, function = PROJECT["project"]["scripts"]["piston"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", *sources()]:
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted("piston/" + path.relative_to(ROOT).as_posix() for path in sources())
