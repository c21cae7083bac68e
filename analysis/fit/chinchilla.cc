#include "analysis/fit/chinchilla.h"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "analysis/fit/minimize.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Exponents of the grid, per axis; neighbours differ by the same factor.
constexpr int kGridSize = 20;
constexpr double kGridLeast = 0.02;
// Rounds of reweighting at a point of the grid.
constexpr int kGridRounds = 4;
// Starts beyond the local minima of the grid, and starts around a law.
constexpr int kExtraStarts = 8;
constexpr size_t kStartsAround = 4;
// By which factor exponents around those of a law differ.
constexpr double kAround = 1.6;
// Minima whose objectives and losses agree so far are one.
constexpr double kSameObjective = 1e-8, kSameLoss = 1e-5;

// The coefficients of one architecture in centred form: L = E + A u + B v with u = exp(-alpha x),
// x = ln N - mean ln N, and v = exp(-beta y) likewise.
struct Coefficients {
  double E = 0, A = 0, B = 0;
};

// The points of one architecture.
struct Group {
  std::string architecture;
  ArrayXd x, y, loss, weight;
  double centre_n = 0, centre_d = 0;

  Index size() const { return x.size(); }
  Law LawOf(double alpha, double beta, const Coefficients& c) const {
    return {c.E, c.A * std::exp(alpha * centre_n), alpha, c.B * std::exp(beta * centre_d), beta};
  }
  Coefficients CoefficientsOf(const Law& law) const {
    return {law.E, law.A * std::exp(-law.alpha * centre_n), law.B * std::exp(-law.beta * centre_d)};
  }
};

std::vector<std::string> ArchitecturesOf(std::span<const Point> points) {
  std::vector<std::string> names;
  for (const Point& point : points) {
    if (std::find(names.begin(), names.end(), point.architecture) == names.end())
      names.push_back(point.architecture);
  }
  return names;
}

// Points without weight are left out, architectures without points kept.
std::vector<Group> GroupsOf(std::span<const Point> points, std::span<const double> weights) {
  std::vector<Group> groups;
  for (const std::string& name : ArchitecturesOf(points)) {
    std::vector<size_t> members;
    for (size_t i = 0; i < points.size(); ++i) {
      if (points[i].architecture == name && (weights.empty() || weights[i] > 0))
        members.push_back(i);
    }
    const auto size = static_cast<Index>(members.size());
    Group group{name, ArrayXd(size), ArrayXd(size), ArrayXd(size), ArrayXd(size)};
    for (Index i = 0; i < size; ++i) {
      const size_t from = members[static_cast<size_t>(i)];
      group.x[i] = std::log(points[from].n);
      group.y[i] = std::log(points[from].d);
      group.loss[i] = points[from].loss;
      group.weight[i] = weights.empty() ? 1 : weights[from];
    }
    group.centre_n = size > 0 ? group.x.mean() : 0;
    group.centre_d = size > 0 ? group.y.mean() : 0;
    group.x -= group.centre_n;
    group.y -= group.centre_d;
    groups.push_back(std::move(group));
  }
  return groups;
}

// E, A and B >= 0 that minimise sum w (E + A u + B v - L)^2: of the solutions with some of them at
// zero, the best that is feasible.
Coefficients LeastSquares(const Eigen::Matrix3d& normal, const Eigen::Vector3d& right) {
  Coefficients best;
  double least = kInfinity;
  for (int zeros = 0; zeros < 8; ++zeros) {
    Eigen::Matrix3d matrix = normal;
    Eigen::Vector3d b = right;
    for (int i = 0; i < 3; ++i) {
      if ((zeros >> i & 1) == 0) continue;
      matrix.row(i).setZero();
      matrix.col(i).setZero();
      matrix(i, i) = 1;
      b[i] = 0;
    }
    const Eigen::Vector3d c = matrix.ldlt().solve(b);
    if (!c.allFinite() || c.minCoeff() < 0) continue;
    const double value = c.dot(normal * c) / 2 - c.dot(right);
    if (value < least) {
      least = value;
      best = {c[0], c[1], c[2]};
    }
    if (zeros == 0) break;  // the minimum itself is feasible
  }
  return best;
}

