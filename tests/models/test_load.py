"""Loading models, and their sizes in this project's words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.capture.conftest import tiny_folder
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.models.dims import ModelDims
from traceformer.models.load import BUILT_IN, load_model, pick_device
from traceformer.models.loaded import short_name, weights_digest
from traceformer.models.tiny import TINY, tiny_model

__all__ = ["tiny_folder"]  # a fixture


@pytest.mark.parametrize("family", TINY)
def test_dimensions_are_those_of_the_weights(family: str) -> None:
    model = tiny_model(family)
    dims = ModelDims.from_config(model.config)
    assert model.get_input_embeddings().weight.shape[0] == next(iter(dims.stacks.values())).d_vocab
    for stack, own in dims.stacks.items():
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == own.n_layers]
        assert lists, f"no {own.n_layers} blocks in {stack}"
        assert own.n_heads % own.n_kv_heads == 0
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


def test_a_model_loads_in_eval_mode_with_its_own_dtype(tiny_folder: Callable[..., Path]) -> None:
    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    assert not loaded.model.training
    assert loaded.name == "tiny-gpt2"
    assert loaded.model.dtype == torch.float32
    assert load_model(str(tiny_folder("gpt2")), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_encoder_loads_with_its_head_only_when_asked(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder("bert"))
    assert load_model(folder, device="cpu").model.get_output_embeddings() is None
    assert load_model(folder, device="cpu", with_head=True).model.get_output_embeddings() is not None


def test_one_changed_weight_changes_the_digest() -> None:
    model = tiny_model("gpt2")
    before = weights_digest(model)
    assert weights_digest(tiny_model("gpt2")) == before
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 7] += 1e-6
    assert weights_digest(model) != before


def test_a_device_that_is_not_there_is_refused() -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no device 'tpu'"):
        pick_device("tpu")


def test_names_are_fit_for_a_path(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    assert short_name("meta-llama/Llama-3.2-1B") == "meta-llama-Llama-3.2-1B"
    assert short_name(str(tmp_path / "my model")) == "my-model"
    assert short_name("..") not in ("", ".", "..")


def test_a_folder_that_is_not_there_is_told_from_a_hub_name() -> None:
    with pytest.raises(NotFound, match=r"no model folder \./nothing"):
        load_model("./nothing")
    with pytest.raises(NotFound, match="Hub"):
        load_model("nobody/nothing")


def test_a_checkpoint_of_another_architecture_is_refused_by_its_keys(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder("gpt2"), tmp_path, dirs_exist_ok=True)
    shutil.copy(tiny_folder("llama") / "config.json", tmp_path)
    with pytest.raises(
        Unreadable, match=r"lacks the weights of lm_head.weight, model.embed_tokens.*and has those of transformer.h.0"
    ):
        load_model(str(tmp_path), device="cpu")


def test_a_checkpoint_with_more_layers_than_its_config_is_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(Unreadable, match=r"has those of model\.layers\.2\.input_layernorm.weight, .* and 6 more"):
        load_model(str(tmp_path), device="cpu")


def test_a_built_in_model_is_known_by_its_name_and_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("traceformer.models.load.__file__", str(tmp_path / "models" / "load.py"))
    assert set(BUILT_IN) == {"byte", "byte-sparse"}
    for name, family in (("byte", "llama"), ("byte-sparse", "byte_sparse")):
        with pytest.raises(NotFound, match=f"'{name}' is not installed"):
            load_model(name)
        folder = tmp_path / "bytelm" / "weights" / name
        tiny_model(family, vocab_size=258).half().save_pretrained(folder)
        ByteTokenizer().save_pretrained(folder)
        loaded = load_model(name, device="cpu")
        assert (loaded.name, loaded.source, loaded.dims.arch) == (name, name, "dec")
        assert loaded.model.dtype == torch.float32
        assert load_model(name, device="cpu", dtype="float16").model.dtype == torch.float16
