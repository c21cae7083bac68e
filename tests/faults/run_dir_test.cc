// links: weft_run
// Run directories and checkpoints: interrupted, damaged, full, killed.

#include "experiments/run/run_dir.h"

#include <cmath>
#include <random>

#include "experiments/run/checkpoint.h"
#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "tests/faults/faults.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Config {
  int64_t steps = 100;
  double lr = 1e-3;
  double beta = 1;
  bool tied = true;
  std::string name = "gated δ \"net\"";
  std::vector<std::string> pattern = {"attention", "gated_delta"};
  std::vector<double> mix = {0.25, 1};
  std::vector<int64_t> none;
  void Visit(ConfigVisitor& v) {
    v.Key("train.steps", steps, "steps");
    v.Key("train.lr", lr, "learning rate");
    v.Key("train.beta", beta, "beta");
    v.Key("tied", tied, "tied");
    v.Key("name", name, "name");
    v.Key("model.pattern", pattern, "layers");
    v.Key("mix", mix, "mixture");
    v.Key("none", none, "empty list");
  }
};

RunDirectory::Request RequestFor(Config& config, const std::string& out) {
  ConfigVisitor visitor;
  config.Visit(visitor);
  RunDirectory::Request request;
  request.out = out;
  request.study = "study";
  request.fields = visitor.fields();
  for (const ConfigField& field : request.fields) request.origins[field.path] = "default";
  request.config_toml = "# as the user wrote it\ntrain.steps = 100\n";
  request.environment = DescribeEnvironment({"weft-train", "a b.toml"});
  return request;
}

TEST(RunDirectory, HoldsWhatPythonReads) {
  const Scratch scratch;
  Config config;
  std::string path;
  {
    RunDirectory run = RunDirectory::Create(RequestFor(config, scratch / "runs"));
    path = run.path();
    EXPECT_FALSE(run.existed());
    run.journal().Declare("train", kTrainColumns);
    run.journal().Declare("eval/recall", {{"step", "step", ColumnType::kInteger}, {"acc", "1"}});
    AppendStep(run.journal(), 1);
    AppendStep(run.journal(), 2);
    run.journal().Append("eval/recall", {{"step", 2}, {"acc", std::nan("")}});
    run.WriteRunH5();
    run.SetStatus({RunState::kDone, 0, 2, 100, "", 0, "", ""});
  }
  const std::string out = Python(scratch, R"(
import h5py, json, math, tomllib, os
d = ')" + path + R"('
with h5py.File(d + '/run.h5', 'r') as f:
    t = f['/train']
    assert t.dtype.names == ('step', 'tokens', 'loss'), t.dtype
    assert t['step'].tolist() == [1, 2] and t['tokens'].tolist() == [512, 1024]
    assert t['loss'].tolist() == [10.0 / 4, 10.0 / 5]
    assert t.attrs['unit:loss'] == 'nat/token' and t.attrs['unit:tokens'] == 'token'
    e = f['/eval/recall']
    assert e['step'].tolist() == [2] and math.isnan(e['acc'][0])
    s = dict(f['/settings'].attrs)
    assert s['train.steps'] == 100 and s['train.steps'].dtype == 'int64'
    assert s['train.beta'] == 1 and s['train.beta'].dtype == 'float64'
    assert s['tied'] == True and s['tied'].dtype == bool
    assert s['name'] == 'gated δ "net"', s['name']
    assert list(s['model.pattern']) == ['attention', 'gated_delta'] and len(s['none']) == 0
    assert s['mix'].tolist() == [0.25, 1.0]
    v = f['/environment'].attrs
    assert list(v['command_line']) == ['weft-train', 'a b.toml'] and v['cpu_cores'] > 0
    assert f.attrs['schema_version'] == 1
resolved = tomllib.load(open(d + '/resolved.toml', 'rb'))
assert resolved['train']['lr'] == 1e-3 and resolved['none'] == []
assert 'from default' in open(d + '/resolved.toml').read()
status = json.load(open(d + '/status.json'))
assert status['state'] == 'done' and status['steps'] == 100 and status['heartbeat'].endswith('Z')
env = json.load(open(d + '/environment.json'))
assert env['command_line'][1] == 'a b.toml' and len(env['git_commit']) in (7, 40) and env['compiler']
assert open(d + '/config.toml').read().startswith('# as the user wrote it')
print('ok')
)");
  EXPECT_EQ(out, "ok\n");
  EXPECT_EQ(ReadStatus(path).steps, 100);
  EXPECT_EQ(ReadStatus(path).pid, getpid());
  const std::string snapshot = ReadFile(path + "/run.h5");
  fs::remove(path + "/run.h5");
  RebuildRunH5(path);
  EXPECT_EQ(ReadFile(path + "/run.h5"), snapshot);
}

