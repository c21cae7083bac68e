// links: weft_kernels
// The gated delta rule on a GPU in bf16, its gates from projections as in a layer: alone, with the L2
// norm of q and k as a pass of its own (_norm), and with what this norm adds to the convolution
// before (_conv_norm): medians of 30 replays of a CUDA graph. tests/bench/peers/gated_delta_fla.py
// compares; the public kernel is given log_a and beta.

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

// Where the L2 norm of q and k is: nowhere, in a pass of its own, or in the convolution that makes
// q, k and v, as in a layer. Of the last only what it adds to the convolution's time counts.
enum class Norm { kNone, kPass, kInConvolution };

void GatedDelta(benchmark::State& state, Shape s, Norm norm, bool backward) {
  const auto [B, T, H, K, V] = s;
  const int64_t tokens = B * T, C = H * (2 * K + V);
  Arena arena(Arena::Mode::kPlain,
              2 * tokens * (4 * C + 2 * H * V + 16 * H) + 3 * tokens * H * K * V / 64 + (1 << 20),
              Memory::kDevice);
  Stream any(std::in_place_type<CudaStream>, 0);
  auto& stream = std::get<CudaStream>(any);
  const auto make = [&](const char* name, std::initializer_list<int64_t> shape,
                        DType dtype = DType::kBF16) { return arena.Alloc(dtype, shape, name); };
  const auto overwritten = [](const TensorView& view) {
    Grad grad = view;
    grad.accumulate = false;
    return grad;
  };

  // [q | k | v] before and after the convolution.
  ShortConvBwd conv;
  conv.fwd.x = FillNormal(stream, make("x", {B, T, C}));
  conv.fwd.w = FillNormal(stream, make("w", {C, 4}));
  conv.fwd.y = FillNormal(stream, make("qkv", {B, T, C}));
  conv.dy = FillNormal(stream, make("dqkv", {B, T, C}));
  conv.dx = overwritten(make("dx", {B, T, C}));
  conv.dw = overwritten(make("dw", {C, 4}, DType::kF32));
  ShortConvBwd conv_norm = conv;
  conv_norm.fwd.norm_channels = 2 * H * K, conv_norm.fwd.norm_group = K;
  conv_norm.fwd.rstd = make("rstd", {B, T, 2 * H}, DType::kF32);
  // Only the rows' division by their lengths.
  ShortConvBwd pass = conv_norm;
  pass.fwd.silu = false;
  for (TensorView* x : {&pass.fwd.x, &pass.fwd.y, &pass.dy}) *x = x->Slice(2, 0, 2 * H * K);
  pass.dx = overwritten(conv.dx.Slice(2, 0, 2 * H * K));
  pass.fwd.w = FillNormal(stream, make("ones", {2 * H * K, 1}), [](double) { return 1.0; });
  pass.dw = overwritten(make("dones", {2 * H * K, 1}, DType::kF32));

  const auto part = [&](const TensorView& qkv, int64_t from, int64_t width) {
    return qkv.Slice(2, H * from, H * width).Split(2, H, width);
  };
  GatedDeltaBwd rule;
  GatedDeltaFwd& fwd = rule.fwd;
  fwd.scale = 1 / std::sqrt(static_cast<double>(K));
  fwd.q = part(conv.fwd.y, 0, K), fwd.k = part(conv.fwd.y, K, K);
  fwd.v = part(conv.fwd.y, 2 * K, V);
  fwd.gate_a = FillNormal(stream, make("gate_a", {B, T, H}));
  fwd.gate_b = FillNormal(stream, make("gate_b", {B, T, H}));
  fwd.a_log = FillNormal(stream, make("a_log", {H}, DType::kF32), [](double) { return 0.0; });
  fwd.dt_bias = FillNormal(stream, make("dt_bias", {H}, DType::kF32), [](double) { return -4.0; });
  fwd.beta_scale = 2;
  fwd.y = make("y", {B, T, H, V});
  if (backward) fwd.states = make("states", {B, GatedDeltaChunks(T), H, K * V});
  rule.dy = FillNormal(stream, make("dy", {B, T, H, V}));
  rule.dq = overwritten(part(conv.dy, 0, K)), rule.dk = overwritten(part(conv.dy, K, K));
  rule.dv = overwritten(part(conv.dy, 2 * K, V));
  rule.dgate_a = overwritten(make("dgate_a", {B, T, H}));
  rule.dgate_b = overwritten(make("dgate_b", {B, T, H}));
  rule.da_log = overwritten(make("da_log", {H}, DType::kF32));
  rule.ddt_bias = overwritten(make("ddt_bias", {H}, DType::kF32));

  const auto run = [&](const auto& op) {
    Launch(any, op.fwd);
    if (backward) Launch(any, op);
  };
  double ms = 0;
  if (norm == Norm::kInConvolution) {
    const double without = Milliseconds(stream, [&] { run(conv); });
    const double with = Milliseconds(stream, [&] { run(conv_norm); });
    ms = with - without;
    state.counters["conv_ms"] = without;
    state.counters["norm_ms"] = ms;
  }
  Launch(any, pass.fwd);
  ms += Milliseconds(stream, [&] {
    if (norm == Norm::kPass) Launch(any, pass.fwd);
    run(rule);
    if (norm == Norm::kPass && backward) Launch(any, pass);
  });
  for (auto _ : state) state.SetIterationTime(1e-3 * ms);
  state.counters["TFLOP/s"] =
      benchmark::Counter(1e-12 * (fwd.Flops() + (backward ? rule.Flops() : 0)),
                         benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  for (const Shape& s : {Shape{8, 8192, 30, 96, 192}, Shape{8, 8192, 16, 128, 128},
                         Shape{1, 65536, 16, 128, 128}, Shape{16, 4096, 16, 128, 128}}) {
    for (const auto& [norm, suffix] : {std::pair{Norm::kNone, ""},
                                       {Norm::kPass, "_norm"},
                                       {Norm::kInConvolution, "_conv_norm"}}) {
      for (const bool backward : {false, true}) {
        std::ostringstream name;
        name << "B" << s.B << "_T" << s.T << "_H" << s.H << "_K" << s.K << "_V" << s.V
             << (backward ? "/fwd_bwd" : "/fwd") << suffix;
        benchmark::RegisterBenchmark(
            name.str().c_str(),
            [=, norm = norm](benchmark::State& state) { GatedDelta(state, s, norm, backward); })
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
