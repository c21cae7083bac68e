// MAD's recall tasks: keys with their values, then one of the keys again.
//
//   k3 v1 k0 v5 k3 v1 k6 v2 > k0 v5     variant = "in_context": n pairs, > asks
//   k3 v1 n7 n2 k0 v5 > k3 v1           "noisy": one pair in five is two tokens of noise
//   _ _ k1 k4 v0 k2 v3 v6 > k1 k4 v0    "fuzzy": keys and values are 1 to 3 tokens
//
// A key keeps the value of its first time; keys and values are uniform. V tokens are keys, as many
// values or one more, ">", and in "fuzzy" the padding "_"; "noisy" has 16 tokens of noise besides,
// and one pair that is never noise. In "fuzzy" the tokens of a key or a value differ, their numbers
// are uniform on 1 to 3 (keys have 3 in strict samples), pairs are written while one of 6 tokens
// still fits into 6 n, and padding in front fills what is left. The key that is asked for is that
// of a uniform pair in "fuzzy", otherwise uniform among those that occurred. The tokens of its
// value are the answers.
//
// The source's baselines have V = 16 and 128 tokens: n = 63, and n = 20 in "fuzzy".
//
// Chance is 1 / values. Class: as mqar, with few keys: a state of keys * log2(values) bits is
// enough but in "fuzzy", which has a value for each of up to 259 keys and needs n-grams to find
// them.
//
// Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv:2403.17844,
// section 3, and its code, which draws the probe of "fuzzy" first and puts it at a uniform place.

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr uint32_t kNoiseTokens = 16;
constexpr double kNoise = 0.2;
constexpr uint32_t kMostKeys = 64;
constexpr uint32_t kLongestMotif = 3;
constexpr int64_t kLongestPair = 2 * kLongestMotif;
constexpr int64_t kLargestFuzzy = 256;

struct MadRecallConfig : LanguageConfig {
  std::string variant = "in_context";
  int64_t vocabulary = 16;