TEST(RunDirectory, SameConfigContinuesAndOtherConfigIsRefused) {
  const Scratch scratch;
  Config config;
  const RunDirectory::Request request = RequestFor(config, scratch / "runs");
  const std::string path = RunDirectory::Create(request).path();
  EXPECT_EQ(path, (scratch / "runs/study/") + HashOf(request.fields));
  EXPECT_TRUE(RunDirectory::Create(request).existed());

  const std::string resolved = ReadFile(path + "/resolved.toml");
  std::string other = resolved;
  other.replace(other.find("steps = 100"), 11, "steps = 101");
  Spill(path + "/resolved.toml", other);
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }),
             "resolved.toml: train.steps is 101, this run asks for 100");
  Spill(path + "/resolved.toml", "extra = 1\n" + resolved);
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }), "extra is 1");
  Spill(path + "/resolved.toml", "");
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }), "is missing");
  EXPECT_TRUE(fs::exists(path + "/journal.jsonl")) << "a refusal must not remove anything";

  // A run goes on with a program that has got a key since, whether or not it was written.
  int64_t positions = 0;
  ConfigVisitor later;
  later.LaterKey("positions", positions, "0", "", {});
  RunDirectory::Request newer = request;
  newer.fields.push_back(later.fields().front());
  for (const char* line : {"", "positions = 0\n"}) {
    Spill(path + "/resolved.toml", Cat(line, resolved));
    EXPECT_TRUE(RunDirectory::Create(newer).existed());
    EXPECT_EQ(RunDirectory::Create(newer).path(), path);
  }
  Spill(path + "/resolved.toml", "positions = 8\n" + resolved);
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(newer); }), "positions is 8");

  RunDirectory::Request odd = request;
  for (const char* study : {"", "..", "a/b", ".hidden", "a b"}) {
    odd.study = study;
    ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(odd); });
  }
}

TEST(RunDirectory, InterruptedCreationIsCompleted) {
  const Scratch scratch;
  Config config;
  const RunDirectory::Request request = RequestFor(config, scratch / "runs");
  const std::string path = (scratch / "runs/study/") + HashOf(request.fields);
  fs::create_directories(path);
  Spill(path + "/config.toml.tmp-1", "half");
  Spill(path + "/environment.json", "");
  const RunDirectory run = RunDirectory::Create(request);
  EXPECT_FALSE(run.existed());
  EXPECT_EQ(NamesIn(path),
            (std::vector<std::string>{"config.toml", "environment.json", "journal.jsonl", "lock",
                                      "log.txt", "resolved.toml", "status.json"}));
}

TEST(RunDirectory, OpenNamesWhatIsMissing) {
  const Scratch scratch;
  Config config;
  const RunDirectory::Request request = RequestFor(config, scratch / "runs");
  const std::string path = RunDirectory::Create(request).path();
  EXPECT_TRUE(RunDirectory::Open(path).existed());
  DataError([&] { RunDirectory::Open(scratch / "none"); });
  for (const char* name :
       {"config.toml", "resolved.toml", "environment.json", "status.json", "journal.jsonl"}) {
    fs::rename(path + "/" + name, path + "/away");
    EXPECT_HAS(DataError([&] { RunDirectory::Open(path); }), path + "/" + name + ": is missing");
    fs::rename(path + "/away", path + "/" + name);
  }
  Spill(path + "/status.json", "{\"state\": \"dancing\"}");
  EXPECT_HAS(DataError([&] { ReadStatus(path); }), "unknown state \"dancing\"");
  Spill(path + "/status.json", "{\"state\": \"done\"}");
  EXPECT_HAS(DataError([&] { ReadStatus(path); }), "a field is missing");
  Spill(path + "/status.json", "{\"state\": 3}");
  EXPECT_HAS(DataError([&] { ReadStatus(path); }), "another type");
}

