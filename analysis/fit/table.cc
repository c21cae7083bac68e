#include "analysis/fit/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

std::string TextOf(const TableCell& cell) {
  if (cell.text) return *cell.text;
  std::string text = Written(cell.style, cell.value);
  if (cell.interval) {
    text += fmt::format(" [{}, {}]", Written(cell.style, cell.interval->low),
                        Written(cell.style, cell.interval->high));
  }
  return text;
}

}  // namespace

std::string Written(Style style, double value) {
  if (std::isnan(value)) return "-";
  if (std::isinf(value)) return style == Style::kRatio ? "inf" : "never";
  switch (style) {
    case Style::kRatio:
      return fmt::format("{:.2f}x", value);
    case Style::kPercent:
      return fmt::format("{:.3g} %", 100 * value);
    case Style::kCount: {
      constexpr const char* kSuffix[] = {"", "k", "M", "B", "T"};
      size_t power = 0;
      while (std::abs(value) >= 999.5 && power < 4) value /= 1000, ++power;
      return fmt::format("{:.3g}{}", value, kSuffix[power]);
    }
    case Style::kNumber:
      break;
  }
  return fmt::format("{:.4g}", value);
}

nlohmann::ordered_json Finite(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

std::string Table::ToText() const {
  std::vector<std::vector<std::string>> lines = {columns};
  for (const std::vector<TableCell>& row : rows) {
    lines.emplace_back();
    for (const TableCell& cell : row) lines.back().push_back(TextOf(cell));
  }
  std::vector<size_t> widths(columns.size(), 0);
  for (const auto& line : lines) {
    for (size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  }
  std::string out = title + "\n";
  for (const auto& line : lines) {
    std::string one;
    for (size_t c = 0; c < line.size(); ++c) one += fmt::format("  {:<{}}", line[c], widths[c]);
    one.erase(one.find_last_not_of(' ') + 1);
    out += one + "\n";
  }
  return out;
}

nlohmann::ordered_json Table::ToJson() const {
  auto out = nlohmann::ordered_json::array();
  for (const std::vector<TableCell>& row : rows) {
    nlohmann::ordered_json object;
    for (size_t c = 0; c < row.size(); ++c) {
      const TableCell& cell = row[c];
      if (cell.text) {
        object[columns[c]] = *cell.text;
        continue;
      }
      object[columns[c]] = Finite(cell.value);
      if (!cell.interval) continue;
      object[columns[c] + "_low"] = Finite(cell.interval->low);
      object[columns[c] + "_high"] = Finite(cell.interval->high);
      if (cell.interval->undefined > 0)
        object[columns[c] + "_undefined"] = cell.interval->undefined;
    }
    out.push_back(std::move(object));
  }
  return out;
}

}  // namespace weft
