// links: weft_sweeps
// weft-sweep as a user calls it, with a trainer that has the face of weft-train and takes its
// faults from the config. This program is that trainer when it is called "weft-train".
#include "sweeps/sweep.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "kernels/base/check.h"
#include "sweeps/pool.h"
#include "sweeps/slurm.h"
#include "sweeps/study.h"
#include "tests/process.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::chrono_literals;

// The fake trainer

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

volatile sig_atomic_t stop_signal = 0;

int Train(FakeConfig& config, RunDirectory run) {
  for (const int number : {SIGINT, SIGTERM}) ::signal(number, [](int s) { stop_signal = s; });
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

Json FakePlan(Settings settings, const Json& cell) {
  try {
    for (const std::string o : cell.at("set"))
      settings.push_back(ParseOverride(o, "--" + o.substr(0, o.find('='))));
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

int FakeTrainer(int argc, char** argv);

// Two GPUs, as nvidia-smi would number them 4 and 7.
int FakeDevices() {
  for (int i : {0, 1}) std::cout << Json{{"device", i}, {"free_bytes", 1 << 30}} << "\n";
  return 0;
}

// Notes the GPU of every line and how many are under way.
int FakeWorker(const std::string& program) {
  std::mutex mutex;
  std::vector<std::thread> threads;
  std::atomic<int> running = 0;
  int64_t number = 0;
  for (std::string text; std::getline(std::cin, text);) {
    threads.emplace_back([&, text, line = ++number] {
      const Json json = Json::parse(text);
      const int now = ++running;
      std::vector<std::string> words = json.at("arguments");
      words.insert(words.begin(), program);
      const char* gpu = std::getenv("CUDA_VISIBLE_DEVICES");
      std::ofstream("gpus.txt", std::ios::app) << (gpu ? gpu : "any") << " " << now << std::endl;
      std::vector<char*> argv;
      for (std::string& word : words) argv.push_back(word.data());
      const int code = FakeTrainer(static_cast<int>(argv.size()), argv.data());
      --running;
      const std::lock_guard lock(mutex);
      std::cout << line << " " << code << std::endl;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

int FakeTrainer(int argc, char** argv) {
  std::string file, out = "runs", resume;
  bool cells = false;
  std::vector<std::string> overrides;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--out") {
      out = argv[++i];
    } else if (argument == "--resume") {
      resume = argv[++i];
    } else if (argument == "--set") {
      overrides.push_back(argv[++i]);
    } else if (argument == "--cells") {
      cells = true;
    } else if (argument == "--devices") {
      return FakeDevices();
    } else if (argument.starts_with("--worker=")) {
      return FakeWorker(argv[0]);
    } else if (argument != "--json" && argument != "--dry-run") {
      file = argument;
    }
  }
  try {
    Settings settings = ReadTomlFile(resume.empty() ? file : resume + "/resolved.toml");
    if (cells) {
      for (std::string line; std::getline(std::cin, line);)
        std::cout << FakePlan(settings, Json::parse(line)) << "\n";
      return 0;
    }
    for (const auto& o : overrides)
      settings.push_back(ParseOverride(o, "--" + o.substr(0, o.find('='))));
    FakeConfig config;
    auto fields = config.Fields(true);
    const auto origins = Apply(settings, fields);
    const auto identity = config.Fields(false);
    if (!resume.empty()) return Train(config, RunDirectory::Open(resume));
    RunDirectory run =
        RunDirectory::Create({out, config.study, identity, origins, ReadFile(file), {}});
    if (run.journal().size() > 0) Fail(ExitCode::kFailure, run.path(), " has been started already");
    return Train(config, std::move(run));
  } catch (const Error& error) {
    std::cerr << "some words before\nweft train: " << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}

// What the tests stand on

struct Output {
  int exit_code = -1;
  std::string out, err;
};

class SweepTest : public testing::Test {
 protected:
  SweepTest() {
    fs::create_directories(root_ + "/bin");
    fs::copy_file(WEFT_BIN_DIR "/weft-sweep", root_ + "/bin/weft-sweep");
    fs::copy_file(fs::read_symlink("/proc/self/exe"), root_ + "/bin/weft-train");
    Write("base.toml", "[task]\nname = \"recall\"\n");
  }

  void Write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(root_ + "/" + name).parent_path());
    std::ofstream(root_ + "/" + name) << text;
  }
  std::string Read(const std::string& name) const { return ReadFile(root_ + "/" + name); }

  pid_t Start(const std::string& arguments, const std::string& environment = "") const {
    const pid_t pid = fork();
    if (pid == 0) {
      if (chdir(root_.c_str()) != 0) _exit(99);
      const std::string command =
          "exec env " + environment + " $PWD/bin/weft-sweep " + arguments + " >out.txt 2>err.txt";
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(98);
    }
    return pid;
  }
  Output Finish(pid_t pid) const {
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), Read("out.txt"),
            Read("err.txt")};
  }
  Output Call(const std::string& arguments) const { return Finish(Start(arguments)); }
  Json Status() const { return Json::parse(Call("status s.toml --json").out); }

  // Calls plan, which must refuse with one line that has all of `parts`, and must write nothing.
  void ExpectRefused(const std::string& sweep, const std::vector<std::string>& parts,
                     int exit_code = 2) const {
    Write("s.toml", sweep);
    for (const char* action : {"plan", "run"}) {
      const Output output = Call(std::string(action) + " s.toml");
      EXPECT_EQ(output.exit_code, exit_code) << sweep << output.err;
      EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
      EXPECT_TRUE(output.out.empty()) << output.out;
      for (const std::string& part : parts)
        EXPECT_NE(output.err.find(part), std::string::npos) << part << " in: " << output.err;
    }
    EXPECT_FALSE(fs::exists(root_ + "/runs"));
  }

  template <class Ready>
  static bool Within(std::chrono::seconds limit, const Ready& ready) {
    for (const auto end = std::chrono::steady_clock::now() + limit;
         std::chrono::steady_clock::now() < end;) {
      if (ready()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
  int CountRuns(const std::string& file) const {
    int count = 0;
    std::error_code none;
    for (const auto& run : fs::directory_iterator(root_ + "/runs/s", none))
      count += fs::exists(run.path() / file);
    return count;
  }

  Scratch scratch_;
  const std::string root_ = scratch_.path();
};

constexpr const char* kHead = "question = \"Who wins?\"\nbase = \"base.toml\"\n";
constexpr const char* kVariants =
    "[variants]\nrnn = { model.pattern = [\"gated_delta\"] }\nattention.model.pattern = "
    "[\"attention\"]\n";

// Plan

TEST_F(SweepTest, CellsAreVariantsTimesCasesTimesAxesInTheOrderOfTheFile) {
  Write("s.toml", std::string(kHead) +
                      "[variants]\nz = { model.pattern = [\"a\", \"b\"], model.d_model = 8 }\na = "
                      "{ \"model.pattern\" = [\"c\"] }\n"
                      "[cases]\nlong = { train.steps = 9 }\nshort = { train.steps = 3 "
                      "}\n[axes]\nseed = [0, 1]\noptim.lr = [1e-4]\n");
  const Sweep sweep = ReadSweep(root_ + "/s.toml");
  EXPECT_EQ(sweep.study, "s");
  EXPECT_EQ(sweep.base, root_ + "/base.toml");
  EXPECT_EQ(sweep.axes, (std::vector<std::string>{"seed", "optim.lr"}));
  std::vector<std::string> names;
  for (const Cell& cell : sweep.cells) names.push_back(cell.name);
  EXPECT_EQ(names, (std::vector<std::string>{"z/long/seed=0", "z/long/seed=1", "z/short/seed=0",
                                             "z/short/seed=1", "a/long/seed=0", "a/long/seed=1",
                                             "a/short/seed=0", "a/short/seed=1"}));
  const Settings& first = sweep.cells.front().settings;
  ASSERT_EQ(first.size(), 5u);
  EXPECT_EQ(first[0].path, "model.pattern");
  EXPECT_EQ(ToToml(first[0].value), "[\"a\", \"b\"]");
  EXPECT_EQ(first[2].path, "train.steps");
}

TEST_F(SweepTest, CellsAreStartedInTheOrderThatTheSweepNames) {
  Write("s.toml",
        std::string(kHead) + "order = [\"seed\", \"case\"]\n" + kVariants +
            "[cases]\nshort = { train.steps = 3 }\nlong = { train.steps = 9, axes.seed = [5, 1, 0] "
            "}\n[axes]\nseed = [1, 0]\n");
  const Output run = Call("run s.toml --jobs 1");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::vector<size_t> places;
  for (const char* name :
       {"/short/seed=1", "/long/seed=5", "/short/seed=0", "/long/seed=1", "/long/seed=0"}) {
    for (const char* variant : {"rnn", "attention"}) {
      places.push_back(run.err.find(std::string(variant) + name));
      ASSERT_NE(places.back(), std::string::npos) << variant << name << " in:\n" << run.err;
    }
  }
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end())) << run.err;
  EXPECT_EQ(Json::parse(Call("plan s.toml --json").out)["cells"][0]["round"], 0);
}

TEST_F(SweepTest, ACaseMayHaveValuesOfItsOwnForAnAxis) {
  Write("s.toml", std::string(kHead) + "[variants]\na = { model.pattern = [\"c\"] }\n" +
                      "[cases]\nsmall = { train.steps = 3 }\nlarge = { train.steps = 9, axes.seed "
                      "= [7, 8] }\n[axes]\nseed = [0]\noptim.lr = [1e-4, 1e-3]\n");
  std::vector<std::string> names;
  for (const Cell& cell : ReadSweep(root_ + "/s.toml").cells) {
    names.push_back(cell.name);
    EXPECT_EQ(cell.axes.size(), 2u);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"a/small/seed=0/lr=0.0001", "a/small/seed=0/lr=0.001",
                                      "a/large/seed=7/lr=0.0001", "a/large/seed=7/lr=0.001",
                                      "a/large/seed=8/lr=0.0001", "a/large/seed=8/lr=0.001"}));
}

TEST_F(SweepTest, PlanListsEveryCellAndWritesNothing) {
  Write("s.toml", std::string(kHead) + kVariants +
                      "[axes]\nmodel.d_model = [8, 32]\ntask.name = [\"recall\"]\n");
  const Output table = Call("plan s.toml");
  EXPECT_EQ(table.exit_code, 0) << table.err;
  for (const char* part :
       {"Who wins?", "rnn/d_model=8", "attention/d_model=32", "3200", "3180", "1.00M", "4 cells"}) {
    EXPECT_NE(table.out.find(part), std::string::npos) << part << " in:\n" << table.out;
  }
  const Json json = Json::parse(Call("plan s.toml --json --jobs 2").out);
  ASSERT_EQ(json["cells"].size(), 4u);
  EXPECT_EQ(json["cells"][1]["axes"]["model.d_model"], 32);
  EXPECT_EQ(json["cells"][1]["parameters"]["total"], 3200);
  EXPECT_EQ(json["cells"][3]["variant"], "attention");
  EXPECT_EQ(json["totals"]["seconds"], 4.0);  // four cells of two seconds, two at a time
  EXPECT_FALSE(fs::exists(root_ + "/runs"));
}

TEST_F(SweepTest, AnAxisMayHoldLists) {
  Write("s.toml", std::string(kHead) +
                      "[variants]\nx = { model.d_model = 8 }\n[axes]\nmodel.pattern = [[\"a\"], "
                      "[\"a\", \"b\"]]\n");
  const Json json = Json::parse(Call("plan s.toml --json").out);
  ASSERT_EQ(json["cells"].size(), 2u);
  EXPECT_EQ(json["cells"][1]["axes"]["model.pattern"], (Json{"a", "b"}));
}

TEST_F(SweepTest, TheBaseIsLookedForBesideTheSweepThenInTheWorkingDirectory) {
  Write("sweeps/s.toml", std::string("base = \"../base.toml\"\n") + kVariants);
  EXPECT_EQ(Call("plan sweeps/s.toml").exit_code, 0);
  Write("sweeps/s.toml", std::string(kHead) + kVariants);
  EXPECT_EQ(Call("plan sweeps/s.toml").exit_code, 0);
  Write("sweeps/base.toml", "nonsense = 1\n");
  EXPECT_EQ(Call("plan sweeps/s.toml").exit_code, 2);
}

TEST(Makespan, IsThatOfWorkersThatTakeTheNextCell) {
  EXPECT_EQ(Makespan({}, {}, 4), 0);
  EXPECT_EQ(Makespan({}, {5, 3, 3}, 2), 6);
  EXPECT_EQ(Makespan({10, 1}, {2, 2}, 2), 10);
  EXPECT_EQ(Makespan({1}, {7}, 1), 8);
}

// Bad input

TEST_F(SweepTest, RefusesASweepFileThatIsMissing) {
  const Output output = Call("plan none.toml");
  EXPECT_EQ(output.exit_code, 2);
  EXPECT_EQ(output.err, "weft sweep: none.toml: there is no such sweep file\n");
}
TEST_F(SweepTest, RefusesTextThatIsNotToml) {
  ExpectRefused("base = \n", {"s.toml:1", "not TOML"});
}
TEST_F(SweepTest, RefusesAKeyTwice) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = [1]\nseed = [2]\n",
                {"s.toml:8", "seed", "twice"});
}
TEST_F(SweepTest, RefusesAnUnknownTopLevelKey) {
  ExpectRefused(std::string("questoin = \"x\"\n") + kHead + kVariants,
                {"s.toml:1", "questoin", "\"question\""});
}
// A table of the file, and what one line of it must be refused with.
TEST_F(SweepTest, RefusesAnOrderOfWhatIsNotThere) {
  ExpectRefused(std::string("order = [\"sed\"]\n") + kHead + kVariants + "[axes]\nseed = [0, 1]\n",
                {"s.toml:1", "\"sed\"", "\"seed\""});
  ExpectRefused(std::string("order = 3\n") + kHead + kVariants, {"s.toml:1", "list of axes"});
}
TEST_F(SweepTest, RefusesAMatchThatDoesNotFit) {
  const auto expect = [&](const std::string& match, const std::vector<std::string>& parts) {
    ExpectRefused(std::string(kHead) + "match = { " + match + " }\n" + kVariants, parts);
  };
  expect("quantity = \"parameters\"", {"s.toml:3", "match.to is missing"});
  expect("quantity = \"flops\", to = \"rnn\"", {"s.toml:3", "match.by is missing"});
  const std::string whole = "quantity = \"flops\", to = \"rnn\", by = \"model.d_model\"";
  expect("quantity = \"flops\", to = \"rmn\", by = \"model.d_model\"",
         {"s.toml:3", "\"rmn\"", "did you mean \"rnn\"?"});
  expect(whole + ", variant = [\"attention\"]", {"match.variant", "\"match.variants\"?"});
  expect(whole + ", variants = [\"rnn\"]", {"match.variants holds match.to"});
  expect(whole + ", variants = 3", {"expected a list of variants"});
  expect(whole + ", multiple = 0", {"match.multiple is 0, expected a positive number"});
  expect(whole + ", tolerance = \"much\"", {"match.tolerance", "expected a positive number"});
  ExpectRefused(std::string(kHead) + "match = { " + whole + " }\n" + kVariants +
                    "[axes]\nmodel.d_model = [8]\n",
                {"s.toml:3", "match.by = \"model.d_model\" is also set at", "s.toml:8: axes"});
  expect("quantity = \"flops\", to = \"rnn\", by = \"train.steps\"",
         {"s.toml:3: match: cell attention: no value of train.steps"});
}

