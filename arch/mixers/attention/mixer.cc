// Softmax attention: multi-head or grouped-query, optional sliding window, QK-norm and rotary
// embedding. Olmo 3 and Olmo Hybrid (arXiv:2604.03444, section 2): qk_norm = "full", norm = "post",
// rope_theta = 5e5.

#include "arch/core/mixer.h"

#include <algorithm>

#include "arch/ops/linear.h"
#include "kernels/attention/attention.h"
#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

struct AttentionConfig : MixerConfig {
  int64_t heads = 4, kv_heads = 0, head_dim = 0, window = 0;
  std::string qk_norm = "head";
  double qk_norm_eps = 1e-6, rope_theta = 500000;

  void VisitOwn(ConfigVisitor& v) override {
    v.Key("heads", heads, "query heads", Range{1, 1024});
    v.Key("kv_heads", kv_heads, "key and value heads; 0 = heads", Range{0, 1024});
    v.Key("head_dim", head_dim, "channels per head; 0 = d_model / heads", Range{0, 1024});
    v.Key("window", window, "tokens that a query sees, itself included; 0 = all",
          Range{0, 1 << 30});
    v.Key("qk_norm", qk_norm, "RMSNorm of queries and keys, per head or over all heads",
          {"none", "head", "full"});
    v.Key("qk_norm_eps", qk_norm_eps, "epsilon of the QK-norm", Range{0, 1});
    v.Key("rope_theta", rope_theta, "base of the rotary embedding; 0 = no positions",
          Range{0, 1e12});
  }
  std::unique_ptr<Mixer> Make(ParamRegistry& params, const std::string& path, int64_t d_model,
                              double init_std) const override;
};

class Attention : public Mixer {
 public:
  Attention(const AttentionConfig& config, ParamRegistry& params, const std::string& path,
            int64_t D, double std)
      : config_(config),
        D_(D),
        H_(config.heads),
        G_(config.kv_heads ? config.kv_heads : config.heads) {
    if (config.head_dim == 0 && D % H_ != 0) {
      Fail(ExitCode::kUsage, "mixer.attention.heads: d_model = ", D,
           " is not divisible by heads = ", H_, "; change one of them or set head_dim");
    }
    if (H_ % G_ != 0) {
      Fail(ExitCode::kUsage, "mixer.attention.kv_heads: heads = ", H_,
           " is not a multiple of kv_heads = ", G_);
    }
    K_ = config.head_dim ? config.head_dim : D / H_;
    if (config.rope_theta > 0 && K_ % 2 != 0) {
      Fail(ExitCode::kUsage, "mixer.attention.head_dim: ", K_,
           " is odd, but the rotary embedding turns pairs of channels; ",
           "choose an even head_dim or rope_theta = 0");
    }
    qkv_ = params.Add(path + "qkv", {(H_ + 2 * G_) * K_, D}, TruncatedNormal(std), true);
    if (config.qk_norm != "none") {
      const bool full = config.qk_norm == "full";
      q_norm_ = params.Add(path + "q_norm", {full ? H_ * K_ : K_}, Constant(1), false);
      k_norm_ = params.Add(path + "k_norm", {full ? G_ * K_ : K_}, Constant(1), false);
    }
    out_ = params.Add(path + "out", {D, H_ * K_}, TruncatedNormal(std), true);
  }

  Var Forward(Context& c, Tape& tape, const Var& x, const Documents& documents,
              MixerState* state) override {
    const int64_t B = x.x.dim(0), T = x.x.dim(1);
    const int64_t position = state ? state->position : 0;
    const Var qkv = Linear(c, tape, x, qkv_->var, "attention.qkv");
    Var q = SplitLast(tape.Slice(qkv, 2, 0, H_ * K_), H_, K_);
    Var k = SplitLast(tape.Slice(qkv, 2, H_ * K_, G_ * K_), G_, K_);
    Var v = SplitLast(tape.Slice(qkv, 2, (H_ + G_) * K_, G_ * K_), G_, K_);
    if (q_norm_ || config_.rope_theta > 0) {
      q = NormRope(c, tape, q, q_norm_, position, "attention.q");
      k = NormRope(c, tape, k, k_norm_, position, "attention.k");
    }
    if (state) {
      k.x = Extend(c, k.x, state->tensors[0], *state);
      v.x = Extend(c, v.x, state->tensors[1], *state);
      state->position += T;
    }
    const Var y = tape.NewVar(c, "attention.y", {B, T, H_, K_});
    AttentionFwd fwd;
    fwd.q = q.x, fwd.k = k.x, fwd.v = v.x, fwd.y = y.x;
    fwd.doc_start = documents.start;
    fwd.lse = c.arena.Alloc(Wide(c.dtype), {B, H_, T}, "attention.lse");
    fwd.scale = 1 / std::sqrt(static_cast<double>(K_));
    fwd.window = config_.window;
    tape.Run(c, fwd, AttentionBwd{fwd, y.dx, GradOf(q), GradOf(k), GradOf(v)});
    return Linear(c, tape, MergeLast(y), out_->var, "attention.out");
  }

