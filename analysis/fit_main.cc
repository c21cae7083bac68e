// weft fit POINTS: scaling laws from points, and what they say.

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "analysis/fit/answers.h"
#include "analysis/fit/bootstrap.h"
#include "analysis/fit/chinchilla.h"
#include "analysis/fit/frontier.h"
#include "analysis/fit/parity.h"
#include "analysis/fit/points.h"
#include "analysis/fit/repetition.h"
#include "analysis/fit/table.h"
#include "experiments/run/files.h"
#include "experiments/run/program.h"

namespace {

using namespace weft;
using Json = nlohmann::ordered_json;

constexpr const char* kHelp = R"(
POINTS
  points.csv   a heading and one row per trained model: n, d (or flops), loss; optional: architecture, seed, size,
               flops, unique
  SWEEP        sweep.h5 or its directory: one point per finished cell, the rest is named and left out
  laws.json    what --json wrote: its laws, without intervals

Forms
  chinchilla         L = E + A / N^alpha + B / D^beta, Huber loss on ln L (approach 3 of Hoffmann et al. 2022)
  isoflop            a parabola in ln N per budget, N_opt = k C^a through their minima (approach 2)
  envelope           N_opt = k C^a through the best size of each budget on training curves (approach 1)
  data-constrained   chinchilla with D and N discounted for repetition (Muennighoff et al. 2023); needs unique

Questions (lists, such as --n 1B,7B)
  --n --d        the loss, and the tokens with which each architecture reaches the reference's loss
  --n --loss     the tokens that reach the loss, and the savings over the reference
  --d --loss     the parameters that reach the loss
  --loss         the least compute that reaches the loss
  --flops        the compute-optimal split and its loss

Compute is 6 N D for a CSV without a column flops, else what the points say: of a sweep, FLOPs counted from the ops.
  --parity       from measured curves: the tokens that reach the loss with which the reference ends
)";

struct Settings {
  std::string path, form = "chinchilla", exponents = "free", resample = "auto";
  std::vector<std::string> columns, where, n, d, loss, flops, unique;
  FitOptions fit;
  ReadOptions read;
  BootstrapOptions bootstrap;
  Asked asked;
  std::vector<double> unique_tokens;
  bool parity = false, json = false;
};

// 7e9, 7B, 250M.
std::vector<double> Numbers(const std::string& option, const std::vector<std::string>& texts) {
  constexpr std::string_view kSuffixes = "kMBT";
  std::vector<double> numbers;
  for (const std::string& text : texts) {
    double value = 0;
    const char* const last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, value);
    const size_t suffix = end + 1 == last ? kSuffixes.find(*end) : kSuffixes.npos;
    if (suffix != kSuffixes.npos) value *= std::pow(1000, suffix + 1);
    if (error != std::errc() || (end != last && suffix == kSuffixes.npos) || !(value > 0) ||
        !std::isfinite(value)) {
      Fail(ExitCode::kUsage, option, " is \"", text,
           "\", expected a number above 0 such as 7e9, 7B or 250M");
    }
    numbers.push_back(value);
  }
  return numbers;
}

// Lines for people go to stdout when tables do, and nowhere when JSON does; warnings and notes to
// stderr, and into the JSON.
class Output {
 public:
  explicit Output(bool json) : json_(json) {}
  Json& operator[](const char* key) { return object_[key]; }
  void Say(const std::string& line) const {
    if (!json_) fmt::print("{}\n", line);
  }
  void Show(const Table& table) {
    object_[table.key] = table.ToJson();
    if (!json_) fmt::print("\n{}", table.ToText());
  }
  void Warn(const std::string& line) {
    object_["warnings"].push_back(line);
    fmt::print(stderr, "weft fit: {}\n", line);
  }
  void Finish() const {
    if (json_) fmt::print("{}\n", object_.dump(2, ' ', false, Json::error_handler_t::replace));
  }

 private:
  bool json_;
  Json object_;
};

