#!/usr/bin/env bash
# compute-sanitizer over the laws that need a GPU: no tool may find anything.
#   tests/gpu_sanitize.sh [BIN] [LIMIT]   runs every Gpu* suite of the test programs in BIN under each tool, on all GPUs
# What has not ended after LIMIT seconds (3600) is named and fails. The op laws only launch (WEFT_LAWS=launch); the laws
# that ask for all of a GPU's memory are left out, since the tools need some. racecheck looks at this project's kernels.
# initcheck leaves out Gpu_matmul: it does not see what cuBLASLt's kernels for Hopper store, and takes their outputs, which
# the laws find right, for unwritten.
#   SANITIZER   compute-sanitizer; at best 2026.1 or later: racecheck of 2025 takes what mbarriers order for races
#   TOOLS LAWS  which tools, and a filter of GoogleTest's for the laws
#   JOBS BATCH  so many processes (one per core) with so many laws each (4), all of one suite: they launch the same
#               kernels, and a tool needs seconds to change a file of them
#   LOGS        the folder for what the tools say
set -euo pipefail
sanitizer=${SANITIZER:-compute-sanitizer}
tools=${TOOLS:-racecheck synccheck initcheck memcheck}
wanted=${LAWS:-Gpu*-GpuFullMemory*}
logs=${LOGS:-$(mktemp -d)}
bin=$(readlink -m -- "${1:-$(dirname "$0")/../build/release/bin}")
limit=${2:-3600}
if [ $# -gt 2 ] || [[ ${1:-} == -* || ! $limit =~ ^[1-9][0-9]*$ ]]; then
  echo "weft: usage: tests/gpu_sanitize.sh [BIN] [LIMIT], LIMIT in seconds, found: $*" >&2
  exit 2
fi
gpus=$(nvidia-smi --list-gpus | wc -l)
mkdir -p "$logs"
rm -f "$logs"/*_test.* # of a run before
export WEFT_LAWS=launch
export XDG_CACHE_HOME=$logs/cache # what was timed under a tool is no choice to keep

batches() { # filters, of what a program lists
  awk -v size="${BATCH:-4}" '
    /^[^ ]/ { suite = $1; n = 0 }
    /^  / { printf "%s%s%s", n % size ? ":" : "\n", suite, $1; ++n }
    END { print "" }' | grep '[.]' || true
}

looks_at() { # tool law
  [[ $1 != initcheck || $2 != Gpu_matmul.* ]]
}

batch() { # number tool program filter seconds
  local kernels=()
  [ "$2" = racecheck ] && kernels=(--kernel-name kns=4weft)
  CUDA_VISIBLE_DEVICES=$(($1 % gpus)) timeout "$5" "$sanitizer" --tool "$2" \
    --port $((20000 + 10 * $1)) "${kernels[@]}" "$bin/$3" --gtest_filter="$4" >"$logs/$2.$3.$1" 2>&1
}

for test in "$bin"/*_test; do
  if ! list=$("$test" --gtest_filter="$wanted" --gtest_list_tests); then
    echo "weft: $test does not say which laws it has" >&2
    exit 1
  fi
  batches <<<"$list" | sed "s/^/$(basename "$test") /"
done >"$logs/batches"
cut -d' ' -f2 "$logs/batches" | tr : '\n' | sort >"$logs/laws"
if [ ! -s "$logs/laws" ]; then
  echo "weft: no law in $bin is called $wanted" >&2
  exit 1
fi
n=0
for tool in $tools; do
  while read -r program filter; do
    looks_at "$tool" "$filter" || continue
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-$(nproc)}" ]; do wait -n || true; done
    left=$((limit - SECONDS))
    [ $left -gt 0 ] && batch $n "$tool" "$program" "$filter" $left &
    n=$((n + 1))
  done <"$logs/batches"
done
wait

failed=0
for tool in $tools; do
  # What a batch without a summary ran does not count.
  grep -l ' SUMMARY: ' "$logs/$tool".*_test.* 2>/dev/null | xargs -r cat >"$logs/$tool.all" || true
  sed -n 's/^\[       OK \] \([^ ]*\) .*/\1/p' "$logs/$tool.all" | sort >"$logs/$tool.held"
  while read -r law; do looks_at "$tool" "$law" && echo "$law" || true; done <"$logs/laws" >"$logs/$tool.laws"
  comm -23 "$logs/$tool.laws" "$logs/$tool.held" >"$logs/$tool.not_held"
  found=$(sed -n 's/.* SUMMARY: \([0-9]*\) .*/\1/p' "$logs/$tool.all" | awk '{ n += $1 } END { print n + 0 }')
  echo "$tool: $(wc -l <"$logs/$tool.held") of $(wc -l <"$logs/$tool.laws") laws held, $found findings"
  grep ' SUMMARY: ' "$logs/$tool.all" | sort | uniq -c || true
  sed 's/[.].*//' "$logs/$tool.not_held" | uniq -c | sed 's/^/  not held or not run: /'
  [ "$found" -eq 0 ] && [ ! -s "$logs/$tool.not_held" ] || failed=1
done
[ $failed -eq 0 ] || echo "weft: what the tools say is in $logs" >&2
[ -n "${LOGS:-}" ] || [ $failed -ne 0 ] || rm -rf "$logs"
exit $failed
