#include "experiments/train/dry_run.h"

#include <fmt/format.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "experiments/train/match.h"
#include "experiments/train/trainer.h"
#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

// FLOP/s of one thread's matrix product, for estimates before anything has run.
double MeasureMatmul() {
  constexpr int64_t n = 256;
  std::vector<float> x(n * n, 1), w(n * n, 1), y(n * n);
  const auto view = [](std::vector<float>& v) { return TensorView(v.data(), DType::kF32, {n, n}); };
  CpuStream stream(1);
  const auto once = [&] { Run(stream, MatmulFwd{.x = view(x), .w = view(w), .y = view(y)}); };
  once();
  double fastest = 1e9;  // of several, so that other processes disturb little
  for (int trial = 0; trial < 10; ++trial) {
    const auto start = std::chrono::steady_clock::now();
    once();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, seconds.count());
  }
  return 2.0 * n * n * n / fastest;
}

// A step reaches a third (width 64) to two thirds (width 256) of the matrix product's rate.
constexpr double kEfficiency = 0.4;
// What a training step sustains on a Hopper GPU in bf16, for an estimate.
constexpr double kGpuFlops = 3e14;

// A pass over so many tokens times channels keeps an H100 busy: beside it, further runs add nothing
// (weft bench step --at-once).
constexpr double kFillsGpu = 1 << 21;
double GpuShare(const Experiment& e) {
  return std::min(1.0, static_cast<double>(e.train.batch / e.train.accumulate * e.train.length *
                                           e.model.d_model) /
                           kFillsGpu);
}

// Keys that change nothing about the cost of a step.
bool IsFree(const std::string& path) {
  static const std::vector<std::string> free = {"study",       "seed",
                                                "init_seed",   "data_seed",
                                                "train.steps", "train.log_every",
                                                "train.keep",  "train.checkpoint_every"};
  return path.starts_with("optim.") || path.starts_with("ladder.") ||
         std::find(free.begin(), free.end(), path) != free.end();
}

class Planner {
 public:
  explicit Planner(std::string out) : out_(std::move(out)) {}

  struct Run {
    std::string id, directory, device;
    RunPlan plan;
    double seconds;
    bool on_gpu;
  };
  Run Of(Experiment& e) {
    CheckStages(e);
    const Device device = ChooseDevice(e);
    const std::vector<ConfigField> fields = e.Fields();
    std::vector<ConfigField> priced;
    std::copy_if(fields.begin(), fields.end(), std::back_inserter(priced),
                 [](const ConfigField& f) { return !IsFree(f.path); });
    const auto [known, is_new] = plans_.try_emplace(HashOf(priced));
    if (is_new) {
      try {
        known->second = PlanRun(e, device);
      } catch (...) {
        plans_.erase(known);
        throw;
      }
    }
    Run run{HashOf(fields), "", device.name, known->second, 0, device.cuda};
    run.directory = out_ + "/" + e.study + "/" + run.id;
    run.plan.tokens = e.train.steps * e.train.batch * e.train.length;
    const int threads = ThreadsOf(e);
    if (!device.cuda) run.device = fmt::format("{} threads", threads);
    const double rate = device.cuda ? kGpuFlops : CpuFlops() * threads;
    run.seconds = run.plan.training_flops_per_token * static_cast<double>(run.plan.tokens) / rate;
    return run;
  }

  Json JsonOf(Experiment& e) {
    const Run run = Of(e);
    const RunPlan& plan = run.plan;
    Json decayed = Json::array();
    for (const Decay& decay : DecaysOf(e.optim)) decayed.push_back(e.TokensAfter(decay.end));
    return {{"run_id", run.id},
            {"study", e.study},
            {"run_dir", run.directory},
            {"device", run.on_gpu ? "cuda" : "cpu"},
            {"gpu_share", GpuShare(e)},
            {"parameters",
             {{"total", plan.parameters.total},
              {"embedding", plan.parameters.embedding},
              {"head", plan.parameters.head},
              {"body", plan.parameters.body}}},
            {"flops_per_token", plan.flops_per_token},
            {"training_flops_per_token", plan.training_flops_per_token},
            {"tokens", plan.tokens},
            {"steps", e.train.steps},
            {"batch_tokens", e.train.batch * e.train.length},
            {"lr", e.optim.lr},
            {"warmup_steps", e.optim.warmup},
            {"decayed_tokens", decayed},
            {"memory_bytes", plan.memory_bytes},
            {"context_bytes", plan.context_bytes},
            {"state_bytes", plan.state_bytes},
            {"seconds", run.seconds}};
  }

