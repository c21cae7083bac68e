#include "experiments/train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>

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

// Values of train.recompute, as in ModelConfig::Recompute.
constexpr std::array<std::string_view, 3> kRecomputes = {"none", "hidden", "block"};

ModelConfig ModelFor(const Experiment& e, const TrainConfig& train, int64_t vocab) {
  ModelConfig config = e.model;
  config.recompute = static_cast<ModelConfig::Recompute>(
      std::find(kRecomputes.begin(), kRecomputes.end(), train.recompute) - kRecomputes.begin());
  if (config.vocab == 0) config.vocab = vocab;
  if (config.vocab < vocab) {
    Fail(ExitCode::kUsage, "model.vocab = ", config.vocab,
         " is smaller than the vocabulary of the data, ", vocab, "; raise it or set it to 0");
  }
  return config;
}

int64_t VocabOf(const Experiment& e) {
  if (e.task) return e.task->Make()->vocabulary().size();
  return e.data.random > 0 ? e.data.random : 256;
}

// Of the ops on a GPU: what most of them need. The gated delta rule's grows with the batch and is a
// few per cent of its activations.
constexpr int64_t kDeviceScratch = 32 << 20;
constexpr int64_t kDeviceContext = 536 << 20;  // on an H100 with CUDA 13

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

// The largest pass of an evaluation.
struct EvaluationPass {
  Evaluator::Shape shape;
  std::string cause;  // what asks for it: "eval.difficulties: difficulty 8: "
};

// Of every evaluation that the run makes.
std::vector<EvaluationPass> EvaluationPasses(const Experiment& e, int64_t tokens) {
  if (!e.task) {
    if (e.data.held_out == 0 || e.data.random > 0) return {};
    return {{Evaluator::TextShape(e.train.length, e.eval.rows, tokens), ""}};
  }
  std::vector<EvaluationPass> passes;
  const std::unique_ptr<Task> task = e.task->Make();
  const std::vector<CurriculumStage> stages = task->Curriculum();
  const auto add = [&](const char* key, int64_t difficulty) {
    passes.push_back({Evaluator::TaskShape(*task, difficulty, tokens),
                      Cat(key, ": difficulty ", difficulty, ": ")});
  };
  try {
    for (const int64_t n : EvaluatedDifficulties(e, stages)) add("eval.difficulties", n);
  } catch (const Error& error) {
    Fail(error.code(), "eval.difficulties: ", error.what());
  }
  for (const CurriculumStage& stage : stages) {
    if (stage.promote_accuracy > 0) add("task.promote_accuracy", stage.difficulty);
  }
  return passes;
}

struct PassCost {
  int64_t bytes;
  double flops;
};

// A pass without memory behind it. Parameters, batch and activations share an arena: the tape knows
// gradients by their addresses.
PassCost PlanPass(Model& model, Evaluator::Shape shape, DType dtype, bool recording,
                  const std::string& cause = "") {
  if (shape.rows * shape.length > kLargestPass) {
    Fail(ExitCode::kOutOfMemory, "out of memory: a pass over ", shape.rows, " rows of ",
         shape.length, " tokens, expected at most ", kLargestPass,
         " tokens; raise train.accumulate or reduce train.batch, train.length or "
         "eval.difficulties");
  }
  Arena arena(Arena::Mode::kPlan, 0);
  Stream stream(std::in_place_type<PlanStream>);
  model.params().Allocate(stream, arena, dtype, recording);
  const int64_t words = Batch::Bytes(shape.rows, shape.length) / 4;
  const Batch batch(shape.rows, shape.length, arena.Alloc(DType::kI32, {words}, "batch").data());
  const int64_t before = arena.used();
  Context c{stream, arena, dtype};
  try {
    if (recording) {
      Tape tape(true);
      const Model::Loss loss = Model::NewLoss(c, batch.labels(0, shape.rows), batch.denominator());
      model.LossOf(c, tape, batch.tokens(0, shape.rows), batch.documents(0, shape.rows), loss);
      tape.Backward(c);
    } else {
      Evaluator::Pass(model, c, batch, shape.rows);
    }
  } catch (const Error& error) {
    // What an op refuses before it has seen data is a setting.
    Fail(ExitCode::kUsage, cause, error.what());
  }
  return {arena.peak() - before, std::get<PlanStream>(stream).flops};
}

