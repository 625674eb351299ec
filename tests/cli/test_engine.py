"""`--engine ray` and its flags: what becomes of them, and what they are refused with."""

import json
from typing import Any

import pytest

from traceformer.capture import extract as extraction
from traceformer.capture.extract import record
from traceformer.capture.generation import generate as generation
from traceformer.capture.workers.engine import Ray
from traceformer.cli import main

ASKED = "--engine ray --ray-address auto --workers 3 --gpus-per-worker 0.5 --threads-per-worker 2"
MEANT = Ray(workers=3, address="auto", gpus_per_worker=0.5, threads_per_worker=2)


@pytest.mark.parametrize(
    ("command", "module", "verb"),
    [
        ("extract --model byte --dataset demo", extraction, "extract_on"),
        ("generate --model byte --prompt x", generation, "answer_on"),
    ],
)
def test_workers_are_what_the_flags_say(
    command: str, module: Any, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    run = record("byte", ["one text"], "resid", out="run")

    def note(engine: Ray, *_: Any, **__: Any) -> Any:
        asked.append(engine)
        return run

    monkeypatch.setattr(module, verb, note)
    assert main([*command.split(), *ASKED.split()]) == 0
    assert asked == [MEANT]
    assert capsys.readouterr().out == "run\n"


def test_an_ablation_by_workers_is_what_the_flags_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from traceformer.questions import ablate as ablation

    effects = ablation.ablate("byte", ["ab"], layers=[0], heads=[0])
    asked: list[Any] = []
    monkeypatch.setattr(ablation, "ablate_on", lambda *given: asked.append(given) or effects)
    command = f"ablate byte demo --limit all --how zero --resume --out_dir e --json {ASKED}"
    assert main(command.split()) == 0
    [(engine, load, what, out, _)] = asked
    assert (engine, str(out), load.args) == (MEANT, "e", ("byte",))
    assert (what.texts, what.limit, what.how, what.site, what.resume) == ("demo", None, "zero", ("z",), True)
    assert capsys.readouterr().out == json.dumps(effects.to_json(), indent=2) + "\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("extract --workers 3 --gpus-per-worker 1", "error: --workers and --gpus-per-worker without --engine"),
        ("extract --engine ray --num-shards 2 --out_dir x", "error: --engine and --num-shards"),
        ("extract --engine ray --gpus-per-worker -1", "error: --gpus-per-worker -1.0"),
        ("extract --engine dask", "error: --engine cannot be 'dask'"),
        ("ablate byte --workers 3", "error: --workers without --engine"),
        ("heads --engine ray --model byte", "error: --engine ray with a model"),
        ("heads run --engine ray --roles", "error: --engine ray with --roles"),
        ("generate --model byte --prompt x --engine ray --steer a:1", "error: --steer with --engine"),
    ],
)
def test_what_makes_no_sense_is_refused(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err


def test_responses_of_workers_are_told_from_their_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["The function", "An error"]
    run = generation.generate("byte", prompts, "resid", max_tokens=3, out="run")
    monkeypatch.setattr(generation, "answer_on", lambda *_, **__: run)
    assert main(["generate", "--model", "byte", "--prompt", "x", "--engine", "ray", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["responses"]
    assert [each["prompt"] for each in told] == prompts
    assert [each["response"] for each in told] == list(run.tokens.response)
    assert [each["tokens"] for each in told] == [3, 3]
