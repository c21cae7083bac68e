// weft sweep plan|run|resume|submit|status|collect SWEEP.toml [--out DIR] [--jobs N] [--json]

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "experiments/run/program.h"
#include "sweeps/children.h"
#include "sweeps/collect.h"
#include "sweeps/pool.h"
#include "sweeps/slurm.h"

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
  submit   give the cells that are not done to a cluster, as a job array of tasks that hold several short cells;
           prints the job's id; what is not done later on is given by another submit
  status   where the cells are
  collect  write OUT/<study>/sweep.h5 from the runs that are done; the others are named
  task     what a job of the cluster runs: SWEEP is OUT/<study>/slurm/<n>
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
    out["totals"] = {{"cells", study.cells.size()},
                     {"jobs", jobs},
                     {"tokens", tokens},
                     {"training_flops", flops},
                     {"seconds", total}};
    fmt::print("{}\n", out.dump(2));
    return 0;
  }
  const bool matches = std::any_of(study.cells.begin(), study.cells.end(),
                                   [](const PlannedCell& cell) { return cell.plan.match; });
  std::vector<std::vector<std::string>> rows = {{"cell", "run", "parameters", "(body)",
                                                 "FLOPs/token", "batch", "lr", "tokens", "memory",
                                                 "time"}};
  if (matches) rows.front().insert(rows.front().end(), {"matched by", "residual"});
  for (const PlannedCell& cell : study.cells) {
    const Plan& p = cell.plan;
    rows.push_back({cell.cell.name, p.run_id, fmt::format("{}", p.total), fmt::format("{}", p.body),
                    Short(p.flops_per_token), Short(static_cast<double>(p.batch_tokens)),
                    fmt::format("{:.3g}", p.lr), Short(static_cast<double>(p.tokens)),
                    Short(static_cast<double>(p.memory_bytes)) + "B", DurationText(p.seconds)});
    if (!matches) continue;
    rows.back().push_back(p.match ? fmt::format("{}={}", p.match->by, p.match->value) : "");
    rows.back().push_back(p.match ? fmt::format("{:+.3f} %", p.match->residual_percent) : "");
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

int CollectCommand(const Study& study, const CollectOptions& options) {
  const Collected collected = Collect(study, options);
  for (const std::string& cell : collected.broken) fmt::print(stderr, "weft sweep: {}\n", cell);
  if (!collected.left_out.empty()) {
    fmt::print(stderr, "weft sweep: {} of {} cells are left out:\n", collected.left_out.size(),
               study.cells.size());
    for (const std::string& cell : collected.left_out) fmt::print(stderr, "  {}\n", cell);
  }
  fmt::print("{}\n", collected.path);
  return collected.broken.empty() ? 0 : static_cast<int>(ExitCode::kData);
}

// The study of a sweep as it is now, on disk and locked.
struct Started {
  Study study;
  Descriptor lock;
};
Started Start(const Sweep& sweep, const std::string& out) {
  Study study = PlanStudy(sweep, out, Trainer());
  MakeDirectories(study.directory);
  Descriptor lock = LockStudy(study.directory);
  RemoveTemporaries(study.directory);
  WriteStudy(study);
  return {std::move(study), std::move(lock)};
}

int SubmitCommand(const Sweep& sweep, const std::string& out, const SlurmOptions& options,
                  bool dry_run) {
  const std::string program = fs::read_symlink("/proc/self/exe").string();
  if (dry_run) {
    const Study study = PlanStudy(sweep, out, Trainer());
    std::vector<size_t> all(study.cells.size());
    std::iota(all.begin(), all.end(), size_t{0});
    const auto tasks = Pack(study, all, options);
    for (size_t t = 0; t < tasks.size(); ++t) {
      for (const size_t i : tasks[t]) fmt::print("# task {}: {}\n", t, study.cells[i].cell.name);
    }
    fmt::print("{}", JobScript(study, NextSubmission(study), tasks.size(), program, options));
    return 0;
  }
  CheckSlurm();
  const auto [study, lock] = Start(sweep, out);
  const std::vector<size_t> cells = CellsToSubmit(study);
  if (cells.empty()) {
    fmt::print(stderr, "weft sweep: every cell is done, running or in the queue\n");
    return 0;
  }
  const auto tasks = Pack(study, cells, options);
  const std::string job = Submit(study, tasks, program, options);
  fmt::print(stderr,
             "weft sweep: {} of {} cells in {} tasks; watch them with: weft sweep status {}\n",
             cells.size(), study.cells.size(), tasks.size(), sweep.path);
  fmt::print("{}\n", job);
  return 0;
}

// How many cells at a time, and where, as the command line says it.
struct Packing {
  int jobs = 0;            // 0 = not given
  std::string per_device;  // a number or "auto"; "" = not given
  std::vector<int> devices;
};

bool IsOnGpu(const Study& study) {
  return std::any_of(study.cells.begin(), study.cells.end(),
                     [](const PlannedCell& cell) { return cell.plan.on_gpu; });
}

// Cells for GPUs share a process on each, unless --jobs is given; others have processes of their
// own, unless --per-device is a number.
PoolOptions PoolFor(const Study& study, const Packing& packing) {
  const int cores = CoresOfProcess();
  const bool on_gpu = IsOnGpu(study);
  if (!on_gpu && !packing.devices.empty())
    Fail(ExitCode::kUsage,
         "--devices: the cells run on the CPU; set device = \"cuda\" in the base");
  const bool automatic = packing.per_device.empty() || packing.per_device == "auto";
  PoolOptions options{Trainer(), {}, 1};
  if (on_gpu && packing.jobs == 0) {
    options.places = PlacesOnGpus(options.trainer, automatic ? 0 : std::stoi(packing.per_device),
                                  packing.devices);
  } else if (!automatic) {
    options.places = {{std::stoi(packing.per_device), /*shared=*/true}};
  } else {
    options.places = {{packing.jobs > 0 ? packing.jobs : cores}};
  }
  options.threads = std::max(1, cores / options.slots());
  return options;
}

int RunCommand(const Sweep& sweep, const std::string& out, const Packing& packing) {
  const auto [study, lock] = Start(sweep, out);
  const PoolOptions options = PoolFor(study, packing);
  std::vector<size_t> all(study.cells.size());
  std::iota(all.begin(), all.end(), size_t{0});
  const int signal = RunPool(study, all, options);
  if (signal != 0) {
    fmt::print(stderr, "weft sweep: stopped; continue with: weft sweep run {}{}\n", sweep.path,
               out == kDefaultOut ? "" : " --out " + out);
    return static_cast<int>(signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue);
  }
  int code = CollectCommand(study, {});
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
  std::string action, file, out = kDefaultOut, cluster;
  bool json = false, dry_run = false;
  CollectOptions collect;
  SlurmOptions slurm;
  int task = -1;
  Packing packing;
  const std::vector<std::string> actions = {"plan",   "run",     "resume", "submit",
                                            "status", "collect", "task"};
  app.add_option("ACTION", action, "plan, run, resume, submit, status or collect")
      ->required()
      ->check(CLI::IsMember(actions));
  app.add_option("SWEEP", file, "sweep, a TOML file")->required();
  app.add_option("--out", out, "where studies are: OUT/<study>")->capture_default_str();
  auto* jobs =
      app.add_option("--jobs", packing.jobs,
                     "cells at a time, each in a process of its own, among which the cores "
                     "are shared; default on the CPU: one per core, in a task of a cluster "
                     "one")
          ->check(CLI::Range(1, 4096));
  app.add_option(
         "--per-device", packing.per_device,
         "cells at a time on each GPU, or on the CPU, as far as its memory goes: in one "
         "process, with the bits of processes of their own; default on a GPU: auto, as many "
         "as keep it busy")
      ->check(CLI::Range(1, 4096) | CLI::IsMember({"auto"}))
      ->excludes(jobs);
  app.add_option("--devices", packing.devices, "GPUs to use, such as 0,1; default: all")
      ->delimiter(',')
      ->excludes(jobs);
  app.add_flag("--json", json, "plan, status: machine-readable output");
  app.add_flag("--unfinished", collect.unfinished,
               "collect: with what cells that are not done have written");
  app.add_flag("--slim", collect.slim,
               "collect: training curves as means, at most 64 per cell: a file to commit");
  app.add_option("--cluster", cluster, "submit: what runs the cells")
      ->check(CLI::IsMember({"slurm"}));
  app.add_option("--limit", slurm.limit, "submit: tasks at a time; 0 = no limit")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--task-minutes", slurm.task_minutes,
                 "submit: short cells are put together until a task is estimated to take as long")
      ->check(Between(0, 1e6))
      ->capture_default_str();
  app.add_option("--cells-per-task", slurm.cells_per_task,
                 "submit: cells of a task, whatever the estimates say")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--sbatch", slurm.sbatch,
                 "submit: option for sbatch, such as --sbatch=--partition=gpu")
      ->expected(1)
      ->take_all();
  app.add_flag("--dry-run", dry_run, "submit: print tasks and script, and start nothing");
  app.add_option("--task", task, "task: its number");
  ParseArguments(app, argc, argv);
  slurm.jobs = std::max(1, packing.jobs);
  slurm.per_device = packing.per_device;
  if (action == "task") {
    if (packing.per_device.empty()) packing.jobs = slurm.jobs;
    return RunTask(file, task, [&](const Study& study) { return PoolFor(study, packing); });
  }
  const Sweep sweep = ReadSweep(file);
  if (action == "submit") {
    if (cluster.empty()) Fail(ExitCode::kUsage, "submit: name the cluster with --cluster=slurm");
    return SubmitCommand(sweep, out, slurm, dry_run);
  }
  if (action == "plan") {
    const Study study = PlanStudy(sweep, out, Trainer());
    int jobs = packing.jobs;
    if (jobs == 0) jobs = IsOnGpu(study) ? 1 : CoresOfProcess();
    return PlanCommand(study, jobs, json);
  }
  if (action == "run" || action == "resume") return RunCommand(sweep, out, packing);

  const Study study = ReadStudy(out + "/" + sweep.study);
  const auto note = [](const std::string& what) {
    fmt::print(stderr,
               "weft sweep: {} has changed since the sweep was started; this is the sweep as it "
               "was started\n",
               what);
  };
  if (study.sweep_toml != sweep.text) note(file);
  if (study.base_toml != ReadFile(sweep.base)) note(sweep.base + ", the base of the sweep,");
  return action == "status" ? StatusCommand(study, json) : CollectCommand(study, collect);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Runs a model for every cell of a sweep: variants x cases x axes.");
  return weft::RunProgram(
      "sweep", app, [&] { return Main(app, argc, argv); }, [] { return std::string(kHelp); });
}
