"""Ablation as a call: against hooks of torch on whole passes, text by text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import traceformer as tf
from tests.questions.test_asked import as_users_have_it
from traceformer.errors import ConfigurationChanged, SelectionError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.texts.contrasts import load_contrasts

TEXTS = ["return the name", "if it is not", "return the rest"]
HEADS, WIDTH = 8, 32


def loss_with(model: LoadedModel, text: str, change: Any, layer: int, module: str) -> float:
    """The loss of a text while the input of a module of one layer is changed, or its output."""
    ids = torch.tensor([list(text.encode())])
    block: Any = model.model.get_submodule(f"model.layers.{layer}.{module}")
    with torch.inference_mode():
        if module.endswith("o_proj"):
            hook = block.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        else:
            hook = block.register_forward_hook(lambda _, args, out: change(out))
        loss = model.model(ids, labels=ids).loss
        hook.remove()
    return float(loss)


def without_head(head: int, value: Tensor | float = 0.0) -> Any:
    def change(rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[..., head * WIDTH : (head + 1) * WIDTH] = value
        return rows

    return change


def mixed_of(model: LoadedModel, text: str, layer: int) -> Tensor:
    seen: list[Tensor] = []
    loss_with(model, text, lambda rows: seen.append(rows[0]) or rows, layer, "self_attn.o_proj")
    return seen[0]


def test_heads_without_their_output_cost_what_a_loop_says(byte: LoadedModel) -> None:
    found = tf.ablate(byte, TEXTS, how="zero", layers=[1, 3], heads=[0, 6])
    untouched = [loss_with(byte, text, lambda rows: rows, 0, "mlp") for text in TEXTS]
    np.testing.assert_allclose(found.clean, untouched, atol=1e-5)
    assert np.isnan(found.corrupt).all()
    for n, i, j in np.ndindex(3, 2, 2):
        loss = loss_with(byte, TEXTS[n], without_head((0, 6)[j]), (1, 3)[i], "self_attn.o_proj")
        assert found.by_pair["effect"][n, i, j] == pytest.approx(loss - untouched[n], abs=1e-5)


def test_the_mean_is_that_of_all_tokens_of_all_texts(byte: LoadedModel) -> None:
    found = tf.ablate(byte, TEXTS, layers=[2], heads=[3])
    rows = torch.cat([mixed_of(byte, text, 2) for text in TEXTS])
    mean = rows.mean(0)[3 * WIDTH : 4 * WIDTH]
    for n, text in enumerate(TEXTS):
        loss = loss_with(byte, text, without_head(3, mean), 2, "self_attn.o_proj")
        assert found.by_pair["effect"][n, 0, 0] == pytest.approx(loss - found.clean[n], abs=1e-5)


def test_what_is_drawn_from_another_text_is_the_same_for_a_seed(byte: LoadedModel) -> None:
    two = TEXTS[:2]  # each is the only other one
    found = tf.ablate(byte, two, how="resample", layers=[2], heads=[3], seed=1)
    for n, text in enumerate(two):
        other = mixed_of(byte, two[1 - n], 2)
        around = other[torch.arange(len(text)) % len(other)][:, 3 * WIDTH : 4 * WIDTH]
        loss = loss_with(byte, text, without_head(3, around), 2, "self_attn.o_proj")
        assert found.by_pair["effect"][n, 0, 0] == pytest.approx(loss - found.clean[n], abs=1e-5)
    several = [tf.ablate(byte, TEXTS, how="resample", layers=[2], heads=[3], seed=seed).values for seed in (1, 1, 5)]
    assert several[0] == several[1]
    assert several[0] != several[2]


def test_mlps_and_whole_layers_are_ablated_by_what_they_add(byte: LoadedModel) -> None:
    found = tf.ablate(byte, TEXTS[:1], site="mlp_out", how="zero", layers=[1])
    loss = loss_with(byte, TEXTS[0], torch.zeros_like, 1, "mlp")
    assert found.values.tolist() == [pytest.approx(loss - found.clean[0], abs=1e-5)]
    layer = tf.ablate(byte, TEXTS[:1], site=["attn_out", "mlp_out"], how="zero", layers=[1])
    block: Any = byte.model.model.layers[1]
    ids = torch.tensor([list(TEXTS[0].encode())])
    hook = block.register_forward_hook(lambda _, args, out: args[0])
    with torch.inference_mode():
        expected = float(byte.model(ids, labels=ids).loss)
    hook.remove()
    assert layer.values.tolist() == [pytest.approx(expected - layer.clean[0], abs=1e-5)]


@pytest.mark.slow
def test_induction_heads_are_worth_more_on_repeats_than_others(byte: LoadedModel) -> None:
    texts = [str(pair.clean)[:24] * 2 for pair in load_contrasts("repeats")[:5]]
    table = tf.heads(byte, texts).to_frame().sort_values("induction").tail(4)
    names = [f"L{row.layer}H{row.head}" for row in table.itertuples()]
    found = tf.ablate(byte, texts, together=names, draws=9)
    assert found.axis("group").labels[0] == " ".join(names)
    assert found.values[0] > 0.8
    assert found.values[0] > 5 * np.median(found.values[1:])
    assert found.to_frame().heads[0] == " ".join(names)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "one token": (["a"], {}, UsageError, "nothing comes next"),
    "one text to draw from": (["ab"], {"how": "resample"}, UsageError, "no other one"),
    "no such way": (["ab"], {"how": "scale"}, UsageError, "no how"),
    "an answer's metric": (["ab"], {"metric": "kl"}, UsageError, "needs an answer"),
    "no such head": (["ab"], {"together": ["L4H0"]}, SelectionError, "L0H0 to L3H7"),
    "draws of nothing": (["ab"], {"draws": 3}, UsageError, "without `together`"),
    "heads of the stream": (["ab"], {"site": "mlp_out", "together": ["L0H0"]}, SelectionError, "heads of mlp_out"),
    "heads twice": (["ab"], {"together": ["L0H0"], "layers": [1]}, UsageError, "which heads"),
    "patterns": (["ab"], {"site": "attn_pattern"}, SelectionError, "no longer sum to 1"),
    "with heads and without": (["ab"], {"site": ["z", "mlp_out"]}, SelectionError, "same axes"),
    "a conversation": ([[{"role": "user", "content": "Hi"}]], {}, UsageError, "conversations"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_ablated_is_refused(what: str, byte: LoadedModel) -> None:
    texts, given, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        as_users_have_it(tf.ablate)(byte, texts, **given)


def test_a_sweep_goes_on_under_the_same_edits_only(byte: LoadedModel, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    texts = ["abcabc", "hello!", "xyzxyz", "qwerty"]
    with tf.edit(byte, tf.edits.scale("resid_post", 1, 1.1)), pytest.raises(KeyboardInterrupt):
        tf.ablate(byte, texts, layers=3, out=tmp_path / "kept", batch_size=1, progress=stop)
    with pytest.raises(ConfigurationChanged):
        tf.ablate(byte, texts, layers=3, out=tmp_path / "kept", batch_size=1, resume=True)
    with pytest.raises(UsageError, match="a function as metric"):
        tf.ablate(byte, texts, layers=3, out=tmp_path / "kept", resume=True, metric=lambda logits: logits[:, -1, 0])


def test_an_interrupted_sweep_comes_to_the_same_bytes(byte: LoadedModel, tmp_path: Path) -> None:
    def files(name: str) -> dict[str, bytes]:
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("c.*")}

    texts = ["abcabc", "hello!", "xyzxyz", "qwerty", "asdfgh", "abc"]
    tf.ablate(byte, texts, layers=[2], out=tmp_path / "whole", batch_size=3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tf.ablate(byte, texts, layers=[2], out=tmp_path / "part", batch_size=3, progress=stop)
    for name in ("clean", "corrupt", "effect", "metric"):  # as a kill between two texts of a group leaves it
        [path.unlink() for path in (tmp_path / "part" / name).glob("c.1*")]
    tf.ablate(byte, texts, layers=[2], out=tmp_path / "part", batch_size=3, resume=True)
    assert files("part") == files("whole")


def test_a_model_may_be_named(byte: LoadedModel) -> None:
    named, loaded = (tf.ablate(model, TEXTS[:1], layers=[1], heads=[0]) for model in ("byte", byte))
    assert named.to_json() == loaded.to_json()
    with pytest.raises(UsageError, match="each worker loads its own"):
        tf.ablate(byte, TEXTS, engine="ray")
    with pytest.raises(UsageError, match="no engine 'dask'"):
        tf.ablate("byte", TEXTS, engine="dask")


def test_what_no_sweep_can_tell_is_refused(byte: LoadedModel) -> None:
    with tf.edit(byte, tf.edits.zero("z", 1, example=0)), pytest.raises(Unsupported, match="edits of single texts"):
        tf.ablate(byte, ["abcabc"])
    for family in ("bert", "t5"):
        model = tf.load_model(tiny_model(family))
        with pytest.raises(Unsupported, match="it is no decoder"):
            tf.patch(model, [5, 6, 7, 8], [5, 6, 9, 8], metric="loss")
    with pytest.raises(UsageError, match="1 or more"):
        tf.ablate(byte, ["abcabc"], batch_size=0)
