"""Words that no reader can use: documents by number anywhere, flags in the library's messages."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "traceformer"
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "cli"]
WRITTEN = [*sorted(PACKAGE.rglob("*.py")), *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def cited(text: str) -> list[str]:
    """Returns where a text cites a document by its number."""
    return re.findall(r"\bdocument [1-5]\b", text, flags=re.IGNORECASE)


def flags_in_errors(source: str) -> list[str]:
    """Returns the flags that stand in the strings of what a module raises, but for those of pip."""
    raised = [node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise) and node.exc]
    strings = [node.value for each in raised for node in ast.walk(each) if isinstance(node, ast.Constant)]
    return [
        flag
        for text in strings
        if isinstance(text, str)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub("pip install .*", "", text))
    ]


def test_nothing_cites_a_document_that_no_reader_has() -> None:
    assert {path: found for path in WRITTEN if (found := cited(path.read_text(encoding="utf-8")))} == {}


def test_a_citation_is_found() -> None:
    assert cited("as Document 2 has it, and the document 3 columns") == ["Document 2", "document 3"]
    assert cited("documents 7, document 12") == []


def test_errors_of_the_library_name_parameters() -> None:
    assert {path: found for path in LIBRARY if (found := flags_in_errors(path.read_text(encoding="utf-8")))} == {}


def test_a_flag_in_an_error_is_found() -> None:
    assert flags_in_errors('raise ValueError(f"{n} layers", hint="--layers 0,1")') == ["--layers"]
    assert flags_in_errors('raise ValueError("a -- b", f"`layers={n}`")') == []
