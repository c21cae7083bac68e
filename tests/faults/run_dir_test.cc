// links: weft_run
#include "experiments/run/run_dir.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "experiments/run/checkpoint.h"
#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "experiments/run/safetensors.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A directory that lives as long as the test.
class Scratch {
 public:
  Scratch() {
    std::string name = testing::TempDir() + "weft_run_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Scratch() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void Overwrite(const std::string& path, const std::string& bytes) {
  fs::remove(path);  // truncating in place would wait for the disk
  std::ofstream(path, std::ios::binary) << bytes;
}

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ErrorOf(ExitCode code, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}
std::string DataError(const std::function<void()>& action) {
  return ErrorOf(ExitCode::kData, action);
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

// Runs `action` in a child process; returns its wait status.
int InChild(const std::function<void()>& action) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 99;
    try {
      action();
      code = testing::Test::HasFailure() ? 98 : 0;
    } catch (const Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      code = static_cast<int>(error.code());
    }
    std::fflush(nullptr);
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

// What a file system without room for more than `bytes` per file does.
void LimitFileSize(rlim_t bytes) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {bytes, bytes};
  setrlimit(RLIMIT_FSIZE, &limit);
}

std::string Shell(const std::string& command) {
  std::string out;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof(buffer), pipe)) out.append(buffer, n);
  const int status = pclose(pipe);
  EXPECT_EQ(status, 0) << out;
  return out;
}

std::string Python(const Scratch& scratch, const std::string& program) {
  Overwrite(scratch / "program.py", program);
  return Shell("/usr/bin/python3 " + (scratch / "program.py"));
}

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

const std::vector<JournalColumn> kTrainColumns = {{"step", "step", ColumnType::kInteger},
                                                  {"tokens", "token", ColumnType::kInteger},
                                                  {"loss", "nat/token"}};

void AppendStep(Journal& journal, int64_t step) {
  journal.Append("train", {{"step", step}, {"tokens", step * 512}, {"loss", 10.0 / (step + 3)}});
}

// Files -------------------------------------------------------------------------------------------

TEST(Files, AreWholeOrAbsent) {
  const Scratch scratch;
  const std::string path = scratch / "file";
  WriteFileAtomically(path, "one");
  {
    AtomicFile file(path);
    file.Write("two");
  }
  EXPECT_EQ(ReadFile(path), "one");
  WriteFileAtomically(path, "");
  EXPECT_EQ(ReadFile(path), "");
  const std::string large(100'000, 'x');
  WriteFileAtomically(path, large);
  EXPECT_EQ(ReadFile(path), large);
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"file"});
}

TEST(Files, ErrorsNamePathAndReason) {
  const Scratch scratch;
  Overwrite(scratch / "file", "x");
  EXPECT_EQ(DataError([&] { ReadFile(scratch / "none"); }),
            (scratch / "none") + ": cannot read: No such file or directory");
  EXPECT_EQ(
      ErrorOf(ExitCode::kFailure, [&] { WriteFileAtomically(scratch / "file/x", ""); }),
      (scratch / "file/x") +
          ": cannot write: Not a directory; a file stands where a directory is needed, choose "
          "another output directory");
  EXPECT_HAS(ErrorOf(ExitCode::kFailure, [&] { MakeDirectories(scratch / "file/x/y"); }),
             ": cannot create the directory: Not a directory");
  const Descriptor full(open("/dev/full", O_WRONLY));
  EXPECT_EQ(ErrorOf(ExitCode::kFailure, [&] { WriteAll(full.get(), "x", "runs/a"); }),
            "runs/a: cannot write: No space left on device; free some space or choose another "
            "output directory");
}

