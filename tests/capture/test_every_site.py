"""Every site, through batches, padding and the store, against a pass over the single text: every family when slow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.capture.asked import Extraction, extracted
from tests.capture.recording import ALL_MOSTLY_SLOW
from tests.tiny_folders import TEXTS
from traceformer import Selection, TraceStore
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.capture.scores import Span
from traceformer.models.load import load_model
from traceformer.sites import ArrayKey, ArraySpec


class Kept:
    """A sink that keeps everything of a batch of one, layer by layer, in float32."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[ArrayKey, int | None], torch.Tensor] = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: torch.Tensor) -> None:
        self.arrays[spec.key, layer] = rows[0].float().clone()

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: torch.Tensor) -> None:
        assert example == queries.start == keys.start == 0  # short texts come in one block
        self.arrays[spec.key, layer] = block.clone()


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("family", ALL_MOSTLY_SLOW)
def test_every_site_of_a_family_is_stored_as_a_pass_over_the_single_text_shows_it(
    family: str, tiny_folder: Callable[..., Path], text_file: Path, target_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    loaded = load_model(str(folder), device="cpu", with_head=True)
    is_encdec = loaded.dims.arch == "encdec"
    run = TraceStore(
        extracted(
            Extraction(
                selection=Selection(("all",)),
                model=str(folder),
                dataset=str(text_file),
                targets_file=target_file if is_encdec else None,
                limit=4,
                batch_size=3,
                dtype="float32",
                device="cpu",
                out_dir=tmp_path / "run",
            )
        )
    )
    plan = plan_arrays(Selection(("all",)), loaded.model)
    assert {str(spec.key) for spec in run.layout.arrays} == {str(spec.key) for spec in plan.arrays}
    compared = 0
    for _, row in run.tokens.iterrows():
        ids = torch.tensor([list(row.input_ids)])
        inputs = {"input_ids": ids}
        spans = {stack: [Span(0, ids.shape[1])] for stack in loaded.dims.stacks}
        if is_encdec:
            inputs["decoder_input_ids"] = torch.tensor([list(row.dec_input_ids)])
            spans["dec"] = [Span(0, row.dec_n_tokens)]
        kept = Kept()
        with Recorder(loaded.model, plan.arrays, kept) as recorder:
            recorder.run(spans, **inputs)
        for spec in plan.arrays:
            found = run.get(row.example_id, str(spec.key))
            for layer, stored in zip(spec.layers, found, strict=True) if spec.layers else [(None, found)]:
                expected = kept.arrays[spec.key, layer].numpy()
                # The order of sums differs between a padded batch and a single text.
                np.testing.assert_allclose(stored, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
                compared += 1
    assert compared == len(TEXTS[:4]) * sum(len(spec.layers) or 1 for spec in plan.arrays)
