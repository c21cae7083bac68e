#include "experiments/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "kernels/adamw/adamw.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/global_norm/global_norm.h"

namespace weft {
namespace {

static_assert(kIgnoreLabel == kNoLoss, "tasks and the loss agree on what a masked label is");

constexpr int64_t kLargestPass =
    int64_t{1} << 31;  // tokens; no machine holds more, and sizes in bytes stay below 2^63

ModelConfig ModelFor(const Experiment& e, int64_t vocab) {
  ModelConfig config = e.model;
  if (config.vocab == 0) config.vocab = vocab;
  if (config.vocab < vocab) {
    Fail(ExitCode::kUsage, "model.vocab = ", config.vocab,
         " is smaller than the vocabulary of the data, ", vocab, "; raise it or set it to 0");
  }
  return config;
}

int64_t VocabOf(const Experiment& e) { return e.task ? e.task->Make()->vocabulary().size() : 256; }

// Loss and gradients of rows [b, b + n) of the batch, added to the parameters' gradients. Returns
// the loss.
Model::Loss Pass(Model& model, Stream& stream, Arena& arena, Batch& batch, int64_t b, int64_t n,
                 double z_loss, double denominator) {
  arena.Reset();
  Context c{stream, arena};
  Tape tape(/*recording=*/true);
  const Model::Loss loss = model.LossOf(c, tape, batch.tokens(b, n), batch.labels(b, n),
                                        batch.documents(b, n), z_loss, denominator);
  if (arena.mode() != Arena::Mode::kPlan) *loss.total.dx.Data<float>() = 1;
  tape.Seed(loss.total);
  tape.Backward(stream);
  return loss;
}

std::string FingerprintOf(const Text& text) {
  std::string checksums;
  for (const Split split : {Split::kTrain, Split::kEval}) {
    const Text::Part& part = text.part(split);
    const std::string_view starts(reinterpret_cast<const char*>(part.starts.data()),
                                  part.starts.size() * sizeof(int64_t));
    checksums += ChecksumHex(part.bytes) + ChecksumHex(starts);
  }
  return ChecksumHex(checksums);
}

std::vector<int64_t> EvaluatedDifficulties(const Experiment& e,
                                           const std::vector<CurriculumStage>& stages) {
  std::vector<int64_t> all = e.eval.difficulties;
  if (all.empty()) {
    for (const CurriculumStage& stage : stages) all.push_back(stage.difficulty);
  }
  return all;
}

// The largest pass of every evaluation that the run makes.
std::vector<Evaluator::Shape> EvaluationShapes(const Experiment& e, int64_t tokens) {
  if (!e.task) {
    if (e.data.held_out == 0) return {};
    return {Evaluator::TextShape(e.train.length, e.eval.rows, tokens)};
  }
  std::vector<Evaluator::Shape> shapes;
  const std::unique_ptr<Task> task = e.task->Make();
  const std::vector<CurriculumStage> stages = task->Curriculum();
  try {
    for (const int64_t n : EvaluatedDifficulties(e, stages))
      shapes.push_back(Evaluator::TaskShape(*task, n, tokens));
  } catch (const Error& error) {
    Fail(error.code(), "eval.difficulties: ", error.what());
  }
  for (const CurriculumStage& stage : stages) {
    if (stage.promote_accuracy > 0)
      shapes.push_back(Evaluator::TaskShape(*task, stage.difficulty, tokens));
  }
  return shapes;
}

struct PassCost {
  int64_t bytes;
  double flops;
};

// A pass without memory behind it.
PassCost PlanPass(const Model& model, Evaluator::Shape shape, double z_loss, bool recording) {
  if (shape.rows * shape.length > kLargestPass) {
    Fail(ExitCode::kOutOfMemory, "out of memory: a pass over ", shape.rows, " rows of ",
         shape.length, " tokens, expected at most ", kLargestPass,
         " tokens; raise train.accumulate or reduce train.batch, train.length or "
         "eval.difficulties");
  }
  Arena activations(Arena::Mode::kPlan, 0), inputs(Arena::Mode::kPlan, 0);
  Stream stream(std::in_place_type<PlanStream>);
  const auto input = [&] { return inputs.Alloc(DType::kI32, {shape.rows, shape.length}, "input"); };
  Context c{stream, activations};
  Tape tape(recording);
  const TensorView tokens = input(), labels = input();
  try {
    const Model::Loss loss = model.LossOf(c, tape, tokens, labels, Documents{input()}, z_loss, 1);
    if (recording) {
      tape.Seed(loss.total);
      tape.Backward(stream);
    }
  } catch (const Error& error) {
    // What an op refuses before it has seen data is a setting.
    Fail(ExitCode::kUsage, error.what());
  }
  return {activations.peak(), std::get<PlanStream>(stream).flops};
}

}  // namespace

RunPlan PlanRun(const Experiment& e, bool training) {
  Model model(ModelFor(e, VocabOf(e)), *e.mixers);
  RunPlan plan;
  plan.parameters = model.Count();
  for (int64_t i = 0; i < e.model.layers; ++i)
    plan.block_parameters.push_back(model.params().Count(Cat("blocks.", i, ".")));
  const MixerCost cost = model.Cost(e.train.length);
  plan.flops_per_token = cost.flops_per_token;
  plan.state_bytes = cost.state_bytes;
  plan.tokens = e.train.steps * e.train.batch * e.train.length;

  const int64_t rows = e.train.batch / e.train.accumulate;
  Arena parameters(Arena::Mode::kPlan, 0);
  model.params().Allocate(parameters, DType::kF32, training);
  if (training) {
    const PassCost cost = PlanPass(model, {rows, e.train.length}, e.optim.z_loss, true);
    plan.training_flops_per_token = cost.flops / static_cast<double>(rows * e.train.length);
    plan.activation_bytes = cost.bytes;
  }
  for (const Evaluator::Shape& shape : EvaluationShapes(e, rows * e.train.length)) {
    plan.activation_bytes = std::max(plan.activation_bytes, PlanPass(model, shape, 0, false).bytes);
  }
  plan.memory_bytes = parameters.peak() + plan.activation_bytes;
  return plan;
}

Trainer::Trainer(const Experiment& e, Stream& stream, bool training) : e_(e), stream_(stream) {
  if (e.task) {
    task_ = e.task->Make();
    stages_ = task_->Curriculum();
    CheckTask();
  } else {
    text_ = std::make_unique<Text>(e.data);
    data_fingerprint_ = FingerprintOf(*text_);
    train_text_ = std::make_unique<TextSource>(*text_, Split::kTrain, e.DataSeed(), e.train.length);
    if (train_text_->windows() < e.train.batch) {
      Fail(ExitCode::kData, e.data.path, ": the training part has ", train_text_->windows(),
           " rows of ", e.train.length, " bytes, fewer than one batch of ", e.train.batch,
           "; give more text or a smaller train.batch");
    }
    if (e.data.held_out > 0) {
      held_out_text_ =
          std::make_unique<TextSource>(*text_, Split::kEval, e.DataSeed(), e.train.length);
    }
  }
  const RunPlan plan = PlanRun(e, training);
  const int64_t needed = plan.memory_bytes + Batch::Bytes(e.train.batch, e.train.length);
  if (needed > MemoryLimit()) {
    Fail(ExitCode::kOutOfMemory, "out of memory: the run needs ", needed >> 20,
         " MiB (activations ", plan.activation_bytes >> 20, " MiB), this process may use ",
         MemoryLimit() >> 20,
         " MiB; raise train.accumulate or reduce train.batch, train.length, eval.difficulties or "
         "the model");
  }
  model_ = std::make_unique<Model>(ModelFor(e, VocabOf(e)), *e.mixers);
  parameters_.emplace(kArenaMode, plan.memory_bytes - plan.activation_bytes);
  activations_.emplace(kArenaMode, plan.activation_bytes);
  model_->params().Allocate(*parameters_, DType::kF32, training);
  model_->params().Initialise(e.InitSeed());
  evaluator_ = std::make_unique<Evaluator>(*model_, stream_, *activations_,
                                           e.train.batch / e.train.accumulate * e.train.length);
  if (training) batch_.emplace(e.train.batch, e.train.length);
}

// What a later stage would trip over is found before the first step.
void Trainer::CheckTask() const {
  int64_t begin = 0;  // the earliest step of the stage
  for (const CurriculumStage& stage : stages_) {
    if (begin >= e_.train.steps) break;
    TaskSource::CheckLength(*task_, stage.difficulty, e_.train.length);
    begin +=
        stage.promote_accuracy > 0 ? std::min(stage.steps, e_.train.curriculum_every) : stage.steps;
  }
}

const Source& Trainer::CurrentSource() {
  if (!task_) return *train_text_;
  if (source_stage_ != progress_.stage) {
    source_stage_ = progress_.stage;
    task_source_.emplace(*task_, e_.DataSeed(), Split::kTrain,
                         stages_[static_cast<size_t>(source_stage_)].difficulty,
                         /*strict=*/false, TaskSource::Labels::kAll);
  }
  return *task_source_;
}

Trainer::StepResult Trainer::Step() {
  Check(batch_.has_value(), "Trainer::Step: this trainer was made for evaluation only");
  StepResult result{};
  result.lr = LearningRate(e_.optim, progress_.step, e_.train.steps);
  batch_->Fill(CurrentSource(), progress_.rows);
  result.difficulty = task_ ? stages_[static_cast<size_t>(progress_.stage)].difficulty : 0;
  result.labels = batch_->CountLabels();
  Check(result.labels > 0, "a batch of ", e_.train.batch, " rows of ", e_.train.length,
        " tokens has no label");

  ParamRegistry& params = model_->params();
  params.ZeroGradients();
  const int64_t rows = e_.train.batch / e_.train.accumulate;
  const double labels = static_cast<double>(result.labels);
  for (int64_t b = 0; b < e_.train.batch; b += rows) {
    const Model::Loss loss =
        Pass(*model_, stream_, *activations_, *batch_, b, rows, e_.optim.z_loss, labels);
    const float* nll = loss.nll.Data<float>();
    for (int64_t i = 0; i < loss.nll.size(); ++i) result.loss += nll[i];
  }
  result.loss /= labels;

  float norm, scale;
  GlobalNormFwd global;
  global.x = params.gradients();
  global.norm = TensorView(&norm, DType::kF32, {1}, "norm");
  global.scale = TensorView(&scale, DType::kF32, {1}, "scale");
  global.max_norm = e_.optim.clip;
  Launch(stream_, global);
  result.grad_norm = norm;
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    Fail(ExitCode::kDiverged, "diverged at step ", progress_.step + 1, ": loss ", result.loss,
         ", gradient norm ", result.grad_norm,
         "; the last checkpoint is kept; try a smaller optim.lr or a longer optim.warmup");
  }
  AdamwStep adamw;
  adamw.p = params.values(), adamw.g = params.gradients(), adamw.m = params.moment(0),
  adamw.v = params.moment(1);
  adamw.scale = global.scale;
  adamw.lr = result.lr, adamw.beta1 = e_.optim.beta1, adamw.beta2 = e_.optim.beta2,
  adamw.eps = e_.optim.eps;
  adamw.weight_decay = e_.optim.weight_decay;
  adamw.step = progress_.step + 1;
  adamw.decayed = params.decayed();
  Launch(stream_, adamw);

