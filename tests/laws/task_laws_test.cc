// links: weft_tasks
// Laws of every task in AllTasks(), under its default knobs and under every choice of every knob
// with choices.

#include <algorithm>
#include <cstdlib>
#include <new>
#include <set>

#include "kernels/base/rng.h"
#include "synth-tasks/core/python.h"
#include "tests/laws/task_testing.h"

namespace {
int64_t allocations = 0;
}  // namespace

// Not inline: GCC would warn of free() on what it knows to be from new.
[[gnu::noinline]] void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace weft {
namespace {

int64_t LargestDifficulty(const Task& task) {
  int64_t largest = 1;
  for (int64_t difficulty = 1; difficulty <= 4096; ++difficulty) {
    try {
      task.MaxLength(difficulty);
      largest = difficulty;
    } catch (const Error&) {
      break;
    }
  }
  return largest;
}

// At most eight of a sample's answers: the first, the last, and some between.
std::vector<int32_t> SomeAnswers(const Sample& sample) {
  std::vector<int32_t> some;
  const size_t count = sample.answers.size();
  for (size_t i = 0; i < 8; ++i) {
    const int32_t position = sample.answers[i * (count - 1) / 7];
    if (some.empty() || some.back() != position) some.push_back(position);
  }
  return some;
}
bool Same(const Sample& a, const Sample& b) {
  return a.tokens == b.tokens && a.labels == b.labels && a.answers == b.answers;
}
bool IsProgram(const std::string& text) { return text.find("assert ") != text.npos; }

class TaskLaws : public testing::TestWithParam<Variant> {
 protected:
  TaskLaws() {
    for (const int64_t difficulty : {1, 2, 8, 64}) {
      if (difficulty < largest_) difficulties_.push_back(difficulty);
    }
    difficulties_.push_back(largest_);
  }
  std::string KnobOf(const std::string& knob) const {
    for (const std::string& given : GetParam().knobs) {
      if (given.starts_with(knob + "=")) return given.substr(knob.size() + 1);
    }
    const auto config = FindTask(GetParam().task).config();
    ConfigVisitor visitor;
    config->Visit(visitor);
    for (const ConfigField& field : visitor.fields()) {
      if (field.path == knob) return *std::get<std::string*>(field.value);
    }
    return "";
  }

  std::unique_ptr<Task> task_ = GetParam().Make();
  int64_t largest_ = LargestDifficulty(*task_);
  std::vector<int64_t> difficulties_;
};

INSTANTIATE_TEST_SUITE_P(EveryChoice, TaskLaws, testing::ValuesIn(Variants()));

// The oracle of programs also checks every intermediate assertion on its way.
TEST_P(TaskLaws, OracleIsAlwaysRight) {
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    const uint64_t count = difficulty > 128 ? 30 : 500;
    for (const Split split : {Split::kTrain, Split::kEval}) {
      for (const bool strict : {false, true}) {
        for (uint64_t index = 0; index < count; ++index) {
          task_->Generate(7, split, index, difficulty, strict, sample);
          for (const int32_t position : SomeAnswers(sample)) {
            ASSERT_EQ(task_->Oracle(TextBeforeAnswer(*task_, sample, position)),
                      Answer(*task_, sample, position))
                << "position " << position << " of " << Text(*task_, sample);
          }
        }
      }
    }
  }
}

// Labels are the next tokens where the task has the knob "loss", states where it has
// "supervision", and anywhere else they are the answers alone.
TEST_P(TaskLaws, LabelsAreOnlyWhereStated) {
  const std::string loss = KnobOf("loss"), supervision = KnobOf("supervision");
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    for (uint64_t index = 0; index < 100; ++index) {
      const bool strict = index % 2 == 0;
      task_->Generate(3, Split::kTrain, index, difficulty, strict, sample);
      const size_t length = sample.tokens.size();
      ASSERT_EQ(sample.labels.size(), length);
      ASSERT_FALSE(sample.answers.empty());
      ASSERT_TRUE(std::ranges::is_sorted(sample.answers, std::less_equal<>()) ||
                  sample.answers.size() == 1);
      ASSERT_GE(sample.answers.front(), 0);
      ASSERT_LT(static_cast<size_t>(sample.answers.back()), length);
      for (size_t i = 0; i < length; ++i) {
        const int32_t label = sample.labels[i];
        const bool graded = std::ranges::binary_search(sample.answers, static_cast<int32_t>(i));
        if (graded) {
          ASSERT_NE(label, kIgnoreLabel) << "position " << i;
        }
        if (!loss.empty()) {
          const int32_t next = i + 1 < length ? sample.tokens[i + 1] : kIgnoreLabel;
          const bool asks = task_->vocabulary().text(sample.tokens[i]).ends_with("==");
          if (loss == "all" || asks) {
            ASSERT_EQ(label, next) << "position " << i;
          }
          if (label != kIgnoreLabel) {
            ASSERT_EQ(label, next) << "position " << i;
          }
        }
        if (loss != "all" && (strict || (loss.empty() && supervision != "every"))) {
          ASSERT_EQ(label != kIgnoreLabel, graded) << "position " << i;
        }
      }
    }
  }
}

