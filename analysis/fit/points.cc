#include "analysis/fit/points.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>
#include <string_view>
#include <tuple>

#include "experiments/run/files.h"
#include "experiments/run/h5.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const std::set<std::string> kColumns = {"architecture", "n",    "d",     "loss",
                                        "seed",         "size", "flops", "unique"};

std::string_view Trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

struct Row {
  int line = 0;
  std::vector<std::string> cells;
};

// RFC 4180: cells in quotation marks may hold commas, line ends and doubled quotation marks.
std::vector<Row> RowsOf(const std::string& text, const std::string& path) {
  std::vector<Row> rows;
  Row row{1, {}};
  std::string cell;
  int line = 1, opened = 0;
  bool quoted = false, was_quoted = false;
  const auto end_cell = [&] {
    row.cells.emplace_back(was_quoted ? cell : std::string(Trimmed(cell)));
    cell.clear();
    was_quoted = false;
  };
  const auto end_row = [&] {
    end_cell();
    if (row.cells.size() > 1 || !row.cells.front().empty()) rows.push_back(std::move(row));
    row = {line + 1, {}};
  };
  const size_t begin = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;  // byte order mark
  for (size_t i = begin; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '"' && i + 1 < text.size() && text[i + 1] == '"') {
        cell += text[++i];
      } else if (c == '"') {
        quoted = false;
      } else {
        cell += c;
      }
    } else if (c == '"' && Trimmed(cell).empty()) {
      cell.clear();
      quoted = was_quoted = true;
      opened = line;
    } else if (c == ',') {
      end_cell();
    } else if (c == '\n') {
      end_row();
    } else if (!was_quoted || !Trimmed(std::string_view(&c, 1)).empty()) {
      cell += c;
    }
    if (c == '\n') ++line;
  }
  if (quoted) Fail(ExitCode::kData, path, ":", opened, ": a quotation mark is never closed");
  end_row();
  return rows;
}

// How a cell's text appears in an error.
std::string Shortened(std::string_view text) {
  constexpr size_t kMost = 40;
  std::string shown(text.substr(0, kMost));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return c >= 0 && c < ' '; }, ' ');
  return shown + (text.size() > kMost ? "..." : "");
}
std::string Shown(std::string_view text) { return "\"" + Shortened(text) + "\""; }

double Number(std::string_view text, const std::string& place, const std::string& column) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    Fail(ExitCode::kData, place, ": ", column, " is ", Shown(text), ", expected a number");
  }
  if (!std::isfinite(value))
    Fail(ExitCode::kData, place, ": ", column, " is ", Shown(text), ", expected a finite number");
  return value;
}

// Beyond these no number is a count or a loss, in any unit, and squares would leave the range of
// doubles.
constexpr double kLeast = 1e-9, kMost = 1e40;

double Positive(std::string_view text, const std::string& place, const std::string& column) {
  const double value = Number(text, place, column);
  if (!(value > 0))
    Fail(ExitCode::kData, place, ": ", column, " is ", text, ", expected a number above 0");
  if (value < kLeast || value > kMost) {
    Fail(ExitCode::kData, place, ": ", column, " is ", text, ", expected a number from ", kLeast,
         " to ", kMost);
  }
  return value;
}

double FieldOf(const Point& point, const std::string& column) {
  if (column == "n") return point.n;
  if (column == "d") return point.d;
  if (column == "loss") return point.loss;
  if (column == "flops") return point.flops;
  if (column == "unique") return point.unique;
  return static_cast<double>(point.seed);
}

void Filtered(const ReadOptions& options, Points& all) {
  const auto apply = [&](std::vector<Point>& points, bool report) {
    std::vector<Point> kept;
    for (Point& point : points) {
      const auto stops = std::find_if(options.filters.begin(), options.filters.end(),
                                      [&](const Filter& f) { return !f.Keeps(point); });
      if (stops == options.filters.end()) {
        kept.push_back(std::move(point));
      } else if (report) {
        all.excluded.push_back({point.origin, "not " + stops->ToString()});
      }
    }
    points = std::move(kept);
  };
  apply(all.points, true);
  apply(all.curves, false);
}

