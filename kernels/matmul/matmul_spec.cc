#include "kernels/base/op_spec.h"
#include "kernels/matmul/matmul_ref.h"

namespace weft {
namespace {

MatmulFwd Make(CaseMaker& make, int64_t B, int64_t T, int64_t N, int64_t K) {
  MatmulFwd f;
  f.x = make.In("x", {B, T, K});
  f.w = make.In("w", {N, K});
  f.y = make.Out("y", {B, T, N});
  return f;
}

}  // namespace

void AddOp_matmul(OpSuite& suite) {
  OpSpec<MatmulFwd, MatmulBwd> spec{.name = "matmul",
                                    .reference_f64 = MatmulRef<double>,
                                    .reference_complex = MatmulRef<std::complex<double>>};
  const auto law = [&](const char* label, int64_t B, int64_t T, int64_t N, int64_t K) {
    spec.laws.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, N, K); }});
  };
  law("T1_N1_K1", 1, 1, 1, 1);
  law("B2_T7_N3_K5", 2, 7, 3, 5);
  law("T65_N33_K17", 1, 65, 33, 17);
  law("B3_T63_N2_K300", 3, 63, 2, 300);
  law("T1_N1100_K3", 1, 1, 1100, 3);
  law("B2_T600_N5_K3", 2, 600, 5, 3);  // dw is summed in parts
  law("T64_N64_K64", 1, 64, 64, 64);
  law("T4096_N8_K16", 1, 4096, 8, 16);   // a GPU sums dw in parts
  law("B2_T40_N41_K90", 2, 40, 41, 90);  // on matrix tiles
  const auto bench = [&](const char* label, int64_t B, int64_t T, int64_t N, int64_t K) {
    spec.bench.push_back({label, [=](CaseMaker& make) { return Make(make, B, T, N, K); }});
  };
  bench("4096_N128_K128", 16, 256, 128, 128);
  bench("4096_N384_K128", 16, 256, 384, 128);
  bench("4096_N1024_K128", 16, 256, 1024, 128);
  bench("4096_N128_K512", 16, 256, 128, 512);
  bench("8192_N256_K256", 8, 1024, 256, 256);
  bench("8192_N768_K256", 8, 1024, 768, 256);
  bench("8192_N2048_K256", 8, 1024, 2048, 256);
  bench("8192_N256_K1024", 8, 1024, 256, 1024);
  const auto gpu_bench = [&](const char* label, int64_t rows, int64_t N, int64_t K) {
    spec.gpu_bench.push_back({label, [=](CaseMaker& make) { return Make(make, 1, rows, N, K); }});
  };
  gpu_bench("8192_N8192_K8192", 8192, 8192, 8192);
  gpu_bench("65536_N768_K768", 65536, 768, 768);
  gpu_bench("65536_N3072_K768", 65536, 3072, 768);
  gpu_bench("65536_N2048_K2048", 65536, 2048, 2048);
  gpu_bench("65536_N8192_K2048", 65536, 8192, 2048);
  // Queries, keys and values; output; gate and up; down; head: of models of width 256, 768, 2048.
  gpu_bench("32768_N768_K256", 32768, 768, 256);
  gpu_bench("32768_N256_K256", 32768, 256, 256);
  gpu_bench("32768_N2048_K256", 32768, 2048, 256);
  gpu_bench("32768_N256_K1024", 32768, 256, 1024);
  gpu_bench("32768_N2304_K768", 32768, 2304, 768);
  gpu_bench("32768_N768_K768", 32768, 768, 768);
  gpu_bench("32768_N6144_K768", 32768, 6144, 768);
  gpu_bench("32768_N768_K3072", 32768, 768, 3072);
  gpu_bench("4096_N50304_K768", 4096, 50304, 768);
  gpu_bench("16384_N6144_K2048", 16384, 6144, 2048);
  gpu_bench("16384_N2048_K2048", 16384, 2048, 2048);
  gpu_bench("16384_N16384_K2048", 16384, 16384, 2048);
  gpu_bench("16384_N2048_K8192", 16384, 2048, 8192);
  gpu_bench("4096_N50304_K2048", 4096, 50304, 2048);
  suite.Add(std::move(spec));
}

}  // namespace weft
