#pragma once
// C (+)= op(A) op(B) in float on the matrix tiles (AMX) of an x86 core, row-major; sizes and
// leading dimensions are those of gemm.h. Bits do not depend on the number of threads.

#include <cstdint>

#include "kernels/base/stream.h"

namespace weft {

// Whether this machine has AMX for bf16 and the system lets this process use it.
bool HasAmx();

// Only where HasAmx(). m, n, k >= 1.
void AmxGemm(CpuStream& stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
             const float* a, int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c,
             int64_t ldc);

}  // namespace weft
