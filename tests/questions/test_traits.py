"""Directions and projections as calls: of runs of the built-in model."""

import json
from pathlib import Path

import numpy as np
import pytest

from traceformer.analysis.directions import Direction
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.formats.results.directions import read_direction
from traceformer.models.loaded import LoadedModel
from traceformer.questions.traits import fit_direction, project
from traceformer.store.run import Run

ERRORS = ["raises ValueError if the name is wrong", "an error is raised when it is missing", "raise an error if not"]
RETURNS = ["returns the name of the file", "return a list of the names", "returns all of it"]


@pytest.fixture(scope="module")
def runs(byte: LoadedModel) -> tuple[Run, Run]:
    positive, negative = (record(byte, texts, "resid_post", dtype="float32") for texts in (ERRORS, RETURNS))
    return positive, negative


def test_a_direction_is_the_difference_of_the_means(runs: tuple[Run, Run]) -> None:
    trait = fit_direction(*runs, layer=2)
    means = [np.mean([run.get(i, "resid_post", 2).mean(axis=0) for i in range(run.n)], axis=0) for run in runs]
    expected = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    np.testing.assert_allclose(trait.by_layer[2], expected, atol=1e-5)
    assert repr(trait) == "Direction('mean_diff': mean_diff at resid_post, layer 2, 256 wide)"
    assert trait.about["examples"] == [3, 3]
    assert trait.about["model"] == "byte"


def test_a_direction_of_all_layers_has_a_row_for_each_and_is_read_back(runs: tuple[Run, Run], tmp_path: Path) -> None:
    trait = fit_direction(*runs, method="probe", name="errors")
    table = trait.to_frame()
    assert table.layer.tolist() == [0, 1, 2, 3]
    assert table.held_out_accuracy.tolist() == [trait.quality[layer]["held_out_accuracy"] for layer in range(4)]
    assert table.held_out_accuracy[trait.best_layer] == table.held_out_accuracy.max()
    json.dumps(trait.to_json(), allow_nan=False)
    assert (trait._repr_html_() or "").startswith("<img")
    trait.save(tmp_path / "errors.safetensors")
    back = read_direction(tmp_path / "errors.safetensors")
    assert (back.name, back.about, back.quality) == (trait.name, trait.about, trait.quality)
    assert all(np.array_equal(back.by_layer[layer], trait.by_layer[layer]) for layer in range(4))


def test_runs_of_two_models_have_no_direction(runs: tuple[Run, Run], load: object) -> None:
    other = record(load("gpt2"), RETURNS, "resid_post")  # pyright: ignore
    with pytest.raises(UsageError, match="of different models"):
        fit_direction(runs[0], other)
    with pytest.raises(NotRecorded, match="resid_mid"):
        fit_direction(*runs, site="resid_mid")
    with pytest.raises(SelectionError, match="the runs hold layers 0, 1, 2, 3"):
        fit_direction(*runs, layer=9)


def test_projections_have_a_row_per_example_position_direction_and_layer(runs: tuple[Run, Run]) -> None:
    trait, other = Direction("first", {None: np.eye(256, dtype=np.float32)[0]}), fit_direction(*runs, layer=[1, 2])
    value = project(runs[1], trait, other)
    assert value.names == ("first", "mean_diff")
    assert value.layers == (1, 2)
    table = value.to_frame()
    assert len(table) == sum(len(text) for text in RETURNS) * 2 * 2
    own = table[(table.example_id == runs[1].ids[1]) & (table.direction == "first") & (table.layer == 2)]
    np.testing.assert_allclose(own.projection, runs[1].get(1, "resid_post", 2)[:, 0], rtol=1e-6)
    assert "".join(own.token) == RETURNS[1]
    assert repr(project(runs[1], trait, example=1, layers=[2])).endswith("dec.resid_post layer 2: first)")
    json.dumps(value.to_json(), allow_nan=False)
    assert "<svg" in value._repr_html_()


def test_several_runs_give_a_list(runs: tuple[Run, Run]) -> None:
    trait = fit_direction(*runs, layer=1)
    found = project(runs, trait, example=0)
    assert [value.examples[0].example_id for value in found] == [run.ids[0] for run in runs]


def test_a_response_is_told_from_its_prompt(byte: LoadedModel, runs: tuple[Run, Run]) -> None:
    answer = generate(byte, "If the argument", "resid_post", max_tokens=4)
    table = project(answer, fit_direction(*runs, layer=1)).to_frame()
    assert table.part.tolist() == ["prompt"] * 15 + ["response"] * 4


def test_no_direction_and_one_that_is_given_twice_are_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    trait = fit_direction(*runs, layer=1)
    with pytest.raises(UsageError, match="needs `directions`"):
        project(runs[0])
    with pytest.raises(UsageError, match="given twice"):
        project(runs[0], trait, trait)
    with pytest.raises(UsageError, match="2 wide"):
        project(runs[0], Direction("short", {None: np.ones(2, np.float32)}))


def test_a_direction_of_another_place_is_warned_of(runs: tuple[Run, Run]) -> None:
    odd = Direction("odd", {None: np.ones(256, np.float32)}, {"site": "mlp_out", "model_weights": "1", "model": "x"})
    with pytest.warns(UserWarning, match="odd was found") as told:
        project(runs[0], odd, layers=[0])
    assert "odd was found at mlp_out, and is used at resid_post" in str(told[0].message)
    assert "odd was found in another model (x, weights 1)" in str(told[1].message)
