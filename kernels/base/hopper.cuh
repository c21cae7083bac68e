#pragma once
// The instructions of sm_90a (Hopper) that kernels share: barriers in shared memory, bulk copies of
// tiles, products of warpgroups, registers that move between warpgroups.
//
// A tile [rows, D] of bf16 lies in shared memory as panels of kPanel columns, [D / kPanel][rows]
// [kPanel]. Rows of a panel are 2 kPanel bytes long, and within every 8 of them the 16-byte pieces
// are swizzled, so that neither reading rows nor reading columns has bank conflicts. A panel of 64
// columns starts at a multiple of 1024 bytes, one of 32 at 512.

#include <cuda.h>

#include "kernels/base/cuda.cuh"

namespace weft::hopper {

constexpr int kGroup = 128;     // threads of a warpgroup
constexpr int kGroupRows = 64;  // rows of its products
constexpr int kWidePanel = 64;  // columns: 128 bytes

// Barriers that count arrivals and bytes --------------------------------------------------------

using Barrier = uint64_t;

__device__ inline void Init(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&barrier)),
               "r"(arrivals)
               : "memory");
}
// After the last Init, before the barrier of the block.
__device__ inline void FenceInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void Arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&barrier))
               : "memory");
}
__device__ inline void ArriveAndExpect(Barrier& barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&barrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void Wait(Barrier& barrier, int parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(SharedAddress(&barrier)), "r"(parity)
        : "memory");
  } while (!done);
}
// Between this thread's own loads and stores of shared memory and a barrier behind which bulk
// copies overwrite what it read, or products and bulk copies read what it wrote. These work by the
// async proxy, which a barrier alone does not order behind loads and stores: PTX ISA 9.0, 8.9.5 and
// 9.7.9.25.2; for what was read, CUDA Programming Guide, Cluster Launch Control.
__device__ inline void FenceShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// By every warp of a warpgroup: one lane arrives, for what all lanes did before. Where products
// alone read, nothing is to be fenced.
__device__ inline void ReleaseProducts(Barrier& barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) Arrive(barrier);
}
__device__ inline void Release(Barrier& barrier) {
  FenceShared();
  ReleaseProducts(barrier);
}

// Where a ring of stages stands.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  __device__ void Next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Barrier `index` (0 is that of the whole block) for `threads` threads, which wait for each other.
__device__ inline void Meet(int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(threads) : "memory");
}

// Copies ----------------------------------------------------------------------------------------

// Rows `row` on of one head, columns `column` to column + kD, as panels; rows, panels and swizzle
// are those of the map. Completes with bytes of whole panels.
template <int kD, int kPanel = kWidePanel>
__device__ inline void LoadTile(BF16* to, const CUtensorMap& map, int rows, int b, int h, int row,
                                Barrier& barrier, int column = 0) {
#pragma unroll
  for (int at = 0; at < kD; at += kPanel) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(SharedAddress(to + at * rows)),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(SharedAddress(&barrier)), "r"(column + at),
        "r"(row), "r"(h), "r"(b)
        : "memory");
  }
}
__device__ inline void LoadBytes(void* to, const void* from, int bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(&barrier))
      : "memory");
}
// One panel to global memory; what lies outside of the tensor is left out. Then CommitStores.
__device__ inline void StorePanel(const CUtensorMap& map, const BF16* from, int b, int h, int row,
                                  int column) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(reinterpret_cast<uint64_t>(&map)),
      "r"(SharedAddress(from)), "r"(column), "r"(row), "r"(h), "r"(b)
      : "memory");
}
// Adds it, in bf16.
__device__ inline void AddPanel(const CUtensorMap& map, const BF16* from, int b, int h, int row,
                                int column) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group "
      "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(reinterpret_cast<uint64_t>(&map)),
      "r"(SharedAddress(from)), "r"(column), "r"(row), "r"(h), "r"(b)
      : "memory");
}
__device__ inline void StoreBytes(void* to, const void* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(SharedAddress(from)), "r"(bytes)
               : "memory");
}
__device__ inline void CommitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the last kPending groups of this thread's stores have read their shared memory.
template <int kPending = 0>
__device__ inline void WaitForStores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Where element (row, column) of a panel lies.
template <int kPanel = kWidePanel>
__device__ inline int InPanel(int row, int column) {
  constexpr int kPieces = kPanel / 8;
  return row * kPanel + ((column / 8 ^ row / (8 / kPieces) % kPieces) * 8 + column % 8);
}

// Products --------------------------------------------------------------------------------------

// A tile of swizzled panels as an operand. Where the tile's rows are the depth of the product,
// panels are `panel_bytes` apart.
template <int kPanel = kWidePanel>
__device__ inline uint64_t Descriptor(const BF16* tile, int panel_bytes) {
  static_assert(kPanel == 64 || kPanel == 32 || kPanel == 16);
  constexpr uint64_t kSwizzle = uint64_t{kPanel == 64 ? 1 : kPanel == 32 ? 2 : 3} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * 2 * kPanel >> 4} << 32;
  return kSwizzle | kEightRows | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         (SharedAddress(tile) & 0x3ffff) >> 4;
}