TEST(Files, FullDiskLeavesTheOldFile) {
  const Scratch scratch;
  const std::string path = scratch / "file";
  WriteFileAtomically(path, "old");
  const int status = InChild([&] {
    LimitFileSize(1000);
    const std::string what =
        ErrorOf(ExitCode::kFailure, [&] { WriteFileAtomically(path, std::string(100'000, 'x')); });
    EXPECT_HAS(what, path + ": cannot write: File too large");
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ReadFile(path), "old");
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"file"});
}

TEST(Files, LeftoversOfKilledProcessesAreRemoved) {
  const Scratch scratch;
  fs::create_directories(scratch / "step-00000001.tmp-77/deep");
  Overwrite(scratch / "run.h5.tmp-123", "half");
  Overwrite(scratch / "keep.tmp", "");
  RemoveTemporaries(scratch.path());
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"keep.tmp"});
}

TEST(MemoryLimit, IsTheSmallestOfTheMachineAndTheControlGroups) {
  const Scratch scratch;
  const std::string groups = scratch / "cgroup", mount = scratch / "mount";
  const auto limit = [&](const std::string& text) {
    Overwrite(groups, text);
    return MemoryLimit(groups, mount);
  };
  const int64_t machine = MemoryLimit(scratch / "none", mount);
  EXPECT_GT(machine, 1 << 20);
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(mount + path).parent_path());
    Overwrite(mount + path, text + "\n");
  };
  EXPECT_EQ(limit("0::/a/b\n"), machine);
  write("/a/b/memory.max", "max");
  write("/a/memory.max", "5000000");
  EXPECT_EQ(limit("0::/a/b\n"), 5000000) << "the limit of a group above";
  write("/a/b/memory.max", "4000000");
  EXPECT_EQ(limit("0::/a/b\n"), 4000000);
  EXPECT_EQ(limit("0::/a\n"), 5000000);
  EXPECT_EQ(limit("0::/other\n"), machine);
  write("/memory.max", "6000000");
  EXPECT_EQ(limit("0::/other\n"), 6000000) << "in a container";

  write("/memory/docker/memory.limit_in_bytes", "3000000");
  write("/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(limit("9:name=systemd:/docker\n8:cpu,memory:/docker\n"), 3000000);
  EXPECT_EQ(limit("9:memory_other:/docker\n"), machine);
  EXPECT_EQ(limit("8:memory:/x\n"), machine);
  EXPECT_EQ(limit("4:memory:/docker\n0::/a\n"), 3000000);
  EXPECT_EQ(limit("broken\n\n:\n"), machine);
}

// Journal -----------------------------------------------------------------------------------------

TEST(Journal, NumbersRoundTrip) {
  const Scratch scratch;
  const std::string path = scratch / "journal.jsonl";
  const std::vector<double> numbers = {0.1,   -0.0,      1.0,        1e-300,       5e-324,
                                       1e300, kInfinity, -kInfinity, std::nan(""), 1.0 / 3};
  const std::vector<int64_t> integers = {std::numeric_limits<int64_t>::min(),
                                         std::numeric_limits<int64_t>::max(), 0, -1,
                                         (int64_t{1} << 53) + 1};
  {
    Journal journal(path);
    journal.Declare("eval/a b", {{"i", "1", ColumnType::kInteger}, {"x \"é\"", "s"}});
    for (size_t n = 0; n < numbers.size(); ++n) {
      journal.Append("eval/a b", {{"i", integers[n % 5]}, {"x \"é\"", numbers[n]}});
    }
    journal.Append("eval/a b", {{"i", uint8_t{3}}, {"x \"é\"", 2}});
    EXPECT_EQ(journal.size(), static_cast<int64_t>(fs::file_size(path)));
  }
  const JournalContents read = ReadJournal(path);
  ASSERT_EQ(read.tables.size(), 1u);
  EXPECT_EQ(read.tables[0].name, "/eval/a b");
  const H5Column& x = read.tables[0].Column("x \"é\"");
  EXPECT_EQ(x.unit, "s");
  const auto& values = std::get<std::vector<double>>(x.values);
  ASSERT_EQ(values.size(), numbers.size() + 1);
  for (size_t n = 0; n < numbers.size(); ++n) {
    if (std::isnan(numbers[n])) {
      EXPECT_TRUE(std::isnan(values[n]));
    } else {
      EXPECT_EQ(std::memcmp(&values[n], &numbers[n], 8), 0) << numbers[n];
    }
  }
  EXPECT_EQ(values.back(), 2.0);
  const auto& whole = std::get<std::vector<int64_t>>(read.tables[0].Column("i").values);
  for (size_t n = 0; n < numbers.size(); ++n) EXPECT_EQ(whole[n], integers[n % 5]);
}

