#pragma once
// A table that is printed for people and as JSON for programs, from the same cells.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "analysis/fit/bootstrap.h"

namespace weft {

// How a number reads: 0.02345, 57.2B, 1.57x, 0.8 %.
enum class Style { kNumber, kCount, kRatio, kPercent };

struct TableCell {
  TableCell(std::string text) : text(std::move(text)) {}
  TableCell(const char* text) : text(text) {}
  TableCell(Style style, double value, std::optional<Interval> interval = {})
      : style(style), value(value), interval(interval) {}

  std::optional<std::string> text;
  Style style = Style::kNumber;
  double value = 0;
  std::optional<Interval> interval;
};

struct Table {
  std::string key, title;
  std::vector<std::string> columns;
  std::vector<std::vector<TableCell>> rows;

  std::string ToText() const;
  // Rows as objects. A cell with an interval has <column>_low and <column>_high beside it, and
  // <column>_undefined where draws had no value. null stands for what is not finite.
  nlohmann::ordered_json ToJson() const;
};

std::string Written(Style style, double value);
// null for what is not finite.
nlohmann::ordered_json Finite(double value);

}  // namespace weft
