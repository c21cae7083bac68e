#include "experiments/train/device.h"

#include "experiments/run/environment.h"

namespace weft {

Device ChooseDevice(const Experiment& e) {
  Device device{e.device == "cuda", "cpu", DType::kF32};
#ifdef WEFT_CUDA
  const bool found = e.device != "cpu" && CudaDevices() > 0;
  device.cuda |= found;
  if (found) device.name = CudaDeviceName(0);
#endif
  if (device.cuda && device.name == "cpu") device.name = "cuda";
  if (e.train.precision == "bf16" && !device.cuda) {
    Fail(ExitCode::kUsage,
         "train.precision = \"bf16\": the CPU computes in f32 only; choose \"auto\" or \"f32\"");
  }
  if (device.cuda && e.train.precision != "f32") device.dtype = DType::kBF16;
  return device;
}

std::unique_ptr<Stream> OpenStream(const Experiment& e, const Device& device) {
  if (!device.cuda)
    return std::make_unique<Stream>(std::in_place_type<CpuStream>, static_cast<int>(e.threads));
#ifdef WEFT_CUDA
  auto stream = std::make_unique<Stream>(std::in_place_type<CudaStream>, 0);
  std::get<CudaStream>(*stream).deterministic = e.train.deterministic;
  return stream;
#else
  Fail(ExitCode::kUsage,
       "--device=cuda: this build has no CUDA backend; install the CUDA toolkit and build again");
#endif
}

int64_t Device::MemoryLimit() const {
#ifdef WEFT_CUDA
  if (cuda) return CudaMemory().free;
#endif
  return weft::MemoryLimit();
}

}  // namespace weft
