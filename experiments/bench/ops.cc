#include "experiments/bench/ops.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>
#include <regex>

#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

// Calls on a GPU take turns over copies of their data, so many that what one reads has left the
// caches since.
constexpr int64_t kColdBytes = 256 << 20;
constexpr int kMaxCopies = 32;
constexpr int64_t kDistinct = 1 << 20;  // random numbers of one tensor; larger ones repeat them

double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Calls one after another for kBudgetMs, but at least kLeastCalls.
double MedianMs(CpuStream&, const std::function<void(int)>& call, int) {
  using Clock = std::chrono::steady_clock;
  using Ms = std::chrono::duration<double, std::milli>;
  constexpr double kBudgetMs = 200;
  constexpr size_t kLeastCalls = 3, kMostCalls = 1000;
  call(0);
  std::vector<double> ms;
  const auto begin = Clock::now();
  for (auto last = begin; ms.size() < kLeastCalls ||
                          (ms.size() < kMostCalls && Ms(last - begin).count() < kBudgetMs);) {
    call(0);
    const auto now = Clock::now();
    ms.push_back(Ms(now - last).count());
    last = now;
  }
  return Median(ms);
}

#ifdef WEFT_CUDA
double Milliseconds(CudaStream& stream, const std::function<void()>& body) {
  CudaEvent begin, end;
  begin.Record(stream);
  body();
  end.Record(stream);
  end.Wait();
  return end.MillisecondsSince(begin);
}

// Replays of a graph of many calls, as a training step runs them: launches cost the host nothing.
double MedianMs(CudaStream& stream, const std::function<void(int)>& call, int copies) {
  constexpr double kGraphMs = 2, kBudgetMs = 100;
  const auto all_copies = [&] {
    for (int i = 0; i < copies; ++i) call(i);
  };
  all_copies();
  const double estimate = Milliseconds(stream, all_copies) / copies;
  const int calls = std::clamp(static_cast<int>(kGraphMs / estimate), copies, 256);
  const auto graph = stream.Capture([&] {
    for (int i = 0; i < calls; ++i) call(i % copies);
  });
  const auto replay = [&] { return Milliseconds(stream, [&] { stream.Replay(*graph); }); };
  std::vector<double> ms(std::clamp<size_t>(static_cast<size_t>(kBudgetMs / replay()), 5, 50));
  for (double& m : ms) m = replay() / calls;
  return Median(ms);
}
#endif

double MedianMs(PlanStream&, const std::function<void(int)>&, int) {
  Fail(ExitCode::kFailure, "a plan takes no time");
}

double MedianMs(Stream& stream, const std::function<void(int)>& call, int copies) {
  return std::visit([&](auto& backend) { return MedianMs(backend, call, copies); }, stream);
}

// An instance of a case with its tensors, on a GPU in several copies.
class Instance {
 public:
  using Make = std::function<OpInstance(CaseMaker&)>;

  Instance(DType dtype, Stream& stream, const Make& make)
      : dtype_(dtype), stream_(stream), host_(HostArena(dtype, make)) {
    CaseMaker maker(host_, dtype, 0, false, kDistinct);
    op_ = make(maker);
    if (op_.has_backward) op_.bwd.set_accumulate(false);
#ifdef WEFT_CUDA
    if (auto* cuda = std::get_if<CudaStream>(&stream)) {
      const double bytes = Cost(op_.fwd).bytes;
      copies_ = static_cast<int>(std::clamp<double>(kColdBytes / bytes, 1, kMaxCopies));
      device_.emplace(Arena::Mode::kPlain, copies_ * host_.used(), Memory::kDevice);
      for (int i = 0; i < copies_; ++i)
        cuda->Copy(device_->base() + i * host_.used(), host_.base(), host_.used());
    }
#endif
  }

  bool has_backward() const { return op_.has_backward; }

  static PlanStream Cost(const AnyOp& op) {
    Stream plan(std::in_place_type<PlanStream>);
    op.launch(plan, 0);
    return std::get<PlanStream>(plan);
  }

  OpTime Time(bool backward) {
    const AnyOp& timed = backward ? op_.bwd : op_.fwd;
    if (backward) {
      for (int i = 0; i < copies_; ++i) op_.fwd.launch(stream_, Shift(i));
    }
    const PlanStream cost = Cost(timed);
    return {.backward = backward,
            .dtype = dtype_,
            .ms = MedianMs(
                stream_, [&](int i) { timed.launch(stream_, Shift(i)); }, copies_),
            .flops = cost.flops,
            .bytes = cost.bytes};
  }

