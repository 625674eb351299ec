#!/bin/sh
# datasets 5.2.0: a streamed data set that is shuffled, its state saved in the middle (state_dict) and loaded again.
# Guess: what comes after is what would have come: the documentation calls it resuming a stream.
# Seen: of 1,000 rows, with a buffer of 100 and a state saved after 300, 650 come after it: 61 never come, and 11 come twice.
#       Its log says that the buffer will be refilled; nothing says that rows are lost.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

print("datasets", datasets.__version__)
pq.write_table(pa.table({"n": list(range(1000))}), f"{sys.argv[1]}/rows.parquet")


def stream():
    rows = datasets.load_dataset("parquet", data_files=f"{sys.argv[1]}/rows.parquet", split="train", streaming=True)
    return rows.shuffle(seed=0, buffer_size=100)


begun, before = stream(), []
for row in begun:
    before.append(row["n"])
    if len(before) == 300:
        break
resumed = stream()
resumed.load_state_dict(begun.state_dict())
after = [row["n"] for row in resumed]
lost = 1000 - len({*before, *after})
print(f"{len(before)} rows before, {len(after)} after, {lost} of 1000 never came")
sys.exit(0 if lost else 1)
PY
