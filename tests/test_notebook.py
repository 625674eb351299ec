"""The notebooks in examples, executed as a user would: their tables, pictures and pages are in what comes out."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWN: Mapping[str, Mapping[str, int]] = {
    "1_record_and_look": {"cards": 3, "figures": 0, "frames": 1, "tables": 1},
    "2_heads_and_paths": {"cards": 1, "figures": 3, "frames": 1, "tables": 0},
    "3_trait_along_a_response": {"cards": 1, "figures": 2, "frames": 0, "tables": 1},
}
"""What each notebook shows."""


def test_every_notebook_is_known_here() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == sorted(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_kept_without_what_it_printed(name: str) -> None:
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_shows_cards_pictures_and_pages(name: str, tmp_path: Path) -> None:
    notebook = str(EXAMPLES / f"{name}.ipynb")
    words = ["-m", "nbconvert", "--execute", "--to", "html", "--output-dir", str(tmp_path), notebook]
    ran = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    outside = re.sub(r'<div class="tf-card">.*?</div>\n', "", page, flags=re.DOTALL)
    shown = {
        "cards": page.count('<div class="tf-card">'),
        "figures": len(re.findall(r'<img[^>]*class="tf-figure', outside))
        or outside.count('src="data:image/png;base64,'),
        "frames": page.count("<iframe"),
        "tables": page.count('class="dataframe"'),
    }
    assert shown == SHOWN[name]
    assert "&lt;Figure size" not in page
    assert "<progress" not in page  # bars go when the work is done
