// links: weft_op_specs
// The laws of DESIGN section 8, run over every op at every case, in float and in double.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/op_spec.h"

namespace weft {
namespace {

constexpr int64_t kArenaBytes = 64 << 20;
constexpr double kStep = 1e-50;  // complex step: no cancellation, so any tiny number will do

// The one tolerance: c eps sqrt(reduction length), on |a - b| / |b|.
double Tolerance(double c, DType dtype, int64_t reduction) {
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
  return out;
}

void Write(const TensorView& view, const std::function<double(int64_t)>& value) {
  if (view.dtype() == DType::kF32)
    ForEach<float>(view, [&](int64_t i, float* p) { *p = static_cast<float>(value(i)); });
  if (view.dtype() == DType::kF64)
    ForEach<double>(view, [&](int64_t i, double* p) { *p = value(i); });
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
  Bench(const OpEntry::Case& c, DType dtype, int64_t pad)
      : arena(Arena::Mode::kGuarded, kArenaBytes) {
    CaseMaker maker(arena, dtype, pad);
    op = c.make(maker);
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

// Gradients of <outputs, upstream> with respect to every differentiable input, by complex step of
// the reference. The value is NaN where the element was skipped (large tensors are sampled).
std::vector<std::vector<double>> ComplexStep(const OpEntry::Case& c) {
  Bench bench(c, DType::kC128, 0);
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
    const int64_t n = input->view.size(), every = std::max<int64_t>(1, n / 300);
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

void CheckForward(const OpEntry& entry, const OpEntry::Case& c, DType dtype) {
  Bench truth(c, DType::kF64, 0);
  truth.op.reference();
  const auto expected = truth.Outputs();
  for (const int64_t pad : {0, 3}) {
    Stream two(std::in_place_type<CpuStream>, 2), one(std::in_place_type<CpuStream>, 1);
    Bench a(c, dtype, pad), b(c, dtype, pad);
    a.op.fwd.launch(two);
    b.op.fwd.launch(one);
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
    EXPECT_EQ(0, std::memcmp(a.arena.base(), b.arena.base(), static_cast<size_t>(a.arena.used())))
        << "bits depend on the number of threads or differ between two runs";
  }
}

void CheckBackward(const OpEntry& entry, const OpEntry::Case& c, DType dtype) {
  const auto expected = ComplexStep(c);
  for (const int64_t pad : {0, 3}) {
    Stream two(std::in_place_type<CpuStream>, 2), one(std::in_place_type<CpuStream>, 1);
    Bench a(c, dtype, pad), b(c, dtype, pad), adds(c, dtype, pad);
    const double tolerance = dtype == DType::kF64
                                 ? 1e-13
                                 : Tolerance(entry.tolerance, dtype, LongestDim(a.op.bwd.tensors));
    for (auto [bench, stream] : {std::pair{&a, &two}, std::pair{&b, &one}}) {
      bench->op.fwd.launch(*stream);
      bench->op.bwd.set_accumulate(false);
      bench->op.bwd.launch(*stream);
      bench->arena.CheckSentinels();
    }
    EXPECT_EQ(0, std::memcmp(a.arena.base(), b.arena.base(), static_cast<size_t>(a.arena.used())))
        << "bits depend on the number of threads or differ between two runs";
    const auto base = [](int64_t i) { return static_cast<double>(i % 7) - 3; };
    adds.op.fwd.launch(two);
    for (const OpTensor& t : adds.op.bwd.tensors) {
      if (t.role == Role::kGrad) Write(t.view, base);
    }
    adds.op.bwd.launch(two);
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

void CheckShapes(const OpEntry& entry, const OpEntry::Case& c) {
  Bench bench(c, DType::kF64, 0);
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
  OpLaw(const OpEntry* entry, const OpEntry::Case* c) : entry_(entry), case_(c) {}
  void TestBody() override {
    CheckShapes(*entry_, *case_);
    Bench probe(*case_, DType::kF64, 0);
    for (const DType dtype : {DType::kF64, DType::kF32}) {
      SCOPED_TRACE(NameOf(dtype));
      CheckForward(*entry_, *case_, dtype);
      if (probe.op.has_backward) CheckBackward(*entry_, *case_, dtype);
    }
  }

 private:
  const OpEntry* entry_;
  const OpEntry::Case* case_;
};

const bool kRegistered = [] {
  static OpSuite suite;  // gtest keeps pointers into it
  AddAllOps(suite);
  for (const OpEntry& entry : suite.entries()) {
    for (const OpEntry::Case& c : entry.laws) {
      testing::RegisterTest(entry.name.c_str(), c.label.c_str(), nullptr, nullptr, __FILE__,
                            __LINE__, [&entry, &c]() -> OpLaw* { return new OpLaw(&entry, &c); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace weft
