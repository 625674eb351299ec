"""The logit lens against models that end after the layer in question."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import FAST, PREDICTING, mostly_slow
from traceformer.analysis.lens import normed, read_out
from traceformer.errors import NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.families import FAMILIES, architecture_of
from traceformer.models.part import text_part
from traceformer.models.readout import Readout, open_readout
from traceformer.models.tiny import tiny_model
from traceformer.models.weights import StoredTensor, files_digest, open_folder, read_config

IDS = torch.tensor([[5, 17, 42, 8, 93, 61, 30]])
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in PREDICTING},
    "opt, narrow embedding": ("opt", {"word_embed_proj_dim": 16}),
    "opt, post-norm, narrow embedding": ("opt_post_norm", {"word_embed_proj_dim": 16}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "gemma2, no softcap": ("gemma2", {"final_logit_softcapping": None}),
    "gemma2, small softcap": ("gemma2", {"final_logit_softcapping": 0.7}),
}
QUICK = (*FAST, *(variant for variant in VARIANTS if ", " in variant))


def readout_of(folder: Path) -> Readout:
    return open_readout(folder, read_config(folder))


def ending_after(layers: int, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the last of the first `layers` blocks leaves, and the logits of the model without the blocks behind it."""
    blocks = text_part(model).get_submodule(architecture_of(model.config).stacks["dec"].blocks)
    del blocks[layers:]
    seen: list[torch.Tensor] = []
    hook = blocks[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        logits = model(IDS, **more, use_cache=False).logits
    hook.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return output[0].numpy().copy(), logits[0].numpy().copy()


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def likeliest(logits: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, QUICK))
def test_a_layer_says_what_the_model_would_that_ends_there(variant: str, tiny_folder: Callable[..., Path]) -> None:
    family, changes = VARIANTS[variant]
    folder = tiny_folder(family, **changes)
    readout, model = readout_of(folder), tiny_model(family, **changes)
    targets = np.array([17, 42, 8, 93, 61, 30, -1])
    for layers in (3, 1):
        residual, logits = ending_after(layers, model)
        said = read_out(normed(residual, readout), readout, targets=targets, top=5)
        expected = softmax(logits)
        order = likeliest(logits, 5)
        assert said.top_ids.tolist() == order.tolist()
        # float32 throughout; the logits of these models reach some tens.
        np.testing.assert_allclose(said.top_probabilities, np.take_along_axis(expected, order, 1), rtol=2e-4)
        own = expected[np.arange(6), targets[:6]]
        np.testing.assert_allclose(said.target_probability[:6], own, rtol=2e-4, atol=1e-12)
        assert said.target_rank[:6].tolist() == [
            1 + int((row > p).sum()) for row, p in zip(expected, own, strict=False)
        ]
        assert np.isnan(said.target_probability[6])
        assert said.target_rank[6] == 0
        entropy = -(expected * np.log(np.maximum(expected, 1e-300))).sum(axis=1)
        np.testing.assert_allclose(said.entropy, entropy, rtol=1e-3, atol=1e-5)


def test_every_family_with_a_decoder_has_a_readout_and_no_encoder_has() -> None:
    with_head = {family for family, row in FAMILIES.items() if "dec" in row.stacks}
    with_layers_in_their_head = {"modernbert-decoder"}
    expected = with_head - with_layers_in_their_head
    assert {family for family, row in FAMILIES.items() if row.readout is not None} == expected
    with pytest.raises(Unsupported, match="its head has layers of its own"):
        open_readout(Path(), {"model_type": "modernbert-decoder"})


