// links: weft_fit
// Scaling laws: published values, known constants found again, the best of thousands of starts,
// intervals that cover, and points that cannot determine a law.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "analysis/fit/answers.h"
#include "analysis/fit/bootstrap.h"
#include "analysis/fit/chinchilla.h"
#include "analysis/fit/frontier.h"
#include "analysis/fit/parity.h"
#include "analysis/fit/repetition.h"
#include "kernels/base/rng.h"
#include "tests/errors.h"

namespace weft {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Hoffmann et al. 2022; Besiroglu et al. 2024, full precision; and the laws that are shipped.
const Law kHoffmann{1.69, 406.4, 0.34, 410.7, 0.28};
const Law kBesiroglu{std::exp(0.59711196), std::exp(6.17795598), 0.34781303, std::exp(7.64273236),
                     0.36585412};
Law Shipped(const std::string& architecture) {
  std::ifstream file(WEFT_SOURCE_DIR "/analysis/fit/olmo_hybrid.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  for (const auto& fit : json.at("fits")) {
    if (fit.at("architecture") == architecture)
      return {fit.at("E"), fit.at("A"), fit.at("alpha"), fit.at("B"), fit.at("beta")};
  }
  throw std::runtime_error("no law of " + architecture);
}
const Law kTransformer = Shipped("transformer");
const Law kHybrid = Shipped("hybrid");
const Law kGatedDelta = Shipped("gated_delta");

Point PointOf(double n, double d, double loss, const std::string& architecture = "") {
  Point point;
  point.architecture = architecture;
  point.n = n, point.d = d, point.loss = loss, point.flops = 6 * n * d;
  point.origin = Cat("n=", n, " d=", d);
  return point;
}

// Losses of `law` over sizes x tokens, times exp(noise * standard normal).
std::vector<Point> Grid(const Law& law, const std::vector<double>& sizes,
                        const std::vector<double>& tokens_per_parameter, double noise,
                        uint64_t seed, const std::string& architecture = "") {
  std::vector<Point> points;
  Rng rng(seed, Purpose::kTest, 0);
  for (const double n : sizes) {
    for (const double ratio : tokens_per_parameter) {
      const double loss = law.Loss(n, ratio * n) * std::exp(noise * rng.Normal());
      points.push_back(PointOf(n, ratio * n, loss, architecture));
    }
  }
  return points;
}

// The published ladder: seven sizes, five multiples of the tokens.
const std::vector<double> kLadder = {57e6, 102e6, 190e6, 371e6, 548e6, 758e6, 1279e6};
const std::vector<double> kMultiples = {10, 20, 40, 80, 160};

// Eight budgets of sixteen sizes, as isoFLOP studies have them.
std::vector<Point> IsoFlops(const Law& law) {
  std::vector<Point> points;
  for (int b = 0; b < 8; ++b) {
    const double flops = 6e18 * std::pow(3, b);
    for (int i = 0; i < 16; ++i) {
      const double n = law.Optimal(flops).n * std::exp(0.2 * (i - 7.5));
      points.push_back(PointOf(n, flops / (6 * n), law.Loss(n, flops / (6 * n))));
    }
  }
  return points;
}

// 240 points over the ranges of the Chinchilla data, with errors that have heavy tails.
std::vector<Point> ChinchillaLike(uint64_t seed) {
  std::vector<Point> points;
  Rng rng(seed, Purpose::kTest, 1);
  while (points.size() < 240) {
    const double n = std::exp(rng.Uniform(std::log(5.7e7), std::log(1.6e10)));
    const double flops = std::exp(rng.Uniform(std::log(1.4e18), std::log(1.3e22)));
    const double d = flops / (6 * n);
    if (d / n < 1 || d / n > 300) continue;
    const double error = 0.003 * rng.Normal() / std::max(0.2, rng.Uniform());
    points.push_back(PointOf(n, d, kBesiroglu.Loss(n, d) * std::exp(error)));
  }
  return points;
}

void ExpectNear(const Law& found, const Law& expected, double tolerance) {
  EXPECT_NEAR(found.E, expected.E, tolerance * expected.E);
  EXPECT_NEAR(found.A, expected.A, tolerance * expected.A);
  EXPECT_NEAR(found.alpha, expected.alpha, tolerance * expected.alpha);
  EXPECT_NEAR(found.B, expected.B, tolerance * expected.B);
  EXPECT_NEAR(found.beta, expected.beta, tolerance * expected.beta);
}

// Published values

TEST(FitGolden, DataConstrainedLaw) {
  // Muennighoff et al. 2023, the repository's README.
  const Law law{std::exp(0.6254804), std::exp(6.255414), 0.3526596, std::exp(7.3049974), 0.3526596};
  const Repetition repetition{15.387756, 5.309743};
  EXPECT_NEAR(LossWithRepetition(law, repetition, 6.34e9, 242e9, 25e9), 2.2256440889984477, 1e-12);
  EXPECT_NEAR(LossWithRepetition(law, repetition, 8.67e9, 178e9, 25e9), 2.2269634075087867, 1e-12);
  // Without repetition it is the plain law.
  EXPECT_EQ(LossWithRepetition(law, repetition, 1e8, 1e9, 1e10), law.Loss(1e8, 1e9));
}

// Rows of an answer for n x architecture or flops x architecture.
const Table& Only(const std::vector<Table>& tables) {
  EXPECT_EQ(tables.size(), 1u);
  return tables.front();
}
const Ensemble kPublished{
    {"transformer", "hybrid", "gated_delta"}, {kTransformer, kHybrid, kGatedDelta}, {}};

TEST(FitGolden, TokenSavingsOfTheHybridPaper) {
  // Table 20: N in billions; D_T, D_H, D_G in billions of tokens, savings of H and G.
  const double published[][6] = {
      {1, 776.5, 587.1, 949.6, 1.32, 0.82}, {3, 90.0, 57.2, 79.5, 1.57, 1.13},
      {7, 35.1, 20.9, 27.0, 1.68, 1.30},    {13, 21.5, 12.3, 15.2, 1.75, 1.41},
      {30, 13.1, 7.2, 8.4, 1.82, 1.56},     {70, 9.0, 4.8, 5.3, 1.89, 1.70}};
  Asked asked;
  asked.reference = "transformer";
  asked.loss = {2.474};
  for (const auto& row : published) asked.n.push_back(row[0] * 1e9);
  const std::vector<Table> tables = Answer(kPublished, asked);
  const Table& table = Only(tables);
  ASSERT_EQ(table.columns, (std::vector<std::string>{"loss", "n", "architecture", "d", "savings"}));
  ASSERT_EQ(table.rows.size(), 18u);
  for (size_t i = 0; i < 6; ++i) {
    for (size_t k = 0; k < 3; ++k) {
      const auto& row = table.rows[3 * i + k];
      // One printed digit may be off.
      EXPECT_NEAR(row[3].value / 1e9, published[i][1 + k],
                  std::max(0.05, 0.01 * published[i][1 + k]));
      if (k > 0) {
        EXPECT_NEAR(row[4].value, published[i][3 + k], 0.01 * published[i][3 + k]);
      }
    }
  }
}

TEST(FitGolden, ComputeOptimalSplitOfTheHybridPaper) {
  // Table 19: C; N, D in billions and loss of T, H, G.
  const double published[][10] = {{1e18, .2, .8, 3.57, .2, .7, 3.46, .2, 1.0, 3.53},
                                  {1e19, .6, 2.9, 3.12, .7, 2.3, 3.04, .6, 2.9, 3.10},
                                  {1e20, 1.6, 10.2, 2.78, 2.2, 7.4, 2.71, 2.0, 8.2, 2.76},
                                  {1e21, 4.7, 35.5, 2.51, 7.0, 24.0, 2.46, 7.3, 22.9, 2.49},
                                  {1e22, 13.5, 123.6, 2.31, 21.6, 77.2, 2.27, 26.0, 64.1, 2.27},
                                  {1e23, 38.7, 430.2, 2.15, 67.0, 248.7, 2.12, 93.0, 179.2, 2.10}};
  Asked asked;
  asked.reference = "transformer";
  for (const auto& row : published) asked.flops.push_back(row[0]);
  const std::vector<Table> tables = Answer(kPublished, asked);
  const Table& table = Only(tables);
  ASSERT_EQ(table.rows.size(), 18u);
  for (size_t i = 0; i < 6; ++i) {
    for (size_t k = 0; k < 3; ++k) {
      const auto& row = table.rows[3 * i + k];
      const double* p = published[i] + 1 + 3 * k;
      EXPECT_NEAR(row[2].value / 1e9, p[0], std::max(0.0501, 0.01 * p[0]));
      EXPECT_NEAR(row[3].value / 1e9, p[1], std::max(0.0501, 0.01 * p[1]));
      EXPECT_NEAR(row[4].value, p[2], 0.00501);
    }
  }
}

TEST(FitGolden, OptimalSizeExponents) {
  EXPECT_NEAR(kTransformer.SizeExponent(), 0.46, 0.005);
  EXPECT_NEAR(kHybrid.SizeExponent(), 0.49, 0.005);
  EXPECT_NEAR(kGatedDelta.SizeExponent(), 0.55, 0.005);
  EXPECT_NEAR(kBesiroglu.SizeExponent(), 0.513, 0.0005);
}

// The law itself

TEST(FitLaws, OptimumIsTheBestSplitAndInversesInvert) {
  Law counted = kTransformer;  // whose FLOPs per token grow more slowly than its size
  counted.k = 40, counted.g = 0.9;
  for (const Law& law : {kHoffmann, kBesiroglu, kTransformer, kGatedDelta, counted}) {
    const Law::Allocation best = law.Optimal(3e21);
    EXPECT_NEAR(law.k * std::pow(best.n, law.g) * best.d, 3e21, 1e10);
    for (const double factor : {0.9, 0.999, 1.001, 1.1})
      EXPECT_GT(law.Loss(best.n * factor, best.d / std::pow(factor, law.g)), best.loss);
    EXPECT_NEAR(law.Optimal(3e22).n / best.n, std::pow(10, law.SizeExponent()), 1e-9);
    EXPECT_NEAR(law.FlopsFor(best.loss), 3e21, 1e10);
    EXPECT_NEAR(law.TokensFor(best.n, best.loss), best.d, 1e-9 * best.d);
    EXPECT_NEAR(law.ParametersFor(best.d, best.loss), best.n, 1e-9 * best.n);
    EXPECT_EQ(law.TokensFor(1e6, law.E), kInfinity);
    EXPECT_EQ(law.FlopsFor(law.E), kInfinity);
  }
}

// Approach 3

TEST(FitLaws, ExactLossesGiveTheConstantsBack) {
  for (const Law& law : {kHoffmann, kBesiroglu, kTransformer, kHybrid, kGatedDelta}) {
    for (const auto& points : {IsoFlops(law), Grid(law, kLadder, kMultiples, 0, 0)}) {
      const Fit fit = FitLaws(points, {}).front();
      ExpectNear(fit.laws.front(), law, 1e-6);
      EXPECT_LT(fit.objective, 1e-20);
    }
  }
}

TEST(FitLaws, ExponentsThatAreSharedOrGivenGiveTheConstantsBack) {
  const Law a{1.55, 66.63, 0.22, 94.85, 0.24}, b{1.58, 65.09, 0.22, 83.65, 0.24};
  std::vector<Point> points = Grid(a, kLadder, kMultiples, 0, 0, "a");
  for (const Point& point : Grid(b, kLadder, kMultiples, 0, 0, "b")) points.push_back(point);
  const std::vector<Fit> shared = FitLaws(points, {.shared = true});
  ASSERT_EQ(shared.size(), 1u);
  ExpectNear(shared.front().laws.at(0), a, 1e-6);
  ExpectNear(shared.front().laws.at(1), b, 1e-6);
  const std::vector<Fit> given = FitLaws(points, {.alpha = 0.22, .beta = 0.24});
  ASSERT_EQ(given.size(), 2u);
  ExpectNear(given[0].laws.front(), a, 1e-9);
  ExpectNear(given[1].laws.front(), b, 1e-9);
  EXPECT_EQ(given[1].laws.front().alpha, 0.22);
}

TEST(FitLaws, FewerFreedomsNeverFitBetter) {
  std::vector<Point> points = Grid(kTransformer, kLadder, kMultiples, 0.003, 1, "t");
  for (const Point& p : Grid(kHybrid, kLadder, kMultiples, 0.003, 2, "h")) points.push_back(p);
  double free = 0, given = 0;
  for (const Fit& fit : FitLaws(points, {})) free += fit.objective;
  const double shared = FitLaws(points, {.shared = true}).front().objective;
  for (const Fit& fit : FitLaws(points, {.alpha = 0.22, .beta = 0.22})) given += fit.objective;
  EXPECT_LT(free, shared);
  EXPECT_LT(shared, given);
}

TEST(FitLaws, UnitsDoNotMatter) {
  std::vector<Point> points = ChinchillaLike(3);
  const Fit fit = FitLaws(points, {}).front();
  for (Point& p : points) p.n /= 1e6, p.d /= 1e9, p.loss /= std::log(2.0);
  const Fit scaled = FitLaws(points, {}).front();
  EXPECT_NEAR(scaled.objective, fit.objective, 1e-12 * fit.objective);
  const Law &a = fit.laws.front(), &b = scaled.laws.front();
  EXPECT_NEAR(b.alpha, a.alpha, 1e-7);
  EXPECT_NEAR(b.E * std::log(2.0), a.E, 1e-7);
  EXPECT_NEAR(b.B * std::log(2.0) * std::pow(1e9, b.beta), a.B, 1e-5 * a.B);
}

TEST(FitLaws, AWeightIsSoManyCopies) {
  const std::vector<Point> points = Grid(kHybrid, kLadder, kMultiples, 0.004, 5);
  std::vector<Point> copies;
  std::vector<double> weights;
  for (size_t i = 0; i < points.size(); ++i) {
    weights.push_back(static_cast<double>(i % 3));
    for (size_t c = 0; c < i % 3; ++c) copies.push_back(points[i]);
  }
  const Fit weighted = FitLaws(points, {}, weights).front();
  const Fit copied = FitLaws(copies, {}).front();
  EXPECT_NEAR(weighted.objective, copied.objective, 1e-12 * copied.objective);
  ExpectNear(weighted.laws.front(), copied.laws.front(), 1e-5);
}

// The 4,500 starts of Besiroglu et al. and Hoffmann et al.
std::vector<std::vector<Law>> PublishedStarts() {
  std::vector<std::vector<Law>> starts;
  for (int a = 0; a <= 25; a += 5) {
    for (int b = 0; b <= 25; b += 5) {
      for (double e = -1; e < 1.25; e += 0.5) {
        for (double alpha = 0; alpha < 2.25; alpha += 0.5) {
          for (double beta = 0; beta < 2.25; beta += 0.5)
            starts.push_back({{std::exp(e), std::exp(a), alpha, std::exp(b), beta}});
        }
      }
    }
  }
  return starts;
}

struct DataSet {
  const char* name;
  std::vector<Point> points;
};
std::vector<DataSet> PublishedLike() {
  return {{"Chinchilla", ChinchillaLike(0)},
          {"transformer ladder", Grid(kTransformer, kLadder, kMultiples, 0.003, 11)},
          {"hybrid ladder", Grid(kHybrid, kLadder, kMultiples, 0.003, 12)},
          // Five sizes and five multiples up to 10 xC: badly conditioned.
          {"short ladder",
           Grid({1.86, 124.4, 0.272, 33.8, 0.157}, {190e6, 371e6, 758e6, 1.28e9, 3.17e9},
                {10, 20, 40, 100, 200}, 0.004, 13)}};
}

TEST(FitLaws, EveryStartThatIsChosenReachesTheBestOf4500) {
  for (const DataSet& data : PublishedLike()) {
    SCOPED_TRACE(data.name);
    const Fit fit = FitLaws(data.points, {}).front();
    EXPECT_NEAR(Objective(data.points, fit.laws, 1e-3), fit.objective, 1e-12 * fit.objective);
    const std::vector<std::vector<Law>> starts = PublishedStarts();
    ASSERT_EQ(starts.size(), 4500u);
    const Fit best = FitFrom(data.points, {}, starts);
    // Half of these starts are so far off that their search ends nowhere; that is why they are not
    // the tool's.
    EXPECT_GT(best.minima.front().starts, 500);
    for (const Minimum& minimum : fit.minima) {
      EXPECT_TRUE(minimum.stationary);
      EXPECT_LE(minimum.objective, best.objective * (1 + 1e-9));
    }
    EXPECT_GE(fit.starts, 3);
  }
}

TEST(FitLaws, NothingNearAMinimumIsLower) {
  for (const DataSet& data : PublishedLike()) {
    SCOPED_TRACE(data.name);
    const Fit fit = FitLaws(data.points, {}).front();
    Rng rng(0, Purpose::kTest, 2);
    for (int i = 0; i < 2000; ++i) {
      const double size = std::pow(10, rng.Uniform(-7, -1));
      Law law = fit.laws.front();
      for (double* c : {&law.E, &law.A, &law.alpha, &law.B, &law.beta})
        *c *= std::exp(size * rng.Normal());
      // A moves with alpha along the valley, B with beta.
      law.A *= std::pow(4e8, law.alpha - fit.laws.front().alpha);
      law.B *= std::pow(1e10, law.beta - fit.laws.front().beta);
      EXPECT_GE(Objective(data.points, {law}, 1e-3), fit.objective * (1 - 1e-12));
    }
  }
}

// Where A is zero alpha has no effect, and where B is zero beta has none; the rest must still reach
// its minimum, also along the walls of the box.
TEST(FitLaws, ATermThatVanishesStopsNoSearch) {
  const Law without_size{1.6, 0, 0.3, 83, 0.21}, without_tokens{1.6, 90, 0.25, 0, 0.3};
  int vanished = 0;
  for (const Law& truth : {without_size, without_tokens}) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      const std::vector<Point> points = Grid(truth, kLadder, kMultiples, 0.002, seed);
      const Fit fit = FitLaws(points, {}).front();
      Rng rng(seed, Purpose::kTest, 3);
      for (const Minimum& minimum : fit.minima) {
        EXPECT_TRUE(minimum.stationary);
        const Law& found = minimum.laws.front();
        vanished += found.A == 0 || found.B == 0;
        for (int i = 0; i < 200; ++i) {
          const double size = std::pow(10, rng.Uniform(-7, -3));
          Law law = found;
          law.alpha *= std::exp(size * rng.Normal()), law.beta *= std::exp(size * rng.Normal());
          law.E *= std::exp(size * rng.Normal());
          law.A *= std::pow(4e8, law.alpha - found.alpha);
          law.B *= std::pow(1e10, law.beta - found.beta);
          law.alpha = std::clamp(law.alpha, kLeastExponent, kGreatestExponent);
          law.beta = std::clamp(law.beta, kLeastExponent, kGreatestExponent);
          EXPECT_GE(Objective(points, {law}, 1e-3), minimum.objective * (1 - 1e-12));
        }
      }
    }
  }
  EXPECT_GT(vanished, 0);
}

