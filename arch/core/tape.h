#pragma once
// Values with their gradients, and the tape: the backward structs of a forward pass in execution
// order.

#include <functional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/op.h"

namespace weft {

// A value and the gradient of the loss with respect to it; dx is undefined where no gradient is
// wanted.
struct Var {
  TensorView x, dx;
};

// dx of a Var where it has one.
inline Grad GradOf(const Var& v) { return Grad(v.dx); }

// What a forward pass runs on. Passed first, always.
struct Context {
  Stream& stream;
  Arena& arena;  // activations of this pass
  DType dtype = DType::kF32;
};

// Gradients of activations live briefly: from the op of the backward that first writes one to the
// op that last reads it. The dx of a new Var is therefore a name without memory; Backward, which
// knows the whole order, gives memory to all of them and reuses it as they die.
class Tape {
 public:
  // Without recording, no gradients are allocated and nothing is kept for a backward: evaluation
  // and decoding.
  explicit Tape(bool recording) : Tape(recording, nullptr) {}
  bool recording() const { return recording_; }

  // A new activation with its gradient.
  Var NewVar(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    return NewVar(c, c.dtype, name, static_cast<int>(shape.size()), shape.begin());
  }
  Var NewVarLike(Context& c, const char* name, const TensorView& like);
  // A gate or another value that stays f32 beside bf16 activations.
  Var NewWideVar(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    return NewVar(c, Wide(c.dtype), name, static_cast<int>(shape.size()), shape.begin());
  }
  // A tensor that only the backward reads; left out when there will be none.
  TensorView NewSaved(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    return recording_ ? c.arena.Alloc(c.dtype, shape, name) : TensorView();
  }
  // A part of a Var. A Var is either used whole or through parts that cover it, never both.
  Var Slice(const Var& v, int dim, int64_t begin, int64_t length);

  // Launches `fwd`; records `bwd` to be run by Backward.
  template <class Fwd, class Bwd>
  void Run(Context& c, const Fwd& fwd, const Bwd& bwd) {
    Launch(c.stream, fwd);
    if (!recording_) return;
    Recorded recorded;
    Bwd copy = bwd;
    Bwd::Visit(copy, Collect{recorded.gradients});
    recorded.run = [bwd](Context& context, Tape& tape) {
      Bwd op = bwd;
      Bwd::Visit(op, Resolve{tape});
      Launch(context.stream, op);
    };
    ops_.push_back(std::move(recorded));
  }
  // Records a step of the backward that is more than one op. It reads and writes no gradients but
  // `gradients`; inside, Written gives each its memory.
  using Step = std::function<void(Context&, Tape&)>;
  void Record(std::vector<TensorView> gradients, Step step) {
    if (recording_) ops_.push_back({std::move(gradients), std::move(step)});
  }
  // Inside a recorded step: the memory of a gradient that the step writes, and whether it adds; and
  // of one that it reads.
  Grad Written(const TensorView& gradient);
  TensorView Read(const TensorView& gradient);

  // Memory for recorded steps that name it among their gradients: Read gives it.
  TensorView NewTemporary(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    return NewGradient(c.dtype, name, static_cast<int>(shape.size()), shape.begin());
  }

  // y = f(x) for a residual segment, one whose y has the gradient of its x: nothing inside is kept,
  // and the backward runs f once more. f(c, tape, x) returns y.
  using Segment = std::function<Var(Context&, Tape&, const Var& x)>;
  Var Recompute(Context& c, const Var& x, const Segment& f);

  // a and b have one gradient, in one memory: where y = a + b, both are that of y. No op has used
  // a.dx, or will.
  void ShareGradient(const Var& a, const Var& b);
  // The gradient of `v` lives in the memory of its value, which the op that writes it may destroy.
  void GradientInPlace(const Var& v);
  // The gradient of `v` is given from outside, in memory of its own: the seed of a backward pass.
  void Seed(const Var& v, const TensorView& dx);
  // The first op that writes this gradient of a parameter overwrites what is there. Without this,
  // gradients that are not the tape's own are added to.
  void Overwrite(const Var& parameter);

  // Runs what was recorded, last first. A gradient's first writer overwrites, later ones add.
  void Backward(Context& c);
  void Clear();

 private:
  // Inside a recomputed segment, `parent` knows the gradients that are not the tape's own.
  Tape(bool recording, Tape* parent);
  struct Recorded {
    std::vector<TensorView> gradients;
    Step run;
  };
  // A gradient of the tape's own: a range of addresses that stand for it.
  struct Range {
    uintptr_t begin, bytes;
    const void* shared = nullptr;   // another gradient whose memory it has
    int64_t offset = -1;            // in the memory of all
    int64_t first = -1, last = -1;  // recorded ops that use it
  };
  struct Collect {
    std::vector<TensorView>& gradients;
    void Upstream(const char*, TensorView& v, const TensorView&) { Add(v); }
    void Grad(const char*, TensorView& v, const TensorView&) { Add(v); }
    void ParamGrad(const char*, TensorView& v, const TensorView&) { Add(v); }
    void Add(const TensorView& v) {
      if (v.defined()) gradients.push_back(v);
    }
  };
  struct Resolve {
    Tape& tape;
    void Upstream(const char* name, TensorView& v, const TensorView& of) {
      if (!v.defined()) return;
      try {
        v = tape.Read(v);
      } catch (const Error& error) {
        Fail(error.code(), error.what(), ", as ", name, " of ", of.name());
      }
    }
    void Grad(const char*, weft::Grad& v, const TensorView&) {
      if (v.defined()) v = tape.Written(v);
    }
    void ParamGrad(const char*, weft::Grad& v, const TensorView&) {
      if (v.defined()) v = tape.Written(v);
    }
  };

  Var NewVar(Context& c, DType dtype, const char* name, int rank, const int64_t* shape);
  TensorView NewGradient(DType dtype, const char* name, int rank, const int64_t* shape);
  Range* Find(const void* address);
  // The address that stands for the gradient once sharing is followed.
  const void* Root(const void* address);
  std::byte* MemoryOf(const void* root, const char* name);
  int64_t PlanMemory();

  bool recording_;
  Tape* parent_;
  uintptr_t base_;  // of the addresses that stand for gradients without memory
  std::vector<Recorded> ops_;
  std::vector<Range> ranges_;  // ascending
  std::byte* memory_ = nullptr;
  std::unordered_set<const void*> fresh_;  // gradients that nothing has written yet
  std::unordered_map<const void*, TensorView> overwritten_;  // of parameters, by address
};

}  // namespace weft
