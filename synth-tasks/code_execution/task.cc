// Code execution: what does a Python program print?
//
//   a, b, c, d, e = 2, 0, 6, 1, 3
//   l = [3, 0, 5, 1, 6, 2, 4]           p elements, so that every value is an index
//   def f(x):                           and g
//       return (x * 3 + 2) % 7
//   a, c = c, a                         n executed steps from here on
//   if b < d:
//       l[b] = e
//   i = 0
//   while i < 2:                        or i < a variable that holds at most 3
//       d = (d + a) % 7                 one or two statements
//       i = i + 1
//   print(d)  # 6
//
// A step is a statement that is executed, or a condition that is evaluated; a line in a loop counts
// as often as it is reached. The next statement is of a uniform kind among those that are switched
// on: assignments, swaps, arithmetic, list reads and writes, branches, loops and calls each have a
// knob. A branch or a loop is only written where it ends within n steps and leaves the
// text at 8 tokens per step or fewer, otherwise something else is. Everything drawn is uniform.
//
// labels = "trace": before the answer, training samples list every number that a step wrote, in
// order: `print(d)  # trace 6 2 3 0 0 1 6 2 -> 6`. Strict samples have the answer alone.
//
// Chance. The answer is drawn first, uniform, and programs until a variable ends with it; which one
// is asked for is uniform among those that do. So chance is 1/p, although programs favour 0.
// Where swaps alone write, the most frequent of the first five numbers is right in 0.27 (p = 7).
// The n-th sample of a seed has the same answer at every difficulty: what a guesser happens to get
// right is the same in all points of a curve.
//
// Assignments and list reads forget. With these two alone, or with assignments and swaps, nine in
// ten programs of 64 steps end with five equal variables, and what comes after they have become
// equal is no work. Arithmetic and calls keep them apart, and swaps alone lose nothing.
//
// Class. For fixed p a straight program is a word problem of transformations of p^(5+p) states,
// which has S5 in it (swaps): NC1-complete, beyond fixed-depth transformers unless TC0 = NC1.
// Indexed reads make it recall too, as in state_based_recall; branches and loops make the order of
// execution another than that of the text.
//
// Source: ours, in the spirit of Zaremba and Sutskever, arXiv:1410.4615 (learning to execute), and
// of the intermediate values of Nye et al., arXiv:2112.00114.

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/base/check.h"
#include "synth-tasks/core/program.h"

namespace weft {
namespace {

constexpr uint32_t kFunctions = 2;  // f, g
constexpr uint32_t kTrips = 3;      // of a loop, at most
constexpr uint32_t kLoopBody = 2;   // statements, at most
constexpr uint32_t kLargestModulus = 16;
constexpr int64_t kTokensPerStep = 8;         // the longest simple statement
constexpr uint32_t kNoVariable = kVariables;  // beside the five

struct CodeExecutionConfig : LanguageConfig {
  int64_t modulus = 7;
  bool assignments = true, swaps = true, arithmetic = true, lists = true, branches = true,
       loops = true, calls = true;
  std::string labels = "final";

