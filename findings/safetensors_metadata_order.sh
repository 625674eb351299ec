#!/bin/sh
# safetensors 0.8.0: saving the same arrays with the same metadata twice.
# Guess: the same bytes, as arrays are laid out in a fixed order; many compare such files by their digest.
# Seen: with several entries of metadata each save, and each process, writes them in an order of its own: other bytes.
#       With one entry, or none, they are the same.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import save

print("safetensors", safetensors.__version__)
arrays = {name: np.arange(4.0) for name in "abc"}
several = {save(arrays, {"format": "x", "example": "y", "layer": "z"}) for _ in range(50)}
one = {save(arrays, {"format": "x"}) for _ in range(50)}
print(f"50 saves: {len(several)} different files with three entries of metadata, {len(one)} with one")
sys.exit(0 if len(several) > 1 and len(one) == 1 else 1)
PY
