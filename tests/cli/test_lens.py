"""`traceformer lens` as a user meets it: on recorded tiny models, whose last layer must say what they predict."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from traceformer.cli import main
from traceformer.store.run import TraceStore

Capture = pytest.CaptureFixture[str]
FAMILIES = ("gemma2", "qwen2", "llama", "gpt2")


@pytest.fixture
def record(tiny_folder: Callable[..., Path], text_file: Path, capsys: Capture) -> Callable[..., TraceStore]:
    """Records a tiny model, a copy of whose folder is `./FAMILY`, into `traces/FAMILY`."""

    def recorded(family: str, capture: str = "resid_post logits", more: str = "") -> TraceStore:
        if not Path(family).exists():
            shutil.copytree(tiny_folder(family), family)
        line = f"extract --model ./{family} --dataset {text_file} --capture {capture} --dtype float32 --device cpu"
        assert main([*line.split(), "--out_dir", f"traces/{family}", "--overwrite", *more.split()]) == 0
        capsys.readouterr()
        return TraceStore(f"traces/{family}")

    return recorded


def lens(capsys: Capture, arguments: str) -> str:
    code = main(["lens", *arguments.split()])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_says_what_the_model_predicts(
    family: str, capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    store = record(family)
    for example_id in store.ids[:3]:
        told = json.loads(lens(capsys, f"{family} --example {example_id} --top-k 4 --json"))
        probabilities = softmax(store.get(example_id, "logits"))
        ids = np.argsort(-probabilities, axis=1, kind="stable")[:, :4]
        assert told["layers"] == [0, 1, 2]
        assert told["top_ids"][-1] == ids.tolist()
        np.testing.assert_allclose(told["top_probabilities"][-1], np.take_along_axis(probabilities, ids, 1), rtol=1e-3)
        came = store.encodings(example_id)["input_ids"][1:]
        assert [each["id"] for each in told["targets"][:-1]] == came
        assert told["targets"][-1] is told["target_rank"][-1][-1] is None
        own = probabilities[np.arange(len(came)), came]
        np.testing.assert_allclose(told["target_probability"][-1][:-1], own, rtol=1e-3)


def test_hidden_states_serve_as_well(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("gemma2")
    from_residual = json.loads(lens(capsys, "gemma2 --example 2 --json"))
    record("gemma2", capture="hidden")
    from_hidden = json.loads(lens(capsys, "gemma2 --example 2 --json"))
    assert from_hidden["array"] == "dec.hidden"
    assert from_hidden["layers"] == [0, 1, 2]
    assert from_hidden["top_ids"] == from_residual["top_ids"]
    np.testing.assert_allclose(from_hidden["entropy"], from_residual["entropy"], rtol=1e-5)


def test_a_grid_shows_layers_and_positions_the_rest_is_one_position(
    capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    store = record("llama")
    grid = lens(capsys, "llama --example 2").splitlines()
    assert grid[2].split() == ["position", "token", "L0", "L1", "L2", "came"]
    assert len(grid) == 3 + store.length(store.ids[2])
    one = lens(capsys, "llama --example 2 --position 3 --layers 0,2 --top-k 2").splitlines()
    assert one[2].startswith("position 3, ")
    assert [line.split()[0] for line in one[3:]] == ["layer", "L0", "L2"]


def test_a_picture_is_made(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("gpt2")
    lens(capsys, "gpt2 --example 2 --png made/lens.png")
    with Image.open("made/lens.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


def test_torch_is_not_imported(record: Callable[..., TraceStore]) -> None:
    record("gpt2")
    code = "import sys; from traceformer.cli import main; main(['lens', 'gpt2']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_model_that_moved_is_found_where_it_is_said_to_be(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("gpt2")
    before = lens(capsys, "gpt2 --example 2")
    Path("gpt2").rename("elsewhere")
    assert main(["lens", "gpt2"]) == 3
    told = capsys.readouterr().err
    assert "no model at ./gpt2" in told
    assert "--model FOLDER" in told
    assert lens(capsys, "gpt2 --example 2 --model elsewhere") == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_model_that_changed_is_refused_with_both_digests(
    file: str, capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    from traceformer.models.weights import files_digest

    store = record("gpt2")
    content = bytearray((Path("gpt2") / file).read_bytes())
    content[-2:] = b"\n}" if file == "config.json" else b"\0\0"
    content += b"\n" if file == "config.json" else b""
    (Path("gpt2") / file).write_bytes(content)
    assert main(["lens", "gpt2"]) == 3
    told = capsys.readouterr().err
    assert store.meta["model_files"] in told
    assert files_digest(Path("gpt2")) in told


def test_a_run_that_knows_no_digest_of_the_files_is_checked_by_its_weights(
    capsys: Capture,
    record: Callable[..., TraceStore],
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("traceformer.capture.provenance.digest_of_model", lambda *_: None)
    store = record("gpt2")
    assert lens(capsys, "gpt2").startswith("dec.resid_post")
    assert store.meta["model_files"] is None
    shutil.rmtree("gpt2")
    shutil.copytree(tiny_folder("gpt2", seed=1), "gpt2")
    assert main(["lens", "gpt2"]) == 3
    assert store.meta["configuration"]["model weights"] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--layers 3", 2, "layers 0, 1, 2 of dec.resid_post"),
        ("--position 99", 2, "positions 0-"),
        ("--example nope", 3, "no example 'nope'"),
        ("--top-k 100", 2, "99 words"),
        ("--top-k 0", 2, "a whole number from 1"),
        ("--png x.txt", 2, "no picture format"),
        ("--model nowhere", 3, "no model at nowhere"),
    ],
)
def test_what_cannot_be_seen_is_refused(
    arguments: str, code: int, message: str, capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    record("gpt2")
    assert main(["lens", "gpt2", *arguments.split()]) == code
    assert message in capsys.readouterr().err


def test_a_run_without_a_residual_stream_is_told_so(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("gpt2", capture="resid_mid")
    assert main(["lens", "gpt2"]) == 3
    assert "--capture resid_post" in capsys.readouterr().err


def test_what_was_read_out_while_recording_is_shown_without_the_model(
    capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    record("gemma2")
    whole = json.loads(lens(capsys, "gemma2 --example 2 --top-k 4 --json"))
    record("gemma2", capture="final_norm", more="--lens-top-k 4")
    shutil.rmtree("gemma2")
    told = json.loads(lens(capsys, "gemma2 --example 2 --json"))
    assert told["array"] == "dec.lens_topk"
    assert [told[name] for name in ("layers", "top_ids")] == [whole[name] for name in ("layers", "top_ids")]
    np.testing.assert_allclose(told["top_probabilities"], whole["top_probabilities"], atol=1e-5)
    for layer in range(3):  # what came is known where it is among the likeliest
        for rank, known in zip(whole["target_rank"][layer], told["target_rank"][layer], strict=True):
            assert known == (rank if rank is not None and rank <= 4 else None)
        for known, own in zip(told["target_probability"][layer], told["target_rank"][layer], strict=True):
            assert (known is None) == (own is None)
        assert set(told["entropy"][layer]) == {None}
    shown = lens(capsys, "gemma2 --example 2 --position 3").splitlines()
    assert shown[3].split() == ["layer", "came", "rank", "likeliest"]
    assert [row.split()[0] for row in shown[4:]] == ["L0", "L1", "L2"]
    part = json.loads(lens(capsys, "gemma2 --example 2 --layers 1 --position 2,3 --top-k 2 --json"))
    assert part["top_ids"] == [[row[:2] for row in whole["top_ids"][1][2:4]]]
    assert (part["layers"], part["positions"]) == ([1], [2, 3])
    assert part["target_rank"] == [told["target_rank"][1][2:4]]
    lens(capsys, "gemma2 --example 2 --png made/lens.png")
    assert main(["lens", "gemma2", "--top-k", "5"]) == 3
    assert "holds 4 of each layer" in capsys.readouterr().err
    assert main(["lens", "gemma2", "--layers", "7"]) == 2
    assert "layers 0, 1, 2 of dec.lens_topk" in capsys.readouterr().err


def test_ids_are_shown_as_they_are_and_have_no_statistics(
    capsys: Capture, record: Callable[..., TraceStore], tmp_path: Path
) -> None:
    store = record("gpt2", capture="resid_mid", more="--lens-top-k 2")
    ids = store.get(store.ids[2], "lens_topk", 1).tolist()
    one = ["inspect", "gpt2", "--example", "2", "--site", "lens_topk", "--layer", "1"]
    assert main(one) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[-2:] for row in rows] == [[str(each) for each in row] for row in ids]
    assert main([*one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == ids
    assert main(["analyze", "gpt2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["activations"]
    assert [each["array"] for each in told] == ["dec.resid_mid", "dec.lens_topk_prob"]
    assert main(["verify", "gpt2"]) == 0
    np.save(tmp_path / "v.npy", np.ones(2, np.float32))
    assert main(["project", "gpt2", "--vector", str(tmp_path / "v.npy"), "--site", "lens_topk"]) == 2
    assert "dec.lens_topk is no activation" in capsys.readouterr().err


@pytest.mark.filterwarnings("always:lens_topk")
@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [("json --lossless", True), ("pt --lossless", True), ("safetensors", False), ("padded-zarr", False)],
)
def test_an_export_takes_ids_along_or_says_that_it_does_not(
    arguments: str, left_out: bool, capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    store = record("llama", capture="resid attn", more="--lens-top-k 3")
    name, *more = arguments.split()
    assert main(["export", "llama", "--format", name, *more, "--output", "out"]) == 0
    told = capsys.readouterr().err
    assert ("lens_topk and lens_topk_prob are left out" in told) == left_out
    files = [str(path) for path in sorted(Path("out").rglob("*")) if path.suffix in (".json", ".pt")]
    chosen = ["out/manifest.json"] if name == "safetensors" else ["out/meta.json"] if name == "padded-zarr" else files
    assert main(["import", *chosen, "--out-dir", "traces/back"]) == 0
    back = TraceStore("traces/back")
    kept = {str(spec.key) for spec in back.layout.arrays}
    lens_arrays = {"dec.lens_topk", "dec.lens_topk_prob"}
    assert {str(spec.key) for spec in store.layout.arrays} - kept == (lens_arrays if left_out else set())
    for example_id in () if left_out else store.ids:
        found = back.get(example_id, "lens_topk")
        assert found.dtype == np.int32
        assert np.array_equal(found, store.get(example_id, "lens_topk"))


def test_an_encoder_predicts_no_next_token(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("bert", capture="resid_post")
    assert main(["lens", "bert"]) == 4
    assert "encoder" in capsys.readouterr().err
