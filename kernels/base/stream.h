#pragma once
// Where ops run. A stream is passed explicitly; nothing is global, so several runs can share a
// process.
//   CpuStream   a pool of threads; bits do not depend on how many
//   CudaStream  one CUDA stream with its handles and scratch (cuda_stream.h); only in builds with
//   nvcc PlanStream  runs nothing: checks shapes and counts FLOPs and bytes, so that cost and
//   memory are known beforehand

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <variant>
#include <vector>

#include "kernels/base/check.h"

namespace weft {

// Scratch memory of one pool thread, empty again at the start of every work item.
class Worker {
 public:
  // 64-byte aligned, uninitialised.
  template <class T>
  T* Alloc(int64_t n) {
    return static_cast<T*>(AllocBytes(static_cast<size_t>(n) * sizeof(T)));
  }
  void Reset() { used_ = 0; }

 private:
  void* AllocBytes(size_t bytes);
  struct Block {
    std::unique_ptr<std::byte[]> data;
    size_t size;
  };
  std::vector<Block> blocks_;  // bump-allocated; a work item that needs more gets a further block
  size_t used_ = 0;            // bytes used, counted over all blocks
};

// Is told when ops begin and end on a stream: to time them.
class OpObserver {
 public:
  virtual ~OpObserver() = default;
  virtual void Begin(const char* op) = 0;
  virtual void End() = 0;
};

class CpuStream {
 public:
  OpObserver* observer = nullptr;

  explicit CpuStream(int threads);  // 0 = one per core that this process may use
  ~CpuStream();
  CpuStream(const CpuStream&) = delete;
  CpuStream& operator=(const CpuStream&) = delete;

  int threads() const { return static_cast<int>(workers_.size()); }

  // Scratch memory of the op that runs now, which its items share.
  Worker& Shared() {
    shared_.Reset();
    return shared_;
  }

  // Calls body(i, worker) once for every i in [0, n), on any thread, and returns when all are done.
  // An item must not depend on which thread runs it or on the other items. An exception in a body
  // is rethrown here.
  template <class Body>
  void ParallelFor(int64_t n, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunItems(
        n, [](void* f, int64_t i, Worker& worker) { (*static_cast<Plain*>(f))(i, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  // Splits [0, n) into ranges of about `grain` and calls body(begin, end, worker). The ranges
  // depend on n and grain only.
  template <class Body>
  void ParallelRanges(int64_t n, int64_t grain, Body&& body) {
    const int64_t items = (n + grain - 1) / grain;
    ParallelFor(items, [&](int64_t i, Worker& worker) {
      body(i * grain, std::min(n, (i + 1) * grain), worker);
    });
  }

 private:
  using Item = void (*)(void*, int64_t, Worker&);
  void RunItems(int64_t n, Item item, void* body);
  struct Pool;
  std::vector<Worker> workers_;
  Worker shared_;
  std::unique_ptr<Pool> pool_;
};

struct PlanStream {
  double flops = 0;  // floating-point operations of every op launched so far
  double bytes = 0;  // bytes that these ops must at least read and write
};

class CudaStream;

#ifdef WEFT_CUDA
}  // namespace weft
#include "kernels/base/cuda_stream.h"
namespace weft {
using Stream = std::variant<CpuStream, PlanStream, CudaStream>;
#else
using Stream = std::variant<CpuStream, PlanStream>;
#endif

}  // namespace weft
