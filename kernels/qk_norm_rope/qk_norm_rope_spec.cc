#include "kernels/base/op_spec.h"
#include "kernels/qk_norm_rope/qk_norm_rope_ref.h"

namespace weft {
namespace {

QkNormRopeFwd Make(CaseMaker& make, QkNorm norm, double theta, int64_t B, int64_t T, int64_t H,
                   int64_t K, int64_t offset = 0) {
  QkNormRopeFwd f{.norm = norm, .theta = theta, .offset = offset};
  f.x = make.In("x", {B, T, H, K});
  if (norm == QkNorm::kHead) f.w = make.WideIn("w", {K}, Uniform(0.5, 1.5));
  if (norm == QkNorm::kFull) f.w = make.WideIn("w", {H * K}, Uniform(0.5, 1.5));
  f.y = make.Out("y", {B, T, H, K});
  if (norm == QkNorm::kHead) f.rstd = make.WideOut("rstd", {B, T, H});
  if (norm == QkNorm::kFull) f.rstd = make.WideOut("rstd", {B, T});
  return f;
}

}  // namespace

void AddOp_qk_norm_rope(OpSuite& suite) {
  OpSpec<QkNormRopeFwd, QkNormRopeBwd> spec{
      .name = "qk_norm_rope",
      .reference_f64 = QkNormRopeRef<double>,
      .reference_complex = QkNormRopeRef<std::complex<double>>};
  const auto law = [&](const char* label, QkNorm norm, double theta, int64_t B, int64_t T,
                       int64_t H, int64_t K, int64_t offset = 0) {
    spec.laws.push_back(
        {label, [=](CaseMaker& make) { return Make(make, norm, theta, B, T, H, K, offset); }});
  };
  law("copy_T3_K5", QkNorm::kNone, 0, 1, 3, 2, 5);
  law("rope_T1_K2", QkNorm::kNone, 10000, 1, 1, 1, 2, 3);
  law("rope_B2_T65_H3_K6", QkNorm::kNone, 10000, 2, 65, 3, 6);
  law("head_T7_K5", QkNorm::kHead, 0, 2, 7, 3, 5);
  law("head_rope_B9_T63_K4", QkNorm::kHead, 500000, 9, 63, 1, 4);
  law("head_rope_offset", QkNorm::kHead, 10000, 1, 40, 2, 34, 37);
  law("head_rope_B2_T3_H6_K128", QkNorm::kHead, 500000, 2, 3, 6, 128);
  law("head_rope_T9_H7_K96", QkNorm::kHead, 10000, 1, 9, 7, 96);
  law("head_T3_H2_K512", QkNorm::kHead, 0, 1, 3, 2, 512);
  law("rope_B3_T33_H2_K16", QkNorm::kNone, 10000, 3, 33, 2, 16);
  law("full_B2_T3_H3_K7", QkNorm::kFull, 0, 2, 3, 3, 7);
  law("full_rope_B2_T2_H6_K128", QkNorm::kFull, 10000, 2, 2, 6, 128);
  law("full_rope_T2_H20_K128", QkNorm::kFull, 500000, 1, 2, 20, 128, 31);
  law("full_rope_B2_T33_H2_K18", QkNorm::kFull, 500000, 2, 33, 2, 18, 5);
  const auto bench = [&](const char* label, QkNorm norm, int64_t B, int64_t T, int64_t H, int64_t K,
                         int64_t offset = 0) {
    spec.bench.push_back(
        {label, [=](CaseMaker& make) { return Make(make, norm, 500000, B, T, H, K, offset); }});
  };
  bench("rope_B16_T256_H4_K32", QkNorm::kNone, 16, 256, 4, 32);
  bench("full_rope_B16_T256_H4_K32", QkNorm::kFull, 16, 256, 4, 32);
  bench("full_rope_B8_T1024_H4_K64", QkNorm::kFull, 8, 1024, 4, 64);
  bench("head_rope_far_T1024_H4_K64", QkNorm::kHead, 1, 1024, 4, 64, 1000000);
  bench("head_rope_B8_T2048_H2_K128", QkNorm::kHead, 8, 2048, 2, 128);
  bench("head_rope_B8_T1024_H4_K64", QkNorm::kHead, 8, 1024, 4, 64);
  const auto gpu_bench = [&](const char* label, QkNorm norm) {
    spec.gpu_bench.push_back(
        {label, [=](CaseMaker& make) { return Make(make, norm, 500000, 16, 2048, 6, 128); }});
  };
  gpu_bench("full_rope_B16_T2048_H6_K128", QkNorm::kFull);
  gpu_bench("head_rope_B16_T2048_H6_K128", QkNorm::kHead);
  suite.Add(std::move(spec));
}

}  // namespace weft
