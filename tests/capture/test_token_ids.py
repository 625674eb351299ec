"""Texts that come as token ids, models without a tokenizer, and padding tokens that have no embedding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.capture.extract import read_texts, record
from traceformer.capture.generation.generate import generate
from traceformer.errors import Unreadable, UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel, valid_pad_id
from traceformer.questions.check import check
from traceformer.questions.heads import heads
from traceformer.questions.paths import paths

Folder = Callable[..., Path]
Load = Callable[..., LoadedModel]
IDS = [[5, 6, 7, 8, 9, 10], [11, 12], [0, 98, 1]]


@pytest.fixture
def mute(tiny_folder: Folder, tmp_path: Path) -> Folder:
    """Makes a family's folder without a tokenizer."""

    def folder(family: str) -> Path:
        path = tmp_path / f"mute-{family}"
        path.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(tiny_folder(family) / name, path)
        return path

    return folder


def logits_of(loaded: LoadedModel, ids: list[int]) -> Any:
    with torch.inference_mode():
        return loaded.model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_model_without_a_tokenizer_reads_token_ids_and_no_texts(family: str, mute: Folder) -> None:
    loaded = load_model(mute(family), device="cpu", with_head=True)
    assert loaded.tokenizer is None
    run = record(loaded, IDS, "logits attn_pattern", dtype="float32")
    for example, ids in zip(run.ids, IDS, strict=True):
        np.testing.assert_allclose(run.get(example, "logits"), logits_of(loaded, ids), atol=3e-5)
    assert [ids.tolist() for ids in run.tokens.input_ids] == IDS
    assert run.tokens.tokens[1].tolist() == ["#11", "#12"]
    assert run.tokens.text[1] == "11 12"
    measured = heads(loaded, IDS).to_frame()
    np.testing.assert_allclose(measured.entropy, heads(run).to_frame().entropy, atol=1e-3)
    for read in (record, heads, paths):
        with pytest.raises(UsageError, match=r"texts cannot be read without a tokenizer.*`ids_column=COLUMN`"):
            read(loaded, "demo")
    assert check(loaded).ok


def test_a_model_without_a_tokenizer_answers_no_prompt(mute: Folder) -> None:
    with pytest.raises(UsageError, match="without a tokenizer"):
        generate(load_model(mute("gpt2"), device="cpu"), "Yes", max_tokens=2)


def test_token_ids_are_read_as_they_are_and_named_by_the_tokenizer(load: Load) -> None:
    loaded = load("gpt2")
    encoded = loaded.tokenizer("Paris, London and Rome")["input_ids"]
    by_ids, by_text = record(loaded, [encoded], "resid"), record(loaded, ["Paris, London and Rome"], "resid")
    assert by_ids.tokens.tokens[0].tolist() == by_text.tokens.tokens[0].tolist()
    assert np.array_equal(by_ids.get(0, "resid_post", 1), by_text.get(0, "resid_post", 1))
    with pytest.warns(UserWarning, match="texts are cut to 4 tokens"):
        cut = record(loaded, IDS[:1], "resid", max_seq_len=4)
    assert cut.tokens.input_ids[0].tolist() == IDS[0][:4]
    assert cut.tokens.truncated[0]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_token_ids_of_a_file_are_those_of_a_list(kind: str, load: Load, tmp_path: Path) -> None:
    path = tmp_path / f"ids.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": "not read", "input_ids": ids}) + "\n" for ids in IDS))
    else:
        path.write_text("label,input_ids\n" + "".join(f'0,"{" ".join(map(str, ids))}"\n' for ids in IDS))
    run = record(load("gpt2"), path, "resid", ids_column="input_ids")
    assert [ids.tolist() for ids in run.tokens.input_ids] == IDS
    measured = heads(load("gpt2"), path, ids_column="input_ids").to_frame()
    np.testing.assert_allclose(measured.entropy, heads(load("gpt2"), IDS).to_frame().entropy)


def test_token_ids_have_targets_as_texts_have(load: Load) -> None:
    loaded = load("t5")
    texts, targets = ["Paris, London", "Rome"], ["the end", "and"]
    ids = loaded.tokenizer(texts)["input_ids"]
    of_ids, of_texts = (record(loaded, given, "resid", targets=targets) for given in (ids, texts))
    for example, same in zip(of_ids.ids, of_texts.ids, strict=True):
        for stack in ("enc", "dec"):
            site = f"{stack}.resid_post"
            assert np.array_equal(of_ids.get(example, site, 1), of_texts.get(same, site, 1))
    for name in ("dec_input_ids", "dec_labels", "dec_tokens"):
        assert [list(row) for row in of_ids.tokens[name]] == [list(row) for row in of_texts.tokens[name]]


def test_what_is_no_token_id_is_refused_by_its_number(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"token id 99 requested, but tiny-gpt2 has ids 0-98; it stands in .* 5 99"):
        record(load("gpt2"), [[1, 2], [5, 99]], "resid")
    with pytest.raises(Unreadable, match="text 1 of the list: -1 where the token ids"):
        record(load("gpt2"), [[1, 2], [5, -1]], "resid")
    path = tmp_path / "ids.jsonl"
    cells = {
        "[5, 1.5]": "1.5",
        "[5, true]": "True",
        "[null]": "None",
        '"one two"': "'one two'",
        "3": "a value of type int",
    }
    for cell, message in cells.items():
        path.write_text(f'{{"input_ids": {cell}}}\n')
        with pytest.raises(Unreadable, match=f"line 1: {message} where the token ids 'input_ids' should be"):
            read_texts(path, ids_column="input_ids")
    with pytest.raises(UsageError, match="`text_column` and `ids_column`"):
        read_texts(path, ids_column="input_ids", text_column="input_ids")
    path.write_text('{"input_ids": [1, 2]}\n')
    with pytest.raises(
        Unreadable, match=r"a list with a value of type int .*`ids_column=input_ids`, if these are token ids"
    ):
        read_texts(path, text_column="input_ids")


def test_padding_without_an_embedding_changes_nothing(load: Load, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(tiny_folder("llama"), folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 32000}))
    beyond = load_model(folder, device="cpu")
    beyond.tokenizer.add_tokens([f"<more {i}>" for i in range(3)])
    beyond.tokenizer.pad_token = "<more 2>"
    assert beyond.tokenizer.pad_token_id > 98
    assert (beyond.pad_id, valid_pad_id(beyond.model)) == (0, 0)
    run = record(beyond, IDS, "logits", dtype="float32", batch_size=3)
    for example, ids in zip(run.ids, IDS, strict=True):
        np.testing.assert_allclose(run.get(example, "logits"), logits_of(beyond, ids), atol=3e-5)
    prompts = ["Yes", "Paris, London and Rome"]
    answers = generate(beyond, prompts, max_tokens=3, temperature=0)
    expected = generate(load("llama"), prompts, max_tokens=3, temperature=0)
    assert answers.tokens.response.tolist() == expected.tokens.response.tolist()
    assert check(beyond).ok


@pytest.mark.parametrize(
    "content", ["{}", "[]", '"x"', '{"model": 3}', '{"added_tokens": []}', "not json"], ids=range(6)
)
def test_a_tokenizer_file_that_is_none_is_refused(content: str, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("gpt2"), folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(Unreadable, match=r"the tokenizer in .*model cannot be read"):
        load_model(folder, device="cpu")
