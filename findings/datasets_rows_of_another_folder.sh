#!/bin/sh
# datasets 5.2.0: load_dataset(FOLDER, CONFIG) of a folder whose README names configurations gives rows that are not there.
# Guess: a folder of Parquet files is read anew when its files have changed, as it is without a README; and never from
#        the cache of another folder.
# Seen: the cache's key is the folder's last name, the configuration and the README's text. Old rows come back after the
#       files were replaced, and the first folder's rows come back for another folder of the same name.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - "$folder" <<'PY'
import os
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
README = "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(README)
    pq.write_table(pa.table({"text": [text]}), folder / "train.parquet")
    os.utime(folder / "train.parquet", (len(text), len(text)))  # another time of change for each


def read(folder: Path) -> str:
    return datasets.load_dataset(str(folder), "a")["train"][0]["text"]


first, second = Path(sys.argv[1]) / "one" / "reviews", Path(sys.argv[1]) / "two" / "reviews"
write(first, "old")
assert read(first) == "old"
write(first, "newer")
write(second, "elsewhere")
changed, other = read(first), read(second)
print(f"the folder holds 'newer', read was {changed!r}; another folder holds 'elsewhere', read was {other!r}")
sys.exit(0 if (changed, other) == ("old", "old") else 1)
PY
