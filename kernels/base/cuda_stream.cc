#ifdef WEFT_CUDA

#include "kernels/base/cuda_stream.h"

#include <algorithm>
#include <mutex>
#include <shared_mutex>

#include "kernels/base/cuda_check.h"

namespace weft {
namespace {

constexpr int64_t kLeastScratch = 32 << 20;

// Shared while a graph is captured. A library's handle synchronises the device as it ends, which
// breaks captures in other threads: so it waits for them.
std::shared_mutex captures;

std::byte* Allocate(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const DeviceMemory left = CudaMemory();
    Fail(ExitCode::kOutOfMemory, "out of memory: ", bytes >> 20, " MiB asked for, ",
         left.free >> 20, " of ", left.total >> 20,
         " MiB are free on the device; raise train.accumulate or reduce train.batch, train.length "
         "or the model");
  }
  CudaCheck(error, "cudaMalloc");
  return static_cast<std::byte*>(memory);
}

}  // namespace

CudaStream::CudaStream(int device) : device_(device) {
  Check(device >= 0, "device ", device, " is negative");
  const int devices = CudaDevices();
  if (device >= devices) {
    Fail(ExitCode::kUsage, "device cuda:", device, " is not there: found ", devices,
         " CUDA devices; choose --device=cpu or another number");
  }
  CudaCheck(cudaSetDevice(device), "cudaSetDevice");
  CudaCheck(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  int major = 0, minor = 0;
  CudaCheck(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
            "cudaDeviceGetAttribute");
  CudaCheck(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
            "cudaDeviceGetAttribute");
  CudaCheck(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
            "cudaDeviceGetAttribute");
  capability_ = major * 10 + minor;
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_);
  {
    const std::lock_guard none(captures);
    parts_.clear();
  }
  FreeScratch();
  cudaStreamDestroy(stream_);
}

void CudaStream::FreeScratch() {
  for (std::byte* memory : scratch_) FreeOnDevice(memory);
  scratch_.clear();
  scratch_capacity_ = scratch_bytes_ = 0;
}

void* CudaStream::Scratch(int64_t bytes) {
  if (bytes > scratch_capacity_) {
    Check(!capturing_, "scratch memory of ", bytes, " bytes is asked for during capture, ",
          scratch_capacity_, " are there; the first, uncaptured run has not asked for it");
    if (!captured_) {
      Synchronize();
      FreeScratch();
    }
    const int64_t capacity = std::max(bytes, kLeastScratch);
    scratch_.push_back(Allocate(capacity));
    scratch_capacity_ = capacity, scratch_bytes_ += capacity;
  }
  return scratch_.empty() ? nullptr : scratch_.back();
}

void CudaStream::Copy(void* to, const void* from, int64_t bytes) {
  CudaCheck(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
            "cudaMemcpyAsync");
}

void CudaStream::Zero(void* to, int64_t bytes) {
  CudaCheck(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_), "cudaMemsetAsync");
}

void CudaStream::Synchronize() {
  CudaCheck(cudaStreamSynchronize(stream_), "a kernel of this stream");
}

std::unique_ptr<CudaStream::Graph> CudaStream::Capture(const std::function<void()>& body) {
  auto graph = std::make_unique<Graph>();
  std::shared_lock lock(captures);
  CudaCheck(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "begin of capture");
  capturing_ = captured_ = true;
  cudaGraph_t captured = nullptr;
  try {
    body();
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream_, &captured);
    if (captured) cudaGraphDestroy(captured);
    throw;
  }
  capturing_ = false;
  CudaCheck(cudaStreamEndCapture(stream_, &captured), "end of capture");
  lock.unlock();
  const cudaError_t error = cudaGraphInstantiate(&graph->exec_, captured, 0);
  cudaGraphDestroy(captured);
  CudaCheck(error, "cudaGraphInstantiate");
  return graph;
}

void CudaStream::Replay(const Graph& graph) {
  CudaCheck(cudaGraphLaunch(graph.exec_, stream_), "cudaGraphLaunch");
}

CudaStream::Graph::~Graph() {
  if (exec_) cudaGraphExecDestroy(exec_);
}

PinnedBuffer::PinnedBuffer(int64_t bytes) {
  void* memory = nullptr;
  CudaCheck(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault),
            "cudaHostAlloc");
  data_ = static_cast<std::byte*>(memory);
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

CudaEvent::CudaEvent() {
  cudaEvent_t event;
  CudaCheck(cudaEventCreate(&event), "cudaEventCreate");
  event_ = event;
}

CudaEvent::~CudaEvent() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }

void CudaEvent::Record(CudaStream& stream) {
  CudaCheck(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream.handle()), "cudaEventRecord");
}

bool CudaEvent::Done() const {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  if (error == cudaErrorNotReady) return false;
  CudaCheck(error, "a kernel before this event");
  return true;
}

void CudaEvent::Wait() const {
  CudaCheck(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "a kernel before this event");
}

double CudaEvent::MillisecondsSince(const CudaEvent& earlier) const {
  float ms = 0;
  CudaCheck(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier.event_),
                                 static_cast<cudaEvent_t>(event_)),
            "cudaEventElapsedTime");
  return ms;
}

int CudaDevices() {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return n;
}

std::string CudaDeviceName(int device) {
  cudaDeviceProp properties;
  CudaCheck(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

DeviceMemory CudaMemory() {
  size_t free = 0, total = 0;
  CudaCheck(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

std::byte* AllocateOnDevice(int64_t bytes) {
  std::byte* memory = Allocate(bytes);
  CudaCheck(cudaMemset(memory, 0, static_cast<size_t>(bytes)), "cudaMemset");
  CudaCheck(cudaStreamSynchronize(nullptr), "cudaMemset");
  return memory;
}

void FreeOnDevice(std::byte* memory) { cudaFree(memory); }

}  // namespace weft

#endif
