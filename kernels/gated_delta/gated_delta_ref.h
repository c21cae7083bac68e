#pragma once
// The recurrence, token by token, for any scalar.

#include <algorithm>
#include <vector>

#include "kernels/gated_delta/gated_delta.h"

namespace weft {

// log_a and beta, as they come or from their projections.
template <class T>
struct GatesRef {
  explicit GatesRef(const GatedDeltaFwd& f)
      : beta(f.beta.As<T, 3>()),
        log_a(f.log_a.As<T, 3>()),
        gate_a(f.gate_a.As<T, 3>()),
        gate_b(f.gate_b.As<T, 3>()),
        a_log(f.a_log.As<T, 1>()),
        dt_bias(f.dt_bias.As<T, 1>()),
        beta_scale(f.beta_scale) {}
  T LogA(int64_t b, int64_t t, int64_t h) const {
    if (gate_a) return -exp(a_log(h)) * log(T(1) + exp(gate_a(b, t, h) + dt_bias(h)));
    return log_a ? log_a(b, t, h) : T(0);
  }
  T Beta(int64_t b, int64_t t, int64_t h) const {
    if (gate_b) return T(beta_scale) / (T(1) + exp(-gate_b(b, t, h)));
    return beta ? beta(b, t, h) : T(1);
  }
  Nd<T, 3> beta, log_a, gate_a, gate_b;
  Nd<T, 1> a_log, dt_bias;
  double beta_scale;
};

template <class T>
void GatedDeltaRef(const GatedDeltaFwd& f) {
  const auto q = f.q.As<T, 4>(), k = f.k.As<T, 4>(), v = f.v.As<T, 4>(), y = f.y.As<T, 4>();
  const GatesRef<T> gates(f);
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const auto initial = f.initial.As<T, 4>(), final_state = f.final_state.As<T, 4>();
  const auto [B, L, H, K] = q.shape;
  const int64_t V = v.shape[3];
  std::vector<T> state(static_cast<size_t>(K * V)), u(static_cast<size_t>(V));
  const auto S = [&](int64_t c, int64_t r) -> T& { return state[static_cast<size_t>(c * V + r)]; };
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t c = 0; c < K; ++c) {
        for (int64_t r = 0; r < V; ++r) S(c, r) = initial ? initial(b, h, c, r) : T(0);
      }
      for (int64_t t = 0; t < L; ++t) {
        if (doc_start && t > 0 && doc_start(b, t) == t) state.assign(state.size(), T(0));
        const T a = exp(gates.LogA(b, t, h)), by = gates.Beta(b, t, h);
        for (int64_t r = 0; r < V; ++r) {
          T read = 0;
          for (int64_t c = 0; f.erase && c < K; ++c) read += a * S(c, r) * k(b, t, h, c);
          u[static_cast<size_t>(r)] = by * (v(b, t, h, r) - read);
        }
        for (int64_t r = 0; r < V; ++r) {
          T out = 0;
          for (int64_t c = 0; c < K; ++c) {
            S(c, r) = a * S(c, r) + k(b, t, h, c) * u[static_cast<size_t>(r)];
            out += S(c, r) * q(b, t, h, c);
          }
          y(b, t, h, r) = T(f.scale) * out;
        }
      }
      for (int64_t c = 0; c < K; ++c) {
        for (int64_t r = 0; final_state && r < V; ++r) final_state(b, h, c, r) = S(c, r);
      }
    }
  }
}

