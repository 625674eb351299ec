"""Attribution of recorded logits, against the model's own logits, plain torch, and TransformerLens."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import FAST, PREDICTING
from tests.marks import slow
from traceformer.analysis.attribution import Attribution
from traceformer.analysis.logit_split import Part
from traceformer.capture.extract import record
from traceformer.errors import (
    ConfigurationChanged,
    NotRecorded,
    NumericError,
    SelectionError,
    Unsupported,
    UsageError,
)
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.questions.attribute import attribute
from traceformer.sites import ArrayKey
from traceformer.store.folders import open_run
from traceformer.store.run import Run

TEXT = "Seven ships left the harbour at dawn."
NEEDED = "z mlp_out embed resid_post logits"
ONE_OF_A_KIND = ("gpt2", "gemma2", "opt_post_norm")
NOT_ALL_SITES = {
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe", "jamba"), "have no attention"
    ),
    **dict.fromkeys(("bamba", "granitemoehybrid_dense"), "have no attention"),
    **dict.fromkeys(("granitemoehybrid", "granitemoehybrid_rotary", "zamba2", "zamba2_rotary"), "no mlp_out"),
    **dict.fromkeys(("gemma4_text", "gemma4_text_without_sharing"), "an embedding of the layer as well"),
    "falcon_h1": "output projection of this model is not known",
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "xlstm"), "this model has no attention"),
}
ADDING_UP = [name for name in PREDICTING if name not in NOT_ALL_SITES]
Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def told(byte: LoadedModel) -> Run:
    """What is needed, of a text of which `byte` copies the end."""
    return record(byte, ["return the name of the na"], f"{NEEDED} attn_pattern v", dtype="float32")


def recorded(model: LoadedModel, dtype: Any = "float32", more: str = "") -> Run:
    seen = model.built.has(ArrayKey("dec", "self", "z"))
    capture = f"{NEEDED if seen else NEEDED.replace('z ', 'attn_out ')} {more}"
    targets = ["Yes, why not then"] if model.dims.arch == "encdec" else None
    return record(model, [TEXT], capture, dtype=dtype, targets=targets)


def of_part(value: Attribution, part: Part) -> float:
    return float(value.contributions[value.parts.index(part)])


@pytest.mark.parametrize("family", [each if each in ONE_OF_A_KIND else slow(each) for each in ADDING_UP])
def test_parts_add_up_to_the_models_own_logits(family: str, load: Load) -> None:
    run = recorded(load(family))
    logits = run.get(0, "logits").astype(np.float64)
    for position in (0, 3, -1):
        value = attribute(run, 0, to=17, position=position)
        whole = float(value.contributions.sum())
        capped = whole if value.softcap is None else value.softcap * np.tanh(whole / value.softcap)
        assert capped == pytest.approx(logits[position, 17], rel=1e-4, abs=2e-6)
        difference = attribute(run, 0, to=17, against=5, position=position)
        alone = attribute(run, 0, to=5, position=position)
        assert difference.total == pytest.approx(value.total - alone.total, abs=1e-5)
        np.testing.assert_allclose(
            difference.contributions, value.contributions - alone.contributions[: len(value.parts)], atol=1e-5
        )


@pytest.mark.parametrize("family", [slow(each) for each in NOT_ALL_SITES])
def test_of_blocks_that_add_more_than_their_sites_the_parts_are_refused(family: str, load: Load) -> None:
    with pytest.raises(Unsupported) as caught:
        attribute(recorded(load(family)), 0, to=17)
    assert NOT_ALL_SITES[family] in f"{caught.value.message} {caught.value.why}"


@pytest.mark.parametrize("family", [slow(each) for each in FAST if each in PREDICTING])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_explains_what_a_run_of_half_precision_leaves(family: str, dtype: Any, load: Load) -> None:
    run = recorded(load(family, dtype="bfloat16" if dtype == "bfloat16" else "float32"), dtype)
    for position in (0, 3, -1):
        value = attribute(run, 0, to=17, position=position)
        assert abs(value.remainder) < value.explained / 4


def seen_by(model: torch.nn.Module, ids: list[int], **paths: str) -> dict[str, torch.Tensor]:
    """The first input of each module in a plain pass, in float64."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args: seen.update({name: args[0][0].double()})

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(name)) for name, path in paths.items()]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