// f / delta^2 of some architectures with exponents in common, as a function of
// (alpha, beta, E_0, A_0, B_0, E_1, ...).
class Problem {
 public:
  Problem(std::span<const Group> groups, const FitOptions& options)
      : groups_(groups), options_(options) {
    const auto size = static_cast<Index>(2 + 3 * groups.size());
    low_ = VectorXd::Zero(size);
    high_ = VectorXd::Constant(size, kInfinity);
    low_[0] = options.alpha.value_or(kLeastExponent);
    high_[0] = options.alpha.value_or(kGreatestExponent);
    low_[1] = options.beta.value_or(kLeastExponent);
    high_[1] = options.beta.value_or(kGreatestExponent);
  }

  void operator()(const VectorXd& theta, Local& at) const {
    const Index size = theta.size();
    at.value = 0;
    at.gradient.setZero(size);
    at.hessian.setZero(size, size);
    at.metric.setZero(size, size);
    for (size_t k = 0; k < groups_.size(); ++k) Add(k, theta, true, at);
  }
  double Value(const VectorXd& theta) const {
    Local at;
    for (size_t k = 0; k < groups_.size(); ++k) Add(k, theta, false, at);
    return at.value;
  }

  std::vector<Law> LawsOf(const VectorXd& theta) const {
    std::vector<Law> laws;
    for (size_t k = 0; k < groups_.size(); ++k) {
      const auto at = static_cast<Index>(2 + 3 * k);
      laws.push_back(
          groups_[k].LawOf(theta[0], theta[1], {theta[at], theta[at + 1], theta[at + 2]}));
    }
    return laws;
  }
  VectorXd ThetaOf(const std::vector<Law>& laws) const {
    VectorXd theta(low_.size());
    theta[0] = laws.front().alpha;
    theta[1] = laws.front().beta;
    for (size_t k = 0; k < groups_.size(); ++k) {
      const Coefficients c = groups_[k].CoefficientsOf(laws[k]);
      theta.segment<3>(static_cast<Index>(2 + 3 * k)) << c.E, c.A, c.B;
    }
    return theta;
  }

  Minimum Polish(const VectorXd& theta) const {
    const Descent descent = Descend(std::cref(*this), theta, low_, high_);
    return {LawsOf(descent.x), descent.value * options_.delta * options_.delta, 1,
            descent.stationary};
  }

  // Places to start from: the local minima of f over a grid of exponents, where E, A and B solve
  // a reweighted non-negative least squares problem, and the best few beside them.
  std::vector<VectorXd> Starts() const {
    const std::vector<double> alphas = GridOf(options_.alpha), betas = GridOf(options_.beta);
    const size_t rows = alphas.size(), columns = betas.size();
    const auto [thetas, values] = Solve(alphas, betas);
    const auto is_minimum = [&, &values = values](size_t cell) {
      const size_t i = cell / columns, j = cell % columns;
      for (size_t r = i - (i > 0); r <= std::min(i + 1, rows - 1); ++r) {
        for (size_t c = j - (j > 0); c <= std::min(j + 1, columns - 1); ++c) {
          if (values[r * columns + c] < values[cell]) return false;
        }
      }
      return true;
    };
    std::vector<VectorXd> starts;
    int extra = 0;
    for (const size_t cell : InOrder(values)) {
      if (is_minimum(cell) || extra++ < kExtraStarts) starts.push_back(thetas[cell]);
    }
    return starts;
  }
  // The best few of the exponents around those of `laws`.
  std::vector<VectorXd> StartsAround(const std::vector<Law>& laws) const {
    const auto around = [](double exponent, const std::optional<double>& given) {
      if (given) return std::vector<double>{*given};
      return std::vector<double>{exponent / kAround, exponent, exponent * kAround};
    };
    const auto [thetas, values] =
        Solve(around(laws.front().alpha, options_.alpha), around(laws.front().beta, options_.beta));
    std::vector<VectorXd> starts;
    for (const size_t cell : InOrder(values)) {
      if (starts.size() < kStartsAround) starts.push_back(thetas[cell]);
    }
    return starts;
  }

 private:
  static std::vector<double> GridOf(const std::optional<double>& given) {
    if (given) return {*given};
    std::vector<double> grid;
    const double factor = std::pow(kGreatestExponent / kGridLeast, 1.0 / (kGridSize - 1));
    for (int i = 0; i < kGridSize; ++i) grid.push_back(kGridLeast * std::pow(factor, i));
    return grid;
  }