  // The keys and values that a later token can see: all of them, or the last `window`.
  MixerState NewState(Context& c, int64_t B, int64_t capacity) const override {
    const int64_t rows = Visible(capacity);
    return {{c.arena.Alloc(c.dtype, {B, rows, G_, K_}, "attention.keys"),
             c.arena.Alloc(c.dtype, {B, rows, G_, K_}, "attention.values")},
            0,
            capacity};
  }

  MixerCost Cost(int64_t T) const override {
    const double weights = static_cast<double>(D_ * (H_ + 2 * G_) * K_ + H_ * K_ * D_);
    // Mean over t of min(t + 1, window) visible keys.
    const double w = static_cast<double>(Visible(T)), t = static_cast<double>(T);
    const double keys = (w * (w + 1) / 2 + (t - w) * w) / t;
    return {2 * weights + 4 * static_cast<double>(H_ * K_) * keys, 2 * G_ * K_ * Visible(T) * 4};
  }

 private:
  int64_t Visible(int64_t T) const { return config_.window ? std::min(config_.window, T) : T; }

  Var NormRope(Context& c, Tape& tape, const Var& x, Param* w, int64_t position, const char* name) {
    const int64_t B = x.x.dim(0), T = x.x.dim(1), H = x.x.dim(2);
    const Var y = tape.NewVar(c, name, {B, T, H, K_});
    QkNormRopeFwd fwd;
    fwd.x = x.x, fwd.y = y.x;
    if (w) {
      const bool full = config_.qk_norm == "full";
      fwd.w = w->var.x;
      fwd.norm = full ? QkNorm::kFull : QkNorm::kHead;
      fwd.rstd =
          full ? c.arena.Alloc(Wide(c.dtype), {B, T}, name)
               : c.arena.Alloc(Wide(c.dtype), {B, T, H}, name);
    }
    fwd.eps = config_.qk_norm_eps;
    fwd.theta = config_.rope_theta;
    fwd.offset = position;
    tape.Run(c, fwd, QkNormRopeBwd{fwd, y.dx, GradOf(x), w ? GradOf(w->var) : Grad()});
    return y;
  }

  // The cached rows followed by the new ones; the cache keeps as many of the last rows as it can
  // hold.
  TensorView Extend(Context& c, const TensorView& fresh, const TensorView& cache,
                    const MixerState& state) const {
    const int64_t B = fresh.dim(0), T = fresh.dim(1), rows = cache.dim(1);
    const int64_t cached = std::min(state.position, rows), total = cached + T,
                  kept = std::min(total, rows);
    const TensorView all = c.arena.Alloc(c.dtype, {B, total, G_, K_}, "attention.cache");
    if (cached > 0) Copy(c, cache.Slice(1, 0, cached), all.Slice(1, 0, cached));
    Copy(c, fresh, all.Slice(1, cached, T));
    Copy(c, all.Slice(1, total - kept, kept), cache.Slice(1, 0, kept));
    return all;
  }
  // Without norm and rotation, QkNormRope copies.
  static void Copy(Context& c, const TensorView& from, const TensorView& to) {
    QkNormRopeFwd copy;
    copy.x = from, copy.y = to;
    Launch(c.stream, copy);
  }

  AttentionConfig config_;
  int64_t D_, H_, G_, K_;
  Param *qkv_, *out_, *q_norm_ = nullptr, *k_norm_ = nullptr;
};

std::unique_ptr<Mixer> AttentionConfig::Make(ParamRegistry& params, const std::string& path,
                                             int64_t d_model, double init_std) const {
  return std::make_unique<Attention>(*this, params, path, d_model, init_std);
}

}  // namespace

MixerSpec Spec_attention() {
  return {"attention",
          "softmax attention: multi-head or grouped-query, window, QK-norm, rotary embedding",
          [] { return std::unique_ptr<MixerConfig>(std::make_unique<AttentionConfig>()); },
          "2 d (H + G) K + QK-norms, (H + G) K (full) or 2 K (head); 2 * 2 d (H + G) K + 4 H K w; 2 "
          "G K min(T, window); H heads, G kv_heads, K head_dim, w visible keys on average, (T + 1) "
          "/ 2 without a window"};
}

}  // namespace weft
