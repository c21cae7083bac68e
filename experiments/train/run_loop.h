#pragma once
// A run from its first or its next step to the end: journal, checkpoints, evaluation, progress,
// signals.

#include <signal.h>

#include <cstddef>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "experiments/run/run_dir.h"
#include "experiments/train/trainer.h"

namespace weft {

// The experiment of a run directory, from its resolved.toml; Error kData when there is none.
std::unique_ptr<Experiment> LoadExperiment(const std::string& run_directory,
                                           const std::vector<std::string>& overrides);

// Restores the newest checkpoint of the directory, or the state before the first step if there is
// none, and cuts the journal back to it. Returns the seconds of training that it took. Error kData
// when the checkpoint is broken or when the text or resolved.toml are not those that it was made
// with.
double RestoreCheckpoint(RunDirectory& run, Trainer& trainer);
// The model's values only, from the newest checkpoint; Error kData when there is none. Returns its
// step.
int64_t LoadNewestModel(const std::string& run_directory, Trainer& trainer);

// Where in a run an evaluation was made.
struct Moment {
  int64_t step, tokens;
  bool decayed;  // at the end of the run or of a period of its schedule
};
// One row of a run's "eval/<name>" stream.
void AppendEvaluation(Journal& journal, const Trainer::Evaluation& evaluation, double chance,
                      const Moment& moment);
void DeclareStreams(Journal& journal, const Experiment& experiment);

// Notes SIGINT, SIGTERM, SIGUSR1 and, unless it is ignored as under nohup, SIGHUP as long as it
// lives, so that every TrainToEnd of the process stops after the step in which they come. SIGPIPE
// is ignored: a run outlives who reads its log.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;

 private:
  // Products of oneDNN point the stack pointer at data, which a handler's frame there overwrites.
  std::vector<std::byte> stack_;
  stack_t old_stack_;
  struct sigaction old_[5];
};

// The last of these signals that came; 0 = none did.
int StopSignal();
// What a process exits with that a signal stopped: kInterrupted or kRequeue.
ExitCode CodeOf(int signal);

// Where a run speaks, and whom it tells that its first step is done: then its memory is taken and
// its algorithms are chosen.
struct RunIo {
  std::FILE *out = stdout, *err = stderr;
  std::function<void()> started = [] {};
};

// Trains until train.steps. Returns kOk, or kRequeue (SIGTERM, SIGUSR1, SIGHUP) or kInterrupted
// (SIGINT) after a checkpoint.
ExitCode TrainToEnd(const Experiment& experiment, RunDirectory& run, Trainer& trainer,
                    double seconds_before, const RunIo& io = {});

// Evaluations as the lines of a table, "difficulty  accuracy  exact  chance  nats" or "nats/byte
// bits/byte".
std::string EvaluationTable(const Experiment& experiment,
                            const std::vector<Trainer::Evaluation>& evaluations);
double ChanceOf(const Experiment& experiment, const Trainer::Evaluation& evaluation);

}  // namespace weft
