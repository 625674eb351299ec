"""Pairs of texts and texts in words: what the model reads, against the tokenizer's and the model's own outputs."""

import inspect
import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import traceformer as tf
from tests.marks import slow
from traceformer.capture.encoding import Encoder
from traceformer.capture.provenance import words_at
from traceformer.cli import main
from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.texts.cells import Pair, Words
from traceformer.texts.load import load_texts

PAIRS = [
    ("Bees return home.", "They fly a long way, unbelievably."),
    ("Short.", ""),
    ("A premise of some length, with a clause", "é"),
]
VOCABULARY = ("[P]", "[C]", "[S]", "?", *string.printable[:95])
WORDS = [["Returning", "bees", "unbelievable"], ["don't", "x y", "é"]]


@pytest.fixture(scope="module")
def model(minilm: Path) -> LoadedModel:
    return tf.load_model(str(minilm), device="cpu")


@pytest.fixture(scope="module")
def gpt2(tiny_folder: Callable[..., Path]) -> LoadedModel:
    return tf.load_model(str(tiny_folder("gpt2")), device="cpu")


def byte_level(**options: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a the bees returning the bees bees returning"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_pair_is_recorded_as_the_tokenizer_and_the_model_read_it(model: LoadedModel) -> None:
    run = tf.record(model, PAIRS, "hidden", dtype="float32")
    for number, (first, second) in enumerate(PAIRS):
        given = model.tokenizer([first], [second], return_tensors="pt")  # alone, "" would be no second text at all
        with torch.no_grad():
            states = torch.stack(model.model(**given, output_hidden_states=True).hidden_states)[:, 0]
        encodings = run.encodings(number)
        assert list(encodings["input_ids"]) == given["input_ids"][0].tolist()
        assert list(encodings["token_type_ids"]) == given["token_type_ids"][0].tolist()
        assert list(encodings["sequence_ids"]) == given.sequence_ids()
        # Sums of another batch's shape end otherwise in the last bits; without segments they are off by 0.5.
        np.testing.assert_allclose(run.get(number, "hidden"), states.numpy(), rtol=0, atol=2e-5)


def test_a_pairs_offsets_lie_in_the_text_that_is_both(model: LoadedModel) -> None:
    first, second = PAIRS[0]
    [row] = Encoder(model, "auto", 64).encode([Pair(first, second)])
    own = model.tokenizer(first, second, return_offsets_mapping=True)
    text = Pair(first, second).text
    for (start, stop), (own_start, own_stop), of in zip(
        row.offsets or [], own["offset_mapping"], own.sequence_ids(), strict=True
    ):
        assert text[start:stop] == ("" if of is None else (first, second)[of][own_start:own_stop])


def test_a_pair_is_cut_as_the_tokenizer_cuts_it_and_that_is_said(model: LoadedModel) -> None:
    with pytest.warns(UserWarning, match=r"texts are cut to 8 tokens, of a pair the longer text first .*: 2 of 3"):
        run = tf.record(model, PAIRS, "attn", layers=(0,), max_seq_len=8)
    for number, pair in enumerate(PAIRS):
        [whole] = model.tokenizer(*([text] for text in pair), truncation=True, max_length=8)["input_ids"]
        assert list(run.encodings(number)["input_ids"]) == whole
    assert run.tokens["truncated"].tolist() == [True, False, True]
    with pytest.raises(UsageError, match="`max_seq_len=3` leaves no room for text"):
        tf.record(model, PAIRS, "attn", max_seq_len=3)


def test_a_model_without_segments_is_given_none(gpt2: LoadedModel) -> None:
    [row] = Encoder(gpt2, "auto", 64).encode([Pair("the name", "of a list")])
    assert row.types is None
    assert row.ids["dec"] == gpt2.tokenizer("the name", "of a list")["input_ids"]


def test_two_columns_are_the_texts_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "x", "premise": "ab", "why": "cd", "label": 1}, {"id": "y", "premise": "e", "why": "f", "label": 0}]
    path = tmp_path / "nli.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    named = [load_texts(path, text_column=columns) for columns in ("premise,why", ("premise", "why"), "premise, why")]
    for source in named:
        assert [example.reading for example in source.examples] == [Pair("ab", "cd"), Pair("e", "f")]
        assert source.examples[0].extra == {"label": 1}
        assert source.digest == named[0].digest
    with pytest.raises(NotFound, match="no column 'whose'"):
        load_texts(path, text_column="premise,whose")
    with pytest.raises(UsageError, match="names 3 columns"):
        load_texts(path, text_column="premise,why,label")
    line = f"extract --model byte --dataset {path} --text-column premise,why --capture attn --out_dir {tmp_path}/run"
    assert main(line.split()) == 0
    table = tf.open_run(tmp_path / "run").tokens
    assert table["text"].tolist() == ["ab\ncd", "e\nf"]
    assert table["text_pair"].tolist() == ["cd", "f"]
    assert [list(ids) for ids in table["input_ids"]] == [list(b"abcd"), list(b"ef")]


