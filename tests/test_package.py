"""What the package says of itself: one version everywhere, a citation, a page for the index, readable workflows."""

import importlib.util
import re
import tomllib
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import traceformer

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def newest_release() -> tuple[str, str]:
    """Returns the version and the day of the newest section of the changelog."""
    found = re.search(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changelog(), flags=re.MULTILINE)
    assert found
    return found[1], found[2]


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_version_is_said_once_and_the_others_agree() -> None:
    version, day = newest_release()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "traceformer/__init__.py"
    assert version == traceformer.__version__ == citation["version"]
    assert citation["date-released"] == date.fromisoformat(day)


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == PROJECT["project"]["authors"]


def test_a_release_tells_what_was_added_changed_and_fixed_in_this_order() -> None:
    newest = re.split(r"^## ", changelog(), flags=re.MULTILINE)[1]
    assert re.findall(r"^### (.*)$", newest, flags=re.MULTILINE) == ["Added", "Changed", "Fixed"]


def test_every_theme_of_a_release_has_lines() -> None:
    themes = re.split(r"^####? ", changelog(), flags=re.MULTILINE)[1:]
    empty = [theme.splitlines()[0] for theme in themes if "\n- " not in theme and "\n\n" not in theme.strip()]
    assert [name for name in empty if name not in ("Added", "Changed", "Fixed")] == []


# The page that an index shows


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("see [the docs](docs/a.md), and [b](https://b.org)", "see the docs, and [b](https://b.org)"),
        ("![All heads](docs/a.png)", "*All heads*"),
        ("[![All heads](docs/a.png)](docs/a.md)", "*All heads*"),
        ('<img src="docs/a.png" alt="All heads" width="300">', "*All heads*"),
        ("| [`view`](docs/a.md) | ![x](a.png) |", "| `view` | *x* |"),
        ("```python\nheads[0](layer)\n```\n[a](b.md)", "```python\nheads[0](layer)\n```\na"),
        ("text\n\n    rows[0](1)\n\n[a](#part)", "text\n\n    rows[0](1)\n\na"),
    ],
)
def test_links_that_lead_nowhere_are_words(hook: ModuleType, written: str, shown: str) -> None:
    assert hook.without_relative_links(written) == shown


def test_nothing_of_readme_leads_nowhere(hook: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = hook.without_relative_links(readme)
    text = re.sub(r"^```.*?^```|^    .*?$", "", shown, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\]\((?!https?:)[^)]*\)|<img[^>]*src=\"(?!https?:)[^\"]*", text) == []
    assert len(shown) > len(readme) / 2


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_uses_actions_of_one_version_each_and_no_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action)] == []
    assert "secrets." not in text
    assert workflow["permissions"] == {"contents": "read"}


def test_a_tag_alone_is_published_and_only_what_was_built_and_tried() -> None:
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert release[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}  # YAML reads `on` as true
    assert (release["jobs"]["publish"]["needs"], release["jobs"]["try"]["needs"]) == ("try", "build")
    may_publish = [name for name, job in release["jobs"].items() if "id-token" in job.get("permissions", {})]
    assert may_publish == ["publish"]
