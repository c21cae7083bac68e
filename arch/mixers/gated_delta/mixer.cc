// Gated DeltaNet (Yang et al. 2025, arXiv:2412.06464) as used by Olmo Hybrid (arXiv:2604.03444,
// Definition 1), per head:
//   q, k = l2norm(silu(conv(W x))),  v = silu(conv(W x)),  beta = c sigmoid(W_b x),
//   log a = -exp(A_log) softplus(W_a x + dt_bias),
//   S_t = a_t S_{t-1} + k_t u_t^T,  u_t = beta_t (v_t - a_t S_{t-1}^T k_t),  o_t = K^{-1/2} S_t^T
//   q_t, y = W_out (rmsnorm(o) * silu(W_g x)).
// c = 2 lets I - beta k k^T have the eigenvalue -1, which swapping two values needs (Grazzi et al.
// 2025, arXiv:2411.12537).

#include "arch/core/mixer.h"

#include <cmath>

#include "arch/ops/linear.h"
#include "kernels/gated_delta/gated_delta.h"
#include "kernels/gated_rms_norm/gated_rms_norm.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/short_conv/short_conv.h"

namespace weft {
namespace {

struct GatedDeltaConfig : MixerConfig {
  int64_t heads = 4, key_dim = 0, value_dim = 0, conv_width = 4;
  bool gate = true, negative_eigenvalues = true;
  std::string init = "normal";
  double norm_eps = 1e-5;

  void VisitOwn(ConfigVisitor& v) override {
    v.Key("heads", heads, "heads", Range{1, 1024});
    v.Key("key_dim", key_dim, "key channels per head; 0 = 0.75 d_model / heads, rounded down",
          Range{0, 1024});
    v.Key("value_dim", value_dim, "value channels per head; 0 = 2 key_dim", Range{0, 2048});
    v.Key("conv_width", conv_width, "taps of the short convolution", Range{1, 8});
    v.Key("gate", gate, "output gate");
    v.Key("negative_eigenvalues", negative_eigenvalues, "beta in (0, 2) instead of (0, 1)");
    v.Key("init", init, "weights: normal (model.init_std) or fan_in (uniform +-1/sqrt(fan-in))",
          {"normal", "fan_in"});
    v.Key("norm_eps", norm_eps, "epsilon of the output norm", Range{0, 1});
  }
  std::unique_ptr<Mixer> Make(ParamRegistry& params, const std::string& path, int64_t d_model,
                              double init_std) const override;
};

// exp(A_log) uniform in (0, 16); softplus(dt_bias) log-uniform in [1e-3, 1e-1) (Mamba-2's
// defaults).
constexpr Init kALog{.distribution = Distribution::kLogarithm, .low = 1e-6, .high = 16};
constexpr Init kDtBias{.distribution = Distribution::kInverseSoftplus, .low = 1e-3, .high = 1e-1};

class GatedDelta : public Mixer {
 public:
  GatedDelta(const GatedDeltaConfig& config, ParamRegistry& params, const std::string& path,
             int64_t D, double std)
      : config_(config), D_(D), H_(config.heads), W_(config.conv_width) {
    K_ = config.key_dim ? config.key_dim : 3 * D / (4 * H_);
    V_ = config.value_dim ? config.value_dim : 2 * K_;
    if (K_ < 1)
      Fail(ExitCode::kUsage, "mixer.gated_delta.key_dim: d_model = ", D,
           " is too small for heads = ", H_, "; set key_dim");
    const bool normal = config.init == "normal";
    const auto weights = [&](int64_t fan_in) {
      const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
      return normal ? TruncatedNormal(std) : UniformInit(-bound, bound);
    };
    in_ = params.Add(path + "in", {InWidth(), D}, weights(D), true);
    conv_ = params.Add(path + "conv", {ConvChannels(), W_}, weights(W_), true);
    a_log_ = params.Add(path + "a_log", {H_}, kALog, false);
    dt_bias_ = params.Add(path + "dt_bias", {H_}, kDtBias, false);
    norm_ = params.Add(path + "norm", {V_}, Constant(1), false);
    out_ = params.Add(path + "out", {D, H_ * V_}, weights(H_ * V_), true);
  }

  Var Forward(Context& c, Tape& tape, const Var& x, const Documents& documents,
              MixerState* state) override {
    const int64_t B = x.x.dim(0), T = x.x.dim(1), k = H_ * K_, v = H_ * V_;
    const Var in = LinearInParts(c, tape, x, *in_, "gated_delta.in");  // [q | k | v | gate | a | b]
    const Var qkv = ShortConv(c, tape, tape.Slice(in, 2, 0, ConvChannels()), documents, state);
    const Var q = SplitLast(tape.Slice(qkv, 2, 0, k), H_, K_);
    const Var key = SplitLast(tape.Slice(qkv, 2, k, k), H_, K_);
    const Var value = SplitLast(tape.Slice(qkv, 2, 2 * k, v), H_, V_);
    const int64_t gates = InWidth() - 2 * H_;
    const Var a = tape.Slice(in, 2, gates, H_), b = tape.Slice(in, 2, gates + H_, H_);

    const Var o = tape.NewVar(c, "gated_delta.o", {B, T, H_, V_});
    GatedDeltaFwd fwd;
    fwd.q = q.x, fwd.k = key.x, fwd.v = value.x, fwd.y = o.x;
    fwd.gate_a = a.x, fwd.gate_b = b.x;
    fwd.a_log = a_log_->var.x, fwd.dt_bias = dt_bias_->var.x;
    fwd.beta_scale = config_.negative_eigenvalues ? 2 : 1;
    fwd.doc_start = documents.start;
    fwd.scale = 1 / std::sqrt(static_cast<double>(K_));
    if (state) {
      fwd.final_state = state->tensors[0];
      if (state->position > 0) fwd.initial = state->tensors[0];
      state->position += T;
    }
    fwd.states = tape.NewSaved(c, "gated_delta.states", {B, GatedDeltaChunks(T), H_, K_ * V_});
    GatedDeltaBwd bwd{fwd};
    bwd.dy = o.dx, bwd.dq = GradOf(q), bwd.dk = GradOf(key), bwd.dv = GradOf(value);
    bwd.dgate_a = GradOf(a), bwd.dgate_b = GradOf(b);
    bwd.da_log = GradOf(a_log_->var), bwd.ddt_bias = GradOf(dt_bias_->var);
    tape.Run(c, fwd, bwd);

    const Var gate = config_.gate ? SplitLast(tape.Slice(in, 2, ConvChannels(), v), H_, V_) : Var{};
    return Linear(c, tape, MergeLast(OutNorm(c, tape, o, gate)), out_->var, "gated_delta.out");
  }

