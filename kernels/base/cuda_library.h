#pragma once
// Checks of calls of CUDA's libraries, which take device memory for their handles and their
// kernels.

#include <cuda_runtime_api.h>

#include "kernels/base/check.h"

namespace weft {

// Error kOutOfMemory where the library says that it is, or where so little memory is left that any
// status may mean that (cublasLtCreate only says that it could not start); otherwise kFailure.
template <class... Parts>
void LibraryCheck(bool ok, bool out_of_memory, const Parts&... parts) {
  if (ok) [[likely]]
    return;
  constexpr size_t kLittle = 64 << 20;
  size_t free = 0, total = 0;
  const bool known = cudaMemGetInfo(&free, &total) == cudaSuccess;
  cudaGetLastError();
  if (!out_of_memory && !(known && free < kLittle)) Fail(ExitCode::kFailure, parts...);
  Fail(ExitCode::kOutOfMemory, "out of memory: ", parts..., "; ", free >> 20, " of ", total >> 20,
       " MiB are free on the device; raise train.accumulate or reduce train.batch, train.length or "
       "the model");
}

}  // namespace weft
