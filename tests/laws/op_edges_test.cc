// links: weft_kernels
// What the op laws cannot say: errors that depend on values, aliasing, extreme values, many steps.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/adamw/adamw.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/matmul/gemm.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TensorView View(std::vector<float>& v, std::initializer_list<int64_t> shape) {
  return {v.data(), DType::kF32, shape};
}
TensorView View(std::vector<int32_t>& v, std::initializer_list<int64_t> shape) {
  return {v.data(), DType::kI32, shape};
}

std::string ErrorOf(const auto& op) {
  try {
    Stream stream(std::in_place_type<CpuStream>, 2);
    Launch(stream, op);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

struct Loss {
  Loss(std::vector<float> x, std::vector<int32_t> l)
      : logits(std::move(x)),
        labels(std::move(l)),
        nll(labels.size()),
        lse(labels.size()),
        correct(labels.size()) {
    const int64_t N = static_cast<int64_t>(labels.size()),
                  V = static_cast<int64_t>(logits.size()) / N;
    fwd.logits = View(logits, {N, V});
    fwd.labels = View(labels, {N});
    fwd.nll = View(nll, {N});
    fwd.lse = View(lse, {N});
    fwd.correct = View(correct, {N});
    fwd.loss = View(loss, {1});
    fwd.mean_nll = View(mean_nll, {1});
  }
  std::vector<float> logits;
  std::vector<int32_t> labels;
  std::vector<float> nll, lse, correct, loss = {kNaN}, mean_nll = {kNaN}, dloss = {1};
  CrossEntropyFwd fwd;
  Stream stream{std::in_place_type<CpuStream>, 2};
};

TEST(CrossEntropy, NamesABadLabel) {
  for (const int32_t bad : {-1, 3, 1 << 30}) {
    Loss l({1, 2, 3, 4, 5, 6}, {0, bad});
    const std::string what = ErrorOf(l.fwd);
    EXPECT_NE(what.find("label " + std::to_string(bad) + " of row 1"), std::string::npos) << what;
    EXPECT_NE(what.find("[0, 3)"), std::string::npos) << what;
  }
}

TEST(CrossEntropy, AllMaskedIsZero) {
  Loss l({1, 2, 3, kNaN, 5, 6}, {kNoLoss, kNoLoss});
  Launch(l.stream, l.fwd);
  EXPECT_EQ(l.loss[0], 0);
  std::vector<float> d(6, kNaN);
  CrossEntropyBwd b{.fwd = l.fwd, .dloss = View(l.dloss, {1}), .dlogits = Grad(View(d, {2, 3}))};
  b.dlogits.accumulate = false;
  Launch(l.stream, b);
  EXPECT_EQ(d, std::vector<float>(6, 0));
}

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  Loss l({1e30f, -1e30f, 0, -kInf, 3, -kInf}, {0, 1});
  Launch(l.stream, l.fwd);
  EXPECT_EQ(l.nll[0], 0);
  EXPECT_EQ(l.nll[1], 0);
  EXPECT_EQ(l.correct, (std::vector<float>{1, 1}));
}

TEST(CrossEntropy, NaNReachesTheLoss) {
  for (const float bad : {kNaN, kInf}) {
    Loss l({1, bad, 3}, {2});
    Launch(l.stream, l.fwd);
    EXPECT_TRUE(std::isnan(l.loss[0]));
  }
}

TEST(CrossEntropy, OfEqualLogitsTheFirstIsTheAnswer) {
  Loss l({7, 7, 7, 7, 7, 7, 1, 9, 9}, {0, 2, 1});
  Launch(l.stream, l.fwd);
  EXPECT_EQ(l.correct, (std::vector<float>{1, 0, 1}));
}

TEST(CrossEntropy, BackwardInPlaceGivesTheSameBits) {
  std::vector<float> x(70 * 33);
  std::vector<int32_t> labels(70);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i)) * 4);
  for (size_t n = 0; n < labels.size(); ++n)
    labels[n] = n % 5 == 0 ? kNoLoss : static_cast<int32_t>(n % 33);
  Loss l(x, labels);
  l.fwd.z_loss = 0.01;
  Launch(l.stream, l.fwd);
  std::vector<float> d(x.size(), kNaN);
  CrossEntropyBwd b{.fwd = l.fwd, .dloss = View(l.dloss, {1}), .dlogits = Grad(View(d, {70, 33}))};
  b.dlogits.accumulate = false;
  Launch(l.stream, b);
  static_cast<TensorView&>(b.dlogits) = l.fwd.logits;
  Launch(l.stream, b);
  EXPECT_EQ(l.logits, d);
  b.dlogits.accumulate = true;
  EXPECT_NE(ErrorOf(b).find("cannot be added to"), std::string::npos);
}