std::string Named(const std::string& architecture) {
  return architecture.empty() ? "all" : architecture;
}

Json ToJson(const Law& law) {
  return {{"E", Finite(law.E)}, {"A", Finite(law.A)},       {"alpha", Finite(law.alpha)},
          {"B", Finite(law.B)}, {"beta", Finite(law.beta)}, {"k", law.k},
          {"g", law.g}};
}

struct Coefficient {
  const char* name;
  double (*of)(const Law&);
};
constexpr Coefficient kCoefficients[] = {
    {"E", [](const Law& l) { return l.E; }},
    {"A", [](const Law& l) { return l.A; }},
    {"alpha", [](const Law& l) { return l.alpha; }},
    {"B", [](const Law& l) { return l.B; }},
    {"beta", [](const Law& l) { return l.beta; }},
    {"a", [](const Law& l) { return l.SizeExponent(); }},
};

void DescribePoints(const Points& points, const Settings& s, Output& out) {
  Json excluded = Json::array(), rows = Json::array();
  for (const Point& p : points.points) {
    rows.push_back({{"architecture", p.architecture},
                    {"size", p.size},
                    {"n", p.n},
                    {"d", p.d},
                    {"loss", p.loss},
                    {"flops", p.flops},
                    {"seed", p.seed},
                    {"origin", p.origin}});
  }
  for (const Excluded& e : points.excluded) excluded.push_back({{"what", e.what}, {"why", e.why}});
  std::vector<std::string> filters;
  for (const Filter& filter : s.read.filters) filters.push_back(filter.ToString());
  out["points"] = {{"source", points.source},
                   {"xxh3", points.hash},
                   {"count", points.points.size()},
                   {"architectures", points.Architectures()},
                   {"filters", filters},
                   {"excluded", excluded},
                   {"rows", rows}};
  out.Say(fmt::format(
      "{} points of {}{}", points.points.size(), points.source,
      points.excluded.empty() ? "" : fmt::format(", {} excluded", points.excluded.size())));
  constexpr size_t kMostNamed = 12;
  for (size_t i = 0; i < points.excluded.size(); ++i) {
    if (i == kMostNamed) {
      fmt::print(stderr, "weft fit: ... and {} more; --json names all\n",
                 points.excluded.size() - kMostNamed);
      break;
    }
    fmt::print(stderr, "weft fit: excluded {}: {}\n", points.excluded[i].what,
               points.excluded[i].why);
  }
  for (const std::string& note : points.notes) out.Warn(note);
}

// An exponent that the resamples do not agree on within a factor of two, or no irreducible loss.
void WarnOfWideInterval(const std::string& architecture, std::string_view coefficient,
                        const Interval& interval, Output& out) {
  const bool exponent = coefficient == "alpha" || coefficient == "beta";
  const bool wide = exponent && interval.high > 2 * interval.low;
  const bool zero = coefficient == "E" && !(interval.low > 0);
  if (!wide && !zero) return;
  out.Warn(
      fmt::format("{}: {} is known only between {:.3g} and {:.3g}: do not read it as a "
                  "constant of the architecture",
                  Named(architecture), coefficient, interval.low, interval.high));
}

// Gives the laws of an architecture, of the fit and of all draws, the FLOPs of its points.
void SetCosts(const Points& points, std::vector<Fit>& fits, Ensemble& ensemble, Output& out) {
  size_t k = 0;
  for (Fit& fit : fits) {
    for (size_t i = 0; i < fit.architectures.size(); ++i, ++k) {
      const TrainingCost cost = CostOf(points.Of(fit.architectures[i]));
      if (!(cost.g > 0)) {
        out.Warn(
            fmt::format("{}: FLOPs per token do not grow with n, as {:.4g} N^{:.4g}: compute "
                        "is taken as 6 N D",
                        Named(fit.architectures[i]), cost.k, cost.g));
        continue;
      }
      const auto set = [&](Law& law) { law.k = cost.k, law.g = cost.g; };
      set(fit.laws[i]), set(ensemble.laws[k]);
      for (std::vector<Law>& draw : ensemble.draws) set(draw[k]);
      if (cost.worst > 0) {
        out.Say(fmt::format("{}: FLOPs per token as counted, {:.4g} N^{:.4g} within {}",
                            Named(fit.architectures[i]), cost.k, cost.g,
                            Written(Style::kPercent, cost.worst)));
      }
    }
  }
}

