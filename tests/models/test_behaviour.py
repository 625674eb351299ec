"""What a tiny pass tells of models whose family has no row, whatever lists transformers has them in."""

from typing import Any

import pytest
import torch
import transformers

from traceformer.errors import UsageError
from traceformer.models.behaviour import behaviour_of
from traceformer.models.dims import ModelDims, arch_of_model, check_positions
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import TINY, tiny_model

ROWS = dict(FAMILIES)
SIZES = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}


@pytest.fixture(autouse=True)
def _without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that has a row by now is asked as if it had none."""
    for family in ("camembert", "mpnet", "big_bird", "rembert", "roberta-prelayernorm", "qwen2_vl_text", "xglm"):
        monkeypatch.delitem(FAMILIES, family, raising=False)


def made(base: str, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class = getattr(transformers, f"{base}Model")
        return model_class(model_class.config_class(**{**SIZES, **changes}))


@pytest.mark.parametrize("base", ["RemBert", "RobertaPreLayerNorm", "MPNet"])
def test_a_masked_family_is_an_encoder(base: str) -> None:
    changes = {"input_embedding_size": 16, "output_embedding_size": 16} if base == "RemBert" else {}
    assert arch_of_model(made(base, **changes)) == "enc"


def test_a_text_backbone_is_a_decoder_and_stays_in_train_mode() -> None:
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    model = made("Qwen2VLText", num_key_value_heads=2, rope_parameters=rotary).train()
    assert arch_of_model(model) == "dec"
    assert tuple(ModelDims.of(model).stacks) == ("dec",)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("base", "changes", "most"), [("Camembert", {}, 38), ("MPNet", {}, 38), ("Camembert", {"pad_token_id": 5}, 34)]
)
def test_positions_counted_from_the_padding_id_are_fewer(base: str, changes: dict[str, int], most: int) -> None:
    model = made(base, **changes).eval()
    assert ModelDims.of(model).stacks["enc"].n_ctx == most
    with torch.no_grad():
        model(torch.full((1, most), 7))  # the longest that works
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, most + 1), 7))
    check_positions(model, {"enc": most})
    with pytest.raises(UsageError, match=f"a text of {most + 1} tokens.*has positions for {most}"):
        check_positions(model, {"enc": most + 1})


FEW = ("gpt2", "roberta", "opt", "bart")


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, marks=() if each in FEW else pytest.mark.slow) for each in TINY if each in ROWS],
)
def test_a_familys_row_says_what_its_model_does(family: str) -> None:
    model = tiny_model(family)
    seen, row = behaviour_of(model), ROWS[family]
    if len(row.stacks) == 1:
        assert seen.looks_ahead == ("enc" in row.stacks)
    for stack, dims in ModelDims.of(model).stacks.items():
        assert seen.positions.get(stack, dims.n_ctx) == dims.n_ctx