// Refuses points that are there twice, and notes what a reader should know.
void Examine(Points& all, bool has_seed_column) {
  using Key = std::tuple<std::string, double, double>;
  std::map<Key, std::vector<const Point*>> cells;
  for (const Point& point : all.points)
    cells[{point.architecture, point.n, point.d}].push_back(&point);
  for (const auto& [key, members] : cells) {
    if (members.size() > 1) all.has_seeds = true;
    for (size_t i = 0; i < members.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        const Point &a = *members[j], &b = *members[i];
        if (a.size != b.size) continue;
        if (has_seed_column && a.seed == b.seed) {
          Fail(ExitCode::kData, b.origin, ": is there twice: n ", b.n, ", d ", b.d, " and seed ",
               b.seed, " are those of ", a.origin, "; delete one or correct its seed");
        }
        if (!has_seed_column && a.loss == b.loss) {
          Fail(ExitCode::kData, b.origin, ": is there twice: n, d and loss are those of ", a.origin,
               "; delete one, or tell repetitions apart by a column seed");
        }
      }
    }
  }

  // Token counts that one seed of a size has and another lacks.
  std::map<std::tuple<std::string, std::string, double>, std::map<int64_t, std::set<double>>>
      counts;
  for (const Point& p : all.points) counts[{p.architecture, p.size, p.n}][p.seed].insert(p.d);
  int mixed = 0;
  double example = 0;
  for (const auto& [key, seeds] : counts) {
    const bool differ = std::any_of(seeds.begin(), seeds.end(), [&](const auto& seed) {
      return seed.second != seeds.begin()->second;
    });
    if (differ) ++mixed, example = std::get<2>(key);
  }
  if (mixed > 0) {
    all.notes.push_back(
        Cat("mixed token counts: the seeds of ", mixed, mixed == 1 ? " size" : " sizes",
            " (such as n = ", example,
            ") were trained on different numbers of tokens; each is its own point"));
  }
  double least = INFINITY, most = 0;
  for (const Point& p : all.points) {
    least = std::min(least, p.d / p.n);
    most = std::max(most, p.d / p.n);
  }
  if (most > 1e5 || least < 1e-2) {
    all.notes.push_back(Cat("tokens per parameter go from ", least, " to ", most,
                            ": are n and d in the same unit in every row?"));
  }
}

constexpr const char* kRates[] = {"optim.lr", "ladder.lr_factor"};

// Of points that differ in their learning rate, keeps those of the best: for each architecture,
// size and number of tokens the rate with the lowest mean loss over seeds, among the rates that
// most seeds have. Curves are those of the rate that is best at the most tokens.
void KeepBestRates(const H5Table& cells, const std::string& axis,
                   const std::vector<size_t>& cell_of_point,
                   const std::vector<size_t>& cell_of_curve, Points& all) {
  const std::vector<double> rates = cells.Numbers(axis);
  using Size = std::tuple<std::string, std::string, double>;
  struct Losses {
    int seeds = 0;
    double sum = 0;
    bool operator<(const Losses& other) const {
      return seeds != other.seeds ? seeds > other.seeds : sum < other.sum;
    }
  };
  const auto size_of = [](const Point& p) { return Size{p.architecture, p.size, p.n}; };
  std::map<Size, std::map<double, std::map<double, Losses>>> losses;  // by size, tokens and rate
  for (size_t i = 0; i < all.points.size(); ++i) {
    const Point& p = all.points[i];
    Losses& those = losses[size_of(p)][p.d][rates[cell_of_point[i]]];
    ++those.seeds, those.sum += p.loss;
  }
  const auto best = [](const std::map<double, Losses>& by_rate) {
    return std::min_element(by_rate.begin(), by_rate.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; });
  };
  int groups = 0, at_an_end = 0;
  for (const auto& [size, by_tokens] : losses) {
    for (const auto& [tokens, by_rate] : by_tokens) {
      const auto at = best(by_rate);
      ++groups;
      at_an_end += by_rate.size() > 1 && (at == by_rate.begin() || std::next(at) == by_rate.end());
    }
  }
  const auto keep = [&](std::vector<Point>& points, const std::vector<size_t>& cell_of,
                        const auto& by_rate_of) {
    std::vector<Point> kept;
    for (size_t i = 0; i < points.size(); ++i) {
      const auto size = losses.find(size_of(points[i]));
      if (size == losses.end()) continue;
      if (best(by_rate_of(size->second, points[i]))->first == rates[cell_of[i]])
        kept.push_back(std::move(points[i]));
    }
    points = std::move(kept);
  };
  const size_t before = all.points.size();
  keep(all.points, cell_of_point,
       [](const auto& by_tokens, const Point& p) { return by_tokens.at(p.d); });
  keep(all.curves, cell_of_curve,
       [](const auto& by_tokens, const Point&) { return by_tokens.rbegin()->second; });
  all.notes.push_back(Cat(axis, ": of ", before, " points the ", all.points.size(),
                          " of the best rate are kept, which is chosen by this loss for each of ",
                          groups, " architectures, sizes and numbers of tokens; in ", at_an_end,
                          " of them it is the lowest or the highest that was tried"));
}

