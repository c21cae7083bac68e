#pragma once
// Counter-based random numbers: every stream is a pure function of (seed, purpose, index), so the
// order in which streams are drawn, and on which thread, cannot change a value. Source: Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox4x32-10.

#include <array>
#include <cmath>
#include <cstdint>

namespace weft {

// Keeps streams of one seed apart that are used for different things.
enum class Purpose : uint32_t {
  kInit = 1,
  kTrainData = 2,
  kEvalData = 3,
  kShuffle = 4,
  kSplit = 5,
  kTest = 6
};

class Rng {
 public:
  Rng(uint64_t seed, Purpose purpose, uint64_t index)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        counter_{0, static_cast<uint32_t>(purpose), static_cast<uint32_t>(index),
                 static_cast<uint32_t>(index >> 32)} {}

  // Uniform on all 32-bit words.
  uint32_t Next() {
    if (used_ == 4) {
      block_ = Philox(counter_, key_);
      ++counter_[0];
      used_ = 0;
    }
    return block_[used_++];
  }

  // Uniform on {0, ..., n-1}, n >= 1, without bias (Lemire 2019).
  uint32_t Below(uint32_t n) {
    uint64_t product = uint64_t{Next()} * n;
    if (static_cast<uint32_t>(product) < n) {
      const uint32_t threshold = -n % n;
      while (static_cast<uint32_t>(product) < threshold) product = uint64_t{Next()} * n;
    }
    return static_cast<uint32_t>(product >> 32);
  }

  // Uniform on [0, 1) with 53 random bits.
  double Uniform() {
    const uint64_t high = Next() >> 5, low = Next() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
  }
  double Uniform(double low, double high) { return low + (high - low) * Uniform(); }

  // Standard normal (Box-Muller, one value per call).
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
    return radius * std::cos(6.283185307179586477 * Uniform());
  }

  using Words = std::array<uint32_t, 4>;

  static Words Philox(Words x, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * x[0], p1 = uint64_t{0xCD9E8D57u} * x[2];
      x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(p0)};
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    return x;
  }

 private:
  std::array<uint32_t, 2> key_;
  Words counter_;
  Words block_{};
  int used_ = 4;
};

}  // namespace weft
