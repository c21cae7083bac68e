#include "experiments/run/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kPrefix = "step-";
const char* const kModelFile = "model.safetensors";
const char* const kOptimizerFile = "optimizer.safetensors";
const char* const kStateFile = "state.json";
const char* const kChecksumKey = "xxh3";

std::string FolderOf(const std::string& run_directory) { return run_directory + "/checkpoints"; }

// The step of "step-00001000"; none for other names.
std::optional<int64_t> StepOf(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0) return std::nullopt;
  return step;
}

void Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) FailWrite(to, "rename into place", errno);
}

void RemoveDirectory(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) FailWrite(path, "remove", error.value());
}

// Puts the directory `fresh` under the name `path`, where an older one may stand.
void Replace(const std::string& fresh, const std::string& path) {
  if (!fs::exists(path)) return Rename(fresh, path);
  if (renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) != 0) {
    // A file system that cannot exchange.
    if (errno != EINVAL && errno != ENOSYS) FailWrite(path, "replace", errno);
    RemoveDirectory(path);
    return Rename(fresh, path);
  }
  RemoveDirectory(fresh);
}

std::string StateChecksum(Json json) {
  json.erase(kChecksumKey);
  return ChecksumHex(json.dump());
}

Json ReadState(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.path + "/" + kStateFile;
  const Json json = Json::parse(ReadFile(path), nullptr, false);
  if (!json.is_object() || !json.contains("state")) {
    Fail(ExitCode::kData, path, ": is not the state of a checkpoint");
  }
  const std::string actual = StateChecksum(json);
  if (json.value(kChecksumKey, Json()) != actual) {
    Fail(ExitCode::kData, path, ": is corrupted: checksum ", actual, ", expected ",
         json.value(kChecksumKey, Json()).dump());
  }
  return json;
}

SafetensorsFile OpenTensors(const Checkpoint& checkpoint, const std::string& name,
                            const Json& state) {
  const std::string path = checkpoint.path + "/" + name;
  SafetensorsFile file(path);
  const auto expected = state.at("headers").at(name).get<std::string>();
  if (file.header_checksum() != expected) {
    Fail(ExitCode::kData, path, ": belongs to another checkpoint: header checksum \"",
         file.header_checksum(), "\", expected \"", expected, "\"");
  }
  return file;
}

std::string AdviceFor(const Checkpoint& broken) {
  const std::string run = fs::path(broken.path).parent_path().parent_path().string();
  std::string older;
  for (const Checkpoint& one : ListCheckpoints(run)) {
    if (one.step < broken.step) older = one.path;
  }
  return older.empty() ? "; there is no older checkpoint, start the run again"
                       : "; the next older checkpoint is " + older + ", remove " + broken.path +
                             " to continue from there";
}

}  // namespace

Checkpoint SaveCheckpoint(const std::string& run_directory, int64_t step,
                          std::span<const NamedTensor> model,
                          std::span<const NamedTensor> optimizer, const std::string& state) {
  Json content = Json::parse(state, nullptr, false);
  Check(content.is_object(), "the state of a checkpoint must be a JSON object, found ", state);
  const std::string path = fmt::format("{}/{}{:08}", FolderOf(run_directory), kPrefix, step);
  const std::string temporary = TemporaryName(path);
  try {
    RemoveDirectory(temporary);
    MakeDirectories(temporary);
    Json json = {{"step", step}};
    json["headers"] = {
        {kModelFile, WriteSafetensors(temporary + "/" + kModelFile, model)},
        {kOptimizerFile, WriteSafetensors(temporary + "/" + kOptimizerFile, optimizer)}};
    json["state"] = std::move(content);
    json[kChecksumKey] = StateChecksum(json);
    WriteFileAtomically(temporary + "/" + kStateFile, json.dump(1) + "\n");
    SyncDirectory(temporary);
    Replace(temporary, path);
    SyncDirectory(FolderOf(run_directory));
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  return {step, path};
}

std::vector<Checkpoint> ListCheckpoints(const std::string& run_directory) {
  std::vector<Checkpoint> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(FolderOf(run_directory), error)) {
    const std::optional<int64_t> step = StepOf(entry.path().filename().string());
    if (step) found.push_back({*step, entry.path().string()});
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    FailRead(FolderOf(run_directory), error.value());
  }
  std::sort(found.begin(), found.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return found;
}

std::optional<Checkpoint> FindLatest(const std::string& run_directory) {
  std::vector<Checkpoint> all = ListCheckpoints(run_directory);
  if (all.empty()) return std::nullopt;
  return all.back();
}

std::string LoadCheckpoint(const Checkpoint& checkpoint, std::span<const TensorTarget> model,
                           std::span<const TensorTarget> optimizer) {
  const auto with_advice = [&](auto action) {
    try {
      return action();
    } catch (const Error& error) {
      Fail(error.code(), error.what(), AdviceFor(checkpoint));
    } catch (const Json::exception& error) {
      Fail(ExitCode::kData, checkpoint.path, ": broken ", kStateFile, ": ", error.what(),
           AdviceFor(checkpoint));
    }
  };
  const Json state = with_advice([&] { return ReadState(checkpoint); });
  const auto load = [&](const char* name, std::span<const TensorTarget> targets) {
    const SafetensorsFile file = with_advice([&] { return OpenTensors(checkpoint, name, state); });
    try {
      file.CheckTensors(targets);
    } catch (const Error& error) {
      Fail(error.code(), error.what(),
           "; the checkpoint is of another model, restore the settings that made it");
    }
    with_advice([&] { file.Load(targets); });
  };
  load(kModelFile, model);
  if (!optimizer.empty()) load(kOptimizerFile, optimizer);
  return state.at("state").dump();
}

std::string LoadState(const Checkpoint& checkpoint) {
  return ReadState(checkpoint).at("state").dump();
}

void PruneCheckpoints(const std::string& run_directory, int64_t keep, int64_t needed) {
  Check(keep >= 1, "cannot keep ", keep, " checkpoints, expected 1 or more");
  const std::vector<Checkpoint> all = ListCheckpoints(run_directory);
  for (size_t i = 0; i + static_cast<size_t>(keep) < all.size(); ++i) {
    if (all[i].step == needed) continue;
    // Renamed first: a kill in between must not leave half a checkpoint under its name.
    const std::string temporary = TemporaryName(all[i].path);
    RemoveDirectory(temporary);
    Rename(all[i].path, temporary);
    RemoveDirectory(temporary);
  }
}

}  // namespace weft