TEST(Embedding, NamesABadToken) {
  std::vector<float> w(8), y(12);
  for (const int32_t bad : {-1, 4, 1 << 30}) {
    std::vector<int32_t> tokens = {0, 1, 2, 3, bad, 0};
    EmbeddingFwd f{.tokens = View(tokens, {2, 3}), .w = View(w, {4, 2}), .y = View(y, {2, 3, 2})};
    const std::string what = ErrorOf(f);
    EXPECT_NE(what.find("token " + std::to_string(bad) + " at [1, 1]"), std::string::npos) << what;
    EXPECT_NE(what.find("[0, 4)"), std::string::npos) << what;
  }
}

TEST(GlobalNorm, IsAccurateOverMillionsOfFloats) {
  const size_t n = 3000017;
  std::vector<float> x(n), norm(1), scale(1);
  double squares = 0;
  for (size_t i = 0; i < n; ++i) {
    x[i] = 1e-3f * static_cast<float>(1 + i % 1000);
    squares += static_cast<double>(x[i]) * x[i];
  }
  GlobalNormFwd f{.x = View(x, {static_cast<int64_t>(n)}),
                  .norm = View(norm, {1}),
                  .scale = View(scale, {1}),
                  .max_norm = 1};
  Stream stream(std::in_place_type<CpuStream>, 2);
  Launch(stream, f);
  EXPECT_NEAR(norm[0], std::sqrt(squares), 1e-7 * std::sqrt(squares));
  EXPECT_NEAR(scale[0], 1 / std::sqrt(squares), 2e-7 / std::sqrt(squares));
}

TEST(GlobalNorm, ExtremesAndNaN) {
  std::vector<float> norm(1), scale(1);
  Stream stream(std::in_place_type<CpuStream>, 1);
  const auto run = [&](std::vector<float> x, double max_norm) {
    GlobalNormFwd f{.x = View(x, {static_cast<int64_t>(x.size())}),
                    .norm = View(norm, {1}),
                    .scale = View(scale, {1}),
                    .max_norm = max_norm};
    Launch(stream, f);
  };
  run({3e30f, 4e30f}, 1);
  EXPECT_FLOAT_EQ(norm[0], 5e30f);
  run({3e-30f, 4e-30f}, 1);
  EXPECT_FLOAT_EQ(norm[0], 5e-30f);
  EXPECT_EQ(scale[0], 1);
  run({0, 0}, 1);
  EXPECT_EQ(norm[0], 0);
  EXPECT_EQ(scale[0], 1);
  run({1, kNaN}, 1);
  EXPECT_TRUE(std::isnan(norm[0]) && std::isnan(scale[0]));
  run({1, -kInf}, 1);
  EXPECT_EQ(norm[0], kInf);
  EXPECT_TRUE(std::isnan(scale[0]));
  run({3, 4}, 0);
  EXPECT_EQ(scale[0], 1);
}

// The largest |p| error after 200 steps in float against 200 steps of the paper's algorithm in
// double.
TEST(Adamw, TwoHundredStepsFollowThePaper) {
  constexpr int64_t n = 100, decayed = 60;
  std::vector<float> p(n), g(n), m(n), v(n);
  std::vector<double> rp(n), rm(n), rv(n);
  for (size_t i = 0; i < n; ++i) rp[i] = p[i] = static_cast<float>(i % 13) * 0.1f - 0.5f;
  Stream stream(std::in_place_type<CpuStream>, 2);
  AdamwStep s{.p = View(p, {n}), .g = View(g, {n}), .m = View(m, {n}), .v = View(v, {n})};
  s.decayed = decayed;
  constexpr double lr = 1e-2;
  std::vector<float> schedule(3);
  s.schedule = View(schedule, {3});
  for (int step = 1; step <= 200; ++step) {
    const double t = step;
    for (size_t i = 0; i < n; ++i) {
      g[i] = static_cast<float>(std::sin(0.1 * t * static_cast<double>(i + 1)));
      rm[i] = s.beta1 * rm[i] + (1 - s.beta1) * g[i];
      rv[i] = s.beta2 * rv[i] + (1 - s.beta2) * g[i] * g[i];
      const double m_hat = rm[i] / (1 - std::pow(s.beta1, t)),
                   v_hat = rv[i] / (1 - std::pow(s.beta2, t));
      const double decay = i < static_cast<size_t>(decayed) ? s.weight_decay : 0;
      rp[i] -= lr * (decay * rp[i] + m_hat / (std::sqrt(v_hat) + s.eps));
    }
    schedule = {static_cast<float>(lr), static_cast<float>(1 - std::pow(s.beta1, t)),
                static_cast<float>(1 - std::pow(s.beta2, t))};
    s.schedule = View(schedule, {3});
    Launch(stream, s);
  }
  for (size_t i = 0; i < n; ++i) EXPECT_NEAR(p[i], rp[i], 5e-6) << i;
}

