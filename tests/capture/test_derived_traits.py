"""Projections made while the model runs are those of an eager pass's own hidden states, by numpy in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.capture.asked import Answers, Extraction, Stopped, answered, extracted, stop_after
from tests.tiny_folders import TEXTS
from traceformer import Selection, TraceStore
from traceformer.capture.derived import Traits
from traceformer.capture.generation.sampling import Sampling
from traceformer.errors import ConfigurationChanged, SelectionError, UsageError

Folder = Callable[..., Path]
WIDTH = 32
CHANCE = np.random.default_rng(0)
JOY, FEAR = CHANCE.normal(size=(2, WIDTH)).astype(np.float32)
ONE_EACH = {layer: CHANCE.normal(size=WIDTH).astype(np.float32) for layer in (0, 2)}


def eager(folder: Path, ids: Any) -> list[np.ndarray]:
    """The residual stream leaving each block but the last, whose hidden state is after the final norm."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    return [state[0].double().numpy() for state in states[1:-1]]


def along(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return rows @ vector.astype(np.float64) / np.sqrt((vector.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("replay", [False, True], ids=["live", "replay"])
def test_a_generation_holds_projections_only(family: str, replay: bool, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_folder(family)
    asked = Answers(
        model=str(folder),
        prompt=TEXTS[2],
        sampling=Sampling(max_tokens=6),
        selection=Selection((), layers={"dec": (0, 1)}),
        traits=Traits({"joy": {None: JOY}, "fear": {7: FEAR}}),
        replay=replay,
        dtype="float32",
        out_dir=tmp_path / "run",
        device="cpu",
    )
    run = TraceStore(answered(asked))
    assert [str(spec.key) for spec in run.layout.arrays] == ["dec.projection"]
    assert run.meta["projection"]["names"] == ["joy", "fear"]
    row = run.tokens.iloc[0]
    states = eager(folder, row.input_ids)
    for layer in (0, 1):
        found = run.get(row.example_id, "projection", layer)
        expected = np.stack([along(states[layer], JOY), along(states[layer], FEAR)], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_extraction_holds_them_beside_what_is_selected(tiny_folder: Folder, text_file: Path, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    asked = Extraction(
        selection=Selection(("resid_post",)),
        model=str(folder),
        dataset=str(text_file),
        traits=Traits({"joy": ONE_EACH}),
        dtype="float32",
        out_dir=tmp_path / "run",
        device="cpu",
        batch_size=4,
    )
    run = TraceStore(extracted(asked))
    projection, residual = (run.spec(site) for site in ("projection", "resid_post"))
    assert (projection.layers, residual.layers) == ((0, 2), (0, 1, 2))
    for example in run.ids:
        for layer, vector in ONE_EACH.items():
            expected = along(run.get(example, "resid_post", layer).astype(np.float64), vector)
            np.testing.assert_allclose(run.get(example, "projection", layer)[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_with_the_vectors_it_was_begun_with_only(
    tiny_folder: Folder, text_file: Path, tmp_path: Path
) -> None:
    def asked(vector: np.ndarray, **changes: Any) -> Extraction:
        return Extraction(
            selection=Selection(()),
            model=str(tiny_folder("llama")),
            dataset=str(text_file),
            traits=Traits({"joy": {None: vector}}),
            out_dir=tmp_path / "run",
            device="cpu",
            shard_examples=2,
            **changes,
        )

    with pytest.raises(Stopped):
        extracted(asked(JOY), stop_after(4))
    with pytest.raises(ConfigurationChanged, match="projection"):
        extracted(asked(FEAR, resume=True))
    assert TraceStore(extracted(asked(JOY, resume=True))).spec("projection").width == 1


@pytest.mark.parametrize(
    ("traits", "layers", "error", "message"),
    [
        (Traits({"joy": {None: JOY[:9]}}), None, UsageError, "9 wide"),
        (Traits({"joy": {None: np.zeros(WIDTH)}}), None, UsageError, "zero"),
        (Traits({"joy": {None: np.full(WIDTH, np.nan)}}), None, UsageError, "not finite"),
        (Traits({"joy": ONE_EACH}), (1,), SelectionError, "no vector for layer 1"),
        (Traits({"joy": ONE_EACH, "fear": {1: JOY, 3: JOY}}), None, SelectionError, "no layer in common"),
        (Traits({"joy": {None: JOY}}, "attn_pattern"), None, SelectionError, "cannot be projected"),
        (Traits({"joy": {None: JOY}}, "residual"), None, SelectionError, "cannot be projected"),
    ],
)
@pytest.mark.filterwarnings("ignore:dropping layers")
def test_what_cannot_be_projected_is_refused_before_anything_is_written(
    traits: Traits,
    layers: tuple[int, ...] | None,
    error: type[Exception],
    message: str,
    tiny_folder: Folder,
    text_file: Path,
    tmp_path: Path,
) -> None:
    selection = Selection((), layers={"dec": layers})
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        extracted(
            Extraction(
                selection=selection,
                model=str(tiny_folder("llama")),
                dataset=str(text_file),
                traits=traits,
                out_dir=out,
                device="cpu",
            )
        )
    assert not list(tmp_path.glob("*run*"))
