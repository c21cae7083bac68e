#include <limits>

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

// Rows of length 1.
Fill UnitRows(int64_t width) {
  return [width, row = std::vector<double>()](Rng& rng, int64_t i) mutable {
    if (i % width == 0) {
      row.resize(static_cast<size_t>(width));
      double squares = 0;
      for (double& x : row) {
        x = rng.Normal();
        squares += x * x;
      }
      for (double& x : row) x /= std::sqrt(squares);
    }
    return row[static_cast<size_t>(i % width)];
  };
}

// Of 11 tokens in a row one decays strongly, and of 43 one forgets all.
Fill StrongDecays(int64_t heads) {
  return [heads](Rng& rng, int64_t i) {
    const int64_t t = i / heads;
    const double usual = rng.Uniform(-0.1, 0);
    return t % 43 == 17 ? -std::numeric_limits<double>::infinity() : t % 11 == 5 ? -20 : usual;
  };
}

// The decay of RetNet's heads.
Fill DecayPerHead(int64_t heads) {
  return [heads](Rng&, int64_t i) {
    return std::log1p(-std::exp2(-3 - static_cast<double>(i % heads)));
  };
}

// `beta` and `log_a` may be empty: then there are none.
GatedDeltaFwd Make(CaseMaker& make, const Sizes& s, const Fill& beta, const Fill& log_a, bool state,
                   const std::vector<double>& doc_start = {}, bool erase = true) {
  const auto [B, T, H, K, V] = s;
  GatedDeltaFwd f{.scale = 1 / std::sqrt(static_cast<double>(K)), .erase = erase};
  f.q = make.In("q", {B, T, H, K});
  f.k = make.In("k", {B, T, H, K}, erase ? UnitRows(K) : Normal());
  f.v = make.In("v", {B, T, H, V});
  if (beta) f.beta = make.WideIn("beta", {B, T, H}, beta);
  if (log_a) f.log_a = make.WideIn("log_a", {B, T, H}, log_a);
  if (!doc_start.empty()) f.doc_start = make.Int("doc_start", {B, T}, Values(doc_start));
  if (state) f.initial = make.WideIn("initial", {B, H, K, V}, Normal(0.3));
  f.y = make.Out("y", {B, T, H, V});
  if (state) f.final_state = make.WideOut("final_state", {B, H, K, V});
  f.states = make.Out("states", {B, GatedDeltaChunks(T), H, K * V});
  return f;
}

// Values of projections and what goes with them.
struct Projected {
  Fill a, b, a_log, dt_bias;
  double beta_scale;
};
// Decays of 0.005 to 0.3 per token.
Projected WeakDecays(double beta_scale) {
  return {Normal(), Normal(), Uniform(-1, 1), Uniform(-4.5, -2), beta_scale};
}
// So strong that many tokens forget all.
Projected HugeDecays() { return {Normal(2), Normal(), Uniform(3, 5), Uniform(-3, 0), 2}; }
// Where softplus is its argument or vanishes, and sigmoids are 0 or 1.
Projected LargeProjections() {
  const auto large = [](Rng& rng, int64_t i) { return (i % 3 - 1) * 15 + rng.Normal(); };
  return {large, large, Uniform(-5, -4), Uniform(-1, 1), 1};
}