// Laws of approach 3 with all that is known of them; their draws.
Ensemble FitChinchilla(const Points& points, const Settings& s, Output& out) {
  std::vector<Fit> fits = FitLaws(points.points, s.fit);
  Ensemble ensemble;
  if (s.bootstrap.draws > 0) {
    ensemble = Bootstrap(points.points, s.fit, fits, s.bootstrap);
    if (ensemble.redrawn > 0) {
      out.Warn(
          fmt::format("{} resamples could not determine a law and were drawn again: the "
                      "intervals are too narrow",
                      ensemble.redrawn));
    }
  } else {
    for (const Fit& fit : fits) {
      ensemble.architectures.insert(ensemble.architectures.end(), fit.architectures.begin(),
                                    fit.architectures.end());
      ensemble.laws.insert(ensemble.laws.end(), fit.laws.begin(), fit.laws.end());
    }
  }
  SetCosts(points, fits, ensemble, out);
  const std::vector<LeftOut> left_out = LeaveOneSizeOut(points.points, s.fit);

  Table table{"laws",
              "L(N, D) = E + A / N^alpha + B / D^beta, N_opt ~ C^a",
              {"architecture", "points", "E", "A", "alpha", "B", "beta", "a"},
              {}};
  Json described = Json::array();
  std::vector<std::string> lines;
  size_t k = 0;
  for (const Fit& fit : fits) {
    const Minimum& best = fit.minima.front();
    std::vector<Point> fitted;
    for (const std::string& name : fit.architectures) {
      const std::vector<Point> own = points.Of(name);
      fitted.insert(fitted.end(), own.begin(), own.end());
    }
    const double again = Objective(fitted, fit.laws, s.fit.delta);
    Check(std::abs(again - fit.objective) <= 1e-9 * fit.objective + 1e-18,
          "the objective of the law found is ", again, ", the search says ", fit.objective,
          "; please report this");
    if (!best.stationary)
      out.Warn("the search ended at a place that is no minimum; the law may not be the best");
    Json minima = Json::array();
    for (const Minimum& m : fit.minima) {
      Json laws = Json::array();
      for (const Law& law : m.laws) laws.push_back(ToJson(law));
      minima.push_back({{"objective", m.objective},
                        {"starts", m.starts},
                        {"stationary", m.stationary},
                        {"laws", laws}});
    }
    for (size_t i = 0; i < fit.architectures.size(); ++i, ++k) {
      const std::string& name = fit.architectures[i];
      const std::vector<Point> own = points.Of(name);
      const Conditioning c = Examine(own, fit.laws[i], s.fit);
      for (const std::string& warning : c.warnings) {
        out.Warn((name.empty() ? "" : name + ": ") + warning);
      }
      std::vector<TableCell> row = {Named(name), {Style::kCount, static_cast<double>(own.size())}};
      Json one = {{"architecture", name}, {"points", own.size()}};
      one.update(ToJson(fit.laws[i]));
      one["a"] = fit.laws[i].SizeExponent();
      Json intervals;
      for (const Coefficient& coefficient : kCoefficients) {
        TableCell cell(Style::kNumber, coefficient.of(fit.laws[i]));
        if (!ensemble.draws.empty()) {
          cell.interval = IntervalOf(ensemble, s.asked.level, [&](std::span<const Law> laws) {
            return coefficient.of(laws[k]);
          });
          WarnOfWideInterval(name, coefficient.name, *cell.interval, out);
          intervals[coefficient.name] = {{"low", Finite(cell.interval->low)},
                                         {"high", Finite(cell.interval->high)},
                                         {"deviation", Finite(cell.interval->deviation)}};
        }
        row.push_back(cell);
      }
      table.rows.push_back(row);
      one["intervals"] = intervals;
      one["objective"] = fit.objective;
      one["r_squared"] = c.r_squared;
      one["worst_residual"] = c.worst_residual;
      one["condition"] = Finite(c.condition);
      one["traded"] = c.traded;
      one["starts"] = fit.starts;
      one["minima"] = minima;
      Json left = Json::array();
      double mean = 0;
      int sizes = 0;
      const LeftOut* largest = nullptr;
      for (const LeftOut& l : left_out) {
        if (l.architecture != name) continue;
        left.push_back({{"n", l.n},
                        {"points", l.points},
                        {"mean_error", l.mean_error},
                        {"bias", l.bias},
                        {"largest", l.largest}});
        mean += l.mean_error;
        ++sizes;
        if (l.largest) largest = &l;
      }
      one["left_out"] = left;
      described.push_back(one);
      lines.push_back(fmt::format(
          "{}: R^2 {:.5f}, worst residual {}, condition {:.3g} ({}), f = {:.6g}, {} of {} starts "
          "reach it, {} {}",
          Named(name), c.r_squared, Written(Style::kPercent, c.worst_residual), c.condition,
          c.traded, fit.objective, best.starts, fit.starts, fit.minima.size(),
          fit.minima.size() == 1 ? "minimum" : "minima"));
      if (sizes > 0) {
        lines.push_back(fmt::format("{}: a size left out is predicted with a mean error of {}{}",
                                    Named(name), Written(Style::kPercent, mean / sizes),
                                    largest
                                        ? fmt::format("; the largest, n = {}, with {} (bias {})",
                                                      Written(Style::kCount, largest->n),
                                                      Written(Style::kPercent, largest->mean_error),
                                                      Written(Style::kPercent, largest->bias))
                                        : ""));
      } else {
        out.Warn(
            fmt::format("{}: too few sizes to leave one out: nothing is known of "
                        "extrapolation",
                        Named(name)));
      }
      if (fit.minima.size() > 1 && fit.minima[1].stationary &&
          fit.minima[1].objective < 1.01 * fit.objective) {
        out.Warn(
            fmt::format("{}: another minimum, alpha {:.3g} and beta {:.3g}, is worse by less "
                        "than 1 %",
                        Named(name), fit.minima[1].laws[i].alpha, fit.minima[1].laws[i].beta));
      }
    }
  }
  out.Show(table);
  out.Say("");
  for (const std::string& line : lines) out.Say(line);
  out["fits"] = described;
  return ensemble;
}

