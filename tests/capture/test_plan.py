"""What a selection means for a given family."""

from typing import Any

import pytest

from tests.families import MATRIX
from traceformer.capture.plan import Plan, plan_arrays
from traceformer.errors import SelectionError, Unsupported
from traceformer.models.families import FAMILIES, architecture_of
from traceformer.models.tiny import TINY, tiny_model
from traceformer.sites import SITES, ArraySpec, Selection


def plan(family: str, selection: Selection, **options: object) -> Plan:
    return plan_arrays(selection, tiny_model(family), **options)  # pyright: ignore[reportArgumentType]


def arrays(family: str, *capture: str, **options: object) -> dict[str, ArraySpec]:
    return {str(spec.key): spec for spec in plan(family, Selection(capture), **options).arrays}


def test_a_site_becomes_one_array_with_all_layers_and_heads() -> None:
    [spec] = plan("gpt2", Selection(("q",))).arrays
    assert (str(spec.key), spec.layers, spec.heads, spec.width) == ("dec.self.q", (0, 1, 2), (0, 1, 2, 3), 8)


def test_keys_and_values_have_the_kv_heads_that_the_chosen_heads_read() -> None:
    found = plan("llama", Selection(("qkv",), heads={"dec": (0, 1)})).arrays
    assert {str(spec.key): spec.heads for spec in found} == {
        "dec.self.q": (0, 1),
        "dec.self.k": (0,),
        "dec.self.v": (0,),
    }


def test_layers_and_heads_are_chosen_per_stack() -> None:
    selection = Selection(("attn",), layers={"enc": (2,), "dec": (0, 1)}, heads={"dec": (3,)})
    found = {str(spec.key): (spec.layers, spec.heads) for spec in plan("t5", selection).arrays}
    assert found == {
        "enc.self.attn_pattern": ((2,), (0, 1, 2, 3)),
        "dec.self.attn_pattern": ((0, 1), (3,)),
        "dec.cross.attn_pattern": ((0, 1), (3,)),
    }


def test_numbers_for_a_stack_that_the_model_lacks_are_refused_and_those_for_both_are_not() -> None:
    with pytest.raises(SelectionError, match="layers of the decoder requested") as caught:
        plan("bert", Selection(("attn",), layers={"enc": None, "dec": (0,)}))
    assert caught.value.why == "this model has only an encoder"
    with pytest.raises(SelectionError, match="heads of the encoder requested"):
        plan("gpt2", Selection(("attn",), heads={"enc": (1,), "dec": (0,)}))
    [spec] = plan("bert", Selection(("attn",), layers={"enc": (0,), "dec": (0,)})).arrays
    assert spec.layers == (0,)


def test_stacks_of_different_depth_keep_their_own_layers() -> None:
    found = arrays("bart", "resid_post")
    assert (found["enc.resid_post"].layers, found["dec.resid_post"].layers) == ((0, 1), (0, 1, 2))


def test_hidden_has_one_entry_more_than_layers_whatever_layers_are_chosen() -> None:
    [spec] = plan("gpt2", Selection(("hidden",), layers={"dec": (1,)})).arrays
    assert spec.layers == (0, 1, 2, 3)
    [spec] = plan("gpt2", Selection(("hidden",), hidden_layers=(0, 3))).arrays
    assert spec.layers == (0, 3)


def test_widths_are_the_models_own() -> None:
    widths = {
        name: spec.width for name, spec in arrays("bart", "mlp_up", "logits", "q", "attn_pattern", "embed").items()
    }
    assert (widths["enc.mlp_up"], widths["dec.mlp_up"], widths["dec.logits"]) == (48, 40, 99)
    assert (widths["dec.cross.q"], widths["dec.cross.attn_pattern"], widths["enc.embed"]) == (8, 0, 32)


def test_heads_may_be_wider_than_d_model_over_heads() -> None:
    assert arrays("t5", "q")["enc.self.q"].width == 12
    assert arrays("qwen3", "q")["dec.self.q"].width == 16


def test_token_embeddings_may_be_narrower_than_the_stream() -> None:
    found = arrays("electra", "token_embed", "embed")
    assert (found["enc.token_embed"].width, found["enc.embed"].width) == (16, 32)


