#pragma once
// 16 x 16 blocks of bf16 on tensor cores: a fragment is an operand as the lanes of a warp hold it,
// a Tile the f32 sum, whose halves are of 8 columns.

#include "kernels/base/mma.cuh"

namespace weft::gated_delta {

struct Fragment {
  uint32_t at[4];
};
using Tile = float[2][4];

// A tile as the left operand of the next product.
__device__ inline Fragment Pack(const Tile& x) {
  return {PackPair(x[0][0], x[0][1]), PackPair(x[0][2], x[0][3]), PackPair(x[1][0], x[1][1]),
          PackPair(x[1][2], x[1][3])};
}

// A number as the sum of two bf16, to 16 bits and more.
struct SplitFragment {
  Fragment high, low;
};
__device__ inline SplitFragment Split(const Tile& x) {
  const Fragment high = Pack(x);
  Tile rest;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackPair(high.at[i]);
    rest[i / 2][i % 2 * 2] = x[i / 2][i % 2 * 2] - pair.x;
    rest[i / 2][i % 2 * 2 + 1] = x[i / 2][i % 2 * 2 + 1] - pair.y;
  }
  return {high, Pack(rest)};
}

// d += a b for 8 columns, of which b0 and b1 are rows 0 to 7 and 8 to 15.
__device__ inline void MmaHalf(float (&d)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
}
// d += a b
__device__ inline void Mma(Tile& d, const Fragment& a, const Fragment& b) {
#pragma unroll
  for (int half = 0; half < 2; ++half) MmaHalf(d[half], a, b.at[2 * half], b.at[2 * half + 1]);
}

__device__ inline void Mma(Tile& d, const Fragment& a, const SplitFragment& b) {
  Mma(d, a, b.low);
  Mma(d, a, b.high);
}
__device__ inline void Mma(Tile& d, const SplitFragment& a, const SplitFragment& b) {
  Mma(d, a.low, b.high);
  Mma(d, a.high, b);
}

__device__ inline Fragment LoadMatrix(const BF16* p) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(SharedAddress(p))
               : "memory");
  return f;
}
__device__ inline Fragment LoadMatrixTransposed(const BF16* p) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(SharedAddress(p))
               : "memory");
  return f;
}