#define WEFT_IO(x, j) "+f"((x)[j][0]), "+f"((x)[j][1]), "+f"((x)[j][2]), "+f"((x)[j][3])
#define WEFT_IO16(x, j) WEFT_IO(x, j), WEFT_IO(x, j + 1)
#define WEFT_IO32(x, j) WEFT_IO16(x, j), WEFT_IO16(x, j + 2)
#define WEFT_IO48(x, j) WEFT_IO32(x, j), WEFT_IO16(x, j + 4)
#define WEFT_IO64(x, j) WEFT_IO32(x, j), WEFT_IO32(x, j + 4)
#define WEFT_IO96(x, j) WEFT_IO64(x, j), WEFT_IO32(x, j + 8)
#define WEFT_IO128(x, j) WEFT_IO64(x, j), WEFT_IO64(x, j + 8)
#define WEFT_IO192(x, j) WEFT_IO128(x, j), WEFT_IO64(x, j + 16)
#define WEFT_SUM16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WEFT_SUM32 WEFT_SUM16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WEFT_SUM48 WEFT_SUM32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WEFT_SUM64 WEFT_SUM48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WEFT_SUM96 \
  WEFT_SUM64       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WEFT_SUM128 \
  WEFT_SUM96        \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WEFT_SUM192                                                                             \
  WEFT_SUM128                                                                                   \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81," \
  " %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

// One step of a product, of depth 16: c (+)= A B with A [64, 16], B [16, kN]. Transposed:
// the rows of the operand's tile are the depth. The sum is kN / 8 x 4 numbers per thread:
//   c[j][2 r + e] = C(RowInGroup() + 8 r, 8 j + 2 (lane % 4) + e).
template <int kN>
struct Products;
#define WEFT_PRODUCTS(N, r0, r1, r2, r3, r4, r5, r6)                                              \
  template <>                                                                                     \
  struct Products<N> {                                                                            \
    template <bool kTransposedA, bool kTransposedB>                                               \
    __device__ static void Step(float (*c)[4], uint64_t a, uint64_t b, bool add) {                \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r2                                       \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WEFT_SUM##N       \
                   "}, %" #r0 ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4 ";\n}"                       \
                   : WEFT_IO##N(c, 0)                                                             \
                   : "l"(a), "l"(b), "r"(static_cast<int>(add)),                                  \
                     "n"(static_cast<int>(kTransposedA)), "n"(static_cast<int>(kTransposedB)));   \
    }                                                                                             \
    template <bool kTransposedB>                                                                  \
    __device__ static void Step(float (*c)[4], const uint32_t (&a)[4], uint64_t b, bool add) {    \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r5                                       \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WEFT_SUM##N       \
                   "}, {%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6 ";\n}" \
                   : WEFT_IO##N(c, 0)                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                          \
                     "r"(static_cast<int>(add)), "n"(static_cast<int>(kTransposedB)));            \
    }                                                                                             \
  }
WEFT_PRODUCTS(16, 8, 9, 10, 11, 12, 13, 14);
WEFT_PRODUCTS(32, 16, 17, 18, 19, 20, 21, 22);
WEFT_PRODUCTS(48, 24, 25, 26, 27, 28, 29, 30);
WEFT_PRODUCTS(64, 32, 33, 34, 35, 36, 37, 38);
WEFT_PRODUCTS(96, 48, 49, 50, 51, 52, 53, 54);
WEFT_PRODUCTS(128, 64, 65, 66, 67, 68, 69, 70);
WEFT_PRODUCTS(192, 96, 97, 98, 99, 100, 101, 102);
#undef WEFT_PRODUCTS
#undef WEFT_SUM16
#undef WEFT_SUM32
#undef WEFT_SUM48
#undef WEFT_SUM64
#undef WEFT_SUM96
#undef WEFT_SUM128
#undef WEFT_SUM192
#undef WEFT_IO
#undef WEFT_IO16
#undef WEFT_IO32
#undef WEFT_IO48
#undef WEFT_IO64
#undef WEFT_IO96
#undef WEFT_IO128
#undef WEFT_IO192

