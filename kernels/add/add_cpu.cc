#include "kernels/add/add.h"

namespace weft {
namespace {

constexpr int64_t kRowsPerItem = 64;

template <class T>
void Forward(CpuStream& stream, const AddFwd& f) {
  const auto a = f.a.Rows().As<const T, 2>(), b = f.b.Rows().As<const T, 2>();
  const auto y = f.y.Rows().As<T, 2>();
  stream.ParallelRanges(a.shape[0], kRowsPerItem, [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t r = begin; r < end; ++r) {
      const T *pa = &a(r, 0), *pb = &b(r, 0);
      T* py = &y(r, 0);
      for (int64_t d = 0; d < a.shape[1]; ++d) py[d] = pa[d] + pb[d];
    }
  });
}

template <class T>
void Backward(CpuStream& stream, const AddBwd& op) {
  const auto dy = op.dy.Rows().template As<const T, 2>();
  const auto da = op.da.Rows().template As<T, 2>(), db = op.db.Rows().template As<T, 2>();
  stream.ParallelRanges(dy.shape[0], kRowsPerItem, [&](int64_t begin, int64_t end, Worker&) {
    for (int64_t r = begin; r < end; ++r) {
      const T* up = &dy(r, 0);
      T *pa = &da(r, 0), *pb = &db(r, 0);
      for (int64_t d = 0; d < dy.shape[1]; ++d) Put(pa[d], up[d], op.da.accumulate);
      for (int64_t d = 0; d < dy.shape[1]; ++d) Put(pb[d], up[d], op.db.accumulate);
    }
  });
}

}  // namespace

void Run(CpuStream& stream, const AddFwd& f) {
  DispatchReal(f.a.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const AddBwd& b) {
  DispatchReal(b.fwd.a.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
