#pragma once
// The training step and everything that it changes: parameters, moments, position in the data and
// the curriculum.
//
//   loss = mean over the labels of the batch;  g = d loss, clipped to global norm `clip`;  AdamW
//   with decay groups

#include <deque>
#include <future>
#include <memory>
#include <optional>

#include "experiments/data/batch.h"
#include "experiments/evaluate/evaluator.h"
#include "experiments/train/device.h"
#include "experiments/train/experiment.h"

namespace weft {

// What a run needs, known before it starts and without any memory behind it.
struct RunPlan {
  Model::Counts parameters;
  std::vector<int64_t> block_parameters;
  // What the body is made of: the mixers of each label, the MLPs, the norms.
  struct Part {
    std::string name;
    int64_t count = 0, parameters = 0;
    MixerCost cost = {0, 0};
  };
  std::vector<Part> parts;
  double flops_per_token = 0;           // forward, from the mixers' stated costs
  double training_flops_per_token = 0;  // forward and backward, counted from the ops of one step
  int64_t state_bytes = 0;              // decode state of one sequence of train.length tokens
  int64_t memory_bytes = 0;      // parameters, gradients, moments, activations, batch, scratch
  int64_t activation_bytes = 0;  // of the larger of a training and an evaluation pass
  int64_t context_bytes = 0;     // beside all that, on a GPU: CUDA's context and the kernels' code
  int64_t tokens = 0;            // of the whole run
};
// Without training: what an evaluation alone needs.
RunPlan PlanRun(const Experiment& experiment, const Device& device, bool training = true);

// Error kUsage when a stage of the curriculum that the run may reach has samples longer than a row.
void CheckStages(const Experiment& experiment);

// The model of an experiment, without memory behind it.
Model ModelOf(const Experiment& experiment);

class Trainer {
 public:
  // Without training there are no gradients and no moments: only Evaluate may be called.
  Trainer(const Experiment& experiment, const Device& device, Stream& stream, bool training = true);
  ~Trainer();

  struct StepResult {
    int64_t step;      // 1 for the first
    double loss;       // nats per label, without z-loss
    double grad_norm;  // before clipping
    double lr;
    int64_t labels;
    int64_t difficulty;  // 0 for text
  };
  // On a GPU, steps are started ahead of their results: Start begins the next step, Finish gives
  // the result of the oldest that is under way, or nothing if there is none or, without `wait`, if
  // it is not done. No more steps than fit may be under way: while Full(), finish one first.
  void Start() { Begin(/*op_by_op=*/false); }
  std::optional<StepResult> Finish(bool wait);
  bool Full() const { return under_way_.size() >= ahead_; }
  // One step from start to end. Error kDiverged, with parameters and moments untouched, when the
  // loss or the gradient is not finite.
  StepResult Step();
  // A step whose ops run one by one, under `observer`.
  StepResult StepOpByOp(OpObserver& observer);

  struct Evaluation {
    std::string name;  // "state_tracking" or "text"
    int64_t difficulty;
    Score score;
  };
  std::vector<Evaluation> Evaluate();

  // What a checkpoint holds beside the parameters and moments. All of it is plain numbers. It
  // counts the steps that were started.
  struct Progress {
    int64_t step = 0;  // optimiser steps
    int64_t rows = 0;  // rows of data used
    int64_t labels = 0;
    int64_t stage = 0, stage_steps = 0;  // curriculum
  };
  const Progress& progress() const { return progress_; }
  void set_progress(const Progress& progress) { progress_ = progress; }
  Model& model() { return *model_; }
  Stream& stream() { return stream_; }
  const Device& device() const { return device_; }
  int64_t allocated_bytes() const;  // what memory_bytes of the plan foresees
  // Names the training text, so that a resumed run notices when it changed; "" for tasks.
  const std::string& DataFingerprint() const { return data_fingerprint_; }

 private:
  // A batch on the host, from being filled until its step is done.
  struct Slot;
  struct UnderWay {
    size_t slot;
    Progress before;
    StepResult result;
  };

  void Begin(bool op_by_op);
  void OpenData();
  const Source& CurrentSource();
  void AdvanceCurriculum();
  // Fills a slot with the rows that the step after `progress_` reads.
  void Fill(Slot& slot);
  void RunOps();  // forward, backward, clipping and AdamW of the batch that is on the device
  void Launch(bool op_by_op);

  const Experiment& e_;
  Device device_;
  Stream& stream_;
  std::unique_ptr<Task> task_;
  std::vector<CurriculumStage> stages_;
  std::unique_ptr<Text> text_;
  std::string data_fingerprint_;
  std::unique_ptr<Source> train_source_;
  std::unique_ptr<TextSource> held_out_text_;
  std::optional<TaskSource> task_source_;
  int64_t source_stage_ = -1;
  std::unique_ptr<Model> model_;
  std::optional<Arena> parameters_, activations_, inputs_;
  std::optional<Batch> batch_;  // on the device
  TensorView results_;          // on the device: f32 total, mean_nll, norm, scale
  std::unique_ptr<Evaluator> evaluator_;
  std::vector<std::unique_ptr<Slot>> slots_;
  size_t next_slot_ = 0, ahead_ = 1;
  std::future<void> prefetch_;
  std::deque<UnderWay> under_way_;
  int64_t launched_ = 0;
#ifdef WEFT_CUDA
  std::unique_ptr<CudaStream::Graph> graph_;
#endif
  Progress progress_;
};

}  // namespace weft
