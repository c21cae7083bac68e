#pragma once
// Sweeps as a user calls them, in a directory whose weft-train is tests/cli/fake_trainer_main.cc.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiments/run/h5.h"
#include "tests/cli/shell.h"
#include "tests/errors.h"

namespace weft {

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
    return {scratch_.path(), Command(arguments, environment)};
  }
  Result Call(const std::string& arguments, const std::string& environment = "") const {
    return ResultOf(scratch_.path(), Command(arguments, environment));
  }

  // plan and run refuse the sweep with one line that has all of `parts`, and write nothing.
  void ExpectRefused(const std::string& sweep, const std::vector<std::string>& parts,
                     int code = 2) const {
    Write("s.toml", sweep);
    for (const char* action : {"plan s.toml", "run s.toml"}) {
      const Result result = Call(action);
      ExpectOneLine(result, code, parts);
      EXPECT_TRUE(result.out.empty()) << result.out;
    }
    EXPECT_FALSE(Exists("runs"));
  }
  Json Plan() const { return Json::parse(Call("plan s.toml --json").out); }
  Json Status() const { return Json::parse(Call("status s.toml --json").out); }
  H5Table Collected(const char* table) const {
    return ReadTable(scratch_ / "runs/s/sweep.h5", table);
  }

  Scratch scratch_;

 private:
  static std::vector<std::string> Command(const std::string& arguments,
                                          const std::string& environment) {
    return {"/bin/sh", "-c", "exec env " + environment + " $PWD/bin/weft-sweep " + arguments};
  }
};

}  // namespace weft
