#include <cmath>

#include "kernels/adamw/adamw_ref.h"
#include "kernels/base/op_spec.h"

namespace weft {
namespace {

AdamwStep Make(CaseMaker& make, int64_t n, int64_t decayed, int64_t step, bool scaled) {
  AdamwStep s{.eps = 1e-3, .decayed = decayed};
  s.p = make.WideIn("p", {n});
  s.g = make.WideIn("g", {n});
  s.m = make.WideIn("m", {n}, Normal(0.5));
  s.v = make.WideIn("v", {n}, Uniform(0, 2));
  const double t = static_cast<double>(step);
  s.schedule = make.WideIn("schedule", {3},
                           Values({0.02, 1 - std::pow(s.beta1, t), 1 - std::pow(s.beta2, t)}));
  if (make.bf16_values()) s.copy = make.Out("copy", {n});
  if (scaled) s.scale = make.WideIn("scale", {1}, Uniform(0.1, 0.9));
  return s;
}

}  // namespace

void AddOp_adamw(OpSuite& suite) {
  OpSpec<AdamwStep> spec{.name = "adamw", .reference_f64 = AdamwRef<double>};
  const auto law = [&](const char* label, int64_t n, int64_t decayed, int64_t step, bool scaled) {
    spec.laws.push_back(
        {label, [=](CaseMaker& make) { return Make(make, n, decayed, step, scaled); }});
  };
  law("n1_step1", 1, 0, 1, false);
  law("n63_decayed_all", 63, 63, 3, true);
  law("n1000_decayed_333", 1000, 333, 1000, true);
  law("n4099_decayed_2050", 4099, 2050, 20, true);
  law("n40000_decayed_20001", 40000, 20001, 7, false);
  spec.bench.push_back({"n1M", [](CaseMaker& m) { return Make(m, 1 << 20, 1 << 20, 9, true); }});
  spec.bench.push_back({"n16M", [](CaseMaker& m) { return Make(m, 16 << 20, 16 << 20, 9, true); }});
  spec.gpu_bench.push_back(
      {"n191M", [](CaseMaker& m) { return Make(m, 190'600'000, 190'600'000, 9, true); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
