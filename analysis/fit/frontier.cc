#include "analysis/fit/frontier.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "kernels/base/check.h"

namespace weft {
namespace {

constexpr double kSameBudget = 1.1;
// Budgets at which approach 1 looks for the best size, as in Hoffmann et al.
constexpr int kEnvelopeBudgets = 1500;

// The power law through (x, y), least squares of logs.
PowerLaw Through(const std::vector<double>& x, const std::vector<double>& y) {
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  const auto count = static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / count;
    mean_y += std::log(y[i]) / count;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (std::log(x[i]) - mean_x) * (std::log(x[i]) - mean_x);
    xy += (std::log(x[i]) - mean_x) * (std::log(y[i]) - mean_y);
  }
  return {std::exp(mean_y - xy / xx * mean_x), xy / xx};
}

void FitPowerLaws(Frontier& frontier) {
  std::vector<double> c, n, d;
  for (const Optimum& budget : frontier.budgets) {
    if (!budget.excluded.empty()) continue;
    c.push_back(budget.flops);
    n.push_back(budget.n);
    d.push_back(budget.d);
  }
  frontier.n = Through(c, n);
  frontier.d = Through(c, d);
}

// Points in order of FLOPs, cut into budgets.
std::vector<std::vector<size_t>> BudgetsOf(std::span<const Point> points) {
  std::vector<size_t> order(points.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return points[a].flops < points[b].flops; });
  std::vector<std::vector<size_t>> budgets;
  for (const size_t i : order) {
    if (budgets.empty() || points[i].flops > kSameBudget * points[budgets.back().front()].flops)
      budgets.emplace_back();
    budgets.back().push_back(i);
  }
  return budgets;
}

}  // namespace

double PowerLaw::At(double x) const { return coefficient * std::pow(x, exponent); }

Frontier FitIsoFlop(std::span<const Point> points, std::span<const double> weights) {
  Frontier out;
  int counting = 0;
  for (const std::vector<size_t>& members : BudgetsOf(points)) {
    Optimum budget;
    Eigen::Vector3d right = Eigen::Vector3d::Zero();
    Eigen::Matrix3d normal = Eigen::Matrix3d::Zero();
    double total = 0, log_flops = 0, log_ratio = 0, centre = 0, least = INFINITY, greatest = 0;
    std::set<double> sizes;
    const auto weight_of = [&](size_t i) { return weights.empty() ? 1 : weights[i]; };
    for (const size_t i : members) {
      const double w = weight_of(i);
      if (w == 0) continue;
      const Point& p = points[i];
      total += w;
      ++budget.points;
      log_flops += w * std::log(p.flops);
      log_ratio += w * std::log(p.flops / (p.n * p.d));
      centre += w * std::log(p.n);
      least = std::min(least, p.n);
      greatest = std::max(greatest, p.n);
      sizes.insert(p.n);
    }
    if (total == 0) continue;
    budget.flops = std::exp(log_flops / total);
    centre /= total;
    if (sizes.size() < 3) {
      budget.excluded = Cat("has ", sizes.size(), sizes.size() == 1 ? " size" : " sizes",
                            ", expected at least 3");
    } else {
      for (const size_t i : members) {
        const double x = std::log(points[i].n) - centre;
        const Eigen::Vector3d basis(1, x, x * x);
        normal += weight_of(i) * basis * basis.transpose();
        right += weight_of(i) * points[i].loss * basis;
      }
      const Eigen::Vector3d c = normal.colPivHouseholderQr().solve(right);
      const double at = -c[1] / (2 * c[2]);
      budget.n = std::exp(centre + at);
      budget.loss = c[0] - c[1] * c[1] / (4 * c[2]);
      budget.d = budget.flops / (std::exp(log_ratio / total) * budget.n);
      if (!(c[2] > 0)) {
        budget.excluded = "its parabola has no minimum";
      } else if (!(budget.n >= least && budget.n <= greatest)) {
        budget.excluded = Cat("its minimum, n = ", budget.n, ", is outside of its sizes");
      }
    }
    counting += budget.excluded.empty();
    out.budgets.push_back(budget);
  }
  if (counting < 2) {
    Fail(ExitCode::kData, "found ", counting, " of ", out.budgets.size(),
         " budgets with the minimum of a parabola, expected at least 2",
         out.budgets.empty() || out.budgets.front().excluded.empty()
             ? ""
             : Cat("; the first, ", out.budgets.front().flops, " FLOPs, ",
                   out.budgets.front().excluded));
  }
  FitPowerLaws(out);
  if (counting == 2) out.warnings.push_back("two budgets: the exponent has no residual");
  return out;
}