def test_a_head_of_gpt2_is_its_values_through_w_o_norm_and_unembedding(load: Load) -> None:
    model = load("gpt2")
    run = recorded(model)
    plain: Any = model.model
    ids = [int(token) for token in run.encodings(0)["input_ids"]]
    seen = seen_by(plain, ids, z="transformer.h.1.attn.c_proj", last="transformer.ln_f")
    w_o, norm = plain.transformer.h[1].attn.c_proj.weight.detach().double(), plain.transformer.ln_f
    row = plain.lm_head.weight[17].detach().double()
    for head, position in ((0, 4), (3, 2)):
        written = seen["z"][position, 8 * head : 8 * head + 8] @ w_o[8 * head : 8 * head + 8]
        scale = (seen["last"][position].var(correction=0) + norm.eps).sqrt()
        expected = ((written - written.mean()) / scale * norm.weight.detach().double()) @ row
        value = attribute(run, 0, to=17, position=position)
        assert of_part(value, Part("head", 1, head, "self")) == pytest.approx(expected.item(), abs=1e-6)


def test_a_head_of_gemma2_goes_through_the_norm_behind_its_attention_at_the_scale_it_had(load: Load) -> None:
    model = load("gemma2")
    run = recorded(model)
    plain: Any = model.model
    ids = [int(token) for token in run.encodings(0)["input_ids"]]
    seen = seen_by(
        plain,
        ids,
        z="model.layers.1.self_attn.o_proj",
        attended="model.layers.1.post_attention_layernorm",
        last="model.norm",
    )
    block, norm = plain.model.layers[1], plain.model.norm
    w_o, behind = block.self_attn.o_proj.weight.detach().double(), block.post_attention_layernorm
    position, head = 4, 2

    def scale(row: torch.Tensor) -> torch.Tensor:
        return (row.pow(2).mean() + norm.eps).rsqrt()

    written = w_o[:, 16 * head : 16 * head + 16] @ seen["z"][position, 16 * head : 16 * head + 16]
    added = written * scale(seen["attended"][position]) * (1 + behind.weight.detach().double())
    normed = added * scale(seen["last"][position]) * (1 + norm.weight.detach().double())
    expected = normed @ plain.lm_head.weight[17].detach().double()
    value = attribute(run, 0, to=17, position=position)
    assert value.softcap == 30
    assert of_part(value, Part("head", 1, head, "self")) == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("family", ["llama", slow("gpt_oss"), slow("gpt_bigcode"), slow("bart"), slow("gptj")])
def test_a_head_is_the_sum_over_its_source_tokens(family: str, load: Load) -> None:
    run = recorded(load(family), more="attn_pattern v")
    value = attribute(run, 0, to=17, position=3, by_source=True)
    frame = value.by_source()
    heads = [part for part in value.parts if part.kind == "head"]
    sums = frame.groupby("part", sort=False)["contribution"].sum()
    assert list(sums.index) == [str(part) for part in heads]
    np.testing.assert_allclose(sums, [of_part(value, part) for part in heads], atol=2e-6)
    own = frame[frame["attention"] == "self"]
    assert (own.loc[own["source"] > 3, "contribution"] == 0).all()
    # Of a head that shares its values with others: what it takes of one token, by hand.
    part = next(part for part in heads if part.head == 3 and part.layer == 1 and part.attention == "self")
    pattern, v = (
        run.get(0, ArrayKey("dec", "self", "attn_pattern"), 1, 3),
        run.get(0, ArrayKey("dec", "self", "v"), 1, 3),
    )
    z = run.get(0, ArrayKey("dec", "self", "z"), 1, 3)[3]
    np.testing.assert_allclose(pattern[3] @ v, z, atol=1e-5)
    assert len(value.sources) == len(heads)
    assert list(value.sources[part]) == own.loc[own["part"] == str(part), "contribution"].tolist()


def test_values_and_patterns_serve_in_place_of_z(byte: LoadedModel, told: Run) -> None:
    run = record(byte, [told.text(0)], "attn_pattern v mlp_out resid", dtype="float32")
    made, read = attribute(run, 0, to="m", by_source=[(2, 5)]), attribute(told, 0, to="m")
    np.testing.assert_allclose(made.contributions, read.contributions, atol=1e-5)
    assert attribute(run, 0, to="m", by_source="L2H5").sources.keys() == made.sources.keys()
    assert made.sources[Part("head", 2, 5, "self")].sum() == pytest.approx(of_part(made, Part("head", 2, 5, "self")))


def test_a_model_at_hand_says_the_same_as_its_folder(byte: LoadedModel, told: Run) -> None:
    from_files, at_hand = attribute(told), attribute(byte, told.text(0))
    assert from_files.parts == at_hand.parts
    np.testing.assert_allclose(at_hand.contributions, from_files.contributions, atol=1e-5)
    assert attribute(told, model=byte).to == from_files.to


