#pragma once
// Commands as a user types them.

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace weft {

struct ShellResult {
  int code;            // exit status, or 128 + the signal
  std::string output;  // stdout and stderr as they came
};

// Runs `command` by bash, without stdin, in `folder`.
inline ShellResult Shell(const std::filesystem::path& folder, const std::string& command) {
  const std::filesystem::path script = folder / ".command.sh";
  std::ofstream(script) << command << "\n";
  const std::string line = "cd '" + folder.string() + "' && bash .command.sh 2>&1 </dev/null";
  std::FILE* pipe = popen(line.c_str(), "r");
  if (!pipe) throw std::runtime_error("popen failed: " + line);
  ShellResult result;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    result.output.append(buffer, n);
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

inline std::string ReadText(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

inline void WriteText(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

// A folder of its own for a test, removed at its end.
class TemporaryFolder {
 public:
  // `name` may hold spaces.
  explicit TemporaryFolder(const std::string& name) {
    std::string pattern = (std::filesystem::temp_directory_path() / "weft-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed: " + pattern);
    parent_ = pattern;
    path_ = parent_ / name;
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(parent_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path parent_, path_;
};

}  // namespace weft
