// links: weft_kernels
// What attention and rotary positions promise beyond the laws of every op: which keys a query sees,
// and exact bits.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/rng.h"
#include "kernels/qk_norm_rope/qk_norm_rope.h"
#include "tests/errors.h"

namespace weft {
namespace {

struct Sizes {
  int64_t B = 1, T = 1, H = 1, Hkv = 1, K = 4, V = 4, window = 0;
  std::vector<int32_t> doc_start = {};  // of one batch row; all rows have the same
};

// Owns what one attention reads and writes, with q, k and v as slices of one merged projection.
template <class T>
struct Problem {
  explicit Problem(const Sizes& sizes, uint64_t seed = 1) : s(sizes) {
    width = s.H * s.K + s.Hkv * (s.K + s.V);
    merged.resize(static_cast<size_t>(s.B * s.T * width));
    dy.resize(static_cast<size_t>(s.B * s.T * s.H * s.V));
    Rng rng(seed, Purpose::kTest, 0);
    for (T& x : merged) x = static_cast<T>(rng.Normal());
    for (T& x : dy) x = static_cast<T>(rng.Normal());
    dmerged.resize(merged.size());
    y.resize(dy.size());
    lse.resize(static_cast<size_t>(s.B * s.H * s.T));
    for (int64_t b = 0; b < s.B; ++b) doc.insert(doc.end(), s.doc_start.begin(), s.doc_start.end());
  }
  TensorView Slice(std::vector<T>& all, int64_t begin, int64_t heads, int64_t dim) {
    return TensorView(all.data(), kDTypeOf<T>, {s.B, s.T, width})
        .Slice(2, begin, heads * dim)
        .Split(2, heads, dim);
  }
  AttentionFwd Fwd() {
    AttentionFwd f{.scale = 1 / std::sqrt(static_cast<double>(s.K)), .window = s.window};
    f.q = Slice(merged, 0, s.H, s.K);
    f.k = Slice(merged, s.H * s.K, s.Hkv, s.K);
    f.v = Slice(merged, (s.H + s.Hkv) * s.K, s.Hkv, s.V);
    if (!doc.empty()) f.doc_start = TensorView(doc.data(), DType::kI32, {s.B, s.T});
    f.y = TensorView(y.data(), kDTypeOf<T>, {s.B, s.T, s.H, s.V});
    f.lse = TensorView(lse.data(), kDTypeOf<T>, {s.B, s.H, s.T});
    return f;
  }
  AttentionBwd Bwd() {
    AttentionBwd b{.fwd = Fwd()};
    b.dy = TensorView(dy.data(), kDTypeOf<T>, {s.B, s.T, s.H, s.V});
    b.dq = Slice(dmerged, 0, s.H, s.K);
    b.dk = Slice(dmerged, s.H * s.K, s.Hkv, s.K);
    b.dv = Slice(dmerged, (s.H + s.Hkv) * s.K, s.Hkv, s.V);
    b.dq.accumulate = b.dk.accumulate = b.dv.accumulate = false;
    return b;
  }
  void Run(bool backward = false) {
    Stream stream(std::in_place_type<CpuStream>, 2);
    Launch(stream, Fwd());
    if (backward) Launch(stream, Bwd());
  }
  // Draws everything that tokens begin to end of every batch row feed in anew.
  void Redraw(int64_t begin, int64_t end) {
    Rng rng(99, Purpose::kTest, 0);
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t c = 0; c < width; ++c)
          merged[Index(b, t, width, c)] = static_cast<T>(3 * rng.Normal());
        for (int64_t c = 0; c < s.H * s.V; ++c)
          dy[Index(b, t, s.H * s.V, c)] = static_cast<T>(rng.Normal());
      }
    }
  }
  size_t Index(int64_t b, int64_t t, int64_t row, int64_t c) const {
    return static_cast<size_t>((b * s.T + t) * row + c);
  }
  // Rows begin to end of y or of the gradients, over all batch rows.
  std::vector<T> Rows(const std::vector<T>& all, int64_t begin, int64_t end) const {
    const size_t row = all.size() / static_cast<size_t>(s.B * s.T);
    std::vector<T> out;
    for (int64_t b = 0; b < s.B; ++b) {
      const auto first = all.begin() + static_cast<int64_t>(row) * (b * s.T + begin);
      out.insert(out.end(), first, first + static_cast<int64_t>(row) * (end - begin));
    }
    return out;
  }

  Sizes s;
  int64_t width;
  std::vector<T> merged, dmerged, dy, y, lse;
  std::vector<int32_t> doc;
};

std::vector<int32_t> Documents(std::initializer_list<int32_t> lengths) {
  std::vector<int32_t> start;
  for (int32_t n : lengths)
    start.insert(start.end(), static_cast<size_t>(n), static_cast<int32_t>(start.size()));
  return start;
}

