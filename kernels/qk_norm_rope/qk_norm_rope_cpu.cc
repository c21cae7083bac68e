#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

constexpr int64_t kPositions = 32, kBatchRows = 8;  // of one work item

// cos and sin of every position of a block that starts at a multiple of kPositions. Angles are
// added, in double: one sine per frequency and block instead of one per frequency and position,
// which would cost more than the rest.
class Rotations {
 public:
  Rotations(double theta, int64_t K) : half_(theta > 0 ? K / 2 : 0) {
    for (int64_t i = 0; i < half_; ++i) {
      frequency_.push_back(std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(K)));
    }
    within_.resize(static_cast<size_t>(kPositions * half_));
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t i = 0; i < half_; ++i) {  // e^(i f p) from two of about half the angle
        within_[At(p, i)] = p < 2 ? std::polar(1., static_cast<double>(p) * frequency_[At(0, i)])
                                  : Product(within_[At(p / 2, i)], within_[At(p - p / 2, i)]);
      }
    }
  }
  // cos, sin: [kPositions, K/2]
  template <class T>
  void Block(int64_t block, T* cos, T* sin) const {
    for (int64_t i = 0; i < half_; ++i) {
      const auto start =
          std::polar(1., static_cast<double>(block * kPositions) * frequency_[At(0, i)]);
      for (int64_t p = 0; p < kPositions; ++p) {
        const auto value = Product(start, within_[At(p, i)]);
        cos[p * half_ + i] = static_cast<T>(value.real());
        sin[p * half_ + i] = static_cast<T>(value.imag());
      }
    }
  }

 private:
  using Complex = std::complex<double>;
  static Complex Product(Complex a, Complex b) {  // without the library's care for infinities
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
  }
  size_t At(int64_t p, int64_t i) const { return static_cast<size_t>(p * half_ + i); }

  int64_t half_;
  std::vector<double> frequency_;
  std::vector<Complex> within_;
};

// Work items: a block of positions, aligned to absolute multiples of kPositions, times a few batch
// rows.
struct Blocks {
  int64_t B, T, offset, first, per_batch, batches;

  explicit Blocks(const QkNormRopeFwd& f)
      : B(f.x.dim(0)),
        T(f.x.dim(1)),
        offset(f.offset),
        first(offset / kPositions),
        per_batch(T > 0 ? (offset + T - 1) / kPositions - first + 1 : 0),
        batches((B + kBatchRows - 1) / kBatchRows) {}
  int64_t count() const { return per_batch * batches; }

  // Calls row(b, t, position within the block) for every row of the item.
  template <class F>
  void ForRows(int64_t index, F&& row) const {
    const int64_t start = Block(index) * kPositions - offset, b0 = index / per_batch * kBatchRows;
    for (int64_t b = b0; b < std::min(B, b0 + kBatchRows); ++b) {
      for (int64_t t = std::max<int64_t>(0, start); t < std::min(T, start + kPositions); ++t)
        row(b, t, t - start);
    }
  }
  int64_t Block(int64_t index) const { return first + index % per_batch; }
};

template <class T>
T Dot(int64_t n, const T* a, const T* b) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
void Forward(CpuStream& stream, const QkNormRopeFwd& f) {
  const auto x = f.x.As<const T, 4>();
  const auto y = f.y.As<T, 4>();
  const auto w = f.w.As<const T, 1>();
  const int64_t H = x.shape[2], K = x.shape[3], half = K / 2;
  const bool head = f.norm == QkNorm::kHead, full = f.norm == QkNorm::kFull, rotate = f.theta > 0;
  const auto head_rstd = head ? f.rstd.As<T, 3>() : Nd<T, 3>{};
  const auto full_rstd = full ? f.rstd.As<T, 2>() : Nd<T, 2>{};
  const std::vector<T> ones(static_cast<size_t>(K), T{1});
  const auto reciprocal_rms = [&](T squares, int64_t n) {
    return 1 / std::sqrt(squares / static_cast<T>(n) + static_cast<T>(f.eps));
  };
  const Rotations rotations(f.theta, K);
  const Blocks blocks(f);
  stream.ParallelFor(blocks.count(), [&](int64_t index, Worker& worker) {
    T* cos = worker.Alloc<T>(kPositions * half);
    T* sin = worker.Alloc<T>(kPositions * half);
    rotations.Block(blocks.Block(index), cos, sin);
    blocks.ForRows(index, [&](int64_t b, int64_t t, int64_t p) {
      T rstd = 1;
      if (full) {
        T squares = 0;
        for (int64_t h = 0; h < H; ++h) squares += Dot(K, &x(b, t, h, 0), &x(b, t, h, 0));
        full_rstd(b, t) = rstd = reciprocal_rms(squares, H * K);
      }
      for (int64_t h = 0; h < H; ++h) {
        const T* in = &x(b, t, h, 0);
        T* out = &y(b, t, h, 0);
        if (head) head_rstd(b, t, h) = rstd = reciprocal_rms(Dot(K, in, in), K);
        const T* scale = full ? w.data + h * K : head ? w.data : ones.data();
        if (rotate) {
          const T *c = cos + p * half, *s = sin + p * half;
#pragma omp simd
          for (int64_t i = 0; i < half; ++i) {
            const T a = in[i] * rstd * scale[i], z = in[i + half] * rstd * scale[i + half];
            out[i] = a * c[i] - z * s[i];
            out[i + half] = z * c[i] + a * s[i];
          }
        } else {
#pragma omp simd
          for (int64_t i = 0; i < K; ++i) out[i] = in[i] * rstd * scale[i];
        }
      }
    });
  });
}

