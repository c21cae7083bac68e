#pragma once
// What an op is: two structs of views, `Fwd` and `Bwd`, and Run() for both on every backend.
//
//   struct XFwd {
//     TensorView x, w;  // in
//     TensorView y;     // out
//
//     template <class Self, class V>
//     static void Visit(Self& s, V&& v) {
//       v.In("x", s.x);
//       v.In("w", s.w);
//       v.Out("y", s.y);
//     }
//     void Check() const;    // the one place where this op's shapes are checked
//     double Flops() const;  // of products: 2 per multiply-add
//   };
//
//   struct XBwd {
//     XFwd fwd;
//     TensorView dy;
//     Grad dx, dw;
//
//     template <class Self, class V>
//     static void Visit(Self& s, V&& v) {
//       v.Upstream("dy", s.dy, s.fwd.y);
//       v.Grad("dx", s.dx, s.fwd.x);
//       v.ParamGrad("dw", s.dw, s.fwd.w);
//     }
//     void Check() const;
//     double Flops() const;
//   };
//
//   void Run(CpuStream&, const XFwd&);
//   void Run(CpuStream&, const XBwd&);
//   void Run(CudaStream&, const XFwd&);
//   void Run(CudaStream&, const XBwd&);
//
// Roles in Visit: In (read; differentiable if the backward has a Grad for it), Out (overwritten),
// Saved (an output that only the backward reads), InOut (updated in place), and in the backward
// Upstream (gradient of an Out), Grad (gradient of an In, of its type) and ParamGrad (gradient of a
// parameter: of the wide type). Optional tensors are undefined views; visitors skip them.
//
// Bytes that an op must at least move are those of all tensors that Visit shows, and for a backward
// also what the forward read and saved. Where that is not so, the struct has `double Bytes()
// const`.
//
// FLOPs are those of matrix products, convolutions, attention and recurrences, as in the
// literature's counts. Element-wise work, norms and sums count none: bytes are what bounds them.

#include <concepts>
#include <string>
#include <variant>

#include "kernels/base/stream.h"
#include "kernels/base/tensor.h"

namespace weft {

inline double BytesOf(const TensorView& view) { return static_cast<double>(view.bytes()); }

// Sums the bytes of everything an op reads and writes; after the backward, of what it reads of the
// forward.
struct ByteCounter {
  bool outputs = true;
  double bytes = 0;
  void In(const char*, const TensorView& v) { bytes += BytesOf(v); }
  void Out(const char*, const TensorView& v) { bytes += outputs ? BytesOf(v) : 0; }
  void Saved(const char*, const TensorView& v) { bytes += BytesOf(v); }
  void InOut(const char*, const TensorView& v) { bytes += 2 * BytesOf(v); }
  void Upstream(const char*, const TensorView& v, const TensorView&) { bytes += BytesOf(v); }
  void Grad(const char*, const TensorView& v, const TensorView&) { bytes += BytesOf(v); }
  void ParamGrad(const char*, const TensorView& v, const TensorView&) { bytes += BytesOf(v); }
};

template <class Op>
double BytesMoved(const Op& op) {
  if constexpr (requires { op.Bytes(); }) {
    return op.Bytes();
  } else {
    ByteCounter counter;
    Op::Visit(op, counter);
    if constexpr (requires { op.fwd; }) {
      counter.outputs = false;
      op.fwd.Visit(op.fwd, counter);
    }
    return counter.bytes;
  }
}

template <class Op>
concept Checked = requires(const Op& op) {
  op.Check();
  { op.Flops() } -> std::convertible_to<double>;
};

template <Checked Op>
void Run(PlanStream& stream, const Op& op) {
  op.Check();
  stream.flops += op.Flops();
  stream.bytes += BytesMoved(op);
}

// A backend that is missing does not compile.
template <class Op>
concept RunsEverywhere = Checked<Op> &&
    requires(const Op& op, CpuStream& cpu, CudaStream& cuda, PlanStream& plan) {
  Run(cpu, op);
  Run(cuda, op);
  Run(plan, op);
};

// Fills memory, dense but for its rows, with zeros; a plan counts the bytes.
void Zero(Stream& stream, const TensorView& view);
// Copies dense memory, between host and device too. Host memory that is not pinned makes it wait.
void Copy(Stream& stream, const TensorView& to, const TensorView& from);
// Waits for everything that was launched.
void Synchronize(Stream& stream);

// "RmsNormFwd", from "... [with Op = weft::RmsNormFwd]".
std::string LastName(const std::string& signature);
template <class Op>
const char* NameOfOp() {
  static const std::string name = LastName(__PRETTY_FUNCTION__);
  return name.c_str();
}

// Checks, then runs on the stream's backend.
template <RunsEverywhere Op>
void Launch(Stream& stream, const Op& op) {
  op.Check();
  std::visit(
      [&](auto& backend) {
        OpObserver* observer = nullptr;
        if constexpr (requires { backend.observer; }) observer = backend.observer;
        if (observer) observer->Begin(NameOfOp<Op>());
        Run(backend, op);
        if (observer) observer->End();
      },
      stream);
}

}  // namespace weft
