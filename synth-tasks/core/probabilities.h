#pragma once
// Probabilities of values, for exact chance levels.

#include <algorithm>
#include <cstddef>
#include <vector>

namespace weft {

using Probabilities = std::vector<double>;  // [value], sums to 1

// Probabilities of value(x, y) for independent x and y.
template <class Function>
Probabilities Combine(const Probabilities& x, const Probabilities& y, Function&& value) {
  Probabilities result(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < y.size(); ++j) result[value(i, j)] += x[i] * y[j];
  }
  return result;
}

inline void Add(Probabilities& sum, const Probabilities& part, double weight) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * part[i];
}

}  // namespace weft
