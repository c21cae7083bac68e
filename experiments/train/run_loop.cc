#include "experiments/train/run_loop.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>

#include "experiments/run/checkpoint.h"
#include "experiments/run/environment.h"
#include "experiments/run/files.h"

namespace weft {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr double kSnapshotSeconds = 60;  // run.h5 is never older than this
constexpr double kHeartbeatSeconds = 5;
constexpr double kProgressSeconds = 0.5;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// The last signal that asked for a stop. A handler can reach nothing but a global.
std::atomic<int> stop_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);
void OnSignal(int signal) { stop_signal = signal; }
constexpr int kSignals[5] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP, SIGPIPE};  // the last does not stop

// Training that has blown up must not replace the last good checkpoint.
void CheckFinite(const std::vector<TensorTarget>& tensors, int64_t step) {
  for (const TensorTarget& t : tensors) {
    const float* x = static_cast<const float*>(t.data);
    for (int64_t i = 0, n = TensorBytes(t.dtype, t.shape) / 4; i < n; ++i) {
      if (std::isfinite(x[i])) continue;
      Fail(ExitCode::kDiverged, "diverged at step ", step, ": element ", i, " of ", t.name, " is ",
           x[i], "; the last checkpoint is kept; try a smaller optim.lr or a longer optim.warmup");
    }
  }
}

ExitCode CodeOf(const std::exception& error) {
  if (const auto* known = dynamic_cast<const Error*>(&error)) return known->code();
  return dynamic_cast<const std::bad_alloc*>(&error) ? ExitCode::kOutOfMemory : ExitCode::kFailure;
}

std::string ResolvedToml(const std::string& run_directory) {
  return run_directory + "/resolved.toml";
}
std::string SettingsFingerprint(const RunDirectory& run) {
  return ChecksumHex(ReadFile(ResolvedToml(run.path())));
}

// Parameters and moments in host memory: the trainer's own on the CPU, copies on a GPU.
class TrainTensors {
 public:
  enum class Fill { kCopy, kLeave };  // kLeave: about to be read from a checkpoint
  TrainTensors(Trainer& trainer, Fill fill) : trainer_(trainer) {
    ParamRegistry& params = trainer.model().params();
    const TensorView flats[3] = {params.values(), params.moment(0), params.moment(1)};
    const float* base[3] = {};
    for (size_t k = 0; k < 3; ++k) {
      if (!flats[k].defined()) continue;
      base[k] = flats[k].Data<float>();
      if (!trainer.device().cuda) continue;
      copies_[k].resize(static_cast<size_t>(flats[k].size()));
      if (fill == Fill::kCopy) Copy(trainer.stream(), Host(k), flats[k]);
      base[k] = copies_[k].data();
    }
    Synchronize(trainer.stream());
    for (const Param& p : params.params()) {
      model.push_back({p.path, "F32", p.shape, const_cast<float*>(base[0] + p.offset)});
      for (size_t k : {1, 2}) {
        if (!base[k]) continue;
        optimizer.push_back({(k == 1 ? "m." : "v.") + p.path, "F32", p.shape,
                             const_cast<float*>(base[k] + p.offset)});
      }
    }
  }
  // After they were read from a checkpoint.
  void Store() {
    if (!trainer_.device().cuda) return;
    ParamRegistry& params = trainer_.model().params();
    params.Load(trainer_.stream(), Host(0));
    for (int i : {0, 1}) {
      if (params.moment(i).defined())
        Copy(trainer_.stream(), params.moment(i), Host(static_cast<size_t>(i) + 1));
    }
    Synchronize(trainer_.stream());
  }
  std::vector<TensorTarget> model, optimizer;

 private:
  TensorView Host(size_t k) {
    return {copies_[k].data(), DType::kF32, {static_cast<int64_t>(copies_[k].size())}, "copy"};
  }
  Trainer& trainer_;
  std::vector<float> copies_[3];
};

std::vector<NamedTensor> Named(const std::vector<TensorTarget>& targets) {
  std::vector<NamedTensor> named;
  for (const TensorTarget& t : targets) named.push_back({t.name, t.dtype, t.shape, t.data});
  return named;
}

