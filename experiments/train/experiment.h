#pragma once
// An experiment: everything that a run depends on, read from a TOML file and flags.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arch/blocks/model.h"
#include "arch/core/config.h"
#include "experiments/data/source.h"
#include "synth-tasks/core/task.h"

namespace weft {

struct OptimConfig {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1, z_loss = 0;
  std::string schedule = "constant";
  int64_t warmup = 0;
  double final_lr = 0.1, decay_share = 0.1;
  std::vector<int64_t> periods = {};  // of wsds
  bool rewind = false;
  void Visit(ConfigVisitor& v);
};

// Learning rate of step 0, 1, ..., steps - 1:
//   lr (n + 1) / warmup                      while n < warmup, then
//   lr                                       constant
//   lr (f + (1 - f) (1 + cos(pi s)) / 2)     cosine, s = (step - warmup) / (steps - warmup)
//   lr, and lr (f + (1 - f) r)               wsd, in the last decay_share of the steps,
//                                            r = (steps - step) / decay steps
//   the same over each of several periods    wsds: after a decay the rate is lr again
//
// with f = final_lr and n updates in the weights, which are `step` unless decays were taken back.
double LearningRate(const OptimConfig& config, int64_t step, int64_t steps);

// A run with the schedule wsds (Wen et al. 2024, arXiv:2410.05192) yields a decayed model at the
// end of each period: config.periods counts the updates in its weights. With `rewind`, the run then
// goes back to the weights, moments and data from before the decay, so that every such model is
// that of a run of that length; without, it goes on from the decayed weights (WSD-S).
struct Decay {
  int64_t begin, end;  // steps of the run: the rate falls in [begin, end)
};
std::vector<Decay> DecaysOf(const OptimConfig& config);  // none for other schedules
// The steps that are taken back before step `step` is made; 0 = none.
int64_t TakenBackAt(const OptimConfig& config, int64_t step);
// Updates in the weights before step `step`.
int64_t UpdatesBefore(const OptimConfig& config, int64_t step);

// The rules of the Olmo ladder (OLMo-core, WSDSChinchillaRunConfigurator; Porian et al. 2024,
// arXiv:2406.19146, for the first three). With N = parameters and B tokens per batch:
//   B = 2048 160 (N / 108e6)^(2/3), in whole rows      lr = 0.0047 (N / 108e6)^(-1/3) / 2
//   beta2 = 0.95 where B >= 524288, else 0.99          warm-up of N tokens
//   wsds to 0, the periods end at multiples * tokens_per_parameter * N tokens
// They are settings like those of a file: keys that are given win.
struct LadderConfig {
  int64_t parameters = 0, tokens_per_parameter = 20, micro_batch = 65536;
  std::vector<double> multiples = {0.5, 1, 2, 4, 8};
  double lr_factor = 1;
  void Visit(ConfigVisitor& v);
};

struct TrainConfig {
  int64_t steps = 1000, batch = 16, length = 256, accumulate = 1;
  std::string precision = "auto", recompute = "none";
  bool deterministic = true;
  int64_t log_every = 10, checkpoint_every = 500, keep = 2, curriculum_every = 100,
          curriculum_samples = 256;
  void Visit(ConfigVisitor& v);
};

struct EvalConfig {
  int64_t every = 0, samples = 256, rows = 64;
  std::vector<int64_t> difficulties = {};
  void Visit(ConfigVisitor& v);
};

class Experiment {
 public:
  // Reads `path` ("" = defaults only) and applies the overrides ("model.d_model=512"). Every key is
  // checked.
  static std::unique_ptr<Experiment> Load(const std::string& path,
                                          const std::vector<std::string>& overrides);
  // From settings alone, later ones winning.
  static std::unique_ptr<Experiment> FromSettings(const Settings& settings);
  static std::unique_ptr<Experiment> Defaults();  // for --help; not runnable
  // From a run's resolved.toml.
  static std::unique_ptr<Experiment> FromToml(const std::string& text, const std::string& origin,
                                              const std::vector<std::string>& overrides = {});

  std::string study = "default", device = "auto";
  int64_t threads = 0, seed = 0, init_seed = -1, data_seed = -1;
  ModelConfig model;
  std::unique_ptr<MixerConfigs> mixers;
  std::string task_name;
  std::unique_ptr<TaskConfig> task;  // null: text
  TextConfig data;
  OptimConfig optim;
  LadderConfig ladder;
  TrainConfig train;
  EvalConfig eval;

  uint64_t InitSeed() const { return static_cast<uint64_t>(init_seed >= 0 ? init_seed : seed); }
  uint64_t DataSeed() const { return static_cast<uint64_t>(data_seed >= 0 ? data_seed : seed); }

  // The fields that the result of the run depends on: its identity. `threads` and `device` are not
  // among them.
  std::vector<ConfigField> Fields();
  // All fields, with every mixer and the chosen task, for --help.
  std::vector<ConfigField> AllFields();
  const std::map<std::string, std::string>& origins() const { return origins_; }
  const std::string& source_text() const { return source_text_; }
  // What the files and flags said, in their order.
  const Settings& given() const { return given_; }
  // Tokens that went into the weights after `step` steps.
  int64_t TokensAfter(int64_t step) const {
    return step == 0 ? 0 : (UpdatesBefore(optim, step - 1) + 1) * train.batch * train.length;
  }

 private:
  void VisitTop(ConfigVisitor& v);
  void VisitRest(ConfigVisitor& v);
  Settings LadderRules() const;
  void CheckSchedule();
  std::map<std::string, std::string> origins_;
  std::string source_text_;
  Settings given_;
};

}  // namespace weft
