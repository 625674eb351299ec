"""Head metrics of runs on disk, against their definitions on the very numbers that were stored."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.analysis.plain_heads import causal, everything, plain_metrics, random_patterns
from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.capture.extract import record
from traceformer.errors import ExampleNotFound, NotFound, NotRecorded, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.questions import heads_of_run as module
from traceformer.questions.heads import heads
from traceformer.questions.statistics import statistics
from traceformer.questions.training_texts import training_texts
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter
from traceformer.texts.windows import FileWindows

LENGTHS: dict[Stack, tuple[int, ...]] = {"enc": (11, 30, 1, 24), "dec": (17, 5, 9, 12)}
KEYS = {name: ArrayKey.parse(f"{name}.attn_pattern") for name in ("enc.self", "dec.self", "dec.cross")}
HEADS = (0, 2, 3)


def tokens_of(stack: Stack, example: int) -> list[int]:
    return np.random.default_rng([example, stack == "dec"]).integers(0, 5, LENGTHS[stack][example]).tolist()


def pattern_of(key: ArrayKey, example: int) -> np.ndarray:
    queries, keys = LENGTHS[key.stack][example], LENGTHS[key.key_stack][example]
    sees = causal if str(key).startswith("dec.self") else everything
    return random_patterns((2, len(HEADS), queries, keys), sees, seed=example).astype(np.float16)


def write(folder: Path, arch: str, names: tuple[str, ...], with_tokens: bool = True, shards: int | None = None) -> Path:
    """Writes layers 1 and 4, heads 0, 2 and 3, of four examples in shards of two."""
    stacks: tuple[Stack, ...] = ("enc", "dec") if arch == "encdec" else (arch,)  # pyright: ignore[reportAssignmentType]
    layout = RunLayout.plan(
        arch=arch,  # pyright: ignore[reportArgumentType]
        arrays=[ArraySpec(KEYS[name], (1, 4), HEADS) for name in names],
        n_examples=4,
        longest={stack: max(LENGTHS[stack]) for stack in stacks},
        shard_examples=2,
    )
    with RunWriter.create(folder, layout, {"arch": arch}, digest={}) as writer:
        for shard in writer.pending[:shards]:
            examples = layout.shard_range(shard)
            buffer = writer.buffer()
            buffer.begin({stack: [LENGTHS[stack][example] for example in examples] for stack in stacks})
            for spec in layout.arrays:
                for slot, example in enumerate(examples):
                    buffer.put(spec, slot, pattern_of(spec.key, example))
            columns: dict[str, object] = {"example_id": [f"example-{example}" for example in examples]}
            for stack in stacks if with_tokens else ():
                column = "dec_input_ids" if stack == "dec" and arch == "encdec" else "input_ids"
                columns[column] = [tokens_of(stack, example) for example in examples]
            writer.commit(shard, buffer, pa.table(columns))
        return writer.finish() if shards is None else writer.folder


def expected(key: ArrayKey, examples: range, layer: int, head: int) -> dict[str, float]:
    """Those metrics of all examples that are the mean of each example's, weighed by its queries."""
    sees = causal if key.stack == "dec" and key.attention == "self" else everything
    found: list[dict[str, float]] = []
    for example in examples:
        tokens = tokens_of(key.stack, example) if key.attention == "self" else None
        found.append(plain_metrics(pattern_of(key, example)[layer, head], tokens, sees))
    weights = [LENGTHS[key.stack][example] for example in examples]
    names = found[0].keys() & {"entropy", "distance", "max_weight", "first_token", "self", "local_mass"}
    return {name: float(np.average([own[name] for own in found], weights=weights)) for name in names}


