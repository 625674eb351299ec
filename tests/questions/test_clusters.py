"""Clusters as a library has them: of tables at hand, of files, of several under names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.errors import UsageError
from traceformer.formats.results.head_tables import read_heads
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.questions.clusters import cluster
from traceformer.questions.heads import heads

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


def test_a_trained_model_s_heads_have_names_and_an_untrained_one_s_have_none(byte: LoadedModel) -> None:
    texts = ["The Eiffel Tower is in Paris. The Eiffel Tower is in Paris.", "Rome is in Italy, and Rome is old."]
    untrained = load_model(type(byte.model)(byte.model.config).eval(), byte.tokenizer)
    for features in (("entropy", "sparsity", "distance"), ("previous_token", "induction")):
        names = {
            which: [
                name.split(" (")[0] for name in cluster(heads(model, texts), features=features).clusterings.best.names
            ]
            for which, model in (("trained", byte), ("untrained", untrained))
        }
        wanted = {"Focused-Local", "Strided"} if "entropy" in features else {"high previous_token", "high induction"}
        assert wanted <= set(names["trained"])
        assert names["untrained"] == [f"cluster {number}" for number in range(len(names["untrained"]))]


# What may stand side by side

STATED: dict[str, object] = {
    "convention": "exact", "window": 8, "model": "byte", "texts": "2 texts a", "sparse_below": 1e-4
}  # fmt: skip


def measured(seed: int, **about: object) -> HeadMetrics:
    values = np.random.default_rng(seed).random((3, 6))
    names: tuple[str, ...] = ("entropy", "sparsity_0.0001", "distance")
    columns = dict(zip(names, values, strict=True))
    told = Measured(**{"source": f"table {seed}", **STATED, **about})  # pyright: ignore[reportArgumentType]
    return HeadMetrics(tuple(HeadName("dec.self", 0, head) for head in range(6)), columns, told)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"convention": "thesis"}, "tables of the conventions exact and thesis"),
        ({"convention": None}, "two do not say in which convention"),
        ({"window": 4}, "tables with the windows 4 and 8"),
        ({"sparse_below": 0.01}, "thresholds of sparse cells 0.0001 and 0.01"),
        ({"model": "gpt2", "texts": "3 texts b"}, "one and two differ in model and in texts"),
    ],
)
@pytest.mark.parametrize("from_files", [True, False])
def test_tables_that_are_no_mates_are_refused(
    about: dict[str, object], message: str, from_files: bool, tmp_path: Path
) -> None:
    tables = {"one": measured(0), "two": measured(1, **about)}
    for name, table in tables.items():
        table.write(tmp_path / f"{name}.csv")
    with pytest.raises(UsageError, match=message):
        cluster([tmp_path / "one.csv", tmp_path / "two.csv"] if from_files else tables, k=2)


@pytest.mark.parametrize("about", [{}, {"model": "gpt2"}, {"texts": "3 texts b"}])
def test_models_on_the_same_texts_and_texts_of_one_model_are_compared(about: dict[str, object]) -> None:
    found = cluster({"one": measured(0), "two": measured(1, **about)}, k=2)
    assert found.unstated == ()
    assert found.to_json()["unstated"] == []


def test_what_tables_do_not_say_is_said() -> None:
    found = cluster({"one": measured(0), "two": measured(1, model=None, texts=None)}, k=2)
    assert found.unstated == ("model", "texts")
    assert cluster({"one": THESIS, "two": read_heads(THESIS)}, k=2).unstated == ("convention", "model", "texts")
    assert cluster(THESIS, k=2).unstated == ()
