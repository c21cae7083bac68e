#include "experiments/evaluate/evaluator.h"

#include <algorithm>

namespace weft {
namespace {

Score Mean(Score sums) {
  const double n = static_cast<double>(std::max<int64_t>(1, sums.labels));
  return {sums.nll / n, sums.accuracy / n, sums.labels};
}

}  // namespace

Score Evaluator::OnTask(const Task& task, uint64_t seed, int64_t difficulty, int64_t samples) {
  const int64_t length = (task.MaxLength(difficulty) + 63) / 64 * 64;
  const TaskSource source(task, seed, Split::kEval, difficulty, /*strict=*/true,
                          TaskSource::Labels::kAnswers);
  Batch batch(std::max<int64_t>(1, tokens_ / length), length);
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
  Batch batch(std::clamp<int64_t>(tokens_ / length, 1, rows), length);
  Score sums;
  for (int64_t first = 0; first < rows; first += batch.B()) {
    const int64_t n = std::min(batch.B(), rows - first);
    for (int64_t b = 0; b < n; ++b) source.Fill(first + b, batch.row(b));
    Add(batch, n, sums);
  }
  return Mean(sums);
}

void Evaluator::Add(Batch& batch, int64_t rows, Score& sums) {
  const auto pass = [&](Stream& stream, Arena& arena) {
    Context c{stream, arena};
    Tape tape(/*recording=*/false);
    return model_.LossOf(c, tape, batch.tokens(0, rows), batch.labels(0, rows),
                         batch.documents(0, rows));
  };
  Arena plan(Arena::Mode::kPlan, 0);
  Stream counter(std::in_place_type<PlanStream>);
  pass(counter, plan);
  if (!arena_ || arena_->capacity() < plan.peak())
    arena_ = std::make_unique<Arena>(kArenaMode, plan.peak());
  arena_->Reset();
  const Model::Loss loss = pass(stream_, *arena_);
  const int32_t* labels = batch.labels(0, rows).Data<int32_t>();
  const auto nll = loss.nll.As<float, 1>(), correct = loss.correct.As<float, 1>();
  for (int64_t i = 0; i < rows * batch.T(); ++i) {
    if (labels[i] == kIgnoreLabel) continue;
    sums.nll += nll(i);
    sums.accuracy += correct(i);
    ++sums.labels;
  }
}

}  // namespace weft
