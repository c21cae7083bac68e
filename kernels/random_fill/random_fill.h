#pragma once
// Fills a parameter with its initial values:
//
//   kConstant  y_i = value
//   kUniform   y_i = low + (high - low) u_i,   u_i uniform in [0, 1)
//   kNormal    y_i = sigma n_i,                n_i standard normal, drawn again while |n_i| > 3
//   kLogarithm        y_i = ln(low + (high - low) u_i),   so that e^y is uniform; low > 0
//   kInverseSoftplus  y_i = ln(e^x_i - 1),  x_i = low (high / low)^u_i,   so that ln(1 + e^y) is
//                     log-uniform; low > 0
//
// in double, rounded once. Element i is a function of (seed, stream, i) alone: draw number r takes
// its random words from the counter (i, kInit | r << 16, stream); u the first two, n all four.

#include "kernels/base/op.h"
#include "kernels/base/rng.h"

namespace weft {

enum class Distribution { kConstant, kUniform, kNormal, kLogarithm, kInverseSoftplus };

struct RandomValues {
  Distribution distribution = Distribution::kConstant;
  double value = 0, low = 0, high = 1, sigma = 1;
  uint64_t seed = 0, stream = 0;

  WEFT_HOST_DEVICE double operator()(uint32_t i) const {
    if (distribution == Distribution::kConstant) return value;
    for (uint32_t draw = 0;; ++draw) {
      const PhiloxWords words =
          Philox({i, static_cast<uint32_t>(Purpose::kInit) | draw << 16,
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 seed);
      const double u = UnitInterval(words.at[0], words.at[1]);
      if (distribution == Distribution::kUniform) return low + (high - low) * u;
      if (distribution == Distribution::kLogarithm) return std::log(low + (high - low) * u);
      if (distribution == Distribution::kInverseSoftplus) {
        const double x = low * std::exp(u * std::log(high / low));
        return x + std::log(-std::expm1(-x));
      }
      const double n = StandardNormal(u, UnitInterval(words.at[2], words.at[3]));
      if (n >= -3 && n <= 3) return sigma * n;
    }
  }
};

struct RandomFill {
  TensorView y;     // [n]
  TensorView copy;  // bf16 [n], may be left out: y rounded, for products
  RandomValues values;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Out("y", s.y);
    v.Out("copy", s.copy);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const RandomFill&);
void Run(CudaStream&, const RandomFill&);

}  // namespace weft