// Fills block_parameters and parts.
void CountParts(const Model& model, int64_t T, RunPlan& plan) {
  const ModelConfig& config = model.config();
  RunPlan::Part mlp{"mlp", config.layers, 0, {0, 0}},
      norms{"norms", 2 * config.layers + 1, 0, {0, 0}};
  mlp.cost.flops_per_token =
      6.0 * static_cast<double>(config.layers * config.d_model * config.FeedForward());
  std::map<std::string, RunPlan::Part> mixers;
  for (int64_t i = 0; i < config.layers; ++i) {
    RunPlan::Part& part = mixers[config.LabelOf(i)];
    part.name = config.LabelOf(i);
    ++part.count;
    const MixerCost cost = model.CostOfMixer(i, T);
    part.cost.flops_per_token += cost.flops_per_token;
    part.cost.state_bytes += cost.state_bytes;
  }
  plan.block_parameters.assign(static_cast<size_t>(config.layers), 0);
  constexpr std::string_view kBlocks = "blocks.";
  for (const Param& p : model.params().params()) {
    if (p.path == "norm") norms.parameters += p.size();
    if (!p.path.starts_with(kBlocks)) continue;
    const size_t dot = p.path.find('.', kBlocks.size());
    const int64_t i = std::stoll(p.path.substr(kBlocks.size(), dot - kBlocks.size()));
    const std::string_view inside = std::string_view(p.path).substr(dot + 1);
    plan.block_parameters[static_cast<size_t>(i)] += p.size();
    RunPlan::Part& part = inside.starts_with("mixer.") ? mixers.at(config.LabelOf(i))
                          : inside.starts_with("mlp.") ? mlp
                                                       : norms;
    part.parameters += p.size();
  }
  for (auto& [label, part] : mixers) plan.parts.push_back(part);
  plan.parts.insert(plan.parts.end(), {mlp, norms});
}

// With `train` in place of e.train.
RunPlan PlanWith(const Experiment& e, const TrainConfig& train, const Device& device,
                 bool training) {
  Model model(ModelFor(e, train, VocabOf(e)), *e.mixers);
  RunPlan plan;
  plan.parameters = model.Count();
  CountParts(model, train.length, plan);
  const MixerCost cost = model.Cost(train.length);
  plan.flops_per_token = cost.flops_per_token;
  plan.state_bytes = cost.state_bytes;
  plan.tokens = train.steps * train.batch * train.length;

  const int64_t rows = train.batch / train.accumulate;
  Arena parameters(Arena::Mode::kPlan, 0);
  Stream stream(std::in_place_type<PlanStream>);
  model.params().Allocate(stream, parameters, device.dtype, training);
  if (training) {
    const PassCost pass = PlanPass(model, {rows, train.length}, device.dtype, true);
    plan.activation_bytes = pass.bytes;
    // Work that is done twice counts once.
    ModelConfig config = model.config();
    config.recompute = ModelConfig::Recompute::kNone;
    Model once(config, *e.mixers);
    const double flops = PlanPass(once, {rows, train.length}, device.dtype, true).flops;
    plan.training_flops_per_token = flops / static_cast<double>(rows * train.length);
  }
  for (const auto& [shape, cause] : EvaluationPasses(e, rows * train.length)) {
    plan.activation_bytes =
        std::max(plan.activation_bytes, PlanPass(model, shape, device.dtype, false, cause).bytes);
  }
  plan.memory_bytes = parameters.peak() + plan.activation_bytes +
                      Batch::Bytes(train.batch, train.length) + (device.cuda ? kDeviceScratch : 0);
  plan.context_bytes = device.cuda ? kDeviceContext : 0;
  return plan;
}

// Smaller micro-batches cost less than what is computed again.
std::string AdviceForMemory(const Experiment& e, const Device& device, int64_t limit) {
  TrainConfig train = e.train;
  for (const auto* recompute = std::find(kRecomputes.begin(), kRecomputes.end(), train.recompute);
       recompute != kRecomputes.end(); ++recompute) {
    train.recompute = *recompute;
    for (int64_t n = e.train.accumulate; n <= train.batch; ++n) {
      train.accumulate = n;
      if (train.batch % n != 0) continue;
      const int64_t bytes = PlanWith(e, train, device, /*training=*/true).memory_bytes;
      if (bytes > limit) continue;
      std::string keys;
      if (train.recompute != e.train.recompute) keys = Cat("train.recompute=", *recompute, " ");
      if (n != e.train.accumulate) keys += Cat("train.accumulate=", n, " ");
      return Cat(keys, "fits with ", bytes >> 20, " MiB");
    }
  }
  return "";
}

}  // namespace

