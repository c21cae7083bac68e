#pragma once
// Sixteen numbers that are worked on together: one AVX-512 register of floats. The compiler splits
// them where registers are narrower, and for double.

#include <cstdint>
#include <type_traits>
#include <utility>

namespace weft {

inline constexpr int kLanes = 16;

template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef float half __attribute__((vector_size(32)));
  typedef int32_t index __attribute__((vector_size(64)));
  typedef float unaligned __attribute__((vector_size(64), aligned(4), may_alias));
  typedef float unaligned_half __attribute__((vector_size(32), aligned(4), may_alias));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(128)));
  typedef double half __attribute__((vector_size(64)));
  typedef double unaligned __attribute__((vector_size(128), aligned(8), may_alias));
  typedef double unaligned_half __attribute__((vector_size(64), aligned(8), may_alias));
};
template <class T>
using Lanes = typename LanesOf<T>::type;

#define WEFT_INLINE __attribute__((always_inline))

// f(0), ..., f(N - 1) with compile-time arguments, so that arrays of Lanes stay in registers.
template <int N, class F>
WEFT_INLINE inline void Unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) WEFT_INLINE {
    (f(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

template <class T>
WEFT_INLINE inline Lanes<T> Load(const T* p) {
  return *reinterpret_cast<const typename LanesOf<T>::unaligned*>(p);
}
template <class T>
WEFT_INLINE inline void Store(T* p, const Lanes<T>& x) {
  *reinterpret_cast<typename LanesOf<T>::unaligned*>(p) = x;
}

// The first min(n, 16) lanes from memory, zero in the others.
template <class T>
WEFT_INLINE inline Lanes<T> Load(const T* p, int64_t n) {
  if (n >= kLanes) [[likely]]
    return Load(p);
  if (n == 8) {
    const typename LanesOf<T>::half half =
        *reinterpret_cast<const typename LanesOf<T>::unaligned_half*>(p);
    return __builtin_shufflevector(half, typename LanesOf<T>::half{}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                   10, 11, 12, 13, 14, 15);
  }
  alignas(64) T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
}

// Overwrites, or adds to, the first min(n, 16) numbers at p.
template <class T>
WEFT_INLINE inline void Store(T* p, const Lanes<T>& x, int64_t n, bool accumulate = false) {
  if (n >= kLanes) [[likely]] {
    Store(p, accumulate ? Load(p) + x : x);
    return;
  }
  if (n == 8) {
    using Half = typename LanesOf<T>::unaligned_half;
    const typename LanesOf<T>::half half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    *reinterpret_cast<Half*>(p) = accumulate ? *reinterpret_cast<const Half*>(p) + half : half;
    return;
  }
  alignas(64) T lanes[kLanes];
  Store(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i] = accumulate ? p[i] + lanes[i] : lanes[i];
}

// Transposes the 16 x 16 matrix of rows r: exchanges off-diagonal blocks of 8, 4, 2 and 1.
WEFT_INLINE inline void Transpose(Lanes<float> (&r)[kLanes]) {
  Unroll<4>([&](auto level) WEFT_INLINE {
    constexpr int kStep = 8 >> level;
    LanesOf<float>::index low{}, high{};
    for (int l = 0; l < kLanes; ++l) {
      low[l] = (l & kStep) ? kLanes + l - kStep : l;
      high[l] = (l & kStep) ? kLanes + l : l + kStep;
    }
    Unroll<kLanes>([&](auto i) WEFT_INLINE {
      if constexpr ((i & kStep) == 0) {
        const Lanes<float> a = r[i], b = r[i + kStep];
        r[i] = __builtin_shuffle(a, b, low);
        r[i + kStep] = __builtin_shuffle(a, b, high);
      }
    });
  });
}
inline void Transpose(Lanes<double> (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const double x = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = x;
    }
  }
}

// 1 in lane i, 0 elsewhere.
template <class T>
WEFT_INLINE inline Lanes<T> Unit(int i) {
  Lanes<T> unit{};
  unit[i] = 1;
  return unit;
}

}  // namespace weft
