// links: weft_kernels
// Attention through cuDNN takes the shapes that training uses, agrees with the CPU and, at size,
// with the tensor-core kernel; the forward gives the same bits on every run, captured ones
// included.

#ifdef WEFT_CUDNN

#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/base/arena.h"
#include "kernels/base/op_spec.h"

namespace weft {
namespace {

struct Sizes {
  const char* name;
  int64_t B, Tq, Tk, H, Hkv, K, V, window = 0;
  std::vector<int64_t> documents = {};  // lengths, repeated

  friend void PrintTo(const Sizes& s, std::ostream* out) { *out << s.name; }
};

// The tensors of one attention in one arena: q, k and v are slices of one projection, and so are
// their gradients.
struct Problem {
  Problem(const Sizes& s, DType dtype, Memory memory)
      : arena(Arena::Mode::kPlain,
              2 * SizeOf(dtype) * s.B * s.Tk * (s.H + s.Hkv) * (s.K + s.V) + 8 * s.B * s.Tk * s.H +
                  (1 << 20),
              memory) {
    AttentionFwd& f = bwd.fwd;
    f.scale = 1 / std::sqrt(static_cast<double>(s.K));
    f.window = s.window;
    const auto merged = [&](const char* name, TensorView& q, TensorView& k, TensorView& v) {
      const int64_t queries = s.H * s.K, keys = s.Hkv * s.K, values = s.Hkv * s.V;
      const TensorView all = arena.Alloc(dtype, {s.B, s.Tk, queries + keys + values}, name);
      q = all.Slice(1, s.Tk - s.Tq, s.Tq).Slice(2, 0, queries).Split(2, s.H, s.K);
      k = all.Slice(2, queries, keys).Split(2, s.Hkv, s.K);
      v = all.Slice(2, queries + keys, values).Split(2, s.Hkv, s.V);
      return all;
    };
    in = {merged("qkv", f.q, f.k, f.v), arena.Alloc(dtype, {s.B, s.Tq, s.H, s.V}, "dy")};
    bwd.dy = in[1];
    f.y = arena.Alloc(dtype, {s.B, s.Tq, s.H, s.V}, "y");
    f.lse = arena.Alloc(Wide(dtype), {s.B, s.H, s.Tq}, "lse");
    merged("dqkv", bwd.dq, bwd.dk, bwd.dv);
    bwd.dq.accumulate = bwd.dk.accumulate = bwd.dv.accumulate = false;
    if (!s.documents.empty()) f.doc_start = arena.Alloc(DType::kI32, {s.B, s.Tk}, "doc_start");
  }
  void Fill(const Sizes& s) {  // on the host, with bf16 numbers
    Rng rng(1, Purpose::kTest, 0);
    for (const TensorView& view : in) {
      const auto value = [&] { return ToBF16(static_cast<float>(rng.Normal())); };
      if (view.dtype() == DType::kBF16)
        ForEach<uint16_t>(view, [&](int64_t, uint16_t* p) { *p = value(); });
      if (view.dtype() == DType::kF32)
        ForEach<float>(view, [&](int64_t, float* p) { *p = FromBF16(value()); });
    }
    if (s.documents.empty()) return;
    for (int64_t b = 0, d = 0; b < s.B; ++b) {
      int64_t begin = 0, end = 0;
      for (int64_t t = 0; t < s.Tk; ++t) {
        if (t == end) {
          begin = t;
          end = t + s.documents[static_cast<size_t>(d++) % s.documents.size()];
        }
        bwd.fwd.doc_start.Data<int32_t>()[b * s.Tk + t] = static_cast<int32_t>(begin);
      }
    }
  }
  std::vector<TensorView> Outputs() const {
    return {bwd.fwd.y, bwd.fwd.lse, bwd.dq, bwd.dk, bwd.dv};
  }

