#include "synth-tasks/core/python.h"

#include <cctype>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace weft {
namespace {

constexpr int64_t kMostSteps = 1000000;
constexpr int64_t kDeepestCall = 100;

class Interpreter {
 public:
  explicit Interpreter(std::string_view program) {
    for (size_t end; (end = program.find('\n')) != program.npos; program.remove_prefix(end + 1)) {
      lines_.push_back(program.substr(0, end));
    }
    lines_.push_back(program);
  }

  int64_t Complete() {
    const size_t last = lines_.size() - 1;
    for (size_t at = 0; at < last;) at = Run(at, last);
    Start(last);
    const bool prints = Take("print(");
    if (!prints) Expect("assert ");
    const int64_t answer = ReadSum();
    Expect(prints ? ")" : "==");
    if (prints && Take("#")) return answer;
    ExpectEnd();
    return answer;
  }

 private:
  struct Function {
    std::string parameter;
    std::string_view value;
  };

  size_t Indentation(size_t at) const {
    const size_t indentation = lines_[at].find_first_not_of(' ');
    Check(indentation != std::string_view::npos, "empty line in the program");
    return indentation;
  }
  size_t EndOfBlock(size_t first, size_t end, size_t outer) const {
    size_t at = first;
    while (at < end && Indentation(at) > outer) ++at;
    Check(at > first, "expected an indented line after: ", lines_[first - 1]);
    return at;
  }

  // Runs the statement at this line; returns the line after it.
  size_t Run(size_t at, size_t end) {
    const size_t indentation = Indentation(at);
    Start(at);
    if (Take("def ")) {
      const std::string name = ReadName();
      Expect("(");
      Function function{ReadName(), {}};
      Expect("):");
      ExpectEnd();
      Check(EndOfBlock(at + 1, end, indentation) == at + 2, "a function is one line: ", line_);
      Start(at + 1);
      Expect("return ");
      function.value = rest_;
      functions_[name] = function;
      return at + 2;
    }
    const bool loops = Take("while ");
    if (!loops && !Take("if ")) {
      CountStep();
      Take("assert ") ? RunAssertion() : RunAssignment();
      ExpectEnd();
      return at + 1;
    }
    const std::string_view condition = rest_;
    const size_t block_end = EndOfBlock(at + 1, end, indentation);
    while (Holds(at, condition)) {
      const size_t inner = Indentation(at + 1);
      for (size_t line = at + 1; line < block_end;) {
        Check(Indentation(line) == inner, "unexpected indentation: ", lines_[line]);
        line = Run(line, block_end);
      }
      if (!loops) break;
    }
    return block_end;
  }

  bool Holds(size_t at, std::string_view condition) {
    CountStep();
    Start(at);
    rest_ = condition;
    const int64_t left = ReadSum();
    const bool less = Take("<");
    if (!less) Expect("==");
    const int64_t right = ReadSum();
    Expect(":");
    ExpectEnd();
    return less ? left < right : left == right;
  }

  void RunAssertion() {
    const int64_t found = ReadSum();
    Expect("==");
    const int64_t stated = ReadSum();
    Check(found == stated, "assertion fails, the value is ", found, ": ", line_);
  }

  void RunAssignment() {
    struct Target {
      std::string name;
      std::optional<int64_t> index;
    };
    std::vector<Target> targets;
    do {
      Target target{ReadName(), {}};
      if (Take("[")) {
        target.index = ReadSum();
        Expect("]");
      }
      targets.push_back(target);
    } while (Take(","));
    Expect("=");
    if (Take("[")) {
      Check(targets.size() == 1 && !targets[0].index, "a list needs one name in line: ", line_);
      std::vector<int64_t> list;
      do {
        list.push_back(ReadInteger());
      } while (Take(","));
      Expect("]");
      lists_[targets[0].name] = list;
      return;
    }
    std::vector<int64_t> values;
    if (Take("range(")) {
      const int64_t count = ReadInteger();
      for (int64_t i = 0; i < count; ++i) values.push_back(i);
      Expect(")");
    } else {
      do {
        values.push_back(ReadSum());
      } while (Take(","));
    }
    Check(targets.size() == values.size(), targets.size(), " targets but ", values.size(),
          " values in line: ", line_);
    for (size_t i = 0; i < targets.size(); ++i) {
      const Target& target = targets[i];
      (target.index ? Element(target.name, *target.index) : numbers_[target.name]) = values[i];
    }
  }

