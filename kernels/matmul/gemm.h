#pragma once
// C = alpha op(A) op(B) + beta C on the calling thread, row-major, where op(X) is X or X^T:
//
//   op(A) [m, k],   op(B) [k, n],   C [m, n]
//
// ld* is the distance between the rows of a matrix as it is stored. T is float or double. With
// beta = 0 what C held does not matter, NaN included. Any number of threads may call it at once;
// oneDNN (float) or OpenBLAS (double) does it. gemm_amx.h has a faster one for large products in
// float.

#include <cstdint>

namespace weft {

template <class T>
void Gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);

}  // namespace weft
