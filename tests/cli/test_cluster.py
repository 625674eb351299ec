"""`traceformer cluster`: tables in, clusters, labels and pictures out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from traceformer.cli import main

THESIS = Path(__file__).parents[1] / "data" / "thesis_head_metrics.csv"
HEADER = "layer,head,entropy,sparsity,distance\n"


def table(path: str, rows: list[str], header: str = HEADER) -> str:
    Path(path).write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_json_gives_silhouettes_labels_and_centroids(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(THESIS), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["silhouette"]) == [str(k) for k in range(2, 9)]
    assert found["best_k"] == 7
    assert found["silhouette"]["7"] == max(found["silhouette"].values())
    assert len(found["labels"]) == len(found["heads"]) == len(found["silhouettes"]) == 96
    assert found["heads"][:2] == ["L0H0", "L0H1"]
    with THESIS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, centroid in enumerate(found["centroids"]):
        own = [row for row, label in zip(rows, found["labels"], strict=True) if label == number]
        assert centroid["heads"] == len(own)
        for name in ("entropy", "sparsity", "distance"):
            assert centroid[name] == pytest.approx(np.mean([float(row[name]) for row in own]))


def test_the_table_labels_every_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(THESIS), "--k", "4"]) == 0
    with Path("head_clusters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("layer", "head", "attention", "cluster", "name", "silhouette", "entropy", "sparsity", "distance")
    ]
    assert len(rows) == 96
    assert {(row["cluster"], row["name"]) for row in rows} == {
        ("0", "Focused-Local"),
        ("1", "Wider-Local"),
        ("2", "Global-Anchor"),
        ("3", "Strided"),
    }
    shown = capsys.readouterr()
    assert "0.5382  best" in shown.out
    assert "names say on which side of the mean" in shown.out
    assert shown.err == f"wrote head_clusters.csv; next: traceformer cluster {THESIS} --plot\n"


def test_pictures_are_drawn_of_scores_silhouettes_and_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(THESIS), "--plot", "--json", "--output", "new/thesis.csv", "--method", "kmeans"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plot"] == [f"new/thesis_{name}.png" for name in ("silhouette_k", "silhouettes", "map")]
    assert imread("new/thesis_silhouette_k.png").shape[:2] == (1350, 2100)  # 7 x 4.5 inches at 300 dpi
    assert all(Path(path).stat().st_size < 300_000 for path in found["plot"])


def test_two_models_share_scale_and_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = THESIS.read_text().splitlines()[1:]
    sparse = table("sparse.csv", [line for line in lines if line.split(",")[1] in "0347"])
    dense = table("dense.csv", [line for line in lines if line.split(",")[1] in "1256"])
    assert main(["cluster", "--compare", dense, sparse, "--k", "4", "--json", "--plot"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["cluster", str(THESIS), "--k", "4", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert found["silhouette"]["4"] == pytest.approx(alone["silhouette"]["4"])  # the same heads in another order
    names = [centroid["name"] for centroid in found["centroids"]]
    assert names == ["Focused-Local", "Wider-Local", "Global-Anchor", "Strided"]
    assert found["shares"]["dense"] == {"Focused-Local": 0, "Wider-Local": 0, "Global-Anchor": 0.5, "Strided": 0.5}
    assert found["shares"]["sparse"]["Focused-Local"] == pytest.approx(37 / 48)
    distances = [float(line.split(",")[4]) for line in lines if line.split(",")[1] in "1256"]
    assert found["metrics"]["distance"]["dense"]["mean"] == pytest.approx(np.mean(distances))
    assert found["metrics"]["distance"]["dense"]["median"] == pytest.approx(np.median(distances))
    assert "head_clusters_distributions.png" in found["plot"]
    assert found["heads"][0] == "dense L0H1"
    assert main(["cluster", dense, "--compare", sparse, "--k", "4"]) == 0
    shown = capsys.readouterr().out
    assert "share of heads" in shown
    assert "77.1%" in shown
    with Path("head_clusters.csv").open(newline="") as file:
        assert [row["table"] for row in csv.DictReader(file)] == ["dense"] * 48 + ["sparse"] * 48


def test_features_may_be_any_complete_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"0,{head},{head % 3},{head * 0.1},{'' if head else 1},{head % 2}" for head in range(9)]
    path = table("own.csv", rows, "layer,head,entropy,mine,distance,other\n")
    assert main(["cluster", path, "--features", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == ["entropy", "mine", "other"]
    assert main(["cluster", path, "--features", "mine,other", "--k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == ["mine", "other"]
    assert main(["cluster", path]) == 3
    shown = capsys.readouterr().err
    assert "own.csv has no column sparsity" in shown
    assert "entropy, mine, distance, other" in shown


def test_one_attention_of_several_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"0,{head},{head % 3},{0.1 * head},{'' if side == 'dec.cross' else head},{side}"
        for side in ("enc.self", "dec.cross")
        for head in range(5)
    ]
    path = table("heads.csv", rows, "layer,head,entropy,sparsity,distance,attention\n")
    assert main(["cluster", path]) == 3
    shown = capsys.readouterr().err
    assert "dec.cross L0H0 has no distance" in shown
    assert "--attention enc.self" in shown
    assert main(["cluster", path, "--attention", "enc.self", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["heads"] == [f"L0H{head}" for head in range(5)]
    assert main(["cluster", path, "--attention", "dec.self"]) == 3
    assert "it has dec.cross, enc.self" in capsys.readouterr().err


GOOD = [f"0,{head},{head}.5,0.{head},{2 * head}" for head in range(6)]


@pytest.mark.parametrize(
    ("header", "rows", "options", "code", "message"),
    [
        ("layer,entropy\n", ["0,1"], "", 3, "has no column head"),
        ("layer,head,entropy,sparsity\n", ["0,0,1,1", "0,1,2,2", "0,2,3,1"], "", 3, "has no column distance"),
        ("", [], "", 3, "has no column layer"),
        (HEADER, [], "", 3, "holds no heads"),
        (HEADER, [*GOOD, "0,6,nan,0.1,1"], "", 3, "L0H6 has no entropy"),
        (HEADER, [*GOOD, "0,6,,0.1,1"], "", 3, "a number is missing in 1 of 7 rows"),
        (HEADER, [*GOOD, "0,6,1.0,inf,1"], "", 3, "L0H6 has no sparsity"),
        (HEADER, [*GOOD, "0,6,much,0.1,1"], "", 3, "line 8: the entropy is 'much'"),
        (HEADER, [*GOOD, "0,x,1,0.1,1"], "", 3, "line 8: the head is 'x'"),
        (HEADER, [*GOOD, "0,6"], "", 3, "L0H6 has no entropy"),
        (HEADER, [*GOOD, "0,3,1,0.1,1"], "", 3, "L0H3 is there twice"),
        (HEADER, GOOD[:1], "", 2, "2 clusters of 1 head"),
        (HEADER, GOOD, "--k 7", 2, "k from 2 to 5"),
        (HEADER, GOOD, "--k 2..9", 2, "6 clusters of 6 heads"),
        (HEADER, GOOD, "--k 5..3", 2, "--k 5..3"),
        (HEADER, GOOD, "--k some", 2, "--k some"),
        (HEADER, ["0,0,1,1,1", "0,1,1,1,1", "0,2,1,1,1"], "", 2, "3 heads, 1 of them different"),
        (HEADER, GOOD, "--features entropy entropy", 2, "names a metric twice"),
        (HEADER, GOOD, "--compare heads.csv", 2, "different tables"),
        (HEADER, GOOD, "--method dbscan", 2, "one of ward, kmeans, gmm"),
    ],
)
def test_bad_tables_and_options_are_refused(
    header: str, rows: list[str], options: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table("heads.csv", rows, header)
    assert main(["cluster", "heads.csv", *options.split()]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert not Path("head_clusters.csv").exists()


def test_tables_whose_numbers_mean_different_things_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    one = table("one.csv", GOOD, "layer,head,entropy,sparsity_0.01,distance\n")
    other = table("other.csv", GOOD, "layer,head,entropy,sparsity_0.0001,distance\n")
    assert main(["cluster", "--compare", one, other]) == 2
    assert "one.csv has sparsity_0.01, and other.csv has sparsity_0.0001" in capsys.readouterr().err
    assert main(["cluster", "--compare", one, other, "--features", "entropy", "distance", "--k", "3"]) == 0
    assert main(["cluster", one, "--json"]) == 0
    capsys.readouterr()
    header = "layer,head,sparsity_0.01,entropy,distance,sparsity_1e-05\n"
    assert main(["cluster", table("both.csv", [f"{row},0.1" for row in GOOD], header)]) == 2
    assert "sparsity_0.01 or sparsity_1e-05" in capsys.readouterr().err
    header = "layer,head,entropy,max,distance,convention\n"
    paths = [table(f"{name}.csv", [f"{row},{name}" for row in GOOD], header) for name in ("exact", "nanochat")]
    assert main(["cluster", "--compare", *paths, "--features", "entropy", "distance"]) == 2
    assert "tables of the conventions exact and nanochat" in capsys.readouterr().err


def test_what_is_no_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "nowhere.csv"]) == 3
    assert main(["cluster"]) == 2
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert main(["cluster", "picture.png"]) == 3
    shown = capsys.readouterr().err
    assert "no file nowhere.csv" in shown
    assert "which table?" in shown
    assert "picture.png is not a CSV file" in shown


def test_fewer_heads_than_eight_clusters_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", table("heads.csv", GOOD), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["silhouette"]) == ["2", "3", "4", "5"]
