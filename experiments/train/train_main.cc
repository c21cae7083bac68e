// weft train CONFIG [--KEY=VALUE ...] [--out DIR] | weft train --resume RUN

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "experiments/run/environment.h"
#include "experiments/run/program.h"
#include "experiments/train/run_loop.h"
#include "kernels/matmul/matmul.h"

namespace {

using namespace weft;

std::string KeyHelp() {
  return "\nConfig keys (--KEY=VALUE):\n" + HelpText(Experiment::Defaults()->AllFields());
}

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

int DryRun(Experiment& e, const Device& device, const std::string& out, bool json) {
  const RunPlan plan = PlanRun(e, device);
  const std::string id = HashOf(e.Fields()), directory = out + "/" + e.study + "/" + id;
  const double flops = plan.training_flops_per_token * static_cast<double>(plan.tokens);
  const int threads = CpuStream(static_cast<int>(e.threads)).threads();
  const double rate = device.cuda ? kGpuFlops : MeasureMatmul() * kEfficiency * threads;
  const double seconds = flops / rate;
  if (json) {
    const nlohmann::ordered_json object = {
        {"run_id", id},
        {"study", e.study},
        {"run_dir", directory},
        {"parameters",
         {{"total", plan.parameters.total},
          {"embedding", plan.parameters.embedding},
          {"head", plan.parameters.head},
          {"body", plan.parameters.body}}},
        {"flops_per_token", plan.flops_per_token},
        {"training_flops_per_token", plan.training_flops_per_token},
        {"tokens", plan.tokens},
        {"steps", e.train.steps},
        {"memory_bytes", plan.memory_bytes},
        {"context_bytes", plan.context_bytes},
        {"state_bytes", plan.state_bytes},
        {"seconds", seconds}};
    fmt::print("{}\n", object.dump());
    return 0;
  }
  fmt::print(
      "run          {}\nparameters   {} ({} without embedding and head)\nFLOPs/token  {:.4g} "
      "forward, {:.4g} in training\n"
      "tokens       {} in {} steps\nmemory       {} MiB{}\ntime         about {:.0f} s on {}\n",
      directory, plan.parameters.total, plan.parameters.body, plan.flops_per_token,
      plan.training_flops_per_token, plan.tokens, e.train.steps, plan.memory_bytes >> 20,
      device.cuda ? fmt::format(", and {} MiB of CUDA's own", plan.context_bytes >> 20) : "",
      seconds, device.cuda ? device.name : fmt::format("{} threads", threads));
  return 0;
}

int Main(CLI::App& app, int argc, char** argv) {
  std::string config, out = "runs", resume;
  bool dry_run = false, json = false;
  app.add_option("CONFIG", config, "experiment, a TOML file");
  auto* out_option = app.add_option("--out", out, "where runs are collected: OUT/<study>/<run-id>")
                         ->capture_default_str();
  app.add_option("--resume", resume, "run directory to continue from its newest checkpoint")
      ->excludes(out_option);
  auto* dry_run_flag =
      app.add_flag("--dry-run", dry_run, "print what would run, and write nothing");
  app.add_flag("--json", json, "with --dry-run: machine-readable output")->needs(dry_run_flag);
  const auto overrides = ParseCommandLine(app, argc, argv);
  if (config.empty() == resume.empty())
    Fail(ExitCode::kUsage, "give either a CONFIG or --resume RUN; see --help");

  std::unique_ptr<Experiment> e;
  if (resume.empty()) {
    e = Experiment::Load(config, overrides);
  } else {
    for (const std::string& o : overrides) {
      if (!o.starts_with("threads=") && !o.starts_with("device=")) {
        Fail(ExitCode::kUsage, "--", o,
             ": a resumed run keeps its settings; only --threads and --device may be given");
      }
    }
    e = LoadExperiment(resume, overrides);
    if (ReadStatus(resume).state == RunState::kDone) {
      std::cerr << "weft train: " << resume << " is done\n";
      return 0;
    }
  }
  const Device device = ChooseDevice(*e);
  if (dry_run) return DryRun(*e, device, out, json);
  const std::unique_ptr<Stream> stream = OpenStream(device, e->threads);

  const StopSignals signals;
  Trainer trainer(*e, device,
                  *stream);  // before the directory: what cannot start leaves nothing behind
  if (!resume.empty()) {
    RunDirectory run = RunDirectory::Open(resume);
    const double seconds = RestoreCheckpoint(run, trainer);
    run.Log(Cat("resumed at step ", trainer.progress().step));
    return static_cast<int>(TrainToEnd(*e, run, trainer, seconds));
  }
  Attributes environment = DescribeEnvironment(std::vector<std::string>(argv, argv + argc));
  environment.push_back({"device", device.name});
  environment.push_back({"precision", std::string(NameOf(device.dtype))});
  if (const auto* cpu = std::get_if<CpuStream>(stream.get()))
    environment.push_back({"threads", static_cast<int64_t>(cpu->threads())});
  RunDirectory run = RunDirectory::Create(
      {out, e->study, e->Fields(), e->origins(), e->source_text(), environment});
  if (run.existed() && ReadStatus(run.path()).state == RunState::kDone) {
    std::cerr << "weft train: " << run.path() << " is done\n";
    return 0;
  }
  if (run.existed() && (run.journal().size() > 0)) {
    Fail(ExitCode::kFailure, run.path(),
         " has been started already; continue it with: weft train --resume ", run.path());
  }
  std::cerr << "weft train: " << run.path() << "\n";
  return static_cast<int>(TrainToEnd(*e, run, trainer, 0));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a model on a synthetic task or on text.");
  return RunProgram(
      "train", app, [&] { return Main(app, argc, argv); }, KeyHelp);
}
