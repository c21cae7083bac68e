#include "experiments/run/run_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <filesystem>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSchemaVersion = 1;
constexpr std::string_view kStateNames[] = {"queued", "running",   "done",
                                            "failed", "preempted", "diverged"};  // by RunState
constexpr const char* kRequiredFiles[] = {"config.toml", "resolved.toml", "environment.json",
                                          "status.json", "journal.jsonl"};

void CheckStudy(const std::string& study) {
  const bool ok = !study.empty() && study.front() != '.' &&
                  std::all_of(study.begin(), study.end(), [](unsigned char c) {
                    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
                  });
  if (!ok) {
    Fail(ExitCode::kUsage, "study \"", study,
         "\" cannot be a directory, expected letters, digits, '_', '-' and '.'");
  }
}

Descriptor Lock(const std::string& run) {
  const std::string path = run + "/lock";
  Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (file.get() < 0) FailWrite(path, "create", errno);
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) FailWrite(path, "lock", errno);
    std::string seen;
    if (fs::exists(run + "/status.json")) {
      const Status status = ReadStatus(run);
      seen = Cat(", last seen as pid ", status.pid, " on ", status.host, " at ", status.heartbeat);
    }
    Fail(ExitCode::kFailure, run, ": another process is writing this run", seen,
         "; wait for it or stop it");
  }
  return file;
}

Attributes SettingsOf(const std::string& run) {
  Attributes attributes;
  for (Setting& setting : ReadTomlFile(run + "/resolved.toml")) {
    attributes.emplace_back(std::move(setting.path), std::move(setting.value));
  }
  return attributes;
}

void CheckSameConfig(const std::string& run, const std::vector<ConfigField>& fields) {
  std::map<std::string, std::string> stored;
  for (const auto& [path, value] : SettingsOf(run)) stored[path] = ToToml(value);
  const auto fail = [&](const std::string& path, const std::string& found,
                        const std::string& expected) {
    Fail(ExitCode::kUsage, run, "/resolved.toml: ", path, " is ", found, ", this run asks for ",
         expected, "; the directory belongs to another config, choose another study or remove it");
  };
  for (const ConfigField& field : fields) {
    const auto found = stored.find(field.path);
    if (found == stored.end()) {
      if (!IsAbsent(field)) fail(field.path, "missing", ToToml(field));
      continue;
    }
    if (found->second != ToToml(field)) fail(field.path, found->second, ToToml(field));
    stored.erase(found);
  }
  if (!stored.empty()) fail(stored.begin()->first, stored.begin()->second, "no such key");
}

void WriteStatus(const std::string& run, Status status) {
  status.pid = getpid();
  status.host = HostName();
  status.heartbeat = TimeNow();
  WriteFileAtomically(run + "/status.json", ToJson({{"state", std::string(NameOf(status.state))},
                                                    {"exit_code", status.exit_code},
                                                    {"step", status.step},
                                                    {"steps", status.steps},
                                                    {"message", status.message},
                                                    {"pid", status.pid},
                                                    {"host", status.host},
                                                    {"heartbeat", status.heartbeat}}));
}

void WriteSnapshot(const std::string& run, const std::vector<H5Table>& tables) {
  const std::string environment = run + "/environment.json";
  WriteH5(run + "/run.h5", tables,
          {{"/", {{"schema_version", kSchemaVersion}, {"format", std::string("weft-run")}}},
           {"/settings", SettingsOf(run)},
           {"/environment", ParseJson(ReadFile(environment), environment)}});
}

// Removes the directories from `path` upward that did not exist before and are empty again.
class NewDirectories {
 public:
  explicit NewDirectories(const std::string& path) {
    for (fs::path p = path; !p.empty() && !fs::exists(p); p = p.parent_path()) made_.push_back(p);
  }
  void Remove() const {
    std::error_code ignored;
    for (const fs::path& path : made_) fs::remove(path, ignored);
  }

 private:
  std::vector<fs::path> made_;  // innermost first
};

}  // namespace

std::string_view NameOf(RunState state) { return kStateNames[static_cast<int>(state)]; }