TEST(Journal, RefusesWhatDoesNotFitItsStream) {
  const Scratch scratch;
  Journal journal(scratch / "journal.jsonl");
  const auto fails = [&](const std::function<void()>& action, const std::string& part) {
    const int64_t size = journal.size();
    EXPECT_HAS(ErrorOf(ExitCode::kFailure, action), part);
    EXPECT_EQ(journal.size(), size);
  };
  fails([&] { journal.Append("train", {{"step", 1}}); }, "stream train is not declared");
  journal.Declare("train", kTrainColumns);
  journal.Declare("train", kTrainColumns);
  fails([&] { journal.Declare("train", {{"step", "step"}}); }, "declared with other columns");
  fails([&] { journal.Declare("train/x", kTrainColumns); }, "both a table and a group");
  fails([&] { journal.Declare("/x", kTrainColumns); }, "name is like");
  fails([&] { journal.Declare("x", {}); }, "no columns");
  fails([&] { journal.Declare("x", {{"a", ""}, {"a", ""}}); }, "\"a\" is taken");
  fails([&] { journal.Declare("x", {{"stream", ""}}); }, "\"stream\" is taken, reserved");
  fails([&] { journal.Append("train", {{"step", 1}}); }, "has 1 columns, expected 3");
  fails(
      [&] {
        journal.Append("train", {{"step", 1}, {"loss", 1}, {"tokens", 1}});
      },
      "is loss, expected tokens");
  fails(
      [&] {
        journal.Append("train", {{"step", 1.5}, {"tokens", 1}, {"loss", 1}});
      },
      "expected an integer");
  EXPECT_EQ(ReadJournal(scratch / "journal.jsonl").tables[0].rows(), 0);
}

TEST(Journal, BrokenLastLineIsCutAndReported) {
  const Scratch scratch;
  const std::string path = scratch / "journal.jsonl";
  {
    Journal journal(path);
    journal.Declare("train", kTrainColumns);
    AppendStep(journal, 1);
    AppendStep(journal, 2);
  }
  const std::string whole = ReadFile(path);
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t size = 0; size <= whole.size(); ++size) {
    Overwrite(path, whole.substr(0, size));
    Journal journal(path);
    const size_t kept = size == 0 ? 0 : whole.rfind('\n', size - 1) + 1;
    EXPECT_EQ(journal.size(), static_cast<int64_t>(kept)) << size;
    EXPECT_EQ(journal.cut_bytes(), static_cast<int64_t>(size - kept));
    EXPECT_EQ(ReadFile(path), whole.substr(0, kept));
    journal.Declare("train", kTrainColumns);
    AppendStep(journal, 3);
    EXPECT_EQ(ReadJournal(path).broken_bytes, 0);
  }
  Overwrite(path, whole.substr(0, last) + std::string(40, '\0') + "\n");
  EXPECT_EQ(Journal(path).cut_bytes(), 41);
}

TEST(Journal, BrokenLineInTheMiddleIsAnErrorWithItsNumber) {
  const Scratch scratch;
  const std::string path = scratch / "journal.jsonl";
  {
    Journal journal(path);
    journal.Declare("train", kTrainColumns);
    AppendStep(journal, 1);
    AppendStep(journal, 2);
  }
  const std::string whole = ReadFile(path);
  const size_t second = whole.find('\n') + 1;
  const auto with_second = [&](const std::string& line) {
    return whole.substr(0, second) + line + "\n" + whole.substr(second);
  };
  for (const char* line :
       {"{\"stream\":\"trai", "", "[]", "3", "{}", "{\"stream\":3}", "{\"stream\":\"other\"}",
        "{\"stream\":\"train\",\"step\":1,\"tokens\":1}",
        "{\"stream\":\"train\",\"step\":1,\"tokens\":1,\"lost\":1.0}",
        "{\"stream\":\"train\",\"step\":1.5,\"tokens\":1,\"loss\":1.0}",
        "{\"stream\":\"train\",\"step\":1,\"tokens\":9223372036854775808,\"loss\":1.0}",
        "{\"stream\":\"train\",\"step\":1,\"tokens\":1,\"loss\":null}",
        "{\"stream\":\"train\",\"step\":1,\"tokens\":1,\"loss\":\"x\"}",
        "{\"stream\":\"train\",\"step\":\"NaN\",\"tokens\":1,\"loss\":1.0}",
        "{\"stream\":\"x\",\"columns\":[[\"a\",\"int32\",\"\"]]}",
        "{\"stream\":\"x\",\"columns\":3}",
        "{\"stream\":\"train\",\"columns\":[[\"a\",\"int64\",\"\"]]}"}) {
    Overwrite(path, with_second(line));
    EXPECT_HAS(DataError([&] { ReadJournal(path); }), path + ":2: broken line: ");
    DataError([&] { Journal journal(path); });
    EXPECT_EQ(ReadFile(path), with_second(line)) << "an error must not change the file";
  }
}

