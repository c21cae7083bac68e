#!/usr/bin/env bash
# The benchmarks that need a GPU, for tests/bench/results: OUT/h100-ops.json has every op beside the roofline,
# OUT/h100-step.json the training step of three sizes: the transformer, the 3:1 hybrid of the same width, and the hybrid
# with the transformer's number of parameters (weft params --match parameters --by model.d_ff --multiple 8).
#   tests/gpu_bench.sh [BIN] [OUT] [NAME]     NAME, of the device, is h100 unless given
set -euo pipefail
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
bin=$(readlink -f "${1:-$root/build/release/bin}") out=${2:-$root/tests/bench/results} name=${3:-h100}
hybrid=--model.pattern=gated_delta,gated_delta,gated_delta,attention
rows=()
step() { rows+=("$("$bin/weft-bench" step "$root/experiments/speed_$1.toml" --device=cuda --json "${@:2}")"); }
for size in "4m 888" "191m 2680" "1b 7160"; do
  read -r config d_ff <<<"$size"
  step "$config"
  step "$config" $hybrid
  step "$config" $hybrid --model.d_ff="$d_ff"
done
printf '%s\n' "${rows[@]}" | python3 -c '
import json, sys
decoder, text, rows = json.JSONDecoder(), sys.stdin.read().strip(), []
while text:
    row, end = decoder.raw_decode(text)
    rows.append(row)
    text = text[end:].lstrip()
json.dump(rows, open(sys.argv[1], "w"), indent=1)
' "$out/$name-step.json"
"$bin/weft-bench" ops --device=cuda --json >"$out/$name-ops.json"