TEST(RunDirectory, OneWriterAtATime) {
  const Scratch scratch;
  Config config;
  const RunDirectory::Request request = RequestFor(config, scratch / "runs");
  std::string path;
  {
    const RunDirectory run = RunDirectory::Create(request);
    path = run.path();
    const std::string what = ErrorOf(ExitCode::kFailure, [&] { RunDirectory::Open(path); });
    EXPECT_HAS(what, Cat("another process is writing this run, last seen as pid ", getpid()));
    EXPECT_EQ(WEXITSTATUS(InChild([&] { RunDirectory::Create(request); })), 1);
    EXPECT_TRUE(fs::exists(path + "/resolved.toml"));
    fs::remove(path + "/status.json");  // as long as its creation is under way
    EXPECT_HAS(ErrorOf(ExitCode::kFailure, [&] { RunDirectory::Create(request); }),
               "another process is writing this run; wait for it");
    run.SetStatus({});
  }
  EXPECT_EQ(WTERMSIG(InChild([&] {
              const RunDirectory run = RunDirectory::Open(path);
              raise(SIGKILL);
            })),
            SIGKILL);
  EXPECT_TRUE(RunDirectory::Open(path).existed()) << "the lock of a killed process is free";
}

TEST(RunDirectory, UnwritablePlaceGivesOneLineAndLeavesNothing) {
  const Scratch scratch;
  Config config;
  Spill(scratch / "file", "");
  EXPECT_HAS(ErrorOf(ExitCode::kFailure,
                     [&] { RunDirectory::Create(RequestFor(config, scratch / "file")); }),
             (scratch / "file/study"));
  EXPECT_HAS(
      ErrorOf(ExitCode::kFailure, [&] { RunDirectory::Create(RequestFor(config, "/proc/runs")); }),
      "/proc/runs/study");
  for (const rlim_t limit : {0, 1, 60, 200, 400}) {
    const int status = InChild([&] {
      LimitFileSize(limit);
      RunDirectory::Create(RequestFor(config, scratch / "runs"));
    });
    EXPECT_EQ(WEXITSTATUS(status), 1) << limit;
    EXPECT_FALSE(fs::exists(scratch / "runs")) << limit;
  }
}

struct Trainer {
  std::vector<float> w = std::vector<float>(500);
  std::vector<double> m = std::vector<double>(500);

  void Set(int64_t step) {
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] = static_cast<float>(step) + 0.25f * static_cast<float>(i);
      m[i] = static_cast<double>(step) - static_cast<double>(i);
    }
  }
  Checkpoint Save(const std::string& run, int64_t step) {
    Set(step);
    const std::vector<NamedTensor> model = {{"w", "F32", {5, 100}, w.data()}};
    const std::vector<NamedTensor> optimizer = {{"w.m", "F64", {500}, m.data()}};
    return SaveCheckpoint(run, step, model, optimizer, Cat("{\"step\": ", step, ", \"lr\": 0.1}"));
  }
  std::string Load(const Checkpoint& checkpoint) {
    const std::vector<TensorTarget> model = {{"w", "F32", {5, 100}, w.data()}};
    const std::vector<TensorTarget> optimizer = {{"w.m", "F64", {500}, m.data()}};
    return LoadCheckpoint(checkpoint, model, optimizer);
  }
};

