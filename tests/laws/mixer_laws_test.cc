// links: weft_arch
// The laws of every mixer, at its default settings and at others: causality, batch independence,
// document boundaries, prefix consistency, step by step as in parallel, stated cost as counted, and
// gradients of the whole.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>

#include "arch/blocks/model.h"
#include "kernels/base/rng.h"
#include "tests/errors.h"

namespace weft {
namespace {

constexpr int64_t kD = 16, kB = 2;

struct MixerCase {
  std::string mixer, label;
  std::vector<std::string> settings;  // "heads=2"
  friend void PrintTo(const MixerCase& c, std::ostream* out) { *out << c.mixer << " " << c.label; }
};

std::vector<MixerCase> Cases() {
  std::vector<MixerCase> cases;
  for (const MixerSpec& spec : AllMixers()) cases.push_back({spec.name, "default", {}});
  const auto add = [&](const char* mixer, const char* label, std::vector<std::string> settings) {
    cases.push_back({mixer, label, std::move(settings)});
  };
  add("attention", "window3", {"window=3"});
  add("attention", "window2", {"window=2"});
  add("attention", "grouped_query", {"kv_heads=2"});
  add("attention", "multi_query_full_norm", {"kv_heads=1", "qk_norm=full"});
  add("attention", "no_norm_no_rope", {"qk_norm=none", "rope_theta=0"});
  add("attention", "one_wide_head", {"heads=1", "head_dim=24"});
  add("gated_delta", "no_gate", {"gate=false"});
  add("gated_delta", "positive_eigenvalues", {"negative_eigenvalues=false"});
  add("gated_delta", "no_conv", {"conv_width=1"});
  add("gated_delta", "one_head", {"heads=1", "key_dim=7", "value_dim=5", "init=fan_in"});
  return cases;
}

// A mixer with its parameters, in double so that differences mean something.
class Fixture {
 public:
  Fixture(const MixerCase& c, bool recording)
      : stream_(std::in_place_type<CpuStream>, 2),
        arena_(Arena::Mode::kGuarded, 256 << 20),
        tape_(recording),
        context_{stream_, arena_, DType::kF64} {
    auto config = FindMixer(c.mixer).config();
    ConfigVisitor v;
    config->Visit(v);
    Settings settings;
    for (const std::string& s : c.settings) settings.push_back(ParseOverride(s, "test"));
    Apply(settings, v.fields());
    mixer_ = config->Make(params_, "mixer.", kD, 0.3);
    params_.Allocate(stream_, arena_, DType::kF64, recording);
    params_.Initialise(stream_, 1);
  }

  Var Input(int64_t B, int64_t T) {
    const Var x = tape_.NewVar(context_, "x", {B, T, kD});
    // Token by token, so that a shorter input is a prefix of a longer one.
    for (int64_t b = 0; b < B; ++b) {
      Rng row(3, Purpose::kTest, static_cast<uint64_t>(b));
      for (int64_t i = 0; i < T * kD; ++i) x.x.Data<double>()[b * T * kD + i] = row.Normal();
    }
    return x;
  }
  Documents Starts(const std::vector<int32_t>& starts, int64_t B) {
    const int64_t T = static_cast<int64_t>(starts.size());
    const TensorView view = arena_.Alloc(DType::kI32, {B, T}, "doc_start");
    for (int64_t b = 0; b < B; ++b)
      std::copy(starts.begin(), starts.end(), view.Data<int32_t>() + b * T);
    return {view};
  }
  std::vector<double> Run(const Var& x, const Documents& documents = {},
                          MixerState* state = nullptr) {
    const Var y = mixer_->Forward(context_, tape_, x, documents, state);
    return {y.x.Data<double>(), y.x.Data<double>() + y.x.size()};
  }