def test_the_likeliest_token_is_split_where_none_is_said(told: Run) -> None:
    value = attribute(told, 0, position=5)
    logits = told.get(0, "logits")[5]
    assert value.is_likeliest
    assert value.to.id == logits.argmax()
    assert value.total == pytest.approx(logits.max(), rel=1e-5)
    assert not attribute(told, 0, to=value.to.id).is_likeliest


def test_tokens_and_positions_are_said_by_text_or_number(told: Run) -> None:
    by_text = attribute(told, 0, to="m", against=" ", position="name")
    by_number = attribute(told, 0, to=ord("m"), against="#32", position=14)
    assert (by_text.to, by_text.against) == ((ord("m"), "m"), (32, " "))
    assert (by_text.position, by_text.token) == (14, "e")
    assert by_text.contributions.tolist() == by_number.contributions.tolist()
    assert attribute(told, 0, to="m").position == told.length(0) - 1


def test_tables_and_json_say_the_same(told: Run) -> None:
    value = attribute(told, 0, to="m", against="t", by_source=[(2, 5)])
    frame, layers = value.to_frame(), value.accumulated()
    assert frame["contribution"].tolist() == value.contributions.tolist()
    assert frame["part"].tolist()[:2] == ["embed", "L0H0"]
    assert frame.groupby("kind")["contribution"].sum().to_dict() == pytest.approx(value.sums())
    assert layers["sublayer"].tolist()[:4] == ["embed", "L0 attn", "L0 MLP", "L1 attn"]
    assert layers["sublayer"].iloc[-1] == "remainder"
    assert layers["accumulated"].iloc[-1] == pytest.approx(value.total)
    np.testing.assert_allclose(
        value.grid()[2], frame.loc[(frame["layer"] == 2) & (frame["kind"] == "head"), "contribution"]
    )
    said = json.loads(json.dumps(value.to_json(), allow_nan=False))
    assert said["total"] == value.total
    assert said["remainder"] == value.remainder
    assert [part["contribution"] for part in said["parts"]] == value.contributions.tolist()
    assert said["sources"][0]["contributions"] == value.by_source()["contribution"].tolist()
    assert repr(value).startswith(f"Attribution('{told.ids[0]}', position 24: logit of m - t ")


def test_the_stream_of_each_layer_says_the_accumulated_logit(told: Run, byte: LoadedModel) -> None:
    value = attribute(told, 0, to="m", position=7)
    plain: Any = byte.model
    row, norm = plain.lm_head.weight[ord("m")].detach().numpy(), plain.model.norm
    last = told.get(0, "resid_post", 3)[7]
    counts = row * norm.weight.detach().numpy() / np.sqrt((last**2).mean() + norm.variance_epsilon)
    layers = value.accumulated().set_index("sublayer")["accumulated"]
    for layer in range(4):
        assert layers[f"L{layer} MLP"] == pytest.approx(float(told.get(0, "resid_post", layer)[7] @ counts), abs=1e-4)