@pytest.fixture
def wide(tmp_path: Path) -> Readout:
    """A bare norm before an unembedding of 9,001 words, which is cut into three blocks."""
    random = torch.Generator().manual_seed(0)
    save_file({"lm_head.weight": torch.randn(9001, 16, generator=random)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "nanochat"}', encoding="utf-8")
    return open_readout(tmp_path, read_config(tmp_path))


def test_blocks_of_words_make_no_difference(wide: Readout) -> None:
    rows = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    targets = np.arange(300) * 30
    said = read_out(rows, wide, targets=targets, top=7)
    logits = 15 * np.tanh(rows @ wide.unembedding.read().T / 15)
    expected = softmax(logits)
    assert said.top_ids.tolist() == likeliest(logits, 7).tolist()
    np.testing.assert_allclose(said.target_probability, expected[np.arange(300), targets], rtol=1e-4)
    assert said.target_rank.tolist() == [
        1 + int((row > row[own]).sum()) for row, own in zip(logits, targets, strict=True)
    ]
    np.testing.assert_allclose(said.entropy, -(expected * np.log(expected)).sum(axis=1), rtol=1e-5)


def test_more_words_than_a_block_holds_can_be_kept(wide: Readout) -> None:
    rows = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    said = read_out(rows, wide, top=9001)
    assert sorted(said.top_ids[0].tolist()) == list(range(9001))
    np.testing.assert_allclose(said.top_probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.diff(said.top_probabilities, axis=1) <= 0).all()


def test_memory_is_bounded_by_a_block_of_words(tmp_path: Path) -> None:
    n_rows, words, width = 600, 40_000, 64
    random = np.random.default_rng(0)
    path = tmp_path / "unembedding"
    random.standard_normal((words, width), np.float32).tofile(path)
    unembedding = StoredTensor(path, "unembedding", "F32", (words, width), 0)
    readout = Readout(None, None, None, 0, None, 1, unembedding, None, None)
    rows = random.standard_normal((n_rows, width), np.float32)
    read_out(rows[:2], readout)  # what is imported and checked once does not count
    tracemalloc.start()
    said = read_out(rows, readout)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        peak < 0.5 * 4 * n_rows * words
    )  # of all logits, which are 96 MB; blocks of them are 10 MB, several at a time
    assert (
        said.top_ids[7].tolist()
        == likeliest(rows[7:8] @ np.fromfile(path, np.float32).reshape(words, width).T, 3)[0].tolist()
    )


def test_what_is_no_word_of_the_model_is_refused(wide: Readout) -> None:
    rows = np.zeros((1, 16), np.float32)
    for more in ({"top": 9002}, {"top": 0}, {"targets": np.array([9001])}):
        with pytest.raises(UsageError, match="9001 words"):
            read_out(rows, wide, **more)


def test_no_rows_say_nothing(wide: Readout) -> None:
    assert read_out(np.zeros((0, 16), np.float32), wide).top_ids.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_are_read_as_float32_whatever_they_are_stored_as(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"a": weight, "b": torch.zeros(3)}, tmp_path / "model.safetensors")
    stored = open_folder(tmp_path)["a"]
    assert stored.rows(2, 6).dtype == np.float32
    assert np.array_equal(stored.rows(2, 6), weight[2:6].float().numpy())


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(Unreadable, match="is I32"):
        open_folder(tmp_path)["a"].read()


def sharded(folder: Path, target: Path) -> Path:
    """The same model with its weights in two files and an index."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    tensors = sorted(load_file(folder / "model.safetensors").items())
    half = len(tensors) // 2
    weight_map = {}
    for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(dict(part), target / name, metadata={"format": "pt"})
        weight_map |= {key: name for key, _ in part}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def test_weights_in_several_files_are_the_same(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    whole, parts = tiny_folder("llama"), sharded(tiny_folder("llama"), tmp_path / "sharded")
    assert np.array_equal(readout_of(whole).unembedding.read(), readout_of(parts).unembedding.read())
    (parts / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match="00002"):
        open_folder(parts)


def test_a_checkpoint_of_the_base_model_alone_is_read_by_its_shorter_names(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder("gpt2")
    shutil.copy(folder / "config.json", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    shorter, longer = readout_of(tmp_path), readout_of(folder)
    assert shorter.unembedding.name == "wte.weight"
    assert np.array_equal(shorter.norm_weight, longer.norm_weight)
    assert np.array_equal(shorter.unembedding.read(), longer.unembedding.read())


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="'rwkv'"):
        open_readout(tmp_path, {"model_type": "rwkv"})
    with pytest.raises(Unsupported, match="predicts no next token"):
        open_readout(tmp_path, {"model_type": "bert"})


def test_a_folder_without_the_final_norm_is_refused(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(Unreadable, match=r"no norm\.weight"):
        open_readout(tmp_path, {"model_type": "llama"})
    with pytest.raises(NotFound, match="safetensors"):
        open_readout(tmp_path / "elsewhere", {"model_type": "llama"})


def test_the_digest_of_the_files_changes_with_any_byte(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder("gpt2"), copy)
    before = files_digest(copy)
    assert before == files_digest(tiny_folder("gpt2"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    changed = files_digest(copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert len({before, changed, files_digest(copy)}) == 3


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    weights = (tiny_folder("gpt2") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(Unreadable, match="not all of one"):
        open_folder(tmp_path)