Points ReadSweep(const std::string& path, const ReadOptions& options) {
  Points all{path, ChecksumHex(ReadFile(path))};
  bool is_sweep = false;
  std::vector<std::string> axes;
  for (const auto& [name, value] : ReadAttributes(path, "/")) {
    if (name == "format") is_sweep = value == Setting::Value(std::string("weft-sweep"));
    if (name == "axes" && std::holds_alternative<std::vector<std::string>>(value))
      axes = std::get<std::vector<std::string>>(value);
  }
  if (!is_sweep)
    Fail(ExitCode::kData, path, ": is no sweep.h5; expected what weft sweep collect writes");
  const H5Table cells = ReadTable(path, "/cells"), eval = ReadTable(path, "/eval");
  const auto texts = [&](const H5Table& table, const char* column) {
    const auto* values = std::get_if<std::vector<std::string>>(&table.Column(column).values);
    if (!values)
      Fail(ExitCode::kData, path, ": column ", column, " of ", table.name, " holds no text");
    return *values;
  };
  const auto has = [&](const std::string& column) {
    return std::any_of(cells.columns.begin(), cells.columns.end(),
                       [&](const H5Column& c) { return c.name == column; });
  };

  // N is a column of /cells or the sum of some: body_parameters+head_parameters.
  std::vector<double> n(static_cast<size_t>(cells.rows()), 0);
  for (size_t from = 0; from <= options.count.size();) {
    const size_t plus = std::min(options.count.find('+', from), options.count.size());
    const std::string column = options.count.substr(from, plus - from);
    if (!has(column) || !column.ends_with("parameters")) {
      std::string known;
      for (const H5Column& c : cells.columns) {
        if (c.name.ends_with("parameters")) known += (known.empty() ? "" : ", ") + c.name;
      }
      Fail(ExitCode::kUsage, "--count is \"", options.count, "\", expected one of ", known,
           " or a sum of some with +");
    }
    const std::vector<double> part = cells.Numbers(column);
    for (size_t i = 0; i < n.size(); ++i) n[i] += part[i];
    from = plus + 1;
  }

  const auto variants = texts(cells, "variant"), cases = texts(cells, "case"),
             states = texts(cells, "state");
  const std::vector<double> exit_codes = cells.Numbers("exit_code");
  const std::vector<double> planned =
      has("tokens") ? cells.Numbers("tokens") : std::vector<double>(n.size(), 0);
  const std::vector<double> flops_per_token = has("training_flops_per_token")
                                                  ? cells.Numbers("training_flops_per_token")
                                                  : std::vector<double>(n.size(), 0);
  const auto value_of = [&](const std::string& axis, size_t i) {
    return std::visit([&](const auto& values) { return Cat(values[i]); },
                      cells.Column(axis).values);
  };
  // What all cells share tells none apart.
  std::erase_if(axes, [&](const std::string& axis) {
    if (axis == "seed") return false;
    size_t i = 0;
    while (i < n.size() && value_of(axis, i) == value_of(axis, 0)) ++i;
    return i == n.size();
  });
  std::string rate;
  for (const char* axis : kRates) {
    if (rate.empty() && std::erase(axes, axis) > 0) rate = axis;
  }
  std::vector<Point> templates(n.size());
  for (size_t i = 0; i < n.size(); ++i) {
    Point& point = templates[i];
    point.architecture = variants[i];
    point.n = n[i];
    point.size = cases[i];
    for (const std::string& axis : axes) {
      const std::string value = value_of(axis, i);
      if (axis == "seed")
        point.seed = std::stoll(value);
      else
        point.size += (point.size.empty() ? "" : " ") + axis + "=" + value;
    }
    point.origin =
        Cat("cell ", i, " (", variants[i], point.size.empty() ? "" : " " + point.size,
            rate.empty() ? "" : Cat(" ", rate, "=", value_of(rate, i)), " seed=", point.seed, ")");
    point.flops = flops_per_token[i] > 0 ? flops_per_token[i] : 6 * point.n;  // per token
  }

  const std::vector<double> cell = eval.Numbers("cell"), tokens = eval.Numbers("tokens"),
                            nll = eval.Numbers("nll"), labels = eval.Numbers("labels"),
                            decayed = eval.Numbers("decayed");
  const auto names = texts(eval, "name");
  std::set<std::string> known_names(names.begin(), names.end());
  std::map<size_t, std::vector<size_t>>
      finals;  // of a cell, its rows of /eval with decayed weights
  std::vector<size_t> cell_of_point, cell_of_curve;
  for (size_t r = 0; r < cell.size(); ++r) {
    if (names[r] != options.evaluation) continue;
    const auto i = static_cast<size_t>(cell[r]);
    if (i >= templates.size()) {
      Fail(ExitCode::kData, path, ": /eval names cell ", cell[r], ", but /cells has ",
           templates.size(), " rows");
    }
    if (decayed[r] != 0) finals[i].push_back(r);
    if (states[i] != "done" || !(tokens[r] > 0) || !(nll[r] > 0) || !std::isfinite(nll[r]))
      continue;
    Point point = templates[i];
    point.d = tokens[r];
    point.loss = nll[r];
    point.flops *= point.d;
    all.curves.push_back(point);
    cell_of_curve.push_back(i);
  }
  std::map<double, std::vector<size_t>> by_labels;
  for (size_t i = 0; i < templates.size(); ++i) {
    Point point = templates[i];
    const auto exclude = [&](const std::string& why) {
      all.excluded.push_back({point.origin, why});
    };
    const auto found = finals.find(i);
    if (states[i] != "done") {
      exclude(Cat(states[i], exit_codes[i] >= 0 ? Cat(", exit code ", exit_codes[i]) : ""));
      continue;
    }
    if (found == finals.end()) {
      exclude("has no evaluation \"" + options.evaluation + "\"");
      continue;
    }
    double most = 0;
    for (const size_t r : found->second) most = std::max(most, tokens[r]);
    if (most < planned[i]) {
      exclude(Cat("its last evaluation is at ", most, " of ", planned[i], " tokens"));
      continue;
    }
    for (const size_t r : found->second) {
      if (!std::isfinite(nll[r]) || !(nll[r] > 0)) {
        exclude(Cat("its loss is ", nll[r]));
      } else if (!(point.n > 0) || !(tokens[r] > 0)) {
        exclude(Cat("n is ", point.n, ", d is ", tokens[r]));
      } else {
        point.d = tokens[r];
        point.loss = nll[r];
        point.flops = templates[i].flops * point.d;
        by_labels[labels[r]].push_back(i);
        all.points.push_back(point);
        cell_of_point.push_back(i);
      }
    }
  }
  if (!known_names.contains(options.evaluation) && !known_names.empty()) {
    std::string known;
    for (const std::string& name : known_names) known += (known.empty() ? "" : ", ") + name;
    Fail(ExitCode::kData, path, ": has no evaluation ", options.evaluation, ", it has ", known,
         "; choose with --eval");
  }
  if (by_labels.size() > 1) {
    const auto& [few, those] = *std::min_element(
        by_labels.begin(), by_labels.end(),
        [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    Fail(ExitCode::kData, path, ": losses are over different numbers of held-out labels: ",
         templates[those.front()].origin, " over ", few, ", others over ",
         few == by_labels.begin()->first ? by_labels.rbegin()->first : by_labels.begin()->first,
         "; evaluate all cells on the same text");
  }
  if (!rate.empty()) KeepBestRates(cells, rate, cell_of_point, cell_of_curve, all);
  Examine(all, /*has_seed_column=*/true);
  return all;
}

}  // namespace

Filter Filter::Parse(const std::string& text) {
  const size_t at = text.find_first_of("<>");
  const auto refuse = [&] {
    Fail(ExitCode::kUsage, "--where is \"", text,
         "\", expected a column (n, d, loss, flops, unique, seed), one of < <= > >= and a number, "
         "such as loss<4.5");
  };
  if (at == text.npos) refuse();
  Filter filter;
  filter.column = Trimmed(std::string_view(text).substr(0, at));
  const size_t length = at + 1 < text.size() && text[at + 1] == '=' ? 2 : 1;
  filter.comparison = text.substr(at, length);
  const std::string_view bound = Trimmed(std::string_view(text).substr(at + length));
  const auto [end, error] =
      std::from_chars(bound.data(), bound.data() + bound.size(), filter.bound);
  const bool numeric = kColumns.contains(filter.column) && filter.column != "architecture" &&
                       filter.column != "size";
  const bool number =
      error == std::errc() && end == bound.data() + bound.size() && !std::isnan(filter.bound);
  if (!numeric || !number) refuse();
  return filter;
}

bool Filter::Keeps(const Point& point) const {
  const double value = FieldOf(point, column);
  if (comparison == "<") return value < bound;
  if (comparison == "<=") return value <= bound;
  if (comparison == ">") return value > bound;
  return value >= bound;
}

std::string Filter::ToString() const { return Cat(column, comparison, bound); }

std::vector<std::string> Points::Architectures() const {
  std::vector<std::string> names;
  for (const Point& point : points) {
    if (std::find(names.begin(), names.end(), point.architecture) == names.end())
      names.push_back(point.architecture);
  }
  return names;
}

std::vector<Point> Points::Of(const std::string& architecture) const {
  std::vector<Point> some;
  for (const Point& point : points) {
    if (point.architecture == architecture) some.push_back(point);
  }
  return some;
}

TrainingCost CostOf(std::span<const Point> points) {
  TrainingCost cost;
  const auto error = [&](const Point& p) {
    return std::abs(cost.k * std::pow(p.n, cost.g) * p.d / p.flops - 1);
  };
  if (std::all_of(points.begin(), points.end(), [&](const Point& p) { return error(p) < 1e-9; }))
    return cost;
  double x = 0, y = 0, xx = 0, xy = 0;  // means, then sums about them
  const auto count = static_cast<double>(points.size());
  for (const Point& p : points) x += std::log(p.n) / count, y += std::log(p.flops / p.d) / count;
  for (const Point& p : points) {
    xx += std::pow(std::log(p.n) - x, 2);
    xy += (std::log(p.n) - x) * (std::log(p.flops / p.d) - y);
  }
  if (xx > 0) cost.g = xy / xx;
  cost.k = std::exp(y - cost.g * x);
  for (const Point& p : points) cost.worst = std::max(cost.worst, error(p));
  return cost;
}

Points ParseCsv(const std::string& text, const std::string& path, const ReadOptions& options) {
  const std::vector<Row> rows = RowsOf(text, path);
  if (rows.empty())
    Fail(ExitCode::kData, path, ": is empty, expected a heading with n, d and loss");
  const std::vector<std::string>& heading = rows.front().cells;
  std::string known;
  for (const std::string& name : heading) known += (known.empty() ? "" : ", ") + Shortened(name);
  if (heading.size() == 1) known += " alone; columns are separated by commas";

  std::map<std::string, size_t> columns;  // ours -> index
  for (const std::string& name : kColumns) {
    const auto given = options.columns.find(name);
    const std::string& theirs = given == options.columns.end() ? name : given->second;
    const auto count = std::count(heading.begin(), heading.end(), theirs);
    if (count > 1)
      Fail(ExitCode::kData, path, ":", rows.front().line, ": column ", theirs, " is there twice");
    if (count == 0 && given != options.columns.end())
      Fail(ExitCode::kData, path, ": has no column ", theirs, ", it has ", known);
    if (count == 1) {
      columns[name] =
          static_cast<size_t>(std::find(heading.begin(), heading.end(), theirs) - heading.begin());
    }
  }
  for (const auto& [ours, theirs] : options.columns) {
    if (!kColumns.contains(ours)) {
      Fail(ExitCode::kUsage, "--column names \"", ours,
           "\", expected one of architecture, n, d, loss, seed, size, flops, unique");
    }
  }
  const bool from_flops = !columns.contains("d") && columns.contains("flops");
  for (const char* needed : {"n", "d", "loss"}) {
    if (columns.contains(needed) || (from_flops && needed[0] == 'd')) continue;
    Fail(ExitCode::kData, path, ": has no column ", needed, ", it has ", known,
         "; name it with --column ", needed, "=HEADING");
  }

  Points all{path, ChecksumHex(text)};
  for (size_t r = 1; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const std::string place = Cat(path, ":", row.line);
    if (row.cells.size() != heading.size()) {
      Fail(ExitCode::kData, place, ": has ", row.cells.size(), " cells, expected ", heading.size(),
           " as in the heading");
    }
    const auto has = [&](const char* column) { return columns.contains(column); };
    const auto cell = [&](const char* column) -> const std::string& {
      return row.cells[columns.at(column)];
    };
    Point point;
    point.origin = place;
    if (has("architecture")) point.architecture = cell("architecture");
    if (has("size")) point.size = cell("size");
    point.n = Positive(cell("n"), place, "n");
    point.loss = Positive(cell("loss"), place, "loss");
    if (has("flops")) point.flops = Positive(cell("flops"), place, "flops");
    point.d = from_flops ? point.flops / (6 * point.n) : Positive(cell("d"), place, "d");
    if (!has("flops")) point.flops = 6 * point.n * point.d;
    if (has("unique")) point.unique = Positive(cell("unique"), place, "unique");
    if (has("seed")) {
      const double seed = Number(cell("seed"), place, "seed");
      if (seed != std::floor(seed) || std::abs(seed) > 1e15)
        Fail(ExitCode::kData, place, ": seed is ", cell("seed"), ", expected an integer");
      point.seed = static_cast<int64_t>(seed);
    }
    all.points.push_back(std::move(point));
  }
  if (from_flops) all.notes.push_back("there is no column d: D = flops / (6 N)");
  Filtered(options, all);
  Examine(all, columns.contains("seed"));
  all.curves = all.points;
  return all;
}

Points ReadPoints(const std::string& path, const ReadOptions& options) {
  std::string file = path;
  if (fs::is_directory(path)) {
    file = (fs::path(path) / "sweep.h5").string();
    if (!fs::exists(file)) {
      Fail(ExitCode::kData, path,
           ": has no sweep.h5; run the sweep to its end or type: weft sweep collect SWEEP.toml");
    }
  }
  if (!file.ends_with(".h5")) return ParseCsv(ReadFile(file), file, options);
  Points all = ReadSweep(file, options);
  Filtered(options, all);
  return all;
}

}  // namespace weft
