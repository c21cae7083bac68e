#pragma once
// What the tests of files that survive faults share.

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "experiments/run/journal.h"
#include "tests/errors.h"
#include "tests/process.h"

namespace weft {

inline std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Runs `action` in a child process; returns its wait status.
inline int InChild(const std::function<void()>& action) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 99;
    try {
      action();
      code = testing::Test::HasFailure() ? 98 : 0;
    } catch (const Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      code = static_cast<int>(error.code());
    }
    std::fflush(nullptr);
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

// What a file system without room for more than `bytes` per file does.
inline void LimitFileSize(rlim_t bytes) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {bytes, bytes};
  setrlimit(RLIMIT_FSIZE, &limit);
}

inline const std::vector<JournalColumn> kTrainColumns = {{"step", "step", ColumnType::kInteger},
                                                         {"tokens", "token", ColumnType::kInteger},
                                                         {"loss", "nat/token"}};

inline void AppendStep(Journal& journal, int64_t step) {
  journal.Append("train", {{"step", step}, {"tokens", step * 512}, {"loss", 10.0 / (step + 3)}});
}

}  // namespace weft