// With g = R^T dy (R is the rotation) and n = x rstd:  dx = rstd (g w - n mean(n g w)),  dw =
// sum_rows n g.
template <class T>
void Backward(CpuStream& stream, const QkNormRopeBwd& bwd) {
  const QkNormRopeFwd& f = bwd.fwd;
  const auto x = f.x.As<const T, 4>(), dy = bwd.dy.As<const T, 4>();
  const auto dx = bwd.dx.template As<T, 4>();
  const auto w = f.w.As<const T, 1>();
  const int64_t H = x.shape[2], K = x.shape[3], half = K / 2;
  const bool head = f.norm == QkNorm::kHead, full = f.norm == QkNorm::kFull, rotate = f.theta > 0;
  const auto head_rstd = head ? f.rstd.As<const T, 3>() : Nd<const T, 3>{};
  const auto full_rstd = full ? f.rstd.As<const T, 2>() : Nd<const T, 2>{};
  const int64_t width = head || full ? f.w.dim(0) : 0;
  const Rotations rotations(f.theta, K);
  const Blocks blocks(f);
  std::vector<T> partial(
      static_cast<size_t>(blocks.count() * width));  // dw of each item, summed in order
  stream.ParallelFor(blocks.count(), [&](int64_t index, Worker& worker) {
    T* cos = worker.Alloc<T>(kPositions * half);
    T* sin = worker.Alloc<T>(kPositions * half);
    rotations.Block(blocks.Block(index), cos, sin);
    T* row_g = worker.Alloc<T>(H * K);
    T* dw = partial.data() + index * width;
    blocks.ForRows(index, [&](int64_t b, int64_t t, int64_t p) {
      T dot = 0;
      const auto finish = [&](int64_t h, T rstd, T mean) {
        const T *in = &x(b, t, h, 0), *g = row_g + h * K;
        T* out = &dx(b, t, h, 0);
        if (bwd.dx.accumulate) {
          for (int64_t i = 0; i < K; ++i) out[i] += rstd * (g[i] - in[i] * mean);
        } else {
          for (int64_t i = 0; i < K; ++i) out[i] = rstd * (g[i] - in[i] * mean);
        }
      };
      for (int64_t h = 0; h < H; ++h) {
        const T *in = &x(b, t, h, 0), *up = &dy(b, t, h, 0);
        T* g = row_g + h * K;
        if (rotate) {
          const T *c = cos + p * half, *s = sin + p * half;
#pragma omp simd
          for (int64_t i = 0; i < half; ++i) {
            g[i] = up[i] * c[i] + up[i + half] * s[i];
            g[i + half] = up[i + half] * c[i] - up[i] * s[i];
          }
        } else {
          std::copy_n(up, K, g);
        }
        if (!head && !full) {
          finish(h, 1, 0);
          continue;
        }
        const T rstd = head ? head_rstd(b, t, h) : full_rstd(b, t);
        const T* scale = w.data + (full ? h * K : 0);
        T* dw_h = dw + (full ? h * K : 0);
        if (head) dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < K; ++i) {
          dw_h[i] += in[i] * rstd * g[i];
          g[i] *= scale[i];
          dot += in[i] * g[i];
        }
        if (head) finish(h, rstd, dot * rstd * rstd / static_cast<T>(K));
      }
      if (full) {
        const T rstd = full_rstd(b, t), mean = dot * rstd * rstd / static_cast<T>(H * K);
        for (int64_t h = 0; h < H; ++h) finish(h, rstd, mean);
      }
    });
  });
  for (int64_t i = 0; i < width; ++i) {
    T total = 0;
    for (int64_t item = 0; item < blocks.count(); ++item)
      total += partial[static_cast<size_t>(item * width + i)];
    Put(bwd.dw.template Data<T>()[i], total, bwd.dw.accumulate);
  }
}

}  // namespace

void Run(CpuStream& stream, const QkNormRopeFwd& f) {
  DispatchReal(f.x.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const QkNormRopeBwd& b) {
  DispatchReal(b.fwd.x.dtype(), [&]<class T>() { Backward<T>(stream, b); });
}

}  // namespace weft
