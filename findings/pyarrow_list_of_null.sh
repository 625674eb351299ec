#!/bin/sh
# pyarrow 26.0.1: casting a list<null> array to its own type gives an invalid array.
# Guess: a cast to the type that an array already has gives the array back, or raises.
# Seen: the result's child array has as many values as the list has rows, so its offsets point beyond it; nothing is
#       said until somebody validates or reads it.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PY'
import sys
import pyarrow as pa

print("pyarrow", pa.__version__)
array = pa.array([[None], [None, None]])
array.validate(full=True)
cast = array.cast(array.type)
print("type", array.type, "cast to itself; values before", len(array.values), "after", len(cast.values))
try:
    cast.validate(full=True)
except pa.ArrowInvalid as error:
    print("seen: the result is invalid:", error)
    sys.exit(0)
print("no longer seen: the result is valid")
sys.exit(1)
PY