// Parameters, moments and position in the data are those of the checkpoint; its state is returned.
Json Restore(const Checkpoint& checkpoint, const RunDirectory& run, Trainer& trainer) {
  TrainTensors tensors(trainer, TrainTensors::Fill::kLeave);
  const Json state = Json::parse(LoadCheckpoint(checkpoint, tensors.model, tensors.optimizer));
  tensors.Store();
  try {
    const auto check = [&](const char* key, const std::string& found, const std::string& what) {
      const auto expected = state.at(key).get<std::string>();
      if (found == expected) return;
      Fail(ExitCode::kData, checkpoint.path, ": ", what,
           " has changed since this checkpoint: checksum ", found, ", expected ", expected,
           "; restore it or start a new run");
    };
    check("settings", SettingsFingerprint(run), ResolvedToml(run.path()));
    check("data", trainer.DataFingerprint(), "the text in data.path");
    trainer.set_progress({state.at("step"), state.at("rows"), state.at("labels"), state.at("stage"),
                          state.at("stage_steps")});
    state.at("journal_bytes").get<int64_t>(), state.at("seconds").get<double>();
    return state;
  } catch (const Json::exception& error) {
    Fail(ExitCode::kData, checkpoint.path, "/state.json: ", error.what(),
         "; it was made by another version, start a new run");
  }
}

// Takes `steps` steps back; the count of steps goes on.
void Rewind(const RunDirectory& run, Trainer& trainer, int64_t steps) {
  const int64_t now = trainer.progress().step;
  for (const Checkpoint& checkpoint : ListCheckpoints(run.path())) {
    if (checkpoint.step != now - steps) continue;
    Restore(checkpoint, run, trainer);
    Trainer::Progress progress = trainer.progress();
    progress.step = now;
    return trainer.set_progress(progress);
  }
  Fail(ExitCode::kData, run.path(), ": the checkpoint of step ", now - steps,
       " is missing, from which step ", now,
       " goes on; resume from an older one or start a new run");
}

}  // namespace

StopSignals::StopSignals() : stack_(std::max<size_t>(1 << 16, sysconf(_SC_SIGSTKSZ))) {
  stop_signal = 0;
  const stack_t stack{.ss_sp = stack_.data(), .ss_flags = 0, .ss_size = stack_.size()};
  sigaltstack(&stack, &old_stack_);
  struct sigaction action {};
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  for (size_t i = 0; i < 5; ++i) {
    action.sa_handler = kSignals[i] == SIGPIPE ? SIG_IGN : OnSignal;
    sigaction(kSignals[i], nullptr, &old_[i]);
    if (kSignals[i] != SIGHUP || old_[i].sa_handler != SIG_IGN)
      sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < 5; ++i) sigaction(kSignals[i], &old_[i], nullptr);
  sigaltstack(&old_stack_, nullptr);
}

int StopSignal() { return stop_signal; }

ExitCode CodeOf(int signal) {
  return signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue;
}

std::unique_ptr<Experiment> LoadExperiment(const std::string& run_directory,
                                           const std::vector<std::string>& overrides) {
  const std::string path = ResolvedToml(run_directory);
  if (!std::filesystem::exists(path)) {
    Fail(ExitCode::kData, path, ": is missing, so ", run_directory,
         " is no run directory; expected OUT/<study>/<run-id>");
  }
  return Experiment::FromToml(ReadFile(path), path, overrides);
}

double RestoreCheckpoint(RunDirectory& run, Trainer& trainer) {
  const auto latest = FindLatest(run.path());
  if (!latest) {
    run.journal().TruncateTo(0);
    return 0;
  }
  const Json state = Restore(*latest, run, trainer);
  run.journal().TruncateTo(state.at("journal_bytes"));
  return state.at("seconds");
}

int64_t LoadNewestModel(const std::string& run_directory, Trainer& trainer) {
  const auto latest = FindLatest(run_directory);
  if (!latest) Fail(ExitCode::kData, run_directory, ": has no checkpoint yet; train it first");
  TrainTensors tensors(trainer, TrainTensors::Fill::kLeave);
  LoadCheckpoint(*latest, tensors.model, {});
  tensors.Store();
  return latest->step;
}

void DeclareStreams(Journal& journal, const Experiment& e) {
  using enum ColumnType;
  journal.Declare("train", {{"step", "step", kInteger},
                            {"tokens", "token", kInteger},
                            {"labels", "label", kInteger},
                            {"loss", "nat/label", kNumber},
                            {"grad_norm", "1", kNumber},
                            {"lr", "1", kNumber},
                            {"difficulty", "1", kInteger},
                            {"seconds", "s", kNumber},
                            {"tokens_per_second", "token/s", kNumber}});
  journal.Declare("eval/" + (e.task ? e.task_name : std::string("text")),
                  {{"step", "step", kInteger},
                   {"tokens", "token", kInteger},
                   {"difficulty", "1", kInteger},
                   {"accuracy", "1", kNumber},
                   {"exact_match", "1", kNumber},
                   {"nll", "nat/label", kNumber},
                   {"labels", "label", kInteger},
                   {"chance", "1", kNumber},
                   {"decayed", "1", kInteger}});
}

