// weft sweep plan|run|resume|status|collect SWEEP.toml [--out DIR] [--jobs N] [--json]

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "experiments/run/program.h"
#include "sweeps/children.h"
#include "sweeps/collect.h"
#include "sweeps/pool.h"

namespace {

using namespace weft;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kDefaultOut = "runs";
constexpr const char* kHelp = R"(
  plan     print every cell with run id, parameters, FLOPs per token, tokens, memory and time; nothing is written
  run      bring every cell to its end, several at a time: done cells are skipped, unfinished ones resumed,
           failed ones tried again; a cell that fails stops no other; at the end, collect
  resume   the same as run
  status   where the cells are
  collect  write OUT/<study>/sweep.h5 from what the runs have written so far
)";

// "1.23M" for 1234567.
std::string Short(double x) {
  constexpr std::string_view kSuffix = " kMGTPE";
  size_t power = 0;
  while (x >= 999.5 && power + 1 < kSuffix.size()) x /= 1000, ++power;
  const int decimals = power == 0 || x >= 99.5 ? 0 : x >= 9.95 ? 1 : 2;
  return fmt::format("{:.{}f}{}", x, decimals, power == 0 ? "" : std::string(1, kSuffix[power]));
}

// Rows of cells, the first row the heading; all columns but the first `left` are aligned to the
// right.
void PrintTable(const std::vector<std::vector<std::string>>& rows, size_t left) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      line += c < left ? fmt::format("{:<{}}  ", row[c], widths[c])
                       : fmt::format("{:>{}}  ", row[c], widths[c]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", line);
  }
}

std::string Trainer() {
  const fs::path trainer = fs::read_symlink("/proc/self/exe").parent_path() / "weft-train";
  return trainer.string();
}

// Held while cells are run: two pools of one study would start the same cells.
Descriptor LockStudy(const std::string& directory) {
  const std::string path = directory + "/sweep.lock";
  Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (file.get() < 0) FailWrite(path, "create", errno);
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    Fail(ExitCode::kFailure, directory,
         ": another weft sweep is running this study; wait for it or stop it");
  }
  return file;
}

