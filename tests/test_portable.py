"""What is not the same on every system is asked for in one place, and no text depends on where it was written."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_architecture import MODULES, source_of

SYSTEM = "store.system"
"""The one module that knows what systems do differently with files."""
_MODULES = {"fcntl", "msvcrt", "resource", "pwd", "grp", "termios", "pty", "posix", "_posixsubprocess", "winreg"}
_OF_OS = {
    "sched_getaffinity",
    "pread",
    "preadv",
    "pwrite",
    "link",
    "fsync",
    "fdatasync",
    "fork",
    "posix_fadvise",
    "O_DIRECT",
    "O_RDONLY",
}
_ASKED_FIRST = {
    "heap": {"confstr_names"},
    "store.room": {"sysconf", "sysconf_names"},
    "store.pages": {"MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"},
}
"""Modules that ask first whether the system has what makes them faster, or say more."""
_ONLY_SOME_SYSTEMS = _OF_OS | set().union(*_ASKED_FIRST.values()) | {"geteuid", "getuid", "uname", "mkfifo", "chown"}
WORTH_PARSING = re.compile(rf"\bopen\(|_text\(|\b(os|mmap)\.|\b({'|'.join(_MODULES)})\b")


def of_one_system(module: str, tree: ast.AST) -> list[str]:
    """Returns what a module imports, or takes of `os` and `mmap`, that other systems have not."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("os", "mmap"):
            found += [node.attr] * (node.attr in _ONLY_SOME_SYSTEMS - _ASKED_FIRST.get(module, set()))
    return found


def texts_of(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Yields where a module opens, reads or writes text, and which of its ways it states there."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        stated = {keyword.arg or "" for keyword in node.keywords}
        mode = mode_of(node) if name == "open" else "b"
        if "b" not in mode:
            yield node.lineno, stated | ({"newline"} if mode.startswith("r") else set[str]())
        elif name == "read_text" and isinstance(node.func, ast.Attribute):
            yield node.lineno, stated | {"newline"}
        elif name == "write_text":
            yield node.lineno, stated


def mode_of(node: ast.Call) -> str:
    """Returns how a call of `open` opens a file; `b` for browsers, groups of files and whatever else has no mode."""
    texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    unstated = "r" if isinstance(node.func, ast.Name) else "b"
    return next((text for text in texts if text and set(text) <= set("rwaxbt+")), unstated)


def test_what_some_systems_lack_is_asked_of_one_module_and_text_states_what_it_is() -> None:
    wrong: dict[str, list[str]] = {}
    for module in MODULES:
        source = source_of(module)
        if not WORTH_PARSING.search(source):
            continue
        tree = ast.parse(source)
        lines = [f"line {line}" for line, stated in texts_of(tree) if not {"encoding", "newline"} <= stated]
        wrong[module] = lines + ([] if module == SYSTEM else of_one_system(module, tree))
    assert {module: found for module, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import getrusage", ["resource"]),
        ("import os\nos.pread(file, 1, 0)", ["pread"]),
        ("import os\nos.sched_getaffinity(0)", ["sched_getaffinity"]),
        ("import os\nos.replace(a, b)", []),
    ],
)
def test_a_call_of_one_system_is_found(source: str, found: list[str]) -> None:
    assert of_one_system("capture.pipeline", ast.parse(source)) == found


@pytest.mark.parametrize(
    ("source", "stated"),
    [
        ("path.read_text()", {"newline"}),
        ("path.write_text(text, encoding='utf-8')", {"encoding"}),
        ("open(path, 'w')", set[str]()),
        ("open(path)", {"newline"}),
        ("path.open('w', encoding='utf-8', newline='')", {"encoding", "newline"}),
    ],
)
def test_a_text_without_an_encoding_is_found(source: str, stated: set[str]) -> None:
    assert [found for _, found in texts_of(ast.parse(source))] == [stated]


@pytest.mark.parametrize("source", ["path.open('rb')", "webbrowser.open(page)", "writer.open()", "place.open(name)"])
def test_bytes_and_browsers_have_none(source: str) -> None:
    assert list(texts_of(ast.parse(source))) == []