std::vector<Sizes> Cases() {
  return {{.B = 2, .T = 65, .H = 2, .Hkv = 2},
          {.T = 1, .K = 3, .V = 5},
          {.T = 150, .H = 6, .Hkv = 2, .K = 16, .V = 8},
          {.T = 100, .H = 2, .window = 1},
          {.T = 100, .H = 2, .window = 37},
          {.B = 3, .T = 90, .doc_start = Documents({1, 1, 30, 33, 25})},
          {.T = 150,
           .H = 4,
           .Hkv = 2,
           .K = 33,
           .V = 17,
           .window = 20,
           .doc_start = Documents({63, 1, 65, 21})}};
}

TEST(AttentionLaw, IsASoftmaxOverTheVisibleKeys) {
  for (const Sizes& s : Cases()) {
    Problem<double> p(s);
    p.Run();
    const AttentionFwd f = p.Fwd();
    const auto q = f.q.As<double, 4>(), k = f.k.As<double, 4>(), v = f.v.As<double, 4>(),
               y = f.y.As<double, 4>();
    const auto lse = f.lse.As<double, 3>();
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.H; ++h) {
        for (int64_t i = 0; i < s.T; ++i) {
          const int64_t g = h * s.Hkv / s.H;
          double total = 0;
          std::vector<double> expected(static_cast<size_t>(s.V));
          for (int64_t j = 0; j < s.T; ++j) {
            const bool future = j > i, outside = s.window > 0 && i - j >= s.window;
            const bool other = !s.doc_start.empty() && s.doc_start[static_cast<size_t>(i)] !=
                                                           s.doc_start[static_cast<size_t>(j)];
            if (future || outside || other) continue;
            double dot = 0;
            for (int64_t c = 0; c < s.K; ++c) dot += q(b, i, h, c) * k(b, j, g, c);
            const double weight = std::exp(dot * f.scale);
            total += weight;
            for (int64_t c = 0; c < s.V; ++c)
              expected[static_cast<size_t>(c)] += weight * v(b, j, g, c);
          }
          EXPECT_NEAR(lse(b, h, i), std::log(total), 1e-13);
          for (int64_t c = 0; c < s.V; ++c)
            ASSERT_NEAR(y(b, i, h, c), expected[static_cast<size_t>(c)] / total, 1e-13);
        }
      }
    }
  }
}

template <class T>
void LaterTokensChangeNoBit() {
  for (const Sizes& s : Cases()) {
    Problem<T> p(s);
    p.Run();
    const std::vector<T> y = p.y;
    for (const int64_t t : {int64_t{1}, s.T / 3, s.T - 1}) {
      Problem<T> changed(s);
      changed.Redraw(t, s.T);
      changed.Run();
      EXPECT_EQ(changed.Rows(changed.y, 0, t), p.Rows(y, 0, t)) << "T=" << s.T << " t=" << t;
      if (t < s.T) {
        EXPECT_NE(changed.y, y);
      }
    }
  }
}
TEST(AttentionLaw, LaterTokensChangeNoBit) {
  LaterTokensChangeNoBit<float>();
  LaterTokensChangeNoBit<double>();
}

template <class T>
void OtherDocumentsChangeNoBit() {
  const Sizes s{.B = 2,
                .T = 200,
                .H = 4,
                .Hkv = 2,
                .K = 16,
                .V = 16,
                .doc_start = Documents({70, 1, 62, 67})};
  const int64_t ends[] = {0, 70, 71, 133, 200};
  Problem<T> p(s);
  p.Run(true);
  for (int d = 0; d < 4; ++d) {
    Problem<T> changed(s);
    changed.Redraw(0, ends[d]);
    changed.Redraw(ends[d + 1], s.T);
    changed.Run(true);
    EXPECT_EQ(changed.Rows(changed.y, ends[d], ends[d + 1]), p.Rows(p.y, ends[d], ends[d + 1]));
    EXPECT_EQ(changed.Rows(changed.dmerged, ends[d], ends[d + 1]),
              p.Rows(p.dmerged, ends[d], ends[d + 1]));
  }
}
TEST(AttentionLaw, OtherDocumentsChangeNoBit) {
  OtherDocumentsChangeNoBit<float>();
  OtherDocumentsChangeNoBit<double>();
}

