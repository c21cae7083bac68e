// weft train CONFIG [--KEY=VALUE ...] [--out DIR] | weft train --resume RUN

#include <mutex>
#include <nlohmann/json.hpp>

#include "experiments/run/environment.h"
#include "experiments/run/program.h"
#include "experiments/train/dry_run.h"
#include "experiments/train/worker.h"

namespace {

using namespace weft;

std::string KeyHelp() {
  return "\nConfig keys (--KEY=VALUE):\n" + HelpText(Experiment::Defaults()->AllFields());
}

struct Options {
  std::string config, out = "runs", resume;
  std::vector<std::string> overrides;
  bool dry_run = false, json = false, cells = false, devices = false;
  int worker = 0;  // runs at a time

  // Whether it is a run of its own.
  bool runs() const { return !dry_run && !devices && worker == 0; }
};

Options Parse(CLI::App& app, const std::vector<std::string>& argv) {
  Options o;
  app.add_option("CONFIG", o.config, "experiment, a TOML file");
  auto* out = app.add_option("--out", o.out, "where runs are collected: OUT/<study>/<run-id>")
                  ->capture_default_str();
  app.add_option("--resume", o.resume, "run directory to continue from its newest checkpoint")
      ->excludes(out);
  auto* dry_run = app.add_flag("--dry-run", o.dry_run, "print what would run, and write nothing");
  auto* json =
      app.add_flag("--json", o.json, "with --dry-run: machine-readable output")->needs(dry_run);
  app.add_flag("--cells", o.cells,
               "with --json: what would run for each line of stdin, "
               "{\"set\": [\"KEY=VALUE\", ...]}, one line each")
      ->needs(json);
  auto* worker = app.add_option("--worker", o.worker,
                                "trains so many runs at a time in this process: those of the lines "
                                "of stdin, {\"arguments\": [\"CONFIG\", ...], \"output\": FILE}; "
                                "prints \"LINE EXIT_CODE\" as each ends")
                     ->check(CLI::Range(1, 4096));
  app.add_flag("--devices", o.devices, "print the GPUs that a run may use, a line of JSON each")
      ->excludes(worker);
  std::vector<const char*> words;
  for (const std::string& word : argv) words.push_back(word.c_str());
  o.overrides = ParseCommandLine(app, static_cast<int>(words.size()), words.data());
  const bool alone = o.worker > 0 || o.devices;
  if (alone && (!o.config.empty() || !o.resume.empty() || o.dry_run || !o.overrides.empty()))
    Fail(ExitCode::kUsage, "--worker and --devices take nothing else; see --help");
  if (!alone && o.config.empty() == o.resume.empty())
    Fail(ExitCode::kUsage, "give either a CONFIG or --resume RUN; see --help");
  return o;
}

// Null when the run to be resumed is done.
std::unique_ptr<Experiment> Load(const Options& o, std::FILE* err) {
  if (o.resume.empty()) return Experiment::Load(o.config, o.overrides);
  for (const std::string& key : o.overrides) {
    if (!key.starts_with("threads=") && !key.starts_with("device=")) {
      Fail(ExitCode::kUsage, "--", key,
           ": a resumed run keeps its settings; only --threads and --device may be given");
    }
  }
  auto e = LoadExperiment(o.resume, o.overrides);
  if (ReadStatus(o.resume).state != RunState::kDone) return e;
  std::fprintf(err, "weft train: %s is done\n", o.resume.c_str());
  return nullptr;
}

// On a GPU, `beginning` is held until the first step is done: so each run of a process finds the
// memory that the earlier ones left, and the first times its matrix products while it is alone.
ExitCode Train(const Options& o, const std::vector<std::string>& argv, RunIo io,
               std::mutex& beginning) {
  const auto e = Load(o, io.err);
  if (!e) return ExitCode::kOk;
  const Device device = ChooseDevice(*e);
  std::unique_lock<std::mutex> lock(beginning, std::defer_lock);
  if (device.cuda) lock.lock();
  if (StopSignal() != 0) return CodeOf(StopSignal());
  io.started = [&lock] {
    if (lock) lock.unlock();
  };
  const std::unique_ptr<Stream> stream = OpenStream(device, e->threads);
  Trainer trainer(*e, device,
                  *stream);  // before the directory: what cannot start leaves nothing behind
  if (!o.resume.empty()) {
    RunDirectory run = RunDirectory::Open(o.resume);
    const double seconds = RestoreCheckpoint(run, trainer);
    run.Log(Cat("resumed at step ", trainer.progress().step));
    return TrainToEnd(*e, run, trainer, seconds, io);
  }
  Attributes environment = DescribeEnvironment(argv);
  environment.push_back({"device", device.name});
  environment.push_back({"precision", std::string(NameOf(device.dtype))});
  if (const auto* cpu = std::get_if<CpuStream>(stream.get()))
    environment.push_back({"threads", static_cast<int64_t>(cpu->threads())});
  RunDirectory run = RunDirectory::Create(
      {o.out, e->study, e->Fields(), e->origins(), e->source_text(), environment});
  if (run.existed() && ReadStatus(run.path()).state == RunState::kDone) {
    std::fprintf(io.err, "weft train: %s is done\n", run.path().c_str());
    return ExitCode::kOk;
  }
  if (run.existed() && (run.journal().size() > 0)) {
    Fail(ExitCode::kFailure, run.path(),
         " has been started already; continue it with: weft train --resume ", run.path());
  }
  std::fprintf(io.err, "weft train: %s\n", run.path().c_str());
  return TrainToEnd(*e, run, trainer, 0, io);
}

int Serve(int at_once, const std::string& program) {
  std::mutex beginning;
  return ServeRuns(STDIN_FILENO, STDOUT_FILENO, at_once,
                   [&](std::vector<std::string> argv, const RunIo& io) {
                     argv.insert(argv.begin(), program);
                     return ReportErrors("train", io.err, [&] {
                       CLI::App app;
                       app.set_help_flag();
                       const Options o = Parse(app, argv);
                       if (!o.runs()) Fail(ExitCode::kUsage, "expected the arguments of a run");
                       return static_cast<int>(Train(o, argv, io, beginning));
                     });
                   });
}

int PrintDevices() {
#ifdef WEFT_CUDA
  for (int i = 0; i < CudaDevices(); ++i) {
    const CudaStream current(i);
    const DeviceMemory memory = CudaMemory();
    const nlohmann::ordered_json line = {{"device", i},
                                         {"name", CudaDeviceName(i)},
                                         {"free_bytes", memory.free},
                                         {"total_bytes", memory.total}};
    std::cout << line << "\n";
  }
#endif
  return 0;
}

int Main(CLI::App& app, const std::vector<std::string>& argv) {
  const Options o = Parse(app, argv);
  if (o.devices) return PrintDevices();
  if (o.worker > 0) return Serve(o.worker, argv.front());
  if (o.cells) {
    PlanCells(o.config, o.overrides, o.out, std::cin);
    return 0;
  }
  if (o.dry_run) {
    if (const auto e = Load(o, stderr)) o.json ? PrintPlanJson(*e, o.out) : PrintPlan(*e, o.out);
    return 0;
  }
  const StopSignals signals;
  std::mutex beginning;
  return static_cast<int>(Train(o, argv, {}, beginning));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a model on a synthetic task or on text.");
  return RunProgram(
      "train", app, [&] { return Main(app, std::vector<std::string>(argv, argv + argc)); },
      KeyHelp);
}
