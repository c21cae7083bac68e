#include <cmath>

#include "kernels/attention/attention_ref.h"
#include "kernels/base/op_spec.h"

namespace weft {
namespace {

struct Sizes {
  int64_t B, Tq, Tk, H, Hkv, K, V;
};

AttentionFwd Make(CaseMaker& make, const Sizes& s, int64_t window = 0,
                  std::vector<double> doc_start = {}) {
  AttentionFwd f{.scale = 1 / std::sqrt(static_cast<double>(s.K)), .window = window};
  f.q = make.In("q", {s.B, s.Tq, s.H, s.K});
  f.k = make.In("k", {s.B, s.Tk, s.Hkv, s.K});
  f.v = make.In("v", {s.B, s.Tk, s.Hkv, s.V});
  if (!doc_start.empty())
    f.doc_start = make.Int("doc_start", {s.B, s.Tk}, Values(std::move(doc_start)));
  f.y = make.Out("y", {s.B, s.Tq, s.H, s.V});
  f.lse = make.WideOut("lse", {s.B, s.H, s.Tq});
  return f;
}

// Documents of these lengths, repeated over the batch rows, whose total length is T.
std::vector<double> Documents(int64_t B, int64_t T, const std::vector<int64_t>& lengths) {
  std::vector<double> start;
  for (int64_t b = 0; b < B; ++b) {
    int64_t at = 0;
    for (size_t d = 0; at < T; ++d) {
      const int64_t length = std::min(T - at, lengths[d % lengths.size()]);
      start.insert(start.end(), static_cast<size_t>(length), static_cast<double>(at));
      at += length;
    }
  }
  return start;
}

}  // namespace

void AddOp_attention(OpSuite& suite) {
  OpSpec<AttentionFwd, AttentionBwd> spec{.name = "attention",
                                          .reference_f64 = AttentionRef<double>,
                                          .reference_complex = AttentionRef<std::complex<double>>};
  const auto law = [&](const char* label, Sizes s, int64_t window = 0,
                       std::vector<int64_t> lengths = {}) {
    spec.laws.push_back({label, [=](CaseMaker& make) {
                           return Make(make, s, window,
                                       lengths.empty() ? std::vector<double>{}
                                                       : Documents(s.B, s.Tk, lengths));
                         }});
  };
  law("T2_H1_K1_V1", {1, 2, 2, 1, 1, 1, 1});
  law("B2_T9_H2_K5_V3", {2, 9, 9, 2, 2, 5, 3});
  law("T63_K16", {1, 63, 63, 1, 1, 16, 16});
  law("T65_K33_V18", {1, 65, 65, 1, 1, 33, 18});
  law("T150_chunks", {1, 150, 150, 1, 1, 4, 4});
  law("grouped_H6_Hkv2", {2, 17, 17, 6, 2, 8, 4});
  law("window5_T70", {1, 70, 70, 2, 1, 4, 4}, 5);
  law("documents_T37", {2, 37, 37, 2, 1, 4, 4}, 0, {1, 1, 7, 9});
  law("documents_window_T140", {1, 140, 140, 1, 1, 4, 4}, 40, {70, 1, 33, 40});
  law("cache_Tq3_Tk70", {1, 3, 70, 2, 1, 4, 4});
  law("cache_window_Tq9_Tk70", {1, 9, 70, 1, 1, 4, 4}, 20);
  // Widths and lengths around the tiles of the tensor-core kernels.
  const auto bf16_law = [&](const char* label, Sizes s, int64_t window = 0,
                            std::vector<int64_t> lengths = {}) {
    law(label, s, window, lengths);
    spec.bf16_laws.push_back(std::move(spec.laws.back()));
    spec.laws.pop_back();
  };
  bf16_law("T2_K16", {1, 2, 2, 2, 1, 16, 16});
  bf16_law("T63_K32", {1, 63, 63, 1, 1, 32, 32});
  bf16_law("T64_K64", {1, 64, 64, 1, 1, 64, 64});
  bf16_law("T65_K64", {1, 65, 65, 1, 1, 64, 64});
  bf16_law("T65_K16", {1, 65, 65, 1, 1, 16, 16});
  bf16_law("T20_K48", {2, 20, 20, 2, 1, 48, 48});
  bf16_law("T40_K96", {1, 40, 40, 1, 1, 96, 96});
  bf16_law("T66_K128", {1, 66, 66, 1, 1, 128, 128});
  bf16_law("T34_K192", {1, 34, 34, 1, 1, 192, 192});
  bf16_law("T34_K256", {1, 34, 34, 1, 1, 256, 256});
  bf16_law("T127_K16", {1, 127, 127, 1, 1, 16, 16});
  bf16_law("T128_K32", {1, 128, 128, 1, 1, 32, 32});
  bf16_law("T129_K16", {1, 129, 129, 1, 1, 16, 16});
  bf16_law("window10_T200_K64", {1, 200, 200, 1, 1, 64, 64}, 10);
  bf16_law("window70_T131_K32", {1, 131, 131, 1, 1, 32, 32}, 70);
  bf16_law("window6_T200_K128", {1, 200, 200, 1, 1, 128, 128}, 6);
  bf16_law("documents_T200_K64", {1, 200, 200, 1, 1, 64, 64}, 0, {1, 20, 10, 34, 1, 3, 25, 34, 72});
  bf16_law("documents_T130_K128", {1, 130, 130, 1, 1, 128, 128}, 0, {20, 43, 1, 2, 20, 20, 24});
  bf16_law("documents_window_T200_K32", {1, 200, 200, 1, 1, 32, 32}, 40, {70, 1, 60, 69});
  bf16_law("grouped_B2_T20_H6_Hkv2_K64", {2, 20, 20, 6, 2, 64, 64});
  bf16_law("grouped_T20_H4_Hkv1_K128", {1, 20, 20, 4, 1, 128, 128});
  bf16_law("cache_Tq1_Tk130_K64", {2, 1, 130, 2, 1, 64, 64});
  bf16_law("cache_Tq5_Tk200_K128", {1, 5, 200, 1, 1, 128, 128});
  bf16_law("cache_window_Tq66_Tk200_K64", {1, 66, 200, 1, 1, 64, 64}, 30);
  bf16_law("cache_documents_Tq20_Tk150_K96", {1, 20, 150, 2, 2, 96, 96}, 0, {100, 7, 40});
  bf16_law("T30_K24_V40", {1, 30, 30, 1, 1, 24, 40});
  bf16_law("T30_K192_V128", {1, 30, 30, 1, 1, 192, 128});
  bf16_law("odd_T65_K33_V18", {1, 65, 65, 1, 1, 33, 18});
  bf16_law("odd_T9_K260_V70", {2, 9, 9, 2, 1, 260, 70}, 4);
  const auto bench = [&](const char* label, Sizes s, int64_t window = 0,
                         std::vector<int64_t> lengths = {}) {
    spec.bench.push_back({label, [=](CaseMaker& make) {
                            return Make(make, s, window,
                                        lengths.empty() ? std::vector<double>{}
                                                        : Documents(s.B, s.Tk, lengths));
                          }});
  };
  bench("B16_T256_H4_K32", {16, 256, 256, 4, 4, 32, 32});
  bench("B8_T1024_H4_K64", {8, 1024, 1024, 4, 4, 64, 64});
  bench("documents_B8_T1024_H4_K64", {8, 1024, 1024, 4, 4, 64, 64}, 0, {100, 300, 17, 200});
  const auto gpu_bench = [&](const char* label, Sizes s) {
    spec.gpu_bench.push_back({label, [=](CaseMaker& make) { return Make(make, s); }});
  };
  gpu_bench("B32_T1024_H4_K64", {32, 1024, 1024, 4, 4, 64, 64});
  gpu_bench("B16_T2048_H6_K128", {16, 2048, 2048, 6, 6, 128, 128});
  gpu_bench("B4_T4096_H16_K128", {4, 4096, 4096, 16, 16, 128, 128});
  gpu_bench("B8_T8192_H16_K128", {8, 8192, 8192, 16, 16, 128, 128});
  gpu_bench("B4_T8192_H16_K64", {4, 8192, 8192, 16, 16, 64, 64});
  suite.Add(std::move(spec));
}

}  // namespace weft
