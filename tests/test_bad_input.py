"""What a user can get wrong: each ends with its exit code and a message of what would work, and loses nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny_folders import TEXTS
from traceformer import TraceStore
from traceformer.cli import main
from traceformer.progress import Counting

USAGE, INPUT, MODEL = 2, 3, 4


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A real model of a family without attention."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "odd"
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
    transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).save_pretrained(folder)
    for path in tiny_folder("gpt2").glob("*token*"):
        shutil.copy(path, folder)
    return folder


class Workplace:
    """A folder with a model `gpt2`, texts `texts.txt` and a finished run `run`, and a way to type commands."""

    def __init__(self, folder: Path, model: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "gpt2").symlink_to(model, target_is_directory=True)
        shutil.copy(texts, folder / "texts.txt")

    def type(self, line: str) -> tuple[int, str]:
        code = main(line.split())
        return code, self.capsys.readouterr().err

    def extract(
        self, more: str = "", model: str = "gpt2", texts: str = "texts.txt", out: str = "run"
    ) -> tuple[int, str]:
        return self.type(f"extract --model {model} --dataset {texts} --device cpu --out_dir {out} {more}")

    def copy_of_model(self, name: str) -> Path:
        return Path(shutil.copytree((self.folder / "gpt2").resolve(), self.folder / name))

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(
    tmp_path: Path,
    tiny_folder: Callable[..., Path],
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Workplace:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Workplace(folder, tiny_folder("gpt2"), text_file, capsys)


REFUSED: dict[str, tuple[dict[str, str], int, str]] = {
    "no such model folder": ({"model": "./nowhere"}, INPUT, "no model folder"),
    "no such model on the Hub": ({"model": "no-such-model"}, INPUT, "give a folder, or a Hub name"),
    "no such data set": ({"texts": "demoo"}, INPUT, "demo"),
    "no such split": ({"texts": "demo", "more": "--split tests"}, INPUT, "validation"),
    "no such column": ({"texts": "rows.jsonl", "more": "--text-column words"}, INPUT, "text"),
    "empty file": ({"texts": "empty.txt"}, INPUT, "empty.txt"),
    "not UTF-8": ({"texts": "latin.txt"}, INPUT, "line 2"),
    "no such site": ({"more": "--capture resid_middle"}, USAGE, "resid_mid"),
    "no such layer": ({"more": "--layers 3-5"}, USAGE, "only layers 0-2"),
    "no such head": ({"more": "--heads 9"}, USAGE, "only heads 0-3"),
    "a site that the family lacks": ({"model": "neox", "more": "--capture resid_mid"}, MODEL, "in parallel"),
    "attention outside the interface": ({"model": "xglm", "more": "--capture attn"}, MODEL, "attention function"),
    "a family without attention": ({"model": "odd"}, MODEL, "this model has no attention"),
    "not a transformer": ({"model": "empty"}, INPUT, "no config.json"),
    "no such targets file": ({"model": "t5", "more": "--targets_file nothing.txt"}, INPUT, "nothing.txt"),
    "too few targets": ({"model": "t5", "more": "--targets_file one.txt"}, INPUT, "1"),
    "targets for a decoder": ({"more": "--targets_file texts.txt"}, USAGE, "encoder-decoders"),
    "no such device": ({"more": "--device cuda:7"}, USAGE, "--device"),
    "several writers without a folder": ({"more": "--num-shards 2 --shard-index 2"}, USAGE, "count from 0"),
    "an unwritable place": ({"out": "texts.txt/run"}, INPUT, "texts.txt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(
    case: str, place: Workplace, odd_model: Path, tiny_folder: Callable[..., Path]
) -> None:
    (place.folder / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    (place.folder / "empty.txt").write_text("")
    (place.folder / "latin.txt").write_bytes(b"first\ncaf\xe9\n")
    (place.folder / "one.txt").write_text("one target\n")
    (place.folder / "empty").mkdir()
    for name, family in {"neox": "gpt_neox_parallel", "xglm": "xglm", "t5": "t5"}.items():
        (place.folder / name).symlink_to(tiny_folder(family), target_is_directory=True)
    (place.folder / "odd").symlink_to(odd_model, target_is_directory=True)
    arguments, code, said = REFUSED[case]
    before = place.state()
    found, err = place.extract(**arguments)
    assert (found, "error:" in err) == (code, True), err
    assert said in err
    assert "Traceback" not in err
    assert place.state() == before


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_nan_in_the_weights_is_named_and_never_stored(place: Workplace) -> None:
    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan

    edit_weights(place.copy_of_model("sick"), poison)
    code, err = place.extract("--capture resid", model="./sick")
    assert code == MODEL
    assert "layer 2 of dec.resid_pre is NaN in example 0" in err
    assert not (place.folder / "run").exists()


def test_pickled_weights_are_refused_unless_asked_for(place: Workplace) -> None:
    from safetensors.torch import load_file

    folder = place.copy_of_model("pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, err = place.extract(model="./pickled")
    assert code == INPUT
    assert "can run code" in err
    assert "--allow-pickle" in err
    assert place.extract("--allow-pickle", model="./pickled")[0] == 0


def test_code_that_comes_with_a_model_is_not_run(place: Workplace) -> None:
    folder = place.copy_of_model("remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    code, err = place.extract(model="./remote")
    assert code == MODEL
    assert "code of its own" in err


def test_a_tokenizer_of_another_model_is_refused(place: Workplace) -> None:
    def shrink(weights: dict[str, torch.Tensor]) -> None:
        weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:40].clone()

    folder = place.copy_of_model("small")
    edit_weights(folder, shrink)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    code, err = place.extract(model="./small")
    assert code == MODEL
    assert "only 40 embeddings" in err


def test_a_tokenizer_without_padding_and_end_is_refused(place: Workplace) -> None:
    folder = place.copy_of_model("bare")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("pad_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    code, err = place.extract(model="./bare")
    assert code == MODEL
    assert "neither a padding nor an end token" in err


def test_a_checkpoint_that_lacks_weights_is_refused(place: Workplace) -> None:
    def forget(weights: dict[str, torch.Tensor]) -> None:
        del weights["transformer.h.2.mlp.c_fc.weight"]

    edit_weights(place.copy_of_model("torn"), forget)
    code, err = place.extract(model="./torn")
    assert code == INPUT
    assert "h.2.mlp.c_fc.weight" in err
    assert "its config.json describes another model than its weights" in err


@pytest.mark.filterwarnings("ignore:.*blank texts")
def test_one_token_and_blank_texts_are_recorded_and_passed_over(place: Workplace) -> None:
    (place.folder / "short.txt").write_text("a\n\n \nof\nThe end of it.\n")
    assert place.extract("--capture attn qkv hidden resid", texts="short.txt")[0] == 0
    run = TraceStore("run")
    assert list(run.tokens.text) == ["a", "of", "The end of it."]
    assert list(run.tokens["index"]) == [0, 3, 4]
    assert run.attn(run.tokens.example_id[0]).tolist() == [[[[1.0]]] * 4] * 3
    assert run.hidden(run.tokens.example_id[0]).shape == (4, 1, 32)


@pytest.mark.filterwarnings("default:texts without a token")
def test_texts_without_a_token_are_passed_over_with_a_count(place: Workplace) -> None:
    nothing = "\u200b"  # which this tokenizer drops
    (place.folder / "none.txt").write_text(f"a\n{nothing}\nThe end of it.\n{nothing * 2}\n")
    code, err = place.extract("--capture attn hidden", texts="none.txt")
    assert code == 0
    assert "texts without a token are passed over: 2 (row 1 is '\\u200b')" in err
    run = TraceStore("run")
    assert list(run.tokens["index"]) == [0, 2]
    assert [run.hidden(row).shape[1] for row in (0, 1)] == run.tokens.n_tokens.tolist() == [1, 6]
    (place.folder / "none.txt").write_text(f"{nothing}\n")
    code, err = place.extract("--capture attn --overwrite", texts="none.txt")
    assert code == INPUT
    assert "no text has a token" in err
    assert TraceStore("run").n == 2


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_texts_longer_than_the_context_are_cut_to_it(place: Workplace) -> None:
    (place.folder / "long.txt").write_text(" ".join(TEXTS * 3) + "\nshort\n")
    assert place.extract("--max_seq_len auto", texts="long.txt")[0] == 0
    run = TraceStore("run")
    assert run.tokens.n_tokens[0] == 64
    assert list(run.tokens.truncated) == [True, False]


def interrupted(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves an unfinished run behind, as Ctrl-C does after the first of two batches."""

    def told(counting: Counting, message: str) -> None:
        if counting.examples >= 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Counting, "tell", told)
        assert place.extract()[0] == 130
    assert (place.folder / "_tmp_run/meta.json").exists()


