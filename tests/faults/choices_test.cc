// links: weft_kernels
// Choices that are kept in a file: found again, shared by processes, and never in the way when the
// file is broken or cannot be written.

#include "kernels/base/choices.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/base/check.h"
#include "tests/process.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class ChoicesFile : public testing::Test {
 protected:
  ChoicesFile() { setenv("XDG_CACHE_HOME", folder_.path().c_str(), 1); }

  static constexpr const char* kName = "products on NVIDIA H100/80GB";
  Scratch folder_;
  const std::string path_ = folder_ / "weft/products-on-NVIDIA-H100-80GB.txt";
};

TEST_F(ChoicesFile, IsFoundAgain) {
  {
    Choices choices(kName);
    EXPECT_EQ(choices.Find("1 2"), "");
    choices.Add("1 2", "a b");
    choices.Add("1 3", "c");
    choices.Add("1 2", "d");
    EXPECT_EQ(choices.Find("1 2"), "d");
  }
  EXPECT_EQ(Slurp(path_), "weft choices 1\n1 2 = d\n1 3 = c\n");
  const Choices again(kName);
  EXPECT_EQ(again.Find("1 2"), "d");
  EXPECT_EQ(again.Find("1 3"), "c");
  EXPECT_EQ(Choices("others").Find("1 2"), "");
}

TEST_F(ChoicesFile, LiesInTheCacheOfTheHomeOtherwise) {
  unsetenv("XDG_CACHE_HOME");
  const std::string home = std::getenv("HOME") ? std::getenv("HOME") : "";
  setenv("HOME", folder_.path().c_str(), 1);
  Choices(kName).Add("k", "v");
  EXPECT_EQ(Slurp(folder_ / ".cache/weft/products-on-NVIDIA-H100-80GB.txt"),
            "weft choices 1\nk = v\n");
  unsetenv("HOME");
  Choices nowhere(kName);
  nowhere.Add("k", "v");
  EXPECT_EQ(nowhere.Find("k"), "v");
  setenv("HOME", home.c_str(), 1);
}

TEST_F(ChoicesFile, ABrokenOneIsReplaced) {
  fs::create_directories(folder_ / "weft");
  for (const char* broken : {"", "\n", "weft choices 9\nk = old\n", "\xff\0\n = \n\n\n",
                             "weft choices 1\nk\n=\nk=v\n"}) {
    Spill(path_, broken);
    Choices choices(kName);
    EXPECT_EQ(choices.Find("k"), "") << broken;
    choices.Add("k", "new");
    EXPECT_EQ(Slurp(path_), "weft choices 1\nk = new\n") << broken;
  }
}

TEST_F(ChoicesFile, OneThatCannotBeWrittenIsNoError) {
  const auto works_without_file = [](const std::string& why) {
    Choices choices(kName);
    choices.Add("k", "v");
    EXPECT_EQ(choices.Find("k"), "v") << why;
  };
  Spill(folder_ / "weft", "a file");
  works_without_file("weft is a file");
  fs::remove(folder_ / "weft");
  fs::create_directories(path_);
  works_without_file("the file is a folder");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "weft"), {}), 1) << "something is left";
}

TEST_F(ChoicesFile, IsSharedByProcesses) {
  constexpr int kProcesses = 8, kKeys = 40;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    Choices choices(kName);
    for (int k = 0; k < kKeys; ++k) choices.Add(std::to_string(k), Cat("c", k));
    _exit(choices.Find("7") == "c7" ? 0 : 1);
  }
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  const Choices all(kName);
  for (int k = 0; k < kKeys; ++k) EXPECT_EQ(all.Find(std::to_string(k)), Cat("c", k));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "weft"), {}), 1) << "something is left";
}

}  // namespace
}  // namespace weft
