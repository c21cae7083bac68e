#pragma once
// Counter-based random numbers: every stream is a pure function of (seed, purpose, index), so the
// order in which streams are drawn, and on which thread, cannot change a value. Source: Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox4x32-10.

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define WEFT_HOST_DEVICE __host__ __device__
#else
#define WEFT_HOST_DEVICE
#endif

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

struct PhiloxWords {
  uint32_t at[4];
  bool operator==(const PhiloxWords&) const = default;
};

// The random words of a counter.
WEFT_HOST_DEVICE inline PhiloxWords Philox(const PhiloxWords& counter, uint64_t key) {
  uint32_t a = counter.at[0], b = counter.at[1], c = counter.at[2], d = counter.at[3];
  uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * a, p1 = uint64_t{0xCD9E8D57u} * c;
    a = static_cast<uint32_t>(p1 >> 32) ^ b ^ low;
    b = static_cast<uint32_t>(p1);
    c = static_cast<uint32_t>(p0 >> 32) ^ d ^ high;
    d = static_cast<uint32_t>(p0);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return {a, b, c, d};
}

// Two random words as a uniform number in [0, 1) with 53 random bits.
WEFT_HOST_DEVICE inline double UnitInterval(uint32_t first, uint32_t second) {
  const uint64_t high = first >> 5, low = second >> 6;
  return static_cast<double>((high << 26) | low) * 0x1p-53;
}

// Two uniform numbers in [0, 1) as a standard normal one (Box & Muller 1958).
WEFT_HOST_DEVICE inline double StandardNormal(double u, double v) {
  return std::sqrt(-2 * std::log(1 - u)) * std::cos(6.283185307179586477 * v);
}

class Rng {
 public:
  Rng(uint64_t seed, Purpose purpose, uint64_t index)
      : key_(seed),
        counter_{0, static_cast<uint32_t>(purpose), static_cast<uint32_t>(index),
                 static_cast<uint32_t>(index >> 32)} {}

  // Uniform on all 32-bit words.
  uint32_t Next() {
    if (used_ == 4) {
      block_ = Philox(counter_, key_);
      ++counter_.at[0];
      used_ = 0;
    }
    return block_.at[used_++];
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
    const uint32_t first = Next();
    return UnitInterval(first, Next());
  }
  double Uniform(double low, double high) { return low + (high - low) * Uniform(); }

  double Normal() {
    const double u = Uniform();
    return StandardNormal(u, Uniform());
  }

 private:
  uint64_t key_;
  PhiloxWords counter_, block_{};
  int used_ = 4;
};

}  // namespace weft
