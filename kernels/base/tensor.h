#pragma once
// Strided views of memory that somebody else owns: TensorView (type-erased, named) and Nd<T, N>
// (typed, indexable).

#include <array>
#include <bit>
#include <complex>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "kernels/base/check.h"

namespace weft {

enum class DType : uint8_t {
  kF32,
  kF64,
  kC128,  // references under complex step
  kI32,
  kBF16  // storage on a GPU; sums, statistics and parameters' gradients beside it are f32
};

inline constexpr int64_t SizeOf(DType dtype) {
  constexpr int64_t kBytes[] = {4, 8, 16, 4, 2};
  return kBytes[static_cast<int>(dtype)];
}
const char* NameOf(DType dtype);
// What stands beside activations of this type: statistics, gates, vectors of parameters, gradients
// of parameters.
inline constexpr DType Wide(DType dtype) { return dtype == DType::kBF16 ? DType::kF32 : dtype; }

template <class T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<std::complex<double>> = DType::kC128;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;

// bf16 is the upper half of an f32, rounded to nearest even. Finite numbers only.
inline uint16_t ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float FromBF16(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

inline constexpr int kMaxRank = 4;

// Typed view. x(b, t, h) is x.data[b * stride[0] + t * stride[1] + h * stride[2]]; strides count
// elements.
template <class T, int N>
struct Nd {
  T* data = nullptr;
  std::array<int64_t, N> shape{};
  std::array<int64_t, N> stride{};

  template <class... I>
  T& operator()(I... i) const {
    static_assert(sizeof...(I) == N);
    int64_t offset = 0;
    int d = 0;
    ((offset += static_cast<int64_t>(i) * stride[d++]), ...);
    return data[offset];
  }
  explicit operator bool() const { return data != nullptr; }
};

class TensorView {
 public:
  TensorView() = default;  // not there: an optional tensor that is left out
  // Contiguous, last dimension fastest.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape, const char* name = "");
  TensorView(void* data, DType dtype, int rank, const int64_t* shape, const char* name = "");

  bool defined() const { return rank_ > 0; }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return shape_[Index(i)]; }  // dim(-1) is the last
  int64_t stride(int i) const { return stride_[Index(i)]; }
  int64_t size() const;  // elements
  int64_t bytes() const { return size() * SizeOf(dtype_); }
  bool contiguous() const;
  const char* name() const { return name_; }

  // [.., begin:begin+length, ..] along `dim`.
  TensorView Slice(int dim, int64_t begin, int64_t length) const;
  // Splits dimension `dim` (size n*m) into (n, m); or merges dims dim and dim+1, which must be
  // dense to each other.
  TensorView Split(int dim, int64_t n, int64_t m) const;
  TensorView Merge(int dim) const;
  // A dimension of size 1 as n, which are all the same memory (stride 0): only to be read.
  TensorView Repeat(int dim, int64_t n) const;
  // Same elements, new shape; needs contiguity.
  TensorView Reshape(std::initializer_list<int64_t> shape) const;
  // All leading dimensions merged: [rows, last]. Needs them to be dense to each other.
  TensorView Rows() const;
  TensorView Named(const char* name) const;
  void set_data(void* data) { data_ = data; }
  void set_shape(int i, int64_t n) {
    shape_[Index(i)] = n;
  }  // the laws use this to build wrong shapes

  template <class T, int N>
  Nd<T, N> As() const {
    if (!defined()) return {};
    Check(rank_ == N && dtype_ == kDTypeOf<std::remove_const_t<T>>, name_, ": viewed as rank ", N,
          " ", NameOf(kDTypeOf<std::remove_const_t<T>>), " but is ", ToString());
    Nd<T, N> view;
    view.data = static_cast<T*>(data_);
    for (int i = 0; i < N; ++i) view.shape[i] = shape_[i], view.stride[i] = stride_[i];
    return view;
  }
  template <class T>
  T* Data() const {
    return static_cast<T*>(data_);
  }
  std::string ToString() const;  // "f32 [2, 7, 16]"

 private:
  size_t Index(int i) const { return static_cast<size_t>(i < 0 ? i + rank_ : i); }

  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, kMaxRank> shape_{};
  std::array<int64_t, kMaxRank> stride_{};
  const char* name_ = "";
};

// A gradient that a backward writes: adds into it, or overwrites it where the tape knows that this
// is the first write.
struct Grad : TensorView {
  Grad() = default;
  Grad(const TensorView& view) : TensorView(view) {}
  bool accumulate = true;
};

// d (+)= value.
template <class T>
inline void Put(T& d, T value, bool accumulate) {
  d = accumulate ? d + value : value;
}

// The one way in which an op states a shape: fails with the op's and the tensor's name, found and
// expected.
void CheckShape(const char* op, const char* tensor, const TensorView& view,
                std::initializer_list<int64_t> shape);
void CheckSameShape(const char* op, const char* tensor, const TensorView& view,
                    const TensorView& like);
void CheckDType(const char* op, const char* tensor, const TensorView& view, DType dtype);
// The last dimension is dense (stride 1): what every kernel asks for.
void CheckDense(const char* op, const char* tensor, const TensorView& view);

// Calls f.template operator()<float>() or <double>().
template <class F>
decltype(auto) DispatchReal(DType dtype, F&& f) {
  if (dtype == DType::kF32) return f.template operator()<float>();
  if (dtype == DType::kF64) return f.template operator()<double>();
  Fail(ExitCode::kFailure, "expected f32 or f64, found ", NameOf(dtype));
}

}  // namespace weft