TEST(FitLaws, LocalMinimaAreAllReported) {
  // A resample of the badly conditioned ladder that has four.
  const std::vector<Point> points = PublishedLike().back().points;
  const Resampler resampler(points, std::vector<std::string>(points.size()), {});
  const Fit fit = FitLaws(points, {}, resampler.Weights(3, 0)).front();
  EXPECT_GE(fit.minima.size(), 2u);
  int starts = 0;
  for (size_t i = 0; i < fit.minima.size(); ++i) {
    starts += fit.minima[i].starts;
    if (i > 0) {
      EXPECT_GE(fit.minima[i].objective, fit.minima[i - 1].objective);
    }
  }
  EXPECT_EQ(starts, fit.starts);
  EXPECT_TRUE(fit.minima[0].stationary && fit.minima[1].stationary);
}

TEST(FitLaws, WhatCannotBeDeterminedIsRefused) {
  const auto refused = [](std::vector<Point> points, const FitOptions& options = {}) {
    return DataError([&] { FitLaws(points, options); });
  };
  EXPECT_HAS(refused({}), "no points");
  EXPECT_HAS(refused({PointOf(1e8, 1e9, 3), PointOf(2e8, 1e9, 2.9)}), "found 2 points");
  EXPECT_HAS(refused(Grid(kHybrid, {1e8}, kMultiples, 0, 0)), "found 1 size,");
  EXPECT_HAS(refused(Grid(kHybrid, {1e8, 2e8}, kMultiples, 0, 0)), "found 2 sizes");
  std::vector<Point> one_count;
  for (const double n : kLadder) one_count.push_back(PointOf(n, 1e10, kHybrid.Loss(n, 1e10)));
  EXPECT_HAS(refused(one_count), "found 1 token count");
  // With exponents given, two sizes are enough.
  ExpectNear(FitLaws(Grid(kHybrid, {1e8, 2e8}, kMultiples, 0, 0),
                     {.alpha = kHybrid.alpha, .beta = kHybrid.beta})
                 .front()
                 .laws.front(),
             kHybrid, 1e-8);
}

