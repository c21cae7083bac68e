// links: weft_op_specs
// The matmul op against oneDNN alone: the same products on the same number of threads, in short
// rounds that take turns so that both see the same machine. "ours" and "onednn" are GFLOP/s of
// the fastest call; "ratio" is ours / onednn.

#include <benchmark/benchmark.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

enum class Products { kForward, kGradients };  // y; dx and dw

struct Shape {
  int rows, N, K;
};

// Idle OpenMP threads spin for a while and would take the cores from us.
constexpr auto kOpenMpSpins = std::chrono::milliseconds(40);

// Seconds of the fastest of some calls in a row; the first one wakes the threads.
double Fastest(const std::function<void()>& f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  for (int calls = 0; calls < 3 || total < 0.01; ++calls) {
    const auto start = Clock::now();
    f();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

void Compare(benchmark::State& state, Shape shape, Products products) {
  const auto [rows, N, K] = shape;
  const int threads = static_cast<int>(state.range(0));
  const auto memory = [](int n, int m) {
    return std::vector<float>(static_cast<size_t>(n) * m, 0.5f);
  };
  const auto view = [](std::vector<float>& v, int n, int m) {
    return TensorView(v.data(), DType::kF32, {n, m});
  };
  auto x = memory(rows, K), w = memory(N, K), y = memory(rows, N), dx = x, dw = w, dy = y;
  const MatmulFwd fwd{.x = view(x, rows, K), .w = view(w, N, K), .y = view(y, rows, N)};
  MatmulBwd bwd{.fwd = fwd, .dy = view(dy, rows, N), .dx = view(dx, rows, K), .dw = view(dw, N, K)};
  bwd.dx.accumulate = bwd.dw.accumulate = false;
  const bool forward = products == Products::kForward;

  CpuStream stream(threads);
  const auto ours = [&] { forward ? Run(stream, fwd) : Run(stream, bwd); };
  const auto onednn = [&] {
    const auto gemm = [](char ta, char tb, int m, int n, int k, const auto& a, int lda,
                         const auto& b, int ldb, auto& c, int ldc) {
      dnnl_sgemm(ta, tb, m, n, k, 1, a.data(), lda, b.data(), ldb, 0, c.data(), ldc);
    };
    if (forward) {
      gemm('N', 'T', rows, N, K, x, K, w, K, y, N);
    } else {
      gemm('N', 'N', rows, K, N, dy, N, w, K, dx, K);
      gemm('T', 'N', N, K, rows, dy, N, x, K, dw, K);
    }
  };

  double best_ours = 1e9, best_onednn = 1e9;
  for (auto _ : state) {
    const double seconds = Fastest(ours);
    state.SetIterationTime(seconds);
    best_ours = std::min(best_ours, seconds);
    omp_set_num_threads(threads);
    best_onednn = std::min(best_onednn, Fastest(onednn));
    omp_set_num_threads(1);
    if (threads > 1) std::this_thread::sleep_for(kOpenMpSpins);
  }
  const double flops = forward ? fwd.Flops() : bwd.Flops();
  state.counters["ours"] = flops / best_ours * 1e-9;
  state.counters["onednn"] = flops / best_onednn * 1e-9;
  state.counters["ratio"] = best_onednn / best_ours;
}

const bool kRegistered = [] {
  const int all_threads = CpuStream(0).threads();
  for (const Shape s : {Shape{4096, 128, 128},
                        {4096, 384, 128},
                        {4096, 1024, 128},
                        {4096, 128, 512},
                        {8192, 256, 256},
                        {8192, 768, 256},
                        {8192, 2048, 256},
                        {8192, 256, 1024}}) {
    for (const Products p : {Products::kForward, Products::kGradients}) {
      const std::string name =
          Cat(s.rows, "x", s.N, "x", s.K, p == Products::kForward ? "/forward" : "/gradients");
      auto* entry = benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { Compare(state, s, p); });
      entry->ArgName("threads")->UseManualTime()->Unit(benchmark::kMicrosecond)->Arg(1);
      if (all_threads > 1) entry->Arg(all_threads);
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft
