#include "sweeps/sweep.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <map>
#include <sstream>

#include "arch/core/toml.h"
#include "experiments/run/files.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// A variant, a case, or one value of an axis.
struct Choice {
  std::string name;
  Settings settings;
  std::vector<std::vector<Choice>> axes = {};  // that a case lists for itself
};
using Choices = std::vector<Choice>;

struct Entry {
  std::string key;
  const toml::node* node;
  std::string where;  // "sweeps/recall.toml:12"
};

// Of one sweep file: toml++ sorts keys by name, people read them in the order of the file.
class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {}

  std::vector<Entry> EntriesOf(const toml::table& table) const {
    std::vector<std::pair<toml::source_position, Entry>> found;
    for (const auto& [key, node] : table) {
      const toml::source_position at = key.source().begin;
      found.push_back({at, {std::string(key.str()), &node, Cat(path_, ":", at.line)}});
    }
    std::sort(found.begin(), found.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Entry> entries;
    for (auto& [at, entry] : found) entries.push_back(std::move(entry));
    return entries;
  }

  std::string Text(const Entry& entry) const {
    const auto* text = entry.node->as_string();
    if (text == nullptr || text->get().empty()) {
      Fail(ExitCode::kUsage, entry.where, ": ", entry.key, " is ", Shown(*entry.node),
           ", expected a text in quotes");
    }
    return text->get();
  }

  std::vector<std::string> Texts(const Entry& entry, const std::string& path,
                                 const char* what) const {
    const Setting::Value value = ValueOf(*entry.node, entry.where, path);
    const auto* texts = std::get_if<std::vector<std::string>>(&value);
    if (texts == nullptr) {
      Fail(ExitCode::kUsage, entry.where, ": ", path, " is ", Shown(*entry.node),
           ", expected a list of ", what);
    }
    return *texts;
  }

  // [variants] or [cases].
  Choices NamedSettings(const Entry& section) const {
    Choices choices;
    for (const Entry& entry : EntriesOf(Table(section))) {
      const std::string path = section.key + "." + entry.key;
      if (entry.key.empty())
        Fail(ExitCode::kUsage, entry.where, ": a name in [", section.key, "] is empty");
      const toml::table* table = entry.node->as_table();
      if (table == nullptr) {
        Fail(ExitCode::kUsage, entry.where, ": ", path, " is ", Shown(*entry.node),
             ", expected settings such as { model.layers = 2 }");
      }
      Choice choice{entry.key, {}};
      Flatten(*table, "", path, [&](const std::string& key, const Entry& leaf) {
        if (section.key == "cases" && key.starts_with(kAxes)) {
          choice.axes.push_back(Axis(key.substr(kAxes.size()), leaf, path + ".axes"));
          return;
        }
        choice.settings.push_back(
            {key, ValueOf(*leaf.node, leaf.where, path + "." + key), leaf.where + ": " + path});
      });
      if (choice.settings.empty()) {
        Fail(ExitCode::kUsage, entry.where, ": ", path,
             " is empty, expected settings such as { model.layers = 2 }; ",
             "set the key that tells it from the others, or drop it");
      }
      choices.push_back(std::move(choice));
    }
    return choices;
  }

  Matching Match(const Entry& section) const {
    Matching match{section.where};
    const std::vector<std::string> known = {"quantity",  "to",       "by",
                                            "tolerance", "multiple", "variants"};
    for (const Entry& entry : EntriesOf(Table(section))) {
      const std::string path = "match." + entry.key;
      if (entry.key == "quantity") {
        match.quantity = Text(entry);
      } else if (entry.key == "to") {
        match.to = Text(entry);
      } else if (entry.key == "by") {
        match.by = Text(entry);
      } else if (entry.key == "tolerance" && entry.node->is_number() &&
                 entry.node->value_or(0.0) > 0 && std::isfinite(entry.node->value_or(0.0))) {
        match.tolerance = *entry.node->value<double>();
      } else if (entry.key == "multiple" && entry.node->is_integer() &&
                 *entry.node->value<int64_t>() > 0) {
        match.multiple = *entry.node->value<int64_t>();
      } else if (entry.key == "variants") {
        match.variants = Texts(entry, path, "variants");
      } else if (std::find(known.begin(), known.end(), entry.key) != known.end()) {
        Fail(ExitCode::kUsage, entry.where, ": ", path, " is ", Shown(*entry.node),
             ", expected a positive number");
      } else {
        Fail(ExitCode::kUsage, entry.where, ": unknown key \"", path, "\"; did you mean \"match.",
             NearestKey(entry.key, known), "\"?");
      }
    }
    for (const auto& [key, text] :
         {std::pair{"quantity", match.quantity}, {"to", match.to}, {"by", match.by}}) {
      if (text.empty()) Fail(ExitCode::kUsage, section.where, ": match.", key, " is missing");
    }
    return match;
  }

  // [axes]: one list of choices per key.
  std::vector<Choices> Axes(const Entry& section) const {
    std::vector<Choices> axes;
    Flatten(Table(section), "", section.key, [&](const std::string& key, const Entry& leaf) {
      axes.push_back(Axis(key, leaf, section.key));
    });
    return axes;
  }

 private:
  static constexpr std::string_view kAxes = "axes.";

  Choices Axis(const std::string& key, const Entry& leaf, const std::string& inside) const {
    const toml::array* values = leaf.node->as_array();
    if (values == nullptr || values->empty()) {
      Fail(ExitCode::kUsage, leaf.where, ": ", inside, ".", key, " is ",
           values ? "an empty list" : Shown(*leaf.node),
           ", expected a list of values such as [0, 1, 2]");
    }
    Choices choices;
    for (const toml::node& node : *values) {
      const Setting::Value value = ValueOf(node, leaf.where, inside + "." + key);
      const auto* text = std::get_if<std::string>(&value);
      choices.push_back({text ? *text : ToToml(value), {{key, value, leaf.where + ": " + inside}}});
    }
    return choices;
  }

  static std::string Shown(const toml::node& node) {
    std::ostringstream out;
    out << toml::toml_formatter{node};
    std::string text = out.str();
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
  }

  static const toml::table& Table(const Entry& section) {
    const toml::table* table = section.node->as_table();
    if (table == nullptr) {
      Fail(ExitCode::kUsage, section.where, ": ", section.key, " is ", Shown(*section.node),
           ", expected a table");
    }
    return *table;
  }

  Setting::Value ValueOf(const toml::node& node, const std::string& where,
                         const std::string& path) const {
    if (node.is_table() || node.is_date() || node.is_time() || node.is_date_time()) {
      Fail(
          ExitCode::kUsage, where, ": ", path, " holds ", Shown(node),
          ", expected true or false, a number, a text in quotes, or a list of numbers or of texts");
    }
    return ParseValue(Shown(node), where + ": " + path);
  }

  // Calls visit(dotted key, entry) for all that is not a table, in the order of the file.
  template <class Visit>
  void Flatten(const toml::table& table, const std::string& prefix, const std::string& inside,
               const Visit& visit) const {
    std::vector<std::string> seen;
    FlattenInto(table, prefix, inside, seen, visit);
  }
  template <class Visit>
  void FlattenInto(const toml::table& table, const std::string& prefix, const std::string& inside,
                   std::vector<std::string>& seen, const Visit& visit) const {
    for (const Entry& entry : EntriesOf(table)) {
      const std::string key = prefix + entry.key;
      if (const toml::table* inner = entry.node->as_table()) {
        FlattenInto(*inner, key + ".", inside, seen, visit);
        continue;
      }
      const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '_' || c == '.' || c == '-';
      });
      if (!plain) {
        Fail(ExitCode::kUsage, entry.where, ": ", inside, " has the key \"", key,
             "\", expected a config key such as model.d_model");
      }
      if (key == "study") {
        Fail(ExitCode::kUsage, entry.where, ": ", inside,
             ".study: the runs of a sweep are one study; set study at the top");
      }
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
        Fail(ExitCode::kUsage, entry.where, ": ", inside, ".", key, " is given twice");
      }
      seen.push_back(key);
      visit(key, entry);
    }
  }

  std::string path_;
};

