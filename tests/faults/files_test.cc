// links: weft_run
// Files and the journal: whole or absent, whatever happens; and how much memory there is.

#include "experiments/run/files.h"

#include <fcntl.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "experiments/run/environment.h"
#include "tests/faults/faults.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

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
  Spill(scratch / "file", "x");
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
  Spill(scratch / "run.h5.tmp-123", "half");
  Spill(scratch / "keep.tmp", "");
  RemoveTemporaries(scratch.path());
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"keep.tmp"});
}

TEST(MemoryLimit, IsTheSmallestOfTheMachineAndTheControlGroups) {
  const Scratch scratch;
  const std::string groups = scratch / "cgroup", mount = scratch / "mount";
  const auto limit = [&](const std::string& text) {
    Spill(groups, text);
    return MemoryLimit(groups, mount);
  };
  const int64_t machine = MemoryLimit(scratch / "none", mount);
  EXPECT_GT(machine, 1 << 20);
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(mount + path).parent_path());
    Spill(mount + path, text + "\n");
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

// Writes a journal of two steps; returns its bytes.
std::string TwoSteps(const std::string& path) {
  Journal journal(path);
  journal.Declare("train", kTrainColumns);
  AppendStep(journal, 1);
  AppendStep(journal, 2);
  return ReadFile(path);
}

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
  const std::string whole = TwoSteps(path);
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t size = 0; size <= whole.size(); ++size) {
    Spill(path, whole.substr(0, size));
    Journal journal(path);
    const size_t kept = size == 0 ? 0 : whole.rfind('\n', size - 1) + 1;
    EXPECT_EQ(journal.size(), static_cast<int64_t>(kept)) << size;
    EXPECT_EQ(journal.cut_bytes(), static_cast<int64_t>(size - kept));
    EXPECT_EQ(ReadFile(path), whole.substr(0, kept));
    journal.Declare("train", kTrainColumns);
    AppendStep(journal, 3);
    EXPECT_EQ(ReadJournal(path).broken_bytes, 0);
  }
  Spill(path, whole.substr(0, last) + std::string(40, '\0') + "\n");
  EXPECT_EQ(Journal(path).cut_bytes(), 41);
}

TEST(Journal, BrokenLineInTheMiddleIsAnErrorWithItsNumber) {
  const Scratch scratch;
  const std::string path = scratch / "journal.jsonl";
  const std::string whole = TwoSteps(path);
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
    Spill(path, with_second(line));
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

}  // namespace
}  // namespace weft
