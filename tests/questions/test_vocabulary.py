"""One notation for tokens: whoever shows them shows the same text, whatever the run was made of."""

from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from traceformer.analysis.paths.trace import PathOptions
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.questions.live_paths import TracedModel
from traceformer.questions.vocabulary import shown_tokens, token_texts
from traceformer.texts.shown import Piece, pieces_named, pieces_of_text

TEXT = "é 😀 a"
PIECES = [*(f"\\x{byte:02x}" for byte in "é".encode()), " ", *(f"\\x{byte:02x}" for byte in "😀".encode()), " ", "a"]


@pytest.fixture(scope="module")
def wide() -> LoadedModel:
    """A model with more embeddings than its tokenizer has tokens."""
    return tf.load_model(tiny_model("gpt2", vocab_size=600), ByteTokenizer())


def test_lens_paths_projections_and_examples_show_the_same(wide: LoadedModel) -> None:
    run = tf.record(wide, [TEXT], "attn resid_post", dtype="float32")
    trait = tf.Direction("x", {None: np.ones(run.spec("resid_post").width, np.float32)})
    assert [piece.text for piece in shown_tokens(run, 0, "dec")] == PIECES
    assert list(tf.lens(run, 0, model=wide).tokens) == PIECES
    assert tf.paths(run, 0).tokens == tf.paths(wide, TEXT).tokens == PIECES
    assert tf.project(run, trait, layers=[1], example=0).to_frame().token.tolist() == PIECES


def test_an_id_beyond_the_tokenizer_is_called_the_same_everywhere(wide: LoadedModel) -> None:
    answer = tf.generate(wide, "é", max_tokens=8, seed=1, temperature=5.0)
    ids = [int(each) for each in answer.encodings(0)["input_ids"]]
    assert max(ids) > 257
    texts = [piece.text for piece in shown_tokens(answer, 0, "dec")]
    for token_id, text in zip(ids, texts, strict=True):
        assert text == (f"#{token_id}" if token_id > 257 else text)
        assert token_texts(answer, wide)(token_id) == text
    assert tf.paths(answer, 0).tokens == texts
    traced = TracedModel(wide.model, wide.tokenizer, wide.dims)
    assert traced.trace(ids, [-1], 0, PathOptions())[0].tokens == texts


def test_a_run_that_says_that_names_are_bytes_needs_no_sign_of_it() -> None:
    assert pieces_of_text(["Ã", "©"], None, "", byte_level=True) == [Piece("\\xc3", "c3"), Piece("\\xa9", "a9")]
    assert pieces_of_text(["Ã", "©"], None, "", byte_level=False) == [Piece("Ã"), Piece("©")]


def test_sentencepiece_names_are_text_with_spaces_and_bytes() -> None:
    assert pieces_named(["▁the", "<0xE2>", "a", "</s>"]) == [
        Piece(" the"),
        Piece("\\xe2", "e2"),
        Piece("a"),
        Piece("</s>"),
    ]


def test_wordpieces_are_shown_as_they_stand_in_the_text_and_unknown_ones_by_name(minilm: Path) -> None:
    run = tf.record(tf.load_model(str(minilm), device="cpu"), ["Unbelievably 😀 é"], "attn", layers=(0,))
    names, texts = run.tokens_of(0), [piece.text for piece in shown_tokens(run, 0, "enc")]
    assert (names[2][:2], names[-3:]) == ("##", ["[UNK]", "e", "[SEP]"])
    assert (texts[0], "".join(texts[1:-3]), texts[-3:]) == ("[CLS]", "Unbelievably", ["[UNK]", "é", "[SEP]"])