// The base config seen from the sweep's directory, else from the working directory.
std::string FindBase(const std::string& sweep, const Entry& entry, const std::string& base) {
  const fs::path beside = fs::path(sweep).parent_path() / base;
  if (fs::is_regular_file(beside)) return beside.lexically_normal().string();
  if (fs::is_regular_file(base)) return base;
  Fail(ExitCode::kUsage, entry.where, ": base = \"", base, "\" does not exist, looked for ",
       beside.string(), " and ", base);
}

void CheckStudy(const std::string& where, const std::string& study) {
  const bool ok = !study.empty() && study.front() != '.' &&
                  std::all_of(study.begin(), study.end(), [](unsigned char c) {
                    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
                  });
  if (!ok) {
    Fail(ExitCode::kUsage, where, ": study = \"", study,
         "\" cannot be a folder, expected letters, digits, '_', '-' and '.'");
  }
}

// A key that two of variants, cases and axes set would make the cell's settings depend on who wins.
void CheckSetOnce(const std::vector<Choices>& dimensions) {
  std::map<std::string, std::pair<const Choices*, std::string>> first;
  for (const Choices& dimension : dimensions) {
    for (const Choice& choice : dimension) {
      for (const Setting& s : choice.settings) {
        const auto [at, is_new] = first.try_emplace(s.path, &dimension, s.origin);
        if (!is_new && at->second.first != &dimension) {
          Fail(ExitCode::kUsage, s.origin, ".", s.path, " is also set at ", at->second.second,
               "; set it in one place only");
        }
      }
    }
  }
}

