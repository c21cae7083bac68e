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
  void Visit(ConfigVisitor& v);
};

// Learning rate of step 0, 1, ..., steps - 1:
//   warm-up    lr (step + 1) / warmup                                        while step < warmup;
//   then, with constant   lr cosine     lr (f + (1 - f) (1 + cos(pi s)) / 2) s = (step - warmup) /
//   (steps - warmup) wsd        lr, and lr (f + (1 - f) (steps - step) / decay steps)         in
//   the last decay_share of the steps
// with f = final_lr.
double LearningRate(const OptimConfig& config, int64_t step, int64_t steps);

struct TrainConfig {
  int64_t steps = 1000, batch = 16, length = 256, accumulate = 1;
  std::string precision = "auto", recompute = "none";
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

 private:
  void VisitTop(ConfigVisitor& v);
  void VisitRest(ConfigVisitor& v);
  std::map<std::string, std::string> origins_;
  std::string source_text_;
  Settings given_;
};

}  // namespace weft
