"""Of lenses, probes, comparisons and training data: what would be lost, ignored or unclear is refused in words."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

import traceformer as tf
from tests.probed import probes_of
from traceformer.analysis.translators import Translators
from traceformer.errors import NotRecorded, RunExists, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run


@pytest.fixture
def as_users_have_it() -> Generator[None]:
    """Annotations are not checked, as they are in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def small_lens(kind: Any = "ridge") -> Translators:
    return Translators(kind, (0,), np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32))


_YES: Any = "yes"
WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a file of a lens that is a number": (lambda r, p: small_lens().save(p), "`path=3`"),
    "a file of probes that is a number": (lambda r, p: probes_of().save(p), "`path=3`"),
    "an order that is a word": (lambda r, p: r.training_data("resid_post", 1, shuffle="yes"), "`shuffle='yes'`; True"),
    "a last batch that is a word": (lambda r, p: r.training_data("resid_post", 1, drop_last="no"), "`drop_last='no'`"),
    "a stream's order": (lambda r, p: r.stream("resid_post", 1, shuffle="yes"), "`shuffle='yes'`"),
    "all pairs by a word": (lambda r, p: tf.compare(r, r, all_pairs=_YES), "`all_pairs='yes'`; True or False"),
}


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_type_is_refused_in_words(what: str, run: Run) -> None:
    ask, said = WRONG[what]
    with pytest.raises(UsageError, match=said):
        ask(run, 3)


@pytest.mark.parametrize("name", ["skip", "max_tokens", "batch_size"])
def test_a_setting_of_derivatives_is_refused_of_another_lens(name: str, run: Run) -> None:
    given: dict[str, Any] = {name: 4}
    with pytest.raises(UsageError, match=f"`{name}` of a tuned lens; it is of a jacobian lens"):
        tf.fit_lens(run, **given)


def test_steps_of_a_lens_without_steps_are_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="`steps` of a ridge lens; it is of a tuned lens"):
        tf.fit_lens(run, kind="ridge", steps=5)


@pytest.mark.parametrize("name", ["y.txt", "none", ""])
def test_a_file_of_an_ending_that_the_format_lacks_is_refused(name: str, tmp_path: Path) -> None:
    where = tmp_path / name if name else ""
    for save in (small_lens().save, probes_of().save):
        with pytest.raises(UsageError, match=r"a name that ends in \.safetensors"):
            save(where)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [small_lens, probes_of])
def test_a_file_in_the_way_is_replaced_when_told_to(make: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(RunExists, match="is there already"):
        make().save(path)
    assert path.read_text() == "mine"
    make().save(path, overwrite=True)
    assert path.read_bytes() != b"mine"


def test_no_folder_is_made_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (small_lens().save, probes_of().save):
        with pytest.raises(UsageError, match="a place in a bucket"):
            save("s3://bucket/a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_lens_of_no_name_names_no_file(run: Run) -> None:
    with pytest.raises(UsageError, match="an empty name is that of no file"):
        tf.lens(run, 0, translators="")


def test_a_site_of_attention_is_compared_by_heads(run: Run) -> None:
    with pytest.raises(NotRecorded, match=r'compared head by head, as `parts="heads"`.*one of dec\.') as caught:
        tf.compare(run, run, site="attn_pattern")
    assert "resid_post" in caught.value.hint


def test_the_figure_of_a_lens_says_its_kind(byte: LoadedModel) -> None:
    stream = tf.record(byte, [f"line {i}: {i * i}" for i in range(12)], "resid_post")
    figure = tf.figures.translators(tf.fit_lens(stream, kind="ridge", layers=[0, 3]))
    assert "ridge lens" in figure.get_suptitle()
