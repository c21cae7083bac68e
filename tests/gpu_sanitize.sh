#!/usr/bin/env bash
# compute-sanitizer over the laws that need a GPU: no tool may find anything.
#   tests/gpu_sanitize.sh [BIN] [LIMIT]   runs every Gpu* suite of the test programs in BIN under each tool, on all GPUs
# What has not ended after LIMIT seconds (3600) is named and fails. TOOLS="racecheck memcheck" leaves out the others, LAWS is
# a filter of GoogleTest's, LOGS the folder for what the tools say. The op laws only launch (WEFT_LAWS=launch). racecheck
# looks at the kernels of this project, the other tools at those of CUDA's libraries too. Laws that fill a GPU's memory are
# left out, since the tools need some of it.
set -euo pipefail
tools=${TOOLS:-racecheck synccheck initcheck memcheck}
filter=${LAWS:-Gpu*-GpuFullMemory*}
logs=${LOGS:-$(mktemp -d)}
bin=$(readlink -f "${1:-$(dirname "$0")/../build/release/bin}")
limit=${2:-3600}
gpus=$(nvidia-smi --list-gpus | wc -l)
mkdir -p "$logs"
export WEFT_LAWS=launch
export XDG_CACHE_HOME=$logs/cache # what was timed under a tool is no choice to keep

laws() { "$1" --gtest_filter="$filter" --gtest_list_tests 2>/dev/null | awk '/^[^ ]/ { suite = $1 } /^  / { print suite $1 }'; }

shard() { # number tool program index of
  local kernels=()
  [ "$2" = racecheck ] && kernels=(--kernel-name kns=4weft)
  CUDA_VISIBLE_DEVICES=$(($1 % gpus)) GTEST_SHARD_INDEX=$4 GTEST_TOTAL_SHARDS=$5 timeout $((limit - SECONDS)) \
    compute-sanitizer --tool "$2" --port $((20000 + 10 * $1)) "${kernels[@]}" "$bin/$3" --gtest_filter="$filter" \
    >"$logs/$2.$3.$4" 2>&1
}

n=0
for tool in $tools; do
  for test in "$bin"/*_test; do
    laws "$test" >"$logs/laws"
    shards=$((($(wc -l <"$logs/laws") + 3) / 4))
    for ((i = 0; i < shards; ++i)); do
      while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
      [ $SECONDS -lt "$limit" ] && shard $n "$tool" "$(basename "$test")" $i $shards &
      n=$((n + 1))
    done
    [ "$tool" != "${tools%% *}" ] || cat "$logs/laws" >>"$logs/wanted"
  done
done
wait

failed=0
for tool in $tools; do
  # What a shard without a summary ran does not count.
  grep -l ' SUMMARY: ' "$logs/$tool".*_test.* 2>/dev/null | xargs -r cat >"$logs/$tool.all" || true
  sed -n 's/^\[       OK \] \([^ ]*\) .*/\1/p' "$logs/$tool.all" | sort >"$logs/$tool.held"
  sort "$logs/wanted" | comm -23 - "$logs/$tool.held" >"$logs/$tool.not_held"
  found=$(sed -n 's/.* SUMMARY: \([0-9]*\) .*/\1/p' "$logs/$tool.all" | awk '{ n += $1 } END { print n + 0 }')
  echo "$tool: $(wc -l <"$logs/$tool.held") of $(wc -l <"$logs/wanted") laws held, $found findings"
  grep ' SUMMARY: ' "$logs/$tool.all" | sort | uniq -c || true
  sed 's/[.].*//' "$logs/$tool.not_held" | uniq -c | sed 's/^/  not held or not run: /'
  [ "$found" -eq 0 ] && [ ! -s "$logs/$tool.not_held" ] || failed=1
done
[ $failed -eq 0 ] || echo "weft: what the tools say is in $logs" >&2
[ -n "${LOGS:-}" ] || [ $failed -ne 0 ] || rm -rf "$logs"
exit $failed
