"""What is asked of something that is neither a run nor a model, or by a name that there is not, says so."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import traceformer as tf
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions.recorded import recorded
from traceformer.store.run import Run

TRAIT = tf.Direction("x", {None: np.ones(64, np.float32)})
VERBS: dict[str, Callable[[Any], Any]] = {
    "lens": lambda of: as_users_have_it(tf.lens)(of, "a text"),
    "paths": lambda of: as_users_have_it(tf.paths)(of, "a text"),
    "heads": lambda of: as_users_have_it(tf.heads)(of, ["a text"]),
    "roles": lambda of: as_users_have_it(tf.roles)(of, ["a text"]),
    "statistics": lambda of: as_users_have_it(recorded)(of, None, "attn"),
    "project": lambda of: as_users_have_it(tf.project)(of, TRAIT),
    "fit_probe": lambda of: as_users_have_it(tf.fit_probe)(of, "upos"),
}


def as_users_have_it(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a verb whose annotations are not checked, as they are in tests alone."""
    return inspect.unwrap(verb)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("of", ["byte", None, ["byte"]], ids=repr)
def test_a_question_is_of_a_run_or_of_a_model(verb: str, of: Any) -> None:
    with pytest.raises(UsageError, match=r"is neither a run nor a model.*load_model"):
        VERBS[verb](of)


MISSPELT: dict[str, tuple[Callable[[Run, LoadedModel], Any], str]] = {
    "an option of paths": (lambda run, model: tf.paths(run, top_bean=3), "no option 'top_bean'; top_beam"),
    "a convention of heads": (
        lambda run, model: as_users_have_it(tf.heads)(run, convention="exakt"),
        "no convention 'exakt'; exact or",
    ),
    "one of statistics": (
        lambda run, model: as_users_have_it(tf.statistics)(run, convention="x"),
        "no convention 'x'; exact or",
    ),
    "a dtype of heads": (
        lambda run, model: as_users_have_it(tf.heads)(model, ["a"], dtype="f16"),
        "no dtype 'f16'; float16 or",
    ),
    "a dtype of a model": (lambda run, model: tf.load_model("byte", dtype="f16"), "no dtype 'f16'; float32 or"),
    "a batch of nothing": (lambda run, model: tf.record(model, ["a"], batch_size=0), "`batch_size=0`; give 1 or more"),
    "a shard of nothing": (lambda run, model: tf.record(model, ["a"], shard_examples=0), "0 texts per shard"),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_what_there_is_not_is_named(what: str, run: Run, byte: LoadedModel) -> None:
    ask, said = MISSPELT[what]
    with pytest.raises(UsageError, match=said):
        ask(run, byte)


def test_layers_of_a_lens_are_written_as_those_of_a_recording(run: Run) -> None:
    for layers in (2, "2", [2]):
        assert tf.lens(run, layers=layers, positions="0-1").top_ids.shape == (1, 2, 3)