const std::string& KeyOf(const Choices& axis) { return axis.front().settings.front().path; }

// The values that a case takes of an axis: its own where it lists some.
const Choices& ValuesOf(const Choices& axis, const Choices& cases, const std::string& case_name) {
  for (const Choice& one : cases) {
    if (one.name != case_name) continue;
    for (const Choices& own : one.axes) {
      if (KeyOf(own) == KeyOf(axis)) return own;
    }
  }
  return axis;
}

void CheckAxesOfCases(const Choices& cases, const std::vector<std::string>& axes) {
  for (const Choice& one : cases) {
    for (const Choices& own : one.axes) {
      if (std::find(axes.begin(), axes.end(), KeyOf(own)) != axes.end()) continue;
      Fail(ExitCode::kUsage, own.front().settings.front().origin, ".", KeyOf(own),
           " is not in [axes], where the values for the other cases belong");
    }
  }
}

// Gives every cell that is matched the settings of its reference.
void SetReferences(Sweep& sweep, const Choices& variants) {
  Matching& match = sweep.match;
  std::vector<std::string> names;
  for (const Choice& variant : variants) names.push_back(variant.name);
  if (match.variants.empty()) {
    match.variants = names;
    std::erase(match.variants, match.to);
  }
  const auto find = [&](const std::string& name) -> const Choice& {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      Fail(ExitCode::kUsage, match.where, ": match names the variant \"", name,
           "\", which is not there; did you mean \"", NearestKey(name, names), "\"?");
    }
    return variants[static_cast<size_t>(at - names.begin())];
  };
  const Choice& reference = find(match.to);
  for (const std::string& name : match.variants) {
    const Choice& variant = find(name);
    if (name == match.to)
      Fail(ExitCode::kUsage, match.where, ": match.variants holds match.to, \"", name, "\"");
    for (Cell& cell : sweep.cells) {
      if (cell.variant != name) continue;
      const auto shared = cell.settings.begin() + static_cast<int64_t>(variant.settings.size());
      cell.reference = reference.settings;
      cell.reference.insert(cell.reference.end(), shared, cell.settings.end());
      for (const Settings& set : {variant.settings, cell.axes}) {
        for (const Setting& setting : set) {
          if (setting.path != match.by) continue;
          Fail(ExitCode::kUsage, match.where, ": match.by = \"", match.by, "\" is also set at ",
               setting.origin, "; drop one");
        }
      }
    }
  }
}

// The round of every cell: the rank of the places of its choices in the order that was asked for.
void SetRounds(Sweep& sweep, const std::string& where, const Choices& variants,
               const Choices& cases, const std::vector<Choices>& axes) {
  std::vector<std::string> known = sweep.axes;
  known.emplace_back("variant");
  if (!cases.empty()) known.emplace_back("case");
  std::vector<std::vector<int64_t>> places(sweep.cells.size());
  for (const std::string& key : sweep.order) {
    const auto at = std::find(known.begin(), known.end(), key);
    if (at == known.end()) {
      Fail(ExitCode::kUsage, where, ": order names \"", key,
           "\", expected axes, \"case\" or \"variant\"; did you mean \"", NearestKey(key, known),
           "\"?");
    }
    const auto axis = static_cast<size_t>(at - known.begin());
    for (size_t i = 0; i < sweep.cells.size(); ++i) {
      const Cell& cell = sweep.cells[i];
      const Choices& choices = axis < axes.size() ? ValuesOf(axes[axis], cases, cell.case_name)
                               : key == "variant" ? variants
                                                  : cases;
      const auto chosen = std::find_if(choices.begin(), choices.end(), [&](const Choice& choice) {
        return axis < axes.size()
                   ? choice.settings.front().value == cell.axes[axis].value
                   : choice.name == (key == "variant" ? cell.variant : cell.case_name);
      });
      places[i].push_back(chosen - choices.begin());
    }
  }
  std::vector<std::vector<int64_t>> rounds = places;
  std::sort(rounds.begin(), rounds.end());
  rounds.erase(std::unique(rounds.begin(), rounds.end()), rounds.end());
  for (size_t i = 0; i < places.size(); ++i)
    sweep.cells[i].round =
        std::lower_bound(rounds.begin(), rounds.end(), places[i]) - rounds.begin();
}

