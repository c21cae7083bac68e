#pragma once
// y = a + b, element by element: a residual connection that no norm follows directly.

#include "kernels/base/op.h"

namespace weft {

struct AddFwd {
  TensorView a, b, y;  // [..., D], rows may be strided

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("a", s.a);
    v.In("b", s.b);
    v.Out("y", s.y);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct AddBwd {
  AddFwd fwd;
  TensorView dy;
  Grad da, db;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dy", s.dy, s.fwd.y);
    v.Grad("da", s.da, s.fwd.a);
    v.Grad("db", s.db, s.fwd.b);
  }
  void Check() const;
  double Flops() const { return 0; }
  double Bytes() const { return BytesOf(dy) + BytesOf(da) + BytesOf(db); }
};

void Run(CpuStream&, const AddFwd&);
void Run(CpuStream&, const AddBwd&);
void Run(CudaStream&, const AddFwd&);
void Run(CudaStream&, const AddBwd&);

}  // namespace weft