TEST_F(SweepTest, MatchedCellsRunWithTheValueThatWasSolved) {
  Write("s.toml",
        std::string(kHead) +
            "match = { quantity = \"parameters\", to = \"rnn\", by = \"model.d_model\" }\n" +
            kVariants + "[cases]\nr = { train.steps = 3 }\n[axes]\nseed = [0, 1]\n");
  const Sweep sweep = ReadSweep(root_ + "/s.toml");
  EXPECT_TRUE(sweep.cells[0].reference.empty());
  ASSERT_EQ(sweep.cells[3].reference.size(), 3u);
  EXPECT_EQ(ToToml(sweep.cells[3].reference[0].value), "[\"gated_delta\"]");
  EXPECT_EQ(sweep.cells[3].reference[2].path, "seed");
  const Output plan = Call("plan s.toml");
  for (const char* part : {"matched by", "residual", "model.d_model=48", "+0.250 %"})
    EXPECT_NE(plan.out.find(part), std::string::npos) << part << " in:\n" << plan.out;
  ASSERT_EQ(Call("run s.toml").exit_code, 0);
  const H5Table cells = ReadTable(root_ + "/runs/s/sweep.h5", "/cells");
  EXPECT_EQ(cells.Numbers("matched_value"), (std::vector<double>{0, 0, 48, 48}));
  EXPECT_EQ(cells.Numbers("residual_percent")[3], 0.25);
  EXPECT_TRUE(std::isnan(cells.Numbers("residual_percent")[0]));
  const std::string id = Status()["cells"][3]["run_id"];
  EXPECT_NE(Read("runs/s/" + id + "/resolved.toml").find("d_model = 48"), std::string::npos);
}