GatedDeltaFwd Make(CaseMaker& make, const Sizes& s, const Projected& gates, bool state,
                   const std::vector<double>& doc_start = {}, bool erase = true) {
  const auto [B, T, H, K, V] = s;
  GatedDeltaFwd f = Make(make, s, {}, {}, state, doc_start, erase);
  f.gate_a = make.In("gate_a", {B, T, H}, gates.a);
  f.gate_b = make.In("gate_b", {B, T, H}, gates.b);
  f.a_log = make.WideIn("a_log", {H}, gates.a_log);
  f.dt_bias = make.WideIn("dt_bias", {H}, gates.dt_bias);
  f.beta_scale = gates.beta_scale;
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
  const auto add = [](auto& laws, const char* label, Sizes s, auto make) {
    // So many that the reference takes no more than about a second.
    const int64_t samples = 6'000'000 / (s.B * s.T * s.H * s.K * s.V);
    laws.push_back({label, make, static_cast<int>(std::clamp<int64_t>(samples, 10, 300))});
  };
  const auto law = [&](auto& laws, const char* label, Sizes s, const Fill& beta, const Fill& log_a,
                       bool state, const std::vector<double>& doc_start = {}, bool erase = true) {
    add(laws, label, s,
        [=](CaseMaker& make) { return Make(make, s, beta, log_a, state, doc_start, erase); });
  };
  const auto projected = [&](auto& laws, const char* label, Sizes s, const Projected& gates,
                             bool state = false, const std::vector<double>& doc_start = {},
                             bool erase = true) {
    add(laws, label, s,
        [=](CaseMaker& make) { return Make(make, s, gates, state, doc_start, erase); });
  };
  // The layers that the header names.
  const Fill none;
  const auto linear_attention = [&](auto& laws, const char* label, Sizes s) {
    law(laws, label, s, none, none, true, {}, false);
  };
  const auto retnet = [&](auto& laws, const char* label, Sizes s) {
    law(laws, label, s, none, DecayPerHead(s.H), true, {}, false);
  };
  const auto mamba2 = [&](auto& laws, const char* label, Sizes s,
                          const std::vector<double>& doc_start = {}) {
    law(laws, label, s, Uniform(0, 3), Uniform(-0.2, 0), true, doc_start, false);
  };
  const auto deltanet = [&](auto& laws, const char* label, Sizes s) {
    law(laws, label, s, Uniform(0, 2), none, true);
  };
  const Fill beta = Uniform(0, 1), wide_beta = Uniform(0, 2), weak = Uniform(-0.1, 0);
  auto& laws = spec.laws;
  law(laws, "B2_T1_H2_K3_V5_state", {2, 1, 2, 3, 5}, beta, Uniform(-0.5, 0), true);
  law(laws, "B2_T7_H2_K4_V6", {2, 7, 2, 4, 6}, beta, Uniform(-0.3, 0), false);
  law(laws, "B1_T63_H1_K8_V16", {1, 63, 1, 8, 16}, beta, weak, false);
  law(laws, "B1_T65_H1_K24_V17_negative_state", {1, 65, 1, 24, 17}, wide_beta, weak, true);
  law(laws, "B1_T130_H2_K5_V24_no_decay_to_speak_of", {1, 130, 2, 5, 24}, beta, Uniform(-0.001, 0),
      true);
  law(laws, "B1_T20_H1_K9_V3_strong_decay", {1, 20, 1, 9, 3}, beta, Uniform(-20, 0), true);
  law(laws, "B1_T90_H2_K6_V4_forgets", {1, 90, 2, 6, 4}, wide_beta, StrongDecays(2), true);
  law(laws, "B2_T70_H1_K6_V9_documents", {2, 70, 1, 6, 9}, wide_beta, Uniform(-0.2, 0), true,
      Documents({{1, 1, 15, 16, 17, 20}, {3, 63, 1, 1, 2}}));
  linear_attention(laws, "B2_T1_H2_K3_V5_linear_attention", {2, 1, 2, 3, 5});
  linear_attention(laws, "B1_T70_H2_K6_V9_linear_attention", {1, 70, 2, 6, 9});
  retnet(laws, "B1_T1_H3_K4_V4_retnet", {1, 1, 3, 4, 4});
  retnet(laws, "B2_T65_H3_K5_V7_retnet", {2, 65, 3, 5, 7});
  mamba2(laws, "B1_T1_H1_K4_V8_mamba2", {1, 1, 1, 4, 8});
  mamba2(laws, "B1_T90_H2_K8_V6_mamba2_documents", {1, 90, 2, 8, 6}, Documents({{17, 1, 60, 12}}));
  deltanet(laws, "B2_T1_H3_K7_V5_deltanet", {2, 1, 3, 7, 5});
  deltanet(laws, "B1_T40_H2_K7_V5_deltanet", {1, 40, 2, 7, 5});
  projected(laws, "B2_T1_H3_K4_V6_projected_state", {2, 1, 3, 4, 6}, WeakDecays(2), true);
  projected(laws, "B2_T63_H1_K6_V8_projected", {2, 63, 1, 6, 8}, WeakDecays(1));
  projected(laws, "B1_T65_H3_K6_V9_projected_state", {1, 65, 3, 6, 9}, WeakDecays(2), true);
  projected(laws, "B2_T90_H2_K6_V4_projected_documents", {2, 90, 2, 6, 4}, WeakDecays(2), true,
            Documents({{17, 1, 60, 12}, {90}}));
  projected(laws, "B1_T70_H2_K6_V4_projected_huge_decays", {1, 70, 2, 6, 4}, HugeDecays(), true);
  projected(laws, "B1_T70_H2_K6_V4_large_projections", {1, 70, 2, 6, 4}, LargeProjections(), true);
  projected(laws, "B1_T40_H2_K6_V4_projected_written_only", {1, 40, 2, 6, 4}, WeakDecays(1), true,
            {}, false);
  auto& bf16 = spec.bf16_laws;
  law(bf16, "B1_T63_H2_K16_V16", {1, 63, 2, 16, 16}, beta, weak, false);
  law(bf16, "B1_T64_H1_K16_V32_state", {1, 64, 1, 16, 32}, wide_beta, weak, true);
  law(bf16, "B1_T65_H1_K16_V80", {1, 65, 1, 16, 80}, beta, weak, false);
  law(bf16, "B1_T65_H1_K32_V16_no_decay", {1, 65, 1, 32, 16}, beta, Uniform(0, 0), false);
  law(bf16, "B1_T130_H1_K16_V16_forgets_state", {1, 130, 1, 16, 16}, wide_beta, StrongDecays(1),
      true);
  law(bf16, "B1_T200_H1_K16_V16_documents_state", {1, 200, 1, 16, 16}, beta, Uniform(-0.2, 0), true,
      Documents({{1, 63, 64, 1, 71}}));
  law(bf16, "B2_T70_H1_K16_V16_documents", {2, 70, 1, 16, 16}, wide_beta, weak, false,
      Documents({{64, 6}, {3, 60, 1, 6}}));
  law(bf16, "B1_T7_H1_K48_V96_state", {1, 7, 1, 48, 96}, beta, weak, true);
  law(bf16, "B1_T11_H1_K64_V64_negative", {1, 11, 1, 64, 64}, Uniform(2, 2), weak, false);
  law(bf16, "B1_T1_H2_K64_V128_state", {1, 1, 2, 64, 128}, beta, weak, true);
  law(bf16, "B1_T2_H1_K96_V192_state", {1, 2, 1, 96, 192}, beta, weak, true);
  law(bf16, "B1_T3_H1_K128_V128", {1, 3, 1, 128, 128}, beta, weak, false);
  law(bf16, "B1_T3_H1_K128_V256", {1, 3, 1, 128, 256}, beta, weak, false);
  // Whole chunks and a little more or less of them, for each of the sizes with kernels of their
  // own.
  law(bf16, "B1_T200_H1_K48_V96_documents_state", {1, 200, 1, 48, 96}, wide_beta, weak, true,
      Documents({{1, 63, 64, 1, 71}}));
  law(bf16, "B1_T129_H2_K64_V64_forgets_state", {1, 129, 2, 64, 64}, wide_beta, StrongDecays(2),
      true);
  law(bf16, "B2_T65_H1_K64_V128_documents", {2, 65, 1, 64, 128}, wide_beta, weak, false,
      Documents({{64, 1}, {3, 61, 1}}));
  law(bf16, "B1_T65_H1_K96_V192_state", {1, 65, 1, 96, 192}, wide_beta, weak, true);
  law(bf16, "B1_T64_H1_K96_V192", {1, 64, 1, 96, 192}, beta, weak, false);
  law(bf16, "B1_T63_H1_K128_V128_state", {1, 63, 1, 128, 128}, wide_beta, weak, true);
  law(bf16, "B1_T66_H1_K128_V256_documents", {1, 66, 1, 128, 256}, beta, weak, false,
      Documents({{50, 16}}));
  law(bf16, "B1_T70_H1_K48_V16_narrow_state", {1, 70, 1, 48, 16}, beta, weak, true);
  law(bf16, "B1_T2_H1_K160_V80_state", {1, 2, 1, 160, 80}, beta, weak, true);
  law(bf16, "B1_T2_H1_K256_V64_state", {1, 2, 1, 256, 64}, beta, weak, true);
  law(bf16, "B1_T70_H1_K20_V12_state", {1, 70, 1, 20, 12}, beta, weak, true);
  law(bf16, "B1_T70_H1_K5_V7_documents", {1, 70, 1, 5, 7}, beta, weak, true,
      Documents({{1, 63, 6}}));
  linear_attention(bf16, "B1_T130_H1_K64_V64_linear_attention", {1, 130, 1, 64, 64});
  linear_attention(bf16, "B1_T70_H1_K32_V16_linear_attention", {1, 70, 1, 32, 16});
  linear_attention(bf16, "B1_T65_H1_K20_V12_linear_attention", {1, 65, 1, 20, 12});
  retnet(bf16, "B1_T65_H3_K96_V192_retnet", {1, 65, 3, 96, 192});
  retnet(bf16, "B1_T66_H3_K16_V32_retnet", {1, 66, 3, 16, 32});
  mamba2(bf16, "B1_T129_H1_K128_V64_mamba2_documents", {1, 129, 1, 128, 64},
         Documents({{50, 16, 63}}));
  mamba2(bf16, "B1_T70_H2_K16_V16_mamba2", {1, 70, 2, 16, 16});
  deltanet(bf16, "B1_T129_H1_K128_V128_deltanet", {1, 129, 1, 128, 128});
  deltanet(bf16, "B1_T65_H1_K48_V96_deltanet", {1, 65, 1, 48, 96});
  deltanet(bf16, "B1_T63_H1_K32_V48_deltanet", {1, 63, 1, 32, 48});
  // On sm_90a, by mma.sync, in f32. Of sizes where da_log and ddt_bias, which are sums over tokens,
  // are no small rest of them.
  projected(bf16, "B1_T1_H3_K96_V192_projected_state", {1, 1, 3, 96, 192}, WeakDecays(2), true);
  projected(bf16, "B1_T63_H1_K48_V96_projected", {1, 63, 1, 48, 96}, WeakDecays(1));
  projected(bf16, "B1_T65_H2_K96_V192_projected_state", {1, 65, 2, 96, 192}, WeakDecays(2), true);
  projected(bf16, "B1_T129_H2_K128_V128_projected_documents", {1, 129, 2, 128, 128}, WeakDecays(2),
            true, Documents({{50, 16, 63}}));
  projected(bf16, "B2_T70_H2_K64_V64_projected_huge_decays", {2, 70, 2, 64, 64}, HugeDecays(),
            true);
  projected(bf16, "B1_T130_H2_K64_V128_large_projections", {1, 130, 2, 64, 128},
            LargeProjections());
  projected(bf16, "B1_T66_H2_K48_V16_projected_written_only", {1, 66, 2, 48, 16}, WeakDecays(1),
            true, {}, false);
  projected(bf16, "B2_T65_H2_K16_V32_projected_state", {2, 65, 2, 16, 32}, WeakDecays(2), true);
  projected(bf16, "B1_T129_H2_K160_V48_projected_documents", {1, 129, 2, 160, 48}, WeakDecays(1),
            true, Documents({{50, 16, 63}}));
  projected(bf16, "B1_T70_H1_K16_V16_projected_huge_decays", {1, 70, 1, 16, 16}, HugeDecays());
  projected(bf16, "B2_T65_H2_K20_V12_projected_state", {2, 65, 2, 20, 12}, WeakDecays(2), true);
  const auto bench = [&](const char* label, Sizes s, bool state = false,
                         const std::vector<double>& doc_start = {}) {
    projected(spec.bench, label, s, WeakDecays(1), state, doc_start);
  };
  bench("decode_B16_T1_H4_K24_V48", {16, 1, 4, 24, 48}, true);
  bench("B16_T256_H4_K24_V48", {16, 256, 4, 24, 48});
  bench("B16_T256_H4_K32_V64", {16, 256, 4, 32, 64});
  bench("B8_T1024_H4_K48_V96", {8, 1024, 4, 48, 96});
  bench("B16_T256_H4_K24_V48_packed", {16, 256, 4, 24, 48}, false, PackedRows(16, 256));
  bench("B1_T8192_H4_K24_V48", {1, 8192, 4, 24, 48});
  projected(spec.gpu_bench, "B16_T2048_H6_K96_V192", {16, 2048, 6, 96, 192}, WeakDecays(1));
  projected(spec.gpu_bench, "B8_T8192_H30_K96_V192", {8, 8192, 30, 96, 192}, WeakDecays(1));
  projected(spec.gpu_bench, "B8_T8192_H16_K128_V128", {8, 8192, 16, 128, 128}, WeakDecays(1));
  projected(spec.gpu_bench, "B1_T65536_H16_K128_V128", {1, 65536, 16, 128, 128}, WeakDecays(1));
  suite.Add(std::move(spec));
}

}  // namespace weft
