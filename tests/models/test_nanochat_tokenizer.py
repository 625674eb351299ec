"""NanoChat's pickled tokenizer against what nanochat's own libraries make of the same texts (fixtures/make.py)."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.models.checkpoints import FIXTURES
from tests.models.test_nanochat import Malicious
from traceformer.errors import NotFound, Unreadable, Unsupported
from traceformer.models.nanochat_tokenizer import BOS, END, load_tokenizer

EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def test_every_text_has_tiktokens_ids(base_dir: Path) -> None:
    tokenizer = load_tokenizer(base_dir / "tokenizer", allow_pickle=True)
    assert len(tokenizer) == EXPECTED["n_vocab"]
    for text, ids in EXPECTED["ids"].items():
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == text


def test_special_tokens_keep_their_ids_and_a_text_begins_with_bos(base_dir: Path) -> None:
    tokenizer = load_tokenizer(base_dir / "tokenizer", allow_pickle=True)
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in EXPECTED["special"]} == EXPECTED["special"]
    text = "The capital of France is"
    assert tokenizer(text)["input_ids"] == [EXPECTED["special"]["<|bos|>"], *EXPECTED["ids"][text]]
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|assistant_end|>", "<|bos|>")


def test_a_conversation_is_rendered_as_nanochat_does(base_dir: Path) -> None:
    tokenizer = load_tokenizer(base_dir / "tokenizer", allow_pickle=True)
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "a ababab"},
        {"role": "assistant", "content": "banana"},
        {"role": "user", "content": "x"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|user_start|>x\n\na ababab<|user_end|><|assistant_start|>banana<|assistant_end|>"
        "<|user_start|>x<|user_end|><|assistant_start|>"
    )
    ids = tokenizer.apply_chat_template(messages[3:], add_generation_prompt=True)["input_ids"]
    special = EXPECTED["special"]
    expected = [special[name] for name in ("<|bos|>", "<|user_start|>")] + EXPECTED["ids"]["x"]
    assert list(ids) == [*expected, special["<|user_end|>"], special["<|assistant_start|>"]]


def test_a_json_tokenizer_is_taken_before_a_pickled_one(base_dir: Path) -> None:
    folder = base_dir / "tokenizer"
    load_tokenizer(folder, allow_pickle=True).save_pretrained(folder)
    (folder / "tokenizer.pkl").write_bytes(b"not to be opened")
    tokenizer = load_tokenizer(folder, allow_pickle=False)
    for text, ids in EXPECTED["ids"].items():
        assert tokenizer(text)["input_ids"] == [EXPECTED["special"]["<|bos|>"], *ids]


def test_a_pickle_is_opened_on_request_only(base_dir: Path) -> None:
    with pytest.raises(Unsupported, match="`allow_pickle=True`"):
        load_tokenizer(base_dir / "tokenizer", allow_pickle=False)
    (base_dir / "tokenizer/tokenizer.pkl").unlink()
    with pytest.raises(NotFound):
        load_tokenizer(base_dir / "tokenizer", allow_pickle=True)


def test_a_malicious_pickle_is_refused_and_not_run(base_dir: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = base_dir / "tokenizer/tokenizer.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Malicious(trap), protocol))
        with pytest.raises(Unreadable, match="nothing of it was run"):
            load_tokenizer(path.parent, allow_pickle=True)
        assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps({"a": 1}), b"garbage"])
def test_what_is_no_tokenizer_is_told(base_dir: Path, content: bytes) -> None:
    (base_dir / "tokenizer/tokenizer.pkl").write_bytes(content)
    with pytest.raises(Unreadable):
        load_tokenizer(base_dir / "tokenizer", allow_pickle=True)


def test_a_pattern_that_is_none_is_told(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "traceformer.models.nanochat_tokenizer._read_pickled_tokenizer", lambda _: ({b"a": 0}, "(", {BOS: 1, END: 2})
    )
    with pytest.raises(Unreadable, match=r"tokenizer\.pkl is damaged"):
        load_tokenizer(base_dir / "tokenizer", allow_pickle=True)
