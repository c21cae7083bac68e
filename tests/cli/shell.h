#pragma once
// Commands as a user types them.

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "tests/process.h"

namespace weft {

struct ShellResult {
  int code;            // exit status, or 128 + the signal
  std::string output;  // stdout and stderr as they came
};

// Runs `command` by bash, without stdin, in `folder`.
inline ShellResult Shell(const std::filesystem::path& folder, const std::string& command) {
  Spill(folder / ".command.sh", command + "\n");
  const std::string line = "cd '" + folder.string() + "' && bash .command.sh 2>&1 </dev/null";
  std::FILE* pipe = popen(line.c_str(), "r");
  if (!pipe) throw std::runtime_error("popen failed: " + line);
  ShellResult result;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    result.output.append(buffer, n);
  }
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

// Spill into a file whose folders may be new.
inline void SpillDeep(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  Spill(path, text);
}

}  // namespace weft