// Decoding with a cache, one or several tokens at a time, and a shorter sequence give the bits of
// the whole.
template <class T>
void EveryPieceHasTheBitsOfTheWhole() {
  for (const Sizes& s : Cases()) {
    Problem<T> whole(s);
    whole.Run();
    for (const int64_t step : {1, 7}) {
      Stream stream(std::in_place_type<CpuStream>, 2);
      Problem<T> pieces(s);
      for (int64_t t = 0; t < s.T; t += step) {
        const int64_t n = std::min(step, s.T - t);
        AttentionFwd f = pieces.Fwd();
        f.q = f.q.Slice(1, t, n);
        f.k = f.k.Slice(1, 0, t + n);
        f.v = f.v.Slice(1, 0, t + n);
        f.y = f.y.Slice(1, t, n);
        f.lse = f.lse.Slice(2, t, n);
        if (f.doc_start.defined()) f.doc_start = f.doc_start.Slice(1, 0, t + n);
        Launch(stream, f);
      }
      EXPECT_EQ(pieces.y, whole.y) << "T=" << s.T << " step=" << step;
      EXPECT_EQ(pieces.lse, whole.lse) << "T=" << s.T << " step=" << step;
    }
  }
}
TEST(AttentionLaw, EveryPieceHasTheBitsOfTheWhole) {
  EveryPieceHasTheBitsOfTheWhole<float>();
  EveryPieceHasTheBitsOfTheWhole<double>();
}

// At sizes that complex step cannot reach: every block, panel and chunk boundary is crossed.
TEST(AttentionLaw, FloatGradientsAgreeWithDoubleOnes) {
  for (const Sizes& s : {Sizes{.T = 700, .H = 2, .Hkv = 1, .K = 64, .V = 48},
                         Sizes{.B = 3,
                         .T = 513,
                         .H = 3,
                         .Hkv = 3,
                         .K = 32,
                         .V = 32,
                         .window = 200,
                         .doc_start = Documents({1, 300, 127, 85})}}) {
    Problem<float> single(s);
    Problem<double> exact(s);
    for (size_t i = 0; i < single.merged.size(); ++i) exact.merged[i] = single.merged[i];
    for (size_t i = 0; i < single.dy.size(); ++i) exact.dy[i] = single.dy[i];
    single.Run(true);
    exact.Run(true);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < exact.dmerged.size(); ++i) {
      difference += std::pow(single.dmerged[i] - exact.dmerged[i], 2);
      norm += std::pow(exact.dmerged[i], 2);
    }
    EXPECT_LT(std::sqrt(difference / norm), 2e-6);
  }
}

TEST(AttentionLaw, HugeScoresStayFinite) {
  Problem<float> p({.T = 70, .K = 16});
  for (float& x : p.merged) x *= 100;
  p.Run(true);
  for (float x : p.y) ASSERT_TRUE(std::isfinite(x));
  for (float x : p.dmerged) ASSERT_TRUE(std::isfinite(x));
}

TEST(AttentionLaw, NotANumberStaysInItsBatchRowAndHead) {
  Problem<float> p({.B = 2, .T = 40, .H = 2, .Hkv = 2});
  p.merged[p.Index(1, 20, p.width, 0)] = std::numeric_limits<float>::quiet_NaN();  // q of head 0
  p.Run(true);
  const auto y = p.Fwd().y.As<float, 4>();
  for (int64_t t = 0; t < 40; ++t) {
    EXPECT_TRUE(std::isfinite(y(0, t, 0, 0)) && std::isfinite(y(0, t, 1, 0)) &&
                std::isfinite(y(1, t, 1, 0)));
    EXPECT_EQ(std::isnan(y(1, t, 0, 0)), t == 20);
  }
}

TEST(AttentionLaw, NothingToAttendToIsNotAnError) {
  Problem<float> no_batch({.B = 0, .T = 5}), no_tokens({.B = 2, .T = 0});
  no_batch.Run(true);
  no_tokens.Run(true);
  // Keys without queries get no gradient, which still overwrites.
  Problem<float> p({.T = 5});
  AttentionBwd b = p.Bwd();
  b.fwd.q = b.fwd.q.Slice(1, 0, 0);
  b.fwd.y = b.fwd.y.Slice(1, 0, 0);
  b.fwd.lse = b.fwd.lse.Slice(2, 0, 0);
  b.dy = b.dy.Slice(1, 0, 0);
  static_cast<TensorView&>(b.dq) = b.dq.Slice(1, 0, 0);
  std::fill(p.dmerged.begin(), p.dmerged.end(), 7.f);
  Stream stream(std::in_place_type<CpuStream>, 2);
  Launch(stream, b);
  for (int64_t t = 0; t < 5; ++t) {
    EXPECT_EQ((b.dk.As<float, 4>()(0, t, 0, 3)), 0);
    EXPECT_EQ((b.dv.As<float, 4>()(0, t, 0, 3)), 0);
  }
}

