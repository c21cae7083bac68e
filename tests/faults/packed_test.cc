// links: weft_run
// Cells of a sweep that share one process of the trainer: they end as in processes of their own,
// whatever becomes of the process or of one of them.

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <set>
#include <thread>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "tests/runs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

const std::string kBase = std::string(R"(device = "cpu"
[task]
name = "state_tracking"
difficulties = [4, 6]
stage_steps = [60, 0]
)") + kSmallModel + R"([optim]
schedule = "cosine"
warmup = 20
[train]
steps = 400
batch = 4
length = 64
checkpoint_every = 50
log_every = 50
[eval]
every = 100
samples = 16
)";

class Packed : public testing::Test {
 protected:
  Packed() {
    Spill(scratch_ / "base.toml", kBase);
    Sweep("");
  }
  void Sweep(const std::string& more_variants) {
    Spill(scratch_ / "s.toml",
          "base = \"base.toml\"\n[variants]\n"
          "hybrid = { model.pattern = [\"gated_delta\", \"attention\"] }\n"
          "transformer = { model.pattern = [\"attention\"] }\n" +
              more_variants + "[axes]\nseed = [0, 1, 2]\n");
  }
  std::vector<std::string> Command(const std::string& out, const std::string& how) const {
    return {Program("sweep"), "run", "s.toml", "--out", out, how};
  }
  int Run(const std::string& out, const std::string& how, std::string* err = nullptr) const {
    Process process(scratch_.path(), Command(out, how));
    const int code = process.Wait();
    if (err) *err = process.err();
    return code;
  }

  // The run directories of a study.
  std::set<std::string> RunsIn(const std::string& out) const {
    std::set<std::string> names;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(scratch_ / (out + "/s"), none)) {
      if (fs::exists(entry.path() / "resolved.toml")) names.insert(entry.path().filename());
    }
    return names;
  }
  bool AllAreUnderWay(const std::string& out, size_t cells) const {
    size_t found = 0;
    for (const std::string& run : RunsIn(out)) {
      const std::string checkpoints = scratch_ / (out + "/s/" + run + "/checkpoints");
      found += fs::exists(checkpoints) && !fs::is_empty(checkpoints);
    }
    return found >= cells;
  }
  static bool Within(std::chrono::seconds limit, const std::function<bool()>& ready) {
    for (const auto end = std::chrono::steady_clock::now() + limit;
         std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(2ms)) {
      if (ready()) return true;
    }
    return false;
  }
  // The process whose command line has --worker and runs in this test's directory; 0 = none.
  pid_t Worker() const {
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != name.npos) continue;
      std::error_code gone;
      if (Slurp(entry.path() / "cmdline").find("--worker=") != std::string::npos &&
          fs::read_symlink(entry.path() / "cwd", gone) == fs::canonical(scratch_.path()))
        return std::stoi(name);
    }
    return 0;
  }

  void ExpectSameEnds(const std::string& a, const std::string& b) const {
    const auto runs = RunsIn(a);
    EXPECT_EQ(runs, RunsIn(b));
    EXPECT_EQ(runs.size(), 6u);
    for (const std::string& run : runs) {
      SCOPED_TRACE(run);
      EXPECT_EQ(ReadStatus(scratch_ / (a + "/s/" + run)).state, RunState::kDone);
      ExpectSameRuns(scratch_ / (a + "/s/" + run), scratch_ / (b + "/s/" + run));
    }
  }

  Scratch scratch_;
};

TEST_F(Packed, CellsEndAsInProcessesOfTheirOwn) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  ASSERT_EQ(Run("shared", "--per-device=4"), 0);
  ExpectSameEnds("shared", "own");
}

TEST_F(Packed, ACellThatFailsEndsNoOther) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  Sweep("wild = { optim.lr = 10, optim.clip = 0, optim.warmup = 0, optim.weight_decay = 10 }\n"
        "large = { train.batch = 1000000, train.length = 65536, task.difficulties = [4] }\n");
  std::string err;
  EXPECT_EQ(Run("shared", "--per-device=4", &err), 1);
  EXPECT_NE(err.find("wild/seed=0: failed with exit code 4: weft train: diverged at step"),
            std::string::npos)
      << err;
  EXPECT_NE(err.find("large/seed=1: failed with exit code 5: weft train: out of memory"),
            std::string::npos)
      << err;
  size_t done = 0;
  for (const std::string& run : RunsIn("shared")) {
    if (ReadStatus(scratch_ / ("shared/s/" + run)).state != RunState::kDone) continue;
    ++done;
    ExpectSameRuns(scratch_ / ("shared/s/" + run), scratch_ / ("own/s/" + run));
  }
  EXPECT_EQ(done, 6u);
}

TEST_F(Packed, WhatAKilledProcessHeldIsRunAgain) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  Process sweep(scratch_.path(), Command("shared", "--per-device=3"));
  ASSERT_TRUE(Within(120s, [&] { return AllAreUnderWay("shared", 3); }));
  const pid_t worker = Worker();
  ASSERT_GT(worker, 0) << sweep.err();
  kill(worker, SIGKILL);
  EXPECT_EQ(sweep.Wait(), 0) << sweep.err();
  EXPECT_NE(sweep.err().find("the process that it shared was killed by signal 9; it is run again"),
            std::string::npos)
      << sweep.err();
  ExpectSameEnds("shared", "own");
}

TEST_F(Packed, SignalsCheckpointEveryCell) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  for (const auto& [signal, code] : {std::pair{SIGTERM, 75}, {SIGINT, 130}}) {
    Process sweep(scratch_.path(), Command("shared", "--per-device=6"));
    ASSERT_TRUE(Within(120s, [&] { return AllAreUnderWay("shared", 1) && Worker() != 0; }));
    ASSERT_TRUE(sweep.Send(signal));
    EXPECT_EQ(sweep.Wait(), code) << sweep.err();
    EXPECT_EQ(Worker(), 0);
    for (const std::string& run : RunsIn("shared")) {
      const RunState state = ReadStatus(scratch_ / ("shared/s/" + run)).state;
      EXPECT_TRUE(state == RunState::kPreempted || state == RunState::kDone) << NameOf(state);
    }
  }
  // To the shared process alone: its cells ask to be run again, and are.
  Process sweep(scratch_.path(), Command("shared", "--per-device=6"));
  ASSERT_TRUE(Within(120s, [&] { return Worker() != 0 || sweep.Ended(); }));
  if (const pid_t worker = Worker()) kill(worker, SIGUSR1);
  EXPECT_EQ(sweep.Wait(), 0) << sweep.err();
  ExpectSameEnds("shared", "own");
}

TEST_F(Packed, TheSharedProcessEndsWithTheSweep) {
  Process sweep(scratch_.path(), Command("shared", "--per-device=6"));
  ASSERT_TRUE(Within(120s, [&] { return AllAreUnderWay("shared", 1) && Worker() != 0; }));
  ASSERT_TRUE(sweep.Send(SIGKILL));
  sweep.Wait();
  EXPECT_TRUE(Within(120s, [&] { return Worker() == 0; }));
  for (const std::string& run : RunsIn("shared")) {
    const RunState state = ReadStatus(scratch_ / ("shared/s/" + run)).state;
    EXPECT_TRUE(state == RunState::kPreempted || state == RunState::kDone) << NameOf(state);
  }
}

}  // namespace
}  // namespace weft
