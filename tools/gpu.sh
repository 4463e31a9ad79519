#!/bin/bash
# What a machine with a GPU has to show, in under ten minutes and without network: the tests on the card, the chapters' cells for CUDA, the
# speed against the plain way. robustnb must be importable by python3 (see README); results go to $OUT, or to a temporary folder.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "no GPU that torch can use"; exit 2; }
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH=$PWD
status=0
part() { # name, seconds, command
  echo "== $1"; local start=$SECONDS name=$1 limit=$2; shift 2
  timeout -s INT -k 10 "$limit" "$@" > "$out/$name.log" 2>&1 || { echo "$name: exit $?"; status=1; }
  tail -n 15 "$out/$name.log"; echo "== $name: $((SECONDS - start)) s"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card.txt"
part tests 220 python3 -m pytest -q -rf -p no:cacheprovider tests/test_device.py tests/test_device_all.py -k cuda --durations=5
with_cuda=$(grep -l '^ *"#| cuda' nbs/*.ipynb | xargs -n 1 basename | paste -sd '|')
part chapters 100 nbdev_test --path nbs --file_re "^($with_cuda)\$" --flags cuda --n_workers 8 --do_print
part bench 270 python3 bench/bench_gpu.py --json "$out/gpu.json"
exit $status