 private:
  int ThreadsOf(const Experiment& e) {
    if (e.threads > 0) return static_cast<int>(e.threads);
    if (cores_ == 0) cores_ = CpuStream(0).threads();
    return cores_;
  }
  double CpuFlops() {
    if (cpu_flops_ == 0) cpu_flops_ = MeasureMatmul() * kEfficiency;
    return cpu_flops_;
  }
  std::string out_;
  std::map<std::string, RunPlan> plans_;  // by the hash of what it costs
  double cpu_flops_ = 0;
  int cores_ = 0;
};

Settings Overridden(Settings settings, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides)
    settings.push_back(ParseOverride(text, "--" + text.substr(0, text.find('='))));
  return settings;
}

}  // namespace

void PrintPlan(Experiment& e, const std::string& out) {
  const Planner::Run run = Planner(out).Of(e);
  const RunPlan& plan = run.plan;
  fmt::print(
      "run          {}\nparameters   {} ({} without embedding and head)\nFLOPs/token  {:.4g} "
      "forward, {:.4g} in training\n"
      "tokens       {} in {} steps of {}\nlr           {:.4g} after {} steps, {}\n",
      run.directory, plan.parameters.total, plan.parameters.body, plan.flops_per_token,
      plan.training_flops_per_token, plan.tokens, e.train.steps, e.train.batch * e.train.length,
      e.optim.lr, e.optim.warmup, e.optim.schedule);
  for (const Decay& decay : DecaysOf(e.optim))
    fmt::print("  decayed    at {} tokens, step {}\n", e.TokensAfter(decay.end), decay.end);
  fmt::print("memory       {} MiB{}\ntime         about {:.0f} s on {}\n", plan.memory_bytes >> 20,
             plan.context_bytes > 0
                 ? fmt::format(", and {} MiB of CUDA's own", plan.context_bytes >> 20)
                 : "",
             run.seconds, run.device);
}

void PrintPlanJson(Experiment& e, const std::string& out) {
  fmt::print("{}\n", Planner(out).JsonOf(e).dump());
}

void PlanCells(const std::string& config, const std::vector<std::string>& overrides,
               const std::string& out, std::istream& in) {
  const Settings base = Overridden(ReadTomlFile(config), overrides);
  Planner planner(out);
  std::map<std::string, Match>
      matches;  // by request and the settings of both sides, but for free ones
  const auto key_of = [](Experiment& e) {
    std::vector<ConfigField> priced = e.Fields();
    std::erase_if(priced, [](const ConfigField& f) { return IsFree(f.path); });
    return HashOf(priced);
  };
  const auto plan = [&](const Json& cell) {
    auto e = Experiment::FromSettings(Overridden(base, cell.at("set")));
    if (!cell.contains("match")) return planner.JsonOf(*e);
    const Json& asked = cell.at("match");
    const auto reference = Experiment::FromSettings(Overridden(base, asked.at("to")));
    const MatchRequest request{asked.at("quantity"), asked.at("by"), asked.at("tolerance"),
                               asked.at("multiple")};
    const std::string key = Cat(key_of(*e), key_of(*reference), request.quantity, " ", request.by,
                                " ", request.multiple);
    auto known = matches.find(key);
    if (known == matches.end()) {
      constexpr int64_t kMeasuredSteps = 20;
      known = matches
                  .emplace(key, SolveMatch(*e, *reference, request,
                                           [](const Experiment& measured) {
                                             return MeasureThroughput(measured, kMeasuredSteps);
                                           }))
                  .first;
    }
    const Match& match = known->second;
    e = Apply(match, *e);
    Json json = planner.JsonOf(*e);
    json["match"] = {{"quantity", request.quantity}, {"by", request.by},
                     {"value", match.value},         {"reference", match.reference},
                     {"matched", match.matched},     {"residual_percent", match.ResidualPercent()}};
    return json;
  };
  for (std::string line; std::getline(in, line);) {
    Json answer;
    try {
      answer = plan(Json::parse(line));
    } catch (const Error& error) {
      answer = {{"exit_code", static_cast<int>(error.code())}, {"error", error.what()}};
    } catch (const Json::exception& error) {
      Fail(ExitCode::kUsage, "--cells: ", line, ": ", error.what());
    }
    fmt::print("{}\n", answer.dump(-1, ' ', false, Json::error_handler_t::replace));
    if (answer.contains("error")) return;
  }
}

}  // namespace weft
