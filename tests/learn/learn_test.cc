// links: weft_train
// Every mixer learns: it overfits one batch and solves an easy task. The control, which mixes
// nothing over time, does neither.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "experiments/train/experiment.h"
#include "experiments/train/trainer.h"

namespace weft {
namespace {

constexpr char kControl[] = "identity";

std::unique_ptr<Experiment> SmallExperiment(const std::string& mixer,
                                            std::vector<std::string> settings) {
  for (const char* s : {"model.d_model=32", "model.layers=2", "optim.lr=5e-3", "optim.warmup=10",
                        "train.batch=8", "task.loss=answers", "task.stage_steps=0"}) {
    settings.push_back(s);
  }
  settings.push_back("model.pattern=" + mixer);
  return Experiment::Load("", settings);
}

// Loss after `steps` steps on the first batch of state tracking, with an assertion after every one
// of ten swaps. The value of an assertion depends on all swaps before it.
double LossOnOneBatch(const std::string& mixer, int steps) {
  const auto e =
      SmallExperiment(mixer, {"task.name=state_tracking", "task.difficulties=10", "task.interval=1",
                              "train.length=64", "optim.weight_decay=0"});
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  double loss = 0;
  for (int i = 0; i < steps; ++i) {
    loss = trainer.Step().loss;
    Trainer::Progress same_rows = trainer.progress();
    same_rows.rows = 0;
    trainer.set_progress(same_rows);
  }
  return loss;
}

// Strict accuracy on fresh samples of four-bit recall.
Score ScoreOnRecall(const std::string& mixer, int steps) {
  const auto e =
      SmallExperiment(mixer, {"task.name=recall", "task.difficulties=4", "task.max_difficulty=4",
                              "task.queries=4", "train.length=64", "eval.samples=2048"});
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  for (int i = 0; i < steps; ++i) trainer.Step();
  return trainer.Evaluate().at(0).score;
}

class Learn : public testing::TestWithParam<std::string> {};

TEST_P(Learn, OverfitsOneBatch) { EXPECT_LT(LossOnOneBatch(GetParam(), 200), 0.05); }

TEST_P(Learn, SolvesAnEasyTask) { EXPECT_GT(ScoreOnRecall(GetParam(), 300).accuracy, 0.95); }

std::vector<std::string> Mixers() {
  std::vector<std::string> names;
  for (const MixerSpec& spec : AllMixers()) {
    if (spec.name != std::string(kControl)) names.push_back(spec.name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, Learn, testing::ValuesIn(Mixers()),
                         [](const auto& info) { return info.param; });

TEST(Control, CannotOverfitWhatNeedsContext) { EXPECT_GT(LossOnOneBatch(kControl, 200), 1); }

TEST(Control, StaysAtChance) {
  const Score score = ScoreOnRecall(kControl, 300);
  EXPECT_NEAR(score.accuracy, 0.5, 4 * std::sqrt(0.25 / static_cast<double>(score.labels)));
  EXPECT_EQ(score.labels, 2048);
}

// Two queries per sample and several samples per row: a sample counts when the answers that it adds
// are all right.
TEST(ExactMatch, CountsTheSamplesWhoseAnswersAreAllRight) {
  const auto e = Experiment::Load(
      "", {"task.name=mqar", "task.vocabulary=16", "task.difficulties=2", "task.stage_steps=0",
           "model.d_model=32", "model.layers=2", "optim.lr=5e-3", "train.length=64"});
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  for (int i = 0; i < 60; ++i) trainer.Step();
  int64_t labels = 0, right = 0, exact = 0;
  for (int64_t n = 1; n <= 128; ++n) {
    e->eval.samples = n;
    const Score score = trainer.Evaluate().at(0).score;
    const int64_t now = std::llround(score.accuracy * static_cast<double>(score.labels));
    exact += now - right == score.labels - labels;
    labels = score.labels, right = now;
    ASSERT_EQ(score.samples, n);
    ASSERT_EQ(std::llround(score.exact_match * static_cast<double>(n)), exact) << n;
  }
  EXPECT_GT(exact, 0);
  EXPECT_LT(exact, 128);
  EXPECT_EQ(labels, 2 * 128);
}

}  // namespace
}  // namespace weft
