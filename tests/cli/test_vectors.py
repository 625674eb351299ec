"""`traceformer vectors` as a user meets it: a direction that was planted in a real class is found, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from traceformer import TraceStore
from traceformer.capture.extract import record
from traceformer.cli import main
from traceformer.formats.results.directions import read_direction
from traceformer.models.load import load_model
from traceformer.store.run import Run

Capture = pytest.CaptureFixture[str]
FAMILIES = ("gemma2", "qwen2", "llama", "gpt2")
METHODS = ("mean_diff", "probe", "pca")
PLANTED_AT, TEXTS, WIDTH = 1, 24, 32
WORDS = ["river", "ships", "storm", "harbour", "counted", "paris", "cities", "rained", "world", "stage", "players"]


def run(capsys: Capture, arguments: str) -> tuple[str, str]:
    """Returns what a command that must succeed prints on stdout and stderr."""
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out, shown.err


def texts(path: Path, seed: int, count: int = TEXTS) -> Path:
    """Writes texts of twelve random words each, one per line."""
    rows = np.random.default_rng(seed).choice(WORDS, (count, 12))
    path.write_text("\n".join(map(" ".join, rows)) + "\n", encoding="utf-8")
    return path


def planted_runs(folder: Path) -> np.ndarray:
    """Records `traces/with` and `traces/without`, of different texts; returns what was added behind a block of one."""
    loaded = load_model(str(folder), device="cpu")

    def recorded(kind: str, seed: int) -> Run:
        return record(
            loaded, texts(Path(f"{kind}.txt"), seed), "resid_post", dtype="float32", out=Path("traces") / kind
        )

    # Twice as long as a row is there without it.
    before = recorded("without", seed=2).activations("resid_post", PLANTED_AT).astype(np.float64)
    vector = np.random.default_rng(5).normal(size=WIDTH).astype(np.float32)
    vector *= 2 * np.linalg.norm(before, axis=1).mean() / np.linalg.norm(vector)
    model: Any = loaded.model
    blocks = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers

    def add(_: Any, __: Any, output: Any) -> Any:
        added = torch.from_numpy(vector)
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    blocks[PLANTED_AT].register_forward_hook(add)
    recorded("with", seed=1)
    return vector


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_direction_is_found_by_every_method(
    family: str, tiny_folder: Callable[..., Path], capsys: Capture
) -> None:
    vector = planted_runs(tiny_folder(family))
    asked = f"vectors fit --positive with --negative without --method {' '.join(METHODS)} --output planted"
    told = json.loads(run(capsys, f"{asked} --json")[0])["vectors"]
    assert [each["method"] for each in told] == list(METHODS)
    for each in told:
        quality = each["quality"]
        assert quality["1"]["held_out_accuracy"] >= 0.95
        assert quality["1"]["effect_size"] > 3
        # Before it was planted there is nothing to find, and shuffled labels have nothing anywhere.
        assert 0.25 <= quality["0"]["held_out_accuracy"] <= 0.75
        assert all(0.35 <= own["shuffled_accuracy"] <= 0.65 for own in quality.values())
        found = load_file(each["file"])
        assert sorted(found) == ["layer_0", "layer_1", "layer_2"]
        assert found["layer_1"] @ vector / np.linalg.norm(vector) > 0.8
        assert np.linalg.norm(found["layer_1"]) == pytest.approx(1, abs=1e-6)


def test_two_files_of_texts_are_read_by_a_model(tiny_folder: Callable[..., Path], capsys: Capture) -> None:
    texts(Path("a.txt"), seed=1, count=6)
    Path("b.json").write_text(
        json.dumps({"name": "b", "prompts": [{"id": i, "text": f"it rained {i} times"} for i in range(6)]})
    )
    model = tiny_folder("llama")
    asked = f"vectors fit --positive a.txt --negative b.json --model {model} --device cpu --layer 0,2 --name rain"
    out, err = run(capsys, f"{asked} --method mean_diff --output made --png made/quality.png")
    assert out.startswith("rain: 6 positive and 6 negative examples, resid_post\n\nmean_diff\nlayer")
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["L0", "L2"]
    assert err.splitlines()[-1].startswith("wrote made/mean_diff.safetensors; next: traceformer project RUN --vector")
    with Image.open("made/quality.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    # The same by hand: the difference of the means over texts of the means over tokens.
    for name in ("a.txt", "b.txt"):
        if name == "b.txt":
            Path(name).write_text("".join(f"it rained {i} times\n" for i in range(6)))
        line = f"extract --model {model} --dataset {name} --capture resid_post --dtype float32 --device cpu --limit all"
        run(capsys, f"{line} --out_dir traces/{name[0]}")
    means = [
        np.mean([store.get(eid, "resid_post", 2).mean(axis=0) for eid in store.ids], axis=0)
        for store in (TraceStore("traces/a"), TraceStore("traces/b"))
    ]
    expected = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    np.testing.assert_allclose(load_file("made/mean_diff.safetensors")["layer_2"], expected, atol=1e-5)
    assert not list(Path(".").glob("traces/*vectors*"))

    shown, _ = run(capsys, "vectors show made/mean_diff.safetensors")
    assert shown.startswith(f"rain: 2 vectors, {WIDTH} wide\n")
    assert "positive: a.txt" in shown
    told = json.loads(run(capsys, "vectors show made/mean_diff.safetensors --json")[0])
    assert (told["name"], told["method"], told["site"]) == ("rain", "mean_diff", "resid_post")
    assert told["norms"] == {"0": pytest.approx(1), "2": pytest.approx(1)}


@pytest.fixture(scope="module")
def four_runs(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts, and of runs of them: a and b, less of them, and another model's."""
    folder = tmp_path_factory.mktemp("four")
    for name, family, seed, count in (
        ("a", "gpt2", 1, 6),
        ("b", "gpt2", 2, 6),
        ("less", "gpt2", 3, 4),
        ("other", "llama", 2, 6),
    ):
        loaded = load_model(str(tiny_folder(family)), device="cpu")
        record(loaded, texts(folder / f"{name}.txt", seed, count), "resid_post", out=folder / "traces" / name)
    return folder


