// links: weft_tasks
// Laws of every task in AllTasks(), under its default knobs and under every choice of every knob
// with choices; then what only one task promises.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "arch/core/config.h"
#include "kernels/base/check.h"
#include "synth-tasks/core/python.h"
#include "synth-tasks/core/task.h"

namespace weft {
namespace {

std::unique_ptr<Task> MakeTask(const std::string& name,
                               const std::vector<std::string>& knobs = {}) {
  const auto config = FindTask(name).config();
  ConfigVisitor visitor;
  visitor.Section("task", *config);
  Settings settings;
  for (const std::string& knob : knobs) settings.push_back(ParseOverride("task." + knob, "test"));
  Apply(settings, visitor.fields());
  return config->Make();
}

struct Variant {
  std::string task;
  std::vector<std::string> knobs;
  std::unique_ptr<Task> Make() const { return MakeTask(task, knobs); }
};

void PrintTo(const Variant& variant, std::ostream* out) {
  *out << variant.task;
  for (const std::string& knob : variant.knobs) *out << " " << knob;
}

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const TaskSpec& spec : AllTasks()) {
    variants.push_back({spec.name, {}});
    const auto config = spec.config();
    ConfigVisitor visitor;
    config->Visit(visitor);
    for (const ConfigField& field : visitor.fields()) {
      for (const std::string& choice : field.choices) {
        if (choice == *std::get<std::string*>(field.value)) continue;
        variants.push_back({spec.name, {field.path + "=" + choice}});
      }
      if (const auto value = std::get_if<bool*>(&field.value)) {
        variants.push_back({spec.name, {field.path + (**value ? "=false" : "=true")}});
      }
    }
  }
  return variants;
}

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

std::string Text(const Task& task, const Sample& sample) {
  return task.vocabulary().Text(sample.tokens);
}
int32_t AnswerToken(const Sample& sample, int32_t position) {
  return sample.labels[static_cast<size_t>(position)];
}
std::string Answer(const Task& task, const Sample& sample, int32_t position) {
  const std::string& text = task.vocabulary().text(AnswerToken(sample, position));
  return text.substr(text.find_first_not_of(' '));
}
std::string TextBeforeAnswer(const Task& task, const Sample& sample, int32_t position) {
  return task.vocabulary().Text(std::span(sample.tokens).first(static_cast<size_t>(position) + 1));
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
int64_t CountOf(const std::string& part, const std::string& text) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}
std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}
bool Same(const Sample& a, const Sample& b) {
  return a.tokens == b.tokens && a.labels == b.labels && a.answers == b.answers;
}
bool IsProgram(const std::string& text) { return text.find("assert ") != text.npos; }

template <class Function>
std::string UsageError(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage) << error.what();
    return error.what();
  }
  return "no error";
}

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

// Runs a Python script on the path of a file that holds `input`; returns the number it prints.
int64_t RunPython(const std::string& script, const std::string& input) {
  const std::string base = testing::TempDir() + "weft_task_programs_" + std::to_string(getpid());
  std::ofstream(base, std::ios::binary) << input;
  std::ofstream(base + ".py") << script;
  FILE* pipe = popen(("python3 '" + base + ".py' '" + base + "'").c_str(), "r");
  long long number = -1;
  if (fscanf(pipe, "%lld", &number) != 1) number = -1;
  EXPECT_EQ(pclose(pipe), 0);
  std::remove(base.c_str());
  std::remove((base + ".py").c_str());
  return number;
}

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

TEST(Python, WrongProgramsAreRefused) {
  for (const char* program :
       {"", "a = 1", "a = 1\nassert a == 1", "a = 1\nassert a == 2\nassert a ==", "assert a ==",
        "a, b = 1\nassert a ==", "a = [0, 1\nassert a ==", "bits = [0, 1]\nassert bits[2] ==",
        "bits = [0, 1]\nassert bits ==", "a = 1 2\nassert a ==", "a = 1\n\nassert a ==",
        "a = 99999999999999999999\nassert a ==", "a = 1\nassert a[0] ==", "a, b = [1]\nassert a ==",
        "a = 1\nassert a == 1 "}) {
    EXPECT_THROW(CompletePython(program), Error) << program;
  }
}