TEST_F(SweepTest, RefusesASweepWithoutVariants) {
  ExpectRefused(kHead, {"s.toml", "no variants", "[variants]"});
  ExpectRefused(std::string(kHead) + "[variants]\n", {"no variants"});
}
TEST_F(SweepTest, RefusesAnEmptyVariant) {
  ExpectRefused(std::string(kHead) + "[variants]\nbig = {}\n",
                {"s.toml:4", "variants.big is empty"});
  ExpectRefused(std::string(kHead) + "[variants]\nbig = { model = {} }\n",
                {"s.toml:4", "variants.big is empty"});
}
TEST_F(SweepTest, RefusesAVariantThatIsNoTable) {
  ExpectRefused(std::string(kHead) + "[variants]\nbig = 3\n",
                {"s.toml:4", "variants.big is 3", "expected settings"});
}
TEST_F(SweepTest, RefusesAnEmptyCase) {
  ExpectRefused(std::string(kHead) + kVariants + "[cases]\nlong = {}\n",
                {"s.toml:7", "cases.long is empty"});
}
TEST_F(SweepTest, RefusesAnAxisWithoutValues) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = []\n",
                {"s.toml:7", "axes.seed is an empty list"});
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = 3\n",
                {"s.toml:7", "axes.seed is 3", "expected a list"});
}
TEST_F(SweepTest, RefusesADateAndATable) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = [2026-01-01]\n",
                {"s.toml:7", "axes.seed", "2026-01-01"});
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = [{ a = 1 }]\n",
                {"s.toml:7", "axes.seed", "a = 1"});
}
TEST_F(SweepTest, RefusesAKeySetByAVariantAndAnAxis) {
  ExpectRefused(std::string(kHead) + "[variants]\na = { seed = 3 }\n[axes]\nseed = [0, 1]\n",
                {"s.toml:6", "axes.seed", "also set at", "s.toml:4: variants.a"});
}
TEST_F(SweepTest, RefusesAKeySetByAVariantAndACase) {
  ExpectRefused(std::string(kHead) + "[variants]\na = { seed = 3 }\n[cases]\nc = { seed = 4 }\n",
                {"s.toml:6: cases.c.seed", "also set at", "s.toml:4: variants.a"});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfAnAxisWithItsPlaceAndTheNearestKey) {
  ExpectRefused(
      std::string(kHead) + kVariants + "[axes]\nmodel.d_modle = [8]\n",
      {"s.toml:7: axes", "unknown key \"model.d_modle\"", "did you mean \"model.d_model\""});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfAVariant) {
  ExpectRefused(std::string(kHead) + "[variants]\na = { modle.pattern = [\"x\"] }\n",
                {"s.toml:4: variants.a", "unknown key \"modle.pattern\"", "model.pattern"});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfACase) {
  ExpectRefused(std::string(kHead) + kVariants + "[cases]\nc = { task.nam = \"recall\" }\n",
                {"s.toml:7: cases.c", "task.nam", "task.name"});
}
TEST_F(SweepTest, AnOptionOfTheTrainerIsNoConfigKey) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nout = [\"elsewhere\"]\n",
                {"s.toml:7: axes", "unknown key \"out\""});
}
TEST_F(SweepTest, RefusesAValueOutOfRange) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nmodel.d_model = [8, 4096]\n",
                {"s.toml:7: axes", "4096", "out of range"});
}
TEST_F(SweepTest, RefusesAWrongType) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = [0.5]\n",
                {"s.toml:7: axes", "seed = 0.5", "an integer"});
}
TEST_F(SweepTest, RefusesStudyAsAnAxis) {
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nstudy = [\"a\", \"b\"]\n",
                {"s.toml:7: axes.study", "at the top"});
}
TEST_F(SweepTest, RefusesAnAxisThatOnlyACaseHas) {
  const std::string cases = std::string(kHead) + kVariants + "[cases]\nlarge = { train.steps = 9, ";
  ExpectRefused(cases + "axes.optim.lr = [1e-4] }\n[axes]\nseed = [0]\n",
                {"s.toml:7: cases.large.axes.optim.lr", "is not in [axes]"});
  ExpectRefused(cases + "axes.seed = [] }\n[axes]\nseed = [0]\n",
                {"s.toml:7", "cases.large.axes.seed is an empty list"});
  ExpectRefused(cases + "axes.seed = 3 }\n[axes]\nseed = [0]\n",
                {"s.toml:7", "cases.large.axes.seed is 3", "expected a list"});
}
TEST_F(SweepTest, RefusesAStudyThatIsNoFolder) {
  ExpectRefused(std::string(kHead) + "study = \"../x\"\n" + kVariants,
                {"s.toml:3", "\"../x\"", "cannot be a folder"});
}
TEST_F(SweepTest, RefusesCellsThatAreTheSameRun) {
  ExpectRefused(
      std::string(kHead) + "[variants]\na = { model.d_model = 8 }\nb = { model.d_model = 8 }\n",
      {"s.toml: cells a and b are the same run"});
  ExpectRefused(std::string(kHead) + kVariants + "[axes]\nseed = [1, 2, 1]\n",
                {"rnn/seed=1 and rnn/seed=1"});
}
TEST_F(SweepTest, RefusesABaseThatDoesNotExistOrIsNotNamed) {
  ExpectRefused(std::string("base = \"gone.toml\"\n") + kVariants,
                {"s.toml:1", "\"gone.toml\" does not exist"});
  ExpectRefused(kVariants, {"s.toml", "base is missing"});
  ExpectRefused(std::string("base = 3\n") + kVariants, {"s.toml:1", "base is 3"});
}
TEST_F(SweepTest, RefusesABaseWithAnUnknownKey) {
  Write("base.toml", "[model]\nwidth = 3\n");
  ExpectRefused(std::string(kHead) + kVariants,
                {"s.toml: cell rnn: ", "base.toml:2", "model.width"});
}
TEST_F(SweepTest, RefusesAnUnknownActionAndConfigKeys) {
  Write("s.toml", std::string(kHead) + kVariants);
  EXPECT_EQ(Call("start s.toml").exit_code, 2);
  EXPECT_EQ(Call("plan").exit_code, 2);
  EXPECT_EQ(Call("plan s.toml --jobs 0").exit_code, 2);
  EXPECT_EQ(Call("plan s.toml --seed=3").exit_code, 2);
  for (const auto& [options, part] :
       {std::pair{"--jobs=2 --per-device=2", "--jobs excludes --per-device"},
        {"--per-device=0", "--per-device"},
        {"--per-device=many", "many"},
        {"--devices=0,x", "--devices"},
        {"--devices=0", "--devices: the cells run on the CPU"}}) {
    const Output output = Call(std::string("run s.toml ") + options);
    EXPECT_EQ(output.exit_code, 2) << options;
    EXPECT_NE(output.err.find(part), std::string::npos) << output.err;
    EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
  }
}
TEST_F(SweepTest, SaysWhenTheTrainerIsMissing) {
  fs::remove(root_ + "/bin/weft-train");
  ExpectRefused(std::string(kHead) + kVariants, {"weft-train: is missing", "build it"}, 1);
}
TEST_F(SweepTest, StatusAndCollectNeedASweepThatWasStarted) {
  Write("s.toml", std::string(kHead) + kVariants);
  for (const char* action : {"status s.toml", "collect s.toml"}) {
    const Output output = Call(action);
    EXPECT_EQ(output.exit_code, 3);
    EXPECT_NE(output.err.find("runs/s/sweep.json: is missing"), std::string::npos) << output.err;
  }
  Write("runs/s/sweep.json", "{\"study\":");
  Write("runs/s/sweep.toml", "");
  EXPECT_EQ(Call("status s.toml").exit_code, 3);
}
TEST_F(SweepTest, AnUnwritableOutIsOneLine) {
  Write("s.toml", std::string(kHead) + kVariants);
  Write("file", "");
  const Output output = Call("run s.toml --out file");
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_NE(output.err.find("file"), std::string::npos);
  EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
}

