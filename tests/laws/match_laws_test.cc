// links: weft_train
// Counts are what the ops count, and matching finds the value that a search over all values finds.
#include <gtest/gtest.h>

#include <cmath>

#include "experiments/train/match.h"
#include "experiments/train/trainer.h"
#include "tests/errors.h"

namespace weft {
namespace {

using Texts = std::vector<std::string>;

std::unique_ptr<Experiment> Small(const Texts& more = {}) {
  Texts settings = {
      "data.random=101",           "model.d_model=48", "model.layers=6", "mixer.attention.heads=4",
      "mixer.gated_delta.heads=3", "train.length=96",  "train.batch=2"};
  settings.insert(settings.end(), more.begin(), more.end());
  return Experiment::Load("", settings);
}

// Shapes that differ in everything that a count depends on.
const std::vector<Texts> kShapes = {
    {},
    {"model.tied=true", "model.d_ff=77"},
    {"model.pattern=gated_delta"},
    {"model.pattern=gated_delta,attention", "mixer.attention.qk_norm=full",
     "mixer.gated_delta.gate=false", "train.length=1"},
    {"model.pattern=attention-window,gated_delta,identity", "mixer.attention-window.window=17",
     "mixer.attention.kv_heads=2", "mixer.attention.norm=post"},
    {"model.pattern=gated_delta", "model.middle=attention", "model.last=identity",
     "mixer.gated_delta.key_dim=5", "mixer.gated_delta.value_dim=7",
     "mixer.gated_delta.conv_width=1", "train.length=130"},
};

TEST(CountLaws, ForwardFlopsAreThoseOfTheOpsThatRun) {
  for (const Texts& shape : kShapes) {
    const auto e = Small(shape);
    const int64_t B = 2, T = e->train.length;
    Model model = ModelOf(*e);
    Stream stream(std::in_place_type<PlanStream>);
    Arena arena(Arena::Mode::kPlan, 0);
    model.params().Allocate(stream, arena, DType::kF32, false);
    Context c{stream, arena, DType::kF32};
    Tape tape(false);
    const TensorView tokens = arena.Alloc(DType::kI32, {B, T}, "tokens");
    std::get<PlanStream>(stream).flops = 0;
    model.Logits(c, tape, tokens, {});
    const double counted = std::get<PlanStream>(stream).flops;
    EXPECT_NEAR(counted / static_cast<double>(B * T), QuantityOf(*e, "flops"), 1e-9 * counted);
  }
}

// A backward of a product is two products; attention and recurrence do at least twice their
// forward.
TEST(CountLaws, TrainingIsThreeForwardsOrALittleMore) {
  for (const Texts& shape : kShapes) {
    const auto e = Small(shape);
    const RunPlan plan = PlanRun(*e, Device{});
    EXPECT_GE(plan.training_flops_per_token, 3 * plan.flops_per_token * (1 - 1e-9));
    EXPECT_LE(plan.training_flops_per_token, 4 * plan.flops_per_token);
  }
}

// Small models, whose few addresses meet where parameters and activations are counted apart.
TEST(CountLaws, EverySizeCanBePlanned) {
  for (const std::string d_model : {"1", "7", "8"}) {
    for (const std::string d_ff : {"1", "8", "17"}) {
      for (int64_t layers = 1; layers <= 8; ++layers) {
        const auto e = Small({"model.d_model=" + d_model, "model.d_ff=" + d_ff, "train.length=3",
                              "mixer.attention.head_dim=2", Cat("model.layers=", layers)});
        EXPECT_NO_THROW(PlanRun(*e, Device{}))
            << "d_model " << d_model << ", d_ff " << d_ff << ", " << layers << " layers";
      }
    }
  }
}

TEST(CountLaws, PartsMakeUpTheBody) {
  for (const Texts& shape : kShapes) {
    const auto e = Small(shape);
    const RunPlan plan = PlanRun(*e, Device{});
    int64_t parameters = 0, state = 0, blocks = 0;
    double flops = 2 * 48.0 * 101;
    for (const RunPlan::Part& part : plan.parts) {
      parameters += part.parameters;
      flops += part.cost.flops_per_token;
      state += part.cost.state_bytes;
    }
    for (const int64_t block : plan.block_parameters) blocks += block;
    EXPECT_EQ(parameters, plan.parameters.body);
    EXPECT_EQ(blocks + 48, plan.parameters.body);
    EXPECT_EQ(state, plan.state_bytes);
    EXPECT_NEAR(flops, plan.flops_per_token, 1e-6);
  }
}

TEST(CountLaws, MiddleAndLastReplaceThePattern) {
  ModelConfig config;
  const auto labels = [&config](int64_t layers) {
    config.layers = layers;
    std::string text;
    for (int64_t i = 0; i < layers; ++i) text += config.LabelOf(i).substr(0, 1);
    return text;
  };
  config.pattern = {"gated_delta", "gated_delta", "gated_delta", "attention"};
  config.last = "identity";
  EXPECT_EQ(labels(9), "gggagggai");
  config.pattern = {"gated_delta"};
  config.middle = "attention";
  EXPECT_EQ(labels(1), "i");
  EXPECT_EQ(labels(3), "ggi");
  EXPECT_EQ(labels(4), "gagi");
  EXPECT_EQ(labels(8), "gggaaggi");
  EXPECT_EQ(labels(12),
            "ggggaaagggg"
            "i");
  // A label of last alone is one of the run's settings too.
  const auto e = Small({"model.pattern=gated_delta", "model.last=attention"});
  bool found = false;
  for (const ConfigField& field : e->Fields()) found |= field.path == "mixer.attention.heads";
  EXPECT_TRUE(found);
}

struct Case {
  const char *quantity, *by;
  int64_t values, multiple;
  Texts settings, reference;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.quantity << " by " << c.by; }

class MatchLaw : public testing::TestWithParam<Case> {};

TEST_P(MatchLaw, FindsWhatASearchOverAllValuesFinds) {
  const Case& c = GetParam();
  const auto e = Small(c.settings), reference = Small(c.reference);
  const double target = QuantityOf(*reference, c.quantity);
  int64_t best = 0;
  double least = 1e300;
  for (int64_t v = c.multiple; v <= c.values; v += c.multiple) {
    Settings settings = e->given();
    settings.push_back({c.by, v, "test"});
    try {
      const double distance =
          std::abs(QuantityOf(*Experiment::FromSettings(settings), c.quantity) - target);
      if (distance < least) least = distance, best = v;
    } catch (const Error&) {
    }
  }
  const Match match = SolveMatch(*e, *reference, {c.quantity, c.by, 1e9, c.multiple});
  EXPECT_EQ(match.value, best);
  EXPECT_EQ(match.reference, target);
  EXPECT_EQ(std::abs(match.matched - target), least);
  EXPECT_EQ(QuantityOf(*Apply(match, *e), c.quantity), match.matched);
}

const Texts kGdn = {"model.pattern=gated_delta"}, kWide = {"model.d_model=96"};
INSTANTIATE_TEST_SUITE_P(
    All, MatchLaw,
    testing::Values(Case{"parameters", "model.d_ff", 4000, 1, kGdn, {}},
                    Case{"body_parameters", "model.d_ff", 4000, 8, kGdn, kWide},
                    Case{"flops", "model.d_ff", 4000, 1, kGdn, kWide},
                    Case{"parameters", "model.d_model", 800, 1, kGdn, kWide},
                    Case{"parameters", "model.d_model", 800, 1, {}, kGdn},
                    Case{"body_parameters", "model.d_model", 800, 16, {}, kWide},
                    Case{"flops", "model.layers", 60, 1, {}, kWide},
                    Case{"state", "mixer.gated_delta.key_dim", 1024, 1, kGdn, {}},
                    Case{"state", "mixer.gated_delta.heads", 1024, 1, kGdn, {}},
                    Case{"parameters", "mixer.attention.head_dim", 1024, 1, {}, kWide},
                    Case{"parameters", "mixer.attention.kv_heads", 1024, 1, {}, kGdn},
                    // The smallest value is too large already.
                    Case{"parameters", "model.d_ff", 4000, 1, kWide, {"model.d_model=8"}}));

std::string Refusal(const Experiment& e, const Experiment& reference, const MatchRequest& request) {
  return ErrorOf(ExitCode::kUsage, [&] { SolveMatch(e, reference, request); });
}

TEST(Match, RefusesByName) {
  const auto e = Small(kGdn), reference = Small();
  const auto expect = [&](const MatchRequest& request, const Texts& parts) {
    const std::string error = Refusal(*e, *reference, request);
    for (const std::string& part : parts)
      EXPECT_NE(error.find(part), error.npos) << part << " is not in: " << error;
  };
  expect({"parametres", "model.d_ff"}, {"\"parametres\"", "did you mean \"parameters\""});
  expect({"parameters", "model.dff"}, {"\"model.dff\"", "did you mean \"model.d_ff\""});
  expect({"parameters", "model.pattern"}, {"model.pattern is not an integer key"});
  expect({"parameters", "model.init_std"}, {"not an integer key"});
  expect({"parameters", "seed"}, {"seed does not change parameters"});
  expect({"state", "model.d_ff"}, {"model.d_ff does not change state"});
  expect({"parameters", "mixer.gated_delta.conv_width"},
         {"no value of mixer.gated_delta.conv_width", "the nearest is", "%", "--tolerance"});
  expect({"parameters", "model.layers", 1, 20000},
         {"model.layers takes no multiple of 20000, only 1 to 10000"});
}

TEST(Match, ThroughputIsThatOfTheMeasurement) {
  // A machine on which a token costs its FLOPs.
  int measurements = 0;
  const Measure measure = [&](const Experiment& e) {
    ++measurements;
    return 1e9 / QuantityOf(e, "flops");
  };
  const auto e = Small(kGdn), reference = Small(kWide);
  const Match match = SolveMatch(*e, *reference, {"throughput", "model.d_ff"}, measure);
  EXPECT_NEAR(match.matched, match.reference, 0.01 * match.reference);
  EXPECT_LE(measurements, 25);
  // No width makes a slow model fast.
  EXPECT_NE(ErrorOf(ExitCode::kUsage,
                    [&] {
                      SolveMatch(*Small(kWide), *Small({"model.layers=1"}),
                                 {"throughput", "model.d_ff"}, measure);
                    })
                .find("the nearest is 1 "),
            std::string::npos);
  EXPECT_GT(MeasureThroughput(*Small(), 3), 0);
}

}  // namespace
}  // namespace weft
