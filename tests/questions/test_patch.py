"""Patching as a call: what it finds in the built-in model, what it keeps, and what it refuses."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import traceformer as tf
from tests.conftest import skip
from tests.questions.test_asked import as_users_have_it
from traceformer.errors import (
    ConfigurationChanged,
    CorruptRun,
    NotFound,
    NumericError,
    RunExists,
    SelectionError,
    Unsupported,
    UsageError,
)
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.texts.contrasts import load_contrasts

PAIR = {"clean": "abcdefgabc", "corrupt": "abcdefgxyz", "answer": "d", "wrong": "e"}
FEW = [{**PAIR, "id": "one"}, {**PAIR, "corrupt": "abcdefgxyw", "id": "two"}]


def logits(model: LoadedModel, text: str) -> Tensor:
    with torch.inference_mode():
        return model.model(torch.tensor([list(text.encode())])).logits[0, -1]


def test_what_enters_the_last_position_carries_the_answer(byte: LoadedModel) -> None:
    found = tf.patch(byte, **PAIR)
    clean, corrupt = (logits(byte, PAIR[name]) for name in ("clean", "corrupt"))
    answer, wrong = ord("d"), ord("e")
    assert found.clean[0] == pytest.approx(float(clean[answer] - clean[wrong]), abs=1e-4)
    assert found.corrupt[0] == pytest.approx(float(corrupt[answer] - corrupt[wrong]), abs=1e-4)
    assert found.values.argmax(axis=1).tolist() == [9, 9, 9, 9]
    assert found.axis("position").labels == tuple("abcdefgxyz")
    # Where both texts are equal so far, nothing is put in another's place.
    np.testing.assert_allclose(found.values[:, :7], 0, atol=1e-5)


def test_all_layers_and_positions_at_once_are_the_clean_pass(byte: LoadedModel) -> None:
    for how, share in (("denoise", 1), ("noise", 0)):
        at_once = tf.patch(byte, **PAIR, over=["layer"], layers=[0], how=how)
        assert at_once.values.tolist() == [pytest.approx(share, abs=1e-5)]


METRICS: dict[str, Any] = {
    "log_prob": lambda logits, clean: logits.log_softmax(-1)[ord("d")],
    "probability": lambda logits, clean: logits.softmax(-1)[ord("d")],
    "kl": lambda logits, clean: torch.nn.functional.kl_div(
        logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="sum"
    ),
}


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_what_torch_makes_of_the_logits(metric: str, byte: LoadedModel) -> None:
    found = tf.patch(byte, **PAIR, metric=metric, layers=[2], positions=[-1])
    clean, corrupt = (logits(byte, PAIR[name]) for name in ("clean", "corrupt"))
    assert found.clean[0] == pytest.approx(float(METRICS[metric](clean, clean)), abs=1e-5)
    assert found.corrupt[0] == pytest.approx(float(METRICS[metric](corrupt, clean)), rel=1e-4)


def test_the_loss_is_that_of_the_clean_texts_tokens_and_a_function_is_given_all_logits(byte: LoadedModel) -> None:
    targets = torch.tensor(list(PAIR["clean"].encode()))[1:]

    def loss(logits: Tensor) -> Tensor:
        assert logits.shape[1:] == (10, 258)
        return torch.stack([torch.nn.functional.cross_entropy(row[:-1], targets) for row in logits])

    named, own = (tf.patch(byte, **PAIR, metric=metric, layers=[1]) for metric in ("loss", loss))
    np.testing.assert_allclose(named.values, own.values, atol=1e-5)
    assert own.about.metric == "loss"
    assert named.values[0, 9] == pytest.approx(0, abs=1e-6)  # nothing comes next there
    assert np.abs(named.values[0, 7:9]).min() > 0.01


@pytest.mark.slow
def test_the_heads_that_are_found_look_for_what_is_repeated(byte: LoadedModel) -> None:
    pairs = [vars_of_contrast(each) for each in load_contrasts("repeats")]
    found = tf.patch(byte, pairs=pairs, site="z", over=["layer", "head"], positions=[-1], layers=[1, 2, 3])
    induction = tf.heads(byte, [pair["clean"] for pair in pairs]).grid("induction")[1:]
    layers, heads = np.unravel_index(np.argsort(-found.values, axis=None)[:4], found.values.shape)
    assert {*zip(layers.tolist(), heads.tolist(), strict=True)} <= {
        (row, column) for row, column in np.argwhere(induction > 0.5).tolist()
    }


def vars_of_contrast(contrast: Any) -> dict[str, Any]:
    return {name: getattr(contrast, name) for name in ("clean", "corrupt", "answer", "wrong")}


def test_texts_of_several_lengths_share_a_sweep(byte: LoadedModel) -> None:
    longer = {**PAIR, "clean": "0123456789" + PAIR["clean"], "corrupt": "0123456789" + PAIR["corrupt"]}
    found = tf.patch(byte, pairs=[PAIR, longer, PAIR], layers=[1])
    alone = tf.patch(byte, **longer, layers=[1])
    np.testing.assert_allclose(found.pair(1).values, alone.values, atol=1e-5)
    assert np.isnan(found.pair(0).values[0, 10:]).all()
    assert found.n_pairs.tolist() == [[3] * 10 + [1] * 10]
    from_end = tf.patch(byte, pairs=[PAIR, longer], layers=[1], positions=[-1])
    assert from_end.pair(1).values[0, 0] == pytest.approx(alone.values[0, -1], abs=1e-5)


def test_texts_of_unequal_length_are_matched_from_their_ends_if_that_is_said(byte: LoadedModel) -> None:
    shorter = {**PAIR, "corrupt": PAIR["corrupt"][2:]}
    with pytest.raises(UsageError, match="has 10 tokens, the corrupt one 8"):
        tf.patch(byte, **shorter)
    found = tf.patch(byte, **shorter, align="end", layers=[0, 2])
    assert found.axis("position").numbers == tuple(range(-8, 0))
    assert found.axis("position").labels == tuple("cdefgxyz")
    # The last layer's last position says what follows, whatever stood before it.
    assert found.values[1, -1] > 0.5
    reverse = tf.patch(byte, **shorter, align="end", layers=[2], how="noise")
    assert np.isnan(reverse.values[0, :2]).all()
    with pytest.raises(UsageError, match="patching attn_pattern"):
        tf.patch(byte, **shorter, align="end", site="attn_pattern", over=["layer", "head"])


def test_an_interrupted_sweep_goes_on_where_it_was(byte: LoadedModel, tmp_path: Path) -> None:
    import zarr

    whole = tf.patch(byte, pairs=FEW, layers=[1], out=tmp_path / "whole")
    calls: list[int] = []

    def stop(done: int, of: int) -> None:
        calls.append(done)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tf.patch(byte, pairs=FEW, layers=[1], out=tmp_path / "part", batch_size=1, progress=stop)
    with pytest.raises(RunExists, match="resume=True"):
        tf.patch(byte, pairs=FEW, layers=[1], out=tmp_path / "part")
    with pytest.raises(ConfigurationChanged, match="about"):
        tf.patch(byte, pairs=FEW, layers=[1], metric="log_prob", out=tmp_path / "part", resume=True)
    with pytest.raises(CorruptRun, match="not finished"):
        tf.open_effects(tmp_path / "part")
    inode = (tmp_path / "part/effect/c.0.0.0").stat().st_ino
    rest = tf.patch(byte, pairs=FEW, layers=[1], out=tmp_path / "part", resume=True, batch_size=1)
    assert (tmp_path / "part/effect/c.0.0.0").stat().st_ino == inode
    np.testing.assert_allclose(rest.values, whole.values, atol=1e-5)
    again = tf.open_effects(tmp_path / "whole")
    assert again.to_json() == whole.to_json()
    group: Any = zarr.open_group(tmp_path / "whole", mode="r")
    np.testing.assert_array_equal(group["effect"][:], whole.by_pair["effect"])
    np.testing.assert_array_equal(group["clean"][:], whole.clean)
    with pytest.raises(RunExists, match="finished"):
        tf.patch(byte, pairs=FEW, layers=[1], out=tmp_path / "whole", resume=True)
    with pytest.raises(NotFound):
        tf.open_effects(tmp_path)
    damaged = tmp_path / "whole/effect/c.1.0.0"
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    with pytest.raises(CorruptRun, match=os.path.join("effect", r"c\.1")):
        tf.open_effects(tmp_path / "whole")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such site": ({"site": "resid_prae"}, SelectionError, "did you mean 'resid_pre'"),
    "a group": ({"site": "qkv"}, SelectionError, "group of sites"),
    "a site without layers": ({"site": "embed"}, SelectionError, "not there once in each layer"),
    "hidden": ({"site": "hidden"}, SelectionError, r"cannot be swept.*`site=\"resid_pre\"`"),
    "no such axis": ({"over": ["layer", "head"]}, SelectionError, "over some of layer, position"),
    "an axis twice": ({"over": ["layer", "layer"]}, SelectionError, "an axis twice"),
    "no such layer": ({"layers": [4]}, SelectionError, "layers 0-3"),
    "no such position": ({"positions": [10]}, SelectionError, "positions 0-9"),
    "heads of the stream": ({"heads": [1]}, SelectionError, "has none"),
    "no such metric": ({"metric": "loss_"}, UsageError, "no metric"),
    "the metric's position": ({"metric_position": 10}, UsageError, "positions 0-9 only"),
    "several tokens": ({"answer": "de"}, UsageError, "is 2 tokens"),
    "one token twice": ({"answer": "dx", "wrong": "dy", "answer_token": "first"}, UsageError, "one token"),
    "no wrong answer": ({"wrong": None}, UsageError, "has no wrong"),
    "no such token": ({"answer": 300}, UsageError, "tokens 0-257"),
    "nothing to tell apart": ({"corrupt": PAIR["clean"]}, UsageError, "of both texts"),
    "no corrupt text": ({"corrupt": None}, UsageError, "no `corrupt` text"),
    "texts and pairs": ({"pairs": FEW}, UsageError, "`pairs` and `clean`"),
    "NaN": ({"metric": lambda logits: logits[:, 0, 0] * torch.nan}, NumericError, "is nan"),
    "no number per text": ({"metric": lambda logits: logits.mean()}, UsageError, "one per text"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_patched_is_refused(what: str, byte: LoadedModel) -> None:
    given, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        as_users_have_it(tf.patch)(byte, **{**PAIR, **given})


def test_models_that_predict_no_tokens_or_are_none_are_refused() -> None:
    with pytest.raises(Unsupported, match="predicts no tokens"):
        tf.patch(tf.load_model(tiny_model("bert", task="SequenceClassification")), [5, 6], [5, 7], answer=1, wrong=2)
    with pytest.raises(UsageError, match=r"no model.*load_model"):
        as_users_have_it(tf.patch)("byte", "a", "b")


def test_pairs_that_the_model_does_not_tell_apart_are_left_out(byte: LoadedModel) -> None:
    same = {**PAIR, "corrupt": PAIR["clean"], "id": "same"}
    with pytest.warns(UserWarning, match="1 pairs are left out, same among them"):
        found = tf.patch(byte, pairs=[PAIR, same], layers=[1], positions=[9])
    assert found.n_pairs.tolist() == [[1]]


def _nan(logits: Tensor) -> Tensor:
    return logits[:, -1, 0] * float("nan")


USELESS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"corrupt": PAIR["clean"]}, UsageError),
    ({"corrupt": PAIR["clean"], "estimate": True}, UsageError),
    ({"metric": _nan}, NumericError),
    ({"metric": lambda logits: logits[:, :, 0]}, UsageError),
    ({"metric_position": 99}, UsageError),
]


@pytest.mark.parametrize(("changed", "error"), USELESS)
def test_what_is_refused_leaves_no_folder(
    changed: dict[str, Any], error: type[Exception], byte: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(error):
        tf.patch(byte, **{**PAIR, **changed}, layers=[1], out=tmp_path / "made")
    assert not list(tmp_path.iterdir())


TRANSFORMER_LENS = {"resid_pre": "resid_pre", "attn_out": "attn_out", "mlp_out": "mlp_out", "z": "attn_head_out"}


@pytest.mark.slow
@pytest.mark.parametrize("site", TRANSFORMER_LENS)
def test_effects_are_those_of_transformer_lens(site: str, tmp_path: Path) -> None:
    if find_spec("transformer_lens") is None:
        skip("transformer_lens")
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from traceformer.bytelm.tokenizer import ByteTokenizer

    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_head=4, n_embd=64, vocab_size=258, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    ByteTokenizer().save_pretrained(tmp_path)
    own, other = (GPT2LMHeadModel.from_pretrained(tmp_path) for _ in range(2))  # theirs is rewritten
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = TransformerBridge.boot_transformers(str(tmp_path), hf_model=other, tokenizer=tokenizer)
    clean, corrupt = np.random.default_rng(0).integers(0, 258, size=(2, 12))

    def difference(logits: Tensor) -> Tensor:
        return logits[0, -1, 5] - logits[0, -1, 7]

    sweep = getattr(patching, f"get_act_patch_{TRANSFORMER_LENS[site]}" + ("_all_pos" if site == "z" else ""))
    with torch.inference_mode():
        _, cache = theirs.run_with_cache(torch.tensor(clean)[None])
        expected = sweep(theirs, torch.tensor(corrupt)[None], cache, difference)
    over = ["layer", "head"] if site == "z" else ["layer", "position"]
    found = tf.patch(tf.load_model(own), clean.tolist(), corrupt.tolist(), answer=5, wrong=7, site=site, over=over)
    metric = found.corrupt[0] + found.values * (found.clean[0] - found.corrupt[0])
    np.testing.assert_allclose(metric, expected.numpy(), atol=1e-5)


def test_positions_are_said_by_a_word_of_the_clean_text(byte: LoadedModel) -> None:
    pair = {"clean": "Rome is old. So is it", "corrupt": "Bonn is old. So is it", "answer": "a", "wrong": "e"}
    how: dict[str, Any] = {"layers": [0, 2], "over": ["layer"]}
    by_word, by_number = (tf.patch(byte, **pair, positions=each, **how) for each in ("Rome", "0-3"))
    np.testing.assert_array_equal(by_word.values, by_number.values)
    each = tf.patch(byte, **pair, positions="Rome", layers=[1])
    assert each.axis("position").labels == tuple("Bonn")
    last, also_last = (tf.patch(byte, **pair, positions=each, **how) for each in ("last", -1))
    np.testing.assert_array_equal(last.values, also_last.values)


def test_a_word_is_found_in_each_pair(byte: LoadedModel) -> None:
    pairs = [
        {"clean": "In Rome it rains", "corrupt": "In Bonn it rains", "answer": "a", "wrong": "e"},
        {"clean": "It is Rome again", "corrupt": "It is Bonn again", "answer": "a", "wrong": "e"},
    ]
    how: dict[str, Any] = {"layers": [1], "over": ["layer"], "how": "noise"}
    both = tf.patch(byte, pairs=pairs, positions="Rome", **how)
    for number, (pair, first) in enumerate(zip(pairs, (3, 6), strict=True)):
        alone = tf.patch(byte, **pair, positions=range(first, first + 4), **how)
        np.testing.assert_allclose(both.pair(number).values, alone.values, atol=1e-6)
    with pytest.raises(SelectionError, match="not at the same positions in all texts"):
        tf.patch(byte, pairs=pairs, positions="Rome", layers=[1])
    with pytest.raises(SelectionError, match="`positions='i'`; the text has it 2 times"):
        tf.patch(byte, pairs=pairs, positions="i", **how)
