#pragma once
// Runs the cells of a study as a job array of a Slurm cluster.
//
//   OUT/<study>/slurm/<n>/tasks.json   run ids of the cells of every task: [["...", ...], ...]
//                         job.sh       what was given to sbatch
//                         task-<i>.log what the task's processes said
//
// A task runs its cells as `weft sweep run` does, and nothing but these files ties it to whoever
// submitted it. On SIGUSR1, which Slurm sends a minute before the time limit, its cells checkpoint
// and the task goes back into the queue; on SIGTERM (preemption, scancel) they checkpoint.

#include <functional>
#include <string>
#include <vector>

#include "sweeps/pool.h"
#include "sweeps/study.h"

namespace weft {

struct SlurmOptions {
  int limit = 0;           // tasks at a time; 0 = as many as the cluster takes
  int cells_per_task = 0;  // 0 = as many as are estimated to take task_minutes
  double task_minutes = 30;
  int jobs = 1;                     // cells at a time within a task
  std::string per_device;           // or on each of its GPUs: a number or "auto"; "" = jobs
  std::vector<std::string> sbatch;  // more of its options: "--partition=gpu"
};

// The cells of each task, in their order: a task is full when its estimated seconds reach those of
// task_minutes, or at cells_per_task; there are never more than kMostTasks.
inline constexpr size_t kMostTasks = 1000;  // Slurm's default MaxArraySize allows 1001
std::vector<std::vector<size_t>> Pack(const Study& study, const std::vector<size_t>& cells,
                                      const SlurmOptions& options);

// Error kFailure when there is no sbatch here.
void CheckSlurm();
// The cells that are neither done nor diverged, nor in a task of an earlier submission that waits
// or runs. Error kFailure when Slurm does not answer about earlier submissions.
std::vector<size_t> CellsToSubmit(const Study& study);
std::string JobScript(const Study& study, int number, size_t tasks, const std::string& program,
                      const SlurmOptions& options);
// Writes the files of the next submission and gives its script to sbatch. Returns the job's id.
std::string Submit(const Study& study, const std::vector<std::vector<size_t>>& tasks,
                   const std::string& program, const SlurmOptions& options);
// The number of the next submission.
int NextSubmission(const Study& study);

// What the job script runs: a task of OUT/<study>/slurm/<n>. Returns the program's exit code.
int RunTask(const std::string& submission, int task,
            const std::function<PoolOptions(const Study&)>& options_of);

}  // namespace weft
