#include "sweeps/slurm.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "experiments/run/files.h"
#include "kernels/base/check.h"
#include "sweeps/children.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kSecondsToCheckpoint = 60;  // before the time limit

struct Output {
  int exit_code;
  std::string out, error;  // the last line of stderr
};

// A program of Slurm's, found in PATH.
Output Call(std::vector<std::string> argv) {
  argv.insert(argv.begin(), "/usr/bin/env");
  const Descriptor out = MakeCapture(), err = MakeCapture();
  Children children;
  children.Start(argv, out.get(), err.get());
  for (;;) {
    for (const Children::Ended& ended : children.Wait(60))
      return {ended.exit_code, ReadCapture(out), LastLine(ReadCapture(err))};
  }
}

// As words of a shell.
std::string Quoted(const std::string& word) {
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string SubmissionDirectory(const Study& study, int number) {
  return fmt::format("{}/slurm/{}", study.directory, number);
}

// Slurm's ids begin again when its state is lost, so a job is known by its name: unique to the
// place of the study and the submission.
std::string JobName(const Study& study, int number) {
  const std::string place = fs::weakly_canonical(fs::absolute(study.directory)).string();
  return fmt::format("weft-{}-{}-{}", study.name, number, ChecksumHex(place).substr(0, 8));
}

std::vector<std::vector<std::string>> ReadTasks(const std::string& submission) {
  const std::string path = submission + "/tasks.json";
  if (!fs::exists(path)) {
    Fail(ExitCode::kData, path, ": is missing; ", submission,
         " is no submission, expected OUT/<study>/slurm/<n>");
  }
  try {
    return Json::parse(ReadFile(path));
  } catch (const Json::exception& error) {
    Fail(ExitCode::kData, path, ": is broken: ", error.what(), "; submit the sweep again");
  }
}

// Run ids in the tasks of earlier submissions that Slurm has not ended.
std::set<std::string> Submitted(const Study& study) {
  std::set<std::string> ids;
  const int next = NextSubmission(study);
  if (next == 0) return ids;
  std::string names;
  for (int number = 0; number < next; ++number) {
    if (number > 0) names += ',';
    names += JobName(study, number);
  }
  const Output queue = Call({"squeue", "-h", "-r", "-o", "%j %K %T", "--name=" + names});
  if (queue.exit_code != 0) {
    Fail(ExitCode::kFailure, "squeue says nothing about the earlier submissions of ",
         study.directory, ": ", queue.error, "; try again when the cluster answers");
  }
  std::istringstream lines(queue.out);
  std::string name, state;
  for (size_t task = 0; lines >> name >> task >> state;) {
    if (state == "COMPLETING") continue;
    for (int number = 0; number < next; ++number) {
      if (name != JobName(study, number)) continue;
      const auto tasks = ReadTasks(SubmissionDirectory(study, number));
      if (task < tasks.size()) ids.insert(tasks[task].begin(), tasks[task].end());
    }
  }
  return ids;
}

}  // namespace

std::vector<std::vector<size_t>> Pack(const Study& study, const std::vector<size_t>& cells,
                                      const SlurmOptions& options) {
  const size_t least = (cells.size() + kMostTasks - 1) / kMostTasks;
  const double full = 60 * options.task_minutes * options.jobs;
  std::vector<std::vector<size_t>> tasks;
  double seconds = 0;
  for (const size_t i : cells) {
    const double more = study.cells[i].plan.seconds;
    const size_t count = tasks.empty() ? 0 : tasks.back().size();
    const bool fits = options.cells_per_task > 0
                          ? count < static_cast<size_t>(options.cells_per_task)
                          : seconds + more <= full;
    if (tasks.empty() || !(fits || count < least)) {
      tasks.emplace_back();
      seconds = 0;
    }
    tasks.back().push_back(i);
    seconds += more;
  }
  return tasks;
}

void CheckSlurm() {
  if (Call({"sbatch", "--version"}).exit_code == 0) return;
  Fail(
      ExitCode::kFailure,
      "--cluster=slurm: there is no sbatch in PATH; submit on a machine of the cluster, or run the "
      "cells here with: weft sweep run");
}

std::vector<size_t> CellsToSubmit(const Study& study) {
  const std::set<std::string> submitted = Submitted(study);
  std::vector<size_t> cells;
  for (size_t i = 0; i < study.cells.size(); ++i) {
    const PlannedCell& cell = study.cells[i];
    const CellState state = StateOf(study, cell);
    if (state.state == "done" || state.state == "diverged" || state.state == "running") continue;
    if (!submitted.contains(cell.plan.run_id)) cells.push_back(i);
  }
  return cells;
}