// Run

TEST_F(SweepTest, RunsAllCellsCollectsThemAndRunsThemOnlyOnce) {
  Write("s.toml", std::string(kHead) + kVariants +
                      "[cases]\nr = { task.name = \"recall\" }\nt = { task.name = "
                      "\"state_tracking\" }\n[axes]\nseed = [0, 1]\n");
  const Output first = Call("run s.toml --jobs 3");
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, "runs/s/sweep.h5\n");
  EXPECT_EQ(std::count(first.err.begin(), first.err.end(), '\n'), 8) << first.err;
  EXPECT_NE(first.err.find("[8/8] "), std::string::npos) << first.err;
  EXPECT_EQ(Status()["counts"]["done"], 8);
  EXPECT_EQ(Read("runs/s/sweep.toml"), Read("s.toml"));

  const std::string path = root_ + "/runs/s/sweep.h5";
  EXPECT_EQ(ListTables(path), (std::vector<std::string>{"/cells", "/eval", "/train"}));
  const H5Table cells = ReadTable(path, "/cells"), eval = ReadTable(path, "/eval"),
                train = ReadTable(path, "/train");
  EXPECT_EQ(cells.rows(), 8);
  EXPECT_EQ(eval.rows(), 16);
  EXPECT_EQ(train.rows(), 32);
  const auto texts = [](const H5Table& table, const char* column) {
    return std::get<std::vector<std::string>>(table.Column(column).values);
  };
  EXPECT_EQ(texts(cells, "variant")[7], "attention");
  EXPECT_EQ(texts(cells, "case")[7], "t");
  EXPECT_EQ(texts(cells, "state")[7], "done");
  EXPECT_EQ(cells.Numbers("seed")[7], 1);
  EXPECT_EQ(cells.Numbers("parameters")[7], 1600);
  EXPECT_EQ(cells.Numbers("seconds")[7], 2);
  EXPECT_EQ(texts(eval, "name")[15], "state_tracking");
  EXPECT_EQ(eval.Numbers("cell")[15], 7);
  EXPECT_EQ(eval.Numbers("accuracy")[15], 1.0 / 9);
  EXPECT_EQ(eval.Numbers("exact_match")[15], 0.25);
  EXPECT_EQ(eval.Column("nll").unit, "nat/label");
  EXPECT_EQ(train.Numbers("loss")[31], 0.25);
  for (const auto& [name, value] : ReadAttributes(path, "/")) {
    if (name == "question") {
      EXPECT_EQ(std::get<std::string>(value), "Who wins?");
    } else if (name == "axes") {
      EXPECT_EQ(std::get<std::vector<std::string>>(value), (std::vector<std::string>{"seed"}));
    }
  }

  const std::string run = root_ + "/runs/s/" + texts(cells, "run_id")[0];
  const std::string log = ReadFile(run + "/log.txt");
  EXPECT_EQ(Call("run s.toml").exit_code, 0);
  EXPECT_EQ(ReadFile(run + "/log.txt"), log);
}

