#pragma once
// Distributions of values, for exact chance levels.

#include <algorithm>
#include <cstddef>
#include <vector>

namespace weft {

using Distribution = std::vector<double>;  // [value], sums to 1

// Distribution of value(x, y) for independent x and y.
template <class Function>
Distribution Combine(const Distribution& x, const Distribution& y, Function&& value) {
  Distribution result(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < y.size(); ++j) result[value(i, j)] += x[i] * y[j];
  }
  return result;
}

inline void Add(Distribution& sum, const Distribution& part, double weight) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * part[i];
}

}  // namespace weft