Model ModelOf(const Experiment& e) { return Model(ModelFor(e, e.train, VocabOf(e)), *e.mixers); }

void CheckStages(const Experiment& e) {
  if (!e.task) return;
  const std::unique_ptr<Task> task = e.task->Make();
  int64_t begin = 0;  // the earliest step of the stage
  for (const CurriculumStage& stage : task->Curriculum()) {
    if (begin >= e.train.steps) break;
    TaskSource::CheckLength(*task, stage.difficulty, e.train.length);
    begin +=
        stage.promote_accuracy > 0 ? std::min(stage.steps, e.train.curriculum_every) : stage.steps;
  }
}

RunPlan PlanRun(const Experiment& e, const Device& device, bool training) {
  return PlanWith(e, e.train, device, training);
}

struct Trainer::Slot {
  Slot(const Experiment& e, const Device& device) {
    const int64_t bytes = Batch::Bytes(e.train.batch, e.train.length);
    void* memory = nullptr;
#ifdef WEFT_CUDA
    if (device.cuda) {
      pinned = std::make_unique<PinnedBuffer>(bytes + kResults * 4);
      done = std::make_unique<CudaEvent>();
      memory = pinned->data();
    }
#endif
    if (!device.cuda) {
      own.resize(static_cast<size_t>(bytes + kResults * 4));
      memory = own.data();
    }
    batch.emplace(e.train.batch, e.train.length, memory);
    results = reinterpret_cast<float*>(static_cast<std::byte*>(memory) + bytes);
  }
  static constexpr int64_t kResults = 4;  // total, mean_nll, norm, scale
  std::vector<std::byte> own;
#ifdef WEFT_CUDA
  std::unique_ptr<PinnedBuffer> pinned;
  std::unique_ptr<CudaEvent> done;
#endif
  std::optional<Batch> batch;
  float* results;
  int64_t rows = -1, stage = -1;  // what it is filled with
};

Trainer::Trainer(const Experiment& e, const Device& device, Stream& stream, bool training)
    : e_(e), device_(device), stream_(stream) {
  OpenData();
  const RunPlan plan = PlanRun(e, device, training);
  if (const int64_t limit = device.MemoryLimit(); plan.memory_bytes > limit) {
    std::string advice = training ? AdviceForMemory(e, device, limit) : "";
    if (advice.empty()) advice = "reduce train.batch, train.length, eval.difficulties or the model";
    Fail(ExitCode::kOutOfMemory, "out of memory: the run needs ", plan.memory_bytes >> 20,
         " MiB (activations ", plan.activation_bytes >> 20, " MiB), this process may use ",
         limit >> 20, " MiB; ", advice);
  }
  const Arena::Mode mode = device.cuda ? Arena::Mode::kPlain : kArenaMode;
  Arena parameters(Arena::Mode::kPlan, 0);
  Stream planned(std::in_place_type<PlanStream>);
  model_ = std::make_unique<Model>(ModelFor(e, e.train, VocabOf(e)), *e.mixers);
  model_->params().Allocate(planned, parameters, device.dtype, training);
  parameters_.emplace(mode, parameters.peak(), device.memory());
  activations_.emplace(mode, plan.activation_bytes, device.memory());
  model_->params().Allocate(stream, *parameters_, device.dtype, training);
  model_->params().Initialise(stream, e.InitSeed());
  evaluator_ = std::make_unique<Evaluator>(*model_, stream_, *activations_, device.dtype,
                                           e.train.batch / e.train.accumulate * e.train.length);
  if (!training) return;
  inputs_.emplace(mode, Batch::Bytes(e.train.batch, e.train.length) + 4096, device.memory());
  const int64_t words = Batch::Bytes(e.train.batch, e.train.length) / 4;
  batch_.emplace(e.train.batch, e.train.length,
                 inputs_->Alloc(DType::kI32, {words}, "batch").data());
  results_ = inputs_->Alloc(DType::kF32, {Slot::kResults}, "results");
  ahead_ = device.cuda ? 2 : 1;
  for (size_t i = 0; i <= ahead_; ++i) slots_.push_back(std::make_unique<Slot>(e, device));
}