int PlanCommand(const Study& study, int jobs, bool json) {
  std::vector<double> seconds;
  double tokens = 0, flops = 0;
  for (const PlannedCell& cell : study.cells) {
    const Plan& plan = cell.plan;
    seconds.push_back(plan.seconds);
    tokens += static_cast<double>(plan.tokens);
    flops += plan.training_flops_per_token * static_cast<double>(plan.tokens);
  }
  std::sort(seconds.rbegin(), seconds.rend());
  const double total = Makespan({}, seconds, jobs);
  if (json) {
    Json out = Json::parse(study.ToJson());
    for (Json& cell : out["cells"]) {
      cell.erase("exit_code");
      cell.erase("error");
    }
    out["totals"] = {{"cells", study.cells.size()},
                     {"jobs", jobs},
                     {"tokens", tokens},
                     {"training_flops", flops},
                     {"seconds", total}};
    fmt::print("{}\n", out.dump(2));
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {
      {"cell", "run", "parameters", "(body)", "FLOPs/token", "tokens", "memory", "time"}};
  for (const PlannedCell& cell : study.cells) {
    const Plan& p = cell.plan;
    rows.push_back({cell.cell.name, p.run_id, fmt::format("{}", p.total), fmt::format("{}", p.body),
                    Short(p.flops_per_token), Short(static_cast<double>(p.tokens)),
                    Short(static_cast<double>(p.memory_bytes)) + "B", DurationText(p.seconds)});
  }
  if (!study.question.empty()) fmt::print("{}\n\n", study.question);
  PrintTable(rows, 2);
  fmt::print("\n{} cell{}, {} tokens, {} FLOPs in training, about {} with {} at a time\n",
             study.cells.size(), study.cells.size() == 1 ? "" : "s", Short(tokens), Short(flops),
             DurationText(total), jobs);
  return 0;
}

int StatusCommand(const Study& study, bool json) {
  std::vector<std::vector<std::string>> rows = {{"cell", "run", "state", "step", "message"}};
  std::map<std::string, int> counts;
  Json cells = Json::array();
  for (const PlannedCell& cell : study.cells) {
    const CellState state = StateOf(study, cell);
    ++counts[state.state];
    rows.push_back({cell.cell.name, cell.plan.run_id, state.state,
                    fmt::format("{}/{}", state.step, cell.plan.steps), state.message});
    cells.push_back({{"name", cell.cell.name},
                     {"run_id", cell.plan.run_id},
                     {"state", state.state},
                     {"exit_code", state.exit_code},
                     {"step", state.step},
                     {"steps", cell.plan.steps},
                     {"message", state.message}});
  }
  if (json) {
    fmt::print("{}\n", Json({{"study", study.name},
                             {"directory", study.directory},
                             {"counts", counts},
                             {"cells", cells}})
                           .dump(2));
    return 0;
  }
  PrintTable(rows, rows.front().size());
  std::string line;
  for (const auto& [state, count] : counts)
    line += fmt::format("{}{} {}", line.empty() ? "" : ", ", count, state);
  fmt::print("\n{}\n", line);
  return 0;
}

int CollectCommand(const Study& study) {
  std::vector<std::string> problems;
  const std::string path = Collect(study, problems);
  for (const std::string& problem : problems) fmt::print(stderr, "weft sweep: {}\n", problem);
  fmt::print("{}\n", path);
  return problems.empty() ? 0 : static_cast<int>(ExitCode::kData);
}

int RunCommand(const Sweep& sweep, const std::string& out, const PoolOptions& options) {
  Study study = PlanStudy(sweep, out, options.trainer, options.threads);
  MakeDirectories(study.directory);
  const Descriptor lock = LockStudy(study.directory);
  RemoveTemporaries(study.directory);
  WriteStudy(study);
  const int signal = RunPool(sweep, study, options);
  if (signal != 0) {
    fmt::print(stderr, "weft sweep: stopped; continue with: weft sweep run {}{}\n", sweep.path,
               out == kDefaultOut ? "" : " --out " + out);
    return static_cast<int>(signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue);
  }
  int code = CollectCommand(study);
  std::string failed;
  for (const PlannedCell& cell : study.cells) {
    const CellState state = StateOf(study, cell);
    if (state.state == "done") continue;
    failed +=
        fmt::format("\n  {} ({}): {}", cell.cell.name, study.RunDirectoryOf(cell), state.message);
  }
  if (!failed.empty()) {
    fmt::print(stderr, "weft sweep: these cells failed:{}\n", failed);
    code = static_cast<int>(ExitCode::kFailure);
  }
  return code;
}

int Main(CLI::App& app, int argc, char** argv) {
  std::string action, file, out = kDefaultOut;
  bool json = false;
  const int cores = CoresOfProcess();
  int jobs = cores;
  app.add_option("ACTION", action, "plan, run, resume, status or collect")
      ->required()
      ->check(CLI::IsMember({"plan", "run", "resume", "status", "collect"}));
  app.add_option("SWEEP", file, "sweep, a TOML file")->required();
  app.add_option("--out", out, "where studies are: OUT/<study>")->capture_default_str();
  app.add_option("--jobs", jobs, "cells at a time; the cores are shared among them")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_flag("--json", json, "plan, status: machine-readable output");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    throw HelpWanted();
  }
  const Sweep sweep = ReadSweep(file);
  const PoolOptions options{Trainer(), jobs, std::max(1, cores / jobs)};
  if (action == "plan")
    return PlanCommand(PlanStudy(sweep, out, options.trainer, options.threads), jobs, json);
  if (action == "run" || action == "resume") return RunCommand(sweep, out, options);

  const Study study = ReadStudy(out + "/" + sweep.study);
  if (study.sweep_toml != sweep.text) {
    fmt::print(stderr,
               "weft sweep: {} has changed since the sweep was started; this is the sweep as it "
               "was started\n",
               file);
  }
  return action == "status" ? StatusCommand(study, json) : CollectCommand(study);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Runs a model for every cell of a sweep: variants x cases x axes.");
  return weft::RunProgram(
      "sweep", app, [&] { return Main(app, argc, argv); }, [] { return std::string(kHelp); });
}
