// links: weft_run
// A trainer with the face of weft-train that takes its faults from the config.

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

using Json = nlohmann::json;

struct FakeConfig {
  std::string study = "default", task = "recall";
  std::vector<std::string> pattern = {"attention"};
  int64_t seed = 0, threads = 0, d_model = 16, steps = 4;
  double lr = 0.001;
  bool always_requeue = false, gpu = false;
  int64_t step_ms = 0, exit_code = 0, requeue_at = 0, kill_at = 0;

  std::vector<ConfigField> Fields(bool all) {
    ConfigVisitor v;
    if (all) v.Key("threads", threads, "", Range{0, 64});
    v.Key("study", study, "");
    v.Key("seed", seed, "");
    v.Key("model.pattern", pattern, "");
    v.Key("model.d_model", d_model, "", Range{1, 1024});
    v.Key("task.name", task, "", {"recall", "state_tracking"});
    v.Key("optim.lr", lr, "");
    v.Key("train.steps", steps, "");
    v.Key("fault.step_ms", step_ms, "");
    v.Key("fault.exit_code", exit_code, "");  // at step 2
    v.Key("fault.always_requeue", always_requeue, "");
    v.Key("fault.requeue_at", requeue_at, "");  // exits with 75 after this step
    v.Key("fault.kill_at", kill_at, "");        // kills itself at this step
    v.Key("fault.gpu", gpu, "");                // says that it runs on one
    return std::move(v.fields());
  }
};

std::atomic<int> stop_signal = 0;

int Train(FakeConfig& config, RunDirectory run) {
  for (const int number : {SIGINT, SIGTERM}) std::signal(number, [](int s) { stop_signal = s; });
  Journal& journal = run.journal();
  journal.Declare("train", {{"step", "step", ColumnType::kInteger},
                            {"tokens", "token", ColumnType::kInteger},
                            {"loss", "nat/label"},
                            {"seconds", "s"}});
  journal.Declare("eval/" + config.task, {{"step", "step", ColumnType::kInteger},
                                          {"tokens", "token", ColumnType::kInteger},
                                          {"difficulty", "1", ColumnType::kInteger},
                                          {"accuracy", "1"},
                                          {"exact_match", "1"},
                                          {"nll", "nat/label"},
                                          {"labels", "label", ColumnType::kInteger},
                                          {"chance", "1"},
                                          {"decayed", "1", ColumnType::kInteger}});
  int64_t step = journal.tables().empty() ? 0 : journal.tables().front().rows();
  const auto status = [&](RunState state, int64_t code, const std::string& message = "") {
    run.SetStatus({state, code, step, config.steps, message});
  };
  status(RunState::kRunning, 0);
  while (step < config.steps) {
    if (config.always_requeue) return 75;
    std::this_thread::sleep_for(std::chrono::milliseconds(config.step_ms));
    ++step;
    journal.Append("train", {{"step", step},
                             {"tokens", step * 100},
                             {"loss", 1.0 / static_cast<double>(step)},
                             {"seconds", 0.5 * static_cast<double>(step)}});
    status(RunState::kRunning, 0);
    if (step == config.kill_at) raise(SIGKILL);
    if (stop_signal != 0 || step == config.requeue_at) {
      const int code = stop_signal == SIGINT ? 130 : 75;
      status(RunState::kPreempted, code);
      return code;
    }
    if (step == 2 && config.exit_code != 0) {
      const bool diverged = config.exit_code == 4;
      status(diverged ? RunState::kDiverged : RunState::kFailed, config.exit_code,
             "the fault that was asked for");
      Fail(static_cast<ExitCode>(config.exit_code), "the fault that was asked for");
    }
  }
  for (const int64_t difficulty : {4, 8}) {
    journal.Append("eval/" + config.task,
                   {{"step", step},
                    {"tokens", step * 100},
                    {"difficulty", difficulty},
                    {"accuracy", 1.0 / static_cast<double>(difficulty + config.seed)},
                    {"exact_match", 0.25},
                    {"nll", 0.5},
                    {"labels", 64},
                    {"chance", 0.1},
                    {"decayed", 1}});
  }
  status(RunState::kDone, 0);
  return 0;
}

void Override(Settings& settings, const std::vector<std::string>& overrides) {
  for (const std::string& o : overrides)
    settings.push_back(ParseOverride(o, "--" + o.substr(0, o.find('='))));
}

