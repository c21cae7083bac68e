// links: weft_op_specs
// The laws of DESIGN section 8, run over every op at every case: on the CPU in float and in double,
// on a GPU (suites Gpu_<op>) in float and in bf16.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels/base/op_spec.h"

namespace weft {
namespace {

constexpr int64_t kArenaBytes = 64 << 20, kNanBytes = 1 << 20;
constexpr double kStep = 1e-50;  // complex step: no cancellation, so any tiny number will do

// The one tolerance: c eps sqrt(reduction length), on |a - b| / |b|. Sums of bf16 numbers are taken
// in f32, so that no reduction is long enough to matter beside the rounding of what is stored.
double Tolerance(double c, DType dtype, int64_t reduction) {
  if (dtype == DType::kBF16) return c * 0x1p-8;
  const double eps = dtype == DType::kF32 ? std::numeric_limits<float>::epsilon()
                                          : std::numeric_limits<double>::epsilon();
  return c * eps * std::sqrt(static_cast<double>(reduction));
}

std::vector<double> Read(const TensorView& view) {
  std::vector<double> out(static_cast<size_t>(view.size()));
  const auto put = [&](int64_t i, double v) { out[static_cast<size_t>(i)] = v; };
  if (view.dtype() == DType::kF32) ForEach<float>(view, [&](int64_t i, float* p) { put(i, *p); });
  if (view.dtype() == DType::kF64) ForEach<double>(view, [&](int64_t i, double* p) { put(i, *p); });
  if (view.dtype() == DType::kI32)
    ForEach<int32_t>(view, [&](int64_t i, int32_t* p) { put(i, *p); });
  if (view.dtype() == DType::kBF16)
    ForEach<uint16_t>(view, [&](int64_t i, uint16_t* p) { put(i, FromBF16(*p)); });
  return out;
}

void Write(const TensorView& view, const std::function<double(int64_t)>& value) {
  if (view.dtype() == DType::kF32)
    ForEach<float>(view, [&](int64_t i, float* p) { *p = static_cast<float>(value(i)); });
  if (view.dtype() == DType::kF64)
    ForEach<double>(view, [&](int64_t i, double* p) { *p = value(i); });
  if (view.dtype() == DType::kBF16)
    ForEach<uint16_t>(view,
                      [&](int64_t i, uint16_t* p) { *p = ToBF16(static_cast<float>(value(i))); });
}

double RelativeError(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / (norm > 0 ? norm : 1));
}

double Norm(const std::vector<double>& a) {
  double s = 0;
  for (double v : a) s += v * v;
  return std::sqrt(s);
}

int64_t LongestDim(const std::vector<OpTensor>& tensors) {
  int64_t n = 1;
  for (const OpTensor& t : tensors) {
    for (int d = 0; d < t.view.rank(); ++d) n = std::max(n, t.view.dim(d));
  }
  return n;
}

using Role = OpTensor::Role;

struct Bench {
  Bench(const OpEntry::Case& c, DType dtype, int64_t pad, bool bf16_values)
      : arena(Arena::Mode::kGuarded, kArenaBytes) {
    CaseMaker maker(arena, dtype, pad, bf16_values);
    op = c.make(maker);
  }
  // On a GPU the op runs in a copy of the whole arena, sentinels included, and its scratch memory
  // begins with NaN.
  void Launch(Stream& stream, const AnyOp& any) {
#ifdef WEFT_CUDA
    if (auto* cuda = std::get_if<CudaStream>(&stream)) {
      Arena device(Arena::Mode::kPlain, arena.used(), Memory::kDevice);
      cuda->Copy(device.base(), arena.base(), arena.used());
      static const std::vector<std::byte> nan(kNanBytes, std::byte{0xff});
      cuda->Copy(cuda->Scratch(kNanBytes), nan.data(), kNanBytes);
      any.launch(stream, device.base() - arena.base());
      cuda->Copy(arena.base(), device.base(), arena.used());
      cuda->Synchronize();
      return;
    }
#endif
    any.launch(stream, 0);
  }
  void CheckSameBits(const Bench& other) const {
    EXPECT_EQ(0, std::memcmp(arena.base(), other.arena.base(), static_cast<size_t>(arena.used())))
        << "bits depend on the number of threads or differ between two runs";
  }
  std::vector<std::vector<double>> Outputs() const {
    std::vector<std::vector<double>> all;
    for (const OpTensor& t : op.fwd.tensors) {
      if (t.role == Role::kOut || t.role == Role::kInOut) all.push_back(Read(t.view));
    }
    return all;
  }
  std::vector<std::vector<double>> Grads() const {
    std::vector<std::vector<double>> all;
    for (const OpTensor& t : op.bwd.tensors) {
      if (t.role == Role::kGrad) all.push_back(Read(t.view));
    }
    return all;
  }
  Arena arena;
  OpInstance op;
};

// Two streams whose results must agree in every bit.
struct Streams {
  explicit Streams(bool gpu) {
#ifdef WEFT_CUDA
    if (gpu) {
      first.emplace<CudaStream>(0);
      second.emplace<CudaStream>(0);
    }
#endif
    EXPECT_EQ(gpu, first.index() == second.index() && !std::holds_alternative<CpuStream>(first));
  }
  Stream first{std::in_place_type<CpuStream>, 2}, second{std::in_place_type<CpuStream>, 1};
};

// Gradients of <outputs, upstream> with respect to every differentiable input, by complex step of
// the reference. The value is NaN where the element was skipped (large tensors are sampled).
std::vector<std::vector<double>> ComplexStep(const OpEntry::Case& c, bool bf16_values) {
  Bench bench(c, DType::kC128, 0, bf16_values);
  using Complex = std::complex<double>;
  std::vector<std::vector<double>> all;
  for (const OpTensor& grad : bench.op.bwd.tensors) {
    if (grad.role != Role::kGrad) continue;
    const OpTensor* input = nullptr;
    for (const OpTensor& t : bench.op.fwd.tensors) {
      if (t.view.data() == grad.of) input = &t;
    }
    if (!input) {
      ADD_FAILURE() << grad.name << " belongs to no input";
      continue;
    }
    const int64_t n = input->view.size(), every = std::max<int64_t>(1, n / c.samples);
    std::vector<double> derivative(static_cast<size_t>(n),
                                   std::numeric_limits<double>::quiet_NaN());
    std::vector<Complex*> elements;
    ForEach<Complex>(input->view, [&](int64_t, Complex* p) { elements.push_back(p); });
    for (int64_t i = 0; i < n; i += every) {
      Complex* element = elements[static_cast<size_t>(i)];
      const Complex value = *element;
      *element += Complex(0, kStep);
      bench.op.reference();
      double sum = 0;
      for (const OpTensor& up : bench.op.bwd.tensors) {
        if (up.role != Role::kUpstream) continue;
        for (const OpTensor& out : bench.op.fwd.tensors) {
          if (out.view.data() != up.of) continue;
          std::vector<double> dy;
          ForEach<Complex>(up.view, [&](int64_t, Complex* p) { dy.push_back(p->real()); });
          ForEach<Complex>(out.view, [&](int64_t k, Complex* p) {
            sum += p->imag() * dy[static_cast<size_t>(k)];
          });
        }
      }
      derivative[static_cast<size_t>(i)] = sum / kStep;
      *element = value;
    }
    all.push_back(std::move(derivative));
  }
  return all;
}

void CheckForward(const OpEntry& entry, const OpEntry::Case& c, DType dtype, Streams& streams) {
  const bool bf16 = dtype == DType::kBF16;
  Bench truth(c, DType::kF64, 0, bf16);
  truth.op.reference();
  const auto expected = truth.Outputs();
  for (const int64_t pad : {0, bf16 ? 8 : 3}) {
    Bench a(c, dtype, pad, bf16), b(c, dtype, pad, bf16);
    a.Launch(streams.first, a.op.fwd);
    b.Launch(streams.second, b.op.fwd);
    a.arena.CheckSentinels();
    const auto got = a.Outputs();
    const double tolerance = Tolerance(entry.tolerance, dtype, LongestDim(a.op.fwd.tensors));
    size_t k = 0;
    for (const OpTensor& t : a.op.fwd.tensors) {
      if (t.role != Role::kOut && t.role != Role::kInOut) continue;
      EXPECT_LE(RelativeError(got[k], expected[k]), tolerance) << t.name << ", row padding " << pad;
      for (double v : got[k])
        ASSERT_TRUE(std::isfinite(v)) << t.name << " was not written everywhere";
      ++k;
    }
    a.CheckSameBits(b);
  }
}

void CheckBackward(const OpEntry& entry, const OpEntry::Case& c, DType dtype, Streams& streams) {
  const bool bf16 = dtype == DType::kBF16;
  const auto expected = ComplexStep(c, bf16);
  for (const int64_t pad : {0, bf16 ? 8 : 3}) {
    Bench a(c, dtype, pad, bf16), b(c, dtype, pad, bf16), adds(c, dtype, pad, bf16);
    const double tolerance = dtype == DType::kF64
                                 ? 1e-13
                                 : Tolerance(entry.tolerance, dtype, LongestDim(a.op.bwd.tensors));
    for (auto [bench, stream] : {std::pair{&a, &streams.first}, std::pair{&b, &streams.second}}) {
      bench->Launch(*stream, bench->op.fwd);
      bench->op.bwd.set_accumulate(false);
      bench->Launch(*stream, bench->op.bwd);
      bench->arena.CheckSentinels();
    }
    a.CheckSameBits(b);
    const auto base = [](int64_t i) { return static_cast<double>(i % 7) - 3; };
    adds.Launch(streams.first, adds.op.fwd);
    for (const OpTensor& t : adds.op.bwd.tensors) {
      if (t.role == Role::kGrad) Write(t.view, base);
    }
    adds.Launch(streams.first, adds.op.bwd);
    adds.arena.CheckSentinels();
    const auto got = a.Grads(), added = adds.Grads();
    size_t k = 0;
    for (const OpTensor& t : a.op.bwd.tensors) {
      if (t.role != Role::kGrad) continue;
      std::vector<double> ours, theirs, sum, sum_expected;
      for (size_t i = 0; i < got[k].size(); ++i) {
        ASSERT_TRUE(std::isfinite(got[k][i])) << t.name << " was not written everywhere";
        sum.push_back(added[k][i]);
        sum_expected.push_back(got[k][i] + base(static_cast<int64_t>(i)));
        if (std::isnan(expected[k][i])) continue;
        ours.push_back(got[k][i]);
        theirs.push_back(expected[k][i]);
      }
      EXPECT_LE(RelativeError(ours, theirs), tolerance) << t.name << ", row padding " << pad;
      EXPECT_LE(RelativeError(sum, sum_expected), tolerance) << t.name << " is not added to";
      EXPECT_GT(Norm(ours), 0) << t.name << " is zero: the case proves nothing";
      ++k;
    }
  }
}

// With WEFT_LAWS=launch the laws of a GPU are their launches alone, for tools that watch these and
// make them slow: each once, in memory where nothing was written but what the op may read.
bool OnlyLaunches() {
  const char* laws = std::getenv("WEFT_LAWS");
  return laws && std::strcmp(laws, "launch") == 0;
}

void LaunchAll(const OpEntry::Case& c, DType dtype) {
#ifdef WEFT_CUDA
  const bool bf16 = dtype == DType::kBF16;
  for (const int64_t pad : {0, bf16 ? 8 : 3}) {
    Bench bench(c, dtype, pad, bf16);
    Streams streams(true);
    auto& cuda = std::get<CudaStream>(streams.first);
    // Scratch memory is never cleared.
    void* const memory = std::get<CudaStream>(streams.second).Scratch(bench.arena.used());
    const ptrdiff_t shift = static_cast<std::byte*>(memory) - bench.arena.base();
    for (const auto* tensors : {&bench.op.fwd.tensors, &bench.op.bwd.tensors}) {
      for (const OpTensor& t : *tensors) {
        if (t.role != Role::kIn && t.role != Role::kInOut && t.role != Role::kUpstream) continue;
        int64_t elements = 1;
        for (int d = 0; d < t.view.rank(); ++d) elements += (t.view.dim(d) - 1) * t.view.stride(d);
        auto* data = static_cast<std::byte*>(t.view.data());
        cuda.Copy(data + shift, data, t.view.size() ? elements * SizeOf(t.view.dtype()) : 0);
      }
    }
    bench.op.fwd.launch(streams.first, shift);
    for (const bool accumulate : {false, true}) {
      if (!bench.op.has_backward) break;
      bench.op.bwd.set_accumulate(accumulate);
      bench.op.bwd.launch(streams.first, shift);
    }
    cuda.Synchronize();
  }
#endif
}

void CheckShapes(const OpEntry& entry, const OpEntry::Case& c) {
  Bench bench(c, DType::kF64, 0, false);
  const auto all_refused = [&](const AnyOp& op) {
    op.check();
    for (size_t t = 0; t < op.tensors.size(); ++t) {
      for (int d = 0; d < op.tensors[t].view.rank(); ++d) {
        const std::string dim = op.tensors[t].name + "." + std::to_string(d);
        if (std::count(entry.free_dims.begin(), entry.free_dims.end(), dim)) continue;
        try {
          op.check_with_larger_dim(t, d);
          ADD_FAILURE() << dim << " may be one larger without an error";
        } catch (const Error& e) {
          EXPECT_NE(std::string(e.what()).find(entry.name), std::string::npos) << e.what();
        }
      }
    }
  };
  all_refused(bench.op.fwd);
  if (bench.op.has_backward) all_refused(bench.op.bwd);
}

class OpLaw : public testing::Test {
 public:
  OpLaw(const OpEntry* entry, const OpEntry::Case* c, std::vector<DType> dtypes, bool gpu)
      : entry_(entry), case_(c), dtypes_(std::move(dtypes)), gpu_(gpu) {}
  void TestBody() override {
    if (gpu_ && OnlyLaunches()) {
      for (const DType dtype : dtypes_) LaunchAll(*case_, dtype);
      return;
    }
    CheckShapes(*entry_, *case_);
    Bench probe(*case_, DType::kF64, 0, false);
    Streams streams(gpu_);
    for (const DType dtype : dtypes_) {
      SCOPED_TRACE(NameOf(dtype));
      CheckForward(*entry_, *case_, dtype, streams);
      if (probe.op.has_backward) CheckBackward(*entry_, *case_, dtype, streams);
    }
  }

