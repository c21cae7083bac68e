// Needle in a haystack: a number that one sentence of a long text gives.
//
//   ... The sun is yellow. One of the special magic numbers for harbor is: 7309154. Here we go. ...
//   The special magic number for harbor mentioned in the text is: 7309154
//
// n sentences of hay; the needle stands before, between or after them, uniform. Every digit is an
// answer.
//
//   variant = "repeat"   hay is five sentences over and over, the value a number of 7 digits
//   variant = "prose"    hay is sentences of eight words with frequencies 1/rank, out of 120
//   variant = "uuid"     the same hay, the value 32 hexadecimal digits
//
// Chance. The first of 7 digits is not 0: (1/9 + 6/10)/7 for any other. Hexadecimal digits: 1/16.
// Class: a single pair, so a recurrence can hold it; what is probed is whether it keeps it and lets
// the hay go by.
//
// Source: S-NIAH-1, -2 and -3 of RULER (Hsieh et al., arXiv:2404.06654, niah_single), as used in
// Gated DeltaNet, arXiv:2412.06464. There the hay of the last two is essays, and all is
// subwords; ours is synthetic, words and digits are tokens, and keys are one of 64 words.

#include <array>

#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr uint32_t kSentenceWords = 8;
constexpr int64_t kNeedleTokens = 3, kQuestionTokens = 2;  // without the value

// The repeated hay: The grass is green. The sky is blue. The sun is yellow. Here we go. There and
// back again.
const std::vector<std::string> kRepeatedWords = {"The",   "grass", "is",      "green.", "sky",
                                                 "blue.", "sun",   "yellow.", "Here",   "we",
                                                 "go.",   "There", "and",     "back",   "again."};
constexpr std::array<uint8_t, 19> kRepeated = {0, 1, 2, 3, 0,  4,  2,  5,  0, 6,
                                               2, 7, 8, 9, 10, 11, 12, 13, 14};
constexpr std::array<uint8_t, 6> kSentences = {0, 4, 8, 12, 15, 19};  // where they begin

const std::vector<std::string> kKeys = {
    "anchor",  "apple",   "arrow",   "autumn", "basket", "beacon",  "bridge", "button",
    "candle",  "canyon",  "carpet",  "castle", "cherry", "circle",  "cloud",  "copper",
    "cotton",  "desert",  "dragon",  "engine", "falcon", "feather", "forest", "garden",
    "ginger",  "glacier", "hammer",  "harbor", "hollow", "island",  "jacket", "jungle",
    "kettle",  "ladder",  "lantern", "lemon",  "marble", "meadow",  "mirror", "mountain",
    "needle",  "ocean",   "orchid",  "paper",  "pebble", "pepper",  "pillow", "planet",
    "pocket",  "rabbit",  "river",   "saddle", "shadow", "silver",  "spider", "temple",
    "thunder", "ticket",  "tunnel",  "velvet", "violin", "walnut",  "window", "winter"};
const std::vector<std::string> kWords = {
    "the",   "of",    "and",   "to",     "a",     "in",    "that",   "is",     "was",    "he",
    "for",   "it",    "with",  "as",     "his",   "on",    "be",     "at",     "by",     "had",
    "not",   "are",   "but",   "from",   "or",    "have",  "an",     "they",   "which",  "one",
    "you",   "were",  "her",   "all",    "she",   "there", "would",  "their",  "we",     "him",
    "been",  "has",   "when",  "who",    "will",  "more",  "no",     "if",     "out",    "so",
    "said",  "what",  "up",    "its",    "about", "into",  "than",   "them",   "can",    "only",
    "other", "new",   "some",  "could",  "time",  "these", "two",    "may",    "then",   "do",
    "first", "any",   "my",    "now",    "such",  "like",  "our",    "over",   "man",    "me",
    "even",  "most",  "made",  "after",  "also",  "did",   "many",   "before", "must",   "through",
    "back",  "years", "where", "much",   "your",  "way",   "well",   "down",   "should", "because",
    "each",  "just",  "those", "people", "how",   "too",   "little", "state",  "good",   "very",
    "make",  "world", "still", "own",    "see",   "men",   "work",   "long",   "get",    "here"};

struct NeedleConfig : LanguageConfig {
  std::string variant = "repeat";

