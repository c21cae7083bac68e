// links: weft_train
// A run's bits depend on its settings alone: not on interruptions, threads or what else the process
// trains.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <thread>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "experiments/train/run_loop.h"
#include "experiments/train/worker.h"
#include "tests/errors.h"
#include "tests/runs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const std::string kModel = std::string(kSmallModel) + R"([optim]
schedule = "cosine"
warmup = 3
[train]
steps = 12
batch = 4
length = 64
checkpoint_every = 5
log_every = 1000
curriculum_every = 2
curriculum_samples = 16
[eval]
every = 3
samples = 8
rows = 8
)";
const std::string kStages = R"([task]
name = "state_based_recall"
max_difficulty = 8
difficulties = [2, 4, 8]
stage_steps = [3, 5, 0]
promote_accuracy = 0
)" + kModel;
// The first stage is guessed from chance on, the second one is not, so that accuracy and steps both
// promote.
const std::string kAccuracy = R"([task]
name = "recall"
max_difficulty = 8
difficulties = [1, 2, 4, 8]
stage_steps = [4, 4, 4, 0]
promote_accuracy = 0.4
)" + kModel;
const std::string kText = R"([data]
path = "TEXT"
held_out = 0.2
piece_bytes = 256
)" + kModel;

const std::vector<std::string> kPeriods = {"optim.schedule=wsds",    "optim.periods=6,12,24",
                                           "optim.decay_share=0.25", "optim.rewind=true",
                                           "train.steps=28",         "eval.every=0"};

class Resume : public testing::Test {
 protected:
  Resume() { Spill(scratch_ / "text", Squares(2000)); }

  std::unique_ptr<Experiment> Make(std::string toml,
                                   const std::vector<std::string>& overrides = {}) const {
    if (const size_t at = toml.find("TEXT"); at != toml.npos)
      toml.replace(at, 4, scratch_ / "text");
    return Experiment::FromToml(toml, "test", overrides);
  }
  RunDirectory Directory(Experiment& e, const std::string& out) const {
    return RunDirectory::Create(
        {scratch_ / out, e.study, e.Fields(), e.origins(), e.source_text(), {}});
  }

  // Runs to the end, and with `interrupted` is stopped by a signal and started anew after every
  // step, on the devices in turn.
  std::string Train(const std::string& toml, const std::string& out, bool interrupted,
                    const std::vector<std::string>& overrides = {},
                    const std::vector<std::string>& devices = {"cpu"}) const {
    for (size_t attempt = 0;; ++attempt) {
      const auto e = Make(toml, overrides);
      const Device device = ChooseDevice(devices[attempt % devices.size()], e->train.precision);
      const auto stream = OpenStream(device, 1);
      Trainer trainer(*e, device, *stream);
      RunDirectory run = Directory(*e, out);
      const double seconds = run.existed() ? RestoreCheckpoint(run, trainer) : 0;
      const StopSignals signals;
      if (interrupted) raise(SIGTERM);
      testing::internal::CaptureStdout();
      testing::internal::CaptureStderr();
      const ExitCode code = TrainToEnd(*e, run, trainer, seconds);
      testing::internal::GetCapturedStdout();
      testing::internal::GetCapturedStderr();
      if (code == ExitCode::kOk) return run.path();
      EXPECT_EQ(code, ExitCode::kRequeue);
    }
  }