TEST(Journal, ResumedEqualsUninterrupted) {
  const Scratch scratch;
  const auto run = [](Journal& journal, int64_t from, int64_t to) {
    journal.Declare("train", kTrainColumns);
    for (int64_t step = from; step <= to; ++step) {
      AppendStep(journal, step);
      if (step % 4 != 0) continue;
      journal.Declare("eval/held_out", {{"step", "step", ColumnType::kInteger}, {"loss", "nat"}});
      journal.Append("eval/held_out", {{"step", step}, {"loss", 1.0 / step}});
    }
  };
  {
    Journal journal(scratch / "straight");
    run(journal, 1, 12);
  }
  for (const int64_t checkpoint : {0, 3, 4, 9, 12}) {
    const std::string path = scratch / Cat("resumed", checkpoint);
    int64_t size = 0;
    {
      Journal journal(path);
      run(journal, 1, checkpoint);
      size = journal.size();
      run(journal, checkpoint + 1, 11);
    }
    Journal journal(path);
    journal.TruncateTo(size);
    run(journal, checkpoint + 1, 12);
    EXPECT_EQ(ReadFile(path), ReadFile(scratch / "straight"));
    EXPECT_EQ(journal.tables()[0].rows(), 12);
    EXPECT_HAS(DataError([&] { journal.TruncateTo(journal.size() + 1); }), "expects");
    EXPECT_HAS(DataError([&] { journal.TruncateTo(journal.size() - 1); }), "not the end of a line");
    EXPECT_EQ(ReadFile(path), ReadFile(scratch / "straight"));
  }
}

TEST(Journal, FullDiskLeavesWholeLines) {
  const Scratch scratch;
  const std::string path = scratch / "journal.jsonl";
  const int status = InChild([&] {
    Journal journal(path);
    journal.Declare("train", kTrainColumns);
    LimitFileSize(1000);
    const std::string what = ErrorOf(ExitCode::kFailure, [&] {
      for (int64_t step = 0;; ++step) AppendStep(journal, step);
    });
    EXPECT_HAS(what, path + ": cannot append: ");
  });
  EXPECT_EQ(status, 0);
  const JournalContents read = ReadJournal(path);
  EXPECT_EQ(read.broken_bytes, 0);
  EXPECT_GT(read.tables.at(0).rows(), 5);
}

// HDF5 --------------------------------------------------------------------------------------------

std::vector<H5Table> SomeTables(size_t rows) {
  std::vector<int64_t> step(rows);
  std::iota(step.begin(), step.end(), int64_t{-2});
  std::vector<double> loss(rows);
  std::vector<std::string> name(rows);
  for (size_t r = 0; r < rows; ++r) {
    loss[r] = 1.0 / (static_cast<double>(r) + 3);
    name[r] = r % 2 == 0 ? "é" : std::string(r % 7, 'n');
  }
  if (rows > 2) {
    step[1] = std::numeric_limits<int64_t>::min();
    loss[0] = std::nan("");
    loss[1] = -kInfinity;
  }
  return {{"/eval/a b", {{"step", "step", step}, {"loss", "nat/token", loss}}},
          {"/train", {{"loss", "nat", loss}, {"name", "1", name}, {"step", "step", step}}}};
}

void ExpectSame(const H5Table& a, const H5Table& b) {
  EXPECT_EQ(a.name, b.name);
  ASSERT_EQ(a.columns.size(), b.columns.size());
  for (size_t c = 0; c < a.columns.size(); ++c) {
    EXPECT_EQ(a.columns[c].name, b.columns[c].name);
    EXPECT_EQ(a.columns[c].unit, b.columns[c].unit);
    ASSERT_EQ(a.columns[c].values.index(), b.columns[c].values.index());
    if (const auto* x = std::get_if<std::vector<double>>(&a.columns[c].values)) {
      const auto& y = std::get<std::vector<double>>(b.columns[c].values);
      ASSERT_EQ(x->size(), y.size());
      for (size_t r = 0; r < x->size(); ++r) {
        ASSERT_EQ(std::memcmp(&(*x)[r], &y[r], sizeof(double)), 0) << r;
      }
    } else {
      EXPECT_EQ(a.columns[c].values, b.columns[c].values);
    }
  }
}

