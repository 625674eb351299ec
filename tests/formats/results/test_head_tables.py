"""Tables of heads: written and read back, and read by those who know only the thesis's columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.errors import NotFound, Unreadable
from traceformer.formats.results.head_tables import read_heads

THESIS = Path(__file__).parents[2] / "data" / "thesis_head_metrics.csv"


def metrics(source: str = 'runs/"a", b', convention: str | None = "nanochat") -> HeadMetrics:
    rows = [HeadName(kind, layer, head) for kind in ("enc.self", "dec.cross") for layer in (1, 4) for head in (0, 2)]
    random = np.random.default_rng(0).random((3, len(rows)))
    random[2, 4:] = np.nan
    values = dict(zip(("entropy", "sparsity_0.01", "distance"), random, strict=True))
    counts = {"enc.self": 3, "dec.cross": 2}
    name = next((name for name in CONVENTIONS if name == convention), None)
    queries = {kind: 10 * count for kind, count in counts.items()}
    about = Measured(source, "byte", name, 8, counts, queries, texts="3 texts 0123456789ab", sparse_below=0.01)
    return HeadMetrics(tuple(rows), values, about)


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    metrics().write(tmp_path / "new/heads.csv")
    assert read_heads(tmp_path / "new/heads.csv") == metrics()
    assert read_heads(tmp_path / "new/heads.csv", "dec.cross").rows == metrics().part("dec.cross").rows
    assert metrics("other") != metrics() != metrics(convention="exact")


def test_a_table_begins_as_the_thesis_has_it_and_says_how_it_was_measured(tmp_path: Path) -> None:
    metrics().write(tmp_path / "heads.csv")
    frame = pd.read_csv(tmp_path / "heads.csv")
    assert list(frame)[:5] == ["layer", "head", "entropy", "sparsity_0.01", "distance"]
    how = ["attention", "convention", "window", "source", "model", "examples", "queries", "texts", "sparse_below"]
    assert list(frame)[5:] == how
    assert (frame.texts.unique().tolist(), frame.sparse_below.unique().tolist()) == (["3 texts 0123456789ab"], [0.01])
    assert frame.convention.unique().tolist() == ["nanochat"]
    assert frame.examples.tolist() == [3] * 4 + [2] * 4
    assert frame.distance.isna().tolist() == [False] * 4 + [True] * 4


def test_the_thesis_s_own_table_is_read() -> None:
    table = read_heads(THESIS)
    assert (len(table.rows), table.layers, table.heads) == (96, tuple(range(12)), tuple(range(8)))
    assert list(table.values) == ["entropy", "sparsity", "distance"]
    assert table.about == Measured(source=str(THESIS))
    assert table.names[0] == "L0H0"
    assert table.grid("sparsity")[0, 1] == 0.875


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["layer,head,entropy,convention", "0,0,1,exact", "0,1,1,thesis"], "different things for convention"),
        (["layer,head,entropy,convention", "0,0,1,valid"], "no convention 'valid'"),
        (["layer,head,entropy,window", "0,0,1,wide"], "line 2: the window is 'wide'"),
    ],
)
def test_a_table_that_does_not_say_how_it_was_measured_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "heads.csv").write_text("\n".join(lines))
    with pytest.raises(Unreadable, match=message):
        read_heads(tmp_path / "heads.csv")


def test_an_attention_that_is_not_there_is_refused(tmp_path: Path) -> None:
    metrics("here").write(tmp_path / "heads.csv")
    with pytest.raises(NotFound, match=r"here has no attention dec\.self; it has dec\.cross, enc\.self"):
        read_heads(tmp_path / "heads.csv", "dec.self")


@pytest.mark.parametrize("number", ["1" * 13, "9" * 5000, "-1", "1.5", "1e3", "²"])
@pytest.mark.parametrize("column", ["layer", "head", "window"])
def test_absurd_numbers_are_refused(column: str, number: str, tmp_path: Path) -> None:
    cells = {"layer": "0", "head": "0", "window": "8", "entropy": "1"} | {column: number}
    (tmp_path / "heads.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n", encoding="utf-8")
    with pytest.raises(Unreadable, match=f"line 2: the {column} is"):
        read_heads(tmp_path / "heads.csv")
