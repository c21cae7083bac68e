#include "kernels/base/op_spec.h"
#include "kernels/global_norm/global_norm_ref.h"

namespace weft {
namespace {

GlobalNormFwd Make(CaseMaker& make, int64_t n, double max_norm) {
  GlobalNormFwd f{.max_norm = max_norm};
  f.x = make.WideIn("x", {n});
  f.norm = make.WideOut("norm", {1});
  f.scale = make.WideOut("scale", {1});
  return f;
}

}  // namespace

void AddOp_global_norm(OpSuite& suite) {
  OpSpec<GlobalNormFwd> spec{
      .name = "global_norm", .reference_f64 = GlobalNormRef, .free_dims = {"x.0"}};
  const auto law = [&](const char* label, int64_t n, double max_norm) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, n, max_norm); }});
  };
  law("n1_unclipped", 1, 100);
  law("n63_clipped", 63, 0.5);
  law("n40000_clipped", 40000, 1);
  law("n40000_off", 40000, 0);
  spec.bench.push_back({"n1M", [](CaseMaker& m) { return Make(m, 1 << 20, 1); }});
  spec.bench.push_back({"n16M", [](CaseMaker& m) { return Make(m, 16 << 20, 1); }});
  spec.gpu_bench.push_back({"n191M", [](CaseMaker& m) { return Make(m, 190'600'000, 1); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
