// links: weft_tasks
// What only one task promises: its distributions, its text, and what other programs make of it.

#include <algorithm>
#include <set>
#include <tuple>

#include "tests/laws/task_testing.h"

namespace weft {
namespace {

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

TEST(Recall, LiteralAddressesAreUniform) {
  const auto task = MakeTask("recall", {"address=literal"});
  std::map<std::string, int64_t> addresses;
  Sample sample;
  for (uint64_t index = 0; index < 4000; ++index) {
    task->Generate(1, Split::kTrain, index, 16, false, sample);
    const auto lines = Lines(Text(*task, sample));
    ASSERT_EQ(lines.size(), 2u);
    ++addresses[lines[1].substr(0, lines[1].find(" =="))];
  }
  ASSERT_TRUE(addresses.contains("assert bits[15]"));
  ExpectUniform(addresses, 16);
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

// Strict samples, evaluated or not, have n bits; the others n to longest_list, and no more tokens
// than MaxLength allows for.
TEST(StateBasedRecall, ListsAreAsLongAsTheKnobSays) {
  const auto task = MakeTask("state_based_recall", {"longest_list=32"});
  std::map<int64_t, int64_t> bits;
  Sample sample;
  size_t longest = 0;
  for (uint64_t index = 0; index < 5000; ++index) {
    task->Generate(1, Split::kTrain, index, 8, false, sample);
    longest = std::max(longest, sample.tokens.size());
    ++bits[CountOf(",", Lines(Text(*task, sample))[0]) + 1];
    task->Generate(1, Split::kEval, index, 8, true, sample);
    ASSERT_EQ(CountOf(",", Lines(Text(*task, sample))[0]) + 1, 8);
  }
  EXPECT_LE(longest, task->MaxLength(8));
  EXPECT_GE(longest + 2, task->MaxLength(8));
  ASSERT_EQ(bits.size(), 25u);
  for (const auto& [m, count] : bits) {
    const double part = .8 / 25 + (m == 8 ? .2 : 0);
    EXPECT_NEAR(static_cast<double>(count) / 5000, part, 4 * std::sqrt(part * (1 - part) / 5000))
        << m;
  }
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
      {"assignments", {"\na = b\n"}},
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
  const std::string error = UsageError([] {
    MakeTask("code_execution", {"assignments=false", "swaps=false", "arithmetic=false",
                                "lists=false", "calls=false"});
  });
  EXPECT_NE(error.find("are all false"), error.npos) << error;
}

// What is asked for last depends on every step: the numbers of the first line are never lost.
TEST(CodeExecution, SwapsAloneForgetNothing) {
  Sample sample;
  const auto task = MakeTask(
      "code_execution", {"assignments=false", "arithmetic=false", "lists=false", "calls=false"});
  for (uint64_t index = 0; index < 200; ++index) {
    task->Generate(1, Split::kEval, index, 64, true, sample);
    const std::string text = Text(*task, sample);
    const std::string program = text.substr(0, text.rfind('\n') + 1);
    std::multiset<std::string> first, last;
    for (size_t k = 0; k < 5; ++k) {
      first.insert(text.substr(std::string("a, b, c, d, e = ").size() + 3 * k, 1));
      last.insert(task->Oracle(program + "print(" + "abcde"[k] + ")"));
    }
    EXPECT_EQ(last, first) << text;
  }
}

TEST(CodeExecution, AnyVariableMayBeAskedFor) {
  Sample sample;
  const auto task = MakeTask("code_execution");
  for (const int64_t difficulty : {1, 16, 512}) {
    std::map<std::string, int64_t> asked;
    for (uint64_t index = 0; index < 2000; ++index) {
      task->Generate(1, Split::kEval, index, difficulty, true, sample);
      ++asked[Lines(Text(*task, sample)).back().substr(0, 8)];  // print(a)  # 3
    }
    ExpectUniform(asked, 5);
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

// Everything written as an expression means in Python what the sample says.
TEST(Expressions, PythonAgrees) {
  constexpr const char* kScript = R"(
import sys
def polish(symbols):
    symbol = next(symbols)
    if symbol.isdigit(): return int(symbol)
    left = polish(symbols)
    right = polish(symbols)
    return eval('left' + symbol + 'right')
failed = 0
for case in open(sys.argv[1]).read().split('\n')[:-1]:
    notation, modulus, text = case.split(' ')
    expression, answer = text.split('=')
    value = polish(iter(expression)) if notation == 'polish' else eval(expression)
    failed += value % int(modulus) != int(answer)
print(failed)
)";
  struct Written {
    std::string task, notation, modulus;
    std::vector<std::string> knobs;
  };
  const std::vector<Written> all = {
      {"modular_arithmetic", "infix", "5", {}},
      {"modular_arithmetic", "infix", "10", {"modulus=10"}},
      {"modular_arithmetic", "infix", "5", {"brackets=true"}},
      {"modular_arithmetic", "infix", "2", {"brackets=true", "modulus=2"}},
      {"modular_arithmetic", "infix", "5", {"brackets=true", "multiplication=false"}},
      {"formula", "infix", "2", {}},
      {"formula", "polish", "2", {"notation=polish"}},
      {"formula", "infix", "5", {"kind=integer"}},
      {"formula", "polish", "7", {"kind=integer", "notation=polish", "modulus=7"}}};
  std::string right, wrong;
  int64_t count = 0;
  Sample sample;
  for (const Written& written : all) {
    const auto task = MakeTask(written.task, written.knobs);
    for (const int64_t difficulty : {1, 2, 3, 4, 5, 6, 7, 12, 40, 64}) {
      for (uint64_t index = 0; index < 30; ++index, ++count) {
        task->Generate(3, Split::kEval, index, difficulty, true, sample);
        std::string text = Text(*task, sample);
        right += written.notation + " " + written.modulus + " " + text + "\n";
        text.back() = static_cast<char>(text.back() == '9' ? '0' : text.back() + 1);
        wrong += written.notation + " " + written.modulus + " " + text + "\n";
      }
    }
  }
  EXPECT_EQ(RunPython(kScript, right), 0);
  EXPECT_EQ(RunPython(kScript, wrong), count);
}

TEST(ModularArithmetic, HasTheStatedSymbols) {
  Sample sample;
  for (const bool brackets : {false, true}) {
    const auto task = MakeTask("modular_arithmetic", {brackets ? "brackets=true" : "modulus=5"});
    std::map<std::string, int64_t> operators, left_lengths;
    for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 64}) {
      for (uint64_t index = 0; index < 400; ++index) {
        task->Generate(1, Split::kTrain, index, n, false, sample);
        const std::string text = Text(*task, sample);
        ASSERT_EQ(text.find('='), static_cast<size_t>(brackets ? n : n | 1)) << text;
        if (n != 7) continue;
        for (const char symbol : text.substr(brackets ? 3 : 0)) {
          if (!brackets && std::string("+-*").find(symbol) != std::string::npos) {
            ++operators[{symbol}];
          }
        }
        // (d op (d)), (-d op -d) or ((d) op d): the places of the operator.
        const size_t at = text[1] == '(' ? 4 : text[1] == '-' ? 3 : 2;
        if (brackets) ++left_lengths[std::to_string(at)];
      }
    }
    brackets ? ExpectUniform(left_lengths, 3) : ExpectUniform(operators, 3);
  }
}

TEST(Formula, HasTheStatedLeavesAndUniformSplits) {
  Sample sample;
  for (const std::string notation : {"infix", "polish"}) {
    const auto task = MakeTask("formula", {"kind=integer", "notation=" + notation});
    for (uint64_t index = 0; index < 300; ++index) {
      task->Generate(1, Split::kTrain, index, 9, false, sample);
      const std::string text = Text(*task, sample);
      const auto leaves = std::ranges::count_if(text, [](char c) { return c >= '0' && c <= '9'; });
      EXPECT_EQ(leaves, 9 + 1) << text;  // and the answer
      EXPECT_EQ(CountOf("(", text), notation == "infix" ? 8 : 0);
    }
  }
  // Of three leaves, one or two are on the left.
  const auto task = MakeTask("formula");
  std::map<std::string, int64_t> left;
  for (uint64_t index = 0; index < 1000; ++index) {
    task->Generate(1, Split::kTrain, index, 3, false, sample);
    ++left[Text(*task, sample).substr(0, 2) == "((" ? "two" : "one"];
  }
  ExpectUniform(left, 2);
}

TEST(WordProblem, GroupsAndGeneratorsHaveTheirSizes) {
  const auto elements = [](const std::vector<std::string>& knobs) {
    const auto task = MakeTask("word_problem", knobs);
    std::map<std::string, int64_t> counts;
    Sample sample;
    for (uint64_t index = 0; index < 300; ++index) {
      task->Generate(1, Split::kTrain, index, 64, true, sample);
      for (const int32_t token : sample.tokens) ++counts[task->vocabulary().text(token)];
    }
    return counts;
  };
  ExpectUniform(elements({"group=z2"}), 2);
  ExpectUniform(elements({"group=z60"}), 60);
  ExpectUniform(elements({"group=a4xz5"}), 60);
  ExpectUniform(elements({"group=a5"}), 60);
  ExpectUniform(elements({"group=s3"}), 6);
  ExpectUniform(elements({"group=s5"}), 120);
  const auto moved = [](const std::string& element) {
    int64_t count = 0;
    for (size_t i = 1; i < element.size(); ++i)
      count += element[i] != static_cast<char>('0' + i - 1);
    return count;
  };
  const auto swaps = elements({"generators=swaps"}),
             both = elements({"generators=swaps_and_3_cycles"});
  ExpectUniform(swaps, 10);
  ExpectUniform(both, 10 + 20);
  for (const auto& [element, count] : swaps) EXPECT_EQ(moved(element), 2) << element;
  for (const auto& [element, count] : both) EXPECT_LE(moved(element), 3) << element;
  ExpectUniform(elements({"group=s3", "generators=swaps"}), 3);

  const std::string error = UsageError([] {
    MakeTask("word_problem", {"group=a5", "generators=swaps"});
  });
  EXPECT_NE(error.find("task.generators = \"swaps\" with task.group = \"a5\""), error.npos)
      << error;
}

TEST(WordProblem, TheFirstElementActsFirst) {
  EXPECT_EQ(MakeTask("word_problem")->Oracle(" 10234 02134"), "20134");
  EXPECT_EQ(MakeTask("word_problem")->Oracle(" 02134 10234"), "12034");
  EXPECT_EQ(MakeTask("word_problem", {"group=z60"})->Oracle(" 17 50"), "7");
  EXPECT_EQ(MakeTask("word_problem", {"group=a4xz5"})->Oracle(" 1032+4 2301+3"), "3210+2");
  EXPECT_EQ(MakeTask("word_problem", {"group=z2"})->Oracle(" 1 0 1 1"), "1");
}

TEST(WordProblem, ChanceFollowsTheFewerGenerators) {
  const auto task = MakeTask("word_problem", {"generators=swaps"});
  EXPECT_DOUBLE_EQ(task->Chance(1), 0.1);
  EXPECT_NEAR(task->Chance(2), 0.1, 1e-12);          // back at the identity
  EXPECT_NEAR(task->Chance(1001), 2.0 / 120, 1e-9);  // odd elements only
  EXPECT_DOUBLE_EQ(MakeTask("word_problem")->Chance(5), 1.0 / 120);
}

// Every tag is the oracle's answer at its place.
TEST(Tags, AreTheStateAfterEveryStep) {
  Sample sample;
  for (const auto& [name, knobs, spacing] :
       std::vector<std::tuple<std::string, std::vector<std::string>, size_t>>{
           {"word_problem", {}, 1},
           {"word_problem", {"group=z2"}, 1},
           {"word_problem", {"tokens_per_transition=4"}, 4},
           {"dyck", {}, 1},
           {"dyck", {"kinds=7", "max_depth=3"}, 1}}) {
    const auto task = MakeTask(name, knobs);
    for (uint64_t index = 0; index < 50; ++index) {
      task->Generate(1, Split::kTrain, index, 24, false, sample);
      ASSERT_EQ(sample.tokens.size(), 24 * spacing);
      for (size_t i = 0; i < sample.tokens.size(); ++i) {
        if ((i + 1) % spacing != 0) {
          ASSERT_EQ(sample.labels[i], kIgnoreLabel);
          continue;
        }
        const auto position = static_cast<int32_t>(i);
        ASSERT_EQ(Answer(*task, sample, position),
                  task->Oracle(TextBeforeAnswer(*task, sample, position)));
      }
    }
  }
}

TEST(Dyck, WordsAreBoundedAndEndWithAClosingBracket) {
  Sample sample;
  const auto task = MakeTask("dyck", {"max_depth=3"});
  std::map<std::string, int64_t> kinds;
  int64_t deepest = 0;
  for (const int64_t n : {1, 2, 3, 4, 5, 64}) {
    for (uint64_t index = 0; index < 300; ++index) {
      task->Generate(1, Split::kTrain, index, n, true, sample);
      const std::string text = Text(*task, sample);
      int64_t depth = 0;
      for (size_t i = 1; i < text.size(); i += 2) {
        const bool opens = std::string("([{<").find(text[i]) != std::string::npos;
        depth += opens ? 1 : -1;
        if (opens) ++kinds[{text[i]}];
        ASSERT_LE(depth, 3);
        deepest = std::max(deepest, depth);
        if (i + 1 == text.size()) {
          EXPECT_EQ(opens, n < 3) << text;
        }
      }
      EXPECT_GE(depth, 1);
    }
  }
  EXPECT_EQ(deepest, 3);
  ExpectUniform(kinds, 4);
}

TEST(Mqar, KeysAndValuesAreDrawnWithoutReplacement) {
  Sample sample;
  const auto task =
      MakeTask("mqar", {"vocabulary=512", "slots=3", "difficulties=8", "stage_steps=0"});
  for (uint64_t index = 0; index < 200; ++index) {
    task->Generate(1, Split::kTrain, index, 60, false, sample);
    ASSERT_EQ(sample.tokens.size(), 480u);
    std::map<int32_t, int32_t> value_of;
    std::set<int32_t> values, asked;
    for (size_t i = 0; i < 120; i += 2) {
      const int32_t key = sample.tokens[i], value = sample.tokens[i + 1];
      ASSERT_TRUE(1 <= key && key < 256 && 256 <= value && value < 512);
      ASSERT_TRUE(value_of.emplace(key, value).second);
      ASSERT_TRUE(values.insert(value).second);
    }
    ASSERT_EQ(sample.answers.size(), 60u);
    for (const int32_t position : sample.answers) {
      const int32_t key = sample.tokens[static_cast<size_t>(position)];
      ASSERT_EQ(position % 2, 0);
      ASSERT_TRUE(asked.insert(key).second);
      ASSERT_EQ(AnswerToken(sample, position), value_of.at(key));
    }
  }
}

// The place of the first pair's query has the weights g^(a-1); the second pair's is what the
// weights without the first make it.
TEST(Mqar, GapsFollowThePowerLaw) {
  constexpr int64_t kCount = 40000, kPlaces = 8;
  Sample sample;
  for (const double power : {0.01, 1.0}) {
    const auto task =
        MakeTask("mqar", {"slots=4", "vocabulary=64", "power=" + std::to_string(power),
                          "difficulties=2", "stage_steps=0"});
    std::vector<double> weights,
        counts[2] = {std::vector<double>(kPlaces), std::vector<double>(kPlaces)};
    double total = 0;
    for (int64_t g = 1; g <= kPlaces; ++g) {
      weights.push_back(std::pow(static_cast<double>(g), power - 1));
      total += weights.back();
    }
    for (uint64_t index = 0; index < kCount; ++index) {
      task->Generate(1, Split::kTrain, index, 2, false, sample);
      for (const int32_t position : sample.answers) {
        const bool second = sample.tokens[static_cast<size_t>(position)] == sample.tokens[2];
        ++counts[second][static_cast<size_t>(position - 4) / 2];
      }
    }
    for (size_t place = 0; place < kPlaces; ++place) {
      const double first = weights[place] / total;
      double second = 0;
      for (size_t other = 0; other < kPlaces; ++other) {
        if (other != place)
          second += weights[other] / total * weights[place] / (total - weights[other]);
      }
      for (const auto& [found, expected] :
           {std::pair{counts[0][place], first}, {counts[1][place], second}}) {
        EXPECT_NEAR(found / kCount, expected, 4 * std::sqrt(expected * (1 - expected) / kCount))
            << "place " << place << ", power " << power;
      }
    }
  }
}

TEST(Mqar, FillersAreRandomOrZero) {
  Sample sample;
  for (const std::string fill : {"random", "zeros"}) {
    const auto task = MakeTask(
        "mqar", {"slots=7", "vocabulary=128", "fill=" + fill, "difficulties=4", "stage_steps=0"});
    std::map<std::string, int64_t> fillers;
    for (uint64_t index = 0; index < 400; ++index) {
      task->Generate(1, Split::kTrain, index, 4, false, sample);
      for (size_t i = 8; i < sample.tokens.size(); ++i) {
        const bool asks = std::ranges::binary_search(sample.answers, static_cast<int32_t>(i));
        if (!asks) ++fillers[std::to_string(sample.tokens[i])];
      }
    }
    ExpectUniform(fillers, fill == "random" ? 128 : 1);
  }
  const std::string error = UsageError([] {
    MakeTask("mqar", {"vocabulary=16", "slots=8", "difficulties=1", "stage_steps=0"});
  });
  EXPECT_NE(error.find("expected more than 18 tokens"), error.npos) << error;
}

TEST(Copying, GivenLettersOccurOnce) {
  Sample sample;
  for (const std::string variant : {"prefix", "suffix"}) {
    const auto task = MakeTask("copying", {"variant=" + variant});
    std::map<std::string, int64_t> places;
    for (uint64_t index = 0; index < 2000; ++index) {
      task->Generate(1, Split::kTrain, index, 10, false, sample);
      const std::string text = Text(*task, sample);  // $qwe|aqwecb|cb. or $aqwecb|qwecb.
      const size_t bar = text.find('|');
      const std::string string = variant == "prefix"
                                     ? text.substr(bar + 1, text.rfind('|') - bar - 1)
                                     : text.substr(1, bar - 1);
      const std::string given = variant == "prefix" ? text.substr(1, 3) : text.substr(bar + 1, 3);
      const std::string rest = text.substr(text.rfind('|') + (variant == "prefix" ? 1 : 4));
      ASSERT_EQ(string.size(), 13u) << text;
      ASSERT_EQ(CountOf(given, string), 1) << text;
      ASSERT_EQ(string.substr(string.find(given) + 3) + ".", rest) << text;
      ASSERT_EQ(sample.answers.size() + 1, rest.size());
      ++places[std::to_string(string.find(given))];
    }
    ExpectUniform(places, 10);
  }
}

TEST(PhoneBook, ExamplesAndQuestionAreEntries) {
  Sample sample;
  const auto task = MakeTask("phone_book");
  std::map<std::string, int64_t> asked_places, first_digits;
  for (uint64_t index = 0; index < 2000; ++index) {
    task->Generate(1, Split::kTrain, index, 6, false, sample);
    const auto lines = Lines(Text(*task, sample));
    ASSERT_EQ(lines.size(), 1u + 6 + 1 + 2 + 1 + 1);
    std::vector<std::string> entries(lines.begin() + 1, lines.begin() + 7);
    std::set<std::string> names, used;
    for (const std::string& entry : entries) {
      EXPECT_TRUE(names.insert(entry.substr(0, entry.find(':'))).second);
      ++first_digits[entry.substr(entry.find(':') + 2, 1)];
      EXPECT_EQ(entry.size() - entry.find(':') - 2, 10u);
    }
    for (const size_t at : {8, 9, 11}) {
      EXPECT_TRUE(used.insert(lines[at]).second);
      EXPECT_NE(std::ranges::find(entries, lines[at]), entries.end()) << lines[at];
    }
    ++asked_places[std::to_string(std::ranges::find(entries, lines[11]) - entries.begin())];
  }
  ExpectUniform(asked_places, 6);
  ExpectUniform(first_digits, 4);
}

TEST(Needle, PlacesAreUniformAndHayIsAsStated) {
  Sample sample;
  for (const std::string variant : {"repeat", "prose", "uuid"}) {
    const auto task = MakeTask("needle", {"variant=" + variant});
    std::map<std::string, int64_t> places;
    for (uint64_t index = 0; index < 3000; ++index) {
      task->Generate(1, Split::kTrain, index, 7, false, sample);
      const std::string text = Text(*task, sample);
      ASSERT_EQ(CountOf("One of the special magic numbers for ", text), 1) << text;
      ++places[std::to_string(CountOf(".", text.substr(0, text.find(" One of the"))))];
      ASSERT_EQ(sample.answers.size(), variant == "uuid" ? 32u : 7u);
    }
    ExpectUniform(places, 8);
  }
  const auto repeat = MakeTask("needle");
  repeat->Generate(1, Split::kTrain, 0, 6, false, sample);
  std::string text = Text(*repeat, sample);
  text.erase(text.find(" One of"), text.find('.', text.find(" is: ")) + 1 - text.find(" One of"));
  EXPECT_TRUE(
      text.starts_with(" The grass is green. The sky is blue. The sun is yellow. Here we go. "
                       "There and back again. The grass is green.\nThe special"))
      << text;

  // Rank r of the 120 words has frequency (1/r) / H(120), H(120) = 5.3689.
  const auto prose = MakeTask("needle", {"variant=prose"});
  std::map<std::string, double> counts;
  for (uint64_t index = 0; index < 2000; ++index) {
    prose->Generate(1, Split::kTrain, index, 64, true, sample);
    for (const int32_t token : sample.tokens) ++counts[prose->vocabulary().text(token)];
  }
  const double total = 2000 * 64 * 8;
  for (const auto& [word, rank] :
       {std::pair{" the", 1.0}, {" of", 2.0}, {" for", 11.0}, {" here", 120.0}}) {
    EXPECT_NEAR(counts[word] / total, 1 / rank / 5.3689, 0.0016) << word;
  }
}

TEST(MadRecall, NoiseAndMotifsAreAsStated) {
  Sample sample;
  const auto noisy = MakeTask("mad_recall", {"variant=noisy"});
  double noise = 0;
  for (uint64_t index = 0; index < 1000; ++index) {
    noisy->Generate(1, Split::kTrain, index, 63, false, sample);
    ASSERT_EQ(sample.tokens.size(), 128u + 1);  // one more than the source's inputs: the answer
    noise += static_cast<double>(CountOf(" n", Text(*noisy, sample))) / 2;
  }
  EXPECT_NEAR(noise / 62000, 0.2, 0.01);  // one pair is never noise

  // Runs of keys and values, from a sample that is padded in front.
  const auto fuzzy = MakeTask("mad_recall", {"variant=fuzzy"});
  for (const bool strict : {false, true}) {
    std::map<std::string, int64_t> lengths[2];
    for (uint64_t index = 0; index < 500; ++index) {
      fuzzy->Generate(1, Split::kTrain, index, 20, strict, sample);
      const std::string text = Text(*fuzzy, sample);
      std::string before;
      std::set<std::string> run;
      std::istringstream words(text.substr(0, text.find(" >")));
      const auto finish = [&] {
        if (before == "k" || before == "v") ++lengths[before == "v"][std::to_string(run.size())];
        run.clear();
      };
      for (std::string word; words >> word;) {
        if (word.substr(0, 1) != before) finish();
        before = word.substr(0, 1);
        if (before != "_") {
          EXPECT_TRUE(run.insert(word).second) << text;
        }
      }
      finish();
    }
    ExpectUniform(lengths[0], strict ? 1 : 3);
    EXPECT_EQ(lengths[1].size(), 3u);
    if (strict) {
      EXPECT_EQ(lengths[0].begin()->first, "3");
    }
  }
}

TEST(MadMemory, BlanksAreSpreadAndFactsAreFixed) {
  Sample sample;
  const auto copying = MakeTask("mad_memory");
  std::map<std::string, int64_t> letters;
  double sum = 0, squares = 0;
  constexpr int64_t kCount = 4000;
  for (uint64_t index = 0; index < kCount; ++index) {
    copying->Generate(1, Split::kTrain, index, 2, false, sample);
    ASSERT_EQ(sample.tokens.size(), 32u);
    int64_t before = 0, found = 0;
    for (size_t i = 0; i < 30; ++i) {
      const bool letter = sample.tokens[i] < 14;
      if (letter) ++letters[std::to_string(sample.tokens[i])];
      before += found == 0 && !letter;
      found += letter;
    }
    ASSERT_EQ(found, 2);
    ASSERT_LT(sample.tokens[29], 14);
    sum += static_cast<double>(before);
    squares += static_cast<double>(before * before);
  }
  ExpectUniform(letters, 14);
  // Binomial, of 28 blanks with probability 1/2.
  const double mean = sum / kCount;
  EXPECT_NEAR(mean, 14, 4 * std::sqrt(7.0 / kCount));
  EXPECT_NEAR(squares / kCount - mean * mean, 7, 4 * 7 * std::sqrt(2.0 / kCount));

  const auto facts = [&](const std::string& knob, uint64_t seed, Split split) {
    const auto task = MakeTask("mad_memory", {"variant=memorization", knob});
    std::map<int32_t, int32_t> values;
    for (uint64_t index = 0; index < 200; ++index) {
      task->Generate(seed, split, index, 16, true, sample);
      for (const int32_t position : sample.answers) {
        values[sample.tokens[static_cast<size_t>(position) - 1]] = AnswerToken(sample, position);
      }
    }
    return values;
  };
  const auto first = facts("facts=1", 1, Split::kTrain);
  EXPECT_EQ(first.size(), 127u);
  EXPECT_EQ(first, facts("facts=1", 2, Split::kEval));
  EXPECT_NE(first, facts("facts=2", 1, Split::kTrain));
  std::set<int32_t> values;
  for (const auto& [key, value] : first) values.insert(value);
  EXPECT_EQ(values.size(), 127u);
}

}  // namespace
}  // namespace weft
