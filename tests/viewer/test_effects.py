"""What the effects screen is sent: the same as `open_effects` and `attribute` find."""

from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.stream_data import MARKUP, asked, write_effects
from traceformer.errors import NotFound, SelectionError, UsageError
from traceformer.viewer.library import Library


@pytest.fixture
def library(stream_folder: Path) -> Library:
    return Library.at(stream_folder)


def test_effects_beside_runs_are_listed_with_what_is_wrong_with_them(tmp_path: Path) -> None:
    write_effects(tmp_path / "patched", {"effect": np.zeros((3, 4, 5))})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "effects.json").write_text("{}")
    listed = {each["name"]: each for each in asked(Library.at(tmp_path), "effects")["effects"]}
    assert set(listed) == {"patched", "damaged"}
    assert listed["damaged"]["problem"]
    assert (listed["patched"]["problem"], listed["patched"]["pairs"], listed["patched"]["over"]) == (
        *("", 3),
        ["layer", "position"],
    )


@pytest.mark.parametrize("name", ["patched", "estimated"])
def test_the_mean_over_pairs_is_that_of_open_effects(library: Library, stream_folder: Path, name: str) -> None:
    found, effects = asked(library, "effect", name=name), tf.open_effects(stream_folder / name)
    np.testing.assert_allclose(found.arrays["values"], effects.values, rtol=1e-7)  # float32 behind float64
    np.testing.assert_allclose(found.arrays["spread"], effects.spread, rtol=1e-7)
    np.testing.assert_array_equal(found.arrays["pairs"], effects.n_pairs)
    assert found.about["axes"][1]["labels"] == [MARKUP.replace(" ", "·"), "b", "", "d", "↵"]
    assert [pair["clean"] for pair in found.about["pairs"]] == [2.5, 3.5, 4.5]


def test_one_pair_is_its_own(library: Library, stream_folder: Path) -> None:
    one = tf.open_effects(stream_folder / "patched").by_pair["effect"][2]
    found = asked(library, "effect", name="patched", pair=2)
    np.testing.assert_allclose(found.arrays["values"], one, rtol=1e-7)
    assert set(found.arrays) == {"values"}
    with pytest.raises(SelectionError, match="pair 3"):
        asked(library, "effect", name="patched", pair=3)


def test_estimates_come_with_what_was_measured_and_the_agreement_of_ranks(
    library: Library, stream_folder: Path
) -> None:
    effects = tf.open_effects(stream_folder / "estimated")
    exact = effects.by_pair["exact"][0]
    found = asked(library, "effect", name="estimated", pair=0)
    np.testing.assert_allclose(found.arrays["exact"], exact, rtol=1e-7)
    both = np.isfinite(exact)
    ranks = [values[both].argsort().argsort() for values in (effects.by_pair["estimate"][0], exact)]  # no two are alike
    expected = np.corrcoef(*ranks)[0, 1]
    assert found.about["agreement"]["spearman"] == pytest.approx(expected)
    assert found.about["agreement"]["measured"] == both.sum()


@pytest.mark.parametrize("name", ["../byte", "byte", "none", "/etc"])
def test_other_effects_than_those_listed_are_not_found(library: Library, name: str) -> None:
    with pytest.raises(NotFound):
        asked(library, "effect", name=name)


def test_an_attribution_is_that_of_python_and_adds_up(library: Library) -> None:
    run = library.run("byte")
    found = asked(library, "attribution", run="byte", ex=1, q=9, layer=3, head=1)
    expected = tf.attribute(run, 1, position=9, by_source=[(3, 1)])
    np.testing.assert_allclose(found.arrays["contributions"], expected.contributions, rtol=1e-6)
    [sources] = expected.sources.values()
    np.testing.assert_allclose(found.arrays["sources"], sources, rtol=1e-6)
    assert found.about["source"] == "L3H1"
    total = float(found.arrays["contributions"].astype(np.float64).sum()) + found.about["remainder"]
    assert total == pytest.approx(found.about["total"], abs=1e-5)  # float32 parts
    assert found.about["is_likeliest"]


def test_tokens_that_are_none_are_refused_in_words(library: Library) -> None:
    with pytest.raises(UsageError, match="not one token"):
        asked(library, "attribution", run="byte", ex=0, q=3, to=MARKUP)
    named = asked(library, "attribution", run="byte", ex=0, q=3, to="a", against="#98")
    assert (named.about["to"], named.about["against"], named.about["is_likeliest"]) == ("a", "b", False)