void WarnOfExtrapolation(const Points& points, const Asked& asked, Output& out) {
  constexpr double kFar = 10;
  double n = 0, d = 0;
  for (const Point& p : points.points) n = std::max(n, p.n), d = std::max(d, p.d);
  const auto warn = [&](const char* what, const std::vector<double>& values, double most) {
    if (values.empty()) return;
    const double farthest = *std::max_element(values.begin(), values.end());
    if (farthest > kFar * most) {
      out.Warn(fmt::format("extrapolation: {} {} is {:.3g} times the largest that was fitted", what,
                           Written(Style::kCount, farthest), farthest / most));
    }
  };
  warn("n", asked.n, n);
  warn("d", asked.d, d);
}

// Laws of a file that --json wrote, or that was written by hand.
Ensemble ReadLaws(const std::string& path, std::vector<Repetition>& repetitions) {
  Ensemble ensemble;
  try {
    const Json json = Json::parse(ReadFile(path));
    for (const Json& fit : json.at("fits")) {
      const std::string name = fit.value("architecture", "");
      if (std::ranges::count(ensemble.architectures, name) > 0)
        Fail(ExitCode::kData, path, ": has two laws of \"", name, "\"");
      const Law law{fit.at("E"),    fit.at("A"),         fit.at("alpha"),    fit.at("B"),
                    fit.at("beta"), fit.value("k", 6.0), fit.value("g", 1.0)};
      const bool positive = law.A > 0 && law.B > 0 && law.alpha > 0 && law.beta > 0 && law.k > 0;
      if (!(law.E >= 0 && positive && law.g > 0)) {
        Fail(ExitCode::kData, path, ": the law of \"", name,
             "\" has a coefficient that is not above 0");
      }
      ensemble.architectures.push_back(name);
      ensemble.laws.push_back(law);
      repetitions.push_back({fit.value("R_D", 0.0), fit.value("R_N", 0.0)});
    }
  } catch (const Json::exception& error) {
    Fail(ExitCode::kData, path, ": is no file of laws: ", error.what(),
         "; expected {\"fits\": [{\"architecture\", \"E\", \"A\", \"alpha\", \"B\", \"beta\"}]}");
  }
  if (ensemble.laws.empty()) Fail(ExitCode::kData, path, ": holds no laws");
  return ensemble;
}

