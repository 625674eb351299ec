"""The logit lens as a call: of the built-in model's run, whose last layer must say what its logits say."""

import json

import numpy as np
import pytest

from traceformer.errors import ExampleNotFound, NotFound, NotRecorded, SelectionError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.lens import lens
from traceformer.store.run import Run


def test_the_last_layer_of_a_run_in_memory_says_what_the_model_predicts(run: Run) -> None:
    value = lens(run, 1, top_k=1)
    logits = run.get(1, "logits").astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert value.example_id == run.ids[1]
    assert value.top_ids[-1, :, 0].tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(value.top_probabilities[-1, :, 0], probabilities.max(axis=1), rtol=1e-4)
    # Every byte has a name, whether it occurs in the run or not.
    assert all(len(name) == 1 or name == "<|endoftext|>" for name in value.names.values())


def test_its_table_has_a_row_per_layer_position_and_rank(run: Run) -> None:
    value = lens(run, run.ids[0], layers=[0, 3], positions=[23, 24], top_k=2)
    table = value.to_frame()
    assert table[["layer", "position", "rank"]].to_numpy().tolist() == [
        [layer, position, rank] for layer in (0, 3) for position in (23, 24) for rank in (1, 2)
    ]
    assert table.token.tolist() == ["n", "n", "a", "a"] * 2
    assert table.top_token.tolist() == np.array(value.top_tokens).reshape(-1).tolist()
    assert table.probability.tolist() == value.top_probabilities.reshape(-1).tolist()
    # What came after position 23 is the last token; nothing came after that one.
    assert table.target_token.fillna("nothing").tolist() == ["a", "a", "nothing", "nothing"] * 2
    assert table.target_rank.isna().tolist() == [False, False, True, True] * 2
    assert table.entropy.tolist() == np.repeat(value.entropy.reshape(-1), 2).tolist()


def test_it_says_in_a_line_what_it_is_and_has_no_nan_in_json(run: Run) -> None:
    value = lens(run, 0, top_k=2)
    assert repr(value) == f"Lens('{run.ids[0]}': 4 layers x 25 positions of dec.resid_post, top 2)"
    told = json.loads(json.dumps(value.to_json(), allow_nan=False))
    assert told["targets"][0] == {"id": ord("e"), "token": "e"}
    assert told["targets"][-1] is told["target_rank"][0][-1] is told["target_probability"][0][-1] is None
    assert "<table class=lens>" in value._repr_html_()


def test_what_was_read_out_while_recording_needs_no_stream(byte: LoadedModel, run: Run) -> None:
    from traceformer.capture.extract import record

    recorded = record(byte, [run.text(0)], lens_top_k=2)
    value, whole = lens(recorded), lens(run, top_k=2)
    assert str(value.key) == "dec.lens_topk"
    assert value.top_tokens == whole.top_tokens
    assert np.isnan(value.entropy).all()
    with pytest.raises(NotRecorded, match="holds 2 of each layer"):
        lens(recorded, top_k=3)


def test_what_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(ExampleNotFound):
        lens(run, "nope")
    with pytest.raises(SelectionError, match="layers 0, 1, 2, 3 of"):
        lens(run, layers=[4])
    with pytest.raises(NotFound, match="no model at nowhere"):
        lens(run, model="nowhere")
