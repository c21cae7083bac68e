#include "kernels/matmul/gemm.h"

#include <cblas.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <limits>

#include "kernels/base/check.h"

namespace weft {
namespace {

// Weft's threads are the pool of a stream; a library must not start its own beneath them.
void UseOneThread() {
  [[maybe_unused]] static const bool openblas = (openblas_set_num_threads(1), true);
  [[maybe_unused]] thread_local const bool onednn = (omp_set_num_threads(1), true);
}

// Float by oneDNN, which packs less than OpenBLAS for the tall and flat products of a training
// step; double, which it lacks, by OpenBLAS.
void Run(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
         int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const dnnl_status_t status =
      dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  Check(status == dnnl_success, "gemm: ", m, " x ", n, " x ", k, ", leading dimensions ", lda, ", ",
        ldb, ", ", ldc, ": oneDNN refuses with status ", static_cast<int>(status));
}

void Run(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
         int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  Check(std::max({m, n, k, lda, ldb, ldc}) <= std::numeric_limits<blasint>::max(), "gemm: ", m,
        " x ", n, " x ", k, ", leading dimensions ", lda, ", ", ldb, ", ", ldc,
        ": OpenBLAS takes at most 2147483647");
  const auto i = [](int64_t v) { return static_cast<blasint>(v); };
  cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, i(m),
              i(n), i(k), alpha, a, i(lda), b, i(ldb), beta, c, i(ldc));
}

}  // namespace

template <class T>
void Gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
          int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (k == 0) {  // oneDNN leaves C alone then
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t j = 0; j < n; ++j) c[r * ldc + j] = beta == 0 ? T{0} : beta * c[r * ldc + j];
    }
    return;
  }
  if (m == 0 || n == 0) return;
  UseOneThread();
  Run(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

template void Gemm(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t,
                   const float*, int64_t, float, float*, int64_t);
template void Gemm(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                   const double*, int64_t, double, double*, int64_t);

}  // namespace weft
