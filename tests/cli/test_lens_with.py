"""`traceformer lens --with` and `--mark`, and `fit-lens --kind jacobian`, as a user meets them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.test_lens import Capture, lens, record
from traceformer.cli import main
from traceformer.store.run import TraceStore

__all__ = ["record"]  # a fixture

D = 32


def published(path: str = "lens.pt", d: int = D, layers: tuple[int, ...] = (0, 1)) -> str:
    matrices = {layer: torch.eye(d).half() * (2 + layer) for layer in layers}
    torch.save({"J": matrices, "n_prompts": 1, "source_layers": list(layers), "d_model": d}, path)
    return path


def test_a_published_lens_is_applied_and_said(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("llama")
    plain = json.loads(lens(capsys, "llama --example 2 --json"))
    # A multiple of the identity is nothing to a norm.
    told = json.loads(lens(capsys, f"llama --example 2 --with {published()} --json"))
    assert told["top_ids"] == plain["top_ids"]
    np.testing.assert_allclose(told["kl"], plain["kl"], atol=1e-4)
    assert plain["translators"] is None
    assert told["translators"] == {"kind": "jacobian", "source": "lens.pt", "layers": [0, 1], "known_by": "width"}
    main(["lens", "llama", "--example", "2", "--position", "3", "--with", "lens.pt"])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    said = "as wide as this model; the file does not say that they are its own: L0, L1 translated"
    assert lines[1] == f"jacobian lens of lens.pt, {said}"
    assert lines[4].split() == ["layer", "entropy", "KL", "came", "rank", "likeliest"]
    assert [row.split()[2] for row in lines[5:]][-1] == "0"
    assert "--with lens.pt --png" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--with nowhere.pt", 3, "no file nowhere.pt"),
        ("--with wide.pt", 3, "they are for rows 33 wide"),
        ("--with deep.pt", 3, "for layer 5, and this one's last layer is 2"),
        ("--with short.pt", 3, "not all of one"),
        ("--with lens.pt --layers 0,1", 2, "no translator for layer 0"),
        ("--mark rank", 2, "--png FILE"),
        ("--mark loudness --png x.png", 2, "loudness"),
    ],
)
def test_what_is_no_lens_of_the_model_is_refused(
    arguments: str, code: int, message: str, capsys: Capture, record: Callable[..., TraceStore]
) -> None:
    record("gpt2")
    published(layers=(1,))
    published("wide.pt", 33)
    published("deep.pt", layers=(0, 5))
    Path("short.pt").write_bytes(Path("lens.pt").read_bytes()[:-200])
    assert main(["lens", "gpt2", *arguments.split()]) == code
    assert message in capsys.readouterr().err


def test_a_picture_marks_what_is_asked_for(capsys: Capture, record: Callable[..., TraceStore]) -> None:
    record("gpt2")
    seen: set[bytes] = set()
    for mark in ("probability", "rank", "kl", "entropy"):
        lens(capsys, f"gpt2 --example 2 --png {mark}.png --mark {mark}")
        with Image.open(f"{mark}.png") as picture:
            seen.add(picture.convert("RGB").tobytes())
    assert len(seen) == 4
    lens(capsys, "gpt2 --example 2 --png plain.png")
    with Image.open("plain.png") as picture:
        assert picture.convert("RGB").tobytes() in seen


def test_a_jacobian_lens_is_fitted_written_for_others_and_applied(
    capsys: Capture, record: Callable[..., TraceStore], text_file: Path
) -> None:
    with text_file.open("a", encoding="utf-8") as file:
        file.writelines(f"One more text, number {number}, so that there are enough.\n" for number in range(6))
    record("gpt2")
    line = "fit-lens gpt2 --kind jacobian --skip 2 --max-tokens 6 --batch-size 16 --output lens.pt --json"
    assert main(line.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["layers"], told["about"]["skip"], told["about"]["max_tokens"]) == (
        "jacobian",
        [0, 1],
        2,
        6,
    )
    assert torch.load("lens.pt", weights_only=True)["source_layers"] == [0, 1]
    shown = lens(capsys, "gpt2 --example 2 --with lens.pt")
    assert "jacobian lens of lens.pt" in shown
    assert main(["fit-lens", "gpt2", "--kind", "jacobian", "--skip", "2", "--max-tokens", "6"]) == 0
    assert f"the mean of derivatives over {told['about']['n_prompts']} examples" in capsys.readouterr().out
    assert main(["fit-lens", "gpt2", "--output", "tuned.pt"]) == 2
    assert "a tuned lens in tuned.pt" in capsys.readouterr().err
    assert main(["fit-lens", "gpt2", "--skip", "2"]) == 2
    assert "--skip of a tuned lens" in capsys.readouterr().err
    assert main(["fit-lens", "gpt2", "--kind", "jacobian", "--skip", "500"]) == 2
    assert "--skip" in capsys.readouterr().err