def test_a_group_takes_what_there_is_and_lists_what_it_left_out() -> None:
    found = plan("bert", Selection(("norms", "resid")))
    assert [str(spec.key) for spec in found.arrays] == ["enc.embed", "enc.resid_pre", "enc.resid_mid", "enc.resid_post"]
    assert found.left_out == ("attn_norm", "mlp_norm", "final_norm")


@pytest.mark.parametrize(
    ("family", "site", "why"),
    [
        ("gpt_neox_parallel", "resid_mid", "attention and MLP run in parallel"),
        ("gptj", "mlp_norm", "its MLP reads attention's normed input"),
        ("xglm", "attn_pattern", "does not pass through transformers' attention function"),
        ("xglm", "q", "does not pass through transformers' attention function"),
        ("mixtral", "mlp_act", "mixtures of experts"),
        ("gpt_oss", "mlp_down", "mixtures of experts"),
        ("bert", "final_norm", "its norms come after its sublayers"),
        ("olmo2", "attn_norm", "its norms come after its sublayers"),
    ],
)
def test_a_site_asked_for_by_name_must_exist(family: str, site: str, why: str) -> None:
    with pytest.raises(Unsupported, match=f"no {site}.*{why}"):
        plan(family, Selection((site, "resid_post")))


def test_a_group_of_which_nothing_exists_is_an_error() -> None:
    with pytest.raises(Unsupported, match="none of attn_pattern"):
        plan("xglm", Selection(("attn",)))


def test_logits_need_a_head() -> None:
    headless: Any = tiny_model("bert").base_model
    found = plan_arrays(Selection(("all",)), headless)
    assert found.left_out == ("attn_norm", "mlp_norm", "final_norm", "logits")
    with pytest.raises(Unsupported, match="without a language-model head"):
        plan_arrays(Selection(("logits",)), headless)


def test_an_encoder_decoder_without_targets_has_its_encoder_only() -> None:
    found = arrays("t5", "all", stacks=("enc",))
    assert {name.split(".")[0] for name in found} == {"enc"}
    assert "enc.self.attn_pattern" in found


def test_logits_are_the_decoders() -> None:
    assert [name for name in arrays("t5", "all") if name.endswith("logits")] == ["dec.logits"]


def test_numbers_out_of_range_are_dropped_with_one_warning_per_stack() -> None:
    with pytest.warns(UserWarning, match=r"dropping layers 7, 9: valid range is 0-2") as caught:
        found = plan("gpt2", Selection(("resid", "attn"), layers={"dec": (1, 7, 9)}))
    assert len(caught) == 1
    assert {spec.layers for spec in found.arrays if spec.site.per_layer} == {(1,)}


def test_no_layer_left_is_an_error_that_names_the_range() -> None:
    with pytest.raises(SelectionError, match="layers 5 requested; there are only layers 0-2"):
        plan("gpt2", Selection(("attn",), layers={"dec": (5,)}))


@pytest.mark.parametrize("family", MATRIX)
def test_arrays_come_in_the_order_of_the_table_and_everything_is_recorded_or_left_out(family: str) -> None:
    found = plan(family, Selection(("all",)))
    order = [list(SITES).index(spec.key.site) for spec in found.arrays]
    assert order == sorted(order)
    expected = {name for name, site in SITES.items() if not site.is_derived and not site.of_few}
    assert {spec.key.site for spec in found.arrays if not spec.site.of_few} | set(found.left_out) == expected
    assert len({spec.key for spec in found.arrays}) == len(found.arrays)


def test_projections_need_vectors() -> None:
    with pytest.raises(Unsupported) as caught:
        plan("gpt2", Selection(("projection",)))
    assert caught.value.why == "projections are recorded with `project`"


def test_every_architecture_has_a_tiny_model() -> None:
    assert FAMILIES.keys() <= TINY.keys()


def test_a_family_without_a_row_is_refused_with_the_way_to_one() -> None:
    config = tiny_model("llama").config
    config.model_type = "unheard_of"
    with pytest.raises(Unsupported, match=r"no architecture row for model type 'unheard_of'; `traceformer check`"):
        architecture_of(config)
