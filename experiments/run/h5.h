#pragma once
// HDF5 files of tables and attributes, as h5py, pandas and h5ls read them.
//
// A table is one dataset of a compound type, so its columns cannot differ in length; the unit of
// column `c` is the attribute "unit:c". A file is built in memory and written whole, never open for
// writing under its own name. Format: superblock 0, libver earliest..v108.
//
// Errors: ExitCode::kData when a file is missing or broken, or lacks a table or column;
// ExitCode::kFailure when it cannot be written.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "arch/core/config.h"

namespace weft {

struct H5Column {
  using Values = std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;
  std::string name;
  std::string unit;  // "token", "nat/token", "s"; "1" for pure numbers
  Values values;
};

struct H5Table {
  std::string name;  // "/train", "/eval/recall"
  std::vector<H5Column> columns;

  int64_t rows() const;
  const H5Column& Column(std::string_view column) const;
  std::vector<double> Numbers(std::string_view column) const;  // integers become doubles
};

// Name and value; a file gives them back sorted by name. h5py reads bool, int, float, str and
// arrays of the last three.
using Attributes = std::vector<std::pair<std::string, Setting::Value>>;

struct H5Object {
  std::string name;  // "/", a table, or a group that is created: "/settings"
  Attributes attributes;
};

void WriteH5(const std::string& path, const std::vector<H5Table>& tables,
             const std::vector<H5Object>& objects);

H5Table ReadTable(const std::string& path, const std::string& table);
std::vector<std::string> ListTables(const std::string& path);  // sorted
Attributes ReadAttributes(const std::string& path, const std::string& object);

}  // namespace weft
