// weft params CONFIG... [--match QUANTITY --to REF --by KEY] [--json]: parameters, FLOPs per token,
// decode state and memory, before anything runs.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "experiments/run/program.h"
#include "experiments/train/match.h"
#include "experiments/train/trainer.h"

namespace {

using namespace weft;
using Json = nlohmann::ordered_json;

std::string MoreHelp() {
  return DefinitionsText() + "\nConfig keys (--KEY=VALUE):\n" +
         HelpText(Experiment::Defaults()->AllFields());
}

Json ToJson(const std::string& config, const RunPlan& plan) {
  const Model::Counts& n = plan.parameters;
  Json parts = Json::array();
  for (const RunPlan::Part& part : plan.parts) {
    parts.push_back({{"name", part.name},
                     {"count", part.count},
                     {"parameters", part.parameters},
                     {"flops_per_token", part.cost.flops_per_token},
                     {"state_bytes", part.cost.state_bytes}});
  }
  return {{"config", config},
          {"parameters",
           {{"total", n.total},
            {"embedding", n.embedding},
            {"head", n.head},
            {"body", n.body},
            {"non_embedding", n.body + n.head},
            {"blocks", plan.block_parameters}}},
          {"parts", parts},
          {"flops_per_token", plan.flops_per_token},
          {"training_flops_per_token", plan.training_flops_per_token},
          {"state_bytes", plan.state_bytes},
          {"memory_bytes", plan.memory_bytes},
          {"context_bytes", plan.context_bytes},
          {"tokens", plan.tokens}};
}

Json ToJson(const Match& match, const std::string& reference) {
  return {{"quantity", match.request.quantity},
          {"by", match.request.by},
          {"value", match.value},
          {"to", reference},
          {"reference", match.reference},
          {"matched", match.matched},
          {"residual_percent", match.ResidualPercent()}};
}

void Print(const Experiment& e, const RunPlan& plan) {
  const Model::Counts& n = plan.parameters;
  fmt::print("parameters          {:>16}\n", n.total);
  fmt::print(
      "  embedding         {:>16}\n  head              {:>16}{}\n  body              {:>16}\n"
      "  non-embedding     {:>16}   body and head\n",
      n.embedding, n.head, e.model.tied ? "   (tied to the embedding)" : "", n.body,
      n.body + n.head);
  for (size_t i = 0; i < plan.block_parameters.size(); ++i) {
    fmt::print("    block {:<4} {:>21}   {}\n", i, plan.block_parameters[i],
               e.model.LabelOf(static_cast<int64_t>(i)));
  }
  fmt::print("    {:<20} {:>6} {:>15} {:>16} {:>16}\n", "part of the body", "count", "parameters",
             "FLOPs per token", "state bytes");
  for (const RunPlan::Part& part : plan.parts) {
    fmt::print("    {:<20} {:>6} {:>15} {:>16.4g} {:>16}\n", part.name, part.count, part.parameters,
               part.cost.flops_per_token, part.cost.state_bytes);
  }
  fmt::print(
      "FLOPs per token     {:>16.4g}   forward, matrix products, attention, recurrence and "
      "convolution at T = {}\n",
      plan.flops_per_token, e.train.length);
  fmt::print("                    {:>16.4g}   forward and backward\n",
             plan.training_flops_per_token);
  fmt::print("decode state        {:>16}   bytes per sequence of {} tokens, f32\n",
             plan.state_bytes, e.train.length);
  fmt::print(
      "memory              {:>16}   bytes: parameters, gradients, moments, activations of training "
      "or evaluation\n",
      plan.memory_bytes);
  if (plan.context_bytes > 0)
    fmt::print("                    {:>16}   bytes of CUDA's own beside it\n", plan.context_bytes);
  fmt::print("tokens              {:>16}   of the whole run\n", plan.tokens);
}

void Print(const Match& match, const std::string& reference) {
  const auto unit = [&] {
    for (const Quantity& q : Quantities()) {
      if (match.request.quantity == q.name) return q.unit;
    }
    return "";
  };
  fmt::print("match               {:>16}   {} = {}\n", match.request.quantity, match.request.by,
             match.value);
  fmt::print("  this              {:>16.12g}   {}\n  reference         {:>16.12g}   {}\n",
             match.matched, unit(), match.reference, reference);
  fmt::print("  residual          {:>+16.3g}   %\n", match.ResidualPercent());
}

int Main(CLI::App& app, int argc, char** argv) {
  std::vector<std::string> configs, reference_overrides;
  std::string to;
  MatchRequest request;
  int64_t measure_steps = 20;
  bool json = false;
  app.add_option("CONFIG", configs, "experiments, TOML files")->required();
  auto* match = app.add_option("--match", request.quantity,
                               "quantity to make equal to that of --to; see below");
  auto* to_option = app.add_option("--to", to, "reference, a TOML file")->needs(match);
  auto* by = app.add_option("--by", request.by,
                            "integer key to solve for, such as model.d_ff or mixer.attention.heads")
                 ->needs(match);
  match->needs(to_option)->needs(by);
  app.add_option("--to-set", reference_overrides, "KEY=VALUE of the reference")
      ->needs(match)
      ->expected(1)
      ->take_all();
  app.add_option("--tolerance", request.tolerance, "largest residual that is accepted, per cent")
      ->check(Between(0, 1e9))
      ->capture_default_str();
  app.add_option("--multiple", request.multiple,
                 "try multiples of this only; 8 suits a GPU's products")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--measure-steps", measure_steps, "throughput: timed steps of each measurement")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_flag("--json", json, "machine-readable output: an object, or a list of one per CONFIG");
  const auto overrides = ParseCommandLine(app, argc, argv);

  std::unique_ptr<Experiment> reference;
  if (!request.quantity.empty()) reference = Experiment::Load(to, reference_overrides);
  const Measure measure = [&](const Experiment& e) { return MeasureThroughput(e, measure_steps); };
  Json all = Json::array();
  for (const std::string& config : configs) {
    auto e = Experiment::Load(config, overrides);
    std::optional<Match> solved;
    if (reference) {
      solved = SolveMatch(*e, *reference, request, measure);
      e = Apply(*solved, *e);
    }
    const RunPlan plan = PlanRun(*e, ChooseDevice(*e));
    if (json) {
      all.push_back(ToJson(config, plan));
      if (solved) all.back()["match"] = ToJson(*solved, to);
      continue;
    }
    if (configs.size() > 1) fmt::print("{}{}\n", config == configs.front() ? "" : "\n", config);
    if (solved) Print(*solved, to);
    Print(*e, plan);
  }
  if (json) fmt::print("{}\n", (configs.size() == 1 ? all.front() : all).dump(2));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Parameters, FLOPs per token, decode state and memory of experiments, before anything runs; "
      "and the value of a key at which two experiments are matched.");
  return weft::RunProgram(
      "params", app, [&] { return Main(app, argc, argv); }, MoreHelp);
}
