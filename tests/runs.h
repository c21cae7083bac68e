#pragma once
// Small runs: what they are made from, and what two of them must have in common.

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "experiments/run/checkpoint.h"
#include "experiments/run/journal.h"
#include "kernels/base/check.h"
#include "tests/process.h"

namespace weft {

inline constexpr char kSmallModel[] = R"([model]
d_model = 16
layers = 2
pattern = ["gated_delta", "attention"]
[mixer.attention]
heads = 2
[mixer.gated_delta]
heads = 2
)";

// The squares 0, 1, 4, ..., seven in a line.
inline std::string Squares(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += std::to_string(i * i) + (i % 7 == 6 ? "\n" : " ");
  return text;
}

// The one run below `out`; "" while there is none.
inline std::string RunBelow(const std::string& out) {
  namespace fs = std::filesystem;
  if (!fs::exists(out)) return "";
  for (const auto& study : fs::directory_iterator(out)) {
    for (const auto& run : fs::directory_iterator(study)) return run.path().string();
  }
  return "";
}

// The journal without the columns that measure time.
inline std::string Deterministic(const std::string& run) {
  std::string text;
  for (const H5Table& table : ReadJournal(run + "/journal.jsonl").tables) {
    for (const H5Column& column : table.columns) {
      if (column.unit == "s" || column.unit == "token/s") continue;
      text += table.name + " " + column.name;
      for (const double x : table.Numbers(column.name)) text += Cat(" ", std::hexfloat, x);
      text += "\n";
    }
  }
  return text;
}

// Journals and newest checkpoints are the same, but for times.
inline void ExpectSameRuns(const std::string& a, const std::string& b) {
  EXPECT_EQ(Deterministic(a), Deterministic(b));
  const auto x = FindLatest(a), y = FindLatest(b);
  ASSERT_TRUE(x && y);
  ASSERT_EQ(x->step, y->step);
  for (const char* file : {"/model.safetensors", "/optimizer.safetensors"}) {
    EXPECT_TRUE(Slurp(x->path + file) == Slurp(y->path + file)) << file << " differs";
  }
}

}  // namespace weft