  NeedleConfig() {
    difficulties = {16, 64, 128};
    stage_steps = {1000, 2000, 0};
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("variant", variant, "hay and value: S-NIAH-1, -2 or -3", {"repeat", "prose", "uuid"});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Needle : public GeneratedTask {
 public:
  explicit Needle(const NeedleConfig& config)
      : GeneratedTask("needle", config, kLargestDifficulty, config.loss == "all"),
        repeats_(config.variant == "repeat"),
        base_(config.variant == "uuid" ? 16 : 10),
        digits_(config.variant == "uuid" ? 32 : 7) {
    std::vector<std::string> digits = Numbers(10);
    if (base_ == 16) digits.insert(digits.end(), {"a", "b", "c", "d", "e", "f"});
    Atoms atoms;
    digit_ = atoms.Add("", digits);
    hay_ = atoms.Add(" ", repeats_ ? kRepeatedWords : kWords);
    stop_ = atoms.Add(".");
    needle_ = atoms.Add(" One of the special magic numbers for");
    key_ = atoms.Add(" ", kKeys, " is: ");
    question_ = atoms.Add("\nThe special magic number for");
    asked_key_ = atoms.Add(" ", kKeys, " mentioned in the text is: ");
    vocabulary_ = atoms.Take();

    double total = 0, sum = 0;
    for (size_t rank = 1; rank <= kWords.size(); ++rank) total += 1.0 / static_cast<double>(rank);
    size_t rank = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
      if (static_cast<double>(i) >= sum / total * static_cast<double>(words_.size())) {
        sum += 1.0 / static_cast<double>(++rank);
      }
      words_[i] = static_cast<uint8_t>(rank - 1);
    }
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    static const std::string kQuestion = "The special magic number for ";
    const std::string& text = text_before_answer;
    const size_t key = text.rfind(kQuestion) + kQuestion.size();
    const std::string name = text.substr(key, text.find(' ', key) - key);
    const std::string needle = "numbers for " + name + " is: ";
    const size_t copied = text.size() - (text.rfind(": ") + 2);
    return text.substr(text.find(needle) + needle.size() + copied, 1);
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const auto place = static_cast<int64_t>(rng.Below(static_cast<uint32_t>(n + 1)));
    const auto key = static_cast<int32_t>(rng.Below(static_cast<uint32_t>(kKeys.size())));
    std::array<uint8_t, 32> value;
    for (uint32_t k = 0; k < digits_; ++k) {
      const uint32_t low = base_ == 10 && k == 0;
      value[k] = static_cast<uint8_t>(low + rng.Below(base_ - low));
    }
    for (int64_t i = 0; i <= n; ++i) {
      if (i == place) {
        out.Put(needle_);
        out.Put(key_ + key);
        for (uint32_t k = 0; k < digits_; ++k) out.Put(digit_ + value[k]);
        out.Put(stop_);
      }
      if (i < n) PutHay(out, rng, i);
    }
    out.Put(question_);
    out.Put(asked_key_ + key);
    for (uint32_t k = 0; k < digits_; ++k) out.PutAnswer(digit_ + value[k]);
  }

  void PutHay(SampleWriter& out, Rng& rng, int64_t i) const {
    if (repeats_) {
      const auto sentence = static_cast<size_t>(i) % (kSentences.size() - 1);
      for (size_t k = kSentences[sentence]; k < kSentences[sentence + 1]; ++k) {
        out.Put(hay_ + kRepeated[k]);
      }
      return;
    }
    for (uint32_t k = 0; k < kSentenceWords; ++k) {
      out.Put(hay_ + words_[rng.Next() % words_.size()]);
    }
    out.Put(stop_);
  }

  double ChanceOf(int64_t) const override { return base_ == 16 ? 1.0 / 16 : (1.0 / 9 + 0.6) / 7; }
  int64_t LengthOf(int64_t n) const override {
    constexpr auto kRound = static_cast<int64_t>(kSentences.size()) - 1;
    const int64_t hay = repeats_ ? n / kRound * static_cast<int64_t>(kRepeated.size()) +
                                       kSentences[static_cast<size_t>(n % kRound)]
                                 : n * (kSentenceWords + 1);
    return hay + kNeedleTokens + kQuestionTokens + 2 * digits_;
  }

  bool repeats_;
  uint32_t base_, digits_;
  int32_t digit_, hay_, stop_, needle_, key_, question_, asked_key_;
  std::array<uint8_t, 4096> words_;  // [uniform], each rank as often as its frequency
};

std::unique_ptr<Task> NeedleConfig::Make() const { return std::make_unique<Needle>(*this); }

}  // namespace

TaskSpec Spec_needle() {
  return {"needle",
          "recall",
          "the number that one of n + 1 sentences gives (single needle in a haystack)",
          "0.1 per digit; 0.0625 for uuid",
          "n, the number of sentences of hay (1 to 1024)",
          NewConfig<NeedleConfig>};
}

}  // namespace weft
