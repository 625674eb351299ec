"""What users read is float32: their sums over a float16 run are those of float64, and who asks has what is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import runs
from traceformer import Run
from traceformer.sites import ArraySpec
from traceformer.store.memory import MemoryWriter

PATTERN, RESIDUAL, VALUES = (
    runs.ArrayKey.parse(key) for key in ("dec.self.attn_pattern", "dec.resid_post", "dec.self.v")
)
LENGTHS, HEADS, D = (300, 40), 2, 48
EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def residual() -> np.ndarray:
    """All tokens' rows of a trained model's kind: one feature is a thousand times as large as the others."""
    rows = np.random.default_rng(0).standard_normal((sum(LENGTHS), D)) + 0.25
    rows[:, 7] *= 3000
    return rows.astype(np.float16)


def pattern(example: int) -> np.ndarray:
    scores = np.random.default_rng(example).standard_normal((1, HEADS, LENGTHS[example], LENGTHS[example]))
    weights = np.exp(scores) * np.tri(LENGTHS[example])
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module", params=["memory", "disk"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    arrays = (
        ArraySpec(PATTERN, (3,), tuple(range(HEADS))),
        ArraySpec(RESIDUAL, (3,), (), D),
        ArraySpec(VALUES, (3,), (0,), len(FINITE)),
    )
    layout = runs.plan(arrays=arrays, n_examples=2, shard_examples=2, longest={"dec": 300}, dtype="float16")
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": list(LENGTHS)})
        for example in range(2):
            buffer.put(arrays[0], example, pattern(example))
            buffer.rows(RESIDUAL, example)[0] = np.split(residual(), [LENGTHS[0]])[example]
            buffer.rows(VALUES, example)[...] = FINITE
        writer.commit(0, buffer, runs.pa.table({"example_id": ["a", "b"]}))
        found = writer.finish()
    return found if request.param == "memory" else found.save(tmp_path_factory.mktemp("float16") / "run")


def test_sums_over_what_is_read_are_those_of_float64(run: Run) -> None:
    exact = residual().astype(np.float64)
    for rows in (run.activations("resid_post", 3), np.concatenate(list(run.stream("resid_post", 3, 100)))):
        assert np.isfinite(rows.std(axis=0)).all()
        assert np.allclose(rows.std(axis=0), exact.std(axis=0), rtol=1e-5)
        assert np.allclose(rows.mean(axis=0), exact.mean(axis=0), rtol=1e-4, atol=1e-5)
    received = run.attn("a", layer=3, head=1).sum(axis=0)
    assert np.allclose(received, pattern(0)[0, 1].astype(np.float64).sum(axis=0), rtol=1e-6)


def test_sums_over_the_tree_are_those_of_float64(run: Run) -> None:
    if run.folder is None:
        return  # a tree is of files
    tree: Any = run.to_xarray()
    exact = residual().astype(np.float64)
    rows = tree["dec_res_post_mlp"]["x"].sel(layer=3)
    assert rows.mean().item() == pytest.approx(exact.mean(), rel=1e-4)
    assert np.allclose(rows.mean("dec_token"), exact.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert np.allclose(rows.std("dec_token"), exact.std(axis=0), rtol=1e-5)
    received = tree["dec_self_attn"]["attn"].sel(layer=3, head=1).isel(example=0).sum("query").values
    assert np.allclose(received[:300], pattern(0)[0, 1].astype(np.float64).sum(axis=0), rtol=1e-6)


def test_every_float16_is_widened_exactly(run: Run) -> None:
    read = run.qkv("b", "v", 3)[0, 0]
    assert np.array_equal(read.view(np.uint32), FINITE.astype(np.float32).view(np.uint32))  # -0.0 and the smallest, too


READ: dict[str, Callable[..., Any]] = {
    "attn": lambda run, **how: run.attn("a", **how),
    "qkv": lambda run, **how: run.qkv("a", "v", **how),
    "get": lambda run, **how: run.get("a", "resid_post", **how),
    "resid": lambda run, **how: run.resid("a", "post_mlp", **how),
    "activations": lambda run, **how: run.activations("resid_post", 3, **how),
    "activations of heads": lambda run, **how: run.activations("v", 3, **how),
    "stream": lambda run, **how: next(run.stream("resid_post", 3, **how)),
    "shuffled stream": lambda run, **how: next(run.stream("resid_post", 3, shuffle=True, **how)),
    "head": lambda run, **how: next(run.head("attn", 3, 1, **how))[1],
    "cache": lambda run, **how: run.cache("a", **how)["blocks.3.hook_resid_post"],
}


@pytest.mark.parametrize("name", READ)
def test_who_asks_for_what_is_stored_gets_it(run: Run, name: str) -> None:
    wide, stored = READ[name](run), READ[name](run, dtype="stored")
    assert (wide.dtype, stored.dtype) == (np.float32, np.float16)
    assert np.array_equal(wide.astype(np.float16), stored)


def test_a_tree_of_what_is_stored(run: Run) -> None:
    if run.folder is not None:
        rows: Any = run.to_xarray(dtype="stored")["dec_res_post_mlp"]["x"]
        assert rows.dtype == rows.values.dtype == np.float16
        assert np.array_equal(rows.values[0], residual())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_runs_are_read_as_float32_either_way(tmp_path: Path, dtype: Any) -> None:
    found = Run(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW, dtype=dtype)))
    for how in ("float32", "stored"):
        assert found.activations("embed", dtype=how).dtype == np.float32