// So the tokens are a function of the text.
TEST_P(TaskLaws, LongestMatchGivesTheTokensBack) {
  std::map<std::string, int32_t> tokens;
  size_t longest = 0;
  for (int32_t token = 0; token < task_->vocabulary().size(); ++token) {
    const std::string& text = task_->vocabulary().text(token);
    EXPECT_FALSE(text.empty());
    EXPECT_TRUE(tokens.emplace(text, token).second) << "\"" << text << "\" twice";
    longest = std::max(longest, text.size());
  }
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    for (uint64_t index = 0; index < 50; ++index) {
      task_->Generate(5, Split::kTrain, index, difficulty, false, sample);
      const std::string text = Text(*task_, sample);
      std::vector<int32_t> found;
      for (size_t at = 0; at < text.size();) {
        size_t length = std::min(longest, text.size() - at);
        while (length > 0 && !tokens.contains(text.substr(at, length))) --length;
        ASSERT_GT(length, 0u) << text;
        found.push_back(tokens.at(text.substr(at, length)));
        at += length;
      }
      ASSERT_EQ(found, sample.tokens) << text;
    }
  }
}

// The constant is chosen on one half of the samples and scored on the other.
TEST_P(TaskLaws, BestConstantAnswerScoresChance) {
  constexpr uint64_t kSamples = 5000;
  Sample sample;
  for (const int64_t difficulty : {1, 2, 4, 8, 64}) {
    if (difficulty > largest_) continue;
    for (const bool strict : {false, true}) {
      std::map<int32_t, double> counts[2];
      double total = 0;
      for (uint64_t index = 0; index < 2 * kSamples; ++index) {
        task_->Generate(11, Split::kEval, index, difficulty, strict, sample);
        for (const int32_t position : sample.answers) {
          ++counts[index % 2][AnswerToken(sample, position)];
        }
        if (index % 2 == 1) total += static_cast<double>(sample.answers.size());
      }
      const auto by_count = [](const auto& a, const auto& b) { return a.second < b.second; };
      const int32_t best = std::ranges::max_element(counts[0], by_count)->first;
      const double chance = task_->Chance(difficulty);
      const double sigma = std::sqrt(chance * (1 - chance) / total);
      EXPECT_NEAR(counts[1][best] / total, chance, 4 * sigma + 2 / total)
          << "difficulty " << difficulty << (strict ? ", strict" : "");
    }
  }
}

