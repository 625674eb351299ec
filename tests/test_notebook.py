"""The notebook in examples, executed as a user would: its tables, pictures and page are in what comes out."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/first_steps.ipynb"


def statements(code: str) -> list[str]:
    """Returns the statements of some code as they are when comments and layout are left out."""
    return [ast.unparse(statement) for statement in ast.parse(code).body]


def test_the_notebook_does_what_the_page_on_python_begins_with() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    own = [line for cell in cells if cell["cell_type"] == "code" for line in statements("".join(cell["source"]))]
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), flags=re.DOTALL)[
        0
    ]
    shown = (
        "run.attn(0, layer=2, head=3)",
        "tf.lens(run, 0).to_frame()",
    )  # of which the notebook shows the shape, the table
    assert [line for line in statements(block) if line not in own and line not in shown] == []


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_pictures_and_a_page(tmp_path: Path) -> None:
    words = ["-m", "nbconvert", "--execute", "--to", "html", "--output-dir", str(tmp_path), str(NOTEBOOK)]
    ran = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "first_steps.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img[^>]* src=\"data:image/png;base64,", page)) == 3  # heads, lens, traits
    assert page.count('class="dataframe"') == 2  # heads, lens
    assert page.count("<iframe") == 2  # the run, paths
    assert "&lt;Figure size" not in page
    assert "<progress" not in page  # bars go when the work is done
