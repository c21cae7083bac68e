// MAD's memory tasks.
//
//   c4 _ _ c0 _ _ c7 _ > _ _       variant = "selective_copying": n of 14 letters among blanks
//                      c4 c0 c7    what is to be predicted, at > and at the blanks after it
//   c4 c0 c7 > _ _                 "compression": the same without blanks
//            c4 c0 c7
//   k17 ? k4 ?                     "memorization": the values of fixed facts, at n question marks
//       v80  v3
//
// The answers are tags: the sample does not show them, and nothing else is learned. Letters are
// uniform, V - 2 of them, or V - 1 in "compression". Each of 14 n blanks is put before a uniform
// one of the n letters. Facts are one-to-one, drawn once from `facts` alone, (V - 1) / 2 of them;
// keys are uniform with replacement. Training and evaluation ask for the same facts.
//
// vocabulary = 0 means the source's baseline: 16, 16 and 256. Its lengths are n = 16 (256 tokens)
// for selective copying, 31 for compression and 16 (32 tokens) for memorization.
//
// Chance is 1 / letters, or 1 / facts. Class: selective copying needs n log2 V bits of state at
// content-dependent times; memorization needs parameters, no state.
//
// Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv:2403.17844,
// section 3, and its code. Its compression task has an MLP reconstruct the sequence from the
// representation of the last token. A task here does not know the model, so the sequence is asked
// for after ">": the same demand on the state of a recurrence, but attention may look back.

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr int64_t kBlanksPerLetter = 14;  // 16 tokens per letter in all, as in the source

struct MadMemoryConfig : GeneratorConfig {
  std::string variant = "selective_copying";
  int64_t vocabulary = 0;
  int64_t facts = 1;

  MadMemoryConfig() {
    difficulties = {4, 8, 16};
    stage_steps = {1000, 2000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("variant", variant, "copy letters from among blanks, copy all, or know facts",
          {"selective_copying", "compression", "memorization"});
    v.Key("vocabulary", vocabulary, "V, all tokens; 0 = 16, and 256 for memorization",
          Range{0, 8192});
    v.Key("facts", facts, "seed of the facts of memorization", Range{0, 1e12});
    GeneratorConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class MadMemory : public GeneratedTask {
 public:
  explicit MadMemory(const MadMemoryConfig& config)
      : GeneratedTask("mad_memory", config, kLargestDifficulty, /*learn_all=*/false),
        memorizes_(config.variant == "memorization"),
        selects_(config.variant == "selective_copying") {
    const auto size = static_cast<uint32_t>(config.vocabulary > 0 ? config.vocabulary
                                            : memorizes_          ? 256
                                                                  : 16);
    if (size < 4) {
      Fail(ExitCode::kUsage, "task.vocabulary = ", size, ": expected 0, or at least 4 tokens");
    }
    Atoms atoms;
    if (memorizes_) {
      choices_ = (size - 1) / 2;
      atoms.Add(" k", Numbers(choices_));
      values_ = atoms.Add(" v", Numbers(choices_));
      ask_ = atoms.Add(" ?");
      value_of_.resize(choices_);
      std::iota(value_of_.begin(), value_of_.end(), 0);
      Rng rng(static_cast<uint64_t>(config.facts), Purpose::kShuffle, 0);
      for (uint32_t i = choices_; i > 1; --i) std::swap(value_of_[i - 1], value_of_[rng.Below(i)]);
    } else {
      choices_ = size - (selects_ ? 2 : 1);
      atoms.Add(" c", Numbers(choices_));
      ask_ = atoms.Add(" >");
      blank_ = atoms.Add(" _");
    }
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    const std::vector<std::string_view> words = Words(text_before_answer);
    if (memorizes_) {
      const std::string_view key = words.at(words.size() - 2);
      const int32_t value = value_of_.at(static_cast<size_t>(IntegerOf(key.substr(1))));
      return vocabulary().text(values_ + value).substr(1);
    }
    const auto asks = std::ranges::find(words, ">");
    const auto asked = static_cast<size_t>(words.end() - asks) - 1;
    std::vector<std::string_view> letters;
    std::copy_if(words.begin(), asks, std::back_inserter(letters),
                 [](std::string_view word) { return word != "_"; });
    return std::string(letters.at(asked));
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    if (memorizes_) {
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t key = rng.Below(choices_);
        out.Put(static_cast<int32_t>(key));
        out.Put(ask_);
        out.TagAnswer(values_ + value_of_[key]);
      }
      return;
    }
    const auto count = static_cast<uint32_t>(n);
    std::array<int32_t, kLargestDifficulty> letters, blanks;
    std::fill_n(blanks.begin(), count, 0);
    for (int64_t i = 0; i < Blanks(n); ++i) ++blanks[rng.Below(count)];
    for (uint32_t i = 0; i < count; ++i) {
      for (int32_t k = 0; k < blanks[i]; ++k) out.Put(blank_);
      letters[i] = static_cast<int32_t>(rng.Below(choices_));
      out.Put(letters[i]);
    }
    for (uint32_t i = 0; i < count; ++i) {
      out.Put(i == 0 ? ask_ : blank_);
      out.TagAnswer(letters[i]);
    }
  }

  int64_t Blanks(int64_t n) const { return selects_ ? kBlanksPerLetter * n : 0; }
  double ChanceOf(int64_t) const override { return 1.0 / choices_; }
  int64_t LengthOf(int64_t n) const override { return 2 * n + Blanks(n); }

  bool memorizes_, selects_;
  uint32_t choices_;  // letters or facts
  int32_t ask_, blank_ = 0, values_ = 0;
  std::vector<int32_t> value_of_;
};

std::unique_ptr<Task> MadMemoryConfig::Make() const { return std::make_unique<MadMemory>(*this); }

}  // namespace

TaskSpec Spec_mad_memory() {
  return {"mad_memory",
          "recall",
          "selective copying, compression and memorization of MAD",
          "1/letters or 1/facts, 0.071, 0.067 and 0.0079 by default",
          "n, the number of letters or of facts asked for (1 to 1024)",
          NewConfig<MadMemoryConfig>};
}

}  // namespace weft
