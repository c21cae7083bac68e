#include "arch/core/params.h"

#include <algorithm>

namespace weft {
namespace {

constexpr int64_t kAlign = 16;  // elements

// Elements from a parameter to the next.
int64_t Room(const Param& p) {
  const int64_t n = p.shape.size() > 1 ? p.size() / p.shape[0] * RoundUpRows(p.shape[0]) : p.size();
  return (n + kAlign - 1) / kAlign * kAlign;
}

// FNV-1a: names the random stream of a parameter.
uint64_t HashPath(const std::string& path) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : path) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace

Init TruncatedNormal(double sigma) {
  return {.distribution = Distribution::kNormal, .sigma = sigma};
}

Init UniformInit(double low, double high) {
  return {.distribution = Distribution::kUniform, .low = low, .high = high};
}

Init Constant(double value) { return {.value = value}; }

int64_t Param::size() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

Param* ParamRegistry::Add(std::string path, std::vector<int64_t> shape, Init init, bool decay) {
  for (const Param& p : params_) Check(p.path != path, "parameter ", path, " is registered twice");
  params_.push_back({std::move(path), std::move(shape), std::move(init), decay, {}, {}});
  return &params_.back();
}

int64_t ParamRegistry::Elements() const {
  int64_t n = 0;
  for (const Param& p : params_) n += Room(p);
  return n;
}

void ParamRegistry::Allocate(Stream& stream, Arena& arena, DType dtype, bool training) {
  const int64_t n = Elements();
  const DType wide = Wide(dtype);
  values_ = arena.Alloc(wide, {n}, "parameters");
  if (dtype != wide) copies_ = arena.Alloc(dtype, {n}, "parameters, rounded");
  if (training) {
    gradients_ = arena.Alloc(wide, {n}, "gradients");
    for (TensorView& moment : moments_) moment = arena.Alloc(wide, {n}, "moments");
  }
  int64_t offset = 0;
  for (const bool decay : {true, false}) {
    for (Param& p : params_) {
      if (p.decay != decay) continue;
      const auto cut = [&](const TensorView& flat) {
        const TensorView part = flat.Slice(0, offset, p.size());
        return TensorView(part.data(), flat.dtype(), static_cast<int>(p.shape.size()),
                          p.shape.data(), p.path.c_str());
      };
      p.offset = offset;
      p.var.x = cut(copies_.defined() && p.shape.size() > 1 ? copies_ : values_);
      if (training) {
        p.var.dx = cut(gradients_);
        for (int i : {0, 1}) p.moments[i] = cut(moments_[i]);
      }
      offset += Room(p);
    }
    if (decay) decayed_ = offset;
  }
  for (const TensorView& flat : {values_, copies_, gradients_, moments_[0], moments_[1]}) {
    if (flat.defined()) Zero(stream, flat);
  }
}

void ParamRegistry::Initialise(Stream& stream, uint64_t seed) {
  for (const Param& p : params_) {
    RandomFill fill{.y = values_.Slice(0, p.offset, p.size()), .values = p.init};
    if (copies_.defined()) fill.copy = copies_.Slice(0, p.offset, p.size());
    fill.values.seed = seed, fill.values.stream = HashPath(p.path);
    Launch(stream, fill);
  }
}

void ParamRegistry::Load(Stream& stream, const TensorView& values) {
  Copy(stream, values_, values);
  if (!copies_.defined()) return;
  std::vector<uint16_t> rounded(static_cast<size_t>(values.size()));
  const float* from = values.Data<float>();
  for (size_t i = 0; i < rounded.size(); ++i) rounded[i] = ToBF16(from[i]);
  Copy(stream, copies_, TensorView(rounded.data(), DType::kBF16, {values.size()}, "rounded"));
}

int64_t ParamRegistry::Count(const std::string& prefix) const {
  int64_t n = 0;
  for (const Param& p : params_) {
    if (p.path.starts_with(prefix)) n += p.size();
  }
  return n;
}

}  // namespace weft
