#include "kernels/base/op_spec.h"
#include "kernels/random_fill/random_fill_ref.h"

namespace weft {

void AddOp_random_fill(OpSuite& suite) {
  OpSpec<RandomFill> spec{
      .name = "random_fill", .reference_f64 = RandomFillRef<double>, .free_dims = {"y.0"}};
  const auto make = [](int64_t n, const RandomValues& values) {
    return [=](CaseMaker& m) {
      RandomFill f{.y = m.WideOut("y", {n}), .values = values};
      if (m.bf16_values()) f.copy = m.Out("copy", {n});
      return f;
    };
  };
  const RandomValues constant{.value = 0.1},
      normal{.distribution = Distribution::kNormal,
             .sigma = 0.02,
             .seed = 0x0123456789abcdef,
             .stream = 0xfedcba9876543210},
      uniform{.distribution = Distribution::kUniform, .low = -0.1, .high = 0.3, .seed = 7},
      logarithm{.distribution = Distribution::kLogarithm, .low = 1e-6, .high = 16, .seed = 7},
      softplus{.distribution = Distribution::kInverseSoftplus, .low = 1e-3, .high = 0.1, .seed = 7};
  spec.laws.push_back({"constant_n5", make(5, constant)});
  spec.laws.push_back({"uniform_n1", make(1, uniform)});
  spec.laws.push_back({"uniform_n1025", make(1025, uniform)});
  spec.laws.push_back({"logarithm_n12", make(12, logarithm)});
  spec.laws.push_back({"inverse_softplus_n65", make(65, softplus)});
  spec.laws.push_back({"normal_n63", make(63, normal)});
  spec.laws.push_back({"normal_n10000", make(10000, normal)});  // 27 of them are drawn again
  spec.bench.push_back({"normal_n1M", make(1 << 20, normal)});
  suite.Add(std::move(spec));
}

}  // namespace weft
