"""What a run holds under TransformerLens's names, against plain hooks on the modules of the same meaning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.capture.asked import Extraction, extracted
from tests.store import runs
from traceformer import Selection, TraceStore
from traceformer.errors import NotRecorded, RunExists, Unsupported
from traceformer.formats.options import ExportOptions
from traceformer.formats.transformer_lens.hooks import HOOKS
from traceformer.formats.transformer_lens.write import write_files
from traceformer.sites import SITES
from traceformer.store.meta import AttentionFacts

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"
RECORDED = (
    *("token_embed", "resid_pre", "resid_mid", "resid_post", "q_proj", "k_proj", "v_proj", "q", "k", "attn_pattern"),
    *("z", "attn_out", "mlp_up", "mlp_act", "mlp_mid", "mlp_out"),
)


def recorded(folder: Path, out: Path, sites: tuple[str, ...] = RECORDED, **changes: Any) -> TraceStore:
    texts = out.with_suffix(".txt")
    texts.write_text("Seven ships left the harbour at dawn.\nYes, why not\n", encoding="utf-8")
    request = Extraction(
        selection=Selection(sites, **changes),
        model=str(folder),
        dataset=str(texts),
        limit=2,
        batch_size=2,
        dtype="float32",
        device="cpu",
        out_dir=out,
    )
    return TraceStore(extracted(request))


class Seen:
    """Inputs and outputs of a model's modules in one plain eager pass."""

    def __init__(self, folder: Path, ids: list[int]) -> None:
        import transformers

        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        hooks = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in self.model.named_modules()
        ]
        with torch.no_grad():
            out = self.model(torch.tensor([ids]), output_attentions=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        self.patterns = out.attentions

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_: Any, inputs: Any, named: Any, output: Any) -> None:
            given = inputs[0] if inputs else named.get("hidden_states")
            self._kept[name, "in"] = given
            self._kept[name, "out"] = output[0] if isinstance(output, tuple) else output

        return keep

    def into(self, name: str) -> torch.Tensor:
        return self._kept[name, "in"]

    def out_of(self, name: str) -> torch.Tensor:
        return self._kept[name, "out"]

    def heads(self, values: torch.Tensor, count: int) -> torch.Tensor:
        return values.unflatten(-1, (count, -1))  # (batch, pos, head, d_head)


def of_gpt2(seen: Seen, layer: int) -> dict[str, torch.Tensor]:
    block = f"transformer.h.{layer}"
    q, k, v = (seen.heads(each, 4) for each in seen.out_of(f"{block}.attn.c_attn").chunk(3, dim=-1))
    return {
        **{"attn.hook_q": q, "attn.hook_k": k, "attn.hook_v": v},
        "attn.hook_z": seen.heads(seen.into(f"{block}.attn.c_proj"), 4),
        "hook_attn_out": seen.out_of(f"{block}.attn"),
        "hook_resid_mid": seen.into(f"{block}.ln_2"),
        "mlp.hook_pre": seen.out_of(f"{block}.mlp.c_fc"),
        "mlp.hook_post": seen.out_of(f"{block}.mlp.act"),
        "hook_mlp_out": seen.out_of(f"{block}.mlp"),
        "hook_resid_pre": seen.into(block),
        "hook_resid_post": seen.out_of(block),
    }


