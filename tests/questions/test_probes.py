"""Probes as calls: of runs of the built-in model and of made-up ones, against scikit-learn on the same rows."""

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import traceformer as tf
from traceformer.analysis.probe_controls import held_out_texts
from traceformer.analysis.probes import Probes
from traceformer.errors import ExampleNotFound, NotRecorded, NumericError, SelectionError, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions import probe_rows
from traceformer.questions.probe_labels import labels_of
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run

WIDTH, LAYERS, HEADS = 6, (0, 2), (0, 1)
TEXTS = [f"The {word} of {n} names, if it is not {word}." for n in range(6) for word in ("list", "error", "value")]


def made_up(lengths: Sequence[int], *, seed: int = 0, nan_at: tuple[int, int] | None = None, **columns: Any) -> Run:
    """Returns a run of `resid_post` and `z` in memory, whose rows are noise around a point of their token's kind."""
    random = np.random.default_rng(seed)
    resid = ArraySpec(ArrayKey("dec", None, "resid_post"), LAYERS, width=WIDTH)
    z = ArraySpec(ArrayKey("dec", "self", "z"), LAYERS, HEADS, width=3)
    layout = RunLayout.plan(
        arch="dec", arrays=[resid, z], n_examples=len(lengths), longest={"dec": max(lengths)}, dtype="float32",
        shard_examples=8,
    )  # fmt: skip
    ids = [random.integers(0, 9, n).tolist() for n in lengths]
    points = random.standard_normal((9, WIDTH))
    dims = {"n_layers": 3, "n_heads": 2, "n_kv_heads": 2, "d_model": WIDTH, "d_head": 3}
    meta: dict[str, Any] = {"model": "made up", "arch": "dec", "dims": {"dec": dims}, "run_id": "made-up"}
    if nan_at is not None:
        meta["unknown_rows"] = "NaN"  # as an import says that lacks some
    table = {
        "example_id": [f"ex{number}" for number in range(len(lengths))],
        "text": [" ".join(map(str, own)) for own in ids],
        "input_ids": ids,
        "tokens": [[f"t{i}" for i in own] for own in ids],
        **columns,
    }
    with MemoryWriter(layout, meta, digest={}) as writer:
        for shard in writer.pending:
            numbers, buffer = layout.shard_range(shard), writer.buffer()
            buffer.begin({"dec": [lengths[number] for number in numbers]})
            for slot, number in enumerate(numbers):
                rows = points[ids[number]] + random.standard_normal((len(LAYERS), lengths[number], WIDTH))
                if nan_at is not None and nan_at[0] == number:
                    rows[:, nan_at[1]] = np.nan
                buffer.put(resid, slot, rows.astype(np.float32))
                buffer.put(z, slot, rows.reshape(*rows.shape[:2], 2, 3).transpose(0, 2, 1, 3).astype(np.float32))
            part = {name: [column[number] for number in numbers] for name, column in table.items()}
            writer.commit(shard, buffer, pa.table(part))
        return writer.finish()


LENGTHS = np.random.default_rng(5).integers(4, 20, 40).tolist()


@pytest.fixture(scope="module")
def noun_run() -> Run:
    """Texts whose tokens are nouns, verbs or neither, in a column with a value for each token."""
    random = np.random.default_rng(1)
    kinds = [[["NOUN", "VERB", "X"][i] for i in random.integers(0, 3, n)] for n in LENGTHS]
    kinds[3] = [None, *kinds[3][1:]]
    kinds[7] = None
    genres = [["news", "tale"][i] for i in random.integers(0, 2, len(LENGTHS))]
    return made_up(LENGTHS, kinds=kinds, genre=genres, score=random.random(len(LENGTHS)).tolist(), same=["x"] * 40)


def peer(rows: np.ndarray, labels: Sequence[Any], penalty: float = 1.0) -> Pipeline:
    model = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=100_000)
    return make_pipeline(StandardScaler(), model).fit(rows.astype(np.float64), labels)


