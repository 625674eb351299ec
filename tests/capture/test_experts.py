"""Mixtures of experts: where tokens go and with what weights, against the experts' sum worked out from bare weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import traceformer as tf
from tests.marks import slow
from traceformer.capture.derived import Traits
from traceformer.capture.plan import plan_arrays
from traceformer.capture.proofs.check import check_model, random_examples
from traceformer.errors import SelectionError, Unsupported
from traceformer.models.families import FAMILIES
from traceformer.models.loaded import LoadedModel
from traceformer.models.table.experts import EXPERTS
from traceformer.models.tiny import tiny_model
from traceformer.sites import GROUPS, Selection
from traceformer.store.run import Run

IDS = [[5, 17, 42, 8, 93, 61], [30, 11, 7], [64, 12, 88, 9]]
ROUTING = GROUPS["experts"]
CAPTURE = ("experts", "mlp_norm", "mlp_out")


def recorded(model: Any, *capture: str, **more: Any) -> Run:
    return tf.record(tf.load_model(model), IDS, capture or CAPTURE, dtype="float32", **more)


def gated(rows: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """What one expert makes of rows, by hand: its gate and its up projection lie in one matrix."""
    gate, up = (rows @ gate_up.T).chunk(2, dim=-1)
    return (silu(gate) * up) @ down.T


def capped(rows: Tensor, gate_up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """An expert of GPT-OSS: gate and up alternate, both are capped at 7, and the up projection is added to 1."""
    both = rows @ gate_up + up_bias
    gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
    return ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ down + down_bias


def of_mixtral(mlp: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = rows @ mlp.gate.weight.T
    weights, ids = logits.softmax(dim=1).sort(dim=1, descending=True)
    ids, weights = ids[:, :2], weights[:, :2] / weights[:, :2].sum(dim=1, keepdim=True)
    each = torch.stack([gated(rows, mlp.experts.gate_up_proj[n], mlp.experts.down_proj[n]) for n in range(4)], dim=1)
    return logits, ids, weights, each


def of_gpt_oss(mlp: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = rows @ mlp.router.weight.T + mlp.router.bias
    largest, ids = logits.sort(dim=1, descending=True)
    names = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    each = [capped(rows, *(getattr(mlp.experts, name)[n] for name in names)) for n in range(len(mlp.router.weight))]
    k = mlp.router.top_k
    return logits, ids[:, :k], largest[:, :k].softmax(dim=1), torch.stack(each, dim=1)


def of_glm4_moe(mlp: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sigmoids; a correction has a say in the choice, and none in the weights; one of two groups of two experts."""
    logits = rows @ mlp.gate.weight.T
    scores = torch.sigmoid(logits)
    chosen_by = scores + mlp.gate.e_score_correction_bias
    first = chosen_by[:, :2].sum(dim=1) > chosen_by[:, 2:].sum(dim=1)
    ids = torch.where(first[:, None], torch.tensor([0, 1]), torch.tensor([2, 3]))
    weights = scores.gather(1, ids)
    weights, order = (1.5 * weights / weights.sum(dim=1, keepdim=True)).sort(dim=1, descending=True)
    each = torch.stack([gated(rows, mlp.experts.gate_up_proj[n], mlp.experts.down_proj[n]) for n in range(4)], dim=1)
    return logits, ids.gather(1, order), weights, each


def glm4_moe() -> Any:
    """A model whose router is corrected, and chooses one group of experts."""
    model = tiny_model("glm4_moe", n_group=2, topk_group=1, routed_scaling_factor=1.5)
    with torch.no_grad():
        for layer in (1, 2):
            correction = model.model.layers[layer].mlp.gate.e_score_correction_bias  # pyright: ignore
            correction.copy_(torch.tensor([0.3, -0.2, 0.1, -0.4]))
    return model


@pytest.mark.parametrize(
    ("make", "by_hand", "layers"),
    [
        (lambda: tiny_model("mixtral"), of_mixtral, (0, 1, 2)),
        (lambda: tiny_model("gpt_oss", num_experts_per_tok=3), of_gpt_oss, (0, 1, 2)),
        (glm4_moe, of_glm4_moe, (1, 2)),
    ],
    ids=["mixtral", "gpt_oss", "glm4_moe"],
)
def test_what_is_recorded_gives_what_the_block_adds_by_hand(
    make: Callable[[], Any], by_hand: Callable[..., tuple[Tensor, ...]], layers: tuple[int, ...]
) -> None:
    model = make()
    run = recorded(model)
    assert {site: run.spec(site).layers for site in ROUTING} == dict.fromkeys(ROUTING, layers)
    for example, layer in ((e, layer) for e in range(len(IDS)) for layer in layers):
        mlp = model.model.layers[layer].mlp
        rows = torch.from_numpy(run.get(example, "mlp_norm", layer))
        with torch.no_grad():
            logits, ids, weights, each = by_hand(mlp, rows)
            shared = mlp.shared_experts(rows) if hasattr(mlp, "shared_experts") else 0.0
        found = {site: run.get(example, site, layer) for site in ROUTING}
        np.testing.assert_allclose(found["router_logits"], logits, atol=1e-5)
        assert found["expert_topk"].dtype == np.int32
        np.testing.assert_array_equal(found["expert_topk"], ids)
        np.testing.assert_allclose(found["expert_weight"], weights, atol=1e-5)
        chosen = each.numpy()[np.arange(len(rows))[:, None], found["expert_topk"]]
        added = (chosen * found["expert_weight"][..., None]).sum(axis=1) + np.asarray(shared)
        np.testing.assert_allclose(run.get(example, "mlp_out", layer), added, atol=1e-4)