void AnswerRepetition(const std::vector<std::string>& architectures, const std::vector<Law>& laws,
                      const std::vector<Repetition>& repetitions, const Settings& s, Output& out) {
  if (s.asked.n.empty() && s.asked.d.empty() && s.unique_tokens.empty()) return;
  if (s.asked.n.empty() || s.asked.d.empty() || s.unique_tokens.empty())
    Fail(ExitCode::kUsage, "the data-constrained law is asked with --n, --d and --unique together");
  Table table{"loss",
              "Loss with repeated tokens",
              {"n", "d", "unique", "architecture", "loss", "effective_n", "effective_d"},
              {}};
  for (const double n : s.asked.n) {
    for (const double d : s.asked.d) {
      for (const double unique : s.unique_tokens) {
        for (size_t k = 0; k < laws.size(); ++k) {
          const Effective e = EffectiveOf(laws[k], repetitions[k], n, d, unique);
          table.rows.push_back(
              {{Style::kCount, n},
               {Style::kCount, d},
               {Style::kCount, unique},
               Named(architectures[k]),
               {Style::kNumber, LossWithRepetition(laws[k], repetitions[k], n, d, unique)},
               {Style::kCount, e.n},
               {Style::kCount, e.d}});
        }
      }
    }
  }
  out.Show(table);
}

void FitDataConstrained(const Points& points, const Settings& s, Output& out) {
  Table table{"laws",
              "L(N, D, U) = E + A / N'^alpha + B / D'^beta",
              {"architecture", "fresh", "repeated", "E", "A", "alpha", "B", "beta", "R_D", "R_N"},
              {}};
  Json described = Json::array();
  std::vector<Law> laws;
  std::vector<Repetition> repetitions;
  const std::vector<std::string> architectures = points.Architectures();
  for (const std::string& name : architectures) {
    const std::vector<Point> own = points.Of(name);
    const RepetitionFit fit = FitRepetition(own, s.fit);
    const std::vector<std::string> stratum = [&] {
      std::vector<std::string> fresh_or_not;
      for (const Point& p : own) fresh_or_not.push_back(p.d > p.unique ? "repeated" : "fresh");
      return fresh_or_not;
    }();
    const Resampler resampler(own, stratum, s.bootstrap);
    std::vector<RepetitionFit> draws(static_cast<size_t>(s.bootstrap.draws));
    InParallel(s.bootstrap.draws, s.bootstrap.threads, [&](int draw) {
      for (int attempt = 0;; ++attempt) {
        try {
          draws[static_cast<size_t>(draw)] =
              FitRepetition(own, s.fit, resampler.Weights(draw, attempt), &fit.law);
          return;
        } catch (const Error&) {
          if (attempt == 100) throw;
        }
      }
    });
    const auto cell = [&](const std::function<double(const RepetitionFit&)>& of) {
      TableCell one(Style::kNumber, of(fit));
      if (draws.empty()) return one;
      std::vector<double> values;
      for (const RepetitionFit& draw : draws) values.push_back(of(draw));
      one.interval = IntervalOf(std::move(values), s.asked.level);
      return one;
    };
    std::vector<TableCell> row = {Named(name),
                                  {Style::kCount, static_cast<double>(fit.fresh)},
                                  {Style::kCount, static_cast<double>(fit.repeated)}};
    for (const Coefficient& coefficient : std::span(kCoefficients).first(5))
      row.push_back(cell([&](const RepetitionFit& f) { return coefficient.of(f.law); }));
    row.push_back(cell([](const RepetitionFit& f) { return f.repetition.tokens; }));
    row.push_back(cell([](const RepetitionFit& f) { return f.repetition.parameters; }));
    table.rows.push_back(row);
    Json one = {{"architecture", name}};
    one.update(ToJson(fit.law));
    one["R_D"] = fit.repetition.tokens;
    one["R_N"] = fit.repetition.parameters;
    one["objective"] = fit.objective;
    described.push_back(one);
    laws.push_back(fit.law);
    repetitions.push_back(fit.repetition);
  }
  out.Show(table);
  out["fits"] = described;
  AnswerRepetition(architectures, laws, repetitions, s, out);
}