@pytest.mark.parametrize("penalty", [1.0, 0.05])
def test_probes_of_tokens_are_scikit_learns_on_the_same_rows(noun_run: Run, penalty: float) -> None:
    probes = tf.fit_probe(noun_run, "kinds", penalty=penalty, seed=3)
    table = noun_run.tokens
    labels = [
        label for own, n in zip(table.kinds, LENGTHS, strict=True) for label in (own if own is not None else [None] * n)
    ]
    text = noun_run.token_examples()
    labelled = np.array([label is not None for label in labels])
    with_labels = np.unique(text[labelled])
    held = np.isin(text, with_labels[held_out_texts(len(with_labels), 0.25, 3)])
    chosen = np.array(labels, object)
    for probe in probes:
        rows = noun_run.activations("resid_post", probe.layer)
        model = peer(rows[labelled & ~held], chosen[labelled & ~held].tolist(), penalty)
        ours, theirs = probe.probabilities(rows), model.predict_proba(rows.astype(np.float64))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(probe.weights, model[-1].coef_, rtol=0, atol=1e-4)
        assert probes.predict(rows, probe.layer) == model.predict(rows.astype(np.float64)).tolist()
        assert probe.scores.accuracy == model.score(rows[labelled & held], chosen[labelled & held].tolist())
    about = probes.about
    assert probes.classes == ("NOUN", "VERB", "X")
    assert (about.train_rows, about.rows) == (int((labelled & ~held).sum()), int((labelled & held).sum()))
    assert (about.train_texts, about.texts) == (29, 10)
    train = chosen[labelled & ~held].tolist()
    most = max(set(train), key=train.count)
    assert about.majority == np.mean(chosen[labelled & held] == most)
    assert probes.counts == tuple(train.count(name) for name in probes.classes)


@pytest.mark.parametrize("position", ["mean", "last"])
def test_probes_of_texts_are_scikit_learns_on_a_row_for_each(noun_run: Run, position: str) -> None:
    probes = tf.fit_probe(noun_run, "genre", position=position, held_out=0.3)  # pyright: ignore[reportArgumentType]
    genres = noun_run.tokens.genre.to_numpy()
    held = held_out_texts(40, 0.3, 0, (genres == "tale").astype(np.int32))
    for probe in probes:
        texts = [noun_run.get(i, "resid_post", probe.layer) for i in range(40)]
        rows = np.stack([own.mean(axis=0) if position == "mean" else own[-1] for own in texts])
        model = peer(rows[~held], genres[~held].tolist())
        np.testing.assert_allclose(probe.probabilities(rows), model.predict_proba(rows.astype(float)), atol=1e-5)
        np.testing.assert_allclose(probe.weights[1:], model[-1].coef_, atol=1e-4)
        assert probe.scores.accuracy == model.score(rows[held], genres[held].tolist())
        assert probe.scores.control is None
        assert probe.scores.selectivity == pytest.approx(probe.scores.accuracy - probe.scores.shuffled)
    assert probes.about.by_token is None
    assert probes.to_frame().control.isna().all()


def test_each_head_has_a_probe_of_its_own_and_together_they_are_one_row(noun_run: Run) -> None:
    probes = tf.fit_probe(noun_run, "kinds", site="z", heads="all", layers=2)
    assert [own.place for own in probes] == ["L2H0", "L2H1"]
    whole = tf.fit_probe(noun_run, "kinds", site="z", layers=[2])
    labels = labels_of(noun_run, "kinds", "dec")
    chosen = labels.codes >= 0
    with_labels, of = np.unique(noun_run.token_examples()[chosen], return_inverse=True)
    train = ~held_out_texts(len(with_labels), 0.25, 0)[of]
    for found, head, width in ((probes.at(2, 0), 0, 3), (probes.at(2, 1), 1, 3), (whole.at(2), None, 6)):
        rows = noun_run.activations("z", 2, head)[chosen]
        assert rows.shape[1] == width
        model = peer(rows[train], labels.codes[chosen][train])
        np.testing.assert_allclose(found.probabilities(rows), model.predict_proba(rows.astype(float)), atol=1e-5)


