#pragma once
// |x|_2 and the clipping factor.

#include <algorithm>
#include <cmath>

#include "kernels/global_norm/global_norm.h"

namespace weft {

inline void GlobalNormRef(const GlobalNormFwd& f) {
  const auto x = f.x.As<const double, 1>();
  double squares = 0;
  for (int64_t i = 0; i < x.shape[0]; ++i) squares += x(i) * x(i);
  const double norm = std::sqrt(squares);
  *f.norm.Data<double>() = norm;
  *f.scale.Data<double>() = f.max_norm > 0 ? std::min(1.0, f.max_norm / (norm + 1e-6)) : 1;
}

}  // namespace weft