Status ReadStatus(const std::string& run_directory) {
  const std::string path = run_directory + "/status.json";
  std::map<std::string, Setting::Value> values;
  for (auto& [name, value] : ParseJson(ReadFile(path), path)) values[name] = std::move(value);
  try {
    Status status;
    const auto& name = std::get<std::string>(values.at("state"));
    const auto* const state = std::find(std::begin(kStateNames), std::end(kStateNames), name);
    if (state == std::end(kStateNames)) {
      Fail(ExitCode::kData, path, ": unknown state \"", name, "\"");
    }
    status.state = static_cast<RunState>(state - std::begin(kStateNames));
    status.exit_code = std::get<int64_t>(values.at("exit_code"));
    status.step = std::get<int64_t>(values.at("step"));
    status.steps = std::get<int64_t>(values.at("steps"));
    status.message = std::get<std::string>(values.at("message"));
    status.pid = std::get<int64_t>(values.at("pid"));
    status.host = std::get<std::string>(values.at("host"));
    status.heartbeat = std::get<std::string>(values.at("heartbeat"));
    return status;
  } catch (const std::logic_error&) {
    Fail(ExitCode::kData, path, ": a field is missing");
  } catch (const std::bad_variant_access&) {
    Fail(ExitCode::kData, path, ": a field has another type");
  }
}

RunDirectory::RunDirectory(std::string path, Descriptor lock, bool existed)
    : path_(std::move(path)), lock_(std::move(lock)), existed_(existed) {
  RemoveTemporaries(path_);
  if (fs::exists(path_ + "/checkpoints")) RemoveTemporaries(path_ + "/checkpoints");
  journal_ = std::make_unique<Journal>(path_ + "/journal.jsonl");
  if (journal_->cut_bytes() > 0) {
    Log(Cat("cut ", journal_->cut_bytes(), " bytes of a broken last line from journal.jsonl"));
  }
}

RunDirectory RunDirectory::Create(const Request& request) {
  CheckStudy(request.study);
  const std::string path = request.out + "/" + request.study + "/" + HashOf(request.fields);
  const NewDirectories made(path);
  try {
    MakeDirectories(path);
    Descriptor lock = Lock(path);
    if (fs::exists(path + "/resolved.toml")) {
      CheckSameConfig(path, request.fields);
      return Continue(path, std::move(lock));
    }
    try {
      WriteFileAtomically(path + "/config.toml", request.config_toml);
      WriteFileAtomically(path + "/environment.json", ToJson(request.environment));
      WriteStatus(path, {});
      RunDirectory run(path, std::move(lock), false);
      run.Log("created by " + BuildDescription());
      run.journal().Sync();
      WriteFileAtomically(path + "/resolved.toml", WriteToml(request.fields, &request.origins));
      return run;
    } catch (...) {
      for (const char* name : kRequiredFiles) unlink((path + "/" + name).c_str());
      unlink((path + "/log.txt").c_str());
      unlink((path + "/lock").c_str());
      throw;
    }
  } catch (...) {
    made.Remove();
    throw;
  }
}

RunDirectory RunDirectory::Open(const std::string& path) {
  if (!fs::is_directory(path)) Fail(ExitCode::kData, path, ": there is no such run directory");
  for (const char* name : kRequiredFiles) {
    const std::string file = path + "/" + name;
    if (!fs::exists(file)) Fail(ExitCode::kData, file, ": is missing, expected a run directory");
  }
  return Continue(path, Lock(path));
}

RunDirectory RunDirectory::Continue(const std::string& path, Descriptor lock) {
  RunDirectory run(path, std::move(lock), true);
  run.Log("opened by " + BuildDescription());
  return run;
}

void RunDirectory::SetStatus(Status status) const { WriteStatus(path_, std::move(status)); }

void RunDirectory::Log(std::string_view line) const {
  const std::string path = path_ + "/log.txt";
  const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (file.get() < 0) FailWrite(path, "open", errno);
  WriteAll(file.get(), Cat(TimeNow(), " ", line, "\n"), path);
}

void RunDirectory::WriteRunH5() const { WriteSnapshot(path_, journal_->tables()); }

void RebuildRunH5(const std::string& run_directory) {
  WriteSnapshot(run_directory, ReadJournal(run_directory + "/journal.jsonl").tables);
}

}  // namespace weft
