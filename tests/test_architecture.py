"""The design's layer table as data, and the promises that hold for every module at once."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import traceformer
from tests.write_docs import DOCS, PAGES
from traceformer import shapes

ROOT = Path(__file__).parent.parent / "traceformer"

LAYERS = {
    1: (
        *("arguments", "core", "sites", "errors", "filenames", "heap", "network"),
        *("plain_json", "presentation", "progress", "shapes", "units"),
    ),
    2: ("store", "models", "texts", "analysis"),
    3: ("capture", "feeds", "formats", "figures", "bytelm"),
    4: ("questions", "compat"),
    5: ("cli", "viewer", "__main__"),
}
"""Imports point downwards only; within a layer they make no circle, and layer 3 is five strangers."""
STRANGERS = 3
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}

TORCH_AT_THE_TOP = ("models", "capture", "bytelm", "feeds")
TORCH_INSIDE_FUNCTIONS = ("formats.torch_files", "questions", "compat", "cli", "viewer")
WITHOUT_TORCH_AT_THE_TOP = (
    *("models.families", "models.table", "models.family", "models.blocks", "models.dims", "models.outputs"),
    *("models.loaded", "models.weights", "models.readout", "models.block_weights", "models.head_weights"),
    "models.module_weights",
)
TORCH = ("torch", "transformers")

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    for path in ROOT.rglob("*.py")
)
ROOMS = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("*/**/__init__.py"))
LIBRARY = [module for module in MODULES if module.split(".")[0] != "cli"]
FLAGS_OF_OTHER_PROGRAMS = {
    "--upgrade": "pip's, where a newer traceformer is needed",
    "--force-reinstall": "pip's, where the viewer's pages are missing",
    "--no-deps": "pip's, where the viewer's pages are missing",
    "--repo-type": "hf's, which downloads a data set where there is a network",
    "--local-dir": "hf's, which downloads a data set where there is a network",
}
"""The library speaks of parameters, which the command line turns into flags; these are in commands to copy."""
READ_BY_USERS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*", "traceformer/**/*.py", "traceformer/**/*.md")
    for path in sorted(ROOT.parent.glob(pattern))
    if path.is_file() and path.suffix in (".md", ".py", ".txt")
]
STARTS_WITHOUT_TORCH = (
    *("traceformer", "traceformer.store.run", "traceformer.formats.registry", "traceformer.compat"),
    *("traceformer.models.families", "traceformer.models.readout", "traceformer.models.head_weights"),
    *("traceformer.cli", "traceformer.cli.inspect"),
)


class Import(NamedTuple):
    """One imported name: `target` is dotted, `executed` is False under TYPE_CHECKING."""

    target: str
    inside_function: bool
    executed: bool
    line: int


def imports_of(source: str) -> Iterator[Import]:
    """Yields every import statement of a module, one per name; `from a import b` is `a.b`."""

    def walk(node: ast.AST, inside: bool, executed: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, inside, executed, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: relative import"
                yield from (Import(f"{child.module}.{a.name}", inside, executed, child.lineno) for a in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, inside, False)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or function, executed)

    return walk(ast.parse(source), False, True)


def source_of(module: str) -> str:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def is_under(module: str, parts: tuple[str, ...]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def home_of(target: str) -> str:
    """Returns where an imported name of the package lies, dotted from its root; the face's names are looked up."""
    _, _, path = target.partition(".")
    first = path.partition(".")[0]
    if first in LAYER_OF:
        return path
    home = traceformer._HOMES.get(first) or (
        f"traceformer.compat.{first}" if first in traceformer.compat.__all__ else ""
    )
    return home.partition(".")[2]


def wrong_imports(module: str, source: str) -> list[str]:
    """Returns what a module imports against the layer table, in words."""
    part, wrong = module.split(".")[0], []
    for target, inside, executed, line in imports_of(source):
        if target.split(".")[0] in TORCH and executed:
            if not is_under(module, TORCH_AT_THE_TOP + TORCH_INSIDE_FUNCTIONS):
                wrong.append(f"line {line}: {module} imports {target}")
            elif not inside and (not is_under(module, TORCH_AT_THE_TOP) or is_under(module, WITHOUT_TORCH_AT_THE_TOP)):
                wrong.append(f"line {line}: {module} imports {target} outside of a function")
        if target == "traceformer" and module and part != "cli":
            wrong.append(f"line {line}: {module} imports the face")
        if target.startswith("traceformer.") and module:  # the root's names are loaded when they are used
            other = home_of(target).partition(".")[0]
            mine, theirs = LAYER_OF[part], LAYER_OF.get(other, 0)
            if theirs > mine or (theirs == mine == STRANGERS and other != part):
                wrong.append(f"line {line}: {module} (layer {mine}) imports {target} (layer {theirs})")
    return wrong


def circles(neighbours: Mapping[str, Collection[str]]) -> list[str]:
    """Returns the parts that, by way of others, import themselves."""

    def reached(part: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*neighbours.get(part, ())]
        while ahead:
            if (each := ahead.pop()) not in seen:
                seen.add(each)
                ahead += neighbours.get(each, ())
        return seen

    return sorted(part for part in neighbours if part in reached(part))