  MadRecallConfig() {
    difficulties = {16, 63};
    stage_steps = {1000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("variant", variant, "plain, with noise between the pairs, or of several tokens each",
          {"in_context", "noisy", "fuzzy"});
    v.Key("vocabulary", vocabulary, "V, all tokens but noise", Range{8, 2 * kMostKeys});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

// One to three different tokens.
struct Motif {
  std::array<uint8_t, kLongestMotif> tokens;
  uint32_t length;  // not initialised: a sample may hold thousands
  // Different for different motifs, never 0.
  uint32_t Code() const {
    uint32_t code = 0;
    for (uint32_t k = 0; k < length; ++k) code = code * (kMostKeys + 1) + tokens[k] + 1;
    return code;
  }
};

// What the keys of a sample mean: open addressing.
class Meanings {
 public:
  explicit Meanings(size_t most) {
    while (size_ < 2 * most) size_ *= 2;
    std::fill_n(codes_.begin(), size_, 0u);
  }
  // The value of this key, empty if it is new.
  Motif& Of(const Motif& key) {
    const uint32_t code = key.Code();
    size_t at = code * size_t{2654435761u} % size_;
    while (codes_[at] != 0 && codes_[at] != code) at = (at + 1) % size_;
    if (codes_[at] == 0) {
      codes_[at] = code;
      values_[at].length = 0;
    }
    return values_[at];
  }

 private:
  size_t size_ = 16;
  std::array<uint32_t, 4096> codes_;
  std::array<Motif, 4096> values_;
};

class MadRecall : public GeneratedTask {
 public:
  explicit MadRecall(const MadRecallConfig& config)
      : GeneratedTask("mad_recall", config,
                      config.variant == "fuzzy" ? kLargestFuzzy : kLargestDifficulty,
                      config.loss == "all"),
        fuzzy_(config.variant == "fuzzy"),
        noisy_(config.variant == "noisy") {
    const auto plain = static_cast<uint32_t>(config.vocabulary) - (fuzzy_ ? 2 : 1);
    keys_ = plain / 2;
    values_ = plain - keys_;
    Atoms atoms;
    key_ = atoms.Add(" k", Numbers(keys_));
    value_ = atoms.Add(" v", Numbers(values_));
    ask_ = atoms.Add(" >");
    if (fuzzy_) padding_ = atoms.Add(" _");
    if (noisy_) noise_ = atoms.Add(" n", Numbers(kNoiseTokens));
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    std::map<std::string, std::vector<std::string_view>> meanings;
    std::string key;
    std::vector<std::string_view> value;
    const auto finish = [&] {
      if (!value.empty()) meanings[key] = value;
      if (!value.empty()) key.clear();
      value.clear();
    };
    for (const std::string_view word : Words(text_before_answer)) {
      if (word[0] == 'v') {
        value.push_back(word);
        continue;
      }
      finish();
      if (word[0] == 'k') key += word;
    }
    const std::vector<std::string_view>& found = meanings[key];
    Check(value.size() < found.size(), "no answer to ", text_before_answer);
    return std::string(found[value.size()]);
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    fuzzy_ ? WriteFuzzy(out, rng, n, strict) : WritePlain(out, rng, static_cast<uint32_t>(n));
  }

  void WritePlain(SampleWriter& out, Rng& rng, uint32_t n) const {
    constexpr uint8_t kNone = 255;
    std::array<uint8_t, kMostKeys> values, seen;  // [key]; in the order of their first time
    std::fill_n(values.begin(), keys_, kNone);
    uint32_t seen_count = 0;
    const uint32_t certain = noisy_ ? rng.Below(n) : 0;
    for (uint32_t i = 0; i < n; ++i) {
      if (noisy_ && i != certain && rng.Uniform() < kNoise) {
        for (int k = 0; k < 2; ++k) {
          out.Put(noise_ + static_cast<int32_t>(rng.Below(kNoiseTokens)));
        }
        continue;
      }
      const uint32_t key = rng.Below(keys_);
      if (values[key] == kNone) {
        values[key] = static_cast<uint8_t>(rng.Below(values_));
        seen[seen_count++] = static_cast<uint8_t>(key);
      }
      out.Put(key_ + static_cast<int32_t>(key));
      out.Put(value_ + values[key]);
    }
    const uint8_t asked = seen[rng.Below(seen_count)];
    out.Put(ask_);
    out.Put(key_ + asked);
    out.PutAnswer(value_ + values[asked]);
  }

  void WriteFuzzy(SampleWriter& out, Rng& rng, int64_t n, bool strict) const {
    const auto length = static_cast<size_t>(kLongestPair * n);
    std::array<std::pair<Motif, Motif>, kLongestPair / 2 * kLargestFuzzy> written;
    Meanings meanings(length / 2);
    size_t used = 0;
    uint32_t pairs = 0;
    while (used + kLongestPair <= length) {
      const Motif key = Draw(rng, keys_, strict ? kLongestMotif : 1 + rng.Below(kLongestMotif));
      Motif& value = meanings.Of(key);
      if (value.length == 0) value = Draw(rng, values_, 1 + rng.Below(kLongestMotif));
      written[pairs++] = {key, value};
      used += key.length + value.length;
    }
    for (; used < length; ++used) out.Put(padding_);
    for (uint32_t i = 0; i < pairs; ++i) {
      Put(out, key_, written[i].first);
      Put(out, value_, written[i].second);
    }
    const auto& [key, value] = written[rng.Below(pairs)];
    out.Put(ask_);
    Put(out, key_, key);
    for (uint32_t k = 0; k < value.length; ++k) out.PutAnswer(value_ + value.tokens[k]);
  }

  Motif Draw(Rng& rng, uint32_t choices, uint32_t length) const {
    Motif motif{{}, length};
    for (uint32_t k = 0; k < length; ++k) {
      do {
        motif.tokens[k] = static_cast<uint8_t>(rng.Below(choices));
      } while ((k > 0 && motif.tokens[k] == motif.tokens[0]) ||
               (k > 1 && motif.tokens[k] == motif.tokens[1]));
    }
    return motif;
  }

  void Put(SampleWriter& out, int32_t first, const Motif& motif) const {
    for (uint32_t k = 0; k < motif.length; ++k) out.Put(first + motif.tokens[k]);
  }

  double ChanceOf(int64_t) const override { return 1.0 / values_; }
  int64_t LengthOf(int64_t n) const override { return (fuzzy_ ? kLongestPair : 2) * (n + 1) + 1; }

  bool fuzzy_, noisy_;
  uint32_t keys_, values_;
  int32_t key_, value_, ask_, padding_ = 0, noise_ = 0;
};

std::unique_ptr<Task> MadRecallConfig::Make() const { return std::make_unique<MadRecall>(*this); }

}  // namespace

TaskSpec Spec_mad_recall() {
  return {"mad_recall",
          "recall",
          "the value of a key among n pairs: in-context, noisy or fuzzy recall of MAD",
          "1/values, 0.125 by default",
          "n, the number of pairs; fuzzy: of six tokens (1 to 1024, fuzzy 256)",
          NewConfig<MadRecallConfig>};
}

}  // namespace weft
