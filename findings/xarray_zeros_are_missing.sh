#!/bin/sh
# xarray 2026.9.0 on a Zarr v2 array whose metadata says "fill_value": 0.0 (the default of many writers).
# Guess: an array of numbers comes back as it was written; the fill value is what chunks that were never written read as.
# Seen: every 0.0 becomes NaN, also where it was written, and mean() leaves them out. The same array as Zarr v3 is read
#       as it is.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet zarr==3.1.6 xarray==2026.9.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
import warnings

import numpy as np
import xarray as xr
import zarr

warnings.simplefilter("ignore")
print("zarr", zarr.__version__, "xarray", xr.__version__)
weights = np.array([[1.0, 0.0], [0.25, 0.75]], np.float32)
means = {}
for version in (2, 3):
    path = f"{sys.argv[1]}/v{version}"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    named = {} if version == 2 else {"dimension_names": ["query", "key"]}
    array = group.create_array("attn", data=weights, fill_value=0.0, **named)
    if version == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["query", "key"]
    read = xr.open_zarr(path, consolidated=False)["attn"]
    means[version] = float(read.mean())
    print(f"Zarr v{version}: {read.values.tolist()}, mean {means[version]} (written: {weights.mean()})")
sys.exit(0 if means[2] != 0.5 and means[3] == 0.5 else 1)
PY
