#include "experiments/run/environment.h"

#include <fmt/core.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "build_info.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

int64_t MemoryOfMachine() {
  return int64_t{sysconf(_SC_PHYS_PAGES)} * int64_t{sysconf(_SC_PAGESIZE)};
}

template <class T>
std::vector<T> Elements(const Json& json) {
  return json.get<std::vector<T>>();
}

Setting::Value ToValue(const Json& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  const auto all = [&json](auto is) { return std::all_of(json.begin(), json.end(), is); };
  if (json.is_array()) {
    if (all([](const Json& e) { return e.is_number_integer(); })) return Elements<int64_t>(json);
    if (all([](const Json& e) { return e.is_number(); })) return Elements<double>(json);
    if (all([](const Json& e) { return e.is_string(); })) return Elements<std::string>(json);
  }
  Fail(ExitCode::kData, "found ", json.dump(), ", expected a value or a list of equal types");
}

}  // namespace

int64_t MemoryLimit(const std::string& groups, const std::string& mount) {
  int64_t limit = MemoryOfMachine();
  std::ifstream lines(groups);
  for (std::string line; std::getline(lines, line);) {
    // "0::/path" is version 2, "9:cpu,memory:/path" version 1.
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string folder = mount, file = "memory.max";
    if (controllers != ",,") {
      if (controllers.find(",memory,") == std::string::npos) continue;
      folder += "/memory", file = "memory.limit_in_bytes";
    }
    // In a container, the path may be the host's and the limit in the mount's root.
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      std::ifstream in(folder + group.string() + "/" + file);
      int64_t bytes;
      if (in >> bytes) limit = std::min(limit, bytes);  // "max": no limit
      if (group == group.parent_path()) break;
    }
  }
  return limit;
}

Attributes DescribeEnvironment(const std::vector<std::string>& command_line) {
  utsname system = {};
  uname(&system);
  std::error_code ignored;
  return {{"weft_version", std::string(kWeftVersion)},
          {"git_commit", std::string(kGitCommit)},
          {"git_dirty", kGitDirty},
          {"compiler", std::string(kCompiler)},
          {"compiler_flags", std::string(kCompilerFlags)},
          {"build_type", std::string(kBuildType)},
          {"command_line", command_line},
          {"directory", std::filesystem::current_path(ignored).string()},
          {"start_time", TimeNow()},
          {"hostname", HostName()},
          {"os", Cat(system.sysname, " ", system.release, " ", system.machine)},
          {"cpu", CpuModel()},
          {"cpu_cores", int64_t{std::thread::hardware_concurrency()}},
          {"memory_bytes", MemoryOfMachine()}};
}

std::string CpuModel() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

std::string CommitText() {
  return Cat(std::string_view(kGitCommit).substr(0, 12), kGitDirty ? ", modified" : "");
}

std::string BuildDescription() {
  return Cat("weft ", kWeftVersion, " (commit ", CommitText(), ") on ", HostName(), ", pid ",
             getpid());
}

std::string TimeNow() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc = {};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string DurationText(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return s >= 60 ? fmt::format("{}m{:02}s", s / 60, s % 60) : fmt::format("{}s", s);
}

std::string HostName() {
  utsname system = {};
  uname(&system);
  return system.nodename;
}

std::string ToJson(const Attributes& attributes) {
  Json json = Json::object();
  for (const auto& [name, value] : attributes) {
    std::visit([&, &key = name](const auto& v) { json[key] = v; }, value);
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Attributes ParseJson(const std::string& text, const std::string& origin) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) Fail(ExitCode::kData, origin, ": is not a JSON object");
  Attributes attributes;
  for (const auto& [name, value] : json.items()) {
    try {
      attributes.emplace_back(name, ToValue(value));
    } catch (const Error& error) {
      Fail(ExitCode::kData, origin, ": ", name, ": ", error.what());
    }
  }
  return attributes;
}

}  // namespace weft
