#include "experiments/run/journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "kernels/base/check.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kTypeNames[] = {"int64", "float64"};  // by ColumnType
const char* const kStreamKey = "stream";
const char* const kColumnsKey = "columns";

H5Table* FindTable(std::vector<H5Table>& tables, const std::string& stream) {
  const auto found = std::find_if(tables.begin(), tables.end(), [&](const H5Table& table) {
    return table.name.compare(1, std::string::npos, stream) == 0;
  });
  return found == tables.end() ? nullptr : &*found;
}

bool IsInside(const std::string& path, const std::string& folder) {
  return path.starts_with(folder + "/");
}

bool IsInteger(const H5Column& column) {
  return std::holds_alternative<std::vector<int64_t>>(column.values);
}

// Why a stream cannot have this name and these columns; empty when it can.
std::string Objection(const std::string& stream, const std::vector<JournalColumn>& columns,
                      const std::vector<H5Table>& tables) {
  if (stream.empty() || stream.front() == '/' || stream.back() == '/' ||
      stream.find("//") != std::string::npos) {
    return "a stream's name is like train or eval/recall";
  }
  for (const H5Table& table : tables) {
    const std::string other = table.name.substr(1);
    if (IsInside(stream, other) || IsInside(other, stream)) {
      return "stream " + other + " would be both a table and a group";
    }
  }
  if (columns.empty()) return "it has no columns";
  std::set<std::string> names = {kStreamKey, kColumnsKey, ""};
  for (const JournalColumn& column : columns) {
    if (!names.insert(column.name).second) {
      return "the column name \"" + column.name + "\" is taken, reserved or empty";
    }
    if (column.name.find('/') != std::string::npos) return "column " + column.name + " has a slash";
  }
  return "";
}

H5Table EmptyTable(const std::string& stream, const std::vector<JournalColumn>& columns) {
  H5Table table{"/" + stream, {}};
  for (const JournalColumn& column : columns) {
    H5Column::Values values = std::vector<double>();
    if (column.type == ColumnType::kInteger) values = std::vector<int64_t>();
    table.columns.push_back({column.name, column.unit, std::move(values)});
  }
  return table;
}

Json ToJson(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

double ToDouble(const Json& json) {
  if (json.is_number()) return json.get<double>();
  const auto& text = json.get_ref<const std::string&>();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  throw std::runtime_error("found \"" + text + "\", expected a number");
}

int64_t ToInteger(const Json& json) {
  if (!json.is_number_integer() ||
      (json.is_number_unsigned() &&
       json.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})) {
    throw std::runtime_error("found " + json.dump() + ", expected a 64-bit integer");
  }
  return json.get<int64_t>();
}

// Adds one line to the tables; throws a std::exception that says what is wrong with it.
void AddLine(const Json& line, std::vector<H5Table>& tables) {
  const std::string stream = line.at(kStreamKey).get<std::string>();
  H5Table* table = FindTable(tables, stream);
  if (line.contains(kColumnsKey)) {
    std::vector<JournalColumn> columns;
    for (const Json& one : line.at(kColumnsKey)) {
      const auto type = one.at(1).get<std::string>();
      if (type != kTypeNames[0] && type != kTypeNames[1]) {
        throw std::runtime_error("unknown column type " + type);
      }
      columns.push_back({one.at(0).get<std::string>(), one.at(2).get<std::string>(),
                         type == kTypeNames[0] ? ColumnType::kInteger : ColumnType::kNumber});
    }
    if (table != nullptr) throw std::runtime_error("stream " + stream + " is declared twice");
    const std::string objection = Objection(stream, columns, tables);
    if (!objection.empty()) throw std::runtime_error(objection);
    tables.push_back(EmptyTable(stream, columns));
    return;
  }
  if (table == nullptr) throw std::runtime_error("stream " + stream + " is not declared");
  if (line.size() != table->columns.size() + 1) {
    throw std::runtime_error(
        Cat("found ", line.size() - 1, " columns, expected ", table->columns.size()));
  }
  for (const H5Column& column : table->columns) {
    const Json& value = line.at(column.name);
    IsInteger(column) ? void(ToInteger(value)) : void(ToDouble(value));
  }
  for (H5Column& column : table->columns) {
    const Json& value = line.at(column.name);
    if (IsInteger(column)) {
      std::get<std::vector<int64_t>>(column.values).push_back(ToInteger(value));
    } else {
      std::get<std::vector<double>>(column.values).push_back(ToDouble(value));
    }
  }
}

