#pragma once
// Gates of a gated delta rule head from their projections (Yang, Kautz, Hatamizadeh 2024,
// arXiv:2412.06464; the decay is that of Mamba-2, Dao & Gu 2024, arXiv:2405.21060): a decay and a
// step size per token and head.
//
//   log_a = -exp(a_log) softplus(a + dt_bias)     <= 0, one decay rate per head
//   beta  = beta_scale sigmoid(b)                 in (0, beta_scale)
//
// beta_scale = 2 allows negative eigenvalues.

#include "kernels/base/op.h"

namespace weft {

struct DecayGateFwd {
  TensorView a, b;            // [B, T, H]
  TensorView a_log, dt_bias;  // [H]
  TensorView log_a, beta;     // [B, T, H]
  double beta_scale = 1;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("a", s.a);
    v.In("b", s.b);
    v.In("a_log", s.a_log);
    v.In("dt_bias", s.dt_bias);
    v.Out("log_a", s.log_a);
    v.Out("beta", s.beta);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct DecayGateBwd {
  DecayGateFwd fwd;
  TensorView dlog_a, dbeta;  // [B, T, H]
  Grad da, db, da_log, ddt_bias;

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dlog_a", s.dlog_a, s.fwd.log_a);
    v.Upstream("dbeta", s.dbeta, s.fwd.beta);
    v.Grad("da", s.da, s.fwd.a);
    v.Grad("db", s.db, s.fwd.b);
    v.ParamGrad("da_log", s.da_log, s.fwd.a_log);
    v.ParamGrad("ddt_bias", s.ddt_bias, s.fwd.dt_bias);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const DecayGateFwd&);
void Run(CpuStream&, const DecayGateBwd&);
void Run(CudaStream&, const DecayGateFwd&);
void Run(CudaStream&, const DecayGateBwd&);

}  // namespace weft
