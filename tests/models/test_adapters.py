"""Adapters of PEFT: what is recorded of them is what PEFT's own model computes; what would be another's is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from traceformer.capture.extract import record
from traceformer.errors import ConfigurationChanged, NotFound, Unreadable, Unsupported, UsageError
from traceformer.models.load import load_model
from traceformer.models.tiny import tiny_model
from traceformer.questions.lens import lens
from traceformer.questions.live_paths import output_weights

Folder = Callable[..., Path]
TEXTS = ["The river froze over during the night.", "Yes"]
IDS = [[5, 6, 7, 8], [9, 10]]
PROJECTIONS = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value"],
    "t5": ["q", "v"],
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Unsupported layer type:UserWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",
    "ignore:`is_gradient_checkpointing` is deprecated",
)


def adapted(family: str, base: Any, **settings: Any) -> Any:
    """A model of PEFT whose adapter changes what the base computes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = peft.LoraConfig(
            **{"r": 2, "lora_alpha": 8, "target_modules": PROJECTIONS[family], "init_lora_weights": False, **settings}
        )
        return peft.get_peft_model(base, config).eval()


@pytest.fixture(scope="session")
def adapter(tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Returns the folder of a LoRA adapter for a family's tiny model."""

    def folder(family: str) -> Path:
        path = tmp_path_factory.mktemp("adapters") / f"{family}-lora"
        base = tiny_model(family)
        base.name_or_path = str(tiny_folder(family))
        adapted(family, base).save_pretrained(path)
        return path

    made: dict[str, Path] = {}
    return lambda family: made.get(family) or made.setdefault(family, folder(family))


@pytest.fixture
def beside(adapter: Folder, tiny_folder: Folder, tmp_path: Path) -> Path:
    """A folder with a llama's weights and an adapter beside them."""
    path = tmp_path / "both"
    shutil.copytree(tiny_folder("llama"), path)
    shutil.copytree(adapter("llama"), path, dirs_exist_ok=True)
    return path


def of_peft(family: str, base: Path, adapter: Path, ids: list[int]) -> Any:
    model: Any = peft.PeftModel.from_pretrained(type(tiny_model(family)).from_pretrained(base), adapter).eval()
    decoder = {"decoder_input_ids": torch.tensor([[0, *ids]])} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), output_hidden_states=True, **decoder)


@pytest.mark.parametrize("how", ["by name", "beside the weights", "alone"])
def test_an_adapter_is_recorded_as_peft_itself_runs_it(
    how: str, adapter: Folder, tiny_folder: Folder, beside: Path
) -> None:
    base, lora = tiny_folder("llama"), adapter("llama")
    loaded = {
        "by name": lambda: load_model(base, adapter=lora, device="cpu"),
        "beside the weights": lambda: load_model(beside, device="cpu"),
        "alone": lambda: load_model(lora, device="cpu"),
    }[how]()
    run = record(loaded, IDS, "hidden logits", dtype="float32", batch_size=1)
    for example, ids in zip(run.ids, IDS, strict=True):
        expected = of_peft("llama", base, lora, ids)
        assert np.array_equal(run.get(example, "logits"), expected.logits[0].numpy())
        for layer, states in enumerate(expected.hidden_states):
            assert np.array_equal(run.get(example, "hidden", layer), states[0].numpy())
    assert run.about.adapter is not None
    assert run.about.adapter["source"] == str(beside if how == "beside the weights" else lora)
    assert (run.about.adapter["kind"], run.about.adapter["made_for"]) == ("lora", str(base))
    assert loaded.digest != load_model(base, device="cpu").digest


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_adapters_of_other_families_give_their_models_logits(family: str, adapter: Folder, tiny_folder: Folder) -> None:
    loaded = load_model(adapter(family), device="cpu")
    expected = of_peft(family, tiny_folder(family), adapter(family), IDS[0]).logits
    ids = torch.tensor([IDS[0]])
    decoder = {"decoder_input_ids": torch.tensor([[0, *IDS[0]]])} if family == "t5" else {}
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids, **decoder).logits, expected)