  ++progress_.step;
  progress_.rows += e_.train.batch;
  progress_.labels += result.labels;
  AdvanceCurriculum();
  return result;
}

void Trainer::AdvanceCurriculum() {
  if (!task_) return;
  ++progress_.stage_steps;
  const CurriculumStage& stage = stages_[static_cast<size_t>(progress_.stage)];
  if (progress_.stage + 1 == static_cast<int64_t>(stages_.size())) return;
  bool promote = stage.steps > 0 && progress_.stage_steps >= stage.steps;
  if (!promote && stage.promote_accuracy > 0 &&
      progress_.stage_steps % e_.train.curriculum_every == 0) {
    promote =
        evaluator_->OnTask(*task_, e_.DataSeed(), stage.difficulty, e_.train.curriculum_samples)
            .accuracy >= stage.promote_accuracy;
  }
  if (promote) {
    ++progress_.stage;
    progress_.stage_steps = 0;
  }
}

std::vector<Trainer::Evaluation> Trainer::Evaluate() {
  std::vector<Evaluation> all;
  if (task_) {
    for (const int64_t n : EvaluatedDifficulties(e_, stages_)) {
      all.push_back(
          {e_.task_name, n, evaluator_->OnTask(*task_, e_.DataSeed(), n, e_.eval.samples)});
    }
  } else if (held_out_text_) {
    all.push_back({"text", 0, evaluator_->OnText(*held_out_text_, e_.train.length, e_.eval.rows)});
  }
  return all;
}

}  // namespace weft
