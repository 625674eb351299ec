"""The table of heads as a value."""

import json

import numpy as np
import pytest

from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured, join_heads
from traceformer.errors import NotFound, NotRecorded, SelectionError


def table(attention: str, first: int = 0) -> HeadMetrics:
    """Layers 1 and 4, heads 0 and 2, but for L4H2."""
    rows = tuple(HeadName(attention, layer, head) for layer, head in ((1, 0), (1, 2), (4, 0)))
    numbers = np.arange(first, first + 3, dtype=np.float64)
    values = {"entropy": numbers, "sparsity_0.01": numbers / 10, "distance": numbers * np.nan}
    about = Measured("run", "byte", "exact", 8, {attention: first + 1}, {attention: 10})
    return HeadMetrics(rows, values, about)


BOTH = join_heads([table("enc.self"), table("dec.self", 3)], source="run", model="byte")


def test_heads_of_several_attentions_are_one_table() -> None:
    assert BOTH.attentions == ("enc.self", "dec.self")
    assert BOTH.part("dec.self").values["entropy"].tolist() == [3, 4, 5]
    assert BOTH.about.examples == {"enc.self": 1, "dec.self": 4}
    assert BOTH.names[:2] == ("enc.self L1H0", "enc.self L1H2")
    assert BOTH.part("enc.self").names[0] == "L1H0"
    frame = BOTH.to_frame()
    assert list(frame) == ["attention", "layer", "head", "entropy", "sparsity_0.01", "distance"]
    assert frame.iloc[4].tolist()[:5] == ["dec.self", 1, 2, 4.0, 0.4]


def test_a_metric_is_a_grid_with_gaps_where_heads_are_missing() -> None:
    assert np.array_equal(BOTH.grid("entropy", "dec.self"), [[3, 4], [5, np.nan]], equal_nan=True)
    assert np.array_equal(table("dec.self").grid("sparsity"), [[0, 0.1], [0.2, np.nan]], equal_nan=True)


def test_a_name_without_a_threshold_means_the_only_column_of_its_kind() -> None:
    assert BOTH.column("sparsity") == BOTH.column("sparsity_0.01") == "sparsity_0.01"
    several = HeadMetrics(BOTH.rows, {**BOTH.values, "sparsity_1e-05": BOTH.values["entropy"]}, BOTH.about)
    with pytest.raises(SelectionError, match=r"sparsity_0\.01 or sparsity_1e-05"):
        several.column("sparsity")
    with pytest.raises(NotRecorded, match="run has no column max"):
        BOTH.column("max")
    with pytest.raises(NotRecorded, match="no column sparsity_0"):
        BOTH.column("sparsity_0")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"enc\.self or dec\.self"):
        BOTH.grid("entropy")
    with pytest.raises(NotFound, match=r"no attention dec\.cross"):
        BOTH.grid("entropy", "dec.cross")
    with pytest.raises(NotRecorded, match=r"enc\.self L1H0 has no distance; a number is missing in 6 of 6 rows"):
        BOTH.features(["entropy", "distance"])


def test_json_knows_no_nan_and_repr_is_one_line() -> None:
    shown = json.loads(json.dumps(BOTH.to_json(), allow_nan=False))
    assert (shown["convention"], shown["window"], shown["model"]) == ("exact", 8, "byte")
    assert shown["attention"]["dec.self"]["metrics"]["entropy"] == [[3, 4], [5, None]]
    assert shown["attention"]["dec.self"]["queries"] == 10
    assert repr(BOTH) == "HeadMetrics(byte: 6 heads of enc.self and dec.self, 3 metrics, exact convention)"
