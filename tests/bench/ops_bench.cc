// links: weft_op_specs
// Every op at its bench cases, forward and backward, in float, on one thread and on all.
//
// The row "machine" is what the roofline is taken from: GB/s of a copy that no cache holds, and
// GFLOP/s of sgemm. "roofline" is max(flops / peak, bytes / bandwidth) over the time taken: 1 is
// the best that memory and arithmetic allow. A case that fits in the caches can exceed it; one that
// is bound by exp or division cannot reach it.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/base/op_spec.h"
#include "kernels/matmul/gemm.h"

namespace weft {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 31;  // touched only as far as a case needs

double BestSeconds(int repeats, const std::function<void()>& f) {
  double best = 1e9;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

struct Machine {
  double bytes_per_second, flops_per_second;
};

const Machine& Measured(int threads) {
  static std::map<int, Machine> machines;
  const auto [it, is_new] = machines.try_emplace(threads);
  if (!is_new) return it->second;
  CpuStream stream(threads);
  constexpr int64_t kFloats = 64 << 20, kPiece = 1 << 18, kSide = 768;
  std::vector<float> from(kFloats, 1), to(kFloats, 1);
  const double copy = BestSeconds(5, [&] {
    stream.ParallelRanges(kFloats, kPiece, [&](int64_t begin, int64_t end, Worker&) {
      std::memcpy(to.data() + begin, from.data() + begin,
                  static_cast<size_t>(end - begin) * sizeof(float));
    });
  });
  const double product = BestSeconds(10, [&] {
    stream.ParallelFor(threads, [&](int64_t i, Worker&) {
      Gemm<float>(false, false, kSide, kSide, kSide, 1, from.data(), kSide, from.data(), kSide, 0,
                  to.data() + i * kSide * kSide, kSide);
    });
  });
  it->second = {2.0 * sizeof(float) * kFloats / copy,
                2.0 * threads * kSide * kSide * kSide / product};
  return it->second;
}

void RunCase(benchmark::State& state, const OpEntry::Case& c, bool backward) {
  const int threads = static_cast<int>(state.range(0));
  Arena arena(Arena::Mode::kPlain, kArenaBytes);
  CaseMaker maker(arena, DType::kF32, 0);
  OpInstance op = c.make(maker);
  Stream stream(std::in_place_type<CpuStream>, threads), plan(std::in_place_type<PlanStream>);
  op.fwd.launch(stream, 0);
  if (backward) op.bwd.set_accumulate(false);
  const AnyOp& timed = backward ? static_cast<const AnyOp&>(op.bwd) : op.fwd;
  for (auto _ : state) timed.launch(stream, 0);
  timed.launch(plan, 0);
  const auto& [flops, bytes] = std::get<PlanStream>(plan);
  const auto& [bandwidth, peak] = Measured(threads);
  const auto per_second = [](double value, double unit) {
    return benchmark::Counter(value / unit, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["GFLOP/s"] = per_second(flops, 1e9);
  state.counters["GB/s"] = per_second(bytes, 1e9);
  state.counters["roofline"] = per_second(std::max(flops / peak, bytes / bandwidth), 1);
}

void ReportMachine(benchmark::State& state) {
  const Machine& machine = Measured(static_cast<int>(state.range(0)));
  for (auto _ : state) continue;
  state.counters["GFLOP/s"] = machine.flops_per_second * 1e-9;
  state.counters["GB/s"] = machine.bytes_per_second * 1e-9;
}

const bool kRegistered = [] {
  auto* suite = new OpSuite;  // kept: the registered benchmarks point into it
  AddAllOps(*suite);
  const int all_threads = CpuStream(0).threads();
  const auto add = [&](const std::string& name, auto&& run) {
    auto* entry = benchmark::RegisterBenchmark(name.c_str(), run)
                      ->ArgName("threads")
                      ->UseRealTime()
                      ->Unit(benchmark::kMicrosecond);
    entry->Arg(1);
    if (all_threads > 1) entry->Arg(all_threads);
    return entry;
  };
  add("machine", ReportMachine)->Iterations(1);
  for (const OpEntry& entry : suite->entries()) {
    Arena arena(Arena::Mode::kPlain, kArenaBytes);
    CaseMaker maker(arena, DType::kF32, 0);
    const bool has_backward = entry.laws.front().make(maker).has_backward;
    for (const OpEntry::Case& c : entry.bench) {
      const std::string name = entry.name + "/" + c.label;
      add(name + "/forward", [&c](benchmark::State& state) { RunCase(state, c, false); });
      if (has_backward)
        add(name + "/backward", [&c](benchmark::State& state) { RunCase(state, c, true); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft
