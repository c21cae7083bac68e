#include "sweeps/study.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

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
  plan.on_gpu = json.value("device", "cpu") == "cuda";
  plan.gpu_share = json.value("gpu_share", 0.0);
  plan.total = n.at("total");
  plan.embedding = n.at("embedding");
  plan.head = n.at("head");
  plan.body = n.at("body");
  plan.flops_per_token = json.at("flops_per_token");
  plan.training_flops_per_token = json.at("training_flops_per_token");
  plan.tokens = json.at("tokens");
  plan.steps = json.at("steps");
  plan.batch_tokens = json.at("batch_tokens");
  plan.lr = json.at("lr");
  plan.warmup_steps = json.at("warmup_steps");
  plan.decayed_tokens = json.at("decayed_tokens").get<std::vector<int64_t>>();
  plan.memory_bytes = json.at("memory_bytes");
  plan.state_bytes = json.at("state_bytes");
  plan.seconds = json.at("seconds");
  if (json.contains("match")) {
    const Json& m = json.at("match");
    plan.match = Plan::Match{m.at("quantity"),  m.at("by"),      m.at("value"),
                             m.at("reference"), m.at("matched"), m.at("residual_percent")};
  }
  return plan;
}

Json ToJson(const PlannedCell& planned) {
  const Plan& plan = planned.plan;
  Json axes = Json::object();
  for (const Setting& axis : planned.cell.axes) {
    axes[axis.path] = std::visit([](const auto& value) { return Json(value); }, axis.value);
  }
  Json json = {{"name", planned.cell.name},
               {"variant", planned.cell.variant},
               {"case", planned.cell.case_name},
               {"axes", axes},
               {"round", planned.cell.round},
               {"set", planned.set},
               {"run_id", plan.run_id},
               {"device", plan.on_gpu ? "cuda" : "cpu"},
               {"gpu_share", plan.gpu_share},
               {"parameters",
                {{"total", plan.total},
                 {"embedding", plan.embedding},
                 {"head", plan.head},
                 {"body", plan.body}}},
               {"flops_per_token", plan.flops_per_token},
               {"training_flops_per_token", plan.training_flops_per_token},
               {"tokens", plan.tokens},
               {"steps", plan.steps},
               {"batch_tokens", plan.batch_tokens},
               {"lr", plan.lr},
               {"warmup_steps", plan.warmup_steps},
               {"decayed_tokens", plan.decayed_tokens},
               {"memory_bytes", plan.memory_bytes},
               {"state_bytes", plan.state_bytes},
               {"seconds", plan.seconds}};
  if (const auto& m = plan.match) {
    json["match"] = {{"quantity", m->quantity}, {"by", m->by},
                     {"value", m->value},       {"reference", m->reference},
                     {"matched", m->matched},   {"residual_percent", m->residual_percent}};
  }
  return json;
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
  planned.cell.round = json.at("round");
  planned.set = json.at("set").get<std::vector<std::string>>();
  planned.plan = PlanFrom(json);
  return planned;
}

std::vector<std::string> Overrides(const Sweep& sweep, const Settings& settings) {
  std::vector<std::string> overrides = {"study=" + sweep.study};
  for (const Setting& setting : settings)
    overrides.push_back(setting.path + "=" + ToToml(setting.value));
  return overrides;
}

// What PlanCells of the trainer reads: a line.
std::string Question(const Sweep& sweep, const Cell& cell) {
  Json json = {{"set", Overrides(sweep, cell.settings)}};
  if (!cell.reference.empty()) {
    const Matching& match = sweep.match;
    json["match"] = {{"quantity", match.quantity},
                     {"by", match.by},
                     {"tolerance", match.tolerance},
                     {"multiple", match.multiple},
                     {"to", Overrides(sweep, cell.reference)}};
  }
  return json.dump() + "\n";
}

// The trainer's one line, with the place in the sweep file where it blames a setting of the sweep.
std::string Explain(const Sweep& sweep, const Cell& cell, std::string message) {
  constexpr std::string_view kProgram = "weft train: ";
  if (message.starts_with(kProgram)) message = message.substr(kProgram.size());
  for (const Setting& setting : cell.settings) {
    const std::string flag = "--" + setting.path + ": ";
    if (message.starts_with(flag)) return setting.origin + ": " + message.substr(flag.size());
  }
  for (const char* flag : {"--match: ", "--by: ", "--multiple: "}) {
    if (!message.starts_with(flag)) continue;
    message = message.substr(std::string_view(flag).size());
    // Options of weft params are keys here.
    for (const std::string key : {"tolerance", "multiple"}) {
      if (const size_t at = message.find("--" + key); at != message.npos)
        message.replace(at, 2, "match.");
    }
    return Cat(sweep.match.where, ": match: cell ", cell.name, ": ", message);
  }
  return Cat(sweep.path, ": cell ", cell.name, ": ",
             message.empty() ? "weft-train gave no reason" : message);
}

