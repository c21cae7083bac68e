// Chunks of 16 tokens. Sixteen is the register width: a CPU has no reason for the 64-token chunks
// of tensor cores, since the products with the state cost the same for any chunk length and all the
// others grow with it.
//
// Two layouts of a chunk take turns: lanes over value columns (one block of 16 columns is
// independent of all others and is solved in registers) and lanes over tokens (names ending in T,
// [K][16] or [V][16]).

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/lanes.h"
#include "kernels/elementary/elementary.h"
#include "kernels/gated_delta/gated_delta.h"

namespace weft {
namespace {

constexpr int C = kLanes;
constexpr int kRows = 8;  // rows of the state that are updated together

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Up to 16 tokens of one document.
struct Block {
  int64_t begin;
  int count;
  bool starts_document;  // at t > 0: the state before it does not matter
};

// Cuts [begin, end) at document starts and into blocks of at most 16.
std::vector<Block> Blocks(const Nd<const int32_t, 2>& doc_start, int64_t b, int64_t begin,
                          int64_t end) {
  std::vector<Block> blocks;
  for (int64_t t = begin; t < end;) {
    Block block{t, 1, doc_start && t > 0 && doc_start(b, t) == t};
    for (++t; block.count < C && t < end && !(doc_start && doc_start(b, t) == t); ++t)
      ++block.count;
    blocks.push_back(block);
  }
  return blocks;
}

// Tensors of one (batch, head): rows of tokens.
template <class T>
struct TokenRows {
  TokenRows(const Nd<T, 4>& x, int64_t b, int64_t h)
      : data(x ? &x(b, 0, h, 0) : nullptr), stride(x.stride[1]) {}
  T* operator()(int64_t t) const { return data + t * stride; }
  T* data;
  int64_t stride;
};
template <class T>
struct TokenScalars {
  TokenScalars(const Nd<T, 3>& x, int64_t b, int64_t h)
      : data(x ? &x(b, 0, h) : nullptr), stride(x.stride[1]) {}
  explicit operator bool() const { return data != nullptr; }
  T& operator()(int64_t t) const { return data[t * stride]; }
  T* data;
  int64_t stride;
};

template <class T>
struct GateTensors {
  explicit GateTensors(const GatedDeltaFwd& f)
      : beta(f.beta.As<const T, 3>()),
        log_a(f.log_a.As<const T, 3>()),
        a(f.gate_a.As<const T, 3>()),
        b(f.gate_b.As<const T, 3>()),
        a_log(f.a_log.As<const T, 1>()),
        dt_bias(f.dt_bias.As<const T, 1>()),
        beta_scale(static_cast<T>(f.beta_scale)) {}
  Nd<const T, 3> beta, log_a, a, b;
  Nd<const T, 1> a_log, dt_bias;
  T beta_scale;
};
// log_a and beta of one (batch, head), as they come or from their projections.
template <class T>
struct Gates {
  Gates(const GateTensors<T>& x, int64_t row, int64_t h)
      : beta(x.beta, row, h),
        log_a(x.log_a, row, h),
        a(x.a, row, h),
        b(x.b, row, h),
        rate(a ? std::exp(x.a_log(h)) : T{0}),
        dt_bias(a ? x.dt_bias(h) : T{0}),
        beta_scale(x.beta_scale) {}
  // Of a block's tokens; behind them log_a is 0 and beta 0.
  void Load(const Block& block, T (&log_as)[C], T (&betas)[C]) const {
    for (int i = 0; i < C; ++i) {
      const int64_t t = block.begin + std::min(i, block.count - 1);
      log_as[i] = a ? a(t) + dt_bias : log_a ? log_a(t) : T{0};
      betas[i] = a ? b(t) : beta ? beta(t) : T{1};
    }
    if (a) {
#pragma omp simd
      for (int i = 0; i < C; ++i) {
        log_as[i] = -rate * Softplus(log_as[i]);
        betas[i] = beta_scale * Sigmoid(betas[i]);
      }
    }
    for (int i = block.count; i < C; ++i) log_as[i] = betas[i] = 0;
  }

