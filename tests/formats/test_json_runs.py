"""Runs as nanochat traces and back, and other people's traces as runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.formats.foreign import (
    HEADS,
    LAYERS,
    PROMPT,
    RESPONSE,
    D,
    N,
    T,
    Truth,
    V,
    documented,
    of_the_prompt,
    truth,
    write,
)
from tests.formats.foreign import original as write_original
from tests.marks import slow
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import NotRecorded, RunExists, Unreadable, Unsupported
from traceformer.formats.nanochat_json.read import read_files, recognises
from traceformer.formats.nanochat_json.write import trace_of, write_files
from traceformer.formats.options import ExportOptions, ImportOptions
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

SITES = {"pre_attn_norm": "attn_norm", "post_attn": "attn_out", "pre_mlp_norm": "mlp_norm", "post_mlp": "mlp_out"}


def spec(site: str) -> ArraySpec:
    key = ArrayKey.parse(f"dec.{'self.' if site in ('attn_pattern', 'attn_norm', 'attn_out') else ''}{site}")
    layers = (0, 1) if key.site not in ("token_embed", "logits") else ()
    heads = tuple(range(HEADS)) if site == "attn_pattern" else ()
    return ArraySpec(key, layers, heads, {"logits": V, "attn_pattern": 0}.get(site, D))


ALL = tuple(spec(site) for site in ("token_embed", "attn_pattern", *SITES.values(), "logits"))


def value(own: Truth, site: str) -> np.ndarray:
    if site in SITES.values():
        return own.activations[:, list(SITES.values()).index(site)]
    return {"token_embed": own.embeddings, "logits": own.logits, "attn_pattern": own.attention}[site]


@pytest.fixture
def generated(tmp_path: Path) -> TraceStore:
    """A run of two responses, as `traceformer generate` leaves it, of the numbers in foreign.py."""
    layout = RunLayout.plan(arch="dec", arrays=ALL, n_examples=2, longest={"dec": T}, dtype="float32")
    meta = {"run_id": "r", "model": "nanochat:sft:d2:1", "generation": {"capture_steps": False}, "dims": {"dec": {}}}
    with RunWriter.create(tmp_path / "run", layout, {**meta, "arch": "dec"}, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [T, T]})
        for example in range(2):
            for each in ALL:
                buffer.put(each, example, value(truth(example), each.key.site))
        columns: dict[str, Any] = {
            "example_id": ["set-1", "set-2"],
            "text": ["The capital of France is Paris."] * 2,
            "input_ids": [PROMPT + RESPONSE] * 2,
            "tokens": [[f"t{i}" for i in PROMPT + RESPONSE]] * 2,
            "n_prompt": [N, N],
            "prompt": ["The capital of France is"] * 2,
            "response": [" Paris."] * 2,
            "category": pa.array(["geography", None]),
            "timestamp": ["2024-11-02T14:30:22.123456"] * 2,
            "temperature": [0.6] * 2,
            "top_p": pa.array([None, None], pa.float64()),
        }
        writer.commit(0, buffer, pa.table(columns))
        return TraceStore(writer.finish())


def exported(store: TraceStore, folder: Path, **options: Any) -> list[Path]:
    return list(write_files(store, folder, ExportOptions(**options)))


def imported(files: list[Path], folder: Path) -> TraceStore:
    return TraceStore(read_files(files, ImportOptions(folder)))


def array(data: dict[str, Any]) -> np.ndarray:
    """A tensor's numbers, as anyone would read them."""
    numbers = np.array(data["data"], np.float32)
    assert list(numbers.shape) == data["shape"]
    assert data["dtype"] == "torch.float32"
    return numbers[0]