// Blocks of shared memory as operands. A left operand A(m, k) lies as p[m ld + k], or transposed as
// p[k ld + m]; a right operand B(k, n) as p[k ld + n], or transposed as p[n ld + k]. Reading is
// free of bank conflicts where ld / 8 is odd.
__device__ inline int RowsFirst(int ld) {
  const int lane = threadIdx.x % kWarp;
  return lane % 16 * ld + lane / 16 * 8;
}
__device__ inline int ColumnsFirst(int ld) {
  const int lane = threadIdx.x % kWarp;
  return (lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8;
}
__device__ inline Fragment Left(const BF16* p, int ld) { return LoadMatrix(p + RowsFirst(ld)); }
__device__ inline Fragment LeftTransposed(const BF16* p, int ld) {
  return LoadMatrixTransposed(p + ColumnsFirst(ld));
}
__device__ inline Fragment Right(const BF16* p, int ld) {
  return LoadMatrixTransposed(p + RowsFirst(ld));
}
__device__ inline Fragment RightTransposed(const BF16* p, int ld) {
  return LoadMatrix(p + ColumnsFirst(ld));
}

// Both parts of split blocks, `apart` elements from each other.
__device__ inline SplitFragment LeftTransposed(const BF16* p, int ld, int apart) {
  return {LeftTransposed(p, ld), LeftTransposed(p + apart, ld)};
}
__device__ inline SplitFragment Right(const BF16* p, int ld, int apart) {
  return {Right(p, ld), Right(p + apart, ld)};
}
__device__ inline SplitFragment RightTransposed(const BF16* p, int ld, int apart) {
  return {RightTransposed(p, ld), RightTransposed(p + apart, ld)};
}
// A tile to shared memory.
__device__ inline void StoreTile(const Fragment& x, BF16* p, int ld) {
  p += threadIdx.x % kWarp / 4 * ld + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint32_t*>(p + i % 2 * 8 * ld + i / 2 * 8) = x.at[i];
}
__device__ inline void StoreTile(const SplitFragment& x, BF16* p, int ld, int apart) {
  StoreTile(x.high, p, ld);
  StoreTile(x.low, p + apart, ld);
}

// An 8 x 8 block, of which each lane has a pair.
__device__ inline uint32_t Transpose(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// 16 columns of a matrix in global memory as the 16 rows of a fragment. A lane moves 4 columns of a
// row at once, for which the fragment's rows stand in the order of ColumnOfRow.
__device__ inline int ColumnOfRow(int row) { return row % 8 / 2 * 4 + row % 2 + row / 8 * 2; }
struct ColumnBlock {
  uint2 half[2];  // 8 rows of memory each
};
// p: the block's first element in the first of its 16 rows, of which `count` are there.
__device__ inline ColumnBlock LoadColumns(const BF16* p, int64_t stride, int count) {
  const int row = threadIdx.x % kWarp / 4, column = threadIdx.x % 4 * 4;
  ColumnBlock x;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half;
    x.half[half] =
        r < count ? *reinterpret_cast<const uint2*>(p + r * stride + column) : uint2{0, 0};
  }
  return x;
}
__device__ inline Fragment Transpose(const ColumnBlock& x) {
  return {Transpose(x.half[0].x), Transpose(x.half[0].y), Transpose(x.half[1].x),
          Transpose(x.half[1].y)};
}
__device__ inline void StoreColumns(const Fragment& x, BF16* p, int64_t stride, int count) {
  const int row = threadIdx.x % kWarp / 4, column = threadIdx.x % 4 * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint2 pair = {Transpose(x.at[2 * half]), Transpose(x.at[2 * half + 1])};
    const int r = row + 8 * half;
    if (r < count) *reinterpret_cast<uint2*>(p + r * stride + column) = pair;
  }
}

// A row's pairs of both halves become 4 neighbours: of the first half in even lanes, of the second
// in odd ones. They begin at NeighbourColumn().
template <class Pair>
struct Neighbours {
  Pair low, high;
};
__device__ inline int NeighbourColumn() {
  const int c = threadIdx.x % 4;
  return c % 2 * 8 + c / 2 * 4;
}
__device__ inline Neighbours<uint32_t> Exchange(uint32_t first, uint32_t second) {
  const bool odd = threadIdx.x % 2;
  const uint32_t got = __shfl_xor_sync(~0u, odd ? first : second, 1);
  return odd ? Neighbours<uint32_t>{got, second} : Neighbours<uint32_t>{first, got};
}
__device__ inline Neighbours<float2> Exchange(float2 first, float2 second) {
  const bool odd = threadIdx.x % 2;
  const float2 send = odd ? first : second;
  const float2 got = {__shfl_xor_sync(~0u, send.x, 1), __shfl_xor_sync(~0u, send.y, 1)};
  return odd ? Neighbours<float2>{got, second} : Neighbours<float2>{first, got};
}

// 16 bytes from global to shared memory, or zeros.
__device__ inline void CopyAsync(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until no more than kPending groups of copies are under way.
template <int kPending = 0>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Rows of `width` elements, `ld` apart in shared memory, by a team of threads. What lies behind
// `rows_there` or `width_there` becomes zero.
struct Team {
  int thread, threads;
};
__device__ inline void CopyTile(Team team, BF16* to, int ld, int rows, int width, const BF16* from,
                                int64_t stride, int rows_there, int width_there) {
  for (int row = team.thread / 8; row < rows; row += team.threads / 8) {
    for (int column = team.thread % 8 * 8; column < width; column += 64) {
      const bool there = row < rows_there && column < width_there;
      CopyAsync(to + row * ld + column, there ? from + row * stride + column : from, there);
    }
  }
}

}  // namespace weft::gated_delta