def test_rows_that_are_read_again_give_the_same_probes(noun_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [tf.fit_probe(noun_run, label) for label in ("kinds", "genre")]
    monkeypatch.setattr(probe_rows, "KEPT_BYTES", 0)
    monkeypatch.setattr(probe_rows, "_BATCH", 37)
    for own, label in zip(kept, ("kinds", "genre"), strict=True):
        again = tf.fit_probe(noun_run, label)
        assert again.to_frame().round(6).equals(own.to_frame().round(6))
        np.testing.assert_allclose(again.best.weights, own.best.weights, atol=1e-5)


def test_controls_are_at_chance_where_rows_know_nothing_of_the_label() -> None:
    lengths = [100] * 60
    labels = np.random.default_rng(99).integers(0, 2, sum(lengths))
    probes = tf.fit_probe(made_up(lengths), labels, draws=3)
    for own in probes:
        # Of 1,500 rows that are held out a coin has half right, give or take 0.013; three are averaged.
        for number in (own.scores.accuracy, own.scores.shuffled, probes.about.random):
            assert abs(number - 0.5) < 0.04
        assert own.scores.low < own.scores.accuracy < own.scores.high


def test_selectivity_tells_what_is_known_from_what_is_learnt_by_heart() -> None:
    run = made_up([50] * 40)
    ids = np.concatenate([np.asarray(own) for own in run.tokens.input_ids])
    by_heart = tf.fit_probe(run, ids % 3, layers=2, draws=6)
    for own in by_heart:
        # The label is one of each kind of token, as a control's is: neither is better, and a lookup has all right.
        assert abs(own.scores.selectivity) < 0.15
        assert own.scores.control is not None
        assert own.scores.control > own.scores.shuffled + 0.1
    assert by_heart.about.by_token == 1
    noise = np.random.default_rng(0).standard_normal(len(ids))
    known = tf.fit_probe(run, (run.activations("resid_post", 2)[:, 0] + 0.1 * noise) > 0, layers=2)
    assert known.at(2).scores.accuracy > 0.9
    assert known.at(2).scores.selectivity_low > 0.1
    assert known.about.by_token is not None
    assert known.at(2).scores.accuracy > known.about.by_token


def test_labels_are_a_column_an_array_a_mapping_or_a_function(noun_run: Run) -> None:
    expected = labels_of(noun_run, "kinds", "dec").codes
    by_text = noun_run.tokens.kinds.tolist()
    flat = [
        label for own, n in zip(by_text, LENGTHS, strict=True) for label in (own if own is not None else [None] * n)
    ]
    given: list[Any] = [
        flat,
        np.array(flat, object),
        by_text,
        {name: own for name, own in zip(noun_run.ids, by_text, strict=True) if own is not None},
        {number: list(own) for number, own in enumerate(by_text) if own is not None},
    ]
    for own in given:
        found = labels_of(noun_run, own, "dec")
        assert (found.of, found.classes) == ("token", ("NOUN", "VERB", "X"))
        assert np.array_equal(found.codes, expected)
    genre = labels_of(noun_run, "genre", "dec")
    for own in (
        noun_run.tokens.genre,
        noun_run.tokens.genre.tolist(),
        dict(zip(noun_run.ids, noun_run.tokens.genre, strict=True)),
    ):
        found = labels_of(noun_run, own, "dec")
        assert (found.of, found.classes) == ("text", ("news", "tale"))
        assert np.array_equal(found.codes, genre.codes)
    asked = labels_of(noun_run, lambda token: int(token[1:]) % 2 if token != "t3" else None, "dec")
    ids = np.concatenate([np.asarray(own) for own in noun_run.tokens.input_ids])
    assert asked.codes.tolist() == np.where(ids == 3, -1, ids % 2).tolist()
    floats = labels_of(noun_run, np.where(ids == 3, np.nan, ids % 2), "dec")
    assert floats.classes == (0, 1)
    assert np.array_equal(floats.codes, asked.codes)


def test_a_token_has_the_label_of_its_word(byte: LoadedModel, tmp_path: Path) -> None:
    rows = [{"words": ["EU", "rejects"], "tags": ["NAME", "VERB"]}, {"words": ["a", "call"], "tags": [None, "NOUN"]}]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"words": ["b"], "tags": None}])))
    run = tf.record(byte, tmp_path / "words.jsonl", "resid_post", text_column="words", layers=[0], dtype="float32")
    found = labels_of(run, "tags", "dec")
    assert found.classes == ("NAME", "NOUN", "VERB")
    assert found.codes.tolist() == [0] * 3 + [2] * 8 + [-1] * 2 + [1] * 5 + [-1] * 2


