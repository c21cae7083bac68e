// weft eval RUN: evaluates the newest checkpoint of a run.

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "experiments/run/program.h"
#include "experiments/train/run_loop.h"

namespace {

using namespace weft;

int Main(CLI::App& app, int argc, char** argv) {
  std::string run;
  bool json = false;
  app.add_option("RUN", run, "run directory")->required();
  app.add_flag("--json", json, "machine-readable output");
  app.footer(
      "Keys of [eval] and --threads may be given: --eval.difficulties=256 --eval.samples=1024");
  const auto overrides = ParseCommandLine(app, argc, argv);
  for (const std::string& o : overrides) {
    if (!o.starts_with("eval.") && !o.starts_with("threads=") && !o.starts_with("device=")) {
      Fail(ExitCode::kUsage, "--", o,
           ": only keys of [eval], --threads and --device can be changed here");
    }
  }
  const auto e = LoadExperiment(run, overrides);
  const Device device = ChooseDevice(*e);
  const std::unique_ptr<Stream> stream = OpenStream(device, e->threads);
  Trainer trainer(*e, device, *stream, /*training=*/false);
  const int64_t step = LoadNewestModel(run, trainer);
  const auto evaluations = trainer.Evaluate();
  if (evaluations.empty()) {
    Fail(ExitCode::kUsage, run,
         ": data.held_out = 0, so there is no text to evaluate on; expected a run that holds text "
         "out");
  }
  if (!json) {
    std::cerr << "weft eval: " << run << " at step " << step << "\n";
    fmt::print("{}", EvaluationTable(*e, evaluations));
    return 0;
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& v : evaluations) {
    nlohmann::ordered_json row = {
        {"name", v.name}, {"step", step}, {"nll", v.score.nll}, {"labels", v.score.labels}};
    if (e->task) {
      row["difficulty"] = v.difficulty;
      row["accuracy"] = v.score.accuracy;
      row["exact_match"] = v.score.exact_match;
      row["chance"] = ChanceOf(*e, v);
    } else {
      row["bits_per_byte"] = v.score.BitsPerByte();
    }
    rows.push_back(row);
  }
  fmt::print("{}\n", rows.dump(2));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Evaluates the newest checkpoint of a run.");
  return RunProgram("eval", app, [&] { return Main(app, argc, argv); });
}
