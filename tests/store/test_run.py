"""TraceStore gives the numbers that were recorded, by the model's own layers and heads, without padding."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store import runs
from traceformer import Run, TraceStore
from traceformer.errors import CorruptRun, ExampleNotFound, NotFound, NotRecorded, SelectionError
from traceformer.sites import ArrayKey
from traceformer.store.writer import RunWriter

KV_HEAD_OF = {0: 0, 1: 0, 2: 1, 3: 1}


def whole(store: TraceStore, key: str) -> list[np.ndarray]:
    """Returns all examples' true numbers of an array."""
    return [runs.expected(store.layout, runs.spec(key), example) for example in range(store.layout.n_examples)]


# The padded store's API


def test_api_of_the_padded_store_on_a_decoder(decoder: TraceStore) -> None:
    eid = decoder.tokens.iloc[0]["example_id"]
    length = decoder.length(eid)
    assert decoder.meta["model"] == "tiny"
    assert (decoder.arch, decoder.n, decoder.T, decoder.L, decoder.H, decoder.d_head) == ("dec", 11, 128, 6, 4, 8)
    assert decoder.attn(eid, side="dec", layer=4, head=2).shape == (length, length)
    assert decoder.attn(eid, layer=4).shape == (3, length, length)
    assert decoder.attn(eid, head=0).shape == (2, length, length)
    assert decoder.qkv(eid, "k", side="dec", layer=1, head=0).shape == (length, 8)
    assert decoder.hidden(eid).shape == (7, length, 24)
    assert decoder.hidden(eid, layer=6).shape == (length, 24)
    assert decoder.resid_embed(eid).shape == (length, 24)
    assert decoder.resid(eid, "post_attn", layer=4).shape == (length, 24)
    assert decoder.has(eid)
    assert not decoder.has("nobody")
    assert decoder.row("example-5") == 5
    assert decoder.text("example-5") == "text 5"
    assert decoder.encodings("example-5") == {"input_ids": list(range(decoder.length("example-5")))}


def test_api_of_the_padded_store_on_an_encoder_decoder(encoder_decoder: TraceStore) -> None:
    store, eid = encoder_decoder, "example-6"
    enc, dec = store.length(eid, "enc"), store.length(eid, "dec")
    assert store.attn(eid, side="enc", layer=1, head=0).shape == (enc, enc)
    assert store.attn(eid, layer=1, head=0).shape == (enc, enc)
    assert store.attn(eid, side="dec", kind="self", layer=1, head=0).shape == (dec, dec)
    assert store.attn(eid, side="dec", kind="cross", layer=1, head=0).shape == (dec, enc)
    assert store.attn(eid, kind="cross", layer=1, head=0).shape == (dec, enc)
    assert store.qkv(eid, "q", side="dec", kind="cross", layer=1, head=0).shape == (dec, 8)
    assert store.qkv(eid, "k", side="dec", kind="cross", layer=1, head=0).shape == (enc, 8)
    assert store.hidden(eid, side="dec").shape == (7, dec, 24)
    assert np.array_equal(store.get(eid, "dec.cross.z", 4, 3), whole(store, "dec.cross.z")[6][1, 2])


def test_arrays_have_the_padded_stores_names_and_shapes(encoder_decoder: TraceStore) -> None:
    arrays = encoder_decoder.arrays()
    assert arrays["enc_self_attn"] == (11, 2, 3, 128, 128)
    assert arrays["dec_cross_attn"] == (11, 2, 3, 64, 128)
    assert arrays["enc_self_k"] == (11, 2, 2, 128, 8)
    assert arrays["dec_cross_v"] == (11, 2, 2, 128, 8)
    assert arrays["dec_hidden"] == (11, 7, 64, 24)
    assert arrays["enc_res_embed"] == (11, 128, 24)


