"""Apple's GPU as a device: how it is chosen, and that nothing is asked of it that it has not.

What runs on it runs here on `tests.fake_mps`, and on the GPU itself where there is one.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.fake_mps import FakeMps, is_on_gpu
from traceformer.errors import UsageError
from traceformer.models.load import pick_device

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
    with FakeMps() as mode:
        yield mode


# The choice


@pytest.mark.usefixtures("apple")
def test_the_gpu_of_apple_is_taken_where_there_is_no_other() -> None:
    assert [pick_device(name) for name in (None, "auto", "mps", "mps:0", "cpu")] == ["mps", "mps", "mps", "mps:0", "cpu"]
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


def on(device: str) -> tf.LoadedModel:
    model = tf.load_model("byte", device=device)
    assert is_on_gpu(next(model.model.parameters())) == (device == "mps")
    return model


def assert_same_numbers(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fake")
def test_a_recording_on_it_proves_itself_and_has_the_numbers_of_the_processor() -> None:
    found, expected = (tf.record(on(device), TEXTS, "attn resid logits") for device in ("mps", "cpu"))
    assert found.about.device.startswith("mps")
    assert_same_numbers(found.attn(0, layer=2, head=6), expected.attn(0, layer=2, head=6))
    assert_same_numbers(found.get(1, "resid_post", 3), expected.get(1, "resid_post", 3))
