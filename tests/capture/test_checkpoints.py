"""The checkpoints of a training: found by their names, recorded over the same tokens, gone on with as a whole."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from tests.capture.trainings import write_checkpoint, write_training
from traceformer.capture import checkpoints as capture
from traceformer.capture.encoding import Encoder
from traceformer.errors import ConfigurationChanged, NotFound, RunExists, SelectionError, Unsupported, UsageError
from traceformer.models.checkpoints import find_checkpoints

TEXTS = ["abcabcab", "xyzzy", "aaaa"]
STEPS = (0, 2, 10)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder: checkpoints of steps 0, 2 and 10 as Hugging Face's Trainer names them."""
    folder = write_training(tmp_path_factory.mktemp("training"), STEPS)
    (folder / "runs").mkdir()
    return folder


@pytest.fixture(scope="module")
def recorded(training: Path, tmp_path_factory: pytest.TempPathFactory) -> tf.TrainingRuns:
    return tf.record_checkpoints(training, TEXTS, out=tmp_path_factory.mktemp("traces") / "steps")


def test_each_run_is_that_of_its_checkpoint(training: Path, recorded: tf.TrainingRuns) -> None:
    assert recorded.steps == STEPS
    for step in STEPS:
        alone = tf.record(str(training / f"checkpoint-{step}"), TEXTS, "attn")
        run = recorded.run(step)
        assert (run.about.step, run.about.model) == (step, str((training / f"checkpoint-{step}").absolute()))
        for example in range(len(TEXTS)):
            assert np.array_equal(run.attn(example), alone.attn(example))
        assert run.table.drop_columns(["shard", "slot"]).equals(alone.table)
    with pytest.raises(SelectionError, match="has steps 0, 2, 10"):
        recorded.run(3)


def test_the_heads_of_the_folder_are_those_of_each_run(recorded: tf.TrainingRuns) -> None:
    curves = tf.heads(recorded.folder)
    assert (curves.steps, len(curves.rows)) == (STEPS, 2)
    for run in recorded:
        alone = tf.heads(run)
        for name, values in alone.values.items():
            assert np.array_equal(curves.at(run.about.step or 0).values[name], values, equal_nan=True)
    assert tf.heads(recorded, limit=1).about.examples == {"dec.self": 1}
    assert repr(curves).startswith(f"HeadCurves({recorded.folder}: 2 heads at 3 steps, 0 to 10, ")


