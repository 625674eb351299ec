"""Loading models by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.models.load import BUILT_IN, load_model, pick_device
from traceformer.models.tiny import tiny_model
from traceformer.models.tokenizer import load_tokenizer, vocabulary_in
from traceformer.models.weights import files_digest, open_folder


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


def test_a_device_that_is_not_there_is_refused() -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no device 'tpu'"):
        pick_device("tpu")


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


def test_a_config_with_more_layers_than_weights_is_refused_before_they_are_made(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(Unreadable, match=r"1000000000 layers by its config\.json, but only 30 tensors"):
        load_model(str(tmp_path), device="cpu")


class PanicException(BaseException):
    """What a library in Rust raises where its own code has panicked: no Exception."""


@pytest.mark.parametrize("reader", [load_tokenizer, lambda _, folder: vocabulary_in(folder)])
def test_a_tokenizer_whose_reader_panics_is_damaged(
    reader: Callable[[str, Path], Any],
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def panic(*_: Any, **__: Any) -> None:
        raise PanicException("range end index 6 out of range for slice of length 5")

    folder = tiny_folder("gpt2")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_file=panic))
    with pytest.raises(Unreadable, match=r"tokenizer.*; PanicException: range end index 6 out of range"):
        reader(str(folder), folder)


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


def test_a_path_is_a_folder_whatever_its_name(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder("gpt2"), "byte")
    loaded = load_model(Path("byte"), device="cpu")
    assert (loaded.config.model_type, loaded.source, loaded.held) == ("gpt2", str(tmp_path / "byte"), False)


def test_a_tokenizer_stands_in_for_the_models_own(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llama", vocab_size=258), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tokenizer = ByteTokenizer()
    loaded = load_model(folder, tokenizer, device="cpu")
    assert loaded.tokenizer("a")["input_ids"] == tokenizer("a")["input_ids"]
    assert loaded.tokenizer is not tokenizer
    with pytest.raises(UsageError, match="dict is no tokenizer"):
        load_model(folder, {}, device="cpu")


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/tmp/model.safetensors", "part/model.safetensors", ".."]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(
    name: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("gpt2"), folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    for read in (load_model, open_folder, files_digest):
        with pytest.raises(Unreadable, match=r"index\.json names .*; the weights of a model lie in its own folder"):
            read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(Unreadable, match="lists no weights"):
        load_model(folder)


def test_an_index_that_names_what_no_file_can_be_called_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "x" * 300}}))
    for read in (open_folder, files_digest):
        with pytest.raises(NotFound, match="weights are read from safetensors files"):
            read(tmp_path)


def test_a_pooler_that_the_checkpoint_lacks_changes_no_digest(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("bert")  # a masked language model has none
    assert load_model(folder, device="cpu").digest == load_model(folder, device="cpu").digest


def test_a_dtype_of_a_config_that_is_none_is_refused(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": 1.5}))
    with pytest.raises(Unreadable, match=r"config\.json says dtype 1\.5"):
        load_model(str(folder), device="cpu")


def test_a_revision_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for name in ("byte", str(tmp_path), "nanochat:base:d12"):
        with pytest.raises(UsageError, match=r"`revision='step0'` of .*revisions are the Hub's"):
            load_model(name, revision="step0", device="cpu")
