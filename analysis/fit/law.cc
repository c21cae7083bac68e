#include "analysis/fit/law.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace weft {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// G of the header.
double Balance(const Law& law) {
  return std::pow(law.alpha * law.A / (law.beta * law.B), 1 / (law.alpha + law.beta));
}

// x with coefficient / x^exponent = remainder.
double Solve(double coefficient, double exponent, double remainder) {
  return remainder > 0 ? std::pow(coefficient / remainder, 1 / exponent) : kInfinity;
}

}  // namespace

double Law::Loss(double n, double d) const {
  return E + A / std::pow(n, alpha) + B / std::pow(d, beta);
}

double Law::TokensFor(double n, double loss) const {
  return Solve(B, beta, loss - E - A / std::pow(n, alpha));
}

double Law::ParametersFor(double d, double loss) const {
  return Solve(A, alpha, loss - E - B / std::pow(d, beta));
}

Law::Allocation Law::Optimal(double flops) const {
  const double ratio = alpha * A / (g * beta * B);
  const double n = std::pow(ratio, 1 / (alpha + g * beta)) * std::pow(flops / k, SizeExponent());
  const double d = flops / (k * std::pow(n, g));
  return {n, d, Loss(n, d)};
}

double Law::FlopsFor(double loss) const {
  const double n = Solve(A * (1 + alpha / (g * beta)), alpha, loss - E);
  const double d = Solve(B * (1 + g * beta / alpha), beta, loss - E);
  return k * std::pow(n, g) * d;
}

double UsefulParameters(const Law& law, double n, double unique) {
  const double g = Balance(law);
  return std::min(n, g * std::pow(unique * g, law.beta / law.alpha));
}

Effective EffectiveOf(const Law& law, const Repetition& repetition, double n, double d,
                      double unique) {
  const auto worth = [](double useful, double given, double scale) {
    const double repeats = std::max(0.0, given / useful - 1);
    return useful + useful * scale * (1 - std::exp(-repeats / scale));
  };
  const double u = std::min(d, unique);
  return {worth(UsefulParameters(law, n, unique), n, repetition.parameters),
          worth(u, d, repetition.tokens)};
}

double LossWithRepetition(const Law& law, const Repetition& repetition, double n, double d,
                          double unique) {
  const Effective e = EffectiveOf(law, repetition, n, d, unique);
  return law.Loss(e.n, e.d);
}

}  // namespace weft
