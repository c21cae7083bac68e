// weft params CONFIG [--json]: parameters, FLOPs per token, decode state and memory, before
// anything runs.

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "experiments/run/program.h"
#include "experiments/train/trainer.h"

namespace {

std::string KeyHelp() {
  return "\nConfig keys (--KEY=VALUE):\n" +
         weft::HelpText(weft::Experiment::Defaults()->AllFields());
}

int Main(CLI::App& app, int argc, char** argv) {
  using namespace weft;
  std::string config;
  bool json = false;
  app.add_option("CONFIG", config, "experiment, a TOML file")->required();
  app.add_flag("--json", json, "machine-readable output");
  const auto overrides = ParseCommandLine(app, argc, argv);
  const auto experiment = Experiment::Load(config, overrides);
  const RunPlan plan = PlanRun(*experiment, ChooseDevice(*experiment));
  const Model::Counts& n = plan.parameters;

  if (json) {
    const nlohmann::ordered_json out = {{"config", config},
                                        {"parameters",
                                         {{"total", n.total},
                                          {"embedding", n.embedding},
                                          {"head", n.head},
                                          {"body", n.body},
                                          {"blocks", plan.block_parameters}}},
                                        {"flops_per_token", plan.flops_per_token},
                                        {"training_flops_per_token", plan.training_flops_per_token},
                                        {"state_bytes", plan.state_bytes},
                                        {"memory_bytes", plan.memory_bytes},
                                        {"context_bytes", plan.context_bytes},
                                        {"tokens", plan.tokens}};
    fmt::print("{}\n", out.dump(2));
    return 0;
  }
  fmt::print("parameters          {:>16}\n", n.total);
  fmt::print(
      "  embedding         {:>16}\n  head              {:>16}{}\n  body              {:>16}\n",
      n.embedding, n.head, experiment->model.tied ? "   (tied to the embedding)" : "", n.body);
  const auto& pattern = experiment->model.pattern;
  for (size_t i = 0; i < plan.block_parameters.size(); ++i) {
    fmt::print("    block {:<4} {:>21}   {}\n", i, plan.block_parameters[i],
               pattern[i % pattern.size()]);
  }
  fmt::print(
      "FLOPs per token     {:>16.4g}   forward, matrix products, attention, recurrence and "
      "convolution at T = {}\n",
      plan.flops_per_token, experiment->train.length);
  fmt::print("                    {:>16.4g}   forward and backward\n",
             plan.training_flops_per_token);
  fmt::print("decode state        {:>16}   bytes per sequence of {} tokens, f32\n",
             plan.state_bytes, experiment->train.length);
  fmt::print(
      "memory              {:>16}   bytes: parameters, gradients, moments, activations of training "
      "or evaluation\n",
      plan.memory_bytes);
  if (plan.context_bytes > 0)
    fmt::print("                    {:>16}   bytes of CUDA's own beside it\n", plan.context_bytes);
  fmt::print("tokens              {:>16}   of the whole run\n", plan.tokens);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Parameters, FLOPs per token, decode state and memory of an experiment, before anything "
      "runs.");
  return weft::RunProgram(
      "params", app, [&] { return Main(app, argc, argv); }, KeyHelp);
}