  // Thetas and values of f for all pairs of exponents.
  std::pair<std::vector<VectorXd>, std::vector<double>> Solve(
      const std::vector<double>& alphas, const std::vector<double>& betas) const {
    std::vector<VectorXd> thetas;
    std::vector<double> values;
    for (const double alpha : alphas) {
      for (const double beta : betas) {
        thetas.push_back(Linear(alpha, beta));
        values.push_back(Value(thetas.back()));
      }
    }
    return {thetas, values};
  }
  static std::vector<size_t> InOrder(const std::vector<double>& values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return values[a] < values[b]; });
    return order;
  }

  VectorXd Linear(double alpha, double beta) const {
    VectorXd theta(low_.size());
    theta[0] = alpha;
    theta[1] = beta;
    for (size_t k = 0; k < groups_.size(); ++k) {
      const Group& group = groups_[k];
      Eigen::Matrix<double, Eigen::Dynamic, 3> basis(group.size(), 3);
      basis.col(0).setOnes();
      basis.col(1) = (-alpha * group.x).exp();
      basis.col(2) = (-beta * group.y).exp();
      // Relative errors of L stand for errors of ln L.
      ArrayXd weight = group.weight / group.loss.square();
      Coefficients c;
      for (int round = 0; round < kGridRounds; ++round) {
        const Eigen::Matrix<double, Eigen::Dynamic, 3> weighted = basis.array().colwise() * weight;
        c = LeastSquares(weighted.transpose() * basis, weighted.transpose() * group.loss.matrix());
        const ArrayXd residual = (basis * Eigen::Vector3d(c.E, c.A, c.B)).array() / group.loss - 1;
        weight = group.weight / group.loss.square() *
                 (options_.delta / residual.abs().max(options_.delta));
      }
      theta.segment<3>(static_cast<Index>(2 + 3 * k)) << c.E, c.A, c.B;
    }
    return theta;
  }

  void Add(size_t k, const VectorXd& theta, bool derivatives, Local& at) const {
    const Group& group = groups_[k];
    const auto first = static_cast<Index>(2 + 3 * k);
    const double alpha = theta[0], beta = theta[1];
    const double E = theta[first], A = theta[first + 1], B = theta[first + 2];
    const double delta = options_.delta;
    const ArrayXd u = (-alpha * group.x).exp(), v = (-beta * group.y).exp();
    const ArrayXd model = E + A * u + B * v;
    const ArrayXd residual = (model / group.loss).log() / delta;
    if (!residual.allFinite()) {  // all three are zero
      at.value = kInfinity;
      return;
    }
    const ArrayXd size = residual.abs();
    const ArrayXd slope = residual.max(-1.0).min(1.0);
    at.value += (group.weight * slope * (residual - slope / 2)).sum();
    if (!derivatives) return;

    // Columns: d ln L by alpha, beta, E, A, B.
    Eigen::Matrix<double, Eigen::Dynamic, 5> J(group.size(), 5);
    const ArrayXd inverse = model.inverse();
    J.col(2) = inverse;
    J.col(3) = u * inverse;
    J.col(4) = v * inverse;
    J.col(0) = -A * group.x * J.col(3).array();
    J.col(1) = -B * group.y * J.col(4).array();

    const ArrayXd pull = group.weight * slope / delta;
    const ArrayXd inside = (size < 1).select(group.weight, 0) / (delta * delta);
    const Eigen::Matrix<double, 5, 1> gradient = J.transpose() * pull.matrix();
    Eigen::Matrix<double, 5, 5> hessian =
        J.transpose() * (J.array().colwise() * (inside - pull)).matrix();
    const Eigen::Matrix<double, 5, 5> metric =
        J.transpose() *
        (J.array().colwise() * (group.weight / size.max(1.0) / (delta * delta))).matrix();
    // What the second derivatives of L add.
    const ArrayXd xu = pull * group.x * J.col(3).array(), yv = pull * group.y * J.col(4).array();
    hessian(0, 3) -= xu.sum(), hessian(3, 0) -= xu.sum();
    hessian(1, 4) -= yv.sum(), hessian(4, 1) -= yv.sum();
    hessian(0, 0) += A * (xu * group.x).sum();
    hessian(1, 1) += B * (yv * group.y).sum();

    const std::array<Index, 5> to = {0, 1, first, first + 1, first + 2};
    for (Index i = 0; i < 5; ++i) {
      at.gradient[to[i]] += gradient[i];
      for (Index j = 0; j < 5; ++j) {
        at.hessian(to[i], to[j]) += hessian(i, j);
        at.metric(to[i], to[j]) += metric(i, j);
      }
    }
  }

  std::span<const Group> groups_;
  const FitOptions& options_;
  VectorXd low_, high_;
};