TEST_F(SweepTest, GpusShareTheCells) {
  Write("s.toml", std::string(kHead) +
                      "[variants]\nx = { fault.gpu = true, fault.step_ms = 50 }\n[axes]\nseed = "
                      "[0, 1, 2, 3, 4, 5, 6, 7]\n");
  // The GPUs that ran cells, and the most that one had at a time.
  const auto used = [&](const std::string& options) {
    fs::remove_all(root_ + "/runs");
    fs::remove(root_ + "/gpus.txt");
    const Output output = Finish(Start("run s.toml " + options, "CUDA_VISIBLE_DEVICES=4,7"));
    EXPECT_EQ(output.exit_code, 0) << output.err;
    std::istringstream lines(Read("gpus.txt"));
    std::map<std::string, int> most, cells;
    std::string gpu;
    for (int at_once; lines >> gpu >> at_once; ++cells[gpu])
      most[gpu] = std::max(most[gpu], at_once);
    int all = 0;
    for (const auto& [name, count] : cells) all += count;
    EXPECT_EQ(all, 8);
    return most;
  };
  using Most = std::map<std::string, int>;
  EXPECT_EQ(used(""), (Most{{"4", 2}, {"7", 2}}));  // each keeps 0.4 of a GPU busy
  EXPECT_EQ(used("--per-device=3"), (Most{{"4", 3}, {"7", 3}}));
  EXPECT_EQ(used("--per-device=1 --devices=1"), (Most{{"7", 1}}));
  const Output none = Call("run s.toml --devices=2");
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_NE(none.err.find("--devices: GPU 2 is not there, found 2"), std::string::npos) << none.err;
}

TEST_F(SweepTest, ASweepThatGrewRunsTheNewCellsOnly) {
  Write("s.toml", std::string(kHead) + kVariants + "[axes]\nseed = [0]\n");
  ASSERT_EQ(Call("run s.toml").exit_code, 0);
  Write("s.toml", std::string(kHead) + kVariants + "[axes]\nseed = [0, 1]\n");
  EXPECT_NE(Call("status s.toml").err.find("has changed"), std::string::npos);
  const Output output = Call("run s.toml");
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_NE(output.err.find("2 of 4 cells have ended before"), std::string::npos) << output.err;
  EXPECT_EQ(Status()["counts"]["done"], 4);
}

TEST_F(SweepTest, AFailedCellStopsNoOtherAndIsTriedAgain) {
  Write("s.toml", std::string(kHead) +
                      "[variants]\ngood = { seed = 1 }\nbad = { fault.exit_code = 1 }\nworse = { "
                      "fault.kill_at = 1 }\nfine = { seed = 2 }\n");
  const Output output = Call("run s.toml --jobs 1");
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_NE(
      output.err.find("bad: failed with exit code 1: weft train: the fault that was asked for"),
      std::string::npos)
      << output.err;
  EXPECT_NE(output.err.find("worse: failed with exit code 137: killed by signal 9"),
            std::string::npos)
      << output.err;
  EXPECT_NE(output.err.find("these cells failed:"), std::string::npos) << output.err;
  const Json status = Status();
  EXPECT_EQ(status["counts"]["done"], 2);
  EXPECT_EQ(status["counts"]["failed"], 2);
  EXPECT_EQ(status["cells"][1]["exit_code"], 1);
  EXPECT_EQ(status["cells"][2]["exit_code"], 137);
  const std::string path = root_ + "/runs/s/sweep.h5";
  EXPECT_EQ(std::get<std::vector<std::string>>(ReadTable(path, "/cells").Column("state").values)[1],
            "failed");
  // Named, excluded, counted.
  EXPECT_NE(output.err.find("2 of 4 cells are left out:\n  bad: failed, the fault that was asked"),
            std::string::npos)
      << output.err;
  EXPECT_EQ(ReadTable(path, "/eval").rows(), 4);
  EXPECT_EQ(ReadTable(path, "/train").rows(), 8);
  std::map<std::string, Setting::Value> attributes;
  for (const auto& [name, value] : ReadAttributes(path, "/")) attributes[name] = value;
  EXPECT_EQ(std::get<int64_t>(attributes["cells_done"]), 2);
  EXPECT_EQ(std::get<int64_t>(attributes["cells_left_out"]), 2);
  EXPECT_EQ(Call("collect s.toml --unfinished").exit_code, 0);
  EXPECT_EQ(ReadTable(path, "/train").rows(), 8 + 2 + 1);

  // Both faults strike at a step that lies behind the resumed runs.
  EXPECT_EQ(Call("resume s.toml").exit_code, 0);
  EXPECT_EQ(Status()["counts"]["done"], 4);
}

