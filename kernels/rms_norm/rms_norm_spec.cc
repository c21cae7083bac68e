#include "kernels/base/op_spec.h"
#include "kernels/rms_norm/rms_norm_ref.h"

namespace weft {
namespace {

RmsNormFwd Make(CaseMaker& make, Residual mode, int64_t B, int64_t T, int64_t D) {
  RmsNormFwd f{.mode = mode};
  f.x = make.In("x", {B, T, D});
  f.w = make.WideIn("w", {D}, Uniform(0.5, 1.5));
  if (mode != Residual::kNone) f.residual = make.In("residual", {B, T, D});
  f.y = make.Out("y", {B, T, D});
  if (mode == Residual::kBefore) f.sum = make.Out("sum", {B, T, D});
  f.rstd = make.WideOut("rstd", {B * T});
  return f;
}

}  // namespace

void AddOp_rms_norm(OpSuite& suite) {
  OpSpec<RmsNormFwd, RmsNormBwd> spec{.name = "rms_norm",
                                      .reference_f64 = RmsNormRef<double>,
                                      .reference_complex = RmsNormRef<std::complex<double>>};
  const auto law = [&](const char* label, Residual mode, int64_t B, int64_t T, int64_t D) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, mode, B, T, D); }});
  };
  law("plain_B2_T7_D16", Residual::kNone, 2, 7, 16);
  law("plain_T1_D2", Residual::kNone, 1, 1, 2);
  law("plain_T65_D3", Residual::kNone, 1, 65, 3);
  law("before_B2_T3_D33", Residual::kBefore, 2, 3, 33);
  law("after_B2_T3_D33", Residual::kAfter, 2, 3, 33);
  law("before_B3_T41_D48", Residual::kBefore, 3, 41, 48);
  law("plain_B2_T65_D64", Residual::kNone, 2, 65, 64);
  law("after_T9_D520", Residual::kAfter, 1, 9, 520);
  law("before_T3_D2056", Residual::kBefore, 1, 3, 2056);
  law("before_T1_D12296", Residual::kBefore, 1, 1, 12296);
  spec.bench.push_back(
      {"before_N4096_D128", [](CaseMaker& m) { return Make(m, Residual::kBefore, 16, 256, 128); }});
  spec.bench.push_back(
      {"before_N8192_D256", [](CaseMaker& m) { return Make(m, Residual::kBefore, 8, 1024, 256); }});
  const auto gpu_bench = [&](const char* label, Residual mode) {
    spec.gpu_bench.push_back({label, [=](CaseMaker& m) { return Make(m, mode, 16, 2048, 768); }});
  };
  gpu_bench("plain_B16_T2048_D768", Residual::kNone);
  gpu_bench("before_B16_T2048_D768", Residual::kBefore);
  suite.Add(std::move(spec));
}

}  // namespace weft