  MixerState NewState(Context& c, int64_t B, int64_t capacity) const override {
    MixerState state{{c.arena.Alloc(Wide(c.dtype), {B, H_, K_, V_}, "gated_delta.state")}, 0, capacity};
    if (W_ > 1)
      state.tensors.push_back(
          c.arena.Alloc(c.dtype, {B, W_ - 1, ConvChannels()}, "gated_delta.history"));
    return state;
  }

  MixerCost Cost(int64_t) const override {
    const double macs =
        static_cast<double>(D_ * RoundUpRows(InWidth()) + ConvChannels() * W_ + 3 * H_ * K_ * V_ + H_ * V_ * D_);
    return {2 * macs, 4 * (H_ * K_ * V_ + (W_ - 1) * ConvChannels())};
  }

 private:
  int64_t ConvChannels() const { return H_ * (2 * K_ + V_); }
  int64_t InWidth() const { return ConvChannels() + (config_.gate ? H_ * V_ : 0) + 2 * H_; }

  Var ShortConv(Context& c, Tape& tape, const Var& x, const Documents& documents,
                MixerState* state) {
    const int64_t B = x.x.dim(0), T = x.x.dim(1);
    const Var y = tape.NewVar(c, "gated_delta.qkv", {B, T, ConvChannels()});
    ShortConvFwd fwd;
    fwd.x = x.x, fwd.w = conv_->var.x, fwd.y = y.x;
    fwd.doc_start = documents.start;
    fwd.norm_channels = 2 * H_ * K_;
    fwd.norm_group = K_;
    fwd.rstd = c.arena.Alloc(Wide(c.dtype), {B, T, 2 * H_}, "gated_delta.qk_rstd");
    if (state && W_ > 1) {
      fwd.history_out = state->tensors[1];
      if (state->position > 0) fwd.history = state->tensors[1];
    }
    tape.Run(c, fwd, ShortConvBwd{fwd, y.dx, GradOf(x), GradOf(conv_->var)});
    return y;
  }

  Var OutNorm(Context& c, Tape& tape, const Var& o, const Var& gate) {
    const int64_t B = o.x.dim(0), T = o.x.dim(1);
    const Var y = tape.NewVar(c, "gated_delta.y", {B, T, H_, V_});
    if (config_.gate) {
      GatedRmsNormFwd fwd;
      fwd.x = o.x, fwd.gate = gate.x, fwd.w = norm_->var.x, fwd.y = y.x, fwd.eps = config_.norm_eps;
      fwd.rstd = c.arena.Alloc(Wide(c.dtype), {B, T, H_}, "gated_delta.rstd");
      tape.Run(c, fwd, GatedRmsNormBwd{fwd, y.dx, GradOf(o), GradOf(gate), GradOf(norm_->var)});
    } else {
      RmsNormFwd fwd;
      fwd.x = o.x, fwd.w = norm_->var.x, fwd.y = y.x, fwd.eps = config_.norm_eps;
      fwd.rstd = c.arena.Alloc(Wide(c.dtype), {B * T * H_}, "gated_delta.rstd");
      RmsNormBwd bwd{fwd};
      bwd.dy = y.dx, bwd.dx = GradOf(o), bwd.dw = GradOf(norm_->var);
      tape.Run(c, fwd, bwd);
    }
    return y;
  }

  GatedDeltaConfig config_;
  int64_t D_, H_, W_, K_, V_;
  Param *in_, *conv_, *a_log_, *dt_bias_, *norm_, *out_;
};

std::unique_ptr<Mixer> GatedDeltaConfig::Make(ParamRegistry& params, const std::string& path,
                                              int64_t d_model, double init_std) const {
  return std::make_unique<GatedDelta>(*this, params, path, d_model, init_std);
}

}  // namespace

MixerSpec Spec_gated_delta() {
  return {"gated_delta",
          "Gated DeltaNet: linear recurrence with a matrix state, delta rule and scalar decay",
          [] { return std::unique_ptr<MixerConfig>(std::make_unique<GatedDeltaConfig>()); },
          "d (2 k + 2 v + 2 H) + c (2 k + v) + 2 H + V + v d; 2 (d R + c (2 k + v) + 3 H K V + v d), the "
          "recurrence token by token; H K V + (c - 1) (2 k + v); H heads, K key_dim, V value_dim, k = H K, "
          "v = H V, c conv_width, R = 2 k + 2 v + 2 H rounded up to a multiple of 8, from 1024 on of 64, "
          "as the product is computed; without gate d v less"};
}

}  // namespace weft
