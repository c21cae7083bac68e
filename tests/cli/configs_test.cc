// links: weft_flags
// Every base config in experiments/ is one that the trainer accepts.

#include <gtest/gtest.h>

#include "tests/cli/shell.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

TEST(Configs, AreAcceptedByADryRun) {
  const Scratch scratch;
  int64_t count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(WEFT_SOURCE_DIR) / "experiments")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    const ShellResult result =
        Shell(scratch.path(), "cd '" WEFT_SOURCE_DIR "' && '" WEFT_BIN_DIR "/weft-train' '" +
                                  entry.path().string() + "' --dry-run");
    EXPECT_EQ(result.code, 0) << entry.path() << "\n" << result.output;
    EXPECT_NE(result.output.find("parameters"), result.output.npos) << result.output;
  }
  EXPECT_GE(count, 10);
}

}  // namespace
}  // namespace weft
