"""What the overview and the heads lab are sent, against numpy, `tf.heads` and `tf.cluster`."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import traceformer as tf
from tests.store import runs
from traceformer.analysis.thumbnails import thumbnail
from traceformer.errors import TraceformerError
from traceformer.sites import ArrayKey
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

Ask = Callable[..., Any]
LONGEST = 50  # of 60 tokens that there are
ENCDEC = ("enc.self.attn_pattern", "dec.self.attn_pattern", "dec.cross.attn_pattern")


def write(folder: Path, keys: Sequence[str], arch: str = "dec") -> Run:
    """Writes three examples with tokens of which some are markup."""
LONGEST = 50
IDS = 40  # of a vocabulary of 60
def write(folder: Path, keys: Sequence[str], arch: str = "dec", tokens: Sequence[str] = ("<b>",)) -> Run:
    """Writes three examples: token i of each has the id i % 40, and is one of `tokens` with that number behind it."""
    stacks = ("enc", "dec") if arch == "encdec" else (arch,)
    layout = runs.plan(
        arch,
        arrays=[runs.spec(key) for key in keys],
        n_examples=3,
        shard_examples=4,
        longest=dict.fromkeys(stacks, LONGEST),
    )
    with RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            ids = table["input_ids"].to_pylist()
            for column in ("tokens", "dec_tokens") if arch == "encdec" else ("tokens",):
                table = table.append_column(column, [[[f"<b>{each}" for each in own] for own in ids]])
            ids = [[each % IDS for each in own] for own in table["input_ids"].to_pylist()]
            table = table.set_column(table.column_names.index("input_ids"), "input_ids", [ids])
                table = table.append_column(column, [[[f"{tokens[each % len(tokens)]}{each}" for each in own] for own in ids]])
            if arch == "encdec":
                table = table.append_column("dec_input_ids", [ids])
            writer.commit(shard, buffer, table)
        return Run(writer.finish())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one model: with logits, with what was read out, with neither, and of two stacks."""
    folder = tmp_path_factory.mktemp("traces")
    write(folder / "logits", ("dec.self.attn_pattern", "dec.logits"))
    write(folder / "read-out", ("dec.lens_topk", "dec.lens_topk_prob"))
    write(folder / "patterns", ENCDEC, "encdec")
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Asks for a resource until it is there: JSON, or arrays by name and what is told about them."""
    library, file = Library(folder), tmp_path_factory.mktemp("answers") / "packet"

    def asked(resource: str, **query: object) -> Any:
        while True:
            found = answer(library, resource, Query({name.strip("_"): str(value) for name, value in query.items()}))
            if not found.is_packet:
                return json.loads(found.body)
            file.write_bytes(found.body)
            with safe_open(file, "numpy") as packet:
                about = json.loads(packet.metadata()["about"])
                if "pending" not in about:
                    return {name: packet.get_tensor(name) for name in packet.keys()}, about  # noqa: SIM118
            time.sleep(0.02)

    return asked


def test_the_atlas_is_thumbnails_of_all_heads_that_are_stored(ask: Ask, folder: Path) -> None:
    run = Run(folder / "patterns")
    about = ask("overview", run="patterns", ex=1)["attentions"]
    assert [each["name"] for each in about] == ["enc.self", "dec.self", "dec.cross"]
    for each in about:
        parts = [
            ask("thumbnails", run="patterns", ex=1, attn=each["name"], from_=first, to=last)[0]["pixels"]
            for first, last in each["groups"]
        ]
        expected = thumbnail(run.get(1, ArrayKey.parse(f"{each['name']}.attn_pattern")))
        assert (each["queries"], each["keys"]) == run.get(1, f"{each['name']}.attn_pattern", 1, 0).shape
        assert (each["rows"], each["columns"]) == expected.shape[2:]
        assert np.array_equal(np.concatenate(parts), expected.reshape(-1, *expected.shape[2:]))


def test_what_was_expected_is_the_softmax_of_the_recorded_logits(ask: Ask, folder: Path) -> None:
    run = Run(folder / "logits")
    arrays, about = ask("predictions", run="logits", ex="example-2")
    logits = run.get(2, "logits").astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-p, axis=1)[:, :3]
    assert np.allclose(arrays["entropy"], -(p * np.log(p)).sum(axis=1), rtol=1e-5)
    assert np.allclose(arrays["top_probability"], np.take_along_axis(p, order, axis=1), rtol=1e-5)
    texts = np.array([token["text"] for token in about["tokens"]])
    known = max(run.length(example) for example in range(3))  # token i of each has the id i
    names = [[f"<b>{token}" if token < known else f"#{token}" for token in row] for row in order]
    assert texts[arrays["top"]].tolist() == names
    own = p[np.arange(len(p) - 1), np.arange(1, len(p))]
    names = [[f"<b>{token}" if token < IDS else f"#{token}" for token in row] for row in order]
    own = p[np.arange(len(p) - 1), np.arange(1, len(p)) % IDS]
    assert np.allclose(arrays["target_probability"][:-1], own, rtol=1e-5)
    assert np.isnan(arrays["target_probability"][-1])
    assert arrays["target"][-1] == -1
    assert np.array_equal(arrays["target_rank"][:-1], 1 + (p[:-1] > own[:, None]).sum(axis=1))
    assert (about["source"], about["speaks_of"], about["missing"]) == ("logits", "next", "")


def test_of_what_was_read_out_only_what_was_recorded_is_told(ask: Ask, folder: Path) -> None:
    arrays, about = ask("predictions", run="read-out", ex=0)
    recorded = Run(folder / "read-out").get(0, "lens_topk_prob", 4)
    assert np.array_equal(arrays["top_probability"], recorded)
    assert np.isnan(arrays["entropy"]).all()
    assert about["source"] == "lens"
    assert "entropy is not known" in about["missing"]


def test_a_run_without_logits_says_so(ask: Ask) -> None:
    arrays, about = ask("predictions", run="patterns", ex=0)
    assert arrays == {}
    assert about["source"] is None
    assert "no logits were recorded" in about["missing"]


@pytest.mark.parametrize("convention", ["exact", "thesis"])
def test_metrics_are_those_of_heads(ask: Ask, folder: Path, convention: Any) -> None:
    run = Run(folder / "patterns")
    for query, options, read in (({}, {}, 3), ({"n": 2}, {"limit": 2}, 2), ({"ex": 1}, {"examples": [1]}, 1)):
        expected = tf.heads(run, convention=convention, **options)
        arrays, about = ask("heads", run="patterns", convention=convention, **query)
        assert [metric["name"] for metric in about["metrics"]] == [*expected.values]
        assert all(metric["meaning"] for metric in about["metrics"])
        assert (about["read"], about["of"]) == (read, 3)
        for name, values in expected.values.items():
            assert np.array_equal(arrays[name], values.astype(np.float32), equal_nan=True)
        names = [about["attentions"][number] for number in arrays["attention"]]
        assert list(zip(names, arrays["layer"], arrays["head"], strict=True)) == [tuple(row) for row in expected.rows]


def test_metrics_are_kept_beside_the_run_with_every_digit(folder: Path, ask: Ask) -> None:
    ask("heads", run="logits")
    again = Library(folder)  # nothing of it is in memory
    found = answer(again, "clusters", Query({"run": "logits", "attn": "dec.self", "k": "2"}))
    assert found.is_packet
    assert [path.name for path in folder.glob(".traceformer/*/heads-*")].count("heads-exact-first-3") >= 1


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ({}, {}),
        ({"k": 2, "method": "kmeans"}, {"k": 2, "method": "kmeans"}),
        ({"features": "max_weight,first_token", "k": 3}, {"features": ["max_weight", "first_token"], "k": 3}),
    ],
)
def test_clusters_are_those_of_cluster(ask: Ask, folder: Path, query: Any, options: Any) -> None:
    found = tf.cluster(tf.heads(Run(folder / "patterns")), attention="enc.self", **options)
    arrays, about = ask("clusters", run="patterns", attn="enc.self", **query)
    assert np.array_equal(arrays["cluster"], found.clusterings.best.labels)
    assert tuple(about["names"]) == found.clusterings.best.names
    assert about["score"] == found.clusterings.best.score
    assert tuple(about["features"]) == found.features


def test_what_a_head_has_no_number_for_is_no_ground_for_clusters(ask: Ask) -> None:
    with pytest.raises(TraceformerError):
        ask("clusters", run="patterns", attn="dec.cross", features="distance,entropy")


def test_large_runs_are_measured_on_their_first_examples(
    ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traceformer.viewer.resources import heads

    monkeypatch.setattr(heads, "_CELLS", 1)
    assert ask("heads", run="logits")[1]["read"] == 1
    assert ask("heads", run="logits", n=100)[1]["read"] == 3