Json FakePlan(Settings settings, const Json& cell) {
  try {
    Override(settings, cell.at("set"));
    Json match;
    if (cell.contains("match")) {
      // The law is the trainer's; here it is three times as much, and only one key will do.
      match = cell["match"];
      if (match["by"] != "model.d_model")
        Fail(ExitCode::kUsage, "--match: no value of ", match["by"].get<std::string>(), " will do");
      settings.push_back({"model.d_model", int64_t{48}, "match"});
      match.update(
          {{"value", 48}, {"reference", 1600}, {"matched", 1604}, {"residual_percent", 0.25}});
    }
    FakeConfig config;
    auto fields = config.Fields(true);
    Apply(settings, fields);
    Json plan = {{"run_id", HashOf(config.Fields(false))},
                 {"device", config.gpu ? "cuda" : "cpu"},
                 {"gpu_share", 0.4},
                 {"parameters",
                  {{"total", config.d_model * 100},
                   {"embedding", 10},
                   {"head", 10},
                   {"body", config.d_model * 100 - 20}}},
                 {"flops_per_token", 1e6},
                 {"training_flops_per_token", 3e6},
                 {"tokens", config.steps * 100},
                 {"steps", config.steps},
                 {"batch_tokens", 100},
                 {"lr", config.lr},
                 {"warmup_steps", 0},
                 {"decayed_tokens", Json::array()},
                 {"memory_bytes", 1 << 20},
                 {"state_bytes", 64},
                 {"seconds", 2.0}};
    if (!match.is_null()) plan["match"] = match;
    return plan;
  } catch (const Error& error) {
    return {{"exit_code", static_cast<int>(error.code())}, {"error", error.what()}};
  }
}

int RunFake(const std::vector<std::string>& arguments) {
  std::string file, out = "runs", resume;
  bool cells = false;
  std::vector<std::string> overrides;
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    if (*argument == "--out") {
      out = *++argument;
    } else if (*argument == "--resume") {
      resume = *++argument;
    } else if (*argument == "--set") {
      overrides.push_back(*++argument);
    } else if (*argument == "--cells") {
      cells = true;
    } else if (*argument != "--json" && *argument != "--dry-run") {
      file = *argument;
    }
  }
  try {
    Settings settings = ReadTomlFile(resume.empty() ? file : resume + "/resolved.toml");
    if (cells) {
      for (std::string line; std::getline(std::cin, line);)
        std::cout << FakePlan(settings, Json::parse(line)) << "\n";
      return 0;
    }
    Override(settings, overrides);
    FakeConfig config;
    auto fields = config.Fields(true);
    const auto origins = Apply(settings, fields);
    if (!resume.empty()) return Train(config, RunDirectory::Open(resume));
    RunDirectory run = RunDirectory::Create(
        {out, config.study, config.Fields(false), origins, ReadFile(file), {}});
    if (run.journal().size() > 0) Fail(ExitCode::kFailure, run.path(), " has been started already");
    return Train(config, std::move(run));
  } catch (const Error& error) {
    std::cerr << "some words before\nweft train: " << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}

// Notes the GPU of every line and how many are under way.
int ServeFakes() {
  std::mutex mutex;
  std::vector<std::thread> threads;
  std::atomic<int> running = 0;
  int64_t number = 0;
  for (std::string text; std::getline(std::cin, text);) {
    threads.emplace_back([&, text, line = ++number] {
      const int now = ++running;
      const char* gpu = std::getenv("CUDA_VISIBLE_DEVICES");
      std::ofstream("gpus.txt", std::ios::app) << (gpu ? gpu : "any") << " " << now << std::endl;
      const int code = RunFake(Json::parse(text).at("arguments"));
      --running;
      const std::lock_guard lock(mutex);
      std::cout << line << " " << code << std::endl;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// Two GPUs, as nvidia-smi would number them 4 and 7.
int PrintFakeDevices() {
  for (int i : {0, 1}) std::cout << Json{{"device", i}, {"free_bytes", 1 << 30}} << "\n";
  return 0;
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.front() == "--devices") return weft::PrintFakeDevices();
  if (arguments.front().starts_with("--worker=")) return weft::ServeFakes();
  return weft::RunFake(arguments);
}
