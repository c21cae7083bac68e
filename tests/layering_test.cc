// links: weft_flags
// Which room may look into which: every #include of the sources goes through a door of the tables
// below.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;

// A door is a folder ("arch/core/"), a header, or kOps: the public headers of all ops. A file may
// always include what lies in its own folder. The longest `room` that a file's path begins with is
// the file's room.
constexpr const char* kOps = "kernels/<op>/<op>.h";
struct Room {
  const char* room;
  std::vector<const char*> doors;
};
const std::vector<Room> kRooms = {
    {"kernels/base/", {}},
    {"kernels/", {"kernels/base/", kOps}},
    {"arch/core/", {"kernels/base/", kOps}},
    {"arch/ops/", {"arch/core/", "kernels/base/", kOps}},
    {"arch/mixers/", {"arch/core/", "arch/ops/", "kernels/base/", kOps}},
    {"arch/blocks/", {"arch/core/", "arch/ops/", "kernels/base/", kOps}},
    {"synth-tasks/", {"synth-tasks/core/", "kernels/base/", "arch/core/config.h"}},
    {"experiments/run/", {"arch/core/config.h", "kernels/base/", "build_info.h"}},
    {"experiments/",
     {"experiments/run/", "experiments/data/", "experiments/train/", "experiments/evaluate/",
      "experiments/interop/", "arch/core/", "arch/ops/", "arch/blocks/", "synth-tasks/core/",
      "kernels/base/", kOps}},
    {"sweeps/", {"arch/core/config.h", "arch/core/toml.h", "experiments/run/", "kernels/base/"}},
    {"analysis/", {"analysis/fit/", "experiments/run/", "kernels/base/"}},
};
// Open to every program, <room>/.../<name>_main.cc.
constexpr const char* kProgramDoor = "experiments/run/program.h";
// Headers that an op shares beside <op>.h.
const std::set<std::string_view> kSharedOpHeaders = {"kernels/matmul/gemm.h"};

// Parts made by others, and the rooms that may use them. None of them but the BLAS in kernels/: its
// headers are read by nvcc, which rejects Debian's Eigen and fmt.
const std::vector<Room> kParts = {
    {"Eigen/", {"analysis/", "experiments/", "sweeps/"}},
    {"fmt/", {"analysis/", "arch/", "experiments/", "sweeps/", "synth-tasks/"}},
    {"nlohmann/", {"analysis/", "arch/", "experiments/", "sweeps/", "synth-tasks/"}},
    {"CLI/", {"analysis/", "experiments/", "sweeps/", "synth-tasks/"}},
    {"toml++/", {"arch/core/"}},
    {"xxhash.h", {"arch/core/", "experiments/", "sweeps/"}},
    {"hdf5", {"experiments/run/"}},
    {"cblas.h", {"kernels/matmul/"}},
};

const std::vector<const char*> kSourceRooms = {"kernels",     "arch",   "synth-tasks",
                                               "experiments", "sweeps", "analysis"};
const std::set<std::string> kTopFolders = {
    "kernels", "arch", "synth-tasks", "experiments", "sweeps", "analysis", "tests", "paper", ".ci"};

std::string FolderOf(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == path.npos ? "" : std::string(path.substr(0, slash + 1));
}

bool IsPublicOpHeader(std::string_view path) {
  static const std::regex own("kernels/([a-z0-9_]+)/\\1\\.h");
  return kSharedOpHeaders.contains(path) || std::regex_match(path.begin(), path.end(), own);
}

bool Opens(const char* door, std::string_view path) {
  if (door == kOps) return IsPublicOpHeader(path);
  return std::string_view(door).ends_with('/') ? path.starts_with(door) : path == door;
}

const Room* RoomOf(std::string_view file) {
  const Room* best = nullptr;
  for (const Room& room : kRooms) {
    if (file.starts_with(room.room) &&
        (!best || std::string_view(room.room).size() > std::string_view(best->room).size())) {
      best = &room;
    }
  }
  return best;
}

