#pragma once
// Every element by itself, as the header says.

#include <cmath>

#include "kernels/random_fill/random_fill.h"

namespace weft {

template <class T>
void RandomFillRef(const RandomFill& f) {
  const RandomValues& v = f.values;
  const auto y = f.y.As<T, 1>(), copy = f.copy.defined() ? f.copy.As<T, 1>() : Nd<T, 1>{};
  const auto unit = [](uint32_t a, uint32_t b) {
    return (std::floor(a / 32.) * 0x1p26 + std::floor(b / 64.)) / 0x1p53;
  };
  for (int64_t i = 0; i < y.shape[0]; ++i) {
    const auto words = [&](uint32_t draw) {
      return Philox({static_cast<uint32_t>(i), 1 + 65536 * draw, static_cast<uint32_t>(v.stream),
                     static_cast<uint32_t>(v.stream >> 32)},
                    v.seed);
    };
    const auto normal = [&](uint32_t draw) {
      const PhiloxWords w = words(draw);
      return std::sqrt(-2 * std::log(1 - unit(w.at[0], w.at[1]))) *
             std::cos(2 * std::acos(-1.) * unit(w.at[2], w.at[3]));
    };
    switch (v.distribution) {
      case Distribution::kConstant:
        y(i) = v.value;
        break;
      case Distribution::kUniform:
        y(i) = v.low + (v.high - v.low) * unit(words(0).at[0], words(0).at[1]);
        break;
      case Distribution::kLogarithm:
        y(i) = std::log(v.low + (v.high - v.low) * unit(words(0).at[0], words(0).at[1]));
        break;
      case Distribution::kInverseSoftplus:
        y(i) = std::log(
            std::expm1(v.low * std::pow(v.high / v.low, unit(words(0).at[0], words(0).at[1]))));
        break;
      case Distribution::kNormal:
        uint32_t draw = 0;
        while (std::abs(normal(draw)) > 3) ++draw;
        y(i) = v.sigma * normal(draw);
        break;
    }
    if (copy) copy(i) = y(i);
  }
}

}  // namespace weft
