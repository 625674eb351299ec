"""The Python in README and docs, run as it stands there: each page's blocks in order, in one folder with a few runs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import traceformer as tf
from tests.models.checkpoints import Writer

ROOT = Path(__file__).parents[1]
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python" in path.read_text()
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder with what README makes, the demo's run and an answer, both short, and a tiny model called gpt2."""
    place = tmp_path_factory.mktemp("work")
    (place / "gpt2").symlink_to(tiny_folder("gpt2", n_positions=256), target_is_directory=True)
    model = tf.load_model("byte", device="cpu")
    tf.record(model, "demo", "attn qkv hidden resid", limit=8, out=place / "traces/demo")
    tf.generate(model, "The function returns", "attn resid logits", max_tokens=12, out=place / "traces/answer")
    return place


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_on_a_page_runs_as_it_stands(
    page: Path, workplace: Path, write_checkpoint: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint()  # of nanochat's, for its page
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name} block {number}", "exec"), names)


def test_most_pages_have_code() -> None:
    assert len(PAGES) > 8
