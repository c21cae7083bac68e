#pragma once
// Configuration: one Visit per struct is the single list of its keys. Reader, writer, --help, range
// check, hash and HDF5 attributes are functions over the fields that Visit collects.
//
//   struct OptimConfig {
//     double lr = 1e-3;
//     void Visit(ConfigVisitor& v) { v.Key("lr", lr, "peak learning rate", Range{0, 10}); }
//   };
//
// A config file is TOML. Every key is also a flag: --optim.lr=3e-4. Errors are weft::Error with
// ExitCode::kUsage and name the file, the line, the key, what was found, what is allowed and the
// nearest known key.

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace weft {

struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();  // inclusive, like low
};

// Where a field lives and what it may hold. The pointer aims into the visited struct.
struct ConfigField {
  using Pointer = std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*,
                               std::vector<double>*, std::vector<std::string>*>;
  std::string path;  // "model.d_model"
  Pointer value;
  std::string help;
  Range range;                       // numbers and elements of number lists
  std::vector<std::string> choices;  // strings: allowed values; empty = any
  std::string absent = {};           // see ConfigVisitor::LaterKey
};

// Collects the fields of config structs.
class ConfigVisitor {
 public:
  template <class T>
  void Key(std::string_view name, T& value, std::string_view help) {
    Add(name, &value, help, {}, {});
  }
  template <class T>
  void Key(std::string_view name, T& value, std::string_view help, Range range) {
    Add(name, &value, help, range, {});
  }
  void Key(std::string_view name, std::string& value, std::string_view help,
           std::vector<std::string> choices) {
    Add(name, &value, help, {}, std::move(choices));
  }
  // A key that came when runs had their names already. With the value `absent`, in TOML, it is part
  // of no hash and is not written: runs from before, which were so, are those of now.
  template <class T>
  void LaterKey(std::string_view name, T& value, std::string_view absent, std::string_view help,
                Range range) {
    Key(name, value, help, range);
    fields_.back().absent = std::string(absent);
  }
  void LaterKey(std::string_view name, std::string& value, std::string_view absent,
                std::string_view help, std::vector<std::string> choices) {
    Key(name, value, help, std::move(choices));
    fields_.back().absent = std::string(absent);
  }
  // Visits `part` with its keys under "name.".
  template <class Part>
  void Section(std::string_view name, Part& part) {
    const std::string outer = prefix_;
    prefix_ += std::string(name) + ".";
    part.Visit(*this);
    prefix_ = outer;
  }
  std::vector<ConfigField>& fields() { return fields_; }

 private:
  void Add(std::string_view name, ConfigField::Pointer value, std::string_view help, Range range,
           std::vector<std::string> choices) {
    fields_.push_back(
        {prefix_ + std::string(name), value, std::string(help), range, std::move(choices)});
  }
  std::string prefix_;
  std::vector<ConfigField> fields_;
};

// One key = value as it was written by the user, before it is matched with a field.
struct Setting {
  using Value = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                             std::vector<double>, std::vector<std::string>>;
  std::string path;       // "model.d_model"
  Value value;            // an empty list is an empty vector<int64_t>
  std::string origin;     // "experiments/text.toml:12" or "--model.d_model" or "default"
  std::string text = {};  // of an override: what was typed. A string field takes it as it stands
                          // unless it is quoted, a list field takes a,b,c without brackets
};
using Settings = std::vector<Setting>;  // later entries win; one file must not give a key twice

// Reads a TOML file into settings; a key given twice, a syntax error or a missing file is an error
// with the line.
Settings ReadTomlFile(const std::string& path);
Settings ParseToml(std::string_view text, const std::string& origin);
// "model.d_model=512" (the flag without its dashes): a TOML value, or a bare word, or a comma list
// for a list field.
Setting ParseOverride(std::string_view key_equals_value, const std::string& origin);
// Parses a TOML value: 512, 1e-3, true, ["a", "b"]; anything else that opens no quote or bracket is
// a bare string.
Setting::Value ParseValue(std::string_view text, const std::string& origin);

// Writes settings into the fields; an unknown key, wrong type, value out of range or not among the
// choices is an error. Integers are accepted for doubles, and nothing else converts. NaN is never
// in range. Returns the origin of every field ("default" where no setting named it).
std::map<std::string, std::string> Apply(const Settings& settings,
                                         std::vector<ConfigField>& fields);

// The known key that is closest to `path` in edit distance; a path without dots is also compared
// with first and last parts.
std::string NearestKey(const std::string& path, const std::vector<std::string>& known);

// Current value of a field as a TOML value, round-tripping exactly; and as text for --help.
std::string ToToml(const ConfigField& field);
Setting::Value ValueOf(const ConfigField& field);
std::string ToToml(const Setting::Value& value);

// See ConfigVisitor::LaterKey.
bool IsAbsent(const ConfigField& field);

// A TOML document with one [section] per prefix, without absent keys; with `origins`, each line
// ends in "# from <origin>".
std::string WriteToml(const std::vector<ConfigField>& fields,
                      const std::map<std::string, std::string>* origins = nullptr);
// key = default   help (range or choices), one line each.
std::string HelpText(const std::vector<ConfigField>& fields);

// 12 hex digits of a hash (XXH3 128 bits) of the canonical "path = value" lines, sorted by path,
// without absent keys.
std::string HashOf(const std::vector<ConfigField>& fields);

}  // namespace weft