bool InSourceRooms(std::string_view path) {
  return std::any_of(kSourceRooms.begin(), kSourceRooms.end(),
                     [&](const char* room) { return path.starts_with(std::string(room) + "/"); });
}

// What is wrong with a line of a source file, or "".
std::string Violation(const std::string& file, const std::string& line) {
  static const std::regex directive("^\\s*#\\s*include(_next)?\\b.*");
  static const std::regex form("^\\s*#\\s*include\\s*([\"<])([^\">]+)[\">].*");
  if (!std::regex_match(line, directive)) return "";
  std::smatch match;
  if (!std::regex_match(line, match, form)) return "an include that cannot be read: " + line;
  const std::string path = match[2];

  for (const Room& part : kParts) {
    if (!path.starts_with(part.room)) continue;
    const bool allowed = !file.ends_with(".cu") &&
                         std::any_of(part.doors.begin(), part.doors.end(),
                                     [&](const char* room) { return file.starts_with(room); });
    return allowed ? "" : "<" + path + "> is not for this room";
  }
  if (match[1] == "<") {
    return InSourceRooms(path) ? "<" + path + "> is ours: write it in quotation marks" : "";
  }
  if (path.find("..") != path.npos) return "\"" + path + "\" leaves its folder by \"..\"";
  const Room* room = RoomOf(file);
  if (!room) return "the file is in no room of the table";
  if (FolderOf(file) == FolderOf(path) || (file.ends_with("_main.cc") && path == kProgramDoor))
    return "";
  std::string doors;
  for (const char* door : room->doors) {
    if (Opens(door, path)) return "";
    doors += std::string(" ") + door;
  }
  return std::string("no door from ") + room->room + " to \"" + path + "\"; there are:" + doors;
}

TEST(Layering, EveryIncludeGoesThroughADoor) {
  const fs::path root = WEFT_SOURCE_DIR;
  int files = 0, includes = 0;
  for (const char* folder : kSourceRooms) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".cu") continue;
      ++files;
      const std::string file = fs::relative(entry.path(), root);
      std::ifstream in(entry.path());
      std::string line;
      for (int number = 1; std::getline(in, line); ++number) {
        includes += line.starts_with("#include");
        const std::string violation = Violation(file, line);
        EXPECT_EQ(violation, "") << file << ":" << number << ": " << violation;
      }
    }
  }
  EXPECT_GT(files, 50);
  EXPECT_GT(includes, 200);
}

struct Example {
  const char *file, *line;
};