double ChanceOf(const Experiment& e, const Trainer::Evaluation& evaluation) {
  return e.task ? e.task->Make()->Chance(evaluation.difficulty) : std::nan("");
}

void AppendEvaluation(Journal& journal, const Trainer::Evaluation& v, double chance,
                      const Moment& moment) {
  journal.Append("eval/" + v.name, {{"step", moment.step},
                                    {"tokens", moment.tokens},
                                    {"difficulty", v.difficulty},
                                    {"accuracy", v.score.accuracy},
                                    {"exact_match", v.score.exact_match},
                                    {"nll", v.score.nll},
                                    {"labels", v.score.labels},
                                    {"chance", chance},
                                    {"decayed", int64_t{moment.decayed}}});
}

std::string EvaluationTable(const Experiment& e,
                            const std::vector<Trainer::Evaluation>& evaluations) {
  std::string text;
  for (const auto& v : evaluations) {
    if (e.task) {
      if (text.empty())
        text = fmt::format("{:<20} {:>10} {:>9} {:>7} {:>7} {:>9}\n", "task", "difficulty",
                           "accuracy", "exact", "chance", "nats");
      text +=
          fmt::format("{:<20} {:>10} {:>9.4f} {:>7.4f} {:>7.3f} {:>9.4f}\n", v.name, v.difficulty,
                      v.score.accuracy, v.score.exact_match, ChanceOf(e, v), v.score.nll);
    } else {
      text += fmt::format("held-out text: {:.4f} nats/byte, {:.4f} bits/byte, {} bytes\n",
                          v.score.nll, v.score.BitsPerByte(), v.score.labels);
    }
  }
  return text;
}