def test_a_recording_that_was_interrupted_goes_on_to_the_same_runs(
    training: Path, recorded: tf.TrainingRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, done = capture.extract, list[int]()

    def once(*args: Any, step: int, **options: Any) -> tf.Run:
        if done:
            raise KeyboardInterrupt
        done.append(step)
        return own(*args, step=step, **options)

    with monkeypatch.context() as patched:
        patched.setattr(capture, "extract", once)
        with pytest.raises(KeyboardInterrupt):
            tf.record_checkpoints(training, TEXTS, out=tmp_path / "steps")
    first = (tmp_path / "steps/step0/manifest.json").stat().st_mtime_ns
    with pytest.raises(RunExists, match="holds runs of checkpoints"):
        tf.record_checkpoints(training, TEXTS, out=tmp_path / "steps")
    runs = tf.record_checkpoints(training, TEXTS, out=tmp_path / "steps", resume=True)
    assert (tmp_path / "steps/step0/manifest.json").stat().st_mtime_ns == first
    assert runs.steps == STEPS
    for step in STEPS:
        for path in (recorded.folder / f"step{step}").rglob("c.*"):
            assert path.read_bytes() == (runs.folder / path.relative_to(recorded.folder)).read_bytes()


def test_what_is_gone_on_with_reads_the_same(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps"
    tf.record_checkpoints([training / "checkpoint-2"], TEXTS, out=out)
    for changed, of in (
        ({"texts": TEXTS[:2]}, "texts and n_texts"),
        ({"capture": "resid"}, "capture"),
        ({"layers": [0]}, "layers"),
    ):
        with pytest.raises(ConfigurationChanged, match=f"begun with another {of}"):
            tf.record_checkpoints(training, changed.pop("texts", TEXTS), out=out, resume=True, **changed)
    with pytest.raises(ConfigurationChanged, match="another checkpoint of step 2"):
        tf.record_checkpoints({2: training / "checkpoint-10"}, TEXTS, out=out, resume=True)
    assert tf.record_checkpoints(training, TEXTS, out=out, resume=True).steps == STEPS  # those that have come since


def test_patterns_of_each_checkpoint_are_by_a_recipe_of_its_own(training: Path, tmp_path: Path) -> None:
    runs = tf.record_checkpoints(training, TEXTS, patterns="recipe", out=tmp_path / "steps")
    assert runs.steps == STEPS
    for step in STEPS:
        alone = tf.record(str(training / f"checkpoint-{step}"), TEXTS, "attn", patterns="recipe")
        run = runs.run(step)
        assert run.layout.recipes == alone.layout.recipes
        assert run.layout.recipes
        for example in range(len(TEXTS)):
            assert np.array_equal(run.attn(example), alone.attn(example))
    curves = tf.heads(runs.folder)
    for name, values in tf.heads(runs.run(10)).values.items():
        assert np.array_equal(curves.at(10).values[name], values, equal_nan=True)


@pytest.mark.parametrize(
    ("how", "changed"),
    [({"patterns": "recipe"}, "patterns"), ({"capture": "resid", "rows_codec": "q8"}, "rows_codec")],
)
def test_runs_of_a_training_are_all_stored_in_one_way(
    how: dict[str, Any], changed: str, training: Path, tmp_path: Path
) -> None:
    begun, plain = tmp_path / "begun", tmp_path / "plain"
    asked, usual = [training / "checkpoint-2"], {name: value for name, value in how.items() if name != changed}
    tf.record_checkpoints(asked, TEXTS, out=begun, **how)
    tf.record_checkpoints(asked, TEXTS, out=plain, **usual)
    for out, other in ((begun, usual), (plain, how)):
        with pytest.raises(ConfigurationChanged, match=f"begun with another {changed}"):
            tf.record_checkpoints(training, TEXTS, out=out, resume=True, **other)
    assert tf.record_checkpoints(training, TEXTS, out=begun, resume=True, **how).steps == STEPS


def test_runs_that_are_replaced_are_none_to_go_on_with(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps"
    tf.record_checkpoints({0: training / "checkpoint-2", 7: training / "checkpoint-2"}, TEXTS, out=out)
    with pytest.raises(ConfigurationChanged, match=r"step7 stays, and has another texts"):
        tf.record_checkpoints({0: training / "checkpoint-10"}, TEXTS[:1], out=out, overwrite=True)
    again = tf.record_checkpoints({0: training / "checkpoint-10"}, TEXTS, out=out, overwrite=True)
    assert [each.model for each in again.all] == [str(training / "checkpoint-10"), str(training / "checkpoint-2")]


def test_texts_are_encoded_once(training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, own = list[int](), Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts, *rest: calls.append(len(texts)) or own(self, texts, *rest)
    )
    tf.record_checkpoints([training / "checkpoint-0"], TEXTS, out=tmp_path / "one")
    alone = len(calls)
    tf.record_checkpoints(training, TEXTS, out=tmp_path / "three")
    assert alone > 0
    assert len(calls) == 2 * alone


def test_checkpoints_of_other_sizes_or_another_tokenizer_are_refused(training: Path, tmp_path: Path) -> None:
    large = write_checkpoint(tmp_path / "step-3", 0, num_hidden_layers=2)
    with pytest.raises(Unsupported, match="have not the same sizes"):
        tf.record_checkpoints([training / "checkpoint-2", large], TEXTS, out=tmp_path / "steps")
    bare = write_checkpoint(tmp_path / "step-4", 0, tokenizer=False)
    with pytest.raises((Unsupported, UsageError), match="tokenizer"):
        tf.record_checkpoints([training / "checkpoint-2", bare], TEXTS, out=tmp_path / "others")


def test_what_is_refused_leaves_nothing_behind(training: Path, tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"layers": [99]},
        {"capture": "heads", "attn_codec": "sqrt8"},
        {"out": "s3://bucket/steps"},
    )
    for changed in changes:
        given: dict[str, Any] = {"out": tmp_path / "steps", **changed}
        with pytest.raises(UsageError):
            tf.record_checkpoints(training, TEXTS, **given)
        assert [*tmp_path.iterdir()] == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UsageError):
        tf.record_checkpoints(training, TEXTS, layers=[99], out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step1000", 1000),
        ("step1000-tokens4B", 1000),
        ("global_step7", 7),
        ("iter_0000100", 100),
        ("v3", 3),
        ("stage1-step700", 700),
    ],
)
def test_a_name_tells_its_step(name: str, step: int) -> None:
    [found] = find_checkpoints([name], model="some/model")
    assert (found.step, found.source, found.revision, str(found)) == (step, "some/model", name, f"some/model {name}")


