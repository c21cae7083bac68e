#include "experiments/train/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>

#include "experiments/train/trainer.h"

namespace weft {
namespace {

constexpr int64_t kFewValues = 2048;
// Values are refused where head sizes and widths do not divide; none of these periods is longer.
constexpr int64_t kLongestGap = 4096;
constexpr double kMeasuredResolution = 0.01;  // of the key, where the quantity is measured

std::unique_ptr<Experiment> With(const Experiment& e, const std::string& key, int64_t value) {
  Settings settings = e.given();
  settings.push_back({key, value, "--by " + key});
  return Experiment::FromSettings(settings);
}

// The quantity as a function of the key.
class Curve {
 public:
  Curve(const Experiment& e, const MatchRequest& request, const Measure& measure)
      : e_(e), request_(request), measure_(measure) {}

  // Nothing where the model refuses the value.
  std::optional<double> At(int64_t value) {
    const auto [known, is_new] = seen_.try_emplace(value);
    if (!is_new) return known->second;
    std::unique_ptr<Experiment> changed;
    try {
      changed = With(e_, request_.by, value * request_.multiple);
      ModelOf(*changed);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUsage) throw;
      return std::nullopt;
    }
    return known->second = QuantityOf(*changed, request_.quantity, measure_);
  }
  // The value in (low, high) that the model takes and that is nearest to `value`.
  std::optional<int64_t> Valid(int64_t value, int64_t low, int64_t high) {
    for (int64_t distance = 0; distance <= kLongestGap; ++distance) {
      if (value - distance <= low && value + distance >= high) break;
      for (const int64_t v : {value - distance, value + distance}) {
        if (v > low && v < high && At(v)) return v;
      }
    }
    return std::nullopt;
  }
  const std::map<int64_t, std::optional<double>>& seen() const { return seen_; }

 private:
  const Experiment& e_;
  const MatchRequest& request_;
  const Measure& measure_;
  std::map<int64_t, std::optional<double>> seen_;
};

// The values that the key may take, in multiples; none of them 0.
std::pair<int64_t, int64_t> RangeOf(const Experiment& e, const MatchRequest& request) {
  auto changed = Experiment::FromSettings(e.given());
  std::vector<std::string> known;
  for (const ConfigField& field : changed->AllFields()) {
    if (field.path != request.by) {
      if (std::holds_alternative<int64_t*>(field.value)) known.push_back(field.path);
      continue;
    }
    if (!std::holds_alternative<int64_t*>(field.value))
      Fail(ExitCode::kUsage, "--by: ", request.by, " is not an integer key");
    const auto low = static_cast<int64_t>(std::max(1.0, field.range.low));
    const auto high = static_cast<int64_t>(std::min(1e15, field.range.high));
    const int64_t first = (low + request.multiple - 1) / request.multiple;
    if (first > high / request.multiple) {
      Fail(ExitCode::kUsage, "--multiple: ", request.by, " takes no multiple of ", request.multiple,
           ", only ", low, " to ", high);
    }
    return {first, high / request.multiple};
  }
  Fail(ExitCode::kUsage, "--by: unknown key \"", request.by, "\"; did you mean \"",
       NearestKey(request.by, known), "\"?");
}

// Asks the curve for values until those that enclose `target` lie close together. A falling curve
// that starts below the target never reaches it.
void Bisect(Curve& curve, int64_t low, int64_t high, double target, double resolution, bool falls) {
  const auto first = curve.Valid(low, low - 1, high + 1);
  if (!first) return;
  const bool below = *curve.At(*first) < target;
  if (falls && below) return;
  int64_t a = *first, b = a;  // the target lies between them
  for (int64_t step = 1;; step *= 2) {
    const auto next = curve.Valid(std::min(a + step, high), a, high + 1);
    if (!next) break;
    b = *next;
    if ((*curve.At(b) < target) != below) break;
    if (b == high) return;
    a = b;
  }
  while (b - a > 1 && static_cast<double>(b - a) > resolution * static_cast<double>(b)) {
    const auto middle = curve.Valid(a + (b - a) / 2, a, b);
    if (!middle) break;
    ((*curve.At(*middle) < target) == below ? a : b) = *middle;
  }
}

std::string Number(double x) {
  return x == std::floor(x) && std::abs(x) < 1e15 ? fmt::format("{:.0f}", x)
                                                  : fmt::format("{:.6g}", x);
}

}  // namespace

const std::vector<Quantity>& Quantities() {
  static const std::vector<Quantity> all = {
      {"parameters", "parameters", "all of them; a tied head is counted once"},
      {"body_parameters", "parameters", "without embedding and head: blocks and the final norm"},
      {"flops", "FLOP/token",
       "of the forward pass at train.length, one document per row: matrix products with the head, "
       "attention over the mean number of visible keys, recurrence, convolution; 2 per "
       "multiply-add; the embedding, norms, gates and softmax count nothing"},
      {"state", "byte", "decode state of one sequence of train.length tokens, f32"},
      {"throughput", "token/s, measured here",
       "of the training step: the median over --measure-steps steps"},
  };
  return all;
}

