// links: weft_flags
// The launcher ./weft in a small house of its own: what it builds when, from where it can be
// called, and what it says.

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/cli/shell.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class Launcher : public testing::Test {
 protected:
  Launcher() : house_(folder_ / "weft house") {
    SpillDeep(house_ / "CMakeLists.txt", R"(cmake_minimum_required(VERSION 3.25)
project(house C)
file(GLOB sources CONFIGURE_DEPENDS arch/*/*.c)
set_source_files_properties(${sources} PROPERTIES LANGUAGE C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
file(GLOB rooms CONFIGURE_DEPENDS arch/*/room.h)
list(LENGTH rooms count)
add_executable(weft-train arch/core/train.c)
target_compile_definitions(weft-train PRIVATE ROOMS=${count})
add_custom_target(programs DEPENDS weft-train)
)");
    SpillDeep(house_ / "arch/core/train.c", R"(#include <stdio.h>
#include "room.h"
int main(int n, char** v) {
  printf("%s %d", WORD, ROOMS);
  for (int i = 1; i < n; ++i) printf(" [%s]", v[i]);
  printf("\n");
  return 75;
}
)");
    SpillDeep(house_ / "arch/core/room.h", "#define WORD \"one\"\n");
    fs::copy_file(fs::path(WEFT_SOURCE_DIR) / "weft", house_ / "weft");
  }
  // `weft train ARGUMENTS` with the packages taken for installed.
  ShellResult Run(const std::string& command) {
    return Shell(folder_.path(), "export WEFT_PACKAGES_INSTALLED=1\n" + command);
  }
  // What the program printed: the last line.
  static std::string Last(const std::string& output) {
    std::string line, last;
    for (std::istringstream in(output); std::getline(in, line);) last = line;
    return last;
  }

  Scratch folder_;
  fs::path house_;
};

TEST_F(Launcher, BuildsWhatHasChangedAndOnlyThat) {
  ShellResult r = Run("'weft house/weft' train a 'b c'");
  EXPECT_EQ(r.code, 75) << r.output;
  EXPECT_EQ(Last(r.output), "one 1 [a] [b c]");
  EXPECT_NE(r.output.find("weft: building"), std::string::npos) << r.output;

  r = Run("'weft house/weft' train");
  EXPECT_EQ(r.output, "one 1\n");

  SpillDeep(house_ / "arch/core/room.h", "#define WORD \"two\"\n");
  r = Run("'weft house/weft' train");
  EXPECT_EQ(Last(r.output), "two 1");

  SpillDeep(house_ / "arch/hall/room.h", "");
  r = Run("'weft house/weft' train");
  EXPECT_EQ(Last(r.output), "two 2") << "a new folder is not seen";

  fs::remove_all(house_ / "arch/hall");
  r = Run("'weft house/weft' train");
  EXPECT_EQ(Last(r.output), "two 1") << "a removed folder is not seen";

  fs::rename(house_, folder_ / "moved");
  r = Run("moved/weft train");
  EXPECT_EQ(Last(r.output), "two 1") << "moved: " << r.output;
}

// A file that is written in the same tick of the clock as the build, and one whose time goes back.
TEST_F(Launcher, IsNotFooledByTheClock) {
  Run("'weft house/weft' train");
  const fs::path header = house_ / "arch/core/room.h";
  for (int i = 0; i < 3; ++i) {
    SpillDeep(header, "#define WORD \"tick" + std::to_string(i) + "\"\n");
    EXPECT_EQ(Last(Run("'weft house/weft' train").output), "tick" + std::to_string(i) + " 1");
  }
  const auto built = fs::last_write_time(header);
  SpillDeep(header, "#define WORD \"past\"\n");
  fs::last_write_time(header, built - std::chrono::hours(24));
  EXPECT_EQ(Last(Run("'weft house/weft' train").output), "past 1");
}

