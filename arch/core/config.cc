#include "arch/core/config.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <optional>
#include <sstream>
#include <type_traits>

#include "arch/core/toml.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};

template <class T>
constexpr std::string_view kTypeName = "";
template <>
constexpr std::string_view kTypeName<bool> = "true or false";
template <>
constexpr std::string_view kTypeName<int64_t> = "an integer";
template <>
constexpr std::string_view kTypeName<double> = "a number";
template <>
constexpr std::string_view kTypeName<std::string> = "a string";
template <>
constexpr std::string_view kTypeName<std::vector<int64_t>> = "a list of integers";
template <>
constexpr std::string_view kTypeName<std::vector<double>> = "a list of numbers";
template <>
constexpr std::string_view kTypeName<std::vector<std::string>> = "a list of strings";

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

// "a.b c" as a TOML key: a."b c"
std::string TomlKey(std::string_view path) {
  std::string out;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    const bool bare = !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) {
      return (c < 0x80 && std::isalnum(c)) || c == '_' || c == '-';
    });
    if (begin > 0) out += '.';
    out += bare ? std::string(part) : Quoted(part);
    begin = end + 1;
  }
  return out;
}

std::string Text(bool value) { return value ? "true" : "false"; }
std::string Text(int64_t value) { return std::to_string(value); }
std::string Text(const std::string& value) { return Quoted(value); }
std::string Text(double value) {
  std::string out = fmt::format("{}", value);
  if (out.find_first_not_of("-0123456789") == std::string::npos) out += ".0";
  return out;
}
template <class T>
std::string Text(const std::vector<T>& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i > 0 ? ", " : "") + Text(values[i]);
  return out + "]";
}

std::string Text(const Range& range) {
  const auto number = [](double x) { return fmt::format("{}", x); };
  if (std::isinf(range.low) && std::isinf(range.high)) return "any number but NaN";
  if (std::isinf(range.high)) return "at least " + number(range.low);
  if (std::isinf(range.low)) return "at most " + number(range.high);
  return number(range.low) + " to " + number(range.high);
}

// What toml++ says about `text`, as one line. Its words for a key given twice lack the section.
std::string Describe(const toml::parse_error& error, std::string_view text) {
  const std::string what(error.description());
  const size_t redefine = what.find("cannot redefine existing");
  const size_t open = what.find('\'', redefine);
  if (redefine == std::string::npos) return "not TOML: " + what;
  if (open == std::string::npos) return what.substr(redefine);

  std::string section;
  uint32_t line = 1;
  for (size_t begin = 0; begin < text.size() && line <= error.source().begin.line; ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view row = Trim(text.substr(begin, end - begin));
    const size_t close = row.find(']');
    if (row.starts_with('[') && close != std::string_view::npos) {
      section =
          line == error.source().begin.line ? "" : std::string(row.substr(1, close - 1)) + ".";
    }
    begin = end + 1;
  }
  const size_t close = what.find('\'', open + 1);
  return "key \"" + section + what.substr(open + 1, close - open - 1) + "\" is given twice";
}

template <class T>
std::vector<T> Elements(const toml::array& array) {
  std::vector<T> out;
  for (const toml::node& node : array) out.push_back(*node.value<T>());
  return out;
}

std::optional<Setting::Value> ToValue(const toml::node& node) {
  if (const auto* v = node.as_boolean()) return v->get();
  if (const auto* v = node.as_integer()) return v->get();
  if (const auto* v = node.as_floating_point()) return v->get();
  if (const auto* v = node.as_string()) return v->get();
  if (const toml::array* array = node.as_array()) {
    const auto all = [array](auto is) { return std::all_of(array->begin(), array->end(), is); };
    if (all([](const toml::node& e) { return e.is_integer(); })) return Elements<int64_t>(*array);
    if (all([](const toml::node& e) { return e.is_number(); })) return Elements<double>(*array);
    if (all([](const toml::node& e) { return e.is_string(); }))
      return Elements<std::string>(*array);
  }
  return std::nullopt;
}