@pytest.mark.parametrize("name", ["main", "7b-run3"])
def test_a_name_that_tells_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"of which step is {name!r}"):
        find_checkpoints([name], model="some/model")
    [found] = find_checkpoints({5: name}, model="some/model")
    assert found.step == 5


def test_checkpoints_are_found_where_trainings_put_them(training: Path, tmp_path: Path) -> None:
    for inside in ("checkpoints", "steps"):  # the models that were kept go before those of the Trainer
        shutil.copytree(training / "checkpoint-2", tmp_path / "model" / inside / "checkpoint-2")
        [found] = find_checkpoints(tmp_path / "model")
        assert Path(found.source).parent.name == inside
    with pytest.raises(NotFound, match="no checkpoints in"):
        find_checkpoints(training / "checkpoint-0")
    with pytest.raises(NotFound, match="no folder"):
        find_checkpoints(tmp_path / "nothing")
    with pytest.raises(UsageError, match="two checkpoints of step 2"):
        find_checkpoints([training / "checkpoint-2", tmp_path / "model/steps/checkpoint-2"])


def test_the_tokenizer_of_a_training_is_that_of_its_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", 1)
    write_checkpoint(tmp_path / "model/checkpoints/checkpoint-4", 0, tokenizer=False)
    [found] = find_checkpoints(tmp_path / "model")
    assert found.tokenizer == tmp_path / "model"
    assert found.load(device="cpu").tokenizer("ab")["input_ids"] == [97, 98]


def test_checkpoints_of_nanochat_are_found_by_name_and_by_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base_checkpoints/d2"
    folder.mkdir(parents=True)
    for step in (100, 20):
        (folder / f"model_{step:06d}.pt").touch()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for of in ("nanochat:base:d2", folder, "nanochat:base"):
        assert [(each.step, str(each)) for each in find_checkpoints(of)] == [
            (20, "nanochat:base:d2:20"),
            (100, "nanochat:base:d2:100"),
        ]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises((NotFound, UsageError)):
        find_checkpoints(folder)


def test_runs_of_other_texts_are_not_put_along_one_axis(
    recorded: tf.TrainingRuns, training: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded.folder, tmp_path / "steps")
    shutil.rmtree(tmp_path / "steps/step2")
    other = tf.record_checkpoints([training / "checkpoint-2"], TEXTS[:2], out=tmp_path / "other")
    shutil.copytree(other.folder / "step2", tmp_path / "steps/step2")
    with pytest.raises(UsageError, match="steps 0 and 2 cannot be compared"):
        tf.heads(tmp_path / "steps")


def test_what_a_folder_of_checkpoints_says_of_itself(recorded: tf.TrainingRuns, tmp_path: Path) -> None:
    assert repr(recorded) == f"TrainingRuns('{recorded.folder}': 3 steps, 0 to 10)"
    frame = recorded.to_frame()
    assert (list(frame.step), list(frame.run)) == ([0, 2, 10], ["step0", "step2", "step10"])
    assert recorded.to_json()["steps"] == [0, 2, 10]
    with pytest.raises(NotFound, match="no checkpoints in"):
        tf.open_checkpoints(tmp_path)
    with pytest.raises(NotFound, match=re.escape("no folder nowhere")):
        tf.open_checkpoints("nowhere")