@settings(deadline=None)
@given(data=st.data())
def test_get_is_numpy_indexing_with_the_models_numbers(decoder: TraceStore, data: st.DataObject) -> None:
    array = data.draw(st.sampled_from(decoder.layout.arrays))
    example = data.draw(st.integers(0, 10))
    layer = data.draw(st.sampled_from([None, *array.layers]))
    attention_heads = (
        [h for h in range(4) if KV_HEAD_OF[h] in array.heads] if array.key.site in "kvk_proj" else array.heads
    )
    head = data.draw(st.sampled_from([None, *attention_heads])) if array.heads else None
    wanted = runs.expected(decoder.layout, array, example)
    if layer is not None:
        wanted = wanted[array.layers.index(layer)]
    if head is not None:
        stored = array.heads.index(KV_HEAD_OF[head] if "kv_head" in array.site.axes else head)
        wanted = np.take(wanted, stored, axis=0 if layer is not None else 1)
    assert np.array_equal(decoder.get(runs.name(example), array.key, layer, head), wanted)


@pytest.mark.parametrize(("head", "kv_head"), KV_HEAD_OF.items())
def test_a_head_of_k_is_the_kv_head_that_it_reads(decoder: TraceStore, head: int, kv_head: int) -> None:
    assert np.array_equal(decoder.qkv("example-1", "k", 4, head), whole(decoder, "dec.self.k")[1][1, kv_head])


