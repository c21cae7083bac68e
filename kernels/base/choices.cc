#include "kernels/base/choices.h"

#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace weft {
namespace {

constexpr const char* kHeader = "weft choices 1";
constexpr const char* kIs = " = ";

std::filesystem::path CacheDirectory() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && *cache == '/') return std::filesystem::path(cache) / "weft";
  const char* home = std::getenv("HOME");
  if (home && *home == '/') return std::filesystem::path(home) / ".cache/weft";
  return {};
}

}  // namespace

Choices::Choices(const std::string& name) {
  const std::filesystem::path directory = CacheDirectory();
  if (directory.empty()) return;
  std::string file = name + ".txt";
  for (char& c : file) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.') c = '-';
  }
  path_ = (directory / file).string();
  Read();
}

std::string Choices::Find(const std::string& key) const {
  const auto found = choices_.find(key);
  return found == choices_.end() ? "" : found->second;
}

void Choices::Add(const std::string& key, const std::string& choice) {
  if (!path_.empty()) Read();  // what other processes have found since
  choices_[key] = choice;
  if (!path_.empty()) Write();
}

void Choices::Read() {
  std::ifstream in(path_);
  std::string line;
  if (!std::getline(in, line) || line != kHeader) return;
  while (std::getline(in, line)) {
    const size_t is = line.find(kIs);
    if (is != std::string::npos) choices_.insert_or_assign(line.substr(0, is), line.substr(is + 3));
  }
}

void Choices::Write() const {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  std::string text = std::string(kHeader) + '\n';
  for (const auto& [key, choice] : choices_) text += key + kIs + choice + '\n';
  std::string beside = path_ + ".XXXXXX";
  const int file = mkstemp(beside.data());
  if (file < 0) return;
  const bool whole = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(file);
  if (!whole || std::rename(beside.c_str(), path_.c_str()) != 0) std::remove(beside.c_str());
}

}  // namespace weft