  CodeExecutionConfig() {
    difficulties = {4, 8, 16, 32, 64};
    stage_steps = {2000, 4000, 8000, 16000, 0};
    promote_accuracy = 0.95;
    strict_fraction = 0.2;
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("modulus", modulus, "p, all numbers are below; also the length of the list",
          Range{2, kLargestModulus});
    v.Key("assignments", assignments, "a = b");
    v.Key("swaps", swaps, "a, b = b, a");
    v.Key("arithmetic", arithmetic, "a = (b + c) % p, with + - * and variables or numbers");
    v.Key("lists", lists, "a = l[b] and l[b] = a");
    v.Key("branches", branches, "if a < b: or if a == 1:, before one statement");
    v.Key("loops", loops, "while i < 2: or while i < a:, before one or two statements");
    v.Key("calls", calls, "a = f(b), of two functions that are defined before");
    v.Key("labels", labels, "the answer, or in training first all numbers that are written",
          {"final", "trace"});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

enum class Kind : uint8_t { kAssign, kSwap, kArithmetic, kRead, kWrite, kCall, kBranch, kLoop };

// A variable or, from kVariables on, a number.
struct Operand {
  uint8_t code;
  static Operand Number(uint32_t n) { return {static_cast<uint8_t>(kVariables + n)}; }
  bool is_number() const { return code >= kVariables; }
};

// x is written or, in kWrite, the index; op is an operator or a function.
struct Statement {
  Kind kind;
  uint8_t x, y, op;
  Operand z;
};

class CodeExecution : public ProgramTask {
 public:
  explicit CodeExecution(const CodeExecutionConfig& config)
      : ProgramTask("code_execution", config, kLargestDifficulty),
        modulus_(static_cast<uint32_t>(config.modulus)),
        lists_(config.lists),
        calls_(config.calls),
        swaps_(config.swaps),
        traces_(config.labels == "trace") {
    if (config.assignments) kinds_.push_back(Kind::kAssign);
    if (config.swaps) kinds_.push_back(Kind::kSwap);
    if (config.arithmetic) kinds_.push_back(Kind::kArithmetic);
    if (config.lists) kinds_.insert(kinds_.end(), {Kind::kRead, Kind::kWrite});
    if (config.calls) kinds_.push_back(Kind::kCall);
    simple_kinds_ = static_cast<uint32_t>(kinds_.size());
    if (simple_kinds_ == 0) {
      Fail(ExitCode::kUsage, "task.assignments, swaps, arithmetic, lists and calls are all false; ",
           "expected one that is true, to fill branches and loops with");
    }
    if (config.branches) kinds_.push_back(Kind::kBranch);
    if (config.loops) kinds_.push_back(Kind::kLoop);

    const std::string modulo = ") % " + std::to_string(modulus_);
    const std::vector<std::string> numbers = Numbers(std::max(modulus_, kTrips + 1));
    Atoms atoms;
    variables_are_ = atoms.Add("a, b, c, d, e = ");
    list_is_ = atoms.Add("\nl = [");
    number_comma_ = atoms.Add("", numbers, ", ");
    number_close_ = atoms.Add("", numbers, "]");
    function_ = atoms.Add("\ndef ", {"f", "g"}, "(x):\n    return (x * ");
    line_ = atoms.Add("\n", {"", "    "});
    operand_ = atoms.Add("", VariableNames());
    atoms.Add("", numbers);
    counter_ = atoms.Add("i");
    is_ = atoms.Add(" = ");
    comma_ = atoms.Add(", ");
    open_ = atoms.Add("(");
    operator_ = atoms.Add("", {" + ", " - ", " * "});
    modulo_ = atoms.Add(modulo);
    element_ = atoms.Add("l[");
    close_element_ = atoms.Add("]");
    call_ = atoms.Add("", {"f(", "g("});
    close_call_ = atoms.Add(")");
    if_ = atoms.Add("if ");
    while_ = atoms.Add("while ");
    comparison_ = atoms.Add("", {" < ", " == "});
    colon_ = atoms.Add(":");
    print_ = atoms.Add("\nprint(");
    close_print_ = atoms.Add(")  #");
    trace_ = atoms.Add(" trace");
    arrow_ = atoms.Add(" ->");
    value_ = atoms.Add(" ", numbers);
    vocabulary_ = atoms.Take();
  }

 private:
  // The machine that a program runs on while it is written.
  struct Machine {
    std::array<uint8_t, kVariables> variables;
    std::array<uint8_t, kLargestModulus> list;
    std::array<std::array<uint8_t, 2>, kFunctions> functions;  // f(x) = functions[f][0] x + [1]
    std::array<uint8_t, 2 * kLargestDifficulty> trace;
    int64_t traced = 0;

    uint32_t Value(Operand operand) const {
      return operand.is_number() ? operand.code - kVariables : variables[operand.code];
    }
    void Trace(uint32_t value) {
      trace[static_cast<size_t>(traced++)] = static_cast<uint8_t>(value);
    }
  };

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    const uint32_t answer = rng.Below(modulus_);
    Machine machine;
    std::array<uint8_t, kVariables> candidates;
    uint32_t count = 0;
    while (count == 0) {
      out.StartAgain();
      machine.traced = 0;
      WriteHead(out, rng, machine);
      WriteBody(out, rng, machine, n);
      for (uint8_t k = 0; k < kVariables; ++k) {
        if (machine.variables[k] == answer) candidates[count++] = k;
      }
    }
    out.Put(print_);
    Put(out, {candidates[rng.Below(count)]});
    out.Put(close_print_);
    if (traces_ && !strict) {
      out.Put(trace_);
      for (int64_t i = 0; i < machine.traced; ++i) {
        out.PutValue(value_ + machine.trace[static_cast<size_t>(i)]);
      }
      out.Put(arrow_);
    }
    out.PutAnswer(value_ + static_cast<int32_t>(answer));
  }

  void WriteBody(SampleWriter& out, Rng& rng, Machine& machine, int64_t n) const {
    const auto head = static_cast<int64_t>(out.tokens().size());
    int64_t steps = 0;
    while (steps < n) {
      const Kind kind = kinds_[rng.Below(static_cast<uint32_t>(kinds_.size()))];
      const int64_t spare =
          head + kTokensPerStep * steps - static_cast<int64_t>(out.tokens().size());
      const int64_t taken = kind == Kind::kBranch ? WriteBranch(out, rng, machine, n - steps, spare)
                            : kind == Kind::kLoop ? WriteLoop(out, rng, machine, n - steps, spare)
                                                  : 0;
      if (taken > 0) {
        steps += taken;
        continue;
      }
      const Statement statement =
          kind < Kind::kBranch ? Draw(rng, kind, kNoVariable) : DrawSimple(rng, kNoVariable);
      Put(out, statement, line_);
      Execute(machine, statement);
      ++steps;
    }
  }

  void WriteHead(SampleWriter& out, Rng& rng, Machine& machine) const {
    const auto draw = [&] { return static_cast<uint8_t>(rng.Below(modulus_)); };
    out.Put(variables_are_);
    for (uint32_t k = 0; k < kVariables; ++k) {
      machine.variables[k] = draw();
      if (k + 1 < kVariables) {
        out.Put(number_comma_ + machine.variables[k]);
      } else {
        Put(out, Operand::Number(machine.variables[k]));
      }
    }
    if (lists_) {
      out.Put(list_is_);
      for (uint32_t k = 0; k < modulus_; ++k) {
        machine.list[k] = draw();
        out.Put((k + 1 < modulus_ ? number_comma_ : number_close_) + machine.list[k]);
      }
    }
    for (uint32_t f = 0; calls_ && f < kFunctions; ++f) {
      machine.functions[f] = {static_cast<uint8_t>(1 + rng.Below(modulus_ - 1)), draw()};
      out.Put(function_ + static_cast<int32_t>(f));
      Put(out, Operand::Number(machine.functions[f][0]));
      out.Put(operator_);
      Put(out, Operand::Number(machine.functions[f][1]));
      out.Put(modulo_);
    }
  }

  // Writes a branch if it fits into the steps that are left; returns the steps it took, or 0.
  int64_t WriteBranch(SampleWriter& out, Rng& rng, Machine& machine, int64_t steps_left,
                      int64_t spare) const {
    const auto left = static_cast<uint8_t>(rng.Below(kVariables));
    const bool equals = rng.Below(2) == 1;
    const Operand right =
        equals ? Operand::Number(rng.Below(modulus_)) : Operand{OtherThan(rng, left)};
    const Statement body = DrawSimple(rng, kNoVariable);
    const uint32_t x = machine.variables[left], y = machine.Value(right);
    const bool holds = equals ? x == y : x < y;
    const int64_t steps = holds ? 2 : 1, tokens = 6 + TokenCount(body);
    if (steps > steps_left || tokens > spare + kTokensPerStep * steps) return 0;

    out.Put(line_);
    out.Put(if_);
    Put(out, {left});
    out.Put(comparison_ + equals);
    Put(out, right);
    out.Put(colon_);
    Put(out, body, line_ + 1);
    if (holds) Execute(machine, body);
    return steps;
  }

  // Likewise, for a loop.
  int64_t WriteLoop(SampleWriter& out, Rng& rng, Machine& machine, int64_t steps_left,
                    int64_t spare) const {
    const auto variable = static_cast<uint8_t>(rng.Below(kVariables));
    const bool by_variable = rng.Below(2) == 0 && machine.variables[variable] <= kTrips;
    const Operand bound = by_variable ? Operand{variable} : Operand::Number(1 + rng.Below(kTrips));
    const uint32_t trips = machine.Value(bound), length = 1 + rng.Below(kLoopBody);
    std::array<Statement, kLoopBody> body;
    int64_t tokens = 4 + 6 + 6;
    for (uint32_t k = 0; k < length; ++k) {
      body[k] = DrawSimple(rng, by_variable ? variable : kNoVariable);
      tokens += TokenCount(body[k]);
    }
    const int64_t steps = 2 + int64_t{trips} * (length + 2);
    if (steps > steps_left || tokens > spare + kTokensPerStep * steps) return 0;

    out.Put(line_);
    out.Put(counter_);
    out.Put(is_);
    Put(out, Operand::Number(0));
    out.Put(line_);
    out.Put(while_);
    out.Put(counter_);
    out.Put(comparison_);
    Put(out, bound);
    out.Put(colon_);
    for (uint32_t k = 0; k < length; ++k) Put(out, body[k], line_ + 1);
    out.Put(line_ + 1);
    out.Put(counter_);
    out.Put(is_);
    out.Put(counter_);
    out.Put(operator_);
    Put(out, Operand::Number(1));

    machine.Trace(0);
    for (uint32_t i = 1; i <= trips; ++i) {
      for (uint32_t k = 0; k < length; ++k) Execute(machine, body[k]);
      machine.Trace(i);
    }
    return steps;
  }

  static uint8_t OtherThan(Rng& rng, uint32_t variable) {
    const uint32_t other = rng.Below(variable < kVariables ? kVariables - 1 : kVariables);
    return static_cast<uint8_t>(other + (other >= variable));
  }

  Statement DrawSimple(Rng& rng, uint32_t kept) const {
    return Draw(rng, kinds_[rng.Below(simple_kinds_)], kept);
  }

  // A statement that does not write the variable `kept`.
  Statement Draw(Rng& rng, Kind kind, uint32_t kept) const {
    Statement s{kind, OtherThan(rng, kept), 0, 0, {0}};
    s.y = static_cast<uint8_t>(rng.Below(kVariables));
    if (kind == Kind::kAssign || kind == Kind::kSwap) {
      do {
        s.y = OtherThan(rng, s.x);
      } while (kind == Kind::kSwap && s.y == kept);
    } else if (kind == Kind::kArithmetic) {
      s.op = static_cast<uint8_t>(rng.Below(3));
      s.z = rng.Below(2) == 0 ? Operand{static_cast<uint8_t>(rng.Below(kVariables))}
                              : Operand::Number(rng.Below(modulus_));
    } else if (kind == Kind::kCall) {
      s.op = static_cast<uint8_t>(rng.Below(kFunctions));
    } else if (kind == Kind::kWrite) {
      s.x = static_cast<uint8_t>(rng.Below(kVariables));
    }
    return s;
  }

  static int64_t TokenCount(const Statement& s) {
    constexpr std::array<int64_t, 6> kCounts = {4, 8, 8, 6, 6, 6};
    return kCounts[static_cast<size_t>(s.kind)];
  }

  void Put(SampleWriter& out, Operand operand) const { out.Put(operand_ + operand.code); }

  void Put(SampleWriter& out, const Statement& s, int32_t line) const {
    out.Put(line);
    if (s.kind == Kind::kWrite) out.Put(element_);
    Put(out, {s.x});
    if (s.kind == Kind::kWrite) out.Put(close_element_);
    if (s.kind == Kind::kSwap) {
      out.Put(comma_);
      Put(out, {s.y});
    }
    out.Put(is_);
    if (s.kind == Kind::kArithmetic) out.Put(open_);
    if (s.kind == Kind::kRead) out.Put(element_);
    if (s.kind == Kind::kCall) out.Put(call_ + s.op);
    Put(out, {s.y});
    if (s.kind == Kind::kSwap) {
      out.Put(comma_);
      Put(out, {s.x});
    }
    if (s.kind == Kind::kArithmetic) {
      out.Put(operator_ + s.op);
      Put(out, s.z);
      out.Put(modulo_);
    }
    if (s.kind == Kind::kRead) out.Put(close_element_);
    if (s.kind == Kind::kCall) out.Put(close_call_);
  }

  void Execute(Machine& machine, const Statement& s) const {
    const uint32_t y = machine.variables[s.y];
    uint32_t value = y;
    switch (s.kind) {
      case Kind::kSwap:
        machine.Trace(y);
        machine.Trace(machine.variables[s.x]);
        std::swap(machine.variables[s.x], machine.variables[s.y]);
        return;
      case Kind::kWrite:
        machine.list[machine.variables[s.x]] = static_cast<uint8_t>(y);
        machine.Trace(y);
        return;
      case Kind::kArithmetic: {
        const uint32_t z = machine.Value(s.z);
        value = (s.op == 0 ? y + z : s.op == 1 ? y + modulus_ - z : y * z) % modulus_;
        break;
      }
      case Kind::kRead:
        value = machine.list[y];
        break;
      case Kind::kCall:
        value = (machine.functions[s.op][0] * y + machine.functions[s.op][1]) % modulus_;
        break;
      default:
        break;
    }
    machine.variables[s.x] = static_cast<uint8_t>(value);
    machine.Trace(value);
  }

  double ChanceOf(int64_t) const override { return 1.0 / modulus_; }

  int64_t LengthOf(int64_t n) const override {
    const int64_t head =
        1 + kVariables + (lists_ ? 1 + modulus_ : 0) + (calls_ ? 5 * kFunctions : 0);
    const int64_t trace = traces_ ? 2 + n * (swaps_ ? 2 : 1) : 0;
    return head + kTokensPerStep * n + 3 + trace + 1;
  }

  uint32_t modulus_, simple_kinds_;
  bool lists_, calls_, swaps_, traces_;
  std::vector<Kind> kinds_;  // simple ones first
  int32_t variables_are_, list_is_, number_comma_, number_close_, function_, line_, operand_;
  int32_t counter_, is_, comma_, open_, operator_, modulo_, element_, close_element_, call_;
  int32_t close_call_, if_, while_, comparison_, colon_, print_, close_print_, trace_, arrow_;
  int32_t value_;
};

std::unique_ptr<Task> CodeExecutionConfig::Make() const {
  return std::make_unique<CodeExecution>(*this);
}

}  // namespace

TaskSpec Spec_code_execution() {
  return {"code_execution",
          "both",
          "what a Python program prints after n executed steps",
          "1/p",
          "n, the number of executed steps (1 to 1024)",
          NewConfig<CodeExecutionConfig>};
}

}  // namespace weft