def test_the_choice_does_not_follow_from_the_logits_alone_where_it_is_corrected() -> None:
    run = recorded(glm4_moe())
    largest = [np.argsort(-run.get(e, "router_logits", 1), axis=1)[:, :2] for e in range(len(IDS))]
    chosen = [run.get(e, "expert_topk", 1) for e in range(len(IDS))]
    assert any(
        set(a) != set(b) for each, own in zip(largest, chosen, strict=True) for a, b in zip(each, own, strict=True)
    )


@pytest.mark.parametrize("family", [slow(family) for family in EXPERTS])
def test_of_every_family_the_routing_is_proved(family: str) -> None:
    model = tiny_model(family)
    shared = [
        site for site in ("shared_mid", "shared_out") if site in FAMILIES[family].architectures[0].stacks["dec"].mlp
    ]
    result = check_model(model, random_examples(model.config), selection=Selection((*CAPTURE, *shared)))
    assert result.ok, [proof for proof in result.proofs if not proof.ok]
    facts = {(proof.key, proof.fact.partition(":")[0]) for proof in result.proofs}
    assert facts >= {
        ("dec.router_logits", "equals the router's matrix times the MLP's input"),
        ("dec.router_logits", "equals the model's own output_router_logits"),
        ("dec.expert_topk", "gives mlp_out"),
        ("dec.expert_weight", "gives mlp_out with expert_topk, as a sum"),
    }


@pytest.mark.parametrize("family", [slow(family) for family in EXPERTS])
def test_each_family_says_which_layers_have_experts(family: str) -> None:
    model: Any = tiny_model(family)
    blocks = model.base_model.get_submodule(FAMILIES[family].architectures[0].stacks["dec"].blocks)
    there = tuple(
        n for n, block in enumerate(blocks) if any("router" in type(m).__name__.lower() for m in block.modules())
    )
    assert {spec.layers for spec in plan_arrays(Selection(("experts",)), model).arrays} == {there}


@pytest.mark.parametrize("wrong", ["ids", slow("weights")])
def test_a_wrong_number_of_an_expert_or_weight_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from traceformer.capture import recorder, tensors

    def off(args: Any, kwargs: Any) -> Any:
        found = tensors.routing_in(args, kwargs)
        assert found is not None
        ids, weights = found
        return ((ids + 1) % 4, weights) if wrong == "ids" else (ids, weights.flip(1))

    monkeypatch.setattr(recorder, "routing_in", off)
    model = tiny_model("mixtral")
    result = check_model(model, random_examples(model.config), selection=Selection(CAPTURE))
    failed = {proof.key for proof in result.proofs if not proof.ok}
    assert failed >= {"dec.expert_topk", "dec.expert_weight"}


def test_a_shared_expert_is_recorded_by_its_own_name() -> None:
    model: Any = tiny_model("qwen2_moe")
    run = recorded(model, "mlp_norm", "shared_up", "shared_act", "shared_mid", "shared_out")
    assert run.spec("shared_up").layers == (1, 2)
    assert [run.spec(f"shared_{part}").width for part in ("up", "act", "mid", "out")] == [24, 24, 24, 32]
    own = model.model.layers[1].mlp.shared_expert
    rows = torch.from_numpy(run.get(0, "mlp_norm", 1))
    with torch.no_grad():
        act, up = silu(rows @ own.gate_proj.weight.T), rows @ own.up_proj.weight.T
        expected = {"up": up, "act": act, "mid": act * up, "out": (act * up) @ own.down_proj.weight.T}
    for part, values in expected.items():
        np.testing.assert_allclose(run.get(0, f"shared_{part}", 1), values, atol=1e-5)


def test_layers_with_one_mlp_are_gaps_and_asking_for_them_alone_is_refused() -> None:
    model = tf.load_model(tiny_model("qwen3_moe"))
    with pytest.raises(SelectionError, match=r"router_logits of layer 0 requested; .* layers with router_logits: 1, 2"):
        tf.record(model, IDS, "router_logits", layers=0)
    with pytest.warns(UserWarning, match="router_logits in layer 0, expert_topk in layer 0, expert_weight in layer 0"):
        run = tf.record(model, IDS, "experts resid_post", layers=(0, 2))
    assert (run.spec("resid_post").layers, run.spec("expert_topk").layers) == ((0, 2), (2,))
    assert run.about.layers_stored == {"dec": (0, 2)}