@pytest.mark.slow
def test_no_torch_is_loaded(told: Run, tmp_path: Path) -> None:
    told.save(tmp_path / "run")
    code = (
        "import sys, traceformer as tf; value = tf.attribute(tf.open_run(sys.argv[1]), by_source=True); "
        "value.to_frame(); assert not {'torch', 'transformers'} & set(sys.modules); print(value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "logit of" in done.stdout


def test_what_is_missing_is_named_with_what_to_record(byte: LoadedModel, told: Run) -> None:
    text = ["na"]
    with pytest.raises(NotRecorded, match=r"lacks dec\.mlp_out.*capture=\"z mlp_out embed resid_post\""):
        attribute(record(byte, text, "z embed resid_post"))
    with pytest.raises(NotRecorded, match=r"lacks dec\.self\.attn_pattern"):
        attribute(record(byte, text, "mlp_out embed resid_post"))
    with pytest.raises(NotRecorded, match=r"dec\.self\.z of layer 2.*layers 0, 1"):
        attribute(record(byte, text, NEEDED, layers=[0, 1]))
    with pytest.raises(NotRecorded, match=r"8 heads.*it holds 2"):
        attribute(record(byte, text, NEEDED, heads=[0, 1]))
    with pytest.raises(NotRecorded, match=r"all heads of dec\.self\.z.*heads 1, 2"):
        attribute(record(byte, text, NEEDED, heads=[1, 2]))
    with pytest.raises(NotRecorded, match=r"dec\.self\.v.*attn_pattern v"):
        attribute(record(byte, text, NEEDED), by_source=True)
    with pytest.raises(NotRecorded, match="no head was split"):
        attribute(told).by_source()


def test_what_cannot_be_meant_is_refused(told: Run) -> None:
    with pytest.raises(SelectionError, match="position 25 requested; this example has positions 0-24"):
        attribute(told, position=25)
    with pytest.raises(SelectionError, match="has it 2 times"):
        attribute(told, position="na")
    with pytest.raises(SelectionError, match="does not have it"):
        attribute(told, position="Paris")
    with pytest.raises(UsageError, match="'name' is not one token of the model; what takes several tokens"):
        attribute(told, to="name")
    with pytest.raises(UsageError, match="token 999; the model has tokens 0-257"):
        attribute(told, to=1, against=999)
    with pytest.raises(SelectionError, match="no head L4H0 is a part; the last one is L3H7"):
        attribute(told, by_source=[(4, 0)])
    for against in ("m", ord("m")):
        with pytest.raises(UsageError, match="`to` and `against` are the same token"):
            attribute(told, to="m", against=against)
    with pytest.raises(UsageError, match="`to`, the likeliest one, and `against`"):
        attribute(told, against=attribute(told).to.id)


def test_an_encoder_is_refused(load: Load) -> None:
    with pytest.raises(Unsupported, match="predicts no next token"):
        attribute(record(load("bert"), [TEXT], "resid"))


def test_other_weights_are_refused(tiny_folder: Callable[..., Path], load: Load, tmp_path: Path) -> None:
    recorded(load("gpt2")).save(tmp_path / "run")
    run = open_run(tmp_path / "run")
    with pytest.raises(ConfigurationChanged, match="digest"):
        attribute(run, model=tiny_folder("gpt2", seed=1))
    with pytest.raises(ConfigurationChanged, match="digest"):
        attribute(run, model=load_model(str(tiny_folder("gpt2", seed=1)), device="cpu"))


def test_what_an_attention_added_beside_its_heads_is_no_wrong_number(byte: LoadedModel) -> None:
    layer: Any = byte.model.get_submodule("model.layers.1.self_attn")
    handle = layer.register_forward_hook(lambda _, args, made: (made[0] + 0.05, *made[1:]))
    try:
        run = record(byte, [TEXT], NEEDED, dtype="float32")
    finally:
        handle.remove()
    with pytest.raises(NumericError, match="do not add up to the logit"):
        attribute(run)


def test_what_is_not_finite_is_refused(told: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run.get

    def damaged(run: Run, example: Any, site: Any, *place: Any, **more: Any) -> np.ndarray:
        values = whole(run, example, site, *place, **more)
        return np.full_like(values, np.nan) if str(site) == "dec.mlp_out" and place == (2,) else values

    monkeypatch.setattr(Run, "get", damaged)
    with pytest.raises(NumericError, match="L2 MLP is not finite"):
        attribute(told, to="m")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_transformer_lens_says_the_same(
    family: str, tiny_folder: Callable[..., Path], load: Load, skip_for: Callable[[str], None]
) -> None:
    if find_spec("transformer_lens") is None:
        skip_for("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder(family)
    run = recorded(load(family))
    bridge: Any = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
    )
    # Its directions leave the final norm's weights out unless they are folded in; the other foldings move parts.
    bridge.enable_compatibility_mode(
        disable_warnings=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([[int(token) for token in run.encodings(0)["input_ids"]]]))
        for position in (0, 5, 11):
            stack, labels = cache.stack_head_results(layer=-1, return_labels=True, pos_slice=position)
            theirs = cache.logit_attrs(stack, tokens=17, incorrect_tokens=5, pos_slice=position).ravel()
            value = attribute(run, 0, to=17, against=5, position=position)
            own = value.to_frame().set_index("part")["contribution"]
            np.testing.assert_allclose(own[labels], theirs.numpy(), atol=1e-5)
            stack, labels = cache.decompose_resid(layer=-1, return_labels=True, pos_slice=position)
            theirs = cache.logit_attrs(stack, tokens=17, incorrect_tokens=5, pos_slice=position).ravel()
            rows = dict(zip(labels, theirs.tolist(), strict=True))
            sublayers = value.accumulated().set_index("sublayer")["contribution"]
            embedded = rows.pop("embed") + rows.pop("pos_embed", 0.0)
            assert sublayers["embed"] == pytest.approx(embedded, abs=1e-5)
            for name, own_sum in rows.items():
                layer, _, what = name.partition("_")
                place = f"L{layer} {'attn' if what == 'attn_out' else 'MLP'}"
                assert sublayers[place] == pytest.approx(own_sum, abs=1e-5)
