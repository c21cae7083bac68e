// Copying: a string again, all of it or what follows a part of it.
//
//   $qwecb|qwecb.            variant = "copy", n = 5 letters
//   $qwe|aqwecb|cb.          variant = "prefix": what follows three letters that are given before
//   $aqwecb|qwecb.           variant = "suffix": that are given after
//
// Letters are uniform out of 26. In the last two variants the string has n + 3 letters, and the
// three are one of its n places that are followed by something, uniform among those that occur once
// (a string without such a place is drawn again). Every copied letter is an answer.
//
// Chance is 1/26. Class: a transformer of two layers copies strings of exponential length (hashed
// n-grams); a recurrence needs n log2 26 bits of state.
//
// Source: Jelassi et al., arXiv:2402.01032, experiments on copying, and its code: copy,
// prefix_ngram and suffix_ngram with n = 3. There the full stop is graded too.

#include <array>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr uint32_t kLetters = 26;
constexpr size_t kGiven = 3;

struct CopyingConfig : LanguageConfig {
  std::string variant = "copy";

  CopyingConfig() {
    difficulties = {10, 20, 50};
    stage_steps = {1000, 2000, 0};
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("variant", variant, "copy all, or what follows three letters given before or after",
          {"copy", "prefix", "suffix"});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Copying : public GeneratedTask {
 public:
  explicit Copying(const CopyingConfig& config)
      : GeneratedTask("copying", config, kLargestDifficulty, config.loss == "all"),
        copies_all_(config.variant == "copy"),
        given_before_(config.variant == "prefix") {
    std::vector<std::string> letters;
    for (uint32_t i = 0; i < kLetters; ++i) letters.emplace_back(1, static_cast<char>('a' + i));
    Atoms atoms;
    atoms.Add("", letters);
    start_ = atoms.Add("$");
    bar_ = atoms.Add("|");
    stop_ = atoms.Add(".");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    std::vector<std::string> parts;
    for (std::string rest = text_before_answer.substr(1);;) {
      const size_t bar = rest.find('|');
      parts.push_back(rest.substr(0, bar));
      if (bar == rest.npos) break;
      rest.erase(0, bar + 1);
    }
    if (copies_all_) return parts.at(0).substr(parts.at(1).size(), 1);
    const std::string& text = parts.at(given_before_ ? 1 : 0);
    const std::string key =
        given_before_ ? parts.at(0) + parts.at(2) : parts.at(1);  // with what was copied
    const size_t place = text.find(key.substr(0, kGiven));
    Check(text.compare(place, key.size(), key) == 0, "wrong copy: ", text_before_answer);
    return text.substr(place + key.size(), 1);
  }

 private:
  using Letters = std::array<uint8_t, kLargestDifficulty + kGiven>;

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const auto length = static_cast<size_t>(n) + (copies_all_ ? 0 : kGiven);
    Letters letters;
    size_t first;  // of the letters that are copied
    do {
      for (size_t i = 0; i < length; ++i) letters[i] = static_cast<uint8_t>(rng.Below(kLetters));
      first = copies_all_ ? 0 : kGiven + Place(rng, letters, length);
    } while (first > length);

    const auto put = [&](size_t from, size_t to) {
      for (size_t i = from; i < to; ++i) out.Put(letters[i]);
    };
    out.Put(start_);
    if (given_before_) {
      put(first - kGiven, first);
      out.Put(bar_);
    }
    put(0, length);
    out.Put(bar_);
    if (!copies_all_ && !given_before_) put(first - kGiven, first);
    for (size_t i = first; i < length; ++i) out.PutAnswer(letters[i]);
    out.Put(stop_);
  }

  // A place of three letters that occur once and are followed by another; `length` after eight
  // tries.
  static size_t Place(Rng& rng, const Letters& letters, size_t length) {
    for (int tries = 0; tries < 8; ++tries) {
      const size_t place = rng.Below(static_cast<uint32_t>(length - kGiven));
      const auto given = letters.begin() + static_cast<std::ptrdiff_t>(place);
      int found = 0;
      for (auto at = letters.begin(); at + kGiven <= letters.begin() + length; ++at) {
        found += at[0] == given[0] && at[1] == given[1] && at[2] == given[2];
      }
      if (found == 1) return place;
    }
    return length;
  }

  double ChanceOf(int64_t) const override { return 1.0 / kLetters; }
  int64_t LengthOf(int64_t n) const override {
    return copies_all_ ? 2 * n + 3 : 2 * n + 2 * kGiven + 3 + (given_before_ ? 1 : 0);
  }

  bool copies_all_, given_before_;
  int32_t start_, bar_, stop_;
};

std::unique_ptr<Task> CopyingConfig::Make() const { return std::make_unique<Copying>(*this); }

}  // namespace

TaskSpec Spec_copying() {
  return {"copying",
          "recall",
          "a string of n letters again, or what follows three of them",
          "1/26",
          "n, the number of letters (1 to 1024)",
          NewConfig<CopyingConfig>};
}

}  // namespace weft
