#pragma once
// Approach 3 of Hoffmann et al. 2022: the law that minimises
//
//   f = sum_i w_i Huber_delta(ln L(N_i, D_i) - ln L_i)
//   Huber_delta(r) = r^2 / 2                   |r| <= delta
//                    delta (|r| - delta / 2)   otherwise
//
// over E, A, B >= 0 and the exponents in [kLeastExponent, kGreatestExponent].
//
// Method. ln N and ln D are centred and f is divided by delta^2, without which solvers stop early
// and report success (Besiroglu et al. 2024). For every pair of exponents of a grid, E, A and B
// solve a small non-negative least squares problem, reweighted for Huber (variable projection).
// From each local minimum of the grid a damped Newton method with exact second derivatives goes
// down. Minima that differ are all returned, with the number of starts that led to each.
//
// Several architectures are fitted one by one, or together with exponents in common.

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "analysis/fit/law.h"
#include "analysis/fit/points.h"

namespace weft {

inline constexpr double kLeastExponent = 0.01, kGreatestExponent = 2;

struct FitOptions {
  double delta = 1e-3;
  bool shared = false;                // exponents in common to all architectures
  std::optional<double> alpha, beta;  // exponents that are given, not fitted
};

struct Minimum {
  std::vector<Law> laws;  // one per architecture
  double objective = 0;
  int starts = 0;           // that ended here
  bool stationary = false;  // the gradient vanishes, up to bounds
};

struct Fit {
  std::vector<std::string> architectures;
  std::vector<Law> laws;
  double objective = 0;
  std::vector<Minimum> minima;  // best first
  int starts = 0;
};

// One fit with all architectures when exponents are shared, otherwise one per architecture.
// `weights` are those of the points; none = 1. kData where the points cannot determine the law.
std::vector<Fit> FitLaws(std::span<const Point> points, const FitOptions& options,
                         std::span<const double> weights = {});
// From given laws instead of the grid; one architecture, or exponents in common.
Fit FitFrom(std::span<const Point> points, const FitOptions& options,
            const std::vector<std::vector<Law>>& starts, std::span<const double> weights = {});
// From given laws and from exponents around theirs, for points that differ little from those that
// the laws were fitted to.
Fit FitNear(std::span<const Point> points, const FitOptions& options,
            const std::vector<std::vector<Law>>& starts, std::span<const double> weights = {});

// f at given laws, one per architecture in the order of Points::Architectures.
double Objective(std::span<const Point> points, const std::vector<Law>& laws, double delta);

// Why these points cannot determine a law, or "".
std::string Undetermined(std::span<const Point> points, const FitOptions& options,
                         std::span<const double> weights = {});

// How well the points determine a law of one architecture.
struct Conditioning {
  // Largest over smallest singular value of the derivatives of ln L by E, A, alpha, B and beta
  // (those that are fitted), centred, each column scaled to length one.
  double condition = 0;
  std::string traded;  // the two coefficients that the weakest direction exchanges
  double r_squared = 0;
  double worst_residual = 0;          // max |ln L - ln L_i|
  std::vector<std::string> warnings;  // one line each
};
Conditioning Examine(std::span<const Point> points, const Law& law, const FitOptions& options);

// A law fitted without one size, and its error there. Sizes within 10 % count as one.
struct LeftOut {
  std::string architecture;
  double n = 0;           // the largest of the size
  int points = 0;         // left out
  double mean_error = 0;  // mean |L(N, D) / L_i - 1|
  double bias = 0;        // mean L(N, D) / L_i - 1
  bool largest = false;   // an extrapolation upwards
};
std::vector<LeftOut> LeaveOneSizeOut(std::span<const Point> points, const FitOptions& options);

}  // namespace weft
