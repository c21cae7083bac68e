// links: weft_kernels
// Causal attention on a GPU in bf16, q, k and v slices of one tensor: the median of 30 replays of a
// CUDA graph. tests/bench/peers/attention_pytorch.py compares with PyTorch.

#ifdef WEFT_CUDA

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/arena.h"
#include "kernels/base/op_spec.h"

namespace weft {
namespace {

void Attention(benchmark::State& state, int64_t B, int64_t T, int64_t H, int64_t D, bool backward) {
  Arena arena(Arena::Mode::kPlain, 9 * 2 * B * T * H * D, Memory::kDevice);
  Stream any(std::in_place_type<CudaStream>, 0);
  auto& stream = std::get<CudaStream>(any);
  const auto head = [&](const TensorView& all, int i) {
    return all.Slice(2, i * H * D, H * D).Split(2, H, D);
  };
  const auto normal = [&](const TensorView& view) {
    std::vector<uint16_t> values(static_cast<size_t>(view.size()));
    Rng rng(1, Purpose::kTest, 0);
    constexpr size_t kPeriod = 1 << 20;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = i < kPeriod ? ToBF16(static_cast<float>(rng.Normal())) : values[i - kPeriod];
    }
    stream.Copy(view.data(), values.data(), view.bytes());
    stream.Synchronize();
    return view;
  };
  const TensorView qkv = normal(arena.Alloc(DType::kBF16, {B, T, 3 * H * D}, "qkv"));
  const TensorView dqkv = arena.Alloc(DType::kBF16, {B, T, 3 * H * D}, "dqkv");
  AttentionBwd bwd;
  AttentionFwd& fwd = bwd.fwd;
  fwd.scale = 1 / std::sqrt(static_cast<double>(D));
  fwd.q = head(qkv, 0), fwd.k = head(qkv, 1), fwd.v = head(qkv, 2);
  fwd.y = arena.Alloc(DType::kBF16, {B, T, H, D}, "y");
  fwd.lse = arena.Alloc(DType::kF32, {B, H, T}, "lse");
  bwd.dy = normal(arena.Alloc(DType::kBF16, {B, T, H, D}, "dy"));
  bwd.dq = head(dqkv, 0), bwd.dk = head(dqkv, 1), bwd.dv = head(dqkv, 2);
  bwd.dq.accumulate = bwd.dk.accumulate = bwd.dv.accumulate = false;

  const auto run = [&] {
    Launch(any, fwd);
    if (backward) Launch(any, bwd);
  };
  run();
  const auto graph = stream.Capture(run);
  CudaEvent start, end;
  for (auto _ : state) {
    std::vector<double> ms;
    for (int i = 0; i < 33; ++i) {
      start.Record(stream);
      stream.Replay(*graph);
      end.Record(stream);
      end.Wait();
      if (i >= 3) ms.push_back(end.MillisecondsSince(start));
    }
    std::nth_element(ms.begin(), ms.begin() + 15, ms.end());
    state.SetIterationTime(1e-3 * ms[15]);
  }
  const double flops = fwd.Flops() + (backward ? bwd.Flops() : 0);
  state.counters["TFLOP/s"] =
      benchmark::Counter(1e-12 * flops, benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  constexpr int64_t kShapes[][4] = {
      {16, 2048, 6, 128}, {4, 4096, 16, 128}, {32, 1024, 4, 64}, {8, 8192, 16, 128}};
  for (const auto& [B, T, H, D] : kShapes) {
    for (const bool backward : {false, true}) {
      const std::string name = "B" + std::to_string(B) + "_T" + std::to_string(T) + "_H" +
                               std::to_string(H) + "_D" + std::to_string(D) +
                               (backward ? "/fwd_bwd" : "/fwd");
      benchmark::RegisterBenchmark(name.c_str(),
                                   [=, B = B, T = T, H = H, D = D](benchmark::State& state) {
                                     Attention(state, B, T, H, D, backward);
                                   })
          ->UseManualTime()
          ->Iterations(1)
          ->Unit(benchmark::kMillisecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft

#endif