 private:
  const OpEntry* entry_;
  const OpEntry::Case* case_;
  std::vector<DType> dtypes_;
  bool gpu_;
};

void Register(const OpEntry& entry, const OpEntry::Case& c, const std::vector<DType>& dtypes,
              bool gpu) {
  const std::string suite = (gpu ? "Gpu_" : "") + entry.name;
  testing::RegisterTest(
      suite.c_str(), c.label.c_str(), nullptr, nullptr, __FILE__, __LINE__,
      [&entry, &c, dtypes, gpu]() -> OpLaw* { return new OpLaw(&entry, &c, dtypes, gpu); });
}

const bool kRegistered = [] {
  static OpSuite suite;  // gtest keeps pointers into it
  AddAllOps(suite);
  for (const OpEntry& entry : suite.entries()) {
    for (const auto& c : entry.laws) Register(entry, c, {DType::kF64, DType::kF32}, false);
#ifdef WEFT_CUDA
    const bool own = !entry.bf16_laws.empty();
    for (const auto& c : entry.bf16_laws) Register(entry, c, {DType::kF32, DType::kBF16}, true);
    for (const auto& c : entry.laws) {
      Register(entry, c, own ? std::vector{DType::kF32} : std::vector{DType::kF32, DType::kBF16},
               true);
    }
#endif
  }
  return true;
}();

}  // namespace
}  // namespace weft