struct Located {
  toml::source_position at;
  Setting setting;
};

void Flatten(const toml::table& table, const std::string& prefix, const std::string& origin,
             std::vector<Located>& out) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    if (const toml::table* inner = node.as_table()) {
      Flatten(*inner, path + ".", origin, out);
      continue;
    }
    const std::string where = Cat(origin, ":", key.source().begin.line);
    std::optional<Setting::Value> value = ToValue(node);
    if (!value) {
      Fail(ExitCode::kUsage, where, ": ", path,
           node.is_array() ? " is a list of mixed or nested values" : " is a date",
           ", expected true or false, a number, a string, or a list of numbers or of strings");
    }
    out.push_back({key.source().begin, {path, *std::move(value), where, {}}});
  }
}

// What was typed after "=", for a field of type T.
template <class T>
Setting::Value Interpret(const Setting& setting) {
  const std::string_view text = Trim(setting.text);
  if constexpr (std::is_same_v<T, std::string>) {
    if (!std::holds_alternative<std::string>(setting.value)) return std::string(text);
  } else if constexpr (IsVector<T>::value) {
    if (text.empty()) return setting.value;
    if (text.front() == '[') return setting.value;
    std::string list;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      const Setting::Value part = ParseValue(text.substr(begin, end - begin), setting.origin);
      list += (begin > 0 ? "," : "[") + ToToml(part);
      begin = end + 1;
    }
    return ParseValue(list + "]", setting.origin);
  }
  return setting.value;
}

void CheckOne(const Setting&, const ConfigField&, bool) {}
void CheckOne(const Setting& setting, const ConfigField& field, double value) {
  if (value >= field.range.low && value <= field.range.high) return;
  Fail(ExitCode::kUsage, setting.origin, ": ", field.path, " = ", ToToml(setting.value),
       " is out of range, expected ", Text(field.range));
}
void CheckOne(const Setting& setting, const ConfigField& field, int64_t value) {
  CheckOne(setting, field, static_cast<double>(value));
}
void CheckOne(const Setting& setting, const ConfigField& field, const std::string& value) {
  const std::vector<std::string>& choices = field.choices;
  if (choices.empty() || std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  Fail(ExitCode::kUsage, setting.origin, ": ", field.path, " = ", Quoted(value), " is not one of ",
       fmt::format("{}", fmt::join(choices, ", ")), "; did you mean ",
       Quoted(NearestKey(value, choices)), "?");
}
template <class T>
void CheckOne(const Setting& setting, const ConfigField& field, const std::vector<T>& values) {
  for (const T& value : values) CheckOne(setting, field, value);
}

template <class T>
std::optional<T> Convert(const Setting::Value& value) {
  if (const T* same = std::get_if<T>(&value)) return *same;
  if constexpr (std::is_same_v<T, double>) {
    if (const auto* i = std::get_if<int64_t>(&value)) return static_cast<double>(*i);
  }
  if constexpr (IsVector<T>::value) {
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
      if (list->empty()) return T{};
      if constexpr (std::is_same_v<T, std::vector<double>>) return T(list->begin(), list->end());
    }
  }
  return std::nullopt;
}

std::string_view NameOf(const Setting::Value& value) {
  return std::visit([](const auto& v) { return kTypeName<std::decay_t<decltype(v)>>; }, value);
}

