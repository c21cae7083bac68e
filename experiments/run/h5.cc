#include "experiments/run/h5.h"

#define H5_USE_110_API
#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "experiments/run/files.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

constexpr hsize_t kRowsPerChunk = 4096;
constexpr unsigned kDeflateLevel = 4;
constexpr size_t kMemoryIncrement = size_t{1} << 20;  // bytes by which a file in memory grows

// Debian's HDF5 is not thread-safe, and it prints its errors unless told otherwise.
class Session {
 public:
  Session() : lock_(Mutex()) {
    H5Eget_auto2(H5E_DEFAULT, &print_, &print_data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Session() { H5Eset_auto2(H5E_DEFAULT, print_, print_data_); }

 private:
  static std::mutex& Mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::lock_guard<std::mutex> lock_;
  H5E_auto2_t print_ = nullptr;
  void* print_data_ = nullptr;
};

// The innermost message of HDF5's error stack.
std::string Reason() {
  std::string reason = "unknown error";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
        if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &reason);
  return reason;
}

// Calls of one file; every failure becomes an Error that names the file and the object.
class Calls {
 public:
  Calls(std::string path, ExitCode code) : path_(std::move(path)), code_(code) {}
  template <class Result>
  Result operator()(Result result, std::string_view action, std::string_view object) const {
    if (result < 0) Fail(code_, path_, ": cannot ", action, " ", object, ": HDF5: ", Reason());
    return result;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  ExitCode code_;
};

class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

Handle InMemory(const Calls& calls) {
  Handle access(calls(H5Pcreate(H5P_FILE_ACCESS), "open", "file"), H5Pclose);
  calls(H5Pset_fapl_core(access, kMemoryIncrement, false), "open", "file");
  calls(H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_V18), "open", "file");
  return access;
}

Handle FixedString(size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, size);
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

Handle VariableString() { return FixedString(H5T_VARIABLE); }

// What h5py reads as a bool.
Handle Boolean() {
  Handle type(H5Tenum_create(H5T_NATIVE_INT8), H5Tclose);
  int8_t value = 0;
  H5Tenum_insert(type, "FALSE", &value);
  value = 1;
  H5Tenum_insert(type, "TRUE", &value);
  return type;
}

Handle TypeOf(const std::vector<int64_t>&) { return {H5Tcopy(H5T_NATIVE_INT64), H5Tclose}; }
Handle TypeOf(const std::vector<double>&) { return {H5Tcopy(H5T_NATIVE_DOUBLE), H5Tclose}; }
Handle TypeOf(const std::vector<std::string>& values) {
  size_t longest = 1;
  for (const std::string& value : values) longest = std::max(longest, value.size());
  return FixedString(longest);
}

void WriteAttribute(const Calls& calls, hid_t object, const std::string& name, hid_t type,
                    const Handle& space, const void* data) {
  const Handle attribute(
      calls(H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
            "write attribute", name),
      H5Aclose);
  if (H5Sget_simple_extent_npoints(space) == 0) return;  // HDF5 refuses to write nothing
  calls(H5Awrite(attribute, type, data), "write attribute", name);
}

void WriteAttribute(const Calls& calls, hid_t object, const std::string& name,
                    const Setting::Value& value) {
  const Handle scalar(H5Screate(H5S_SCALAR), H5Sclose);
  const auto list = [](size_t size) {
    const hsize_t length = size;
    return Handle(H5Screate_simple(1, &length, nullptr), H5Sclose);
  };
  if (const auto* flag = std::get_if<bool>(&value)) {
    const auto byte = static_cast<int8_t>(*flag);
    WriteAttribute(calls, object, name, Boolean(), scalar, &byte);
  } else if (const auto* integer = std::get_if<int64_t>(&value)) {
    WriteAttribute(calls, object, name, H5T_NATIVE_INT64, scalar, integer);
  } else if (const auto* number = std::get_if<double>(&value)) {
    WriteAttribute(calls, object, name, H5T_NATIVE_DOUBLE, scalar, number);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    const char* data = text->c_str();
    WriteAttribute(calls, object, name, VariableString(), scalar, &data);
  } else if (const auto* integers = std::get_if<std::vector<int64_t>>(&value)) {
    WriteAttribute(calls, object, name, H5T_NATIVE_INT64, list(integers->size()), integers->data());
  } else if (const auto* numbers = std::get_if<std::vector<double>>(&value)) {
    WriteAttribute(calls, object, name, H5T_NATIVE_DOUBLE, list(numbers->size()), numbers->data());
  } else {
    std::vector<const char*> texts;
    for (const std::string& one : std::get<std::vector<std::string>>(value)) {
      texts.push_back(one.c_str());
    }
    WriteAttribute(calls, object, name, VariableString(), list(texts.size()), texts.data());
  }
}

// Creates missing groups on the way to an object.
Handle LinkCreation() {
  Handle creation(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(creation, 1);
  return creation;
}

void WriteTable(const Calls& calls, hid_t file, const H5Table& table) {
  Check(!table.columns.empty(), calls.path(), ": table ", table.name, " has no columns");
  const auto rows = static_cast<size_t>(table.rows());

  std::vector<Handle> types;
  size_t row_bytes = 0;
  for (const H5Column& column : table.columns) {
    types.push_back(std::visit([](const auto& values) { return TypeOf(values); }, column.values));
    row_bytes += H5Tget_size(types.back());
  }
  const Handle row_type(calls(H5Tcreate(H5T_COMPOUND, row_bytes), "write", table.name), H5Tclose);
  std::vector<char> bytes(rows * row_bytes);
  size_t offset = 0;
  for (size_t c = 0; c < types.size(); ++c) {
    const H5Column& column = table.columns[c];
    calls(H5Tinsert(row_type, column.name.c_str(), offset, types[c]), "add column", column.name);
    std::visit(
        [&](const auto& values) {
          using Element = typename std::decay_t<decltype(values)>::value_type;
          Check(values.size() == rows, calls.path(), ": column ", column.name, " of table ",
                table.name, " has ", values.size(), " rows, expected ", rows);
          for (size_t r = 0; r < rows; ++r) {
            char* to = bytes.data() + r * row_bytes + offset;
            if constexpr (std::is_same_v<Element, std::string>) {
              std::memcpy(to, values[r].data(), values[r].size());
            } else {
              std::memcpy(to, &values[r], sizeof(Element));
            }
          }
        },
        column.values);
    offset += H5Tget_size(types[c]);
  }

  const hsize_t length = rows;
  const hsize_t unlimited = H5S_UNLIMITED;
  const hsize_t chunk = std::clamp<hsize_t>(length, 1, kRowsPerChunk);
  const Handle space(H5Screate_simple(1, &length, &unlimited), H5Sclose);
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  calls(H5Pset_chunk(creation, 1, &chunk), "write", table.name);
  calls(H5Pset_shuffle(creation), "write", table.name);
  calls(H5Pset_deflate(creation, kDeflateLevel), "write", table.name);
  H5Pset_obj_track_times(creation, false);  // equal tables give equal bytes
  const Handle dataset(calls(H5Dcreate2(file, table.name.c_str(), row_type, space, LinkCreation(),
                                        creation, H5P_DEFAULT),
                             "create table", table.name),
                       H5Dclose);
  calls(H5Dwrite(dataset, row_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), "write",
        table.name);
  for (const H5Column& column : table.columns) {
    WriteAttribute(calls, dataset, "unit:" + column.name, Setting::Value(column.unit));
  }
}

Handle OpenObject(const Calls& calls, hid_t file, const std::string& name) {
  return {calls(H5Oopen(file, name.c_str(), H5P_DEFAULT), "open", name), H5Oclose};
}

// Through memory, because HDF5's own file locking fails on some parallel file systems. HDF5 refuses
// a file in memory under the name of one on disk.
Handle OpenForReading(const Calls& calls) {
  std::string bytes = ReadFile(calls.path());
  const Handle access = InMemory(calls);
  calls(H5Pset_file_image(access, bytes.data(), bytes.size()), "read", "file");
  const std::string name = TemporaryName(calls.path());
  return {calls(H5Fopen(name.c_str(), H5F_ACC_RDONLY, access), "read", "file"), H5Fclose};
}

std::string NameOfMember(hid_t type, unsigned index) {
  char* name = H5Tget_member_name(type, index);
  std::string copy = name;
  H5free_memory(name);
  return copy;
}

std::string ReadText(const Calls& calls, hid_t attribute, const std::string& name) {
  const Handle type = VariableString();
  char* text = nullptr;
  calls(H5Aread(attribute, type, &text), "read attribute", name);
  std::string copy = text;
  H5free_memory(text);
  return copy;
}

Setting::Value ReadValue(const Calls& calls, hid_t attribute, const std::string& name) {
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  const bool is_list = H5Sget_simple_extent_ndims(space) > 0;
  const auto size = static_cast<size_t>(H5Sget_simple_extent_npoints(space));
  const auto read = [&](hid_t memory_type, void* data) {
    if (size > 0) calls(H5Aread(attribute, memory_type, data), "read attribute", name);
  };
  switch (H5Tget_class(type)) {
    case H5T_ENUM: {
      int8_t flag = 0;
      if (is_list) break;
      read(type, &flag);
      return flag != 0;
    }
    case H5T_INTEGER: {
      std::vector<int64_t> values(size);
      read(H5T_NATIVE_INT64, values.data());
      return is_list ? Setting::Value(std::move(values)) : Setting::Value(values.at(0));
    }
    case H5T_FLOAT: {
      std::vector<double> values(size);
      read(H5T_NATIVE_DOUBLE, values.data());
      return is_list ? Setting::Value(std::move(values)) : Setting::Value(values.at(0));
    }
    case H5T_STRING: {
      if (H5Tis_variable_str(type) <= 0) break;
      if (!is_list) return ReadText(calls, attribute, name);
      std::vector<char*> texts(size, nullptr);
      const Handle text_type = VariableString();
      read(text_type, texts.data());
      std::vector<std::string> values(texts.begin(), texts.end());
      H5Dvlen_reclaim(text_type, space, H5P_DEFAULT, texts.data());
      return values;
    }
    default:
      break;
  }
  Fail(ExitCode::kData, calls.path(), ": attribute ", name, " has a type that is not read here");
}

}  // namespace

int64_t H5Table::rows() const {
  if (columns.empty()) return 0;
  return std::visit([](const auto& values) { return static_cast<int64_t>(values.size()); },
                    columns.front().values);
}

const H5Column& H5Table::Column(std::string_view column) const {
  std::string known;
  for (const H5Column& one : columns) {
    if (one.name == column) return one;
    known += (known.empty() ? "" : ", ") + one.name;
  }
  Fail(ExitCode::kData, "table ", name, " has no column ", column, ", it has ", known);
}

std::vector<double> H5Table::Numbers(std::string_view column) const {
  const H5Column& found = Column(column);
  if (const auto* numbers = std::get_if<std::vector<double>>(&found.values)) return *numbers;
  if (const auto* integers = std::get_if<std::vector<int64_t>>(&found.values)) {
    return {integers->begin(), integers->end()};
  }
  Fail(ExitCode::kData, "column ", column, " of table ", name, " holds text, expected numbers");
}

void WriteH5(const std::string& path, const std::vector<H5Table>& tables,
             const std::vector<H5Object>& objects) {
  const Session session;
  const Calls calls(path, ExitCode::kFailure);
  const Handle access = InMemory(calls);
  const Handle file(
      calls(H5Fcreate(TemporaryName(path).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), "create",
            "file"),
      H5Fclose);
  for (const H5Table& table : tables) WriteTable(calls, file, table);
  for (const H5Object& object : objects) {
    if (object.name != "/" && H5Lexists(file, object.name.c_str(), H5P_DEFAULT) <= 0) {
      const Handle group(
          calls(H5Gcreate2(file, object.name.c_str(), LinkCreation(), H5P_DEFAULT, H5P_DEFAULT),
                "create group", object.name),
          H5Gclose);
    }
    const Handle target = OpenObject(calls, file, object.name);
    for (const auto& [name, value] : object.attributes) WriteAttribute(calls, target, name, value);
  }
  calls(H5Fflush(file, H5F_SCOPE_LOCAL), "write", "file");
  std::string bytes(
      static_cast<size_t>(calls(H5Fget_file_image(file, nullptr, 0), "write", "file")), '\0');
  calls(H5Fget_file_image(file, bytes.data(), bytes.size()), "write", "file");
  WriteFileAtomically(path, bytes);
}

H5Table ReadTable(const std::string& path, const std::string& table) {
  const Session session;
  const Calls calls(path, ExitCode::kData);
  const Handle file = OpenForReading(calls);
  const Handle dataset(calls(H5Dopen2(file, table.c_str(), H5P_DEFAULT), "open table", table),
                       H5Dclose);
  const Handle file_type(H5Dget_type(dataset), H5Tclose);
  const Handle space(H5Dget_space(dataset), H5Sclose);
  if (H5Tget_class(file_type) != H5T_COMPOUND || H5Sget_simple_extent_ndims(space) != 1) {
    Fail(ExitCode::kData, path, ": ", table, " is not a table, expected rows of a compound type");
  }
  const auto rows = static_cast<size_t>(H5Sget_simple_extent_npoints(space));
  const auto columns = static_cast<unsigned>(H5Tget_nmembers(file_type));

  H5Table out{table, {}};
  std::vector<Handle> types;
  size_t row_bytes = 0;
  for (unsigned c = 0; c < columns; ++c) {
    H5Column column{NameOfMember(file_type, c), "", {}};
    const Handle member(H5Tget_member_type(file_type, c), H5Tclose);
    switch (H5Tget_class(member)) {
      case H5T_INTEGER:
        types.push_back(TypeOf(std::get<0>(column.values = std::vector<int64_t>(rows))));
        break;
      case H5T_FLOAT:
        types.push_back(TypeOf(std::get<1>(column.values = std::vector<double>(rows))));
        break;
      case H5T_STRING:
        if (H5Tis_variable_str(member) == 0) {
          column.values = std::vector<std::string>(rows);
          types.push_back(FixedString(H5Tget_size(member)));
          break;
        }
        [[fallthrough]];
      default:
        Fail(ExitCode::kData, path, ": column ", column.name, " of ", table,
             " has a type that is not read here, expected integers, floats or fixed strings");
    }
    row_bytes += H5Tget_size(types.back());
    const std::string unit = "unit:" + column.name;
    if (H5Aexists(dataset, unit.c_str()) > 0) {
      const Handle attribute(calls(H5Aopen(dataset, unit.c_str(), H5P_DEFAULT), "read", unit),
                             H5Aclose);
      column.unit = ReadText(calls, attribute, unit);
    }
    out.columns.push_back(std::move(column));
  }

  const Handle row_type(calls(H5Tcreate(H5T_COMPOUND, row_bytes), "read", table), H5Tclose);
  size_t offset = 0;
  for (unsigned c = 0; c < columns; ++c) {
    calls(H5Tinsert(row_type, out.columns[c].name.c_str(), offset, types[c]), "read", table);
    offset += H5Tget_size(types[c]);
  }
  std::vector<char> bytes(rows * row_bytes);
  calls(H5Dread(dataset, row_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), "read", table);
  offset = 0;
  for (unsigned c = 0; c < columns; ++c) {
    const size_t size = H5Tget_size(types[c]);
    std::visit(
        [&](auto& values) {
          for (size_t r = 0; r < rows; ++r) {
            const char* from = bytes.data() + r * row_bytes + offset;
            if constexpr (std::is_same_v<std::decay_t<decltype(values[r])>, std::string>) {
              values[r].assign(from, strnlen(from, size));
            } else {
              std::memcpy(&values[r], from, size);
            }
          }
        },
        out.columns[c].values);
    offset += size;
  }
  return out;
}

std::vector<std::string> ListTables(const std::string& path) {
  const Session session;
  const Calls calls(path, ExitCode::kData);
  const Handle file = OpenForReading(calls);
  std::vector<std::string> names;
  calls(H5Ovisit(
            file, H5_INDEX_NAME, H5_ITER_INC,
            [](hid_t, const char* name, const H5O_info_t* info, void* out) -> herr_t {
              if (info->type == H5O_TYPE_DATASET) {
                static_cast<std::vector<std::string>*>(out)->push_back(std::string("/") + name);
              }
              return 0;
            },
            &names),
        "list", "tables");
  std::sort(names.begin(), names.end());
  return names;
}

Attributes ReadAttributes(const std::string& path, const std::string& object) {
  const Session session;
  const Calls calls(path, ExitCode::kData);
  const Handle file = OpenForReading(calls);
  const Handle target = OpenObject(calls, file, object);
  H5O_info_t info;
  calls(H5Oget_info(target, &info), "read", object);
  Attributes out;
  for (hsize_t i = 0; i < info.num_attrs; ++i) {
    const Handle attribute(
        calls(H5Aopen_by_idx(target, ".", H5_INDEX_NAME, H5_ITER_INC, i, H5P_DEFAULT, H5P_DEFAULT),
              "read attributes of", object),
        H5Aclose);
    std::string name(static_cast<size_t>(calls(H5Aget_name(attribute, 0, nullptr), "read", object)),
                     '\0');
    H5Aget_name(attribute, name.size() + 1, name.data());
    Setting::Value value = ReadValue(calls, attribute, name);
    out.emplace_back(std::move(name), std::move(value));
  }
  return out;
}

}  // namespace weft
