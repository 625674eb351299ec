"""What an edit states of the run that its numbers come from."""

from typing import Any

import pytest

import traceformer as tf
from traceformer import edits
from traceformer.errors import SelectionError
from traceformer.models.loaded import LoadedModel

TEXTS = ["returns the name of the file", "an error is raised"]


def test_an_edit_states_what_its_run_keeps_of_the_place(byte: LoadedModel) -> None:
    how: dict[str, Any] = {"layers": [1], "dtype": "bfloat16"}
    recipe = tf.record(byte, TEXTS, "attn v", patterns="recipe", **how)
    rounded = tf.record(byte, TEXTS, "attn z", attn_codec="sqrt8", rows_codec="q8", **how)
    kept = {"q": "float32", "k": "float32", "v": "bfloat16", "attn_pattern": "bfloat16"}
    for run, by_site in ((recipe, kept), (rounded, {"z": "q8", "attn_pattern": "sqrt8", "resid_pre": "bfloat16"})):
        for site, stored in by_site.items():
            for made in (edits.patch(site, 1, run), edits.mean(site, 1, run), edits.resample(site, 1, run)):
                assert made.to_json()["run_dtype"] == stored
    for site in ("resid", "resid_mids"):
        with pytest.raises(SelectionError):
            edits.patch(site, 1, recipe)
