// links: weft_kernels
// Laws of streams on a GPU that no op has.

#include "kernels/base/cuda_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/stream.h"
#include "kernels/matmul/matmul.h"
#include "kernels/random_fill/random_fill.h"

namespace weft {
namespace {

#ifdef WEFT_CUDA

constexpr int64_t kRows = 192, kMatrix = kRows * kRows * 4;  // bytes

// Products in a row, each of the one before with the same matrix.
class Products {
 public:
  Products() : stream_(std::in_place_type<CudaStream>, 0) {
    for (TensorView* tensor : {&x_, &w_, &y_})
      *tensor = arena_.Alloc(DType::kF32, {kRows, kRows}, "matrix");
    const RandomValues values{.distribution = Distribution::kNormal, .sigma = 0.1, .seed = 1};
    Launch(stream_, RandomFill{.y = x_.Reshape({x_.size()}), .values = values});
    Launch(stream_, RandomFill{.y = w_.Reshape({w_.size()}), .values = values});
  }
  void Run() {
    for (int i = 0; i < 20; ++i) Launch(stream_, MatmulFwd{i % 2 ? y_ : x_, w_, i % 2 ? x_ : y_});
  }
  CudaStream& stream() { return std::get<CudaStream>(stream_); }
  std::vector<std::byte> Bits() {
    std::vector<std::byte> bits(static_cast<size_t>(kMatrix));
    stream().Copy(bits.data(), x_.data(), kMatrix);
    stream().Synchronize();
    return bits;
  }

 private:
  Stream stream_;
  Arena arena_{Arena::Mode::kPlain, 3 * (kMatrix + 256), Memory::kDevice};
  TensorView x_, w_, y_;
};

// The end of cuBLASLt's handle synchronises the device, which breaks captures in other threads.
TEST(GpuStream, CapturesHoldWhileOtherThreadsBeginAndEnd) {
  std::atomic<bool> stop = false;
  std::atomic<int> ended = 0;
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      for (; !stop; ++ended) {
        Products other;
        other.Run();
        other.Bits();
      }
    });
  }
  Products twice, captured;
  twice.Run();
  captured.Run();
  int failed = 0;
  for (int i = 0; i < 2000 || (ended < 30 && i < 100000); ++i) {
    try {
      const auto graph = captured.stream().Capture([&] { captured.Run(); });
      if (i == 0) captured.stream().Replay(*graph), captured.stream().Synchronize();
    } catch (const std::exception& error) {
      if (++failed == 1) ADD_FAILURE() << error.what();
    }
  }
  stop = true;
  for (std::thread& other : others) other.join();
  EXPECT_EQ(failed, 0);
  EXPECT_GT(ended, 0);
  twice.Run();
  EXPECT_EQ(captured.Bits(), twice.Bits());
}

#endif

}  // namespace
}  // namespace weft