  TokenScalars<const T> beta, log_a, a, b;
  T rate, dt_bias, beta_scale;  // rate = exp(a_log)
};

// What a block's gates, keys and queries give, before any state or value is read. With a_i =
// exp(log_a_i): decay(i, j) = a_{j+1} ... a_i for j <= i, from_start(i) = a_1 ... a_i, to_end(j) =
// a_{j+1} ... a_C. They are products and not exponentials of differences, which would lose all
// accuracy behind one strong decay.
template <class T>
struct BlockKeys {
  explicit BlockKeys(Worker& worker, int64_t K) {
    const int64_t n = RoundUp(K, C) * C;
    for (T** x : {&kT, &qT, &k_from_start, &k_to_end, &q_from_start}) *x = worker.Alloc<T>(n);
    for (T** x : {&decay, &reads, &attends}) *x = worker.Alloc<T>(C * C);
    for (T** x : {&beta, &from_start, &to_end}) *x = worker.Alloc<T>(C);
  }
  T *kT, *qT;                     // [K][C]
  T* k_from_start;                // [K][C]  erase from_start(i) k_i
  T* k_to_end;                    // [K][C]  to_end(i) k_i
  T* q_from_start;                // [K][C]  scale from_start(i) q_i
  T* decay;                       // [C][C]  lower triangle
  T* reads;                       // [C][C]  erase decay(i, j) <k_i, k_j>, meant for j < i
  T* attends;                     // [C][C]  scale decay(i, j) <q_i, k_j>, meant for j <= i
  T *beta, *from_start, *to_end;  // [C]
  T whole;                        // a_1 ... a_C
};

template <class T>
struct Inputs {
  Inputs(const GatedDeltaFwd& f, int64_t b, int64_t h)
      : q(f.q.As<const T, 4>(), b, h),
        k(f.k.As<const T, 4>(), b, h),
        v(f.v.As<const T, 4>(), b, h),
        gates(GateTensors<T>(f), b, h),
        L(f.k.dim(1)),
        K(f.k.dim(3)),
        V(f.v.dim(3)),
        Kp(RoundUp(K, kRows)),
        Vp(RoundUp(V, C)),
        scale(static_cast<T>(f.scale)),
        erase(f.erase ? T{1} : T{0}) {}
  TokenRows<const T> q, k, v;
  Gates<T> gates;
  int64_t L, K, V, Kp, Vp;  // Kp, Vp: with padding, as states are held in scratch
  T scale, erase;           // erase: 1 or 0
};

// Asks for column c of the 16 tokens from t on: the stride from token to token is too long for
// hardware prefetchers.
template <class T>
void Prefetch(const TokenRows<const T>& x, int64_t t, int64_t c) {
  for (int i = 0; i < C; ++i) __builtin_prefetch(x(t + i) + c);
}

// Rows of x (at most 16) as columns: lanes over tokens.
template <class T>
void LoadTransposed(const TokenRows<const T>& x, const Block& block, int64_t width, T* out) {
  for (int64_t c = 0; c < width; c += C) {
    Lanes<T> r[C];
    Unroll<C>([&](auto i) WEFT_INLINE {
      r[i] = i < block.count ? Load(x(block.begin + i) + c, width - c) : Lanes<T>{};
    });
    Transpose(r);
    Unroll<C>([&](auto i) WEFT_INLINE { Store(out + (c + i) * C, r[i]); });
  }
}

// out(i, :) = sum_d aT(d, i) bT(d, :)
template <class T>
WEFT_INLINE inline void Gram(const T* aT, const T* bT, int64_t depth, Lanes<T> (&out)[C]) {
  Unroll<C>([&](auto i) WEFT_INLINE { out[i] = Lanes<T>{}; });
  for (int64_t d = 0; d < depth; ++d) {
    const Lanes<T> b = Load(bT + d * C);
    Unroll<C>([&](auto i) WEFT_INLINE { out[i] += aT[d * C + i] * b; });
  }
}

template <class T>
void PrepareKeys(const Inputs<T>& in, const Block& block, BlockKeys<T>& keys) {
  // Smaller decays are flushed to zero: subnormal numbers are slow.
  constexpr T kTiny = std::numeric_limits<T>::min() * T{1e8};
  alignas(64) T a[C], beta[C];
  in.gates.Load(block, a, beta);
  Store(keys.beta, Load(beta));
#pragma omp simd
  for (int i = 0; i < C; ++i) a[i] = Exp(a[i]);
  Lanes<T> row{};
  T product = 1;
  Unroll<C>([&](auto i) WEFT_INLINE {
    row = row * a[i];
    row = (row < kTiny ? Lanes<T>{} : row) + Unit<T>(i);
    Store(keys.decay + i * C, row);
    product *= a[i];
    product = product < kTiny ? T{0} : product;
    keys.from_start[i] = product;
  });
  Store(keys.to_end, row);
  keys.whole = product;

  LoadTransposed(in.k, block, in.K, keys.kT);
  LoadTransposed(in.q, block, in.K, keys.qT);
  const Lanes<T> from_start = Load(keys.from_start), to_end = Load(keys.to_end),
                 q_scale = from_start * in.scale, read_scale = from_start * in.erase;
  for (int64_t c = 0; c < in.Kp; ++c) {
    const Lanes<T> k = Load(keys.kT + c * C);
    Store(keys.k_from_start + c * C, k * read_scale);
    Store(keys.k_to_end + c * C, k * to_end);
    Store(keys.q_from_start + c * C, Load(keys.qT + c * C) * q_scale);
  }
  Lanes<T> products[C];
  Gram(keys.kT, keys.kT, in.K, products);
  Unroll<C>([&](auto i) WEFT_INLINE {
    Store(keys.reads + i * C, products[i] * Load(keys.decay + i * C) * in.erase);
  });
  Gram(keys.qT, keys.kT, in.K, products);
  Unroll<C>([&](auto i) WEFT_INLINE {
    Store(keys.attends + i * C, products[i] * Load(keys.decay + i * C) * in.scale);
  });
}

// Sixteen value columns of one block, from column c: the residuals r_i = v_i - (what the state
// holds for k_i), the rows u_i = beta_i r_i that are written, the outputs and the new state. With
// kResiduals it stores r (transposed) instead of y.
template <bool kResiduals, class T>
void ForwardColumns(const Inputs<T>& in, const Block block, const BlockKeys<T> keys, int64_t c,
                    T* state, const TokenRows<T>& y, T* rT) {
  const int64_t n = in.V - c, K = in.K, Kp = in.Kp, Vp = in.Vp;
  T* S = state + c;
  const int64_t next = block.begin + block.count;
  if (next < in.L) {
    Prefetch(in.v, next, c);
    if (c < K) Prefetch(in.k, next, c), Prefetch(in.q, next, c);
  }
  Lanes<T> u[C];
  Unroll<C>([&](auto i) WEFT_INLINE {
    u[i] = i < block.count ? Load(in.v(block.begin + i) + c, n) : Lanes<T>{};
  });
  for (int64_t d = 0; d < K; ++d) {
    const Lanes<T> s = Load(S + d * Vp);
    Unroll<C>([&](auto i) WEFT_INLINE { u[i] -= keys.k_from_start[d * C + i] * s; });
  }
  [[maybe_unused]] Lanes<T> r[C];
  Unroll<C>([&](auto j) WEFT_INLINE {
    if constexpr (kResiduals) r[j] = u[j];
    u[j] *= keys.beta[j];
    Unroll<C>([&](auto i) WEFT_INLINE {
      if constexpr (i > j) u[i] -= keys.reads[i * C + j] * u[j];
    });
  });
  if constexpr (kResiduals) {
    Transpose(r);
    Unroll<C>([&](auto i) WEFT_INLINE { Store(rT + (c + i) * C, r[i]); });
  } else {
    Unroll<2>([&](auto half) WEFT_INLINE {
      constexpr int kFirst = half * (C / 2);
      Lanes<T> out[C / 2] = {};
      for (int64_t d = 0; d < K; ++d) {
        const Lanes<T> s = Load(S + d * Vp);
        Unroll<C / 2>([&](auto i)
                          WEFT_INLINE { out[i] += keys.q_from_start[d * C + kFirst + i] * s; });
      }
      Unroll<C>([&](auto j) WEFT_INLINE {
        Unroll<C / 2>([&](auto i) WEFT_INLINE {
          if constexpr (j <= kFirst + i) out[i] += keys.attends[(kFirst + i) * C + j] * u[j];
        });
      });
      Unroll<C / 2>([&](auto i) WEFT_INLINE {
        if (kFirst + i < block.count) Store(y(block.begin + kFirst + i) + c, out[i], n);
      });
    });
  }
  for (int64_t d = 0; d < Kp; d += kRows) {
    Lanes<T> s[kRows];
    Unroll<kRows>([&](auto i) WEFT_INLINE { s[i] = Load(S + (d + i) * Vp) * keys.whole; });
    Unroll<C>([&](auto t) WEFT_INLINE {
      Unroll<kRows>([&](auto i) WEFT_INLINE { s[i] += keys.k_to_end[(d + i) * C + t] * u[t]; });
    });
    Unroll<kRows>([&](auto i) WEFT_INLINE { Store(S + (d + i) * Vp, s[i]); });
  }
}

// States in scratch are [Kp][Vp] with zero padding.
template <class T>
void LoadState(const Inputs<T>& in, const T* from, int64_t stride, T* state) {
  std::fill_n(state, in.Kp * in.Vp, T{0});
  for (int64_t d = 0; from && d < in.K; ++d) {
    std::copy_n(from + d * stride, in.V, state + d * in.Vp);
  }
}
template <class T>
void StoreState(const Inputs<T>& in, const T* state, T* to, int64_t stride,
                bool accumulate = false) {
  for (int64_t d = 0; d < in.K; ++d) {
    for (int64_t c = 0; c < in.V; ++c) Put(to[d * stride + c], state[d * in.Vp + c], accumulate);
  }
}

template <class T>
const T* StateAt(const Nd<T, 4>& x, int64_t b, int64_t h) {
  return x ? &x(b, h, 0, 0) : nullptr;
}

template <class T>
void Chunked(CpuStream& stream, const GatedDeltaFwd& f) {
  const auto y = f.y.As<T, 4>(), final_state = f.final_state.As<T, 4>(),
             states = f.states.As<T, 4>();
  const auto initial = f.initial.As<const T, 4>();
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const int64_t B = y.shape[0], L = y.shape[1], H = y.shape[2];
  stream.ParallelFor(B * H, [&](int64_t item, Worker& worker) {
    const int64_t b = item / H, h = item % H;
    const Inputs<T> in(f, b, h);
    const TokenRows<T> y_rows(y, b, h);
    BlockKeys<T> keys(worker, in.K);
    T* state = worker.Alloc<T>(in.Kp * in.Vp);
    LoadState(in, StateAt(initial, b, h), initial.stride[2], state);
    for (int64_t t = 0; t < L; t += kGatedDeltaChunk) {
      if (states) StoreState(in, state, &states(b, t / kGatedDeltaChunk, h, 0), in.V);
      for (const Block& block : Blocks(doc_start, b, t, std::min(L, t + kGatedDeltaChunk))) {
        if (block.starts_document) std::fill_n(state, in.Kp * in.Vp, T{0});
        PrepareKeys(in, block, keys);
        for (int64_t c = 0; c < in.V; c += C)
          ForwardColumns<false, T>(in, block, keys, c, state, y_rows, nullptr);
      }
    }
    if (final_state) StoreState(in, state, &final_state(b, h, 0, 0), final_state.stride[2]);
  });
}

// One token: the recurrence as it is written.
template <class T>
void Recurrent(CpuStream& stream, const GatedDeltaFwd& f) {
  const auto q = f.q.As<const T, 4>(), k = f.k.As<const T, 4>(), v = f.v.As<const T, 4>();
  const GateTensors<T> gates(f);
  const auto initial = f.initial.As<const T, 4>();
  const auto y = f.y.As<T, 4>(), final_state = f.final_state.As<T, 4>(),
             states = f.states.As<T, 4>();
  const int64_t B = q.shape[0], H = q.shape[2], K = q.shape[3], V = v.shape[3];
  constexpr int64_t kWork = 1 << 15;  // elements of states below which a second thread does not pay
  stream.ParallelRanges(B * H, std::max<int64_t>(1, kWork / (K * V)),
                        [&](int64_t begin, int64_t end, Worker& worker) {
                          T* u = worker.Alloc<T>(V);
                          T* unused = worker.Alloc<T>(V);
                          for (int64_t item = begin; item < end; ++item) {
                            const int64_t b = item / H, h = item % H;
                            const T *qt = &q(b, 0, h, 0), *kt = &k(b, 0, h, 0),
                                    *vt = &v(b, 0, h, 0);
                            T* out = &y(b, 0, h, 0);
                            T log_a[C], beta[C];
                            Gates<T>(gates, b, h).Load({0, 1, false}, log_a, beta);
                            const T a = Exp(log_a[0]), by = beta[0];
                            const T erased = f.erase ? a : T{0};
                            const T scale = static_cast<T>(f.scale);
                            std::fill_n(u, V, T{0});
                            for (int64_t d = 0; initial && d < K; ++d) {
                              const T* s = &initial(b, h, d, 0);
#pragma omp simd
                              for (int64_t c = 0; c < V; ++c) u[c] += kt[d] * s[c];
                            }
                            for (int64_t c = 0; c < V; ++c) u[c] = by * (vt[c] - erased * u[c]);
                            std::fill_n(out, V, T{0});
                            for (int64_t d = 0; d < K; ++d) {
                              T* s = final_state ? &final_state(b, h, d, 0) : unused;
                              if (states) {
                                T* saved = &states(b, 0, h, d * V);
                                for (int64_t c = 0; c < V; ++c)
                                  saved[c] = initial ? initial(b, h, d, c) : T{0};
                              }
                              if (initial) {
                                const T* from = &initial(b, h, d, 0);
                                for (int64_t c = 0; c < V; ++c) s[c] = a * from[c] + kt[d] * u[c];
                              } else {
                                for (int64_t c = 0; c < V; ++c) s[c] = kt[d] * u[c];
                              }
#pragma omp simd
                              for (int64_t c = 0; c < V; ++c) out[c] += scale * qt[d] * s[c];
                            }
                          }
                        });
}

// What the backward keeps of a block from its pass forward.
template <class T>
struct BlockForward {
  BlockForward(Worker& worker, const Inputs<T>& in)
      : keys(worker, in.K), state(worker.Alloc<T>(in.Kp * in.Vp)), rT(worker.Alloc<T>(in.Vp * C)) {}
  BlockKeys<T> keys;
  T* state;  // [Kp][Vp] before the block
  T* rT;     // [Vp][C] residuals
};

template <class T>
struct Gradients {
  Gradients(const GatedDeltaBwd& g, int64_t b, int64_t h)
      : dy(g.dy.As<const T, 4>(), b, h),
        dq(g.dq.As<T, 4>(), b, h),
        dk(g.dk.As<T, 4>(), b, h),
        dv(g.dv.As<T, 4>(), b, h),
        dbeta(g.dbeta.As<T, 3>(), b, h),
        dlog_a(g.dlog_a.As<T, 3>(), b, h),
        dgate_a(g.dgate_a.As<T, 3>(), b, h),
        dgate_b(g.dgate_b.As<T, 3>(), b, h),
        add_q(g.dq.accumulate),
        add_k(g.dk.accumulate),
        add_v(g.dv.accumulate),
        add_beta(g.dbeta.accumulate),
        add_log_a(g.dlog_a.accumulate),
        add_gate_a(g.dgate_a.accumulate),
        add_gate_b(g.dgate_b.accumulate) {}
  // Of a block's gates. With z = gate_a + dt_bias:
  //   dgate_a = -dlog_a exp(a_log) sigmoid(z),  dgate_b = dbeta beta sigmoid(-gate_b)
  // where 1 - sigmoid(b) would lose its accuracy for large b.
  void PutGates(const Gates<T>& gates, const Block& block, const T (&dlog_as)[C],
                const T (&dbetas)[C]) {
    if (gates.a) {
      alignas(64) T log_as[C], betas[C], z[C], b[C];
      gates.Load(block, log_as, betas);
      for (int i = 0; i < C; ++i) {
        const int64_t t = block.begin + std::min(i, block.count - 1);
        z[i] = gates.a(t) + gates.dt_bias;
        b[i] = -gates.b(t);
      }
#pragma omp simd
      for (int i = 0; i < C; ++i) z[i] = -gates.rate * Sigmoid(z[i]), b[i] = Sigmoid(b[i]);
      for (int i = 0; i < block.count; ++i) {
        const T dz = dlog_as[i] * z[i];
        Put(dgate_a(block.begin + i), dz, add_gate_a);
        Put(dgate_b(block.begin + i), dbetas[i] * betas[i] * b[i], add_gate_b);
        da_log += dlog_as[i] * log_as[i];
        ddt_bias += dz;
      }
    }
    for (int i = 0; i < block.count; ++i) {
      if (dlog_a) Put(dlog_a(block.begin + i), dlog_as[i], add_log_a);
      if (dbeta) Put(dbeta(block.begin + i), dbetas[i], add_beta);
    }
  }