// "seed" of "seed", "lr" of "optim.lr"; the whole key where two axes end alike.
std::string ShortKey(const std::string& key, const std::vector<std::string>& keys) {
  const auto last = [](const std::string& path) { return path.substr(path.rfind('.') + 1); };
  const auto same = std::count_if(keys.begin(), keys.end(),
                                  [&](const std::string& k) { return last(k) == last(key); });
  return same == 1 ? last(key) : key;
}

}  // namespace

Sweep ReadSweep(const std::string& path) {
  if (!fs::is_regular_file(path)) Fail(ExitCode::kUsage, path, ": there is no such sweep file");
  Sweep sweep{path, ReadFile(path), "", "", "", {}, {}, {}, {}};
  toml::table file;
  try {
    file = toml::parse(sweep.text);
  } catch (const toml::parse_error&) {
    ParseToml(sweep.text, path);  // fails as it does for every other config, in one line
    throw;
  }

  const Reader reader(path);
  const std::vector<std::string> known = {"question", "base",  "study", "match",
                                          "variants", "cases", "axes",  "order"};
  Choices variants, cases;
  std::vector<Choices> axes;
  sweep.study = fs::path(path).stem().string();
  std::string study_at = path, order_at;
  for (const Entry& entry : reader.EntriesOf(file)) {
    if (entry.key == "question") {
      sweep.question = reader.Text(entry);
    } else if (entry.key == "base") {
      sweep.base = FindBase(path, entry, reader.Text(entry));
    } else if (entry.key == "study") {
      sweep.study = reader.Text(entry);
      study_at = entry.where;
    } else if (entry.key == "variants") {
      variants = reader.NamedSettings(entry);
    } else if (entry.key == "cases") {
      cases = reader.NamedSettings(entry);
    } else if (entry.key == "axes") {
      axes = reader.Axes(entry);
    } else if (entry.key == "order") {
      sweep.order = reader.Texts(entry, entry.key, "axes"), order_at = entry.where;
    } else if (entry.key == "match") {
      sweep.match = reader.Match(entry);
    } else {
      Fail(ExitCode::kUsage, entry.where, ": unknown key \"", entry.key, "\"; did you mean \"",
           NearestKey(entry.key, known),
           "\"? A config key belongs into [variants], [cases] or [axes]");
    }
  }
  CheckStudy(study_at, sweep.study);
  if (sweep.base.empty())
    Fail(ExitCode::kUsage, path, ": base is missing; name the config that all cells share");
  if (variants.empty()) {
    Fail(ExitCode::kUsage, path,
         ": there are no variants; add [variants] with name = { key = value } for each "
         "architecture");
  }

  std::vector<Choices> dimensions = {variants, cases};
  dimensions.insert(dimensions.end(), axes.begin(), axes.end());
  CheckSetOnce(dimensions);

  for (const Choices& axis : axes) sweep.axes.push_back(KeyOf(axis));
  CheckAxesOfCases(cases, sweep.axes);
  for (const Choice& variant : variants)
    sweep.cells.push_back({variant.name, variant.name, "", {}, variant.settings, 0, {}});
  const auto cross = [&](const Choices& all, const auto& extend) {
    std::vector<Cell> crossed;
    for (const Cell& cell : sweep.cells) {
      for (const Choice& choice : ValuesOf(all, cases, cell.case_name)) {
        Cell longer = cell;
        longer.settings.insert(longer.settings.end(), choice.settings.begin(),
                               choice.settings.end());
        extend(longer, choice);
        crossed.push_back(std::move(longer));
      }
    }
    sweep.cells = std::move(crossed);
  };
  if (!cases.empty()) {
    cross(cases, [](Cell& cell, const Choice& choice) {
      cell.case_name = choice.name;
      cell.name += "/" + choice.name;
    });
  }
  for (const Choices& axis : axes) {
    const bool varies =
        axis.size() > 1 || std::any_of(cases.begin(), cases.end(), [&](const Choice& one) {
          const Choices& own = ValuesOf(axis, cases, one.name);
          return own.size() > 1 || own.front().name != axis.front().name;
        });
    cross(axis, [&](Cell& cell, const Choice& choice) {
      const Setting& setting = choice.settings.front();
      cell.axes.push_back(setting);
      if (varies) cell.name += '/' + ShortKey(setting.path, sweep.axes) + "=" + choice.name;
    });
  }
  if (!sweep.match.where.empty()) SetReferences(sweep, variants);
  SetRounds(sweep, order_at, variants, cases, axes);
  return sweep;
}

}  // namespace weft
