// links: weft_kernels
// What the op laws cannot say: errors that depend on values, aliasing, extreme values, many steps.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/adamw/adamw.h"
#include "kernels/base/rng.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/matmul/gemm.h"
#include "kernels/matmul/gemm_amx.h"
#include "kernels/matmul/matmul.h"
#include "kernels/swiglu/swiglu.h"
#include "tests/errors.h"

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
  return CheckError([&] {
    Stream stream(std::in_place_type<CpuStream>, 2);
    Launch(stream, op);
  });
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
    fwd.denominator = View(denominator, {1});
  }
  std::vector<float> logits;
  std::vector<int32_t> labels;
  std::vector<float> nll, lse, correct, loss = {kNaN}, mean_nll = {kNaN}, dloss = {1},
                                        denominator = {1};
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

// A product on matrix tiles beside the same one by Gemm.
struct TileProduct {
  int64_t m, n, k;
  bool trans_a, trans_b;
  std::vector<float> a, b;

  TileProduct(int64_t rows, int64_t columns, int64_t depth, int transposed,
              const std::function<float(Rng&)>& draw)
      : m(rows), n(columns), k(depth), trans_a(transposed & 1), trans_b(transposed & 2) {
    Rng rng(1, Purpose::kTest, 0);
    for (int64_t i = 0; i < m * k; ++i) a.push_back(draw(rng));
    for (int64_t i = 0; i < n * k; ++i) b.push_back(draw(rng));
  }
  float& A(int64_t i, int64_t d) { return a[trans_a ? d * m + i : i * k + d]; }
  float& B(int64_t j, int64_t d) { return b[trans_b ? j * k + d : d * n + j]; }
  std::vector<float> OnTiles(int threads = 2) const {
    std::vector<float> c(m * n, kNaN);
    CpuStream stream(threads);
    AmxGemm(stream, trans_a, trans_b, m, n, k, a.data(), trans_a ? m : k, b.data(), trans_b ? k : n,
            false, c.data(), n);
    return c;
  }
  std::vector<float> ByGemm() const {
    std::vector<float> c(m * n, kNaN);
    Gemm<float>(trans_a, trans_b, m, n, k, 1, a.data(), trans_a ? m : k, b.data(), trans_b ? k : n,
                0, c.data(), n);
    return c;
  }
  // Root mean square and maximum, over C, of the error in units of 2^-24 sum |a b|.
  std::pair<double, double> Error(const std::vector<float>& c) {
    double square = 0, max = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double exact = 0, scale = 0;
        for (int64_t d = 0; d < k; ++d) {
          const double product = static_cast<double>(A(i, d)) * B(j, d);
          exact += product, scale += std::abs(product);
        }
        const double error = std::abs(c[i * n + j] - exact) / scale * 0x1p24;
        square += error * error, max = std::max(max, error);
      }
    }
    return {std::sqrt(square / static_cast<double>(m * n)), max};
  }
};

TEST(AmxGemm, ErrsLikeAnSgemm) {
  if (!HasAmx()) GTEST_SKIP() << "no matrix tiles on this machine";
  const std::function<float(Rng&)> kinds[] = {
      [](Rng& rng) { return static_cast<float>(rng.Normal()); },
      [](Rng& rng) { return static_cast<float>(1 + rng.Uniform()); },      // nothing cancels
      [](Rng&) { return std::nextafter(1.f + 0x1p-8f + 0x1p-16f, 2.f); },  // parts are largest
      [](Rng& rng) { return static_cast<float>(rng.Normal() * std::exp2(8 * rng.Normal())); }};
  constexpr int64_t kShapes[][3] = {
      {1, 1, 1}, {33, 17, 65}, {70, 50, 300}, {300, 530, 270}, {31, 40, 4127}};
  for (const auto& [m, n, k] : kShapes) {
    for (int transposed = 0; transposed < 4; ++transposed) {
      for (size_t kind = 0; kind < std::size(kinds); ++kind) {
        TileProduct p(m, n, k, transposed, kinds[kind]);
        const auto [mean, max] = p.Error(p.OnTiles());
        const auto [mean_sgemm, max_sgemm] = p.Error(p.ByGemm());
        const std::string what =
            Cat(m, " x ", n, " x ", k, ", transposed ", transposed, ", kind ", kind);
        EXPECT_LE(mean, 1.5 * mean_sgemm + 0.5) << what;
        EXPECT_LE(max, 2 * max_sgemm + 2) << what;
      }
    }
  }
}

TEST(AmxGemm, BitsDoNotDependOnThreads) {
  if (!HasAmx()) GTEST_SKIP() << "no matrix tiles on this machine";
  for (const int64_t k : {600, 4127}) {
    const TileProduct p(40, 50, k, 1, [](Rng& rng) { return static_cast<float>(rng.Normal()); });
    const std::vector<float> one = p.OnTiles(1), three = p.OnTiles(3);
    EXPECT_EQ(std::memcmp(one.data(), three.data(), one.size() * sizeof(float)), 0) << k;
  }
}

// Where numbers cannot be split, results are those of Gemm; where they can, all that is lost are
// subnormal numbers.
TEST(AmxGemm, ExtremeNumbers) {
  if (!HasAmx()) GTEST_SKIP() << "no matrix tiles on this machine";
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const int64_t k : {300, 4127}) {
    for (const float extreme : {kInf, -kInf, kNaN, kMax, -kMax, 0x1p-140f, 1e-37f}) {
      for (int side = 0; side < 2; ++side) {
        TileProduct p(40, 300, k, 1, [](Rng& rng) { return static_cast<float>(rng.Uniform()); });
        (side ? p.B(270, k - 1) : p.A(33, k - 1)) = extreme;
        const std::vector<float> on_tiles = p.OnTiles(), by_gemm = p.ByGemm();
        for (int64_t i = 0; i < p.m * p.n; ++i) {
          const float x = on_tiles[i], y = by_gemm[i];
          EXPECT_TRUE(std::isnan(y) ? std::isnan(x) : x == y || std::abs(x - y) < 1e-5f * y)
              << extreme << ": " << x << ", expected " << y;
        }
      }
    }
  }
  TileProduct tiny(40, 40, 40, 0, [](Rng&) { return 0x1p-130f; });
  for (const float x : tiny.OnTiles()) EXPECT_EQ(x, 0);
  // Gradients may be small as long as what they are multiplied with is not.
  TileProduct small(40, 40, 40, 0,
                    [](Rng& rng) { return static_cast<float>(rng.Normal()) * 1e-30f; });
  for (float& b : small.b) b *= 1e30f;
  EXPECT_LE(small.Error(small.OnTiles()).second, 8);
}

TEST(AmxGemm, AddsToWhatIsThere) {
  if (!HasAmx()) GTEST_SKIP() << "no matrix tiles on this machine";
  for (const int64_t k : {64, 1030, 4127}) {
    const int64_t m = 45, n = 35, ldc = 37;
    const TileProduct p(m, n, k, 0, [](Rng& rng) { return static_cast<float>(rng.Normal()); });
    const std::vector<float> product = p.OnTiles();
    std::vector<float> c(m * ldc, 2);
    CpuStream stream(2);
    AmxGemm(stream, false, false, m, n, k, p.a.data(), k, p.b.data(), n, true, c.data(), ldc);
    for (int64_t i = 0; i < m * ldc; ++i) {
      const float expected = i % ldc < n ? 2 + product[i / ldc * n + i % ldc] : 2;
      EXPECT_EQ(c[i], expected) << k << ", " << i;
    }
  }
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
