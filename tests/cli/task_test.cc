// links: weft_flags nlohmann_json::nlohmann_json
// weft task as a user reads it, and the base configs of experiments/.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/cli/shell.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string Output(const std::string& command) {
  const Scratch scratch;
  const ShellResult result =
      Shell(scratch.path(),
            "export PATH='" WEFT_BIN_DIR "':$PATH; cd '" WEFT_SOURCE_DIR "' && " + command);
  EXPECT_EQ(result.code, 0) << command << "\n" << result.output;
  return result.output;
}

TEST(TaskList, IsGroupedByWhatIsProbed) {
  const std::string list = Output("weft-task list");
  size_t starts[] = {list.find("State\n"), list.find("\nRecall\n"),
                     list.find("\nState and recall\n"), list.size()};
  ASSERT_EQ(starts[0], 0u) << list;
  ASSERT_LT(starts[1], starts[2]);
  ASSERT_LT(starts[2], starts[3]);
  const std::vector<std::string> groups = {"state", "recall", "both"};
  const json tasks = json::parse(Output("weft-task list --json"));
  EXPECT_GE(tasks.size(), 14u);
  for (const json& task : tasks) {
    const auto group = static_cast<size_t>(
        std::ranges::find(groups, task["group"].get<std::string>()) - groups.begin());
    ASSERT_LT(group, 3u) << task["group"];
    const size_t at = list.find("\n  " + task["name"].get<std::string>() + " ");
    EXPECT_GE(at + 1, starts[group]) << task["name"];
    EXPECT_LT(at, starts[group + 1]) << task["name"];
  }
  for (size_t at = 0, end; (end = list.find('\n', at)) != list.npos; at = end + 1) {
    EXPECT_LE(end - at, 120u) << list.substr(at, end - at);
  }
}

TEST(TaskSample, ShowsTextLabelsAndAnswersOfEveryTask) {
  for (const json& task : json::parse(Output("weft-task list --json"))) {
    const std::string command =
        "weft-task sample " + task["name"].get<std::string>() + " --difficulty=2";
    const std::string text = Output(command);
    const json sample = json::parse(Output(command + " --json"))[0];
    EXPECT_NE(text.find('\n' + sample["text"].get<std::string>() + "\n"), text.npos) << text;
    EXPECT_NE(text.find(", answer " + sample["answer"].get<std::string>() + "\n"), text.npos)
        << text;
    size_t marks = 0;
    for (size_t at = 0; (at = text.find("  <- answer\n", at)) != text.npos; ++at) ++marks;
    EXPECT_EQ(marks, sample["answers"].size()) << text;
  }
}

TEST(Configs, AreAcceptedByADryRun) {
  int64_t count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(WEFT_SOURCE_DIR) / "experiments")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    const std::string output = Output("weft-train '" + entry.path().string() + "' --dry-run");
    EXPECT_NE(output.find("parameters"), output.npos) << output;
  }
  EXPECT_GE(count, 10);
  Output("weft-train experiments/parity_and_groups.toml --dry-run --task.group=z2");
  Output("weft-train experiments/parity_and_groups.toml --dry-run --task.name=modular_arithmetic");
}

TEST(Configs, TextIsThere) {
  const Scratch scratch;
  Output(
      "weft-train experiments/text.toml --model.layers=1 --model.d_model=16 --train.steps=1 "
      "--train.batch=1 --out '" +
      scratch.path() + "'");
}

}  // namespace
}  // namespace weft
