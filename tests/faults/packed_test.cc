// links: weft_run
// Cells of a sweep that share one process of the trainer: they end as in processes of their own,
// whatever becomes of the process or of one of them.

#include <gtest/gtest.h>

#include <set>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "tests/errors.h"
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
checkpoint_every = 30
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
              more_variants + "[axes]\nseed = [0, 1]\n");
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
  // Whether the shared process trains one of them.
  bool IsUnderWay() const {
    const pid_t worker = Worker();
    for (const std::string& run : RunsIn("shared")) {
      const Status status = ReadStatus(scratch_ / ("shared/s/" + run));
      if (worker != 0 && status.pid == worker && status.state == RunState::kRunning) return true;
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

  void SignalWorker(int signal) const {
    const pid_t worker = Worker();
    ASSERT_GT(worker, 0);
    kill(worker, signal);
  }

  // Every run has a checkpoint of its last step.
  void ExpectNoneIsRunning() const {
    EXPECT_EQ(Worker(), 0);
    for (const std::string& run : RunsIn("shared")) {
      const std::string path = scratch_ / ("shared/s/" + run);
      const Status status = ReadStatus(path);
      EXPECT_TRUE(status.state == RunState::kPreempted || status.state == RunState::kDone)
          << NameOf(status.state);
      const auto newest = FindLatest(path);
      ASSERT_TRUE(newest);
      EXPECT_EQ(newest->step, status.step);
    }
  }

  void ExpectSameEnds(const std::string& a, const std::string& b) const {
    const auto runs = RunsIn(a);
    EXPECT_EQ(runs, RunsIn(b));
    EXPECT_EQ(runs.size(), 4u);
    for (const std::string& run : runs) {
      SCOPED_TRACE(run);
      EXPECT_EQ(ReadStatus(scratch_ / (a + "/s/" + run)).state, RunState::kDone);
      ExpectSameRuns(scratch_ / (a + "/s/" + run), scratch_ / (b + "/s/" + run));
    }
  }

  Scratch scratch_;
};

TEST_F(Packed, CellsEndAsInProcessesOfTheirOwnBesideOthersThatFail) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  Sweep(
      "wild = { optim.lr = 10, optim.clip = 0, optim.warmup = 0, optim.weight_decay = 10 }\n"
      "large = { train.batch = 30000, train.length = 65536 }\n");
  std::string err;
  EXPECT_EQ(Run("shared", "--per-device=4", &err), 1);
  EXPECT_HAS(err, "wild/seed=0: failed with exit code 4: weft train: diverged at step");
  EXPECT_HAS(err, "large/seed=1: failed with exit code 5: weft train: out of memory");
  for (const std::string& run : RunsIn("shared")) {
    const std::string path = scratch_ / ("shared/s/" + run);
    if (ReadStatus(path).state == RunState::kDiverged) fs::remove_all(path);
  }
  ExpectSameEnds("shared", "own");
}

TEST_F(Packed, NoSignalChangesTheBits) {
  ASSERT_EQ(Run("own", "--jobs=2"), 0);
  const auto start = [&] {
    Process sweep(scratch_.path(), Command("shared", "--per-device=3"));
    EXPECT_TRUE(Within(120s, [&] { return IsUnderWay(); })) << sweep.err();
    return sweep;
  };
  for (const auto& [signal, code] : {std::pair{SIGTERM, 75}, {SIGINT, 130}}) {
    Process sweep = start();
    ASSERT_TRUE(sweep.Send(signal));
    EXPECT_EQ(sweep.Wait(), code) << sweep.err();
    ExpectNoneIsRunning();
  }
  {  // to the shared process alone: its cells ask to be run again, and are
    Process sweep = start();
    SignalWorker(SIGUSR1);
    ASSERT_TRUE(Within(120s, [&] {
      return sweep.err().find("asked to be run again") != std::string::npos;
    })) << sweep.err();
    // Without a word: they are run again on their own.
    ASSERT_TRUE(Within(120s, [&] { return IsUnderWay(); })) << sweep.err();
    SignalWorker(SIGKILL);
    EXPECT_EQ(sweep.Wait(), 0) << sweep.err();
    EXPECT_HAS(sweep.err(), "the process that it shared was killed by signal 9; it is run again");
  }
  ExpectSameEnds("shared", "own");
}

TEST_F(Packed, TheSharedProcessEndsWithTheSweep) {
  Process sweep(scratch_.path(), Command("shared", "--per-device=3"));
  ASSERT_TRUE(Within(120s, [&] { return IsUnderWay(); }));
  ASSERT_TRUE(sweep.Send(SIGKILL));
  sweep.Wait();
  EXPECT_TRUE(Within(120s, [&] { return Worker() == 0; }));
  ExpectNoneIsRunning();
}

}  // namespace
}  // namespace weft
