"""Streams recorded: the same arrays as from a list, an end that is said or found, and every text once."""

import gzip
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import traceformer as tf
from tests.capture.asked import Stopped, stop_after
from traceformer.errors import ConfigurationChanged, RunExists, Unreadable, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.store.commits import CommitRecord, committed_shards, verify_run

# The longest has no more than 64 tokens: T is 64 whether it is looked for or declared.
TEXTS = [f"{n}: " + "the cat sat on the mat " * (n * 7 % 5) for n in range(37)]
SLOW = pytest.mark.slow
OPTIONS: dict[str, Any] = {"capture": "attn resid qkv", "layers": [0, 1], "max_seq_len": 64, "batch_size": 3}


@pytest.fixture
def model(load: Callable[..., LoadedModel]) -> LoadedModel:
    return load("gpt2")


def texts_of(count: int = len(TEXTS)) -> Iterator[str]:
    yield from TEXTS[:count]


def arrays_of(run: tf.Run) -> dict[str, np.ndarray]:
    """Every number of a run, as it is stored."""
    found: dict[str, np.ndarray] = {}
    for spec in run.layout.arrays:
        for example in range(run.n):
            found[f"{spec.key} {example}"] = run.get(example, spec.key, dtype="stored")
    return found


def assert_equal(one: tf.Run, other: tf.Run) -> None:
    assert one.ids == other.ids
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], name, strict=True)


def array_files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("c.*")}


def asked(**changes: Any) -> dict[str, Any]:
    """How a test records, in shards of four."""
    return {**OPTIONS, "shard_examples": 4, **changes}


def stopped(model: LoadedModel, texts: Any, out: Path, after: int, **options: Any) -> None:
    with pytest.raises(Stopped):
        tf.record(model, texts, out=out, progress=stop_after(after), **asked(**options))


@pytest.mark.parametrize(
    "batches",
    [{"batch_size": 3}, {"batch_size": None, "batch_tokens": 200}, {"batch_size": None, "batch_tokens": "auto"}],
)
def test_a_stream_gives_the_arrays_of_a_list_bit_for_bit(
    model: LoadedModel, tmp_path: Path, batches: dict[str, Any]
) -> None:
    options: dict[str, Any] = {**OPTIONS, **batches, "shard_examples": 8}
    listed = tf.record(model, TEXTS, out=tmp_path / "listed", **options)
    streamed = tf.record(model, texts_of(), out=tmp_path / "streamed", **options)
    assert listed.T == streamed.T == 64
    assert_equal(listed, streamed)
    assert listed.tokens.drop(columns=[]).equals(streamed.tokens)
    assert not verify_run(tmp_path / "streamed")
    assert (streamed.about.n_examples, streamed.layout.n_examples) == (37, 37)
    assert streamed.about.tokens == listed.about.tokens
    assert streamed.about.stream == {"shuffle": None}
    assert listed.about.stream is None


@pytest.mark.slow
def test_without_a_shard_size_b_is_the_stores_choice(model: LoadedModel, tmp_path: Path) -> None:
    listed = tf.record(model, TEXTS, out=tmp_path / "listed", **OPTIONS)
    streamed = tf.record(model, TEXTS, out=tmp_path / "streamed", streaming=True, **OPTIONS)
    assert listed.layout.shard_examples == streamed.layout.shard_examples
    assert_equal(listed, streamed)


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.slow
def test_encoders_and_encoder_decoders_are_streamed(
    load: Callable[..., LoadedModel], tmp_path: Path, family: str
) -> None:
    options: dict[str, Any] = {"capture": "attn hidden", "max_seq_len": 64, "shard_examples": 8}
    listed = tf.record(load(family), TEXTS[:20], out=tmp_path / "listed", **options)
    streamed = tf.record(load(family), texts_of(20), out=tmp_path / "streamed", **options)
    assert_equal(listed, streamed)


def test_in_memory_a_stream_ends_with_its_limit_or_before(model: LoadedModel) -> None:
    run = tf.record(model, texts_of(), "resid", max_seq_len=64, limit=10, shard_examples=4)
    assert (run.n, run.folder, run.layout.n_examples) == (10, None, 10)
    assert_equal(run, tf.record(model, TEXTS[:10], "resid", max_seq_len=64, shard_examples=4))
    assert tf.record(model, texts_of(5), "resid", max_seq_len=64, limit=100).n == 5
    with pytest.raises(UsageError, match="a stream in memory; nobody knows how long it is"):
        tf.record(model, texts_of(), "resid", max_seq_len=64)