  Arena arena;
  AttentionBwd bwd;
  std::vector<TensorView> in;
};

std::vector<float> Read(const TensorView& view) {
  std::vector<float> all(static_cast<size_t>(view.size()));
  const auto put = [&](int64_t i, float x) { all[static_cast<size_t>(i)] = x; };
  if (view.dtype() == DType::kBF16)
    ForEach<uint16_t>(view, [&](int64_t i, uint16_t* p) { put(i, FromBF16(*p)); });
  if (view.dtype() == DType::kF32) ForEach<float>(view, [&](int64_t i, float* p) { put(i, *p); });
  return all;
}

void ExpectClose(const Problem& a, const Problem& b) {
  const auto got = a.Outputs(), expected = b.Outputs();
  for (size_t i = 0; i < got.size(); ++i) {
    const std::vector<float> x = Read(got[i]), y = Read(expected[i]);
    double difference = 0, norm = 0;
    for (size_t j = 0; j < x.size(); ++j) {
      difference += (x[j] - y[j]) * (x[j] - y[j]);
      norm += y[j] * y[j];
    }
    const char* names[] = {"y", "lse", "dq", "dk", "dv"};
    EXPECT_LE(std::sqrt(difference / norm), 4 * 0x1p-8) << names[i];
  }
}

class CudnnAttentionLaw : public testing::TestWithParam<Sizes> {};

TEST_P(CudnnAttentionLaw, AgreesWithTheCpu) {
  const Sizes& s = GetParam();
  Problem truth(s, DType::kF32, Memory::kHost), host(s, DType::kBF16, Memory::kHost);
  Stream cpu(std::in_place_type<CpuStream>, 0);
  truth.Fill(s);
  Launch(cpu, truth.bwd.fwd);
  Launch(cpu, truth.bwd);

  CudaStream stream(0);
  Problem device(s, DType::kBF16, Memory::kDevice);
  const int64_t bytes = host.arena.used(), forward = device.bwd.fwd.y.bytes();
  const auto run = [&] {
    ASSERT_TRUE(CudnnAttention(stream, device.bwd.fwd));
    ASSERT_TRUE(CudnnAttention(stream, device.bwd));
  };
  host.Fill(s);
  std::vector<std::byte> first;
  for (const bool captured : {false, false, true}) {
    stream.Copy(device.arena.base(), host.arena.base(), bytes);
    stream.Synchronize();
    if (captured) {
      const auto graph = stream.Capture(run);
      stream.Replay(*graph);
    } else {
      run();
    }
    std::vector<std::byte> bits(static_cast<size_t>(forward));
    stream.Copy(bits.data(), device.bwd.fwd.y.data(), forward);
    stream.Synchronize();
    if (first.empty()) first = bits;
    EXPECT_EQ(first, bits) << (captured ? "captured" : "again");
  }
  stream.Copy(host.arena.base(), device.arena.base(), bytes);
  stream.Synchronize();
  ExpectClose(host, truth);
}

INSTANTIATE_TEST_SUITE_P(
    Gpu, CudnnAttentionLaw,
    testing::Values(Sizes{"T512_D64", 2, 512, 512, 4, 4, 64, 64},
                    Sizes{"T384_D128", 2, 384, 384, 3, 3, 128, 128},
                    Sizes{"T300_K40_V24", 1, 300, 300, 2, 2, 40, 24},
                    Sizes{"T65_D16", 2, 65, 65, 2, 2, 16, 16}, Sizes{"T9_D8", 2, 9, 9, 2, 2, 8, 8},
                    Sizes{"grouped_T260_D64", 2, 260, 260, 6, 2, 64, 64},
                    Sizes{"window100_T600_D64", 1, 600, 600, 2, 2, 64, 64, 100},
                    Sizes{"window2_T130_D32", 1, 130, 130, 2, 2, 32, 32, 2},
                    Sizes{"cache_Tq70_Tk200_D64", 2, 70, 200, 2, 1, 64, 64},
                    Sizes{"documents_T512_D64", 2, 512, 512, 4, 4, 64, 64, 0, {100, 1, 300, 17}},
                    Sizes{"documents_T333_D128", 2, 333, 333, 2, 1, 128, 128, 0, {64, 128, 1, 200}},
                    Sizes{"documents_window50_T300", 1, 300, 300, 2, 2, 64, 64, 50, {70, 33, 130}},
                    Sizes{"T200_D192", 1, 200, 200, 2, 2, 192, 192},
                    Sizes{"T200_K96_V192", 1, 200, 200, 2, 2, 96, 192},
                    Sizes{"T200_D256", 1, 200, 200, 2, 2, 256, 256}),
    [](const auto& info) { return std::string(info.param.name); });

class CudnnAttentionAtSize : public testing::TestWithParam<Sizes> {};

TEST_P(CudnnAttentionAtSize, AgreesWithTheTensorCoreKernel) {
  const Sizes& s = GetParam();
  CudaStream stream(0);
  Problem cudnn(s, DType::kBF16, Memory::kHost), own(s, DType::kBF16, Memory::kHost);
  Problem device(s, DType::kBF16, Memory::kDevice);
  cudnn.Fill(s);
  const int64_t bytes = device.arena.used();
  for (Problem* host : {&cudnn, &own}) {
    stream.Copy(device.arena.base(), cudnn.arena.base(), bytes);
    stream.Synchronize();
    if (host == &cudnn) {
      ASSERT_TRUE(CudnnAttention(stream, device.bwd.fwd));
      ASSERT_TRUE(CudnnAttention(stream, device.bwd));
    } else {
      ASSERT_TRUE(TensorCoreAttention(stream, device.bwd.fwd));
      ASSERT_TRUE(TensorCoreAttention(stream, device.bwd));
    }
    stream.Copy(host->arena.base(), device.arena.base(), bytes);
    stream.Synchronize();
  }
  ExpectClose(cudnn, own);
}

INSTANTIATE_TEST_SUITE_P(
    Gpu, CudnnAttentionAtSize,
    testing::Values(Sizes{"B16_T2048_H6_D128", 16, 2048, 2048, 6, 6, 128, 128},
                    Sizes{"B4_T4096_H16_D128", 4, 4096, 4096, 16, 16, 128, 128},
                    Sizes{"B32_T1024_H4_D64", 32, 1024, 1024, 4, 4, 64, 64},
                    Sizes{"B3_T8192_H16_Hkv4_D128", 3, 8192, 8192, 16, 4, 128, 128},
                    Sizes{"window_B8_T2048_D128", 8, 2048, 2048, 6, 2, 128, 128, 500},
                    Sizes{
                        "documents_B8_T2048", 8, 2048, 2048, 6, 6, 128, 128, 0, {700, 100, 1500}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace weft

#endif