def test_a_row_is_asked_for_the_label_of_a_token_near_it(noun_run: Run) -> None:
    by_text = [list(own) for own in noun_run.tokens.input_ids]
    for offset in (-1, 2):
        moved = [[own[i + offset] if 0 <= i + offset < len(own) else None for i in range(len(own))] for own in by_text]
        probes = tf.fit_probe(noun_run, "input_ids", offset=offset, layers=2)
        assert probes.to_frame().equals(tf.fit_probe(noun_run, moved, layers=2).to_frame())
    assert repr(tf.fit_probe(noun_run, "kinds", offset=-1)).startswith(
        "Probes('kinds of the previous token', 3 classes"
    )
    with pytest.raises(UsageError, match="`offset=1`; genre is a label of texts"):
        tf.fit_probe(noun_run, "genre", offset=1)


CONLLU = "".join(
    f"# sent_id = s{number}\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\tdo\tAUX\t_\t_\t2\taux\t_\t_\n"
    f"2\tn't\tnot\tPART\t_\t_\t0\troot\t_\t_\n3\t{word}\t{word}\tVERB\t_\t_\t2\tdep\t_\tSpaceAfter=No\n"
    f"4\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_\n\n"
    for number, word in enumerate(("go", "wait", "look", "ask"))
)


def test_parts_of_speech_are_of_the_words_of_a_treebank(byte: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "few.conllu").write_text(CONLLU)
    run = tf.record(byte, tmp_path / "few.conllu", "resid_post", layers=[1], dtype="float32")
    found = labels_of(run, "upos", "dec")
    assert found.classes == ("AUX", "PART", "PUNCT", "VERB")
    names = [None if code < 0 else found.classes[code] for code in found.codes.tolist()]
    assert run.text(0) == "don't go."
    assert names[:9] == ["AUX", "AUX", "PART", "PART", "PART", None, "VERB", "VERB", "PUNCT"]
    probes = tf.fit_probe(run, "upos")
    assert probes.about.label == "upos"
    assert probes.about.train_rows + probes.about.rows == int((found.codes >= 0).sum())


def test_a_model_reads_texts_and_the_first_are_taken(byte: LoadedModel) -> None:
    probes = tf.fit_probe(byte, lambda token: token in "aeiou", texts=TEXTS, layers=[0, 1], limit=10, name="vowel")
    assert repr(probes).startswith("Probes('vowel', 2 classes, 2 of dec.resid_post; held-out accuracy 1.000 at L0")
    assert probes.classes == (False, True)
    assert probes.about.train_texts + probes.about.texts == 10
    assert probes._repr_html_().startswith("<img")
    json.dumps(probes.to_json(), allow_nan=False)
    again = tf.fit_probe(byte, lambda token: token in "aeiou", texts=TEXTS, layers=[0, 1], limit=10, name="vowel")
    assert again.to_frame().equals(probes.to_frame())


def test_probes_come_back_from_their_file(noun_run: Run, tmp_path: Path) -> None:
    for label in ("kinds", "genre"):
        probes = tf.fit_probe(noun_run, label)
        probes.save(tmp_path / "new/probes.safetensors", overwrite=True)
        back = tf.open_probes(tmp_path / "new/probes.safetensors")
        assert isinstance(back, Probes)
        assert (back.classes, back.counts, back.about) == (probes.classes, probes.counts, probes.about)
        assert back.to_json() == probes.to_json()
        for one, other in zip(back, probes, strict=True):
            assert all(
                np.array_equal(getattr(one, name), getattr(other, name))
                for name in ("weights", "bias", "mean", "scale")
            )


