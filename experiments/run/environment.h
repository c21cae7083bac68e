#pragma once
// Where a run happened and with which build.

#include <string>
#include <vector>

#include "experiments/run/h5.h"

namespace weft {

// weft_version, git_commit, git_dirty, compiler, compiler_flags, build_type, command_line,
// directory, start_time, hostname, os, cpu, cpu_cores, memory_bytes.
Attributes DescribeEnvironment(const std::vector<std::string>& command_line);

// Bytes that this process may use: the machine's memory or the smallest limit of the control groups
// (versions 1 and 2) that it is in. `groups` lists them, `mount` is where they are found.
int64_t MemoryLimit(const std::string& groups = "/proc/self/cgroup",
                    const std::string& mount = "/sys/fs/cgroup");

// "0123456789ab" or "0123456789ab, modified"
std::string CommitText();
// "Intel(R) Xeon(R) Platinum 8481C"
std::string CpuModel();
// "weft 0.1.0 (commit 0123456789ab, modified) on <host>, pid 42"
std::string BuildDescription();

// "2026-01-31T12:00:00Z"
std::string TimeNow();
std::string HostName();
// "1h02m", "4m16s" or "9s".
std::string DurationText(double seconds);

std::string ToJson(const Attributes& attributes);
// `origin` names the text in errors (ExitCode::kData).
Attributes ParseJson(const std::string& text, const std::string& origin);

}  // namespace weft