TEST_F(SweepTest, ASlimFileHasMeansOfTheCurvesAndEverythingElse) {
  Write("s.toml", std::string(kHead) + kVariants + "[axes]\ntrain.steps = [40, 300]\n");
  ASSERT_EQ(Call("run s.toml").exit_code, 0);
  const std::string path = root_ + "/runs/s/sweep.h5";
  const H5Table whole = ReadTable(path, "/train"), cells = ReadTable(path, "/cells"),
                eval = ReadTable(path, "/eval");
  ASSERT_EQ(whole.rows(), 2 * (40 + 300));
  ASSERT_EQ(Call("collect s.toml --slim").exit_code, 0);
  const H5Table slim = ReadTable(path, "/train");
  std::map<double, std::vector<size_t>> rows;
  const auto cell = slim.Numbers("cell"), step = slim.Numbers("step"),
             tokens = slim.Numbers("tokens"), loss = slim.Numbers("loss");
  const auto all_cells = whole.Numbers("cell"), all_steps = whole.Numbers("step"),
             all_tokens = whole.Numbers("tokens"), all_losses = whole.Numbers("loss");
  for (size_t r = 0; r < cell.size(); ++r) rows[cell[r]].push_back(r);
  ASSERT_EQ(rows.size(), 4u);
  for (const auto& [c, of_cell] : rows) {
    const double steps = cells.Numbers("train.steps")[static_cast<size_t>(c)];
    if (steps == 40) {  // short enough to stay as it is
      EXPECT_EQ(of_cell.size(), 40u);
    }
    ASSERT_LE(of_cell.size(), 64u);
    EXPECT_GT(of_cell.size(), 32u);
    EXPECT_EQ(step[of_cell.back()], steps);
    // Each row holds the means of the steps after the row before it.
    double from = 1;
    for (const size_t r : of_cell) {
      double sum_tokens = 0, sum_loss = 0, count = 0;
      for (size_t w = 0; w < all_steps.size(); ++w) {
        if (all_cells[w] != c || all_steps[w] < from || all_steps[w] > step[r]) continue;
        sum_tokens += all_tokens[w], sum_loss += all_losses[w], ++count;
      }
      ASSERT_EQ(count, step[r] - from + 1);
      EXPECT_NEAR(tokens[r], sum_tokens / count, 0.5);
      EXPECT_NEAR(loss[r], sum_loss / count, 1e-12);
      from = step[r] + 1;
    }
  }
  EXPECT_EQ(ReadTable(path, "/eval").Numbers("accuracy"), eval.Numbers("accuracy"));
  EXPECT_EQ(ReadTable(path, "/cells").Numbers("memory_bytes"), cells.Numbers("memory_bytes"));
}

TEST_F(SweepTest, ADivergedCellIsAFailureThatIsNotRepeated) {
  Write("s.toml",
        std::string(kHead) + "[variants]\nbad = { fault.exit_code = 4 }\ngood = { seed = 1 }\n");
  EXPECT_EQ(Call("run s.toml").exit_code, 1);
  EXPECT_EQ(Status()["cells"][0]["state"], "diverged");
  const Output again = Call("run s.toml");
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_NE(again.err.find("bad: diverged before"), std::string::npos) << again.err;
  EXPECT_EQ(Status()["cells"][0]["step"], 2);
}

TEST_F(SweepTest, ACellThatFailsBeforeItHasADirectoryIsReported) {
  Write("s.toml", std::string(kHead) + kVariants);
  ASSERT_EQ(Call("plan s.toml").exit_code, 0);
  const std::string id = Json::parse(Call("plan s.toml --json").out)["cells"][0]["run_id"];
  Write("runs/s/" + id, "a file where the directory should be");
  const Output output = Call("run s.toml");
  EXPECT_EQ(output.exit_code, 1);
  const Json status = Status();
  EXPECT_EQ(status["cells"][0]["state"], "failed");
  EXPECT_NE(status["cells"][0]["message"].get<std::string>().find(id), std::string::npos);
  EXPECT_EQ(status["cells"][1]["state"], "done");
}

TEST_F(SweepTest, ACellThatAsksToBeRunAgainIs) {
  Write("s.toml",
        std::string(kHead) + "[variants]\na = { fault.requeue_at = 2 }\nb = { seed = 1 }\n");
  const Output output = Call("run s.toml");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_NE(output.err.find("a: asked to be run again at step 2 of 4"), std::string::npos)
      << output.err;
}

TEST_F(SweepTest, ABrokenJournalIsNamedAndTheOthersAreCollected) {
  Write("s.toml", std::string(kHead) + kVariants);
  ASSERT_EQ(Call("run s.toml").exit_code, 0);
  const std::string id = Status()["cells"][0]["run_id"];
  const std::string journal = Read("runs/s/" + id + "/journal.jsonl");
  Write("runs/s/" + id + "/journal.jsonl", "nonsense\n" + journal);
  const Output output = Call("collect s.toml");
  EXPECT_EQ(output.exit_code, 3);
  EXPECT_NE(output.err.find(id + "/journal.jsonl"), std::string::npos) << output.err;
  EXPECT_EQ(ReadTable(root_ + "/runs/s/sweep.h5", "/eval").rows(), 2);
}

TEST_F(SweepTest, ABrokenStatusIsThatCellsFailure) {
  Write("s.toml", std::string(kHead) + kVariants);
  ASSERT_EQ(Call("run s.toml").exit_code, 0);
  const std::string id = Status()["cells"][0]["run_id"];
  Write("runs/s/" + id + "/status.json", "{\"state\"");
  EXPECT_EQ(Status()["cells"][0]["state"], "failed");
  EXPECT_NE(Status()["cells"][0]["message"].get<std::string>().find(id + "/status.json"),
            std::string::npos);
  EXPECT_EQ(Status()["cells"][1]["state"], "done");
}

