// links: weft_train
// Memory of a GPU: it is as planned, and where there is too little of it, the error says what fits.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "experiments/train/trainer.h"
#include "kernels/matmul/matmul.h"
#include "tests/errors.h"

#ifdef WEFT_CUDA

namespace weft {
namespace {

std::unique_ptr<Experiment> Make(std::vector<std::string> settings) {
  for (const char* s : {"model.d_model=512", "train.length=1024", "mixer.gated_delta.heads=4",
                        "mixer.gated_delta.key_dim=64", "mixer.gated_delta.value_dim=128"}) {
    settings.push_back(s);
  }
  return Experiment::Load("", settings);
}

// Plans, makes and uses a trainer.
void Train(const Experiment& e) {
  const Device device = ChooseDevice(e);
  const auto stream = OpenStream(device, 1);
  Trainer trainer(e, device, *stream);
  for (int step = 0; step < 2; ++step) trainer.Step();
  trainer.Evaluate();
  const double planned = static_cast<double>(PlanRun(e, device).memory_bytes);
  EXPECT_NEAR(static_cast<double>(trainer.allocated_bytes()), planned, 0.05 * planned);
}

// One at a time, also where each has a process of its own.
class GpuMemory : public testing::Test {
 protected:
  GpuMemory() : file_(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) { flock(file_, LOCK_EX); }
  ~GpuMemory() override { close(file_); }

 private:
  int file_;
};
using GpuFullMemory = GpuMemory;  // little or nothing is left for others

constexpr int64_t kMiB = 1 << 20;

// Whether `action` succeeds with so many bytes left to it; the only error that it may end with says
// that it is too little.
template <class Action>
bool Fits(int64_t left, const Action& action) {
  const Arena others(Arena::Mode::kPlain, CudaMemory().free - left, Memory::kDevice);
  try {
    action();
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfMemory) << left << " bytes left: " << error.what();
    EXPECT_HAS(std::string(error.what()), "out of memory");
    return false;
  }
}

// Beside what is planned, CUDA and its libraries take some for handles and kernels when these are
// first used, so these laws come first.
TEST_F(GpuFullMemory, ALibraryThatFindsTooLittleIsNamed) {
  const Stream device(std::in_place_type<CudaStream>, 0);
  const Arena others(Arena::Mode::kPlain, CudaMemory().free - 256 * kMiB, Memory::kDevice);
  Arena arena(Arena::Mode::kPlain, kMiB, Memory::kDevice);
  const MatmulFwd product{.x = arena.Alloc(DType::kBF16, {1, 64, 64}, "x"),
                          .w = arena.Alloc(DType::kBF16, {64, 64}, "w"),
                          .y = arena.Alloc(DType::kBF16, {1, 64, 64}, "y")};
  bool fits = false;
  for (const int64_t left : {2, 4, 8, 16, 24, 32, 48, 64, 128}) {
    fits = Fits(left * kMiB, [&] {
      Stream stream(std::in_place_type<CudaStream>, 0);
      Launch(stream, product);
      std::get<CudaStream>(stream).Synchronize();
    });
  }
  EXPECT_TRUE(fits);
}

TEST_F(GpuFullMemory, ARunThatFindsTooLittleIsNamed) {
  const Stream device(std::in_place_type<CudaStream>, 0);
  const auto e = Make({"data.random=256", "train.batch=2"});
  const int64_t planned = PlanRun(*e, ChooseDevice(*e)).memory_bytes;
  const Arena others(Arena::Mode::kPlain, CudaMemory().free - planned - 256 * kMiB,
                     Memory::kDevice);
  for (const int64_t beside : {-256, -64, -32, -16, -8, -4, 0, 4, 8, 16, 32, 64}) {
    Fits(planned + beside * kMiB, [&] { Train(*e); });
  }
}

TEST_F(GpuMemory, IsAsPlanned) {
  Train(*Make({"data.random=50304", "train.batch=16", "model.pattern=gated_delta,attention"}));
  Train(*Make({"data.random=256", "train.batch=16", "train.precision=f32",
               "model.pattern=attention,gated_delta"}));
  Train(*Make({"data.random=256", "train.batch=16", "train.recompute=block"}));
  // Evaluation needs more than training.
  Train(*Make({"task.name=recall", "task.max_difficulty=1024", "task.difficulties=4",
               "task.stage_steps=0", "eval.difficulties=1024", "eval.samples=4", "train.batch=2"}));
}

TEST_F(GpuMemory, ARunThatIsTooLargeNamesOneThatFits) {
  const auto e = Make({"data.random=256", "train.batch=65536"});
  const std::string error = ErrorOf(ExitCode::kOutOfMemory, [&] { Train(*e); });
  EXPECT_HAS(error, "out of memory: the run needs ");
  EXPECT_HAS(error, "; train.accumulate=");
  EXPECT_HAS(error, " fits with ");
}

TEST_F(GpuFullMemory, WhatOthersHoldIsNotPlannedWith) {
  const int64_t free = CudaMemory().free;
  int64_t batch = 16;
  const auto planned = [&] {
    const auto e = Make({"data.random=256", Cat("train.batch=", batch)});
    return PlanRun(*e, ChooseDevice(*e)).memory_bytes;
  };
  while (planned() < free / 2) batch *= 2;
  const Arena others(Arena::Mode::kPlain, free / 2, Memory::kDevice);
  const std::string batch_key = Cat("train.batch=", batch);
  const std::string error = ErrorOf(ExitCode::kOutOfMemory, [&] {
    Train(*Make({"data.random=256", batch_key}));
  });
  const size_t advice = error.find("train.accumulate=");
  ASSERT_NE(advice, error.npos) << error;
  Train(*Make(
      {"data.random=256", batch_key, error.substr(advice, error.find(' ', advice) - advice)}));
}

TEST_F(GpuMemory, AnAllocationThatFailsLeavesTheRest) {
  const Stream stream(std::in_place_type<CudaStream>, 0);
  const std::string error = ErrorOf(ExitCode::kOutOfMemory, [] {
    const Arena all(Arena::Mode::kPlain, CudaMemory().total, Memory::kDevice);
  });
  EXPECT_HAS(error, "MiB are free on the device; raise train.accumulate");
  const Arena some(Arena::Mode::kPlain, 1 << 20, Memory::kDevice);
}

}  // namespace
}  // namespace weft

#endif
