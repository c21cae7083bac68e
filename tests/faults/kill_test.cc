// links: weft_run
// kill -9 at random moments of real runs: run.h5 always opens, no checkpoint is lost, and what was
// resumed ends with the bits of an uninterrupted run. WEFT_KILLS=100 asks for more kills,
// WEFT_KILL_SEED for other moments.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <thread>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "tests/runs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// A cycle of ten steps, an evaluation, a checkpoint and a snapshot spends about as long in each.
constexpr int64_t kSteps = 400, kCycle = 10;
const std::string kCommon = std::string(kSmallModel) + R"([optim]
schedule = "cosine"
warmup = 20
[train]
steps = 400
batch = 4
length = 64
checkpoint_every = 10
log_every = 50
curriculum_every = 15
curriculum_samples = 16
[eval]
every = 10
samples = 64
rows = 64
)";
const std::string kTask = R"(study = "task"
threads = 1
[task]
name = "state_tracking"
difficulties = [4, 6, 8]
stage_steps = [60, 60, 0]
promote_accuracy = 0.3
)" + kCommon;
const std::string kText = R"(study = "text"
threads = 1
[data]
path = "text"
held_out = 0.2
piece_bytes = 256
)" + kCommon;

int64_t FromEnvironment(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : fallback;
}

// What h5py reads from run.h5: the number of training steps; fails unless they are 1, 2, ... and
// all of the file is readable. 0 when there is no file.
int64_t StepsInH5(const Scratch& scratch, const std::string& run) {
  const std::string file = run + "/run.h5";
  if (!fs::exists(file)) return 0;
  const std::string printed = Python(scratch, R"(import sys, h5py
with h5py.File(sys.argv[1], "r") as f:
    f.visititems(lambda name, item: item[()] if isinstance(item, h5py.Dataset) else None)
    assert len(f["settings"].attrs) > 0 and len(f["environment"].attrs) > 0
    steps = list(f["train"]["step"])
    assert steps == list(range(1, len(steps) + 1)), steps
    print(len(steps))
)",
                                     {file});
  return std::atoll(printed.c_str());
}

int64_t LastStep(const H5Table& table) {
  const std::vector<double> steps = table.Numbers("step");
  return steps.empty() ? 0 : static_cast<int64_t>(steps.back());
}

// What the killed process was doing, as far as its files tell.
std::string WhereKilled(const std::string& run, int64_t steps_before, int64_t steps_in_h5) {
  if (!fs::exists(run + "/resolved.toml")) return "creation";
  const auto newest = FindLatest(run);
  const int64_t saved = newest ? newest->step : 0;
  for (const auto& entry : fs::recursive_directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    const size_t mark = name.find(".tmp-");
    if (mark == name.npos) continue;
    if (name.starts_with("run.h5")) return "snapshot";
    if (name.starts_with("step-"))
      return std::stoll(name.substr(5)) > saved ? "checkpoint" : "pruning";
    return entry.path().parent_path() == run ? "status" : "checkpoint";
  }
  const JournalContents journal = ReadJournal(run + "/journal.jsonl");
  if (journal.broken_bytes > 0) return "journal";
  const int64_t step = journal.tables.empty() ? 0 : LastStep(journal.tables[0]);
  if (step == steps_before) return "start";
  if (step % kCycle != 0) return "step";
  const H5Table& evaluated = journal.tables.at(1);
  const std::vector<double> rows = evaluated.Numbers("step");
  const auto done = std::count(rows.begin(), rows.end(), static_cast<double>(step));
  if (done < (evaluated.name == "/eval/text" ? 1 : 3)) return "evaluation";
  if (saved < step) return "checkpoint";
  return steps_in_h5 < step ? "snapshot" : "step";
}

struct Study {
  std::string name;
  std::string straight;  // the uninterrupted run
  double seconds;        // that it took
};

class Kill : public testing::Test {
 protected:
  Kill() {
    Spill(scratch_ / "task.toml", kTask);
    Spill(scratch_ / "text.toml", kText);
    Spill(scratch_ / "text", Squares(8000));
  }

