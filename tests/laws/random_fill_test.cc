// links: weft_kernels
// What the op laws cannot say of random_fill: its distributions, what an element depends on, and
// that both backends agree in every element.

#include "kernels/random_fill/random_fill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace weft {
namespace {

const RandomValues kNormal{.distribution = Distribution::kNormal, .sigma = 0.02, .seed = 3};
const RandomValues kUniform{
    .distribution = Distribution::kUniform, .low = -0.1, .high = 0.3, .seed = 3};
const RandomValues kLogarithm{
    .distribution = Distribution::kLogarithm, .low = 1e-6, .high = 16, .seed = 3};
const RandomValues kInverseSoftplus{
    .distribution = Distribution::kInverseSoftplus, .low = 1e-3, .high = 0.1, .seed = 3};

std::vector<float> OnCpu(const RandomValues& values, int64_t n) {
  std::vector<float> y(static_cast<size_t>(n));
  Stream stream(std::in_place_type<CpuStream>, 2);
  Launch(stream, RandomFill{.y = {y.data(), DType::kF32, {n}}, .values = values});
  return y;
}

double Mean(const std::vector<float>& y, double power) {
  double sum = 0;
  for (const float v : y) sum += std::pow(static_cast<double>(v), power);
  return sum / static_cast<double>(y.size());
}

TEST(RandomFill, AnElementDependsOnSeedStreamAndIndexAlone) {
  const auto some = OnCpu(kNormal, 10), more = OnCpu(kNormal, 9999);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), more.begin()));
  RandomValues other = kNormal;
  other.stream = uint64_t{1} << 40;
  EXPECT_NE(some, OnCpu(other, 10));
  other = kNormal;
  other.seed = uint64_t{1} << 40;
  EXPECT_NE(some, OnCpu(other, 10));
}

TEST(RandomFill, NormalIsCutAtThreeSigma) {
  const auto y = OnCpu(kNormal, 400000);
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  EXPECT_GE(*low, -0.06f);
  EXPECT_LE(*high, 0.06f);
  EXPECT_LT(*low, -0.0595f);
  EXPECT_GT(*high, 0.0595f);
  // Var = 1 - 6 phi(3) / (2 Phi(3) - 1)
  EXPECT_NEAR(Mean(y, 1), 0, 4 * 0.02 / std::sqrt(400000.));
  EXPECT_NEAR(std::sqrt(Mean(y, 2)), 0.02 * std::sqrt(0.97334), 1e-4);
}

TEST(RandomFill, UniformFillsItsRange) {
  const auto y = OnCpu(kUniform, 400000);
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  EXPECT_GE(*low, -0.1f);
  EXPECT_LE(*high, 0.3f);
  EXPECT_NEAR(Mean(y, 1), 0.1, 1e-3);
  EXPECT_NEAR(std::sqrt(Mean(y, 2) - 0.01), 0.4 / std::sqrt(12.), 1e-3);
}

TEST(RandomFill, LogarithmIsThatOfAUniformNumber) {
  auto y = OnCpu(kLogarithm, 400000);
  for (float& v : y) v = std::exp(v);
  EXPECT_NEAR(Mean(y, 1), 8, 4 * 16 / std::sqrt(12 * 400000.));
  EXPECT_NEAR(Mean(y, 2), 256 / 3., 0.5);
}

TEST(RandomFill, InverseSoftplusIsThatOfALogUniformNumber) {
  auto y = OnCpu(kInverseSoftplus, 400000);
  for (float& v : y) v = std::log(std::log1p(std::exp(v)) / 1e-3f) / std::log(100.f);
  EXPECT_NEAR(Mean(y, 1), 1 / 2., 4 / std::sqrt(12 * 400000.));
  EXPECT_NEAR(Mean(y, 2), 1 / 3., 2e-3);
}

#ifdef WEFT_CUDA
TEST(GpuRandomFill, EveryElementIsThatOfTheCpu) {
  constexpr int64_t n = 1000003;
  for (const RandomValues& values :
       {kNormal, kUniform, kLogarithm, kInverseSoftplus, RandomValues{.value = 0.3}}) {
    const auto expected = OnCpu(values, n);
    std::vector<float> found(n);
    Stream stream(std::in_place_type<CudaStream>, 0);
    auto& cuda = std::get<CudaStream>(stream);
    void* y = cuda.Scratch(n * 4);
    Launch(stream, RandomFill{.y = {y, DType::kF32, {n}}, .values = values});
    cuda.Copy(found.data(), y, n * 4);
    cuda.Synchronize();
    for (size_t i = 0; i < expected.size(); ++i) {
      const float size = std::abs(expected[i]), ulp = std::nextafter(size, 100.f) - size;
      ASSERT_LE(std::abs(found[i] - expected[i]), ulp) << i;
    }
  }
}
#endif

}  // namespace
}  // namespace weft
