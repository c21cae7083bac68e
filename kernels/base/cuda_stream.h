#pragma once
// A CUDA stream with what ops need beside it: scratch memory and the handles of libraries. Each
// trainer has its own, so several can live in one process. Only in builds with nvcc.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <typeindex>
#include <vector>

struct CUstream_st;
struct CUgraphExec_st;

namespace weft {

class OpObserver;

class CudaStream {
 public:
  OpObserver* observer = nullptr;
  // The same bits on every run. Without, an op may choose a library's kernel that adds in any
  // order.
  bool deterministic = true;
  // Makes `device` current for the calling thread. No such device: Error kUsage.
  explicit CudaStream(int device);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  CUstream_st* handle() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  int capability() const { return capability_; }  // 80, 90, 100, ...

  // Memory for an op while it runs, which asks for all of it at once; 256-byte aligned. The next op
  // gets the same. It grows as ops ask for more, but not while a graph is captured: run once before
  // capturing.
  void* Scratch(int64_t bytes);
  int64_t scratch_bytes() const { return scratch_bytes_; }  // with what only graphs use

  // In stream order. Host memory that is not pinned makes the call wait.
  void Copy(void* to, const void* from, int64_t bytes);
  void Zero(void* to, int64_t bytes);
  // Waits; an error of any kernel launched before is thrown here.
  void Synchronize();

  // Everything that `body` launches, as one graph that Replay runs again with the same addresses.
  class Graph {
   public:
    ~Graph();

   private:
    friend class CudaStream;
    CUgraphExec_st* exec_ = nullptr;
  };
  std::unique_ptr<Graph> Capture(const std::function<void()>& body);
  void Replay(const Graph& graph);
  bool capturing() const { return capturing_; }

  // The part of type T that an op keeps with the stream (a library's handle and plans), made on
  // first use.
  template <class T>
  T& Part() {
    std::shared_ptr<void>& part = parts_[typeid(T)];
    if (!part) part = std::make_shared<T>();
    return *static_cast<T*>(part.get());
  }

 private:
  void FreeScratch();

  CUstream_st* stream_ = nullptr;
  int device_, multiprocessors_ = 0, capability_ = 0;
  std::vector<std::byte*> scratch_;  // the last is the one in use; a graph may hold earlier ones
  int64_t scratch_capacity_ = 0, scratch_bytes_ = 0;
  bool capturing_ = false, captured_ = false;
  std::map<std::type_index, std::shared_ptr<void>> parts_;
};

// Host memory that the device copies from and to without waiting.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(int64_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

// A point in a stream's work.
class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void Record(CudaStream& stream);
  bool Done() const;
  void Wait() const;
  double MillisecondsSince(const CudaEvent& earlier) const;

 private:
  void* event_ = nullptr;
};

// Number of usable devices; 0 without a driver.
int CudaDevices();
// "NVIDIA H100 80GB HBM3"
std::string CudaDeviceName(int device);
// Free and total bytes of the current device.
struct DeviceMemory {
  int64_t free, total;
};
DeviceMemory CudaMemory();

// Device memory for arenas: zeroed. Error kOutOfMemory.
std::byte* AllocateOnDevice(int64_t bytes);
void FreeOnDevice(std::byte* memory);

}  // namespace weft
