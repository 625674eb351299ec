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


def measured(run: Run) -> Any:
    return tf.heads(run)


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
    "a run in the place of its heads": (
        lambda m, r: tf.cluster(r),
        "Run where metrics of heads are wanted; what heads",
    ),
    "runs by name in their place": (lambda m, r: tf.cluster({"a": r}), "Run where metrics of heads are wanted"),
    "a table's frame": (lambda m, r: tf.cluster(measured(r).to_frame()), "DataFrame where metrics of heads are wanted"),
    "no table at all": (lambda m, r: tf.cluster([]), "nothing where metrics of heads are wanted"),
    "a table's name": (lambda m, r: tf.cluster({1: measured(r)}), "a table is called 1"),
    "words for how many clusters": (lambda m, r: tf.cluster(measured(r), k=["x"]), "`k='x'`; a whole number"),
    "no number of clusters": (lambda m, r: tf.cluster(measured(r), k=[]), "`k=.*; a whole number, or several"),
    "no way to cluster": (lambda m, r: tf.cluster(measured(r), method="x"), "no method 'x'; ward or kmeans or gmm"),
    "no chart": (lambda m, r: tf.figures.clusters(tf.cluster(measured(r)), "x"), "no chart 'x'; scores or "),
    "a chart's place": (lambda m, r: tf.figures.clusters(tf.cluster(measured(r)), ax=3), "int where an Axes is wanted"),
    "a picture's place": (lambda m, r: tf.figures.heads(measured(r), figure=3), "int where a FigureBase is wanted"),
    "a table's file": (lambda m, r: measured(r).write(3), "`path=3`; text or a path"),
    "a run in the place of its model": (
        lambda m, r: tf.lens(r, 0, model=r),
        "Run where a LoadedModel is wanted; a folder",
    ),
    "no model of a fit": (lambda m, r: tf.fit_lens(r, model=3), "int where a LoadedModel is wanted; a folder"),
    "no model of an attribution": (lambda m, r: tf.attribute(r, 0, model=3), "int where a LoadedModel is wanted"),
    "no words of a lens": (lambda m, r: tf.lens(r, 0, top_k=0), "`top_k=0`; a whole number, 1 or more"),
    "effects that are none": (lambda m, r: tf.roles(m, ["abab"], ablation=3), "int where an Effects is wanted"),
    "no direction to project on": (lambda m, r: tf.project(r, 3), "int is no direction"),
    "a layer of paths": (lambda m, r: tf.paths(r, 0, layer="x"), "`layer='x'`; a whole number, or \"all\""),
    "paths of words": (lambda m, r: tf.paths(r, 0, top_beam="2"), "`top_beam='2'`; a whole number, 1 or more"),
    "a weight of words": (lambda m, r: tf.paths(r, 0, min_attn="x"), "`min_attn='x'`; a finite number"),
    "a norm of lengths": (lambda m, r: tf.paths(r, 0, length_norm=3), "no length norm 3; none, avg_logprob"),
    "no texts to measure on": (lambda m, r: tf.heads(m, 3), "`texts`: int; a list of texts"),
    "no prompt": (lambda m, r: tf.generate(m, 3), "`prompts`: int; text"),
    "nothing to capture": (lambda m, r: tf.record(m, ["a"], 3), "`capture=3`; names of sites or groups"),
    "heads of no stack": (lambda m, r: tf.record(m, ["a"], heads={"a": 1}), 'no stack \'a\'; "enc" or "dec"'),
    "a batch of words": (
        lambda m, r: tf.record(m, ["a"], batch_tokens="x"),
        "`batch_tokens='x'`; a whole number, 1 or",
    ),
    "a model for its checkpoint": (
        lambda m, r: tf.record_checkpoints({1: m}, ["a"], out="x"),
        "LoadedModel names no checkpoint; its folder",
    ),
    "a checkpoint's step": (
        lambda m, r: tf.record_checkpoints({"x": "y"}, ["a"], out="x"),
        "`step='x'`; a whole number",
    ),
    "a run to open": (lambda m, r: tf.open_run(r), "Run names no place; text or a path"),
    "nothing to view": (lambda m, r: tf.view(3), "int where a Run is wanted; what open_run"),
    "several things to view": (lambda m, r: tf.view([r, 3]), "int where a Run is wanted"),
    "nothing to export": (lambda m, r: tf.export(3, "pt", "x"), "int where a Run is wanted"),
    "no page of a run": (lambda m, r: tf.export_html(3, "x.html"), "int where a Run is wanted"),
    "a negative seed of an order": (
        lambda m, r: r.stream("resid_post", 1, shuffle=True, seed=-1),
        "`seed=-1`; a whole number, 0 or more",
    ),
    "one position for several": (lambda m, r: r.rows(0, "resid_post", 3, 1), "`positions=3`; several whole numbers"),
    "a mask of positions": (lambda m, r: r.rows(0, "resid_post", [True], 1), "several whole numbers, such as"),
    "a grid of positions": (lambda m, r: r.rows(0, "resid_post", np.ones((1, 2), int), 1), "several whole numbers"),
    "one query for several": (lambda m, r: r.attn(0, 1, 0, queries=3), "queries 3 are no slice; a slice, such as"),
    "queries in a list": (lambda m, r: r.attn(0, 1, 0, queries=[1]), r"queries \[1\] are no slice"),
    "queries that do not move": (lambda m, r: r.attn(0, 1, 0, queries=slice(0, 2, 0)), "a slice, such as"),
    "a run's folder": (lambda m, r: r.save(3), "`path=3`; text or a path"),
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
