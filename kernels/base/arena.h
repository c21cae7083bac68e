#pragma once
// Memory of a run: an arena is one allocation from which views are cut in order and released all at
// once.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "kernels/base/tensor.h"

namespace weft {

enum class Memory : uint8_t { kHost, kDevice };

class Arena {
 public:
  // kPlan hands out addresses without memory behind them and only counts. kGuarded fills what it
  // hands out with NaN and puts sentinels between the views (debug builds and tests; host only).
  enum class Mode { kPlan, kPlain, kGuarded };

  // `capacity` bytes, ignored for kPlan. Views are 256-byte aligned. Out of memory: Error with
  // ExitCode::kOutOfMemory. Device memory is that of the current CUDA device, zero at first.
  Arena(Mode mode, int64_t capacity, Memory memory = Memory::kHost);
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&&) = delete;

  TensorView Alloc(DType dtype, std::initializer_list<int64_t> shape, const char* name);
  TensorView Alloc(DType dtype, int rank, const int64_t* shape, const char* name);
  void Reset() { Rewind(0); }  // everything handed out is invalid now
  // Gives back what was handed out since used() was `used`.
  void Rewind(int64_t used);

  int64_t capacity() const { return capacity_; }
  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  Mode mode() const { return mode_; }
  Memory memory() const { return memory_; }
  std::byte* base() const { return base_; }
  // kGuarded: fails with the name of the view behind which something was written.
  void CheckSentinels() const;

 private:
  struct Sentinel {
    int64_t offset;
    const char* name;
  };
  Mode mode_;
  Memory memory_;
  std::byte* base_ = nullptr;
  int64_t capacity_ = 0, used_ = 0, peak_ = 0;
  std::vector<Sentinel> sentinels_;
};

#ifdef NDEBUG
inline constexpr Arena::Mode kArenaMode = Arena::Mode::kPlain;
#else
inline constexpr Arena::Mode kArenaMode = Arena::Mode::kGuarded;
#endif

}  // namespace weft
