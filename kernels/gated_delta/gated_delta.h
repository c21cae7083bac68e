#pragma once
// Gated delta rule: one state matrix per head that decays, forgets what a key held, and writes
// (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464). With a_t = exp(log_a_t):
//
//   S_t = a_t S_{t-1} + k_t u_t^T        [K, V]
//   u_t = beta_t (v_t - a_t S_{t-1}^T k_t)      or, without `erase`,  u_t = beta_t v_t
//   y_t = scale S_t^T q_t
//
// Without beta it is 1, without log_a 0. So the same rule is
//
// layer            arXiv       S_t =                                           erase  beta  log_a
// linear attention 2006.16236  S_{t-1} + k_t v_t^T                             no     -     -
// RetNet           2307.08621  g_h S_{t-1} + k_t v_t^T                         no     -     log g_h
// Mamba-2          2405.21060  exp(d_t A_h) S_{t-1} + d_t k_t v_t^T            no     d_t   d_t A_h
// DeltaNet         2406.06484  (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T     yes    b_t   -
// gated DeltaNet   2412.06464  a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T yes    b_t   log a_t
//
// A layer's gates may also come as projections of its input, with two numbers per head (log_a as in
// Mamba-2; beta_scale = 2 allows negative eigenvalues):
//
//   log_a = -exp(a_log) softplus(gate_a + dt_bias)      <= 0
//   beta  = beta_scale sigmoid(gate_b)                  in (0, beta_scale)
//
// In Mamba-2's letters q = C, k = B, v = x. Inputs may have strides of 0: g_h for all tokens, B and
// C for all heads of a group. Their gradients still have a row for each token and head, which the
// caller adds up; those of beta and log_a are left out where nobody wants them.
//
// log_a <= 0. beta >= 0. With erase, beta in [0, 1], or [0, 2] for negative eigenvalues, and the
// state stays bounded only for |k_t| <= 1: the caller normalises keys. Without, keys may have any
// length. No exponential of a positive number is ever taken, so any decay down to log_a =
// -infinity is exact.
//
// Documents: doc_start(b, t) is the index of the first token of t's document. A token with
// doc_start = 0 continues from `initial`; a document that starts at t > 0 starts from zero.
// final_state is the state after the last token.
//
// q, k, v and gates may be slices of one buffer: only the last dimension has to be dense.
// gated_delta.md derives the chunked algorithm.

#include "kernels/base/op.h"

namespace weft {

// The forward saves the state before every kGatedDeltaChunk-th token; the backward recomputes the
// states between.
inline constexpr int64_t kGatedDeltaChunk = 64;
inline constexpr int64_t GatedDeltaChunks(int64_t T) {
  return (T + kGatedDeltaChunk - 1) / kGatedDeltaChunk;
}

struct GatedDeltaFwd {
  TensorView q, k;            // [B, T, H, K]
  TensorView v;               // [B, T, H, V]
  TensorView beta, log_a;     // [B, T, H], optional
  TensorView gate_a, gate_b;  // [B, T, H], in place of beta and log_a, and with them
  TensorView a_log, dt_bias;  // [H]
  TensorView doc_start;       // i32 [B, T], optional
  TensorView initial;         // [B, H, K, V], optional: zero
  TensorView y;               // [B, T, H, V]
  TensorView final_state;     // [B, H, K, V], optional; may be the memory of `initial`
  TensorView
      states;  // saved [B, GatedDeltaChunks(T), H, K * V]; left out when no backward will run
  double scale = 1;
  double beta_scale = 1;  // of gate_b
  bool erase = true;

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.In("q", s.q);
    visit.In("k", s.k);
    visit.In("v", s.v);
    visit.In("beta", s.beta);
    visit.In("log_a", s.log_a);
    visit.In("gate_a", s.gate_a);
    visit.In("gate_b", s.gate_b);
    visit.In("a_log", s.a_log);
    visit.In("dt_bias", s.dt_bias);
    visit.In("doc_start", s.doc_start);
    visit.In("initial", s.initial);
    visit.Out("y", s.y);
    visit.Out("final_state", s.final_state);
    visit.Saved("states", s.states);
  }
  void Check() const;
  // Of the recurrence: k u^T, S^T q and with erase S^T k. What a chunked algorithm adds is
  // overhead, not work.
  double Flops() const { return (erase ? 6 : 4) * static_cast<double>(k.size() * v.dim(-1)); }
};

struct GatedDeltaBwd {
  GatedDeltaFwd fwd;
  TensorView dy;      // [B, T, H, V]
  TensorView dfinal;  // [B, H, K, V], optional: zero
  Grad dq, dk, dv;
  Grad dbeta, dlog_a, dinitial;             // optional
  Grad dgate_a, dgate_b, da_log, ddt_bias;  // where the forward has projections

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.Upstream("dy", s.dy, s.fwd.y);
    visit.Upstream("dfinal", s.dfinal, s.fwd.final_state);
    visit.Grad("dq", s.dq, s.fwd.q);
    visit.Grad("dk", s.dk, s.fwd.k);
    visit.Grad("dv", s.dv, s.fwd.v);
    visit.Grad("dbeta", s.dbeta, s.fwd.beta);
    visit.Grad("dlog_a", s.dlog_a, s.fwd.log_a);
    visit.Grad("dgate_a", s.dgate_a, s.fwd.gate_a);
    visit.Grad("dgate_b", s.dgate_b, s.fwd.gate_b);
    visit.ParamGrad("da_log", s.da_log, s.fwd.a_log);
    visit.ParamGrad("ddt_bias", s.ddt_bias, s.fwd.dt_bias);
    visit.Grad("dinitial", s.dinitial, s.fwd.initial);
  }
  void Check() const;
  double Flops() const { return 2 * fwd.Flops(); }
};

void Run(CpuStream&, const GatedDeltaFwd&);
void Run(CpuStream&, const GatedDeltaBwd&);
void Run(CudaStream&, const GatedDeltaFwd&);
void Run(CudaStream&, const GatedDeltaBwd&);

}  // namespace weft
