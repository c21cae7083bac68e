// links: weft_kernels
// What the gated delta rule, and the short convolution before it, must be beyond their references:
// the same for any way of cutting a sequence, blind to later tokens and other documents, sound at
// the ends of every range.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/op_spec.h"
#include "kernels/gated_delta/gated_delta_ref.h"
#include "kernels/short_conv/short_conv.h"

namespace weft {
namespace {

// A gated delta rule with its memory. Gradients exist once Backward() has run.
template <class T>
struct Problem {
  using Tensor = std::vector<T>;

  Problem(int64_t B, int64_t L, int64_t H, int64_t K, int64_t V, uint64_t seed = 1)
      : B(B), L(L), H(H), K(K), V(V) {
    Rng rng(seed, Purpose::kTest, 0);
    const auto normal = [&](int64_t n) {
      Tensor x(static_cast<size_t>(n));
      for (T& value : x) value = static_cast<T>(rng.Normal());
      return x;
    };
    q = normal(B * L * H * K);
    k = normal(B * L * H * K);
    v = normal(B * L * H * V);
    dy = normal(B * L * H * V);
    initial = normal(B * H * K * V);
    dfinal = normal(B * H * K * V);
    for (int64_t row = 0; row < B * L * H; ++row) {
      T* x = k.data() + row * K;
      T squares = 0;
      for (int64_t d = 0; d < K; ++d) squares += x[d] * x[d];
      for (int64_t d = 0; d < K; ++d) x[d] /= std::sqrt(squares);
      beta.push_back(static_cast<T>(rng.Uniform(0, 2)));
      log_a.push_back(static_cast<T>(rng.Uniform(-0.3, 0)));
    }
    y.resize(v.size());
    final_state.resize(initial.size());
    states.resize(static_cast<size_t>(B * GatedDeltaChunks(L) * H * K * V));
  }

  // Tokens [begin, end); the state goes from `initial` to `final_state`.
  GatedDeltaFwd Fwd(int64_t begin, int64_t end) {
    const auto tokens = [&](auto& x, int64_t width, const char* name) {
      const TensorView view(x.data(), kDTypeOf<std::remove_reference_t<decltype(x[0])>>,
                            {B, L, H, width}, name);
      return view.Slice(1, begin, end - begin);
    };
    const auto scalars = [&](Tensor& x, const char* name) {
      return TensorView(x.data(), kDTypeOf<T>, {B, L, H}, name).Slice(1, begin, end - begin);
    };
    GatedDeltaFwd f{.scale = 0.5};
    f.q = tokens(q, K, "q");
    f.k = tokens(k, K, "k");
    f.v = tokens(v, V, "v");
    f.y = tokens(y, V, "y");
    f.beta = scalars(beta, "beta");
    f.log_a = scalars(log_a, "log_a");
    f.initial = TensorView(initial.data(), kDTypeOf<T>, {B, H, K, V}, "initial");
    f.final_state = TensorView(final_state.data(), kDTypeOf<T>, {B, H, K, V}, "final_state");
    if (!doc_start.empty())
      f.doc_start = TensorView(doc_start.data(), DType::kI32, {B, L}, "doc_start");
    return f;
  }
  void Launch(const auto& op) {
    Stream stream(std::in_place_type<CpuStream>, 2);
    weft::Launch(stream, op);
  }
  void Forward() { Launch(Fwd(0, L)); }
  void Backward(bool gates = true) {
    GatedDeltaBwd g{.fwd = Fwd(0, L)};
    g.fwd.states =
        TensorView(states.data(), kDTypeOf<T>, {B, GatedDeltaChunks(L), H, K * V}, "states");
    Launch(g.fwd);
    const auto like = [](Tensor& d, const TensorView& x) {
      d.assign(static_cast<size_t>(x.size()), std::numeric_limits<T>::quiet_NaN());
      int64_t shape[kMaxRank];
      for (int i = 0; i < x.rank(); ++i) shape[i] = x.dim(i);
      Grad grad = TensorView(d.data(), x.dtype(), x.rank(), shape, x.name());
      grad.accumulate = false;
      return grad;
    };
    g.dy = TensorView(dy.data(), kDTypeOf<T>, {B, L, H, V}, "dy");
    g.dfinal = TensorView(dfinal.data(), kDTypeOf<T>, {B, H, K, V}, "dfinal");
    g.dq = like(dq, g.fwd.q);
    g.dk = like(dk, g.fwd.k);
    g.dv = like(dv, g.fwd.v);
    if (gates) {
      g.dbeta = like(dbeta, g.fwd.beta);
      g.dlog_a = like(dlog_a, g.fwd.log_a);
    }
    g.dinitial = like(dinitial, g.fwd.initial);
    Launch(g);
  }
  // Values of token t (of batch row 0): a contiguous piece of a [1, L, ...] tensor.
  Tensor Tokens(const Tensor& x, int64_t begin, int64_t end) const {
    const int64_t width = static_cast<int64_t>(x.size()) / L;
    return Tensor(x.begin() + begin * width, x.begin() + end * width);
  }