def test_a_column_with_a_comma_in_its_name_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"a,b": "one text", "a": "x", "b": "y"}')
    assert load_texts(tmp_path / "odd.jsonl", text_column="a,b").examples[0].reading == "one text"


def test_words_are_read_one_by_one_and_keep_their_places(model: LoadedModel) -> None:
    run = tf.record(model, WORDS, "attn", layers=(0,))
    for number, words in enumerate(WORDS):
        own = model.tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
        found, text = run.encodings(number), run.text(number)
        assert list(found["input_ids"]) == own["input_ids"]
        assert list(found["word"]) == own.word_ids()
        for of, (start, stop), place in zip(
            own.word_ids(), own["offset_mapping"], found["offset_mapping"], strict=True
        ):
            assert text[slice(*place)] == ("" if of is None else words[of][start:stop])
    assert [list(words) for words in run.tokens["words"]] == WORDS


def test_a_column_of_lists_is_read_word_by_word(tmp_path: Path) -> None:
    (tmp_path / "ner.jsonl").write_text('{"tokens": ["EU", "rejects"], "tags": [3, 0]}\n{"tokens": ["x"], "tags": [0]}')
    source = load_texts(tmp_path / "ner.jsonl", text_column="tokens")
    assert [example.reading for example in source.examples] == [Words(("EU", "rejects")), Words(("x",))]
    assert [example.text for example in source.examples] == ["EU rejects", "x"]


def test_a_list_with_a_gap_is_no_list_of_words(tmp_path: Path) -> None:
    (tmp_path / "ner.jsonl").write_text('{"tokens": ["EU", null]}')
    with pytest.raises(Unreadable, match="a list with nothing where the text 'tokens' should be"):
        load_texts(tmp_path / "ner.jsonl")


@pytest.mark.parametrize("words", WORDS)
def test_byte_level_words_are_what_the_tokenizer_makes_of_them_with_spaces_before(
    words: list[str], gpt2: LoadedModel
) -> None:
    plain, spaced = byte_level(add_prefix_space=False), byte_level(add_prefix_space=True)
    wide = replace(gpt2, tokenizer=plain)
    encoder = Encoder(wide, "auto", 64)
    encoder._n_embeddings = 280  # the tiny model has fewer, and is not run  # pyright: ignore[reportPrivateUsage]
    [row] = encoder.encode([Words(tuple(words))])
    own = spaced(words, is_split_into_words=True)
    assert row.tokens["dec"] == own.tokens()
    assert row.words == own.word_ids()
    text = " ".join(words)
    for number, word in enumerate(words):
        places = [place for place, of in zip(row.offsets or [], row.words or [], strict=True) if of == number]
        assert text[min(start for start, _ in places) : max(stop for _, stop in places)].strip() == word


