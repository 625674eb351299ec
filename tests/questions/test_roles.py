"""The role card joins what heads, circuits, the stream and ablations say, each under its own name."""

import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.analysis.effects import Axis, Effects, Swept
from traceformer.analysis.roles import ROLES, Roles
from traceformer.capture.extract import record
from traceformer.errors import UsageError
from traceformer.figures.role_card import roles_figure
from traceformer.figures.role_page import roles_page
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.tiny import tiny_model
from traceformer.questions.ablate import ablate
from traceformer.questions.circuits import circuits
from traceformer.questions.heads import heads
from traceformer.questions.roles import roles
from traceformer.store.run import Run

LETTERS = "abcdefghijklmnopqrstuvwxyz"
REPEATS = ["".join(random.Random(seed).sample(LETTERS, 16)) * 3 for seed in range(2)]


@pytest.fixture(scope="module")
def card(byte: LoadedModel) -> Roles:
    return roles(byte, REPEATS)


def test_each_column_is_what_its_own_verb_says(card: Roles, byte: LoadedModel) -> None:
    metrics = heads(byte, REPEATS)
    weights = circuits("byte", measured=metrics)
    frame = card.to_frame()
    for name in (*ROLES, "retrieval"):
        np.testing.assert_array_equal(frame[name], metrics.values[name])
    for column, name in (("copying", "copying"), ("qk_rank", "qk_rank"), ("induction_weights", "induction")):
        np.testing.assert_allclose(frame[column], weights.values[name].reshape(-1))
    assert np.isnan(frame["ablation"]).all()
    assert np.isnan(card.values["previous_token_weights"]).all()
    assert "rotary" in card.notes["previous_token_weights"]
    assert card.circuits is not None
    assert card.circuits.through == weights.through


def test_roles_of_the_built_in_model_on_repeated_text(card: Roles) -> None:
    named = dict(zip(card.names, card.roles, strict=True))
    assert named["L1H7"] == named["L1H5"] == "previous token"
    assert named["L2H5"] == named["L2H6"] == named["L3H1"] == "induction"
    assert named["L2H0"] == ""
    assert repr(card).startswith("Roles(byte: ")


def test_massive_activations_are_those_of_the_stream_itself(card: Roles, byte: LoadedModel) -> None:
    seen: list[Any] = []
    layer: Any = byte.model.get_submodule("model.layers.3")
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        for text in REPEATS:
            byte.model(torch.tensor([byte.tokenizer(text)["input_ids"]]))
    hook.remove()
    rows = [(out[0] if isinstance(out, tuple) else out)[0].abs().double().numpy() for out in seen]
    largest = max(float(own.max() / np.median(own)) for own in rows)
    assert card.massive is not None
    assert card.massive.largest[3] == pytest.approx(largest, rel=1e-5)


def test_a_run_has_the_same_card_as_its_model(byte: LoadedModel, card: Roles) -> None:
    run = record(byte, REPEATS, "attn_pattern resid_post")
    of_run = roles(run)
    assert card.massive is not None
    assert of_run.massive is not None
    np.testing.assert_allclose(of_run.massive.largest, card.massive.largest, rtol=1e-3)  # it holds float16
    np.testing.assert_allclose(of_run.values["induction"], card.values["induction"], atol=1e-6)
    np.testing.assert_allclose(of_run.values["copying"], card.values["copying"])
    assert of_run.roles == card.roles


def test_a_run_of_some_heads_without_a_stream_has_as_much_of_it(byte: LoadedModel) -> None:
    run = record(byte, REPEATS[:1], "attn_pattern", layers=[1, 2], heads=[5, 7])
    found = roles(run)
    assert found.names == ("L1H5", "L1H7", "L2H5", "L2H7")
    assert found.massive is None
    assert "resid_post" in found.notes["massive"]
    np.testing.assert_allclose(found.values["copying"], circuits("byte").values["copying"][1:3, [5, 7]].reshape(-1))
    assert found.circuits is not None
    assert found.circuits.through == (None, None, (1, 7), (1, 7))


def test_an_encoder_has_no_circuits_and_says_why() -> None:
    model: Any = load_model(tiny_model("bert"))
    found = roles(model, [[5, 6, 7, 5, 6, 7]])
    assert found.circuits is None
    assert "encoder" in found.notes["copying"]
    assert np.isnan(found.values["copying"]).all()
    assert found.massive is not None


def test_effects_stand_by_their_heads(byte: LoadedModel) -> None:
    array = np.arange(32.0).reshape(4, 8)
    assert roles(byte, ["abcab"], ablation=array).values["ablation"].tolist() == list(range(32))


@pytest.mark.slow
def test_heads_are_ablated_on_the_texts_that_they_read() -> None:
    model, texts = load_model(tiny_model("llama")), [[5, 6, 7, 5, 6], [9, 8, 9, 8]]
    found = roles(model, texts, ablation="mean")
    effects = ablate(model, texts)
    np.testing.assert_allclose(found.values["ablation"], effects.values.reshape(-1), atol=1e-5)
    assert "mean" in found.notes["ablation"]
    given = roles(model, texts, ablation=effects)
    np.testing.assert_array_equal(given.values["ablation"], effects.values.reshape(-1))


def effects_of(digest: str, *names: str) -> Effects:
    """Effects of two numbers on each of these axes, as an ablation of this model's has them."""
    numbers = np.zeros((1, *(2 for _ in names)))
    axes = tuple(Axis(name, (0, 1), ("0", "1")) for name in names)
    about = Swept(verb="ablate", model="x", digest=digest, sites=("dec.self.z",), metric="loss", how="mean")
    return Effects(axes, {"effect": numbers}, np.zeros(1), np.full(1, np.nan), ("0",), about)


def test_effects_that_are_not_these_heads_own_are_refused(byte: LoadedModel, run: Run) -> None:
    for asked, said in (
        (lambda: roles(byte, REPEATS[:1], ablation=np.zeros((3, 8))), "effects of"),
        (lambda: inspect.unwrap(roles)(byte, REPEATS[:1], ablation="median"), "no ablation 'median'"),
        (lambda: roles(run, ablation="mean"), "of a run"),
        (lambda: roles(run, ["a text"]), "a run and texts"),
        (lambda: roles(byte), "what shall the model read"),
        (lambda: roles(byte, ["a text"], model="byte"), "a model and `model`"),
        (lambda: roles(byte, ["ab"], ablation=effects_of(byte.digest, "layer")), "effects over layer"),
        (lambda: roles(byte, ["ab"], ablation=effects_of("another", "layer", "head")), "another model"),
    ):
        with pytest.raises(UsageError, match=said):
            asked()


def test_page_and_picture_have_every_head(card: Roles) -> None:
    page = roles_page(card)
    assert page.startswith("<!doctype html>")
    assert all(f"<th>{name}</th>" in page for name in card.names)
    assert "http" not in page
    assert "<script" not in page
    axes, beside = roles_figure(card).axes
    assert len(axes.get_yticklabels()) == 32
    assert len(axes.images) == len(card.shown)
    assert beside.get_xlabel() == "layer"


def test_json_holds_a_head_a_row(card: Roles) -> None:
    data = card.to_json()
    assert len(data["heads"]) == 32
    assert data["heads"][15] | {"layer": 1, "head": 7, "role": "previous token", "ablation": None} == data["heads"][15]
    assert data["massive"]["layers"] == [0, 1, 2, 3]
