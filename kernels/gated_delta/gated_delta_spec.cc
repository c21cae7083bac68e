#include "kernels/base/op_spec.h"
#include "kernels/gated_delta/gated_delta_ref.h"

namespace weft {
namespace {

struct Sizes {
  int64_t B, T, H, K, V;
};

// Starts of documents of the given lengths, as doc_start wants them.
std::vector<double> Documents(const std::vector<std::vector<int64_t>>& rows) {
  std::vector<double> starts;
  for (const auto& lengths : rows) {
    int64_t start = 0;
    for (const int64_t length : lengths) {
      starts.insert(starts.end(), static_cast<size_t>(length), static_cast<double>(start));
      start += length;
    }
  }
  return starts;
}

GatedDeltaFwd Make(CaseMaker& make, const Sizes& s, double beta_max, double log_a_min, bool state,
                   const std::vector<double>& doc_start = {}) {
  const auto [B, T, H, K, V] = s;
  const Fill unit = Normal(1 / std::sqrt(static_cast<double>(K)));
  GatedDeltaFwd f{.scale = 1 / std::sqrt(static_cast<double>(K))};
  f.q = make.In("q", {B, T, H, K});
  f.k = make.In("k", {B, T, H, K}, unit);
  f.v = make.In("v", {B, T, H, V});
  f.beta = make.WideIn("beta", {B, T, H}, Uniform(0, beta_max));
  f.log_a = make.WideIn("log_a", {B, T, H}, Uniform(log_a_min, 0));
  if (!doc_start.empty()) f.doc_start = make.Int("doc_start", {B, T}, Values(doc_start));
  if (state) f.initial = make.WideIn("initial", {B, H, K, V}, Normal(0.3));
  f.y = make.Out("y", {B, T, H, V});
  if (state) f.final_state = make.WideOut("final_state", {B, H, K, V});
  f.states = make.Out("states", {B, GatedDeltaChunks(T), H, K * V});
  return f;
}

std::vector<double> PackedRows(int64_t B, int64_t T) {
  std::vector<std::vector<int64_t>> rows;
  for (int64_t b = 0; b < B; ++b) {
    rows.emplace_back();
    for (int64_t t = 0, n = 0; t < T; t += n)
      rows.back().push_back(n = std::min(T - t, 30 + (t * 37 + b * 53) % 101));
  }
  return Documents(rows);
}

}  // namespace

void AddOp_gated_delta(OpSuite& suite) {
  OpSpec<GatedDeltaFwd, GatedDeltaBwd> spec{
      .name = "gated_delta",
      .reference_f64 = GatedDeltaRef<double>,
      .reference_complex = GatedDeltaRef<std::complex<double>>};
  const auto law = [&](const char* label, Sizes s, double beta_max, double log_a_min, bool state,
                       const std::vector<double>& doc_start = {}) {
    spec.laws.push_back({label, [=](CaseMaker& make) {
                           return Make(make, s, beta_max, log_a_min, state, doc_start);
                         }});
  };
  law("B2_T1_H2_K3_V5_state", {2, 1, 2, 3, 5}, 1, -0.5, true);
  law("B2_T7_H2_K4_V6", {2, 7, 2, 4, 6}, 1, -0.3, false);
  law("B1_T63_H1_K8_V16", {1, 63, 1, 8, 16}, 1, -0.1, false);
  law("B1_T65_H1_K24_V17_negative_state", {1, 65, 1, 24, 17}, 2, -0.1, true);
  law("B1_T130_H2_K5_V24_no_decay_to_speak_of", {1, 130, 2, 5, 24}, 1, -0.001, true);
  law("B1_T20_H1_K9_V3_strong_decay", {1, 20, 1, 9, 3}, 1, -20, true);
  law("B2_T70_H1_K6_V9_documents", {2, 70, 1, 6, 9}, 2, -0.2, true,
      Documents({{1, 1, 15, 16, 17, 20}, {3, 63, 1, 1, 2}}));
  spec.bench.push_back({"decode_B16_T1_H4_K24_V48", [](CaseMaker& make) {
                          return Make(make, {16, 1, 4, 24, 48}, 1, -0.1, true);
                        }});
  const auto bench = [&](const char* label, Sizes s, const std::vector<double>& doc_start = {}) {
    spec.bench.push_back(
        {label, [=](CaseMaker& make) { return Make(make, s, 1, -0.1, false, doc_start); }});
  };
  bench("B16_T256_H4_K24_V48", {16, 256, 4, 24, 48});
  bench("B16_T256_H4_K32_V64", {16, 256, 4, 32, 64});
  bench("B8_T1024_H4_K48_V96", {8, 1024, 4, 48, 96});
  bench("B16_T256_H4_K24_V48_packed", {16, 256, 4, 24, 48}, PackedRows(16, 256));
  bench("B1_T8192_H4_K24_V48", {1, 8192, 4, 24, 48});
  spec.gpu_bench.push_back({"B16_T2048_H6_K96_V192", [](CaseMaker& make) {
                              return Make(make, {16, 2048, 6, 96, 192}, 1, -0.1, false);
                            }});
  suite.Add(std::move(spec));
}

}  // namespace weft
