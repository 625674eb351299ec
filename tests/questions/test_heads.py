"""Head metrics of runs on disk, against their definitions on the very numbers that were stored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.analysis.plain_heads import causal, everything, plain_metrics, random_patterns
from traceformer.errors import NotRecorded
from traceformer.questions import heads as module
from traceformer.questions.heads import run_heads
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

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
                    buffer.rectangle(spec.key, slot)[...] = pattern_of(spec.key, example)
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
    (found,) = run_heads(store).values()
    assert (found.layers, found.heads, found.examples, found.queries) == ((1, 4), HEADS, 4, 43)
    for layer in range(2):
        for head in range(len(HEADS)):
            own = expected(KEYS["dec.self"], range(4), layer, head)
            got = {name: found.values[name][layer, head] for name in own}
            assert got == pytest.approx(own, rel=2e-6)


def test_repeated_tokens_are_those_of_the_run(tmp_path: Path) -> None:
    store = TraceStore(write(tmp_path / "run", "dec", ("dec.self",)))
    (found,) = run_heads(store, limit=1).values()
    own = plain_metrics(pattern_of(KEYS["dec.self"], 0)[1, 2], tokens_of("dec", 0), causal)
    got = {name: values[1, 2] for name, values in found.values.items()}
    assert got == pytest.approx(own, rel=2e-6, abs=1e-6)
    store = TraceStore(write(tmp_path / "other", "dec", ("dec.self",), with_tokens=False))
    (found,) = run_heads(store, limit=1).values()
    assert np.isnan(found.values["induction"]).all()
    assert found.values["entropy"][1, 2] == pytest.approx(own["entropy"], rel=2e-6)


def test_every_attention_of_an_encoder_decoder_is_measured(tmp_path: Path) -> None:
    store = TraceStore(write(tmp_path / "run", "encdec", tuple(KEYS)))
    steps: list[tuple[int, int]] = []
    found = run_heads(store, progress=lambda done, of: steps.append((done, of)))
    assert list(found) == list(KEYS.values())
    assert steps == [(done, 12) for done in range(1, 13)]
    for key, own in found.items():
        assert np.isnan(own.values["distance"]).all() == (key.attention == "cross")
        means = expected(key, range(4), 1, 0)
        assert {name: own.values[name][1, 0] for name in means} == pytest.approx(means, rel=2e-6)
    one = run_heads(store, limit=1)
    for name, stack, sees in (("enc.self", "enc", everything), ("dec.self", "dec", causal)):
        own = plain_metrics(pattern_of(KEYS[name], 0)[0, 1], tokens_of(stack, 0), sees)
        assert {each: values[0, 1] for each, values in one[KEYS[name]].values.items()} == pytest.approx(own, rel=2e-6)


def test_an_unfinished_run_is_measured_as_far_as_it_is(tmp_path: Path) -> None:
    (found,) = run_heads(TraceStore(write(tmp_path / "run", "enc", ("enc.self",), shards=1))).values()
    assert found.examples == 2
    own = expected(KEYS["enc.self"], range(2), 0, 0)
    assert {name: found.values[name][0, 0] for name in own} == pytest.approx(own, rel=2e-6)


def test_a_run_without_patterns_is_an_error(tmp_path: Path) -> None:
    layout = RunLayout.plan(
        arch="dec", arrays=[ArraySpec(ArrayKey.parse("dec.embed"), width=4)], n_examples=1, longest={"dec": 2}
    )
    with RunWriter.create(tmp_path / "run", layout, {}, digest={}) as writer:
        folder = writer.folder
    with pytest.raises(NotRecorded, match="no attention patterns"):
        run_heads(TraceStore(folder))