Trainer::~Trainer() {
  if (prefetch_.valid()) prefetch_.wait();
}

int64_t Trainer::allocated_bytes() const {
  int64_t bytes =
      parameters_->capacity() + activations_->capacity() + (inputs_ ? inputs_->capacity() : 0);
#ifdef WEFT_CUDA
  if (device_.cuda) bytes += std::get<CudaStream>(stream_).scratch_bytes();
#endif
  return bytes;
}

void Trainer::OpenData() {
  const Experiment& e = e_;
  if (e.task) {
    task_ = e.task->Make();
    stages_ = task_->Curriculum();
    CheckStages(e);
    return;
  }
  if (e.data.random > 0) {
    train_source_ = std::make_unique<RandomSource>(e.data.random, e.DataSeed());
    return;
  }
  text_ = std::make_unique<Text>(e.data);
  data_fingerprint_ = FingerprintOf(*text_);
  auto train = std::make_unique<TextSource>(*text_, Split::kTrain, e.DataSeed(), e.train.length,
                                            e.data.documents);
  if (train->windows() < e.train.batch) {
    Fail(ExitCode::kData, e.data.path, ": the training part has ", train->windows(), " rows of ",
         e.train.length, " bytes, fewer than one batch of ", e.train.batch,
         "; give more text or a smaller train.batch");
  }
  train_source_ = std::move(train);
  if (e.data.held_out > 0) {
    held_out_text_ = std::make_unique<TextSource>(*text_, Split::kEval, e.DataSeed(),
                                                  e.train.length, e.data.documents);
  }
}

const Source& Trainer::CurrentSource() {
  if (!task_) return *train_source_;
  if (source_stage_ != progress_.stage) {
    source_stage_ = progress_.stage;
    task_source_.emplace(*task_, e_.DataSeed(), Split::kTrain,
                         stages_[static_cast<size_t>(source_stage_)].difficulty,
                         /*strict=*/false, TaskSource::Labels::kAll);
  }
  return *task_source_;
}

void Trainer::Fill(Slot& slot) {
  if (prefetch_.valid()) prefetch_.get();
  if (slot.rows == progress_.rows && slot.stage == progress_.stage) return;
  slot.batch->Fill(CurrentSource(), progress_.rows);
  slot.rows = progress_.rows, slot.stage = progress_.stage;
}

void Trainer::Begin(bool op_by_op) {
  Check(!slots_.empty(), "a trainer that was made for evaluation cannot train");
  Check(!Full(), "a step is started while ", under_way_.size(), " are under way");
  Slot& slot = *slots_[next_slot_];
  Fill(slot);
  UnderWay now{next_slot_, progress_, {}};
  now.result.step = progress_.step + 1;
  now.result.lr = LearningRate(e_.optim, progress_.step, e_.train.steps);
  now.result.difficulty = task_ ? stages_[static_cast<size_t>(progress_.stage)].difficulty : 0;
  now.result.labels = slot.batch->CountLabels(e_.train.batch);
  Check(now.result.labels > 0, "a batch of ", e_.train.batch, " rows of ", e_.train.length,
        " tokens has no label");
  const double t = static_cast<double>(UpdatesBefore(e_.optim, progress_.step) + 1);
  float* schedule = slot.batch->schedule().Data<float>();
  schedule[0] = static_cast<float>(now.result.lr);
  schedule[1] = static_cast<float>(1 - std::pow(e_.optim.beta1, t));
  schedule[2] = static_cast<float>(1 - std::pow(e_.optim.beta2, t));
  *slot.batch->denominator().Data<float>() = static_cast<float>(now.result.labels);

  Copy(stream_, batch_->whole(), slot.batch->whole());
  Launch(op_by_op);
  Copy(stream_, TensorView(slot.results, DType::kF32, {Slot::kResults}, "results"), results_);
#ifdef WEFT_CUDA
  if (device_.cuda) slot.done->Record(std::get<CudaStream>(stream_));
#endif
  under_way_.push_back(now);

  ++progress_.step;
  progress_.rows += e_.train.batch;
  progress_.labels += now.result.labels;
  slot.rows = -1;
  next_slot_ = (next_slot_ + 1) % slots_.size();
  AdvanceCurriculum();
  if (device_.cuda) {
    Slot& ahead = *slots_[next_slot_];
    const Source& source = CurrentSource();
    prefetch_ = std::async(std::launch::async,
                           [&ahead, &source, rows = progress_.rows, stage = progress_.stage] {
                             ahead.batch->Fill(source, rows);
                             ahead.rows = rows, ahead.stage = stage;
                           });
  }
}