TEST(Layering, ForbiddenDoorsAreNoticed) {
  const Example forbidden[] = {
      {"kernels/base/tensor.cc", "#include \"kernels/add/add.h\""},
      {"kernels/base/tensor.cc", "#include <fmt/core.h>"},
      {"kernels/add/add.cc", "#include \"arch/core/config.h\""},
      {"kernels/add/add.cc", "#include \"kernels/rms_norm/rms_norm_ref.h\""},
      {"kernels/add/add.cc", "#include \"synth-tasks/core/task.h\""},
      {"kernels/add/add_cuda.cu", "#include <Eigen/Dense>"},
      {"kernels/add/add_cuda.cu", "#include <nlohmann/json.hpp>"},
      {"kernels/add/add_cuda.cu", "  #  include <fmt/format.h>"},
      {"experiments/train/step.cu", "#include <fmt/format.h>"},
      {"kernels/add/add_cpu.cc", "#include <cblas.h>"},
      {"arch/core/tape.h", "#include \"arch/mixers/attention/attention.h\""},
      {"arch/core/params.cc", "#include \"experiments/run/h5.h\""},
      {"arch/core/params.cc", "#include <hdf5.h>"},
      {"arch/mixers/attention/mixer.cc", "#include \"arch/mixers/gated_delta/state.h\""},
      {"arch/mixers/attention/mixer.cc", "#include \"arch/blocks/model.h\""},
      {"arch/mixers/attention/mixer.cc", "#include \"../gated_delta/state.h\""},
      {"arch/mixers/attention/mixer.cc", "#include \"arch/core/../mixers/gated_delta/state.h\""},
      {"arch/mixers/attention/mixer.cc", "#include <arch/mixers/gated_delta/state.h>"},
      {"arch/blocks/model.cc", "#include \"arch/mixers/attention/attention.h\""},
      {"arch/other/new.cc", "#include \"arch/core/config.h\""},
      {"synth-tasks/recall/task.cc", "#include \"arch/core/mixer.h\""},
      {"synth-tasks/recall/task.cc", "#include \"synth-tasks/state_tracking/swap.h\""},
      {"synth-tasks/recall/task.cc", "#include \"experiments/run/program.h\""},
      {"experiments/run/journal.cc", "#include \"experiments/train/trainer.h\""},
      {"experiments/run/journal.cc", "#include \"kernels/matmul/gemm.h\""},
      {"experiments/train/trainer.cc", "#include \"sweeps/pool.h\""},
      {"experiments/train/trainer.cc", "#include \"arch/mixers/attention/attention.h\""},
      {"experiments/train/trainer.cc", "#include \"trainer.h\""},
      {"experiments/train/trainer.cc", "#include \"synth-tasks/recall/recall.h\""},
      {"sweeps/sweep.cc", "#include \"experiments/train/trainer.h\""},
      {"sweeps/sweep.cc", "#include \"arch/blocks/model.h\""},
      {"analysis/fit.cc", "#include \"arch/core/tape.h\""},
      {"analysis/fit_main.cc", "#include \"experiments/train/experiment.h\""},
      {"arch/core/tape.h", "#include HEADER"},
  };
  for (const auto& [file, line] : forbidden)
    EXPECT_NE(Violation(file, line), "") << file << ": " << line;
  EXPECT_NE(Violation("sweeps/sweep.cc", "#include \"experiments/train/trainer.h\"")
                .find("no door from sweeps/ to"),
            std::string::npos);
}

TEST(Layering, DoorsAreOpen) {
  const Example allowed[] = {
      {"kernels/base/tensor.cc", "#include \"kernels/base/tensor.h\""},
      {"kernels/attention/attention_cpu.cc", "#include \"kernels/matmul/gemm.h\""},
      {"kernels/attention/attention_cpu.cc", "#include \"kernels/elementary/elementary.h\""},
      {"kernels/add/add_spec.cc", "#include \"kernels/add/add_ref.h\""},
      {"kernels/add/add_cuda.cu", "#include <cuda_bf16.h>"},
      {"kernels/matmul/gemm.cc", "#include <cblas.h>"},
      {"arch/mixers/attention/mixer.cc", "#include \"kernels/attention/attention.h\""},
      {"synth-tasks/task_main.cc", "#include \"experiments/run/program.h\""},
      {"sweeps/sweep_main.cc", "#include \"experiments/run/program.h\""},
      {"experiments/run/h5.cc", "#include <hdf5.h>"},
      {"experiments/train/train_main.cc", "#include \"experiments/train/run_loop.h\"  // the loop"},
      {"analysis/fit.cc", "#include \"experiments/run/h5.h\""},
      {"arch/core/tape.h", "// see the #include of kernels/attention"},
  };
  for (const auto& [file, line] : allowed)
    EXPECT_EQ(Violation(file, line), "") << file << ": " << line;
}

TEST(Layering, ThereAreNoOtherTopFolders) {
  std::FILE* git = popen("git -C '" WEFT_SOURCE_DIR "' ls-files -z 2>/dev/null", "r");
  ASSERT_TRUE(git);
  std::string files;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, git)) > 0;) files.append(buffer, n);
  if (pclose(git) != 0) GTEST_SKIP() << WEFT_SOURCE_DIR << " is no git checkout";
  std::set<std::string> folders;
  std::istringstream in(files);
  for (std::string file; std::getline(in, file, '\0');) {
    if (file.find('/') != file.npos) folders.insert(file.substr(0, file.find('/')));
  }
  EXPECT_GE(folders.size(), 5u);
  for (const std::string& folder : folders) {
    EXPECT_TRUE(kTopFolders.contains(folder)) << folder << "/ is none of the rooms of this house";
  }
}

}  // namespace
