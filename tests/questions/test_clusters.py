"""Clusters as a library has them: of tables at hand, of files, of several under names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traceformer.errors import UsageError
from traceformer.formats.results.head_tables import read_heads
from traceformer.questions.clusters import cluster

THESIS = Path(__file__).parents[1] / "data" / "thesis_head_metrics.csv"


def test_a_table_and_its_file_give_the_same_clusters(tmp_path: Path) -> None:
    of_file, of_table = cluster(THESIS, k=4), cluster(read_heads(THESIS), k=range(4, 5))
    assert np.array_equal(of_file.clusterings.best.labels, of_table.clusterings.best.labels)
    assert list(of_file.tables) == list(of_table.tables) == ["thesis_head_metrics"]
    frame = of_file.to_frame()
    assert " ".join(frame) == "layer head attention cluster name silhouette entropy sparsity distance"
    assert frame["name"].value_counts().sum() == 96
    of_file.write(tmp_path / "new/clusters.csv")
    assert pd.read_csv(tmp_path / "new/clusters.csv").cluster.tolist() == frame.cluster.tolist()
    assert repr(of_file).startswith("HeadClusters(thesis_head_metrics: Focused-Local ")


def test_tables_under_names_share_scale_and_clusters() -> None:
    whole = read_heads(THESIS)
    found = cluster({"one": whole, "same": THESIS}, k=4)
    assert found.shares[0].tolist() == found.shares[1].tolist()
    assert found.to_frame().table.tolist() == ["one"] * 96 + ["same"] * 96
    assert found.names[0] == "one L0H0"
    alone = cluster(whole, k=4)
    assert found.clusterings.best.labels[:96].tolist() == alone.clusterings.best.labels.tolist()
    with pytest.raises(UsageError, match="same name"):
        cluster([whole, whole])


def test_all_features_are_those_that_every_head_has() -> None:
    assert cluster(THESIS, features=["all"], k=2).features == ("entropy", "sparsity", "distance")
    with pytest.raises(UsageError, match="twice"):
        cluster(THESIS, features=["entropy", "entropy"])