std::string DefinitionsText() {
  std::string text =
      "\nCounts (d = model.d_model, f = model.d_ff, V = model.vocab, T = train.length):\n"
      "  parameters       all of them: embedding + head + body\n"
      "  embedding        V d\n"
      "  head             V d; 0 when model.tied\n"
      "  body             mixers + MLPs + norms: everything but embedding and head\n"
      "  non-embedding    body + head: the N of the published ladder\n"
      "  MLP              3 d f per block; 6 d f FLOPs per token\n"
      "  norms            d each, two per block and one before the head\n"
      "  FLOPs per token  see flops below; in training: counted from the ops of one step, forward "
      "and backward\n"
      "Mixers, per block: parameters, forward FLOPs per token, decode state in elements\n";
  for (const MixerSpec& spec : AllMixers()) {
    std::string counts = spec.counts ? spec.counts : "not stated";
    for (size_t at = 0; (at = counts.find("; ", at)) != counts.npos;)
      counts.replace(at, 2, fmt::format("\n{:19}", ""));
    text += fmt::format("  {:<16} {}\n", spec.name, counts);
  }
  text += "Quantities that --match takes:\n";
  for (const Quantity& q : Quantities())
    text += fmt::format("  {:<16} {} ({})\n", q.name, q.definition, q.unit);
  return text;
}

double QuantityOf(const Experiment& e, const std::string& quantity, const Measure& measure) {
  if (quantity == "throughput") {
    Check(static_cast<bool>(measure), "throughput needs a measurement");
    return measure(e);
  }
  const Model model = ModelOf(e);
  if (quantity == "parameters") return static_cast<double>(model.Count().total);
  if (quantity == "body_parameters") return static_cast<double>(model.Count().body);
  if (quantity == "flops") return model.Cost(e.train.length).flops_per_token;
  if (quantity == "state") return static_cast<double>(model.Cost(e.train.length).state_bytes);
  std::vector<std::string> known;
  for (const Quantity& q : Quantities()) known.push_back(q.name);
  Fail(ExitCode::kUsage, "--match: unknown quantity \"", quantity, "\"; did you mean \"",
       NearestKey(quantity, known), "\"?");
}

double MeasureThroughput(const Experiment& e, int64_t steps) {
  constexpr int64_t kWarmUp = 3;
  const Device device = ChooseDevice(e);
  const std::unique_ptr<Stream> stream = OpenStream(device, e.threads);
  Trainer trainer(e, device, *stream);
  std::vector<double> seconds;
  for (int64_t i = 0; i < kWarmUp + steps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    trainer.Step();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (i >= kWarmUp) seconds.push_back(took.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
  return static_cast<double>(e.train.batch * e.train.length) /
         seconds[static_cast<size_t>(steps / 2)];
}

Match SolveMatch(const Experiment& e, const Experiment& reference, const MatchRequest& request,
                 const Measure& measure) {
  Match match{request, 0, QuantityOf(reference, request.quantity, measure), 0};
  const double target = match.reference;
  if (!(target > 0)) {
    Fail(ExitCode::kUsage, "--match: ", request.quantity, " of the reference is ", Number(target),
         ", there is nothing to match");
  }
  const auto [low, high] = RangeOf(e, request);
  Curve curve(e, request, measure);
  const bool measured = request.quantity == "throughput";
  if (high - low < kFewValues && !measured) {
    for (int64_t v = low; v <= high; ++v) curve.At(v);
  } else {
    Bisect(curve, low, high, target, measured ? kMeasuredResolution : 0, measured);
  }

  double least = 0, most = 0;
  int tried = 0;
  for (const auto& [value, quantity] : curve.seen()) {
    if (!quantity) continue;
    if (tried++ == 0) least = most = *quantity;
    least = std::min(least, *quantity), most = std::max(most, *quantity);
    if (tried > 1 && std::abs(*quantity - target) >= std::abs(match.matched - target)) continue;
    match.value = value * request.multiple, match.matched = *quantity;
  }
  if (tried == 0) {
    ModelOf(e);  // refused as it stands: that says why
    Fail(ExitCode::kUsage, "--by: no multiple of ", request.multiple, " fits as ", request.by,
         "; choose another key or a smaller --multiple");
  }
  if (tried > 1 && least == most) {
    Fail(ExitCode::kUsage, "--by: ", request.by, " does not change ", request.quantity,
         ", which is ", Number(most), " and ", Number(target),
         " in the reference; choose another key");
  }
  if (std::abs(match.ResidualPercent()) > request.tolerance) {
    Fail(ExitCode::kUsage, "--match: no value of ", request.by, " makes ", request.quantity,
         " equal to ", Number(target), ": the nearest is ", match.value, " with ",
         Number(match.matched), fmt::format(", {:+.3g} %", match.ResidualPercent()), ", more than ",
         Number(request.tolerance), " %; choose another key or allow more with --tolerance");
  }
  return match;
}

std::unique_ptr<Experiment> Apply(const Match& match, const Experiment& e) {
  return With(e, match.request.by, match.value);
}

}  // namespace weft
