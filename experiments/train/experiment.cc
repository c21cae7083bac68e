#include "experiments/train/experiment.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numbers>

#include "kernels/base/check.h"

namespace weft {
namespace {

constexpr double kMostTokens = 1e18;  // of a run; they are counted in 64 bits

// The value of a string or list key that decides which other keys exist, before the full set is
// known.
template <class T>
T Peek(const Settings& settings, const std::string& path, T fallback) {
  Settings matching;
  for (const Setting& s : settings) {
    if (s.path == path) matching.push_back(s);
  }
  ConfigVisitor v;
  v.Key(path, fallback, "");
  Apply(matching, v.fields());
  return fallback;
}

}  // namespace

void OptimConfig::Visit(ConfigVisitor& v) {
  v.Key("lr", lr, "peak learning rate", Range{0, 10});
  v.Key("weight_decay", weight_decay,
        "decoupled weight decay of matrices; none on embeddings, norms and gates", Range{0, 10});
  v.Key("beta1", beta1, "AdamW: decay of the first moment", Range{0, 0.999999});
  v.Key("beta2", beta2, "AdamW: decay of the second moment", Range{0, 0.9999999});
  v.Key("eps", eps, "AdamW: added to the root of the second moment", Range{1e-30, 1});
  v.Key("clip", clip, "largest global gradient norm; 0 = no clipping", Range{0, 1e9});
  v.Key("z_loss", z_loss, "weight of the squared log-partition in the loss", Range{0, 1});
  v.Key("schedule", schedule, "learning rate after the warm-up",
        {"constant", "cosine", "wsd", "wsds"});
  v.Key("warmup", warmup, "steps of linear warm-up", Range{0, 1e12});
  v.Key("final_lr", final_lr, "cosine, wsd: last learning rate as a share of the peak",
        Range{0, 1});
  v.Key("decay_share", decay_share, "wsd: share of the steps that decay; wsds: of each period's",
        Range{0, 1});
  v.Key("periods", periods,
        "wsds: updates at which a decay ends and the model is evaluated; rising", Range{2, 1e12});
  v.Key("rewind", rewind,
        "wsds: after a decay, go on from before it (true) or from the decayed weights (false)");
}

std::vector<Decay> DecaysOf(const OptimConfig& c) {
  std::vector<Decay> decays;
  if (c.schedule != "wsds") return decays;
  int64_t before = 0, taken_back = 0;
  for (const int64_t end : c.periods) {
    const int64_t share = std::llround(c.decay_share * static_cast<double>(end - before));
    const int64_t steps = std::max<int64_t>(1, std::min(share, end - before - 1));
    decays.push_back({end - steps + taken_back, end + taken_back});
    if (c.rewind) taken_back += steps;
    before = end;
  }
  return decays;
}

int64_t TakenBackAt(const OptimConfig& c, int64_t step) {
  if (!c.rewind) return 0;
  const std::vector<Decay> decays = DecaysOf(c);
  for (size_t i = 0; i + 1 < decays.size(); ++i) {
    if (decays[i].end == step) return decays[i].end - decays[i].begin;
  }
  return 0;
}

int64_t UpdatesBefore(const OptimConfig& c, int64_t step) {
  int64_t updates = step;
  if (!c.rewind) return updates;
  for (const Decay& decay : DecaysOf(c)) {
    if (decay.end <= step) updates -= decay.end - decay.begin;
  }
  return updates;
}

void LadderConfig::Visit(ConfigVisitor& v) {
  v.Key("parameters", parameters,
        "N of the ladder's rules for batch, rate, warm-up, beta2 and steps; 0 = no rules",
        Range{0, 1e15});
  v.Key("tokens_per_parameter", tokens_per_parameter, "tokens of a multiple of 1, per parameter",
        Range{1, 1e6});
  v.Key("multiples", multiples, "where the periods of wsds end; rising", Range{1e-6, 1e6});
  v.Key("lr_factor", lr_factor, "factor on the rule's rate", Range{0, 1e3});
  v.Key("micro_batch", micro_batch, "tokens at a time: sets train.accumulate", Range{1, 1e12});
}

double LearningRate(const OptimConfig& c, int64_t step, int64_t steps) {
  const int64_t updates = UpdatesBefore(c, step);
  if (updates < c.warmup)
    return c.lr * static_cast<double>(updates + 1) / static_cast<double>(c.warmup);
  double share = 1;  // of the way from final_lr to the peak
  if (c.schedule == "cosine") {
    const double s = static_cast<double>(step - c.warmup) /
                     static_cast<double>(std::max<int64_t>(1, steps - c.warmup));
    share = (1 + std::cos(std::numbers::pi * std::min(s, 1.0))) / 2;
  } else if (c.schedule == "wsd") {
    const double decay = std::max(1.0, std::round(c.decay_share * static_cast<double>(steps)));
    share = std::clamp(static_cast<double>(steps - step) / decay, 0.0, 1.0);
  } else if (c.schedule == "wsds") {
    for (const Decay& d : DecaysOf(c)) {
      if (step < d.begin || step >= d.end) continue;
      share = static_cast<double>(d.end - step) / static_cast<double>(d.end - d.begin);
    }
  }
  return c.lr * (c.final_lr + (1 - c.final_lr) * share);
}

void TrainConfig::Visit(ConfigVisitor& v) {
  v.Key("steps", steps, "optimiser steps", Range{1, 1e12});
  v.Key("batch", batch, "rows per step", Range{1, 1e6});
  v.Key("length", length, "tokens per row", Range{1, 1 << 20});
  v.Key("accumulate", accumulate, "micro-batches per step; must divide batch", Range{1, 1e6});
  v.Key("precision", precision,
        "activations and products: f32, bf16 (with f32 sums, parameters and moments), or auto: "
        "bf16 on a GPU, f32 on the CPU",
        {"auto", "f32", "bf16"});
  v.Key(
      "recompute", recompute,
      "what the backward computes again to save memory: the hidden layers of the MLPs, which costs "
      "little, or whole blocks",
      {"none", "hidden", "block"});
  v.Key("deterministic", deterministic,
        "the same bits on every run; false allows cuDNN's attention, whose backward adds in any "
        "order");
  v.Key("log_every", log_every, "steps between lines of the log", Range{1, 1e12});
  v.Key("checkpoint_every", checkpoint_every, "steps between checkpoints; 0 = only at the end",
        Range{0, 1e12});
  v.Key("keep", keep, "checkpoints kept", Range{1, 1e6});
  v.Key("curriculum_every", curriculum_every,
        "steps between tests for promotion, where accuracy promotes", Range{1, 1e9});
  v.Key("curriculum_samples", curriculum_samples, "samples of such a test", Range{1, 1e6});
}

void EvalConfig::Visit(ConfigVisitor& v) {
  v.Key("every", every, "steps between evaluations; 0 = only at the end", Range{0, 1e12});
  v.Key("difficulties", difficulties,
        "task: difficulties to evaluate; empty = those of the curriculum", Range{1, 1 << 20});
  v.Key("samples", samples, "task: samples per difficulty", Range{1, 1e7});
  v.Key("rows", rows, "text: held-out rows, at most as many as there are", Range{1, 1e9});
}

void Experiment::VisitTop(ConfigVisitor& v) {
  v.Key("study", study, "name of the folder in which runs are collected");
  v.Key("seed", seed, "seed of everything that has none of its own", Range{0, 9e18});
  v.Key("init_seed", init_seed, "seed of the initial weights; -1 = seed", Range{-1, 9e18});
  v.Key("data_seed", data_seed, "seed of data and data order; -1 = seed", Range{-1, 9e18});
}

void Experiment::VisitRest(ConfigVisitor& v) {
  v.Section("model", model);
  v.Key("task.name", task_name, "synthetic task to train on; empty = text from data.path");
  if (task) v.Section("task", *task);
  if (!task) v.Section("data", data);
  v.Section("optim", optim);
  v.Section("ladder", ladder);
  v.Section("train", train);
  v.Section("eval", eval);
}

std::vector<ConfigField> Experiment::Fields() {
  ConfigVisitor v;
  VisitTop(v);
  VisitRest(v);
  mixers->VisitUsed(v);
  return std::move(v.fields());
}

std::vector<ConfigField> Experiment::AllFields() {
  ConfigVisitor v;
  v.Key("device", device, "where to run; auto = a GPU where there is one", {"auto", "cpu", "cuda"});
  v.Key("threads", threads, "CPU threads; 0 = all cores that the process may use", Range{0, 4096});
  VisitTop(v);
  VisitRest(v);
  if (task) v.Section("data", data);
  mixers->Visit(v);
  return std::move(v.fields());
}

std::unique_ptr<Experiment> Experiment::FromSettings(const Settings& given) {
  auto e = std::make_unique<Experiment>();
  e->given_ = given;
  e->model.pattern = Peek(given, "model.pattern", e->model.pattern);
  e->task_name = Peek(given, "task.name", e->task_name);
  e->model.middle = Peek(given, "model.middle", e->model.middle);
  e->model.last = Peek(given, "model.last", e->model.last);
  e->mixers = std::make_unique<MixerConfigs>(e->model.Labels());
  if (!e->task_name.empty()) e->task = FindTask(e->task_name).config();
  auto fields = e->AllFields();
  const Settings settings = e->mixers->Inherit(given);
  e->origins_ = Apply(settings, fields);
  if (e->ladder.parameters > 0) {
    Settings all = e->LadderRules();
    all.insert(all.end(), settings.begin(), settings.end());
    e->origins_ = Apply(all, fields);
  }
  e->CheckSchedule();
  if (!e->task && e->data.path.empty() && e->data.random == 0) {
    Fail(ExitCode::kUsage,
         "nothing to train on: set task.name (see `weft task list`) or data.path");
  }
  if (!e->data.path.empty() && e->data.random > 0) {
    Fail(ExitCode::kUsage, "data.path = \"", e->data.path, "\" and data.random = ", e->data.random,
         " are both set; drop one");
  }
  if (e->task && !e->data.path.empty()) {
    Fail(ExitCode::kUsage, "task.name = \"", e->task_name, "\" and data.path = \"", e->data.path,
         "\" are both set; drop one");
  }
  if (e->train.batch % e->train.accumulate != 0) {
    Fail(ExitCode::kUsage, "train.batch = ", e->train.batch,
         " is not a multiple of train.accumulate = ", e->train.accumulate, "; change one of them");
  }
  const double tokens =
      static_cast<double>(e->train.steps) * static_cast<double>(e->train.batch * e->train.length);
  if (tokens > kMostTokens) {
    Fail(ExitCode::kUsage, "train.steps * train.batch * train.length = ", tokens,
         " tokens, expected at most ", kMostTokens, "; lower one of them");
  }
  if (e->study.empty() || e->study.find('/') != std::string::npos || e->study.starts_with(".")) {
    Fail(ExitCode::kUsage, "study = \"", e->study,
         "\" is not a folder name; use letters, digits, - and _");
  }
  return e;
}

Settings Experiment::LadderRules() const {
  Settings rules;
  const auto is_given = [&](const char* path) { return origins_.at(path) != "default"; };
  const auto set = [&](const char* path, Setting::Value value) {
    rules.push_back({path, std::move(value), "ladder.parameters"});
  };
  // What is beyond this is refused where the setting is applied.
  const auto count = [](double x) { return static_cast<int64_t>(std::llround(std::min(x, 2e12))); };
  constexpr int64_t kMostRows = 1000000;
  const double n = static_cast<double>(ladder.parameters), scale = n / 108e6;
  const double batch_tokens = std::round(2048.0 * 160 * std::cbrt(scale * scale));
  int64_t rows = std::clamp<int64_t>(count(batch_tokens / static_cast<double>(train.length)), 1,
                                     kMostRows + 1);
  const bool fixed = is_given("train.batch");
  if (fixed) rows = train.batch;
  // Micro-batches of equal size, for the sake of which the batch may change by a few rows.
  const int64_t at_once = std::max<int64_t>(1, ladder.micro_batch / train.length);
  const int64_t least = (rows + at_once - 1) / at_once;
  int64_t accumulate = rows, nearest = rows, error = fixed ? 0 : rows;
  for (int64_t a = fixed ? rows : std::min(rows, 4 * least); a >= least; --a) {
    const int64_t batch = a * ((2 * rows + a) / (2 * a));
    if (std::abs(batch - rows) > error) continue;
    accumulate = a, nearest = batch, error = std::abs(batch - rows);
  }
  rows = nearest;
  set("train.batch", rows);
  set("train.accumulate", accumulate);
  const double tokens = static_cast<double>(rows * train.length);
  set("optim.lr", ladder.lr_factor * 0.0047 / std::cbrt(scale) / 2);
  set("optim.beta2", tokens >= 524288 ? 0.95 : 0.99);
  set("optim.warmup", count(n / tokens));
  std::vector<int64_t> periods;
  for (const double multiple : ladder.multiples) {
    periods.push_back(
        count(multiple * static_cast<double>(ladder.tokens_per_parameter) * n / tokens));
  }
  if (periods.empty()) Fail(ExitCode::kUsage, "ladder.multiples is empty; name at least one");
  if (is_given("optim.schedule") && optim.schedule != "wsds") {
    set("train.steps", periods.back());
    return rules;
  }
  set("optim.schedule", std::string("wsds"));
  set("optim.final_lr", 0.0);
  set("optim.periods", periods);
  return rules;
}

// The periods of wsds say how many steps there are.
void Experiment::CheckSchedule() {
  if (optim.schedule != "wsds") {
    if (optim.periods.empty()) return;
    Fail(ExitCode::kUsage, "optim.periods is set, but optim.schedule is \"", optim.schedule,
         "\"; set it to \"wsds\" or drop the periods");
  }
  if (optim.periods.empty())
    Fail(ExitCode::kUsage, "optim.schedule = \"wsds\" needs optim.periods or ladder.parameters");
  for (size_t i = 1; i < optim.periods.size(); ++i) {
    if (optim.periods[i] > optim.periods[i - 1]) continue;
    Fail(ExitCode::kUsage, "optim.periods: ", optim.periods[i], " follows ", optim.periods[i - 1],
         ", expected rising numbers of updates");
  }
  const int64_t steps = DecaysOf(optim).back().end;
  std::string& origin = origins_.at("train.steps");
  if (origin == "default") {
    train.steps = steps;
    origin = "optim.periods";
  }
  if (train.steps != steps) {
    Fail(ExitCode::kUsage, "train.steps = ", train.steps,
         ", but the last of optim.periods ends at ", "step ", steps,
         "; drop train.steps or set it to that");
  }
}

std::unique_ptr<Experiment> Experiment::Defaults() {
  auto e = std::make_unique<Experiment>();
  e->mixers = std::make_unique<MixerConfigs>(e->model.Labels());
  return e;
}

std::unique_ptr<Experiment> Experiment::Load(const std::string& path,
                                             const std::vector<std::string>& overrides) {
  Settings settings = path.empty() ? Settings{} : ReadTomlFile(path);
  for (const std::string& text : overrides)
    settings.push_back(ParseOverride(text, "--" + text.substr(0, text.find('='))));
  auto e = FromSettings(settings);
  if (!path.empty()) {
    std::ifstream in(path, std::ios::binary);
    e->source_text_.assign(std::istreambuf_iterator<char>(in), {});
  }
  return e;
}

std::unique_ptr<Experiment> Experiment::FromToml(const std::string& text, const std::string& origin,
                                                 const std::vector<std::string>& overrides) {
  Settings settings = ParseToml(text, origin);
  for (const std::string& o : overrides)
    settings.push_back(ParseOverride(o, "--" + o.substr(0, o.find('='))));
  auto e = FromSettings(settings);
  e->source_text_ = text;
  return e;
}

}  // namespace weft
