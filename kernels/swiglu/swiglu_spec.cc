#include "kernels/base/op_spec.h"
#include "kernels/swiglu/swiglu_ref.h"

namespace weft {
namespace {

SwigluFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t F) {
  SwigluFwd f;
  f.gate_up = make.In("gate_up", {B, T, 2 * F}, Normal(3));
  f.y = make.Out("y", {B, T, F});
  return f;
}

}  // namespace

void AddOp_swiglu(OpSuite& suite) {
  OpSpec<SwigluFwd, SwigluBwd> spec{.name = "swiglu",
                                    .reference_f64 = SwigluRef<double>,
                                    .reference_complex = SwigluRef<std::complex<double>>};
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t F) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, F); }});
  };
  law("T1_F1", 1, 1, 1);
  law("B2_T7_F16", 2, 7, 16);
  law("B1_T65_F33", 1, 65, 33);
  law("B2_T63_F300", 2, 63, 300);
  law("B3_T41_F48", 3, 41, 48);
  law("T3_F520", 1, 3, 520);
  law("T1_F12296", 1, 1, 12296);
  spec.bench.push_back({"4096_F512", [](CaseMaker& m) { return Make(m, 16, 256, 512); }});
  spec.bench.push_back({"8192_F1024", [](CaseMaker& m) { return Make(m, 8, 1024, 1024); }});
  spec.gpu_bench.push_back(
      {"B16_T2048_F3072", [](CaseMaker& m) { return Make(m, 16, 2048, 3072); }});
  suite.Add(std::move(spec));
}

}  // namespace weft
