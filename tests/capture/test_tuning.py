"""KL to what is said in the end, and its slope, against torch's own; a map that is tuned by it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from traceformer.analysis import lens
from traceformer.analysis.ridge import Affine, Moments, Spectrum
from traceformer.capture import tuning
from traceformer.capture.tuning import TorchReadout, Tuning, tune
from traceformer.models.readout import HeldRows, Readout

D, WORDS, ROWS = 8, 23, 30


def readout(norm: Any = "rms", *, softcap: float | None = None, bias: bool = False, project: bool = False) -> Readout:
    random = np.random.default_rng(5)

    def made(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return Readout(
        norm,
        made(D) if norm is not None else None,
        made(D) if norm == "layer" else None,
        1e-5,
        made(D, D) if project else None,
        0.5 if project else 1.0,
        HeldRows(torch.from_numpy(made(WORDS, D))),
        made(WORDS) if bias else None,
        softcap,
    )


KINDS: dict[str, Readout] = {
    "rms": readout(),
    "rms plus one": readout("rms_plus_one", softcap=3.0),
    "layer": readout("layer", bias=True),
    "none": readout(None),
    "projected": readout("layer", project=True, softcap=2.0, bias=True),
}


def plain_logits(own: Readout, normed: Tensor) -> Tensor:
    logits = normed @ torch.from_numpy(own.unembedding.rows(0, WORDS)).T
    if own.bias is not None:
        logits = logits + torch.from_numpy(own.bias)
    return logits if own.softcap is None else own.softcap * torch.tanh(logits / own.softcap)


def rows(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, D)).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [8192, 5], ids=["all words at once", "five at a time"])
def test_kl_and_its_slope_are_torchs(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_WORDS", block)
    monkeypatch.setattr(tuning, "_BLOCK_BYTES", 4 * 7 * min(block, WORDS))  # seven rows at a time
    own = TorchReadout(KINDS[kind])
    normed, others = own.normed(rows(1)), own.normed(rows(2))
    found = own.agreement(normed, others, slope=True)
    leaf = normed.clone().requires_grad_()
    said, aims = plain_logits(KINDS[kind], leaf), plain_logits(KINDS[kind], others)
    expected = functional.kl_div(
        said.log_softmax(dim=1), aims.log_softmax(dim=1), reduction="none", log_target=True
    ).sum(dim=1)
    expected.sum().backward()
    expected = expected.detach()
    torch.testing.assert_close(found.kl, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.slope, leaf.grad, rtol=1e-4, atol=1e-5)
    assert found.same.tolist() == (said.argmax(dim=1) == aims.argmax(dim=1)).tolist()
    mean, share = own.measured(rows(1).numpy(), others.numpy())
    assert mean == pytest.approx(float(expected.mean()), rel=1e-4)
    assert share == pytest.approx(float(found.same.float().mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_normed_as_the_logit_lens_norms_it(kind: str) -> None:
    expected = lens.normed(rows(3).numpy(), KINDS[kind])
    np.testing.assert_allclose(TorchReadout(KINDS[kind]).normed(rows(3)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_kept_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = TorchReadout(KINDS["layer"])
    monkeypatch.setattr(tuning, "_KEPT_BYTES", 0)
    read = TorchReadout(KINDS["layer"])
    for own in (kept, read):
        assert own.measured(rows(1).numpy(), rows(2).numpy()) == kept.measured(rows(1).numpy(), rows(2).numpy())


def mixed() -> tuple[Spectrum, Any, Any]:
    """Rows that a rotation and a shift would put where they should be, and other such rows."""
    random = np.random.default_rng(7)
    turn, own = np.linalg.qr(random.normal(size=(D, D)))[0], TorchReadout(KINDS["rms"])
    parts: list[Any] = []
    moments = Moments(D)
    for n in (400, 100):
        ends = random.normal(size=(n, D)).astype(np.float32)
        layer = (ends @ turn + 1 + 0.1 * random.normal(size=(n, D))).astype(np.float32)
        if not parts:
            moments.add(layer, ends)
        parts.append((layer, own.normed(torch.from_numpy(ends)).numpy()))
    return Spectrum.of(moments), *parts


def test_tuning_finds_what_was_mixed_and_is_the_same_each_time() -> None:
    spectrum, fitted, checked = mixed()
    own, start = TorchReadout(KINDS["rms"]), Affine(np.eye(D), np.zeros(D))
    told: list[tuple[int, int]] = []
    how = Tuning(steps=200, batch=64, rate=0.03)
    first, again = (
        tune(start, spectrum, own, fitted, checked, how, seed=1, progress=lambda *at: told.append(at)) for _ in range(2)
    )
    assert (first.matrix == again.matrix).all()
    assert (first.vector == again.vector).all()
    assert told == [(step, 200) for step in range(1, 201)] * 2

    def kl(map_: Affine) -> float:
        layer, ends = checked
        return own.measured((layer @ map_.matrix.T + map_.vector).astype(np.float32), ends)[0]

    assert kl(first) < 0.1 * kl(start)
    other = tune(start, spectrum, own, fitted, checked, how, seed=2)
    assert (other.matrix != first.matrix).any()


def test_no_map_is_returned_that_is_worse_than_the_first() -> None:
    spectrum, fitted, checked = mixed()
    own, start = TorchReadout(KINDS["rms"]), spectrum.ridge(1e-3)
    wild = tune(start, spectrum, own, fitted, checked, Tuning(steps=3, batch=64, rate=1e3))
    np.testing.assert_allclose(wild.matrix, start.matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(wild.vector, start.vector, rtol=1e-4, atol=1e-5)
