"""The table of families, against what their own classes do; `tests/capture/proofs/test_check.py` proves the sites."""

from typing import Any

import pytest
import torch
import transformers

from traceformer.capture.attention import Span
from traceformer.capture.plan import plan_arrays
from traceformer.capture.recorder import Recorder
from traceformer.errors import Unsupported
from traceformer.models.dims import has_experts
from traceformer.models.families import FAMILIES, architecture_of, family_of
from traceformer.models.family import ByFlag
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import ArraySpec, Selection, Stack

IDS = torch.tensor([[5, 17, 42, 8, 93]])


def modules(model: Any, word: str) -> list[str]:
    return [path for path, _ in model.named_modules() if word in path.rpartition(".")[2].lower()]


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_what_the_model_makes_of_them(family: str) -> None:
    model: Any = tiny_model(family)
    source = {
        "rotary": modules(model, "rotary") + [path for path, _ in model.named_buffers() if "embed_positions" in path],
        "learned": modules(model, "wpe") + modules(model, "position_embeddings") + modules(model, "embed_positions"),
        "relative bias": modules(model, "relative_attention_bias"),
        "alibi": [name for name in dir(model.base_model) if "alibi" in name],
    }
    assert [kind for kind, found in source.items() if found] == [FAMILIES[family].positions.kind]
    # What a run says of its attention.
    seen_by_the_attention_function = architecture_of(model.config).has_attention_function
    if seen_by_the_attention_function:
        rotary = bool(getattr(model.config, "rope_parameters", None))
        assert rotary == (FAMILIES[family].positions.kind == "rotary")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_families_with_sinks_have_them(family: str) -> None:
    sinks = [name for name, _ in tiny_model(family).named_parameters() if "sink" in name]
    assert bool(sinks) == FAMILIES[family].sinks


@pytest.mark.parametrize("family", FAMILIES)
def test_token_embeddings_are_scaled_where_the_row_says_so(family: str) -> None:
    model: Any = tiny_model(family)
    seen: dict[str, torch.Tensor] = {}
    row = architecture_of(model.config).stacks[FAMILIES[family].stacks[0]]
    embedding, blocks = (model.base_model.get_submodule(path) for path in (row.token_embed, row.blocks))

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["embed"] = args[0] if args else kwargs["hidden_states"]

    blocks[0].register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}))
        weights = embedding.weight[IDS]
    # A scale may be applied in the embedding or behind it.
    is_scaled = weights.shape == seen["embed"].shape and torch.allclose(seen["embed"], weights * 32**0.5, rtol=1e-4)
    assert is_scaled == FAMILIES[family].scaled_embedding


class Kept:
    """A sink that keeps what the first layer showed."""

    def __init__(self) -> None:
        self.rows_of: dict[str, torch.Tensor] = {}

    def rows(self, spec: ArraySpec, layer: int | None, rows: torch.Tensor) -> None:
        self.rows_of.setdefault(f"{spec.key.stack}.{spec.key.site}", rows.clone())

    def square(self, spec: ArraySpec, layer: int, example: int, queries: Span, keys: Span, block: torch.Tensor) -> None:
        raise AssertionError("no pattern is asked for")


@pytest.mark.parametrize("family", TINY)
def test_the_kind_of_mlp_is_what_its_hidden_layer_shows(family: str) -> None:
    model: Any = tiny_model(family)
    architecture = architecture_of(model.config)
    plan = plan_arrays(Selection(("mlp",)), model)
    kept, both = Kept(), len(architecture.stacks) == 2
    with Recorder(model, plan.arrays, kept) as recorder:
        spans: dict[Stack, list[Span]] = {stack: [Span(0, IDS.shape[1])] for stack in architecture.stacks}
        recorder.run(spans, input_ids=IDS, **({"decoder_input_ids": IDS} if both else {}))
    for stack, row in architecture.stacks.items():
        up, act, mid = (kept.rows_of.get(f"{stack}.mlp_{name}") for name in ("up", "act", "mid"))
        if mid is None or act is None or up is None:
            kind = "experts"
        else:
            kind = "plain" if torch.equal(mid, act) else "gated" if torch.allclose(mid, act * up) else "neither"
        assert row.mlp_kind == kind
    assert has_experts(model.config) == (FAMILIES[model.config.model_type].mlp_kind == "experts")


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if isinstance(row.blocks, ByFlag)])
def test_a_flag_that_a_config_leaves_out_is_what_transformers_takes(family: str) -> None:
    blocks = FAMILIES[family].blocks
    assert isinstance(blocks, ByFlag)
    config = transformers.AutoConfig.for_model(family)
    assert getattr(config, blocks.flag) == blocks.default
    left_out, other = {"model_type": family}, {"model_type": family, blocks.flag: not blocks.default}
    assert architecture_of(left_out) is architecture_of(config)
    assert {id(architecture_of(stated)) for stated in (left_out, other)} == {
        id(blocks.when_true),
        id(blocks.when_false),
    }


def test_every_build_has_a_tiny_model_and_every_tiny_model_a_family() -> None:
    built: dict[str, set[int]] = {}
    for name in TINY:
        config = tiny_model(name).config
        built.setdefault(config.model_type, set()).add(id(architecture_of(config)))
    # mT5 has no models with plain MLPs, and T5 has both.
    expected = {name: {id(each) for each in row.architectures} for name, row in FAMILIES.items() if name != "mt5"}
    assert {name: builds for name, builds in built.items() if name != "mt5"} == expected


def test_what_depends_on_a_flag_is_not_said_of_the_family() -> None:
    assert (FAMILIES["t5"].mlp_kind, FAMILIES["llama"].mlp_kind, FAMILIES["gpt_oss"].mlp_kind) == (
        None,
        "gated",
        "experts",
    )
    assert [name for name, row in FAMILIES.items() if row.is_post_norm] == [
        *("bert", "roberta", "xlm-roberta", "electra", "distilbert", "bart")
    ]


def test_a_family_without_a_row_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"no architecture row for model type 'rwkv'; `traceformer check` on the model says"):
        family_of({"model_type": "rwkv"})
