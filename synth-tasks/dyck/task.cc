// Dyck-k: which bracket has to close next?
//
//   [ ( ) ] { ( )          n brackets of k kinds; { is still open
//                }         what is to be predicted, at the last bracket
//
// A bracket opens or closes with probability 1/2; it opens where none is open and closes where
// max_depth are. A word ends with a closing bracket, so that the answer is not beside it, and with
// one open at least; words of one or two brackets only open. Kinds are uniform. In training the
// kind is asked for after every bracket (supervision = "every"): the closing bracket, or "none"
// where all are closed.
//
// Chance is 1/k. Class: Dyck-k is in TC0; with bounded depth it is regular and in AC0, and needs
// max_depth log2 k bits of memory, used as a stack.
//
// Source: Hewitt et al., arXiv:2010.07515 (Dyck-(k,m), predicting the closing bracket); the word
// distribution is theirs up to the end condition.

#include <array>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr int64_t kDeepest = 1024;

struct DyckConfig : TaggingConfig {
  int64_t kinds = 4;
  int64_t max_depth = 16;

  DyckConfig() {
    difficulties = {16, 32, 64};
    stage_steps = {1000, 2000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("kinds", kinds, "k, the number of kinds of brackets", Range{1, 64});
    v.Key("max_depth", max_depth, "largest number of brackets that are open", Range{3, kDeepest});
    TaggingConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Dyck : public GeneratedTask {
 public:
  explicit Dyck(const DyckConfig& config)
      : GeneratedTask("dyck", config, kLargestDifficulty, /*learn_all=*/false),
        kinds_(static_cast<uint32_t>(config.kinds)),
        max_depth_(config.max_depth),
        tags_every_(config.supervision == "every") {
    std::vector<std::string> open = {"(", "[", "{", "<"}, close = {")", "]", "}", ">"};
    for (size_t kind = open.size(); kind < kinds_; ++kind) {
      const std::string number = std::to_string(kind);
      open.push_back("(" + number);
      close.push_back(")" + number);
    }
    open.resize(kinds_);
    close.resize(kinds_);
    Atoms atoms;
    open_ = atoms.Add(" ", open);
    close_ = atoms.Add(" ", close);
    none_ = atoms.Add(" none");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    static const std::string kOpen = "([{<", kClose = ")]}>";
    std::vector<std::string> expected;
    for (const std::string_view word : Words(text_before_answer)) {
      if (const size_t kind = kOpen.find(word[0]); kind != kOpen.npos) {
        expected.push_back(kClose[kind] + std::string(word.substr(1)));
      } else {
        Check(!expected.empty() && expected.back() == word, word, " closes nothing in ",
              text_before_answer);
        expected.pop_back();
      }
    }
    return expected.empty() ? "none" : expected.back();
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    std::array<uint8_t, kDeepest> stack;
    int64_t depth = 0;
    for (int64_t i = 1; i <= n; ++i) {
      if (Opens(rng, depth, n - i, n)) {
        const uint32_t kind = rng.Below(kinds_);
        out.Put(open_ + static_cast<int32_t>(kind));
        stack[static_cast<size_t>(depth++)] = static_cast<uint8_t>(kind);
      } else {
        out.Put(close_ + stack[static_cast<size_t>(--depth)]);
      }
      const int32_t top = depth > 0 ? close_ + stack[static_cast<size_t>(depth - 1)] : none_;
      if (i == n) {
        out.TagAnswer(top);
      } else if (tags_every_ && !strict) {
        out.Tag(top);
      }
    }
  }

  // With `left` brackets to come after this one, the last of which has to close something and leave
  // something open.
  bool Opens(Rng& rng, int64_t depth, int64_t left, int64_t n) const {
    if (n < 3 || depth == 0) return true;
    if (left == 0 || depth == max_depth_) return false;
    if (depth - 1 + (left - 1) < 2) return true;
    return rng.Below(2) == 0;
  }

  double ChanceOf(int64_t) const override { return 1.0 / kinds_; }
  int64_t LengthOf(int64_t n) const override { return n; }

  uint32_t kinds_;
  int64_t max_depth_;
  bool tags_every_;
  int32_t open_, close_, none_;
};

std::unique_ptr<Task> DyckConfig::Make() const { return std::make_unique<Dyck>(*this); }

}  // namespace

TaskSpec Spec_dyck() {
  return {"dyck",
          "state",
          "the bracket that closes next, after n brackets of k kinds",
          "1/k",
          "n, the number of brackets (1 to 1024)",
          NewConfig<DyckConfig>};
}

}  // namespace weft