ExitCode TrainToEnd(const Experiment& e, RunDirectory& run, Trainer& trainer, double seconds_before,
                    const RunIo& io) {
  const bool terminal = isatty(fileno(io.err));
  const auto start = Clock::now();
  const int64_t first_step = trainer.progress().step;
  const double tokens_per_step = static_cast<double>(e.train.batch * e.train.length);
  const double flops_per_token = PlanRun(e, trainer.device()).training_flops_per_token;
  Clock::time_point snapshot = start, heartbeat = start, shown = start;
  DeclareStreams(run.journal(), e);

  const auto status = [&](RunState state, ExitCode code, const std::string& message) {
    run.SetStatus(
        {state, static_cast<int64_t>(code), trainer.progress().step, e.train.steps, message});
    heartbeat = Clock::now();
  };
  const std::string settings = SettingsFingerprint(run);
  const std::vector<Decay> decays = DecaysOf(e.optim);
  const auto begins_decay = [&](int64_t step) {
    return std::any_of(decays.begin(), decays.end(),
                       [&](const Decay& d) { return d.begin == step; });
  };
  const auto ends_decay = [&](int64_t step) {
    return step == e.train.steps ||
           std::any_of(decays.begin(), decays.end(), [&](const Decay& d) { return d.end == step; });
  };
  const auto checkpoint = [&] {
    const TrainTensors tensors(trainer, TrainTensors::Fill::kCopy);
    CheckFinite(tensors.model, trainer.progress().step);
    CheckFinite(tensors.optimizer, trainer.progress().step);
    run.journal().Sync();
    const Trainer::Progress& p = trainer.progress();
    const Json state = {{"step", p.step},
                        {"rows", p.rows},
                        {"labels", p.labels},
                        {"stage", p.stage},
                        {"stage_steps", p.stage_steps},
                        {"journal_bytes", run.journal().size()},
                        {"data", trainer.DataFingerprint()},
                        {"settings", settings},
                        {"seconds", seconds_before + Seconds(start)}};
    SaveCheckpoint(run.path(), p.step, Named(tensors.model), Named(tensors.optimizer),
                   state.dump());
    const auto decay = std::find_if(decays.begin(), decays.end(), [&](const Decay& d) {
      return d.begin <= p.step && p.step <= d.end;
    });
    PruneCheckpoints(run.path(), e.train.keep,
                     e.optim.rewind && decay != decays.end() ? decay->begin : p.step);
    run.WriteRunH5();
    snapshot = Clock::now();
  };
  std::vector<Trainer::Evaluation> evaluations;
  const auto evaluate = [&] {
    evaluations = trainer.Evaluate();
    const int64_t step = trainer.progress().step;
    for (const auto& v : evaluations)
      AppendEvaluation(run.journal(), v, ChanceOf(e, v),
                       {step, e.TokensAfter(step), ends_decay(step)});
  };
  const auto show = [&](const Trainer::StepResult& r, bool line) {
    const double rate = static_cast<double>(r.step - first_step) * tokens_per_step / Seconds(start);
    const double left = static_cast<double>(e.train.steps - r.step) * tokens_per_step / rate;
    const std::string difficulty = e.task ? fmt::format("  difficulty {}", r.difficulty) : "";
    const std::string text = fmt::format(
        "step {}/{}{}  loss {:.4f}  {:.0f} tokens/s  {:.1f} GFLOP/s  {} left", r.step,
        e.train.steps, difficulty, r.loss, rate, rate * flops_per_token * 1e-9, DurationText(left));
    // Not fmt: it throws when `err` is gone, and a run outlives its terminal.
    if (terminal) std::fprintf(io.err, "\r\033[K%s", text.c_str());
    if (line) {
      if (!terminal) std::fprintf(io.err, "%s\n", text.c_str());
      run.Log(text);
    }
    std::fflush(io.err);
    shown = Clock::now();
  };
  const auto end_line = [&] {
    if (terminal) std::fprintf(io.err, "\n");
  };

  try {
    status(RunState::kRunning, ExitCode::kOk, "");
    auto last_result = start;
    const auto record = [&](const Trainer::StepResult& r) {
      if (r.step == first_step + 1) io.started();
      run.journal().Append("train",
                           {{"step", r.step},
                            {"tokens", e.TokensAfter(r.step)},
                            {"labels", r.labels},
                            {"loss", r.loss},
                            {"grad_norm", r.grad_norm},
                            {"lr", r.lr},
                            {"difficulty", r.difficulty},
                            {"seconds", seconds_before + Seconds(start)},
                            {"tokens_per_second", tokens_per_step / Seconds(last_result)}});
      last_result = Clock::now();
      const bool log = r.step == e.train.steps || r.step % e.train.log_every == 0;
      if (log || (terminal && Seconds(shown) > kProgressSeconds)) show(r, log);
      if (Seconds(heartbeat) > kHeartbeatSeconds) status(RunState::kRunning, ExitCode::kOk, "");
    };
    while (trainer.progress().step < e.train.steps) {
      if (const int64_t steps = TakenBackAt(e.optim, trainer.progress().step))
        Rewind(run, trainer, steps);
      trainer.Start();
      const int64_t step = trainer.progress().step;
      const int signal = stop_signal;
      const bool last = step == e.train.steps;
      const bool evaluates = ends_decay(step) || (e.eval.every > 0 && step % e.eval.every == 0);
      const bool saves = ends_decay(step) || (e.optim.rewind && begins_decay(step)) || signal ||
                         (e.train.checkpoint_every > 0 && step % e.train.checkpoint_every == 0);
      const bool snapshots = Seconds(snapshot) > kSnapshotSeconds;
      // What looks at the state after this step waits until no step is under way.
      const bool drain = evaluates || saves || snapshots;
      while (const auto r = trainer.Finish(/*wait=*/drain || trainer.Full())) record(*r);
      if (evaluates) evaluate();
      if (saves) checkpoint();
      if (signal && !last) {
        end_line();
        const ExitCode code = CodeOf(signal);
        status(RunState::kPreempted, code, "");
        std::fprintf(io.err,
                     "weft train: stopped at step %lld after signal %d; continue with: weft train "
                     "--resume %s\n",
                     static_cast<long long>(step), signal, run.path().c_str());
        return code;
      }
      if (snapshots && !saves) {
        run.WriteRunH5();
        snapshot = Clock::now();
      }
    }
    // A kill may have come between the last checkpoint and its snapshot.
    if (first_step == e.train.steps) run.WriteRunH5();
    status(RunState::kDone, ExitCode::kOk, "");
  } catch (const std::exception& error) {
    end_line();
    const ExitCode code = CodeOf(error);
    try {
      status(code == ExitCode::kDiverged ? RunState::kDiverged : RunState::kFailed, code,
             error.what());
      run.WriteRunH5();
    } catch (const std::exception&) {
      // The first error is the one to report; a full disk fails here again.
    }
    throw;
  }
  end_line();
  fmt::print(io.out, "{}", EvaluationTable(e, evaluations));
  return ExitCode::kOk;
}

}  // namespace weft