  int64_t B, L, H, K, V;
  Tensor q, k, v, y, beta, log_a, initial, final_state, states;
  std::vector<int32_t> doc_start;
  Tensor dy, dfinal, dq, dk, dv, dbeta, dlog_a, dinitial;
};

template <class T>
double RelativeError(const std::vector<T>& a, const std::vector<T>& b) {
  double difference = 0, norm = 1e-300;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
bool AllFinite(const std::vector<T>& x) {
  for (T value : x) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

TEST(GatedDelta, TokenByTokenEqualsChunked) {
  for (const int64_t L : {1, 2, 15, 16, 17, 63, 64, 65, 130}) {
    Problem<double> whole(2, L, 2, 12, 20), steps(2, L, 2, 12, 20);
    whole.Forward();
    steps.final_state = steps.initial;
    for (int64_t t = 0; t < L; ++t) {
      GatedDeltaFwd f = steps.Fwd(t, t + 1);
      f.initial = f.final_state;  // decoding keeps one state and updates it in place
      steps.Launch(f);
    }
    EXPECT_LE(RelativeError(steps.y, whole.y), 1e-13) << L;
    EXPECT_LE(RelativeError(steps.final_state, whole.final_state), 1e-13) << L;
  }
}

TEST(GatedDelta, SplitSequenceEqualsWhole) {
  const int64_t L = 150;
  Problem<double> whole(1, L, 2, 12, 20);
  whole.Forward();
  for (const int64_t cut : {1, 16, 63, 64, 65, 149}) {
    Problem<double> parts(1, L, 2, 12, 20);
    parts.Launch(parts.Fwd(0, cut));
    parts.initial = parts.final_state;
    parts.Launch(parts.Fwd(cut, L));
    EXPECT_LE(RelativeError(parts.y, whole.y), 1e-13) << cut;
    EXPECT_LE(RelativeError(parts.final_state, whole.final_state), 1e-13) << cut;
  }
}

// Raising log_a_t by e and lowering log_a_{t+1} by e acts like y_t e^e and v_t e^-e. Hence dlog_a_t
// - dlog_a_{t+1} = <y_t, dy_t> - <v_t, dv_t>, and after the last token <S_T, dS_T> stands for
// dlog_a_{T+1}.
TEST(GatedDelta, GateGradientObeysScalingSymmetry) {
  const int64_t L = 100, K = 12, V = 20;
  Problem<double> p(1, L, 1, K, V);
  p.Backward();
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b, int64_t begin,
                      int64_t n) {
    double sum = 0;
    for (int64_t i = begin; i < begin + n; ++i)
      sum += a[static_cast<size_t>(i)] * b[static_cast<size_t>(i)];
    return sum;
  };
  double expected = dot(p.final_state, p.dfinal, 0, K * V), size = 0;
  for (int64_t t = L - 1; t >= 0; --t) {
    expected += dot(p.y, p.dy, t * V, V) - dot(p.v, p.dv, t * V, V);
    size = std::max(size, std::abs(expected));
    EXPECT_NEAR(p.dlog_a[static_cast<size_t>(t)], expected, 1e-12 * size) << t;
  }
  EXPECT_NEAR(dot(p.initial, p.dinitial, 0, K * V), expected, 1e-12 * size);
}

// With beta = 2 and no decay a key (e_i - e_j) / sqrt(2) and v = 0 is the reflection that swaps
// rows i and j of the state, exactly. This is how negative eigenvalues track permutations.
TEST(GatedDelta, ReflectionSwapsRows) {
  const int64_t L = 40, K = 6, V = 16;
  Problem<double> p(1, L, 1, K, V);
  std::fill(p.beta.begin(), p.beta.end(), 2);
  std::fill(p.log_a.begin(), p.log_a.end(), 0);
  std::fill(p.v.begin(), p.v.end(), 0);
  std::fill(p.k.begin(), p.k.end(), 0);
  std::vector<double> expected = p.initial;
  Rng rng(3, Purpose::kTest, 0);
  for (int64_t t = 0; t < L; ++t) {
    const int64_t i = rng.Below(K), j = (i + 1 + rng.Below(K - 1)) % K;
    p.k[static_cast<size_t>(t * K + i)] = std::sqrt(0.5);
    p.k[static_cast<size_t>(t * K + j)] = -std::sqrt(0.5);
    std::swap_ranges(expected.begin() + i * V, expected.begin() + (i + 1) * V,
                     expected.begin() + j * V);
  }
  Problem<double> steps = p;
  p.Forward();
  EXPECT_LE(RelativeError(p.final_state, expected), 40 * 1e-15);
  steps.Launch(steps.Fwd(0, 1));
  std::vector<double> once = steps.initial;
  int64_t rows[2], n = 0;
  for (int64_t d = 0; d < K; ++d) {
    if (steps.k[static_cast<size_t>(d)] != 0) rows[n++] = d;
  }
  std::swap_ranges(once.begin() + rows[0] * V, once.begin() + (rows[0] + 1) * V,
                   once.begin() + rows[1] * V);
  EXPECT_LE(RelativeError(steps.final_state, once), 1e-15);
}

template <class T>
void ExpectFiniteGradients(Problem<T>& p, const char* what) {
  p.Backward();
  for (const auto* x :
       {&p.y, &p.final_state, &p.dq, &p.dk, &p.dv, &p.dbeta, &p.dlog_a, &p.dinitial}) {
    EXPECT_TRUE(AllFinite(*x)) << what;
  }
}

TEST(GatedDelta, EndsOfRangesAreSound) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float log_a : {0.f, -1e-8f, -20.f, -100.f, -1e4f, -infinity}) {
    for (const float beta : {0.f, 1.f, 2.f}) {
      for (const bool same_key : {false, true}) {
        Problem<float> p(1, 70, 1, 8, 20);
        std::fill(p.log_a.begin(), p.log_a.end(), log_a);
        std::fill(p.beta.begin(), p.beta.end(), beta);
        for (size_t i = 8; same_key && i < p.k.size(); ++i) p.k[i] = p.k[i % 8];
        ExpectFiniteGradients(p, "finite");
        double largest = 0;
        for (float s : p.final_state) largest = std::max(largest, std::abs(double{s}));
        EXPECT_LE(largest, 300) << "log_a " << log_a << " beta " << beta;
      }
    }
  }
}

// One token forgets everything; what follows must not lose accuracy to it.
TEST(GatedDelta, TotalDecayIsAFreshStart) {
  const int64_t L = 60, reset = 21;
  for (const float log_a : {-1e4f, -std::numeric_limits<float>::infinity()}) {
    Problem<float> decayed(1, L, 2, 12, 20), fresh(1, L, 2, 12, 20);
    for (int64_t h = 0; h < 2; ++h) decayed.log_a[static_cast<size_t>(reset * 2 + h)] = log_a;
    fresh.doc_start.assign(L, 0);
    std::fill(fresh.doc_start.begin() + reset, fresh.doc_start.end(), reset);
    ExpectFiniteGradients(decayed, "decayed");
    fresh.Backward();
    EXPECT_LE(RelativeError(decayed.y, fresh.y), 1e-6);
    EXPECT_LE(RelativeError(decayed.final_state, fresh.final_state), 1e-6);
    EXPECT_LE(RelativeError(decayed.dk, fresh.dk), 1e-6);
    EXPECT_LE(RelativeError(decayed.dv, fresh.dv), 1e-6);
    EXPECT_EQ(decayed.dlog_a[reset * 2], 0);
  }
}

// With beta = 0 nothing is written, yet the gradient of beta says what writing would do.
TEST(GatedDelta, GradientOfBetaAtZero) {
  Problem<double> p(1, 40, 1, 8, 20);
  for (size_t t = 0; t < p.beta.size(); t += 3) p.beta[t] = 0;
  p.Backward();
  for (const size_t t : {0, 18, 39}) {
    const double step = 1e-6;
    double loss[2];
    for (const int side : {0, 1}) {
      Problem<double> moved = p;
      moved.beta[t] += side ? step : -step;
      moved.Forward();
      loss[side] = 0;
      for (size_t i = 0; i < p.y.size(); ++i) loss[side] += moved.y[i] * p.dy[i];
      for (size_t i = 0; i < p.dfinal.size(); ++i) loss[side] += moved.final_state[i] * p.dfinal[i];
    }
    EXPECT_NEAR(p.dbeta[t], (loss[1] - loss[0]) / (2 * step), 1e-6 * (1 + std::abs(p.dbeta[t])));
    EXPECT_NE(p.dbeta[t], 0);
  }
}

TEST(GatedDelta, NanStaysInItsColumnAndDocument) {
  const int64_t L = 70, H = 2, V = 20;
  Problem<float> p(1, L, H, 8, V);
  p.doc_start.assign(L, 0);
  std::fill(p.doc_start.begin() + 40, p.doc_start.end(), 40);
  p.v[(9 * H + 1) * V + 5] = std::numeric_limits<float>::quiet_NaN();
  p.Forward();
  for (int64_t t = 0; t < L; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t c = 0; c < V; ++c) {
        const bool reached = t >= 9 && t < 40 && h == 1 && c == 5;
        EXPECT_EQ(std::isnan(p.y[static_cast<size_t>((t * H + h) * V + c)]), reached)
            << t << " " << h << " " << c;
      }
    }
  }
  EXPECT_TRUE(AllFinite(p.final_state));
}

