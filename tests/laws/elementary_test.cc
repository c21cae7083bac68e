// links: weft_kernels

#include "kernels/elementary/elementary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace weft {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// |got - exact| in units of the distance between the floats around `exact`.
double UlpError(float got, double exact) {
  if (std::isinf(got)) return exact >= std::numeric_limits<float>::max() ? 0 : kInf;
  const double magnitude =
      std::max(std::abs(exact), static_cast<double>(std::numeric_limits<float>::min()));
  return std::abs(got - exact) / std::exp2(std::floor(std::log2(magnitude)) - 23);
}

// The largest error over every `every`-th float of [low, high]; low and high have the same sign.
template <class F, class G>
double WorstUlp(F f, G exact, float low, float high, uint32_t every) {
  uint32_t first = std::bit_cast<uint32_t>(low), last = std::bit_cast<uint32_t>(high);
  if (first > last) std::swap(first, last);
  double worst = 0;
  for (uint64_t bits = first; bits <= last; bits += every) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const double error = UlpError(f(x), exact(static_cast<double>(x)));
    worst = error <= worst ? worst : error;  // a NaN is kept
  }
  return worst;
}

TEST(Elementary, ExpIsWithinTwoUlp) {
  const auto f = [](float x) { return Exp(x); };
  const auto exact = [](double x) { return std::exp(x); };
  EXPECT_LE(WorstUlp(f, exact, -110.f, -0.f, 509), 2);
  EXPECT_LE(WorstUlp(f, exact, 0.f, 100.f, 509), 2);
  EXPECT_EQ(Exp(0.f), 1.f);
}

TEST(Elementary, ExpAtTheEnds) {
  EXPECT_EQ(Exp(-kInf), 0.f);
  EXPECT_EQ(Exp(-1e30f), 0.f);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(1e30f), kInf);
  EXPECT_TRUE(std::isnan(Exp(kNaN)));
  EXPECT_EQ(Exp(-103.f), std::exp(-103.f));  // subnormal
  EXPECT_TRUE(std::isfinite(Exp(88.72f)));
}

TEST(Elementary, Log1pOfUnitIsWithinTwoUlp) {
  const auto f = [](float x) { return Log1pOfUnit(x); };
  const auto exact = [](double x) { return std::log1p(x); };
  EXPECT_LE(WorstUlp(f, exact, 0.f, 1.f, 509), 2);
  EXPECT_TRUE(std::isnan(Log1pOfUnit(kNaN)));
}

TEST(Elementary, SigmoidIsWithinThreeUlp) {
  const auto f = [](float x) { return Sigmoid(x); };
  const auto exact = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LE(WorstUlp(f, exact, -87.f, -0.f, 509), 3);
  EXPECT_LE(WorstUlp(f, exact, 0.f, 200.f, 509), 3);
  EXPECT_EQ(Sigmoid(-kInf), 0.f);
  EXPECT_EQ(Sigmoid(kInf), 1.f);
  EXPECT_TRUE(std::isnan(Sigmoid(kNaN)));
}

TEST(Elementary, SoftplusIsWithinThreeUlp) {
  const auto f = [](float x) { return Softplus(x); };
  const auto exact = [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); };
  EXPECT_LE(WorstUlp(f, exact, -100.f, -0.f, 509), 3);
  EXPECT_LE(WorstUlp(f, exact, 0.f, 1e6f, 509), 3);
  EXPECT_EQ(Softplus(kInf), kInf);
  EXPECT_EQ(Softplus(-kInf), 0.f);
  EXPECT_TRUE(std::isnan(Softplus(kNaN)));
}

TEST(Elementary, SiluAndItsDerivative) {
  for (double x = -20; x <= 20; x += 0.37) {
    const double s = 1 / (1 + std::exp(-x));
    EXPECT_NEAR(Silu(x), x * s, 1e-15 * std::abs(x * s));
    EXPECT_NEAR(SiluGrad(x), s * (1 + x * (1 - s)), 1e-14);
    EXPECT_NEAR(Silu(static_cast<float>(x)), x * s, 1e-6 * std::abs(x * s));
    EXPECT_NEAR(SiluGrad(static_cast<float>(x)), s * (1 + x * (1 - s)),
                1.5e-6);  // x (1 - s) loses x eps
  }
}

}  // namespace
}  // namespace weft
