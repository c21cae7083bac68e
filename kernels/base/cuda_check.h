#pragma once
// Checks of CUDA runtime calls, for .cu files and the host code beside them.

#include <cuda_runtime_api.h>

#include "kernels/base/cuda_library.h"

namespace weft {

inline void CudaCheck(cudaError_t error, const char* what) {
  if (error == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();  // a sticky error stays; any other must not be reported twice
  // The first launch of a kernel loads it, which may only say "unknown" where memory is too little.
  LibraryCheck(false, error == cudaErrorMemoryAllocation, what, ": ", cudaGetErrorName(error), ": ",
               cudaGetErrorString(error));
}

// After a kernel launch.
inline void CheckLaunch(const char* op) { CudaCheck(cudaGetLastError(), op); }

}  // namespace weft