def test_a_tokenizer_that_runs_words_together_is_refused(gpt2: LoadedModel) -> None:
    together = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    together.decoder = decoders.Fuse()
    model = replace(gpt2, tokenizer=PreTrainedTokenizerFast(tokenizer_object=together))
    with pytest.raises(Unsupported, match="runs words together"):
        Encoder(model, "auto", 64).encode([Words(("a", "a"))])


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ([("a", "b"), "c"], "text 1 of the list: a text, where a pair of texts came before"),
        ([["a"], ("b", "c")], "a pair of texts, where a list of words came before"),
        ([("a", "b", "c")], "a tuple of 3 texts"),
        ([["", " "]], "holds no text"),
    ],
)
def test_what_is_neither_text_nor_pair_nor_words_is_refused(texts: list[Any], why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        load_texts(texts)


def test_the_words_of_a_treebank_are_those_that_tokens_share_characters_with(tmp_path: Path) -> None:
    words = ["1-2 don't", "1 do", "2 n't", "3 go", "4-5 du", "4 de", "5 le"]
    (tmp_path / "a.conllu").write_text("\n".join("\t".join([*word.split(), *"xxxx0x__"]) for word in words))
    run = tf.record("byte", tmp_path / "a.conllu", "attn", layers=(0,))
    assert run.text(0) == "don't go du"
    # The two words of `du` share all of it: its tokens are the first one's.
    assert list(run.encodings(0)["word"]) == [0, 0, 1, 1, 1, None, 2, 2, None, 3, 3]


def test_words_whose_places_are_no_places_are_not_aligned() -> None:
    assert words_at([[0, 1], "x"], [(0, 1)]) is None
    assert words_at(None, [(0, 1)]) is None


@pytest.mark.parametrize("texts", [[("\u200b", "\u200b"), ("a", "b")], [["\u200b"], ["a", "b"]]])
def test_pairs_and_words_without_a_token_are_passed_over_with_a_count(gpt2: LoadedModel, texts: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"texts without a token are passed over: 1 \(row 0 is '\\u200b"):
        run = tf.record(gpt2, texts, "embed")
    assert run.tokens["index"].tolist() == [1]
    assert list(run.encodings(0)["input_ids"]) == gpt2.tokenizer("a b")["input_ids"]


def test_a_data_sets_column_called_word_is_not_taken_for_the_words_of_tokens(gpt2: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "The end.", "word": [7], "words": ["x"]}')
    run = tf.record(gpt2, tmp_path / "a.jsonl", "embed")
    assert "word" not in run.encodings(0)
    assert [list(run.tokens[name][0]) for name in ("data_word", "words")] == [[7], ["x"]]


@pytest.mark.parametrize(
    "family", ["bert", slow("electra"), slow("roberta"), slow("distilbert"), slow("mpnet"), slow("deberta-v2")]
)
def test_pairs_of_every_kind_of_encoder_are_read_as_the_model_reads_its_tokenizers_batch(family: str) -> None:
    model = tf.load_model(tiny_model(family), pair_tokenizer())
    run = tf.record(model, PAIRS, "hidden", dtype="float32", batch_size=3)
    inputs = model.tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    taken = inspect.signature(model.model.forward).parameters
    given = {name: tensor for name, tensor in inputs.items() if name in taken}
    if (getattr(model.config, "type_vocab_size", 0) or 0) < 2:  # tokenizers count segments for any model
        given.pop("token_type_ids", None)
    with torch.no_grad():
        states = model.model(**given, output_hidden_states=True).hidden_states
    for number in range(len(PAIRS)):
        length = int(inputs["attention_mask"][number].sum())
        expected = np.stack([state[number, :length].numpy() for state in states])
        np.testing.assert_allclose(run.get(number, "hidden"), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert ("token_type_ids" in run.encodings(0)) == ("token_type_ids" in given)


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that writes pairs as BERT's does, with the second text in another segment."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        "[C]:0 $A:0 [S]:0", "[C]:0 $A:0 [S]:0 $B:1 [S]:1", [("[C]", 1), ("[S]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[P]",
        cls_token="[C]",
        sep_token="[S]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_which_text_of_a_pair_a_token_is_of_is_shown(
    model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tf.record(model, PAIRS[:1], "embed", out=tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run"), "--example", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"] == model.tokenizer(*PAIRS[0]).sequence_ids()
    assert main(["inspect", str(tmp_path / "run"), "--example", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [own[1] for own, of in zip(shown, run.encodings(0)["sequence_ids"], strict=True) if of is not None] == [
        str(of) for of in run.encodings(0)["sequence_ids"] if of is not None
    ]
    assert any(line.split()[:2] == ["position", "segment"] for line in lines)