// Whether two minima are one: the same objective and the same losses.
bool Same(const Minimum& a, const Minimum& b, std::span<const Group> groups) {
  const double larger = std::max(a.objective, b.objective);
  if (std::abs(a.objective - b.objective) > kSameObjective * larger && larger > 1e-20) return false;
  for (size_t k = 0; k < groups.size(); ++k) {
    const Law &p = a.laws[k], &q = b.laws[k];
    if (p.alpha == q.alpha && p.beta == q.beta && p.E == q.E) continue;
    const ArrayXd n = groups[k].x + groups[k].centre_n, d = groups[k].y + groups[k].centre_d;
    const auto losses = [&](const Law& law) -> ArrayXd {
      return law.E + (std::log(law.A) - law.alpha * n).exp() +
             (std::log(law.B) - law.beta * d).exp();
    };
    if (((losses(p) / losses(q)) - 1).abs().maxCoeff() > kSameLoss) return false;
  }
  return true;
}

Fit FitGroups(std::span<const Group> groups, const Problem& problem,
              const std::vector<VectorXd>& starts) {
  Fit fit;
  fit.starts = static_cast<int>(starts.size());
  for (const Group& group : groups) fit.architectures.push_back(group.architecture);
  for (const VectorXd& start : starts) {
    Minimum found = problem.Polish(start);
    const auto same = std::find_if(fit.minima.begin(), fit.minima.end(),
                                   [&](const Minimum& m) { return Same(m, found, groups); });
    if (same == fit.minima.end()) {
      fit.minima.push_back(std::move(found));
    } else {
      found.starts = same->starts + 1;
      if (found.objective < same->objective)
        *same = std::move(found);
      else
        same->starts = found.starts;
    }
  }
  std::stable_sort(fit.minima.begin(), fit.minima.end(),
                   [](const Minimum& a, const Minimum& b) { return a.objective < b.objective; });
  fit.laws = fit.minima.front().laws;
  fit.objective = fit.minima.front().objective;
  return fit;
}

size_t Distinct(const ArrayXd& logs) {
  std::set<int64_t> values;
  for (Index i = 0; i < logs.size(); ++i) values.insert(std::llround(logs[i] * 1e6));
  return values.size();
}

std::string Named(const std::string& architecture) {
  return architecture.empty() ? "" : "architecture " + architecture + ": ";
}

std::string UndeterminedGroups(std::span<const Group> groups, const FitOptions& options) {
  const int exponents = !options.alpha + !options.beta;
  bool enough_n = false, enough_d = false;
  Index points = 0;
  for (const Group& group : groups) {
    const Index least = options.shared ? 3 : 3 + exponents;
    if (group.size() < least) {
      return Cat(Named(group.architecture), "found ", group.size(),
                 group.size() == 1 ? " point" : " points", ", expected at least ", least,
                 " for as many unknowns");
    }
    const size_t sizes = Distinct(group.x), counts = Distinct(group.y);
    const size_t need_n = options.alpha || options.shared ? 2 : 3;
    const size_t need_d = options.beta || options.shared ? 2 : 3;
    if (sizes < need_n) {
      return Cat(Named(group.architecture), "found ", sizes, sizes == 1 ? " size" : " sizes",
                 ", expected at least ", need_n, options.alpha ? "" : ", or give --alpha");
    }
    if (counts < need_d) {
      return Cat(Named(group.architecture), "found ", counts,
                 counts == 1 ? " token count" : " token counts", ", expected at least ", need_d,
                 options.beta ? "" : ", or give --beta");
    }
    enough_n = enough_n || sizes >= 3 || options.alpha;
    enough_d = enough_d || counts >= 3 || options.beta;
    points += group.size();
  }
  const auto unknowns = static_cast<Index>(3 * groups.size()) + exponents;
  if (points < unknowns)
    return Cat("found ", points, " points, expected at least ", unknowns, " for as many unknowns");
  if (!enough_n) return "no architecture has three sizes, expected one that does, or --alpha";
  if (!enough_d) return "no architecture has three token counts, expected one that does, or --beta";
  return "";
}

}  // namespace

