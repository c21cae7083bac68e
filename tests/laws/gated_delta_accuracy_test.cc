// links: weft_kernels
// How far the gated delta rule of a GPU in bf16 is from the recurrence in f64 on the same inputs,
// over long sequences and keys that make it hard: clustered ones, repeated ones, no decay. With
// WEFT_ACCURACY_DIR set, what went in and came out is left there, so that
// tests/bench/peers/gated_delta_fla.py can give the same numbers to another kernel.

#include <gtest/gtest.h>

#ifdef WEFT_CUDA

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>

#include "kernels/base/op_spec.h"
#include "kernels/gated_delta/gated_delta_ref.h"

namespace weft {
namespace {

struct AccuracyCase {
  const char* label;
  int64_t B, T, H, K, V;
  int bases;         // keys are one of so many, 0: independent
  double spread;     // plus noise of this size, then of length 1
  double beta[2];    // from, to
  double decay;      // log_a = -decay U softplus(-4.6 + N)
  int64_t document;  // length of documents, 0: one
  double limit;
  double gradient_limit = 1.5e-2;
  bool projected = false;  // gates from projections; beta up to beta[1]
};

// log_a of a layer at its initial values: exp(A_log) U(0, 16), dt from 1e-3 up.
constexpr double kDecay = 8, kLimit = 7e-3, kNoDecayLimit = 5e-2;
// The same key at every token and negative eigenvalues: what tokens write alternates in sign, and
// an output is the small rest of 64 products of bf16 numbers, for any kernel that multiplies those.
// So is what a decay matters to the outputs: little, since each write takes back the one before.
constexpr double kRepeatedLimit = 1.2e-2, kRepeatedGradientLimit = 5e-2;
// With beta = 2 and no decay every token flips the state along that key and nothing is ever lost:
// what the gates' gradient is the rest of grows with the sequence.
constexpr double kFlippedLimit = 1e-1, kFlippedGradientLimit = 0.25;

const AccuracyCase kCases[] = {
    {"K128_V128_random", 1, 2048, 2, 128, 128, 0, 0, {0, 1}, kDecay, 0, kLimit},
    {"K96_V192_clustered", 1, 2048, 2, 96, 192, 4, 0.3, {0, 2}, kDecay, 0, kLimit},
    {"K96_V192_random_T8192", 1, 8192, 1, 96, 192, 0, 0, {0, 2}, kDecay, 0, kLimit},
    {"K128_V128_no_decay", 1, 1000, 2, 128, 128, 0, 0, {0, 2}, 0, 0, kLimit},
    {"K128_V256_near_identical", 1, 1500, 1, 128, 256, 1, 0.1, {1, 1}, 0, 0, kLimit},
    {"K64_V64_repeated",
     1,
     1000,
     2,
     64,
     64,
     1,
     0,
     {0, 1},
     kDecay,
     0,
     kLimit,
     kRepeatedGradientLimit},
    {"K64_V64_repeated_negative",
     1,
     1000,
     2,
     64,
     64,
     1,
     0,
     {0, 2},
     kDecay,
     0,
     kRepeatedLimit,
     kRepeatedGradientLimit},
    {"K64_V128_clustered", 2, 777, 2, 64, 128, 4, 0.3, {0, 2}, kDecay, 0, kLimit},
    {"K48_V96_documents", 2, 1001, 3, 48, 96, 4, 0.3, {0, 2}, kDecay, 77, kLimit},
    {"K96_V192_documents", 2, 515, 2, 96, 192, 0, 0, {0, 2}, kDecay, 129, kLimit},
    {"K96_V192_clustered_norm_preserving",
     1,
     2048,
     1,
     96,
     192,
     4,
     0.3,
     {1.99, 1.99},
     0,
     0,
     kNoDecayLimit,
     kNoDecayLimit},
    {"K128_V128_clustered_norm_preserving_T8192",
     1,
     8192,
     1,
     128,
     128,
     4,
     0.3,
     {1.99, 1.99},
     0,
     0,
     kNoDecayLimit,
     kNoDecayLimit},
    {"K128_V128_near_identical_norm_preserving",
     1,
     2048,
     1,
     128,
     128,
     1,
     0.1,
     {1.99, 1.99},
     0,
     0,
     kNoDecayLimit,
     kNoDecayLimit},
    {"K128_V128_repeated_norm_preserving",
     1,
     1024,
     1,
     128,
     128,
     1,
     0,
     {2, 2},
     0,
     0,
     kFlippedLimit,
     kFlippedGradientLimit},
    {"K128_V128_long_sequence_few_heads", 1, 8192, 2, 128, 128, 4, 0.3, {0, 2}, 0.01, 0, kLimit},
    {"K96_V192_projected", 2, 1000, 3, 96, 192, 4, 0.3, {0, 2}, 0, 129, kLimit, 1.5e-2, true},
    {"K128_V128_projected_few_heads",
     1,
     8192,
     2,
     128,
     128,
     0,
     0,
     {0, 1},
     0,
     0,
     kLimit,
     1.5e-2,
     true},
};

Fill Keys(const AccuracyCase& c) {
  return
      [c, bases = std::vector<double>(), key = std::vector<double>()](Rng& rng, int64_t i) mutable {
        const auto width = static_cast<size_t>(c.K), at = static_cast<size_t>(i) % width;
        if (bases.empty()) {
          bases.resize(static_cast<size_t>(c.bases) * width);
          for (double& x : bases) x = rng.Normal();
          key.resize(width);
        }
        if (at == 0) {
          const size_t base = c.bases ? rng.Below(static_cast<uint32_t>(c.bases)) * width : 0;
          double squares = 0;
          for (size_t d = 0; d < width; ++d) {
            key[d] = c.bases ? bases[base + d] + c.spread * rng.Normal() : rng.Normal();
            squares += key[d] * key[d];
          }
          for (double& x : key) x /= std::sqrt(squares);
        }
        return key[at];
      };
}

GatedDeltaFwd Make(CaseMaker& make, const AccuracyCase& c, bool states) {
  GatedDeltaFwd f{.scale = 1 / std::sqrt(static_cast<double>(c.K))};
  f.q = make.In("q", {c.B, c.T, c.H, c.K});
  f.k = make.In("k", {c.B, c.T, c.H, c.K}, Keys(c));
  f.v = make.In("v", {c.B, c.T, c.H, c.V});
  if (c.projected) {
    f.gate_a = make.In("gate_a", {c.B, c.T, c.H});
    f.gate_b = make.In("gate_b", {c.B, c.T, c.H});
    f.a_log = make.WideIn("a_log", {c.H}, Uniform(-1, 1));
    f.dt_bias = make.WideIn("dt_bias", {c.H}, Uniform(-4, -2));
    f.beta_scale = c.beta[1];
  } else {
    f.beta = make.WideIn("beta", {c.B, c.T, c.H}, Uniform(c.beta[0], c.beta[1]));
    f.log_a = make.WideIn("log_a", {c.B, c.T, c.H}, [&](Rng& rng, int64_t) {
      return -c.decay * rng.Uniform(0, 1) * std::log1p(std::exp(-4.6 + rng.Normal()));
    });
  }
  if (c.document) {
    f.doc_start = make.Int("doc_start", {c.B, c.T}, [&](Rng&, int64_t i) {
      return static_cast<double>(i % c.T / c.document * c.document);
    });
  }
  f.initial = make.WideIn("initial", {c.B, c.H, c.K, c.V}, Normal(0.3));
  f.y = make.Out("y", {c.B, c.T, c.H, c.V});
  f.final_state = make.WideOut("final_state", {c.B, c.H, c.K, c.V});
  if (states) f.states = make.Out("states", {c.B, GatedDeltaChunks(c.T), c.H, c.K * c.V});
  return f;
}

constexpr int64_t kArenaBytes = int64_t{1} << 28;

void RunOnGpu(CudaStream& stream, Arena& arena, GatedDeltaFwd f) {
  Arena device(Arena::Mode::kPlain, arena.used(), Memory::kDevice);
  stream.Copy(device.base(), arena.base(), arena.used());
  GatedDeltaFwd::Visit(f, op_spec_internal::Shift{device.base() - arena.base()});
  Run(stream, f);
  stream.Copy(arena.base(), device.base(), arena.used());
  stream.Synchronize();
}

void RunOnGpu(CudaStream& stream, Arena& arena, GatedDeltaBwd g) {
  Arena device(Arena::Mode::kPlain, arena.used(), Memory::kDevice);
  stream.Copy(device.base(), arena.base(), arena.used());
  op_spec_internal::Shift shift{device.base() - arena.base()};
  GatedDeltaFwd::Visit(g.fwd, shift);
  GatedDeltaBwd::Visit(g, shift);
  Run(stream, g.fwd);
  Run(stream, g);
  stream.Copy(arena.base(), device.base(), arena.used());
  stream.Synchronize();
}

double Value(const TensorView& x, int64_t i) {
  if (x.dtype() == DType::kF64) return x.Data<double>()[i];
  return x.dtype() == DType::kF32 ? x.Data<float>()[i] : FromBF16(x.Data<uint16_t>()[i]);
}

double Error(const TensorView& found, const TensorView& expected) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < found.size(); ++i) {
    const double a = Value(found, i), b = Value(expected, i);
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  return std::sqrt(difference / norm);
}

// LABEL.json has the sizes, LABEL.q and so on the bytes of a dense tensor, LABEL.expected those of
// the recurrence's outputs in f64.
void WriteCase(const std::string& directory, const AccuracyCase& c, const GatedDeltaFwd& found,
               const GatedDeltaFwd& expected) {
  const std::string path = directory + "/" + c.label;
  std::ofstream(path + ".json") << "{\"B\": " << c.B << ", \"T\": " << c.T << ", \"H\": " << c.H
                                << ", \"K\": " << c.K << ", \"V\": " << c.V << "}";
  const auto write = [&](const char* name, const TensorView& x) {
    std::ofstream out(path + "." + name, std::ios::binary);
    out.write(x.Data<char>(), x.bytes());
    Check(out.good(), path, ".", name, ": cannot be written");
  };
  for (const TensorView* x : {&found.q, &found.k, &found.v, &found.beta, &found.log_a,
                              &found.initial, &found.y, &found.final_state})
    write(x->name(), *x);
  write("expected", expected.y);
  write("expected_final", expected.final_state);
}

class GpuGatedDeltaAccuracy : public testing::TestWithParam<AccuracyCase> {};

TEST_P(GpuGatedDeltaAccuracy, OutputsAreThoseOfTheRecurrence) {
  const AccuracyCase& c = GetParam();
  Arena truth(Arena::Mode::kPlain, 4 * kArenaBytes);
  CaseMaker exact(truth, DType::kF64, 0, /*bf16_values=*/true);
  const GatedDeltaFwd expected = Make(exact, c, false);
  GatedDeltaRef<double>(expected);
  CudaStream stream(0);
  for (const bool states : {false, true}) {
    Arena arena(Arena::Mode::kPlain, kArenaBytes);
    CaseMaker rounded(arena, DType::kBF16, 0, /*bf16_values=*/true);
    const GatedDeltaFwd found = Make(rounded, c, states);
    RunOnGpu(stream, arena, found);
    const double y = Error(found.y, expected.y), s = Error(found.final_state, expected.final_state);
    EXPECT_LE(y, c.limit);
    EXPECT_LE(s, c.limit);
    printf("%-45s states %d  y %.2e  final %.2e\n", c.label, states, y, s);
    const char* directory = std::getenv("WEFT_ACCURACY_DIR");
    if (directory && !states && !c.document && !c.projected)
      WriteCase(directory, c, found, expected);
  }
}

TEST_P(GpuGatedDeltaAccuracy, GradientsAreThoseOfTheRecurrence) {
  const AccuracyCase& c = GetParam();
  const auto make_backward = [&](Arena& arena, DType dtype) {
    CaseMaker make(arena, dtype, 0, /*bf16_values=*/true);
    GatedDeltaBwd g{.fwd = Make(make, c, true)};
    GatedDeltaBwd::Visit(g, op_spec_internal::BuildBackward{make});
    GatedDeltaBwd::Visit(g, op_spec_internal::SetAccumulate{false});
    return g;
  };
  Arena truth(Arena::Mode::kPlain, 8 * kArenaBytes), arena(Arena::Mode::kPlain, 2 * kArenaBytes);
  const GatedDeltaBwd expected = make_backward(truth, DType::kF64),
                      found = make_backward(arena, DType::kBF16);
  GatedDeltaGradientsRef<double>(expected);
  CudaStream stream(0);
  RunOnGpu(stream, arena, found);
  printf("%-45s", c.label);
  for (const auto d :
       {&GatedDeltaBwd::dq, &GatedDeltaBwd::dk, &GatedDeltaBwd::dv, &GatedDeltaBwd::dbeta,
        &GatedDeltaBwd::dlog_a, &GatedDeltaBwd::dgate_a, &GatedDeltaBwd::dgate_b,
        &GatedDeltaBwd::da_log, &GatedDeltaBwd::ddt_bias, &GatedDeltaBwd::dinitial}) {
    if (!(found.*d).defined()) continue;
    const double error = Error(found.*d, expected.*d);
    EXPECT_LE(error, c.gradient_limit) << (found.*d).name();
    printf("  %s %.1e", (found.*d).name(), error);
  }
  printf("\n");
}

// The state that is saved before a chunk is the final one of the tokens before it.
TEST_P(GpuGatedDeltaAccuracy, SavedStatesAreThoseBetweenChunks) {
  AccuracyCase c = GetParam();
  c.T = std::min<int64_t>(c.T, 4 * kGatedDeltaChunk + 9);
  c.B = c.H = 1;
  CudaStream stream(0);
  Arena arena(Arena::Mode::kPlain, kArenaBytes);
  CaseMaker make(arena, DType::kBF16, 0, true);
  const GatedDeltaFwd f = Make(make, c, true);
  RunOnGpu(stream, arena, f);
  for (int64_t n = 1; n < GatedDeltaChunks(c.T); ++n) {
    GatedDeltaFwd part = f;
    for (TensorView* x : {&part.q, &part.k, &part.v, &part.beta, &part.log_a, &part.gate_a,
                          &part.gate_b, &part.doc_start, &part.y})
      if (x->defined()) *x = x->Slice(1, 0, n * kGatedDeltaChunk);
    part.states = part.states.Slice(1, 0, n);
    RunOnGpu(stream, arena, part);
    for (int64_t k = 0; k < c.K; ++k) {
      for (int64_t v = 0; v < c.V; ++v) {
        ASSERT_EQ(f.states.Data<uint16_t>()[n * c.K * c.V + v * c.K + k],
                  ToBF16(f.final_state.Data<float>()[k * c.V + v]))
            << "chunk " << n << ", k " << k << ", v " << v;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, GpuGatedDeltaAccuracy, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.label); });

}  // namespace
}  // namespace weft

#endif