TEST(H5, TablesAndAttributesRoundTrip) {
  const Scratch scratch;
  const std::string path = scratch / "a.h5";
  const Attributes attributes = {{"a", true},
                                 {"b", false},
                                 {"c", int64_t{-3}},
                                 {"d", 1.0},
                                 {"e/f", std::string("é\n")},
                                 {"g", std::string()},
                                 {"h", std::vector<int64_t>{1, -2}},
                                 {"i", std::vector<int64_t>{}},
                                 {"j", std::vector<double>{0.5}},
                                 {"k", std::vector<std::string>{"x", "", "é"}},
                                 {"l", std::vector<std::string>{}},
                                 {"m", std::string(100'000, 'x')}};
  for (const size_t rows : {0, 1, 2, 63, 4096, 10'001}) {
    const std::vector<H5Table> tables = SomeTables(rows);
    WriteH5(path, tables,
            {{"/", {{"v", int64_t{1}}}},
             {"/deep/group", attributes},
             {"/train", {{"note", std::string("n")}}}});
    EXPECT_EQ(ListTables(path), (std::vector<std::string>{"/eval/a b", "/train"}));
    for (const H5Table& table : tables) ExpectSame(ReadTable(path, table.name), table);
    EXPECT_EQ(ReadAttributes(path, "/deep/group"), attributes);
    EXPECT_EQ(ReadAttributes(path, "/"), (Attributes{{"v", int64_t{1}}}));
  }
  EXPECT_EQ(ReadTable(path, "/train").Numbers("step").size(), 10'001u);
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"a.h5"});
}

TEST(H5, EqualContentGivesEqualBytes) {
  const Scratch scratch;
  WriteH5(scratch / "a.h5", SomeTables(100), {});
  WriteH5(scratch / "b.h5", SomeTables(100), {});
  EXPECT_EQ(ReadFile(scratch / "a.h5"), ReadFile(scratch / "b.h5"));
}

TEST(H5, ErrorsNameFileTableAndColumn) {
  const Scratch scratch;
  const std::string path = scratch / "a.h5";
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": cannot read: No such file");
  Overwrite(path, "not HDF5");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": cannot read file: HDF5: ");
  Overwrite(path, "");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": ");
  WriteH5(path, SomeTables(3), {{"/settings", {}}});
  EXPECT_HAS(DataError([&] { ReadTable(path, "/none"); }), "cannot open table /none: HDF5: ");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/settings"); }), "/settings");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train").Column("lost"); }),
             "table /train has no column lost, it has loss, name, step");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train").Numbers("name"); }), "expected numbers");
  std::vector<H5Table> uneven = SomeTables(3);
  uneven[1].columns[1].values = std::vector<int64_t>{1};
  EXPECT_HAS(ErrorOf(ExitCode::kFailure, [&] { WriteH5(path, uneven, {}); }),
             "column name of table /train has 1 rows, expected 3");
  EXPECT_HAS(ErrorOf(ExitCode::kFailure,
                     [&] {
                       WriteH5(path, {SomeTables(1)[1], SomeTables(1)[1]}, {});
                     }),
             "cannot create table /train: HDF5: ");
  ExpectSame(ReadTable(path, "/train"), SomeTables(3)[1]);
  const std::string whole = ReadFile(path);
  for (size_t size = 0; size < whole.size(); size += 97) {
    Overwrite(path, whole.substr(0, size));
    DataError([&] { ReadTable(path, "/train"); });
  }
}

// Run directory -----------------------------------------------------------------------------------

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
  Overwrite(path + "/resolved.toml", other);
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }),
             "resolved.toml: train.steps is 101, this run asks for 100");
  Overwrite(path + "/resolved.toml", "extra = 1\n" + resolved);
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }), "extra is 1");
  Overwrite(path + "/resolved.toml", "");
  EXPECT_HAS(ErrorOf(ExitCode::kUsage, [&] { RunDirectory::Create(request); }), "is missing");
  EXPECT_TRUE(fs::exists(path + "/journal.jsonl")) << "a refusal must not remove anything";

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
  Overwrite(path + "/config.toml.tmp-1", "half");
  Overwrite(path + "/environment.json", "");
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
  Overwrite(path + "/status.json", "{\"state\": \"dancing\"}");
  EXPECT_HAS(DataError([&] { ReadStatus(path); }), "unknown state \"dancing\"");
  Overwrite(path + "/status.json", "{\"state\": \"done\"}");
  EXPECT_HAS(DataError([&] { ReadStatus(path); }), "a field is missing");
  Overwrite(path + "/status.json", "{\"state\": 3}");
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
  Overwrite(scratch / "file", "");
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

