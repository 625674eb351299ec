"""What a model at hand says of itself: its weights, its name, itself in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from traceformer.errors import UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import short_name, weights_digest
from traceformer.models.tiny import tiny_model


def test_one_changed_weight_changes_the_digest() -> None:
    model: Any = tiny_model("gpt2")
    before = weights_digest(model)
    assert weights_digest(tiny_model("gpt2")) == before
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 7] += 1e-6
    assert weights_digest(model) != before


def test_names_are_fit_for_a_path(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    assert short_name("meta-llama/Llama-3.2-1B") == "meta-llama-Llama-3.2-1B"
    assert short_name(str(tmp_path / "my model")) == "my-model"
    assert short_name("..") not in ("", ".", "..")


@pytest.mark.parametrize(
    ("family", "shown"),
    [
        ("gpt2", "Model('gpt2': gpt2, decoder, 3 layers of 4 heads, d_model 32, float32 on cpu)"),
        ("bert", "Model('bert': bert, encoder, 3 layers of 4 heads, d_model 32, float32 on cpu)"),
        ("bart", "Model('bart': bart, encoder-decoder, 2 + 3 layers of 4 heads, d_model 32, float32 on cpu)"),
    ],
)
def test_a_model_shows_itself_in_one_line(family: str, shown: str) -> None:
    assert repr(load_model(tiny_model(family))) == shown


def test_without_a_tokenizer_it_says_so_when_texts_are_to_be_read() -> None:
    loaded = load_model(tiny_model("gpt2", pad_token_id=7))
    assert loaded.pad_id == 7
    with pytest.raises(
        UsageError, match=r"without a tokenizer, and gpt2 came with none.*load_model\(model, tokenizer\)"
    ):
        loaded.reader()
