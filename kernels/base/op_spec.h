#pragma once
// What the law harness and the benchmarks know of an op: cases, and a forward reference for any
// scalar.
//
//   void AddOp_rms_norm(OpSuite& suite) {
//     OpSpec<RmsNormFwd, RmsNormBwd> spec{
//         .name = "rms_norm",
//         .reference_f64 = RmsNormRef<double>,
//         .reference_complex = RmsNormRef<std::complex<double>>};
//     spec.laws.push_back({"B2_T7_D16", [](CaseMaker& make) { ... return fwd; }});
//     suite.Add(std::move(spec));
//   }
//
// The harness builds the backward by itself: Visit says which gradient belongs to which tensor.
// A case builder states sizes and ranges only; it is called for f32, f64, complex<double> and bf16
// and gets the same values. WideIn and WideOut are for tensors that stay f32 beside bf16.

#include <algorithm>
#include <complex>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/op.h"
#include "kernels/base/rng.h"

namespace weft {

// Values of an input tensor: value(rng, flat index).
using Fill = std::function<double(Rng&, int64_t)>;
inline Fill Normal(double scale = 1) {
  return [scale](Rng& rng, int64_t) { return scale * rng.Normal(); };
}
inline Fill Uniform(double low, double high) {
  return [low, high](Rng& rng, int64_t) { return rng.Uniform(low, high); };
}
inline Fill Integers(int64_t low, int64_t high) {  // inclusive
  return [low, high](Rng& rng, int64_t) {
    return static_cast<double>(low + rng.Below(static_cast<uint32_t>(high - low + 1)));
  };
}
inline Fill Values(std::vector<double> values) {
  return
      [values = std::move(values)](Rng&, int64_t i) { return values.at(static_cast<size_t>(i)); };
}

// Cuts the tensors of one case from a guarded arena. `pad` > 0 puts that many unused elements
// behind each row, so that every kernel is run on strided views too. With `bf16_values` all values
// are bf16 numbers, whatever type holds them: the truth of a bf16 run. A larger tensor of floats
// repeats its first `distinct` values, since drawing them takes long. An arena that only plans is
// not filled.
class CaseMaker {
 public:
  CaseMaker(Arena& arena, DType dtype, int64_t pad, bool bf16_values = false,
            int64_t distinct = std::numeric_limits<int64_t>::max())
      : arena_(arena), dtype_(dtype), pad_(pad), bf16_values_(bf16_values), distinct_(distinct) {}

  DType dtype() const { return dtype_; }
  bool bf16_values() const { return bf16_values_; }
  TensorView In(const char* name, std::initializer_list<int64_t> shape,
                const Fill& fill = Normal()) {
    return Filled(dtype_, name, static_cast<int>(shape.size()), shape.begin(), fill);
  }
  TensorView InLike(const char* name, const TensorView& like, const Fill& fill = Normal()) {
    const TensorView shape = like;
    int64_t dims[kMaxRank];
    for (int i = 0; i < shape.rank(); ++i) dims[i] = shape.dim(i);
    return Filled(like.dtype(), name, shape.rank(), dims, fill);
  }
  TensorView WideIn(const char* name, std::initializer_list<int64_t> shape,
                    const Fill& fill = Normal()) {
    return Filled(Wide(dtype_), name, static_cast<int>(shape.size()), shape.begin(), fill);
  }
  TensorView WideOut(const char* name, std::initializer_list<int64_t> shape) {
    return Cut(Wide(dtype_), name, static_cast<int>(shape.size()), shape.begin());
  }
  TensorView Int(const char* name, std::initializer_list<int64_t> shape, const Fill& fill) {
    const int64_t pad = std::exchange(pad_, 0);  // integer tensors are dense
    const TensorView view =
        Filled(DType::kI32, name, static_cast<int>(shape.size()), shape.begin(), fill);
    pad_ = pad;
    return view;
  }
  TensorView Out(const char* name, std::initializer_list<int64_t> shape) {
    return Cut(dtype_, name, static_cast<int>(shape.size()), shape.begin());
  }
  TensorView OutLike(const char* name, const TensorView& like, bool wide = false) {
    int64_t dims[kMaxRank];
    for (int i = 0; i < like.rank(); ++i) dims[i] = like.dim(i);
    return Cut(wide ? Wide(like.dtype()) : like.dtype(), name, like.rank(), dims);
  }