TEST(GatedDelta, LaterTokensChangeNoBit) {
  const int64_t L = 100;
  for (const int64_t cut : {1, 5, 16, 63, 64, 65, 99}) {
    Problem<float> a(1, L, 2, 12, 20), b(1, L, 2, 12, 20), other(1, L, 2, 12, 20, 2),
        prefix(1, L, 2, 12, 20);
    for (auto member : {&Problem<float>::q, &Problem<float>::k, &Problem<float>::v,
                        &Problem<float>::beta, &Problem<float>::log_a}) {
      const auto width = static_cast<int64_t>((a.*member).size()) / L;
      std::copy((other.*member).begin() + cut * width, (other.*member).end(),
                (b.*member).begin() + cut * width);
    }
    a.Forward();
    b.Forward();
    EXPECT_TRUE(SameBits(a.Tokens(a.y, 0, cut), b.Tokens(b.y, 0, cut))) << cut;
    EXPECT_FALSE(SameBits(a.Tokens(a.y, cut, L), b.Tokens(b.y, cut, L))) << cut;
    if (cut == 1) continue;  // one token alone is the recurrence, which rounds differently
    prefix.Launch(prefix.Fwd(0, cut));
    EXPECT_TRUE(SameBits(a.Tokens(a.y, 0, cut), prefix.Tokens(prefix.y, 0, cut))) << cut;
  }
}

