#include "kernels/base/op_spec.h"
#include "kernels/gated_rms_norm/gated_rms_norm_ref.h"

namespace weft {
namespace {

GatedRmsNormFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t H, int64_t V) {
  GatedRmsNormFwd f;
  f.x = make.In("x", {B, T, H, V});
  f.gate = make.In("gate", {B, T, H, V}, Normal(2));
  f.w = make.WideIn("w", {V}, Uniform(0.5, 1.5));
  f.y = make.Out("y", {B, T, H, V});
  f.rstd = make.WideOut("rstd", {B, T, H});
  return f;
}

}  // namespace

void AddOp_gated_rms_norm(OpSuite& suite) {
  OpSpec<GatedRmsNormFwd, GatedRmsNormBwd> spec{
      .name = "gated_rms_norm",
      .reference_f64 = GatedRmsNormRef<double>,
      .reference_complex = GatedRmsNormRef<std::complex<double>>};
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t H, int64_t V) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, H, V); }});
  };
  law("B2_T7_H2_V16", 2, 7, 2, 16);
  law("B1_T1_H1_V2", 1, 1, 1, 2);
  law("B1_T63_H1_V5", 1, 63, 1, 5);
  law("B2_T33_H3_V19", 2, 33, 3, 19);
  law("B2_T11_H2_V96", 2, 11, 2, 96);
  law("B2_T5_H3_V192", 2, 5, 3, 192);
  law("B1_T3_H1_V520", 1, 3, 1, 520);
  law("B1_T2_H1_V2056", 1, 2, 1, 2056);
  const auto bench = [&](const char* label, int64_t B, int64_t T, int64_t H, int64_t V) {
    spec.bench.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, H, V); }});
  };
  bench("B16_T256_H4_V48", 16, 256, 4, 48);
  bench("B8_T1024_H4_V96", 8, 1024, 4, 96);
  spec.gpu_bench.push_back(
      {"B16_T2048_H6_V192", [](CaseMaker& make) { return Make(make, 16, 2048, 6, 192); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