// Safetensors -------------------------------------------------------------------------------------

struct Weights {
  std::vector<float> a = std::vector<float>(6, 1.5f);
  std::vector<double> b = {1, -2, std::nan(""), kInfinity};
  std::vector<uint8_t> c = {1, 2, 3};

  std::vector<NamedTensor> Tensors() const {
    return {{"layer.0.w", "F32", {2, 3}, a.data()},
            {"scale", "F64", {4}, b.data()},
            {"c \"é\"", "U8", {3, 1}, c.data()},
            {"empty", "BF16", {0, 7}, nullptr},
            {"scalar", "I32", {}, a.data()}};
  }
  int32_t scalar = 0;
  std::vector<TensorTarget> Targets() {
    return {{"scalar", "I32", {}, &scalar},
            {"layer.0.w", "F32", {2, 3}, a.data()},
            {"scale", "F64", {4}, b.data()},
            {"c \"é\"", "U8", {3, 1}, c.data()},
            {"empty", "BF16", {0, 7}, nullptr}};
  }
};

TEST(Safetensors, RoundTripsAndIsTheFormatOfOthers) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const Weights written;
  WriteSafetensors(path, written.Tensors(), {{"architecture", "hybrid \"1\""}});
  Weights read;
  for (auto& x : read.a) x = 0;
  for (auto& x : read.b) x = 0;
  for (auto& x : read.c) x = 0;
  const SafetensorsFile file(path);
  file.Load(read.Targets());
  EXPECT_EQ(read.a, written.a);
  EXPECT_EQ(read.c, written.c);
  EXPECT_EQ(std::memcmp(read.b.data(), written.b.data(), 32), 0);
  EXPECT_EQ(std::memcmp(&read.scalar, written.a.data(), 4), 0);
  EXPECT_EQ(file.metadata(),
            (std::map<std::string, std::string>{{"architecture", "hybrid \"1\""}}));
  EXPECT_EQ(file.entries().size(), 5u);
  EXPECT_HAS(DataError([&] { file.At("none"); }), path + ": tensor none is missing");

  const std::string out = Python(scratch, R"(
import json, struct
b = open(')" + path + R"(', 'rb').read()
n, = struct.unpack('<Q', b[:8])
h = json.loads(b[8:8 + n])
assert n % 8 == 0 and all(isinstance(v, str) for v in h.pop('__metadata__').values())
assert h['layer.0.w']['dtype'] == 'F32' and h['layer.0.w']['shape'] == [2, 3]
begin, end = h['scale']['data_offsets']
assert struct.unpack('<4d', b[8 + n + begin:8 + n + end])[1] == -2
assert h['scalar']['shape'] == [] and h['empty']['shape'] == [0, 7]
print('ok')
)");
  EXPECT_EQ(out, "ok\n");
}

TEST(Safetensors, EveryTruncationAndEveryFlippedByteIsRefused) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  Weights weights;
  WriteSafetensors(path, weights.Tensors(), {{"note", "n"}});
  const std::string whole = ReadFile(path);
  const auto load = [&] { SafetensorsFile(path).Load(weights.Targets()); };
  load();
  for (size_t size = 0; size < whole.size(); ++size) {
    Overwrite(path, whole.substr(0, size));
    EXPECT_HAS(DataError(load), path + ": ");
  }
  Overwrite(path, whole + "x");
  EXPECT_HAS(DataError(load), "longer than its tensors");
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int bit : {0, 1, 5, 7}) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Overwrite(path, flipped);
      EXPECT_HAS(DataError(load), path + ": ");
    }
  }
  std::string flipped = whole;
  flipped[whole.size() - 1] ^= 1;
  Overwrite(path, flipped);
  EXPECT_HAS(DataError(load), "tensor scalar: is corrupted: checksum ");

  WriteSafetensors(path, {});
  EXPECT_EQ(SafetensorsFile(path).entries().size(), 0u);
}

std::string Foreign(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\x01');
}