def test_a_group_of_one_site_means_that_site(decoder: TraceStore) -> None:
    assert decoder.spec("attn").key == ArrayKey.parse("dec.self.attn_pattern")


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda s: s.attn("example-0", layer=2), SelectionError, "layers 1, 4 of dec.self.attn_pattern"),
        (lambda s: s.attn("example-0", head=1), SelectionError, "heads 0, 2, 3"),
        (lambda s: s.attn("example-0", layer=-1), SelectionError, "layer -1 requested"),
        (lambda s: s.qkv("example-0", "k", head=4), SelectionError, "the model has heads 0-3"),
        (lambda s: s.qkv("example-0", "x"), SelectionError, "q, k or v"),
        (lambda s: s.resid("example-0", "post"), SelectionError, "pre_attn post_attn post_mlp"),
        (lambda s: s.get("example-0", "logits", layer=1), SelectionError, "has no layers"),
        (lambda s: s.get("example-0", "hidden", head=1), SelectionError, "has no heads"),
        (lambda s: s.get("example-0", "resid_middle"), SelectionError, "did you mean 'resid_mid'"),
        (lambda s: s.get("example-0", "qkv"), SelectionError, "several sites"),
        (lambda s: s.get("example-0", "dec.resid_middle"), SelectionError, "not an array key"),
        (lambda s: s.attn("exampel-0"), ExampleNotFound, "did you mean 'example-0'"),
        (lambda s: s.attn("example-0", side="enc"), NotRecorded, "enc attn_pattern was not recorded"),
        (lambda s: s.attn("example-0", kind="cross"), NotRecorded, "cross attn_pattern was not recorded"),
        (lambda s: s.resid("example-0", "post_mlp"), NotRecorded, "resid_post was not recorded"),
        (lambda s: s.activations("attn", 1), SelectionError, "is a matrix"),
        (lambda s: s.activations("resid_mid"), SelectionError, "which layer of dec.resid_mid"),
        (lambda s: s.stream("resid_mid", 1, 0), SelectionError, "batches of 0"),
    ],
)
def test_what_is_not_there_is_refused_in_words(
    decoder: TraceStore, ask: Callable[[TraceStore], Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        ask(decoder)


def test_two_stacks_with_a_site_need_a_side(encoder_decoder: TraceStore) -> None:
    with pytest.raises(SelectionError, match="say side='enc' or side='dec'"):
        encoder_decoder.activations("resid_mid", 1)


# All examples


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_activations_are_all_true_tokens_in_order(tmp_path: Path, dtype: str, codec: str) -> None:
    store = TraceStore(runs.write(tmp_path / "run", runs.plan(dtype=dtype, codec=codec)))
    for key, layer in (("dec.resid_mid", 4), ("dec.embed", None), ("dec.hidden", 5), ("dec.logits", None)):
        parts = [each if layer is None else each[{4: 1, 5: 5}[layer]] for each in whole(store, key)]
        rows = store.activations(key, layer)
        assert rows.dtype == parts[0].dtype
        assert np.array_equal(rows, np.concatenate(parts))
    examples = store.token_examples()
    assert examples.tolist() == [e for e in range(11) for _ in range(store.length(runs.name(e)))]


def test_activations_of_heads_lie_side_by_side(decoder: TraceStore) -> None:
    z = np.concatenate(whole(decoder, "dec.self.z"), axis=2)
    assert np.array_equal(decoder.activations("z", 4), z[1].transpose(1, 0, 2).reshape(-1, 24))
    assert np.array_equal(decoder.activations("z", 4, head=3), z[1, 2])
    assert np.array_equal(
        decoder.activations("k", 4, head=2), np.concatenate(whole(decoder, "dec.self.k"), axis=2)[1, 1]
    )


@settings(deadline=None, max_examples=25)
@given(batch_tokens=st.integers(1, 900), head=st.sampled_from([None, 2]))
def test_stream_is_activations_in_batches(decoder: TraceStore, batch_tokens: int, head: int | None) -> None:
    batches = list(decoder.stream("z", 1, batch_tokens, head=head))
    assert np.array_equal(np.concatenate(batches), decoder.activations("z", 1, head))
    assert {len(batch) for batch in batches[:-1]} <= {batch_tokens}
    assert 0 < len(batches[-1]) <= batch_tokens


def test_batches_of_a_stream_may_be_kept_and_changed(decoder: TraceStore) -> None:
    batches = []
    for batch in decoder.stream("resid_mid", 1, 50):
        batches.append(batch.copy())
        batch[:] = 0
    assert np.array_equal(np.concatenate(batches), decoder.activations("resid_mid", 1))


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    """A run of 210,000 numbered tokens in 105 shards: enough to fill the shuffling window three times."""
    array = runs.ArraySpec(ArrayKey.parse("dec.resid_mid"), (0,), (), 1)
    layout = runs.plan(arrays=[array], n_examples=210, shard_examples=2, longest={"dec": 1000}, dtype="float32")
    with RunWriter.create(tmp_path_factory.mktemp("many") / "run", layout, {}, digest={}) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            buffer.begin({"dec": [1000, 1000]})
            for b, example in enumerate(layout.shard_range(shard)):
                buffer.rows(array.key, b)[...] = np.arange(1000 * example, 1000 * (example + 1)).reshape(1, 1000, 1)
            table = runs.pa.table({"example_id": [str(example) for example in layout.shard_range(shard)]})
            writer.commit(shard, buffer, table)
        return TraceStore(writer.finish())


def test_a_shuffled_stream_has_every_token_once_in_an_order_of_its_seed(many_tokens: TraceStore) -> None:
    def order(seed: int) -> np.ndarray:
        batches = list(many_tokens.stream("resid_mid", 0, 4096, shuffle=True, seed=seed))
        assert {len(batch) for batch in batches[:-1]} == {4096}
        return np.concatenate(batches)[:, 0]

    first = order(0)
    assert np.array_equal(np.sort(first), np.arange(210_000))
    assert np.array_equal(first, order(0))
    assert not np.array_equal(first, order(1))


def test_a_shuffled_batch_mixes_the_whole_run(many_tokens: TraceStore) -> None:
    batch = next(iter(many_tokens.stream("resid_mid", 0, 4096, shuffle=True)))[:, 0]
    places = np.unique(batch // 512)
    assert len(places) > 100
    assert places.max() - places.min() > 350  # of 411: from all over the run
    assert abs(np.corrcoef(np.arange(4096), batch)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("site", "layer", "head"), [("attn", 4, 2), ("attn", 1, None), ("k", 1, 3), ("hidden", 3, None)]
)
def test_head_goes_through_all_examples(decoder: TraceStore, site: str, layer: int, head: int | None) -> None:
    found = dict(decoder.head(site, layer, head))
    assert list(found) == list(decoder.ids)
    for example, values in found.items():
        assert np.array_equal(values, decoder.get(example, site, layer, head))


# Unfinished and damaged runs


def test_an_unfinished_run_shows_its_committed_shards(tmp_path: Path) -> None:
    layout = runs.plan("dec")
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        assert TraceStore(writer.folder).n == 0
        assert len(TraceStore(writer.folder).tokens) == 0
        for shard in (2, 0):
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        store = TraceStore(writer.folder)
    present = [0, 1, 2, 3, 8, 9, 10]
    assert not store.finished
    assert store.ids == tuple(runs.name(example) for example in present)
    assert list(store.tokens["example_id"]) == list(store.ids)
    assert store.text("example-9") == "text 9"
    with pytest.raises(ExampleNotFound, match="holds 7 so far"):
        store.attn("example-5")
    for array in layout.arrays:
        assert np.array_equal(store.get("example-9", array.key), runs.expected(layout, array, 9))
    rows = [runs.expected(layout, runs.spec("dec.resid_mid"), example)[0] for example in present]
    assert np.array_equal(store.activations("resid_mid", 1), np.concatenate(rows))
    assert [example for example, _ in store.head("attn", 1, 0)] == list(store.ids)
    tree = store.to_xarray()
    assert np.array_equal(tree["dec_res_post_attn"]["x"].sel(layer=1).values, np.concatenate(rows))
    pattern = runs.expected(layout, runs.spec("dec.self.attn_pattern"), 9)
    seen = tree["dec_self_attn"]["attn"][5].values
    assert np.array_equal(seen[:, :, : pattern.shape[2], : pattern.shape[3]], pattern)


def test_asking_for_a_run_that_is_not_finished_names_the_unfinished_one(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "run", runs.plan(), runs.META, digest=runs.DIGEST).close()
    with pytest.raises(NotFound, match=r"open .*_tmp_run"):
        TraceStore(tmp_path / "run")


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.attn("example-5", 1, 0),
        lambda s: s.get("example-5", "embed"),
        lambda s: s.activations("embed"),
        lambda s: s.activations("q", 1),
        lambda s: list(s.stream("embed")),
        lambda s: list(s.stream("embed", shuffle=True)),
        lambda s: list(s.head("attn", 1, 0)),
        lambda s: s.to_xarray()["dec_res_embed"]["x"].values,
    ],
)
@pytest.mark.parametrize("damage", ["removed", "cut", "flipped"])
def test_damage_is_an_error_and_never_zeros(run: Path, read: Callable[[TraceStore], Any], damage: str) -> None:
    for path in run.glob("*.zarr/*/c.*"):
        if path.parent.name.startswith("token_") or path.name.split(".")[1:].count("1") != 1:
            continue
        data = bytearray(path.read_bytes())
        if damage == "removed":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        else:
            for at in range(0, len(data), 100):
                data[at] ^= 64
            path.write_bytes(data)
    with pytest.raises(CorruptRun, match="verify"):
        read(TraceStore(run))


def test_a_missing_token_table_is_an_error(run: Path) -> None:
    (run / "tokens/1.parquet").unlink()
    with pytest.raises(CorruptRun, match=r"cannot read .*tokens/1\.parquet"):
        TraceStore(run).text("example-5")


@pytest.mark.parametrize("content", [b"", b"PAR1 no PAR1", b"PAR1" + bytes(range(256)) + b"PAR1"])
def test_a_damaged_token_table_is_an_error(run: Path, content: bytes) -> None:
    (run / "tokens/1.parquet").write_bytes(content)
    (run / "tokens.parquet").write_bytes(content)
    for read in (lambda store: store.text("example-5"), lambda store: store.tokens):
        with pytest.raises(CorruptRun, match="verify"):
            read(TraceStore(run))


def test_a_lost_record_is_an_error(run: Path) -> None:
    (run / "commits/1.json").unlink()
    with pytest.raises(CorruptRun, match="lost commit records"):
        TraceStore(run)


# Speed


NOT_FOR_READING = (
    *("torch", "transformers", "pandas", "pyarrow", "xarray", "zarr", "jaxtyping", "rich", "matplotlib", "sklearn"),
    *("scipy", "tensorstore", "xxhash", "threadpoolctl"),
)


def test_opening_reads_the_first_matrix_and_loads_nothing_slow(run: Path) -> None:
    code = (
        "import sys; import traceformer as tf; "
        f"tf.open_run({str(run)!r}).attn(0, layer=1, head=0); "
        f"print([name for name in {NOT_FOR_READING} if name in sys.modules])"
    )
    start = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"
    assert time.perf_counter() - start < 3  # 0.3 s on an idle machine, which benchmarks/startup.py measures


def test_a_copied_run_is_the_same_run(run: Path, tmp_path: Path) -> None:
    copy = TraceStore(shutil.copytree(run, tmp_path / "elsewhere"))
    assert np.array_equal(copy.attn("example-3", 1), TraceStore(run).attn("example-3", 1))


def test_an_id_that_two_examples_share_is_refused(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=2, shard_examples=1)
    with RunWriter.create(tmp_path / "run", layout, {}, digest={}) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            runs.fill(layout, shard, buffer)
            writer.commit(shard, buffer, runs.pa.table({"example_id": ["twin"]}))
        store = TraceStore(writer.finish())
    with pytest.raises(SelectionError, match="several examples have the id 'twin'"):
        store.get("twin", "embed")
    assert [example for example, _ in store.head("embed")] == ["twin", "twin"]


# Naming an example, and what a run says of itself


@pytest.mark.parametrize("example", [5, -6, "5", "example-5"])
def test_an_example_is_named_by_its_number_or_its_id(decoder: Run, example: int | str) -> None:
    assert decoder.example_id(example) == "example-5"
    assert decoder.row(example) == 5
    assert decoder.text(example) == "text 5"
    assert np.array_equal(decoder.attn(example, layer=4, head=2), decoder.attn("example-5", layer=4, head=2))


@pytest.mark.parametrize("example", [11, -12, "11", "-1", "example-11"])
def test_a_number_beyond_the_run_is_no_example(decoder: Run, example: int | str) -> None:
    assert not decoder.has(example)
    with pytest.raises(ExampleNotFound, match="this run holds 11"):
        decoder.row(example)


def test_digits_that_are_an_id_are_the_id(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW, n_examples=3)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer).set_column(0, "example_id", [["2", "1", "0"]])
        writer.commit(0, buffer, table)
        run = Run(writer.finish())
    assert [run.row("0"), run.row(0), run.row("2"), run.row(-1)] == [2, 0, 0, 2]


def test_a_run_says_what_it_is_in_one_line(decoder: Run, tmp_path: Path) -> None:
    assert TraceStore is Run
    assert repr(decoder) == f"Run('{decoder.folder}': 11 examples, {len(decoder.layout.arrays)} arrays)"
    unfinished = Run(runs.begin(tmp_path / "run", shards=1))
    assert repr(unfinished) == f"Run('{unfinished.folder}': 4 examples, 5 arrays, unfinished)"


def test_a_run_is_verified_from_python(run: Path) -> None:
    found = Run(run).verify()
    assert found.ok
    assert (found.finished, len(found.to_frame()), found.to_json()["problems"]) == (True, 0, [])
    assert repr(found) == f"Verification('{run}': as written, {found.n_files} files)"
    (run / "tokens.parquet").write_bytes(b"")
    damaged = Run(run).verify()
    assert not damaged.ok
    assert damaged.to_frame()["path"].tolist() == ["tokens.parquet"]