std::string Undetermined(std::span<const Point> points, const FitOptions& options,
                         std::span<const double> weights) {
  if (points.empty()) return "there are no points";
  return UndeterminedGroups(GroupsOf(points, weights), options);
}

std::vector<Fit> FitLaws(std::span<const Point> points, const FitOptions& options,
                         std::span<const double> weights) {
  if (points.empty()) Fail(ExitCode::kData, "there are no points to fit");
  const std::vector<Group> groups = GroupsOf(points, weights);
  if (const std::string why = UndeterminedGroups(groups, options); !why.empty())
    Fail(ExitCode::kData, why);
  std::vector<Fit> fits;
  const size_t together = options.shared ? groups.size() : 1;
  for (size_t k = 0; k < groups.size(); k += together) {
    const auto part = std::span(groups).subspan(k, together);
    const Problem problem(part, options);
    fits.push_back(FitGroups(part, problem, problem.Starts()));
  }
  return fits;
}

Fit FitFrom(std::span<const Point> points, const FitOptions& options,
            const std::vector<std::vector<Law>>& starts, std::span<const double> weights) {
  const std::vector<Group> groups = GroupsOf(points, weights);
  const Problem problem(groups, options);
  std::vector<VectorXd> thetas;
  for (const std::vector<Law>& laws : starts) thetas.push_back(problem.ThetaOf(laws));
  return FitGroups(groups, problem, thetas);
}

Fit FitNear(std::span<const Point> points, const FitOptions& options,
            const std::vector<std::vector<Law>>& starts, std::span<const double> weights) {
  const std::vector<Group> groups = GroupsOf(points, weights);
  const Problem problem(groups, options);
  std::vector<VectorXd> thetas;
  for (const std::vector<Law>& laws : starts) {
    thetas.push_back(problem.ThetaOf(laws));
    for (VectorXd& theta : problem.StartsAround(laws)) thetas.push_back(std::move(theta));
  }
  return FitGroups(groups, problem, thetas);
}

double Objective(std::span<const Point> points, const std::vector<Law>& laws, double delta) {
  const std::vector<std::string> architectures = ArchitecturesOf(points);
  Check(architectures.size() == laws.size(), "found ", laws.size(), " laws, expected ",
        architectures.size());
  double sum = 0;
  for (const Point& point : points) {
    const auto k = std::find(architectures.begin(), architectures.end(), point.architecture) -
                   architectures.begin();
    const double r =
        std::abs(std::log(laws[static_cast<size_t>(k)].Loss(point.n, point.d) / point.loss));
    sum += r <= delta ? r * r / 2 : delta * (r - delta / 2);
  }
  return sum;
}

std::vector<LeftOut> LeaveOneSizeOut(std::span<const Point> points, const FitOptions& options) {
  constexpr double kSameSize = 1.1;
  std::vector<LeftOut> all;
  for (const std::string& name : ArchitecturesOf(points)) {
    std::vector<double> sizes;
    for (const Point& point : points) {
      if (point.architecture == name) sizes.push_back(point.n);
    }
    std::sort(sizes.begin(), sizes.end());
    std::vector<std::pair<double, double>> ranges;  // least and greatest N of a size
    for (const double n : sizes) {
      if (ranges.empty() || n > kSameSize * ranges.back().first) ranges.push_back({n, n});
      ranges.back().second = n;
    }
    for (const auto& [least, greatest] : ranges) {
      // Laws of other architectures matter only where exponents are in common.
      std::vector<Point> kept, out;
      for (const Point& point : points) {
        const bool mine = point.architecture == name;
        if (!mine && !options.shared) continue;
        (mine && point.n >= least && point.n <= greatest ? out : kept).push_back(point);
      }
      if (kept.empty() || !Undetermined(kept, options).empty()) continue;
      const Fit fit = FitLaws(kept, options).front();
      const auto k = std::find(fit.architectures.begin(), fit.architectures.end(), name) -
                     fit.architectures.begin();
      if (k == static_cast<ptrdiff_t>(fit.laws.size())) continue;
      LeftOut left{name, greatest, static_cast<int>(out.size())};
      left.largest = greatest == ranges.back().second;
      for (const Point& point : out) {
        const double error =
            fit.laws[static_cast<size_t>(k)].Loss(point.n, point.d) / point.loss - 1;
        left.mean_error += std::abs(error) / left.points;
        left.bias += error / left.points;
      }
      all.push_back(left);
    }
  }
  return all;
}