void FitFrontier(const Points& points, const Settings& s, Output& out) {
  const bool isoflop = s.form == "isoflop";
  Table laws{"frontier",
             "N_opt = k C^a, D_opt = k C^b",
             {"architecture", "budgets", "k_n", "a", "k_d", "b"},
             {}};
  Table budgets{
      "budgets", "Budgets", {"architecture", "flops", "points", "n", "d", "loss", "excluded"}, {}};
  Table optimal{"optimal", "Compute-optimal split", {"flops", "architecture", "n", "d"}, {}};
  for (const std::string& name : points.Architectures()) {
    const std::vector<Point> own = points.Of(name);
    const Frontier frontier = isoflop ? FitIsoFlop(own) : FitEnvelope(own);
    int counting = 0;
    for (const Optimum& budget : frontier.budgets) {
      counting += budget.excluded.empty();
      if (!isoflop) continue;
      budgets.rows.push_back({Named(name),
                              {Style::kNumber, budget.flops},
                              {Style::kCount, static_cast<double>(budget.points)},
                              {Style::kCount, budget.n},
                              {Style::kCount, budget.d},
                              {Style::kNumber, budget.loss},
                              budget.excluded});
    }
    TableCell exponent(Style::kNumber, frontier.n.exponent);
    if (isoflop && s.bootstrap.draws > 0)
      exponent.interval = IsoFlopInterval(own, s.bootstrap, s.asked.level);
    laws.rows.push_back({Named(name),
                         {Style::kCount, static_cast<double>(counting)},
                         {Style::kNumber, frontier.n.coefficient},
                         exponent,
                         {Style::kNumber, frontier.d.coefficient},
                         {Style::kNumber, frontier.d.exponent}});
    for (const double flops : s.asked.flops) {
      optimal.rows.push_back({{Style::kNumber, flops},
                              Named(name),
                              {Style::kCount, frontier.n.At(flops)},
                              {Style::kCount, frontier.d.At(flops)}});
    }
    for (const std::string& warning : frontier.warnings) out.Warn(Named(name) + ": " + warning);
  }
  out.Show(laws);
  if (isoflop) out.Show(budgets);
  if (!optimal.rows.empty()) out.Show(optimal);
}

void ShowParity(const Points& points, const Settings& s, Output& out) {
  const ParityTable parity =
      TokensToParity(points.curves, s.asked.reference, s.bootstrap, s.asked.level);
  for (const std::string& note : parity.notes) out.Warn(note);
  Table table{
      "parity",
      "Tokens to the last loss of " + Named(s.asked.reference),
      {"size", "architecture", "loss", "reference_tokens", "tokens", "share", "for_good", "seeds"},
      {}};
  for (const Parity& row : parity.rows) {
    TableCell share(Style::kPercent, row.first / row.reference_tokens);
    if (row.has_interval) share.interval = row.share;
    table.rows.push_back({row.size,
                          Named(row.architecture),
                          {Style::kNumber, row.target},
                          {Style::kCount, row.reference_tokens},
                          {Style::kCount, row.first},
                          share,
                          {Style::kCount, row.for_good},
                          {Style::kCount, static_cast<double>(row.seeds)}});
  }
  out.Show(table);
}