  Study Straight(const std::string& name) {
    const auto start = std::chrono::steady_clock::now();
    const std::string out = "straight-" + name;
    Process process(scratch_.path(), {Program("train"), name + ".toml", "--out", out});
    EXPECT_EQ(process.Wait(), 0) << process.err();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return {name, RunBelow(scratch_ / out), seconds.count()};
  }

  void ExpectSameEnd(const std::string& run, const Study& study) {
    EXPECT_EQ(ReadStatus(run).state, RunState::kDone);
    EXPECT_EQ(StepsInH5(scratch_, run), kSteps);
    ExpectSameRuns(run, study.straight);
    EXPECT_EQ(ReadStatus(run).step, kSteps);
    for (const auto& entry : fs::recursive_directory_iterator(run)) {
      EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
    }
    ++ends_;
  }

  // One run, killed and resumed until it is done or `kills` are used up; then it is resumed to its
  // end.
  void Chain(const Study& study, int64_t& kills, double longest_delay) {
    const std::string out = Cat("out-", ends_);
    std::uniform_real_distribution<double> delay(0, longest_delay);
    double patience = 1;  // grows while nothing is saved, as a machine may have become slower
    int64_t saved = 0, steps = 0;
    for (;;) {
      std::string run = RunBelow(scratch_ / out);
      const bool made = !run.empty() && fs::exists(run + "/resolved.toml");
      Process process(
          scratch_.path(),
          made ? std::vector<std::string>{Program("train"), "--resume", run, "--threads=1"}
               : std::vector<std::string>{Program("train"), study.name + ".toml", "--out", out});
      bool killed = false;
      if (kills > 0) {
        std::this_thread::sleep_for(std::chrono::duration<double>(patience * delay(random_)));
        killed = process.Send(SIGKILL);
      }
      const int code = process.Wait();
      run = RunBelow(scratch_ / out);
      if (!killed || code == 0) {
        ASSERT_EQ(code, 0) << process.err();
        return ExpectSameEnd(run, study);
      }
      ASSERT_EQ(code, 128 + SIGKILL) << process.err();
      --kills;
      if (run.empty()) {
        ++where_["creation"];
        continue;
      }
      const int64_t in_h5 = StepsInH5(scratch_, run);
      ++where_[WhereKilled(run, steps, in_h5)];
      h5_opened_ += in_h5 > 0;
      const auto newest = FindLatest(run);
      const int64_t now_saved = newest ? newest->step : 0;
      ASSERT_GE(now_saved, saved) << "a checkpoint was lost";
      patience = now_saved > saved ? 1 : patience * 1.25;
      saved = now_saved;
      if (fs::exists(run + "/journal.jsonl")) {
        const auto tables = ReadJournal(run + "/journal.jsonl").tables;
        steps = tables.empty() ? 0 : LastStep(tables[0]);
        ASSERT_GE(steps, saved) << "the journal lost rows that a checkpoint relies on";
      }
    }
  }

  Scratch scratch_;
  std::mt19937_64 random_{static_cast<uint64_t>(FromEnvironment("WEFT_KILL_SEED", 1))};
  std::map<std::string, int> where_;  // what the killed processes were doing
  int ends_ = 0, h5_opened_ = 0;
};

TEST_F(Kill, NothingIsLost) {
  const int64_t wanted = FromEnvironment("WEFT_KILLS", 8);
  const Study studies[] = {Straight("task"), Straight("text")};
  int64_t kills = wanted;
  for (int chain = 0; kills > 0; ++chain) {
    const Study& study = studies[chain % 2];
    int64_t here =
        chain == 0 ? (kills + 1) / 2 : kills;  // both studies take their share when there are few
    const int64_t before = here;
    Chain(study, here, study.seconds / 3);
    if (HasFatalFailure()) return;
    kills -= before - here;
  }
  std::string places;
  for (const auto& [place, count] : where_) places += Cat(" ", place, " ", count);
  std::cout << wanted << " kills:" << places << "; run.h5 opened " << h5_opened_ << " times; "
            << ends_ << " runs ended with the bits of an uninterrupted one\n";
  if (wanted < 50) return;
  for (const char* place : {"step", "evaluation", "checkpoint", "snapshot"})
    EXPECT_GT(where_[place], 0) << place;
}

}  // namespace
}  // namespace weft
