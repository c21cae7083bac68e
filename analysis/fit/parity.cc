#include "analysis/fit/parity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace weft {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Curve = std::vector<std::pair<double, double>>;  // tokens, loss; in order of tokens
using Seeds = std::map<int64_t, std::map<double, double>>;

// The mean over the seeds in `chosen`, at the token counts that all of them have.
Curve MeanOf(const Seeds& seeds, const std::vector<int64_t>& chosen) {
  std::map<double, std::pair<double, size_t>> sums;
  for (const int64_t seed : chosen) {
    for (const auto& [tokens, loss] : seeds.at(seed)) {
      sums[tokens].first += loss;
      ++sums[tokens].second;
    }
  }
  Curve curve;
  for (const auto& [tokens, sum] : sums) {
    if (sum.second == chosen.size())
      curve.push_back({tokens, sum.first / static_cast<double>(chosen.size())});
  }
  return curve;
}

std::vector<int64_t> AllOf(const Seeds& seeds) {
  std::vector<int64_t> all;
  for (const auto& [seed, curve] : seeds) all.push_back(seed);
  return all;
}

void Cross(const Curve& curve, double target, double& first, double& for_good) {
  first = for_good = kInfinity;
  for (size_t i = 0; i < curve.size(); ++i) {
    const auto& [tokens, loss] = curve[i];
    if (loss > target) {
      for_good = kInfinity;
      continue;
    }
    if (for_good < kInfinity) continue;
    double at = tokens;
    if (i > 0) {
      const auto& [before, higher] = curve[i - 1];
      at = before * std::pow(tokens / before, (higher - target) / (higher - loss));
    }
    for_good = at;
    first = std::min(first, at);
  }
}

}  // namespace

ParityTable TokensToParity(std::span<const Point> curves, const std::string& reference,
                           const BootstrapOptions& options, double level) {
  std::map<std::string, std::map<std::string, Seeds>> sizes;  // size -> architecture -> seeds
  std::vector<std::string> order;                             // of sizes
  for (const Point& p : curves) {
    const std::string size = p.size.empty() ? Cat("n=", p.n) : p.size;
    if (!sizes.contains(size)) order.push_back(size);
    sizes[size][p.architecture][p.seed][p.d] = p.loss;
  }
  ParityTable out;
  for (const std::string& size : order) {
    const auto& architectures = sizes[size];
    const auto base = architectures.find(reference);
    if (base == architectures.end()) {
      out.notes.push_back(Cat("size ", size, " has no ", reference, " to compare with"));
      continue;
    }
    if (architectures.size() == 1)
      out.notes.push_back(Cat("size ", size, " has no architecture beside ", reference));
    for (const auto& [architecture, seeds] : architectures) {
      if (architecture == reference) continue;
      const Curve theirs = MeanOf(base->second, AllOf(base->second));
      const Curve mine = MeanOf(seeds, AllOf(seeds));
      if (theirs.empty() || mine.size() < 2) {
        out.notes.push_back(Cat("size ", size, ", ", architecture, ": found ", mine.size(),
                                " token counts that all seeds have, expected a curve"));
        continue;
      }
      Parity row{size, architecture, theirs.back().second, theirs.back().first};
      Cross(mine, row.target, row.first, row.for_good);
      row.seeds = static_cast<int>(std::min(seeds.size(), base->second.size()));
      if (options.draws > 0 && seeds.size() > 1 && base->second.size() > 1) {
        row.has_interval = true;
        std::vector<double> shares;
        for (int draw = 0; draw < options.draws; ++draw) {
          Rng rng(options.seed, Purpose::kShuffle, static_cast<uint64_t>(draw));
          const auto resampled = [&](const Seeds& from) {
            const std::vector<int64_t> all = AllOf(from);
            std::vector<int64_t> chosen;
            for (size_t i = 0; i < all.size(); ++i)
              chosen.push_back(all[rng.Below(static_cast<uint32_t>(all.size()))]);
            return MeanOf(from, chosen);
          };
          const Curve a = resampled(base->second), b = resampled(seeds);
          double first, for_good;
          Cross(b, a.back().second, first, for_good);
          shares.push_back(first / a.back().first);
        }
        row.share = IntervalOf(std::move(shares), level);
      }
      out.rows.push_back(row);
    }
  }
  if (out.rows.empty()) {
    Fail(ExitCode::kData, "no size has curves of ", reference, " and of another architecture",
         out.notes.empty() ? "" : ": " + out.notes.front());
  }
  return out;
}

}  // namespace weft
