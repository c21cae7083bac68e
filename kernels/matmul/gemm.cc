#include "kernels/matmul/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <limits>

#include "kernels/base/check.h"

namespace weft {
namespace {

// Weft's threads are the pool of a stream; OpenBLAS must not start its own beneath them.
void UseOneThread() {
  [[maybe_unused]] static const bool once = (openblas_set_num_threads(1), true);
}

void Run(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, blasint m, blasint n, blasint k, float alpha,
         const float* a, blasint lda, const float* b, blasint ldb, float beta, float* c,
         blasint ldc) {
  cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void Run(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, blasint m, blasint n, blasint k, double alpha,
         const double* a, blasint lda, const double* b, blasint ldb, double beta, double* c,
         blasint ldc) {
  cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace

template <class T>
void Gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  Check(std::max({m, n, k, lda, ldb, ldc}) <= std::numeric_limits<blasint>::max(), "gemm: ", m,
        " x ", n, " x ", k, ", leading dimensions ", lda, ", ", ldb, ", ", ldc,
        ": OpenBLAS takes at most 2147483647");
  UseOneThread();
  const auto i = [](int64_t v) { return static_cast<blasint>(v); };
  Run(trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, i(m), i(n), i(k),
      alpha, a, i(lda), b, i(ldb), beta, c, i(ldc));
}

template void Gemm(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t,
                   const float*, int64_t, float, float*, int64_t);
template void Gemm(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                   const double*, int64_t, double, double*, int64_t);

}  // namespace weft
