"""What is recorded or generated straight into a bucket is what goes to a disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.store import runs
from tests.store.bucket_server import Bucket
from traceformer.cli import main
from traceformer.errors import ConfigurationChanged, RunExists
from traceformer.store.commits import committed_shards
from traceformer.store.leased import LeasedWriter
from traceformer.store.place import Place

pytestmark = pytest.mark.slow

TEXTS = ["returns the name of the file", "an error", "raises ValueError if the name is wrong", "a list", "x"]
HOW: dict[str, Any] = {"capture": "attn resid", "layers": [0, 1], "shard_examples": 2, "batch_size": 2}


def same(found: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    """Whether two recordings have the same files and bytes, but for the head, which says when it was begun."""
    stated = {"meta.json", "manifest.json"}
    return found.keys() == whole.keys() and {name for name in whole if found[name] != whole[name]} <= stated


def test_a_recording_in_a_bucket_has_the_bytes_of_one_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    run = tf.record("byte", TEXTS, out=f"s3://{bucket.name}/traces/run", **HOW)
    assert run.finished
    assert str(run.folder) == f"s3://{bucket.name}/traces/run"
    tf.record("byte", TEXTS, out=tmp_path / "run", **HOW)
    assert same(bucket.contents(bucket.place("traces/run")), runs.contents(tmp_path / "run"))


def test_patterns_by_recipe_are_made_of_a_bucket_as_they_are_of_a_disk(bucket: Bucket, tmp_path: Path) -> None:
    run = tf.record("byte", TEXTS, out=f"s3://{bucket.name}/run", patterns="recipe", **HOW)
    other = tf.record("byte", TEXTS, out=tmp_path / "run", patterns="recipe", **HOW)
    assert same(bucket.contents(bucket.place("run")), runs.contents(tmp_path / "run"))
    assert run.layout == other.layout
    assert run.layout.recipes
    assert run.verify().ok
    for example in range(len(TEXTS)):
        np.testing.assert_array_equal(run.attn(example), other.attn(example))
        np.testing.assert_array_equal(run.attn(example, 1, 2), other.attn(example, 1, 2))
        np.testing.assert_array_equal(run.attn(example, queries=slice(-1, None)), other.attn(example)[:, :, -1:])
    for (example_id, found), (_, expected) in zip(run.head("attn", 0, 3), other.head("attn", 0, 3), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=example_id)


def test_a_recording_that_is_interrupted_is_resumed_and_nothing_else_is(bucket: Bucket, tmp_path: Path) -> None:
    out = f"s3://{bucket.name}/run"

    def stop_in_the_second_shard(done: Any) -> None:
        if done.examples_done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tf.record("byte", TEXTS, out=out, progress=stop_in_the_second_shard, **HOW)
    assert 0 < len(committed_shards(bucket.place("run"))) < 3
    with pytest.raises(RunExists, match="an unfinished run is in s3://"):
        tf.record("byte", TEXTS, out=out, **HOW)
    with pytest.raises(ConfigurationChanged, match="another"):
        tf.record("byte", TEXTS[1:], out=out, resume=True, **HOW)
    assert tf.record("byte", TEXTS, out=out, resume=True, **HOW).finished
    tf.record("byte", TEXTS, out=tmp_path / "run", **HOW)
    assert same(bucket.contents(bucket.place("run")), runs.contents(tmp_path / "run"))
    with pytest.raises(RunExists, match="run exists"):
        tf.record("byte", TEXTS, out=out, **HOW)


def test_answers_go_to_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    how: dict[str, Any] = {"capture": "attn", "max_tokens": 5, "temperature": 0}
    run = tf.generate("byte", ["The function", "If"], out=f"s3://{bucket.name}/said", **how)
    assert run.finished
    other = tf.generate("byte", ["The function", "If"], out=tmp_path / "said", **how)
    found, whole = bucket.contents(bucket.place("said")), runs.contents(tmp_path / "said")
    assert found.keys() == whole.keys()
    assert {name for name in whole if "/c." in name and found[name] != whole[name]} == set()
    assert [*run.tokens.response] == [*other.tokens.response]


def test_the_command_line_writes_to_a_bucket_and_says_where(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS))
    out = f"s3://{bucket.name}/traces/run"
    line = ["extract", "--model", "byte", "--dataset", "texts.txt", "--capture", "attn", "--out_dir", out]
    assert main(line) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert f"next: traceformer inspect {out}" in said.err
    assert main(line) == 3
    assert f"error: {out} exists" in capsys.readouterr().err
    assert main([*line, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == out
    assert [path.name for path in Path().iterdir()] == ["texts.txt"]


def test_two_machines_share_a_run_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    out = f"s3://{bucket.name}/run"
    first = tf.record("byte", TEXTS, out=out, num_shards=2, shard_index=0, **HOW)
    assert not first.finished
    assert tf.record("byte", TEXTS, out=out, num_shards=2, shard_index=1, **HOW).finished
    tf.record("byte", TEXTS, out=tmp_path / "run", **HOW)
    assert same(bucket.contents(bucket.place("run")), runs.contents(tmp_path / "run"))


def test_a_place_is_shared_by_leases_on_a_disk_too(tmp_path: Path) -> None:
    place = Place(folder=tmp_path / "run", claims="lease")
    place.check()
    layout = runs.plan(arrays=runs.FEW)
    with LeasedWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, joins=True) as writer:
        assert next(writer.claims()) == 0
        place.check()  # an unfinished run is joined
        with pytest.raises(RunExists, match="another process is writing"):
            runs.complete(tmp_path / "run", layout)
