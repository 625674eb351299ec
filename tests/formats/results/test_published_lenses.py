"""Lenses as others publish them, written here as their documented layouts say, and read as `Translators`.

The layouts are those of anthropics/jacobian-lens and TransformerLens 4.3, and of the package tuned-lens.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traceformer.analysis.translators import Translators
from traceformer.errors import NotFound, RunExists, Unreadable, UsageError
from traceformer.formats.results.translators import open_lens

D = 6


def matrices(layers: tuple[int, ...] = (0, 1, 2), d: int = D) -> dict[int, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {layer: torch.randn(d, d, generator=random) for layer in layers}


def jacobian(path: Path, dtype: torch.dtype = torch.float16, **changes: Any) -> Path:
    """A published file; `changes` replace what it holds, None takes it out."""
    own = {layer: matrix.to(dtype) for layer, matrix in matrices().items()}
    value = {"J": own, "n_prompts": 7, "source_layers": [0, 1, 2], "d_model": D, **changes}
    torch.save({name: each for name, each in value.items() if each is not None}, path)
    return path


def tuned(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    translators: Any = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(4))
    with torch.no_grad():
        for number, own in enumerate(translators):
            own.weight[:] = matrices((number,))[number] + number
            own.bias[:] = number
    state = {**translators.state_dict(), **changes}
    torch.save({name: each for name, each in state.items() if each is not None}, folder / "params.pt")
    about = {
        "base_model_name_or_path": "gpt2",
        "d_model": D,
        "num_hidden_layers": 4,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": "0" * 64,
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps({**about, **(config or {})}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_published_jacobian_lens_is_read_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    metadata = {"model_name": "gpt2", "target_layer": 3, "corpus": "wikitext", "processing": {"weight_basis": "raw"}}
    found = open_lens(jacobian(tmp_path / "lens.pt", dtype, metadata=metadata))
    assert (found.kind, found.layers, found.d_model, found.model) == ("jacobian", (0, 1, 2), D, "gpt2")
    assert found.model_weights is found.d_vocab is found.held_out is None
    assert found.about == {"format": "J", "target_layer": 3, "corpus": "wikitext", "n_prompts": 7}
    for layer, matrix in matrices().items():
        assert np.array_equal(found.weights[layer], matrix.to(dtype).float().numpy())
    assert not found.biases.any()
    rows = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    expected = [matrices()[1].to(dtype).double().numpy() @ row for row in rows.astype(np.float64)]
    np.testing.assert_allclose(found.translated(rows, 1), expected, rtol=1e-5, atol=1e-6)


def test_torch_is_not_imported_for_it(tmp_path: Path) -> None:
    path = jacobian(tmp_path / "lens.pt")
    code = f"import sys, traceformer; print(traceformer.open_lens({str(path)!r}).layers, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "(0, 1, 2) False"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"J": None}, "no Jacobian lens"),
        ({"J": {}}, "no Jacobian lens"),
        ({"J": torch.ones(2, D, D)}, "no Jacobian lens"),
        ({"J": None, "jacobian_sum": matrices(), "n_done": 3}, "fit that was not finished"),
        ({"d_model": D + 1}, "layer 0: shape 6 x 6 where 7 x 7 should be"),
        ({"d_model": None}, "None wide"),
        ({"d_model": 10**9}, "shape 6 x 6"),
        ({"source_layers": [0, 1]}, "it lists"),
        ({"J": {**matrices(), 1: torch.full((D, D), torch.nan)}}, "layer 1: it holds NaN or inf"),
        ({"J": {**matrices(), 2: torch.full((D, D), 1e300, dtype=torch.float64)}}, "layer 2: it holds NaN or inf"),
        ({"J": {**matrices(), 2: torch.ones(D)}}, "layer 2: shape 6 where"),
        ({"J": {**matrices(), 2: torch.ones(D, D, dtype=torch.int64)}}, "no floating-point numbers"),
        ({"J": {**matrices(), 2: [1.0]}}, "no floating-point numbers"),
        ({"J": {"0": matrices()[0]}, "source_layers": None}, "named by its layer"),
        ({"J": {-1: matrices()[0]}, "source_layers": None}, "named by its layer"),
    ],
)
def test_a_jacobian_lens_that_does_not_hold_what_it_should_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match=message):
        open_lens(jacobian(tmp_path / "lens.pt", torch.float32, **changes))


def test_a_folder_of_tuned_lens_is_read_one_layer_later_than_it_counts(tmp_path: Path) -> None:
    found = open_lens(tuned(tmp_path / "lens"))
    # Its translator 0 is for the embedding, 1 for what layer 0 left: four layers, of which the last one needs none.
    assert (found.kind, found.layers, found.model, found.about["n_layers"]) == ("tuned", (0, 1, 2), "gpt2", 4)
    rows = np.random.default_rng(0).normal(size=(3, D))
    for layer in found.layers:
        linear = torch.nn.Linear(D, D).double()
        with torch.no_grad():
            linear.weight[:] = matrices((layer + 1,))[layer + 1] + layer + 1
            linear.bias[:] = layer + 1
            expected = torch.tensor(rows) + linear(torch.tensor(rows))
        np.testing.assert_allclose(found.translated(rows.astype(np.float32), layer), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"lens_type": "rotated"}, {}, "lens of type 'rotated'"),
        ({"d_model": 7}, {}, "translator 1: shape 6 x 6 where 7 x 7"),
        ({"num_hidden_layers": 3}, {}, "3.bias, 3.weight"),
        ({"num_hidden_layers": 10**12}, {}, "1000000000000 translators"),
        ({"num_hidden_layers": None}, {}, "num_hidden_layers None"),
        ({}, {"2.weight": None}, "missing or too much: 2.weight"),
        ({}, {"2.bias": torch.ones(3)}, "translator 2: shape 3"),
        ({}, {"2.bias": torch.full((D,), torch.inf)}, "translator 2: it holds NaN or inf"),
        ({}, {"2.weight": torch.full((D, D), torch.nan)}, "translator 2: it holds NaN or inf"),
        ({}, {"extra": torch.ones(3)}, "missing or too much: extra"),
    ],
)
def test_a_tuned_lens_that_does_not_hold_what_it_should_is_refused(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match=message):
        open_lens(tuned(tmp_path / "lens", config, **changes))


def test_a_tuned_lens_may_have_no_biases(tmp_path: Path) -> None:
    found = open_lens(tuned(tmp_path / "lens", {"bias": False}, **{f"{number}.bias": None for number in range(4)}))
    assert not found.biases.any()


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"saves a config\.json and a params\.pt"):
        open_lens(tmp_path)
    with pytest.raises(NotFound, match=r"no file .*nowhere\.pt"):
        open_lens(tmp_path / "nowhere.pt")
    (tuned(tmp_path / "lens") / "params.pt").write_bytes(b"no archive")
    with pytest.raises(Unreadable, match="more than tensors"):  # to torch any other bytes are an old pickle
        open_lens(tmp_path / "lens")
    (tmp_path / "lens" / "config.json").write_text("[", encoding="utf-8")
    with pytest.raises(Unreadable, match="not JSON"):
        open_lens(tmp_path / "lens")


def test_a_jacobian_lens_is_written_as_others_read_it(tmp_path: Path) -> None:
    weights = np.stack([matrix.numpy() for matrix in matrices().values()])
    about = {"n_prompts": 7, "skip": 16, "examples": {"fit": 3}}
    ours = Translators("jacobian", (0, 1, 2), weights, np.zeros((3, D), np.float32), "gpt2", "abc", 99, about)
    ours.save(tmp_path / "lens.pt")
    theirs = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert {name: type(own) for name, own in theirs.items()} == {
        "J": dict,
        "n_prompts": int,
        "source_layers": list,
        "d_model": int,
        "metadata": dict,
    }
    assert (theirs["n_prompts"], theirs["source_layers"], theirs["d_model"]) == (7, [0, 1, 2], D)
    for layer, matrix in matrices().items():
        assert torch.equal(theirs["J"][layer], matrix)
    assert theirs["metadata"] == {"n_prompts": 7, "skip": 16, "estimator": "jacobian_lens", "model_name": "gpt2"}
    back = open_lens(tmp_path / "lens.pt")
    assert np.array_equal(back.weights, ours.weights)
    with pytest.raises(RunExists):
        ours.save(tmp_path / "lens.pt")
    for odd in (
        Translators("ridge", (0,), weights[:1], np.zeros((1, D), np.float32)),
        Translators("jacobian", (0,), weights[:1], np.ones((1, D), np.float32)),
    ):
        with pytest.raises(UsageError, match=r"\.safetensors"):
            odd.save(tmp_path / "odd.pt")