def same(data: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two objects have the same members all the way down, tensors the same numbers."""
    if set(data) != set(expected):
        return False
    if "shape" in data:
        return np.array_equal(array(data), array(expected))
    return all(
        same(data[name], expected[name]) if isinstance(expected[name], dict) else data[name] == expected[name]
        for name in data
    )


def test_an_export_has_a_nanochat_traces_structure_member_by_member(generated: TraceStore, tmp_path: Path) -> None:
    files = exported(generated, tmp_path / "out")
    assert [path.name for path in files] == [
        "trace_20241102_143022_123456_set-1.json",
        "trace_20241102_143022_123456_set-2.json",
    ]
    data = json.loads(files[0].read_text(encoding="utf-8"))
    expected = documented(data["trace_id"])
    assert data["metadata"].pop("traceformer")["example_id"] == "set-1"
    assert list(data) == list(expected)
    assert same(data, expected)


def test_steps_are_those_of_the_original_code(generated: TraceStore, tmp_path: Path) -> None:
    [path, _] = exported(generated, tmp_path / "out", steps=True)
    steps = json.loads(path.read_text())["intermediate_steps"]
    expected = json.loads(write_original(tmp_path, steps=True).read_text())["intermediate_steps"]
    assert [list(step) for step in steps] == [list(step) for step in expected]
    assert all(same(step, other) for step, other in zip(steps, expected, strict=True))


def test_without_a_response_all_logits_are_there(tmp_path: Path) -> None:
    layout = runs.plan(arrays=[runs.spec("dec.logits"), runs.spec("dec.self.attn_pattern")], dtype="float32")
    store = TraceStore(runs.write(tmp_path / "run", layout))
    [path] = exported(store, tmp_path / "out", example_ids=(runs.name(2),))
    data = json.loads(path.read_text())
    assert data["response"] == ""
    assert data["tokens"]["output_tokens"] == []
    assert np.array_equal(array(data["model_data"]["output_logits"]), store.get(runs.name(2), "logits"))
    weights = data["model_data"]["attention_weights"]
    assert list(weights) == ["layer_1", "layer_4"]  # the model's own numbers
    assert np.array_equal(array(weights["layer_4"]), store.attn(runs.name(2), 4))


def assert_equal_runs(new: TraceStore, old: TraceStore, *, but: tuple[str, ...] = ()) -> None:
    assert new.ids == old.ids
    assert {each.key for each in new.layout.arrays} == {each.key for each in old.layout.arrays} - set(but)
    assert new.dtype == old.dtype
    for each in new.layout.arrays:
        assert old.layout.spec(each.key) == each
        for eid in old.ids:
            assert new.get(eid, each.key).tobytes() == old.get(eid, each.key).tobytes()
    places = ["shard", "slot", "attention_mask", "metadata"]
    tables = [store.tokens.drop(columns=places, errors="ignore") for store in (new, old)]
    assert tables[0][list(tables[1])].to_json() == tables[1].to_json()


def test_a_lossless_export_says_that_it_leaves_rows_of_whole_texts_out(tmp_path: Path) -> None:
    arrays = [runs.spec("dec.class_logits"), runs.spec("dec.token_embed")]
    old = TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=arrays, n_examples=1)))
    with pytest.warns(UserWarning, match=r"dec\.class_logits left out: nanochat traces hold rows of tokens"):
        files = exported(old, tmp_path / "out", lossless=True)
    assert [str(each.key) for each in imported(files, tmp_path / "back").layout.arrays] == ["dec.token_embed"]


@pytest.mark.parametrize("dtype", ["float16", slow("float32"), slow("bfloat16")])
def test_a_lossless_export_gives_the_whole_run_back(tmp_path: Path, dtype: str) -> None:
    # Ids and rows of whole texts are left out, with a warning.
    arrays = [each for each in runs.DEC if not each.site.is_derived and not each.site.is_per_example]
    planned = runs.plan(arrays=arrays, n_examples=5, shard_examples=2, dtype=dtype)
    old = TraceStore(runs.write(tmp_path / "run", planned))
    files = exported(old, tmp_path / "out", lossless=True)
    new = imported(files, tmp_path / "back")
    assert_equal_runs(new, old)
    assert new.meta["dims"] == old.meta["dims"]
    assert "unknown_rows" not in new.meta


def test_an_export_gives_back_all_that_a_nanochat_trace_holds(generated: TraceStore, tmp_path: Path) -> None:
    new = imported(exported(generated, tmp_path / "out"), tmp_path / "back")
    assert new.meta["unknown_rows"] == "NaN"
    for eid in generated.ids:
        for each in ALL:
            expected = generated.get(eid, each.key).copy()
            if each.key.site == "logits":
                expected[[*range(N - 1), T - 1]] = np.nan
            assert np.array_equal(new.get(eid, each.key), expected, equal_nan=True)
    again = exported(new, tmp_path / "again")
    assert [path.name for path in again] == [
        path.name for path in exported(generated, tmp_path / "out", overwrite=True)
    ]
    for path in again:
        ours, theirs = (json.loads((folder / path.name).read_text()) for folder in (path.parent, tmp_path / "out"))
        assert same({**ours, "metadata": {}}, {**theirs, "metadata": {}})


def test_a_documented_trace_becomes_a_run(tmp_path: Path) -> None:
    store = imported([write(tmp_path / "trace_documented.json", documented())], tmp_path / "run")
    assert store.ids == ("trace_documented",)
    row = store.tokens.iloc[0]
    assert (row.n_prompt, row.response, row.category) == (N, " Paris.", "geography")
    assert json.loads(row.metadata) == {"model_source": "sft", "temperature": 0.6}
    for each in ALL:
        expected = value(truth(), each.key.site).copy()
        if each.key.site == "logits":
            expected[[*range(N - 1), T - 1]] = np.nan
        assert np.array_equal(store.get("trace_documented", each.key), expected, equal_nan=True)


def known_part(site: str, rows: range, logits: range) -> np.ndarray:
    expected = np.full_like(value(truth(), site), np.nan)
    for row in logits if site == "logits" else rows:
        if site == "attn_pattern":
            expected[:, :, row] = truth().attention[:, :, row]
        else:
            expected[..., row, :] = value(truth(), site)[..., row, :]
    return expected


def test_the_documentations_own_example_has_squares_over_the_prompt(tmp_path: Path) -> None:
    store = imported([write(tmp_path / "trace_prompt.json", of_the_prompt())], tmp_path / "run")
    for each in ALL:
        expected = known_part(each.key.site, range(N), range(N - 1, T - 1))
        assert np.array_equal(store.get("trace_prompt", each.key), expected, equal_nan=True)


@pytest.mark.parametrize("steps", [False, True])
def test_what_the_original_code_wrote_is_put_in_its_place(tmp_path: Path, steps: bool) -> None:
    path = write_original(tmp_path / "traces", steps=steps)
    assert recognises(path)
    assert not recognises(path.with_name(f"{path.stem}_metadata.json").with_suffix(".txt"))
    store = imported([path], tmp_path / "run")
    rows = range(T - 1) if steps else range(T - 2, T - 1)
    for each in ALL:
        expected = known_part(each.key.site, rows, range(N - 1, T - 1) if steps else rows)
        if steps and each.key.site == "logits":
            expected[: N - 1] = truth().logits[: N - 1]
        assert np.array_equal(store.get(store.ids[0], each.key), expected, equal_nan=True)
    assert store.tokens.response[0] == " Paris."
    assert trace_of(store, store.ids[0]).model_data.attention[0].shape == (
        (1, HEADS, T - 1, T - 1) if steps else (1, HEADS, 1, T - 1)
    )


def test_several_traces_make_one_run(tmp_path: Path) -> None:
    files = [write(tmp_path / f"trace_{i}.json", documented(f"trace_{i}", truth(i))) for i in range(5)]
    store = imported(files, tmp_path / "run")
    assert store.ids == tuple(f"trace_{i}" for i in range(5))
    assert all(np.array_equal(store.attn(f"trace_{i}"), truth(i).attention) for i in range(5))


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    own = truth()
    bits = [each.view(np.uint32) & np.uint32(0xFFFF0000) for each in (own.embeddings, own.logits, own.attention)]
    embeddings, logits, attention = (each.view(np.float32) for each in bits)
    activations = (own.activations.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    data = documented("trace_b", Truth(embeddings, logits, attention, activations))
    text = json.dumps(data).replace("torch.float32", "torch.bfloat16")
    (tmp_path / "trace_b.json").write_text(text, encoding="utf-8")
    store = imported([tmp_path / "trace_b.json"], tmp_path / "run")
    assert store.dtype == "bfloat16"
    assert np.array_equal(store.attn("trace_b"), attention)


def change(path: tuple[str, ...], new: Any) -> dict[str, Any]:
    data = documented()
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = new
    return data


TENSOR = {"data": [[[1.0]]], "shape": [1, 1, 1]}
NOTHING = {"token_embeddings": None, "output_logits": None, "attention_weights": {}, "layer_activations": {}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (change(("tokens",), {}), "has no tokens"),
        (change(("model_data",), NOTHING), "no model data"),
        (change(("model_data", "token_embeddings"), {"data": [[[1.0] * D] * 2], "shape": [1, 2, D]}), None),
        (change(("model_data", "token_embeddings"), {"data": [[[1.0] * D] * 9], "shape": [1, 9, D]}), "9 rows"),
        (change(("model_data", "layer_activations", "layer_1"), {"mystery": TENSOR}), "mystery"),
        (change(("model_data", "attention_weights", "extra"), {"data": [[]], "shape": [1, 0]}), "'extra'"),
        (change(("model_data", "output_logits", "data"), [[[float("nan")] * V] * 3]), "NaN"),
        (change(("model_data", "output_logits", "data"), [[[1e39] * V] * 3]), "infinite"),
        (change(("model_data", "output_logits", "dtype"), "torch.float64"), "float32 cannot hold"),
    ],
)  # fmt: skip
def test_what_makes_no_run_is_refused(tmp_path: Path, data: dict[str, Any], message: str | None) -> None:
    if data["model_data"]["output_logits"] and data["model_data"]["output_logits"]["dtype"] == "torch.float64":
        data["model_data"]["output_logits"]["data"] = [[[0.1] * V] * 3]
    path = write(tmp_path / "trace_a.json", data)
    if message is None:  # with attention, fewer rows are the last ones
        store = imported([path], tmp_path / "run")
        assert np.isnan(store.get(store.ids[0], "token_embed")[: T - 2]).all()
        return
    with pytest.raises(Unreadable, match=message):
        imported([path], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_traces_of_different_models_are_not_mixed(tmp_path: Path) -> None:
    first = write(tmp_path / "trace_1.json", documented("trace_1"))
    other = documented("trace_2")
    del other["model_data"]["attention_weights"]["layer_1"]
    with pytest.raises(Unreadable, match="other arrays"):
        imported([first, write(tmp_path / "trace_2.json", other)], tmp_path / "run")


def test_what_has_no_place_in_a_nanochat_trace_is_refused(tmp_path: Path, generated: TraceStore) -> None:
    none = TraceStore(runs.write(tmp_path / "a", runs.plan(arrays=[runs.spec("dec.resid_mid")])))
    with pytest.raises(NotRecorded):
        exported(none, tmp_path / "out")
    both = TraceStore(runs.write(tmp_path / "b", runs.plan("encdec")))
    with pytest.raises(Unsupported):
        exported(both, tmp_path / "out")
    exported(generated, tmp_path / "out")
    with pytest.raises(RunExists):
        exported(generated, tmp_path / "out")


def test_an_example_whose_name_is_no_file_name_gets_one(tmp_path: Path) -> None:
    layout = RunLayout.plan(arch="dec", arrays=[spec("token_embed")], n_examples=2, longest={"dec": 1})
    with RunWriter.create(tmp_path / "run", layout, {"time": "2026-01-02 03:04:05"}, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [1, 1]})
        for example in range(2):
            buffer.rows(spec("token_embed").key, example)[...] = 1
        ids = ["../../x", "..-..-x"]
        writer.commit(0, buffer, pa.table({"example_id": ids, "input_ids": [[1], [1]], "text": ["", ""]}))
        store = TraceStore(writer.finish())
    names = [path.name for path in exported(store, tmp_path / "out")]
    assert len(set(names)) == 2
    assert all(name.startswith("trace_20260102_030405_") and "/" not in name for name in names)


def test_layers_and_sizes_of_the_truth_are_as_the_tests_assume() -> None:
    assert truth().attention.shape == (LAYERS, HEADS, T, T)


def test_a_run_with_unknown_positions_goes_out_and_in_again(tmp_path: Path) -> None:
    old = imported([write_original(tmp_path / "old", steps=False)], tmp_path / "run")
    new = imported(exported(old, tmp_path / "out", lossless=True), tmp_path / "back")
    assert new.meta["unknown_rows"] == "NaN"
    for each in ALL:
        eid = old.ids[0]
        assert np.array_equal(new.get(eid, each.key), old.get(eid, each.key), equal_nan=True)


def test_what_a_file_says_of_a_run_cannot_lead_out_of_the_folder(
    generated: TraceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path, _] = exported(generated, tmp_path / "out")
    data = json.loads(path.read_text())
    ours = data["metadata"]["traceformer"]
    ours["run"] |= {"model_name": "../../../elsewhere", "run_id": "/etc/x", "arch": "encdec"}
    ours["row"] |= {"input_ids": [9], "shard": 7, "slot": -1}
    monkeypatch.chdir(tmp_path)
    store = TraceStore(read_files([write(tmp_path / "trace_x.json", data)], ImportOptions()))
    assert store.folder.parent == Path("traces")
    assert store.arch == "dec"
    assert list(store.tokens.input_ids[0]) == PROMPT + RESPONSE
    assert store.tokens.shard[0] == 0


@pytest.mark.parametrize("name", ["arrays", "row", "tokens", "run"])
@pytest.mark.parametrize("value", [3, ["x"], {"a": 1}])
def test_a_damaged_description_of_the_run_is_refused(
    generated: TraceStore, tmp_path: Path, name: str, value: Any
) -> None:
    [path, _] = exported(generated, tmp_path / "out")
    data = json.loads(path.read_text())
    data["metadata"]["traceformer"][name] = value
    if (name, value) in (("row", {"a": 1}), ("run", {"a": 1})):
        imported([write(tmp_path / "trace_x.json", data)], tmp_path / "back")
        return
    with pytest.raises(Unreadable, match="traceformer"):
        imported([write(tmp_path / "trace_x.json", data)], tmp_path / "back")
