#include "kernels/base/op.h"

#include <cstring>

#ifdef WEFT_CUDA
#include "kernels/base/cuda_check.h"
#endif

namespace weft {

void Zero(Stream& stream, const TensorView& view) {
  if (auto* plan = std::get_if<PlanStream>(&stream)) {
    plan->bytes += static_cast<double>(view.bytes());
    return;
  }
  if (view.size() == 0) return;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  if (view.contiguous()) {
#ifdef WEFT_CUDA
    if (auto* cuda = std::get_if<CudaStream>(&stream))
      return cuda->Zero(view.data(), view.bytes());
#endif
    std::memset(view.data(), 0, size(view.bytes()));
    return;
  }
  const TensorView rows = view.Rows();
  Check(rows.dim(1) == 1 || rows.stride(1) == 1, view.name(),
        ": only memory with dense rows can be zeroed, found ", view.ToString());
  const int64_t width = rows.dim(1) * SizeOf(view.dtype()),
                pitch = rows.stride(0) * SizeOf(view.dtype());
#ifdef WEFT_CUDA
  if (auto* cuda = std::get_if<CudaStream>(&stream)) {
    return CudaCheck(cudaMemset2DAsync(rows.data(), size(pitch), 0, size(width), size(rows.dim(0)),
                                       cuda->handle()),
                     "cudaMemset2DAsync");
  }
#endif
  for (int64_t r = 0; r < rows.dim(0); ++r)
    std::memset(static_cast<std::byte*>(rows.data()) + r * pitch, 0, size(width));
}

void Copy(Stream& stream, const TensorView& to, const TensorView& from) {
  Check(to.contiguous() && from.contiguous() && to.bytes() == from.bytes(), to.name(),
        ": cannot be copied from ", from.ToString(), " to ", to.ToString());
  if (auto* plan = std::get_if<PlanStream>(&stream)) {
    plan->bytes += 2 * static_cast<double>(to.bytes());
    return;
  }
#ifdef WEFT_CUDA
  if (auto* cuda = std::get_if<CudaStream>(&stream))
    return cuda->Copy(to.data(), from.data(), from.bytes());
#endif
  std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
}

std::string LastName(const std::string& signature) {
  const size_t end = signature.find_first_of(";]", signature.find("Op = "));
  const size_t begin = signature.find_last_of(": ", end - 1) + 1;
  return signature.substr(begin, end - begin);
}

void Synchronize(Stream& stream) {
#ifdef WEFT_CUDA
  if (auto* cuda = std::get_if<CudaStream>(&stream)) cuda->Synchronize();
#endif
  static_cast<void>(stream);
}

}  // namespace weft
