// links: weft_sweeps
// Sweeps that are killed, interrupted, or not alone: no step is lost and none is made twice.

#include "experiments/run/run_dir.h"
#include "sweeps/study.h"
#include "tests/sweeps.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class SweepSignalTest : public SweepTest {
 protected:
  SweepSignalTest() { WriteStudy(8); }
  void WriteStudy(int steps) const {
    Write("s.toml", kHead + kVariants +
                        "[axes]\nseed = [0, 1]\nfault.step_ms = [100]\ntrain.steps = [" +
                        std::to_string(steps) + "]\n");
  }
  // Starts a sweep of two cells at a time and waits until both have made a step.
  Process StartTwo() const {
    Process sweep = Start("run s.toml --jobs 2");
    EXPECT_TRUE(Within(20s, [&] { return RunsWithSteps() == 2; }));
    return sweep;
  }
  template <class Holds>
  int64_t CountRuns(const Holds& holds) const {
    int64_t count = 0;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(scratch_ / "runs/s", none))
      count += fs::exists(entry.path() / "resolved.toml") && holds(entry.path().string());
    return count;
  }
  int64_t RunsWithSteps() const {
    return CountRuns([](const std::string& run) { return ReadStatus(run).step > 0; });
  }
  void ExpectEveryStepOnce() const {
    const H5Table train = Collected("/train");
    ASSERT_EQ(train.rows(), 4 * 8);
    for (int64_t r = 0; r < train.rows(); ++r)
      EXPECT_EQ(train.Numbers("step")[static_cast<size_t>(r)], r % 8 + 1);
  }
};

TEST_F(SweepSignalTest, KillNineLosesNothing) {
  Process sweep = StartTwo();
  sweep.Send(SIGKILL);
  EXPECT_EQ(sweep.Wait(), 137);
  // At once, while the orphans write their checkpoints.
  const Result second = Call("run s.toml --jobs 2");
  EXPECT_EQ(second.code, 0) << second.err;
  ExpectEveryStepOnce();
  EXPECT_EQ(RunsWithSteps(), 4);
}

TEST_F(SweepSignalTest, KillNineEndsTheChildren) {
  Process sweep = StartTwo();
  sweep.Send(SIGKILL);
  sweep.Wait();
  EXPECT_TRUE(Within(10s, [&] { return CountRuns(IsBeingWritten) == 0; }));
  const Json status = Status();
  EXPECT_EQ(status["counts"]["stopped"], 2) << status;
  EXPECT_EQ(status["counts"]["queued"], 2);
}

TEST_F(SweepSignalTest, TerminationWaitsForTheChildrenAndExitsWith75) {
  Process sweep = StartTwo();
  sweep.Send(SIGTERM);
  EXPECT_EQ(sweep.Wait(), 75) << sweep.err();
  EXPECT_EQ(CountRuns(IsBeingWritten), 0);
  EXPECT_HAS(sweep.err(), "continue with: weft sweep run s.toml");
  EXPECT_EQ(Status()["counts"]["stopped"], 2);
  EXPECT_EQ(Call("run s.toml").code, 0);
  ExpectEveryStepOnce();
}

TEST_F(SweepSignalTest, AHangupIsATerminationUnlessIgnored) {
  Process sweep = StartTwo();
  sweep.Send(SIGHUP);
  EXPECT_EQ(sweep.Wait(), 75) << sweep.err();
  EXPECT_EQ(CountRuns(IsBeingWritten), 0);
  const auto before = signal(SIGHUP, SIG_IGN);  // as nohup does; children inherit it
  Process nohup = Start("run s.toml --jobs 2");
  EXPECT_TRUE(Within(20s, [&] { return CountRuns(IsBeingWritten) == 2; }));
  nohup.Send(SIGHUP);
  EXPECT_EQ(nohup.Wait(), 0) << nohup.err();
  signal(SIGHUP, before);
  ExpectEveryStepOnce();
}

TEST_F(SweepSignalTest, InterruptionExitsWith130) {
  Process sweep = StartTwo();
  sweep.Send(SIGINT);
  EXPECT_EQ(sweep.Wait(), 130);
  EXPECT_EQ(CountRuns(IsBeingWritten), 0);
}

TEST_F(SweepSignalTest, ACellThatAnotherProcessTrainsIsWaitedFor) {
  Process other(scratch_.path(), {scratch_ / "bin/weft-train", "base.toml", "--set", "study=s",
                                  "--set", "model.pattern=[\"gated_delta\"]", "--set", "seed=0",
                                  "--set", "fault.step_ms=100", "--set", "train.steps=8"});
  ASSERT_TRUE(Within(20s, [&] { return RunsWithSteps() == 1; }));
  ASSERT_TRUE(other.Send(SIGSTOP));
  Process sweep = Start("run s.toml --jobs 8");
  EXPECT_TRUE(Within(60s, [&] { return sweep.err().find("[3/4]") != std::string::npos; }));
  other.Send(SIGCONT);
  EXPECT_EQ(sweep.Wait(), 0) << sweep.err();
  EXPECT_HAS(sweep.err(), "rnn/seed=0: done\n");
  ExpectEveryStepOnce();
}

TEST_F(SweepSignalTest, TwoSweepsOfOneStudyAreRefused) {
  WriteStudy(1000);  // so that no cell ends before it is stopped
  Process sweep = StartTwo();
  ExpectOneLine(Call("run s.toml --out runs"), 1, {"another weft sweep is running this study"});
  EXPECT_EQ(Status()["counts"]["running"], 2);
  sweep.Send(SIGTERM);
  sweep.Wait();
}

}  // namespace
}  // namespace weft