void Assign(const Setting& setting, ConfigField& field) {
  std::visit(
      [&](auto* target) {
        using T = std::decay_t<decltype(*target)>;
        Setting typed = setting;
        if (!setting.text.empty()) typed.value = Interpret<T>(setting);
        std::optional<T> value = Convert<T>(typed.value);
        if (!value) {
          Fail(ExitCode::kUsage, setting.origin, ": ", field.path, " = ", ToToml(typed.value),
               " is ", NameOf(typed.value), ", expected ", kTypeName<T>);
        }
        CheckOne(typed, field, *value);
        *target = *std::move(value);
      },
      field.value);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string_view LastPart(std::string_view path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

Settings ReadTomlFile(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in.is_open() || errno != 0) {
    Fail(ExitCode::kUsage, path, ": cannot read: ", std::strerror(errno));
  }
  return ParseToml(text.str(), path);
}

Settings ParseToml(std::string_view text, const std::string& origin) {
  std::vector<Located> found;
  try {
    Flatten(toml::parse(text), "", origin, found);
  } catch (const toml::parse_error& error) {
    Fail(ExitCode::kUsage, origin, ":", error.source().begin.line, ": ", Describe(error, text));
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Located& a, const Located& b) { return a.at < b.at; });
  Settings settings;
  std::map<std::string, std::string> seen;
  for (Located& one : found) {
    const auto [first, is_new] = seen.emplace(one.setting.path, one.setting.origin);
    if (!is_new) {
      Fail(ExitCode::kUsage, one.setting.origin, ": key ", Quoted(one.setting.path),
           " is given twice, first at ", first->second);
    }
    settings.push_back(std::move(one.setting));
  }
  return settings;
}

Setting ParseOverride(std::string_view key_equals_value, const std::string& origin) {
  const size_t equals = key_equals_value.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    Fail(ExitCode::kUsage, origin, ": found ", Quoted(key_equals_value), ", expected key=value");
  }
  const std::string_view text = key_equals_value.substr(equals + 1);
  return {std::string(Trim(key_equals_value.substr(0, equals))), ParseValue(text, origin), origin,
          std::string(text)};
}

Setting::Value ParseValue(std::string_view text, const std::string& origin) {
  const std::string word(Trim(text));
  const bool is_toml =
      !word.empty() && std::string_view("[{\"'").find(word.front()) != std::string_view::npos;
  // Brackets refuse "1, 2", "1 # one" and "1]\nx = [2" as one value; of these only the first two
  // are bare words.
  const auto parse = [](const std::string& value) -> std::optional<Setting::Value> {
    const toml::table table = toml::parse("value = [" + value + "]");
    const toml::array* array = table["value"].as_array();
    if (table.size() != 1 || array->size() != 1) return std::nullopt;
    return ToValue(array->front());
  };
  try {
    if (!word.empty() && word.back() != ',') {
      if (std::optional<Setting::Value> value = parse(word)) return *std::move(value);
      if (is_toml) {
        Fail(ExitCode::kUsage, origin, ": ", word,
             " is not true, false, a number, a string, a list of numbers or a list of strings");
      }
    }
  } catch (const toml::parse_error& error) {
    if (is_toml)
      Fail(ExitCode::kUsage, origin, ": ", word, " is not a TOML value: ", error.description(),
           word.front() == '[' ? "; a list is also taken as a,b" : "");
  }
  try {
    return *parse(Quoted(word));
  } catch (const toml::parse_error& error) {
    Fail(ExitCode::kUsage, origin, ": the value is not UTF-8: ", error.description());
  }
}

std::map<std::string, std::string> Apply(const Settings& settings,
                                         std::vector<ConfigField>& fields) {
  std::map<std::string, ConfigField*> by_path;
  std::map<std::string, std::string> origins;
  std::vector<std::string> known;
  for (ConfigField& field : fields) {
    Check(by_path.emplace(field.path, &field).second, "config key ", field.path,
          " is declared twice");
    origins[field.path] = "default";
    known.push_back(field.path);
  }
  for (const Setting& setting : settings) {
    const auto found = by_path.find(setting.path);
    if (found == by_path.end()) {
      Fail(ExitCode::kUsage, setting.origin, ": unknown key ", Quoted(setting.path),
           "; did you mean ", Quoted(NearestKey(setting.path, known)), "?");
    }
    Assign(setting, *found->second);
    origins[setting.path] = setting.origin;
  }
  return origins;
}

