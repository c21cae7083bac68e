#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/decay_gate/decay_gate.h"
#include "kernels/elementary/elementary.h"

namespace weft {
namespace {

constexpr int64_t kTokensPerItem = 256;

// ln(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)), whose series converges like 9^-n. Unlike the
// library's it vectorises.
inline float LogOnePlus(float u) {
  const float s = u / (2 + u), s2 = s * s;
  float p = 1.f / 15;
  p = std::fma(p, s2, 1.f / 13);
  p = std::fma(p, s2, 1.f / 11);
  p = std::fma(p, s2, 1.f / 9);
  p = std::fma(p, s2, 1.f / 7);
  p = std::fma(p, s2, 1.f / 5);
  p = std::fma(p, s2, 1.f / 3);
  return 2 * std::fma(p * s2, s, s);
}
inline double LogOnePlus(double u) { return std::log1p(u); }

// Calls body(row, begin, end, item, worker) for pieces of the rows of tokens.
template <class Body>
void ForTokens(CpuStream& stream, int64_t B, int64_t L, Body&& body) {
  const int64_t pieces = (L + kTokensPerItem - 1) / kTokensPerItem;
  stream.ParallelFor(B * pieces, [&](int64_t item, Worker& worker) {
    const int64_t begin = item % pieces * kTokensPerItem;
    body(item / pieces, begin, std::min(L, begin + kTokensPerItem), item, worker);
  });
}

template <class T>
void Forward(CpuStream& stream, const DecayGateFwd& f) {
  const auto a = f.a.As<const T, 3>(), b = f.b.As<const T, 3>();
  const auto a_log = f.a_log.As<const T, 1>(), dt_bias = f.dt_bias.As<const T, 1>();
  const auto log_a = f.log_a.As<T, 3>(), beta = f.beta.As<T, 3>();
  const int64_t H = a.shape[2];
  const T beta_scale = static_cast<T>(f.beta_scale);
  ForTokens(stream, a.shape[0], a.shape[1],
            [&](int64_t row, int64_t begin, int64_t end, int64_t, Worker& worker) {
              // One head at a time in dense scratch: heads are few and the projections strided.
              const int64_t n = end - begin;
              T *z = worker.Alloc<T>(n), *u = worker.Alloc<T>(n);
              for (int64_t h = 0; h < H; ++h) {
                const T bias = dt_bias(h), rate = std::exp(a_log(h));
                for (int64_t i = 0; i < n; ++i)
                  z[i] = a(row, begin + i, h) + bias, u[i] = b(row, begin + i, h);
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) {
                  const T positive = z[i] < 0 ? T{0} : z[i];
                  z[i] = -rate * (positive + LogOnePlus(Exp(-std::abs(z[i]))));
                  u[i] = beta_scale * Sigmoid(u[i]);
                }
                for (int64_t i = 0; i < n; ++i)
                  log_a(row, begin + i, h) = z[i], beta(row, begin + i, h) = u[i];
              }
            });
}

// With z = a + dt_bias:  da = ddt_bias = -dlog_a exp(a_log) sigmoid(z),  da_log = dlog_a log_a, db
// = dbeta beta (1 - sigmoid(b)), where 1 - sigmoid(b) = sigmoid(-b) keeps its accuracy for large b.
template <class T>
void Backward(CpuStream& stream, const DecayGateBwd& g) {
  const DecayGateFwd& f = g.fwd;
  const auto a = f.a.As<const T, 3>(), b = f.b.As<const T, 3>(), log_a = f.log_a.As<const T, 3>();
  const auto beta = f.beta.As<const T, 3>(), dlog_a = g.dlog_a.As<const T, 3>(),
             dbeta = g.dbeta.As<const T, 3>();
  const auto a_log = f.a_log.As<const T, 1>(), dt_bias = f.dt_bias.As<const T, 1>();
  const auto da = g.da.As<T, 3>(), db = g.db.As<T, 3>();
  const auto da_log = g.da_log.As<T, 1>(), ddt_bias = g.ddt_bias.As<T, 1>();
  const int64_t B = a.shape[0], L = a.shape[1], H = a.shape[2];
  const int64_t items = B * ((L + kTokensPerItem - 1) / kTokensPerItem);
  std::vector<T> partial(
      static_cast<size_t>(items * 2 * H));  // of each item, summed in order: bits stay fixed
  ForTokens(stream, B, L,
            [&](int64_t row, int64_t begin, int64_t end, int64_t item, Worker& worker) {
              const int64_t n = end - begin;
              T *z = worker.Alloc<T>(n), *u = worker.Alloc<T>(n);
              for (int64_t h = 0; h < H; ++h) {
                const T bias = dt_bias(h), rate = std::exp(a_log(h));
                T sum_a_log = 0, sum_bias = 0;
                for (int64_t i = 0; i < n; ++i)
                  z[i] = a(row, begin + i, h) + bias, u[i] = -b(row, begin + i, h);
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) z[i] = -rate * Sigmoid(z[i]), u[i] = Sigmoid(u[i]);
                for (int64_t i = 0; i < n; ++i) {
                  const int64_t t = begin + i;
                  const T dz = dlog_a(row, t, h) * z[i];
                  sum_bias += dz;
                  sum_a_log += dlog_a(row, t, h) * log_a(row, t, h);
                  Put(da(row, t, h), dz, g.da.accumulate);
                  Put(db(row, t, h), dbeta(row, t, h) * beta(row, t, h) * u[i], g.db.accumulate);
                }
                partial[static_cast<size_t>(item * 2 * H + h)] = sum_a_log;
                partial[static_cast<size_t>(item * 2 * H + H + h)] = sum_bias;
              }
            });
  for (int64_t h = 0; h < H; ++h) {
    T sum_a_log = 0, sum_bias = 0;
    for (int64_t item = 0; item < items; ++item) {
      sum_a_log += partial[static_cast<size_t>(item * 2 * H + h)];
      sum_bias += partial[static_cast<size_t>(item * 2 * H + H + h)];
    }
    Put(da_log(h), sum_a_log, g.da_log.accumulate);
    Put(ddt_bias(h), sum_bias, g.ddt_bias.accumulate);
  }
}

}  // namespace

void Run(CpuStream& stream, const DecayGateFwd& f) {
  DispatchReal(f.a.dtype(), [&]<class T>() { Forward<T>(stream, f); });
}

void Run(CpuStream& stream, const DecayGateBwd& g) {
  DispatchReal(g.fwd.a.dtype(), [&]<class T>() { Backward<T>(stream, g); });
}

}  // namespace weft
