// links: weft_kernels
// The gated delta rule on a GPU in bf16, with the L2 norm of q and k as a pass of its own or
// without: the median of 30 replays of a CUDA graph. tests/bench/peers/gated_delta_fla.py compares.

#ifdef WEFT_CUDA

#include <benchmark/benchmark.h>

#include <cmath>
#include <sstream>

#include "kernels/base/arena.h"
#include "kernels/gated_delta/gated_delta.h"
#include "kernels/short_conv/short_conv.h"
#include "tests/bench/gpu_bench.h"

namespace weft {
namespace {

struct Shape {
  int64_t B, T, H, K, V;
};

void GatedDelta(benchmark::State& state, Shape s, bool normalise, bool backward) {
  const auto [B, T, H, K, V] = s;
  const int64_t tokens = B * T * H;
  Arena arena(Arena::Mode::kPlain,
              2 * tokens * (8 * K + 4 * V + 16) + 3 * tokens * K * V / 64 + 8192, Memory::kDevice);
  Stream any(std::in_place_type<CudaStream>, 0);
  auto& stream = std::get<CudaStream>(any);
  const auto make = [&](const char* name, std::initializer_list<int64_t> shape,
                        DType dtype = DType::kBF16) { return arena.Alloc(dtype, shape, name); };
  const auto overwritten = [](const TensorView& view) {
    Grad grad = view;
    grad.accumulate = false;
    return grad;
  };

  // q and k as a projection has them, and their rows divided by their lengths.
  ShortConvBwd norm;
  norm.fwd.silu = false, norm.fwd.norm_channels = 2 * H * K, norm.fwd.norm_group = K;
  norm.fwd.x = FillNormal(stream, make("x", {B, T, 2 * H * K}));
  norm.fwd.w = FillNormal(stream, make("w", {2 * H * K, 1}), [](double) { return 1.0; });
  norm.fwd.y = make("qk", {B, T, 2 * H * K});
  norm.fwd.rstd = make("rstd", {B, T, 2 * H}, DType::kF32);
  norm.dy = make("dqk", {B, T, 2 * H * K});
  norm.dx = overwritten(make("dx", {B, T, 2 * H * K}));
  norm.dw = overwritten(make("dw", {2 * H * K, 1}, DType::kF32));

  const auto head = [&](const TensorView& qk, int i) {
    return qk.Slice(2, i * H * K, H * K).Split(2, H, K);
  };
  GatedDeltaBwd rule;
  GatedDeltaFwd& fwd = rule.fwd;
  fwd.scale = 1 / std::sqrt(static_cast<double>(K));
  fwd.q = head(norm.fwd.y, 0), fwd.k = head(norm.fwd.y, 1);
  fwd.v = FillNormal(stream, make("v", {B, T, H, V}));
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  fwd.beta = FillNormal(stream, make("beta", {B, T, H}, DType::kF32),
                        [&](double x) { return 2 * sigmoid(x); });
  fwd.log_a = FillNormal(stream, make("log_a", {B, T, H}, DType::kF32),
                         [&](double x) { return std::log(sigmoid(x + 4)); });
  fwd.y = make("y", {B, T, H, V});
  if (backward) fwd.states = make("states", {B, GatedDeltaChunks(T), H, K * V});
  rule.dy = FillNormal(stream, make("dy", {B, T, H, V}));
  rule.dq = overwritten(head(norm.dy, 0)), rule.dk = overwritten(head(norm.dy, 1));
  rule.dv = overwritten(make("dv", {B, T, H, V}));
  rule.dbeta = overwritten(make("dbeta", {B, T, H}, DType::kF32));
  rule.dlog_a = overwritten(make("dlog_a", {B, T, H}, DType::kF32));

  Launch(any, norm.fwd);
  const double ms = Milliseconds(stream, [&] {
    if (normalise) Launch(any, norm.fwd);
    Launch(any, fwd);
    if (backward) Launch(any, rule);
    if (backward && normalise) Launch(any, norm);
  });
  for (auto _ : state) state.SetIterationTime(1e-3 * ms);
  state.counters["TFLOP/s"] =
      benchmark::Counter(1e-12 * (fwd.Flops() + (backward ? rule.Flops() : 0)),
                         benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  for (const Shape& s : {Shape{8, 8192, 30, 96, 192}, Shape{8, 8192, 16, 128, 128},
                         Shape{1, 65536, 16, 128, 128}, Shape{16, 4096, 16, 128, 128}}) {
    for (const bool normalise : {false, true}) {
      for (const bool backward : {false, true}) {
        std::ostringstream name;
        name << "B" << s.B << "_T" << s.T << "_H" << s.H << "_K" << s.K << "_V" << s.V
             << (backward ? "/fwd_bwd" : "/fwd") << (normalise ? "_norm" : "");
        benchmark::RegisterBenchmark(
            name.str().c_str(),
            [=](benchmark::State& state) { GatedDelta(state, s, normalise, backward); })
            ->UseManualTime()
            ->Iterations(1)
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft

#endif