Conditioning Examine(std::span<const Point> points, const Law& law, const FitOptions& options) {
  constexpr double kIllConditioned = 75, kNarrow = 10, kCollinear = 0.95;
  const Group group = GroupsOf(points, {}).front();
  Conditioning out;

  const Coefficients c = group.CoefficientsOf(law);
  const ArrayXd u = (-law.alpha * group.x).exp(), v = (-law.beta * group.y).exp();
  const ArrayXd model = c.E + c.A * u + c.B * v;
  std::vector<std::string> names = {"E", "A", "B"};
  MatrixXd J(group.size(), 3 + !options.alpha + !options.beta);
  J.col(0) = model.inverse();
  J.col(1) = u / model;
  J.col(2) = v / model;
  Index column = 3;
  if (!options.alpha) J.col(column++) = group.x * u / model, names.push_back("alpha");
  if (!options.beta) J.col(column) = group.y * v / model, names.push_back("beta");
  J.colwise().normalize();
  const Eigen::JacobiSVD<MatrixXd> svd(J, Eigen::ComputeThinV);
  const VectorXd values = svd.singularValues();
  const Index last = values.size() - 1;
  out.condition = values[0] / values[last];
  const ArrayXd weakest = svd.matrixV().col(last).array().abs();
  std::vector<Index> order(names.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return weakest[a] > weakest[b]; });
  out.traded =
      names[static_cast<size_t>(order[0])] + " and " + names[static_cast<size_t>(order[1])];

  const ArrayXd residual = model - group.loss;
  out.r_squared = 1 - residual.square().sum() / (group.loss - group.loss.mean()).square().sum();
  out.worst_residual = (model / group.loss).log().abs().maxCoeff();

  const auto warn = [&](const auto&... parts) { out.warnings.push_back(Cat(parts...)); };
  if (!(out.condition < kIllConditioned)) {
    warn("ill-conditioned: condition number ", std::round(out.condition), " (above ",
         kIllConditioned, "), ", out.traded,
         " trade against each other; the losses are "
         "described, the single coefficients are not determined");
  }
  for (const auto& [name, value, given] :
       {std::tuple{"alpha", law.alpha, options.alpha.has_value()},
        std::tuple{"beta", law.beta, options.beta.has_value()}}) {
    if (!given && (value <= kLeastExponent || value >= kGreatestExponent))
      warn(name, " is at its bound ", value, ": these points do not determine it");
  }
  for (const auto& [name, value] : {std::pair{"E", law.E}, {"A", law.A}, {"B", law.B}}) {
    if (!(value > 0)) warn(name, " is at its bound 0: these points do not determine it");
  }
  const double n_range = std::exp(group.x.maxCoeff() - group.x.minCoeff());
  const double d_range = std::exp(group.y.maxCoeff() - group.y.minCoeff());
  if (n_range < kNarrow)
    warn("narrow: the largest size is only ", n_range, " times the smallest, expected ", kNarrow);
  if (d_range < kNarrow)
    warn("narrow: the most tokens are only ", d_range, " times the fewest, expected ", kNarrow);
  const double correlation =
      (group.x * group.y).sum() / std::sqrt(group.x.square().sum() * group.y.square().sum());
  if (std::abs(correlation) > kCollinear) {
    warn("N and D go together (correlation of their logs ", correlation,
         "): vary the tokens per parameter to tell A from B");
  }
  const Index unknowns = 3 + !options.alpha + !options.beta;
  if (group.size() < 2 * unknowns)
    warn("few points: ", group.size(), " for ", unknowns, " unknowns");
  return out;
}

}  // namespace weft
