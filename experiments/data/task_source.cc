#include <algorithm>

#include "experiments/data/source.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

// Samples of row r are drawn from the stream indices [r * kSamplesPerRow, (r + 1) *
// kSamplesPerRow).
constexpr int64_t kSamplesPerRow = 1 << 16;

}  // namespace

TaskSource::TaskSource(const Task& task, uint64_t seed, Split split, int64_t difficulty,
                       bool strict, Labels labels)
    : task_(task),
      seed_(seed),
      split_(split),
      difficulty_(difficulty),
      strict_(strict),
      labels_(labels) {}

void TaskSource::Fill(int64_t index, const Row& row) const {
  Pack(index * kSamplesPerRow, (index + 1) * kSamplesPerRow, row);
}

void TaskSource::CheckLength(const Task& task, int64_t difficulty, int64_t length) {
  const int64_t longest = task.MaxLength(difficulty);
  if (longest > length) {
    Fail(ExitCode::kUsage, "train.length = ", length, " is too short: samples of difficulty ",
         difficulty, " have up to ", longest, " tokens; raise it to ", longest,
         " or lower task.difficulties");
  }
}

int64_t TaskSource::Pack(int64_t first, int64_t end, const Row& row) const {
  CheckLength(task_, difficulty_, row.length);
  Sample sample;
  int64_t at = 0, index = first;
  for (; index < end; ++index) {
    task_.Generate(seed_, split_, static_cast<uint64_t>(index), difficulty_, strict_, sample);
    const int64_t n = static_cast<int64_t>(sample.tokens.size());
    if (at + n > row.length) break;
    std::copy_n(sample.tokens.begin(), n, row.tokens + at);
    for (int64_t t = at; t < at + n; ++t) row.Begin(t, at);
    if (labels_ == Labels::kAll) {
      std::copy_n(sample.labels.begin(), n, row.labels + at);
    } else {
      std::fill_n(row.labels + at, n, kIgnoreLabel);
      for (const int32_t i : sample.answers) {
        row.labels[at + i] = sample.labels[static_cast<size_t>(i)];
      }
    }
    at += n;
  }
  for (int64_t i = at; i < row.length; ++i) {
    row.tokens[i] = 0;
    row.labels[i] = kIgnoreLabel;
    row.Begin(i, at);
  }
  return index - first;
}

}  // namespace weft