 private:
  TensorView Cut(DType dtype, const char* name, int rank, const int64_t* shape) {
    int64_t padded[kMaxRank];
    std::copy_n(shape, rank, padded);
    const int64_t pad = rank >= 2 ? pad_ : 0;
    padded[rank - 1] += pad;
    const TensorView whole = arena_.Alloc(dtype, rank, padded, name);
    return pad ? whole.Slice(rank - 1, 0, shape[rank - 1]) : whole;
  }
  TensorView Filled(DType dtype, const char* name, int rank, const int64_t* shape,
                    const Fill& fill);

  Arena& arena_;
  DType dtype_;
  int64_t pad_;
  bool bf16_values_;
  int64_t distinct_;
  uint64_t tensors_ = 0;  // so that the k-th tensor of a case has the same values for every dtype
};

// Calls f(flat index, pointer to the element) in row-major order.
template <class T, class F>
void ForEach(const TensorView& view, F&& f) {
  int64_t index[kMaxRank] = {};
  const int64_t n = view.size();
  for (int64_t flat = 0; flat < n; ++flat) {
    int64_t offset = 0;
    for (int d = 0; d < view.rank(); ++d) offset += index[d] * view.stride(d);
    f(flat, static_cast<T*>(view.data()) + offset);
    for (int d = view.rank() - 1; d >= 0 && ++index[d] == view.dim(d); --d) index[d] = 0;
  }
}

inline TensorView CaseMaker::Filled(DType dtype, const char* name, int rank, const int64_t* shape,
                                    const Fill& fill) {
  const TensorView whole = Cut(dtype, name, rank, shape);
  Rng rng(0, Purpose::kTest, ++tensors_);
  if (arena_.mode() == Arena::Mode::kPlan) return whole;
  const bool repeats = dtype != DType::kI32 && whole.contiguous() && whole.size() > distinct_;
  const TensorView view = repeats ? TensorView(whole.data(), dtype, {distinct_}) : whole;
  const auto value = [&](int64_t i) {
    const float v = static_cast<float>(fill(rng, i));
    return static_cast<double>(bf16_values_ ? FromBF16(ToBF16(v)) : v);
  };
  if (dtype == DType::kBF16)
    ForEach<uint16_t>(view,
                      [&](int64_t i, uint16_t* p) { *p = ToBF16(static_cast<float>(value(i))); });
  if (dtype == DType::kF32)
    ForEach<float>(view, [&](int64_t i, float* p) { *p = static_cast<float>(value(i)); });
  if (dtype == DType::kF64) ForEach<double>(view, [&](int64_t i, double* p) { *p = value(i); });
  if (dtype == DType::kC128)
    ForEach<std::complex<double>>(view, [&](int64_t i, std::complex<double>* p) { *p = value(i); });
  if (dtype == DType::kI32)
    ForEach<int32_t>(view, [&](int64_t i, int32_t* p) { *p = static_cast<int32_t>(fill(rng, i)); });
  for (int64_t at = view.bytes(); at < whole.bytes(); at += view.bytes()) {
    std::memcpy(whole.Data<std::byte>() + at, whole.data(),
                static_cast<size_t>(std::min(view.bytes(), whole.bytes() - at)));
  }
  return whole;
}

// One tensor of an op as Visit showed it.
struct OpTensor {
  enum class Role { kIn, kOut, kSaved, kInOut, kUpstream, kGrad };
  Role role;
  std::string name;
  TensorView view;
  const void* of = nullptr;  // Upstream, Grad: data of the tensor it belongs to
};

struct OpTensorCollector {
  std::vector<OpTensor> tensors;
  void In(const char* n, const TensorView& v) { Add(OpTensor::Role::kIn, n, v, nullptr); }
  void Out(const char* n, const TensorView& v) { Add(OpTensor::Role::kOut, n, v, nullptr); }
  void Saved(const char* n, const TensorView& v) { Add(OpTensor::Role::kSaved, n, v, nullptr); }
  void InOut(const char* n, const TensorView& v) { Add(OpTensor::Role::kInOut, n, v, nullptr); }
  void Upstream(const char* n, const TensorView& v, const TensorView& of) {
    Add(OpTensor::Role::kUpstream, n, v, of.data());
  }
  void Grad(const char* n, const TensorView& v, const TensorView& of) {
    Add(OpTensor::Role::kGrad, n, v, of.data());
  }
  void ParamGrad(const char* n, const TensorView& v, const TensorView& of) { Grad(n, v, of); }
  void Add(OpTensor::Role role, const char* n, const TensorView& v, const void* of) {
    if (v.defined()) tensors.push_back({role, n, v, of});
  }
};

template <class Op>
std::vector<OpTensor> TensorsOf(const Op& op) {
  OpTensorCollector collector;
  Op::Visit(op, collector);
  return std::move(collector.tensors);
}

// An op instance whose type is forgotten.
struct AnyOp {
  std::function<void()> check;
  // Runs with every tensor `shift` bytes from where the case maker put it: in a copy on a GPU.
  std::function<void(Stream&, ptrdiff_t shift)> launch;
  std::function<double()> flops;
  std::vector<OpTensor> tensors;
  // Check() on a copy in which dimension `dim` of the tensor number `tensor` is one larger.
  std::function<void(size_t tensor, int dim)> check_with_larger_dim;
};

struct AnyBwd : AnyOp {
  std::function<void(bool)> set_accumulate;
};

// Everything that one case gives, for one dtype.
struct OpInstance {
  AnyOp fwd;
  AnyBwd bwd;  // fwd.tensors empty = the op has no backward
  bool has_backward = false;
  std::function<void()> reference;  // writes the Outs of the same views (f64 or complex)
};

struct OpEntry {
  struct Case {
    std::string label;
    std::function<OpInstance(CaseMaker&)> make;
    int samples = 300;
  };
  std::string name;
  std::vector<Case> laws, bf16_laws, bench, gpu_bench;
  double tolerance = 4;                // c of Tolerance(); another value needs a reason beside it
  std::vector<std::string> free_dims;  // "w.0": a dimension that no other tensor has to agree with
};

class OpSuite {
 public:
  template <class Spec>
  void Add(Spec spec) {
    entries_.push_back(std::move(spec).Entry());
  }
  const std::vector<OpEntry>& entries() const { return entries_; }