def files_of(kind: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    """Writes rows as files of a kind; returns what to name them by."""
    folder.mkdir()
    parts = [rows[at : at + 15] for at in range(0, len(rows), 15)]
    for number, part in enumerate(parts):
        name = folder / f"part-{number}"
        lines = "\n".join(map(json.dumps, part)).encode()
        if kind == "jsonl.gz":
            name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines))
        elif kind == "jsonl.zst":
            name.with_suffix(".jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines, asbytes=True))
        elif kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), name.with_suffix(".parquet"), row_group_size=4)
        else:
            with tarfile.open(name.with_suffix(".tar"), "w") as archive:
                for row in part:
                    told = tarfile.TarInfo(f"{row['n']:04d}.json")
                    content = json.dumps(row).encode()
                    told.size = len(content)
                    archive.addfile(told, BytesIO(content))
    return f"{folder}/*.{kind}"


@pytest.mark.parametrize(
    "kind", ["jsonl.gz", *(pytest.param(kind, marks=SLOW) for kind in ("jsonl.zst", "parquet", "tar"))]
)
@pytest.mark.parametrize(
    ("shuffled", "stops"),
    [
        pytest.param({}, (5, 30), marks=SLOW, id="in order"),
        pytest.param({"shuffle": 11, "shuffle_buffer": 6}, (13,), id="shuffled"),
    ],
)
def test_files_of_each_kind_are_gone_on_with_at_the_record_where_they_stopped(
    model: LoadedModel, tmp_path: Path, kind: str, shuffled: dict[str, int], stops: tuple[int, ...]
) -> None:
    rows = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    named = files_of(kind, tmp_path / "texts", rows)
    options: dict[str, Any] = {**OPTIONS, **shuffled, "shard_examples": 4, "streaming": True}
    whole = tf.record(model, named, out=tmp_path / "whole", **options)
    assert sorted(whole.tokens.n) == list(range(37))
    assert len(set(whole.ids)) == 37
    assert (list(whole.tokens.n) == list(range(37))) == (not shuffled)
    for after in stops:
        out = tmp_path / f"stopped-{after}"
        stopped(model, named, out, after, streaming=True, **shuffled)
        assert tf.open_run(tmp_path / f"_tmp_stopped-{after}").n < 37
        gone_on = tf.record(model, named, out=out, resume=True, **options)
        assert gone_on.ids == whole.ids
        assert array_files(out) == array_files(tmp_path / "whole")
        assert not verify_run(out)


@pytest.mark.parametrize("shuffled", [{}, {"shuffle": 2, "shuffle_buffer": 10}], ids=["in order", "shuffled"])
@pytest.mark.slow
def test_an_iterable_from_its_beginning_is_gone_on_with(
    model: LoadedModel, tmp_path: Path, shuffled: dict[str, int]
) -> None:
    options: dict[str, Any] = {**OPTIONS, **shuffled, "shard_examples": 4}
    whole = tf.record(model, texts_of(), out=tmp_path / "whole", **options)
    for after in (2, 14):
        out = tmp_path / f"stopped-{after}"
        stopped(model, texts_of(), out, after, **shuffled)
        assert_equal(tf.record(model, texts_of(), out=out, resume=True, **options), whole)
        assert array_files(out) == array_files(tmp_path / "whole")


