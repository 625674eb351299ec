"""Generations that are refused, and those that numbers stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.capture.asked import answered
from tests.capture.generation.test_generate import Folder, request
from traceformer import Selection
from traceformer.capture.generation.sampling import Sampling
from traceformer.errors import (
    NumericError,
    Unreadable,
    Unsupported,
    UsageError,
)
from traceformer.models.load import load_model


def test_nothing_is_written_for_prompts_that_do_not_fit(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_folder("gpt2")
    long = "Yes " * 70
    for text, message in ((long, "140 tokens"), ("Yes " * 30, "may have 68 tokens"), (" \n", "empty")):
        with pytest.raises(UsageError, match=message) as caught:
            answered(request(folder, tmp_path / "run", prompt=text))
    with pytest.raises(UsageError, match="context of 64") as caught:
        answered(request(folder, tmp_path / "run", prompt="Yes " * 30))
    assert caught.value.hint == "`max_tokens=4`"
    with pytest.raises(Unsupported, match="generates no text"):
        answered(request(tiny_folder("bert"), tmp_path / "run", prompt="Yes"))
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(Unreadable, match="not JSON"):
        answered(request(folder, tmp_path / "run", prompts=tmp_path / "bad.json"))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("replay", [False, True], ids=["live", "replay"])
def test_logits_that_are_no_numbers_stop_the_run(
    temperature: float, replay: bool, tiny_folder: Folder, tmp_path: Path
) -> None:

    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight[3] = torch.nan
    asked = request(tiny_folder("gpt2"), tmp_path / "run", prompt="Yes", sampling={"temperature": temperature})
    with pytest.raises(NumericError, match="logits are NaN"):
        answered(replace(asked, replay=replay), loaded=loaded)


def test_values_beyond_float16_stop_the_run(tiny_folder: Folder, tmp_path: Path) -> None:

    loaded = load_model(str(tiny_folder("gpt2")), device="cpu")
    with torch.no_grad():
        loaded.model.transformer.wte.weight[:, 3] = 70_000
    asked = request(
        tiny_folder("gpt2"), tmp_path / "run", prompt="Yes", selection=Selection(("resid",)), dtype="float16"
    )
    with pytest.raises(NumericError, match="does not fit into float16"):
        answered(asked, loaded=loaded)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens=0`"),
        ({"temperature": -0.1}, "`temperature=-0.1`"),
        ({"temperature": float("nan")}, "`temperature=nan`"),
        ({"top_k": -1}, "`top_k=-1`"),
        ({"top_p": 1.5}, "`top_p=1.5`"),
        ({"stop": ("",)}, "`stop=''`"),
        ({"num_beams": 2, "num_return_sequences": 3}, "a beam is one sequence"),
        ({"temperature": 0.0, "num_return_sequences": 2}, "would be the same"),
        ({"more": {"use_cache": False}}, "use_cache"),
        ({"more": {"no_such_setting": 1}}, "no_such_setting"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**sampling)
