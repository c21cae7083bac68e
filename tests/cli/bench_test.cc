// links: weft_flags
// weft-bench ops as a user calls it, on the CPU.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/cli/shell.h"

namespace weft {
namespace {

using Json = nlohmann::json;

ShellResult BenchOps(const std::string& arguments) {
  const Scratch folder;
  return Shell(
      folder.path(),
      Program("bench") + " ops --device=cpu --filter='^(swiglu/4096|adamw/n1M)' " + arguments);
}

TEST(BenchOps, JsonHasEveryCaseForwardAndBackward) {
  const ShellResult r = BenchOps("--json --threads=1");
  ASSERT_EQ(r.code, 0) << r.output;
  const Json all = Json::parse(r.output);
  EXPECT_NE(all.at("device").get<std::string>().find("1 thread"), std::string::npos);
  EXPECT_FALSE(all.at("commit").get<std::string>().empty());
  EXPECT_GT(all.at("copy_gb_s"), 0);
  EXPECT_GT(all.at("matmul_tflop_s"), 0);
  std::vector<std::string> rows;
  for (const Json& row : all.at("rows")) {
    rows.push_back(row.at("op").get<std::string>() + " " + row.at("case").get<std::string>() + " " +
                   row.at("pass").get<std::string>());
    EXPECT_EQ(row.at("dtype"), "f32");
    EXPECT_EQ(row.at("tflop_s"), 0);  // element-wise work
    const double ms = row.at("ms"), gb_s = row.at("gb_s"), percent = row.at("roofline_percent");
    EXPECT_GT(ms, 0);
    EXPECT_NEAR(percent, 100 * gb_s / all.at("copy_gb_s").get<double>(), 0.002 * percent);
    if (row.at("op") == "swiglu") {
      // Gate and up, and the product; backward also its gradient and theirs.
      const double tensors = row.at("pass") == "forward" ? 3 : 5;
      EXPECT_NEAR(gb_s * ms * 1e6, tensors * 4 * 4096 * 512, 0.002 * gb_s * ms * 1e6);
    }
  }
  EXPECT_EQ(rows, (std::vector<std::string>{"adamw n1M forward", "swiglu 4096_F512 forward",
                                            "swiglu 4096_F512 backward"}));
}

TEST(BenchOps, TableHasOneLinePerRow) {
  const ShellResult r = BenchOps("");
  ASSERT_EQ(r.code, 0) << r.output;
  const auto lines = Lines(r.output);
  ASSERT_EQ(lines.size(), 5u) << r.output;
  EXPECT_NE(lines[0].find("commit"), std::string::npos);
  EXPECT_NE(lines[1].find("TFLOP/s"), std::string::npos);
  EXPECT_TRUE(lines[2].starts_with("adamw n1M forward")) << lines[2];
  EXPECT_TRUE(lines[4].starts_with("swiglu 4096_F512 backward")) << lines[4];
}

TEST(BenchStep, TrainersAtOnce) {
  const Scratch folder;
  const ShellResult r =
      Shell(folder.path(), Program("bench") +
                               " step " WEFT_SOURCE_DIR
                               "/experiments/quickstart.toml --device=cpu --threads=1 "
                               "--task.difficulties=4 --task.stage_steps=0 --train.batch=1 "
                               "--train.length=64 --at-once=1,3 --seconds=0.1 --json");
  ASSERT_EQ(r.code, 0) << r.output;
  const auto lines = Lines(r.output);
  ASSERT_EQ(lines.size(), 2u) << r.output;
  for (size_t i : {0u, 1u}) {
    const Json row = Json::parse(lines[i]);
    const double trainers = row.at("at_once"), ms = row.at("ms"), rate = row.at("tokens_per_s");
    EXPECT_EQ(trainers, i == 0 ? 1 : 3);
    EXPECT_NEAR(rate, trainers * 64 / ms * 1e3, 0.002 * rate);
    EXPECT_NEAR(row.at("ratio"), rate / Json::parse(lines[0]).at("tokens_per_s").get<double>(),
                0.002);
  }
}

}  // namespace
}  // namespace weft