// Counts against equal expectations: at most 5 sigma above the mean of chi squared.
void ExpectUniform(const std::map<std::string, int64_t>& counts, size_t cells) {
  ASSERT_EQ(counts.size(), cells);
  double total = 0, chi_squared = 0;
  for (const auto& [cell, count] : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(cells);
  for (const auto& [cell, count] : counts) {
    chi_squared += (static_cast<double>(count) - expected) *
                   (static_cast<double>(count) - expected) / expected;
  }
  const double freedom = static_cast<double>(cells) - 1;
  EXPECT_LT(chi_squared, freedom + 5 * std::sqrt(2 * freedom));
}

TEST(StateTracking, SwapsAreUniformTranspositions) {
  const auto task = MakeTask("state_tracking");
  std::map<std::string, int64_t> counts;
  Sample sample;
  for (uint64_t index = 0; index < 300; ++index) {
    task->Generate(1, Split::kTrain, index, 64, true, sample);
    const auto lines = Lines(Text(*task, sample));
    ASSERT_EQ(lines.size(), 66u);
    EXPECT_EQ(lines[0], "a, b, c, d, e = range(5)");
    for (size_t i = 1; i <= 64; ++i) {
      const std::string &line = lines[i], x = line.substr(0, 1), y = line.substr(3, 1);
      ASSERT_NE(x, y);
      ASSERT_EQ(line, x + ", " + y + " = " + y + ", " + x);
      ++counts[line];
    }
    EXPECT_TRUE(lines[65].starts_with("assert a == "));
  }
  ExpectUniform(counts, 20);
}

TEST(StateTracking, AssignmentsTakeAnyTwoSources) {
  const auto task = MakeTask("state_tracking", {"update=assign"});
  std::map<std::string, int64_t> counts;
  Sample sample;
  for (uint64_t index = 0; index < 1000; ++index) {
    task->Generate(1, Split::kTrain, index, 64, true, sample);
    const auto lines = Lines(Text(*task, sample));
    for (size_t i = 1; i <= 64; ++i) {
      ASSERT_NE(lines[i][0], lines[i][3]);
      ASSERT_NE(lines[i][7], lines[i][10]);
      ++counts[lines[i]];
    }
  }
  ExpectUniform(counts, 400);
}

TEST(StateTracking, AssertionsComeAtTheInterval) {
  struct Case {
    std::vector<std::string> knobs;
    int64_t difficulty, spacing, revealed;
  };
  const std::vector<Case> cases = {{{}, 4, 1, 1},
                                   {{}, 8, 1, 1},
                                   {{}, 16, 2, 1},
                                   {{}, 64, 8, 1},
                                   {{"interval=1"}, 64, 1, 1},
                                   {{"interval=3", "reveal=all"}, 8, 3, 5},
                                   {{"interval=8"}, 8, 8, 1}};
  Sample sample;
  for (const Case& expected : cases) {
    const auto task = MakeTask("state_tracking", expected.knobs);
    task->Generate(1, Split::kTrain, 0, expected.difficulty, false, sample);
    auto lines = Lines(Text(*task, sample));
    lines.erase(lines.begin());
    int64_t updates = 0, revealed = 0;
    for (const std::string& line : lines) {
      if (line.starts_with("assert")) {
        ++revealed;
        continue;
      }
      const bool due = updates > 0 && updates % expected.spacing == 0;
      EXPECT_EQ(revealed, due ? expected.revealed : 0) << "after update " << updates;
      ++updates;
      revealed = 0;
    }
    EXPECT_EQ(updates, expected.difficulty);
    EXPECT_EQ(revealed, 1);
  }
}

TEST(StateTracking, RevealsTheChosenVariables) {
  Sample sample;
  const auto revealed = [&](const std::string& reveal) {
    const auto task = MakeTask("state_tracking", {"interval=1", "reveal=" + reveal});
    std::map<std::string, int64_t> counts;
    for (uint64_t index = 0; index < 200; ++index) {
      task->Generate(1, Split::kTrain, index, 16, false, sample);
      auto lines = Lines(Text(*task, sample));
      lines.pop_back();
      for (const std::string& line : lines) {
        if (line.starts_with("assert ")) ++counts[line.substr(7, 1)];
      }
    }
    return counts;
  };
  EXPECT_EQ(revealed("a"), (std::map<std::string, int64_t>{{"a", 3000}}));
  EXPECT_EQ(revealed("all").at("e"), 3000);
  ExpectUniform(revealed("any"), 5);
}

TEST(Recall, AddressesAndBitsAreUniform) {
  const auto task = MakeTask("recall", {"queries=4"});
  std::map<std::string, int64_t> addresses, bits;
  Sample sample;
  for (uint64_t index = 0; index < 4000; ++index) {
    task->Generate(1, Split::kTrain, index, 16, false, sample);
    const auto lines = Lines(Text(*task, sample));
    ASSERT_EQ(lines.size(), 9u);
    for (size_t i = 1; i < 9; i += 2) {
      ++addresses[lines[i]];
      ASSERT_TRUE(lines[i + 1].starts_with("assert bits[a] == "));
    }
    for (size_t i = 0; i < 16; ++i) ++bits[std::to_string(i) + lines[0][8 + 3 * i]];
  }
  ExpectUniform(addresses, 16);
  ExpectUniform(bits, 32);
}

TEST(StateBasedRecall, SpacingIsUniformOnPowersOfTwo) {
  const auto task = MakeTask("state_based_recall");
  constexpr int64_t kCount = 5000;
  std::map<int64_t, int64_t> assertions;
  Sample sample;
  for (uint64_t index = 0; index < kCount; ++index) {
    task->Generate(1, Split::kTrain, index, 8, false, sample);
    ++assertions[CountOf("assert", Text(*task, sample)) - 1];
  }
  // Spacings 1, 2, 4 and 8 in four fifths of the samples; strict samples look like spacing 8.
  const std::map<int64_t, double> expected = {{7, .2}, {3, .2}, {1, .2}, {0, .4}};
  ASSERT_EQ(assertions.size(), expected.size());
  for (const auto& [count, part] : expected) {
    EXPECT_NEAR(static_cast<double>(assertions[count]) / kCount, part,
                4 * std::sqrt(part * (1 - part) / kCount));
  }
}

TEST(StateBasedRecall, PointersAreUniformAndRevealFollowsTheKnob) {
  Sample sample;
  std::map<std::string, int64_t> pointers;
  for (const std::string reveal : {"bits", "address"}) {
    const auto task = MakeTask("state_based_recall", {"reveal=" + reveal, "strict_fraction=0"});
    for (uint64_t index = 0; index < 2000; ++index) {
      task->Generate(1, Split::kTrain, index, 8, false, sample);
      auto lines = Lines(Text(*task, sample));
      for (size_t k = 0; k < 5 && reveal == "bits"; ++k)
        ++pointers[std::to_string(k) + lines[1][16 + 3 * k]];
      EXPECT_TRUE(lines.back().starts_with("assert bits[a] == "));
      lines.pop_back();
      for (const std::string& line : lines) {
        if (!line.starts_with("assert")) continue;
        EXPECT_EQ(line.starts_with("assert bits["), reveal == "bits") << line;
      }
    }
  }
  ExpectUniform(pointers, 40);
}

// Python prints what the interpreter says and the text states, writes the numbers of the trace, and
// executes as many lines after the head as the difficulty says.
TEST(CodeExecution, PythonAgrees) {
  constexpr const char* kScript = R"(
import sys
class List(list):
    def __setitem__(self, index, value):
        list.__setitem__(self, index, value)
        written.append(value)
class Scope(dict):
    def __setitem__(self, name, value):
        if type(value) is int: written.append(value)
        dict.__setitem__(self, name, List(value) if type(value) is list else value)
def line(frame, event, argument):
    global steps
    if event == 'line' and head < frame.f_lineno < end: steps += 1
    return line
failed = 0
for case in open(sys.argv[1]).read().split('\0')[:-1]:
    text, answer, difficulty = case.split('\1')
    lines = text.split('\n')
    head = sum(l.startswith(('a, b, c, d, e = ', 'l = [', 'def ', '    return')) for l in lines)
    end, steps, written, printed = len(lines), 0, [], []
    code = compile(text, 'program', 'exec')
    sys.settrace(lambda frame, event, argument: line if frame.f_code is code else None)
    exec(code, {'print': printed.append}, Scope())
    sys.settrace(None)
    stated = text.split('#')[1].split()
    failed += not (printed == [int(answer)] and stated[-1] == answer and steps == int(difficulty)
        and (len(stated) == 1 or stated[1:-2] == [str(value) for value in written[5:]]))
print(failed)
)";
  std::string cases, wrong_answers, wrong_steps;
  int64_t count = 0;
  Sample sample;
  for (const Variant& variant : Variants()) {
    if (variant.task != "code_execution") continue;
    const auto task = variant.Make();
    for (const auto& [difficulty, programs] :
         {std::pair{1, 50}, {2, 50}, {5, 100}, {16, 100}, {64, 50}, {1024, 2}}) {
      for (uint64_t index = 0; index < static_cast<uint64_t>(programs); ++index, ++count) {
        task->Generate(12, Split::kTrain, index, difficulty, index % 3 == 0, sample);
        const std::string text = Text(*task, sample);
        const std::string answer =
            task->Oracle(TextBeforeAnswer(*task, sample, sample.answers.back()));
        const auto add = [&](std::string& to, const std::string& answer, int64_t steps) {
          to += text + '\1' + answer + '\1' + std::to_string(steps) + '\0';
        };
        add(cases, answer, difficulty);
        add(wrong_answers, answer + "1", difficulty);
        add(wrong_steps, answer, difficulty + 1);
      }
    }
  }
  EXPECT_GT(count, 3000);
  EXPECT_EQ(RunPython(kScript, cases), 0);
  EXPECT_EQ(RunPython(kScript, wrong_answers), count);
  EXPECT_EQ(RunPython(kScript, wrong_steps), count);
}