std::string NearestKey(const std::string& path, const std::vector<std::string>& known) {
  const bool has_dot = path.find('.') != std::string::npos;
  size_t least = std::numeric_limits<size_t>::max();
  std::string nearest;
  for (const std::string& key : known) {
    size_t distance = EditDistance(path, key);
    if (!has_dot) {
      const std::string section = key.substr(0, key.find('.'));
      distance = std::min(
          {distance, EditDistance(path, LastPart(key)) + 1, EditDistance(path, section) + 1});
    }
    if (distance < least) {
      least = distance;
      nearest = key;
    }
  }
  return nearest;
}

std::string ToToml(const ConfigField& field) { return ToToml(ValueOf(field)); }

Setting::Value ValueOf(const ConfigField& field) {
  return std::visit([](auto* value) -> Setting::Value { return *value; }, field.value);
}

std::string ToToml(const Setting::Value& value) {
  return std::visit([](const auto& v) { return Text(v); }, value);
}

bool IsAbsent(const ConfigField& field) { return field.absent == ToToml(field); }

std::string WriteToml(const std::vector<ConfigField>& fields,
                      const std::map<std::string, std::string>* origins) {
  std::vector<std::pair<std::string, std::string>> sections = {
      {"", ""}};  // prefix, lines; root keys come first
  for (const ConfigField& field : fields) {
    if (IsAbsent(field)) continue;
    const size_t dot = field.path.rfind('.');
    const std::string prefix = dot == std::string::npos ? "" : field.path.substr(0, dot);
    auto section = std::find_if(sections.begin(), sections.end(),
                                [&](const auto& s) { return s.first == prefix; });
    if (section == sections.end()) section = sections.insert(section, {prefix, ""});
    std::string line = TomlKey(LastPart(field.path)) + " = " + ToToml(field);
    if (origins != nullptr) {
      std::string origin = origins->at(field.path);
      std::replace_if(
          origin.begin(), origin.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
      line += "  # from " + origin;
    }
    section->second += line + "\n";
  }
  std::string out;
  for (const auto& [prefix, lines] : sections) {
    if (lines.empty()) continue;
    if (!prefix.empty()) out += (out.empty() ? "[" : "\n[") + TomlKey(prefix) + "]\n";
    out += lines;
  }
  return out;
}

std::string HelpText(const std::vector<ConfigField>& fields) {
  constexpr size_t kWidestColumn = 40;
  size_t width = 0;
  std::vector<std::string> settings;
  for (const ConfigField& field : fields) {
    settings.push_back(field.path + " = " + ToToml(field));
    if (settings.back().size() <= kWidestColumn) width = std::max(width, settings.back().size());
  }
  std::string out;
  for (size_t i = 0; i < fields.size(); ++i) {
    const ConfigField& field = fields[i];
    out += fmt::format("{:<{}}  {}", settings[i], width, field.help);
    if (!field.choices.empty()) {
      out += fmt::format(" ({})", fmt::join(field.choices, ", "));
    } else if (std::isfinite(field.range.low) || std::isfinite(field.range.high)) {
      out += " (" + Text(field.range) + ")";
    }
    out += "\n";
  }
  return out;
}

std::string HashOf(const std::vector<ConfigField>& fields) {
  std::vector<std::string> lines;
  for (const ConfigField& field : fields) {
    if (!IsAbsent(field)) lines.push_back(TomlKey(field.path) + " = " + ToToml(field) + "\n");
  }
  std::sort(lines.begin(), lines.end());
  const std::string all = fmt::format("{}", fmt::join(lines, ""));
  const XXH128_hash_t hash = XXH3_128bits(all.data(), all.size());
  return fmt::format("{:016x}", hash.high64).substr(0, 12);
}

}  // namespace weft
