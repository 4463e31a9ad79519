#!/bin/bash
# The runs that decide, where a GPU can be had for minutes: bash tools/gpu_runs.sh LIMIT [SWEEP ...], e.g. 6m paper_fashionmnist.
# Each sweep gets the limit; what is done is published to $OUT/results, beside the results that are committed and count as done. What is
# not done leaves its checkpoint in $OUT/runs; with RUNS=that folder the next start goes on from there.
# Real images are looked for in ROBUSTNB_DATA; robustnb must be importable by python3.
set -u
cd "$(dirname "$0")/.."
limit=${1:?a limit for each sweep, e.g. 6m}; shift
sweeps=${*:-paper_fashionmnist paper_mnist core_fashionmnist core_mnist}
out=${OUT:-$(mktemp -d)}
per_gpu=${PER_GPU:-2}  # processes take turns on a card: more finish later, and a limit finds none of them done
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$PWD
cp -r results "$out/results"
for sweep in $sweeps; do
  echo "== $sweep"
  python3 -c 'import sys; from robustnb.cli import main; sys.exit(main())' sweep "sweeps/$sweep.toml" \
    --out "${RUNS:-$out/runs}" --results "$out/results" --per-gpu "$per_gpu" --limit "$limit" --publish 2>&1 | tail -n 20
done
# only what is new goes back
(cd results && find . -name '*.json') | while read -r known; do rm -f "$out/results/$known"; done
find "$out/results" -type d -empty -delete
find "$out/results" -name '*.json' | sed "s|$out/||"
