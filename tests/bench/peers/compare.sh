#!/usr/bin/env bash
# Training speed beside PyTorch on this machine's cores: compare.sh PYTHON [THREADS], where PYTHON has torch.
set -euo pipefail
python=$1 threads=${2:-2}
root=$(cd "$(dirname "$0")/../../.." && pwd)
rows=$(mktemp) text=$(mktemp)
trap 'rm -f "$rows" "$text"' EXIT
head -c 4000000 /dev/urandom >"$text"
for pattern in attention gated_delta; do
  for shape in "128 256 16" "256 1024 8"; do
    read -r d T B <<<"$shape"
    "$root/build/release/bin/weft-bench" step "$root/experiments/text.toml" --json --data.path="$text" --data.held_out=0 \
      --model.d_model="$d" --model.layers=4 --model.pattern="$pattern" --mixer.attention.heads=4 \
      --train.length="$T" --train.batch="$B" --threads="$threads" >>"$rows"
  done
done
"$python" "$root/tests/bench/peers/train_step_pytorch.py" --threads "$threads" --weft-json "$rows"