  int64_t ReadSum() {
    int64_t value = ReadProduct();
    for (;;) {
      if (Take("+")) {
        value += ReadProduct();
      } else if (Take("-")) {
        value -= ReadProduct();
      } else {
        return value;
      }
    }
  }
  int64_t ReadProduct() {
    int64_t value = ReadFactor();
    for (;;) {
      if (Take("*")) {
        value *= ReadFactor();
      } else if (Take("%")) {
        const int64_t modulus = ReadFactor();
        Check(modulus > 0, "modulo ", modulus, " in line: ", line_);
        value = (value % modulus + modulus) % modulus;
      } else {
        return value;
      }
    }
  }
  int64_t ReadFactor() {
    if (Take("-")) return -ReadFactor();
    if (Take("(")) {
      const int64_t value = ReadSum();
      Expect(")");
      return value;
    }
    if (AtDigit()) return ReadInteger();
    const std::string name = ReadName();
    if (Take("[")) {
      const int64_t index = ReadSum();
      Expect("]");
      return Element(name, index);
    }
    if (Take("(")) {
      const int64_t argument = ReadSum();
      Expect(")");
      return Call(name, argument);
    }
    const auto number = numbers_.find(name);
    Check(number != numbers_.end(), "\"", name, "\" is not a number in line: ", line_);
    return number->second;
  }

  int64_t Call(const std::string& name, int64_t argument) {
    const auto found = functions_.find(name);
    Check(found != functions_.end(), "\"", name, "\" is not a function in line: ", line_);
    Check(++depth_ <= kDeepestCall, "more than ", kDeepestCall, " calls in calls: ", line_);
    const std::map<std::string, int64_t> globals = numbers_;
    const std::string_view rest = rest_;
    numbers_[found->second.parameter] = argument;
    rest_ = found->second.value;
    const int64_t value = ReadSum();
    ExpectEnd();
    rest_ = rest;
    numbers_ = globals;
    --depth_;
    return value;
  }

  int64_t& Element(const std::string& name, int64_t index) {
    const auto list = lists_.find(name);
    Check(list != lists_.end(), "\"", name, "\" is not a list in line: ", line_);
    const auto size = static_cast<int64_t>(list->second.size());
    Check(index >= 0 && index < size, "index ", index, " is outside of a list of ", size,
          " in line: ", line_);
    return list->second[static_cast<size_t>(index)];
  }

  void CountStep() {
    Check(++steps_ <= kMostSteps, "more than ", kMostSteps, " steps at line: ", line_);
  }
  void Start(size_t at) { line_ = rest_ = lines_[at]; }
  void SkipSpaces() {
    while (rest_.starts_with(' ')) rest_.remove_prefix(1);
  }
  bool Take(std::string_view text) {
    SkipSpaces();
    if (!rest_.starts_with(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }
  void Expect(std::string_view text) {
    Check(Take(text), "expected \"", text, "\" before \"", rest_, "\" in line: ", line_);
  }
  void ExpectEnd() {
    SkipSpaces();
    Check(rest_.empty(), "unexpected \"", rest_, "\" at the end of line: ", line_);
  }
  bool AtDigit() {
    SkipSpaces();
    return !rest_.empty() && std::isdigit(static_cast<unsigned char>(rest_.front()));
  }
  int64_t ReadInteger() {
    SkipSpaces();
    int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    Check(error == std::errc(), "expected an integer before \"", rest_, "\" in line: ", line_);
    rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
    return value;
  }
  std::string ReadName() {
    SkipSpaces();
    size_t length = 0;
    while (length < rest_.size() && std::isalpha(static_cast<unsigned char>(rest_[length]))) {
      ++length;
    }
    Check(length > 0, "expected a name before \"", rest_, "\" in line: ", line_);
    const std::string name(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return name;
  }

  std::vector<std::string_view> lines_;
  std::map<std::string, int64_t> numbers_;
  std::map<std::string, std::vector<int64_t>> lists_;
  std::map<std::string, Function> functions_;
  std::string_view line_, rest_;
  int64_t steps_ = 0, depth_ = 0;
};

}  // namespace

std::string CompletePython(const std::string& program) {
  return std::to_string(Interpreter(program).Complete());
}

}  // namespace weft
