"""What a probe takes of memory does not grow with the run but for a few bytes a row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_memory_is_flat_over_a_million_rows(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import probe; folder = Path(sys.argv[1]); "
        "print(*(int(probe.fitted(probe.write_run(folder / str(n), n)).bytes) for n in probe.ROWS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split())
    assert small < 400e6
    # Labels, those of controls, and the text of each row: whole numbers, for some moments of 8 bytes each.
    assert large - small < 150 * 900_000
