#!/bin/sh
# numcodecs 0.16.6: Blosc with several threads, its default in a process's main thread.
# Guess: equal numbers under equal settings compress to equal bytes; threads only make it faster.
# Seen: with four threads 50 compressions of the same numbers give several results (all decode to the same numbers); with
#       threads off they give one. A store whose files are compared by checksum has to turn them off.
# Exits 0 while both are seen, 1 when one is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numcodecs==0.16.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import numcodecs
import numpy as np
from numcodecs import blosc

numbers = np.random.default_rng(0).random(1 << 20).astype(np.float16)


def results(threads):
    blosc.use_threads = threads
    made = {bytes(blosc.compress(numbers, b"lz4", 5, blosc.BITSHUFFLE, 32 << 10)) for _ in range(50)}
    assert all(blosc.decompress(each) == numbers.tobytes() for each in made)
    return len(made)


blosc.set_nthreads(4)
several, one = results(True), results(False)
print("numcodecs", numcodecs.__version__)
print(f"different results of 50 compressions: {several} with threads, {one} without")
sys.exit(0 if several > 1 and one == 1 else 1)
PY
