#include "arch/core/tape.h"

#include <algorithm>

namespace weft {
namespace {

// Stands for gradients that have no memory yet; above every address that can be.
constexpr uintptr_t kFirstAddress = uintptr_t{1} << 56;
constexpr uintptr_t kAddresses = uintptr_t{1} << 52;  // of one tape
constexpr uintptr_t kAlign = 256;

// Offsets for blocks that come and go: best fit among the gaps, else at the end.
class Gaps {
 public:
  int64_t Take(int64_t bytes) {
    auto best = free_.end();
    for (auto gap = free_.begin(); gap != free_.end(); ++gap) {
      if (gap->bytes >= bytes && (best == free_.end() || gap->bytes < best->bytes)) best = gap;
    }
    if (best == free_.end()) {
      // A gap that touches the end is extended.
      const bool touches = !free_.empty() && free_.back().begin + free_.back().bytes == end_;
      const int64_t begin = touches ? free_.back().begin : end_;
      if (touches) free_.pop_back();
      end_ = begin + bytes;
      return begin;
    }
    const int64_t begin = best->begin;
    best->begin += bytes, best->bytes -= bytes;
    if (best->bytes == 0) free_.erase(best);
    return begin;
  }
  void Give(int64_t begin, int64_t bytes) {
    auto after =
        std::find_if(free_.begin(), free_.end(), [&](const Gap& gap) { return gap.begin > begin; });
    after = free_.insert(after, {begin, bytes});
    if (after + 1 != free_.end() && begin + bytes == (after + 1)->begin) {
      after->bytes += (after + 1)->bytes;
      free_.erase(after + 1);
    }
    if (after != free_.begin() && (after - 1)->begin + (after - 1)->bytes == begin) {
      (after - 1)->bytes += after->bytes;
      free_.erase(after);
    }
  }
  int64_t end() const { return end_; }

 private:
  struct Gap {
    int64_t begin, bytes;
  };
  std::vector<Gap> free_;  // ascending, never touching
  int64_t end_ = 0;
};

}  // namespace

Tape::Tape(bool recording, Tape* parent)
    : recording_(recording),
      parent_(parent),
      base_(parent ? parent->base_ + kAddresses : kFirstAddress) {}

Var Tape::NewVar(Context& c, DType dtype, const char* name, int rank, const int64_t* shape) {
  Var v{c.arena.Alloc(dtype, rank, shape, name), {}};
  if (!recording_) return v;
  v.dx = NewGradient(dtype, name, rank, shape);
  fresh_.insert(v.dx.data());
  return v;
}

TensorView Tape::NewGradient(DType dtype, const char* name, int rank, const int64_t* shape) {
  const uintptr_t begin = ranges_.empty() ? base_ : ranges_.back().begin + ranges_.back().bytes;
  const TensorView view(reinterpret_cast<void*>(begin), dtype, rank, shape, name);
  const uintptr_t bytes = (static_cast<uintptr_t>(view.bytes()) + kAlign - 1) / kAlign * kAlign;
  ranges_.push_back({begin, std::max(bytes, kAlign)});
  return view;
}

Var Tape::NewVarLike(Context& c, const char* name, const TensorView& like) {
  int64_t shape[kMaxRank];
  for (int i = 0; i < like.rank(); ++i) shape[i] = like.dim(i);
  return NewVar(c, c.dtype, name, like.rank(), shape);
}

Var Tape::Slice(const Var& v, int dim, int64_t begin, int64_t length) {
  Var part{v.x.Slice(dim, begin, length), {}};
  if (v.dx.defined()) {
    part.dx = v.dx.Slice(dim, begin, length);
    fresh_.insert(part.dx.data());
  }
  return part;
}

Tape::Range* Tape::Find(const void* address) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (at < base_ || at >= base_ + kAddresses) return nullptr;
  auto after = std::upper_bound(ranges_.begin(), ranges_.end(), at,
                                [](uintptr_t a, const Range& range) { return a < range.begin; });
  return &*(after - 1);
}

const void* Tape::Root(const void* address) {
  for (Range* range; (range = Find(address)) && range->shared;) {
    address = static_cast<const std::byte*>(range->shared) +
              (reinterpret_cast<uintptr_t>(address) - range->begin);
  }
  return address;
}

std::byte* Tape::MemoryOf(const void* root, const char* name) {
  const Range* range = Find(root);
  if (!range) return static_cast<std::byte*>(const_cast<void*>(root));
  Check(range->offset >= 0, "tape: the gradient of ", name,
        " has no memory: no recorded step names it among its gradients");
  return memory_ + range->offset +
         static_cast<int64_t>(reinterpret_cast<uintptr_t>(root) - range->begin);
}

