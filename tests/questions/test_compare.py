"""Two runs compared: numbers of numpy's drawing against formulas, models against themselves, and what is refused."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.analysis.test_similarity import gram_cka, gram_cka_unbiased, rotated_distance
from tests.questions.two_runs import LENGTHS, TEXTS, drawn, run_of
from traceformer.analysis.comparison import Comparison
from traceformer.errors import (
    ExampleNotFound,
    NotFound,
    NotRecorded,
    NumericError,
    SelectionError,
    Unsupported,
    UsageError,
)
from traceformer.models.loaded import LoadedModel
from traceformer.presentation import present
from traceformer.questions import compared_heads, compared_readouts, compared_streams
from traceformer.questions.compare import compare
from traceformer.store.run import Run

A = {site: drawn(1, site) for site in ("resid_post", "attn_pattern", "logits")}
B = {site: drawn(2, site) for site in ("resid_post", "attn_pattern", "logits")}


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(run_of(A, name="one"), run_of(B, name="two"))


def rows(arrays: Mapping[str, Any], layer: int) -> np.ndarray:
    return np.concatenate([values[layer] for values in arrays["resid_post"]]).astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_layers_are_compared_as_gram_matrices_and_rotations_say(found: Comparison) -> None:
    streams = found.streams
    assert streams is not None
    assert (str(streams.key), streams.tokens, streams.unknown) == ("dec.resid_post", sum(LENGTHS), 0)
    for i, j in np.ndindex(2, 2):
        x, y = rows(A, i), rows(B, j)
        assert streams.cka[i, j] == pytest.approx(gram_cka_unbiased(x, y), rel=1e-9)
        assert streams.cka_biased[i, j] == pytest.approx(gram_cka(x, y), rel=1e-9)
        assert streams.procrustes[i, j] == pytest.approx(rotated_distance(x, y), rel=1e-9)


def test_heads_are_compared_query_by_query(found: Comparison) -> None:
    heads = found.heads
    assert heads is not None
    assert (heads.queries, heads.unknown, heads.all_pairs) == (sum(LENGTHS), 0, False)
    assert heads.heads_a == heads.heads_b == tuple((layer, head) for layer in (0, 1) for head in (0, 1, 2))
    pairs = list(zip(A["attn_pattern"], B["attn_pattern"], strict=True))
    for place, (layer, head) in enumerate(heads.heads_a):
        variation = np.concatenate([abs(a - b)[layer, head].sum(-1) / 2 for a, b in pairs])
        assert heads.total_variation[place] == pytest.approx(variation.mean(), rel=1e-6)  # which adds in float32
    assert heads.jensen_shannon is not None
    assert ((heads.jensen_shannon > 0) & (heads.jensen_shannon < heads.total_variation)).all()


def test_all_pairs_of_heads_have_those_of_one_number_on_the_diagonal(found: Comparison) -> None:
    every = compare(run_of(A), run_of(B), parts="heads", all_pairs=True).heads
    assert every is not None
    assert found.heads is not None
    assert every.total_variation.shape == (6, 6)
    np.testing.assert_allclose(np.diag(every.total_variation), found.heads.total_variation, rtol=1e-6)
    pairs = zip(A["attn_pattern"], B["attn_pattern"], strict=True)
    apart = np.concatenate([abs(a[0, 1] - b[1, 2]).sum(-1) / 2 for a, b in pairs])
    assert every.total_variation[1, 5] == pytest.approx(apart.mean(), rel=1e-6)
    assert every.jensen_shannon is None
    assert every.nearest == tuple(every.total_variation.argmin(axis=1).tolist())


def test_predictions_are_compared_token_by_token(found: Comparison) -> None:
    readouts = found.readouts
    assert readouts is not None
    of_texts = []
    for a, b in zip(A["logits"], B["logits"], strict=True):
        p, q = log_softmax(a), log_softmax(b)
        same = p.argmax(-1) == q.argmax(-1)
        of_texts.append(np.stack([(np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1), same]))
    every = np.concatenate(of_texts, axis=1)
    np.testing.assert_allclose((readouts.kl_ab, readouts.kl_ba, readouts.same_top), every.mean(axis=1), rtol=1e-9)
    for name, own in zip(
        ("kl_ab", "kl_ba", "same_top"), np.array([each.mean(axis=1) for each in of_texts]).T, strict=True
    ):
        np.testing.assert_allclose(readouts.of_text[name], own, rtol=1e-9)
    assert readouts.of_text["tokens"].tolist() == list(LENGTHS)
    assert readouts.of_position["tokens"].tolist() == [3, 2, 2, 2, 2, 1, 1, 1, 1]
    second = np.mean([each[0, 1] for each in of_texts if each.shape[1] > 1])
    assert readouts.of_position["kl_ab"][1] == pytest.approx(second, rel=1e-9)
    furthest = readouts.most_apart[0]
    assert furthest.kl_ab == pytest.approx(every[0].max(), rel=1e-9)
    assert furthest.token == TEXTS[int(furthest.example_id[2:])][furthest.position]
    assert [each.kl_ab for each in readouts.most_apart] == sorted(
        (each.kl_ab for each in readouts.most_apart), reverse=True
    )


def test_in_small_pieces_it_is_the_same(found: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_streams, "_BYTES", 1)
    monkeypatch.setattr(compared_streams, "_ROWS_BYTES", 1)
    monkeypatch.setattr(compared_streams, "_FEWEST_ROWS", 3)
    monkeypatch.setattr(compared_heads, "_CELLS", 7)
    monkeypatch.setattr(compared_readouts, "_MOST", 2)
    monkeypatch.setattr(compared_readouts, "_FEWEST", 1)
    steps: list[tuple[int, int]] = []
    again = compare(run_of(A, name="one"), run_of(B, name="two"), progress=lambda *step: steps.append(step))
    assert_alike(again, found)
    assert steps == [(done + 1, len(steps)) for done in range(len(steps))]
    assert len(steps) == 3 * (1 + (1 + 8) + 2)  # texts: once for predictions, means and eight products, two layers


def assert_alike(one: Comparison, other: Comparison, rtol: float = 1e-9) -> None:
    for ours, theirs in zip(one.rows(), other.rows(), strict=True):
        assert {**ours, "value": 0} == {**theirs, "value": 0}
        np.testing.assert_allclose(ours["value"], theirs["value"], rtol=rtol, atol=1e-12)


def test_a_run_against_itself_is_apart_by_nothing(byte: LoadedModel, run: Run) -> None:
    found = compare(run, run)
    assert found.left_out == {}
    assert found.readouts is not None
    assert (found.readouts.kl_ab, found.readouts.kl_ba, found.readouts.same_top) == (0, 0, 1)
    assert found.heads is not None
    assert not found.heads.total_variation.any()
    assert found.streams is not None
    np.testing.assert_allclose(np.diag(found.streams.cka), 1, atol=1e-12)
    np.testing.assert_allclose(np.diag(found.streams.procrustes), 0, atol=1e-12)
    np.testing.assert_allclose(found.streams.cka, found.streams.cka.T, atol=1e-12)


def test_models_are_compared_over_texts_as_their_runs_are(byte: LoadedModel, run: Run) -> None:
    texts = [run.text(0), run.text(1)]
    with tf.edit(byte, tf.edits.zero("z", layer=1, head=2)):
        without = tf.record(byte, texts, "attn resid_post logits", dtype="float32")
    found = compare(run, without)
    assert found.readouts is not None
    assert found.streams is not None
    assert found.heads is not None
    # What comes before the head is as it was.
    assert not found.heads.total_variation[:16].any()
    assert found.heads.total_variation[16:].all()
    np.testing.assert_allclose(found.streams.procrustes[0, 0], 0, atol=1e-12)
    assert found.streams.procrustes[3, 3] > 1e-6
    p, q = (log_softmax(np.concatenate([each.get(n, "logits") for n in (0, 1)])) for each in (run, without))
    assert found.readouts.kl_ab == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-6)
    told = compare(byte, byte, ["ab cd"])
    assert (told.about.tokens, told.left_out) == (5, {})


def test_a_stream_read_out_says_what_the_logits_say(byte: LoadedModel, run: Run) -> None:
    texts = [run.text(0), run.text(1)]
    with tf.edit(byte, tf.edits.zero("mlp_out", layer=3)):
        stream, logits = (tf.record(byte, texts, site, dtype="float32") for site in ("resid_post hidden", "logits"))
    expected = compare(run, logits, parts="readouts").readouts
    read = compare(run, stream, parts="readouts", model_b=byte).readouts
    hidden = tf.record(byte, texts, "hidden", dtype="float32")
    assert expected is not None
    assert read is not None
    assert read.sources == ("dec.logits", "dec.resid_post of the last layer")
    assert read.kl_ab == pytest.approx(expected.kl_ab, rel=1e-4)  # float32 products in another order
    same = compare(run, hidden, parts="readouts").readouts
    assert same is not None
    assert same.sources[1] == "dec.hidden of the last layer"
    assert same.kl_ab < 1e-9


def test_it_says_in_a_line_what_it_is_and_has_no_nan_in_json(found: Comparison) -> None:
    assert repr(found) == "Comparison(one | two: 3 texts, 15 tokens; readouts streams heads)"
    assert repr(found.streams) == "StreamSimilarity(dec.resid_post: 2 x 2 layers, 15 tokens)"
    assert repr(found.heads) == "HeadDistances(dec.self.attn_pattern: 6 heads, 15 queries)"
    assert repr(found.readouts).startswith("ReadoutDivergence(15 tokens: KL(A, B) ")
    assert found.readouts is not None
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["a"] == {"run": "one", "model": "made"}
    assert told["streams"]["layers_b"] == [0, 1]
    assert told["heads"]["heads_a"][4] == "L1H1"
    assert told["readouts"]["most_apart"][0]["position"] == found.readouts.most_apart[0].position
    assert "<img" in present(found, "html")


def test_its_table_has_a_row_per_number(found: Comparison) -> None:
    table = found.to_frame()
    assert list(table.columns) == ["part", "a", "b", "measure", "value"]
    assert table.groupby("part").size().to_dict() == {"readouts": 3 * 3, "streams": 4 * 3, "heads": 6 * 2}
    one = table[(table.a == "L1") & (table.b == "L0") & (table.measure == "cka")]
    assert found.streams is not None
    assert one.value.tolist() == [found.streams.cka[1, 0]]
    assert found.heads is not None
    assert found.readouts is not None
    assert list(found.heads.to_frame().columns) == [
        "layer_a",
        "head_a",
        "layer_b",
        "head_b",
        "total_variation",
        "jensen_shannon",
    ]
    assert found.readouts.to_frame().example_id.tolist() == ["ex0", "ex1", "ex2"]


def test_texts_are_matched_by_their_ids_in_any_order() -> None:
    order = [2, 0, 1]
    turned = {site: [values[i] for i in order] for site, values in B.items()}
    other = run_of(turned, name="two", texts=[TEXTS[i] for i in order], ids=[f"ex{i}" for i in order])
    assert_alike(compare(run_of(A, name="one"), other), compare(run_of(A, name="one"), run_of(B, name="two")))
    part = run_of({site: values[1:] for site, values in B.items()}, texts=TEXTS[1:], ids=["ex1", "ex2"])
    found = compare(run_of(A), part)
    assert (found.about.texts, found.about.tokens) == (2, LENGTHS[1] + LENGTHS[2])
    assert compare(run_of(A), run_of(B), limit=1).about.tokens == LENGTHS[0]


def test_layers_and_heads_are_chosen_by_the_models_numbers() -> None:
    found = compare(run_of(A), run_of(B), layers=[1], heads="0,2")
    assert found.streams is not None
    assert found.heads is not None
    assert found.streams.layers_a == found.streams.layers_b == (1,)
    assert found.heads.heads_a == ((1, 0), (1, 2))
    with pytest.raises(SelectionError, match="head 7 requested"):
        compare(run_of(A), run_of(B), heads=[7])
    with pytest.raises(SelectionError, match="layer 9 requested"):
        compare(run_of(A), run_of(B), parts="streams", layers=[9])
    with pytest.raises(SelectionError, match="layer 9 requested"):
        compare(run_of(A), run_of(B), layers=[9])


def test_widths_may_differ() -> None:
    wide = {"resid_post": drawn(3, "resid_post", width=11, layers=3)}
    found = compare(run_of(A), run_of(wide))
    assert found.streams is not None
    assert (found.streams.widths, found.streams.cka.shape) == ((6, 11), (2, 3))
    x, y = rows(A, 1), rows(wide, 2)
    assert found.streams.procrustes[1, 2] == pytest.approx(rotated_distance(x, y), rel=1e-9)
    assert found.heads is found.readouts is None
    assert found.left_out.keys() == {"readouts", "heads"}
    assert "holds no attention patterns" in found.left_out["heads"]


def test_heads_side_by_side_are_the_row_of_a_token() -> None:
    both = [
        {"q": [np.stack([values] * 3, axis=1) * [[[[1]], [[2]], [[3]]]] for values in own["resid_post"]]}
        for own in (A, B)
    ]
    both = [{"q": [values.astype(np.float32) for values in own["q"]]} for own in both]
    found = compare(run_of(both[0]), run_of(both[1]), site="q").streams
    assert found is not None
    x, y = (np.concatenate([rows(own, 0) * scale for scale in (1, 2, 3)], axis=1) for own in (A, B))
    assert found.widths == (18, 18)
    assert found.cka_biased[0, 0] == pytest.approx(gram_cka(x, y), rel=1e-6)  # rounded to float32


def test_rows_that_are_no_numbers_are_left_out_and_counted() -> None:
    broken = {site: [values.copy() for values in own] for site, own in B.items()}
    broken["resid_post"][1][1, 4] = np.nan
    broken["attn_pattern"][1][0, 2, 4] = np.nan
    broken["logits"][0][2] = np.nan
    found = compare(run_of(A), run_of(broken, unknown_rows="NaN"))
    assert found.streams is not None
    assert found.heads is not None
    assert found.readouts is not None
    assert [part.unknown for part in (found.streams, found.heads, found.readouts)] == [1, 1, 1]
    kept = np.delete(np.arange(15), LENGTHS[0] + 4)
    x, y = rows(A, 0)[kept], rows(B, 1)[kept]
    assert found.streams.cka[0, 1] == pytest.approx(gram_cka_unbiased(x, y), rel=1e-9)
    assert np.isfinite(found.heads.total_variation).all()
    nothing = {"resid_post": [np.full_like(values, np.nan) for values in B["resid_post"]]}
    with pytest.raises(NumericError, match="of 0 tokens"):
        compare(run_of(A), run_of(nothing, unknown_rows="NaN"))


OFFSETS = [[[3 * i, 3 * i + 2] for i in range(length)] for length in LENGTHS]


def test_other_tokens_are_matched_by_characters() -> None:
    """The other tokenizer cuts every word in two, and begins with a token that stands for no text."""
    cut = [["<s>", *(half for word in tokens for half in word)] for tokens in TEXTS]
    places = [[[0, 0], *([3 * i + j, 3 * i + j + 1] for i in range(n) for j in (0, 1))] for n in LENGTHS]
    columns = {"text": [" ".join(tokens) for tokens in TEXTS], "offset_mapping": places}
    random = np.random.default_rng(5)
    halves = {"resid_post": [], "attn_pattern": []}
    for own, squares in zip(B["resid_post"], B["attn_pattern"], strict=True):
        n = own.shape[1]
        rows_of = random.normal(size=(2, 2 * n + 1, 6)).astype(np.float32)
        rows_of[:, 2::2] = own
        halves["resid_post"].append(rows_of)
        weights = np.zeros((2, 3, 2 * n + 1, 2 * n + 1), np.float32)
        weights[:, :, 2::2, 1::2] = squares * 0.25
        weights[:, :, 2::2, 2::2] = squares * 0.75
        weights[:, :, [0], [0]] = 1
        halves["attn_pattern"].append(weights)
    first = run_of(A, name="one", columns={"offset_mapping": OFFSETS})
    second = run_of(halves, name="two", texts=cut, columns=columns)
    with pytest.raises(
        UsageError,
        match="the tokens of example 'ex0' are not the same in one and two; they are 5 and 11: another tokenizer",
    ):
        compare(first, second)
    found = compare(first, second, align="characters")
    whole = compare(run_of(A, name="one"), run_of(B, name="two"))
    assert (found.about.align, found.about.tokens) == ("characters", 15)
    for part in ("streams", "heads"):
        for ours, theirs in zip(getattr(found, part).rows(), getattr(whole, part).rows(), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # weights were cut in float32
    assert "other vocabularies" in found.left_out["readouts"]
    with pytest.raises(NotRecorded, match="does not say where in the text"):
        compare(run_of(A), second, align="characters")


def test_texts_that_part_are_compared_as_far_as_they_go_together() -> None:
    other = [[*tokens[:3], "other", *tokens[4:]] if len(tokens) > 3 else tokens for tokens in TEXTS]
    words = sorted({word for tokens in (*TEXTS, *other) for word in tokens})
    columns = {"input_ids": [[words.index(word) for word in tokens] for tokens in TEXTS]}
    others = {"input_ids": [[words.index(word) for word in tokens] for tokens in other]}
    first, second = run_of(A, name="one", columns=columns), run_of(A, name="two", texts=other, columns=others)
    with pytest.raises(UsageError, match="example 'ex0' is another text in one than in two"):
        compare(first, second)
    found = compare(first, second, align="start")
    assert found.about.tokens == 3 + 3 + 1
    assert found.heads is not None
    assert not found.heads.total_variation.any()
    assert found.readouts is not None
    assert found.readouts.kl_ab == 0


def test_what_a_sink_takes_is_a_key_of_its_own() -> None:
    half = {"attn_pattern": [values / 2 for values in A["attn_pattern"]]}
    whole = {"attn_pattern": A["attn_pattern"]}
    for facts, expected in (({"sinks": True}, 0.5), ({}, 0.25)):
        found = compare(run_of(whole, attention=facts), run_of(half, attention=facts)).heads
        assert found is not None
        np.testing.assert_allclose(found.total_variation, expected, rtol=1e-6)  # of float32 weights


def test_what_an_encoder_predicts_is_known_of_stored_logits_only() -> None:
    stream, logits = ({site: A[site]} for site in ("resid_post", "logits"))
    found = compare(run_of(stream, stack="enc"), run_of(stream, stack="enc"))
    assert found.left_out["readouts"].endswith("an encoder has no head that predicts a next token")
    assert found.streams is not None
    assert found.streams.cka[1, 1] == pytest.approx(1)
    read = compare(run_of(logits, stack="enc"), run_of(logits, stack="enc")).readouts
    assert read is not None
    assert (read.kl_ab, read.same_top) == (0, 1)


def test_a_model_that_is_not_there_is_named_by_its_run() -> None:
    stream = {"resid_post": A["resid_post"]}
    first, second = run_of(A, name="one"), run_of(stream, name="two", model="nowhere/model")
    assert "no model at nowhere/model" in compare(first, second).left_out["readouts"]
    with pytest.raises(NotFound, match="`model_b=FOLDER` says where it is now"):
        compare(first, second, parts="readouts")
    with pytest.raises(NotFound, match="`model_a=FOLDER` says where it is now"):
        compare(second, first, parts="readouts")


def test_what_cannot_be_compared_is_refused_in_words(byte: LoadedModel, run: Run) -> None:
    one = run_of(A, name="one")
    with pytest.raises(UsageError, match=r"one and two have no text in common; .*: ex0, ex1, ex2, and x, y, z"):
        compare(one, run_of(B, name="two", ids=["x", "y", "z"]))
    with pytest.raises(Unsupported, match="one is of a decoder, two is of an encoder"):
        compare(one, run_of({"resid_post": B["resid_post"]}, stack="enc", name="two"))
    renamed = [[f"v{number}" for number in range(length)] for length in LENGTHS]
    with pytest.raises(
        UsageError, match="have other vocabularies; a token of example 'ex0' is 'w0' in the one and 'v0'"
    ):
        compare(one, run_of(B, name="two", texts=renamed))
    only = run_of({"resid_mid": B["resid_post"]}, name="two")
    with pytest.raises(NotRecorded, match="nothing that can be compared; readouts: two holds neither logits"):
        compare(one, only)
    with pytest.raises(
        NotRecorded,
        match=r"resid_post is no activation that both runs hold; one holds dec.resid_post dec.logits; "
        "two holds dec.resid_mid; record",
    ):
        compare(one, only, site="resid_post")
    for site in ("attn_pattern", "dec.attn_pattern", "dec.self.attn_pattern"):
        with pytest.raises(NotRecorded, match=r'compared head by head, as `parts="heads"`.*; one of dec.resid_post'):
            compare(one, one, site=site)
    with pytest.raises(SelectionError, match="did you mean 'resid_mid'"):
        compare(one, only, site="resid_midd")
    wide = {**B, "logits": drawn(4, "logits", width=9)}
    with pytest.raises(UsageError, match="one has 6 words, two 9"):
        compare(one, run_of(wide, name="two"), parts="readouts")
    with pytest.raises(UsageError, match="a run and a model"):
        compare(one, byte)
    with pytest.raises(UsageError, match="no part 'head'"):
        compare(one, one, parts="head")
    with pytest.raises(UsageError, match="what shall the model read"):
        compare(byte, byte)
    few = {site: [own[..., :1, :1] if site == "attn_pattern" else own[..., :1, :] for own in A[site]] for site in A}
    short = run_of(few, texts=[tokens[:1] for tokens in TEXTS])
    assert "CKA without bias takes 4" in compare(short, short).left_out["streams"]
    twice = run_of(B, ids=["ex0", "ex0", "ex2"], name="two", shard_examples=1)
    with pytest.raises((SelectionError, ExampleNotFound), match="several texts of two have the id 'ex0'"):
        compare(one, twice)
