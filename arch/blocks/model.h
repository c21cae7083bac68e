#pragma once
// The language model: embedding, blocks, final norm, head.
//
//   pre   h <- h + mixer(norm(h));  h <- h + mlp(norm(h))
//   post  h <- h + norm(mixer(h));  h <- h + norm(mlp(h))      (Olmo 2/3, arXiv:2501.00656,
//   section 3.2) mlp(x) = W_down (silu(W_gate x) * W_up x)                   (SwiGLU,
//   arXiv:2002.05202)
//
// The layer pattern is a list of mixer labels, repeated over `layers`; `middle` and `last` put
// another label in some of their places. A label is a mixer's name, or that name, a dash and a
// word: "attention-local" is an attention with settings of its own under mixer.attention-local,
// which start from those of mixer.attention.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arch/core/config.h"
#include "arch/core/mixer.h"
#include "arch/core/params.h"
#include "arch/core/tape.h"

namespace weft {

struct ModelConfig {
  int64_t d_model = 256, layers = 4, d_ff = 0, vocab = 0, positions = 0;
  std::vector<std::string> pattern = {"attention"};
  std::string middle, last;
  bool tied = false;
  double norm_eps = 1e-6, init_std = 0.02;
  // What the backward computes again instead of keeping it: the hidden layers of the MLPs, which it
  // gets almost for free, or whole blocks. Not part of the model, so not a key of it.
  enum class Recompute { kNone, kHidden, kBlock };
  Recompute recompute = Recompute::kNone;

  void Visit(ConfigVisitor& v);
  int64_t FeedForward() const { return d_ff ? d_ff : 4 * d_model; }
  const std::string& LabelOf(int64_t layer) const;
  // The pattern's labels, and those of middle and last.
  std::vector<std::string> Labels() const;
};

// The settings of every mixer label that may occur, each a "mixer.<label>." section.
class MixerConfigs {
 public:
  // All mixers by name, and the dashed ones of a model's labels. Unknown mixer or no label: Error.
  explicit MixerConfigs(const std::vector<std::string>& labels);
  void Visit(ConfigVisitor& v);
  // The model's labels only: what a run depends on.
  void VisitUsed(ConfigVisitor& v);
  // Settings of "mixer.attention." repeated for "mixer.attention-local.", ahead of its own.
  Settings Inherit(const Settings& settings) const;
  const MixerConfig& at(const std::string& label) const { return *configs_.at(label); }

 private:
  std::vector<std::string> labels_;
  std::map<std::string, std::unique_ptr<MixerConfig>> configs_;
};

// Decode state of a whole model, one entry per layer.
using ModelState = std::vector<MixerState>;

class Model {
 public:
  // Registers all parameters. Throws Error kUsage for settings that do not fit together.
  Model(const ModelConfig& config, const MixerConfigs& mixers);
  Model(const Model&) = delete;

  // tokens i32 [B, T] -> logits [B, T, vocab]: decoding and tests. Training and evaluation never
  // hold them all.
  Var Logits(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
             ModelState* state = nullptr) const;
  // What a loss is made of and written to.
  struct Loss {
    TensorView labels;       // i32 [B, T]
    TensorView denominator;  // [1], number of labels of the batch, at least 1
    double z_loss = 0;
    bool accumulate = false;  // add to total and mean_nll: a micro-batch that is not the first
    int64_t logits_at_once = int64_t{1} << 28;  // elements: long products, half a GB in bf16
    TensorView total;         // [1], out: mean over the labels of nll + z_loss lse^2
    TensorView mean_nll;      // [1], out
    TensorView nll;           // [B * T], out: nats; 0 where there is no label
    TensorView correct;       // [B * T], out: 1 where the label is the most likely token
  };
  // Allocates what a loss writes.
  static Loss NewLoss(Context& c, const TensorView& labels, const TensorView& denominator);
  // The loss is written when this returns, or, when the tape records, by Tape::Backward: the head
  // is the last op of the forward and the first of the backward, and both run over it in pieces, so
  // that logits and their gradients never exist as a whole.
  void LossOf(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
              const Loss& loss) const;
  ModelState NewState(Context& c, int64_t B, int64_t capacity) const;

  ParamRegistry& params() { return params_; }
  const ParamRegistry& params() const { return params_; }
  const ModelConfig& config() const { return config_; }

  struct Counts {
    int64_t total, embedding, head, body;  // head = 0 when tied; body = total - embedding - head
  };
  Counts Count() const;
  // Forward FLOPs per token and decode state, from the mixers' stated costs. The embedding is a
  // lookup: 0 FLOPs.
  MixerCost Cost(int64_t T) const;
  // The mixer's share of a block.
  MixerCost CostOfMixer(int64_t layer, int64_t T) const {
    return layers_[static_cast<size_t>(layer)].mixer->Cost(T);
  }

 private:
  struct Layer {
    std::string label;
    bool post_norm;
    Param *mixer_norm, *mlp_norm, *gate_up, *down;
    std::unique_ptr<Mixer> mixer;
  };
  Var Body(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
           ModelState* state) const;  // [B, T, D], what the head reads
  // The residual stream: its value is h, plus `branch` where that has not been added yet. All of it
  // has one gradient, in one memory: d(h + branch) is that of h and of branch.
  struct Residual {
    Var h, branch;
  };
  Var Norm(Context& c, Tape& tape, Residual& r, const Param& w) const;  // norm(h <- h + branch)
  void Settle(Context& c, Tape& tape, Residual& r) const;               // h <- h + branch
  void Post(Context& c, Tape& tape, Residual& r, const Var& out,
            const Param& w) const;  // h <- h + norm(out)
  // h and a branch that may still have to be added -> the same after the layer.
  void Block(Context& c, Tape& tape, Residual& r, const Layer& layer, const Documents& documents,
             MixerState* state) const;
  Var Mlp(Context& c, Tape& tape, const Var& x, const Layer& layer) const;

  ModelConfig config_;
  ParamRegistry params_;
  Param *embedding_, *positions_ = nullptr, *norm_, *head_;
  std::vector<Layer> layers_;
};

}  // namespace weft