// Its gradients, token by token from the last; they are overwritten.
template <class T>
void GatedDeltaGradientsRef(const GatedDeltaBwd& g) {
  const GatedDeltaFwd& f = g.fwd;
  const auto q = f.q.As<T, 4>(), k = f.k.As<T, 4>(), v = f.v.As<T, 4>(), dy = g.dy.As<T, 4>();
  const GatesRef<T> gates(f);
  const auto doc_start = f.doc_start.As<const int32_t, 2>();
  const auto initial = f.initial.As<T, 4>(), dfinal = g.dfinal.As<T, 4>();
  const auto dq = g.dq.As<T, 4>(), dk = g.dk.As<T, 4>(), dv = g.dv.As<T, 4>();
  const auto dbeta = g.dbeta.As<T, 3>(), dlog_a = g.dlog_a.As<T, 3>();
  const auto dgate_a = g.dgate_a.As<T, 3>(), dgate_b = g.dgate_b.As<T, 3>();
  const auto da_log = g.da_log.As<T, 1>(), ddt_bias = g.ddt_bias.As<T, 1>();
  const auto dinitial = g.dinitial.As<T, 4>();
  const auto [B, L, H, K] = q.shape;
  const int64_t V = v.shape[3];
  const auto size = static_cast<size_t>(K * V);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      // states[n]: before token n kGatedDeltaChunk; within[i]: a_t S_{t-1} of the chunk's tokens.
      std::vector<T> state(size), dstate(size), r(static_cast<size_t>(V)), u(r), du(r);
      std::vector<std::vector<T>> states, within(kGatedDeltaChunk, state);
      for (size_t i = 0; i < size; ++i) {
        const auto c = static_cast<int64_t>(i) / V, x = static_cast<int64_t>(i) % V;
        state[i] = initial ? initial(b, h, c, x) : T(0);
        dstate[i] = dfinal ? dfinal(b, h, c, x) : T(0);
      }
      const auto decay = [&](std::vector<T>& s, int64_t t) {
        const bool starts = doc_start && t > 0 && doc_start(b, t) == t;
        const T a = starts ? T(0) : T(exp(gates.LogA(b, t, h)));
        for (T& x : s) x *= a;
      };
      const auto beta_at = [&](int64_t t) { return gates.Beta(b, t, h); };
      const auto residual = [&](const std::vector<T>& s, int64_t t) {  // u = beta (v - S^T k)
        for (int64_t x = 0; x < V; ++x) r[static_cast<size_t>(x)] = v(b, t, h, x);
        for (int64_t c = 0; f.erase && c < K; ++c)
          for (int64_t x = 0; x < V; ++x)
            r[static_cast<size_t>(x)] -= s[static_cast<size_t>(c * V + x)] * k(b, t, h, c);
        for (int64_t x = 0; x < V; ++x)
          u[static_cast<size_t>(x)] = beta_at(t) * r[static_cast<size_t>(x)];
      };
      const auto write = [&](std::vector<T>& s, int64_t t) {
        for (int64_t c = 0; c < K; ++c)
          for (int64_t x = 0; x < V; ++x)
            s[static_cast<size_t>(c * V + x)] += k(b, t, h, c) * u[static_cast<size_t>(x)];
      };
      for (int64_t t = 0; t < L; ++t) {
        if (t % kGatedDeltaChunk == 0) states.push_back(state);
        decay(state, t), residual(state, t), write(state, t);
      }
      for (int64_t n = static_cast<int64_t>(states.size()) - 1; n >= 0; --n) {
        const int64_t begin = n * kGatedDeltaChunk, end = std::min(begin + kGatedDeltaChunk, L);
        state = states[static_cast<size_t>(n)];
        for (int64_t t = begin; t < end; ++t) {
          decay(state, t);
          within[static_cast<size_t>(t - begin)] = state;
          residual(state, t), write(state, t);
        }
        for (int64_t t = end - 1; t >= begin; --t) {
          const std::vector<T>& s = within[static_cast<size_t>(t - begin)];
          residual(s, t);
          T dlog = 0, db = 0;
          std::fill(du.begin(), du.end(), T(0));
          for (int64_t c = 0; c < K; ++c) {
            T read = 0, out = 0;
            const T key = k(b, t, h, c), query = T(f.scale) * q(b, t, h, c);
            for (int64_t x = 0; x < V; ++x) {
              const auto i = static_cast<size_t>(c * V + x), j = static_cast<size_t>(x);
              out += (s[i] + key * u[j]) * dy(b, t, h, x);
              dstate[i] += query * dy(b, t, h, x);
              read += dstate[i] * u[j];
              du[j] += dstate[i] * key;
            }
            dq(b, t, h, c) = T(f.scale) * out;
            dk(b, t, h, c) = read;
          }
          for (int64_t x = 0; x < V; ++x) {
            const auto j = static_cast<size_t>(x);
            db += du[j] * r[j];
            dv(b, t, h, x) = beta_at(t) * du[j];
          }
          for (int64_t c = 0; c < K; ++c) {
            T read = 0;
            for (int64_t x = 0; x < V; ++x) {
              const auto i = static_cast<size_t>(c * V + x);
              if (f.erase) {
                dstate[i] -= k(b, t, h, c) * dv(b, t, h, x);
                read += s[i] * dv(b, t, h, x);
              }
              dlog += dstate[i] * s[i];
            }
            dk(b, t, h, c) -= read;
          }
          if (dbeta) dbeta(b, t, h) = db;
          if (dlog_a) dlog_a(b, t, h) = dlog;
          if (dgate_a) {
            const auto sigmoid = [](T x) { return T(1) / (T(1) + exp(-x)); };
            const T dz =
                -dlog * exp(gates.a_log(h)) * sigmoid(gates.gate_a(b, t, h) + gates.dt_bias(h));
            dgate_a(b, t, h) = dz;
            dgate_b(b, t, h) = db * beta_at(t) * sigmoid(-gates.gate_b(b, t, h));
            if (b == 0 && t == L - 1) da_log(h) = ddt_bias(h) = T(0);
            da_log(h) += dlog * gates.LogA(b, t, h);
            ddt_bias(h) += dz;
          }
          decay(dstate, t);
        }
      }
      for (size_t i = 0; dinitial && i < size; ++i)
        dinitial(b, h, static_cast<int64_t>(i) / V, static_cast<int64_t>(i) % V) = dstate[i];
    }
  }
}

}  // namespace weft