  Stream stream_;
  Arena arena_;
  Tape tape_;
  Context context_;
  ParamRegistry params_;
  std::unique_ptr<Mixer> mixer_;
};

// Fourth-order central difference of f at 0. The step is short because the norms of queries and
// keys that happen to be small bend sharply.
double Derivative(const std::function<double(double)>& f) {
  constexpr double h = 3e-6;
  return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
}

class MixerLaw : public testing::TestWithParam<MixerCase> {};

constexpr int64_t kT = 67;  // more than one chunk of 64, and ragged

TEST_P(MixerLaw, LaterTokensChangeNoBitOfEarlierOnes) {
  Fixture f(GetParam(), false);
  const Var x = f.Input(kB, kT);
  const auto before = f.Run(x);
  for (const int64_t t : {1, 63, 64, 66}) {
    const Var changed = f.Input(kB, kT);
    for (int64_t b = 0; b < kB; ++b) {
      for (int64_t i = t * kD; i < kT * kD; ++i) changed.x.Data<double>()[b * kT * kD + i] += 7;
    }
    const auto after = f.Run(changed);
    for (int64_t b = 0; b < kB; ++b) {
      EXPECT_EQ(0, std::memcmp(&before[b * kT * kD], &after[b * kT * kD],
                               static_cast<size_t>(t * kD) * 8))
          << "t = " << t;
    }
  }
}

TEST_P(MixerLaw, RowsOfABatchDoNotSeeEachOther) {
  Fixture f(GetParam(), false);
  const Var x = f.Input(kB, kT);
  const auto before = f.Run(x);
  for (int64_t i = 0; i < kT * kD; ++i) x.x.Data<double>()[i] *= -2;
  const auto after = f.Run(x);
  EXPECT_EQ(0, std::memcmp(&before[kT * kD], &after[kT * kD], static_cast<size_t>(kT * kD) * 8));
}

TEST_P(MixerLaw, DocumentsDoNotSeeEachOther) {
  const std::vector<int64_t> lengths = {1, 5, 1, 40, 20};  // packed into one row
  Fixture f(GetParam(), false);
  std::vector<int32_t> starts;
  for (const int64_t n : lengths)
    starts.insert(starts.end(), static_cast<size_t>(n), static_cast<int32_t>(starts.size()));
  const Documents documents = f.Starts(starts, kB);
  const Var x = f.Input(kB, kT);
  const auto packed = f.Run(x, documents);
  int64_t begin = 0;
  for (const int64_t n : lengths) {
    const Var alone = f.tape_.NewVar(f.context_, "alone", {1, n, kD});
    std::copy_n(x.x.Data<double>() + begin * kD, n * kD, alone.x.Data<double>());
    const auto y = f.Run(alone);
    for (int64_t i = 0; i < n * kD; ++i)
      ASSERT_NEAR(packed[static_cast<size_t>(begin * kD + i)], y[static_cast<size_t>(i)], 1e-12)
          << "document at " << begin;
    // And not by a bit: the documents before it do not matter.
    const Var changed = f.Input(kB, kT);
    for (int64_t i = 0; i < begin * kD; ++i) changed.x.Data<double>()[i] += 3;
    const auto after = f.Run(changed, documents);
    EXPECT_EQ(
        0, std::memcmp(&packed[begin * kD], &after[begin * kD], static_cast<size_t>(n * kD) * 8));
    begin += n;
  }
}

TEST_P(MixerLaw, APrefixGivesTheSameBits) {
  Fixture f(GetParam(), false);
  const auto whole = f.Run(f.Input(kB, kT));
  for (const int64_t t : {1, 2, 63, 64, 65}) {
    const auto prefix = f.Run(f.Input(kB, t));
    for (int64_t b = 0; b < kB; ++b) {
      for (int64_t i = 0; i < t * kD; ++i) {
        ASSERT_NEAR(whole[static_cast<size_t>(b * kT * kD + i)],
                    prefix[static_cast<size_t>(b * t * kD + i)], 1e-13)
            << "T = " << t;
      }
    }
  }
}

TEST_P(MixerLaw, StepByStepIsTheParallelForm) {
  Fixture f(GetParam(), false);
  const Var x = f.Input(kB, kT);
  const auto parallel = f.Run(x);
  for (const std::vector<int64_t>& steps :
       {std::vector<int64_t>(kT, 1), std::vector<int64_t>{40, 1, 1, 25}}) {
    MixerState state = f.mixer_->NewState(f.context_, kB, kT);
    int64_t begin = 0;
    for (const int64_t n : steps) {
      const Var part = f.tape_.NewVar(f.context_, "part", {kB, n, kD});
      for (int64_t b = 0; b < kB; ++b) {
        std::copy_n(x.x.Data<double>() + (b * kT + begin) * kD, n * kD,
                    part.x.Data<double>() + b * n * kD);
      }
      const auto y = f.Run(part, {}, &state);
      for (int64_t b = 0; b < kB; ++b) {
        for (int64_t i = 0; i < n * kD; ++i) {
          ASSERT_NEAR(y[static_cast<size_t>(b * n * kD + i)],
                      parallel[static_cast<size_t>((b * kT + begin) * kD + i)], 1e-12)
              << "token " << begin;
        }
      }
      begin += n;
    }
  }
}

TEST_P(MixerLaw, StatedCostIsCountedCost) {
  Fixture f(GetParam(), false);
  for (const int64_t T : {1, 3, 64, 100}) {
    Stream stream(std::in_place_type<PlanStream>);
    Arena arena(Arena::Mode::kPlan, 0);
    Context c{stream, arena, DType::kF64};
    Tape tape(false);
    const Var x = tape.NewVar(c, "x", {1, T, kD});
    f.mixer_->Forward(c, tape, x, {}, nullptr);
    const MixerCost cost = f.mixer_->Cost(T);
    EXPECT_NEAR(std::get<PlanStream>(stream).flops, cost.flops_per_token * static_cast<double>(T),
                1e-6 * cost.flops_per_token)
        << "T = " << T;
    int64_t bytes = 0;
    for (const TensorView& tensor : f.mixer_->NewState(c, 1, T).tensors) bytes += 4 * tensor.size();
    EXPECT_EQ(bytes, cost.state_bytes) << "T = " << T;
  }
}

// d <y, dy> / d(direction) by the tape, against a central difference over all inputs and parameters
// at once.
TEST_P(MixerLaw, GradientsAreDerivatives) {
  const std::vector<int32_t> starts = {0, 0, 0, 3, 3, 5, 5, 5, 5};
  const int64_t T = static_cast<int64_t>(starts.size());
  const auto direction = [](int64_t i) { return std::cos(static_cast<double>(i) + 0.3); };
  const auto loss = [&](double step, double* slope) {
    Fixture f(GetParam(), slope != nullptr);
    for (int64_t i = 0; i < f.params_.values().size(); ++i)
      f.params_.values().Data<double>()[i] += step * direction(i);
    Var x = f.Input(kB, T);
    for (int64_t i = 0; i < x.x.size(); ++i) x.x.Data<double>()[i] += step * direction(3 * i);
    x.dx = f.arena_.Alloc(DType::kF64, {kB, T, kD}, "dx");
    f.tape_.Overwrite(x);
    const Var y = f.mixer_->Forward(f.context_, f.tape_, x, f.Starts(starts, kB), nullptr);
    double value = 0;
    const TensorView seed = f.arena_.Alloc(DType::kF64, {kB, T, kD}, "dy");
    for (int64_t i = 0; i < y.x.size(); ++i) {
      seed.Data<double>()[i] = std::sin(1.7 * static_cast<double>(i));
      value += y.x.Data<double>()[(i / kD) * y.x.stride(1) + i % kD] * seed.Data<double>()[i];
    }
    if (slope) {
      // The block may overwrite what a mixer gives.
      std::fill_n(y.x.Data<double>(), y.x.size(), std::numeric_limits<double>::quiet_NaN());
      f.tape_.Seed(y, seed);
      f.tape_.Backward(f.context_);
      *slope = 0;
      for (const Param& p : f.params_.params()) {
        double norm = 0;
        const int64_t offset = p.var.x.Data<double>() - f.params_.values().Data<double>();
        for (int64_t i = 0; i < p.size(); ++i) {
          *slope += p.var.dx.Data<double>()[i] * direction(offset + i);
          norm += std::abs(p.var.dx.Data<double>()[i]);
        }
        EXPECT_GT(norm, 0) << p.path << " gets no gradient";
      }
      for (int64_t i = 0; i < x.x.size(); ++i) *slope += x.dx.Data<double>()[i] * direction(3 * i);
    }
    return value;
  };
  double slope = 0;
  loss(0, &slope);
  const double difference = Derivative([&](double step) { return loss(step, nullptr); });
  EXPECT_NEAR(slope, difference, 1e-8 * (1 + std::abs(difference)));
}

INSTANTIATE_TEST_SUITE_P(All, MixerLaw, testing::ValuesIn(Cases()), [](const auto& info) {
  return info.param.mixer + "_" + info.param.label;
});

// The blocks: pre- and post-norm mixed, tied head, all gradients of the model at once.
TEST(ModelLaw, GradientsAreDerivatives) {
  ModelConfig config;
  config.d_model = 8, config.layers = 4, config.d_ff = 12, config.vocab = 11, config.init_std = 0.3;
  using enum ModelConfig::Recompute;
  for (const auto& [tied, recompute, positions] : {std::tuple{false, kNone, 0},
                                                   {true, kNone, 0},
                                                   {false, kHidden, 0},
                                                   {true, kBlock, 0},
                                                   {false, kNone, 6},
                                                   {true, kBlock, 5}}) {
    config.tied = tied, config.recompute = recompute, config.positions = positions;
    config.pattern = {"gated_delta", "attention-post", "attention", "identity"};
    MixerConfigs mixers(config.pattern);
    ConfigVisitor v;
    mixers.Visit(v);
    Settings settings = {ParseOverride("mixer.attention-post.norm=post", "test"),
                         ParseOverride("mixer.attention.heads=2", "test"),
                         ParseOverride("mixer.gated_delta.heads=2", "test")};
    Apply(mixers.Inherit(settings), v.fields());
    const auto direction = [](int64_t i) { return std::cos(static_cast<double>(i) + 0.3); };
    const auto loss = [&](double step, double* slope) {
      Stream stream(std::in_place_type<CpuStream>, 2);
      Arena arena(Arena::Mode::kGuarded, 64 << 20);
      Context c{stream, arena, DType::kF64};
      Model model(config, mixers);
      model.params().Allocate(stream, arena, DType::kF64, slope != nullptr);
      model.params().Initialise(stream, 5);
      for (Param& p : model.params().params()) {
        for (int64_t i = 0; i < p.size(); ++i) p.var.x.Data<double>()[i] += step * direction(i);
      }
      const TensorView tokens = arena.Alloc(DType::kI32, {2, 5}, "tokens"),
                       labels = arena.Alloc(DType::kI32, {2, 5}, "labels"),
                       position = arena.Alloc(DType::kI32, {2, 5}, "position"),
                       denominator = arena.Alloc(DType::kF64, {1}, "denominator");
      for (int i = 0; i < 10; ++i) {
        tokens.Data<int32_t>()[i] = 3 * i % 11;
        labels.Data<int32_t>()[i] = i % 4 == 2 ? -100 : 5 * i % 11;
        position.Data<int32_t>()[i] = i % 5;
      }
      *denominator.Data<double>() = 8;
      Tape tape(slope != nullptr);
      Model::Loss loss = Model::NewLoss(c, labels, denominator);
      loss.z_loss = 0.1;
      model.LossOf(c, tape, tokens, {{}, position}, loss);
      if (slope) {
        tape.Backward(c);
        *slope = 0;
        for (const Param& p : model.params().params()) {
          for (int64_t i = 0; i < p.size(); ++i)
            *slope += p.var.dx.Data<double>()[i] * direction(i);
        }
      }
      return *loss.total.Data<double>();
    };
    double slope = 0;
    loss(0, &slope);
    const double difference = Derivative([&](double step) { return loss(step, nullptr); });
    EXPECT_NEAR(slope, difference, 1e-8 * (1 + std::abs(difference)));
  }
}

// Without mixing over time, what a model says depends on the token and on its place in its
// document.
TEST(ModelLaw, PositionsCountFromTheStartOfADocument) {
  ModelConfig config;
  config.d_model = 8, config.layers = 1, config.vocab = 3, config.init_std = 0.3;
  config.pattern = {"identity"};
  const MixerConfigs mixers(config.pattern);
  const auto logits = [&](int64_t positions, bool given) {
    config.positions = positions;
    Stream stream(std::in_place_type<CpuStream>, 1);
    Arena arena(Arena::Mode::kGuarded, 1 << 20);
    Context c{stream, arena, DType::kF64};
    Model model(config, mixers);
    model.params().Allocate(stream, arena, DType::kF64, false);
    model.params().Initialise(stream, 5);
    const TensorView tokens = arena.Alloc(DType::kI32, {1, 5}, "tokens"),
                     position = arena.Alloc(DType::kI32, {1, 5}, "position");
    const int32_t kPosition[] = {0, 1, 2, 0, 1};
    std::fill_n(tokens.Data<int32_t>(), 5, 1);
    std::copy_n(kPosition, 5, position.Data<int32_t>());
    Tape tape(false);
    const Var y = model.Logits(c, tape, tokens, given ? Documents{{}, position} : Documents{});
    std::vector<double> first;
    for (int t = 0; t < 5; ++t) first.push_back(y.x.Data<double>()[t * y.x.stride(1)]);
    return first;
  };
  const std::vector<double> with = logits(5, true), without = logits(0, true);
  EXPECT_EQ(with[0], with[3]);
  EXPECT_EQ(with[1], with[4]);
  EXPECT_NE(with[0], with[1]);
  EXPECT_NE(with[1], with[2]);
  EXPECT_EQ(without, std::vector<double>(5, without[0]));
  EXPECT_EQ(without, logits(0, false));
  EXPECT_HAS(UsageError([&] { logits(4, true); }), "model.positions = 4 is less than the 5");
  EXPECT_HAS(CheckError([&] { logits(5, false); }), "learned positions");
}

// The head in one piece and in several, of which one has few labels and one is short.
TEST(ModelLaw, PiecesOfTheHeadAreOneLoss) {
  constexpr int64_t B = 2, T = 150, V = 11;
  ModelConfig config;
  config.d_model = 8, config.layers = 1, config.vocab = V, config.init_std = 0.3;
  config.pattern = {"identity"};
  const MixerConfigs mixers(config.pattern);
  Stream stream(std::in_place_type<CpuStream>, 2);
  Arena arena(Arena::Mode::kGuarded, 64 << 20);
  Context c{stream, arena, DType::kF64};
  Model model(config, mixers);
  model.params().Allocate(stream, arena, DType::kF64, true);
  model.params().Initialise(stream, 5);
  const TensorView tokens = arena.Alloc(DType::kI32, {B, T}, "tokens"),
                   labels = arena.Alloc(DType::kI32, {B, T}, "labels"),
                   denominator = arena.Alloc(DType::kF64, {1}, "denominator");
  *denominator.Data<double>() = 0;
  for (int i = 0; i < B * T; ++i) {
    tokens.Data<int32_t>()[i] = 3 * i % V;
    labels.Data<int32_t>()[i] = i < 128 && i % 9 ? -100 : 5 * i % V;
    *denominator.Data<double>() += labels.Data<int32_t>()[i] >= 0;
  }
  const auto numbers = [&](int64_t logits_at_once, bool recording) {
    Zero(stream, model.params().gradients());
    Tape tape(recording);
    Model::Loss loss = Model::NewLoss(c, labels, denominator);
    loss.z_loss = 0.1;
    loss.logits_at_once = logits_at_once;
    model.LossOf(c, tape, tokens, {}, loss);
    if (recording) tape.Backward(c);
    std::vector<double> all;
    for (const TensorView& x :
         {loss.total, loss.mean_nll, loss.nll, loss.correct, model.params().gradients()}) {
      all.insert(all.end(), x.Data<double>(), x.Data<double>() + x.size());
    }
    return all;
  };
  for (const bool recording : {false, true}) {
    const auto whole = numbers(1 << 20, recording);
    double nll = 0;
    for (int i = 0; i < B * T; ++i) nll += whole[static_cast<size_t>(2 + i)];
    EXPECT_NEAR(whole[1], nll / *denominator.Data<double>(), 1e-13);
    for (const int64_t logits_at_once : {int64_t{1}, 128 * V, 200 * V}) {
      const auto pieces = numbers(logits_at_once, recording);
      ASSERT_EQ(pieces.size(), whole.size());
      for (size_t i = 0; i < whole.size(); ++i)
        ASSERT_NEAR(pieces[i], whole[i], 1e-13) << i << " with " << logits_at_once;
    }
  }
  Tape tape(false);
  EXPECT_HAS(ErrorOf(ExitCode::kFailure,
                     [&] { model.LossOf(c, tape, tokens, {}, Model::NewLoss(c, labels, {})); }),
             "denominator");
}

TEST(TapeLaw, AStepUsesNoGradientThatItDoesNotName) {
  Stream stream(std::in_place_type<CpuStream>, 1);
  Arena arena(Arena::Mode::kGuarded, 1 << 20);
  Context c{stream, arena, DType::kF64};
  Tape tape(true);
  const Var x = tape.NewVar(c, "x", {4});
  tape.Record({}, [&](Context&, Tape& t) { t.Written(x.dx); });
  EXPECT_HAS(ErrorOf(ExitCode::kFailure, [&] { tape.Backward(c); }), "the gradient of x");
}

}  // namespace
}  // namespace weft