@pytest.mark.slow
def test_another_stream_is_refused_and_what_was_committed_is_kept(model: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped(model, texts_of(), out, 20)
    before = committed_shards(tmp_path / "_tmp_run")
    options: dict[str, Any] = {**OPTIONS, "shard_examples": 4, "out": out, "resume": True}
    for wrong, shard in (
        (["another", *TEXTS[1:]], 0),
        (TEXTS[:13] + ["other"] * 24, before[-1]),
        (TEXTS[:6], before[-1]),
    ):
        with pytest.raises(ConfigurationChanged, match=rf"shard {shard} was made of 4 texts from record|ends before"):
            tf.record(model, iter(wrong), **options)
    with pytest.raises(ConfigurationChanged, match="another shuffle"):
        tf.record(model, texts_of(), shuffle=3, shuffle_buffer=5, **options)
    with pytest.raises(ConfigurationChanged, match="max_seq_len was 64, is 60"):
        tf.record(model, texts_of(), **asked(**{**options, "max_seq_len": 60}))
    assert committed_shards(tmp_path / "_tmp_run") == before
    assert tf.record(model, texts_of(), **options).n == 37


@pytest.mark.slow
def test_a_limit_may_be_another_when_a_stream_is_gone_on_with(model: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped(model, texts_of(), out, 10)
    options: dict[str, Any] = {**OPTIONS, "shard_examples": 4, "out": out, "resume": True}
    with pytest.raises(UsageError, match=r"`limit=3`, and \d+ examples are committed"):
        tf.record(model, texts_of(), limit=3, **options)
    run = tf.record(model, texts_of(), limit=18, **options)
    assert (run.n, run.finished) == (18, True)
    assert_equal(run, tf.record(model, TEXTS[:18], **asked()))


def test_finish_ends_a_stream_with_what_was_committed(model: LoadedModel, tmp_path: Path) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield from TEXTS

    stopped(model, endless(), tmp_path / "run", 17)
    unfinished = tf.open_run(tmp_path / "_tmp_run")
    assert not unfinished.finished
    assert unfinished.n == 16
    assert unfinished.about.n_examples is None
    run = tf.finish(tmp_path / "run")
    assert (run.finished, run.n, run.about.n_examples) == (True, 16, 16)
    assert run.about.tokens is not None
    assert run.about.tokens["total"] == {"dec": int(run.lengths().sum())}
    assert not verify_run(tmp_path / "run")
    assert_equal(run, tf.record(model, TEXTS[:16], **asked()))
    assert tf.finish(run) is run
    with pytest.raises(RunExists, match="is finished"):
        tf.record(model, endless(), out=tmp_path / "run", resume=True, **OPTIONS)


def test_only_an_unfinished_stream_with_a_shard_can_be_finished(model: LoadedModel, tmp_path: Path) -> None:
    stopped(model, TEXTS, tmp_path / "listed", 9)
    with pytest.raises(UsageError, match="is not over a stream"):
        tf.finish(tmp_path / "listed")
    stopped(model, texts_of(), tmp_path / "begun", 1)
    if not committed_shards(tmp_path / "_tmp_begun"):
        with pytest.raises(UsageError, match=r"nothing of .* was committed"):
            tf.finish(tmp_path / "begun")


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_was_finished_is_finished(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traceformer.store import finishing

    options: dict[str, Any] = {**OPTIONS, "shard_examples": 4, "out": tmp_path / "run"}
    for step in ("write_metadata", "_join_tokens", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(finishing, step, lambda *_: raise_stopped())
            with pytest.raises(Stopped):
                tf.record(model, texts_of(), resume=True, **options) if step != "write_metadata" else tf.record(
                    model, texts_of(), **options
                )
    run = tf.record(model, texts_of(), resume=True, **options)
    assert run.n == 37
    assert not verify_run(tmp_path / "run")


def raise_stopped() -> None:
    raise Stopped


@SLOW
def test_a_damaged_record_stops_the_run_and_what_came_before_is_kept(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    good = [json.dumps({"text": text}) for text in TEXTS]
    path.write_text("\n".join([*good[:21], '{"label": 3}', *good[21:]]))
    options: dict[str, Any] = {**OPTIONS, "shard_examples": 4, "out": tmp_path / "run", "streaming": True}
    with pytest.raises(Unreadable, match=r"texts\.jsonl, line 22: nothing where the text") as refused:
        tf.record(model, path, **options)
    assert "`resume=True` once it is mended, or traceformer finish" in refused.value.hint
    assert committed_shards(tmp_path / "_tmp_run") == [0, 1, 2, 3, 4]
    path.write_text("\n".join(good))
    whole = tf.record(model, path, resume=True, **options)
    assert whole.n == 37


@pytest.mark.parametrize(
    ("texts", "words"),
    [([], "holds no text"), (["", " "], "all 2 of its records are blank"), (["\u200b"], "has a token")],
)
def test_an_empty_stream_is_refused_and_nothing_is_written(
    load: Callable[..., LoadedModel], tmp_path: Path, texts: list[str], words: str
) -> None:
    with pytest.raises(Unreadable, match=words):
        tf.record(load("gpt2"), iter(texts), out=tmp_path / "run", max_seq_len=64)
    assert not (tmp_path / "_tmp_run").exists()


def test_an_id_that_occurs_twice_in_a_shard_is_named(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a text", "id": str(n % 3)}) for n in range(5)))
    with pytest.raises(Unreadable, match=r"'0' occurs twice: .*a\.jsonl, line 1 and .*a\.jsonl, line 4"):
        tf.record(model, path, out=tmp_path / "run", streaming=True, max_seq_len=64)


def test_columns_that_come_later_are_kept(model: LoadedModel, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", **({"late": n} if n > 5 else {})} for n in range(9)]
    run = tf.record(model, iter(rows), "resid", out=tmp_path / "run", max_seq_len=64, shard_examples=4)
    assert run.tokens.late.fillna(-1).tolist() == [-1] * 6 + [6, 7, 8]


def test_what_is_cut_or_passed_over_is_said(model: LoadedModel, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = tf.record(model, iter(["", *TEXTS[:6], " "]), "resid", out=tmp_path / "run", max_seq_len=32)
    words = [str(each.message) for each in said]
    cut = sum(run.tokens.truncated)
    assert f"texts are cut to 32 tokens: {cut} of 6" in words
    assert cut > 0
    assert "null or blank texts are passed over: 2" in words
    assert run.about.tokens is not None
    assert run.about.tokens["truncated_texts"] == cut


def test_each_shard_says_where_the_stream_stood(model: LoadedModel, tmp_path: Path) -> None:
    named = files_of("jsonl.gz", tmp_path / "texts", [{"text": text, "n": n} for n, text in enumerate(TEXTS)])
    tf.record(model, named, "resid", out=tmp_path / "run", streaming=True, max_seq_len=64, shard_examples=8)
    points = [dict(CommitRecord.read(tmp_path / "run", shard).source or {})["point"] for shard in range(5)]
    assert [(point["records"], point["file"], point["record"]) for point in points] == [
        (0, "part-0.jsonl.gz", 0),
        (8, "part-0.jsonl.gz", 8),
        (16, "part-1.jsonl.gz", 1),
        (24, "part-1.jsonl.gz", 9),
        (32, "part-2.jsonl.gz", 2),
    ]


def test_what_a_stream_cannot_be_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    out: dict[str, Any] = {"out": tmp_path / "run"}
    with pytest.raises(UsageError, match="`targets` does not apply to a stream"):
        tf.record(model, texts_of(), targets=["a"], **out)
    with pytest.raises(UsageError, match="`shuffle` is of streams"):
        tf.record(model, TEXTS, shuffle=3, **out)
    with tf.edit(model, tf.edits.zero("resid_post", layer=0)), pytest.raises(UsageError, match="edits and a stream"):
        tf.record(model, texts_of(), **out)
    with pytest.raises(UsageError, match="batch_tokens=20"):
        tf.record(model, texts_of(), max_seq_len=64, batch_tokens=20, **out)
    with pytest.raises(UsageError, match="`limit=0` selects nothing"):
        tf.record(model, texts_of(), limit=0, **out)


def test_a_stream_is_told_without_a_total(model: LoadedModel, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    tf.record(
        model,
        texts_of(),
        "resid",
        max_seq_len=64,
        out=tmp_path / "run",
        progress=lambda at: told.append((at.examples_done, at.examples_total)),
    )
    assert (37, 0) in told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shuffle": -1}, "`shuffle=-1`; a whole number, 0 or more"),
        ({"shuffle": "x"}, "`shuffle='x'`; a whole number"),
        ({"shuffle": 1, "shuffle_buffer": 1}, "`shuffle_buffer=1`; a whole number, 2 or more"),
        ({"shuffle_buffer": 5}, "`shuffle_buffer` without `shuffle`"),
        ({"streaming": False, "shuffle_buffer": 5}, "`shuffle_buffer` without `shuffle`"),
        ({"max_seq_len": 0}, '`max_seq_len=0`; a whole number, 1 or more, or "auto"'),
        ({"streaming": False, "max_seq_len": 0}, "`max_seq_len=0`"),
        ({"streaming": False, "max_seq_len": -3}, "`max_seq_len=-3`"),
        ({"streaming": False, "dec_max_len": 0}, "`dec_max_len=0`; a whole number, 1 or more"),
    ],
)
def test_an_order_or_a_cut_that_is_none_is_refused(
    model: LoadedModel, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        tf.record(model, TEXTS, **{**OPTIONS, "streaming": True, "out": tmp_path / "run", **given})
    assert said in str(refused.value)
    assert [*tmp_path.iterdir()] == []


def test_a_stream_keeps_the_largest_keys_as_a_list_does(model: LoadedModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"capture": "attn", "store_topk": 3, "dtype": "float32", "max_seq_len": 64, "limit": 5}
    assert_equal(*(tf.record(model, TEXTS, streaming=way, **options) for way in (False, True)))
    with pytest.raises(UsageError, match="the 65 largest keys of a query; no text has more than 64 tokens"):
        tf.record(model, TEXTS, **{**options, "store_topk": 65}, streaming=True, out=tmp_path / "run")
    assert [*tmp_path.iterdir()] == []
