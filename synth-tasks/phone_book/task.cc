// Phone book: the number of one of n people.
//
//   Anna Weber: 6204419371
//   Hugo Moser: 8817220954      n entries, all names different
//   ...
//
//   Hugo Moser: 8817220954      `examples` other entries again, at most n - 1
//
//   Anna Weber: 6204419371      the question; every digit of the number is an answer
//
// Names are pairs of 32 first and 32 last names, a token each; a number has `digits` digits, each a
// token, the first out of 6 to 9. Who is asked for is uniform.
//
// Chance. Any of the digits 6 to 9 is right with probability 1/4 in the first place and 1/10 in the
// others. Class: as multi-query recall; a recurrence needs about 10 + 3.3 digits bits per entry.
//
// Source: Jelassi et al., arXiv:2402.01032, experiments on look-up, and its code (format, digits,
// examples). There names may repeat; here the answer is unique.

#include <algorithm>
#include <array>

#include "kernels/base/check.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

constexpr int64_t kLargestBook = 512;  // of 1024 names
constexpr uint32_t kNames = 32;
constexpr uint32_t kMostDigits = 16;
const std::vector<std::string> kFirstNames = {
    "Ada",   "Alma",  "Anna", "Ben",  "Clara", "Dora",  "Emil", "Emma", "Ernst", "Eva", "Fritz",
    "Greta", "Hanna", "Hugo", "Ida",  "Jan",   "Jonas", "Karl", "Lea",  "Lena",  "Leo", "Luis",
    "Mara",  "Max",   "Mia",  "Nina", "Otto",  "Paul",  "Rosa", "Theo", "Tom",   "Vera"};
const std::vector<std::string> kLastNames = {
    "Adler", "Bauer", "Beck",  "Berg",  "Braun",   "Busch", "Ebert",  "Engel",
    "Fink",  "Frank", "Fuchs", "Graf",  "Haas",    "Hahn",  "Horn",   "Keller",
    "Klein", "Koch",  "Kraus", "Lang",  "Lehmann", "Moser", "Otte",   "Roth",
    "Sauer", "Simon", "Stark", "Stein", "Vogel",   "Weber", "Winter", "Wolf"};

struct PhoneBookConfig : LanguageConfig {
  int64_t digits = 10;
  int64_t examples = 2;

  PhoneBookConfig() {
    difficulties = {8, 16, 32};
    stage_steps = {2000, 4000, 0};
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("digits", digits, "digits of a number", Range{1, kMostDigits});
    v.Key("examples", examples, "entries that are repeated before the question", Range{0, 8});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class PhoneBook : public GeneratedTask {
 public:
  explicit PhoneBook(const PhoneBookConfig& config)
      : GeneratedTask("phone_book", config, kLargestBook, config.loss == "all"),
        digits_(static_cast<uint32_t>(config.digits)),
        examples_(config.examples) {
    Atoms atoms;
    first_name_ = atoms.Add("\n", kFirstNames, " ");
    last_name_ = atoms.Add("", kLastNames, ": ");
    digit_ = atoms.Add("", Numbers(10));
    gap_ = atoms.Add("\n");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    const std::string question = text_before_answer.substr(text_before_answer.rfind('\n'));
    const size_t entry = text_before_answer.find(question);
    return text_before_answer.substr(entry + question.size(), 1);
  }

 private:
  struct Entry {
    uint16_t name;
    std::array<uint8_t, kMostDigits> digits;
  };

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const auto count = static_cast<uint32_t>(n);
    std::array<Entry, kLargestBook> book;
    std::array<bool, kNames * kNames> taken{};
    for (uint32_t i = 0; i < count; ++i) {
      do {
        book[i].name = static_cast<uint16_t>(rng.Below(kNames * kNames));
      } while (taken[book[i].name]);
      taken[book[i].name] = true;
      for (uint32_t k = 0; k < digits_; ++k) {
        book[i].digits[k] = static_cast<uint8_t>(k == 0 ? 6 + rng.Below(4) : rng.Below(10));
      }
      PutEntry(out, book[i]);
    }
    // The first of a random order are the examples, the next is asked for. Entries are swapped in
    // place, since they are written already.
    const auto examples = static_cast<uint32_t>(std::min(examples_, n - 1));
    for (uint32_t i = 0; i <= examples; ++i) {
      std::swap(book[i], book[i + rng.Below(count - i)]);
      if (i == 0 || i == examples) out.Put(gap_);
      if (i < examples) PutEntry(out, book[i]);
    }
    const Entry& asked = book[examples];
    PutName(out, asked);
    for (uint32_t k = 0; k < digits_; ++k) out.PutAnswer(digit_ + asked.digits[k]);
  }

  void PutName(SampleWriter& out, const Entry& entry) const {
    out.Put(first_name_ + entry.name / kNames);
    out.Put(last_name_ + entry.name % kNames);
  }
  void PutEntry(SampleWriter& out, const Entry& entry) const {
    PutName(out, entry);
    for (uint32_t k = 0; k < digits_; ++k) out.Put(digit_ + entry.digits[k]);
  }

  double ChanceOf(int64_t) const override { return (0.25 + 0.1 * (digits_ - 1)) / digits_; }

  int64_t LengthOf(int64_t n) const override {
    const int64_t examples = std::min(examples_, n - 1);
    return (n + examples + 1) * (2 + digits_) + (examples > 0 ? 2 : 1);
  }

  uint32_t digits_;
  int64_t examples_;
  int32_t first_name_, last_name_, digit_, gap_;
};

std::unique_ptr<Task> PhoneBookConfig::Make() const { return std::make_unique<PhoneBook>(*this); }

}  // namespace

TaskSpec Spec_phone_book() {
  return {"phone_book",
          "recall",
          "the number of one of n people",
          "0.115 per digit of ten",
          "n, the number of entries (1 to 512)",
          NewConfig<PhoneBookConfig>};
}

}  // namespace weft