TEST(FitLaws, WarningsSayWhatIsWrong) {
  const auto warnings = [](const std::vector<Point>& points) {
    std::string all;
    const Fit fit = FitLaws(points, {}).front();
    for (const std::string& w : Examine(points, fit.laws.front(), {}).warnings) all += w + "\n";
    return all;
  };
  EXPECT_EQ(warnings(ChinchillaLike(0)), "");
  EXPECT_HAS(warnings(PublishedLike().back().points), "ill-conditioned: condition number");
  EXPECT_HAS(warnings(Grid(kHybrid, {1e8, 1.5e8, 2e8}, kMultiples, 0.001, 0)),
             "narrow: the largest size is only 2 times");
  std::vector<Point> proportional = Grid(kHybrid, kLadder, {19, 20, 21}, 0.002, 0);
  EXPECT_HAS(warnings(proportional), "N and D go together");
  std::vector<Point> below_zero = Grid({0, 40, 0.1, 40, 0.12}, kLadder, kMultiples, 0, 0);
  for (Point& point : below_zero) point.loss -= 0.5;
  EXPECT_HAS(warnings(below_zero), "E is at its bound 0");
}

TEST(FitLaws, ASizeLeftOutIsPredicted) {
  std::vector<Point> points = Grid(kHybrid, kLadder, kMultiples, 0, 0);
  for (const LeftOut& left : LeaveOneSizeOut(points, {})) {
    EXPECT_EQ(left.points, 5);
    EXPECT_LT(left.mean_error, 1e-7);
  }
  // Two per cent more loss at the largest size is an error there of two per cent.
  for (Point& point : points) {
    if (point.n == kLadder.back()) point.loss *= 1.02;
  }
  const std::vector<LeftOut> left = LeaveOneSizeOut(points, {});
  ASSERT_EQ(left.size(), kLadder.size());
  EXPECT_TRUE(left.back().largest);
  EXPECT_NEAR(left.back().bias, 1 / 1.02 - 1, 1e-6);
  EXPECT_NEAR(left.back().mean_error, 1 - 1 / 1.02, 1e-6);
}

