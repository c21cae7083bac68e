#pragma once
// Sweeps as a user calls them, in a directory whose weft-train is tests/cli/fake_trainer_main.cc.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/run/h5.h"
#include "tests/cli/shell.h"
#include "tests/errors.h"

namespace weft {

struct Output {
  int exit_code = -1;
  std::string out, err;
};

inline void ExpectParts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
}

// It has failed with that code and with one line that has all of `parts`.
inline void ExpectOneLine(const Output& output, int exit_code,
                          const std::vector<std::string>& parts) {
  EXPECT_EQ(output.exit_code, exit_code) << output.err;
  EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
  ExpectParts(output.err, parts);
}

class SweepTest : public testing::Test {
 protected:
  using Json = nlohmann::json;
  inline static const std::string kHead = "question = \"Who wins?\"\nbase = \"base.toml\"\n";
  inline static const std::string kVariants =
      "[variants]\nrnn = { model.pattern = [\"gated_delta\"] }\n"
      "attention.model.pattern = [\"attention\"]\n";

  SweepTest() {
    namespace fs = std::filesystem;
    fs::create_directories(scratch_ / "bin");
    fs::copy_file(Program("sweep"), scratch_ / "bin/weft-sweep");
    fs::copy_file(WEFT_BIN_DIR "/fake_trainer", scratch_ / "bin/weft-train");
    Write("base.toml", "[task]\nname = \"recall\"\n");
  }

  void Write(const std::string& name, const std::string& text) const {
    SpillDeep(scratch_ / name, text);
  }
  std::string Read(const std::string& name) const { return Slurp(scratch_ / name); }
  bool Exists(const std::string& name) const { return std::filesystem::exists(scratch_ / name); }

  // `environment`: "NAME=VALUE ...".
  Process Start(const std::string& arguments, const std::string& environment = "") const {
    return Process(
        scratch_.path(),
        {"/bin/sh", "-c", "exec env " + environment + " $PWD/bin/weft-sweep " + arguments});
  }
  Output Call(const std::string& arguments, const std::string& environment = "") const {
    Process process = Start(arguments, environment);
    const int code = process.Wait();
    return {code, process.out(), process.err()};
  }
  // plan and run refuse the sweep with one line that has all of `parts`, and write nothing.
  void ExpectRefused(const std::string& sweep, const std::vector<std::string>& parts,
                     int exit_code = 2) const {
    Write("s.toml", sweep);
    for (const char* action : {"plan s.toml", "run s.toml"}) {
      const Output output = Call(action);
      ExpectOneLine(output, exit_code, parts);
      EXPECT_TRUE(output.out.empty()) << output.out;
    }
    EXPECT_FALSE(Exists("runs"));
  }
  Json Plan() const { return Json::parse(Call("plan s.toml --json").out); }
  Json Status() const { return Json::parse(Call("status s.toml --json").out); }
  H5Table Collected(const char* table) const {
    return ReadTable(scratch_ / "runs/s/sweep.h5", table);
  }

  Scratch scratch_;
};

}  // namespace weft