TEST(GatedDelta, DocumentsDoNotTouch) {
  const int64_t L = 140;
  const std::vector<int64_t> starts = {0, 1, 2, 17, 50, 64, 128, 139, L};
  Problem<double> packed(1, L, 2, 12, 20);
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    packed.doc_start.insert(packed.doc_start.end(), static_cast<size_t>(starts[d + 1] - starts[d]),
                            static_cast<int32_t>(starts[d]));
  }
  Problem<double> changed = packed;
  packed.Backward();
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    Problem<double> alone(1, L, 2, 12, 20);
    if (d > 0) std::fill(alone.initial.begin(), alone.initial.end(), 0);
    alone.Launch(alone.Fwd(starts[d], starts[d + 1]));
    EXPECT_LE(RelativeError(alone.Tokens(alone.y, starts[d], starts[d + 1]),
                            packed.Tokens(packed.y, starts[d], starts[d + 1])),
              1e-13);
    if (d + 2 == starts.size()) {
      EXPECT_LE(RelativeError(alone.final_state, packed.final_state), 1e-13);
    }
  }
  for (int64_t t = 17; t < 50; ++t) {
    for (int64_t i = 0; i < 2 * 12; ++i) changed.k[static_cast<size_t>(t * 24 + i)] *= -0.5;
    for (int64_t i = 0; i < 2 * 20; ++i) changed.dy[static_cast<size_t>(t * 40 + i)] += 1;
  }
  changed.Backward();
  for (auto member : {&Problem<double>::y, &Problem<double>::dq, &Problem<double>::dk,
                      &Problem<double>::dv, &Problem<double>::dbeta, &Problem<double>::dlog_a}) {
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 17}, {50, L}}) {
      EXPECT_TRUE(SameBits(packed.Tokens(packed.*member, begin, end),
                           changed.Tokens(changed.*member, begin, end)));
    }
    EXPECT_FALSE(
        SameBits(packed.Tokens(packed.*member, 17, 50), changed.Tokens(changed.*member, 17, 50)));
  }
  EXPECT_TRUE(SameBits(packed.dinitial, changed.dinitial));
}