TEST(FitLaws, RepetitionIsFoundAgain) {
  const Repetition truth{15.387756, 5.309743};
  std::vector<Point> points;
  for (const double n : {1e8, 4e8, 1.6e9, 6.4e9}) {
    for (const double unique : {1e8, 1e9, 1e10}) {
      for (const double epochs : {0.5, 1.0, 4.0, 16.0, 64.0}) {
        Point p = PointOf(n, epochs * unique,
                          LossWithRepetition(kHoffmann, truth, n, epochs * unique, unique));
        // Models too large for the unique tokens lose even before they repeat them.
        if (epochs <= 1) p.loss = kHoffmann.Loss(p.n, p.d);
        p.unique = unique;
        points.push_back(p);
      }
    }
  }
  const RepetitionFit fit = FitRepetition(points, {});
  ExpectNear(fit.law, kHoffmann, 1e-6);
  EXPECT_NEAR(fit.repetition.tokens, truth.tokens, 1e-5 * truth.tokens);
  EXPECT_NEAR(fit.repetition.parameters, truth.parameters, 1e-5 * truth.parameters);
  EXPECT_EQ(fit.fresh, 24);
  EXPECT_EQ(fit.repeated, 36);
}

// Intervals

TEST(FitBootstrap, DrawsDependOnTheSeedAlone) {
  const std::vector<Point> points = Grid(kHybrid, kLadder, kMultiples, 0.003, 1);
  const std::vector<Fit> fits = FitLaws(points, {});
  const Ensemble one = Bootstrap(points, {}, fits, {.draws = 50, .threads = 1});
  const Ensemble four = Bootstrap(points, {}, fits, {.draws = 50, .threads = 4});
  const Ensemble other = Bootstrap(points, {}, fits, {.draws = 50, .seed = 1});
  int different = 0;
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(one.draws[i][0].beta, four.draws[i][0].beta);
    different += one.draws[i][0].beta != other.draws[i][0].beta;
  }
  EXPECT_GT(different, 45);
}