int NextSubmission(const Study& study) {
  int number = 0;
  while (fs::exists(SubmissionDirectory(study, number))) ++number;
  return number;
}

std::string JobScript(const Study& study, int number, size_t tasks, const std::string& program,
                      const SlurmOptions& options) {
  const std::string directory = fs::absolute(SubmissionDirectory(study, number)).string();
  std::string script = "#!/bin/bash\n";
  const auto option = [&](const std::string& text) { script += "#SBATCH " + text + "\n"; };
  option("--job-name=" + JobName(study, number));
  option(fmt::format("--array=0-{}{}", tasks - 1,
                     options.limit > 0 ? fmt::format("%{}", options.limit) : ""));
  option("--chdir=" + fs::current_path().string());
  option("--output=" + directory + "/task-%a.log");
  option("--open-mode=append");
  option("--requeue");
  option(fmt::format("--signal=B:USR1@{}", kSecondsToCheckpoint));
  for (const std::string& more : options.sbatch) option(more);
  return script + fmt::format("exec {} task {} --task \"$SLURM_ARRAY_TASK_ID\" {}\n",
                              Quoted(program), Quoted(directory),
                              options.per_device.empty()
                                  ? Cat("--jobs ", options.jobs)
                                  : Cat("--per-device ", options.per_device));
}

std::string Submit(const Study& study, const std::vector<std::vector<size_t>>& tasks,
                   const std::string& program, const SlurmOptions& options) {
  const int number = NextSubmission(study);
  const std::string directory = SubmissionDirectory(study, number);
  MakeDirectories(directory);
  Json ids = Json::array();
  for (const std::vector<size_t>& task : tasks) {
    ids.push_back(Json::array());
    for (const size_t i : task) ids.back().push_back(study.cells[i].plan.run_id);
  }
  WriteFileAtomically(directory + "/tasks.json", ids.dump(1) + "\n");
  const std::string script = directory + "/job.sh";
  WriteFileAtomically(script, JobScript(study, number, tasks.size(), program, options));
  const Output job = Call({"sbatch", "--parsable", script});
  if (job.exit_code != 0) Fail(ExitCode::kFailure, "sbatch refuses the job: ", job.error);
  return job.out.substr(0, job.out.find_first_of(";\n"));
}

int RunTask(const std::string& submission, int task,
            const std::function<PoolOptions(const Study&)>& options_of) {
  const std::vector<std::vector<std::string>> tasks = ReadTasks(submission);
  if (task < 0 || static_cast<size_t>(task) >= tasks.size()) {
    Fail(ExitCode::kUsage, submission, ": has tasks 0 to ", static_cast<int>(tasks.size()) - 1,
         ", not ", task);
  }
  const std::vector<std::string>& ids = tasks[static_cast<size_t>(task)];
  const Study study = ReadStudy(fs::path(submission).parent_path().parent_path().string());
  std::vector<size_t> cells;
  for (size_t i = 0; i < study.cells.size(); ++i) {
    if (std::find(ids.begin(), ids.end(), study.cells[i].plan.run_id) != ids.end())
      cells.push_back(i);
  }
  if (cells.size() != ids.size()) {
    Fail(ExitCode::kData, submission, ": ", ids.size() - cells.size(), " of the ", ids.size(),
         " cells of task ", task,
         " are no longer in the sweep, which was changed; submit it again");
  }
  PoolOptions options = options_of(study);
  if (const char* cpus = std::getenv("SLURM_CPUS_PER_TASK"))
    options.threads = std::max(1, std::atoi(cpus) / options.slots());
  const int signal = RunPool(study, cells, options);
  if (signal != 0) {
    // SIGTERM comes from Slurm itself, which knows whether the job runs again. SLURM_JOB_ID of an
    // array's last task is the id of the array too: requeueing that would run every task again.
    const char *array = std::getenv("SLURM_ARRAY_JOB_ID"),
               *index = std::getenv("SLURM_ARRAY_TASK_ID");
    if (signal == SIGUSR1 && array && index) {
      const Output requeue = Call({"scontrol", "requeue", Cat(array, "_", index)});
      if (requeue.exit_code != 0)
        fmt::print(stderr, "weft sweep: scontrol requeue: {}\n", requeue.error);
    }
    return static_cast<int>(signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue);
  }
  const bool done = std::all_of(cells.begin(), cells.end(), [&](size_t i) {
    return StateOf(study, study.cells[i]).state == "done";
  });
  return static_cast<int>(done ? ExitCode::kOk : ExitCode::kFailure);
}

}  // namespace weft
