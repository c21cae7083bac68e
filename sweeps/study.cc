#include "sweeps/study.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "kernels/base/check.h"
#include "sweeps/children.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Plan PlanFrom(const Json& json) {
  const Json& n = json.at("parameters");
  Plan plan;
  plan.run_id = json.at("run_id");
  plan.total = n.at("total");
  plan.embedding = n.at("embedding");
  plan.head = n.at("head");
  plan.body = n.at("body");
  plan.flops_per_token = json.at("flops_per_token");
  plan.training_flops_per_token = json.at("training_flops_per_token");
  plan.tokens = json.at("tokens");
  plan.steps = json.at("steps");
  plan.memory_bytes = json.at("memory_bytes");
  plan.state_bytes = json.at("state_bytes");
  plan.seconds = json.at("seconds");
  return plan;
}

Json ToJson(const PlannedCell& planned) {
  const Plan& plan = planned.plan;
  Json axes = Json::object();
  for (const Setting& axis : planned.cell.axes) {
    axes[axis.path] = std::visit([](const auto& value) { return Json(value); }, axis.value);
  }
  return {{"name", planned.cell.name},
          {"variant", planned.cell.variant},
          {"case", planned.cell.case_name},
          {"axes", axes},
          {"run_id", plan.run_id},
          {"parameters",
           {{"total", plan.total},
            {"embedding", plan.embedding},
            {"head", plan.head},
            {"body", plan.body}}},
          {"flops_per_token", plan.flops_per_token},
          {"training_flops_per_token", plan.training_flops_per_token},
          {"tokens", plan.tokens},
          {"steps", plan.steps},
          {"memory_bytes", plan.memory_bytes},
          {"state_bytes", plan.state_bytes},
          {"seconds", plan.seconds},
          {"exit_code", planned.exit_code},
          {"error", planned.error}};
}

PlannedCell CellFrom(const Json& json, const std::string& origin) {
  PlannedCell planned;
  planned.cell.name = json.at("name");
  planned.cell.variant = json.at("variant");
  planned.cell.case_name = json.at("case");
  // JSON's values are TOML values too.
  for (const auto& [key, value] : json.at("axes").items()) {
    planned.cell.axes.push_back({key, ParseValue(value.dump(), origin), origin});
  }
  planned.plan = PlanFrom(json);
  planned.exit_code = json.at("exit_code");
  planned.error = json.at("error");
  return planned;
}

// The trainer's one line, with the place in the sweep file where it blames a setting of the sweep.
std::string Explain(const Sweep& sweep, const Cell& cell, std::string message) {
  constexpr std::string_view kProgram = "weft train: ";
  if (message.starts_with(kProgram)) message = message.substr(kProgram.size());
  for (const Setting& setting : cell.settings) {
    const std::string flag = "--" + setting.path + ": ";
    if (message.starts_with(flag)) return setting.origin + ": " + message.substr(flag.size());
  }
  return Cat(sweep.path, ": cell ", cell.name, ": ",
             message.empty() ? "weft-train gave no reason" : message);
}

void CheckDistinct(const Sweep& sweep, const std::vector<PlannedCell>& cells) {
  std::map<std::string, std::string> names;
  for (const PlannedCell& planned : cells) {
    const auto [first, is_new] = names.emplace(planned.plan.run_id, planned.cell.name);
    if (!is_new) {
      Fail(ExitCode::kUsage, sweep.path, ": cells ", first->second, " and ", planned.cell.name,
           " are the same run ", planned.plan.run_id, "; make their settings differ or drop one");
    }
  }
}

}  // namespace

std::vector<std::string> ArgumentsOf(const Sweep& sweep, const Cell& cell, int threads) {
  // --set rather than --KEY: a key that is called like an option of the trainer is an unknown key,
  // not the option.
  std::vector<std::string> arguments = {sweep.base, "--set", Cat("threads=", threads), "--set",
                                        "study=" + sweep.study};
  for (const Setting& setting : cell.settings) {
    arguments.push_back("--set");
    arguments.push_back(setting.path + "=" + ToToml(setting.value));
  }
  return arguments;
}

