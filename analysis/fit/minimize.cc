#include "analysis/fit/minimize.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace weft {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr int kMostSteps = 300;
constexpr double kLeastDamping = 1e-9, kMostDamping = 1e12;
// Promised decrease, relative to the value, below which the search ends, and is called stationary.
constexpr double kEnough = 1e-15, kStationary = 1e-10;
// A value so small is that of an exact fit.
constexpr double kNothing = 1e-26;

// The variables that no bound holds back.
std::vector<Index> FreeOf(const VectorXd& x, const VectorXd& gradient, const VectorXd& low,
                          const VectorXd& high) {
  std::vector<Index> free;
  for (Index i = 0; i < x.size(); ++i) {
    const bool held = low[i] == high[i] || (x[i] <= low[i] && gradient[i] >= 0) ||
                      (x[i] >= high[i] && gradient[i] <= 0);
    if (!held) free.push_back(i);
  }
  return free;
}

// (hessian + damping metric) p = -gradient in the free variables; false when that has no minimum.
bool Step(const Local& at, const std::vector<Index>& free, double damping, VectorXd& p) {
  MatrixXd matrix = at.hessian(free, free) + damping * at.metric(free, free);
  matrix.diagonal() += 1e-13 * damping * at.metric.diagonal()(free);
  const Eigen::LLT<MatrixXd> factor(matrix);
  if (factor.info() != Eigen::Success) return false;
  p.setZero();
  p(free) = -factor.solve(at.gradient(free));
  return p.allFinite();
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
    const std::vector<Index> free = FreeOf(x, at.gradient, low, high);
    if (free.empty() || at.value <= kNothing) {
      result.stationary = true;
      break;
    }
    bool moved = false;
    double promised = 0;
    while (!moved && damping < kMostDamping) {
      if (!Step(at, free, damping, p)) {
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
