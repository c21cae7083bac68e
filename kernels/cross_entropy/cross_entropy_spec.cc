#include "kernels/base/op_spec.h"
#include "kernels/cross_entropy/cross_entropy_ref.h"

namespace weft {
namespace {

// Row n has no label where n % 4 == skip; skip < 0 labels every row.
CrossEntropyFwd Make(CaseMaker& make, int64_t N, int64_t V, int64_t skip, double z_loss,
                     double denominator) {
  CrossEntropyFwd f{.z_loss = z_loss};
  f.denominator = make.WideIn("denominator", {1}, Values({denominator}));
  f.logits = make.In("logits", {N, V}, Normal(2));
  f.labels = make.Int("labels", {N}, [=](Rng& rng, int64_t n) {
    const uint32_t label = rng.Below(static_cast<uint32_t>(V));
    return n % 4 == skip ? kNoLoss : static_cast<double>(label);
  });
  f.nll = make.WideOut("nll", {N});
  f.lse = make.WideOut("lse", {N});
  f.correct = make.WideOut("correct", {N});
  f.loss = make.WideOut("loss", {1});
  f.mean_nll = make.WideOut("mean_nll", {1});
  return f;
}

}  // namespace

void AddOp_cross_entropy(OpSuite& suite) {
  OpSpec<CrossEntropyFwd, CrossEntropyBwd> spec{
      .name = "cross_entropy",
      .reference_f64 = CrossEntropyRef<double>,
      .reference_complex = CrossEntropyRef<std::complex<double>>,
      .free_dims = {"logits.1"}};
  const auto law = [&](const char* label, int64_t N, int64_t V, int64_t skip, double z_loss,
                       double denominator) {
    spec.laws.push_back(
        {label, [=](CaseMaker& make) { return Make(make, N, V, skip, z_loss, denominator); }});
  };
  law("N1_V2", 1, 2, -1, 0, 1);
  law("N7_V5_masked", 7, 5, 1, 0, 5);
  law("N65_V33_masked_z", 65, 33, 0, 0.01, 48);
  law("N3_V300_z", 3, 300, -1, 0.1, 17.5);
  law("N70_V513_masked", 70, 513, 3, 0, 53);
  law("N3_V1024", 3, 1024, -1, 0, 3);
  law("N5_V1025_masked", 5, 1025, 1, 0, 3);
  law("N2_V8200_z", 2, 8200, -1, 0.01, 3);
  spec.bench.push_back({"4096_V256", [](CaseMaker& m) { return Make(m, 4096, 256, -1, 0, 4096); }});
  spec.bench.push_back({"8192_V256", [](CaseMaker& m) { return Make(m, 8192, 256, -1, 0, 8192); }});
  spec.gpu_bench.push_back(
      {"4096_V50304", [](CaseMaker& m) { return Make(m, 4096, 50304, -1, 0, 4096); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