std::string FailureFileOf(const Study& study, const PlannedCell& cell) {
  return study.directory + "/failures/" + cell.plan.run_id + ".json";
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

std::vector<std::string> ArgumentsOf(const Study& study, const PlannedCell& cell, int threads) {
  // --set rather than --KEY: a key that is called like an option of the trainer is an unknown key,
  // not the option.
  std::vector<std::string> arguments = {study.directory + "/base.toml", "--set",
                                        Cat("threads=", threads)};
  for (const std::string& setting : cell.set) arguments.insert(arguments.end(), {"--set", setting});
  return arguments;
}

Study PlanStudy(const Sweep& sweep, const std::string& out, const std::string& trainer) {
  if (!fs::exists(trainer))
    Fail(ExitCode::kFailure, trainer, ": is missing; build it, it belongs beside weft-sweep");
  struct DryRun {
    size_t begin, end;  // its cells
    Descriptor in, out = MakeCapture(), err = MakeCapture();
    pid_t pid = 0;
    int exit_code = -1;
  };
  std::vector<DryRun> runs;
  Children children;
  const size_t n = sweep.cells.size();
  // Measurements disturb each other.
  const bool measures = sweep.match.quantity == "throughput";
  const size_t processes = std::min(n, static_cast<size_t>(measures ? 1 : CoresOfProcess()));
  for (size_t p = 0; p < processes; ++p) {
    const size_t begin = n * p / processes, end = n * (p + 1) / processes;
    std::string questions;
    for (size_t i = begin; i < end; ++i) questions += Question(sweep, sweep.cells[i]);
    DryRun& run = runs.emplace_back(DryRun{begin, end, MakeCapture(questions)});
    run.pid = children.Start({trainer, sweep.base, "--out", out, "--dry-run", "--json", "--cells"},
                             run.out.get(), run.err.get(), run.in.get());
  }
  for (size_t left = runs.size(); left > 0;) {
    for (const Children::Ended& ended : children.Wait(60)) {
      for (DryRun& run : runs) {
        if (run.pid == ended.pid) run.exit_code = ended.exit_code;
      }
      --left;
    }
    if (children.stop_signal() != 0) {
      Fail(children.stop_signal() == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue,
           "stopped before any cell was started");
    }
  }

  Study study{out + "/" + sweep.study,
              sweep.text,
              ReadFile(sweep.base),
              sweep.question,
              sweep.base,
              sweep.study,
              sweep.axes,
              {}};
  for (const DryRun& run : runs) {
    std::istringstream lines(ReadCapture(run.out));
    for (size_t i = run.begin; i < run.end; ++i) {
      const Cell& cell = sweep.cells[i];
      std::string line;
      if (!std::getline(lines, line)) {
        Fail(static_cast<ExitCode>(run.exit_code == 0 ? 1 : run.exit_code),
             Explain(sweep, cell, LastLine(ReadCapture(run.err))));
      }
      const Json json = Json::parse(line, nullptr, false);
      try {
        if (json.contains("error"))
          Fail(json.at("exit_code").get<ExitCode>(), Explain(sweep, cell, json.at("error")));
        PlannedCell& planned = study.cells.emplace_back();
        planned.cell = cell;
        planned.plan = PlanFrom(json);
        planned.set = Overrides(sweep, cell.settings);
        if (const auto& match = planned.plan.match)
          planned.set.push_back(Cat(match->by, "=", match->value));
      } catch (const Json::exception& error) {
        Fail(ExitCode::kFailure, trainer, " --dry-run --json of cell ", cell.name,
             " printed no plan: ", error.what());
      }
    }
  }
  CheckDistinct(sweep, study.cells);
  return study;
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
  WriteFileAtomically(study.directory + "/base.toml", study.base_toml);
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
                ReadFile(directory + "/base.toml"),
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

void WriteFailure(const Study& study, const PlannedCell& cell, int exit_code,
                  const std::string& error) {
  const Json json = {{"exit_code", exit_code}, {"error", error}};
  MakeDirectories(study.directory + "/failures");
  WriteFileAtomically(FailureFileOf(study, cell),
                      json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void ClearFailure(const Study& study, const PlannedCell& cell) {
  const std::string path = FailureFileOf(study, cell);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) FailWrite(path, "remove", errno);
}

CellState StateOf(const Study& study, const PlannedCell& cell) {
  const std::string run = study.RunDirectoryOf(cell);
  CellState state{"queued", -1, 0, cell.plan.steps, ""};
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
  if (const std::string path = FailureFileOf(study, cell); fs::exists(path)) {
    // It ended without a word in its status, or before it had one.
    const Json json = Json::parse(ReadFile(path), nullptr, false);
    state.state = "failed";
    state.exit_code = json.value("exit_code", static_cast<int>(ExitCode::kFailure));
    state.message = json.value("error", path + " is broken");
  }
  return state;
}

bool IsBeingWritten(const std::string& run_directory) {
  const Descriptor file(open((run_directory + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
  return file.get() >= 0 && flock(file.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

}  // namespace weft