TEST_F(SweepTest, ACellThatAsksTooOftenFails) {
  Write("s.toml", std::string(kHead) + "[variants]\na = { fault.always_requeue = true }\n");
  const Output output = Call("run s.toml");
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_NE(output.err.find("a: failed with exit code 75"), std::string::npos) << output.err;
}

// Clusters: here sbatch, squeue and scontrol are scripts; tests/faults/slurm_test.cc has the real
// ones.

class SweepClusterTest : public SweepTest {
 protected:
  SweepClusterTest() {
    Write("s.toml", std::string(kHead) + kVariants + "[axes]\nseed = [0, 1, 2]\n");
    // sbatch runs every task at once; squeue tells what the test wants it to.
    Script("sbatch", R"([ "$1" != --version ] || exit 0
[ ! -e refuse ] || { echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1; }
tasks=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' $2)
[ -e wait ] || for task in $(seq 0 $tasks); do SLURM_ARRAY_TASK_ID=$task bash $2; done 2>&1
echo '7;cluster'
)");
    Script("squeue",
           "[ ! -e refuse ] || { echo 'squeue: error: no answer' >&2; exit 1; }\n"
           "cat queue 2>/dev/null; true\n");
    Script("scontrol", "echo \"$@\" >>scontrol.txt\n");
  }
  void Script(const std::string& name, const std::string& text) const {
    Write("bin/" + name, "#!/bin/bash\n" + text);
    fs::permissions(root_ + "/bin/" + name, fs::perms::owner_all);
  }
  Output Submit(const std::string& arguments = "") const {
    return Finish(Start("submit s.toml --cluster=slurm " + arguments, "PATH=$PWD/bin:$PATH"));
  }
};

TEST_F(SweepClusterTest, TasksHoldSeveralCells) {
  Study study;
  for (const double seconds : {50, 20, 20, 90, 10}) {
    study.cells.emplace_back();
    study.cells.back().plan.seconds = seconds;
  }
  using Tasks = std::vector<std::vector<size_t>>;
  SlurmOptions options;
  options.task_minutes = 1;
  EXPECT_EQ(Pack(study, {0, 1, 2, 3, 4}, options), (Tasks{{0}, {1, 2}, {3}, {4}}));
  options.jobs = 2;
  EXPECT_EQ(Pack(study, {0, 1, 2, 3, 4}, options), (Tasks{{0, 1, 2}, {3, 4}}));
  options.cells_per_task = 2;
  EXPECT_EQ(Pack(study, {0, 1, 3, 4}, options), (Tasks{{0, 1}, {3, 4}}));
  EXPECT_EQ(Pack(study, {}, options), Tasks{});
  options.cells_per_task = 1;
  std::vector<size_t> many(2500, 0);
  EXPECT_LE(Pack(study, many, options).size(), kMostTasks);
}

TEST_F(SweepClusterTest, SubmitsWhatIsNotDoneAndNothingTwice) {
  const Output dry = Submit("--dry-run --cells-per-task=4 --limit=3 --sbatch=--time=5");
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  for (const char* part : {"# task 1: attention/seed=2", "#SBATCH --array=0-1%3\n",
                           "#SBATCH --time=5\n", "#SBATCH --requeue\n", "#SBATCH --signal=B:USR1@"})
    EXPECT_NE(dry.out.find(part), std::string::npos) << part << " in:\n" << dry.out;
  EXPECT_FALSE(fs::exists(root_ + "/runs"));

  Write("wait", "");  // in the queue
  const Output first = Submit("--cells-per-task=4");
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, "7\n");
  EXPECT_NE(first.err.find("6 of 6 cells in 2 tasks"), std::string::npos) << first.err;
  const std::string script = Read("runs/s/slurm/0/job.sh");
  const size_t at = script.find("--job-name=") + 11;
  const std::string name = script.substr(at, script.find('\n', at) - at);
  Write("queue", name + " 0 PENDING\n" + name + " 1 RUNNING\nother 0 RUNNING\n");
  EXPECT_NE(Submit().err.find("every cell is done, running or in the queue"), std::string::npos);

  // Task 0 is over without a result.
  Write("queue", name + " 0 COMPLETING\n" + name + " 1 RUNNING\n");
  fs::remove(root_ + "/wait");
  const Output second = Submit();
  EXPECT_NE(second.err.find("4 of 6 cells in 1 tasks"), std::string::npos) << second.err;
  EXPECT_EQ(Status()["counts"], (Json{{"done", 4}, {"queued", 2}}));
  Write("queue", "");
  EXPECT_NE(Submit().err.find("2 of 6 cells"), std::string::npos);
  EXPECT_EQ(Status()["counts"], (Json{{"done", 6}}));
  EXPECT_EQ(Call("collect s.toml").exit_code, 0);
}

TEST_F(SweepClusterTest, ATaskThatRunsOutOfTimeIsRequeued) {
  Write("base.toml", "[fault]\nstep_ms = 100\n[train]\nsteps = 50\n");
  Write("wait", "");
  ASSERT_EQ(Submit("--cells-per-task=3").exit_code, 0);
  const std::string task = "task runs/s/slurm/0 --task 1 --jobs 1";
  const pid_t pid = Start(
      task, "SLURM_ARRAY_JOB_ID=12 SLURM_ARRAY_TASK_ID=1 SLURM_JOB_ID=12 PATH=$PWD/bin:$PATH");
  ASSERT_TRUE(Within(20s, [&] { return Status()["counts"].contains("running"); }));
  kill(pid, SIGUSR1);
  EXPECT_EQ(Finish(pid).exit_code, 75);
  EXPECT_EQ(Read("scontrol.txt"), "requeue 12_1\n");
  EXPECT_EQ(Status()["counts"], (Json{{"queued", 5}, {"stopped", 1}}));
  EXPECT_EQ(Status()["cells"][3]["state"], "stopped");
}

