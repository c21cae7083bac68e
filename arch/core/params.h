#pragma once
// The list of parameters: one registry that init, optimiser, decay groups, checkpoints, counts and
// export iterate.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "arch/core/tape.h"
#include "kernels/random_fill/random_fill.h"

namespace weft {

// What a parameter starts from; seed and stream are the registry's to set.
using Init = RandomValues;
Init TruncatedNormal(double sigma);  // cut at +-3 sigma
Init UniformInit(double low, double high);
Init Constant(double value);

// Products are fast where all their sizes are multiples of 8, large ones of 64. So behind a matrix,
// in every copy, there is room for rows up to such a number: zeros that are no parameters.
inline int64_t RoundUpRows(int64_t n) {
  const int64_t align = n < 1024 ? 8 : 64;
  return (n + align - 1) / align * align;
}

struct Param {
  std::string path;  // "blocks.3.mixer.qkv"
  std::vector<int64_t> shape;
  Init init;
  bool decay;             // decoupled weight decay applies
  Var var;                // value as the model reads it, and gradient
  int64_t offset = 0;     // elements, in the registry's flat values, copies, gradients and moments
  TensorView moments[2];  // AdamW's first and second moment; undefined outside training
  int64_t size() const;
};

class ParamRegistry {
 public:
  // Paths are unique. The returned pointer stays valid.
  Param* Add(std::string path, std::vector<int64_t> shape, Init init, bool decay);

  // Elements to allocate per copy (values, gradients, each moment), alignment gaps included.
  int64_t Elements() const;
  // Cuts values, and for training gradients and moments, from `arena`. Decayed parameters come
  // first, so that the optimiser is one launch over flat memory. Everything starts at zero. With
  // bf16 as the model's type, values, gradients and moments are f32, and the model reads rounded
  // copies of the matrices.
  void Allocate(Stream& stream, Arena& arena, DType dtype, bool training);
  // Every value is a function of (seed, path) alone.
  void Initialise(Stream& stream, uint64_t seed);
  // Replaces all values by `values` (host memory, laid out like values()); rounded copies follow.
  void Load(Stream& stream, const TensorView& values);

  const std::deque<Param>& params() const { return params_; }
  std::deque<Param>& params() { return params_; }
  // [elements]; gaps between parameters hold zeros. A step keeps them, if it gives the rows behind
  // a matrix no gradient.
  const TensorView& values() const { return values_; }
  const TensorView& copies() const {
    return copies_;
  }  // bf16; undefined where the model reads values
  const TensorView& gradients() const { return gradients_; }
  const TensorView& moment(int i) const { return moments_[i]; }
  int64_t decayed() const { return decayed_; }  // elements [0, decayed) carry weight decay

  // Number of parameters whose path starts with `prefix`; "" counts all.
  int64_t Count(const std::string& prefix = "") const;

 private:
  std::deque<Param> params_;
  TensorView values_, copies_, gradients_, moments_[2];
  int64_t decayed_ = 0;
};

}  // namespace weft