TEST_P(TaskLaws, SamplesDependOnSeedSplitAndIndexAlone) {
  constexpr uint64_t kCount = 300;
  const int64_t difficulty = std::min<int64_t>(64, largest_);
  const auto twin = GetParam().Make();
  std::vector<Sample> samples(kCount);
  for (uint64_t i = 0; i < kCount; ++i) {
    task_->Generate(1, Split::kTrain, i, difficulty, false, samples[i]);
  }
  Sample reused;
  std::set<std::string> texts;
  for (uint64_t i = kCount; i-- > 0;) {
    twin->Generate(99, Split::kEval, i, difficulty / 8 + 1, true, reused);
    twin->Generate(1, Split::kTrain, i, difficulty, false, reused);
    ASSERT_TRUE(Same(reused, samples[i])) << "index " << i;
    texts.insert(Text(*twin, reused));
  }
  ASSERT_EQ(texts.size(), kCount);
  const auto expect_new = [&](uint64_t seed, Split split, uint64_t index) {
    task_->Generate(seed, split, index, difficulty, false, reused);
    ASSERT_TRUE(texts.insert(Text(*task_, reused)).second)
        << "seed " << seed << ", index " << index << " is no new sample";
  };
  for (uint64_t i = 0; i < kCount; ++i) {
    expect_new(1, Split::kEval, i);
    expect_new(2, Split::kTrain, i);
    expect_new(1 + (uint64_t{1} << 32), Split::kTrain, i);
    expect_new(1, Split::kTrain, i + (uint64_t{1} << 32));
  }
}

TEST_P(TaskLaws, GenerationAllocatesNothing) {
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    for (const bool again : {false, true}) {
      const int64_t before = allocations;
      for (uint64_t index = 0; index < 20; ++index) {
        task_->Generate(2, Split::kTrain, index, difficulty, index % 4 == 0, sample);
      }
      if (again) {
        EXPECT_EQ(allocations, before) << "difficulty " << difficulty;
      }
    }
  }
}

// The bound is needed to lay out rows, so it may not be far off.
TEST_P(TaskLaws, MaxLengthHoldsAndIsNearlyReached) {
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    int64_t longest = 0;
    for (uint64_t index = 0; index < 300; ++index) {
      task_->Generate(2, Split::kTrain, index, difficulty, index % 4 == 0, sample);
      longest = std::max(longest, static_cast<int64_t>(sample.tokens.size()));
    }
    EXPECT_LE(longest, task_->MaxLength(difficulty)) << "difficulty " << difficulty;
    // What a step of a program costs in tokens depends on the step.
    const double share = GetParam().task == "code_execution" ? 0.4 : 0.9;
    EXPECT_GE(longest, share * task_->MaxLength(difficulty)) << "difficulty " << difficulty;
  }
}

TEST_P(TaskLaws, TwiceTheDifficultyIsLonger) {
  for (int64_t difficulty = 1; 2 * difficulty <= largest_; ++difficulty) {
    ASSERT_GT(task_->MaxLength(2 * difficulty), task_->MaxLength(difficulty)) << difficulty;
  }
}

TEST_P(TaskLaws, StrictProgramsAssertOnce) {
  Sample sample;
  for (const int64_t difficulty : difficulties_) {
    for (uint64_t index = 0; index < 50; ++index) {
      task_->Generate(4, Split::kTrain, index, difficulty, true, sample);
      const std::string text = Text(*task_, sample);
      if (!IsProgram(text)) continue;
      ASSERT_EQ(CountOf("==", text), 1);
      ASSERT_EQ(sample.answers.size(), 1u);
    }
  }
}

// Knobs of the base: shorter samples and strict samples are mixed into training, never into
// evaluation.
TEST_P(TaskLaws, ShortestAndStrictFractionMixTrainingAlone) {
  const auto mixed = [&](const std::string& knob) {
    auto knobs = GetParam().knobs;
    knobs.push_back(knob);
    return MakeTask(GetParam().task, knobs);
  };
  const int64_t difficulty = std::min<int64_t>(8, largest_);
  const auto shorter = mixed("shortest=1"), strict = mixed("strict_fraction=1");
  Sample sample, plain;
  std::set<size_t> lengths, expected;
  for (int64_t d = 1; d <= difficulty; ++d) {
    for (uint64_t index = 0; index < 200; ++index) {
      task_->Generate(8, Split::kTrain, index, d, false, plain);
      expected.insert(plain.tokens.size());
    }
  }
  for (uint64_t index = 0; index < 1000; ++index) {
    shorter->Generate(8, Split::kTrain, index, difficulty, false, sample);
    lengths.insert(sample.tokens.size());
    ASSERT_LE(static_cast<int64_t>(sample.tokens.size()), shorter->MaxLength(difficulty));
    shorter->Generate(8, Split::kEval, index, difficulty, true, sample);
    task_->Generate(8, Split::kEval, index, difficulty, true, plain);
    ASSERT_TRUE(Same(sample, plain));
    strict->Generate(8, Split::kEval, index, difficulty, true, sample);
    ASSERT_TRUE(Same(sample, plain));
  }
  EXPECT_EQ(*lengths.begin(), *expected.begin());
  EXPECT_GT(2 * lengths.size(), expected.size());
}