TEST(CodeExecution, EveryFeatureHasItsKnob) {
  const std::map<std::string, std::vector<std::string>> marks = {
      {"swaps", {"a, b = b, a"}},
      {"arithmetic", {"a = (b + ", "a = (b - ", "a = (b * "}},
      {"lists", {"l = [", "a = l[b]", "l[b] = a"}},
      {"branches", {"if a < b:\n    ", "if a == 1:\n    "}},
      {"loops", {"while i < 2:\n    ", "while i < b:\n    ", "\n    i = i + 1"}},
      {"calls", {"def f(x):\n    return (x * ", "def g(x):", "a = f(b)", "a = g(b)"}}};
  Sample sample;
  const auto texts = [&](const std::vector<std::string>& knobs) {
    const auto task = MakeTask("code_execution", knobs);
    std::string all;
    for (uint64_t index = 0; index < 500; ++index) {
      task->Generate(1, Split::kTrain, index, 64, false, sample);
      all += Text(*task, sample) + "\n";
    }
    return all;
  };
  const std::string with_all = texts({});
  for (const auto& [knob, parts] : marks) {
    const std::string without = texts({knob + "=false"});
    for (const std::string& part : parts) {
      EXPECT_NE(with_all.find(part), with_all.npos) << part;
      EXPECT_EQ(without.find(part), without.npos) << part;
    }
  }
}