// Ends a batch of steps. It runs until waited for.
__device__ inline void Commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// s (+)= A B^T for 64 rows of A, whose tile has kRowsA, and the kN rows of B. As all products here
// it runs until waited for.
template <int kD, int kN, int kRowsA, bool kAdd = false>
__device__ inline void Dot(float (&s)[kN / 8][4], const BF16* a, const BF16* b) {
#pragma unroll
  for (int d = 0; d < kD; d += 16) {
    const int panel = d / kWidePanel * kWidePanel, column = d % kWidePanel;
    Products<kN>::template Step<false, false>(s, Descriptor(a + panel * kRowsA + column, 0),
                                              Descriptor(b + panel * kN + column, 0),
                                              kAdd || d > 0);
  }
  Commit();
}
// sum += P R for the kN rows of R.
template <int kD, int kN>
__device__ inline void Times(float (&sum)[kD / 8][4], const uint32_t (&p)[kN / 16][4],
                             const BF16* r) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    Products<kD>::template Step<true>(
        sum, p[k],
        Descriptor(r + 16 * k * kWidePanel, kN * kWidePanel * static_cast<int>(sizeof(BF16))),
        true);
  }
  Commit();
}

// Keeps the compiler from moving reads and writes of x across.
template <int kN>
__device__ inline void Pin(float (&x)[kN][4]) {
#pragma unroll
  for (int j = 0; j < kN; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(x[j][e])::"memory");
  }
}
// Before products that use registers which were written since the last one.
template <int... kN>
__device__ inline void Begin(float (&... x)[kN][4]) {
  (Pin(x), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Until at most kPending of the batches that were started last are running; x is what the others
// have written.
template <int kPending, int... kN>
__device__ inline void Finish(float (&... x)[kN][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (Pin(x), ...);
}

// Warpgroups ------------------------------------------------------------------------------------

// Registers of a thread, by all threads of a warpgroup; what some give, others can take.
template <int kRegisters>
__device__ inline void FewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void MoreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The thread's index, not known to be what it was before: what is computed from it in a loop is not
// kept in registers from one round to the next.
__device__ inline int FreshThread() {
  int thread = threadIdx.x;
  asm volatile("" : "+r"(thread));
  return thread;
}
// Which warpgroup this is, known to be the same in all lanes; and the first row of a lane within
// the warpgroup.
__device__ inline int GroupIndex() { return __shfl_sync(~0u, threadIdx.x / kGroup, 0); }
__device__ inline int RowInGroup(int thread) {
  return thread % kGroup / kWarp * 16 + thread % kWarp / 4;
}
__device__ inline int RowInGroup() { return RowInGroup(threadIdx.x); }

// A kernel's dynamic shared memory, for swizzled tiles: 1024 bytes more than Shared are needed.
template <class Shared>
__device__ inline Shared& SharedMemory() {
  extern __shared__ uint8_t memory[];
  const uint32_t address = SharedAddress(memory);
  return *reinterpret_cast<Shared*>(memory + ((address + 1023) / 1024 * 1024 - address));
}

// Tensor maps -----------------------------------------------------------------------------------

// The driver's encoder of tensor maps, found through the runtime: nothing links with the driver.
struct MapEncoder {
  decltype(&cuTensorMapEncodeTiled) encode = nullptr;

  MapEncoder() {
    cudaDriverEntryPointQueryResult found{};
    void* function = nullptr;
    CudaCheck(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                               cudaEnableDefault, &found),
              "cuTensorMapEncodeTiled");
    weft::Check(found == cudaDriverEntryPointSuccess,
                "cuTensorMapEncodeTiled is not in this driver");
    encode = reinterpret_cast<decltype(encode)>(function);
  }
};

// Panels of `rows` rows of bf16, rows aligned to 16 bytes; what lies outside reads as zeros.
// Strides count elements, those of dimensions 1 to 3; dimension 0 is dense.
inline CUtensorMap EncodeMap(CudaStream& stream, void* data, const int64_t (&dims)[4],
                             const int64_t (&strides)[3], int rows, int panel) {
  CUtensorMap map;
  cuuint64_t sizes[4], bytes[3];
  for (int i = 0; i < 4; ++i) sizes[i] = static_cast<cuuint64_t>(dims[i]);
  // A dimension of size 1 may have any stride; the encoder wants multiples of 16 bytes.
  for (int i = 0; i < 3; ++i)
    bytes[i] =
        dims[i + 1] > 1 ? static_cast<cuuint64_t>(strides[i]) * sizeof(BF16) : cuuint64_t{16};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(panel), static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const auto swizzle = panel == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                       : panel == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult result = stream.Part<MapEncoder>().encode(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, data, sizes, bytes, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  weft::Check(result == CUDA_SUCCESS, "no tensor map of [", dims[3], ", ", dims[2], ", ", dims[1],
              ", ", dims[0], "] with strides ", strides[2], ", ", strides[1], ", ", strides[0],
              ": error ", static_cast<int>(result));
  return map;
}
// Those of one head of x[B, T, H, D].
inline CUtensorMap TileMap(CudaStream& stream, const TensorView& x, int rows,
                           int panel = kWidePanel) {
  return EncodeMap(stream, x.data(), {x.dim(3), x.dim(1), x.dim(2), x.dim(0)},
                   {x.stride(1), x.stride(2), x.stride(0)}, rows, panel);
}

}  // namespace weft::hopper
