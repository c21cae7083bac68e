#include "kernels/base/cuda_rows.cuh"
#include "kernels/gated_delta/gated_delta_cuda.cuh"

namespace weft {
namespace gated_delta {
namespace {

// Up to here the state's own traffic outweighs what chunks save.
constexpr int64_t kMostRecurrentTokens = 16;

enum class Kernel { kRecurrent, kHopper, kTensorCores, kF32 };

bool Packable16(std::initializer_list<const TensorView*> views) {
  return std::ranges::all_of(views, [](const TensorView* x) { return Packable<BF16>(*x, 8); });
}

bool OnTensorCores(const GatedDeltaFwd& f) {
  const int64_t K = f.q.dim(3), V = f.v.dim(3);
  return f.q.dtype() == DType::kBF16 && K % 16 == 0 && V % 16 == 0 && K <= 256 && V <= 256 &&
         Packable16({&f.q, &f.k, &f.v, &f.y, &f.states}) && TensorCoresFit(K);
}

bool OnHopper(const CudaStream& stream, const GatedDeltaFwd& f) {
  const int64_t K = f.q.dim(3);
  return stream.capability() == 90 && f.v.size() > 0 && f.v.dim(0) < 65536 &&
         (K == 48 || K == 64 || K == 96 || K == 128) && OnTensorCores(f);
}

// How many segments of the sequence finish soonest on Hopper, counted in half chunks that blocks go
// through one after another. Segments cost a pass before: all but the last carry their state to the
// next, and all but the first and the last find out what they do to one, but seldom all of it,
// since most heads forget sooner. To start costs a block as much as 3 chunks, the pass as 12 and
// one more per segment.
int Segments(const CudaStream& stream, const GatedDeltaFwd& f, int64_t values) {
  const int64_t heads = f.v.dim(0) * f.v.dim(2), parts = CeilDiv(f.v.dim(3), values);
  const int64_t chunks = GatedDeltaChunks(f.v.dim(1));
  const auto rounds = [&](int64_t blocks) {
    return CeilDiv(heads * blocks, stream.multiprocessors());
  };
  int64_t best = 1, least = 2 * (chunks + 3) * rounds(parts);
  for (int64_t count = 2; count <= std::min<int64_t>(chunks, 64); ++count) {
    const int64_t before = (count - 1) * parts + count - 2;
    const int64_t cost =
        (CeilDiv(chunks, count) + 3) * (2 * rounds(count * parts) + rounds(before)) +
        2 * (12 + count);
    if (cost < least) best = count, least = cost;
  }
  return static_cast<int>(best);
}

// The choice by shape, type and device. A kernel for one shape or one GPU goes before the others.
Kernel Choose(const CudaStream& stream, const GatedDeltaFwd& f) {
  if (!f.states.defined() && f.q.dim(1) <= kMostRecurrentTokens && f.q.dim(3) <= 256)
    return Kernel::kRecurrent;
  if (OnHopper(stream, f)) return Kernel::kHopper;
  return OnTensorCores(f) ? Kernel::kTensorCores : Kernel::kF32;
}

Kernel Choose(const CudaStream& stream, const GatedDeltaBwd& g) {
  if (!OnTensorCores(g.fwd) || !Packable16({&g.dy, &g.dq, &g.dk, &g.dv})) return Kernel::kF32;
  return OnHopper(stream, g.fwd) && g.fwd.states.contiguous() ? Kernel::kHopper
                                                              : Kernel::kTensorCores;
}

}  // namespace

void AddUp(CudaStream& stream, const GatedDeltaBwd& g, const GateSums& sums) {
  if (!g.fwd.gate_a.defined()) return;
  const int64_t chunks = g.fwd.q.dim(0) * GatedDeltaChunks(g.fwd.q.dim(1));
  SumPartials(stream, sums.a_log, chunks, g.da_log);
  SumPartials(stream, sums.dt_bias, chunks, g.ddt_bias);
}

}  // namespace gated_delta

void Run(CudaStream& stream, const GatedDeltaFwd& f) {
  using namespace gated_delta;
  switch (Choose(stream, f)) {
    case Kernel::kRecurrent:
      return RunRecurrent(stream, f);
    case Kernel::kHopper:
      return RunHopper(stream, f, Segments(stream, f, 128));
    case Kernel::kTensorCores:
      return RunTensorCores(stream, f);
    case Kernel::kF32:
      return RunF32(stream, f);
  }
}

void Run(CudaStream& stream, const GatedDeltaBwd& g) {
  using namespace gated_delta;
  switch (Choose(stream, g)) {
    case Kernel::kHopper:
      return RunHopper(stream, g, Segments(stream, g.fwd, HopperValues(g.fwd.k.dim(3))));
    case Kernel::kTensorCores:
      return RunTensorCores(stream, g);
    default:
      return RunF32(stream, g);
  }
}

}  // namespace weft
