#pragma once
// Programs under test: a directory to run them in, their output, and signals to send to them.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace weft {

// A directory that lives as long as the test.
class Scratch {
 public:
  Scratch() {
    std::string name = testing::TempDir() + "weft_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline void Spill(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // truncating in place would wait for the disk
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Whether `ready` comes true in that time.
template <class Ready>
bool Within(std::chrono::seconds limit, const Ready& ready) {
  for (const auto end = std::chrono::steady_clock::now() + limit;
       std::chrono::steady_clock::now() < end;
       std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
    if (ready()) return true;
  }
  return false;
}

// A program that runs in `directory`; its stdout and stderr go to the files "stdout" and "stderr"
// there.
class Process {
 public:
  Process(const std::string& directory, const std::vector<std::string>& command)
      : directory_(directory) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    if (chdir(directory.c_str()) != 0) _exit(126);
    for (const auto& [name, fd] : {std::pair{"stdout", 1}, std::pair{"stderr", 2}}) {
      dup2(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644), fd);
    }
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Process(Process&& other) noexcept
      : directory_(other.directory_), pid_(std::exchange(other.pid_, 0)), status_(other.status_) {}

  // False when it has ended, by itself or by an earlier signal.
  bool Send(int signal) { return !Ended() && kill(pid_, signal) == 0; }
  bool Ended() {
    if (pid_ > 0 && waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = 0;
    return pid_ == 0;
  }
  // The exit code, or 128 + the signal that ended it.
  int Wait() {
    if (pid_ > 0) waitpid(pid_, &status_, 0);
    pid_ = 0;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  }
  std::string out() const { return Slurp(directory_ + "/stdout"); }
  std::string err() const { return Slurp(directory_ + "/stderr"); }

 private:
  std::string directory_;
  pid_t pid_ = 0;
  int status_ = 0;
};

struct Result {
  int code;  // as Process::Wait gives it
  std::string out, err;
};
inline Result ResultOf(const std::string& directory, const std::vector<std::string>& command) {
  Process process(directory, command);
  const int code = process.Wait();
  return {code, process.out(), process.err()};
}

inline void ExpectParts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
}

// It has ended with that code and with one line on stderr that has all of `parts`.
inline void ExpectOneLine(const Result& result, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  ExpectParts(result.err, parts);
}

// What a Python program prints; the test fails when the program does.
inline std::string Python(const Scratch& scratch, const std::string& program,
                          const std::vector<std::string>& arguments = {}) {
  Spill(scratch / "program.py", program);
  std::vector<std::string> command = {"/usr/bin/python3", "program.py"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const Result result = ResultOf(scratch.path(), command);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.out;
}

// A program of this build.
inline std::string Program(const std::string& name) {
  return std::string(WEFT_BIN_DIR) + "/weft-" + name;
}

}  // namespace weft