TEST_P(TaskLaws, CurriculumAscendsToTheEnd) {
  const std::vector<CurriculumStage> stages = task_->Curriculum();
  ASSERT_FALSE(stages.empty());
  for (size_t i = 0; i < stages.size(); ++i) {
    EXPECT_LE(stages[i].difficulty, largest_);
    EXPECT_GT(stages[i].difficulty, i > 0 ? stages[i - 1].difficulty : 0);
    EXPECT_EQ(stages[i].steps == 0, i + 1 == stages.size());
  }
}

TEST_P(TaskLaws, DifficultyOutOfRangeIsRefused) {
  Sample sample;
  for (const int64_t difficulty : {int64_t{-1}, int64_t{0}, largest_ + 1}) {
    const std::string name =
        "difficulty " + std::to_string(difficulty) + " of task " + GetParam().task;
    for (const std::string& error :
         {UsageError([&] { task_->Generate(0, Split::kTrain, 0, difficulty, false, sample); }),
          UsageError([&] { task_->Chance(difficulty); }),
          UsageError([&] { task_->MaxLength(difficulty); })}) {
      EXPECT_TRUE(error.starts_with(name)) << error;
    }
  }
}

TEST_P(TaskLaws, VocabularyIsSmall) { EXPECT_LE(task_->vocabulary().size(), 8192); }

// Python runs the text of programs with assertions, and refuses it when the answer is changed.
TEST(AllTasks, PythonAgreesWithAssertions) {
  std::string programs, wrong;
  int64_t count = 0;
  Sample sample;
  for (const Variant& variant : Variants()) {
    const auto task = variant.Make();
    task->Generate(6, Split::kTrain, 0, 1, false, sample);
    if (!IsProgram(Text(*task, sample))) continue;
    for (const int64_t difficulty : {1, 2, 5, 16, 128}) {
      for (uint64_t index = 0; index < 16; ++index, ++count) {
        task->Generate(6, Split::kTrain, index, difficulty, index % 4 == 0, sample);
        programs += Text(*task, sample) + '\0';
        wrong += Text(*task, sample) + "1" + '\0';
      }
    }
  }
  const auto failures = [](const std::string& texts) {
    return RunPython(
        "import sys\n"
        "failed = 0\n"
        "for text in open(sys.argv[1]).read().split('\\0')[:-1]:\n"
        "    try:\n"
        "        exec(text, {})\n"
        "    except AssertionError:\n"
        "        failed += 1\n"
        "print(failed)\n",
        texts);
  };
  EXPECT_GE(count, 300);
  EXPECT_EQ(failures(programs), 0);
  // A second digit changes every answer but a leading zero, which is a syntax error and fails the
  // process.
  std::string changed;
  int64_t changed_count = 0;
  std::istringstream all(wrong);
  for (std::string text; std::getline(all, text, '\0');) {
    if (text.ends_with(" 01")) text.replace(text.size() - 2, 2, "9");
    changed += text + '\0';
    ++changed_count;
  }
  EXPECT_EQ(failures(changed), changed_count);
}