def test_resuming_another_run_is_refused_and_the_difference_named(
    place: Workplace, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(place, monkeypatch)
    before = place.state()
    (place.folder / "other").symlink_to(tiny_folder("gpt2", seed=1), target_is_directory=True)
    (place.folder / "changed.txt").write_text("\n".join((*TEXTS[:-1], "another text")) + "\n")
    for arguments, said in (
        ({"model": "./other"}, "model weights"),
        ({"texts": "changed.txt"}, "texts was"),
        ({"more": "--capture attn"}, "selection is now without dec.self.q"),
        ({"more": "--layers 0"}, "selection is now without dec.self.q layers 0,1,2"),
        ({"more": "--dtype float32"}, "dtype was"),
    ):
        more = arguments.pop("more", "")
        code, err = place.extract(f"--resume {more}", **arguments)
        assert (code, said in err) == (INPUT, True), err
    assert {name: place.state()[name] for name in before} == before
    assert place.extract("--resume")[0] == 0
    assert TraceStore("run").n == len(TEXTS)


def test_damage_is_found(place: Workplace) -> None:
    assert place.extract()[0] == 0
    assert place.type("verify run")[0] == 0
    meta = place.folder / "run/meta.json"
    intact = meta.read_text()
    assert '"n_examples": 9' in intact
    meta.write_text(intact.replace('"n_examples": 9', '"n_examples": 8'))
    code, err = place.type("inspect run")
    assert code == INPUT
    assert "meta.json was changed after it was written" in err
    assert place.type("verify run")[0] == 1
    meta.write_text(intact)
    assert place.type("verify run")[0] == 0
    shard = next((place.folder / "run").glob("dec_self_attn.zarr/attn/c.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert place.type("verify run")[0] == 1