 private:
  std::vector<OpEntry> entries_;
};

namespace op_spec_internal {

struct WidenOne {
  size_t tensor;
  int dim;
  size_t at = 0;
  void Touch(TensorView& v) {
    if (!v.defined()) return;
    if (at++ == tensor) v.set_shape(dim, v.dim(dim) + 1);
  }
  void In(const char*, TensorView& v) { Touch(v); }
  void Out(const char*, TensorView& v) { Touch(v); }
  void Saved(const char*, TensorView& v) { Touch(v); }
  void InOut(const char*, TensorView& v) { Touch(v); }
  void Upstream(const char*, TensorView& v, const TensorView&) { Touch(v); }
  void Grad(const char*, TensorView& v, const TensorView&) { Touch(v); }
  void ParamGrad(const char*, TensorView& v, const TensorView&) { Touch(v); }
};

struct Shift {
  ptrdiff_t bytes;
  void Touch(TensorView& v) {
    if (v.defined()) v.set_data(v.Data<std::byte>() + bytes);
  }
  void In(const char*, TensorView& v) { Touch(v); }
  void Out(const char*, TensorView& v) { Touch(v); }
  void Saved(const char*, TensorView& v) { Touch(v); }
  void InOut(const char*, TensorView& v) { Touch(v); }
  void Upstream(const char*, TensorView& v, const TensorView&) { Touch(v); }
  void Grad(const char*, TensorView& v, const TensorView&) { Touch(v); }
  void ParamGrad(const char*, TensorView& v, const TensorView&) { Touch(v); }
};

struct BuildBackward {
  CaseMaker& make;
  void Upstream(const char* n, TensorView& v, const TensorView& of) {
    if (of.defined()) v = make.InLike(n, of);
  }
  void Grad(const char* n, weft::Grad& v, const TensorView& of) {
    if (of.defined()) v = make.OutLike(n, of);
  }
  void ParamGrad(const char* n, weft::Grad& v, const TensorView& of) {
    if (of.defined()) v = make.OutLike(n, of, /*wide=*/true);
  }
};

struct SetAccumulate {
  bool accumulate;
  void Upstream(const char*, TensorView&, const TensorView&) {}
  void Grad(const char*, weft::Grad& v, const TensorView&) { v.accumulate = accumulate; }
  void ParamGrad(const char*, weft::Grad& v, const TensorView&) { v.accumulate = accumulate; }
};

template <class Any, class Op>
Any Erase(std::shared_ptr<Op> op) {
  Any any;
  any.check = [op] { op->Check(); };
  any.launch = [op](Stream& stream, ptrdiff_t shift) {
    Op copy = *op;
    if constexpr (requires { copy.fwd; }) copy.fwd.Visit(copy.fwd, Shift{shift});
    Op::Visit(copy, Shift{shift});
    Launch(stream, copy);
  };
  any.flops = [op] { return op->Flops(); };
  any.tensors = TensorsOf(*op);
  any.check_with_larger_dim = [op](size_t tensor, int dim) {
    Op copy = *op;
    WidenOne widen{tensor, dim};
    Op::Visit(copy, widen);
    copy.Check();
  };
  return any;
}

}  // namespace op_spec_internal

struct NoBackward {};

template <class Fwd, class Bwd = NoBackward>
struct OpSpec {
  struct Case {
    std::string label;
    std::function<Fwd(CaseMaker&)> make;
    int samples = 300;  // elements of each gradient that the laws know the truth of
  };
  std::string name;
  std::function<void(const Fwd&)> reference_f64;
  std::function<void(const Fwd&)> reference_complex;  // left out when there is no backward
  std::vector<Case> laws = {};
  std::vector<Case> bf16_laws = {};  // of sizes that bf16 kernels take; left out: those of laws
  std::vector<Case> bench = {};      // of sizes for a CPU
  std::vector<Case> gpu_bench = {};  // of the steps that a GPU is measured with
  double tolerance = 4;
  std::vector<std::string> free_dims = {};

