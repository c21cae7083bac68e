#include "experiments/evaluate/evaluator.h"

#include <algorithm>
#include <vector>

namespace weft {
namespace {

Score Mean(Score sums) {
  const auto n = static_cast<double>(std::max<int64_t>(1, sums.labels));
  const auto samples = static_cast<double>(std::max<int64_t>(1, sums.samples));
  return {sums.nll / n, sums.accuracy / n, sums.exact_match / samples, sums.labels, sums.samples};
}

}  // namespace

Evaluator::Shape Evaluator::TaskShape(const Task& task, int64_t difficulty, int64_t tokens) {
  const int64_t length = (task.MaxLength(difficulty) + 63) / 64 * 64;
  return {std::max<int64_t>(1, tokens / length), length};
}

Evaluator::Shape Evaluator::TextShape(int64_t length, int64_t rows, int64_t tokens) {
  return {std::clamp<int64_t>(tokens / length, 1, rows), length};
}

Score Evaluator::OnTask(const Task& task, uint64_t seed, int64_t difficulty, int64_t samples) {
  const TaskSource source(task, seed, Split::kEval, difficulty, /*strict=*/true,
                          TaskSource::Labels::kAnswers);
  const Shape shape = TaskShape(task, difficulty, tokens_);
  Batch batch(shape.rows, shape.length);
  Score sums;
  for (int64_t next = 0; next < samples;) {
    int64_t rows = 0;
    while (rows < batch.B() && next < samples)
      next += source.Pack(next, samples, batch.row(rows++));
    Add(batch, rows, sums);
  }
  return Mean(sums);
}

Score Evaluator::OnText(const TextSource& source, int64_t length, int64_t rows) {
  rows = std::min(rows, source.windows());
  Batch batch(TextShape(length, rows, tokens_).rows, length);
  Score sums;
  for (int64_t first = 0; first < rows; first += batch.B()) {
    const int64_t n = std::min(batch.B(), rows - first);
    for (int64_t b = 0; b < n; ++b) source.Fill(first + b, batch.row(b));
    Add(batch, n, sums);
  }
  return Mean(sums);
}

Model::Loss Evaluator::Pass(const Model& model, Context& c, const Batch& batch, int64_t rows) {
  const Batch input(batch.B(), batch.T(),
                    c.arena.Alloc(DType::kI32, {batch.whole().dim(0)}, "batch").data());
  Copy(c.stream, input.whole(), batch.whole());
  Tape tape(/*recording=*/false);
  const Model::Loss loss = Model::NewLoss(c, input.labels(0, rows), input.denominator());
  model.LossOf(c, tape, input.tokens(0, rows), input.documents(0, rows), loss);
  return loss;
}

void Evaluator::Add(Batch& batch, int64_t rows, Score& sums) {
  c_.arena.Reset();
  const int64_t labelled = batch.CountLabels(rows);
  *batch.denominator().Data<float>() = static_cast<float>(std::max<int64_t>(1, labelled));
  const Model::Loss loss = Pass(model_, c_, batch, rows);
  const int64_t N = rows * batch.T();
  std::vector<float> nll(static_cast<size_t>(N)), correct(nll.size());
  Copy(c_.stream, TensorView(nll.data(), DType::kF32, {N}, "nll"), loss.nll);
  Copy(c_.stream, TensorView(correct.data(), DType::kF32, {N}, "correct"), loss.correct);
  Synchronize(c_.stream);
  const int32_t* labels = batch.labels(0, rows).Data<int32_t>();
  const int32_t* starts = batch.documents(0, rows).start.Data<int32_t>();
  int64_t graded = -1;  // where the sample of the last label begins
  bool all_right = false;
  for (int64_t i = 0; i < N; ++i) {
    if (labels[i] == kIgnoreLabel) continue;
    const bool is_right = correct[static_cast<size_t>(i)] == 1;
    sums.nll += nll[static_cast<size_t>(i)];
    sums.accuracy += is_right;
    const int64_t begin = i / batch.T() * batch.T() + starts[i];
    if (begin != graded) {
      graded = begin, all_right = true;
      ++sums.samples, ++sums.exact_match;
    }
    if (all_right && !is_right) {
      all_right = false;
      --sums.exact_match;
    }
  }
  sums.labels += labelled;
}

}  // namespace weft
