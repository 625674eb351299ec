"""Apple's GPU as a device: how it is chosen, and that nothing is asked of it that it has not.

What runs on it runs here on `tests.fake_mps`, and on the GPU itself where there is one.
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import traceformer as tf
from tests.fake_mps import FakeMps, is_on_gpu
from tests.odd_model import odd_model
from traceformer.errors import UsageError
from traceformer.models.load import pick_device
from traceformer.models.loaded import LoadedModel

TEXTS = ["The function returns the name of the file.", "An error is raised."]


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which torch says that it has Apple's GPU, and no other."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def fake(apple: None, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeMps]:
    state = torch.zeros(1, dtype=torch.uint8)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda _: None)
    monkeypatch.setattr(torch, "Event", Event)
    with FakeMps() as mode:
        yield mode


class Event:
    """What torch tells of a device's work, all of which is done at once here."""

    def __init__(self, **_: object) -> None:
        pass

    def record(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


# The choice


@pytest.mark.usefixtures("apple")
def test_the_gpu_of_apple_is_taken_where_there_is_no_other() -> None:
    assert [pick_device(name) for name in (None, "auto", "mps", "mps:0")] == ["mps", "mps", "mps", "mps:0"]
    with pytest.raises(UsageError, match="no device 'cuda'") as refused:
        pick_device("cuda")
    assert refused.value.hint == '`device="mps"` or `device="cpu"`'


@pytest.mark.usefixtures("apple")
def test_cuda_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(None) == "cuda"


def test_where_there_is_none_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no device 'mps'"):
        pick_device("mps")


@pytest.mark.usefixtures("apple")
def test_a_model_of_float64_is_refused_on_it() -> None:
    with pytest.raises(UsageError, match="a model of float64 on mps") as refused:
        tf.load_model("byte", dtype="float64")
    assert refused.value.hint == '`device="cpu"`'
    assert pick_device("cpu", torch.float64) == "cpu"


# The fake


@pytest.mark.usefixtures("fake")
def test_the_fake_refuses_what_the_gpu_refuses() -> None:
    rows = torch.ones(2, 3).to("mps")
    assert rows.device.type == "mps"
    assert (rows @ torch.eye(3, device="mps")).device.type == "mps"
    assert rows.cpu().device.type == "cpu"
    with pytest.raises(TypeError, match="float64"):
        rows.double()
    with pytest.raises(RuntimeError, match="same device"):
        rows + torch.ones(2, 3)
    with pytest.raises(TypeError, match="numpy"):
        rows.numpy()
    np.testing.assert_array_equal((rows * 2).cpu().double().numpy(), np.full((2, 3), 2.0))


# What runs on it


def on(device: str) -> LoadedModel:
    model = tf.load_model("byte", device=device)
    assert is_on_gpu(next(model.model.parameters())) == (device == "mps")
    return model


def assert_same_numbers(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
def test_a_recording_on_it_proves_itself_and_has_the_numbers_of_the_processor() -> None:
    found, expected = (tf.record(on(device), TEXTS, "attn resid logits") for device in ("mps", "cpu"))
    assert found.about.device.startswith("mps")
    assert_same_numbers(found.attn(0, layer=2, head=6), expected.attn(0, layer=2, head=6))
    assert_same_numbers(found.get(1, "resid_post", 3), expected.get(1, "resid_post", 3))


CLEAN, CORRUPT = "abcdefgabc", "abcdefgxyz"
RIGHT: dict[str, str] = {"answer": "d", "wrong": "e"}
ASKED: dict[str, Callable[[LoadedModel], Any]] = {
    "heads": lambda model: tf.heads(model, TEXTS).to_frame(),
    "roles": lambda model: tf.roles(model, TEXTS, ablation="mean").to_frame(),
    "statistics": lambda model: tf.statistics(tf.record(model, TEXTS, "attn resid logits")).to_frame(),
    "lens": lambda model: tf.lens(tf.record(model, TEXTS, "resid"), 0).to_frame(),
    "paths": lambda model: tf.paths(model, TEXTS[1], layer="all", weighting="value-norm").to_frame(),
    "generate": lambda model: tf.generate(model, "The function", "attn resid logits", max_tokens=4, temperature=0).get(
        0, "resid_post", 3
    ),
    "sampled": lambda model: tf.generate(model, "The function", "resid", max_tokens=4, seed=1).get(0, "resid_post", 3),
    "beams": lambda model: tf.generate(model, "The", "resid", max_tokens=3, num_beams=2).get(0, "resid_post", 3),
    "patch": lambda model: tf.patch(model, CLEAN, CORRUPT, **RIGHT).to_frame(),
    "patch of patterns": lambda model: tf.patch(
        model, CLEAN, CORRUPT, **RIGHT, site="attn_pattern", over=("head",)
    ).to_frame(),
    "estimates": lambda model: tf.patch(model, CLEAN, CORRUPT, **RIGHT, estimate=True, exact_top=3).to_frame(),
    "ablate": lambda model: tf.ablate(model, TEXTS).to_frame(),
    "resampled": lambda model: tf.ablate(model, TEXTS, how="resample", over=("layer",)).to_frame(),
    "edges": lambda model: tf.edges(model, CLEAN, CORRUPT, **RIGHT, exact_top=3).to_frame(),
    "attribute": lambda model: tf.attribute(tf.record(model, TEXTS, "all", dtype="float32"), 0).to_frame(),
    "steered": lambda model: steered(model).get(0, "resid_post", 3),
    "dose": lambda model: dosed(model).to_frame(),
    "lens while it runs": lambda model: tf.record(model, TEXTS, "resid", lens_top_k=3).get(0, "lens_topk_prob"),
}
"""What is asked of a model, each with numbers to compare."""


def trait_of(model: LoadedModel) -> tf.Direction:
    return tf.fit_direction(tf.record(model, TEXTS), tf.record(model, [*TEXTS[::-1], "A name."]), layer=2)


def dosed(model: LoadedModel) -> Any:
    trait = trait_of(model)
    return tf.dose(model, "The function", trait, [0.0, 5.0], max_tokens=4, temperature=0)


def steered(model: LoadedModel) -> tf.Run:
    trait = trait_of(model)
    with tf.edit(model, tf.edits.steer(trait, 1.0), *tf.edits.ablate_direction(trait, layer=3)):
        return tf.record(model, TEXTS, "resid")


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_of_a_model_on_it_is_answered_as_on_the_processor(fake: FakeMps, asked: str) -> None:
    found, expected = (ASKED[asked](on(device)) for device in ("mps", "cpu"))
    if isinstance(found, pd.DataFrame):
        frames = (frame.select_dtypes("number") for frame in (found, expected))
        found, expected = (frame.to_numpy(float, na_value=np.nan) for frame in frames)
    assert np.asarray(expected).size
    assert_same_numbers(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("family", ["gpt2", "t5", "gemma2"])
def test_a_family_is_proved_on_it(family: str) -> None:
    assert tf.check(family, device="mps").ok


@pytest.mark.slow
@pytest.mark.usefixtures("fake")
def test_a_row_is_found_on_it() -> None:
    found = tf.check(tf.load_model(odd_model().to("mps")))
    assert found.result.ok


def test_the_gpu_itself_has_the_numbers_of_the_processor(skip_for: Callable[[str], None]) -> None:
    if not torch.backends.mps.is_available():
        skip_for("mps")
    found, expected = (
        tf.record(tf.load_model("byte", device=device), TEXTS, "attn resid") for device in ("mps", "cpu")
    )
    np.testing.assert_allclose(found.attn(0, layer=2), expected.attn(0, layer=2), atol=1e-3)
    np.testing.assert_allclose(found.get(1, "resid_post", 3), expected.get(1, "resid_post", 3), atol=1e-2)