  TokenRows<const T> dy;
  TokenRows<T> dq, dk, dv;
  TokenScalars<T> dbeta, dlog_a, dgate_a, dgate_b;
  bool add_q, add_k, add_v, add_beta, add_log_a, add_gate_a, add_gate_b;
  T da_log = 0, ddt_bias = 0;  // of the blocks so far
};

template <class T>
struct BackwardScratch {
  BackwardScratch(Worker& worker, const Inputs<T>& in) {
    for (T** x : {&dy, &dr, &dyT, &duT}) *x = worker.Alloc<T>(C * in.Vp);
    for (T** x : {&dqT, &dkT}) *x = worker.Alloc<T>(RoundUp(in.K, C) * C);
    for (T** x : {&x, &xT, &r, &rT, &pairs}) *x = worker.Alloc<T>(C * C);
  }
  T *dy, *dr;    // [C][Vp]; dr is the gradient of the residuals, hence of v
  T *dyT, *duT;  // [Vp][C]; du is the gradient of the rows written
  T *dqT, *dkT;  // [K][C]
  T *x, *xT;     // [C][C] gradient of <q_i, k_j>, and its transpose
  T *r, *rT;     // [C][C] minus that of <k_i, k_j>
  T* pairs;      // [C][C]
};

// Sixteen value columns: du_i, dr_i = beta_i du_i, by substitution from the last token to the
// first.
template <class T>
void BackwardColumns(const Inputs<T>& in, const Block block, const BlockKeys<T> keys, int64_t c,
                     const T* dstate, const Gradients<T> grads, const BackwardScratch<T> scratch) {
  const int64_t n = in.V - c, Vp = in.Vp;
  {
    Lanes<T> dy[C];
    Unroll<C>([&](auto i) WEFT_INLINE {
      dy[i] = i < block.count ? Load(grads.dy(block.begin + i) + c, n) : Lanes<T>{};
      Store(scratch.dy + i * Vp + c, dy[i]);
    });
    Transpose(dy);
    Unroll<C>([&](auto i) WEFT_INLINE { Store(scratch.dyT + (c + i) * C, dy[i]); });
  }
  Lanes<T> du[C] = {};
  for (int64_t d = 0; d < in.K; ++d) {
    const Lanes<T> ds = Load(dstate + d * Vp + c);
    Unroll<C>([&](auto i) WEFT_INLINE { du[i] += keys.k_to_end[d * C + i] * ds; });
  }
  Unroll<C>([&](auto i) WEFT_INLINE {
    const Lanes<T> dy = Load(scratch.dy + i * Vp + c);
    Unroll<C>([&](auto j) WEFT_INLINE {
      if constexpr (j <= i) du[j] += keys.attends[i * C + j] * dy;
    });
  });
  Unroll<C>([&](auto k) WEFT_INLINE {
    constexpr int i = C - 1 - k;
    const Lanes<T> dr = du[i] * keys.beta[i];
    Unroll<C>([&](auto j) WEFT_INLINE {
      if constexpr (j < i) du[j] -= keys.reads[i * C + j] * dr;
    });
    Store(scratch.dr + i * Vp + c, dr);
    if (i < block.count) Store(grads.dv(block.begin + i) + c, dr, n, grads.add_v);
  });
  Transpose(du);
  Unroll<C>([&](auto i) WEFT_INLINE { Store(scratch.duT + (c + i) * C, du[i]); });
}

template <class T>
WEFT_INLINE inline Lanes<T> StrictlyLower(int i, const Lanes<T>& x) {
  Lanes<T> out{};
  for (int l = 0; l < C; ++l) out[l] = l < i ? x[l] : T{0};
  return out;
}

template <class T>
void StoreTransposed(const T* xT, const Block& block, int64_t width, const TokenRows<T>& out,
                     bool accumulate) {
  for (int64_t c = 0; c < width; c += C) {
    Lanes<T> r[C];
    Unroll<C>([&](auto i) WEFT_INLINE { r[i] = Load(xT + (c + i) * C); });
    Transpose(r);
    Unroll<C>([&](auto i) WEFT_INLINE {
      if (i < block.count) Store(out(block.begin + i) + c, r[i], width - c, accumulate);
    });
  }
}

// Gradients of one block. dstate: of the state after it, becomes that of the state before it.
template <class T>
void BackwardBlock(const Inputs<T>& in, const Block block, const BlockForward<T> forward, T* dstate,
                   Gradients<T>& grads, const BackwardScratch<T> scratch) {
  const BlockKeys<T> keys = forward.keys;
  const int64_t V = in.V, Kp = in.Kp, Vp = in.Vp;
  for (int64_t c = 0; c < V; c += C) BackwardColumns(in, block, keys, c, dstate, grads, scratch);

  Lanes<T> parts[4] = {};
  for (int64_t c = 0; c < Vp; c += 4) {
    Unroll<4>([&](auto i) WEFT_INLINE {
      parts[i] += Load(forward.rT + (c + i) * C) * Load(scratch.duT + (c + i) * C);
    });
  }
  const Lanes<T> dbeta = (parts[0] + parts[1]) + (parts[2] + parts[3]);

  // With u_j = beta_j r_j:  x(i, j) = scale decay(i, j) <dy_i, u_j>,  r(i, j) = erase decay(i, j)
  // <dr_i, u_j>. pairs(i, j): what decay(i, j) does to the loss, times decay(i, j).
  const Lanes<T> beta = Load(keys.beta), from_start = Load(keys.from_start),
                 to_end = Load(keys.to_end);
  Lanes<T> m[C], pairs[C];
  Gram(scratch.dyT, forward.rT, V, m);
  Unroll<C>([&](auto i) WEFT_INLINE {
    m[i] *= beta;
    Store(scratch.pairs + i * C, m[i] * Load(keys.attends + i * C));
    m[i] *= Load(keys.decay + i * C) * in.scale;
    Store(scratch.x + i * C, m[i]);
  });
  Transpose(m);
  Unroll<C>([&](auto i) WEFT_INLINE { Store(scratch.xT + i * C, m[i]); });
  Gram(scratch.duT, forward.rT, V, m);
  Unroll<C>([&](auto i) WEFT_INLINE {
    m[i] *= beta * keys.beta[i];
    pairs[i] = Load(scratch.pairs + i * C) - m[i] * Load(keys.reads + i * C);
    Store(scratch.pairs + i * C, pairs[i]);
    m[i] = StrictlyLower<T>(i, m[i] * Load(keys.decay + i * C) * in.erase);
    Store(scratch.r + i * C, m[i]);
  });
  Transpose(m);
  Unroll<C>([&](auto i) WEFT_INLINE { Store(scratch.rT + i * C, m[i]); });

  // from_state, to_state: the same for the decay from the state before the block, and to the state
  // after it.
  const Lanes<T> q_scale = from_start * in.scale, read_scale = from_start * beta * in.erase,
                 write_scale = to_end * beta;
  Lanes<T> from_state{}, to_state{}, across{};
  for (int64_t d = 0; d < Kp; d += kRows) {
    Lanes<T> dq[kRows] = {}, read[kRows] = {}, write[kRows] = {};
    const T *S = forward.state + d * Vp, *dS = dstate + d * Vp;
    for (int64_t c = 0; c < V; ++c) {
      const Lanes<T> dy = Load(scratch.dyT + c * C), du = Load(scratch.duT + c * C),
                     r = Load(forward.rT + c * C);
      Unroll<kRows>([&](auto i) WEFT_INLINE {
        dq[i] += S[i * Vp + c] * dy;
        read[i] -= S[i * Vp + c] * du;
        write[i] += dS[i * Vp + c] * r;
      });
    }
    Unroll<kRows>([&](auto i) WEFT_INLINE {
      const Lanes<T> k = Load(keys.kT + (d + i) * C);
      dq[i] *= q_scale;
      read[i] *= read_scale;
      write[i] *= write_scale;
      from_state += Load(keys.qT + (d + i) * C) * dq[i] + k * read[i];
      to_state += k * write[i];
    });
    for (int j = 0; j < C; ++j) {
      const Lanes<T> xT = Load(scratch.xT + j * C), rT = Load(scratch.rT + j * C),
                     x = Load(scratch.x + j * C), r = Load(scratch.r + j * C);
      Unroll<kRows>([&](auto i) WEFT_INLINE {
        const T k = keys.kT[(d + i) * C + j];
        dq[i] += k * xT;
        read[i] -= k * rT;
        write[i] += keys.qT[(d + i) * C + j] * x;
        write[i] -= k * r;
      });
    }
    Unroll<kRows>([&](auto i) WEFT_INLINE {
      Store(scratch.dqT + (d + i) * C, dq[i]);
      Store(scratch.dkT + (d + i) * C, read[i] + write[i]);
    });
  }
  StoreTransposed(scratch.dqT, block, in.K, grads.dq, grads.add_q);
  StoreTransposed(scratch.dkT, block, in.K, grads.dk, grads.add_k);

  for (int64_t c = 0; c < Vp; c += C) {
    for (int64_t d = 0; d < Kp; d += kRows) {
      Lanes<T> ds[kRows];
      Unroll<kRows>([&](auto i) WEFT_INLINE {
        ds[i] = Load(dstate + (d + i) * Vp + c) * keys.whole;
        across += ds[i] * Load(forward.state + (d + i) * Vp + c);
      });
      Unroll<C>([&](auto t) WEFT_INLINE {
        const Lanes<T> dy = Load(scratch.dy + t * Vp + c), dr = Load(scratch.dr + t * Vp + c);
        Unroll<kRows>([&](auto i) WEFT_INLINE {
          ds[i] += keys.q_from_start[(d + i) * C + t] * dy;
          ds[i] -= keys.k_from_start[(d + i) * C + t] * dr;
        });
      });
      Unroll<kRows>([&](auto i) WEFT_INLINE { Store(dstate + (d + i) * Vp + c, ds[i]); });
    }
  }

  // log_a_t scales all that crosses from before t to t or later. Adding up just that, instead of
  // differences of sums over rows and columns, keeps small gradients behind strong decays accurate.
  Lanes<T> sum{};
  Unroll<C>([&](auto k) WEFT_INLINE {
    constexpr int t = C - 1 - k;
    sum += Load(scratch.pairs + t * C);
    pairs[t] = StrictlyLower<T>(t, sum);
  });
  Transpose(pairs);
  sum = pairs[0];
  Unroll<C - 1>([&](auto i) WEFT_INLINE { sum += pairs[i + 1]; });
  T before = 0, after = 0;
  for (int l = 0; l < C; ++l) before += across[l];
  for (int i = block.count - 1; i >= 0; --i) sum[i] += after += from_state[i];
  T dlog_as[C] = {}, dbetas[C] = {};
  for (int i = 0; i < block.count; ++i) {
    dlog_as[i] = sum[i] + before;
    dbetas[i] = dbeta[i];
    before += to_state[i];
  }
  grads.PutGates(in.gates, block, dlog_as, dbetas);
}

template <class T>
void Backward(CpuStream& stream, const GatedDeltaBwd& g) {
  const GatedDeltaFwd& f = g.fwd;
  const auto states = f.states.As<const T, 4>(), dfinal = g.dfinal.As<const T, 4>();
  const auto dinitial = g.dinitial.As<T, 4>();
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const int64_t B = f.q.dim(0), L = f.q.dim(1), H = f.q.dim(2);
  std::vector<T> partial(static_cast<size_t>(2 * B * H));  // of da_log and ddt_bias, of each item
  stream.ParallelFor(B * H, [&](int64_t item, Worker& worker) {
    const int64_t b = item / H, h = item % H;
    const Inputs<T> in(f, b, h);
    Gradients<T> grads(g, b, h);
    const BackwardScratch<T> scratch(worker, in);
    const int64_t state_size = in.Kp * in.Vp;
    T* state = worker.Alloc<T>(state_size);
    T* dstate = worker.Alloc<T>(state_size);
    LoadState(in, StateAt(dfinal, b, h), dfinal.stride[2], dstate);
    std::vector<BlockForward<T>> forward;
    for (int64_t chunk = GatedDeltaChunks(L) - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * kGatedDeltaChunk;
      const std::vector<Block> blocks =
          Blocks(doc_start, b, begin, std::min(L, begin + kGatedDeltaChunk));
      while (forward.size() < blocks.size()) forward.emplace_back(worker, in);
      LoadState(in, &states(b, chunk, h, 0), in.V, state);
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i].starts_document) std::fill_n(state, state_size, T{0});
        std::copy_n(state, state_size, forward[i].state);
        PrepareKeys(in, blocks[i], forward[i].keys);
        for (int64_t c = 0; c < in.V; c += C) {
          ForwardColumns<true>(in, blocks[i], forward[i].keys, c, state, grads.dv, forward[i].rT);
        }
      }
      for (size_t i = blocks.size(); i-- > 0;) {
        BackwardBlock(in, blocks[i], forward[i], dstate, grads, scratch);
        if (blocks[i].starts_document) std::fill_n(dstate, state_size, T{0});
      }
    }
    if (dinitial)
      StoreState(in, dstate, &dinitial(b, h, 0, 0), dinitial.stride[2], g.dinitial.accumulate);
    partial[static_cast<size_t>(2 * item)] = grads.da_log;
    partial[static_cast<size_t>(2 * item + 1)] = grads.ddt_bias;
  });
  if (!f.gate_a.defined()) return;
  const auto da_log = g.da_log.As<T, 1>(), ddt_bias = g.ddt_bias.As<T, 1>();
  for (int64_t h = 0; h < H; ++h) {
    T sums[2] = {};
    for (int64_t b = 0; b < B; ++b) {
      for (int i = 0; i < 2; ++i) sums[i] += partial[static_cast<size_t>(2 * (b * H + h) + i)];
    }
    Put(da_log(h), sums[0], g.da_log.accumulate);
    Put(ddt_bias(h), sums[1], g.ddt_bias.accumulate);
  }
}

}  // namespace

void Run(CpuStream& stream, const GatedDeltaFwd& f) {
  DispatchReal(f.q.dtype(), [&]<class T>() {
    f.q.dim(1) == 1 ? Recurrent<T>(stream, f) : Chunked<T>(stream, f);
  });
}

void Run(CpuStream& stream, const GatedDeltaBwd& g) {
  DispatchReal(g.fwd.q.dtype(), [&]<class T>() { Backward<T>(stream, g); });
}

}  // namespace weft