Grad Tape::Written(const TensorView& gradient) {
  const void* root = Root(gradient.data());
  if (parent_ && !Find(root) && !fresh_.contains(root)) return parent_->Written(gradient);
  Grad grad(gradient);
  grad.accumulate = fresh_.erase(root) == 0;
  overwritten_.erase(root);
  grad.set_data(MemoryOf(root, gradient.name()));
  return grad;
}

TensorView Tape::Read(const TensorView& gradient) {
  const void* root = Root(gradient.data());
  Check(!fresh_.contains(root), "tape: the gradient of ", gradient.name(),
        " is read before any op has written it: the value is used by nothing that leads to the "
        "loss");
  TensorView view = gradient;
  view.set_data(MemoryOf(root, gradient.name()));
  return view;
}

Var Tape::Recompute(Context& c, const Var& x, const Segment& f) {
  if (!recording_) return f(c, *this, x);
  const Var y = {c.arena.Alloc(c.dtype, {x.x.dim(0), x.x.dim(1), x.x.dim(2)}, "recomputed"), x.dx};
  const int64_t used = c.arena.used();
  Tape forward(/*recording=*/false);
  Copy(c.stream, y.x, f(c, forward, {x.x, {}}).x);
  c.arena.Rewind(used);
  Record({x.dx}, [x, f](Context& context, Tape& tape) {
    const int64_t before = context.arena.used();
    Tape inside(/*recording=*/true, &tape);
    const TensorView gradient = tape.Read(x.dx);
    const Var again = f(context, inside, {x.x, gradient});
    Check(again.dx.data() == gradient.data(), "tape: a recomputed segment is not residual");
    inside.Backward(context);
    context.arena.Rewind(before);
  });
  return y;
}

void Tape::ShareGradient(const Var& a, const Var& b) {
  if (!recording_ || a.dx.data() == b.dx.data()) return;
  Range* range = Find(a.dx.data());
  Check(range && range->begin == reinterpret_cast<uintptr_t>(a.dx.data()) && !range->shared,
        "tape: the gradient of ", a.x.name(), " cannot be shared: it is not the tape's own");
  Check(a.dx.contiguous() && b.dx.contiguous() && a.dx.bytes() == b.dx.bytes(),
        "tape: the gradients of ", a.x.name(), ", ", a.dx.ToString(), ", and ", b.x.name(), ", ",
        b.dx.ToString(), ", have different layouts and cannot share memory");
  range->shared = b.dx.data();
  fresh_.erase(a.dx.data());
}

void Tape::GradientInPlace(const Var& v) {
  if (!recording_) return;
  ShareGradient(v, {v.x, v.x});
  fresh_.insert(v.x.data());
}

void Tape::Seed(const Var& v, const TensorView& dx) {
  CheckSameShape("tape", "the seed of a backward pass", dx, v.x);
  ShareGradient(v, {dx, dx});
}

void Tape::Overwrite(const Var& parameter) {
  if (!recording_) return;
  fresh_.insert(parameter.dx.data());
  overwritten_[parameter.dx.data()] = parameter.dx;
}

int64_t Tape::PlanMemory() {
  const int64_t n = static_cast<int64_t>(ops_.size());
  for (int64_t i = 0; i < n; ++i) {
    for (const TensorView& gradient : ops_[static_cast<size_t>(i)].gradients) {
      Range* range = Find(Root(gradient.data()));
      if (!range) continue;
      if (range->first < 0) range->first = i;
      range->last = i;
    }
  }
  std::vector<std::vector<Range*>> begins(ops_.size()), ends(ops_.size());
  for (Range& range : ranges_) {
    if (range.first < 0) continue;
    begins[static_cast<size_t>(range.last)].push_back(&range);  // the backward meets `last` first
    ends[static_cast<size_t>(range.first)].push_back(&range);
  }
  Gaps gaps;
  for (size_t i = ops_.size(); i-- > 0;) {
    for (Range* range : begins[i]) range->offset = gaps.Take(static_cast<int64_t>(range->bytes));
    for (Range* range : ends[i]) gaps.Give(range->offset, static_cast<int64_t>(range->bytes));
  }
  return gaps.end();
}

void Tape::Backward(Context& c) {
  const int64_t bytes = PlanMemory();
  if (bytes > 0) {
    memory_ =
        c.arena.Alloc(DType::kF32, {bytes / SizeOf(DType::kF32)}, "gradients").Data<std::byte>();
  }
  for (auto op = ops_.rbegin(); op != ops_.rend(); ++op) op->run(c, *this);
  for (const auto& [address, gradient] : overwritten_) Zero(c.stream, gradient);
  Clear();
}

void Tape::Clear() {
  ops_.clear();
  ranges_.clear();
  fresh_.clear();
  overwritten_.clear();
}

}  // namespace weft