def of_llama(seen: Seen, layer: int) -> dict[str, torch.Tensor]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    block, is_gemma = f"model.layers.{layer}", seen.model.config.model_type == "gemma2"
    own = f"{block}.self_attn"
    q, k, v = (seen.heads(seen.out_of(f"{own}.{name}_proj"), count) for name, count in (("q", 4), ("k", 2), ("v", 2)))
    positions = torch.arange(q.shape[1])[None]
    cos, sin = seen.model.model.rotary_emb(q, positions)
    rotated = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    mid = "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"
    return {
        **{"attn.hook_q": q, "attn.hook_k": k, "attn.hook_v": v},
        **{f"attn.hook_rot_{name}": each.transpose(1, 2) for name, each in zip("qk", rotated, strict=True)},
        "attn.hook_z": seen.heads(seen.into(f"{own}.o_proj"), 4),
        "hook_attn_out": seen.out_of(f"{block}.post_attention_layernorm" if is_gemma else own),
        "hook_resid_mid": seen.into(f"{block}.{mid}"),
        "mlp.hook_pre_linear": seen.out_of(f"{block}.mlp.up_proj"),
        "mlp.hook_post": seen.into(f"{block}.mlp.down_proj"),
        "hook_mlp_out": seen.out_of(f"{block}.post_feedforward_layernorm" if is_gemma else f"{block}.mlp"),
        "hook_resid_pre": seen.into(block),
        "hook_resid_post": seen.out_of(block),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_cache_has_transformer_lens_s_names_and_shapes(
    family: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    store = recorded(folder, tmp_path / "run")
    for eid, row in zip(store.ids, store.tokens.itertuples(), strict=True):
        seen = Seen(folder, [int(each) for each in row.input_ids])  # pyright: ignore
        expected: dict[str, torch.Tensor] = {}
        for layer in range(3):
            own = of_gpt2(seen, layer) if family == "gpt2" else of_llama(seen, layer)
            own["attn.hook_pattern"] = seen.patterns[layer]
            expected |= {f"blocks.{layer}.{name}": each for name, each in own.items()}
        embedding = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}.get(family)
        if embedding:  # of Gemma, `embed` is what has that name
            expected["hook_embed"] = seen.out_of(embedding)
        cache = store.cache(eid)
        assert set(cache) == set(expected)
        for name, values in expected.items():
            assert cache[name].shape == tuple(values.shape), name
            np.testing.assert_allclose(cache[name], values.numpy(), rtol=1e-4, atol=3e-5, err_msg=name)


def test_gemma_s_embedding_is_the_scaled_one(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder("gemma2")
    store = recorded(folder, tmp_path / "run", ("token_embed", "embed"))
    eid = store.ids[0]
    assert sorted(store.cache(eid)) == ["blocks.0.hook_resid_pre", "hook_embed"]
    weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].numpy()
    scaled = weights[store.tokens.input_ids[0]] * np.float32(32**0.5)
    np.testing.assert_allclose(store.cache(eid)["hook_embed"][0], scaled, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_encoders_have_the_names_of_a_hooked_encoder(
    family: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    store = recorded(folder, tmp_path / "run", ("resid_mid", "resid_post", "q", "mlp_up", "token_embed"))
    cache = store.cache(store.ids[0])
    assert {name.replace("blocks.2.", "") for name in cache if "blocks.0" not in name and "blocks.1" not in name} == {
        *("embed.hook_embed", "ln1.hook_normalized", "attn.hook_q", "mlp.hook_pre", "hook_normalized_resid_post")
    }
    assert np.array_equal(cache["blocks.1.ln1.hook_normalized"][0], store.get(store.ids[0], "resid_mid", 1))


def test_t5_has_the_names_of_both_stacks_and_other_pairs_have_none(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    arrays = [runs.spec(key) for key in ("enc.self.q", "dec.cross.attn_pattern", "dec.resid_mid", "dec.cross.attn_out")]
    store = TraceStore(runs.write(tmp_path / "run", runs.plan("encdec", arrays=arrays, n_examples=1)))
    with pytest.raises(Unsupported, match="T5 alone"):
        store.cache(store.ids[0])
    store.about = replace(store.about, model_type="t5", attention=AttentionFacts(rotary=False))
    assert sorted(name for name in store.cache(store.ids[0]) if ".4." in name) == [
        "decoder.4.cross_attn.hook_pattern",
        "decoder.4.hook_cross_attn_out",
        "decoder.4.hook_resid_mid_cross",
        "encoder.4.attn.hook_q",
    ]


def test_heads_that_were_not_recorded_are_nan_at_their_own_numbers(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    store = recorded(tiny_folder("gpt2"), tmp_path / "run", ("z", "attn_pattern"), heads={"dec": (1, 3)})
    eid = store.ids[0]
    cache = store.cache(eid)
    z, pattern = cache["blocks.2.attn.hook_z"][0], cache["blocks.2.attn.hook_pattern"][0]
    for head in (1, 3):
        assert np.array_equal(z[:, head], store.get(eid, "z", 2, head))
        assert np.array_equal(pattern[head], store.attn(eid, 2, head))
    assert np.isnan(z[:, [0, 2]]).all()
    assert np.isnan(pattern[[0, 2]]).all()


def test_files_of_caches_load_without_pickles(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    store = recorded(tiny_folder("gpt2"), tmp_path / "run")
    options = ExportOptions()
    files = list(write_files(store, tmp_path / "out", options))
    for path, eid in zip(files, store.ids, strict=True):
        data = torch.load(path, weights_only=True)
        cache = store.cache(eid)
        assert list(data) == list(cache)
        assert all(np.array_equal(data[name].numpy(), cache[name]) for name in cache)
    with pytest.raises(RunExists):
        list(write_files(store, tmp_path / "out", options))


def test_a_run_without_any_hook_says_what_has_one(tmp_path: Path) -> None:
    arrays = [runs.spec("dec.logits"), runs.spec("dec.self.attn_scores")]
    store = TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=arrays, n_examples=1)))
    with pytest.raises(NotRecorded, match="nothing that TransformerLens has a hook for"):
        store.cache(store.ids[0])


def test_every_site_is_in_the_table_and_in_the_docs() -> None:
    assert set(SITES) <= set(HOOKS)
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    for site in SITES:
        [row] = [line for line in lines if line.startswith(f"| `{site}` |")]
        name, note = HOOKS[site]
        shown = "none" if name is None else f"`{name.format(block='blocks.{l}', attn='attn', first='blocks.0')}`"
        assert row == f"| `{site}` | {shown} | {note} |"
