// Word problem: the product of n elements of a finite group.
//
//   02134 10234 21034       three elements of S5, as the places to which they send 0, 1, 2, 3, 4
//   02134 12034 10234       what is to be predicted after each: the product so far, 02134 first
//
// The products are tags: the label of a position is the state after its token, not the token after
// it. In training every prefix is asked for (supervision = "every"), in evaluation the whole word.
//
// group = "z2" is parity (elements 0 and 1), "z60" adds modulo 60, "a4xz5" writes elements as
// 1032+4. With generators = "swaps" or "swaps_and_3_cycles" the elements of S3 and S5 are
// transpositions alone, or also 3-cycles; the products still reach every element. With
// tokens_per_transition = k every element is followed by k - 1 tokens "." and the state is asked
// for at the last of them, so that a layer has k updates for it.
//
// Chance. Products of uniform elements are uniform: 1/|G|. With fewer generators the distribution
// after n steps is computed; after swaps it alternates between the even and the odd elements, so
// that it tends to 2/|G|.
//
// Class. Word problems of solvable groups (Z2, Z60, A4 x Z5, S3) are in TC0, those of the others
// (A5, S5) NC1-complete (Barrington 1989): fixed-depth transformers and diagonal RNNs cannot do
// them unless TC0 = NC1. Parity needs negative eigenvalues, a swap I - 2kk^T as well.
//
// Source: Merrill, Petty and Sabharwal, arXiv:2404.08819 (groups, tags on prefixes), and its code;
// Grazzi et al., arXiv:2411.12537, section 5 (parity, S5 and its variants). Open
// there, chosen here: the first letter acts first, swaps do not include the identity, fillers come
// after their element.

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

struct WordProblemConfig : TaggingConfig {
  std::string group = "s5";
  std::string generators = "all";
  int64_t tokens_per_transition = 1;