// The layers that gated_delta.h names.
struct Layer {
  const char* name;
  bool erase, beta, log_a, projected = false;
};
constexpr Layer kLayers[] = {{"linear attention", false, false, false},
                             {"RetNet", false, false, true},
                             {"Mamba-2", false, true, true},
                             {"DeltaNet", true, true, false},
                             {"gated DeltaNet", true, true, true},
                             {"gated DeltaNet, projected", true, false, false, true}};

struct Size {
  int64_t B, T, H, K, V;
};

// Heads share queries, keys and beta; tokens share a head's decay.
GatedDeltaFwd SharedRows(CaseMaker& make, const Size& s, const Layer& layer) {
  const auto [B, T, H, K, V] = s;
  GatedDeltaFwd f{.scale = 0.5, .erase = layer.erase};
  f.q = make.In("q", {B, T, 1, K}).Repeat(2, H);
  f.k =
      make.In("k", {B, T, 1, K}, Normal(1 / std::sqrt(2.0 * static_cast<double>(K)))).Repeat(2, H);
  f.v = make.In("v", {B, T, H, V});
  if (layer.beta) f.beta = make.WideIn("beta", {B, T, 1}, Uniform(0, 1)).Repeat(2, H);
  if (layer.log_a)
    f.log_a = make.WideIn("log_a", {1, 1, H}, Uniform(-0.3, 0)).Repeat(0, B).Repeat(1, T);
  if (layer.projected) {
    f.gate_a = make.In("gate_a", {B, T, 1}).Repeat(2, H);
    f.gate_b = make.In("gate_b", {1, 1, H}).Repeat(0, B).Repeat(1, T);
    f.a_log = make.WideIn("a_log", {H}), f.dt_bias = make.WideIn("dt_bias", {H}, Uniform(-4, -1));
    f.beta_scale = 2;
  }
  return f;
}

// The same numbers, with a row for each.
GatedDeltaFwd OwnRows(CaseMaker& make, GatedDeltaFwd f) {
  for (TensorView* x : {&f.q, &f.k, &f.beta, &f.log_a, &f.gate_a, &f.gate_b}) {
    if (!x->defined()) continue;
    const TensorView own = make.OutLike(x->name(), *x);
    const auto copy = [&]<class T>(T) {
      ForEach<const T>(*x, [&](int64_t i, const T* p) { own.Data<T>()[i] = *p; });
    };
    x->dtype() == DType::kBF16 ? copy(uint16_t{}) : copy(float{});
    *x = own;
  }
  return f;
}

