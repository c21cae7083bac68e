#pragma once
// The training step and everything that it changes: parameters, moments, position in the data and
// the curriculum.
//
//   loss = mean over the labels of the batch;  g = d loss, clipped to global norm `clip`;  AdamW
//   with decay groups

#include <memory>
#include <optional>

#include "experiments/data/batch.h"
#include "experiments/evaluate/evaluator.h"
#include "experiments/train/experiment.h"

namespace weft {

// What a run needs, known before it starts and without any memory behind it.
struct RunPlan {
  Model::Counts parameters;
  std::vector<int64_t> block_parameters;
  double flops_per_token = 0;           // forward, from the mixers' stated costs
  double training_flops_per_token = 0;  // forward and backward, counted from the ops of one step
  int64_t state_bytes = 0;              // decode state of one sequence of train.length tokens
  int64_t memory_bytes = 0;             // parameters, gradients, moments and activations
  int64_t activation_bytes = 0;         // of a training pass or of evaluation, whichever needs more
  int64_t tokens = 0;                   // of the whole run
};
// Without training: what evaluation alone needs, and no training FLOPs.
RunPlan PlanRun(const Experiment& experiment, bool training = true);

class Trainer {
 public:
  // Without training, there is memory for Evaluate but none for Step.
  Trainer(const Experiment& experiment, Stream& stream, bool training = true);

  struct StepResult {
    double loss;       // nats per label, without z-loss
    double grad_norm;  // before clipping
    double lr;
    int64_t labels;
    int64_t difficulty;  // 0 for text
  };
  // Error kDiverged, with parameters and moments untouched, when the loss or the gradient is not
  // finite.
  StepResult Step();

  struct Evaluation {
    std::string name;  // "state_tracking" or "text"
    int64_t difficulty;
    Score score;
  };
  std::vector<Evaluation> Evaluate();

  // What a checkpoint holds beside the parameters and moments. All of it is plain numbers.
  struct Progress {
    int64_t step = 0;  // optimiser steps done
    int64_t rows = 0;  // rows of data used
    int64_t labels = 0;
    int64_t stage = 0, stage_steps = 0;  // curriculum
  };
  const Progress& progress() const { return progress_; }
  void set_progress(const Progress& progress) { progress_ = progress; }
  Model& model() { return *model_; }
  // Names the training text, so that a resumed run notices when it changed; "" for tasks.
  const std::string& DataFingerprint() const { return data_fingerprint_; }

 private:
  void CheckTask() const;
  const Source& CurrentSource();
  void AdvanceCurriculum();

  const Experiment& e_;
  Stream& stream_;
  std::unique_ptr<Task> task_;
  std::vector<CurriculumStage> stages_;
  std::unique_ptr<Text> text_;
  std::string data_fingerprint_;
  std::unique_ptr<TextSource> train_text_, held_out_text_;
  std::optional<TaskSource> task_source_;
  int64_t source_stage_ = -1;
  std::unique_ptr<Model> model_;
  std::optional<Arena> parameters_, activations_;
  std::unique_ptr<Evaluator> evaluator_;
  std::optional<Batch> batch_;
  Progress progress_;
};

}  // namespace weft
