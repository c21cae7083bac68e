#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw.h"

namespace weft {
namespace {

constexpr int64_t kElementsPerItem = 16384;

// With c1 = 1 - beta1^step and c2 = 1 - beta2^step:  lr m^ / (sqrt(v^) + eps) = rate m / (sqrt(v) +
// floor)
//   where rate = lr sqrt(c2) / c1 and floor = eps sqrt(c2).
template <class T>
struct Constants {
  T scale, beta1, one_minus_beta1, beta2, one_minus_beta2, rate, floor;
};

template <class T>
void Update(const Constants<T>& c, T keep, int64_t n, T* p, const T* g, T* m, T* v) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T gradient = c.scale * g[i];
    m[i] = c.beta1 * m[i] + c.one_minus_beta1 * gradient;
    v[i] = c.beta2 * v[i] + c.one_minus_beta2 * (gradient * gradient);
    p[i] = keep * p[i] - c.rate * m[i] / (std::sqrt(v[i]) + c.floor);
  }
}

template <class T>
void Step(CpuStream& stream, const AdamwStep& s) {
  weft::Check(!s.copy.defined(), "adamw: copy is bf16, which the CPU backend does not write");
  if (s.scale.defined() && std::isnan(*s.scale.Data<T>())) return;
  const T* schedule = s.schedule.Data<T>();
  const double lr = schedule[0], c1 = schedule[1], c2 = schedule[2];
  const auto t = [](double value) { return static_cast<T>(value); };
  const Constants<T> c{s.scale.defined() ? *s.scale.Data<T>() : T{1},
                       t(s.beta1),
                       t(1 - s.beta1),
                       t(s.beta2),
                       t(1 - s.beta2),
                       t(lr * std::sqrt(c2) / c1),
                       t(s.eps * std::sqrt(c2))};
  T* p = s.p.Data<T>();
  const T* g = s.g.Data<T>();
  T* m = s.m.Data<T>();
  T* v = s.v.Data<T>();
  stream.ParallelRanges(s.p.dim(0), kElementsPerItem, [&](int64_t begin, int64_t end, Worker&) {
    const int64_t middle = std::clamp(s.decayed, begin, end);
    Update(c, t(1 - lr * s.weight_decay), middle - begin, p + begin, g + begin, m + begin,
           v + begin);
    Update(c, T{1}, end - middle, p + middle, g + middle, m + middle, v + middle);
  });
}

}  // namespace

void Run(CpuStream& stream, const AdamwStep& s) {
  DispatchReal(s.p.dtype(), [&]<class T>() { Step<T>(stream, s); });
}

}  // namespace weft
