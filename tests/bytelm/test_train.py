"""Training: windows, schedule, measure, and that a training that was interrupted is the one that was not."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import traceformer.bytelm  # noqa: F401  registers the sparse model
from traceformer.bytelm.checkpoints import prepare_folder
from traceformer.bytelm.corpus import Span, open_corpus
from traceformer.bytelm.kept_steps import steps_to_keep
from traceformer.bytelm.outcome import Outcome, curves_figure
from traceformer.bytelm.presets import build_config
from traceformer.bytelm.settings import TrainSettings
from traceformer.bytelm.train import Progress, learning_rate_factor, train
from traceformer.bytelm.windows import Windows, bits_and_bytes
from traceformer.errors import ConfigurationChanged, NotFound, RunExists, Unreadable, UsageError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 kB of words: 140 windows of 128 bytes to train on."""
    path = tmp_path_factory.mktemp("data") / "words.txt"
    words = ["layer", "head", "query", "key", "value", "token", "byte", "window", "column", "position"]
    path.write_text(" ".join(random.Random(0).choices(words, k=3600)))
    return path


@pytest.fixture
def quick(text: Path) -> TrainSettings:
    return TrainSettings(preset="tiny", data=str(text), num_epochs=0.6, batch_size=4, evaluations=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Outcome]:
    settings = TrainSettings(
        preset="tiny", data=str(text), num_epochs=1.5, batch_size=8, evaluations=4, learning_rate=3e-3
    )
    folder = tmp_path_factory.mktemp("model") / "m"
    return settings, train(settings, folder, device="cpu", dtype="float16", command="the command")


