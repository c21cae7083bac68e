#include "arch/blocks/model.h"

#include <algorithm>

#include "arch/ops/linear.h"
#include "kernels/add/add.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/swiglu/swiglu.h"

namespace weft {
namespace {

constexpr int64_t kPieceAlign = 128;  // rows

std::string MixerName(const std::string& label) { return label.substr(0, label.find('-')); }

}  // namespace

void ModelConfig::Visit(ConfigVisitor& v) {
  v.Key("d_model", d_model, "width of the residual stream", Range{1, 1 << 20});
  v.Key("layers", layers, "blocks", Range{1, 10000});
  v.Key("pattern", pattern, "mixers of the blocks, repeated over the layers");
  v.Key("middle", middle,
        "mixer of the layers / 4 blocks in the middle, whatever the pattern says; empty = the "
        "pattern's");
  v.Key("last", last, "mixer of the last block, likewise");
  v.Key("d_ff", d_ff, "hidden width of the SwiGLU MLP; 0 = 4 d_model", Range{0, 1 << 22});
  v.Key("vocab", vocab, "vocabulary size; 0 = what the data needs", Range{0, 1 << 24});
  v.LaterKey("positions", positions, "0",
             "table of learned positions, counted from the start of a document and added to the "
             "embedding; 0 = none",
             Range{0, 1 << 24});
  v.Key("tied", tied, "the head is the embedding");
  v.Key("norm_eps", norm_eps, "epsilon of the block norms", Range{0, 1});
  v.Key("init_std", init_std, "weights start truncated normal with this sigma, cut at 3 sigma",
        Range{0, 10});
}

const std::string& ModelConfig::LabelOf(int64_t layer) const {
  const int64_t length = layers / 4, begin = (layers - length) / 2;
  if (!last.empty() && layer == layers - 1) return last;
  if (!middle.empty() && layer >= begin && layer < begin + length) return middle;
  return pattern[static_cast<size_t>(layer) % pattern.size()];
}

std::vector<std::string> ModelConfig::Labels() const {
  std::vector<std::string> labels = pattern;
  if (labels.empty()) return labels;
  for (const std::string& label : {middle, last}) {
    if (!label.empty()) labels.push_back(label);
  }
  return labels;
}

MixerConfigs::MixerConfigs(const std::vector<std::string>& labels) : labels_(labels) {
  if (labels.empty()) {
    Fail(ExitCode::kUsage,
         "model.pattern is empty; name at least one mixer, such as [\"attention\"]");
  }
  for (const MixerSpec& spec : AllMixers()) configs_[spec.name] = spec.config();
  for (const std::string& label : labels) {
    if (!configs_.contains(label)) configs_[label] = FindMixer(MixerName(label)).config();
  }
}

void MixerConfigs::Visit(ConfigVisitor& v) {
  for (auto& [label, config] : configs_) v.Section("mixer." + label, *config);
}

void MixerConfigs::VisitUsed(ConfigVisitor& v) {
  for (auto& [label, config] : configs_) {
    if (std::count(labels_.begin(), labels_.end(), label)) v.Section("mixer." + label, *config);
  }
}

Settings MixerConfigs::Inherit(const Settings& settings) const {
  Settings all;
  for (const auto& [label, config] : configs_) {
    if (label == MixerName(label)) continue;
    const std::string base = "mixer." + MixerName(label) + ".";
    for (Setting s : settings) {
      if (!s.path.starts_with(base)) continue;
      s.path = "mixer." + label + "." + s.path.substr(base.size());
      all.push_back(std::move(s));
    }
  }
  all.insert(all.end(), settings.begin(), settings.end());
  return all;
}

Model::Model(const ModelConfig& config, const MixerConfigs& mixers) : config_(config) {
  const int64_t D = config.d_model, F = config.FeedForward();
  Check(config.vocab > 0, "model.vocab must be known before the model is built");
  const Init weights = TruncatedNormal(config.init_std);
  embedding_ = params_.Add("embedding", {config.vocab, D}, weights, false);
  if (config.positions > 0)
    positions_ = params_.Add("positions", {config.positions, D}, weights, false);
  for (int64_t i = 0; i < config.layers; ++i) {
    Layer layer;
    layer.label = config.LabelOf(i);
    const MixerConfig& mixer = mixers.at(layer.label);
    const std::string path = Cat("blocks.", i, ".");
    layer.post_norm = mixer.norm == "post";
    layer.mixer_norm = params_.Add(path + "mixer_norm", {D}, Constant(1), false);
    layer.mixer = mixer.Make(params_, path + "mixer.", D, config.init_std);
    layer.mlp_norm = params_.Add(path + "mlp_norm", {D}, Constant(1), false);
    layer.gate_up = params_.Add(path + "mlp.gate_up", {2 * F, D}, weights, true);
    layer.down = params_.Add(path + "mlp.down", {D, F}, weights, true);
    layers_.push_back(std::move(layer));
  }
  norm_ = params_.Add("norm", {D}, Constant(1), false);
  head_ = config.tied ? embedding_ : params_.Add("head", {config.vocab, D}, weights, true);
}

Var Model::Body(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
                ModelState* state) const {
  const int64_t B = tokens.dim(0), T = tokens.dim(1);
  Residual r{tape.NewVar(c, "embedding", {B, T, config_.d_model}), {}};
  const EmbeddingFwd embed{tokens, embedding_->var.x, r.h.x};
  tape.Run(c, embed, EmbeddingBwd{embed, r.h.dx, GradOf(embedding_->var)});
  if (positions_) {
    if (T > config_.positions) {
      Fail(ExitCode::kUsage, "model.positions = ", config_.positions, " is less than the ", T,
           " tokens of a row; raise it, or shorten rows");
    }
    Check(
        documents.position.defined() && !state,
        "a model with learned positions (model.positions) has to be given them, and cannot decode");
    r.branch = tape.NewVar(c, "positions", {B, T, config_.d_model});
    const EmbeddingFwd place{documents.position, positions_->var.x, r.branch.x};
    tape.Run(c, place, EmbeddingBwd{place, r.branch.dx, GradOf(positions_->var)});
    Settle(c, tape, r);
  }
  // Without a backward the residual has two tensors for all blocks, and what a block needs is free
  // after it.
  const bool kept = tape.recording() || state;
  const Var h = r.h, branch = kept ? Var{} : tape.NewVarLike(c, "residual", h.x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    if (!kept) {
      const int64_t used = c.arena.used();
      Block(c, tape, r, layer, documents, nullptr);
      const bool pending = r.branch.x.defined();
      Copy(c.stream, h.x, r.h.x);
      if (pending) Copy(c.stream, branch.x, r.branch.x);
      r = {h, pending ? branch : Var{}};
      c.arena.Rewind(used);
      continue;
    }
    if (config_.recompute != ModelConfig::Recompute::kBlock || state) {
      Block(c, tape, r, layer, documents, state ? &(*state)[i] : nullptr);
      continue;
    }
    const auto block = [this, &layer, documents](Context& inner, Tape& t, const Var& h) {
      Residual residual{h, {}};
      Block(inner, t, residual, layer, documents, nullptr);
      Settle(inner, t, residual);
      return residual.h;
    };
    r = {tape.Recompute(c, r.h, block), {}};
  }
  return Norm(c, tape, r, *norm_);
}

void Model::Block(Context& c, Tape& tape, Residual& r, const Layer& layer,
                  const Documents& documents, MixerState* state) const {
  if (layer.post_norm) {
    Settle(c, tape, r);
    Post(c, tape, r, layer.mixer->Forward(c, tape, r.h, documents, state), *layer.mixer_norm);
    Post(c, tape, r, Mlp(c, tape, r.h, layer), *layer.mlp_norm);
  } else {
    const Var x = Norm(c, tape, r, *layer.mixer_norm);
    r.branch = layer.mixer->Forward(c, tape, x, documents, state);
    r.branch = Mlp(c, tape, Norm(c, tape, r, *layer.mlp_norm), layer);
  }
}

Var Model::Logits(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
                  ModelState* state) const {
  return Linear(c, tape, Body(c, tape, tokens, documents, state), head_->var, "logits");
}

Model::Loss Model::NewLoss(Context& c, const TensorView& labels, const TensorView& denominator) {
  const DType wide = Wide(c.dtype);
  const int64_t N = labels.size();
  Loss loss{labels, denominator};
  loss.total = c.arena.Alloc(wide, {1}, "loss");
  loss.mean_nll = c.arena.Alloc(wide, {1}, "loss.mean_nll");
  loss.nll = c.arena.Alloc(wide, {N}, "loss.nll");
  loss.correct = c.arena.Alloc(wide, {N}, "loss.correct");
  return loss;
}

void Model::LossOf(Context& c, Tape& tape, const TensorView& tokens, const Documents& documents,
                   const Loss& loss) const {
  CheckShape("model", "the denominator of the loss", loss.denominator, {1});
  const Var body = Body(c, tape, tokens, documents, nullptr);
  const int64_t N = tokens.size(), V = config_.vocab;
  const int64_t pieces = (N * V + loss.logits_at_once - 1) / loss.logits_at_once;
  const int64_t rows = ((N + pieces - 1) / pieces + kPieceAlign - 1) / kPieceAlign * kPieceAlign;
  const std::initializer_list<int64_t> piece = {std::min(rows, N), V};
  const TensorView logits = tape.recording() ? tape.NewTemporary(c, "logits", piece)
                                             : c.arena.Alloc(c.dtype, piece, "logits");
  const TensorView lse = c.arena.Alloc(Wide(c.dtype), {N}, "loss.lse");
  // Rows [begin, begin + n): logits and their share of the loss.
  const auto forward = [=, x = body.x.Rows(), w = head_->var.x](
                           Stream& stream, const TensorView& memory, int64_t begin, int64_t n) {
    const MatmulFwd head{x.Slice(0, begin, n), w, memory.Slice(0, 0, n)};
    Launch(stream, head);
    CrossEntropyFwd f;
    f.logits = head.y;
    f.labels = loss.labels.Reshape({N}).Slice(0, begin, n);
    f.denominator = loss.denominator;
    f.nll = loss.nll.Slice(0, begin, n), f.correct = loss.correct.Slice(0, begin, n);
    f.lse = lse.Slice(0, begin, n);
    f.loss = loss.total, f.mean_nll = loss.mean_nll;
    f.z_loss = loss.z_loss;
    f.accumulate = loss.accumulate || begin > 0;
    Launch(stream, f);
    return std::pair(head, f);
  };
  if (!tape.recording()) {
    for (int64_t begin = 0; begin < N; begin += rows)
      forward(c.stream, logits, begin, std::min(rows, N - begin));
    return;
  }
  const TensorView dx = body.dx, dw = head_->var.dx;
  tape.Record({dx, dw, logits}, [=](Context& context, Tape& t) {
    const TensorView memory = t.Read(logits);
    const Grad whole = t.Written(dx);
    Grad weights = t.Written(dw);
    Stream& stream = context.stream;
    for (int64_t begin = 0; begin < N; begin += rows) {
      const int64_t n = std::min(rows, N - begin);
      const auto [head, f] = forward(stream, memory, begin, n);
      CrossEntropyBwd loss_bwd{f, {}, Grad(f.logits)};
      loss_bwd.dlogits.accumulate = false;
      Launch(stream, loss_bwd);
      Grad part(whole.Rows().Slice(0, begin, n));
      part.accumulate = whole.accumulate;
      Launch(stream, MatmulBwd{head, f.logits, part, weights});
      weights.accumulate = true;
    }
  });
}

Var Model::Norm(Context& c, Tape& tape, Residual& r, const Param& w) const {
  const bool pending = r.branch.x.defined();
  const Var y = tape.NewVarLike(c, "norm", r.h.x);
  RmsNormFwd fwd;
  fwd.x = pending ? r.branch.x : r.h.x;
  fwd.w = w.var.x, fwd.y = y.x, fwd.eps = config_.norm_eps;
  fwd.rstd = c.arena.Alloc(Wide(c.dtype), {r.h.x.dim(0) * r.h.x.dim(1)}, "norm.rstd");
  if (pending) {
    tape.ShareGradient(r.branch, r.h);
    fwd.mode = weft::Residual::kBefore;
    fwd.residual = r.h.x, fwd.sum = r.branch.x;
    r = {{r.branch.x, r.h.dx}, {}};
  }
  RmsNormBwd bwd{fwd};
  bwd.dy = y.dx, bwd.dx = GradOf(r.h), bwd.dw = GradOf(w.var);
  tape.Run(c, fwd, bwd);
  return y;
}

void Model::Settle(Context& c, Tape& tape, Residual& r) const {
  if (!r.branch.x.defined()) return;
  tape.ShareGradient(r.branch, r.h);
  Launch(c.stream, AddFwd{r.h.x, r.branch.x, r.branch.x});
  r = {{r.branch.x, r.h.dx}, {}};
}

void Model::Post(Context& c, Tape& tape, Residual& r, const Var& out, const Param& w) const {
  const Var sum{c.arena.Alloc(c.dtype, {r.h.x.dim(0), r.h.x.dim(1), r.h.x.dim(2)}, "residual"),
                r.h.dx};
  RmsNormFwd fwd;
  fwd.mode = weft::Residual::kAfter;
  fwd.x = out.x, fwd.residual = r.h.x, fwd.w = w.var.x, fwd.y = sum.x, fwd.eps = config_.norm_eps;
  fwd.rstd = c.arena.Alloc(Wide(c.dtype), {r.h.x.dim(0) * r.h.x.dim(1)}, "norm.rstd");
  RmsNormBwd bwd{fwd};
  bwd.dy = sum.dx, bwd.dx = GradOf(out), bwd.dw = GradOf(w.var);
  tape.Run(c, fwd, bwd);
  r = {sum, {}};
}

Var Model::Mlp(Context& c, Tape& tape, const Var& x, const Layer& layer) const {
  const int64_t B = x.x.dim(0), T = x.x.dim(1), F = config_.FeedForward();
  const Var gate_up = Linear(c, tape, x, layer.gate_up->var, "mlp.gate_up");
  tape.GradientInPlace(gate_up);
  if (config_.recompute != ModelConfig::Recompute::kHidden || !tape.recording()) {
    const Var hidden = tape.NewVar(c, "mlp.hidden", {B, T, F});
    const SwigluFwd fwd{gate_up.x, hidden.x};
    tape.Run(c, fwd, SwigluBwd{fwd, hidden.dx, GradOf(gate_up)});
    return Linear(c, tape, hidden, layer.down->var, "mlp.down");
  }
  const Var y = tape.NewVar(c, "mlp.down", {B, T, config_.d_model}), down = layer.down->var;
  const int64_t used = c.arena.used();
  const TensorView hidden = c.arena.Alloc(c.dtype, {B, T, F}, "mlp.hidden");
  Launch(c.stream, SwigluFwd{gate_up.x, hidden});
  Launch(c.stream, MatmulFwd{hidden, down.x, y.x});
  c.arena.Rewind(used);
  const TensorView temporary = tape.NewTemporary(c, "mlp.dhidden", {B, T, F});
  tape.Record({gate_up.dx, y.dx, down.dx, temporary}, [=](Context& context, Tape& t) {
    const TensorView memory = t.Read(temporary);
    const MatmulFwd product{memory, down.x, y.x};
    const TensorView dy = t.Read(y.dx);
    Grad dhidden(memory);
    dhidden.accumulate = false;
    Launch(context.stream, MatmulBwd{product, dy, dhidden, {}});
    // The hidden layer again, where its gradient was.
    Launch(context.stream, SwigluBwd{{gate_up.x, memory}, memory, t.Written(gate_up.dx), memory});
    Launch(context.stream, MatmulBwd{product, dy, {}, t.Written(down.dx)});
  });
  return y;
}

ModelState Model::NewState(Context& c, int64_t B, int64_t capacity) const {
  ModelState state;
  for (const Layer& layer : layers_) state.push_back(layer.mixer->NewState(c, B, capacity));
  return state;
}

Model::Counts Model::Count() const {
  Counts counts{params_.Count(), params_.Count("embedding") + params_.Count("positions"),
                params_.Count("head"), 0};
  counts.body = counts.total - counts.embedding - counts.head;
  return counts;
}

MixerCost Model::Cost(int64_t T) const {
  const double D = static_cast<double>(config_.d_model),
               F = static_cast<double>(config_.FeedForward());
  MixerCost cost{2 * D * static_cast<double>(config_.vocab), 0};
  for (const Layer& layer : layers_) {
    const MixerCost mixer = layer.mixer->Cost(T);
    cost.flops_per_token += mixer.flops_per_token + 6 * D * F;
    cost.state_bytes += mixer.state_bytes;
  }
  return cost;
}

}  // namespace weft
