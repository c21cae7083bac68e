#pragma once
// A run directory: runs/<study>/<run-id>/ with config.toml (as given), resolved.toml (every key
// with its origin), environment.json, status.json, journal.jsonl, run.h5, log.txt and checkpoints/.
// The run-id is HashOf the resolved config. resolved.toml is written last: a directory that lacks
// it was never completed and is filled again.
//
// Errors: kUsage for another config in the same place, kData for missing files, kFailure for a
// directory that cannot be written or that another process is writing.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arch/core/config.h"
#include "experiments/run/h5.h"
#include "experiments/run/journal.h"

namespace weft {

enum class RunState { kQueued, kRunning, kDone, kFailed, kPreempted, kDiverged };
std::string_view NameOf(RunState state);  // "queued", "running", ...

struct Status {
  RunState state = RunState::kQueued;
  int64_t exit_code = 0;  // meaningful when done, failed, preempted or diverged
  int64_t step = 0;
  int64_t steps = 0;
  std::string message;  // the error of a failed run
  // Set when written.
  int64_t pid = 0;
  std::string host;
  std::string heartbeat;  // UTC
};
Status ReadStatus(const std::string& run_directory);

class RunDirectory {
 public:
  struct Request {
    std::string out = "runs";
    std::string study;
    std::vector<ConfigField> fields;
    std::map<std::string, std::string> origins;
    std::string config_toml;  // the text of the user's file
    Attributes environment;   // DescribeEnvironment(...) and the device
  };
  // Creates the directory, or opens it when it holds the same resolved config.
  static RunDirectory Create(const Request& request);
  // Opens an existing directory for writing and removes what a killed process left.
  static RunDirectory Open(const std::string& path);

  const std::string& path() const { return path_; }
  bool existed() const { return existed_; }  // false when Create made it
  Journal& journal() { return *journal_; }

  void SetStatus(Status status) const;
  // Appends "<time> <line>" to log.txt.
  void Log(std::string_view line) const;
  // Replaces run.h5 by a snapshot of the journal.
  void WriteRunH5() const;

 private:
  RunDirectory(std::string path, Descriptor lock, bool existed);
  static RunDirectory Continue(const std::string& path, Descriptor lock);
  std::string path_;
  Descriptor lock_;
  bool existed_;
  std::unique_ptr<Journal> journal_;
};

// Builds run.h5 from journal.jsonl, resolved.toml and environment.json of a directory that may be
// in use. Tables as in the journal, attributes of /settings, /environment and /: schema_version.
void RebuildRunH5(const std::string& run_directory);

}  // namespace weft
