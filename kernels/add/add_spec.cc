#include "kernels/add/add_ref.h"
#include "kernels/base/op_spec.h"

namespace weft {

void AddOp_add(OpSuite& suite) {
  OpSpec<AddFwd, AddBwd> spec{.name = "add",
                              .reference_f64 = AddRef<double>,
                              .reference_complex = AddRef<std::complex<double>>};
  const auto make = [](int64_t B, int64_t T, int64_t D) {
    return [=](CaseMaker& m) {
      return AddFwd{m.In("a", {B, T, D}), m.In("b", {B, T, D}), m.Out("y", {B, T, D})};
    };
  };
  spec.laws.push_back({"B2_T3_D17", make(2, 3, 17)});
  spec.laws.push_back({"B1_T65_D1", make(1, 65, 1)});
  spec.laws.push_back({"B3_T41_D48", make(3, 41, 48)});
  spec.laws.push_back({"T3_D2064", make(1, 3, 2064)});
  spec.bench.push_back({"N4096_D128", make(16, 256, 128)});
  spec.gpu_bench.push_back({"B16_T2048_D768", make(16, 2048, 768)});
  suite.Add(std::move(spec));
}

}  // namespace weft