TEST(Checkpoints, SaveLoadListPrune) {
  const Scratch scratch;
  Trainer trainer;
  EXPECT_FALSE(FindLatest(scratch.path()).has_value());
  for (const int64_t step : {0, 500, 1000, 123456789}) trainer.Save(scratch.path(), step);
  fs::create_directories(scratch / "checkpoints/step-00002000.tmp-1");
  fs::create_directories(scratch / "checkpoints/step-x");
  const std::vector<Checkpoint> all = ListCheckpoints(scratch.path());
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[2].path, scratch / "checkpoints/step-00001000");
  EXPECT_EQ(FindLatest(scratch.path())->step, 123456789);
  EXPECT_EQ(NamesIn(all[2].path),
            (std::vector<std::string>{"model.safetensors", "optimizer.safetensors", "state.json"}));
  Trainer loaded;
  EXPECT_EQ(loaded.Load(all[2]), "{\"step\":1000,\"lr\":0.1}");
  EXPECT_EQ(LoadState(all[1]), "{\"step\":500,\"lr\":0.1}");
  trainer.Set(1000);
  EXPECT_EQ(loaded.w, trainer.w);
  EXPECT_EQ(loaded.m, trainer.m);

  trainer.Save(scratch.path(), 1000);
  EXPECT_EQ(ListCheckpoints(scratch.path()).size(), 4u);
  PruneCheckpoints(scratch.path(), 2);
  EXPECT_EQ(NamesIn(scratch / "checkpoints"),
            (std::vector<std::string>{"step-00001000", "step-00002000.tmp-1", "step-123456789",
                                      "step-x"}));
  PruneCheckpoints(scratch.path(), 5);
  EXPECT_EQ(ListCheckpoints(scratch.path()).size(), 2u);
  ErrorOf(ExitCode::kFailure, [&] { PruneCheckpoints(scratch.path(), 0); });
  ErrorOf(ExitCode::kFailure, [&] { SaveCheckpoint(scratch.path(), 1, {}, {}, "no JSON"); });
}

TEST(Checkpoints, ModelAloneCanBeLoaded) {
  const Scratch scratch;
  Trainer trainer;
  const Checkpoint saved = trainer.Save(scratch.path(), 7);
  Trainer loaded;
  const std::vector<TensorTarget> model = {{"w", "F32", {5, 100}, loaded.w.data()}};
  LoadCheckpoint(saved, model, {});
  EXPECT_EQ(loaded.w, trainer.w);
}

TEST(Checkpoints, MissingExtraAndOtherShapeAreNamed) {
  const Scratch scratch;
  Trainer trainer;
  const Checkpoint saved = trainer.Save(scratch.path(), 7);
  const std::string file = saved.path + "/model.safetensors: tensor ";
  const std::string advice =
      "; the checkpoint is of another model, restore the settings that made it";
  const auto load = [&](std::vector<TensorTarget> model) {
    return DataError([&] { LoadCheckpoint(saved, model, {}); });
  };
  float* w = trainer.w.data();
  EXPECT_EQ(load({{"w", "F32", {100, 5}, w}}),
            file + "w is F32 [5, 100], expected F32 [100, 5]" + advice);
  EXPECT_EQ(load({{"w", "BF16", {5, 100}, w}}),
            file + "w is F32 [5, 100], expected BF16 [5, 100]" + advice);
  EXPECT_EQ(load({{"w", "F32", {5, 100}, w}, {"v", "F32", {2}, w}}),
            file + "v is missing, expected F32 [2]" + advice);
  EXPECT_EQ(
      load({}),
      file + "w F32 [5, 100] is not part of this model, expected 0 tensors, found 1" + advice);
}

TEST(Checkpoints, BrokenOnesAreRefusedAndTheOlderIsNamed) {
  const Scratch scratch;
  Trainer trainer;
  const Checkpoint first = trainer.Save(scratch.path(), 1);
  const Checkpoint second = trainer.Save(scratch.path(), 2);
  const std::string advice = "; the next older checkpoint is " + first.path;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string path = second.path + "/" + name;
    const std::string whole = ReadFile(path);
    for (size_t at = 0; at < whole.size(); at += 41) {
      std::string flipped = whole;
      flipped[at] ^= 4;
      Spill(path, flipped);
      if (flipped[at] == '\n' || flipped[at] == ' ') continue;
      const std::string what = DataError([&] { trainer.Load(second); });
      EXPECT_HAS(what, path);
      EXPECT_HAS(what, advice);
    }
    Spill(path, whole.substr(0, whole.size() / 2));
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), advice);
    Spill(path, ReadFile(first.path + "/" + name));
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), advice);
    fs::remove(path);
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), path + ": cannot read: No such file");
    Spill(path, whole);
    trainer.Load(second);
  }
  Spill(first.path + "/model.safetensors", "");
  EXPECT_HAS(DataError([&] { trainer.Load(first); }), "there is no older checkpoint");
  EXPECT_EQ(FindLatest(scratch.path())->step, 2);
}

