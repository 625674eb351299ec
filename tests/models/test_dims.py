"""The sizes of models in this project's words."""

from typing import Any

import pytest
import torch
import transformers

from tests.families import ALL, ROWS
from traceformer.models.dims import ModelDims, arch_of
from traceformer.models.families import FAMILIES
from traceformer.models.tiny import tiny_model


@pytest.mark.parametrize("family", ALL)
def test_dimensions_are_those_of_the_weights(family: str) -> None:
    model: Any = tiny_model(family)
    dims = ModelDims.from_config(model.config)
    assert model.get_input_embeddings().weight.shape[0] == next(iter(dims.stacks.values())).d_vocab
    for stack, own in dims.stacks.items():
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == own.n_layers]
        assert lists, f"no {own.n_layers} blocks in {stack}"
        assert (own.n_heads, own.n_kv_heads) == (0, 0) or own.n_heads % own.n_kv_heads == 0
    widths = {
        "t5": (4, 4, 32, 12, 48), "llama": (4, 2, 32, 8, 48), "qwen3": (4, 2, 32, 16, 48), "gpt2": (4, 4, 32, 8, 128),
        "mixtral": (4, 2, 32, 8, 0), "mpt": (4, 4, 32, 8, 128), "distilbert": (4, 4, 32, 8, 48),
    }  # fmt: skip
    if family in widths:
        own = next(iter(dims.stacks.values()))
        assert (own.n_heads, own.n_kv_heads, own.d_model, own.d_head, own.d_mlp) == widths[family]


def test_barts_stacks_have_their_own_sizes() -> None:
    dims = ModelDims.from_config(tiny_model("bart").config)
    assert {stack: (own.n_layers, own.d_mlp) for stack, own in dims.stacks.items()} == {"enc": (2, 48), "dec": (3, 40)}


def test_relative_positions_have_no_limit_and_roberta_loses_two() -> None:
    assert ModelDims.from_config(tiny_model("t5").config).stacks["enc"].n_ctx == 0
    roberta = tiny_model("roberta", pad_token_id=1)
    assert ModelDims.from_config(roberta.config).stacks["enc"].n_ctx == 62
    ids = torch.full((1, 62), 5)
    with torch.no_grad():
        roberta(ids)  # the longest that works
        with pytest.raises((IndexError, RuntimeError)):
            roberta(torch.full((1, 63), 5))


def test_a_head_reads_its_groups_kv_head() -> None:
    own = ModelDims.from_config(tiny_model("llama").config).stacks["dec"]
    assert own.kv_heads_of((0, 1, 2, 3)) == (0, 1)
    assert own.kv_heads_of((3,)) == (1,)


@pytest.mark.parametrize("family", ROWS)
def test_the_stacks_of_a_family_are_those_of_its_models(family: str) -> None:
    dims = ModelDims.from_config(tiny_model(family).config)
    assert tuple(dims.stacks) == FAMILIES[family].stacks


@pytest.mark.parametrize(
    ("family", "arch"),
    [
        ("esm", "enc"),
        ("big_bird", "enc"),
        ("rembert", "enc"),
        ("persimmon", "dec"),
        ("afmoe", "dec"),
        ("mvp", "encdec"),
    ],
)
def test_families_without_a_row_have_stacks_too(family: str, arch: str) -> None:
    assert family not in FAMILIES
    assert arch_of(transformers.AutoConfig.for_model(family)) == arch
