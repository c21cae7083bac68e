#pragma once
// Files that are whole or absent: written beside, fsynced, renamed, and the directory fsynced.
//
// Errors name the path, the system's reason and what to do: weft::Error with ExitCode::kFailure for
// writing and ExitCode::kData for reading.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace weft {

// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor();
  int get() const { return fd_; }

 private:
  int fd_;
};

// Throws "<path>: cannot <action>: <text of the errno `error`>; <what to do>".
[[noreturn]] void FailWrite(const std::string& path, std::string_view action, int error);
[[noreturn]] void FailRead(const std::string& path, int error);

std::string ReadFile(const std::string& path);
void WriteAll(int fd, std::string_view bytes, const std::string& path);

// Streams into "<path>.tmp-<pid>". The file appears under its name at Commit, or never.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  void Write(std::string_view bytes) { WriteAll(file_.get(), bytes, path_); }
  void Commit();

 private:
  std::string path_;
  std::string temporary_;
  Descriptor file_;
};

void WriteFileAtomically(const std::string& path, std::string_view bytes);

void MakeDirectories(const std::string& path);
void SyncDirectory(const std::string& path);
// The name under which this process builds `path` before it is renamed.
std::string TemporaryName(const std::string& path);
// Removes what killed processes left in `directory` under TemporaryName.
void RemoveTemporaries(const std::string& directory);

// XXH3, 64 bits, as 16 hex digits.
std::string ChecksumHex(std::string_view bytes);

}  // namespace weft