// On a GPU the first step runs op by op, which lets them choose algorithms and ask for memory; then
// the step is captured once and replayed.
void Trainer::Launch(bool op_by_op) {
  ++launched_;
  static_cast<void>(op_by_op);
#ifdef WEFT_CUDA
  if (auto* cuda = std::get_if<CudaStream>(&stream_); cuda && launched_ > 1 && !op_by_op) {
    if (!graph_) graph_ = cuda->Capture([this] { RunOps(); });
    return cuda->Replay(*graph_);
  }
#endif
  RunOps();
}

void Trainer::RunOps() {
  ParamRegistry& params = model_->params();
  const int64_t rows = e_.train.batch / e_.train.accumulate;
  const bool one_document = !task_ && train_source_->one_document();
  for (int64_t b = 0; b < e_.train.batch; b += rows) {
    activations_->Reset();
    Context c{stream_, *activations_, device_.dtype};
    Tape tape(/*recording=*/true);
    if (b == 0) {
      for (const Param& p : params.params()) tape.Overwrite(p.var);
    }
    Model::Loss loss = Model::NewLoss(c, batch_->labels(b, rows), batch_->denominator());
    loss.total = results_.Slice(0, 0, 1), loss.mean_nll = results_.Slice(0, 1, 1);
    loss.z_loss = e_.optim.z_loss;
    loss.accumulate = b > 0;
    Documents documents = batch_->documents(b, rows);
    if (one_document) documents.start = {};
    model_->LossOf(c, tape, batch_->tokens(b, rows), documents, loss);
    tape.Backward(c);
  }
  GlobalNormFwd global;
  global.x = params.gradients();
  global.norm = results_.Slice(0, 2, 1), global.scale = results_.Slice(0, 3, 1);
  global.max_norm = e_.optim.clip;
  weft::Launch(stream_, global);
  AdamwStep adamw;
  adamw.p = params.values(), adamw.g = params.gradients(), adamw.m = params.moment(0),
  adamw.v = params.moment(1);
  adamw.copy = params.copies();
  adamw.scale = global.scale, adamw.schedule = batch_->schedule();
  adamw.beta1 = e_.optim.beta1, adamw.beta2 = e_.optim.beta2, adamw.eps = e_.optim.eps;
  adamw.weight_decay = e_.optim.weight_decay;
  adamw.decayed = params.decayed();
  weft::Launch(stream_, adamw);
}

std::optional<Trainer::StepResult> Trainer::Finish(bool wait) {
  if (under_way_.empty()) return std::nullopt;
  UnderWay oldest = under_way_.front();
  const Slot& slot = *slots_[oldest.slot];
#ifdef WEFT_CUDA
  if (device_.cuda) {
    if (!wait && !slot.done->Done()) return std::nullopt;
    slot.done->Wait();
  }
#endif
  static_cast<void>(wait);
  under_way_.pop_front();
  StepResult& result = oldest.result;
  result.loss = slot.results[1], result.grad_norm = slot.results[2];
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    progress_ = oldest.before;
    under_way_.clear();
    Fail(ExitCode::kDiverged, "diverged at step ", result.step, ": loss ", result.loss,
         ", gradient norm ", result.grad_norm,
         "; the last checkpoint is kept; try a smaller optim.lr or a longer optim.warmup");
  }
  return result;
}

Trainer::StepResult Trainer::Step() {
  Start();
  return *Finish(/*wait=*/true);
}

Trainer::StepResult Trainer::StepOpByOp(OpObserver& observer) {
  const auto observe = [&](OpObserver* o) {
    std::visit(
        [&](auto& backend) {
          if constexpr (requires { backend.observer; }) backend.observer = o;
        },
        stream_);
  };
  observe(&observer);
  Begin(/*op_by_op=*/true);
  observe(nullptr);
  return *Finish(/*wait=*/true);
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