// Any value of every knob gives a task that obeys the laws of single samples, or is refused.
TEST(AllTasks, AnyKnobsAreLawfulOrRefused) {
  Rng rng(1, Purpose::kTest, 0);
  const auto number = [&](const Range& range) {  // log-uniform, the bounds included
    const double low = range.low, high = std::min(range.high, 1e6);
    const double drawn = low - 1 + std::exp(rng.Uniform(0, std::log(high - low + 2)));
    return std::clamp(drawn, low, high);
  };
  Sample sample;
  for (const TaskSpec& spec : AllTasks()) {
    int64_t made = 0;
    for (int trial = 0; trial < 150; ++trial) {
      const auto config = spec.config();
      ConfigVisitor visitor;
      config->Visit(visitor);
      std::string knobs = spec.name;
      for (const ConfigField& field : visitor.fields()) {
        if (const auto value = std::get_if<bool*>(&field.value)) **value = rng.Below(2) == 0;
        if (const auto value = std::get_if<int64_t*>(&field.value)) {
          **value = std::llround(number(field.range));
        }
        if (const auto value = std::get_if<double*>(&field.value)) **value = number(field.range);
        if (const auto value = std::get_if<std::string*>(&field.value)) {
          **value = field.choices[rng.Below(static_cast<uint32_t>(field.choices.size()))];
        }
        if (field.path == "difficulties") *std::get<std::vector<int64_t>*>(field.value) = {1};
        if (field.path == "stage_steps") *std::get<std::vector<int64_t>*>(field.value) = {0};
        knobs += " " + field.path + "=" + ToToml(field);
      }
      std::unique_ptr<Task> task;
      try {
        task = config->Make();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kUsage) << knobs;
        continue;
      }
      ++made;
      const int64_t largest = LargestDifficulty(*task);
      for (const int64_t difficulty : {int64_t{1}, int64_t{2}, int64_t{7}, largest}) {
        if (difficulty > largest || (difficulty == largest && trial % 10 != 0)) continue;
        EXPECT_GT(task->Chance(std::min<int64_t>(difficulty, 64)), 0) << knobs;
        EXPECT_LE(task->Chance(std::min<int64_t>(difficulty, 64)), 1) << knobs;
        for (uint64_t index = 0; index < 6; ++index) {
          const Split split = index % 2 == 0 ? Split::kTrain : Split::kEval;
          task->Generate(9, split, index, difficulty, split == Split::kEval, sample);
          ASSERT_LE(static_cast<int64_t>(sample.tokens.size()), task->MaxLength(difficulty))
              << knobs;
          ASSERT_EQ(sample.labels.size(), sample.tokens.size()) << knobs;
          for (const int32_t position : SomeAnswers(sample)) {
            ASSERT_EQ(task->Oracle(TextBeforeAnswer(*task, sample, position)),
                      Answer(*task, sample, position))
                << knobs << "\n"
                << Text(*task, sample);
          }
        }
      }
    }
    EXPECT_GE(made, 30) << spec.name;
  }
}

TEST(AllTasks, UnknownNameGivesTheNearest) {
  EXPECT_EQ(std::string(FindTask("recall").name), "recall");
  const std::string error = UsageError([] { FindTask("state_trackin"); });
  EXPECT_NE(error.find("unknown task \"state_trackin\""), error.npos) << error;
  EXPECT_NE(error.find("nearest is \"state_tracking\""), error.npos) << error;
  EXPECT_NE(error.find(", recall, state_based_recall, state_tracking"), error.npos) << error;
}

TEST(AllTasks, AreGroupedByWhatIsProbed) {
  for (const TaskSpec& spec : AllTasks()) {
    const std::string group = spec.group;
    EXPECT_TRUE(group == "state" || group == "recall" || group == "both") << spec.name;
  }
}

TEST(AllTasks, BadKnobsAreRefused) {
  struct Case {
    std::string task;
    std::vector<std::string> knobs;
    std::string message;
  };
  const std::vector<Case> cases = {
      {"recall", {"difficulties=[]"}, "task.difficulties is empty"},
      {"recall", {"difficulties=[8,16]"}, "task.stage_steps has 1 entries and task.difficulties 2"},
      {"recall", {"difficulties=[16,8]", "stage_steps=[10,0]"}, "does not exceed the 16"},
      {"recall", {"difficulties=[8,8]", "stage_steps=[10,0]"}, "does not exceed the 8"},
      {"recall", {"difficulties=[8,16]", "stage_steps=[0,0]"}, "would never end"},
      {"recall", {"stage_steps=[10]"}, "write 0"},
      {"recall", {"difficulties=[129]"}, "task.difficulties[0] = 129 exceeds"},
      {"recall", {"max_difficulty=64"}, "task.difficulties[0] = 128 exceeds"},
      {"recall", {"max_difficulty=1025"}, "task.max_difficulty"},
      {"recall", {"difficulties=[0]"}, "task.difficulties"},
      {"recall", {"queries=0"}, "task.queries"},
      {"recall", {"loss=some"}, "task.loss"},
      {"state_based_recall", {"strict_fraction=1.5"}, "task.strict_fraction"},
      {"state_based_recall", {"reveal=any"}, "task.reveal"},
      {"state_based_recall", {"longest_list=129"}, "task.max_difficulty = 128"},
      {"state_based_recall", {"promote_accuracy=2"}, "task.promote_accuracy"},
      {"state_tracking", {"interval=-1"}, "task.interval"},
      {"state_tracking", {"update=permute"}, "task.update"},
      {"state_tracking", {"query=b"}, "task.query"},
      {"state_tracking", {"intervall=1"}, "task.interval"},
  };
  for (const Case& bad : cases) {
    const std::string error = UsageError([&] { MakeTask(bad.task, bad.knobs); });
    EXPECT_NE(error.find(bad.message), error.npos) << bad.message << "\n" << error;
  }
}