@pytest.fixture
def as_users_have_it() -> Generator[None]:
    """Annotations are not checked, as they are in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a missing column": ("upos", {}, NotRecorded, "no column 'upos'; one of input_ids tokens kinds genre score same"),
    "one class": ("same", {}, UsageError, "same has one class; the label of all 40 texts is 'x'"),
    "a quantity": ("score", {}, UsageError, "score is a quantity, and no class"),
    "as many classes as rows": (list(range(40)), {}, UsageError, "tells every text from every other; 40 texts"),
    "a wrong length": ([0, 1] * 3, {}, UsageError, f"6 labels; the run has 40 texts and {sum(LENGTHS)} tokens"),
    "a text of another length": ({0: [1, 2]}, {}, UsageError, f"2 labels for example ex0; it has {LENGTHS[0]} tokens"),
    "an unknown text": ({"nowhere": 1}, {}, ExampleNotFound, "no example 'nowhere'"),
    "no labels": ([None] * 40, {}, UsageError, "no text has a label"),
    "one text with labels": ({0: [0, 1] * LENGTHS[0]}, {}, UsageError, "labels for example ex0"),
    "labels of several types": ([1, "a"] * 20, {}, UsageError, "labels are no labels"),
    "some lists": ({0: 1, 1: [1] * LENGTHS[1]}, {}, UsageError, "some values of labels are lists"),
    "nothing": (3, {}, UsageError, "int is no label"),
    "a text": ("text", {}, UsageError, "text tells every text from every other"),
    "no layer": ("kinds", {"layers": 1}, SelectionError, "layer 1 requested"),
    "no head": ("kinds", {"site": "z", "heads": [5]}, SelectionError, "head 5 requested"),
    "heads of a site without": ("kinds", {"heads": "all"}, SelectionError, "there are no heads of dec.resid_post"),
    "no site": ("kinds", {"site": "resid_mid"}, NotRecorded, "resid_mid was not recorded"),
    "no penalty": ("kinds", {"penalty": 0}, UsageError, "`penalty=0`"),
    "all held out": ("kinds", {"held_out": 1.0}, UsageError, "`held_out=1.0`"),
    "no response": ("genre", {"position": "response"}, NotRecorded, "holds no responses"),
    "no position": ("genre", {"position": "first"}, UsageError, "no position 'first'"),
    "a seed": ("kinds", {"seed": -1}, UsageError, "`seed=-1`"),
    "texts for a run": ("kinds", {"texts": ["a"]}, UsageError, "a run and texts"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_probed_is_refused(what: str, noun_run: Run, as_users_have_it: None) -> None:
    labels, settings, error, said = REFUSED[what]
    with pytest.raises(error, match=said.replace("(", r"\(")):
        tf.fit_probe(noun_run, labels, **settings)


def test_classes_that_are_all_held_out_are_told(noun_run: Run) -> None:
    labels = {"ex0": [0] * LENGTHS[0], "ex1": [1] * LENGTHS[1]}
    with pytest.raises(UsageError, match="all other classes of labels are in texts that are held out"):
        tf.fit_probe(noun_run, labels)
    with pytest.raises(UsageError, match="one text has labels"):
        tf.fit_probe(noun_run, {"ex0": [0, 1] * (LENGTHS[0] // 2) + [1] * (LENGTHS[0] % 2)})


def test_a_row_that_is_nan_is_named_unless_it_has_no_label() -> None:
    run = made_up([5] * 10, nan_at=(6, 2))
    labels = np.tile([0, 1, 1, 0, 1], 10)
    with pytest.raises(NumericError, match="a row of layer 0 is NaN or infinite; example ex6, position 2"):
        tf.fit_probe(run, labels)
    without = np.where(np.arange(50) == 32, np.nan, labels)
    assert tf.fit_probe(run, without).about.rows + tf.fit_probe(run, without).about.train_rows == 49
    with pytest.raises(NumericError, match="example ex6;"):
        tf.fit_probe(run, [0, 1] * 5)