// Everything but inputs.
GatedDeltaBwd WithOutputs(CaseMaker& make, const GatedDeltaFwd& f) {
  const int64_t B = f.v.dim(0), T = f.v.dim(1), H = f.v.dim(2), K = f.q.dim(3), V = f.v.dim(3);
  GatedDeltaBwd g{.fwd = f};
  g.fwd.y = make.Out("y", {B, T, H, V});
  g.fwd.final_state = make.WideOut("final_state", {B, H, K, V});
  g.fwd.states = make.Out("states", {B, GatedDeltaChunks(T), H, K * V});
  op_spec_internal::BuildBackward build{make};
  GatedDeltaBwd::Visit(g, build);
  op_spec_internal::SetAccumulate overwrite{false};
  GatedDeltaBwd::Visit(g, overwrite);
  return g;
}

// run(arena, op) leaves what the op writes in the arena.
void CheckSharedRows(DType dtype, const Size& s, const auto& run) {
  for (const Layer& layer : kLayers) {
    SCOPED_TRACE(layer.name);
    Arena arena(Arena::Mode::kPlain, 1 << 25);
    CaseMaker make(arena, dtype, 0, /*bf16_values=*/true);
    const GatedDeltaBwd shared = WithOutputs(make, SharedRows(make, s, layer));
    GatedDeltaBwd own = WithOutputs(make, OwnRows(make, shared.fwd));
    std::memcpy(own.dy.data(), shared.dy.data(), static_cast<size_t>(own.dy.bytes()));
    std::memcpy(own.dfinal.data(), shared.dfinal.data(), static_cast<size_t>(own.dfinal.bytes()));
    run(arena, shared.fwd), run(arena, shared), run(arena, own.fwd), run(arena, own);
    const auto expect_same = [](const TensorView& a, const TensorView& b) {
      EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())), 0) << a.name();
    };
    expect_same(shared.fwd.y, own.fwd.y);
    expect_same(shared.fwd.final_state, own.fwd.final_state);
    for (auto d : {&GatedDeltaBwd::dq, &GatedDeltaBwd::dk, &GatedDeltaBwd::dv,
                   &GatedDeltaBwd::dbeta, &GatedDeltaBwd::dlog_a, &GatedDeltaBwd::dgate_a,
                   &GatedDeltaBwd::dgate_b, &GatedDeltaBwd::da_log, &GatedDeltaBwd::ddt_bias})
      if ((shared.*d).defined()) expect_same(shared.*d, own.*d);
  }
}

TEST(GatedDelta, SharedRowsGiveTheBitsOfOwnRows) {
  Stream stream(std::in_place_type<CpuStream>, 2);
  const auto run = [&](Arena&, const auto& op) { Launch(stream, op); };
  for (const int64_t T : {1, 70}) CheckSharedRows(DType::kF32, {2, T, 3, 12, 20}, run);
}

// Nobody has to want the gradients of gates.
TEST(GatedDelta, GradientsOfGatesMayBeLeftOut) {
  Problem<float> p(1, 70, 2, 12, 20), q = p;
  p.Backward();
  q.Backward(/*gates=*/false);
  EXPECT_TRUE(SameBits(p.dq, q.dq) && SameBits(p.dk, q.dk) && SameBits(p.dv, q.dv));
  EXPECT_TRUE(q.dbeta.empty() && q.dlog_a.empty());
}

#ifdef WEFT_CUDA

// Runs a copy of the arena on the device.
template <class Op>
void RunOnGpu(Arena& arena, Op op) {
  Stream any(std::in_place_type<CudaStream>, 0);
  auto& stream = std::get<CudaStream>(any);
  Arena device(Arena::Mode::kPlain, arena.used(), Memory::kDevice);
  stream.Copy(device.base(), arena.base(), arena.used());
  op_spec_internal::Shift shift{device.base() - arena.base()};
  if constexpr (requires { op.fwd; }) GatedDeltaFwd::Visit(op.fwd, shift);
  Op::Visit(op, shift);
  Launch(any, op);
  stream.Copy(arena.base(), device.base(), arena.used());
  stream.Synchronize();
}

TEST(GpuGatedDelta, SharedRowsGiveTheBitsOfOwnRows) {
  const auto run = [&](Arena& arena, const auto& op) { RunOnGpu(arena, op); };
  CheckSharedRows(DType::kF32, {2, 70, 3, 12, 20}, run);
  for (const auto& [K, V] : {std::pair<int64_t, int64_t>{20, 12}, {32, 48}, {64, 64}, {96, 192}})
    CheckSharedRows(DType::kBF16, {2, 130, 3, K, V}, run);
}