TEST(FitBootstrap, ARefitIsAsGoodAsASearchFromScratch) {
  int worse = 0;
  for (const DataSet& data : PublishedLike()) {
    const Fit fit = FitLaws(data.points, {}).front();
    const Resampler resampler(data.points, std::vector<std::string>(data.points.size()), {});
    for (int draw = 0; draw < 40; ++draw) {
      const std::vector<double> weights = resampler.Weights(draw, 0);
      const double refit = FitNear(data.points, {}, {fit.laws}, weights).objective;
      const double searched = FitLaws(data.points, {}, weights).front().objective;
      worse += refit > searched * (1 + 1e-9);
      EXPECT_LE(refit, searched * 1.02) << data.name << " draw " << draw;
    }
  }
  EXPECT_LE(worse, 2) << "of 160";
}

TEST(FitBootstrap, IntervalsCoverTheTruth) {
  constexpr int kStudies = 60;
  int covered = 0;
  for (int study = 0; study < kStudies; ++study) {
    const std::vector<Point> points =
        Grid(kHoffmann, kLadder, kMultiples, 0.003, 100 + static_cast<uint64_t>(study));
    const Ensemble ensemble =
        Bootstrap(points, {}, FitLaws(points, {}), {.draws = 200, .threads = 2});
    const Interval interval =
        IntervalOf(ensemble, 0.95, [](auto laws) { return laws[0].Loss(7e9, 1e12); });
    covered +=
        interval.low <= kHoffmann.Loss(7e9, 1e12) && kHoffmann.Loss(7e9, 1e12) <= interval.high;
  }
  // 57 of 60 are expected; the bootstrap of 35 points is somewhat too narrow.
  EXPECT_GE(covered, 48);
}