TEST_F(Launcher, WorksFromAnywhere) {
  fs::create_directories(folder_ / "else where");
  fs::create_symlink(house_ / "weft", folder_ / "link");
  fs::create_symlink("../link", folder_ / "else where/weft");
  EXPECT_EQ(Last(Run("cd 'else where' && ./weft train").output), "one 1");
  EXPECT_EQ(Run("cd / && '" + (folder_ / "link") + "' train").output, "one 1\n");
  EXPECT_EQ(Run("cd 'weft house/arch' && CDPATH=/ ../weft train").output, "one 1\n");
  EXPECT_FALSE(fs::exists(folder_ / "build"));
  EXPECT_FALSE(fs::exists(folder_ / "else where/build"));
}

TEST_F(Launcher, MayBeCalledManyTimesAtOnce) {
  const ShellResult r = Run("for i in 1 2 3 4 5 6; do 'weft house/weft' train $i & done; wait");
  for (int i = 1; i <= 6; ++i) {
    EXPECT_NE(r.output.find("one 1 [" + std::to_string(i) + "]\n"), std::string::npos) << r.output;
  }
  size_t builds = 0;
  for (size_t at = 0; (at = r.output.find("weft: built in", at)) != std::string::npos; ++at)
    ++builds;
  EXPECT_EQ(builds, 1u) << r.output;
}

TEST_F(Launcher, ABrokenBuildIsShortAndHealsItself) {
  SpillDeep(house_ / "arch/core/room.h", "#define WORD undeclared_name\n");
  ShellResult r = Run("'weft house/weft' train");
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.output.find("undeclared_name"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("build.log"), std::string::npos) << r.output;
  EXPECT_LT(std::count(r.output.begin(), r.output.end(), '\n'), 30) << r.output;
  SpillDeep(house_ / "arch/core/room.h", "#define WORD \"whole\"\n");
  EXPECT_EQ(Last(Run("'weft house/weft' train").output), "whole 1");
}

TEST_F(Launcher, HelpAndUnknownCommands) {
  for (const char* command : {"'weft house/weft'", "'weft house/weft' --help",
                              "'weft house/weft' help", "'weft house/weft' -h"}) {
    const ShellResult r = Run(command);
    EXPECT_EQ(r.code, 0) << command;
    EXPECT_NE(r.output.find("usage: ./weft COMMAND"), std::string::npos) << r.output;
  }
  const ShellResult r = Run("'weft house/weft' pramas");
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.output,
            "weft: unknown command \"pramas\"; did you mean \"params\"? ./weft --help lists all\n");
  EXPECT_EQ(Run("'weft house/weft' ''").code, 2);
  EXPECT_FALSE(fs::exists(house_ / "build")) << "nothing is built to say so";
}

// The system's tools without those that install.
constexpr char kWithoutApt[] = R"sh(
unset WEFT_PACKAGES_INSTALLED
mkdir tools
for tool in bash dirname readlink find sort git mkdir flock cat env id awk; do
  ln -s "$(command -v $tool)" tools/
done
)sh";

TEST_F(Launcher, SaysWhatToInstallWhereThereIsNoApt) {
  const ShellResult r = Run(std::string(kWithoutApt) + "PATH=$PWD/tools 'weft house/weft' train");
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.output.find("no apt-get"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("libopenblas-dev"), std::string::npos) << r.output;
}

TEST_F(Launcher, PrintsTheAptLineToWhoeverMayNotInstall) {
  const ShellResult r = Run(std::string(kWithoutApt) + R"(
printf '#!/bin/sh\nexit 1\n' >tools/apt-get
printf '#!/bin/sh\necho "|g++ installed||cmake not-installed|"\n' >tools/dpkg-query
printf '#!/bin/sh\nexit 1\n' >tools/sudo
rm tools/id
printf '#!/bin/sh\necho 1000\n' >tools/id
chmod +x tools/*
PATH=$PWD/tools 'weft house/weft' train)");
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.output.find("  sudo apt-get install --no-install-recommends cmake ninja-build"),
            std::string::npos)
      << r.output;
}

TEST_F(Launcher, TheSecondCallStartsAtOnce) {
  Run("'weft house/weft' train");
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(Run("'weft house/weft' train").code, 75);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  EXPECT_LT(best, 0.3);
}

}  // namespace
}  // namespace weft