def span(n: int, seed: int = 0) -> Span:
    return Span(np.random.default_rng(seed).integers(0, 256, n).astype(np.uint8), np.array([0, n // 2, n - 1]))


def test_windows_predict_every_token_but_the_first_once() -> None:
    text = span(1000)
    windows = Windows(text, 32)
    predicted = torch.cat([windows[i]["labels"][1:] for i in range(len(windows))])
    begin = next(i for i in range(31) if text.tokens(i, i + 32).tolist() == windows[0]["input_ids"].tolist())
    assert predicted.tolist() == text.tokens(begin + 1, begin + 1 + len(predicted)).tolist()
    assert len(text) - len(predicted) < 2 * 32


def test_epochs_cut_at_other_places_that_follow_from_the_seed() -> None:
    text = span(5000)

    def begins(seed: int) -> list[tuple[int, ...]]:
        windows, found = Windows(text, 32, seed=seed), []
        for epoch in range(12):
            windows.move_to(epoch)
            assert len(windows[len(windows) - 1]["input_ids"]) == 32
            found.append(tuple(windows[0]["input_ids"].tolist()))
        return found

    assert begins(0) == begins(0) != begins(1)
    assert len(set(begins(0))) > 6


def test_a_share_of_the_windows_repeat_a_few_different_bytes_of_theirs() -> None:
    text = span(40_000)
    plain, repeating = Windows(text, 64), Windows(text, 64, repeats=0.4)
    periods: list[int] = []
    for index in range(len(plain)):
        before, after = plain[index]["input_ids"].tolist(), repeating[index]["input_ids"].tolist()
        if before == after:
            continue
        period = len(set(after))
        assert after[period:] == after[:-period]
        assert set(after) <= set(before)
        periods.append(period)
    assert len(periods) / len(plain) == pytest.approx(0.4, abs=0.05)
    assert min(periods) >= 4
    assert max(periods) <= 32
    assert len(set(periods)) > 10


def test_text_shorter_than_two_windows_is_refused() -> None:
    with pytest.raises(UsageError, match="less than two windows of 32"):
        Windows(span(60), 32)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (60, 0.55), (110, 0.1), (111, 0.1), (160, 0.1), (5000, 0.1)],
)
def test_the_learning_rate_rises_falls_and_stays_at_its_floor(step: int, factor: float) -> None:
    assert learning_rate_factor(step, warmup=10, total=110, floor=0.1) == pytest.approx(factor)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary() -> None:
    model = AutoModelForCausalLM.from_config(build_config("tiny", "dense"))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    text = span(1000)
    bits, n_bytes = bits_and_bytes(model, text, length=100, batch_size=3)
    assert n_bytes == text.n_bytes
    assert bits == pytest.approx(999 * math.log2(258), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_bits_are_those_of_each_token_after_the_ones_before_it_in_its_window(batch_size: int) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build_config("tiny", "dense", initializer_range=0.2)).eval()
    text = span(150)
    ids = torch.from_numpy(text.tokens(0, 150))
    expected = 0.0
    for position in range(1, 150):
        begin = (position - 1) // 31 * 31
        with torch.no_grad():
            logits = model(ids[None, begin:position]).logits[0, -1]
        expected -= float(logits.log_softmax(-1)[ids[position]]) / math.log(2)
    parts = [bits_and_bytes(model, text, length=32, batch_size=batch_size, part=(k, 2)) for k in range(2)]
    assert sum(bits for bits, _ in parts) == pytest.approx(expected, rel=1e-5)
    assert sum(n_bytes for _, n_bytes in parts) == text.n_bytes


def test_training_learns_and_reports_the_figures_of_the_saved_weights(trained: tuple[TrainSettings, Outcome]) -> None:
    settings, outcome = trained
    assert outcome.validation.model < 4.5 < 6 < outcome.train_curve[0][1]
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    assert model.dtype == torch.float16
    corpus = open_corpus(settings.data)
    for text, figures in ((corpus.validation, outcome.validation), (corpus.test, outcome.test)):
        bits, n_bytes = bits_and_bytes(model.float(), text, length=128, batch_size=2)
        assert figures is not None
        assert figures.model == pytest.approx(bits / n_bytes, rel=1e-5)
    assert outcome.parameters == sum(weight.numel() for weight in model.parameters())


def test_the_folder_holds_a_model_its_tokenizer_and_what_made_them(trained: tuple[TrainSettings, Outcome]) -> None:
    settings, outcome = trained
    tokenizer = AutoTokenizer.from_pretrained(outcome.folder)
    assert tokenizer("né").input_ids == [0x6E, 0xC3, 0xA9]
    written = json.loads((outcome.folder / "training.json").read_text())
    assert written["settings"]["seed"] == settings.seed
    assert written["outcome"]["validation"]["model"] == outcome.validation.model
    card = (outcome.folder / "README.md").read_text()
    for fact in ("the command", "seed 42", f"{outcome.validation.model:.3f}", f"{outcome.validation.xz:.3f}"):
        assert fact in card
    assert (outcome.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_loss_curve_shows_every_validation_point_of_a_short_training(
    trained: tuple[TrainSettings, Outcome],
) -> None:
    bad = replace(trained[1], validation_curve=[(1, 7.9), (2, 6.5)])
    [axes] = curves_figure(bad).axes
    low, high = axes.get_ylim()
    assert low < min(bad.validation.model, bad.validation.xz)
    assert high > 7.9


def test_the_same_settings_give_the_same_loss_curve(trained: tuple[TrainSettings, Outcome], tmp_path: Path) -> None:
    settings, outcome = trained
    assert train(settings, tmp_path / "again", device="cpu").train_curve == outcome.train_curve


def test_an_interrupted_training_goes_on_to_the_same_loss_curve(
    trained: tuple[TrainSettings, Outcome], tmp_path: Path
) -> None:
    settings, outcome = trained

    def stop(progress: Progress) -> None:
        if progress.step == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "m", device="cpu", show=stop)
    newest = max(int(path.name.partition("-")[2]) for path in (tmp_path / "m/checkpoints").glob("checkpoint-*"))
    assert newest == 21  # the second epoch began after step 20
    # What a kill in the middle of writing leaves behind.
    shutil.copytree(tmp_path / "m/checkpoints/checkpoint-21", tmp_path / "m/checkpoints/checkpoint-28")
    (tmp_path / "m/checkpoints/checkpoint-28/trainer_state.json").write_text('{"global_step": 2')
    seen: list[int] = []
    resumed = train(settings, tmp_path / "m", device="cpu", resume=True, show=lambda p: seen.append(p.step))
    assert min(seen) == 22
    assert resumed.train_curve == outcome.train_curve
    assert resumed.validation_curve == outcome.validation_curve


def test_only_the_settings_it_was_begun_with_go_on(trained: tuple[TrainSettings, Outcome]) -> None:
    settings, outcome = trained
    with pytest.raises(ConfigurationChanged, match=r"learning_rate was 0.003, not 0.1; seed was 42, not 7"):
        train(replace(settings, learning_rate=0.1, seed=7), outcome.folder, resume=True, device="cpu")


def test_a_folder_that_is_not_empty_is_left_alone(trained: tuple[TrainSettings, Outcome]) -> None:
    settings, outcome = trained
    with pytest.raises(RunExists, match="`resume=True` goes on with it"):
        train(settings, outcome.folder, device="cpu")


def test_a_checkpoint_of_another_architecture_is_refused_by_its_keys(quick: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(quick, tmp_path / "m", device="cpu", show=_stop_after(20))
    weights = next((tmp_path / "m/checkpoints").glob("checkpoint-*"))
    other = AutoModelForCausalLM.from_config(
        build_config("tiny", "dense", num_hidden_layers=1, hidden_size=64, attention_bias=True)
    )
    other.save_pretrained(weights)
    with pytest.raises(ConfigurationChanged) as caught:
        train(quick, tmp_path / "m", device="cpu", resume=True)
    assert "missing: model.layers.1.input_layernorm.weight" in str(caught.value)
    assert "unexpected: model.layers.0.self_attn.k_proj.bias" in str(caught.value)


def _stop_after(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step >= step:
            raise KeyboardInterrupt

    return stop


def test_training_stops_early_when_nothing_gets_better(quick: TrainSettings, tmp_path: Path) -> None:
    settings = replace(quick, learning_rate=1e-30, patience=2, evaluations=10)
    outcome = train(settings, tmp_path / "m", device="cpu")
    assert len(outcome.validation_curve) == 3
    assert outcome.steps < 24


def test_training_can_begin_with_the_weights_of_a_model(
    trained: tuple[TrainSettings, Outcome], quick: TrainSettings, tmp_path: Path
) -> None:
    first = train(replace(quick, init=str(trained[1].folder), repeats=0.2), tmp_path / "m", device="cpu")
    assert first.train_curve[0][1] < 5 < trained[1].train_curve[0][1]
    with pytest.raises(ConfigurationChanged, match=r"of another shape: model\.embed_tokens\.weight"):
        train(replace(quick, preset="small", init=str(trained[1].folder)), tmp_path / "n", device="cpu")
    with pytest.raises(NotFound, match="`init` takes the folder of a trained model"):
        train(replace(quick, init=str(tmp_path)), tmp_path / "o", device="cpu")


def test_accumulated_batches_take_the_steps_of_one_large_batch(
    trained: tuple[TrainSettings, Outcome], tmp_path: Path
) -> None:
    settings, outcome = trained
    halves = train(replace(settings, batch_size=4, accumulation=2), tmp_path / "m", device="cpu")
    np.testing.assert_allclose(halves.train_curve, outcome.train_curve, rtol=1e-3)
    assert halves.bytes_read == outcome.bytes_read


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"attention": "sparse"}, {"split": "thesis"}])
def test_it_trains_in_other_ways(change: dict[str, str], quick: TrainSettings, tmp_path: Path) -> None:
    outcome = train(replace(quick, **change), tmp_path / "m", device="cpu")  # pyright: ignore[reportArgumentType]
    assert outcome.validation.model < 5
    assert (outcome.test is None) == (change.get("split") == "thesis")
    saved = AutoModelForCausalLM.from_pretrained(outcome.folder)
    assert saved.config.model_type == ("byte_sparse" if change.get("attention") == "sparse" else "llama")


