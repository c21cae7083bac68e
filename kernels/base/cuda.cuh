#pragma once
// What CUDA kernels share: element types, 16-byte packs of elements, reductions in a fixed order.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/base/cuda_check.h"
#include "kernels/base/cuda_stream.h"
#include "kernels/base/tensor.h"

namespace weft {

using BF16 = __nv_bfloat16;
template <>
inline constexpr DType kDTypeOf<BF16> = DType::kBF16;

inline constexpr int kWarp = 32;

// Calls f.template operator()<float>() or <BF16>(). Double is for the CPU.
template <class F>
decltype(auto) DispatchCuda(DType dtype, F&& f) {
  if (dtype == DType::kF32) return f.template operator()<float>();
  if (dtype == DType::kBF16) return f.template operator()<BF16>();
  Fail(ExitCode::kFailure, "expected f32 or bf16 on a GPU, found ", NameOf(dtype));
}

__host__ __device__ inline float ToFloat(float x) { return x; }
__host__ __device__ inline float ToFloat(BF16 x) { return __bfloat162float(x); }
template <class T>
__host__ __device__ inline T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// d (+)= value, where d may be narrow.
template <class T>
__device__ inline void PutFloat(T& d, float value, bool accumulate) {
  d = FromFloat<T>(accumulate ? ToFloat(d) + value : value);
}

// N consecutive elements, moved as one: 16 bytes for N = 4 floats or 8 bf16.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
template <class T>
inline constexpr int kPack = 16 / sizeof(T);

template <int N, class T>
__device__ inline void Load(const T* from, float (&to)[N]) {
  if constexpr (std::is_same_v<T, BF16> && N % 2 == 0) {
    // Two at a time: a shift and a mask.
    const auto pack = *reinterpret_cast<const Pack<uint32_t, N / 2>*>(from);
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      to[i] = __uint_as_float(pack.at[i / 2] << 16);
      to[i + 1] = __uint_as_float(pack.at[i / 2] & 0xffff0000u);
    }
  } else {
    const auto pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = ToFloat(pack.at[i]);
  }
}
template <int N, class T>
__device__ inline void Store(const float (&from)[N], T* to) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.at[i] = FromFloat<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Whether rows that start at `data` and are `stride` elements apart can be read in packs of N.
template <class T>
bool Packable(const TensorView& view, int n) {
  if (!view.defined()) return true;
  if (reinterpret_cast<uintptr_t>(view.data()) % (sizeof(T) * n) != 0) return false;
  for (int d = 0; d + 1 < view.rank(); ++d) {
    if (view.dim(d) > 1 && view.stride(d) % n != 0) return false;
  }
  return view.dim(-1) % n == 0;
}

// A view for kernels, indexed like Nd.
template <class T>
struct View3 {
  T* data = nullptr;
  int64_t stride[3] = {};

  View3() = default;
  explicit View3(const Nd<T, 3>& v) : data(v.data), stride{v.stride[0], v.stride[1], v.stride[2]} {}
  __device__ T& operator()(int64_t i, int64_t j, int64_t k) const {
    return data[i * stride[0] + j * stride[1] + k * stride[2]];
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};

// 2^x, e^x and 1 / x in one instruction of the special function unit, to about 2 ulp (e^x: plus 1.2 |x|
// ulp). Subnormal numbers count as zero.
__device__ inline float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float FastExp(float x) { return FastExp2(x * 1.44269504f); }
__device__ inline float FastReciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Sum over the 32 lanes, in every lane, always in the same order.
template <class T>
__device__ inline T WarpSum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Sum over a block of kThreads threads, in every thread, in a fixed order.
template <int kThreads, class T>
__device__ inline T BlockSum(T x) {
  static_assert(kThreads % kWarp == 0);
  __shared__ T partial[kThreads / kWarp];
  x = WarpSum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += partial[w];
  return sum;
}

inline int CeilDiv(int64_t n, int64_t m) { return static_cast<int>((n + m - 1) / m); }

}  // namespace weft