// Without states to save, few tokens go one by one.
TEST(GpuGatedDelta, TokenByTokenIsTheRecurrence) {
  for (const Layer& layer : kLayers) {
    SCOPED_TRACE(layer.name);
    const auto make = [&](Arena& arena, DType dtype) {
      CaseMaker maker(arena, dtype, 0, /*bf16_values=*/true);
      GatedDeltaFwd f = WithOutputs(maker, SharedRows(maker, {2, 7, 3, 70, 36}, layer)).fwd;
      f.states = {};
      return f;
    };
    Arena arena(Arena::Mode::kPlain, 1 << 24), exact(Arena::Mode::kPlain, 1 << 24);
    const GatedDeltaFwd found = make(arena, DType::kF32), expected = make(exact, DType::kF64);
    RunOnGpu(arena, found);
    GatedDeltaRef<double>(expected);
    for (auto x : {&GatedDeltaFwd::y, &GatedDeltaFwd::final_state}) {
      const auto* a = (found.*x).Data<float>();
      const auto* b = (expected.*x).Data<double>();
      EXPECT_LE(RelativeError(std::vector<double>(a, a + (found.*x).size()),
                              std::vector<double>(b, b + (found.*x).size())),
                1e-6);
    }
  }
}

#endif

TEST(GatedDelta, EmptyAndRefused) {
  Problem<float> p(1, 5, 1, 4, 4);
  p.Launch(p.Fwd(2, 2));
  EXPECT_TRUE(SameBits(p.final_state, p.initial));
  GatedDeltaBwd g{.fwd = p.Fwd(0, 5)};
  EXPECT_THROW(g.Check(), Error);
  GatedDeltaFwd f = p.Fwd(0, 5);
  f.gate_a = f.gate_b = f.beta;
  f.a_log = f.dt_bias = TensorView(p.beta.data(), DType::kF32, {1}, "a_log");
  EXPECT_THROW(f.Check(), Error);  // gates are given twice
  f.beta = f.log_a = {};
  f.Check();
  f.gate_b = {};
  EXPECT_THROW(f.Check(), Error);
}

// Any cut, one token at a time included, with the history updated in place, gives the bits of the
// whole.
TEST(ShortConv, SplitSequenceEqualsWhole) {
  const int64_t B = 2, L = 70, C = 37, W = 4;
  Rng rng(1, Purpose::kTest, 0);
  const auto normal = [&](int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(rng.Normal());
    return x;
  };
  std::vector<float> x = normal(B * L * C), w = normal(C * W), history = normal(B * (W - 1) * C);
  const auto run = [&](int64_t step) {
    std::vector<float> y(x.size()), state = history;
    const TensorView xs(x.data(), DType::kF32, {B, L, C}, "x"),
        ys(y.data(), DType::kF32, {B, L, C}, "y");
    Stream stream(std::in_place_type<CpuStream>, 2);
    for (int64_t t = 0; t < L; t += step) {
      const int64_t n = std::min(step, L - t);
      ShortConvFwd f{.norm_channels = 20, .norm_group = 5};
      f.x = xs.Slice(1, t, n);
      f.w = TensorView(w.data(), DType::kF32, {C, W}, "w");
      f.history = f.history_out = TensorView(state.data(), DType::kF32, {B, W - 1, C}, "history");
      f.y = ys.Slice(1, t, n);
      Launch(stream, f);
    }
    y.insert(y.end(), state.begin(), state.end());
    return y;
  };
  const std::vector<float> whole = run(L);
  for (const int64_t step : {1, 2, 3, 5, 64}) EXPECT_TRUE(SameBits(run(step), whole)) << step;
  x[static_cast<size_t>(50 * C)] += 1;
  const std::vector<float> changed = run(L);
  EXPECT_TRUE(std::equal(whole.begin(), whole.begin() + 50 * C, changed.begin()));
  EXPECT_FALSE(SameBits(whole, changed));
}

}  // namespace
}  // namespace weft
