#include "analysis/fit/bootstrap.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace weft {
namespace {

constexpr int kMostAttempts = 1000;
// Minima of the fit near which a draw is searched.
constexpr size_t kMostStarts = 2;

// The value below which a share `q` of the sorted values lies.
double Quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto i = static_cast<size_t>(at);
  const double rest = at - std::floor(at);
  if (rest == 0) return sorted[i];  // infinity times nothing
  return sorted[i] == sorted[i + 1] ? sorted[i] : sorted[i] * (1 - rest) + sorted[i + 1] * rest;
}

}  // namespace

Resampler::Resampler(std::span<const Point> points, const std::vector<std::string>& stratum,
                     const BootstrapOptions& options)
    : points_(points.size()), resample_(options.resample), seed_(options.seed) {
  std::map<std::string, std::map<std::tuple<std::string, double, double>, Cell>> strata;
  for (size_t i = 0; i < points.size(); ++i)
    strata[stratum[i]][{points[i].architecture, points[i].n, points[i].d}].push_back(i);
  for (const auto& [name, cells] : strata) {
    strata_.emplace_back();
    for (const auto& [key, cell] : cells) strata_.back().push_back(cell);
  }
}

std::vector<double> Resampler::Weights(int draw, int attempt) const {
  Rng rng(seed_, Purpose::kShuffle,
          static_cast<uint64_t>(attempt) << 32 | static_cast<uint32_t>(draw));
  const auto one_of = [&](size_t count) { return rng.Below(static_cast<uint32_t>(count)); };
  std::vector<double> weights(points_, 0);
  for (const std::vector<Cell>& cells : strata_) {
    for (size_t i = 0; i < cells.size(); ++i) {
      const Cell& cell = cells[resample_ == Resample::kSeeds ? i : one_of(cells.size())];
      for (size_t j = 0; j < cell.size(); ++j)
        weights[cell[resample_ == Resample::kPoints ? j : one_of(cell.size())]] += 1;
    }
  }
  return weights;
}

void InParallel(int count, int threads, const std::function<void(int)>& fn) {
  std::atomic<int> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    for (int i; (i = next++) < count;) {
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < std::min(threads, count); ++t) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

Ensemble Bootstrap(std::span<const Point> points, const FitOptions& fit_options,
                   const std::vector<Fit>& fits, const BootstrapOptions& options) {
  Ensemble out;
  // Points and starts of each fit.
  struct Part {
    std::vector<Point> points;
    std::vector<std::vector<Law>> starts;
  };
  std::vector<Part> parts;
  std::vector<Resampler> resamplers;
  for (const Fit& fit : fits) {
    Part part;
    std::vector<std::string> stratum;
    for (const std::string& name : fit.architectures) {
      for (const Point& point : points) {
        if (point.architecture != name) continue;
        part.points.push_back(point);
        stratum.push_back(name);
      }
    }
    for (const Minimum& minimum : fit.minima) {
      if (part.starts.size() < kMostStarts) part.starts.push_back(minimum.laws);
    }
    out.architectures.insert(out.architectures.end(), fit.architectures.begin(),
                             fit.architectures.end());
    out.laws.insert(out.laws.end(), fit.laws.begin(), fit.laws.end());
    resamplers.emplace_back(part.points, stratum, options);
    parts.push_back(std::move(part));
  }

  out.draws.resize(static_cast<size_t>(options.draws));
  std::atomic<int> redrawn{0};
  InParallel(options.draws, options.threads, [&](int draw) {
    std::vector<Law>& laws = out.draws[static_cast<size_t>(draw)];
    for (size_t f = 0; f < parts.size(); ++f) {
      const Part& part = parts[f];
      std::vector<double> weights;
      for (int attempt = 0;; ++attempt) {
        if (attempt == kMostAttempts) {
          Fail(ExitCode::kData, "of ", attempt,
               " resamples none determines the law; there are too few points for a bootstrap");
        }
        weights = resamplers[f].Weights(draw, attempt);
        if (Undetermined(part.points, fit_options, weights).empty()) break;
        ++redrawn;
      }
      const Fit fit = FitNear(part.points, fit_options, part.starts, weights);
      laws.insert(laws.end(), fit.laws.begin(), fit.laws.end());
    }
  });
  out.redrawn = redrawn;
  return out;
}

Interval IntervalOf(std::vector<double> values, double level) {
  Interval out;
  const size_t all = values.size();
  std::erase_if(values, [](double x) { return std::isnan(x); });
  out.undefined = static_cast<int>(all - values.size());
  if (values.empty()) {
    out.low = out.high = out.deviation = std::numeric_limits<double>::quiet_NaN();
    return out;
  }
  std::sort(values.begin(), values.end());
  out.low = Quantile(values, (1 - level) / 2);
  out.high = Quantile(values, (1 + level) / 2);
  double mean = 0, square = 0;
  for (const double x : values) mean += x / static_cast<double>(values.size());
  for (const double x : values)
    square += (x - mean) * (x - mean) / std::max(1.0, static_cast<double>(values.size()) - 1);
  out.deviation = std::sqrt(square);
  return out;
}

Interval IntervalOf(const Ensemble& ensemble, double level, const Statistic& statistic) {
  std::vector<double> values;
  for (const std::vector<Law>& laws : ensemble.draws) values.push_back(statistic(laws));
  return IntervalOf(std::move(values), level);
}

}  // namespace weft
