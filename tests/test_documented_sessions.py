"""README and the pages of questions, done as they say in one folder, with what they show beside it."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.documented import Step, difference, steps_of
from traceformer.cli import main

ROOT = Path(__file__).parents[1]
QUESTIONS = sorted((ROOT / "docs/questions").glob("*.md"))
PAGES = [ROOT / "README.md", *QUESTIONS]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what lies in the repository beside README and is read there."""
    place = tmp_path_factory.mktemp("work")
    (place / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    return place


@pytest.mark.timeout(900)  # on a machine that does much else
@pytest.mark.slow  # each loads a model: none takes under 0.3 s
@pytest.mark.filterwarnings("always:texts are cut to")  # which commands print
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_gives_what_it_shows(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, skip_for: Callable[[str], None]
) -> None:
    text = page.read_text(encoding="utf-8")
    if ".html" in text and not (ROOT / "traceformer/viewer/static/trace.js").is_file():
        skip_for("pages")
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))  # as Python has it, started there
    names: dict[str, object] = {"__name__": page.stem}
    for step in steps_of(text):
        came = evaluated(step.code, names) if step.is_python else typed(step.code)
        assert step.shown is None or not difference(step.shown, came), (
            f"{step.code}\n{difference(step.shown, came)}\n\nall that came:\n{came}"
        )


def evaluated(code: str, names: dict[str, object]) -> str:
    """Returns what a block of Python prints."""
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "a page", "exec"), names)
    return printed.getvalue()


def typed(line: str) -> str:
    """Returns what a line of the shell prints, on either stream; it must succeed."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["traceformer", "view"]:
        return served(words[1:])
    if words[0] != "traceformer" or any(word in (">", "|", "||", "&&") for word in words):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        code, said = ran.returncode, ran.stdout + ran.stderr
    else:
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
            code = main(words[1:])
        said = printed.getvalue()
    assert code == 0, f"{line}\nended with {code}:\n{said}"
    return said


def served(words: list[str]) -> str:
    """Returns the address that the viewer prints, and ends it as Ctrl-C does."""
    command = [sys.executable, "-m", "traceformer", *words, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline()
        server.send_signal(signal.SIGINT)
    assert address.startswith("http://127.0.0.1:"), address
    return address


@pytest.mark.parametrize("page", QUESTIONS, ids=lambda page: page.stem)
def test_a_question_is_answered_by_command_and_by_python_on_a_page_that_reads_on(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    steps = steps_of(text)
    assert any(step.is_python for step in steps)
    assert any(step.code.startswith("traceformer ") for step in steps)
    assert re.search(r"^\*\*Read on\*\*: .*\]\(", text, re.MULTILINE)
    assert 40 <= len(text.splitlines()) <= 100


def test_there_is_a_page_for_each_question() -> None:
    assert [page.stem for page in QUESTIONS] == [
        "compare-models",
        "induction-head",
        "limits",
        "my-model",
        "probe-on-a-run",
        "record-a-generation",
        "run-on-disk",
        "tokens-that-led-here",
        "trait-along-a-response",
        "what-a-number-means",
    ]


def test_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    (block,) = (step.code for step in steps_of(readme) if step.is_python)
    assert len(block.splitlines()) <= 12


PAGE = """
```console
$ traceformer list
nothing
$ printf 'a' \\
    > b.txt
```

```python
print(1)
```

```text
1
```

| `traceformer check byte`<br>proofs | a picture |

```python
2
```
"""


def test_a_page_is_taken_apart() -> None:
    assert steps_of(PAGE) == [
        Step(False, "traceformer list", "nothing\n"),
        Step(False, "printf 'a'     > b.txt", None),
        Step(True, "print(1)\n", "1\n"),
        Step(False, "traceformer check byte", None),
        Step(True, "2\n", None),
    ]


CAME = """loading
recording  8/64 examples  2,976 tokens/s  0 B/s  1.5 s left
64 examples written in 2.0 s
run begun 2026-11-28 06:58:48

L2H6  0.40
L3H1  0.35
largest difference 1.8e-07
"""


@pytest.mark.parametrize(
    "shown",
    [
        CAME,
        CAME.replace("2.0 s", "3 min 07 s")
        .replace("2026-11-28", "2025-01-01")
        .replace("0.40", "0.41")
        .replace("1.8", "3"),
        "64 examples written in 2.0 s\n...\nL3H1 0.35\n...\n",
        "...\nlargest difference 1.8e-07",
        "...",
    ],
)
def test_what_came_is_what_is_shown(shown: str) -> None:
    assert difference(shown, CAME) == ""


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (CAME.replace("0.40", "0.50"), "L2H6 0.50"),
        (CAME.replace("64", "65"), "65 examples"),
        (CAME.replace("1.8e-07", "1.8e-03"), "1.8e-03"),
        (CAME.replace("L3H1", "L3H2"), "L3H2"),
        (CAME + "more\n", "more"),
        ("64 examples written in 2.0 s\n...\nL3H1 0.35\n", "shown: nothing more"),
        ("64 examples written in 2.0 s\n", "nothing more"),
        ("...\nL2H6 0.40\nlargest difference 1.8e-07\n", "shown: largest"),
    ],
)
def test_what_came_otherwise_is_named(shown: str, why: str) -> None:
    assert why in difference(shown, CAME)
