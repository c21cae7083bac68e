#pragma once
// Kernels over rows: which threads share a row, sums over a row, and sums over rows, which are
// gradients of parameters.

#include <bit>

#include "kernels/base/cuda.cuh"

namespace weft {

inline constexpr int kRowThreads = 256;      // of a block whose teams are at most a warp each
inline constexpr int kMostRowThreads = 512;  // of a block that is one team
inline constexpr int kMostHeld = 3;

// A team of `lanes` neighbouring threads works on one row: a power of two up to a warp, or the
// whole block. A lane holds the packs lane, lane + lanes, ... of its row in registers, `held` in
// number; 0: it walks over them.
struct RowPlan {
  int lanes, held, threads;
  int teams() const { return threads / lanes; }
};

// Of plans with equally few idle lanes, kMuch is the one with the most packs in each; so is kLittle
// if a warp is enough for a row, or else it is the one with the fewest.
enum class Hold { kNothing, kLittle, kMuch };

inline RowPlan PlanRows(int64_t packs, Hold hold) {
  const auto plan = [](int64_t share, int held) {
    const int lanes = share <= kWarp ? static_cast<int>(std::bit_ceil(static_cast<uint32_t>(share)))
                                     : CeilDiv(share, kWarp) * kWarp;
    return RowPlan{lanes, held, lanes <= kWarp ? kRowThreads : lanes};
  };
  RowPlan best = plan(std::clamp<int64_t>(packs, 1, kRowThreads), 0);
  if (hold == Hold::kNothing) return best;
  for (int held = kMostHeld; held > 0; --held) {
    const RowPlan next = plan(std::max<int64_t>(1, (packs + held - 1) / held), held);
    if (next.lanes > kMostRowThreads) break;
    const int more_idle = next.lanes * held - best.lanes * best.held;
    const bool fewer = hold == Hold::kLittle && best.lanes > kWarp;
    if (best.held == 0 || more_idle < 0 || (more_idle == 0 && fewer)) best = next;
  }
  return best;
}

// Blocks that walk over all rows, for sums over rows: `waves` times as many as run at once. More
// than one even out multiprocessors, but each block costs a row of partial sums.
inline int PersistentBlocks(const CudaStream& stream, const RowPlan& plan, int64_t rows,
                            int waves) {
  const int threads = plan.held == 1 ? 1024 : 512;  // of a multiprocessor, as registers allow
  const int64_t most = waves * stream.multiprocessors() * std::max(1, threads / plan.threads);
  return static_cast<int>(std::clamp<int64_t>(CeilDiv(rows, plan.teams()), 1, most));
}

// Lets `kernel` be launched with this much dynamic shared memory.
template <class Kernel>
void AllowShared(Kernel kernel, int64_t bytes) {
  CudaCheck(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)),
            "shared memory of a kernel");
}

// Calls f.template operator()<T, N>(), with packs of N elements of T in 16 bytes where all `views`,
// of type T or f32, can be read in as many, otherwise with single elements.
template <class F>
void DispatchPacks(DType dtype, std::initializer_list<TensorView> views, F&& f) {
  DispatchCuda(dtype, [&]<class T>() {
    constexpr int kN = kPack<T>;
    const bool packable = std::ranges::all_of(views, [](const TensorView& v) {
      return v.dtype() == DType::kF32 ? Packable<float>(v, kN) : Packable<T>(v, kN);
    });
    packable ? f.template operator()<T, kN>() : f.template operator()<T, 1>();
  });
}

// Launches kernel(rows, columns, lanes of a row, args...) for the rows of `like`, in packs of N.
template <int N, class Kernel, class... Args>
void LaunchOnRows(const CudaStream& stream, const char* op, const TensorView& like, Kernel kernel,
                  Args... args) {
  const int D = static_cast<int>(like.dim(-1));
  const int64_t rows = like.size() / D;
  const RowPlan plan = PlanRows(D / N, Hold::kNothing);
  kernel<<<CeilDiv(rows, plan.teams()), plan.threads, 0, stream.handle()>>>(rows, D, plan.lanes,
                                                                            args...);
  CheckLaunch(op);
}

// Calls f.template operator()<held>(). Single elements (N = 1) are walked over only.
template <int N, class F>
void DispatchHeld(int held, F&& f) {
  static_assert(kMostHeld == 3);
  if (held == 0) f.template operator()<0>();
  if constexpr (N > 1) {
    if (held == 1) f.template operator()<1>();
    if (held == 2) f.template operator()<2>();
    if (held == 3) f.template operator()<3>();
  }
}

