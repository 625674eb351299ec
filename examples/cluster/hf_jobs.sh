#!/bin/bash
# A run by a job on Hugging Face's machines, kept in a bucket of the Hub, which the job finds in /traces.
#
#     MODEL=gpt2 DATASET=demo BUCKET=me/traces bash examples/cluster/hf_jobs.sh --capture attn resid
#
# A run is written with hard links and locks, which a mounted bucket may lack: so it is written to the machine's disk, and
# copied when the job ends, be it done or not, arrays before the records that speak of them. A job that begins again goes
# on with what is there. With FLAGS=--dry-run nothing is started.

set -eu
: "${MODEL:?a name on the Hub}" "${DATASET:?a data set}" "${BUCKET:?USER/NAME of a bucket on the Hub}"

read -r -d '' inside <<'END' || true
set -u
mkdir -p "$WORK"
cp -r "$MOUNT/." "$WORK/"
if [ -e "$WORK/run/manifest.json" ]; then echo "it is finished"; exit 0; fi
$INSTALL
traceformer extract --model "$MODEL" --dataset "$DATASET" --limit all --out_dir "$WORK/run" --resume "$@" &
work=$!
trap 'kill -TERM "$work"' TERM
wait "$work"
code=$?
if [ "$code" -gt 128 ]; then wait "$work"; code=$?; fi
tar -C "$WORK" --exclude=commits -cf - . | tar -C "$MOUNT" -xf -
tar -C "$WORK" -cf - . | tar -C "$MOUNT" -xf -
if [ "$code" -eq 0 ]; then rm -rf "$MOUNT/_tmp_run"; fi
exit "$code"
END

hf jobs run ${FLAGS:-} --flavor "${FLAVOR:-a10g-small}" --timeout "${TIMEOUT:-4h}" --attempts 5 --secrets HF_TOKEN \
    --volume "hf://buckets/$BUCKET:${MOUNT:-/traces}" --env "MODEL=$MODEL" --env "DATASET=$DATASET" \
    --env "MOUNT=${MOUNT:-/traces}" --env "WORK=${WORK:-/tmp/traces}" \
    --env "INSTALL=${INSTALL:-pip install --quiet traceformer}" \
    "${IMAGE:-python:3.12}" bash -c "$inside" traceformer "$@"
