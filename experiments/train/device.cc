#include "experiments/train/device.h"

#include "experiments/run/environment.h"

namespace weft {

Device ChooseDevice(const std::string& name, const std::string& precision) {
  Device device{name == "cuda", name == "cuda" ? "cuda" : "cpu"};
#ifdef WEFT_CUDA
  if (name != "cpu" && CudaDevices() > 0) device.cuda = true, device.name = CudaDeviceName(0);
#endif
  if (precision == "bf16" && !device.cuda) {
    Fail(ExitCode::kUsage,
         "train.precision = \"bf16\": the CPU computes in f32 only; choose \"auto\" or \"f32\"");
  }
  if (device.cuda && precision != "f32") device.dtype = DType::kBF16;
  return device;
}

Device ChooseDevice(const Experiment& e) {
  Device device = ChooseDevice(e.device, e.train.precision);
  device.deterministic = e.train.deterministic;
  return device;
}

std::unique_ptr<Stream> OpenStream(const Device& device, int64_t threads) {
  if (!device.cuda)
    return std::make_unique<Stream>(std::in_place_type<CpuStream>, static_cast<int>(threads));
#ifdef WEFT_CUDA
  auto stream = std::make_unique<Stream>(std::in_place_type<CudaStream>, 0);
  std::get<CudaStream>(*stream).deterministic = device.deterministic;
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
