"""The build hook: what it asks for, and when it does nothing."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hook_in(hook: ModuleType, root: Path) -> Any:
    shutil.copytree(REPOSITORY / "web", root / "web", ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    return hook.WebBundle(str(root), {}, None, None, str(root), "wheel")


def test_node_is_asked_for_until_the_bundle_is_that_of_the_source(hook: ModuleType, tmp_path: Path) -> None:
    build = hook_in(hook, tmp_path)
    assert build.dependencies() == [hook.NODE]
    stated = tmp_path / "traceformer/viewer/static/built-from.sha256"
    stated.parent.mkdir(parents=True)
    stated.write_text(build._digest())
    assert build.dependencies() == []
    build.initialize("standard", {})
    assert stated.is_file(), "a bundle in step with its source stays as it is"
    source = tmp_path / "web/src/viewer.tsx"
    source.write_text(source.read_text() + "\n")
    assert build.dependencies() == [hook.NODE]


def test_what_npm_installs_is_no_source(hook: ModuleType, tmp_path: Path) -> None:
    build = hook_in(hook, tmp_path)
    before = build._digest()
    (tmp_path / "web/node_modules/preact").mkdir(parents=True)
    (tmp_path / "web/node_modules/preact/index.js").write_text("1")
    assert build._digest() == before


def test_the_lock_file_pins_everything_by_hash_and_names_no_place() -> None:
    import json

    lock = json.loads((REPOSITORY / "web/package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not [name for name, package in packages.items() if "resolved" in package]


def test_every_version_is_exact() -> None:
    import json

    package = json.loads((REPOSITORY / "web/package.json").read_text())
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert [version for version in versions if not version.replace(".", "").isdigit()] == []
