#include "experiments/train/device.h"

#include "experiments/run/environment.h"

namespace weft {

Device ChooseDevice(const Experiment& e) {
  Device device{false, "cpu", DType::kF32};
#ifdef WEFT_CUDA
  device.cuda = e.device == "cuda" || (e.device == "auto" && CudaDevices() > 0);
  if (device.cuda && CudaDevices() == 0)
    Fail(ExitCode::kUsage, "--device=cuda: no GPU is found; choose --device=cpu");
  if (device.cuda) device.name = CudaDeviceName(0);
#else
  if (e.device == "cuda") {
    Fail(ExitCode::kUsage,
         "--device=cuda: this build has no CUDA backend; install the CUDA toolkit and build again");
  }
#endif
  if (e.train.precision == "bf16" && !device.cuda) {
    Fail(ExitCode::kUsage,
         "train.precision = \"bf16\": the CPU computes in f32 only; choose \"auto\" or \"f32\"");
  }
  if (device.cuda && e.train.precision != "f32") device.dtype = DType::kBF16;
  return device;
}

std::unique_ptr<Stream> OpenStream(const Experiment& e, const Device& device) {
#ifdef WEFT_CUDA
  if (device.cuda) return std::make_unique<Stream>(std::in_place_type<CudaStream>, 0);
#endif
  static_cast<void>(device);
  return std::make_unique<Stream>(std::in_place_type<CpuStream>, static_cast<int>(e.threads));
}

int64_t Device::MemoryLimit() const {
#ifdef WEFT_CUDA
  if (cuda) return CudaMemory().free;
#endif
  return weft::MemoryLimit();
}

}  // namespace weft