  // Runs of different sizes, each in a directory of its own, as many at a time as there are.
  void ExpectTogetherAsAlone(const std::vector<std::string>& overrides,
                             const std::string& device) const {
    struct One {
      std::string toml;
      std::vector<std::string> overrides;
    };
    std::vector<One> runs;
    for (int i = 0; i < 8; ++i) {
      runs.push_back({i % 2 ? kText : i % 4 ? kAccuracy : kStages, overrides});
      runs.back().overrides.push_back(Cat("seed=", i));
      if (i < 4) runs.back().overrides.push_back("model.pattern=attention");
    }
    std::string input;
    for (size_t i = 0; i < runs.size(); ++i) {
      Train(runs[i].toml, Cat("alone", i), false, runs[i].overrides, {device});
      input += Cat(R"({"arguments": [")", i, R"("], "output": ")", scratch_ / "output", "\"}\n");
    }
    Spill(scratch_ / "input", input);
    Spill(scratch_ / "answers", "");
    const Descriptor in(open((scratch_ / "input").c_str(), O_RDONLY)),
        out(open((scratch_ / "answers").c_str(), O_WRONLY | O_APPEND));
    const auto run = [&](const std::vector<std::string>& arguments, const RunIo& io) {
      const One& one = runs[std::stoul(arguments.at(0))];
      const auto e = Make(one.toml, one.overrides);
      const Device where = ChooseDevice(device, e->train.precision);
      const auto stream = OpenStream(where, 1);
      Trainer trainer(*e, where, *stream);
      RunDirectory directory = Directory(*e, "together" + arguments[0]);
      return static_cast<int>(TrainToEnd(*e, directory, trainer, 0, io));
    };
    EXPECT_EQ(ServeRuns(in.get(), out.get(), static_cast<int>(runs.size()), run), 0);
    EXPECT_EQ(Lines(Slurp(scratch_ / "answers")).size(), runs.size());
    for (size_t i = 0; i < runs.size(); ++i) {
      SCOPED_TRACE(i);
      const std::string together = RunBelow(scratch_ / Cat("together", i));
      ASSERT_FALSE(together.empty()) << Slurp(scratch_ / "output");
      ExpectSameRuns(together, RunBelow(scratch_ / Cat("alone", i)));
    }
  }

  void ExpectInterruptionsDoNotMatter(const std::string& toml,
                                      const std::vector<std::string>& overrides = {},
                                      const std::vector<std::string>& devices = {"cpu"}) const {
    ExpectSameRuns(Train(toml, "interrupted", true, overrides, devices),
                   Train(toml, "straight", false, overrides, devices));
  }
  // A run of kPeriods with rewinding, and runs of the length of each of its periods.
  void ExpectPeriodsAreRuns(const std::string& toml, const std::vector<std::string>& overrides,
                            const std::string& device) const {
    const auto train = [&](const std::string& out, std::vector<std::string> settings) {
      settings.insert(settings.end(), overrides.begin(), overrides.end());
      return Train(toml, out, false, settings, {device});
    };
    const std::string table = toml == kText ? "/eval/text" : "/eval/state_based_recall";
    const std::string whole = train("whole", kPeriods);
    const H5Table all = ReadTable(whole + "/run.h5", table);
    const std::vector<std::pair<int, const char*>> runs = {{6, "optim.decay_share=0.34"},
                                                           {12, "optim.decay_share=0.17"},
                                                           {24, "optim.decay_share=0.125"}};
    size_t row = 0;
    for (const auto& [steps, share] : runs) {
      const std::string alone =
          train(Cat("alone", steps),
                {"optim.schedule=wsd", Cat("train.steps=", steps), share, "eval.every=0"});
      const H5Table own = ReadTable(alone + "/run.h5", table);
      for (size_t r = 0; r < static_cast<size_t>(own.rows()); ++r, ++row) {
        EXPECT_EQ(all.Numbers("decayed")[row], 1);
        for (const char* column : {"tokens", "nll", "accuracy", "difficulty"})
          EXPECT_EQ(all.Numbers(column)[row], own.Numbers(column)[r]) << column << " of " << steps;
      }
      if (steps == 24) {
        for (const char* file : {"/model.safetensors", "/optimizer.safetensors"})
          EXPECT_TRUE(Slurp(FindLatest(whole)->path + file) ==
                      Slurp(FindLatest(alone)->path + file))
              << file << " differs";
      }
    }
    EXPECT_EQ(row, static_cast<size_t>(all.rows()));
    for (const char* out : {"whole", "alone6", "alone12", "alone24"})
      fs::remove_all(scratch_ / out);
  }
  // A column of the steps of a run.
  static std::vector<double> OfSteps(const std::string& run, const char* column) {
    return ReadTable(run + "/run.h5", "/train").Numbers(column);
  }

  Scratch scratch_;
};