@pytest.mark.parametrize("part", [1, 3000, 1 << 30])
def test_a_run_gives_the_metrics_of_what_it_stores(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", part)  # head by head, layer by layer, all at once
    store = TraceStore(write(tmp_path / "run", "dec", ("dec.self",)))
    found = heads(store)
    assert (found.layers, found.heads, found.attentions) == ((1, 4), HEADS, ("dec.self",))
    assert (found.about.examples, found.about.queries) == ({"dec.self": 4}, {"dec.self": 43})
    for layer in range(2):
        for head in range(len(HEADS)):
            own = expected(KEYS["dec.self"], range(4), layer, head)
            got = {name: found.grid(name)[layer, head] for name in own}
            assert got == pytest.approx(own, rel=2e-6)


def test_repeated_tokens_are_those_of_the_run(tmp_path: Path) -> None:
    store = TraceStore(write(tmp_path / "run", "dec", ("dec.self",)))
    found = heads(store, limit=1)
    own = plain_metrics(pattern_of(KEYS["dec.self"], 0)[1, 2], tokens_of("dec", 0), causal)
    got = {name: found.grid(name)[1, 2] for name in own}
    assert len(got) == len(found.values)
    assert got == pytest.approx(own, rel=2e-6, abs=1e-6)
    store = TraceStore(write(tmp_path / "other", "dec", ("dec.self",), with_tokens=False))
    found = heads(store, limit=1)
    assert np.isnan(found.values["induction"]).all()
    assert found.grid("entropy")[1, 2] == pytest.approx(own["entropy"], rel=2e-6)


def test_every_attention_of_an_encoder_decoder_is_measured(tmp_path: Path) -> None:
    store = TraceStore(write(tmp_path / "run", "encdec", tuple(KEYS)))
    steps: list[tuple[int, int]] = []
    found = heads(store, progress=lambda done, of: steps.append((done, of)))
    assert found.attentions == tuple(KEYS)
    assert steps == [(done, 12) for done in range(1, 13)]
    for name, key in KEYS.items():
        assert np.isnan(found.grid("distance", name)).all() == (key.attention == "cross")
        means = expected(key, range(4), 1, 0)
        assert {metric: found.grid(metric, name)[1, 0] for metric in means} == pytest.approx(means, rel=2e-6)
    one = heads(store, limit=1)
    for name, stack, sees in (("enc.self", "enc", everything), ("dec.self", "dec", causal)):
        own = plain_metrics(pattern_of(KEYS[name], 0)[0, 1], tokens_of(stack, 0), sees)
        assert {metric: one.grid(metric, name)[0, 1] for metric in own} == pytest.approx(own, rel=2e-6)


def test_an_unfinished_run_is_measured_as_far_as_it_is(tmp_path: Path) -> None:
    found = heads(TraceStore(write(tmp_path / "run", "enc", ("enc.self",), shards=1)))
    assert found.about.examples == {"enc.self": 2}
    own = expected(KEYS["enc.self"], range(2), 0, 0)
    assert {name: found.grid(name)[0, 0] for name in own} == pytest.approx(own, rel=2e-6)


def test_some_examples_are_measured_by_number_or_id(tmp_path: Path) -> None:
    store = TraceStore(write(tmp_path / "run", "enc", ("enc.self",)))
    found = heads(store, examples=["example-2", 3])
    assert found.about.examples == {"enc.self": 2}
    own = expected(KEYS["enc.self"], range(2, 4), 1, 2)
    assert {name: found.grid(name)[1, 2] for name in own} == pytest.approx(own, rel=2e-6)
    with pytest.raises(ExampleNotFound):
        heads(store, examples=[4])
    with pytest.raises(UsageError):
        heads(store, examples=[0], limit=1)


def test_a_run_without_patterns_is_an_error(tmp_path: Path) -> None:
    layout = RunLayout.plan(
        arch="dec", arrays=[ArraySpec(ArrayKey.parse("dec.embed"), width=4)], n_examples=1, longest={"dec": 2}
    )
    with RunWriter.create(tmp_path / "run", layout, {}, digest={}) as writer:
        folder = writer.folder
    with pytest.raises(NotRecorded, match="no attention patterns"):
        heads(TraceStore(folder))


@pytest.fixture(scope="module")
def byte_run(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    """Patterns and the residual stream of the built-in model on ten texts of the demo."""
    folder = tmp_path_factory.mktemp("runs") / "byte"
    return record("byte", "demo", "attn resid_post", limit=10, max_seq_len=128, out=folder)


def test_statistics_of_a_run_without_patterns_are_a_table_without_heads(byte: LoadedModel) -> None:
    run = record(byte, ["if it"], "resid_post", layers=[1])
    table = statistics(run).to_frame()
    assert table["layer"].tolist() == [1]
    assert table["mean"][0] == pytest.approx(run.resid(0, "resid_post", layer=1).mean(), rel=1e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.filterwarnings("ignore:the thesis convention says nothing about activations")
def test_heads_and_statistics_give_the_same_number_for_the_same_name(
    byte_run: TraceStore, convention: ConventionName
) -> None:
    of_heads, of_run = heads(byte_run, convention=convention).to_frame(), statistics(byte_run, convention=convention)
    of_patterns = of_run.to_frame().query("array == 'dec.self.attn_pattern'")
    assert len(of_heads) == len(of_patterns) == 32
    assert of_heads[["layer", "head"]].to_numpy().tolist() == of_patterns[["layer", "head"]].to_numpy().tolist()
    shared = [name for name in of_heads if name.startswith("sparsity") and name in of_patterns] + ["entropy"]
    assert shared == [CONVENTIONS[convention].sparsity, "entropy"]
    for name in shared:
        # Both sum float32 numbers, in different order.
        assert of_heads[name].to_numpy() == pytest.approx(of_patterns[name].to_numpy(float), rel=1e-6), name
    patterns = [byte_run.attn(example_id, 2, 5) for example_id in byte_run.ids]
    plain = [plain_metrics(pattern, None, causal, convention) for pattern in patterns]
    by_query = [len(pattern) for pattern in patterns]
    by_cell = [n * (n + 1) / 2 if convention == "exact" else n * n for n in by_query]
    for metric, weights in (("entropy", by_query), ("sparsity", by_cell)):
        weights = [1] * len(patterns) if convention == "thesis" else weights
        expected = np.average([own[metric] for own in plain], weights=weights)
        column = CONVENTIONS[convention].column(metric)
        assert of_heads[column][2 * 8 + 5] == pytest.approx(expected, rel=2e-6)


def test_a_model_reads_a_list_of_texts_as_a_run_of_them_has_it(byte_run: TraceStore, byte: LoadedModel) -> None:
    texts = [byte_run.text(example_id) for example_id in byte_run.ids]
    live = heads(byte, [text.encode()[:128].decode(errors="ignore") for text in texts])
    assert live.about == replace(heads(byte_run).about, source="10 texts")
    for name, values in heads(byte_run).values.items():
        assert live.values[name] == pytest.approx(values, rel=1e-6, abs=1e-6), name
    of_set = heads(byte, "demo", seq_length=128)
    assert of_set.about.source == "demo validation"
    assert (of_set.about.texts or "").startswith("10 texts ")
    assert of_set.about.texts == live.about.texts != heads(byte_run, limit=9).about.texts
    assert of_set.values["entropy"] == pytest.approx(live.values["entropy"], rel=1e-6)
    assert heads(byte, texts, limit=2, seq_length=9999).about.examples == {"dec.self": 2}


def test_what_a_model_was_trained_on_is_read_in_windows(byte: LoadedModel, tmp_path: Path) -> None:
    text = "".join(f"line {number} of the text\n" for number in range(400)).encode()
    (tmp_path / "data.txt").write_bytes(text)
    settings = {"data": str(tmp_path / "data.txt"), "split": "thesis"}
    (tmp_path / "training.json").write_text(json.dumps({"settings": settings}))
    texts = training_texts(tmp_path)
    assert str(texts) == "data.txt validation"
    of_training = heads(byte, texts, seq_length=64, limit=3)
    of_file = heads(byte, FileWindows(tmp_path / "data.txt"), seq_length=64, limit=3)
    assert of_training.about == replace(of_file.about, source="data.txt validation")
    for name, values in of_file.values.items():
        assert of_training.values[name] == pytest.approx(values, rel=1e-6), name
    with pytest.raises(UsageError, match="reads 512 tokens"):
        heads(byte, texts, seq_length=513)
    (tmp_path / "data.txt").unlink()
    with pytest.raises(NotFound, match="names data that are not there"):
        training_texts(tmp_path)
    (tmp_path / "training.json").write_text('{"settings": {"other": 1}}')
    assert training_texts(tmp_path) is None
    assert training_texts(tmp_path / "nowhere") is None


def test_what_does_not_go_together_is_refused(byte_run: TraceStore, byte: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a run has its texts"):
        heads(byte_run, "demo")
    with pytest.raises(UsageError, match="what shall the model read"):
        heads(byte)
    with pytest.raises(UsageError, match="the list is empty"):
        heads(byte, [])
    with pytest.raises(UsageError, match="`targets` are for encoder-decoders"):
        heads(byte, ["a"], targets=["b"])
    with pytest.raises(UsageError, match="`split` goes with a data set"):
        heads(byte, FileWindows(tmp_path / "data"), split="train")


@pytest.mark.parametrize("given", [{"limit": 0}, {"seq_length": 0}])
def test_what_selects_nothing_is_refused(byte: LoadedModel, tmp_path: Path, given: dict[str, int]) -> None:
    (tmp_path / "one.txt").write_text("one long text " * 99)
    for texts in (["a text"], "demo", FileWindows(tmp_path / "one.txt", "all")):
        with pytest.raises(UsageError, match=f"`{next(iter(given))}=0`; a whole number, 1 or more"):
            heads(byte, texts, **given)  # pyright: ignore[reportArgumentType, reportCallIssue]
