#include "kernels/base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <complex>
#include <cstring>
#include <limits>
#include <utility>

#ifdef WEFT_CUDA
#include "kernels/base/cuda_stream.h"
#endif

namespace weft {
namespace {

constexpr int64_t kAlign = 256;
constexpr int kSentinelByte = 0xA5;

int64_t RoundUp(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

void FillWithNaN(const TensorView& view) {
  if (view.dtype() == DType::kI32) {
    std::fill_n(view.Data<int32_t>(), view.size(), std::numeric_limits<int32_t>::min());
  } else if (view.dtype() == DType::kBF16) {
    std::fill_n(view.Data<uint16_t>(), view.size(), uint16_t{0x7fc0});
  } else if (view.dtype() == DType::kF32) {
    std::fill_n(view.Data<float>(), view.size(), std::numeric_limits<float>::quiet_NaN());
  } else {
    std::fill_n(view.Data<double>(), view.bytes() / 8, std::numeric_limits<double>::quiet_NaN());
  }
}

#ifndef WEFT_CUDA
std::byte* AllocateOnDevice(int64_t) {
  Fail(ExitCode::kUsage,
       "this build has no CUDA backend; install the CUDA toolkit and build again");
}
void FreeOnDevice(std::byte*) {}
#endif

}  // namespace

Arena::Arena(Mode mode, int64_t capacity, Memory memory)
    : mode_(mode), memory_(memory), capacity_(RoundUp(std::max<int64_t>(capacity, 1))) {
  if (mode_ == Mode::kPlan) {
    base_ = reinterpret_cast<std::byte*>(uintptr_t{1} << 46);  // never dereferenced
    capacity_ = std::numeric_limits<int64_t>::max();
    return;
  }
  if (memory_ == Memory::kDevice) {
    base_ = AllocateOnDevice(capacity_);
    return;
  }
  void* host = mmap(nullptr, static_cast<size_t>(capacity_), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host == MAP_FAILED) {
    Fail(ExitCode::kOutOfMemory, "out of memory: ", capacity_ / 1048576,
         " MiB asked for; reduce train.batch or train.length");
  }
  madvise(host, static_cast<size_t>(capacity_), MADV_HUGEPAGE);
  base_ = static_cast<std::byte*>(host);
}

Arena::Arena(Arena&& other) noexcept
    : mode_(other.mode_),
      memory_(other.memory_),
      base_(std::exchange(other.base_, nullptr)),
      capacity_(other.capacity_),
      used_(other.used_),
      peak_(other.peak_),
      sentinels_(std::move(other.sentinels_)) {}

Arena::~Arena() {
  if (mode_ == Mode::kPlan || !base_) return;
  if (memory_ == Memory::kDevice) {
    FreeOnDevice(base_);
  } else {
    munmap(base_, static_cast<size_t>(capacity_));
  }
}

TensorView Arena::Alloc(DType dtype, std::initializer_list<int64_t> shape, const char* name) {
  return Alloc(dtype, static_cast<int>(shape.size()), shape.begin(), name);
}

TensorView Arena::Alloc(DType dtype, int rank, const int64_t* shape, const char* name) {
  TensorView view(base_ + used_, dtype, rank, shape, name);
  const int64_t bytes =
      RoundUp(view.bytes()) + kAlign;  // the gap holds the sentinel; same offsets in every mode
  Check(bytes <= capacity_ - used_, "arena: ", name, " needs ", bytes, " bytes, ",
        capacity_ - used_, " of ", capacity_, " are left");
  if (mode_ == Mode::kGuarded) {
    FillWithNaN(view);
    const int64_t end = used_ + view.bytes();
    std::memset(base_ + end, kSentinelByte, static_cast<size_t>(used_ + bytes - end));
    sentinels_.push_back({end, name});
  }
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return view;
}

void Arena::Rewind(int64_t used) {
  if (mode_ == Mode::kGuarded) CheckSentinels();
  while (!sentinels_.empty() && sentinels_.back().offset >= used) sentinels_.pop_back();
  used_ = used;
}

void Arena::CheckSentinels() const {
  for (const Sentinel& s : sentinels_) {
    for (int64_t i = s.offset; i < RoundUp(s.offset + 1); ++i) {
      Check(base_[i] == static_cast<std::byte>(kSentinelByte), "arena: written past the end of ",
            s.name);
    }
  }
}

}  // namespace weft
