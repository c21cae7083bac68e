#include "kernels/base/op_spec.h"
#include "kernels/short_conv/short_conv_ref.h"

namespace weft {
namespace {

struct Options {
  bool silu = true;
  int64_t norm_channels = 0, norm_group = 0;
  bool history = false;
  std::vector<double> doc_start = {};
};

ShortConvFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t C, int64_t W, const Options& o) {
  ShortConvFwd f{.silu = o.silu, .norm_channels = o.norm_channels, .norm_group = o.norm_group};
  f.x = make.In("x", {B, T, C});
  f.w = make.In("w", {C, W}, Normal(0.5));
  if (!o.doc_start.empty()) f.doc_start = make.Int("doc_start", {B, T}, Values(o.doc_start));
  if (o.history) f.history = make.In("history", {B, W - 1, C});
  if (o.history) f.history_out = make.Out("history_out", {B, W - 1, C});
  f.y = make.Out("y", {B, T, C});
  if (o.norm_channels > 0) f.rstd = make.WideOut("rstd", {B, T, o.norm_channels / o.norm_group});
  return f;
}

}  // namespace

void AddOp_short_conv(OpSuite& suite) {
  OpSpec<ShortConvFwd, ShortConvBwd> spec{.name = "short_conv",
                                          .reference_f64 = ShortConvRef<double>,
                                          .reference_complex = ShortConvRef<std::complex<double>>};
  spec.free_dims = {"w.1"};  // any width is one, unless history says which
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t C, int64_t W,
                       const Options& o) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, C, W, o); }});
  };
  law("B2_T7_C20_W4_norm", 2, 7, 20, 4, {.norm_channels = 12, .norm_group = 3});
  law("B1_T1_C5_W4_history", 1, 1, 5, 4, {.history = true});
  law("B2_T2_C5_W4_history", 2, 2, 5, 4, {.history = true});
  law("B1_T6_C3_W1_linear", 1, 6, 3, 1, {.silu = false});
  law("B1_T9_C4_W8_linear_norm", 1, 9, 4, 8, {.silu = false, .norm_channels = 4, .norm_group = 2});
  law("B1_T130_C3_W3", 1, 130, 3, 3, {});
  law("B1_T65_C70_W2_norm", 1, 65, 70, 2, {.norm_channels = 70, .norm_group = 35});
  law("B2_T6_C18_W4_documents_history", 2, 6, 18, 4,
      {.history = true, .doc_start = {0, 0, 2, 3, 3, 3, 0, 1, 1, 1, 1, 5}});
  // Documents of different lengths, cut at and around multiples of 32 tokens.
  std::vector<double> starts;
  for (int64_t i = 0; i < 2 * 70; ++i) {
    const bool starts_here = i % 70 == 0 || i % 70 % 32 == 0 || i % 13 == 4 || i % 37 == 36;
    starts.push_back(starts_here ? static_cast<double>(i % 70) : starts.back());
  }
  law("B2_T70_C40_W4_documents_norm", 2, 70, 40, 4,
      {.norm_channels = 32, .norm_group = 16, .history = true, .doc_start = starts});
  law("B1_T100_C96_W4_norm", 1, 100, 96, 4,
      {.norm_channels = 48, .norm_group = 24, .history = true});
  law("B1_T37_C200_W3_norm", 1, 37, 200, 3, {.norm_channels = 192, .norm_group = 96});
  law("B1_T67_C8_W8", 1, 67, 8, 8, {.history = true});
  law("B1_T66_C24_W5_norm", 1, 66, 24, 5, {.norm_channels = 24, .norm_group = 12});
  law("B1_T3_C1028_W4_norm", 1, 3, 1028, 4, {.norm_channels = 1024, .norm_group = 1024});
  law("B1_T5_C700_W2_norm", 1, 5, 700, 2, {.norm_channels = 700, .norm_group = 350});
  const auto bench = [&](const char* label, int64_t B, int64_t T, int64_t C, const Options& o) {
    spec.bench.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, C, 4, o); }});
  };
  bench("B16_T256_C384", 16, 256, 384, {.norm_channels = 192, .norm_group = 24});
  bench("B8_T1024_C768", 8, 1024, 768, {.norm_channels = 384, .norm_group = 48});
  spec.gpu_bench.push_back({"B16_T2048_C2304", [](CaseMaker& make) {
                              return Make(make, 16, 2048, 2304, 4,
                                          {.norm_channels = 1152, .norm_group = 96});
                            }});
  suite.Add(std::move(spec));
}

}  // namespace weft
