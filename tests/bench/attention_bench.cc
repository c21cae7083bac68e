// links: weft_kernels
// Causal attention on a GPU in bf16, q, k and v slices of one tensor: the median of 30 replays of a
// CUDA graph. tests/bench/peers/attention_pytorch.py compares with PyTorch.

#ifdef WEFT_CUDA

#include <benchmark/benchmark.h>

#include <cmath>
#include <sstream>

#include "kernels/attention/attention.h"
#include "kernels/base/arena.h"
#include "tests/bench/gpu_bench.h"

namespace weft {
namespace {

void Attention(benchmark::State& state, int64_t B, int64_t T, int64_t H, int64_t D, bool backward,
               bool deterministic) {
  Arena arena(Arena::Mode::kPlain, 9 * 2 * B * T * H * D, Memory::kDevice);
  Stream any(std::in_place_type<CudaStream>, 0);
  auto& stream = std::get<CudaStream>(any);
  stream.deterministic = deterministic;
  const auto head = [&](const TensorView& all, int i) {
    return all.Slice(2, i * H * D, H * D).Split(2, H, D);
  };
  const TensorView qkv = FillNormal(stream, arena.Alloc(DType::kBF16, {B, T, 3 * H * D}, "qkv"));
  const TensorView dqkv = arena.Alloc(DType::kBF16, {B, T, 3 * H * D}, "dqkv");
  AttentionBwd bwd;
  AttentionFwd& fwd = bwd.fwd;
  fwd.scale = 1 / std::sqrt(static_cast<double>(D));
  fwd.q = head(qkv, 0), fwd.k = head(qkv, 1), fwd.v = head(qkv, 2);
  fwd.y = arena.Alloc(DType::kBF16, {B, T, H, D}, "y");
  fwd.lse = arena.Alloc(DType::kF32, {B, H, T}, "lse");
  bwd.dy = FillNormal(stream, arena.Alloc(DType::kBF16, {B, T, H, D}, "dy"));
  bwd.dq = head(dqkv, 0), bwd.dk = head(dqkv, 1), bwd.dv = head(dqkv, 2);
  bwd.dq.accumulate = bwd.dk.accumulate = bwd.dv.accumulate = false;

  const auto run = [&] {
    Launch(any, fwd);
    if (backward) Launch(any, bwd);
  };
  for (auto _ : state) state.SetIterationTime(1e-3 * Milliseconds(stream, run));
  const double flops = fwd.Flops() + (backward ? bwd.Flops() : 0);
  state.counters["TFLOP/s"] =
      benchmark::Counter(1e-12 * flops, benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  constexpr int64_t kShapes[][4] = {
      {16, 2048, 6, 128}, {4, 4096, 16, 128}, {32, 1024, 4, 64}, {8, 8192, 16, 128}, {4, 8192, 16, 64}};
  const auto add = [&](const char* direction, bool backward, bool deterministic) {
    for (const auto& [B, T, H, D] : kShapes) {
      std::ostringstream name;
      name << "B" << B << "_T" << T << "_H" << H << "_D" << D << "/" << direction;
      benchmark::RegisterBenchmark(name.str().c_str(),
                                   [=, B = B, T = T, H = H, D = D](benchmark::State& state) {
                                     Attention(state, B, T, H, D, backward, deterministic);
                                   })
          ->UseManualTime()
          ->Iterations(1)
          ->Unit(benchmark::kMillisecond);
    }
  };
  add("fwd", false, true);
#ifdef WEFT_CUDNN
  add("cudnn_fwd", false, false);
#endif
  add("fwd_bwd", true, true);
#ifdef WEFT_CUDNN
  add("cudnn_fwd_bwd", true, false);
#endif
  return true;
}();

}  // namespace
}  // namespace weft

#endif
