#include "analysis/fit/minimize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace weft {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMostSteps = 300;
constexpr double kLeastDamping = 1e-9, kMostDamping = 1e12;
// Promised decrease, relative to the value, below which the search ends, and is called stationary.
constexpr double kEnough = 1e-15, kStationary = 1e-10;
// A value so small is that of an exact fit.
constexpr double kNothing = 1e-26;

// The variables that no bound holds back and that have an effect where `x` is: an exponent whose
// coefficient is zero has none, and would make the matrix singular.
std::vector<Index> FreeOf(const VectorXd& x, const Local& at, const VectorXd& low,
                          const VectorXd& high) {
  std::vector<Index> free;
  for (Index i = 0; i < x.size(); ++i) {
    const bool held = low[i] == high[i] || (x[i] <= low[i] && at.gradient[i] >= 0) ||
                      (x[i] >= high[i] && at.gradient[i] <= 0);
    if (!held && at.metric(i, i) > 0) free.push_back(i);
  }
  return free;
}

// p with (hessian + damping metric) p = -gradient in the free variables, of which those that p
// would take out of the box stop at its wall, and the others are solved for again; false when that
// has no minimum.
bool Step(const Local& at, std::vector<Index> free, double damping, const VectorXd& down,
          const VectorXd& up, VectorXd& p) {
  MatrixXd matrix = at.hessian + damping * at.metric;
  matrix.diagonal() += 1e-13 * damping * at.metric.diagonal();
  p.setZero();
  for (bool within = false; !within && !free.empty();) {
    Eigen::LLT<MatrixXd> factor(matrix(free, free));
    // Where there is negative curvature the metric alone leads down, and farther than much of it.
    if (factor.info() != Eigen::Success) {
      matrix = std::max(1.0, damping) * at.metric;
      matrix.diagonal() *= 1 + 1e-13;
      factor.compute(matrix(free, free));
    }
    if (factor.info() != Eigen::Success) return false;
    p(free).setZero();
    const VectorXd right = at.gradient + matrix * p;
    p(free) = -factor.solve(right(free));
    if (!p.allFinite()) return false;
    const VectorXd wished = p;
    p = p.cwiseMax(down).cwiseMin(up);
    within = std::erase_if(free, [&](Index i) { return p[i] != wished[i]; }) == 0;
  }
  return true;
}

}  // namespace

Descent Descend(const Landscape& landscape, VectorXd x, const VectorXd& low, const VectorXd& high) {
  x = x.cwiseMax(low).cwiseMin(high);
  Local at, next;
  landscape(x, at);
  Descent result;
  double damping = 1e-3;
  VectorXd p(x.size()), tried(x.size());
  for (; result.steps < kMostSteps; ++result.steps) {
    const std::vector<Index> free = FreeOf(x, at, low, high);
    if (free.empty() || at.value <= kNothing) {
      result.stationary = true;
      break;
    }
    bool moved = false;
    double promised = kInfinity;
    while (!moved && damping < kMostDamping) {
      if (!Step(at, free, damping, low - x, high - x, p)) {
        damping *= 8;
        continue;
      }
      tried = (x + p).cwiseMax(low).cwiseMin(high);
      p = tried - x;
      promised = -(at.gradient.dot(p) + 0.5 * p.dot(at.hessian * p));
      if (std::abs(promised) <= kEnough * at.value) break;
      landscape(tried, next);
      const double ratio = (at.value - next.value) / promised;
      if (next.value < at.value && ratio > 1e-4) {
        moved = true;
        if (ratio > 0.7) damping = std::max(damping / 16, kLeastDamping);
        if (ratio < 0.2) damping *= 4;
      } else {
        damping *= 8;
      }
    }
    if (!moved) {
      result.stationary = std::abs(promised) <= kStationary * at.value;
      break;
    }
    x = tried;
    std::swap(at, next);
  }
  result.x = x;
  result.value = at.value;
  return result;
}

}  // namespace weft
