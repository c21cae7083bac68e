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
constexpr int64_t kSlab = 4 * kDepth;           // depth that is summed at a time, to stay in caches
constexpr int64_t kSlabWords = kSlab / kDepth * kStepWords;

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

// Into the second cache: the first one is full of panels.
WEFT_INLINE inline void Prefetch(const float* x) { __builtin_prefetch(x, 0, 2); }

// Packs panels, with zeros beyond the ends of the operand: rows of a tile are outer for A, depth
// for B. Row r of both tiles of a step can be packed between products.
class Packer {
 public:
  Packer(const Operand& x, bool is_a) : x_(x), is_a_(is_a) {}

  // The panel that begins at `outer` over depth [from, to), at most kSlab.
  void Begin(int64_t outer, int64_t from, int64_t to, Word* out) {
    out_ = out, row_ = 0, steps_ = CeilDiv(to - from, kDepth);
    const int64_t depth = steps_ * kDepth, n_outer = std::min<int64_t>(kPanel, x_.outer - outer);
    if (x_.depth_is_contiguous == is_a_ && n_outer == kPanel && to - from == depth) {
      from_ = x_.data + (is_a_ ? outer * x_.ld + from : from * x_.ld + outer), ld_ = x_.ld;
      ahead_ = is_a_ ? kPanel * ld_ : kPanel;
    } else {
      Stage(outer, n_outer, from, to - from);
      from_ = staged_, ld_ = is_a_ ? depth : kPanel, ahead_ = 0;
    }
    half_ = is_a_ ? kTile * ld_ : kTile;
    step_ = is_a_ ? kDepth : kDepth * ld_, to_high_ = is_a_ ? kTile : kTile * ld_;
  }
  // The next rows, as far as there are any.
  WEFT_INLINE inline void Pack(int64_t rows) {
    for (const int64_t end = std::min<int64_t>(kPanel, row_ + rows); row_ < end; ++row_) {
      const float* from = from_ + row_ / kTile * half_ + row_ % kTile * ld_;
      Word* to = out_ + row_ * kTile;
      for (int64_t s = 0; s < steps_; ++s, from += step_, to += kStepWords) {
        Split(Load(from), Load(from + to_high_), to);
        Prefetch(from + ahead_);
        Prefetch(from + ahead_ + to_high_);
      }
    }
  }
  // Packs what is left of the panel. Returns whether all numbers so far could be split.
  bool Finish() {
    Pack(kPanel);
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
  // Copies a panel that has to be transposed or filled up.
  __attribute__((noinline)) void Stage(int64_t outer, int64_t n_outer, int64_t from, int64_t n) {
    const bool by_outer = x_.depth_is_contiguous, transpose = by_outer != is_a_;
    const float* const first = x_.data + (by_outer ? outer * x_.ld + from : from * x_.ld + outer);
    const int64_t rows = by_outer ? n_outer : n, columns = by_outer ? n : n_outer;  // in memory
    const int64_t all = steps_ * kDepth, all_rows = by_outer ? kPanel : all,
                  all_columns = by_outer ? all : kPanel;
    for (int64_t i = 0; i < all_rows; i += kTile) {
      for (int64_t j = 0; j < all_columns; j += kTile) {
        const float* block = first + i * x_.ld + j;
        const auto some =
            static_cast<__mmask16>((1 << std::clamp<int64_t>(columns - j, 0, kTile)) - 1);
        Floats r[kTile];
#pragma GCC unroll 16
        for (int l = 0; l < kTile; ++l) {
          r[l] = _mm512_maskz_loadu_ps(i + l < rows ? some : 0, block + l * x_.ld);
          Prefetch(block + l * x_.ld + (is_a_ ? kPanel : kPanel * x_.ld));
        }
        if (transpose) Transpose(r);
        float* to = staged_ + (transpose ? j * all_rows + i : i * all_columns + j);
        const int64_t ld = transpose ? all_rows : all_columns;
#pragma GCC unroll 16
        for (int l = 0; l < kTile; ++l) Store(to + l * ld, r[l]);
      }
    }
  }

  Operand x_;
  bool is_a_;
  Word* out_ = nullptr;
  int64_t row_ = kPanel, steps_ = 0;
  const float* from_ = nullptr;                         // the numbers, in the order of the tiles
  int64_t ld_ = 0, half_ = 0, step_ = 0, to_high_ = 0;  // distances to the next row of a tile, the
                                                        // other tile, the next step, depth i + 16
  int64_t ahead_ = 0;                                   // and to the next panel
  Floats rest_{};
  alignas(64) float staged_[kPanel * kSlab];
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

// 32 x 32 numbers of C, of which rows x columns exist.
struct Target {
  float* data;
  int64_t ld, rows, columns;
};

// C (+)= A B for a panel of each, `steps` times kDepth deep. Tiles leave the vector units idle,
// which meanwhile pack `rows` rows of what comes next.
void MultiplyPanels(const Word* a, const Word* b, int64_t steps, bool add, const Target& c,
                    Packer& next, int64_t rows) {
  alignas(64) float edge[kPanel][kPanel];
  const bool whole = c.rows >= kPanel && c.columns >= kPanel;
  const int64_t edge_rows = whole ? 0 : std::min<int64_t>(c.rows, kPanel),
                edge_columns = std::min<int64_t>(c.columns, kPanel);
  for (int64_t r = 0; add && r < edge_rows; ++r)
    std::copy_n(c.data + r * c.ld, edge_columns, edge[r]);
  float *const upper = whole ? c.data : edge[0], *const lower =
                                                     whole ? c.data + kTile * c.ld : edge[kTile];
  const int64_t stride = (whole ? c.ld : kPanel) * static_cast<int64_t>(sizeof(float));

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
    load_a(0), load_b(2), multiply();
    load_b(1), multiply();
    load_a(1), multiply(), next.Pack(rows);
    load_b(0), multiply();
    load_a(2), multiply();
    load_a(0), multiply();
  }
  _tile_stored(0, upper, stride);
  _tile_stored(1, upper + kTile, stride);
  _tile_stored(2, lower, stride);
  _tile_stored(3, lower + kTile, stride);
  for (int64_t r = 0; r < edge_rows; ++r) std::copy_n(edge[r], edge_columns, c.data + r * c.ld);
}

// Panels of C as they are summed up: [panel of rows][panel of columns][32][32].
struct Sum {
  Target At(int64_t row, int64_t column) const {
    return {data + (row / kPanel * across + column / kPanel) * kPanel * kPanel, kPanel, kPanel,
            kPanel};
  }
  float* data;
  int64_t across;
};

// c (+)= the total of `count` sums that lie `size` apart, or its transpose.
void AddUp(const float* sums, int64_t count, int64_t size, bool transpose, bool add,
           const Target& c) {
  alignas(64) float total[kPanel][kPanel];
  for (int64_t i = 0; i < kPanel; i += kTile) {
    for (int64_t j = 0; j < kPanel; j += kTile) {
      Floats r[kTile];
#pragma GCC unroll 16
      for (int l = 0; l < kTile; ++l) {
        r[l] = Floats{};
        for (int64_t s = 0; s < count; ++s) r[l] += Load(sums + s * size + (i + l) * kPanel + j);
      }
      if (transpose) Transpose(r);
#pragma GCC unroll 16
      for (int l = 0; l < kTile; ++l) Store(transpose ? &total[j + l][i] : &total[i + l][j], r[l]);
    }
  }
  for (int64_t r = 0; r < std::min<int64_t>(c.rows, kPanel); ++r) {
    for (int64_t j = 0; j < std::min<int64_t>(c.columns, kPanel); ++j)
      c.data[r * c.ld + j] = total[r][j] + (add ? c.data[r * c.ld + j] : 0.f);
  }
}

}  // namespace

