#include "kernels/base/op_spec.h"
#include "kernels/decay_gate/decay_gate_ref.h"

namespace weft {
namespace {

DecayGateFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t H, double beta_scale,
                  double spread) {
  DecayGateFwd f{.beta_scale = beta_scale};
  f.a = make.In("a", {B, T, H}, Normal(spread));
  f.b = make.In("b", {B, T, H}, Normal(spread));
  f.a_log = make.WideIn("a_log", {H}, Uniform(-1, 2.7));
  f.dt_bias = make.WideIn("dt_bias", {H}, Uniform(-3, 0));
  f.log_a = make.WideOut("log_a", {B, T, H});
  f.beta = make.WideOut("beta", {B, T, H});
  return f;
}

}  // namespace

void AddOp_decay_gate(OpSuite& suite) {
  OpSpec<DecayGateFwd, DecayGateBwd> spec{.name = "decay_gate",
                                          .reference_f64 = DecayGateRef<double>,
                                          .reference_complex = DecayGateRef<std::complex<double>>};
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t H, double beta_scale,
                       double spread) {
    spec.laws.push_back(
        {label, [=](CaseMaker& make) { return Make(make, B, T, H, beta_scale, spread); }});
  };
  law("B2_T7_H3", 2, 7, 3, 1, 1);
  law("B1_T1_H1_negative", 1, 1, 1, 2, 1);
  law("B2_T65_H2_wide", 2, 65, 2, 2, 5);
  law("B1_T257_H1", 1, 257, 1, 1, 1);
  law("B2_T300_H6", 2, 300, 6, 1, 1);
  law("B1_T5_H300", 1, 5, 300, 1, 1);
  const auto bench = [&](const char* label, int64_t B, int64_t T, int64_t H) {
    spec.bench.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, H, 1, 1); }});
  };
  bench("B16_T256_H4", 16, 256, 4);
  bench("B8_T1024_H4", 8, 1024, 4);
  spec.gpu_bench.push_back(
      {"B16_T2048_H6", [](CaseMaker& make) { return Make(make, 16, 2048, 6, 1, 1); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