def test_adamw_decays_matrices_and_nothing_else(quick: TrainSettings, tmp_path: Path) -> None:
    """With next to no gradient, one step at 1e-4 with a decay of 1000 takes a tenth of what is decayed."""
    settings = replace(quick, num_epochs=0.001, learning_rate=1e-4, weight_decay=1000.0, warmup=0, grad_clip=1e-12)
    outcome = train(settings, tmp_path / "m", device="cpu")
    assert outcome.steps == 1
    set_seed(settings.seed)
    before = AutoModelForCausalLM.from_config(build_config("tiny", "dense")).state_dict()
    after = AutoModelForCausalLM.from_pretrained(outcome.folder).state_dict()
    for name, weight in after.items():
        kept = 0.9 if weight.ndim == 2 else 1.0
        torch.testing.assert_close(weight, kept * before[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_length": 256}, "windows of 256 do not fit the preset 'tiny'; its context is 128"),
        ({"num_epochs": 0}, "`num_epochs` cannot be 0"),
        ({"learning_rate": math.nan}, "`learning_rate` cannot be nan"),
        ({"batch_size": -1}, "`batch_size` cannot be -1"),
        ({"floor": 2.0}, "`floor` cannot be 2.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    changes: dict[str, float], words: str, quick: TrainSettings, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        train(replace(quick, **changes), tmp_path / "m", device="cpu")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "m").exists()


def test_a_reporter_that_is_not_installed_is_named(
    quick: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UsageError, match="pip install trackio"):
        train(quick, tmp_path / "m", report_to="trackio", device="cpu")


def _command(folder: Path, text: Path, *more: str) -> list[str]:
    flags = f"--preset tiny --data {text} --num_epochs 2 --batch_size 4 --evaluations 9 --device cpu --out_dir {folder}"
    return [sys.executable, "-c", "from traceformer.cli import main; main()", "train", *flags.split(), *more]


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_loss_curve(text: Path, tmp_path: Path) -> None:
    subprocess.run(_command(tmp_path / "whole", text), check=True, capture_output=True)
    process = subprocess.Popen(
        _command(tmp_path / "killed", text), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/model.safetensors").exists()
    subprocess.run(_command(tmp_path / "killed", text, "--resume"), check=True, capture_output=True)
    curves = [
        json.loads((tmp_path / name / "training.json").read_text())["outcome"]["train_curve"]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_train_one_model(text: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*launcher, *_command(tmp_path / "m", text)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "m")
    outcome = json.loads((tmp_path / "m/training.json").read_text())["outcome"]
    corpus = open_corpus(str(text))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    bits, n_bytes = bits_and_bytes(model, corpus.validation, length=128, batch_size=4)
    assert outcome["validation"]["model"] == pytest.approx(bits / n_bytes, rel=1e-5)
    assert outcome["bytes_read"] == outcome["steps"] * 2 * 4 * 127


@pytest.mark.parametrize("there", ["notes.txt", "checkpoints/checkpoint-5/model.safetensors", "meta.json"])
def test_only_a_training_is_begun_again(there: str, tmp_path: Path) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("somebody's")
    with pytest.raises(RunExists, match="no training's"):
        prepare_folder(tmp_path, {"seed": 1}, resume=False, overwrite=True)
    assert (tmp_path / there).read_text() == "somebody's"


def test_what_lies_beside_checkpoints_stays(tmp_path: Path) -> None:
    prepare_folder(tmp_path, {"seed": 1}, resume=False, overwrite=False)
    (tmp_path / "checkpoints/checkpoint-5").mkdir()
    (tmp_path / "checkpoints/notes.txt").write_text("mine")
    prepare_folder(tmp_path, {"seed": 2}, resume=False, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["notes.txt", "settings.json"]
    (tmp_path / "checkpoints/settings.json").write_text("[" * 100_000)
    with pytest.raises(Unreadable, match=r"settings\.json is not JSON"):
        prepare_folder(tmp_path, {"seed": 2}, resume=True, overwrite=False)


def test_models_of_chosen_steps_are_kept_and_load_by_themselves(quick: TrainSettings, tmp_path: Path) -> None:
    outcome = train(quick, tmp_path / "m", device="cpu", keep_steps=(0, 3, 5))
    plain = train(quick, tmp_path / "plain", device="cpu")
    assert outcome.train_curve == plain.train_curve
    kept = sorted((tmp_path / "m/steps").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    assert [path.name for path in kept] == ["checkpoint-0", "checkpoint-3", "checkpoint-5"]
    set_seed(quick.seed)
    random_model = AutoModelForCausalLM.from_config(build_config("tiny", "dense"))
    first, third = (AutoModelForCausalLM.from_pretrained(path) for path in kept[:2])
    for name, weight in random_model.state_dict().items():
        assert torch.equal(first.state_dict()[name], weight)
    assert not torch.equal(third.state_dict()["model.norm.weight"], random_model.state_dict()["model.norm.weight"])
    assert AutoTokenizer.from_pretrained(kept[2])("ab")["input_ids"] == [97, 98]
    with pytest.raises(UsageError, match="step 1000 cannot be kept"):
        train(quick, tmp_path / "other", device="cpu", keep_steps=(1000,))
    with pytest.raises(NotFound):
        train(replace(quick, init=str(tmp_path / "nowhere")), tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("asked", "last", "kept"),
    [
        ("log", 1, (0, 1)),
        ("log", 9, (0, 1, 2, 4, 8, 9)),
        ("log", 8, (0, 1, 2, 4, 8)),
        ((3, 0, 3), 4, (0, 3)),
        ((), 4, ()),
    ],
)
def test_steps_to_keep(asked: tuple[int, ...] | Literal["log"], last: int, kept: tuple[int, ...]) -> None:
    assert steps_to_keep(asked, last) == kept
