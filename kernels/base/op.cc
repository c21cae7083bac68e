#include "kernels/base/op.h"

#include <cstring>

namespace weft {

void Zero(Stream& stream, const TensorView& view) {
  Check(view.contiguous(), view.name(), ": only dense memory can be zeroed, found ",
        view.ToString());
  if (auto* plan = std::get_if<PlanStream>(&stream)) {
    plan->bytes += static_cast<double>(view.bytes());
    return;
  }
#ifdef WEFT_CUDA
  if (auto* cuda = std::get_if<CudaStream>(&stream)) return cuda->Zero(view.data(), view.bytes());
#endif
  std::memset(view.data(), 0, static_cast<size_t>(view.bytes()));
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