def test_the_runs_of_a_folder_count_as_one(four_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(four_runs)
    both = Path("both")
    for name in ("b", "less"):
        shutil.copytree(Path("traces") / name, both / name)
    told = json.loads(run(capsys, "vectors fit --positive a --negative both --layer 1 --output found --json")[0])
    assert told["vectors"][0]["examples"] == [6, 10]
    means = [
        np.mean([one.get(i, "resid_post", 1).mean(axis=0, dtype=float) for one in kind for i in range(one.n)], axis=0)
        for kind in ([Run("traces/a")], [Run("both/b"), Run("both/less")])
    ]
    expected = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    found = read_direction(Path(told["vectors"][0]["file"])).by_layer[1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--positive a.txt --negative b", 2, "--model MODEL, to record the texts"),
        ("--positive nowhere --negative b", 3, "no run 'nowhere'"),
        ("--positive a --negative other", 2, "the runs are of different models"),
        ("--positive a --negative b --layer 3", 2, "the runs hold layers 0, 1, 2 of dec.resid_post"),
        ("--positive a --negative b --site resid_mid", 3, "--capture resid_mid"),
        ("--positive a --negative b --position response", 3, "no responses"),
        ("--positive a --negative a", 2, "they may be the same texts"),
        ("--positive a --negative less --method pca", 2, "there are 6 and 4"),
        ("--positive a --negative b --method ica", 2, "ica"),
        ("--positive a --negative b --png x.txt", 2, "no picture format"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    arguments: str, code: int, message: str, four_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(four_runs)
    assert main(["vectors", "fit", *arguments.split(), "--output", "made"]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert not Path("made").exists()
