"""A token table is read without threads of pyarrow's, in whose start a process that ends at once would be aborted."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SKIPS
from tests.store import runs

COUNTED = """
import os, sys
import pyarrow.parquet
import traceformer as tf
run = tf.open_run(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
run._source.token_row(0)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason=SKIPS["proc"])
def test_a_table_is_read_without_threads(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan())
    done = subprocess.run([sys.executable, "-c", COUNTED, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
