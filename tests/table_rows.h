#pragma once
// Tables of a run.h5 or sweep.h5 that a test writes row by row.

#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "experiments/run/h5.h"
#include "kernels/base/check.h"

namespace weft {

// Every row names the same columns in the same order; units are those of the trainer's streams.
class TableRows {
 public:
  using Value = std::variant<int64_t, double, std::string>;
  explicit TableRows(const char* name) : table_{name, {}} {}

  void Add(std::initializer_list<std::pair<const char*, Value>> row) {
    if (table_.columns.empty()) {
      for (const auto& [name, value] : row)
        table_.columns.push_back({name, UnitOf(name), Empty(value)});
    }
    Check(row.size() == table_.columns.size(), table_.name, ": a row of ", row.size(),
          " values, expected ", table_.columns.size());
    auto column = table_.columns.begin();
    for (const auto& [name, value] : row) {
      Check(column->name == name, table_.name, ": column ", name, ", expected ", column->name);
      std::visit(
          [&](const auto& v) {
            std::get<std::vector<std::decay_t<decltype(v)>>>(column->values).push_back(v);
          },
          value);
      ++column;
    }
  }
  const H5Table& table() const { return table_; }

 private:
  static H5Column::Values Empty(const Value& value) {
    return std::visit(
        [](const auto& v) -> H5Column::Values { return std::vector<std::decay_t<decltype(v)>>{}; },
        value);
  }
  static std::string UnitOf(const std::string& column) {
    static const std::map<std::string, std::string> units = {
        {"step", "step"},     {"tokens", "token"},   {"labels", "label"},
        {"nll", "nat/label"}, {"loss", "nat/label"}, {"flops_per_token", "FLOP/token"},
        {"seconds", "s"}};
    const auto found = units.find(column);
    return found == units.end() ? "1" : found->second;
  }
  H5Table table_;
};

}  // namespace weft
