#include <algorithm>

#include "kernels/elementary/elementary.h"
#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

constexpr int64_t kElementsPerItem = 16384;

int64_t RowsPerItem(int64_t F) {
  return std::max<int64_t>(1, kElementsPerItem / std::max<int64_t>(1, F));
}

template <class T>
void Forward(CpuStream& stream, const SwigluFwd& f) {
  const auto gate_up = f.gate_up.Rows().As<const T, 2>();
  const auto y = f.y.Rows().As<T, 2>();
  const int64_t F = y.shape[1];
  stream.ParallelRanges(y.shape[0], RowsPerItem(F), [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = &gate_up(r, 0);
      const T* up = gate + F;
      T* out = &y(r, 0);
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) out[i] = Silu(gate[i]) * up[i];
    }
  });
}

template <class T, bool kAccumulate, bool kGivesY>
void Backward(CpuStream& stream, const SwigluBwd& b) {
  const auto gate_up = b.fwd.gate_up.Rows().As<const T, 2>();
  const auto dy = b.dy.Rows().template As<const T, 2>();
  const auto dgate_up = b.dgate_up.Rows().template As<T, 2>();
  const auto y = kGivesY ? b.y.Rows().template As<T, 2>() : Nd<T, 2>{};
  const int64_t F = dy.shape[1];
  stream.ParallelRanges(dy.shape[0], RowsPerItem(F), [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = &gate_up(r, 0);
      const T* up = gate + F;
      const T* dout = &dy(r, 0);
      T* dgate = &dgate_up(r, 0);
      T* dup = dgate + F;
      T* out = kGivesY ? &y(r, 0) : nullptr;
#pragma omp simd
      for (int64_t i = 0; i < F; ++i) {
        const T s = Sigmoid(gate[i]), silu = gate[i] * s, u = up[i], d = dout[i];
        Put(dgate[i], d * u * (s + silu * (1 - s)), kAccumulate);
        Put(dup[i], d * silu, kAccumulate);
        if constexpr (kGivesY) out[i] = silu * u;
      }
    }
  });
}

}  // namespace

void Run(CpuStream& stream, const SwigluFwd& f) {
  DispatchReal(f.y.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const SwigluBwd& b) {
  DispatchReal(b.dy.dtype(), [&]<class T>() {
    if (b.y.defined()) {
      b.dgate_up.accumulate ? Backward<T, true, true>(stream, b)
                            : Backward<T, false, true>(stream, b);
    } else {
      b.dgate_up.accumulate ? Backward<T, true, false>(stream, b)
                            : Backward<T, false, false>(stream, b);
    }
  });
}

}  // namespace weft
