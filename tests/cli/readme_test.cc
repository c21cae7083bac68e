// links: weft_flags
// What README.md says is so: its tour runs, its exit codes are those of the programs, its links
// lead somewhere. The mixer and the task that it shows are built and tested by
// tests/CMakeLists.txt.

#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <vector>

#include "kernels/base/check.h"
#include "tests/cli/shell.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = WEFT_SOURCE_DIR;

std::string Readme() { return Slurp(kRoot / "README.md"); }

// All blocks of README.md that begin with ```<language>, one after the other.
std::string Blocks(const std::string& language) {
  std::string blocks;
  std::istringstream in(Readme());
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    if (line == "```") inside = false;
    if (inside) blocks += line + "\n";
    if (line == "```" + language) inside = true;
  }
  return blocks;
}

std::string Replaced(const std::string& text, const char* pattern, const std::string& by) {
  return std::regex_replace(text, std::regex(pattern), by);
}

// Two steps, four samples.
std::string ScaledDown(std::string toml) {
  toml = "\n" + toml;
  toml = Replaced(toml, "\n(train\\.)?steps *=[^\n]*", "\n$1steps = 2");
  toml = Replaced(toml, "\n(eval\\.)?(samples|rows) *=[^\n]*", "");
  return Replaced(toml, "\n\\[eval\\]", "\n[eval]\nsamples = 4\nrows = 1");
}

// A folder as a user has it, with configs whose runs take a moment and a launcher that builds
// nothing.
void Furnish(const fs::path& folder) {
  for (const char* room : {"experiments", "sweeps"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / room)) {
      if (entry.path().extension() != ".toml") continue;
      SpillDeep(folder / fs::relative(entry.path(), kRoot), ScaledDown(Slurp(entry.path())));
    }
  }
  fs::create_symlink(kRoot / "kernels", folder / "kernels");
  fs::create_symlink(kRoot / "analysis", folder / "analysis");
  Spill(folder / "weft",
        "#!/bin/bash\n"
        "program='" WEFT_BIN_DIR
        "/weft-'$1\n"
        "[ $1 != plot ] || program='" WEFT_SOURCE_DIR
        "/analysis/weft-plot'\n"
        "[ $1 != report ] || { program='" WEFT_SOURCE_DIR
        "/analysis/weft-report'; set -- \"$@\" --fit '" WEFT_BIN_DIR
        "/weft-fit'; }\n"
        "shift\n"
        "exec \"$program\" \"$@\"\n");
  fs::permissions(folder / "weft", fs::perms::owner_all);
}

TEST(Readme, TheTourRuns) {
  Scratch folder;
  Furnish(folder.path());
  const std::string tour = Replaced(Blocks("sh"), "--train\\.steps=[0-9]+", "--train.steps=2");
  for (const char* command :
       {"task list", "task sample", "params", "train experiments/text.toml", "train --resume",
        "eval", "sweep plan", "sweep run", "sweep status", "plot", "fit", "report"}) {
    EXPECT_NE(tour.find("./weft " + std::string(command)), tour.npos)
        << "the tour does not show weft " << command;
  }
  const ShellResult r = Shell(folder.path(), "set -ex\n" + tour);
  ASSERT_EQ(r.code, 0) << r.output;
  for (const char* part :
       {"  state_based_recall  ", "bits = [", "7430870688", "bits/byte", "transformer", "1.68x"}) {
    EXPECT_NE(r.output.find(part), r.output.npos) << "\"" << part << "\" is not in:\n" << r.output;
  }
  EXPECT_TRUE(fs::exists(folder / "runs/quickstart/accuracy.png")) << r.output;
  EXPECT_TRUE(fs::exists(folder / "report.html")) << r.output;

  const std::string python = Blocks("python");
  ASSERT_FALSE(python.empty());
  Spill(folder / "read.py", python);
  const ShellResult read = Shell(folder.path(), "/usr/bin/python3 read.py");
  EXPECT_EQ(read.code, 0) << read.output;
  EXPECT_NE(read.output.find("nat/label"), read.output.npos) << read.output;
}

TEST(Readme, AWrongTourFails) {
  Scratch folder;
  Furnish(folder.path());
  EXPECT_NE(Shell(folder.path(),
                  "set -ex\n./weft params experiments/recall.toml --model.no_such_key=1\ntrue")
                .code,
            0);
}

TEST(Readme, ExitCodesAreThoseOfThePrograms) {
  std::set<int> said;
  const std::string readme = Readme();
  const std::regex row("\n\\| ([0-9]+) \\|");
  for (std::sregex_iterator m(readme.begin(), readme.end(), row), end; m != end; ++m)
    said.insert(std::stoi((*m)[1]));
  std::set<int> known;
  for (const ExitCode code :
       {ExitCode::kOk, ExitCode::kFailure, ExitCode::kUsage, ExitCode::kData, ExitCode::kDiverged,
        ExitCode::kOutOfMemory, ExitCode::kRequeue, ExitCode::kInterrupted}) {
    known.insert(static_cast<int>(code));
  }
  EXPECT_EQ(said, known);
}

TEST(Readme, LinksLeadSomewhere) {
  const std::regex link("\\]\\(([^)#]+)\\)");
  int links = 0;
  for (const char* page : {"README.md", "CONTRIBUTING.md"}) {
    const std::string text = Slurp(kRoot / page);
    for (std::sregex_iterator m(text.begin(), text.end(), link), end; m != end; ++m) {
      const std::string target = (*m)[1];
      if (target.starts_with("http")) continue;
      ++links;
      EXPECT_TRUE(fs::exists(kRoot / target))
          << page << " links to " << target << ", which is not there";
    }
  }
  EXPECT_GE(links, 3);
}

TEST(Readme, SetUpIsTwoCommands) {
  const std::string readme = Readme();
  const size_t begin = readme.find("## Set-up"), end = readme.find("\n## ", begin + 1);
  ASSERT_NE(begin, readme.npos);
  std::vector<std::string> commands;
  std::istringstream in(readme.substr(begin, end - begin));
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("    ")) commands.push_back(line.substr(4, line.find("  ", 4) - 4));
  }
  EXPECT_EQ(commands, (std::vector<std::string>{"./weft quickstart", "./weft test"}));
}

}  // namespace
}  // namespace weft
