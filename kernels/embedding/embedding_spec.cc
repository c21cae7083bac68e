#include <cmath>

#include "kernels/base/op_spec.h"
#include "kernels/embedding/embedding_ref.h"

namespace weft {
namespace {

// A larger skew makes small tokens more frequent, as in text.
EmbeddingFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t V, int64_t D, double skew) {
  EmbeddingFwd f;
  f.tokens = make.Int("tokens", {B, T}, [=](Rng& rng, int64_t) {
    return std::floor(static_cast<double>(V) * std::pow(rng.Uniform(0, 1), skew));
  });
  f.w = make.In("w", {V, D});
  f.y = make.Out("y", {B, T, D});
  return f;
}

}  // namespace

void AddOp_embedding(OpSuite& suite) {
  OpSpec<EmbeddingFwd, EmbeddingBwd> spec{.name = "embedding",
                                          .reference_f64 = EmbeddingRef<double>,
                                          .reference_complex = EmbeddingRef<std::complex<double>>,
                                          .free_dims = {"w.0"}};
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t V, int64_t D,
                       double skew = 1) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, V, D, skew); }});
  };
  law("T1_V1_D1", 1, 1, 1, 1);
  law("B2_T7_V5_D3", 2, 7, 5, 3);
  law("B3_T65_V11_D33", 3, 65, 11, 33);
  law("B1_T3_V300_D64", 1, 3, 300, 64);  // most rows of dw are zero
  law("B3_T65_V3_D72", 3, 65, 3, 72);    // all rows are long sums
  law("B2_T300_V400_D136_skewed", 2, 300, 400, 136, 6);
  spec.bench.push_back(
      {"4096_V256_D128", [](CaseMaker& m) { return Make(m, 16, 256, 256, 128, 1); }});
  spec.bench.push_back(
      {"8192_V256_D256", [](CaseMaker& m) { return Make(m, 8, 1024, 256, 256, 1); }});
  spec.gpu_bench.push_back(
      {"B16_T2048_V50304_D768", [](CaseMaker& m) { return Make(m, 16, 2048, 50304, 768, 1); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
