// links: weft_op_specs
// The GPU against the CPU over every op at its bench cases, which are large enough that kernels
// walk over many tiles: more than the complex step of the op laws can pay for.

#include <gtest/gtest.h>

#include "kernels/base/op_spec.h"

#ifdef WEFT_CUDA

namespace weft {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 30;

struct Instance {
  Instance(const OpEntry::Case& c, DType dtype, bool bf16_values)
      : arena(Arena::Mode::kPlain, kArenaBytes), maker(arena, dtype, 0, bf16_values) {
    op = c.make(maker);
    if (op.has_backward) op.bwd.set_accumulate(false);
  }
  void RunOnCpu(Stream& stream) {
    op.fwd.launch(stream, 0);
    if (op.has_backward) op.bwd.launch(stream, 0);
  }
  void RunOnGpu(Stream& stream) {
    auto& cuda = std::get<CudaStream>(stream);
    Arena device(Arena::Mode::kPlain, arena.used(), Memory::kDevice);
    cuda.Copy(device.base(), arena.base(), arena.used());
    op.fwd.launch(stream, device.base() - arena.base());
    if (op.has_backward) op.bwd.launch(stream, device.base() - arena.base());
    cuda.Copy(arena.base(), device.base(), arena.used());
    cuda.Synchronize();
  }
  // What is saved for the backward is each backend's own.
  std::vector<OpTensor> Results() const {
    std::vector<OpTensor> results;
    for (const auto* tensors : {&op.fwd.tensors, &op.bwd.tensors}) {
      for (const OpTensor& t : *tensors) {
        using enum OpTensor::Role;
        if (t.role != kIn && t.role != kUpstream && t.role != kSaved) results.push_back(t);
      }
    }
    return results;
  }
  Arena arena;
  CaseMaker maker;
  OpInstance op;
};

double At(const TensorView& view, int64_t i) {
  return view.dtype() == DType::kBF16 ? FromBF16(view.Data<uint16_t>()[i]) : view.Data<float>()[i];
}

class GpuAgreement : public testing::Test {
 public:
  GpuAgreement(const OpEntry* entry, const OpEntry::Case* c) : entry_(entry), case_(c) {}
  void TestBody() override {
    Stream cpu(std::in_place_type<CpuStream>, 0), gpu(std::in_place_type<CudaStream>, 0);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const bool bf16 = dtype == DType::kBF16;
      SCOPED_TRACE(NameOf(dtype));
      Instance expected(*case_, DType::kF32, bf16), found(*case_, dtype, bf16);
      // Without a backward it is work on parameters, which are f32 in both cases.
      if (bf16 && !expected.op.has_backward) break;
      expected.RunOnCpu(cpu);
      found.RunOnGpu(gpu);
      const auto ours = found.Results(), theirs = expected.Results();
      ASSERT_EQ(ours.size(), theirs.size());
      for (size_t t = 0; t < ours.size(); ++t) {
        if (ours[t].view.dtype() == DType::kI32) continue;
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < ours[t].view.size(); ++i) {
          const double a = At(ours[t].view, i), b = At(theirs[t].view, i);
          difference += (a - b) * (a - b);
          norm += b * b;
        }
        const double error = std::sqrt(difference / norm);
        EXPECT_LE(error, bf16 ? entry_->tolerance * 0x1p-8 : 2e-5) << ours[t].name;
        EXPECT_GT(norm, 0) << ours[t].name;
      }
    }
  }

 private:
  const OpEntry* entry_;
  const OpEntry::Case* case_;
};

const bool kRegistered = [] {
  auto* suite = new OpSuite;  // kept: the tests point into it
  AddAllOps(*suite);
  for (const OpEntry& entry : suite->entries()) {
    for (const auto& c : entry.bench) {
      testing::RegisterTest(
          ("GpuAgreement_" + entry.name).c_str(), c.label.c_str(), nullptr, nullptr, __FILE__,
          __LINE__, [&entry, &c]() -> GpuAgreement* { return new GpuAgreement(&entry, &c); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft

#endif