def test_a_model_without_experts_says_so_where_they_are_asked_for() -> None:
    model = tf.load_model(tiny_model("llama"))
    with pytest.raises(Unsupported, match="this model has no router_logits; its MLPs are no mixtures of experts"):
        tf.record(model, IDS, "router_logits")
    with pytest.warns(UserWarning, match="has no router_logits, expert_topk, expert_weight: left out"):
        tf.record(model, IDS, "experts embed")
    assert not set(ROUTING) & set(plan_arrays(Selection(("all",)), model.model).left_out)


@pytest.mark.parametrize("site", ROUTING)
def test_routing_is_not_edited(site: str) -> None:
    model = tf.load_model(tiny_model("mixtral"))
    with pytest.raises(Unsupported, match=f"{site} cannot be edited; the router chooses within itself"):
        tf.patch(model, IDS[0][:4], IDS[2], answer=5, wrong=7, site=site)


@pytest.mark.slow
def test_readers_know_what_ids_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded(tiny_model("mixtral"), "experts", "resid_post", out=tmp_path / "run")
    assert {str(each.key) for each in tf.statistics(run).activations} == {
        "dec.router_logits",
        "dec.expert_weight",
        "dec.resid_post",
    }
    column = run.activations("expert_topk", 1)
    assert (column.dtype, column.shape) == (np.int32, (sum(map(len, IDS)), 2))
    held = run.to_xarray()["dec_experts"]["topk"]
    assert (held.dtype, held.dims[-1]) == (np.int32, "rank")
    with pytest.raises(SelectionError, match="cannot be projected"):
        tf.record(tiny_loaded(), IDS, project=Traits({"x": {None: np.ones(32)}}, "router_logits"))
    np.save(tmp_path / "v.npy", np.ones(2))
    with pytest.raises(SelectionError, match=r"dec.expert_topk is no activation"):
        tf.project(run, tmp_path / "v.npy", site="expert_topk")
    from traceformer.cli import main

    assert main(["inspect", str(tmp_path / "run"), "--example", "0", "--site", "expert_topk", "--layer", "1"]) == 0
    told = capsys.readouterr().out
    assert "experts" in told
    assert " ".join(map(str, run.get(0, "expert_topk", 1)[0])) in told


def tiny_loaded() -> LoadedModel:
    return tf.load_model(tiny_model("mixtral"))


@pytest.mark.slow
def test_whole_files_of_other_formats_leave_ids_out_in_words(tmp_path: Path) -> None:
    run = recorded(tiny_model("mixtral"), "experts", "resid", "attn", out=tmp_path / "run")
    with pytest.warns(UserWarning, match="expert_topk and expert_weight are left out"):
        tf.export(run, "pt", tmp_path / "pt", lossless=True)
    for name, importable in (("padded-zarr", True), ("safetensors", True), ("transformerlens", False)):
        made = tf.export(run, name, tmp_path / name)
        if importable:
            back = tf.import_run(made[0] if name == "padded-zarr" else tmp_path / name, name, tmp_path / f"{name}-back")
            np.testing.assert_array_equal(back.get(1, "expert_topk"), run.get(1, "expert_topk"))


@pytest.mark.slow
def test_while_it_generates_tokens_go_where_one_pass_over_the_answer_sends_them(
    tiny_folder: Callable[..., Path],
) -> None:
    model = tf.load_model(str(tiny_folder("mixtral")), device="cpu")
    live = tf.generate(model, "The name", "experts", max_tokens=6, temperature=0, dtype="float32")
    again = tf.generate(model, "The name", "experts", max_tokens=6, temperature=0, dtype="float32", replay=True)
    np.testing.assert_array_equal(live.get(0, "expert_topk"), again.get(0, "expert_topk"))
    for site in ("router_logits", "expert_weight"):
        np.testing.assert_allclose(live.get(0, site), again.get(0, site), atol=1e-5)


@pytest.mark.parametrize("family", [slow(family) for family in ("qwen2_moe", "deepseek_v2", "jetmoe", "llama4_text")])
def test_of_a_model_without_a_row_the_router_is_found_or_nothing_is_said(family: str) -> None:
    from traceformer.capture.proofs.find import find_row

    model = tiny_model(family)
    mlp = find_row(model, random_examples(model.config)).stacks["dec"].mlp
    if family in ("jetmoe", "llama4_text"):  # which tell their experts otherwise
        assert not set(ROUTING) & set(mlp)
    else:
        own = FAMILIES["mixtral"].architectures[0].stacks["dec"].mlp
        assert {site: mlp[site] for site in ROUTING} == {site: own[site] for site in ROUTING}