void AddOptions(CLI::App& app, Settings& s) {
  const auto list = [&](const char* name, std::vector<std::string>& to, const char* help) {
    app.add_option(name, to, help)->delimiter(',');
  };
  app.add_option("POINTS", s.path, "CSV file, sweep.h5, directory of a sweep, or laws.json")
      ->required();
  app.add_option("--form", s.form, "what is fitted")
      ->check(CLI::IsMember({"chinchilla", "isoflop", "envelope", "data-constrained"}))
      ->capture_default_str();
  app.add_option("--exponents", s.exponents, "free: per architecture; shared: in common to all")
      ->check(CLI::IsMember({"free", "shared"}))
      ->capture_default_str();
  const CLI::Validator exponent = Between(kLeastExponent, kGreatestExponent);
  app.add_option("--alpha", s.fit.alpha, "given, not fitted")->check(exponent);
  app.add_option("--beta", s.fit.beta, "given, not fitted")->check(exponent);
  app.add_option("--delta", s.fit.delta, "of the Huber loss on ln L")
      ->check(Between(1e-12, 1e6))
      ->capture_default_str();
  list("--n", s.n, "parameters");
  list("--d", s.d, "tokens");
  list("--loss", s.loss, "losses");
  list("--flops", s.flops, "budgets");
  list("--unique", s.unique, "data-constrained: unique tokens");
  app.add_option("--reference", s.asked.reference,
                 "architecture that others are compared with; default: the first");
  app.add_flag("--parity", s.parity, "compare measured curves");
  app.add_option("--bootstrap", s.bootstrap.draws,
                 "resamples behind each interval; 0: no intervals")
      ->check(CLI::Range(0, 10000000))
      ->capture_default_str();
  app.add_option("--resample", s.resample,
                 "points, seeds or both; auto: both where several seeds share n and d")
      ->check(CLI::IsMember({"auto", "points", "seeds", "both"}))
      ->capture_default_str();
  app.add_option("--level", s.asked.level, "of the intervals")
      ->check(Between(0.01, 0.9999))
      ->capture_default_str();
  app.add_option("--seed", s.bootstrap.seed, "of the resamples")->capture_default_str();
  app.add_option("--column", s.columns, "NAME=HEADING: another name of a CSV file's column");
  app.add_option("--where", s.where, "keep rows such as loss<4.5 or n>=1e7; kept in the record");
  app.add_option("--count", s.read.count, "sweeps: what N counts, columns of /cells joined by +")
      ->capture_default_str();
  app.add_option("--eval", s.read.evaluation, "sweeps: the evaluation whose loss is fitted")
      ->capture_default_str();
  app.add_option("--threads", s.bootstrap.threads, "default: all cores")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--json", s.json, "everything as JSON on stdout");
}

