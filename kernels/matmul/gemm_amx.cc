// A tile multiplies bf16 numbers, which have 8 bits, and sums in float. A float is the exact sum of
// three of them, x = x0 + x1 + x2 with |x1| <= 2^-8 |x| and |x2| <= 2^-16 |x|, and six of the nine
// products of such parts are formed:
//
//   a b = a0 b0 + (a0 b1 + a1 b0) + (a0 b2 + a1 b1 + a2 b0) + e,   |e| <= 2^-23 |a b|
//
// The bound of e needs both numbers just above a power of two and is 2^-25 elsewhere, half of what
// rounding a float product costs; its sign is random. Sums round as those of every float product
// do. So the error is that of an sgemm; tests/laws/op_edges_test.cc holds it against one.
//
// Blocks of C whose operands hold an infinity, a NaN or a number that rounds to a bf16 infinity
// (above 3.38e38) are left to Gemm. Tiles read subnormal numbers as zero, so that numbers below
// 1e-33 lose parts: an absolute error of 2^-126 (|a| + |b|) per product.

#include "kernels/matmul/gemm_amx.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "kernels/base/lanes.h"
#include "kernels/matmul/gemm.h"

namespace weft {

bool HasAmx() {
  static const bool has = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) return false;
    uint32_t eax = 7, ebx, ecx = 0, edx;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,amx-tile,amx-bf16")

namespace {

constexpr int kTile = 16;          // rows of a tile, and columns of one of C
constexpr int kDepth = 2 * kTile;  // what one product of tiles sums over
constexpr int kPanel = 2 * kTile;  // rows of A, or columns of B, that are packed together
constexpr int kTileWords = kTile * kTile;
constexpr int kStepWords = 3 * 2 * kTileWords;  // a panel, kDepth deep: [part][half][kTile][kTile]

using Word = uint32_t;  // the bf16 numbers of depth i and, in the upper half, of depth i + 16
typedef Word Words __attribute__((vector_size(64), may_alias));
using Floats = Lanes<float>;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The size of nearly equal parts of n, whole panels of at most `most`.
int64_t PartSize(int64_t n, int64_t most) {
  return CeilDiv(CeilDiv(n, CeilDiv(n, most)), kPanel) * kPanel;
}

// An operand as [outer][depth], outer being a row of C for A and a column for B.
struct Operand {
  const float* data;
  int64_t ld;
  bool depth_is_contiguous;
  int64_t outer, depth;
};

// The bf16 number nearest to x, as a float.
WEFT_INLINE inline Words Leading(const Floats& x) { return ((Words)x + 0x8000u) & 0xffff0000u; }
WEFT_INLINE inline void StorePair(Word* to, const Words& low, const Words& high) {
  *reinterpret_cast<Words*>(to) = (low >> 16) | (high & 0xffff0000u);
}

// Packs panels with zeros beyond the ends of the operand, row by row of the tiles, so that it can
// be done between products. Rows of a tile are outer for A, depth for B.
class Packer {
 public:
  Packer(const Operand& x, bool is_a) : x_(x), is_a_(is_a) {}

  // The panel that begins at `outer` over depth [from, to).
  void Begin(int64_t outer, int64_t from, int64_t to, Word* out) {
    outer_ = outer, depth_ = from, end_ = to, tile_ = out;
  }
  // The next rows, as far as there are any.
  WEFT_INLINE inline void Pack(int64_t rows) {
    for (; rows > 0 && depth_ < end_; --rows) {
      if (row_ == 0) StartTile();
      const float* from = rows_ + row_ * stride_;
      const __mmask16 low = row_ < low_rows_ ? low_ : 0, high = row_ < high_rows_ ? high_ : 0;
      Split(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + to_high_),
            tile_ + row_ * kTile);
      if (++row_ < kTile) continue;
      row_ = 0;
      tile_ += half_ == 0 ? kTileWords : kStepWords - kTileWords;
      depth_ += half_ == 0 ? 0 : kDepth;
      half_ ^= 1;
    }
  }
  // Packs what is left of the panel. Returns whether all numbers so far could be split.
  bool Finish() {
    Pack(CeilDiv(end_ - depth_, kDepth) * kPanel);
    return _mm512_cmp_ps_mask((__m512)rest_, (__m512)rest_, _CMP_UNORD_Q) == 0;
  }

