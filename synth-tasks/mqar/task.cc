// Multi-query associative recall: keys come with values, later some positions repeat a key, and its
// value is to be predicted there.
//
//   k4 v17 k2 v18  k4 v13  k9 v11  k2 k7  v15 k1    two pairs, then four places of two tokens
//                  v17             v18              what is to be predicted
//
// K keys and K values are drawn without replacement, keys from 1..V/2-1, values from V/2..V-1. Then
// come slots * K places, at even offsets. The queries, in the order of their pairs, take places
// without replacement with weights g^(a-1), g = 1, 2, ... the number of the place: a power law of
// the gap. Everything else is filled with random tokens of the whole vocabulary, or with token 0.
// The value does not follow its query: labels are tags at the queries, and nothing else is learned.
// All queries are answers.
//
// Zoology's configurations (tokens, pairs): (64,16), (128,32), (256,64), (512,128) and (1024,256)
// have slots = 1; (256,32) and (512,64) slots = 3; (64,4), (128,8) and (256,16) slots = 7.
//
// Chance is 2/V. Class: one attention layer with a shift solves it (an induction head); a fixed
// state of b bits holds at most b / log2(V/2) pairs, so accuracy is bought with decode-state bytes.
//
// Source: Arora, Eyuboglu et al., "Zoology", arXiv:2312.04927, Figure 2; the details
// (a = 0.01, fillers, order of the draws) are those of its code.

#include <array>
#include <bit>
#include <cmath>
#include <map>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr int64_t kLargestVocabulary = 8192;

struct MqarConfig : GeneratorConfig {
  int64_t vocabulary = 8192;
  int64_t slots = 1;
  double power = 0.01;
  std::string fill = "random";

  MqarConfig() {
    difficulties = {4, 8, 16, 32, 64};
    stage_steps = {1000, 1000, 1000, 1000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("vocabulary", vocabulary, "V, tokens in all; has to exceed the tokens of a sample",
          Range{16, kLargestVocabulary});
    v.Key("slots", slots, "places for queries per pair; a sample has 2 + 2 slots tokens per pair",
          Range{1, 64});
    v.Key("power", power, "a of the weights g^(a-1) of the places; 1 = uniform", Range{0, 1});
    v.Key("fill", fill, "tokens between the queries", {"random", "zeros"});
    GeneratorConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

// Draws numbers below `n` without replacement; at most half of them, or it takes long.
class DistinctDraws {
 public:
  explicit DistinctDraws(uint32_t n) : n_(n) {
    for (uint32_t i = 0; i <= n / 64; ++i) taken_[i] = 0;
  }
  uint32_t Next(Rng& rng) {
    for (;;) {
      const uint32_t number = rng.Below(n_);
      uint64_t& word = taken_[number / 64];
      const uint64_t bit = uint64_t{1} << (number % 64);
      if (word & bit) continue;
      word |= bit;
      return number;
    }
  }

 private:
  uint32_t n_;
  std::array<uint64_t, kLargestVocabulary / 128 + 1> taken_;
};

// Draws places without replacement, with given weights: a binary tree of sums.
class WeightedDraws {
 public:
  WeightedDraws(const std::vector<double>& weights, size_t count) : leaves_(std::bit_ceil(count)) {
    for (size_t i = 0; i < leaves_; ++i) sums_[leaves_ + i] = i < count ? weights[i] : 0.0;
    for (size_t i = leaves_ - 1; i > 0; --i) sums_[i] = sums_[2 * i] + sums_[2 * i + 1];
  }
  size_t Next(Rng& rng) {
    double rest = rng.Uniform() * sums_[1];
    size_t at = 1;
    while (at < leaves_) {
      at *= 2;
      // The second test: rounding must not lead to a leaf that is taken.
      if (rest >= sums_[at] && sums_[at + 1] > 0) {
        rest -= sums_[at];
        ++at;
      }
    }
    const size_t place = at - leaves_;
    sums_[at] = 0;
    while ((at /= 2) > 0) sums_[at] = sums_[2 * at] + sums_[2 * at + 1];
    return place;
  }

 private:
  size_t leaves_;
  std::array<double, kLargestVocabulary> sums_;
};

class Mqar : public GeneratedTask {
 public:
  explicit Mqar(const MqarConfig& config)
      : GeneratedTask("mqar", config, LargestDifficulty(config), /*learn_all=*/false),
        vocabulary_size_(static_cast<uint32_t>(config.vocabulary)),
        values_(vocabulary_size_ / 2),
        slots_(config.slots),
        random_fill_(config.fill == "random") {
    for (int64_t g = 1; g <= config.vocabulary / 2; ++g) {
      weights_.push_back(std::pow(static_cast<double>(g), config.power - 1));
    }
    std::vector<std::string> texts = {" _"};
    for (uint32_t token = 1; token < vocabulary_size_; ++token) {
      texts.push_back(std::string(token < values_ ? " k" : " v") + std::to_string(token));
    }
    vocabulary_ = Vocabulary(std::move(texts));
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    const std::vector<std::string_view> words = Words(text_before_answer);
    std::map<std::string_view, std::string_view> values;
    for (size_t i = 0; i + 1 < words.size(); i += 2) values.emplace(words[i], words[i + 1]);
    const auto found = values.find(words.back());
    Check(found != values.end(), "no value of ", words.back(), " in ", text_before_answer);
    return std::string(found->second);
  }

 private:
  static int64_t LargestDifficulty(const MqarConfig& config) {
    const int64_t largest = (config.vocabulary - 1) / (2 + 2 * config.slots);
    if (largest < 1) {
      Fail(ExitCode::kUsage, "task.vocabulary = ", config.vocabulary,
           " with task.slots = ", config.slots, ": expected more than ", 2 + 2 * config.slots,
           " tokens");
    }
    return std::min(largest, kLargestDifficulty);
  }

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const auto pairs = static_cast<size_t>(n), places = pairs * static_cast<size_t>(slots_);
    std::array<uint16_t, kLargestDifficulty> keys, values;
    DistinctDraws draw_key(values_ - 1), draw_value(vocabulary_size_ - values_);
    for (size_t i = 0; i < pairs; ++i) {
      keys[i] = static_cast<uint16_t>(1 + draw_key.Next(rng));
      values[i] = static_cast<uint16_t>(values_ + draw_value.Next(rng));
      out.Put(keys[i]);
      out.Put(values[i]);
    }
    constexpr uint16_t kNone = kLargestDifficulty;
    std::array<uint16_t, kLargestVocabulary / 2> pair_at;
    std::fill_n(pair_at.begin(), places, kNone);
    WeightedDraws draw_place(weights_, places);
    for (size_t i = 0; i < pairs; ++i) pair_at[draw_place.Next(rng)] = static_cast<uint16_t>(i);
    for (size_t place = 0; place < places; ++place) {
      if (const uint16_t pair = pair_at[place]; pair != kNone) {
        out.Put(keys[pair]);
        out.TagAnswer(values[pair]);
      } else {
        out.Put(Filler(rng));
      }
      out.Put(Filler(rng));
    }
  }

  int32_t Filler(Rng& rng) const {
    return random_fill_ ? static_cast<int32_t>(rng.Below(vocabulary_size_)) : 0;
  }

  double ChanceOf(int64_t) const override { return 1.0 / (vocabulary_size_ - values_); }
  int64_t LengthOf(int64_t n) const override { return n * (2 + 2 * slots_); }

  uint32_t vocabulary_size_, values_;  // values_ is also the first value
  int64_t slots_;
  bool random_fill_;
  std::vector<double> weights_;
};

std::unique_ptr<Task> MqarConfig::Make() const { return std::make_unique<Mqar>(*this); }

}  // namespace

TaskSpec Spec_mqar() {
  return {"mqar",
          "recall",
          "values of n keys, asked for in any order (multi-query associative recall)",
          "2/V",
          "n, the number of pairs (1 to 1024, below V / (2 + 2 slots))",
          NewConfig<MqarConfig>};
}

}  // namespace weft