TEST(Safetensors, ReadsFilesOfOthersStrictly) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}";
  };
  const std::string a = entry("a", "U8", "[2]", "[0,2]");
  Overwrite(path, Foreign("{" + entry("b", "I16", "[1]", "[2,4]") + "," + a +
                              ",\"__metadata__\":{\"format\":\"pt\"}}   ",
                          4));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.entries()[0].name, "a");
  uint8_t bytes[2] = {};
  file.Read(file.At("a"), bytes);
  EXPECT_EQ(bytes[1], 1);
  EXPECT_EQ(file.metadata().at("format"), "pt");

  const auto refuses = [&](const std::string& header, size_t data_bytes, const std::string& part) {
    Overwrite(path, Foreign(header, data_bytes));
    EXPECT_HAS(DataError([&] { SafetensorsFile{path}; }), part);
  };
  refuses("{" + a + "," + entry("b", "U8", "[2]", "[1,3]") + "}", 3, "tensor b: begins at byte 1");
  refuses("{" + a + "," + entry("b", "U8", "[2]", "[3,5]") + "}", 5, "(leaves a hole)");
  refuses("{" + a + "}", 3, "has 3 bytes of data, expected 2: longer");
  refuses("{" + a + "}", 1, "has 1 bytes of data, expected 2: truncated, the last is a");
  refuses("{" + a + "," + a + "}", 2, "name \"a\" is given twice");
  refuses("{" + entry("a", "U9", "[2]", "[0,2]") + "}", 2, "tensor a: unknown dtype \"U9\"");
  refuses("{" + entry("a", "F32", "[2]", "[0,2]") + "}", 2, "expected 8 bytes for F32 [2]");
  refuses("{" + entry("a", "U8", "[-2]", "[0,2]") + "}", 2, "found -2, expected a size");
  refuses("{" + entry("a", "U8", "[2.0]", "[0,2]") + "}", 2, "expected a size");
  refuses("{" + entry("a", "U8", "[2]", "[2,0]") + "}", 2, "data_offsets 2 to 0");
  refuses("{" + entry("a", "U8", "[2]", "[0,2,3]") + "}", 2, "expected two data_offsets");
  refuses("{" + entry("a", "U8", "[4294967296,4294967296,2]", "[0,2]") + "}", 2, "not a size");
  refuses("{" + entry("a", "U8", "[9223372036854775808]", "[0,2]") + "}", 2, "expected a size");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, "tensor a: expected dtype, shape");
  refuses("{\"a\":3}", 2, "tensor a: ");
  refuses("[]", 0, "not a JSON object");
  refuses("{\"__metadata__\":{\"n\":3}}", 0, "broken header");
  refuses("{", 0, "broken header");
  refuses("", 0, "broken header");
  std::string huge = Foreign("{}", 0);
  huge[6] = 1;
  Overwrite(path, huge);
  EXPECT_HAS(DataError([&] { SafetensorsFile{path}; }), "the header claims 281474976710658 bytes");
}

TEST(Safetensors, WriterRefusesBadNames) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const float x = 0;
  const auto write = [&](std::vector<NamedTensor> tensors) {
    return [&path, tensors = std::move(tensors)] { WriteSafetensors(path, tensors); };
  };
  ErrorOf(ExitCode::kFailure, write({{"a", "F32", {}, &x}, {"a", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"__metadata__", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"\xff", "F32", {}, &x}}));
  ErrorOf(ExitCode::kData, write({{"a", "float", {}, &x}}));
  ErrorOf(ExitCode::kFailure, [&] { WriteSafetensors(path, {}, {{"xxh3", "0"}}); });
  EXPECT_TRUE(NamesIn(scratch.path()).empty());
}

// Checkpoints -------------------------------------------------------------------------------------

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
      Overwrite(path, flipped);
      if (flipped[at] == '\n' || flipped[at] == ' ') continue;
      const std::string what = DataError([&] { trainer.Load(second); });
      EXPECT_HAS(what, path);
      EXPECT_HAS(what, advice);
    }
    Overwrite(path, whole.substr(0, whole.size() / 2));
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), advice);
    Overwrite(path, ReadFile(first.path + "/" + name));
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), advice);
    fs::remove(path);
    EXPECT_HAS(DataError([&] { trainer.Load(second); }), path + ": cannot read: No such file");
    Overwrite(path, whole);
    trainer.Load(second);
  }
  Overwrite(first.path + "/model.safetensors", "");
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

// Kill --------------------------------------------------------------------------------------------

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