std::vector<float> Values(Trainer& trainer) {
  const ParamRegistry& params = trainer.model().params();
  const int64_t n = params.values().size();
  std::vector<float> all(static_cast<size_t>(3 * n));
  float* to = all.data();
  for (const TensorView& x : {params.values(), params.moment(0), params.moment(1)}) {
    Copy(trainer.stream(), {to, DType::kF32, {n}}, x);
    to += n;
  }
  Synchronize(trainer.stream());
  return all;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The products of a step may point the stack pointer at data: a handler must have a stack of its
// own.
TEST_F(Resume, SignalsDoNotTouchAStep) {
  const auto losses = [&](bool disturbed) {
    const auto e = Make(kText, {"train.steps=100"});
    const auto stream = OpenStream(ChooseDevice("cpu", e->train.precision), 1);
    Trainer trainer(*e, ChooseDevice("cpu", e->train.precision), *stream);
    const StopSignals signals;
    std::atomic<bool> done = !disturbed;
    std::thread sender([&done, to = pthread_self()] {
      while (!done) {
        pthread_kill(to, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    });
    std::vector<double> all;
    for (int i = 0; i < 100; ++i) all.push_back(trainer.Step().loss);
    done = true;
    sender.join();
    return all;
  };
  EXPECT_EQ(losses(true), losses(false));
}

TEST_F(Resume, ThreadsThatHelpAStepTakeNoSignals) {
  const auto threads = [] {
    const fs::directory_iterator all("/proc/self/task");
    return std::set<fs::path>(begin(all), end(all));
  };
  const auto before = threads();
  const CpuStream stream(3);
  for (const fs::path& thread : threads()) {
    if (before.contains(thread)) continue;
    EXPECT_TRUE(Within(std::chrono::seconds(10), [&] {
      uint64_t blocked = 0;
      for (const std::string& line : Lines(Slurp(thread / "status")))
        if (line.starts_with("SigBlk:")) blocked = std::stoull(line.substr(7), nullptr, 16);
      const uint64_t stops = 1ull << (SIGINT - 1) | 1ull << (SIGTERM - 1) | 1ull << (SIGUSR1 - 1);
      return (blocked & stops) == stops;
    })) << thread;
  }
}

TEST_F(Resume, CurriculumByStages) {
  ExpectInterruptionsDoNotMatter(kStages);
  EXPECT_EQ(OfSteps(Train(kStages, "again", false), "difficulty"),
            (std::vector<double>{2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 8, 8}));
}

TEST_F(Resume, CurriculumByAccuracy) {
  ExpectInterruptionsDoNotMatter(kAccuracy, {"train.steps=24"});
  const std::vector<double> all =
      OfSteps(Train(kAccuracy, "again", false, {"train.steps=24"}), "difficulty");
  EXPECT_GT(std::count(all.begin(), all.end(), 8.0), 12) << "accuracy promoted no stage early";
  EXPECT_EQ(all[0], 1);
}

TEST_F(Resume, TextAcrossEpochs) {
  // 12 steps of 16 rows go through the training windows more than once.
  ExpectInterruptionsDoNotMatter(kText, {"train.batch=16"});
  const auto e = Make(kText);
  const Text text(e->data);
  EXPECT_LT(TextSource(text, Split::kTrain, 0, 64, true).windows(), 12 * 16);
}

TEST_F(Resume, PeriodsWithRewinding) { ExpectInterruptionsDoNotMatter(kText, kPeriods); }

TEST_F(Resume, PeriodsWithoutRewinding) {
  std::vector<std::string> settings = kPeriods;
  settings[3] = "optim.rewind=false", settings[4] = "train.steps=24";
  ExpectInterruptionsDoNotMatter(kText, settings);
}

// One run yields, to the bit, what a run of the length of each period yields.
TEST_F(Resume, APeriodIsARunOfItsOwn) {
  ExpectPeriodsAreRuns(kText, {}, "cpu");
  ExpectPeriodsAreRuns(kStages, {}, "cpu");
}

TEST_F(Resume, AMissingCheckpointFromBeforeADecayIsNamed) {
  std::vector<std::string> settings = kPeriods;
  const auto e = Make(kText, settings);
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  RunDirectory run = Directory(*e, "broken");
  trainer.set_progress({.step = 6, .rows = 24});
  testing::internal::CaptureStderr();
  EXPECT_HAS(DataError([&] { TrainToEnd(*e, run, trainer, 0); }),
             "the checkpoint of step 4 is missing");
  testing::internal::GetCapturedStderr();
}

TEST_F(Resume, Accumulation) { ExpectInterruptionsDoNotMatter(kStages, {"train.accumulate=2"}); }

TEST_F(Resume, AccumulationChangesRoundingOnly) {
  for (const std::string& toml : {kStages, kText}) {
    std::vector<float> weights[2];
    double losses[2] = {};
    for (int i : {0, 1}) {
      // Without AdamW's sign-like first steps, which would magnify a rounding of a gradient near
      // zero.
      const auto e = Make(
          toml, {Cat("train.accumulate=", i == 0 ? 1 : 4), "optim.eps=1", "optim.z_loss=1e-4"});
      Stream stream(std::in_place_type<CpuStream>, 1);
      Trainer trainer(*e, Device{}, stream);
      for (int step = 0; step < 4; ++step) losses[i] += trainer.Step().loss;
      weights[i] = Values(trainer);
    }
    EXPECT_NEAR(losses[0], losses[1], 1e-5 * losses[0]);
    ASSERT_EQ(weights[0].size(), weights[1].size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < weights[0].size(); ++i) {
      difference += std::pow(weights[0][i] - weights[1][i], 2);
      norm += std::pow(weights[0][i], 2);
    }
    EXPECT_LT(std::sqrt(difference / norm), 1e-6);
    EXPECT_FALSE(SameBits(weights[0], weights[1])) << "4 micro-batches were not summed";
  }
}

TEST_F(Resume, ThreadsKeepTheBits) {
  for (const std::string& toml : {kStages, kText}) {
    std::vector<float> weights[2];
    for (int i : {0, 1}) {
      const auto e = Make(toml);
      Stream stream(std::in_place_type<CpuStream>, i + 1);
      Trainer trainer(*e, Device{}, stream);
      for (int step = 0; step < 3; ++step) trainer.Step();
      trainer.Evaluate();
      weights[i] = Values(trainer);
    }
    EXPECT_TRUE(SameBits(weights[0], weights[1]));
  }
}

TEST_F(Resume, TrainersInOneProcessDoNotMeet) {
  const auto task = Make(kStages), text = Make(kText, {"seed=7"});
  const auto alone = [](const Experiment& e) {
    Stream stream(std::in_place_type<CpuStream>, 1);
    Trainer trainer(e, Device{}, stream);
    for (int step = 0; step < 5; ++step) trainer.Step();
    return Values(trainer);
  };
  const auto a = alone(*task), b = alone(*text);
  // Both on one stream.
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer first(*task, Device{}, stream), second(*text, Device{}, stream);
  for (int step = 0; step < 5; ++step) {
    first.Step();
    if (step == 2) first.Evaluate();
    second.Step();
  }
  EXPECT_TRUE(SameBits(Values(first), a));
  EXPECT_TRUE(SameBits(Values(second), b));
}

TEST_F(Resume, RunsOfOneProcessAreThoseAlone) { ExpectTogetherAsAlone({}, "cpu"); }

#ifdef WEFT_CUDA
// Wide enough for the kernels that use tensor cores.
const std::vector<std::string> kWide = {"model.d_model=128", "mixer.gated_delta.key_dim=64",
                                        "mixer.gated_delta.value_dim=128"};

std::vector<std::string> Wide(std::vector<std::string> more) {
  more.insert(more.end(), kWide.begin(), kWide.end());
  return more;
}

using GpuResume = Resume;

TEST_F(GpuResume, InterruptionsDoNotMatter) {
  for (const char* precision : {"train.precision=f32", "train.precision=bf16"}) {
    SCOPED_TRACE(precision);
    for (const auto& overrides : {Wide({precision}), {precision, "train.accumulate=2"}}) {
      ExpectInterruptionsDoNotMatter(kStages, overrides, {"cuda"});
      fs::remove_all(scratch_ / "straight");
      fs::remove_all(scratch_ / "interrupted");
    }
  }
}

TEST_F(GpuResume, PeriodsWithRewinding) {
  for (const char* precision : {"train.precision=f32", "train.precision=bf16"}) {
    SCOPED_TRACE(precision);
    std::vector<std::string> settings = Wide(kPeriods);
    settings.push_back(precision);
    ExpectInterruptionsDoNotMatter(kText, settings, {"cuda"});
    for (const char* out : {"straight", "interrupted"}) fs::remove_all(scratch_ / out);
    ExpectPeriodsAreRuns(kText, Wide({precision}), "cuda");
    ExpectPeriodsAreRuns(kStages, Wide({precision}), "cuda");
  }
}

TEST_F(GpuResume, RunsOfOneProcessAreThoseAlone) {
  ExpectTogetherAsAlone(Wide({"train.batch=32", "train.length=256"}), "cuda");
}

TEST_F(GpuResume, ARunMayChangeItsDevice) {
  for (const auto& [precision, tolerance] : {std::pair{"f32", 1e-5}, {"auto", 2e-3}}) {
    SCOPED_TRACE(precision);
    const auto losses = [&](const std::string& out, const std::vector<std::string>& devices) {
      return OfSteps(Train(kText, Cat(out, precision), devices.size() > 1,
                           {Cat("train.precision=", precision)}, devices),
                     "loss");
    };
    const auto straight = losses("straight", {"cpu"}), moved = losses("moved", {"cuda", "cpu"});
    ASSERT_EQ(moved.size(), straight.size());
    for (size_t i = 0; i < moved.size(); ++i)
      EXPECT_NEAR(moved[i], straight[i], tolerance) << "step " << i + 1;
  }
}

// The loss of 20 steps, and what they leave.
struct Outcome {
  std::vector<double> losses;
  std::vector<float> values;
};

Outcome After20Steps(const Experiment& e, const std::string& where) {
  const Device device = ChooseDevice(where, e.train.precision);
  const auto stream = OpenStream(device, 1);
  Trainer trainer(e, device, *stream);
  Outcome outcome;
  for (int step = 0; step < 20; ++step) outcome.losses.push_back(trainer.Step().loss);
  outcome.values = Values(trainer);
  return outcome;
}

TEST_F(GpuResume, TwentyStepsAreThoseOfTheCpu) {
  for (const std::string& toml : {kStages, kText}) {
    for (const char* positions : {"model.positions=0", "model.positions=300"}) {
      SCOPED_TRACE(positions);
      const auto losses = [&](const char* precision, const char* device) {
        return After20Steps(*Make(toml, Wide({Cat("train.precision=", precision), positions})),
                            device)
            .losses;
      };
      const auto cpu = losses("f32", "cpu"), f32 = losses("f32", "cuda"),
                 bf16 = losses("bf16", "cuda");
      for (size_t i = 0; i < cpu.size(); ++i) {
        EXPECT_NEAR(f32[i], cpu[i], 1e-5) << "step " << i + 1;
        EXPECT_NEAR(bf16[i], cpu[i], 2e-3) << "step " << i + 1;
      }
    }
  }
}

TEST_F(GpuResume, EightTrainersInOneProcessDoNotMeet) {
  constexpr size_t kTrainers = 8;
  std::vector<std::unique_ptr<Experiment>> experiments;
  std::vector<Outcome> alone;
  for (size_t i = 0; i < kTrainers; ++i) {
    experiments.push_back(
        Make(i % 2 ? kText : kStages,
             Wide({Cat("seed=", i), "train.batch=32", "train.length=256",
                   Cat("train.precision=", i % 4 < 2 ? "bf16" : "f32"),
                   i < 4 ? "model.pattern=attention" : "model.pattern=gated_delta,attention"})));
    alone.push_back(After20Steps(*experiments.back(), "cuda"));
  }
  {
    struct Running {
      Device device;
      std::unique_ptr<Stream> stream;
      std::unique_ptr<Trainer> trainer = nullptr;
      std::vector<double> losses = {};
    };
    std::vector<Running> all;
    for (const auto& e : experiments) {
      const Device device = ChooseDevice("cuda", e->train.precision);
      all.push_back({device, OpenStream(device, 1)});
    }
    for (size_t i = 0; i < kTrainers; ++i)
      all[i].trainer = std::make_unique<Trainer>(*experiments[i], all[i].device, *all[i].stream);
    // Steps of all are under way at the same time.
    for (int step = 0; step < 20; ++step) {
      for (Running& one : all) one.trainer->Start();
      for (Running& one : all) {
        while (const auto r = one.trainer->Finish(/*wait=*/one.trainer->Full() || step == 19))
          one.losses.push_back(r->loss);
      }
    }
    for (size_t i = 0; i < kTrainers; ++i) {
      EXPECT_EQ(all[i].losses, alone[i].losses) << i;
      EXPECT_TRUE(SameBits(Values(*all[i].trainer), alone[i].values)) << i;
    }
  }
  std::vector<Outcome> found(kTrainers);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kTrainers; ++i) {
    threads.emplace_back([&, i] {
      try {
        found[i] = After20Steps(*experiments[i], "cuda");
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kTrainers; ++i) {
    EXPECT_EQ(found[i].losses, alone[i].losses) << i;
    EXPECT_TRUE(SameBits(found[i].values, alone[i].values)) << i;
  }
}
#endif

TEST_F(Resume, SeedsOfDataAndWeightsAreIndependent) {
  struct Outcome {
    std::vector<float> weights;
    std::vector<int64_t>
        labels;  // per step: samples of state_based_recall differ in length, so data leave a trace
    double loss;
  };
  const auto outcome = [&](const std::vector<std::string>& seeds) {
    const auto e = Make(kStages, seeds);
    Stream stream(std::in_place_type<CpuStream>, 1);
    Trainer trainer(*e, Device{}, stream);
    Outcome o{Values(trainer), {}, 0};
    for (int step = 0; step < 10; ++step) {
      const auto result = trainer.Step();
      o.labels.push_back(result.labels);
      o.loss = result.loss;
    }
    return o;
  };
  const Outcome base = outcome({"seed=1"});
  const Outcome same = outcome({"seed=5", "init_seed=1", "data_seed=1"});
  EXPECT_TRUE(SameBits(same.weights, base.weights));
  EXPECT_EQ(same.loss, base.loss);
  const Outcome data = outcome({"seed=1", "data_seed=2"});
  EXPECT_TRUE(SameBits(data.weights, base.weights));
  EXPECT_NE(data.labels, base.labels);
  const Outcome init = outcome({"seed=1", "init_seed=2"});
  EXPECT_FALSE(SameBits(init.weights, base.weights));
  EXPECT_EQ(init.labels, base.labels);
  EXPECT_NE(init.loss, base.loss);
}

TEST_F(Resume, ARunThatIsTooLargeNamesOneThatFits) {
  const auto find = [&](const std::vector<std::string>& keys, const std::string& expected) {
    // Grows until it does not fit.
    std::vector<std::string> all = keys;
    std::unique_ptr<Experiment> e;
    for (int64_t layers = 1;; layers += layers / 4 + 1) {
      all = keys;
      all.insert(all.end(), {"train.length=65536", Cat("model.layers=", layers)});
      e = Make(kStages, all);
      if (PlanRun(*e, Device{}).memory_bytes > MemoryLimit()) break;
    }
    Stream stream(std::in_place_type<CpuStream>, 1);
    const std::string error =
        ErrorOf(ExitCode::kOutOfMemory, [&] { Trainer(*e, Device{}, stream); });
    const size_t begin = error.find("; ") + 2, end = error.find(" fits with ");
    ASSERT_NE(end, error.npos) << error;
    EXPECT_EQ(error.substr(begin, end - begin), expected) << error;
    std::istringstream advice(error.substr(begin, end - begin));
    for (std::string key; advice >> key;) all.push_back(key);
    EXPECT_LE(PlanRun(*Make(kStages, all), Device{}).memory_bytes, MemoryLimit());
  };
  find({"train.batch=4"}, "train.accumulate=2");
  find({"train.batch=4", "train.accumulate=4"}, "train.recompute=block");
  find({"train.batch=1", "model.d_ff=256"}, "train.recompute=hidden");
}

TEST_F(Resume, EvaluationKeepsNoBlock) {
  const auto activations = [&](int64_t layers) {
    return PlanRun(*Make(kStages, {Cat("model.layers=", layers)}), Device{}, /*training=*/false)
        .activation_bytes;
  };
  EXPECT_EQ(activations(2), activations(8));
}

TEST_F(Resume, EvaluationFitsIntoThePlan) {
  // Longer than training, so that one row of it needs more than a training pass.
  const auto near = Make(kStages, {"train.batch=1", "task.max_difficulty=200"}),
             far = Make(kStages,
                        {"train.batch=1", "task.max_difficulty=200", "eval.difficulties=2,200"});
  EXPECT_GT(PlanRun(*far, Device{}).memory_bytes, PlanRun(*near, Device{}).memory_bytes);
  for (Experiment* e : {near.get(), far.get()}) {
    EXPECT_LT(PlanRun(*e, Device{}, false).memory_bytes, PlanRun(*e, Device{}).memory_bytes);
    Stream stream(std::in_place_type<CpuStream>, 1);
    Trainer trainer(*e, Device{}, stream), evaluation(*e, Device{}, stream, /*training=*/false);
    const auto scores = trainer.Evaluate(), alone = evaluation.Evaluate();
    ASSERT_EQ(scores.size(), alone.size());
    for (size_t i = 0; i < scores.size(); ++i) EXPECT_EQ(scores[i].score.nll, alone[i].score.nll);
    trainer.Step();
    EXPECT_THROW(evaluation.Step(), Error);
  }
}

TEST_F(Resume, DivergenceChangesNothing) {
  const auto e = Make(kStages);
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  trainer.Step();
  trainer.model().params().params().front().var.x.Data<float>()[5] = std::nanf("");
  const auto before = Values(trainer);
  ErrorOf(ExitCode::kDiverged, [&] {
    for (int step = 0; step < 20; ++step) trainer.Step();
  });
  EXPECT_TRUE(SameBits(Values(trainer), before));
  EXPECT_EQ(trainer.progress().step, 1);
}

TEST_F(Resume, WhatIsNotFiniteIsNotSaved) {
  // An infinite second moment stops its parameter for ever, while loss and gradient stay finite.
  const auto e = Make(kStages);
  Stream stream(std::in_place_type<CpuStream>, 1);
  Trainer trainer(*e, Device{}, stream);
  RunDirectory run = Directory(*e, "out");
  {
    const StopSignals signals;
    raise(SIGTERM);
    ASSERT_EQ(TrainToEnd(*e, run, trainer, 0), ExitCode::kRequeue);
  }
  Param& p = trainer.model().params().params().back();
  p.moments[1].Data<float>()[0] = std::numeric_limits<float>::infinity();
  const std::string error = ErrorOf(ExitCode::kDiverged, [&] { TrainToEnd(*e, run, trainer, 0); });
  EXPECT_HAS(error, "element 0 of v." + p.path + " is inf");
  EXPECT_EQ(FindLatest(run.path())->step, 1);
  EXPECT_EQ(ReadStatus(run.path()).state, RunState::kDiverged);
}

TEST_F(Resume, PermutationIsABijection) {
  for (const int64_t n : {1, 2, 3, 4, 5, 17, 64, 65, 1000}) {
    std::set<std::vector<int64_t>> orders;
    for (const int64_t epoch : {0, 1, 2, 1000000}) {
      std::vector<int64_t> order;
      for (int64_t i = 0; i < n; ++i) order.push_back(Permute(3, epoch, n, i));
      orders.insert(order);
      std::sort(order.begin(), order.end());
      for (int64_t i = 0; i < n; ++i)
        ASSERT_EQ(order[static_cast<size_t>(i)], i) << "n = " << n << ", epoch " << epoch;
    }
    if (n >= 17) {
      EXPECT_EQ(orders.size(), 4u) << "n = " << n << ": two epochs have the same order";
      std::vector<int64_t> other;
      for (int64_t i = 0; i < n; ++i) other.push_back(Permute(4, 0, n, i));
      EXPECT_FALSE(orders.contains(other)) << "n = " << n << ": two seeds have the same order";
    }
  }
}

TEST_F(Resume, AnEpochReadsEveryWindowOnce) {
  const auto e = Make(kText);
  const Text text(e->data);
  const int64_t length = 64;
  const TextSource source(text, Split::kTrain, 11, length, true);
  const std::string& bytes = text.part(Split::kTrain).bytes;
  std::vector<int32_t> tokens(length), labels(length), starts(length), positions(length);
  const Row row{tokens.data(), labels.data(), starts.data(), positions.data(), length};
  std::vector<std::string> orders[2];
  for (int64_t epoch : {0, 1}) {
    for (int64_t i = 0; i < source.windows(); ++i) {
      source.Fill(epoch * source.windows() + i, row);
      orders[epoch].emplace_back(tokens.begin(), tokens.end());
      for (int64_t t = 0; t + 1 < length; ++t) {
        if (labels[static_cast<size_t>(t)] != kIgnoreLabel) {
          ASSERT_EQ(labels[static_cast<size_t>(t)], tokens[static_cast<size_t>(t) + 1]);
        }
      }
    }
  }
  EXPECT_NE(orders[0], orders[1]);
  std::vector<std::string> windows;
  for (int64_t w = 0; w < source.windows(); ++w) {
    windows.push_back(bytes.substr(static_cast<size_t>(w * length), static_cast<size_t>(length)));
  }
  std::sort(windows.begin(), windows.end());
  for (auto& order : orders) {
    std::sort(order.begin(), order.end());
    EXPECT_EQ(order, windows);
  }
}

TEST_F(Resume, HeldOutTextIsNotTrainedOn) {
  const auto e = Make(kText);
  const Text text(e->data);
  // Every line of this text occurs once.
  std::set<std::string> lines[2];
  size_t bytes = 0;
  for (const Split split : {Split::kTrain, Split::kEval}) {
    const Text::Part& part = text.part(split);
    bytes += part.bytes.size();
    std::istringstream in(part.bytes);
    for (std::string line; std::getline(in, line);) lines[split == Split::kEval].insert(line);
    ASSERT_FALSE(part.starts.empty());
    EXPECT_EQ(part.starts[0], 0);
    EXPECT_TRUE(std::is_sorted(part.starts.begin(), part.starts.end()));
  }
  EXPECT_EQ(bytes, fs::file_size(scratch_ / "text"));
  EXPECT_GT(lines[1].size(), 20u);
  for (const std::string& line : lines[1]) EXPECT_FALSE(lines[0].contains(line)) << line;

  // The split is a property of the content: further text before and after moves nothing to the
  // other side.
  fs::create_directories(scratch_ / "more");
  std::ofstream(scratch_ / "more/a") << "something else\n";
  fs::copy(scratch_ / "text", scratch_ / "more/b");
  TextConfig config = e->data;
  config.path = scratch_ / "more";
  const Text more(config);
  EXPECT_NE(more.part(Split::kTrain).bytes.size() + more.part(Split::kEval).bytes.size(), bytes);
  std::istringstream in(more.part(Split::kEval).bytes);
  for (std::string line; std::getline(in, line);) {
    EXPECT_TRUE(line == "something else" || lines[1].contains(line)) << line;
  }
}

TEST_F(Resume, DocumentsEndWithoutALabel) {
  fs::create_directories(scratch_ / "files");
  std::string joined;
  for (const char* name : {"a", "b", "c"}) {
    const std::string content = std::string(10, name[0]);
    std::ofstream(scratch_ / (std::string("files/") + name)) << content;
    joined += content;
  }
  TextConfig config;
  config.path = scratch_ / "files";
  config.held_out = 0;
  const Text text(config);
  EXPECT_EQ(text.part(Split::kTrain).bytes, joined);
  const TextSource source(text, Split::kTrain, 0, 29, true);
  std::vector<int32_t> tokens(29), labels(29), starts(29), positions(29);
  source.Fill(0, {tokens.data(), labels.data(), starts.data(), positions.data(), 29});
  for (size_t t = 0; t < 29; ++t) {
    EXPECT_EQ(tokens[t], joined[t]);
    EXPECT_EQ(labels[t], t % 10 == 9 ? kIgnoreLabel : joined[t + 1]) << t;
    EXPECT_EQ(starts[t], static_cast<int32_t>(t / 10 * 10)) << t;
    EXPECT_EQ(positions[t], static_cast<int32_t>(t % 10)) << t;
  }
}

// Schedule

TEST(Schedule, Constant) {
  OptimConfig c;
  c.lr = 2;
  for (const int64_t step : {0, 1, 50, 99}) EXPECT_EQ(LearningRate(c, step, 100), 2);
}

TEST(Schedule, WarmUp) {
  for (const char* schedule : {"constant", "cosine", "wsd"}) {
    OptimConfig c;
    c.lr = 2;
    c.schedule = schedule;
    c.warmup = 10;
    EXPECT_DOUBLE_EQ(LearningRate(c, 0, 100), 0.2);
    EXPECT_DOUBLE_EQ(LearningRate(c, 4, 100), 1);
    EXPECT_DOUBLE_EQ(LearningRate(c, 9, 100), 2);
    EXPECT_DOUBLE_EQ(LearningRate(c, 10, 100), 2) << schedule;
    c.warmup = 1000;  // longer than the run
    EXPECT_DOUBLE_EQ(LearningRate(c, 99, 100), 0.2);
  }
}

TEST(Schedule, Cosine) {
  const OptimConfig c{.lr = 2, .schedule = "cosine", .warmup = 20, .final_lr = 0.1};
  EXPECT_DOUBLE_EQ(LearningRate(c, 20, 100), 2);
  EXPECT_DOUBLE_EQ(LearningRate(c, 40, 100), 2 * (0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2));
  EXPECT_DOUBLE_EQ(LearningRate(c, 60, 100), 2 * (0.1 + 0.9 / 2));
  EXPECT_NEAR(LearningRate(c, 99, 100), 0.2, 1e-3);
  EXPECT_DOUBLE_EQ(LearningRate(c, 100, 100), 0.2);
}

TEST(Schedule, DecaysOverPeriods) {
  OptimConfig c;
  c.lr = 2, c.schedule = "wsds", c.warmup = 4, c.final_lr = 0, c.decay_share = 0.2;
  c.periods = {10, 20, 40};
  const auto rate = [&](int64_t step) { return LearningRate(c, step, 0); };
  EXPECT_DOUBLE_EQ(rate(1), 1);
  for (const int64_t stable : {3, 8, 10, 18, 20, 36}) EXPECT_DOUBLE_EQ(rate(stable), 2);
  for (const int64_t last_but_one : {9, 19, 38}) EXPECT_DOUBLE_EQ(rate(last_but_one), 1);
  EXPECT_DOUBLE_EQ(rate(39), 0.5);
  EXPECT_EQ(UpdatesBefore(c, 30), 30);
  EXPECT_EQ(TakenBackAt(c, 10), 0);

  c.rewind = true;  // 2, 2 and 4 steps of decay, of which 4 are taken back
  for (const int64_t stable : {3, 8, 10, 20, 22, 40}) EXPECT_DOUBLE_EQ(rate(stable), 2);
  for (const int64_t last_but_one : {9, 21, 42}) EXPECT_DOUBLE_EQ(rate(last_but_one), 1);
  EXPECT_EQ(DecaysOf(c).back().end, 44);
  EXPECT_EQ(TakenBackAt(c, 10), 2);
  EXPECT_EQ(TakenBackAt(c, 22), 2);
  EXPECT_EQ(TakenBackAt(c, 44), 0);
  for (const auto& [step, updates] : {std::pair{9, 9}, {10, 8}, {21, 19}, {22, 18}, {43, 39}})
    EXPECT_EQ(UpdatesBefore(c, step), updates) << step;

  c.periods = {2, 3}, c.decay_share = 1;  // there is always a step before and of a decay
  EXPECT_EQ(DecaysOf(c)[0].begin, 1);
  EXPECT_EQ(DecaysOf(c)[1].end - DecaysOf(c)[1].begin, 1);
}

TEST(Schedule, WarmUpStableDecay) {
  OptimConfig c{.lr = 2, .schedule = "wsd", .warmup = 5, .final_lr = 0, .decay_share = 0.2};
  EXPECT_DOUBLE_EQ(LearningRate(c, 5, 100), 2);
  EXPECT_DOUBLE_EQ(LearningRate(c, 80, 100), 2);
  EXPECT_DOUBLE_EQ(LearningRate(c, 81, 100), 2 * 0.95);
  EXPECT_DOUBLE_EQ(LearningRate(c, 90, 100), 1);
  EXPECT_DOUBLE_EQ(LearningRate(c, 99, 100), 0.1);
  c.final_lr = 0.5;
  EXPECT_DOUBLE_EQ(LearningRate(c, 90, 100), 1.5);
  c.decay_share = 0;
  EXPECT_DOUBLE_EQ(LearningRate(c, 99, 100), 2);
}

}  // namespace
}  // namespace weft