TEST_F(SweepClusterTest, RefusesByName) {
  const auto expect = [&](const Output& output, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(output.exit_code, code) << output.err;
    EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
    for (const std::string& part : parts)
      EXPECT_NE(output.err.find(part), std::string::npos) << part << " in: " << output.err;
  };
  expect(Call("submit s.toml"), 2, {"name the cluster with --cluster=slurm"});
  expect(Call("submit s.toml --cluster=pbs"), 2, {"--cluster: pbs not in {slurm}"});
  expect(Finish(Start("submit s.toml --cluster=slurm", "PATH=/nowhere")), 1,
         {"there is no sbatch in PATH", "weft sweep run"});
  EXPECT_FALSE(fs::exists(root_ + "/runs"));
  Write("refuse", "");
  expect(Submit(), 1,
         {"sbatch refuses the job: sbatch: error: Unable to contact slurm controller"});
  expect(Submit(), 1, {"squeue says nothing", "runs/s", "no answer"});
  fs::remove(root_ + "/refuse");
  ASSERT_EQ(Submit("--cells-per-task=6").exit_code, 0);
  expect(Call("task runs/s/slurm/1 --task 1"), 2, {"runs/s/slurm/1: has tasks 0 to 0, not 1"});
  expect(Call("task runs/s --task 0"), 3, {"runs/s/tasks.json: is missing"});
  Write("runs/s/slurm/1/tasks.json", "[[\"no such run\"]]");
  expect(Call("task runs/s/slurm/1 --task 0"), 3, {"1 of the 1 cells of task 0 are no longer in"});
  Write("runs/s/slurm/1/tasks.json", "[[");
  expect(Call("task runs/s/slurm/1 --task 0"), 3, {"tasks.json: is broken"});
}

// Signals

class SweepSignalTest : public SweepTest {
 protected:
  SweepSignalTest() { WriteStudy(8); }
  void WriteStudy(int steps) const {
    Write("s.toml", std::string(kHead) + kVariants +
                        "[axes]\nseed = [0, 1]\nfault.step_ms = [100]\ntrain.steps = [" +
                        std::to_string(steps) + "]\n");
  }
  // Starts a sweep and waits until two cells have made a step.
  pid_t StartTwo() {
    const pid_t pid = Start("run s.toml --jobs 2");
    EXPECT_TRUE(Within(20s, [&] { return RunsWithSteps() == 2; }));
    return pid;
  }
  int RunsWithSteps() const {
    int count = 0;
    std::error_code none;
    for (const auto& run : fs::directory_iterator(root_ + "/runs/s", none)) {
      if (!fs::exists(run.path() / "resolved.toml")) continue;
      count += ReadStatus(run.path().string()).step > 0;
    }
    return count;
  }
  bool NothingIsWritten() const {
    std::error_code none;
    for (const auto& run : fs::directory_iterator(root_ + "/runs/s", none)) {
      if (run.is_directory() && IsBeingWritten(run.path().string())) return false;
    }
    return true;
  }
  void ExpectEveryStepOnce() const {
    const H5Table train = ReadTable(root_ + "/runs/s/sweep.h5", "/train");
    ASSERT_EQ(train.rows(), 4 * 8);
    for (int64_t r = 0; r < train.rows(); ++r)
      EXPECT_EQ(train.Numbers("step")[static_cast<size_t>(r)], r % 8 + 1);
  }
};

TEST_F(SweepSignalTest, KillNineLosesNothing) {
  const pid_t pid = StartTwo();
  kill(pid, SIGKILL);
  EXPECT_EQ(Finish(pid).exit_code, 137);
  // At once, while the orphans write their checkpoints.
  const Output second = Call("run s.toml --jobs 2");
  EXPECT_EQ(second.exit_code, 0) << second.err;
  ExpectEveryStepOnce();
  EXPECT_EQ(CountRuns("resolved.toml"), 4);
}

TEST_F(SweepSignalTest, KillNineEndsTheChildren) {
  const pid_t pid = StartTwo();
  kill(pid, SIGKILL);
  Finish(pid);
  EXPECT_TRUE(Within(10s, [&] { return NothingIsWritten(); }));
  const Json status = Status();
  EXPECT_EQ(status["counts"]["stopped"], 2) << status;
  EXPECT_EQ(status["counts"]["queued"], 2);
}

TEST_F(SweepSignalTest, TerminationWaitsForTheChildrenAndExitsWith75) {
  const pid_t pid = StartTwo();
  kill(pid, SIGTERM);
  const Output output = Finish(pid);
  EXPECT_EQ(output.exit_code, 75) << output.err;
  EXPECT_TRUE(NothingIsWritten());
  EXPECT_NE(output.err.find("continue with: weft sweep run s.toml"), std::string::npos)
      << output.err;
  EXPECT_EQ(Status()["counts"]["stopped"], 2);
  EXPECT_EQ(Call("run s.toml").exit_code, 0);
  ExpectEveryStepOnce();
}

TEST_F(SweepSignalTest, InterruptionExitsWith130) {
  const pid_t pid = StartTwo();
  kill(pid, SIGINT);
  EXPECT_EQ(Finish(pid).exit_code, 130);
  EXPECT_TRUE(NothingIsWritten());
}

TEST_F(SweepSignalTest, ACellThatAnotherProcessTrainsIsWaitedFor) {
  Process other(root_, {root_ + "/bin/weft-train", "base.toml", "--set", "study=s", "--set",
                        "model.pattern=[\"gated_delta\"]", "--set", "seed=0", "--set",
                        "fault.step_ms=100", "--set", "train.steps=8"});
  ASSERT_TRUE(Within(20s, [&] { return RunsWithSteps() == 1; }));
  ASSERT_TRUE(other.Send(SIGSTOP));
  const pid_t sweep = Start("run s.toml --jobs 8");
  EXPECT_TRUE(
      Within(60s, [&] { return Slurp(root_ + "/err.txt").find("[3/4]") != std::string::npos; }));
  other.Send(SIGCONT);
  const Output output = Finish(sweep);
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_NE(output.err.find("rnn/seed=0: done\n"), std::string::npos) << output.err;
  ExpectEveryStepOnce();
}

TEST_F(SweepSignalTest, TwoSweepsOfOneStudyAreRefused) {
  WriteStudy(1000);  // so that no cell ends before it is stopped
  const pid_t pid = StartTwo();
  const Output second = Call("run s.toml --out runs");
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_NE(second.err.find("another weft sweep is running this study"), std::string::npos)
      << second.err;
  EXPECT_EQ(Status()["counts"]["running"], 2);
  kill(pid, SIGTERM);
  Finish(pid);
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  if (std::filesystem::path(argv[0]).filename() == "weft-train")
    return weft::FakeTrainer(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
