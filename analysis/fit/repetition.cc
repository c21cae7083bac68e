#include "analysis/fit/repetition.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "analysis/fit/minimize.h"
#include "kernels/base/check.h"

namespace weft {

RepetitionFit FitRepetition(std::span<const Point> points, const FitOptions& options,
                            std::span<const double> weights, const Law* start) {
  struct Weighted {
    std::vector<Point> points;
    std::vector<double> weights;
  } fresh, repeated;
  for (size_t i = 0; i < points.size(); ++i) {
    const double weight = weights.empty() ? 1 : weights[i];
    if (weight == 0) continue;
    if (!(points[i].unique > 0)) {
      Fail(ExitCode::kData, points[i].origin,
           ": has no unique tokens; the data-constrained law needs a column unique");
    }
    Weighted& part = points[i].d > points[i].unique ? repeated : fresh;
    part.points.push_back(points[i]);
    part.weights.push_back(weight);
  }
  if (repeated.points.size() < 2) {
    Fail(ExitCode::kData, "found ", repeated.points.size(),
         " points with more tokens than unique tokens, expected at least 2");
  }
  const std::string why = Undetermined(fresh.points, options);
  if (!why.empty()) Fail(ExitCode::kData, "points with no more tokens than unique tokens: ", why);

  RepetitionFit fit;
  fit.law = (start ? FitFrom(fresh.points, options, {{*start}}, fresh.weights)
                   : FitLaws(fresh.points, options, fresh.weights).front())
                .laws.front();
  fit.fresh = static_cast<int>(fresh.points.size());
  fit.repeated = static_cast<int>(repeated.points.size());

  // In (ln R_D, ln R_N). The curvature is that of Gauss and Newton.
  const auto landscape = [&](const Eigen::VectorXd& x, Local& at) {
    const double delta = options.delta;
    const Repetition r{std::exp(x[0]), std::exp(x[1])};
    at.value = 0;
    at.gradient.setZero(2);
    at.hessian.setZero(2, 2);
    for (size_t i = 0; i < repeated.points.size(); ++i) {
      const Point& point = repeated.points[i];
      const Effective e = EffectiveOf(fit.law, r, point.n, point.d, point.unique);
      const double loss = fit.law.Loss(e.n, e.d);
      const double residual = std::log(loss / point.loss) / delta;
      const double slope = std::clamp(residual, -1.0, 1.0), weight = repeated.weights[i];
      at.value += weight * slope * (residual - slope / 2);
      // d x' / d ln R = useful R (1 - (1 + t) exp(-t)), t = repeats / R.
      const auto growth = [](double useful, double given, double scale) {
        const double t = std::max(0.0, given / useful - 1) / scale;
        return useful * scale * (1 - (1 + t) * std::exp(-t));
      };
      Eigen::Vector2d J;
      J[0] = -fit.law.beta * fit.law.B * std::pow(e.d, -fit.law.beta - 1) *
             growth(point.unique, point.d, r.tokens);
      J[1] = -fit.law.alpha * fit.law.A * std::pow(e.n, -fit.law.alpha - 1) *
             growth(UsefulParameters(fit.law, point.n, point.unique), point.n, r.parameters);
      J /= loss * delta;
      at.gradient += weight * slope * J;
      at.hessian += weight * J * J.transpose() / std::max(1.0, std::abs(residual));
    }
    at.metric = at.hessian;
  };
  constexpr double kLeast = 1e-2, kGreatest = 1e4, kFactor = 3;
  constexpr size_t kStarts = 4;
  std::vector<std::pair<double, Eigen::Vector2d>> grid;
  Local at;
  for (double a = 0.1; a < 1000; a *= kFactor) {
    for (double b = 0.1; b < 1000; b *= kFactor) {
      const Eigen::Vector2d x(std::log(a), std::log(b));
      landscape(x, at);
      grid.push_back({at.value, x});
    }
  }
  std::stable_sort(grid.begin(), grid.end(),
                   [](const auto& p, const auto& q) { return p.first < q.first; });
  grid.resize(kStarts);
  fit.objective = std::numeric_limits<double>::infinity();
  for (const auto& [value, x] : grid) {
    const Descent descent = Descend(landscape, x, Eigen::VectorXd::Constant(2, std::log(kLeast)),
                                    Eigen::VectorXd::Constant(2, std::log(kGreatest)));
    if (descent.value >= fit.objective) continue;
    fit.objective = descent.value;
    fit.repetition = {std::exp(descent.x[0]), std::exp(descent.x[1])};
  }
  fit.objective *= options.delta * options.delta;
  return fit;
}

}  // namespace weft