TEST(Checkpoints, FullDiskLeavesTheOlderOnes) {
  const Scratch scratch;
  Trainer trainer;
  trainer.Save(scratch.path(), 1);
  for (const rlim_t limit : {0, 100, 2500}) {
    const int status = InChild([&] {
      LimitFileSize(limit);
      trainer.Save(scratch.path(), 2);
    });
    EXPECT_EQ(WEXITSTATUS(status), 1);
  }
  EXPECT_EQ(NamesIn(scratch / "checkpoints"), std::vector<std::string>{"step-00000001"});
  trainer.Load(*FindLatest(scratch.path()));
}

TEST(Kill, NothingIsLostAtRandomMoments) {
  constexpr int kTrials = 40;
  const Scratch scratch;
  Config config;
  const RunDirectory::Request request = RequestFor(config, scratch / "runs");
  const std::string path = RunDirectory::Create(request).path();
  RebuildRunH5(path);

  // Resumes, then trains until killed.
  const auto train = [&] {
    RunDirectory run = RunDirectory::Open(path);
    Trainer trainer;
    int64_t step = 0;
    if (const std::optional<Checkpoint> latest = FindLatest(path)) {
      trainer.Load(*latest);
      step = latest->step;
      run.journal().TruncateTo(std::stoll(LoadState(*latest).substr(8)));
    } else {
      run.journal().TruncateTo(0);
    }
    run.journal().Declare("train", kTrainColumns);
    for (;;) {
      AppendStep(run.journal(), ++step);
      if (step % 3 != 0) continue;
      run.SetStatus({RunState::kRunning, 0, step, 0, "", 0, "", ""});
      run.journal().Sync();
      trainer.Set(step);
      const std::vector<NamedTensor> model = {{"w", "F32", {5, 100}, trainer.w.data()}};
      const std::vector<NamedTensor> optimizer = {{"w.m", "F64", {500}, trainer.m.data()}};
      SaveCheckpoint(path, step, model, optimizer, Cat("{\"size\":", run.journal().size(), "}"));
      PruneCheckpoints(path, 2);
      run.WriteRunH5();
    }
  };

  std::mt19937 random(1);
  std::uniform_int_distribution<int> microseconds(500, 200'000);
  int64_t reached = 0;
  int leftovers = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const pid_t child = fork();
    if (child == 0) {
      try {
        train();
      } catch (const Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
      }
      _exit(1);
    }
    // On a slow disk a child needs longer to come to its first checkpoint.
    usleep(static_cast<useconds_t>(microseconds(random) + (reached == 0 ? trial * 10'000 : 0)));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child failed by itself in trial " << trial;

    const JournalContents journal = ReadJournal(path + "/journal.jsonl");
    for (const std::string& name : ListTables(path + "/run.h5")) {
      const std::vector<double> steps = ReadTable(path + "/run.h5", name).Numbers("step");
      for (size_t i = 0; i < steps.size(); ++i) ASSERT_EQ(steps[i], static_cast<double>(i + 1));
    }
    ReadStatus(path);
    if (const std::optional<Checkpoint> latest = FindLatest(path)) {
      Trainer loaded;
      loaded.Load(*latest);
      Trainer expected;
      expected.Set(latest->step);
      ASSERT_EQ(loaded.w, expected.w);
      ASSERT_EQ(loaded.m, expected.m);
      ASSERT_GE(latest->step, reached) << "a checkpoint was lost";
      ASSERT_GE(journal.tables.at(0).rows(), latest->step);
      reached = latest->step;
    }
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      leftovers += entry.path().filename().string().find(".tmp-") != std::string::npos;
    }
  }
  EXPECT_GT(reached, 0) << "the children never came to a checkpoint";
  EXPECT_GT(leftovers, 0) << "no child was killed while it was writing";
  RunDirectory::Open(path);
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    EXPECT_EQ(entry.path().filename().string().find(".tmp-"), std::string::npos) << entry.path();
  }

  // What the interrupted runs wrote is what one uninterrupted run writes.
  Journal straight(scratch / "straight.jsonl");
  straight.Declare("train", kTrainColumns);
  const int64_t rows = ReadJournal(path + "/journal.jsonl").tables.at(0).rows();
  for (int64_t step = 1; step <= rows; ++step) AppendStep(straight, step);
  EXPECT_EQ(ReadFile(path + "/journal.jsonl"), ReadFile(scratch / "straight.jsonl"));
}

}  // namespace
}  // namespace weft