// What is left if no last line is read: the share of the asked variable's most frequent value.
TEST(CodeExecution, VariablesStayMixed) {
  Sample sample;
  const auto task = MakeTask("code_execution");
  for (const int64_t difficulty : {4, 64, 512}) {
    std::map<int64_t, int64_t> counts;
    for (uint64_t index = 0; index < 2000; ++index) {
      task->Generate(1, Split::kEval, index, difficulty, true, sample);
      const std::string line = Lines(Text(*task, sample)).back();  // print((a + 5) % 7)  # 3
      ++counts[(line.back() - line[11] + 7) % 7];
    }
    int64_t most = 0;
    for (const auto& [value, count] : counts) most = std::max(most, count);
    EXPECT_LT(most, 2000 * 0.25) << difficulty;
  }
}

TEST(Curricula, AreThoseOfTheSource) {
  const auto stages = [](const std::string& name) {
    std::vector<std::vector<double>> rows;
    for (const CurriculumStage& stage : MakeTask(name)->Curriculum()) {
      rows.push_back({static_cast<double>(stage.difficulty), static_cast<double>(stage.steps),
                      stage.promote_accuracy});
    }
    return rows;
  };
  using Rows = std::vector<std::vector<double>>;
  EXPECT_EQ(stages("recall"), (Rows{{128, 0, 0}}));
  EXPECT_EQ(stages("state_tracking"),
            (Rows{{8, 500, 0}, {16, 1000, 0}, {32, 2000, 0}, {64, 0, 0}}));
  EXPECT_EQ(stages("state_based_recall"),
            (Rows{{8, 10000, .95}, {16, 30000, .95}, {32, 30000, .95}, {64, 0, 0}}));
}

}  // namespace
}  // namespace weft