Study PlanStudy(const Sweep& sweep, const std::string& out, const std::string& trainer,
                int threads_per_cell) {
  if (!fs::exists(trainer))
    Fail(ExitCode::kFailure, trainer, ": is missing; build it, it belongs beside weft-sweep");
  struct DryRun {
    pid_t pid = 0;
    Descriptor out = MakeCapture(), err = MakeCapture();
    int exit_code = -1;
  };
  std::map<size_t, DryRun> running;  // by cell
  std::vector<PlannedCell> cells(sweep.cells.size());
  std::map<size_t, Error> errors;  // the first cell's is reported, whichever ended first
  Children children;
  const auto finish = [&](size_t i, const DryRun& run) {
    const Cell& cell = sweep.cells[i];
    const Json json = Json::parse(ReadCapture(run.out), nullptr, false);
    if (run.exit_code != 0) {
      errors.emplace(i, Error(static_cast<ExitCode>(run.exit_code),
                              Explain(sweep, cell, LastLine(ReadCapture(run.err)))));
      return;
    }
    try {
      cells[i].cell = cell;
      cells[i].plan = PlanFrom(json);
    } catch (const Json::exception& error) {
      errors.emplace(i,
                     Error(ExitCode::kFailure, Cat(trainer, " --dry-run --json of cell ", cell.name,
                                                   " printed no plan: ", error.what())));
    }
  };
  const auto cores = static_cast<size_t>(CoresOfProcess());
  for (size_t next = 0; (errors.empty() && next < cells.size()) || !running.empty();) {
    while (errors.empty() && next < cells.size() && running.size() < cores) {
      std::vector<std::string> argv = ArgumentsOf(sweep, sweep.cells[next], threads_per_cell);
      argv.insert(argv.begin(), trainer);
      for (const std::string& more :
           {std::string("--out"), out, std::string("--dry-run"), std::string("--json")}) {
        argv.push_back(more);
      }
      DryRun run;
      run.pid = children.Start(argv, run.out.get(), run.err.get());
      running.emplace(next++, std::move(run));
    }
    for (const Children::Ended& ended : children.Wait(60)) {
      const auto run = std::find_if(running.begin(), running.end(),
                                    [&](const auto& r) { return r.second.pid == ended.pid; });
      run->second.exit_code = ended.exit_code;
      finish(run->first, run->second);
      running.erase(run);
    }
    if (children.stop_signal() != 0) {
      Fail(children.stop_signal() == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue,
           "stopped before any cell was started");
    }
  }
  if (!errors.empty()) throw errors.begin()->second;
  CheckDistinct(sweep, cells);
  return {out + "/" + sweep.study, sweep.text, sweep.question, sweep.base, sweep.study, sweep.axes,
          std::move(cells)};
}

std::string Study::ToJson() const {
  Json json = {{"study", name},
               {"question", question},
               {"base", base},
               {"directory", directory},
               {"axes", axes}};
  json["cells"] = Json::array();
  for (const PlannedCell& cell : cells) json["cells"].push_back(weft::ToJson(cell));
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void WriteStudy(const Study& study) {
  WriteFileAtomically(study.directory + "/sweep.toml", study.sweep_toml);
  WriteFileAtomically(study.directory + "/sweep.json", study.ToJson());
}

Study ReadStudy(const std::string& directory) {
  const std::string path = directory + "/sweep.json";
  if (!fs::exists(path))
    Fail(ExitCode::kData, path, ": is missing; start the sweep with: weft sweep run");
  const std::string text = ReadFile(path);
  try {
    const Json json = Json::parse(text);
    Study study{directory,
                ReadFile(directory + "/sweep.toml"),
                json.at("question"),
                json.at("base"),
                json.at("study"),
                json.at("axes"),
                {}};
    for (const Json& cell : json.at("cells")) study.cells.push_back(CellFrom(cell, path));
    return study;
  } catch (const Json::exception& error) {
    Fail(ExitCode::kData, path, ": is broken: ", error.what(),
         "; write it again with: weft sweep run");
  }
}

CellState StateOf(const Study& study, const PlannedCell& cell) {
  const std::string run = study.RunDirectoryOf(cell);
  CellState state{"queued", -1, 0, cell.plan.steps, cell.error};
  if (fs::exists(run + "/status.json")) {
    Status status;
    try {
      status = ReadStatus(run);
    } catch (const Error& error) {
      return {"failed", static_cast<int>(error.code()), 0, cell.plan.steps, error.what()};
    }
    state.step = status.step;
    state.message = status.message;
    const auto ended = [&](std::string_view name) {
      state.state = name;
      state.exit_code = static_cast<int>(status.exit_code);
      return state;
    };
    if (status.state == RunState::kDone) return ended("done");
    if (status.state == RunState::kDiverged) return ended("diverged");
    if (status.state == RunState::kFailed) return ended("failed");
    state.state = IsBeingWritten(run) ? "running" : "stopped";
    if (state.state == "running") return state;
  }
  if (cell.exit_code != 0) {  // ended without a word in its status, or before it had one
    state.state = "failed";
    state.exit_code = cell.exit_code;
    state.message = cell.error;
  }
  return state;
}

bool IsBeingWritten(const std::string& run_directory) {
  const Descriptor file(open((run_directory + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
  return file.get() >= 0 && flock(file.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

}  // namespace weft
