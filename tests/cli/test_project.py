"""`traceformer project` as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.cli.conftest import DIMS, META, SENTENCES, token_table
from traceformer.analysis.directions import Direction
from traceformer.cli import main
from traceformer.formats.results.directions import write_direction
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

Capture = pytest.CaptureFixture[str]
PROMPTS = [1, 2, 1]
ALONG = np.array([3, -4] + [0] * 6, np.float32)
ACROSS = np.array([0, 0, 2] + [0] * 5, np.float32)


def run(capsys: Capture, arguments: str) -> tuple[str, str]:
    """Returns what a command that must succeed prints on stdout and stderr."""
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out, shown.err


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A folder with a vector along the rows of `decoder_run`, one across them, and one per layer."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "along.npy", ALONG)
    torch.save(torch.from_numpy(ACROSS), folder / "across_layer5.pt")
    write_direction(Direction("both", {2: ACROSS, 5: ALONG}, {"site": "resid_post"}), folder / "both.safetensors")
    return folder


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    """`traces/gen`: three prompts and responses; token t of layer l is t at coordinate 0, and -l at coordinate 1."""
    spec = ArraySpec(ArrayKey("dec", None, "resid_post"), tuple(range(8)), width=8)
    lengths = [len(tokens) for tokens in SENTENCES]
    layout = RunLayout.plan(arch="dec", arrays=[spec], n_examples=3, longest={"dec": max(lengths)}, dtype="float32")
    with RunWriter.create(tmp_path / "traces/gen", layout, {**META, "dims": {"dec": DIMS}}, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": lengths})
        for example, length in enumerate(lengths):
            rows = np.zeros((8, length, 8), np.float32)
            rows[:, :, 0], rows[:, :, 1] = np.arange(length), -np.arange(8)[:, None]
            buffer.rows(spec.key, example)[...] = rows
        table = token_table(SENTENCES).append_column("n_prompt", pa.array([1, 2, 1]))
        writer.commit(0, buffer, table)
        return writer.finish()


def test_an_example_has_a_line_per_token(capsys: Capture, decoder_run: Path, vectors: Path) -> None:
    out, err = run(capsys, "project dec --vector vectors/along.npy --example 1")
    lines = out.splitlines()
    assert lines[0] == "along  L5  dec.resid_post  example ex1"
    assert lines[2].split() == ["position", "token", "projection", "cosine"]
    # Token t is t * (3, -4, 0, ...): 5 t along a vector of norm 5.
    assert [line.split()[-2:] for line in lines[3:7]] == [["0", "nan"], ["5", "1"], ["10", "1"], ["15", "1"]]
    assert "next: traceformer project traces/dec --vector vectors/along.npy --example ex1 --png ex1.png" in err


def test_all_examples_have_a_line_each(capsys: Capture, decoder_run: Path, vectors: Path) -> None:
    out, _ = run(capsys, "project dec --vector vectors/along.npy vectors/across_layer5.pt")
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[:5] for row in rows[::2]] == [
        ["ex0", "along", "3", "5", "1"],
        ["ex1", "along", "4", "7.5", "1"],
        ["ex2", "along", "1", "0", "0"],
    ]
    assert rows[1][:4] == ["ex0", "across_layer5", "3", "0"]


def test_a_generation_tells_prompt_and_response_apart(capsys: Capture, generation: Path, vectors: Path) -> None:
    np.save("first.npy", np.eye(8, dtype=np.float32)[0])
    out, _ = run(capsys, "project gen --vector first.npy --layer 5 --example 1")
    table = [line.split() for line in out.splitlines()]
    assert table[2] == ["position", "token", "projection", "cosine"]
    assert [row[1] for row in table[3:7]] == ["prompt", "prompt", "response", "response"]
    dynamics = table[-1]
    # The response is 2, 3: a mean of 2.5, a peak of 3 at position 3, one velocity of 1.
    assert dynamics == ["first", "L5", "2.5", "3", "at", "3", "1", "1", "0"]
    out, _ = run(capsys, "project gen --vector first.npy --layer 5")
    row = out.splitlines()[4].split()
    assert row[:6] == ["ex1", "first", "4", "1.5", "0.5", "2.5"]


def test_json_has_curves_cosines_and_dynamics(capsys: Capture, generation: Path, vectors: Path) -> None:
    told = json.loads(run(capsys, "project gen --vector vectors/both.safetensors --json")[0])
    assert told["array"] == "dec.resid_post"
    assert told["vectors"] == [{"name": "both", "layers": [2, 5], "site": "resid_post"}]
    first, second, _ = told["examples"]
    assert (second["example_id"], second["n_prompt"], second["tokens"]) == ("ex1", 2, list(SENTENCES[1]))
    at_2, at_5 = second["curves"]
    assert (at_2["layer"], at_5["layer"]) == (2, 5)
    assert at_2["projection"] == [0, 0, 0, 0]
    # t * 3 / 5 + 5 * 4 / 5
    assert at_5["projection"] == pytest.approx([4, 4.6, 5.2, 5.8])
    assert at_5["cosine"][0] == pytest.approx(4 / 5)
    assert at_5["dynamics"]["velocity"] == pytest.approx([0.6, 0.6, 0.6])
    assert at_5["dynamics"]["commitment_point"] == 0
    assert at_5["response_dynamics"]["velocity"] == pytest.approx([0.6])
    assert first["curves"][0]["dynamics"]["acceleration"] == [0]


def test_an_only_vector_serves_for_any_layer(capsys: Capture, generation: Path, vectors: Path) -> None:
    told = json.loads(run(capsys, "project gen --vector vectors/across_layer5.pt --layer all --json")[0])
    assert [curve["layer"] for curve in told["examples"][0]["curves"]] == list(range(8))
    told = json.loads(run(capsys, "project gen --vector vectors/across_layer5.pt --json")[0])
    assert [curve["layer"] for curve in told["examples"][0]["curves"]] == [5]


def test_several_layers_have_a_line_each(capsys: Capture, generation: Path, vectors: Path) -> None:
    out, _ = run(capsys, "project gen --vector vectors/along.npy")
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[1] for row in rows] == [f"L{layer}" for layer in range(8)]
    # The mean of 3 t over all tokens is 27 / 8; layer l adds 4 l.
    assert [float(row[3]) for row in rows] == pytest.approx([(27 / 8 + 4 * layer) / 5 for layer in range(8)], rel=1e-3)


@pytest.mark.parametrize(
    "arguments", ["--example 1", "--example 1 --layer 5", "--layer 5", "--layer all", "--layer 1,2,3 --example 0"]
)
def test_pictures_are_made(arguments: str, capsys: Capture, generation: Path, vectors: Path) -> None:
    run(capsys, f"project gen --vector vectors/along.npy vectors/across_layer5.pt {arguments} --png made/curves.png")
    with Image.open("made/curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


def test_output_has_a_file_per_example(capsys: Capture, generation: Path, vectors: Path) -> None:
    _, err = run(capsys, "project gen --vector vectors/along.npy --layer 5 --output curves")
    assert err.startswith("wrote curves; next:")
    assert sorted(path.name for path in Path("curves").iterdir()) == ["ex0.json", "ex1.json", "ex2.json"]
    told = json.loads(Path("curves/ex1.json").read_text())
    assert told["curves"][0]["projection"] == pytest.approx([4, 4.6, 5.2, 5.8])
    assert (told["n_prompt"], told["vectors"][0]["name"]) == (2, "along")


def test_vectors_of_one_name_are_told_apart_by_their_files(capsys: Capture, decoder_run: Path, vectors: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        np.save(f"{folder}/joy.npy", ALONG)
    told = json.loads(run(capsys, "project dec --vector a/joy.npy b/joy.npy --json")[0])
    assert [each["name"] for each in told["vectors"]] == ["a/joy.npy", "b/joy.npy"]


@pytest.mark.filterwarnings("always")
def test_a_vector_of_another_model_or_site_is_warned_of(capsys: Capture, decoder_run: Path) -> None:
    about = {"site": "resid_mid", "model": "other", "model_weights": "abc"}
    write_direction(Direction("odd", {5: ALONG}, about), Path("v.safetensors"))
    _, err = run(capsys, "project dec --vector v.safetensors --example 0")
    assert "warning: odd was found at resid_mid, and is used at resid_post" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--vector vectors/along.npy --layer 2", 2, "layers 5 of dec.resid_post"),
        ("--vector vectors/along.npy --site resid_mid", 3, "--capture resid_mid"),
        ("--vector vectors/along.npy --site resid_middle", 3, "no site 'resid_middle'"),
        ("--vector vectors/along.npy --site attn_pattern", 2, "no single row per token"),
        ("--vector vectors/both.safetensors --layer all --site resid_pre", 3, "no resid_pre"),
        ("--vector vectors/nowhere.npy", 3, "no file"),
        ("--vector wide.npy", 2, "the vectors of wide are 9 wide"),
        ("--vector nan.npy", 3, "NaN"),
        ("--vector integers.npy", 3, "int64"),
        ("--vector elsewhere_layer3.npy", 2, "the vectors are for layers 3"),
        ("--vector vectors/along.npy vectors/along.npy", 2, "given twice"),
        ("--vector vectors/along.npy --example ex9", 3, "no example 'ex9'"),
        ("--vector vectors/along.npy --png x.txt", 2, "no picture format 'txt'"),
        ("", 2, "project needs --vector"),
    ],
)
def test_what_cannot_be_projected_is_refused(
    arguments: str, code: int, message: str, capsys: Capture, decoder_run: Path, vectors: Path
) -> None:
    np.save("wide.npy", np.ones(9))
    np.save("nan.npy", np.array([np.nan] * 8))
    np.save("integers.npy", np.arange(8))
    np.save("elsewhere_layer3.npy", ALONG)
    assert main(["project", "dec", *arguments.split()]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_what_was_projected_while_recording_is_shown_without_vectors(
    tiny_folder: Callable[..., Path], capsys: Capture
) -> None:
    model = tiny_folder("gpt2")
    np.save("joy.npy", np.ones(32, np.float32))
    asked = f"generate --model {model} --prompt Yes --max-tokens 3 --device cpu --project joy.npy --layers 0,2"
    run(capsys, f"{asked} --out_dir traces/joyful")
    run(capsys, f"{asked} --sites resid --out_dir traces/both")
    told, kept = (json.loads(run(capsys, f"project {name} --json")[0]) for name in ("joyful", "both --vector joy.npy"))
    assert [(curve["vector"], curve["layer"]) for curve in told["examples"][0]["curves"]] == [("joy", 0), ("joy", 2)]
    for found, expected in zip(told["examples"][0]["curves"], kept["examples"][0]["curves"], strict=True):
        assert found["projection"] == pytest.approx(expected["projection"], rel=2e-3, abs=2e-3)
        assert set(found["cosine"]) == {None}  # the norm of what was projected is not there any more
    out, _ = run(capsys, "project joyful --layer 2 --example 0")
    assert "cosine" not in out
    assert main(["project", "joyful", "--layer", "1"]) == 2
    assert "holds layers 0, 2 of dec.projection" in capsys.readouterr().err


def test_generate_has_internals_of_a_layer_as_the_gemma_capture_names_them(
    tiny_folder: Callable[..., Path], capsys: Capture
) -> None:
    asked = f"generate --model {tiny_folder('gemma2')} --prompt Yes --max-tokens 3 --device cpu"
    run(capsys, f"{asked} --layer-internals 1 --out_dir traces/one")
    specs = {spec.key.site: spec for spec in TraceStore("traces/one").layout.arrays}
    assert {spec.layers for spec in specs.values()} == {(1,)}
    assert set(specs) == {
        *("q_proj", "k_proj", "v_proj", "attn_pattern", "resid_pre", "resid_mid", "resid_post"),
        *("mlp_up", "mlp_act", "mlp_down"),
    }
    assert main([*asked.split(), "--layer-internals", "1", "--sites", "attn"]) == 2
    assert "leave --sites and --layers away" in capsys.readouterr().err
