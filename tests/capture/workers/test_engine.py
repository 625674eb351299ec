"""What is refused of an engine before any of its workers is started."""

import sys
from pathlib import Path

import pytest

import traceformer as tf
from traceformer.capture.workers.engine import Ray, as_engine
from traceformer.errors import Unsupported, UsageError


def test_an_engine_is_named_or_given() -> None:
    assert as_engine(None) is None
    assert as_engine("ray") == Ray()
    assert as_engine(Ray(workers=5)) == tf.Ray(workers=5)
    with pytest.raises(UsageError, match="no engine 'dask'"):
        as_engine("dask")


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"threads_per_worker": 0}, {"gpus_per_worker": -1}, {"gpus_per_worker": float("nan")}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Ray(**settings).check()  # pyright: ignore[reportArgumentType]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unsupported, match=r"Ray is not installed; pip install .traceformer\[ray\]"):
        tf.record("byte", ["one text"], out=tmp_path / "run", engine="ray")
    assert [*tmp_path.iterdir()] == []


def test_what_does_not_go_with_workers_is_refused(tmp_path: Path) -> None:
    model = tf.load_model("byte")
    with pytest.raises(UsageError, match="each worker loads its own"):
        tf.record(model, ["one text"], out=tmp_path / "run", engine="ray")
    with pytest.raises(UsageError, match="a run in memory"):
        tf.record("byte", ["one text"], engine="ray")
    with pytest.raises(UsageError, match="`engine` and `num_shards`"):
        tf.record("byte", ["one text"], out=tmp_path / "run", engine="ray", num_shards=2)
    with pytest.raises(UsageError, match="`engine` of a model"):
        tf.heads(model, ["one text"], engine="ray")
    with pytest.raises(UsageError, match="`engine` of a model"):
        tf.statistics(model, ["one text"], engine="ray")
    run = tf.record(model, ["one text"], "attn")
    for ask in (tf.heads, tf.statistics):
        with pytest.raises(Unsupported, match="this run is in memory"):
            ask(run, engine="ray")
    assert [*tmp_path.iterdir()] == []