TEST(FitBootstrap, SeedsAndPointsAreResampledApart) {
  std::vector<Point> points;
  for (int i = 0; i < 30; ++i) points.push_back(PointOf(1e8 * (1 + i / 3), 1e9, 3 + i));
  const std::vector<std::string> stratum(points.size());
  const auto weights = [&](Resample resample) {
    return Resampler(points, stratum, {.resample = resample}).Weights(0, 0);
  };
  const std::vector<double> seeds = weights(Resample::kSeeds), cells = weights(Resample::kPoints),
                            both = weights(Resample::kBoth);
  bool seeds_differ = false, cells_differ = false, both_differ = false;
  for (size_t c = 0; c < 30; c += 3) {
    EXPECT_EQ(seeds[c] + seeds[c + 1] + seeds[c + 2], 3);
    EXPECT_TRUE(cells[c] == cells[c + 1] && cells[c] == cells[c + 2]);
    seeds_differ = seeds_differ || seeds[c] != 1;
    cells_differ = cells_differ || cells[c] != 1;
    both_differ = both_differ || both[c] != both[c + 1];
  }
  EXPECT_TRUE(seeds_differ && cells_differ && both_differ);
  double sum = 0;
  for (const double w : both) sum += w;
  EXPECT_EQ(sum, 30);
}