// f(i, pack, inside) for every pack of a lane. Held packs behind the end of the row are its last
// one again, with inside = false, so that loads need no branch.
template <int kHeld, class F>
__device__ __forceinline__ void ForPacks(int lane, int lanes, int packs, F&& f) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int pack = lane + i * lanes;
      f(i, min(pack, packs - 1), pack < packs);
    }
  } else {
    for (int pack = lane; pack < packs; pack += lanes) f(0, pack, true);
  }
}

// The rows of a tensor whose leading dimensions are dense to each other.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  __device__ T* operator()(int64_t row) const { return data + row * stride; }
  __device__ explicit operator bool() const { return data != nullptr; }
};
template <class T>
Rows<T> RowsOf(const TensorView& view) {
  if (!view.defined()) return {};
  const auto rows = view.Rows().As<T, 2>();
  return {rows.data, rows.stride[0]};
}

// Which head of which token the row number `row` of [B, T, H] is.
struct HeadIndex {
  int b, t, h;
};
__device__ inline HeadIndex HeadAt(uint32_t row, uint32_t T, uint32_t H) {
  const uint32_t token = row / H;
  return {static_cast<int>(token / T), static_cast<int>(token % T), static_cast<int>(row % H)};
}

// The rows of a tensor [B, T, H, ..] or [B, T, ..].
template <class T>
struct HeadRows {
  T* data;
  int64_t b_stride, t_stride, h_stride;
  __device__ T* operator()(const HeadIndex& i) const {
    return data + i.b * b_stride + i.t * t_stride + i.h * h_stride;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};
template <class T>
HeadRows<T> HeadRowsOf(const TensorView& view) {
  if (!view.defined()) return {};
  Check(view.dtype() == kDTypeOf<std::remove_const_t<T>>, view.name(), " is ", view.ToString(),
        ", expected ", NameOf(kDTypeOf<std::remove_const_t<T>>));
  return {view.Data<T>(), view.stride(0), view.stride(1), view.rank() > 2 ? view.stride(2) : 0};
}

// A pack that waits in registers, as it came from memory.
template <class T, int N>
struct alignas(sizeof(T) * N) Words {
  using Word = std::conditional_t<sizeof(T) * N % 4 == 0, uint32_t, uint16_t>;
  Word at[sizeof(T) * N / sizeof(Word)];
};
template <int N, class T>
__device__ Words<T, N> LoadWords(const T* from) {
  return *reinterpret_cast<const Words<T, N>*>(from);
}
template <class T, int N>
__device__ void Unpack(const Words<T, N>& words, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = __uint_as_float(words.at[i]);
    } else if constexpr (sizeof(words.at[0]) == 4) {
      const uint32_t word = words.at[i / 2];
      to[i] = __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
    } else {
      to[i] = __uint_as_float(uint32_t{words.at[i]} << 16);
    }
  }
}

// Packs of kBytes that wait in shared memory, not in registers, for the thread that has asked for
// them: while it works on one stage, the kStages - 1 that follow are on their way. A stage has
// `packs` packs of each thread. The block's dynamic shared memory is theirs.
template <int kStages, int kBytes = 16>
class Stages {
 public:
  __device__ explicit Stages(int packs) : packs_(packs) {}
  // Zeros unless `there`.
  __device__ void Fetch(int pack, const void* from, bool there = true) const {
    std::byte* const to = At(fetched_, pack);
    if constexpr (kBytes == 16) {  // past the L1 cache
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(Shared(to)), "l"(from),
                   "r"(there ? 16 : 0)
                   : "memory");
    } else if constexpr (kBytes >= 4) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(Shared(to)), "l"(from),
                   "n"(kBytes), "r"(there ? kBytes : 0)
                   : "memory");
    } else {
      const uint16_t zero = 0;
      memcpy(to, there ? from : &zero, kBytes);
    }
  }
  // Closes a stage. To be called for every stage, also for one without packs.
  __device__ void Commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
    fetched_ = After(fetched_);
  }
  // Until all but the last kStages - 1 stages have arrived.
  __device__ void Wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
  }
  template <class T, int N>
  __device__ void Unpack(int pack, float (&to)[N]) const {
    static_assert(sizeof(T) * N == kBytes);
    weft::Unpack(*reinterpret_cast<const Words<T, N>*>(At(current_, pack)), to);
  }
  __device__ void Next() { current_ = After(current_); }
  static int64_t Bytes(int packs, int threads) {
    return int64_t{kStages} * packs * threads * kBytes;
  }

 private:
  __device__ static int After(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }
  __device__ static uint32_t Shared(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
  __device__ std::byte* At(int stage, int pack) const {
    extern __shared__ uint4 staged[];
    return reinterpret_cast<std::byte*>(staged) +
           ((stage * packs_ + pack) * blockDim.x + threadIdx.x) * kBytes;
  }
  int packs_, fetched_ = 0, current_ = 0;
};

