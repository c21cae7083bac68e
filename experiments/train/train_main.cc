// weft train CONFIG [--KEY=VALUE ...] [--out DIR] | weft train --resume RUN

#include "experiments/run/environment.h"
#include "experiments/run/program.h"
#include "experiments/train/dry_run.h"
#include "experiments/train/run_loop.h"

namespace {

using namespace weft;

std::string KeyHelp() {
  return "\nConfig keys (--KEY=VALUE):\n" + HelpText(Experiment::Defaults()->AllFields());
}

int Main(CLI::App& app, int argc, char** argv) {
  std::string config, out = "runs", resume;
  bool dry_run = false, json = false, cells = false;
  app.add_option("CONFIG", config, "experiment, a TOML file");
  auto* out_option = app.add_option("--out", out, "where runs are collected: OUT/<study>/<run-id>")
                         ->capture_default_str();
  app.add_option("--resume", resume, "run directory to continue from its newest checkpoint")
      ->excludes(out_option);
  auto* dry_run_flag =
      app.add_flag("--dry-run", dry_run, "print what would run, and write nothing");
  auto* json_flag =
      app.add_flag("--json", json, "with --dry-run: machine-readable output")->needs(dry_run_flag);
  app.add_flag("--cells", cells,
               "with --json: what would run for each line of stdin, "
               "{\"set\": [\"KEY=VALUE\", ...]}, one line each")
      ->needs(json_flag);
  const auto overrides = ParseCommandLine(app, argc, argv);
  if (config.empty() == resume.empty())
    Fail(ExitCode::kUsage, "give either a CONFIG or --resume RUN; see --help");
  if (cells) {
    PlanCells(config, overrides, out, std::cin);
    return 0;
  }
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
  if (dry_run) {
    json ? PrintPlanJson(*e, out) : PrintPlan(*e, out);
    return 0;
  }
  const Device device = ChooseDevice(*e);
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