// What an item computes follows from the shape alone, so that bits do not depend on the number of
// threads. Panels of one operand move past the panels of the other, which are packed before. A
// product that is tall is cut into blocks of C; A moves past B, which is packed once for all of
// them. One that is deep, as the gradient of a weight is, is cut into partial sums as well; each
// packs its own part of A, and B moves. A is the smaller operand then, if need be by forming C^T,
// since it has to be transposed to be packed.
void AmxGemm(CpuStream& stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
             const float* a, int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c,
             int64_t ldc) {
  constexpr int64_t kItems = 8, kMinSum = 512, kMaxColumns = 512;
  constexpr int64_t kMaxDeepBlock = 256 << 10, kMaxTallBlock = 128 << 10;  // numbers of C per item
  constexpr int64_t kMaxWords = 16 << 20;                                  // of scratch: 64 MiB
  const bool deep = k >= kItems * kMinSum && kItems * m * n <= kMaxWords;
  const int64_t all_steps = CeilDiv(k, kDepth);
  const int64_t strip = std::max<int64_t>(kMaxWords / (all_steps * kStepWords), 1) * kPanel;
  if (!deep && n > strip) {
    for (int64_t j = 0; j < n; j += strip) {
      AmxGemm(stream, trans_a, trans_b, m, std::min(strip, n - j), k, a, lda,
              trans_b ? b + j * ldb : b + j, ldb, accumulate, c + j, ldc);
    }
    return;
  }
  Operand A{a, lda, !trans_a, m, k}, B{b, ldb, trans_b, n, k};
  const bool swapped = deep && m > n;
  if (swapped) std::swap(A, B);
  const int64_t M = A.outer, N = B.outer;

  const int64_t columns =
      PartSize(N, deep ? std::max<int64_t>(kMaxDeepBlock / M, kPanel) : kMaxColumns);
  const int64_t most_rows =
      std::min(kMaxTallBlock / columns, std::max<int64_t>(CeilDiv(M, kItems), kPanel));
  const int64_t rows = deep ? M : PartSize(M, most_rows);
  const int64_t across = CeilDiv(N, columns), blocks = CeilDiv(M, rows) * across;
  const int64_t max_sums = CeilDiv(kItems, blocks);
  const int64_t sums = std::clamp<int64_t>(k / kMinSum, 1, max_sums);
  const int64_t summed = CeilDiv(CeilDiv(k, sums), kDepth) * kDepth;
  const int64_t m_panels = CeilDiv(M, kPanel), n_panels = CeilDiv(N, kPanel);

  Worker& shared = stream.Shared();
  std::atomic<bool> splits = true;
  Word* const all_b = deep ? nullptr : shared.Alloc<Word>(n_panels * all_steps * kStepWords);
  stream.ParallelFor(deep ? 0 : n_panels, [&](int64_t panel, Worker&) {
    Packer packer(B, false);
    for (int64_t from = 0; from < k; from += kSlab) {
      packer.Begin(panel * kPanel, from, std::min(k, from + kSlab),
                   all_b + (panel * all_steps + from / kDepth) * kStepWords);
      if (!packer.Finish()) splits = false;
    }
  });

  // Sums that are not yet C.
  const bool apart = deep || sums > 1 || accumulate;
  const int64_t sum_size = m_panels * n_panels * kPanel * kPanel;
  float* const all_sums = apart ? shared.Alloc<float>(sums * sum_size) : nullptr;
  stream.ParallelFor(blocks * sums, [&](int64_t item, Worker& worker) {
    const int64_t sum = item / blocks, begin = sum * summed, end = std::min(k, begin + summed);
    const int64_t row = item % blocks / across * rows, row_end = std::min(M, row + rows);
    const int64_t column = item % across * columns, column_end = std::min(N, column + columns);
    const Sum partial{all_sums + sum * sum_size, n_panels};
    const auto target = [&](int64_t i, int64_t j) {
      return apart ? partial.At(i, j) : Target{c + i * ldc + j, ldc, M - i, N - j};
    };
    Word* const own_a = deep ? worker.Alloc<Word>(m_panels * kSlabWords) : nullptr;
    Word* const moving[2] = {worker.Alloc<Word>(kSlabWords), worker.Alloc<Word>(kSlabWords)};
    Packer packer(deep ? B : A, !deep), a_packer(A, true);
    ConfigureTiles();
    for (int64_t from = begin; splits && from < end; from += kSlab) {
      const int64_t to = std::min(end, from + kSlab), steps = CeilDiv(to - from, kDepth);
      for (int64_t i = 0; deep && i < m_panels; ++i) {
        a_packer.Begin(i * kPanel, from, to, own_a + i * kSlabWords);
        if (!a_packer.Finish()) splits = false;
      }
      const int64_t first = deep ? column : row, last = deep ? column_end : row_end;
      const int64_t past = deep ? m_panels : CeilDiv(column_end - column, kPanel);
      const int64_t rows_at_once = CeilDiv(kPanel, past * steps);
      packer.Begin(first, from, to, moving[0]);
      for (int64_t p = first; p < last; p += kPanel) {
        if (!packer.Finish()) splits = false;
        const Word* const packed = moving[(p - first) / kPanel % 2];
        if (p + kPanel < last)
          packer.Begin(p + kPanel, from, to, moving[((p - first) / kPanel + 1) % 2]);
        for (int64_t q = 0; q < past; ++q) {
          const int64_t i = deep ? q * kPanel : p, j = deep ? p : column + q * kPanel;
          const Word* const packed_a = deep ? own_a + q * kSlabWords : packed;
          const Word* const packed_b =
              deep ? packed : all_b + (j / kPanel * all_steps + from / kDepth) * kStepWords;
          MultiplyPanels(packed_a, packed_b, steps, from > begin, target(i, j), packer,
                         rows_at_once);
        }
      }
    }
    _tile_release();
  });

  if (!splits) {
    stream.ParallelRanges(m, most_rows, [&](int64_t i, int64_t end, Worker&) {
      Gemm<float>(trans_a, trans_b, end - i, n, k, 1, trans_a ? a + i : a + i * lda, lda, b, ldb,
                  accumulate ? 1 : 0, c + i * ldc, ldc);
    });
    return;
  }
  stream.ParallelFor(apart ? m_panels * n_panels : 0, [&](int64_t panel, Worker&) {
    const int64_t i = panel / n_panels * kPanel, j = panel % n_panels * kPanel;
    const Target target = swapped ? Target{c + j * ldc + i, ldc, N - j, M - i}
                                  : Target{c + i * ldc + j, ldc, M - i, N - j};
    AddUp(Sum{all_sums, n_panels}.At(i, j).data, sums, sum_size, swapped, accumulate, target);
  });
}

#pragma GCC pop_options

}  // namespace weft
