// weft bench ops|step CONFIG: time of every op, or of the training step.

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "experiments/bench/ops.h"
#include "experiments/bench/step.h"
#include "experiments/run/environment.h"
#include "experiments/run/program.h"
#include "experiments/train/trainer.h"

namespace {

using namespace weft;

std::string DeviceName(const Device& device, const Stream& stream) {
  if (device.cuda) return device.name;
  const int threads = std::get<CpuStream>(stream).threads();
  return fmt::format("{}, {} thread{}", CpuModel(), threads, threads == 1 ? "" : "s");
}

// To four digits.
double Rounded(double x) { return std::stod(fmt::format("{:.4g}", x)); }

// "d768_L12_T2048_B16"
std::string ShapeOf(const Experiment& e) {
  return fmt::format("d{}_L{}_T{}_B{}", e.model.d_model, e.model.layers, e.train.length,
                     e.train.batch);
}

int TimeStep(const std::string& config, const std::vector<std::string>& overrides, int64_t steps,
             bool json) {
  const auto e = Experiment::Load(config, overrides);
  const Device device = ChooseDevice(*e);
  const std::unique_ptr<Stream> stream = OpenStream(device, e->threads);
  const StepTimes t = MeasureStep(*e, device, *stream, steps);
  std::string pattern;
  for (const std::string& label : e->model.pattern) pattern += (pattern.empty() ? "" : "+") + label;
  const RunPlan plan = PlanRun(*e, device);
  if (json) {
    nlohmann::ordered_json ops = nlohmann::ordered_json::array();
    for (const StepTimes::Op& op : t.ops)
      ops.push_back({{"op", op.name}, {"calls", op.calls}, {"ms", Rounded(op.ms)}});
    const nlohmann::ordered_json row = {
        {"model", pattern == "attention" ? "transformer" : pattern},
        {"shape", ShapeOf(*e)},
        {"parameters", plan.parameters.total},
        {"precision", NameOf(device.dtype)},
        {"device", DeviceName(device, *stream)},
        {"commit", CommitText()},
        {"ms", Rounded(t.ms)},
        {"tokens_per_s", Rounded(t.tokens_per_second)},
        {"gflop_per_s", Rounded(t.flops_per_token * t.tokens_per_second * 1e-9)},
        {"mfu", Rounded(t.mfu)},
        {"mfu_formula",
         fmt::format("FLOPs of products, attention (backward: five products), recurrence and "
                     "convolution, counted from the ops of one step, per second / {:.4g}{}",
                     t.peak_flops, t.peak_flops > 0 ? "" : ", as the device's rate is not known")},
        {"device_open_s", Rounded(t.device_seconds)},
        {"trainer_made_s", Rounded(t.trainer_seconds)},
        {"first_step_s", Rounded(t.first_step_seconds)},
        {"allocated_bytes", t.allocated_bytes},
        {"planned_bytes", t.planned_bytes},
        {"device_bytes", t.device_bytes},
        {"ops", ops}};
    fmt::print("{}\n", row.dump());
    return 0;
  }
  fmt::print("{} {}, {} parameters, {} on {}, commit {}\n", pattern, ShapeOf(*e),
             plan.parameters.total, NameOf(device.dtype), DeviceName(device, *stream),
             CommitText());
  fmt::print("step        {:.3f} ms, {:.0f} tokens/s, {:.1f} GFLOP/s\n", t.ms, t.tokens_per_second,
             t.flops_per_token * t.tokens_per_second * 1e-9);
  if (t.peak_flops > 0) {
    fmt::print("MFU         {:.1f} % (FLOPs counted from the ops of one step / {:.0f} TFLOP/s)\n",
               100 * t.mfu, t.peak_flops * 1e-12);
  }
  fmt::print(
      "first step  {:.2f} s after the start of the process; device open at {:.2f} s, trainer made "
      "at "
      "{:.2f} s\nmemory      {} MiB, planned {}",
      t.first_step_seconds, t.device_seconds, t.trainer_seconds, t.allocated_bytes >> 20,
      t.planned_bytes >> 20);
  if (device.cuda) fmt::print("; {} in use on the device", t.device_bytes >> 20);
  double sum = 0;
  for (const StepTimes::Op& op : t.ops) sum += op.ms;
  fmt::print("\n\n{:<24} {:>6} {:>10} {:>7}   op by op\n", "op", "calls", "ms", "share");
  for (const StepTimes::Op& op : t.ops)
    fmt::print("{:<24} {:>6} {:>10.3f} {:>6.1f} %\n", op.name, op.calls, op.ms, 100 * op.ms / sum);
  return 0;
}

int TimeAtOnce(const std::string& config, const std::vector<std::string>& overrides,
               const std::vector<int>& counts, double seconds, bool json) {
  constexpr int kRounds = 5;
  const auto e = Experiment::Load(config, overrides);
  const Device device = ChooseDevice(*e);
  const std::string name = DeviceName(device, *OpenStream(device, e->threads));
  const double flops_per_token = PlanRun(*e, device).training_flops_per_token;
  if (!json) {
    fmt::print("{}, {} on {}, commit {}\n{:>8} {:>10} {:>14} {:>8} {:>10}\n", ShapeOf(*e),
               NameOf(device.dtype), name, CommitText(), "at once", "ms/step", "tokens/s", "ratio",
               "TFLOP/s");
  }
  double first = 0;
  for (const int trainers : counts) {
    const AtOnceTimes t = MeasureAtOnce(*e, device, trainers, kRounds, seconds);
    if (first == 0) first = t.tokens_per_second;
    const double ratio = t.tokens_per_second / first,
                 tflop_s = flops_per_token * t.tokens_per_second * 1e-12;
    if (json) {
      const nlohmann::ordered_json row = {{"shape", ShapeOf(*e)},
                                          {"pattern", e->model.pattern},
                                          {"precision", NameOf(device.dtype)},
                                          {"device", name},
                                          {"commit", CommitText()},
                                          {"at_once", trainers},
                                          {"ms", Rounded(t.ms)},
                                          {"tokens_per_s", Rounded(t.tokens_per_second)},
                                          {"ratio", Rounded(ratio)},
                                          {"tflop_per_s", Rounded(tflop_s)}};
      fmt::print("{}\n", row.dump());
    } else {
      fmt::print("{:>8} {:>10.3f} {:>14.0f} {:>8.2f} {:>10.1f}\n", trainers, t.ms,
                 t.tokens_per_second, ratio, tflop_s);
    }
    std::fflush(stdout);
  }
  return 0;
}

int PrintOpTimes(const Device& device, Stream& stream, const std::string& filter, bool json) {
  nlohmann::ordered_json all = {{"device", DeviceName(device, stream)}, {"commit", CommitText()}};
  const auto measured = [&](const Roofline& r) {
    all["copy_gb_s"] = Rounded(r.copy_bytes_per_second * 1e-9);
    all["matmul_tflop_s"] = Rounded(r.matmul_flops_per_second * 1e-12);
    all["rows"] = nlohmann::ordered_json::array();
    if (json) return;
    fmt::print(
        "{}, commit {}: copy {:.0f} GB/s, matrix product {:.2f} TFLOP/s\n{:<60} {:>9} {:>7} {:>8} "
        "{:>9}\n",
        DeviceName(device, stream), CommitText(), r.copy_bytes_per_second * 1e-9,
        r.matmul_flops_per_second * 1e-12, "", "ms", "GB/s", "TFLOP/s", "roofline");
  };
  const auto timed = [&](const OpTime& t) {
    const char* pass = t.backward ? "backward" : "forward";
    const double seconds = t.ms * 1e-3, gb_s = t.bytes / seconds * 1e-9,
                 tflop_s = t.flops / seconds * 1e-12;
    if (!json) {
      fmt::print("{:<60} {:>9.4f} {:>7.0f} {:>8.3g} {:>7.0f} %\n",
                 fmt::format("{} {} {}", t.op, t.label, pass), t.ms, gb_s, tflop_s,
                 100 * t.roofline);
      std::fflush(stdout);
      return;
    }
    all["rows"].push_back({{"op", t.op},
                           {"case", t.label},
                           {"pass", pass},
                           {"dtype", NameOf(t.dtype)},
                           {"ms", Rounded(t.ms)},
                           {"gb_s", Rounded(gb_s)},
                           {"tflop_s", Rounded(tflop_s)},
                           {"roofline_percent", Rounded(100 * t.roofline)}});
  };
  TimeOps(device, stream, filter, measured, timed);
  if (json) fmt::print("{}\n", all.dump(1));
  return 0;
}

int Main(CLI::App& app, int argc, char** argv) {
  app.require_subcommand(1);
  bool json = false;

  std::string filter, device = "auto";
  int threads = 0;
  CLI::App* ops = app.add_subcommand(
      "ops",
      "every op, forward and backward: time, rates, and percentage of what the device's "
      "memory and matrix units allow, measured in the same run");
  ops->add_option("--filter", filter, "regular expression that \"op/case\" must contain");
  ops->add_option("--device", device, "where to run; auto is the first GPU if there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  ops->add_option("--threads", threads, "of the CPU; 0 = one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  ops->add_flag("--json", json, "one JSON object");

  std::string config;
  int64_t steps = 45;
  CLI::App* step = app.add_subcommand(
      "step",
      "the training step: forward, backward, clipping and AdamW; config keys are given as "
      "--KEY=VALUE");
  step->add_option("CONFIG", config, "experiment, a TOML file")->required();
  step->add_option("--steps", steps, "timed steps, in rounds of 5, after 4 that are not timed")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  std::vector<int> at_once;
  double seconds = 1;
  step->add_option("--at-once", at_once,
                   "so many trainers in one process instead, such as 1,2,4,8: tokens/s of all")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  step->add_option("--seconds", seconds, "with --at-once: of each of 5 timed rounds")
      ->check(Between(1e-3, 1e4))
      ->capture_default_str();
  step->add_flag("--json", json, "machine-readable output: one line");
  step->allow_extras()->fallthrough();

  const auto overrides = ParseCommandLine(app, argc, argv);
  if (*step && !at_once.empty()) return TimeAtOnce(config, overrides, at_once, seconds, json);
  if (*step) return TimeStep(config, overrides, steps, json);
  const Device where = ChooseDevice(device, "auto");
  return PrintOpTimes(where, *OpenStream(where, threads), filter, json);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures speed: of every op, or of the training step.");
  return RunProgram("bench", app, [&] { return Main(app, argc, argv); });
}