TEST(AttentionLaw, BadInputIsRefusedWithItsValue) {
  const auto documents = [](std::vector<int32_t> start) {
    return CheckError([&] { Problem<float>({.T = 3, .doc_start = start}).Run(); });
  };
  EXPECT_HAS(documents({0, 0, 3}), "doc_start[0, 2] is 3, expected 0 to 2");
  EXPECT_HAS(documents({0, 1, 0}), "doc_start[0, 2] is 0, expected 1 to 2");
  EXPECT_HAS(documents({-1, 0, 0}), "doc_start[0, 0] is -1");
  EXPECT_HAS(CheckError([] { Problem<float>({.window = -1}).Run(); }), "window is -1");
  EXPECT_HAS(CheckError([] { Problem<float>({.H = 3, .Hkv = 2}).Run(); }), "3 query heads");
  Problem<float> p({.T = 3});
  AttentionFwd f = p.Fwd();
  f.k = f.k.Slice(1, 0, 2);
  f.v = f.v.Slice(1, 0, 2);
  EXPECT_HAS(CheckError([&] { f.Check(); }), "3 queries but 2 keys");
}

TEST(AttentionLaw, PairsAreCounted) {
  for (const auto& [T, cache, window] : {std::array<int64_t, 3>{7, 0, 0},
                                         {7, 0, 3},
                                         {7, 0, 9},
                                         {4, 10, 0},
                                         {4, 10, 2},
                                         {4, 10, 12},
                                         {0, 3, 0},
                                         {1, 0, 1}}) {
    double pairs = 0;
    for (int64_t i = 0; i < T; ++i) {
      for (int64_t j = 0; j <= i + cache; ++j) pairs += window == 0 || i + cache - j < window;
    }
    Problem<float> p({.B = 2, .T = T + cache, .H = 3, .window = window});
    AttentionFwd f = p.Fwd();
    f.q = f.q.Slice(1, 0, T);
    EXPECT_EQ(f.Pairs(), 6 * pairs) << T << " " << cache << " " << window;
  }
}

QkNormRopeFwd Rope(std::vector<double>& x, std::vector<double>& y, int64_t T, int64_t K,
                   int64_t offset) {
  QkNormRopeFwd f{.theta = 10000, .offset = offset};
  y.resize(x.size());
  f.x = TensorView(x.data(), DType::kF64, {1, T, 1, K});
  f.y = TensorView(y.data(), DType::kF64, {1, T, 1, K});
  return f;
}

TEST(RopeLaw, ProductsDependOnTheDistanceAlone) {
  constexpr int64_t kT = 70, kK = 10;
  Rng rng(1, Purpose::kTest, 0);
  std::vector<double> x(kT * kK), here, there, once(kK);
  for (double& v : once) v = rng.Normal();
  for (size_t i = 0; i < x.size(); ++i) x[i] = once[i % kK];  // the same vector at every position
  Stream stream(std::in_place_type<CpuStream>, 2);
  Launch(stream, Rope(x, here, kT, kK, 0));
  Launch(stream, Rope(x, there, kT, kK, 1000));
  const auto product = [&](const std::vector<double>& a, int64_t s, const std::vector<double>& b,
                           int64_t t) {
    double sum = 0;
    for (int64_t i = 0; i < kK; ++i)
      sum += a[static_cast<size_t>(s * kK + i)] * b[static_cast<size_t>(t * kK + i)];
    return sum;
  };
  for (int64_t t = 0; t < kT; ++t) {
    EXPECT_NEAR(product(here, 0, here, t), product(here, kT - 1 - t, here, kT - 1), 1e-12);
    EXPECT_NEAR(product(here, 0, here, t), product(there, 0, there, t), 1e-11);
  }
  EXPECT_GT(std::abs(product(here, 0, here, 0) - product(here, 0, here, 3)), 0.1);
}

TEST(RopeLaw, OneTokenAtATimeHasTheBitsOfTheWhole) {
  constexpr int64_t kT = 70, kK = 6;
  Rng rng(2, Purpose::kTest, 0);
  std::vector<double> x(kT * kK), whole, y(x.size());
  for (double& v : x) v = rng.Normal();
  Stream stream(std::in_place_type<CpuStream>, 2);
  Launch(stream, Rope(x, whole, kT, kK, 5));
  for (int64_t t = 0; t < kT; ++t) {
    QkNormRopeFwd f = Rope(x, y, kT, kK, 5 + t);
    f.x = f.x.Slice(1, t, 1);
    f.y = f.y.Slice(1, t, 1);
    Launch(stream, f);
  }
  EXPECT_EQ(y, whole);
}

TEST(RopeLaw, BadInputIsRefusedWithItsValue) {
  std::vector<double> x(15), y;
  QkNormRopeFwd f = Rope(x, y, 3, 5, 0);
  EXPECT_HAS(CheckError([&] { f.Check(); }), "head dimension is 5");
  f = Rope(x, y, 5, 2, -4);
  EXPECT_HAS(CheckError([&] { f.Check(); }), "offset is -4");
  f = Rope(x, y, 5, 2, 0);
  f.theta = 0.5;
  EXPECT_HAS(CheckError([&] { f.Check(); }), "theta is 0.5");
}

}  // namespace
}  // namespace weft