JournalContents Parse(std::string_view bytes, const std::string& path) {
  JournalContents contents;
  size_t begin = 0;
  for (int64_t number = 1; begin < bytes.size(); ++number) {
    const size_t end = bytes.find('\n', begin);
    if (end == std::string_view::npos) break;
    const Json line = Json::parse(bytes.substr(begin, end - begin), nullptr, false);
    if (line.is_discarded() && end + 1 == bytes.size()) break;
    try {
      if (line.is_discarded()) throw std::runtime_error("not JSON");
      AddLine(line, contents.tables);
    } catch (const std::exception& error) {
      Fail(ExitCode::kData, path, ":", number, ": broken line: ", error.what(),
           "; resume from a checkpoint before it or cut the journal there");
    }
    begin = end + 1;
  }
  contents.whole_bytes = static_cast<int64_t>(begin);
  contents.broken_bytes = static_cast<int64_t>(bytes.size() - begin);
  return contents;
}

}  // namespace

JournalContents ReadJournal(const std::string& path) { return Parse(ReadFile(path), path); }

Journal::Journal(std::string path)
    : path_(std::move(path)),
      file_(open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (file_.get() < 0) FailWrite(path_, "open", errno);
  JournalContents contents = ReadJournal(path_);
  if (contents.broken_bytes > 0) Cut(contents.whole_bytes);
  cut_bytes_ = contents.broken_bytes;
  size_ = contents.whole_bytes;
  tables_ = std::move(contents.tables);
}

void Journal::Declare(const std::string& stream, const std::vector<JournalColumn>& columns) {
  if (const H5Table* table = FindTable(tables_, stream)) {
    bool same = table->columns.size() == columns.size();
    for (size_t c = 0; same && c < columns.size(); ++c) {
      const H5Column& old = table->columns[c];
      same = old.name == columns[c].name && old.unit == columns[c].unit &&
             IsInteger(old) == (columns[c].type == ColumnType::kInteger);
    }
    Check(same, path_, ": stream ", stream, " was declared with other columns, names or units");
    return;
  }
  const std::string objection = Objection(stream, columns, tables_);
  Check(objection.empty(), path_, ": cannot declare stream ", stream, ": ", objection);
  Json list = Json::array();
  for (const JournalColumn& column : columns) {
    list.push_back({column.name, kTypeNames[static_cast<int>(column.type)], column.unit});
  }
  Json line = {{kStreamKey, stream}};
  line[kColumnsKey] = std::move(list);
  AppendLine(line.dump());
  tables_.push_back(EmptyTable(stream, columns));
}

void Journal::Append(const std::string& stream, std::initializer_list<JournalCell> cells) {
  Append(stream, std::vector<JournalCell>(cells));
}

void Journal::Append(const std::string& stream, const std::vector<JournalCell>& cells) {
  H5Table* table = FindTable(tables_, stream);
  Check(table != nullptr, path_, ": stream ", stream, " is not declared");
  Check(cells.size() == table->columns.size(), path_, ": a record of ", stream, " has ",
        cells.size(), " columns, expected ", table->columns.size());
  Json line = {{kStreamKey, stream}};
  for (size_t c = 0; c < cells.size(); ++c) {
    const JournalCell& cell = cells[c];
    const H5Column& column = table->columns[c];
    Check(cell.name == column.name, path_, ": column ", c, " of ", stream, " is ", cell.name,
          ", expected ", column.name);
    if (const auto* integer = std::get_if<int64_t>(&cell.value)) {
      line[column.name] = IsInteger(column) ? Json(*integer) : Json(static_cast<double>(*integer));
    } else {
      Check(!IsInteger(column), path_, ": column ", column.name, " of ", stream,
            " is a fractional number, expected an integer");
      line[column.name] = ToJson(std::get<double>(cell.value));
    }
  }
  AppendLine(line.dump());
  AddLine(line, tables_);
}

void Journal::AppendLine(const std::string& line) {
  const std::string bytes = line + "\n";
  ssize_t written;
  do {
    written = write(file_.get(), bytes.data(), bytes.size());
  } while (written < 0 && errno == EINTR);
  if (written != static_cast<ssize_t>(bytes.size())) {
    const int error = written < 0 ? errno : ENOSPC;
    Cut(size_);
    FailWrite(path_, "append", error);
  }
  size_ += written;
}

void Journal::Sync() {
  if (fsync(file_.get()) != 0) FailWrite(path_, "sync", errno);
}

void Journal::TruncateTo(int64_t size) {
  if (size < 0 || size > size_) {
    Fail(ExitCode::kData, path_, ": the journal has ", size_, " bytes, the checkpoint expects ",
         size, " or more; use an older checkpoint");
  }
  const std::string bytes = ReadFile(path_).substr(0, static_cast<size_t>(size));
  if (size > 0 && bytes.back() != '\n') {
    Fail(ExitCode::kData, path_, ": byte ", size, " is not the end of a line, so the checkpoint ",
         "that names it belongs to another journal");
  }
  JournalContents contents = Parse(bytes, path_);
  Cut(size);
  Sync();
  size_ = size;
  tables_ = std::move(contents.tables);
}

void Journal::Cut(int64_t size) {
  if (ftruncate(file_.get(), size) != 0) FailWrite(path_, "truncate", errno);
}

}  // namespace weft