 private:
  // Into row `to` of the tiles of the three parts.
  WEFT_INLINE inline void Split(Floats x, Floats y, Word* to) {
    for (int part = 0; part < 2; ++part) {
      const Words x0 = Leading(x), y0 = Leading(y);
      StorePair(to + 2 * part * kTileWords, x0, y0);
      x -= (Floats)x0, y -= (Floats)y0;
    }
    StorePair(to + 4 * kTileWords, (Words)x, (Words)y);
    rest_ += x + y;  // NaN from the first infinite or NaN leading part on
  }
  static __mmask16 Mask(int64_t n) {
    return static_cast<__mmask16>((1 << std::clamp<int64_t>(n, 0, kTile)) - 1);
  }
  __attribute__((noinline)) void StartTile() {
    const int64_t outer = outer_ + half_ * kTile;
    const int64_t n_outer = x_.outer - outer, n_depth = x_.depth - depth_;
    const float* from = x_.depth_is_contiguous ? x_.data + outer * x_.ld + depth_
                                               : x_.data + depth_ * x_.ld + outer;
    if (x_.depth_is_contiguous == is_a_) {
      rows_ = from, stride_ = x_.ld;
      to_high_ = is_a_ ? kTile : kTile * x_.ld;
      low_ = Mask(is_a_ ? n_depth : n_outer), high_ = is_a_ ? Mask(n_depth - kTile) : low_;
      low_rows_ = is_a_ ? n_outer : n_depth, high_rows_ = is_a_ ? n_outer : n_depth - kTile;
      return;
    }
    for (int half = 0; half < 2; ++half) {  // of the depth
      const int64_t first = half * kTile, rows = is_a_ ? n_depth - first : n_outer;
      const __mmask16 columns = Mask(is_a_ ? n_outer : n_depth - first);
      const float* block = from + (is_a_ ? first * x_.ld : first);
      Floats r[kTile];
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
        r[i] = _mm512_maskz_loadu_ps(i < rows ? columns : 0, block + i * x_.ld);
      }
      Transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) Store(transposed_[half][i], r[i]);
    }
    rows_ = transposed_[0][0], stride_ = kTile, to_high_ = kTile * kTile;
    low_ = high_ = Mask(kTile), low_rows_ = high_rows_ = kTile;
  }

  Operand x_;
  bool is_a_;
  int64_t outer_ = 0, depth_ = 0, end_ = 0;
  Word* tile_ = nullptr;
  int half_ = 0, row_ = 0;
  const float* rows_ = nullptr;  // of the tile at hand, of depth i; to_high_ further on, i + 16
  int64_t stride_ = 0, to_high_ = 0, low_rows_ = 0, high_rows_ = 0;
  __mmask16 low_ = 0, high_ = 0;
  Floats rest_{};
  alignas(64) float transposed_[2][kTile][kTile];
};

void ConfigureTiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kTile;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// C (+)= A B for a panel of each, `steps` times kDepth deep; of C [32][32] only rows x columns
// exist. Tiles leave the vector units idle, which meanwhile pack what comes `next`.
void MultiplyPanels(const Word* a, const Word* b, int64_t steps, bool add, int64_t rows,
                    int64_t columns, float* c, int64_t ldc, Packer& next, int64_t next_rows) {
  alignas(64) float edge[kPanel][kPanel];
  const bool whole = rows >= kPanel && columns >= kPanel;
  rows = std::min<int64_t>(rows, kPanel), columns = std::min<int64_t>(columns, kPanel);
  for (int64_t r = 0; add && !whole && r < rows; ++r) std::copy_n(c + r * ldc, columns, edge[r]);
  float *const upper = whole ? c : edge[0], *const lower = whole ? c + kTile * ldc : edge[kTile];
  const int64_t stride = (whole ? ldc : kPanel) * static_cast<int64_t>(sizeof(float));

  __asm__ volatile("" ::: "memory");  // the intrinsics do not say that loads of tiles read memory
  if (add) {
    _tile_loadd(0, upper, stride);
    _tile_loadd(1, upper + kTile, stride);
    _tile_loadd(2, lower, stride);
    _tile_loadd(3, lower + kTile, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const auto load_a = [&](int part) WEFT_INLINE {
    _tile_loadd(4, a + 2 * part * kTileWords, 64);
    _tile_loadd(5, a + (2 * part + 1) * kTileWords, 64);
  };
  const auto load_b = [&](int part) WEFT_INLINE {
    _tile_loadd(6, b + 2 * part * kTileWords, 64);
    _tile_loadd(7, b + (2 * part + 1) * kTileWords, 64);
  };
  const auto multiply = [&]() WEFT_INLINE {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t s = 0; s < steps; ++s, a += kStepWords, b += kStepWords) {
    // In the order that loads least.
    load_a(0), load_b(2), multiply(), next.Pack(next_rows);
    load_b(1), multiply();
    load_a(1), multiply(), next.Pack(next_rows);
    load_b(0), multiply();
    load_a(2), multiply(), next.Pack(next_rows);
    load_a(0), multiply();
  }
  _tile_stored(0, upper, stride);
  _tile_stored(1, upper + kTile, stride);
  _tile_stored(2, lower, stride);
  _tile_stored(3, lower + kTile, stride);
  for (int64_t r = 0; !whole && r < rows; ++r) std::copy_n(edge[r], columns, c + r * ldc);
}

// to (+)= from, n numbers.
void Put(const float* from, int64_t n, bool add, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = add ? to[j] + from[j] : from[j];
}

}  // namespace

// What an item computes follows from the shape alone, so that bits do not depend on the number of
// threads. A product that is tall is cut into blocks of C, for which B is packed once. One that is
// deep, as the gradient of a weight is, is cut into partial sums, each of which packs its own B.
void AmxGemm(CpuStream& stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
             const float* a, int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c,
             int64_t ldc) {
  constexpr int64_t kItems = 8, kMinSum = 512, kMaxRows = 256, kMaxColumns = 512;
  constexpr int64_t kTallSteps = 8, kOwnWords = 128 << 10;  // packed at a time, to stay in caches
  constexpr int64_t kMaxWords = 16 << 20;                   // of scratch: 64 MiB
  const bool deep = k >= kItems * kMinSum && kItems * m * n <= kMaxWords;
  const int64_t all_steps = CeilDiv(k, kDepth);
  const int64_t slab = std::max<int64_t>(kMaxWords / (all_steps * kStepWords), 1) * kPanel;
  if (!deep && n > slab) {
    for (int64_t j = 0; j < n; j += slab) {
      AmxGemm(stream, trans_a, trans_b, m, std::min(slab, n - j), k, a, lda,
              trans_b ? b + j * ldb : b + j, ldb, accumulate, c + j, ldc);
    }
    return;
  }
  const int64_t rows = deep ? m : PartSize(m, kMaxRows);
  const int64_t columns = deep ? n : PartSize(n, kMaxColumns);
  const int64_t across = CeilDiv(n, columns), blocks = CeilDiv(m, rows) * across;
  const int64_t sums = deep ? kItems : std::clamp<int64_t>(k / kMinSum, 1, CeilDiv(kItems, blocks));
  const int64_t summed = CeilDiv(CeilDiv(k, sums), kDepth) * kDepth;
  const int64_t panels = CeilDiv(n, kPanel);
  const int64_t max_steps =
      deep ? std::clamp<int64_t>(kOwnWords / (panels * kStepWords), 2, kTallSteps) : kTallSteps;
  const Operand A{a, lda, !trans_a, m, k}, B{b, ldb, trans_b, n, k};

  Worker& shared = stream.Shared();
  Word* const all_b = deep ? nullptr : shared.Alloc<Word>(panels * all_steps * kStepWords);
  std::atomic<bool> b_splits = true;
  stream.ParallelFor(deep ? 0 : panels, [&](int64_t panel, Worker&) {
    Packer packer(B, false);
    packer.Begin(panel * kPanel, 0, k, all_b + panel * all_steps * kStepWords);
    if (!packer.Finish()) b_splits = false;
  });

  float* const partial = sums > 1 ? shared.Alloc<float>(sums * m * n) : nullptr;
  stream.ParallelFor(blocks * sums, [&](int64_t item, Worker& worker) {
    const int64_t sum = item / blocks, begin = sum * summed, end = std::min(k, begin + summed);
    const int64_t row = item % blocks / across * rows, height = std::min(rows, m - row);
    const int64_t column = item % across * columns, width = std::min(columns, n - column);
    float* const block = c + row * ldc + column;
    float* const out = partial      ? partial + (sum * m + row) * n + column
                       : accumulate ? worker.Alloc<float>(height * width)
                                    : block;
    const int64_t ld = partial ? n : accumulate ? width : ldc;
    const int64_t panel_words = max_steps * kStepWords;
    Word* const own_a[2] = {worker.Alloc<Word>(panel_words), worker.Alloc<Word>(panel_words)};
    Word* const own_b = deep ? worker.Alloc<Word>(panels * panel_words) : nullptr;

    bool splits = b_splits;
    Packer a_packer(A, true), b_packer(B, false);
    ConfigureTiles();
    for (int64_t from = begin; splits && from < end; from += max_steps * kDepth) {
      const int64_t to = std::min(end, from + max_steps * kDepth),
                    steps = CeilDiv(to - from, kDepth);
      const int64_t b_stride = (deep ? steps : all_steps) * kStepWords;
      const Word* const packed_b =
          deep ? own_b : all_b + column / kPanel * b_stride + from / kDepth * kStepWords;
      for (int64_t j = 0; deep && j < panels; ++j) {
        b_packer.Begin(j * kPanel, from, to, own_b + j * b_stride);
        splits &= b_packer.Finish();
      }
      const int64_t pack_calls = 3 * CeilDiv(width, kPanel);  // per step of a panel of A
      a_packer.Begin(row, from, to, own_a[0]);
      for (int64_t i = 0; i < height; i += kPanel) {
        splits &= a_packer.Finish();
        const Word* const packed_a = own_a[i / kPanel % 2];
        if (i + kPanel < height) {
          a_packer.Begin(row + i + kPanel, from, to, own_a[(i / kPanel + 1) % 2]);
        }
        for (int64_t j = 0; j < width; j += kPanel) {
          MultiplyPanels(packed_a, packed_b + j / kPanel * b_stride, steps, from > begin,
                         height - i, width - j, out + i * ld + j, ld, a_packer,
                         CeilDiv(kPanel, pack_calls));
        }
      }
    }
    _tile_release();
    if (!splits) {
      Gemm<float>(trans_a, trans_b, height, width, end - begin, 1,
                  trans_a ? a + begin * lda + row : a + row * lda + begin, lda,
                  trans_b ? b + column * ldb + begin : b + begin * ldb + column, ldb, 0, out, ld);
    }
    for (int64_t r = 0; accumulate && !partial && r < height; ++r) {
      Put(out + r * ld, width, true, block + r * ldc);
    }
  });
  stream.ParallelRanges(partial ? m : 0, CeilDiv(m, kItems), [&](int64_t r, int64_t end, Worker&) {
    for (; r < end; ++r) {
      float* const total = partial + r * n;
      for (int64_t s = 1; s < sums; ++s) Put(total + s * m * n, n, true, total);
      Put(total, n, accumulate, c + r * ldc);
    }
  });
}

#pragma GCC pop_options

}  // namespace weft
