#!/usr/bin/env bash
# The laws that need a GPU, and the receipt that they held: tests/gpu_receipt.txt.
#   tests/gpu_laws.sh [BIN]     runs every Gpu* suite of the test programs in BIN and writes the receipt if all pass
#   tests/gpu_laws.sh --check   says whether the receipt is that of the kernels as they are now
set -euo pipefail
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
if [ $# -gt 1 ] || [[ ${1:-} == -* && $1 != --check ]]; then
  echo "weft: usage: tests/gpu_laws.sh [BIN] or tests/gpu_laws.sh --check, found: $*" >&2
  exit 2
fi
bin=$(readlink -m -- "${1:-$root/build/release/bin}")
cd "$root"
receipt=tests/gpu_receipt.txt
hash=$(find kernels -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) -print0 | LC_ALL=C sort -z |
  xargs -0 sha256sum | sha256sum | cut -d' ' -f1)

if [ "${1:-}" = --check ]; then
  [ -e $receipt ] && grep -qx "kernels  $hash" $receipt && exit 0
  echo "weft: the GPU laws have not been run on these kernels: $receipt is $([ -e $receipt ] && echo stale || echo missing);" \
    "run tests/gpu_laws.sh on a machine with a GPU" >&2
  exit 1
fi

shards=$(($(nproc) < 16 ? $(nproc) : 16))
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0 laws=0
for test in "$bin"/*_test; do
  if ! list=$("$test" --gtest_filter='Gpu*' --gtest_list_tests); then
    echo "weft: $test does not say which laws it has" >&2
    exit 1
  fi
  listed=$(grep -c '^  ' <<<"$list") || continue
  laws=$((laws + listed))
  running=()
  for ((shard = 0; shard < shards; ++shard)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard "$test" --gtest_filter='Gpu*' \
      >"$logs/$(basename "$test").$shard" 2>&1 &
    running+=($!)
  done
  for job in "${running[@]}"; do wait "$job" || failed=1; done
done
passed=$(cat "$logs"/* 2>/dev/null | grep -c '^\[       OK \]' || true)
grep -h '^\[  FAILED  \].*(.* ms)' "$logs"/* >&2 || true
grep -h -A4 'Failure$' "$logs"/* | head -60 >&2 || true
grep -h '^\[  SKIPPED \].*(.* ms)' "$logs"/* >&2 || true
echo "$passed of $laws passed"
[ $failed -eq 0 ] && [ "$laws" -gt 0 ] && [ "$passed" -eq "$laws" ] || exit 1
{
  echo "The laws of the label gpu held for these kernels (tests/gpu_laws.sh)."
  echo "kernels  $hash"
  echo "tests    $passed"
  echo "device   $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)"
  echo "date     $(date -u +%F)"
} >$receipt