// What depends on more than one option.
void Resolve(Settings& s) {
  s.fit.shared = s.exponents == "shared";
  s.asked.n = Numbers("--n", s.n);
  s.asked.d = Numbers("--d", s.d);
  s.asked.loss = Numbers("--loss", s.loss);
  s.asked.flops = Numbers("--flops", s.flops);
  s.unique_tokens = Numbers("--unique", s.unique);
  for (const std::string& column : s.columns) {
    const size_t equals = column.find('=');
    if (equals == column.npos || equals == 0 || equals + 1 == column.size())
      Fail(ExitCode::kUsage, "--column is \"", column, "\", expected NAME=HEADING");
    s.read.columns[column.substr(0, equals)] = column.substr(equals + 1);
  }
  for (const std::string& filter : s.where) s.read.filters.push_back(Filter::Parse(filter));
  const auto only_for = [&](bool given, const char* option,
                            std::initializer_list<const char*> forms) {
    const bool fits =
        std::any_of(forms.begin(), forms.end(), [&](const char* f) { return s.form == f; });
    if (given && !fits) Fail(ExitCode::kUsage, option, " does not go with --form ", s.form);
  };
  only_for(!s.n.empty(), "--n", {"chinchilla", "data-constrained"});
  only_for(!s.d.empty(), "--d", {"chinchilla", "data-constrained"});
  only_for(!s.loss.empty(), "--loss", {"chinchilla"});
  only_for(!s.flops.empty(), "--flops", {"chinchilla", "isoflop", "envelope"});
  only_for(!s.unique.empty(), "--unique", {"data-constrained"});
  only_for(s.fit.shared, "--exponents shared", {"chinchilla"});
}

int Main(CLI::App& app, int argc, char** argv) {
  Settings s;
  s.bootstrap.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  AddOptions(app, s);
  ParseArguments(app, argc, argv);
  Resolve(s);
  Output out(s.json);
  out["form"] = s.form;

  if (s.path.ends_with(".json")) {
    if (s.form != "chinchilla" && s.form != "data-constrained")
      Fail(ExitCode::kUsage, s.path, ": holds laws; --form ", s.form, " needs points");
    if (s.parity) Fail(ExitCode::kUsage, s.path, ": holds laws; --parity needs points");
    std::vector<Repetition> repetitions;
    const Ensemble laws = ReadLaws(s.path, repetitions);
    if (s.asked.reference.empty()) s.asked.reference = laws.architectures.front();
    if (s.form == "data-constrained") {
      for (const Repetition& r : repetitions) {
        if (!(r.tokens > 0 && r.parameters > 0))
          Fail(ExitCode::kData, s.path,
               ": has no R_D and R_N above 0, which --form data-constrained needs");
      }
      AnswerRepetition(laws.architectures, laws.laws, repetitions, s, out);
    } else {
      for (const Table& table : Answer(laws, s.asked)) out.Show(table);
    }
    out.Finish();
    return 0;
  }

  const Points points = ReadPoints(s.path, s.read);
  DescribePoints(points, s, out);
  if (points.points.empty()) Fail(ExitCode::kData, s.path, ": holds no points to fit");
  if (s.asked.reference.empty()) s.asked.reference = points.Architectures().front();
  s.bootstrap.resample = s.resample == "points"  ? Resample::kPoints
                         : s.resample == "seeds" ? Resample::kSeeds
                         : s.resample == "both"  ? Resample::kBoth
                         : points.has_seeds      ? Resample::kBoth
                                                 : Resample::kPoints;
  if (s.resample == "seeds" && !points.has_seeds)
    Fail(ExitCode::kData, s.path, ": no n and d has several seeds, which --resample seeds needs");
  out["options"] = {{"exponents", s.exponents},
                    {"delta", s.fit.delta},
                    {"bootstrap", s.bootstrap.draws},
                    {"resample", s.bootstrap.resample == Resample::kPoints  ? "points"
                                 : s.bootstrap.resample == Resample::kSeeds ? "seeds"
                                                                            : "both"},
                    {"seed", s.bootstrap.seed},
                    {"level", s.asked.level},
                    {"reference", s.asked.reference}};
  if (s.form == "chinchilla") {
    const Ensemble ensemble = FitChinchilla(points, s, out);
    WarnOfExtrapolation(points, s.asked, out);
    for (const Table& table : Answer(ensemble, s.asked)) out.Show(table);
  } else if (s.form == "data-constrained") {
    FitDataConstrained(points, s, out);
  } else {
    FitFrontier(points, s, out);
  }
  if (s.parity) ShowParity(points, s, out);
  out.Finish();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Fits scaling laws to losses of trained models.");
  return weft::RunProgram(
      "fit", app, [&] { return Main(app, argc, argv); }, [] { return std::string(kHelp); });
}
