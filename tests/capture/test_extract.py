"""The main job, end to end: what lies on disk is what an independent eager forward pass of the single text gives."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.capture.asked import Extraction, estimated, extracted
from tests.tiny_folders import TEXTS
from traceformer import Selection, TraceStore
from traceformer.errors import ConfigurationChanged, NumericError, RunExists, SelectionError, Unsupported, UsageError
from traceformer.progress import Progress
from traceformer.store.commits import verify_run

FAMILIES = ("gpt2", "llama", "qwen2", "gemma2", "bert", "roberta", "t5")
CAPTURE = Selection(("attn", "qkv", "hidden", "resid"))

# Where q and k are the projections themselves (no rotary), and where the stream after attention can be seen:
# the input of the second norm, or the output of the norm that follows attention.
PROJECTED = ("gpt2", "bert", "roberta", "t5")
MID: Mapping[str, tuple[str, str]] = {
    "gpt2": ("transformer.h.{}.ln_2", "input"),
    "llama": ("model.layers.{}.post_attention_layernorm", "input"),
    "qwen2": ("model.layers.{}.post_attention_layernorm", "input"),
    "gemma2": ("model.layers.{}.pre_feedforward_layernorm", "input"),
    "bert": ("encoder.layer.{}.attention.output", "output"),
    "roberta": ("encoder.layer.{}.attention.output", "output"),
}
VALUES: Mapping[str, str] = {
    "gpt2": "transformer.h.{}.attn.c_attn",
    "llama": "model.layers.{}.self_attn.v_proj",
    "qwen2": "model.layers.{}.self_attn.v_proj",
    "gemma2": "model.layers.{}.self_attn.v_proj",
    "bert": "encoder.layer.{}.attention.self.value",
    "roberta": "encoder.layer.{}.attention.self.value",
}


def request(folder: Path, texts: Path, out: Path, **changes: Any) -> Extraction:
    base = Extraction(selection=CAPTURE, model=str(folder), dataset=str(texts), out_dir=out, device="cpu", batch_size=4)
    return replace(base, **changes)


class Eager:
    """A plain eager forward pass of one text, with the modules named above watched by hooks of its own."""

    def __init__(self, folder: Path, family: str) -> None:
        import transformers

        kinds = {"bert": "AutoModel", "roberta": "AutoModel", "t5": "AutoModelForSeq2SeqLM"}
        kind = getattr(transformers, kinds.get(family, "AutoModelForCausalLM"))
        self.model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        self.seen: dict[str, torch.Tensor] = {}

    def watch(self, path: str, side: str = "output") -> None:
        def keep(_: Any, args: Any, output: Any) -> None:
            value = args[0] if side == "input" else output
            self.seen[path] = (value[0] if isinstance(value, tuple) else value)[0].clone()

        self.model.get_submodule(path).register_forward_hook(keep)

    def run(self, ids: list[int], **more: Any) -> Any:
        with torch.no_grad():
            return self.model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True, **more)


def close(found: np.ndarray, expected: torch.Tensor, dtype: str) -> None:
    # float32: the sums of padded batches and of single texts run in another order. float16: its own rounding
    # (half a unit in the last place, 2^-11 relative) on top of that.
    expected_array = expected.float().numpy()
    relative = {"float32": 0.0, "float16": 2.0**-11}[dtype]
    np.testing.assert_allclose(found.astype(np.float32), expected_array, rtol=relative, atol=3e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, "float32") for family in FAMILIES if family != "t5"),
        ("gpt2", "float16"),
        *(
            pytest.param(family, "float16", marks=pytest.mark.slow)
            for family in FAMILIES
            if family not in ("t5", "gpt2")
        ),
    ],
)
def test_every_stored_value_equals_an_eager_pass_of_the_single_text(
    family: str, dtype: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    """In float16, of every family when slow."""
    folder = tiny_folder(family)
    run = TraceStore(extracted(request(folder, text_file, tmp_path / "run", dtype=dtype)))
    eager = Eager(folder, family)
    n_layers = run.L
    for layer in range(n_layers):
        eager.watch(MID[family][0].format(layer), MID[family][1])
        eager.watch(VALUES[family].format(layer))
    assert list(run.tokens.text) == list(TEXTS)
    for example, ids in zip(run.tokens.example_id, run.tokens.input_ids, strict=True):
        out = eager.run(list(ids))
        for layer in range(n_layers):
            close(run.attn(example, layer=layer), out.attentions[layer][0], dtype)
            close(run.resid(example, "pre_attn", layer), out.hidden_states[layer][0], dtype)
            close(run.resid(example, "post_attn", layer), eager.seen[MID[family][0].format(layer)], dtype)
            values = run.qkv(example, "v", layer=layer)
            flat = torch.from_numpy(values.astype(np.float32)).transpose(0, 1).flatten(1)
            expected = eager.seen[VALUES[family].format(layer)]
            close(flat.numpy(), expected[:, -flat.shape[1] :], dtype)
        close(run.hidden(example), torch.stack(out.hidden_states)[:, 0], dtype)
        close(run.resid_embed(example), out.hidden_states[0][0], dtype)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_patterns_follow_from_stored_queries_and_keys(
    family: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    run = TraceStore(extracted(request(tiny_folder(family), text_file, tmp_path / "run", dtype="float32")))
    example = run.tokens.example_id[2]
    q, k = run.qkv(example, "q", layer=1, head=3), run.qkv(example, "k", layer=1, head=3)
    scores = q @ k.T / np.sqrt(q.shape[1])
    if family == "gpt2":
        scores[np.triu_indices(len(q), 1)] = -np.inf
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(run.attn(example, layer=1, head=3), expected, atol=1e-5)


def test_t5_with_targets_stores_encoder_decoder_and_cross_attention(
    tiny_folder: Callable[..., Path], text_file: Path, target_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("t5")
    run = TraceStore(extracted(request(folder, text_file, tmp_path / "run", dtype="float32", targets_file=target_file)))
    eager = Eager(folder, "t5")
    for _, row in run.tokens.iterrows():
        example, labels = row.example_id, list(row.dec_labels)
        assert list(row.dec_input_ids) == [0, *labels[:-1]]  # T5 starts its decoder with the padding token
        assert labels[-1] == 2
        out = eager.run(list(row.input_ids), decoder_input_ids=torch.tensor([list(row.dec_input_ids)]))
        for layer in range(run.L):
            close(run.attn(example, layer=layer, side="enc"), out.encoder_attentions[layer][0], "float32")
            close(run.attn(example, layer=layer, side="dec"), out.decoder_attentions[layer][0], "float32")
            cross = run.attn(example, layer=layer, side="dec", kind="cross")
            close(cross, out.cross_attentions[layer][0], "float32")
            q = run.qkv(example, "q", layer=layer, side="dec", kind="cross")
            k = run.qkv(example, "k", layer=layer, side="dec", kind="cross")
            scores = torch.from_numpy(q @ k.transpose(0, 2, 1))  # T5: no scale, and no bias across stacks
            close(cross, torch.softmax(scores, -1), "float32")
        close(run.hidden(example, side="enc"), torch.stack(out.encoder_hidden_states)[:, 0], "float32")
        close(run.hidden(example, side="dec"), torch.stack(out.decoder_hidden_states)[:, 0], "float32")


def test_t5_without_targets_stores_encoder_arrays_only(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    run = TraceStore(extracted(request(tiny_folder("t5"), text_file, tmp_path / "run")))
    assert run.arrays()
    assert all(name.startswith("enc_") for name in run.arrays())


def test_selected_layers_and_heads_are_the_models_own_numbers(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    everything = TraceStore(extracted(request(folder, text_file, tmp_path / "all")))
    selection = Selection(("attn", "qkv"), layers={"dec": (0, 2)}, heads={"dec": (3,)})
    part = TraceStore(extracted(request(folder, text_file, tmp_path / "part", selection=selection)))
    for example in everything.tokens.example_id:
        for layer in (0, 2):
            whole = everything.attn(example, layer=layer, head=3)
            np.testing.assert_array_equal(part.attn(example, layer=layer, head=3), whole)
            # Head 3 of 4 reads kv_head 1 of 2.
            keys = everything.qkv(example, "k", layer=layer)[1]
            np.testing.assert_array_equal(part.qkv(example, "k", layer=layer, head=3), keys)
    with pytest.raises(SelectionError, match="layer 1"):
        part.attn(everything.tokens.example_id[0], layer=1)


def test_indices_out_of_range_are_dropped_with_a_warning(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    selection = Selection(("attn",), layers={"dec": (0, 7)}, heads={"dec": (1, 99)})
    with pytest.warns(UserWarning, match="valid range") as caught:
        run = TraceStore(extracted(request(tiny_folder("gpt2"), text_file, tmp_path / "run", selection=selection)))
    assert [str(each.message) for each in caught] == [
        "dropping layers 7: valid range is 0-2",
        "dropping heads 99: valid range is 0-3",
    ]
    assert run.meta["layers_stored"] == {"dec": [0]}
    none_left = Selection(("attn",), layers={"dec": (7, 8)})
    with pytest.raises(SelectionError, match="only layers 0-2"):
        extracted(request(tiny_folder("gpt2"), text_file, tmp_path / "none", selection=none_left))
    assert not (tmp_path / "none").exists()


def test_order_and_values_do_not_depend_on_the_batch_size(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    one = TraceStore(extracted(request(folder, text_file, tmp_path / "one", batch_size=1, dtype="float32")))
    many = TraceStore(extracted(request(folder, text_file, tmp_path / "many", batch_size=5, dtype="float32")))
    assert list(one.tokens.example_id) == list(many.tokens.example_id)
    for example in one.tokens.example_id:
        np.testing.assert_allclose(one.attn(example), many.attn(example), atol=1e-5)
        np.testing.assert_allclose(one.hidden(example), many.hidden(example), atol=1e-5)


def test_texts_are_cut_with_a_warning_and_auto_takes_what_the_model_can_read(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    with pytest.warns(UserWarning, match="texts are cut to 8 tokens"):
        short = TraceStore(extracted(request(folder, text_file, tmp_path / "short", max_seq_len=8)))
    assert short.tokens.n_tokens.max() == 8
    full = TraceStore(extracted(request(folder, text_file, tmp_path / "full", max_seq_len="auto")))
    assert 8 < full.tokens.n_tokens.max() <= 64
    np.testing.assert_array_equal(full.tokens.input_ids[0][:8], short.tokens.input_ids[0])


def test_logits_are_the_models_own(tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path) -> None:
    folder = tiny_folder("gemma2")
    run = TraceStore(
        extracted(request(folder, text_file, tmp_path / "run", dtype="float32", selection=Selection(("logits",))))
    )
    eager = Eager(folder, "gemma2")
    for example, ids in zip(run.tokens.example_id, run.tokens.input_ids, strict=True):
        close(run.get(example, "logits"), eager.run(list(ids)).logits[0], "float32")


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_an_interrupted_run_resumes_to_the_same_bytes(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder("gpt2")
    whole = extracted(request(folder, Path("demo"), tmp_path / "whole", limit=64, shard_examples=16))
    seen: list[Progress] = []

    def stop_after_40(progress: Progress) -> None:
        seen.append(progress)
        if progress.examples_done >= 40:
            raise KeyboardInterrupt

    asked = request(folder, Path("demo"), tmp_path / "again", limit=64, shard_examples=16)
    with pytest.raises(KeyboardInterrupt):
        extracted(asked, stop_after_40)
    kept = TraceStore(tmp_path / "_tmp_again")
    assert not kept.finished
    assert kept.n == 32
    with pytest.raises(ConfigurationChanged, match="batch_size"):
        extracted(replace(asked, resume=True, batch_size=3))
    with pytest.raises(ConfigurationChanged, match="model weights"):
        extracted(replace(asked, resume=True, model=str(tiny_folder("gpt2", seed=1))))
    resumed = extracted(replace(asked, resume=True), seen.append)
    assert seen[-1].examples_total == 32
    assert not verify_run(resumed)
    assert array_files(whole) == array_files(resumed)
    assert list(TraceStore(resumed).tokens.example_id) == list(TraceStore(whole).tokens.example_id)


def array_files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("c.*")}


def test_a_finished_run_is_not_touched_unless_told(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_folder("gpt2"), text_file, tmp_path / "run", selection=Selection(("attn",)))
    before = array_files(extracted(asked))
    with pytest.raises(RunExists):
        extracted(replace(asked, selection=Selection(("hidden",))))
    with pytest.raises(RunExists, match="is finished"):
        extracted(replace(asked, resume=True))
    assert array_files(tmp_path / "run") == before
    after = TraceStore(extracted(replace(asked, selection=Selection(("hidden",)), overwrite=True)))
    assert list(after.arrays()) == ["dec_hidden"]


def test_float16_overflow_stops_the_run_and_names_the_way_out(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "huge"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias.fill_(1e6)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_folder("gpt2")).save_pretrained(folder)
    asked = request(folder, text_file, tmp_path / "run", selection=Selection(("resid_post",)))
    with pytest.raises(NumericError, match=r'layer 1 of dec\.resid_post does not fit into float16.*`dtype="float32"`'):
        extracted(asked)
    assert not (tmp_path / "run").exists()
    wide = TraceStore(extracted(replace(asked, dtype="float32", out_dir=tmp_path / "wide")))
    assert wide.resid(wide.tokens.example_id[0], "post_mlp", 1).max() > 65504


def test_bfloat16_keeps_the_range_and_eight_bits(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_folder("gpt2"), text_file, tmp_path / "run", dtype="float32")
    exact = TraceStore(extracted(asked))
    rough = TraceStore(extracted(replace(asked, dtype="bfloat16", out_dir=tmp_path / "rough")))
    for example in exact.tokens.example_id:
        expected = exact.hidden(example)
        np.testing.assert_allclose(rough.hidden(example).astype(np.float32), expected, rtol=2.0**-8)


def test_sqrt8_patterns_are_within_their_stated_error(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_folder("gpt2"), text_file, tmp_path / "run", selection=Selection(("attn",)))
    exact = TraceStore(extracted(asked))
    rough = TraceStore(extracted(replace(asked, attn_codec="sqrt8", out_dir=tmp_path / "rough")))
    for example in exact.tokens.example_id:
        np.testing.assert_allclose(rough.attn(example), exact.attn(example).astype(np.float32), atol=0.004)


def test_a_site_that_the_family_lacks_is_refused_by_name_and_left_out_of_a_group(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_folder("gpt_neox_parallel"), text_file, tmp_path / "run")
    with pytest.raises(Unsupported, match="no resid_mid; attention and MLP run in parallel"):
        extracted(replace(asked, selection=Selection(("resid_mid",))))
    with pytest.warns(UserWarning, match="resid_mid: left out"):
        run = TraceStore(extracted(replace(asked, selection=Selection(("resid",)))))
    assert run.meta["left_out"] == ["resid_mid"]
    assert "dec_res_post_attn" not in run.arrays()


def test_targets_are_for_encoder_decoders(
    tiny_folder: Callable[..., Path], text_file: Path, target_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="encoder-decoders"):
        extracted(request(tiny_folder("gpt2"), text_file, tmp_path / "run", targets_file=target_file))


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_two_writers_make_the_run_that_one_makes(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    asked = request(tiny_folder("gpt2"), Path("demo"), tmp_path / "one", limit=64, shard_examples=16)
    one = extracted(asked)
    shared = replace(asked, out_dir=tmp_path / "two")
    unfinished = extracted(replace(shared, writer=(0, 2)))
    assert unfinished.name == "_tmp_two"
    two = extracted(replace(shared, writer=(1, 2)))
    assert two == tmp_path / "two"
    assert array_files(one) == array_files(two)
    assert not verify_run(two)


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_estimate_is_near_what_is_written(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    asked = request(tiny_folder("bert"), Path("demo"), tmp_path / "run", limit=None)
    expected = estimated(asked)
    assert not (tmp_path / "run").exists()
    run = extracted(asked)
    arrays = sum(path.stat().st_size for path in run.rglob("c.*"))
    assert expected.examples == 64
    assert expected.tokens == TraceStore(run).tokens.n_tokens.sum()
    assert expected.seconds > 0
    assert 0.7 < arrays / expected.bytes < 1.4