 private:
  static Arena HostArena(DType dtype, const Make& make) {
    Arena plan(Arena::Mode::kPlan, 0);
    CaseMaker maker(plan, dtype, 0);
    make(maker);
    return Arena(Arena::Mode::kPlain, plan.used());
  }
  ptrdiff_t Shift(int copy) const {
    return device_ ? device_->base() - host_.base() + copy * host_.used() : 0;
  }

  DType dtype_;
  Stream& stream_;
  Arena host_;
  std::optional<Arena> device_;
  OpInstance op_;
  int copies_ = 1;
};

double MatmulFlopsPerSecond(const Device& device, Stream& stream) {
  const int64_t side = device.cuda ? 8192 : 1024;
  OpSpec<MatmulFwd> spec;
  spec.bench.push_back({"", [side](CaseMaker& make) {
                          MatmulFwd f;
                          f.x = make.In("x", {side, side});
                          f.w = make.In("w", {side, side});
                          f.y = make.Out("y", {side, side});
                          return f;
                        }});
  Instance instance(device.dtype, stream, std::move(spec).Entry().bench.front().make);
  const OpTime time = instance.Time(false);
  return time.flops / (time.ms * 1e-3);
}

double CopyBytesPerSecond(CpuStream& stream) {
  constexpr int64_t kPiece = 1 << 20, kPieces = 256;
  Arena from(Arena::Mode::kPlain, kPieces * kPiece), to(Arena::Mode::kPlain, kPieces * kPiece);
  std::memset(from.base(), 1, static_cast<size_t>(from.capacity()));
  const auto copy = [&](int) {
    stream.ParallelFor(kPieces, [&](int64_t i, Worker&) {
      std::memcpy(to.base() + i * kPiece, from.base() + i * kPiece, kPiece);
    });
  };
  return 2e3 * static_cast<double>(from.capacity()) / MedianMs(stream, copy, 1);
}

#ifdef WEFT_CUDA
// Not in a graph, where copies of this size are slower.
double CopyBytesPerSecond(CudaStream& stream) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  const Arena from(Arena::Mode::kPlain, kBytes, Memory::kDevice),
      to(Arena::Mode::kPlain, kBytes, Memory::kDevice);
  std::vector<double> ms(15);
  for (double& m : ms) {
    m = Milliseconds(stream, [&] { stream.Copy(to.base(), from.base(), kBytes); });
  }
  return 2e3 * static_cast<double>(kBytes) / Median(ms);
}
#endif

double CopyBytesPerSecond(PlanStream&) { Fail(ExitCode::kFailure, "a plan copies nothing"); }

}  // namespace

void TimeOps(const Device& device, Stream& stream, const std::string& filter,
             const std::function<void(const Roofline&)>& measured,
             const std::function<void(const OpTime&)>& timed) {
  std::regex wanted;
  try {
    wanted = filter;
  } catch (const std::regex_error& e) {
    Fail(ExitCode::kUsage, "--filter: \"", filter, "\" is no regular expression: ", e.what());
  }
  OpSuite suite;
  AddAllOps(suite);
  std::vector<std::pair<const OpEntry*, const OpEntry::Case*>> cases;
  for (const OpEntry& entry : suite.entries()) {
    for (const OpEntry::Case& c : device.cuda ? entry.gpu_bench : entry.bench) {
      if (std::regex_search(entry.name + "/" + c.label, wanted)) cases.push_back({&entry, &c});
    }
  }
  if (cases.empty()) {
    Fail(ExitCode::kUsage, "--filter: \"", filter,
         "\" matches no case; they are named like \"matmul/4096_N50304_K768\"");
  }
  const Roofline roofline{
      std::visit([](auto& backend) { return CopyBytesPerSecond(backend); }, stream),
      MatmulFlopsPerSecond(device, stream)};
  measured(roofline);
  for (const auto& [entry, c] : cases) {
    Instance instance(device.dtype, stream, c->make);
    for (const bool backward : {false, true}) {
      if (backward && !instance.has_backward()) continue;
      OpTime time = instance.Time(backward);
      time.op = entry->name;
      time.label = c->label;
      time.roofline = std::max(time.flops / roofline.matmul_flops_per_second,
                               time.bytes / roofline.copy_bytes_per_second) /
                      (time.ms * 1e-3);
      timed(time);
    }
  }
}

}  // namespace weft