  WordProblemConfig() {
    difficulties = {8, 16, 32};
    stage_steps = {1000, 2000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("group", group, "whose elements are multiplied; z2 is parity",
          {"z2", "z60", "a4xz5", "a5", "s3", "s5"});
    v.Key("generators", generators, "elements that occur in a word; of s3 and s5, not always all",
          {"all", "swaps", "swaps_and_3_cycles"});
    v.Key("tokens_per_transition", tokens_per_transition, "tokens per element of the group",
          Range{1, 16});
    TaggingConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

// A permutation of 0, ..., points-1 beside a number modulo `modulus`.
struct Element {
  std::vector<int> places;
  int number = 0;
  bool operator==(const Element&) const = default;
};

struct Shape {
  int points;
  bool even_only;
  int modulus;
};

Shape ShapeOf(const std::string& group) {
  if (group == "z2") return {0, false, 2};
  if (group == "z60") return {0, false, 60};
  if (group == "a4xz5") return {4, true, 5};
  if (group == "a5") return {5, true, 1};
  return {group == "s3" ? 3 : 5, false, 1};
}

bool IsEven(const std::vector<int>& places) {
  int inversions = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    for (size_t j = 0; j < i; ++j) inversions += places[j] > places[i];
  }
  return inversions % 2 == 0;
}

int MovedPoints(const Element& element) {
  int moved = 0;
  for (size_t i = 0; i < element.places.size(); ++i) {
    moved += element.places[i] != static_cast<int>(i);
  }
  return moved;
}

std::string TextOf(const Element& element, const Shape& shape) {
  std::string text;
  for (const int place : element.places) text += std::to_string(place);
  if (shape.modulus == 1) return text;
  if (!text.empty()) text += '+';
  text += std::to_string(element.number);
  return text;
}

class WordProblem : public GeneratedTask {
 public:
  explicit WordProblem(const WordProblemConfig& config)
      : GeneratedTask("word_problem", config, kLargestDifficulty, /*learn_all=*/false),
        shape_(ShapeOf(config.group)),
        tags_every_(config.supervision == "every"),
        fillers_(static_cast<int>(config.tokens_per_transition - 1)) {
    std::vector<int> places(static_cast<size_t>(shape_.points));
    std::iota(places.begin(), places.end(), 0);
    std::vector<Element> elements;
    do {
      if (shape_.even_only && !IsEven(places)) continue;
      for (int number = 0; number < shape_.modulus; ++number) elements.push_back({places, number});
    } while (std::next_permutation(places.begin(), places.end()));
    order_ = elements.size();

    const int most_moved = config.generators == "swaps" ? 2 : 3;
    if (config.generators != "all" && config.group != "s3" && config.group != "s5") {
      Fail(ExitCode::kUsage, "task.generators = \"", config.generators, "\" with task.group = \"",
           config.group, "\": expected \"all\", or one of the groups s3 and s5");
    }
    std::vector<std::string> texts;
    for (size_t i = 0; i < order_; ++i) {
      texts.push_back(TextOf(elements[i], shape_));
      const int moved = MovedPoints(elements[i]);
      if (config.generators == "all" || (moved > 0 && moved <= most_moved)) {
        generators_.push_back(static_cast<uint8_t>(i));
      }
    }
    products_.resize(order_ * order_);
    for (size_t first = 0; first < order_; ++first) {
      for (size_t second = 0; second < order_; ++second) {
        Element product = elements[first];
        for (int& place : product.places) {
          place = elements[second].places[static_cast<size_t>(place)];
        }
        product.number = (product.number + elements[second].number) % shape_.modulus;
        products_[first * order_ + second] =
            static_cast<uint8_t>(std::ranges::find(elements, product) - elements.begin());
      }
    }
    Atoms atoms;
    atoms.Add(" ", texts);
    if (fillers_ > 0) filler_ = atoms.Add(" .");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    Element state{std::vector<int>(static_cast<size_t>(shape_.points)), 0};
    std::iota(state.places.begin(), state.places.end(), 0);
    for (std::string_view word : Words(text_before_answer)) {
      if (word == ".") continue;
      for (int& place : state.places) place = word[static_cast<size_t>(place)] - '0';
      word.remove_prefix(shape_.points > 0 && shape_.modulus > 1 ? word.find('+') + 1 : 0);
      if (shape_.modulus > 1) {
        state.number = (state.number + static_cast<int>(IntegerOf(word))) % shape_.modulus;
      }
    }
    return TextOf(state, shape_);
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    const auto choices = static_cast<uint32_t>(generators_.size());
    size_t state = 0;  // the identity comes first
    for (int64_t i = 1; i <= n; ++i) {
      const uint8_t element = generators_[rng.Below(choices)];
      state = products_[state * order_ + element];
      out.Put(element);
      for (int k = 0; k < fillers_; ++k) out.Put(filler_);
      if (i == n) {
        out.TagAnswer(static_cast<int32_t>(state));
      } else if (tags_every_ && !strict) {
        out.Tag(static_cast<int32_t>(state));
      }
    }
  }

  double ChanceOf(int64_t n) const override {
    if (generators_.size() == order_) return 1 / static_cast<double>(order_);
    std::vector<double> now(order_), next(order_);
    now[0] = 1;
    for (int64_t i = 0; i < n; ++i) {
      std::ranges::fill(next, 0.0);
      for (size_t state = 0; state < order_; ++state) {
        const double share = now[state] / static_cast<double>(generators_.size());
        for (const uint8_t g : generators_) next[products_[state * order_ + g]] += share;
      }
      std::swap(now, next);
    }
    return std::ranges::max(now);
  }

  int64_t LengthOf(int64_t n) const override { return n * (1 + fillers_); }

  Shape shape_;
  bool tags_every_;
  int fillers_;
  int32_t filler_ = 0;
  size_t order_ = 0;
  std::vector<uint8_t> generators_;
  std::vector<uint8_t> products_;  // [first, second]
};

std::unique_ptr<Task> WordProblemConfig::Make() const {
  return std::make_unique<WordProblem>(*this);
}

}  // namespace

TaskSpec Spec_word_problem() {
  return {"word_problem",
          "state",
          "product of n elements of Z2 (parity), Z60, A4xZ5, A5, S3 or S5",
          "1/|G|, or computed for fewer generators",
          "n, the number of elements (1 to 1024)",
          NewConfig<WordProblemConfig>};
}

}  // namespace weft