def neighbours_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Returns which parts of its own layer each part imports, at the top, in functions and for types only."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        part = module.split(".")[0]
        others = {
            home_of(each.target).partition(".")[0] for each in imports_of(source) if "traceformer." in each.target
        }
        own_layer = {other for other in others if LAYER_OF.get(other) == LAYER_OF[part]}
        found.setdefault(part, set()).update(own_layer - {part})
    return found


def test_no_parts_of_a_layer_import_each_other_in_a_circle() -> None:
    assert circles(neighbours_of({module: source_of(module) for module in MODULES if module})) == []


@pytest.mark.parametrize(
    "sources",
    [
        {
            "models.load": "from traceformer.texts import files",
            "texts.load": "def f():\n    import traceformer.models.load",
        },
        {
            "store.run": "from traceformer.analysis.lens import Lens",
            "analysis.lens": "from traceformer.models.readout import Readout",
            "models.readout": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from traceformer import Run",
        },
    ],
    ids=["two", "three, one through the face"],
)
def test_a_circle_of_parts_is_found(sources: Mapping[str, str]) -> None:
    assert circles(neighbours_of(sources)) == sorted({module.split(".")[0] for module in sources})


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards_and_torch_stays_where_it_belongs(module: str) -> None:
    assert wrong_imports(module, source_of(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("store.reader", "from traceformer.capture import recorder"),
        ("analysis.heads", "from traceformer.formats.torch_files import load"),
        ("sites", "import traceformer.store.layout"),
        ("store.reader", "def f():\n    import torch"),
        ("cli.extract", "import torch"),
        ("formats.torch_files", "if True:\n    from torch import nn"),
        ("texts.files", "import transformers.models"),
        ("sites", "from traceformer import TraceStore"),
        ("store.run", "from traceformer import record"),
        ("analysis.heads", "def f():\n    from traceformer import figures"),
        ("texts.load", "from traceformer import ReverseAttentionTracer"),
        ("store.run", "import traceformer"),
        ("models.families", "import torch"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("capture.recorder", "import torch\nfrom traceformer.sites import SITES"),
        ("capture.extract", "from traceformer.capture.recorder import Recorder"),
        ("cli.extract", "def f():\n    import torch"),
        ("compat.nanochat_engine", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("viewer.server", "from traceformer import __version__"),
    ],
)
def test_a_right_import_is_left_alone(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


def test_annotations_are_checked_in_tests_shapes_included() -> None:
    from traceformer.cli.matrix import draw_matrix

    with pytest.raises(TypeCheckError):
        draw_matrix(np.zeros(3, np.float32), ["a"], ["a"], width=80)
    with pytest.raises(TypeCheckError):
        draw_matrix(np.zeros((1, 1), np.int64), ["a"], ["a"], width=80)
    assert draw_matrix(np.ones((1, 1), np.float32), ["a"], ["a"], width=80).startswith("     0")


def imports_jaxtyping(source: str) -> bool:
    return any(each.target.split(".")[0] == "jaxtyping" for each in imports_of(source))


@pytest.mark.parametrize("module", MODULES)
def test_array_annotations_come_from_shapes(module: str) -> None:
    assert imports_jaxtyping(source_of(module)) == (module == "shapes")


@pytest.mark.parametrize(
    "source",
    [
        "import jaxtyping",
        "from jaxtyping import Float",
        "def f():\n    import jaxtyping as jt",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jaxtyping import Float",
    ],
)
def test_an_import_of_jaxtyping_is_found(source: str) -> None:
    assert imports_jaxtyping(source)
    assert not imports_jaxtyping(source.replace("jaxtyping", "traceformer.shapes"))


def test_shapes_cost_nothing_outside_of_tests() -> None:
    code = "import numpy as np; from traceformer.shapes import Float; print(Float[np.ndarray, 'layer head'] | None)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "numpy.ndarray | None"


def test_shapes_are_jaxtypings_own_in_tests() -> None:
    assert [getattr(shapes, name) for name in shapes.__all__] == [getattr(jaxtyping, name) for name in shapes.__all__]


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {module.split(".")[0] for module in MODULES if module} <= LAYER_OF.keys()


@pytest.mark.parametrize("module", MODULES)
def test_all_names_in_all_exist(module: str) -> None:
    loaded = import_module(f"traceformer.{module}".removesuffix("."))
    names = getattr(loaded, "__all__", [])
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", STARTS_WITHOUT_TORCH)
def test_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {TORCH} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_in_step_with_the_code(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "run: python -m tests.write_docs"


def test_the_tree_in_the_readme_names_every_room() -> None:
    readme = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("\ntraceformer/\n")[2].partition("\ntests/")[0]
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == rooms


def plate_of(docstring: str) -> list[str]:
    """Returns the names on a room's plate: `name  what it hides`, a line each."""
    return re.findall(r"^(\w+)  +\S", docstring, re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_the_plate_of_a_room_names_every_file_in_it_once(room: str) -> None:
    folder = ROOT.joinpath(*room.split("."))
    inside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert sorted(plate_of(ast.get_docstring(ast.parse(source_of(room))) or "")) == sorted(inside - {"__init__"})


def test_a_name_on_a_plate_that_is_missing_or_twice_is_seen() -> None:
    assert plate_of("Arithmetic.\n\n    heads(run)\n\nlens   one\nheads  two\nlens   again\n") == [
        "lens",
        "heads",
        "lens",
    ]