// to (+)= value, which is the sum after that.
template <class T, int N>
__device__ void PutPack(float (&value)[N], T* to, bool accumulate) {
  if (accumulate) {
    float old[N];
    Load<N>(to, old);
#pragma unroll
    for (int k = 0; k < N; ++k) value[k] += old[k];
  }
  Store<N>(value, to);
}

// Sum over `lanes` neighbouring threads, a power of two up to a warp.
__device__ inline float LaneSum(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// Sum over the threads of a team, in each of them. To be called by all threads of the block.
__device__ inline float TeamSum(float x, int lanes) {
  x = LaneSum(x, min(lanes, kWarp));
  if (lanes <= kWarp) return x;
  __shared__ float partial[kMostRowThreads / kWarp];
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < lanes / kWarp; ++w) sum += partial[w];
  return sum;
}

// Sums what the lanes of a block's teams hold for each column over the teams, in order, into
// out[columns].
template <int kHeld, int N>
__device__ void SumTeams(const float (&held)[kHeld][N], int lanes, int packs, float* out) {
  const int lane = threadIdx.x % lanes;
  if (lanes == blockDim.x) {
    ForPacks<kHeld>(lane, lanes, packs, [&](int i, int pack, bool inside) {
      if (inside) Store<N>(held[i], out + pack * N);
    });
    return;
  }
  __shared__ float sums[kRowThreads * kHeld * N];
  const int width = lanes * kHeld * N;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int k = 0; k < N; ++k)
      sums[threadIdx.x / lanes * width + (lane + i * lanes) * N + k] = held[i][k];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < packs * N; c += blockDim.x) {
    float sum = 0;
    for (int team = 0; team < blockDim.x / lanes; ++team) sum += sums[team * width + c];
    out[c] = sum;
  }
}

// A kernel that calls StartDependents lets the next one, if LaunchDependent launches it, start
// beside it; that one waits for what it reads with AwaitKernelBefore.
__device__ inline void StartDependents() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ inline void AwaitKernelBefore() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
template <class... Parameters, class... Args>
void LaunchDependent(const CudaStream& stream, const char* op, void (*kernel)(Parameters...),
                     dim3 blocks, dim3 threads, Args... args) {
  cudaLaunchAttribute early{cudaLaunchAttributeProgrammaticStreamSerialization};
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{.gridDim = blocks,
                                  .blockDim = threads,
                                  .stream = stream.handle(),
                                  .attrs = &early,
                                  .numAttrs = 1};
  CudaCheck(cudaLaunchKernelEx(&config, kernel, Parameters(args)...), op);
}

// out_c (+)= sum over rows of partial[rows, columns].
static __global__ void __launch_bounds__(kWarp* kWarp)
    SumPartialsKernel(const float* partial, int64_t rows, int64_t columns, float* out,
                      int64_t out_stride, bool accumulate) {
  __shared__ float sums[kWarp][kWarp + 1];
  AwaitKernelBefore();
  const int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  float sum = 0;
  if (c < columns) {
    for (int64_t r = threadIdx.y; r < rows; r += kWarp) sum += partial[r * columns + c];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = WarpSum(sums[threadIdx.x][threadIdx.y]);
  const int64_t mine = int64_t{blockIdx.x} * kWarp + threadIdx.y;
  if (threadIdx.x == 0 && mine < columns) PutFloat(out[mine * out_stride], sum, accumulate);
}
inline void SumPartials(CudaStream& stream, const float* partial, int64_t rows, const Grad& out) {
  const int64_t columns = out.dim(0);
  if (columns == 0) return;
  LaunchDependent(stream, "sum of a parameter's gradient", SumPartialsKernel,
                  CeilDiv(columns, kWarp), dim3(kWarp, kWarp), partial, rows, columns,
                  out.As<float, 1>().data, out.stride(0), out.accumulate);
}

// Launches the backward of an op on rows that has the gradient of a parameter, by
// launch.operator()<held>(plan, blocks, partial), in packs of N; then sums the partial gradients.
template <int N, class F>
void LaunchBackwardOnRows(CudaStream& stream, const char* op, int64_t rows, int waves,
                          const Grad& dw, F&& launch) {
  const int64_t columns = dw.dim(0);
  const RowPlan plan = PlanRows(columns / N, N > 1 ? Hold::kLittle : Hold::kNothing);
  const int blocks = PersistentBlocks(stream, plan, rows, waves);
  const int64_t partials = plan.held ? blocks : blocks * plan.teams();
  auto* partial = static_cast<float*>(stream.Scratch(partials * columns * int64_t{sizeof(float)}));
  DispatchHeld<N>(plan.held,
                  [&]<int kHeld>() { launch.template operator()<kHeld>(plan, blocks, partial); });
  CheckLaunch(op);
  SumPartials(stream, partial, partials, dw);
}

}  // namespace weft
