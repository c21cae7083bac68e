#include "synth-tasks/core/python.h"

#include <cctype>
#include <charconv>
#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace weft {
namespace {

class Interpreter {
 public:
  void Run(std::string_view line) {
    Start(line);
    if (Take("assert ")) {
      const int64_t found = ReadTerm();
      Expect("==");
      const int64_t stated = ReadInteger();
      Check(found == stated, "assertion fails, the value is ", found, ": ", line_);
    } else {
      ReadAssignment();
    }
    ExpectEnd();
  }

  int64_t Complete(std::string_view line) {
    Start(line);
    Expect("assert ");
    const int64_t answer = ReadTerm();
    Expect("==");
    ExpectEnd();
    return answer;
  }

 private:
  void Start(std::string_view line) { line_ = rest_ = line; }

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
  int64_t ReadTerm() {
    if (AtDigit()) return ReadInteger();
    const std::string name = ReadName();
    if (!Take("[")) {
      const auto number = numbers_.find(name);
      Check(number != numbers_.end(), "\"", name, "\" is not a number in line: ", line_);
      return number->second;
    }
    const int64_t index = ReadTerm();
    Expect("]");
    const auto list = lists_.find(name);
    Check(list != lists_.end(), "\"", name, "\" is not a list in line: ", line_);
    const auto size = static_cast<int64_t>(list->second.size());
    Check(index >= 0 && index < size, "index ", index, " is outside of a list of ", size,
          " in line: ", line_);
    return list->second[static_cast<size_t>(index)];
  }

  void ReadAssignment() {
    std::vector<std::string> names;
    do {
      names.push_back(ReadName());
    } while (Take(","));
    Expect("=");
    if (Take("[")) {
      Check(names.size() == 1, "a list needs one name in line: ", line_);
      std::vector<int64_t> list;
      do {
        list.push_back(ReadInteger());
      } while (Take(","));
      Expect("]");
      lists_[names[0]] = list;
      return;
    }
    std::vector<int64_t> values;
    if (Take("range(")) {
      const int64_t count = ReadInteger();
      for (int64_t i = 0; i < count; ++i) values.push_back(i);
      Expect(")");
    } else {
      do {
        values.push_back(ReadTerm());
      } while (Take(","));
    }
    Check(names.size() == values.size(), names.size(), " names but ", values.size(),
          " values in line: ", line_);
    for (size_t i = 0; i < names.size(); ++i) numbers_[names[i]] = values[i];
  }

  std::map<std::string, int64_t> numbers_;
  std::map<std::string, std::vector<int64_t>> lists_;
  std::string_view line_, rest_;
};

}  // namespace

std::string CompletePython(const std::string& program) {
  Interpreter interpreter;
  std::string_view rest = program;
  for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1)) {
    interpreter.Run(rest.substr(0, end));
  }
  return std::to_string(interpreter.Complete(rest));
}

}  // namespace weft
