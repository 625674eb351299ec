"""What is written to a disk alone refuses a place in a bucket, of which a path would make a folder `s3:`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import traceformer as tf
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.store.objects.path import disk_path

BUCKET = "s3://bucket/results"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tf.load_model("byte")


def written(model: LoadedModel) -> dict[str, Callable[[], Any]]:
    metrics = tf.heads(model, ["a b"])
    pair: dict[str, Any] = {"clean": "abXd", "corrupt": "abZd", "answer": "s", "wrong": "Z"}
    run = tf.record(model, ["a b"], "resid")
    return {
        "a table of heads": lambda: metrics.write(BUCKET + ".csv"),
        "an ablation": lambda: tf.ablate(model, ["ab"], out=BUCKET),
        "patches": lambda: tf.patch(model, **pair, out=BUCKET),
        "an export": lambda: tf.export(run, format="safetensors", folder=BUCKET),
        "a page": lambda: tf.export_html(run, BUCKET + ".html"),
    }


def test_nothing_makes_a_folder_of_a_bucket(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for what, write in written(model).items():
        with pytest.raises(UsageError, match="is a place in a bucket"):
            write()
        assert [*tmp_path.iterdir()] == [], what


def test_a_path_is_a_path(tmp_path: Path) -> None:
    assert disk_path(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="s3://bucket/x is a place in a bucket"):
        disk_path(Path("s3://bucket/x"))
