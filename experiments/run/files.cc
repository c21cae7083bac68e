#include "experiments/run/files.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kTemporaryMark = ".tmp-";

std::string_view Advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space or choose another output directory";
    case EFBIG:
      return "; raise the limit on file sizes (ulimit -f)";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; choose a directory that you may write";
    case ENOTDIR:
    case EEXIST:
      return "; a file stands where a directory is needed, choose another output directory";
    default:
      return "; choose another output directory";
  }
}

std::string ParentOf(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

void FailWrite(const std::string& path, std::string_view action, int error) {
  Fail(ExitCode::kFailure, path, ": cannot ", action, ": ", std::generic_category().message(error),
       Advice(error));
}

void FailRead(const std::string& path, int error) {
  Fail(ExitCode::kData, path, ": cannot read: ", std::generic_category().message(error));
}

std::string ReadFile(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  if (file.get() < 0 || fstat(file.get(), &info) != 0) FailRead(path, errno);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  size_t got = 0;
  for (;;) {
    if (got == bytes.size()) bytes.resize(got + 4096);  // the file may have grown; files in /proc
    const ssize_t n = read(file.get(), bytes.data() + got, bytes.size() - got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) FailRead(path, errno);
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  bytes.resize(got);
  return bytes;
}

void WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) FailWrite(path, "write", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)),
      temporary_(TemporaryName(path_)),
      file_(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
  if (file_.get() < 0) FailWrite(path_, "write", errno);
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFile::Commit() {
  if (fsync(file_.get()) != 0) FailWrite(path_, "write", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) FailWrite(path_, "write", errno);
  temporary_.clear();
  SyncDirectory(ParentOf(path_));
}

void WriteFileAtomically(const std::string& path, std::string_view bytes) {
  AtomicFile file(path);
  file.Write(bytes);
  file.Commit();
}

void MakeDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) FailWrite(path, "create the directory", error.value());
}

void SyncDirectory(const std::string& path) {
  const Descriptor directory(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // EINVAL: a file system that cannot sync directories.
  if (directory.get() < 0 || (fsync(directory.get()) != 0 && errno != EINVAL)) {
    FailWrite(path, "sync the directory", errno);
  }
}

std::string TemporaryName(const std::string& path) { return Cat(path, kTemporaryMark, getpid()); }

void RemoveTemporaries(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().filename().string().find(kTemporaryMark) == std::string::npos) continue;
    fs::remove_all(entry.path(), error);
    if (error) FailWrite(entry.path().string(), "remove", error.value());
  }
  if (error) FailRead(directory, error.value());
}

std::string ChecksumHex(std::string_view bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

}  // namespace weft
