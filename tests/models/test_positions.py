"""Texts as long as a model has positions for: read whole and right, and refused in words when they are longer."""

from typing import Any

import numpy as np
import pytest
import torch

import traceformer as tf
from tests.marks import slow
from traceformer.capture.proofs.check import check_model
from traceformer.errors import UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.tiny import tiny_model

BEHIND_PADDING = (
    *("roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "mpnet", "luke", "longformer", "esm", "ibert"),
    *("markuplm", "roberta-prelayernorm", "xmod"),
)
"""Families that count positions from the padding id + 1, of which tables have as many rows more."""
FAST = ("camembert",)


def own_hidden(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([state[0, : len(ids)].numpy() for state in states])


@pytest.mark.parametrize("family", [each if each in FAST else slow(each) for each in BEHIND_PADDING])
def test_a_text_of_all_positions_is_read_whole_and_one_more_token_is_refused(family: str) -> None:
    model: Any = tiny_model(family)
    most = ModelDims.of(model).stacks["enc"].n_ctx
    padding = 1 if family == "mpnet" else model.config.pad_token_id
    assert most == model.config.max_position_embeddings - padding - 1
    ids = torch.randint(5, 90, (most + 1,), generator=torch.Generator().manual_seed(3)).tolist()
    loaded = tf.load_model(model)
    run = tf.record(loaded, [ids[:most], ids[:9]], "hidden", dtype="float32")
    for number, own in enumerate((ids[:most], ids[:9])):
        expected = own_hidden(model, own)
        np.testing.assert_allclose(run.get(number, "hidden"), expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    with pytest.warns(UserWarning, match=rf"texts are cut to {most} tokens \(all that the model can read\): 1 of 1"):
        assert tf.record(loaded, [ids], "embed").tokens["n_tokens"].tolist() == [most]
    with pytest.raises(UsageError, match=rf"a text of {most + 1} tokens; .* has positions for {most}"):
        check_model(model, [{"enc": ids}, {"enc": ids[:3]}])