TEST(FitBootstrap, IntervalsAreQuantiles) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  Interval interval = IntervalOf(values, 0.9);
  EXPECT_NEAR(interval.low, 5, 1e-9);
  EXPECT_NEAR(interval.high, 95, 1e-9);
  values.assign(98, 1.0);
  values.insert(values.end(), {std::nan(""), kInfinity, kInfinity, kInfinity});
  interval = IntervalOf(values, 0.95);
  EXPECT_EQ(interval.undefined, 1);
  EXPECT_EQ(interval.low, 1);
  EXPECT_EQ(interval.high, kInfinity);
  EXPECT_TRUE(std::isnan(IntervalOf({std::nan("")}, 0.95).low));
}

// 1,000 resamples of 240 points are to take less than a second on two cores. The figure is printed:
// a test that fails on time fails on busy machines.
TEST(FitBootstrap, TimeOf1000DrawsOf240Points) {
  const std::vector<Point> points = ChinchillaLike(0);
  const std::vector<Fit> fits = FitLaws(points, {});
  const auto start = std::chrono::steady_clock::now();
  const std::clock_t cpu = std::clock();
  const Ensemble ensemble = Bootstrap(points, {}, fits, {.draws = 1000, .threads = 2});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("1000 draws of 240 points on 2 threads: %.3f s, %.3f s of CPU\n", seconds.count(),
              static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
}

// Approaches 1 and 2

TEST(FitFrontier, ParabolasGiveTheirMinima) {
  std::vector<Point> points;
  for (int b = 0; b < 5; ++b) {
    const double flops = 1e18 * std::pow(10, b), best = 0.02 * std::pow(flops, 0.53);
    for (int i = -3; i <= 4; ++i) {
      const double n = best * std::exp(0.3 * i), x = std::log(n / best);
      points.push_back(PointOf(n, flops / (6 * n), 3 - 0.2 * b + 0.04 * x * x));
    }
  }
  Frontier frontier = FitIsoFlop(points);
  ASSERT_EQ(frontier.budgets.size(), 5u);
  EXPECT_NEAR(frontier.n.exponent, 0.53, 1e-9);
  EXPECT_NEAR(frontier.n.coefficient, 0.02, 1e-7);
  EXPECT_NEAR(frontier.d.exponent, 0.47, 1e-9);
  EXPECT_NEAR(frontier.budgets[2].loss, 2.6, 1e-9);

  // Budgets that say nothing are named and left out: two sizes, no minimum, a minimum outside.
  points.push_back(PointOf(1e9, 1e23 / 6e9, 2));
  points.push_back(PointOf(2e9, 1e23 / 12e9, 2.1));
  for (const double n : {1e9, 2e9, 4e9}) {
    points.push_back(PointOf(n, 1e24 / (6 * n), 2 - std::pow(std::log(n / 2e9), 2)));
    points.push_back(PointOf(n, 1e25 / (6 * n), 2 + std::pow(std::log(n / 1e12), 2)));
  }
  frontier = FitIsoFlop(points);
  ASSERT_EQ(frontier.budgets.size(), 8u);
  EXPECT_HAS(frontier.budgets[5].excluded, "has 2 sizes");
  EXPECT_HAS(frontier.budgets[6].excluded, "no minimum");
  EXPECT_HAS(frontier.budgets[7].excluded, "outside of its sizes");
  EXPECT_NEAR(frontier.n.exponent, 0.53, 1e-9);
  const Interval interval = IsoFlopInterval(points, {.draws = 100}, 0.95);
  EXPECT_NEAR(interval.low, 0.53, 1e-6);
  EXPECT_NEAR(interval.high, 0.53, 1e-6);
  EXPECT_HAS(DataError([&] { FitIsoFlop(std::span(points).first(8)); }), "found 1 of 1 budgets");
}

TEST(FitFrontier, ParabolasOfALawAreNearItsOptimum) {
  EXPECT_NEAR(FitIsoFlop(IsoFlops(kHoffmann)).n.exponent, kHoffmann.SizeExponent(), 0.01);
}

TEST(FitFrontier, EnvelopeOfALawIsNearItsOptimum) {
  std::vector<double> sizes, ratios;
  for (int i = 0; i < 25; ++i) sizes.push_back(1e7 * std::pow(1.4, i));
  for (int i = 0; i < 40; ++i) ratios.push_back(std::pow(1.25, i));
  const Frontier frontier = FitEnvelope(Grid(kHoffmann, sizes, ratios, 0, 0));
  EXPECT_NEAR(frontier.n.exponent, kHoffmann.SizeExponent(), 0.01);
  EXPECT_NEAR(frontier.n.At(1e20) / kHoffmann.Optimal(1e20).n, 1, 0.05);
  EXPECT_HAS(DataError([&] {
               FitEnvelope(Grid(kHoffmann, {1e8, 1e9}, ratios, 0, 0));
             }),
             "found 2 sizes");
}

// Curves

TEST(FitParity, CrossingsAreWhereTheCurvesMeet) {
  std::vector<Point> curves;
  for (int i = 0; i <= 10; ++i) {
    const double d = 1e9 * std::pow(2, i);
    curves.push_back(PointOf(1e8, d, 5 - 0.1 * i, "slow"));
    curves.push_back(PointOf(1e8, d, 5 - 0.15 * i, "fast"));
    curves.push_back(PointOf(1e8, d, i == 6 ? 3.9 : 5 - 0.11 * i, "bumpy"));
    curves.push_back(PointOf(1e8, d, 5 - 0.01 * i, "never"));
  }
  const ParityTable table = TokensToParity(curves, "slow", {}, 0.95);
  ASSERT_EQ(table.rows.size(), 3u);
  const auto& [bumpy, fast, never] = std::tie(table.rows[0], table.rows[1], table.rows[2]);
  EXPECT_EQ(fast.target, 4.0);
  EXPECT_EQ(fast.reference_tokens, 1024e9);
  EXPECT_NEAR(fast.first, 1e9 * std::pow(2, 20.0 / 3), 1);  // loss 4 at i = 6.67
  EXPECT_EQ(fast.first, fast.for_good);
  EXPECT_LT(bumpy.first, 64e9);
  EXPECT_NEAR(bumpy.for_good, 1e9 * std::pow(2, 100.0 / 11), 1);
  EXPECT_EQ(never.first, kInfinity);
}

TEST(FitParity, SeedsGiveAnInterval) {
  std::vector<Point> curves;
  Rng rng(0, Purpose::kTest, 3);
  for (const char* architecture : {"slow", "fast"}) {
    for (int64_t seed = 0; seed < 5; ++seed) {
      for (int i = 0; i <= 10; ++i) {
        const double slope = architecture[0] == 's' ? 0.1 : 0.15;
        curves.push_back(
            PointOf(1e8, 1e9 * std::pow(2, i), 5 - slope * i + 0.02 * rng.Normal(), architecture));
        curves.back().seed = seed;
      }
    }
  }
  const ParityTable table = TokensToParity(curves, "slow", {.draws = 500}, 0.95);
  ASSERT_EQ(table.rows.size(), 1u);
  const Parity& row = table.rows.front();
  EXPECT_EQ(row.seeds, 5);
  ASSERT_TRUE(row.has_interval);
  EXPECT_LT(row.share.low, row.first / row.reference_tokens);
  EXPECT_GT(row.share.high, row.first / row.reference_tokens);
  EXPECT_NEAR(row.share.low / row.share.high, 1, 0.5);
  EXPECT_HAS(DataError([&] { TokensToParity(std::span(curves).first(55), "slow", {}, 0.95); }),
             "no architecture beside slow");
}

// Answers

TEST(FitAnswers, SavingsHaveIntervalsAndUnreachableLossesSaySo) {
  Ensemble ensemble = kPublished;
  for (int i = 0; i < 100; ++i) {
    std::vector<Law> laws = ensemble.laws;
    for (Law& law : laws) law.B *= 1 + 0.001 * i, law.E += i >= 90 ? 2 : 0;
    ensemble.draws.push_back(laws);
  }
  Asked asked;
  asked.reference = "transformer";
  asked.n = {7e9};
  asked.loss = {2.474, 1.0};
  const std::vector<Table> tables = Answer(ensemble, asked);
  const Table& table = Only(tables);
  const TableCell& savings = table.rows[1][4];
  EXPECT_EQ(savings.interval->undefined, 10);  // neither architecture reaches it
  EXPECT_NEAR(savings.interval->low, savings.value, 0.05);
  EXPECT_EQ(table.rows[3][3].value, kInfinity);
  EXPECT_HAS(table.ToText(), "never");
  EXPECT_EQ(table.ToJson()[3]["d"], nullptr);
  EXPECT_TRUE(table.ToJson()[1].contains("savings_low"));
  asked.reference = "hybird";
  EXPECT_HAS(UsageError([&] { Answer(ensemble, asked); }), "transformer, hybrid, gated_delta");
}

}  // namespace
}  // namespace weft
