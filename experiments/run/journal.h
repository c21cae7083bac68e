#pragma once
// The journal of a run: append-only JSON lines, the truth from which run.h5 is built.
//
//   {"stream":"train","columns":[["step","int64","step"],["loss","float64","nat/token"]]}
//   {"stream":"train","step":1,"loss":10.8}
//
// A stream is a table with fixed columns, declared once by a line of its own. Numbers round-trip;
// NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity".
// A record is one write(2), so that a killed process can break the last line only.
//
// Errors: ExitCode::kData with the line number for a broken journal, kFailure for a full disk and
// for records that do not fit their stream.

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "experiments/run/files.h"
#include "experiments/run/h5.h"

namespace weft {

enum class ColumnType { kInteger, kNumber };

struct JournalColumn {
  std::string name;
  std::string unit;
  ColumnType type = ColumnType::kNumber;
};

struct JournalCell {
  template <std::integral T>
  JournalCell(std::string_view name, T value) : name(name), value(static_cast<int64_t>(value)) {}
  template <std::floating_point T>
  JournalCell(std::string_view name, T value) : name(name), value(static_cast<double>(value)) {}
  std::string_view name;
  std::variant<int64_t, double> value;
};

struct JournalContents {
  std::vector<H5Table> tables;  // stream "train" is table "/train"; in the order of declaration
  int64_t whole_bytes = 0;      // up to the end of the last whole line
  int64_t broken_bytes = 0;     // after it: what a killed process left of its last line
};

// Reads a journal that may be written at the same time.
JournalContents ReadJournal(const std::string& path);

class Journal {
 public:
  // Creates the file or continues it; a broken last line is cut off, see cut_bytes().
  explicit Journal(std::string path);

  // Declaring a stream again with the same columns does nothing; with others it is an error.
  void Declare(const std::string& stream, const std::vector<JournalColumn>& columns);
  // All columns of the stream in their order; an integer may stand for a number.
  void Append(const std::string& stream, std::initializer_list<JournalCell> cells);
  void Append(const std::string& stream, const std::vector<JournalCell>& cells);
  void Sync();

  // A checkpoint stores size(), and a run resumed from it calls TruncateTo with that.
  int64_t size() const { return size_; }
  void TruncateTo(int64_t size);

  int64_t cut_bytes() const { return cut_bytes_; }
  const std::vector<H5Table>& tables() const { return tables_; }

 private:
  void AppendLine(const std::string& line);
  void Cut(int64_t size);

  std::string path_;
  Descriptor file_;
  int64_t size_ = 0;
  int64_t cut_bytes_ = 0;
  std::vector<H5Table> tables_;
};

}  // namespace weft