TEST(Adamw, ZeroGradientMovesNothingButDecay) {
  std::vector<float> p = {1, 1}, g(2), m(2), v(2);
  Stream stream(std::in_place_type<CpuStream>, 1);
  AdamwStep s{.p = View(p, {2}), .g = View(g, {2}), .m = View(m, {2}), .v = View(v, {2})};
  std::vector<float> schedule = {0.5f, 0.1f, 0.05f};
  s.schedule = View(schedule, {3});
  s.decayed = 1;
  Launch(stream, s);
  EXPECT_FLOAT_EQ(p[0], 0.95f);
  EXPECT_EQ(p[1], 1);
  s.decayed = 3;
  EXPECT_NE(ErrorOf(s).find("decayed is 3"), std::string::npos);
}

TEST(Adamw, NaNScaleLeavesEverythingAsItIs) {
  std::vector<float> p = {1, 2}, g = {kNaN, 1}, m = {3, 4}, v = {5, 6}, scale = {kNaN};
  std::vector<float> schedule = {0.5f, 0.1f, 0.05f};
  Stream stream(std::in_place_type<CpuStream>, 1);
  AdamwStep s{.p = View(p, {2}), .g = View(g, {2}), .m = View(m, {2}), .v = View(v, {2})};
  s.schedule = View(schedule, {3}), s.scale = View(scale, {1});
  s.decayed = 2;
  Launch(stream, s);
  EXPECT_EQ(p, (std::vector<float>{1, 2}));
  EXPECT_EQ(m, (std::vector<float>{3, 4}));
  EXPECT_EQ(v, (std::vector<float>{5, 6}));
}

TEST(Swiglu, SaturatesWithoutNaN) {
  std::vector<float> x = {200, -200, 1e30f, 2, 3, 1}, y(3), dy(3, 1), d(6, kNaN);
  Stream stream(std::in_place_type<CpuStream>, 1);
  SwigluFwd f{.gate_up = View(x, {1, 6}), .y = View(y, {1, 3})};
  Launch(stream, f);
  EXPECT_EQ(y, (std::vector<float>{400, 0, 1e30f}));
  SwigluBwd b{.fwd = f, .dy = View(dy, {1, 3}), .dgate_up = Grad(View(d, {1, 6}))};
  b.dgate_up.accumulate = false;
  Launch(stream, b);
  EXPECT_EQ(d, (std::vector<float>{2, 0, 1, 200, 0, 1e30f}));
}

TEST(Gemm, EmptySumClearsNaN) {
  std::vector<float> c(6, kNaN), a(1), b(1);
  Gemm<float>(false, false, 2, 3, 0, 1, a.data(), 1, b.data(), 3, 0, c.data(), 3);
  EXPECT_EQ(c, std::vector<float>(6, 0));
}

TEST(Matmul, GradientOfTheInputMayBeLeftOut) {
  std::vector<float> x = {1, 2, 3, 4}, w = {1, 1}, y(2), dy = {1, 10}, dw(2, kNaN);
  Stream stream(std::in_place_type<CpuStream>, 2);
  MatmulFwd f{.x = View(x, {2, 2}), .w = View(w, {1, 2}), .y = View(y, {2, 1})};
  MatmulBwd b{.fwd = f, .dy = View(dy, {2, 1}), .dw = Grad(View(dw, {1, 2}))};
  b.dw.accumulate = false;
  Launch(stream, b);
  EXPECT_EQ(dw, (std::vector<float>{31, 42}));
}

TEST(Matmul, NoRowsGiveZeroWeightGradient) {
  std::vector<float> x(1), w = {1, 1}, y(1), dy(1), dx(1), dw(2, kNaN);
  Stream stream(std::in_place_type<CpuStream>, 2);
  MatmulFwd f{.x = View(x, {0, 2}), .w = View(w, {1, 2}), .y = View(y, {0, 1})};
  Launch(stream, f);
  MatmulBwd b{
      .fwd = f, .dy = View(dy, {0, 1}), .dx = Grad(View(dx, {0, 2})), .dw = Grad(View(dw, {1, 2}))};
  b.dw.accumulate = false;
  Launch(stream, b);
  EXPECT_EQ(dw, (std::vector<float>{0, 0}));
}

}  // namespace
}  // namespace weft
