"""What is given in the place of a number, a site, a run or a noun is refused in words, whatever its type."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

import traceformer as tf
from traceformer.errors import TraceformerError, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run

PAIR: dict[str, Any] = {"clean": "abXd", "corrupt": "abZd", "answer": "s", "wrong": "Z"}
VECTOR = np.ones(256, np.float32)
TRAIT = tf.Direction("x", {1: VECTOR})
Ask = Callable[[LoadedModel, Run], Any]

WRONG: dict[str, tuple[Ask, str]] = {
    "a layer that is no whole number": (lambda m, r: tf.edits.zero("z", 1.5), "1.5 names no numbers"),
    "layers that are none": (lambda m, r: tf.record(m, ["a"], layers=[1.5]), "names no numbers"),
    "a mask of heads": (lambda m, r: tf.edits.zero("z", 1, [True, False]), "names no numbers"),
    "a layer that is an array of fractions": (lambda m, r: tf.edits.zero("z", np.array([0.5])), "names no numbers"),
    "no site": (lambda m, r: tf.edits.zero(None), "None is no site"),
    "no site of a sweep": (lambda m, r: tf.patch(m, **PAIR, site=None), "`site=None`; text"),
    "a slice that does not move": (lambda m, r: tf.edits.zero("z", 1, position=slice(0, 4, 0)), r"position=slice\(0"),
    "a slice of words": (lambda m, r: tf.edits.zero("z", 1, position=slice("a", "b")), "`position=slice"),
    "a fraction as position": (lambda m, r: tf.edits.zero("z", 1, position=np.array(1.5)), "a list of numbers"),
    "bytes as position": (lambda m, r: tf.edits.zero("z", 1, position=b"ab"), "a list of numbers"),
    "no source example": (lambda m, r: tf.edits.patch("resid_pre", 1, r, source_example=None), "None names no example"),
    "half an example": (lambda m, r: r.attn(1.5, 0, 0), "1.5 names no example"),
    "a seed": (lambda m, r: tf.edits.resample("z", 1, r, seed="x"), "`seed='x'`; a whole number, 0 or more"),
    "a negative seed": (lambda m, r: tf.edits.resample("z", 1, r, seed=-1), "`seed=-1`"),
    "no run": (lambda m, r: tf.edits.mean("z", 1, "run"), "str where a Run is wanted"),
    "a scale": (lambda m, r: tf.edits.scale("z", 1, "2"), "`by='2'`; a finite number"),
    "a bare vector to steer by": (lambda m, r: tf.edits.steer(VECTOR, 1), "ndarray is no direction"),
    "a bare vector as a dose": (lambda m, r: tf.dose(m, ["a"], VECTOR, [1]), "ndarray is no direction"),
    "one scale that is no list": (lambda m, r: tf.dose(m, ["a"], TRAIT, 5), "`scales=5`"),
    "scales of words": (lambda m, r: tf.dose(m, ["a"], TRAIT, ["x"]), "`scale='x'`"),
    "heads by source that are none": (lambda m, r: tf.attribute(m, "ab", by_source=3), "`by_source=3`"),
    "a head by source of no layer": (lambda m, r: tf.attribute(m, "ab", by_source="H1"), "no head 'H1'"),
    "a position of an attribution": (lambda m, r: tf.attribute(m, "ab", position=1.5), "`position=1.5`"),
    "no position of an attribution": (lambda m, r: tf.attribute(m, "ab", position=None), "`position=None`"),
    "a metric's position": (lambda m, r: tf.patch(m, **PAIR, metric_position=1.5), "`metric_position=1.5`"),
    "no metric's position": (lambda m, r: tf.edges(m, **PAIR, metric_position=None), "`metric_position=None`"),
    "a batch": (lambda m, r: tf.patch(m, **PAIR, batch_size=1.5), "`batch_size=1.5`; a whole number"),
    "steps": (lambda m, r: tf.edges(m, **PAIR, steps="2"), "`steps='2'`"),
    "draws": (lambda m, r: tf.ablate(m, ["ab"], draws=0.5), "`draws=0.5`"),
    "an axis": (lambda m, r: tf.patch(m, **PAIR, over=3), "`over=3`; a list"),
    "pairs": (lambda m, r: tf.patch(m, pairs=3), "`pairs=3`; "),
    "measured heads": (lambda m, r: tf.circuits(m, measured=3), "int where a HeadMetrics is wanted; what heads gave"),
}


@pytest.fixture
def as_users_have_it() -> Generator[None]:
    """Annotations are not checked, as they are in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_type_is_refused_in_words(what: str, byte: LoadedModel, run: Run) -> None:
    ask, said = WRONG[what]
    with pytest.raises(UsageError, match=said):
        ask(byte, run)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("name", [name for name in tf.figures.__all__ if name != "theme"])
def test_a_figure_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(TraceformerError, match=r"int where an? \w+ is wanted; what \w+"):
        getattr(tf.figures, name)(3)


@pytest.mark.usefixtures("as_users_have_it")
def test_numbers_of_numpy_are_numbers(byte: LoadedModel, run: Run) -> None:
    made = tf.edits.zero("z", np.int64(1), np.array([2, 3]), np.array(4))
    assert (made.layers, made.heads, made.position) == ((1,), (2, 3), 4)
    assert tf.edits.resample("z", 1, run, seed=np.int64(3)).to_json()["seed"] == 3
    assert run.example_id(np.int64(1)) == run.ids[1]


def test_an_edit_that_no_pass_could_make_is_refused_before_a_folder_is_begun(
    byte: LoadedModel, run: Run, tmp_path: Path
) -> None:
    d_head = byte.dims.stacks["dec"].d_head
    without = tf.record(byte, ["abc"], "z", layers=[0], heads=[1], dtype="float32")
    refused: list[Callable[[], tf.edits.Edit]] = [
        lambda: tf.edits.steer(tf.Direction("narrow", {1: np.ones(7, np.float32)}), 1),
        lambda: tf.edits.add("z", 1, np.ones(d_head + 1)),
        lambda: tf.edits.project_out("resid_post", None, np.ones((2, 9))),
        lambda: tf.edits.patch("resid_pre", 1, np.ones((3, 5))),
        lambda: tf.edits.patch("z", 1, without),
        lambda: tf.edits.patch("z", 0, without, 2),
        lambda: tf.edits.mean("mlp_out", 1, run),
        lambda: tf.edits.mean("attn_pattern", 1, run),
        lambda: tf.edits.zero("resid_pre", 1, position=[True, False]),
        lambda: tf.edits.zero("resid_pre", 1, position=-99),
        lambda: tf.edits.zero("resid_pre", 1, position="nowhere"),
        lambda: tf.edits.cut(1, key=-99),
        lambda: tf.edits.zero("resid_pre", 1, example=3),
    ]
    for make in refused:
        with pytest.raises(TraceformerError), tf.edit(byte, make()):
            tf.generate(byte, ["If the argument"], max_tokens=2, out=tmp_path / "run")
        with pytest.raises(TraceformerError), tf.edit(byte, make()):
            tf.record(byte, ["If the argument"], out=tmp_path / "run")
    with pytest.raises(TraceformerError), tf.edit(byte, tf.edits.zero("resid_pre", 1, position=500)):
        tf.record(byte, ["If the argument"], out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