Frontier FitEnvelope(std::span<const Point> points) {
  // Mean loss over seeds at each number of FLOPs, in logs.
  std::map<double, std::map<double, std::vector<double>>> losses;
  double log_ratio = 0;
  for (const Point& p : points) {
    losses[p.n][p.flops].push_back(p.loss);
    log_ratio += std::log(p.flops / (p.n * p.d)) / static_cast<double>(points.size());
  }
  struct Curve {
    double n;
    std::vector<double> flops, loss;  // logs
  };
  std::vector<Curve> curves;
  double least = INFINITY, greatest = -INFINITY;
  for (const auto& [n, curve] : losses) {
    if (curve.size() < 2) continue;
    Curve one{n, {}, {}};
    for (const auto& [flops, values] : curve) {
      double mean = 0;
      for (const double loss : values) mean += loss / static_cast<double>(values.size());
      one.flops.push_back(std::log(flops));
      one.loss.push_back(std::log(mean));
    }
    least = std::min(least, one.flops.front());
    greatest = std::max(greatest, one.flops.back());
    curves.push_back(std::move(one));
  }
  if (curves.size() < 3) {
    Fail(ExitCode::kData, "found ", curves.size(),
         " sizes with losses at several token counts, expected at least 3 for an envelope");
  }
  Frontier out;
  std::set<double> winners;
  for (int b = 0; b < kEnvelopeBudgets; ++b) {
    const double at = least + (greatest - least) * (b + 0.5) / kEnvelopeBudgets;
    const Curve* best = nullptr;
    double lowest = INFINITY;
    for (const Curve& curve : curves) {
      if (at < curve.flops.front() || at > curve.flops.back()) continue;
      const auto above = std::max<ptrdiff_t>(
          1, std::lower_bound(curve.flops.begin(), curve.flops.end(), at) - curve.flops.begin());
      const auto i = static_cast<size_t>(above);
      const double share = (at - curve.flops[i - 1]) / (curve.flops[i] - curve.flops[i - 1]);
      const double loss = curve.loss[i - 1] + share * (curve.loss[i] - curve.loss[i - 1]);
      if (loss < lowest) lowest = loss, best = &curve;
    }
    if (!best) continue;
    Optimum budget;
    budget.flops = std::exp(at);
    budget.points = 1;
    budget.n = best->n;
    budget.d = std::exp(at - log_ratio) / best->n;
    budget.loss = std::exp(lowest);
    if (best == &curves.front())
      budget.excluded = "the smallest size wins";
    else if (best == &curves.back())
      budget.excluded = "the largest size wins";
    else
      winners.insert(best->n);
    out.budgets.push_back(budget);
  }
  if (winners.size() < 2) {
    Fail(ExitCode::kData, "found ", winners.size(),
         " sizes between the smallest and the largest that are the best somewhere, expected at "
         "least 2: train more sizes, or each on a longer range of tokens");
  }
  FitPowerLaws(out);
  if (winners.size() < 4) {
    out.warnings.push_back(
        Cat("only ", winners.size(), " sizes are the best somewhere: the exponent is rough"));
  }
  return out;
}

Interval IsoFlopInterval(std::span<const Point> points, const BootstrapOptions& options,
                         double level) {
  std::vector<std::string> stratum(points.size());
  const auto budgets = BudgetsOf(points);
  for (size_t b = 0; b < budgets.size(); ++b) {
    for (const size_t i : budgets[b]) stratum[i] = Cat(b);
  }
  const Resampler resampler(points, stratum, options);
  std::vector<double> exponents(static_cast<size_t>(options.draws));
  InParallel(options.draws, options.threads, [&](int draw) {
    double& exponent = exponents[static_cast<size_t>(draw)];
    try {
      exponent = FitIsoFlop(points, resampler.Weights(draw, 0)).n.exponent;
    } catch (const Error&) {  // fewer than two budgets are left
      exponent = std::numeric_limits<double>::quiet_NaN();
    }
  });
  return IntervalOf(std::move(exponents), level);
}

}  // namespace weft
