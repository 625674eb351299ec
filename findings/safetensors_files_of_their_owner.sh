#!/bin/sh
# safetensors 0.8.0: who may read a file that save_file wrote.
# Guess: whoever may read the other new files of the process, as its umask has it.
# Seen: its owner alone (0600), whatever the umask is; a file that was there before loses what others were allowed.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import os
import stat
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__)
os.umask(0o022)
for name in ("plain", "before.safetensors"):
    Path(name).touch()
for name in ("new.safetensors", "before.safetensors"):
    save_file({"a": np.zeros(3)}, name)
modes = {name: stat.S_IMODE(Path(name).stat().st_mode) for name in ("plain", "new.safetensors", "before.safetensors")}
print(*(f"{name}: {mode:04o}" for name, mode in modes.items()), sep="\n")
sys.exit(0 if [*modes.values()] == [0o644, 0o600, 0o600] else 1)
PY
