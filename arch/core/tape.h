#pragma once
// Values with their gradients, and the tape: the backward structs of a forward pass in execution
// order.

#include <functional>
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

class Tape {
 public:
  // Without recording, no gradients are allocated and nothing is kept for a backward: evaluation
  // and decoding.
  explicit Tape(bool recording) : recording_(recording) {}
  bool recording() const { return recording_; }

  // A new activation with its gradient.
  Var NewVar(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    Var v{c.arena.Alloc(c.dtype, shape, name), {}};
    if (recording_) {
      v.dx = c.arena.Alloc(c.dtype, shape, name);
      fresh_.insert(v.dx.data());
    }
    return v;
  }
  Var NewVarLike(Context& c, const char* name, const TensorView& like) {
    int64_t shape[kMaxRank];
    for (int i = 0; i < like.rank(); ++i) shape[i] = like.dim(i);
    Var v{c.arena.Alloc(c.dtype, like.rank(), shape, name), {}};
    if (recording_) {
      v.dx = c.arena.Alloc(c.dtype, like.rank(), shape, name);
      fresh_.insert(v.dx.data());
    }
    return v;
  }
  // A tensor that only the backward reads; left out when there will be none.
  TensorView NewSaved(Context& c, const char* name, std::initializer_list<int64_t> shape) {
    return recording_ ? c.arena.Alloc(c.dtype, shape, name) : TensorView();
  }
  // A part of a Var. A Var is either used whole or through parts that cover it, never both.
  Var Slice(const Var& v, int dim, int64_t begin, int64_t length) {
    Var part{v.x.Slice(dim, begin, length), {}};
    if (v.dx.defined()) {
      part.dx = v.dx.Slice(dim, begin, length);
      fresh_.insert(part.dx.data());
    }
    return part;
  }

  // Launches `fwd`; records `bwd` to be run by Backward.
  template <class Fwd, class Bwd>
  void Run(Context& c, const Fwd& fwd, const Bwd& bwd) {
    Launch(c.stream, fwd);
    if (!recording_) return;
    backward_.push_back([bwd](Stream& stream, Tape& tape) {
      Bwd op = bwd;
      Bwd::Visit(op, Resolve{tape});
      Launch(stream, op);
    });
  }

  // The gradient of `v` is given from outside: the seed of a backward pass.
  void Seed(const Var& v) { fresh_.erase(v.dx.data()); }

  // Runs what was recorded, last first. A gradient's first writer overwrites, later ones add;
  // gradients that this tape did not allocate (those of parameters) are always added to.
  void Backward(Stream& stream) {
    for (auto op = backward_.rbegin(); op != backward_.rend(); ++op) (*op)(stream, *this);
    Clear();
  }
  void Clear() {
    backward_.clear();
    fresh_.clear();
  }

 private:
  struct Resolve {
    Tape& tape;
    void Upstream(const char* name, TensorView& v, const TensorView& of) {
      Check(!v.defined() || !tape.fresh_.contains(v.data()), "tape: ", name, " (", of.name(),
            ") is read before any op has written it: the value is used by nothing that leads to "
            "the loss");
    }
    void Grad(const char*, weft::Grad& v, const TensorView&) {
      if (v.defined()) v.accumulate = tape.fresh_.erase(v.data()) == 0;
    }
    void ParamGrad(const char* n, weft::Grad& v, const TensorView& of) { Grad(n, v, of); }
  };

  bool recording_;
  std::vector<std::function<void(Stream&, Tape&)>> backward_;
  std::unordered_set<const void*> fresh_;  // gradients that nothing has written yet
};

}  // namespace weft