TEST(Vocabulary, UnknownTokenIsRefused) {
  const auto task = MakeTask("recall");
  for (const int32_t token : {-1, static_cast<int32_t>(task->vocabulary().size())}) {
    EXPECT_THROW(task->vocabulary().Text(std::vector{token}), Error);
  }
}

TEST(Python, ReadsAllTermsBeforeItSetsNames) {
  EXPECT_EQ(CompletePython("a, b = 1, 2\na, b = b, a\nassert a == 2\nassert b =="), "1");
  EXPECT_EQ(CompletePython("bits = [0, 1, 7]\na = 2\nassert bits[a] == 7\nassert bits[1] =="), "1");
  EXPECT_EQ(CompletePython("a, b, c = range(3)\na, b = c, c\nassert b =="), "2");
}

TEST(Python, FollowsBranchesLoopsAndCalls) {
  EXPECT_EQ(CompletePython("l = [4, 5, 6]\nl[1] = 9\na, l[0] = l[1], l[2]\nprint(l[0] + a * 2)"),
            "24");
  EXPECT_EQ(CompletePython("def f(x):\n    return (x * 3 + 2) % 7\nx = 5\na = f(f(2))\n"
                           "print((a + x) % 7)  # anything"),
            "3");
  EXPECT_EQ(CompletePython("a = 2\nif a < 2:\n    a = 7\nif a == 2:\n    a = a - 5\nprint(a % 4)"),
            "1");
  EXPECT_EQ(CompletePython("i, a = 0, 1\nwhile i < 3:\n    if i == 1:\n        a = a * 10\n"
                           "    i = i + 1\n    a = a + 1\nassert a =="),
            "22");
  EXPECT_EQ(CompletePython("print(-(2 - 5) * 2 - 1 - 1)"), "4");
}

TEST(Python, WrongProgramsAreRefused) {
  for (const char* program : {"",
                              "a = 1",
                              "a = 1\nassert a == 1",
                              "a = 1\nassert a == 2\nassert a ==",
                              "assert a ==",
                              "a, b = 1\nassert a ==",
                              "a = [0, 1\nassert a ==",
                              "bits = [0, 1]\nassert bits[2] ==",
                              "bits = [0, 1]\nassert bits ==",
                              "a = 1 2\nassert a ==",
                              "a = 1\n\nassert a ==",
                              "a = 99999999999999999999\nassert a ==",
                              "a = 1\nassert a[0] ==",
                              "a, b = [1]\nassert a ==",
                              "a = 1\nassert a == 1 ",
                              "a = 1\nif a == 1:\nprint(a)",
                              "if 1 < 2:\nprint(1)",
                              "a = 0\nwhile a < 1:\n    a = 0\nprint(a)",
                              "print(f(1))",
                              "print(1",
                              "print(1) 2",
                              "def f(x):\n    return x\n    return x\nprint(f(1))",
                              "print(1 % 0)",
                              "a = 1\na[0] = 2\nprint(a)",
                              "if 1 == 1:\n    a = 1\n      b = 1\nprint(a)",
                              "def f(x):\n    return f(x)\nprint(f(1))"}) {
    EXPECT_THROW(CompletePython(program), Error) << program;
  }
}

}  // namespace
}  // namespace weft