  OpEntry Entry() && {
    OpEntry entry{name, {}, {}, {}, {}, tolerance, free_dims};
    for (auto& c : laws) entry.laws.push_back({c.label, Maker(c.make), c.samples});
    for (auto& c : bf16_laws) entry.bf16_laws.push_back({c.label, Maker(c.make), c.samples});
    for (auto& c : bench) entry.bench.push_back({c.label, Maker(c.make)});
    for (auto& c : gpu_bench) entry.gpu_bench.push_back({c.label, Maker(c.make)});
    return entry;
  }

 private:
  std::function<OpInstance(CaseMaker&)> Maker(std::function<Fwd(CaseMaker&)> make) const {
    return [make, f64 = reference_f64, complex = reference_complex](CaseMaker& maker) {
      auto fwd = std::make_shared<Fwd>(make(maker));
      OpInstance instance;
      instance.fwd = op_spec_internal::Erase<AnyOp>(fwd);
      instance.reference = [fwd, f64, complex, dtype = maker.dtype()] {
        (dtype == DType::kC128 ? complex : f64)(*fwd);
      };
      if constexpr (!std::is_same_v<Bwd, NoBackward>) {
        auto bwd = std::make_shared<Bwd>();
        bwd->fwd = *fwd;
        op_spec_internal::BuildBackward build{maker};
        Bwd::Visit(*bwd, build);
        instance.bwd = op_spec_internal::Erase<AnyBwd>(bwd);
        instance.bwd.set_accumulate = [bwd](bool accumulate) {
          op_spec_internal::SetAccumulate set{accumulate};
          Bwd::Visit(*bwd, set);
        };
        instance.has_backward = true;
      }
      return instance;
    };
  }
};

// Generated by CMake: calls AddOp_<op> of every kernels/<op>/<op>_spec.cc.
void AddAllOps(OpSuite& suite);

}  // namespace weft