def test_an_adapter_trained_with_a_head_fits_the_encoder_without_it(adapter: Folder, tiny_folder: Folder) -> None:
    lora = adapter("bert")
    expected = of_peft("bert", tiny_folder("bert"), lora, IDS[0]).hidden_states[-1][0].numpy()
    for model in (load_model(lora, device="cpu"), load_model(lora, device="cpu", with_head=True)):
        run = record(model, IDS[:1], "hidden", dtype="float32")
        np.testing.assert_allclose(run.get(0, "hidden", run.L), expected, atol=1e-5)


class _Absent(MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(f"No module named {name!r}", name="peft")


def test_without_peft_an_adapter_is_refused(
    adapter: Folder, tiny_folder: Folder, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora = tiny_folder("llama"), adapter("llama")
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    for load in (
        lambda: load_model(beside),
        lambda: load_model(lora),
        lambda: load_model(base, adapter=lora),
    ):
        with pytest.raises(Unsupported, match=r"PEFT is not installed; without it the base.*traceformer\[peft\]"):
            load()
    assert load_model(base, device="cpu").adapter is None


def edited(folder: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return to


def test_what_does_not_fit_is_refused(adapter: Folder, tiny_folder: Folder, beside: Path, tmp_path: Path) -> None:
    base, lora = tiny_folder("llama"), adapter("llama")
    with pytest.raises(Unreadable, match=r"does not fit .*it was made for .*tiny-llama; .*size mismatch"):
        load_model(tiny_folder("llama", intermediate_size=100), adapter=lora, device="cpu")
    with pytest.raises(Unreadable, match=r"does not fit .*tiny-gpt2; it was made for"):
        load_model(tiny_folder("gpt2"), adapter=lora, device="cpu")
    fewer = edited(lora, tmp_path / "fewer", target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(Unreadable, match=r"weights have no counterpart, .*down_proj"):
        load_model(base, adapter=fewer, device="cpu")
    more = edited(lora, tmp_path / "more", target_modules=[*PROJECTIONS["llama"], "k_proj"])
    with pytest.raises(Unreadable, match=r"weights have no counterpart, .*k_proj"):
        load_model(base, adapter=more, device="cpu")
    with pytest.raises(NotFound, match=r"no adapter .*there is no adapter_config\.json"):
        load_model(base, adapter=base, device="cpu")
    with pytest.raises(UsageError, match="which adapter"):
        load_model(beside, adapter=lora, device="cpu")
    lost = edited(lora, tmp_path / "lost", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(NotFound, match=r"holds an adapter alone, made for .*gone; no model folder"):
        load_model(lost)
    with pytest.raises(Unreadable, match="does not say of which model"):
        load_model(edited(lora, tmp_path / "nameless", base_model_name_or_path=None))
    with pytest.raises(UsageError, match="`adapter` of a model that is at hand"):
        load_model(tiny_model("llama"), adapter=lora)
    pickled = edited(lora, tmp_path / "pickled")
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    with pytest.raises(Unreadable, match=r"no safetensors weights.*`allow_pickle=True`"):
        load_model(base, adapter=pickled, device="cpu")
    trusted = load_model(base, adapter=pickled, device="cpu", allow_pickle=True)
    assert trusted.digest == load_model(base, adapter=lora, device="cpu").digest


def test_an_adapter_for_a_model_of_another_name_is_put_on_with_a_warning(
    adapter: Folder, tiny_folder: Folder, tmp_path: Path
) -> None:
    renamed = edited(adapter("llama"), tmp_path / "renamed", base_model_name_or_path="meta/other")
    with pytest.warns(UserWarning, match="was made for meta/other, and is put on .*tiny-llama"):
        load_model(tiny_folder("llama"), adapter=renamed, device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "of the kind prompt tuning"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "of the kind prefix tuning"),
        (peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "changes lm_head"),
        (peft.LoraConfig(target_modules=["q_proj", "embed_tokens"]), r"changes .*embed_tokens"),
        (peft.LoraConfig(target_modules=["q_proj"], bias="all"), "bias='all'"),
        (peft.LNTuningConfig(target_modules=["norm"]), r"changes model\.norm"),
    ],
)
def test_adapters_that_make_another_model_are_refused(
    config: Any, message: str, tiny_folder: Folder, tmp_path: Path
) -> None:
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(Unsupported, match=message):
        load_model(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(Unsupported, match=message):
        load_model(tiny_folder("llama"), adapter=tmp_path / "adapter", device="cpu")


def test_ia3_is_recorded_as_well(tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model: Any = peft.get_peft_model(tiny_model("llama"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3" in name:
                parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).reshape(parameter.shape))
    loaded = load_model(model)
    assert loaded.adapter is not None
    assert loaded.adapter.kind == "ia3"
    run = record(loaded, IDS[:1], "logits", dtype="float32")
    with torch.inference_mode():
        assert np.array_equal(run.get(0, "logits"), model(torch.tensor(IDS[:1])).logits[0].numpy())


def test_the_digest_knows_which_adapter_is_at_work_and_how_strongly(tiny_folder: Folder, adapter: Folder) -> None:
    model: Any = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder("llama")), adapter("llama")
    )
    on = load_model(model)
    assert on.digest == load_model(adapter("llama"), device="cpu").digest
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    assert load_model(model).digest != on.digest
    layer.scaling["default"] /= 2
    model.base_model.disable_adapter_layers()
    off = load_model(model)
    assert (off.adapter, off.digest == on.digest) == (None, False)


def test_later_verbs_check_the_adapter(adapter: Folder, tiny_folder: Folder, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    shutil.copytree(adapter("llama"), lora)
    loaded = load_model(tiny_folder("llama"), adapter=lora, device="cpu")
    run = record(loaded, TEXTS, "resid", out=tmp_path / "run", dtype="float32")
    last = lens(run, 0, layers=[run.L - 1])
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([run.tokens.input_ids[0].tolist()])).logits[0]
    assert last.top_ids[0, :, 0].tolist() == logits.argmax(-1).tolist()
    (lora / "README.md").unlink(missing_ok=True)
    weights = load_file(lora / "adapter_model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(ConfigurationChanged, match="its adapter's files have digest"):
        lens(run, 0)
    changed = load_model(tiny_folder("llama"), adapter=lora, device="cpu")
    with pytest.raises(ConfigurationChanged, match="its weights have digest"):
        lens(run, 0, model=changed)
    shutil.rmtree(lora)
    with pytest.raises(NotFound, match=r"the adapter of this run is not at .*`adapter=FOLDER`"):
        lens(run, 0)


def test_output_weights_are_those_that_the_module_multiplies_by(adapter: Folder, tiny_folder: Folder) -> None:
    loaded: Any = load_model(adapter("llama"), device="cpu")
    heads = loaded.dims.stacks["dec"].n_heads
    merged: Any = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder("llama")), adapter("llama")
    ).merge_and_unload()
    expected = merged.model.layers[1].self_attn.o_proj.weight.detach().T.numpy()
    found = output_weights(loaded.model, "dec", "self", 1, heads)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    assert isinstance(loaded.model.model.layers[1].self_attn.o_proj, nn.Module)


def test_an_adapter_that_is_not_there_is_named(tiny_folder: Folder) -> None:
    with pytest.raises(NotFound, match="no adapter folder /not/there"):
        load_model(tiny_folder("gpt2"), adapter="/not/there", device="cpu")
    with pytest.raises(NotFound, match="no adapter"):
        load_model(tiny_folder("gpt2"), adapter="nobody/nothing", device="cpu")
