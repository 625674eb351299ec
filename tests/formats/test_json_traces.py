"""Files of nanochat traces, against json itself and traces that another script wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.formats.foreign import LAYERS, PROMPT, RESPONSE, N, T, documented, original, tensor, truth, write
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.formats.nanochat_json.trace_writer import write_trace
from traceformer.formats.nanochat_json.traces import Captures, Tensor, Trace, TraceHead, read_head, read_trace

HEAD = TraceHead("trace_a", "2024-11-02T14:30:22", 'a "data": [1, 2], prompt', "röd 🙂\n", None, {})


def test_a_documented_trace_is_read_as_it_says(tmp_path: Path) -> None:
    own = truth()
    trace = read_trace(write(tmp_path / "a.json", documented()))
    assert trace.head.response == " Paris."
    assert trace.head.metadata == {"model_source": "sft", "temperature": 0.6}
    assert (list(trace.input_tokens), list(trace.output_tokens)) == (PROMPT, RESPONSE)
    data = trace.model_data
    assert data.token_embeddings is not None
    assert data.output_logits is not None
    assert np.array_equal(data.token_embeddings.array()[0], own.embeddings)
    assert np.array_equal(data.output_logits.array()[0], own.logits[N - 1 : T - 1])
    for layer in range(LAYERS):
        assert np.array_equal(data.attention[layer].array()[0], own.attention[layer])
        assert np.array_equal(data.activations[layer]["post_attn"].array()[0], own.activations[layer, 1])


@pytest.mark.parametrize("options", [{"indent": None}, {"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}])
def test_any_layout_and_order_of_members_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    trace = read_trace(write(tmp_path / "a.json", documented(), **options))
    assert np.array_equal(trace.model_data.attention[1].array()[0], truth().attention[1])
    assert read_head(tmp_path / "a.json") == trace.head


def test_data_may_be_the_last_member_of_a_tensor(tmp_path: Path) -> None:
    data = documented()
    embeddings = data["model_data"]["token_embeddings"]
    data["model_data"]["token_embeddings"] = {name: embeddings[name] for name in ("dtype", "shape", "data")}
    found = read_trace(write(tmp_path / "a.json", data)).model_data.token_embeddings
    assert found is not None
    assert np.array_equal(found.array()[0], truth().embeddings)


def test_what_the_original_code_left_out_is_put_together(tmp_path: Path) -> None:
    for steps in (False, True):
        head = read_head(original(tmp_path, steps=steps))
        assert head.response == " Paris."
        assert head.timestamp == "2024-11-02T14:30:22.123456"
        assert head.metadata["generation_params"]["seed"] == 42
    trace = read_trace(tmp_path / "trace_20241102_143022_123456.json")
    assert trace.model_data == Captures()
    steps_found = list(trace.steps or ())
    assert [step.attention[0].shape for step in steps_found] == [(1, 3, 5, 5), (1, 3, 1, 6), (1, 3, 1, 7)]


def test_numbers_in_metadata_stay_where_they_are(tmp_path: Path) -> None:
    metadata = {"data": [1, 2], "deep": {"data": [[1.5], [2]], "shape": 3}, "number": {"data": 0}}
    trace = read_trace(write(tmp_path / "a.json", documented(metadata=metadata)))
    assert trace.head.metadata == metadata
    assert np.array_equal(trace.model_data.attention[1].array()[0], truth().attention[1])


def whole(seed: int = 0) -> Trace:
    random = np.random.default_rng(seed)

    def numbers(*shape: int) -> Tensor:
        return Tensor.of(random.standard_normal(shape).astype(np.float32))

    captures = Captures(
        numbers(1, 4, 3),
        numbers(1, 2, 7),
        {0: numbers(1, 2, 4, 4), 5: numbers(1, 2, 4, 4)},
        {0: {"post_attn": numbers(1, 4, 3)}, 5: {"post_attn": numbers(1, 4, 3)}},
    )
    return Trace(HEAD, (1, 2), (3, 4), captures, [Captures(numbers(1, 2, 3)), Captures()], {"dec.q": numbers(1, 1, 2)})


def test_what_is_written_is_plain_json_of_the_documents_structure(tmp_path: Path) -> None:
    trace = whole()
    write_trace(tmp_path / "new/a.json", trace)
    data = json.loads((tmp_path / "new/a.json").read_text(encoding="utf-8"))
    assert data.pop("traceformer")["arrays"]["dec.q"]["shape"] == [1, 1, 2]
    expected = documented()
    assert list(data) == list(expected)
    assert list(data["model_data"]) == list(expected["model_data"])
    assert list(data["tokens"]) == list(expected["tokens"])
    assert data["prompt"] == HEAD.prompt
    assert data["response"] == HEAD.response
    assert list(data["model_data"]["attention_weights"]) == ["layer_0", "layer_5"]
    assert [list(step) for step in data["intermediate_steps"]] == [["step", *expected["model_data"]]] * 2
    for layer, own in trace.model_data.attention.items():
        written = data["model_data"]["attention_weights"][f"layer_{layer}"]
        expected_tensor = tensor(own.array()[0])
        assert {**written, "data": 0} == {**expected_tensor, "data": 0}
        # json gives doubles: 0.1 in place of 0.10000000149. As float32 they are the same.
        assert np.array_equal(np.array(written["data"], np.float32), np.array(expected_tensor["data"], np.float32))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    trace = whole()
    write_trace(tmp_path / "a.json", trace)
    found = read_trace(tmp_path / "a.json")
    assert found.head == HEAD
    pairs = zip(found.model_data.tensors(), trace.model_data.tensors(), strict=True)
    assert all(np.array_equal(new.array(), old.array()) for new, old in pairs)
    assert np.array_equal(found.further["dec.q"].array(), trace.further["dec.q"].array())
    write_trace(tmp_path / "b.json", found)  # without having looked at the numbers
    assert (tmp_path / "b.json").read_text() == (tmp_path / "a.json").read_text()


@settings(deadline=None)  # files, on a machine that others use too
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4, min_side=0).map(lambda shape: (1, *shape)),
        elements={"allow_nan": False},
    )
)
def test_every_number_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("bits") / "a.json"
    write_trace(path, Trace(HEAD, further={"dec.q": Tensor.of(array)}))
    back = read_trace(path).further["dec.q"].array().astype(array.dtype)
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    nested = json.loads(path.read_text())["traceformer"]["arrays"]["dec.q"]["data"]
    assert np.array_equal(np.array(nested, array.dtype).reshape(array.shape), array)


def test_every_size_of_a_float32_comes_back(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)].reshape(1, -1)
    write_trace(tmp_path / "a.json", Trace(HEAD, further={"dec.q": Tensor.of(numbers)}))
    assert read_trace(tmp_path / "a.json").further["dec.q"].array().tobytes() == numbers.tobytes()


def test_blocks_of_a_tensor_may_be_cut_anywhere_between_rows(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    cut = Tensor(array.shape, "torch.float32", blocks=lambda: (array[0, 0], array[0, 1, :1], array[0, 1, 1:]))
    write_trace(tmp_path / "a.json", Trace(HEAD, model_data=Captures(cut)))
    assert json.loads((tmp_path / "a.json").read_text())["model_data"]["token_embeddings"]["data"] == array.tolist()


def test_a_failure_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "trace_a.json", documented())
    before = path.read_bytes()
    short = Tensor((1, 3, 4), "torch.float32", blocks=lambda: (np.zeros((2, 4), np.float32),))
    with pytest.raises(UsageError, match="came in 2 rows"):
        write_trace(path, Trace(HEAD, model_data=Captures(short)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_head_is_read_without_what_follows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", documented(prompt="x" * 100_000 + "é" * 3000))
    beginning = path.read_bytes()
    path.write_bytes(beginning[: beginning.index(b'"tokens"') + 20] + b" and this is no JSON")
    head = read_head(path)
    assert (len(head.prompt), head.category) == (103_000, "geography")


@pytest.mark.parametrize("trace_id", ["../up", "a/b", "..", "", "a b", "/etc/passwd"])
def test_trace_ids_that_are_paths_are_refused(tmp_path: Path, trace_id: str) -> None:
    with pytest.raises(UsageError, match="no trace id"):
        write_trace(tmp_path / "a.json", Trace(TraceHead(trace_id, "", "", "")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b'{"trace_id": 3, "prompt": ""}', b'{"a": 1}', b'{"trace_id": "x"', b"\xff\xfe{}"],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_head, read_trace):
        with pytest.raises(Unreadable):
            read(path)
    with pytest.raises(NotFound):
        read_trace(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 2, 2]},
        {"data": [[[1, 2, None]]], "shape": [1, 1, 3]},
        {"data": [[["x", 2]]], "shape": [1, 1, 2]},
        {"data": [[[1, 2], []]], "shape": [1, 2, 1]},
        {"data": [[[1]], [[2]]], "shape": [2, 1, 1]},
        {"shape": None},
        {"data": 3},
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = documented()
    data["model_data"]["token_embeddings"] |= change
    with pytest.raises(Unreadable):
        read_trace(write(tmp_path / "a.json", data)).model_data.token_embeddings.array()  # pyright: ignore
