#include "experiments/run/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/check.h"

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kLongestHeader = 100'000'000;  // the limit of the reference implementation
constexpr int64_t kAlignment = 8;
constexpr std::string_view kNoChecksum = "0000000000000000";
const char* const kMetadataKey = "__metadata__";
const std::string kHeaderKey = "xxh3";
const std::string kTensorKey = "xxh3:";
const std::string kWriterKey = "writer";

int64_t ElementBytes(const std::string& dtype) {
  static const std::map<std::string, int64_t> kBytes = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
      {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
  const auto found = kBytes.find(dtype);
  if (found == kBytes.end()) {
    Fail(ExitCode::kData, "unknown dtype \"", dtype,
         "\", expected one of BF16 BOOL F16 F32 F64 I16 ", "I32 I64 I8 U8");
  }
  return found->second;
}

std::string Describe(const std::string& dtype, const std::vector<int64_t>& shape) {
  return fmt::format("{} [{}]", dtype, fmt::join(shape, ", "));
}

// The header's checksum is taken with its own value as zeros. Returns where that value begins.
size_t FindHeaderChecksum(std::string_view header) {
  const std::string marker = "\"" + kHeaderKey + "\":\"";
  const size_t at = header.find(marker);
  return at == std::string_view::npos ? at : at + marker.size();
}

// nlohmann keeps the last of two equal keys; a file that has them is broken.
Json ParseStrictly(const std::string& header) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  Json json = Json::parse(header, [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key &&
        !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      twice = parsed.get<std::string>();
    }
    return true;
  });
  if (!twice.empty()) Fail(ExitCode::kData, "name \"", twice, "\" is given twice");
  if (!json.is_object()) Fail(ExitCode::kData, "the header is not a JSON object");
  return json;
}

int64_t NonNegative(const Json& json) {
  if (!json.is_number_unsigned() || json.get<uint64_t>() > uint64_t{INT64_MAX}) {
    Fail(ExitCode::kData, "found ", json.dump(), ", expected a size");
  }
  return json.get<int64_t>();
}

SafetensorsFile::Entry ParseEntry(const std::string& name, const Json& json) {
  if (json.size() != 3) Fail(ExitCode::kData, "expected dtype, shape and data_offsets");
  SafetensorsFile::Entry entry;
  entry.name = name;
  entry.dtype = json.at("dtype").get<std::string>();
  for (const Json& size : json.at("shape")) entry.shape.push_back(NonNegative(size));
  const Json& offsets = json.at("data_offsets");
  if (offsets.size() != 2) Fail(ExitCode::kData, "expected two data_offsets");
  entry.begin = NonNegative(offsets.at(0));
  entry.end = NonNegative(offsets.at(1));
  const int64_t expected = TensorBytes(entry.dtype, entry.shape);
  if (entry.end < entry.begin || entry.end - entry.begin != expected) {
    Fail(ExitCode::kData, "data_offsets ", entry.begin, " to ", entry.end, ", expected ", expected,
         " bytes for ", Describe(entry.dtype, entry.shape));
  }
  return entry;
}

void ReadAt(int fd, char* data, int64_t size, int64_t offset, const std::string& path) {
  while (size > 0) {
    const ssize_t n = pread(fd, data, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) FailRead(path, errno);
    if (n == 0)
      Fail(ExitCode::kData, path, ": ends at byte ", offset, ", expected ", size, " more");
    data += n;
    offset += n;
    size -= n;
  }
}

}  // namespace

int64_t TensorBytes(const std::string& dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = ElementBytes(dtype);
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) {
      Fail(ExitCode::kData, "shape ", Describe(dtype, shape), " is not a size in memory");
    }
  }
  return bytes;
}

std::string WriteSafetensors(const std::string& path, std::span<const NamedTensor> tensors,
                             const std::map<std::string, std::string>& metadata) {
  const auto bytes_of = [](const NamedTensor& tensor) {
    return std::string_view(static_cast<const char*>(tensor.data),
                            static_cast<size_t>(TensorBytes(tensor.dtype, tensor.shape)));
  };
  std::string header;
  try {
    Json notes = {{kHeaderKey, kNoChecksum}, {kWriterKey, "weft"}};
    for (const NamedTensor& tensor : tensors) {
      notes[kTensorKey + tensor.name] = ChecksumHex(bytes_of(tensor));
    }
    for (const auto& [key, value] : metadata) {
      Check(!notes.contains(key), path, ": metadata key ", key, " is reserved");
      notes[key] = value;
    }
    Json json = {{kMetadataKey, std::move(notes)}};
    int64_t offset = 0;
    for (const NamedTensor& tensor : tensors) {
      Check(!tensor.name.empty() && !json.contains(tensor.name), path, ": tensor name \"",
            tensor.name, "\" is empty, reserved or given twice");
      const auto end = offset + static_cast<int64_t>(bytes_of(tensor).size());
      json[tensor.name] = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
      offset = end;
    }
    header = json.dump();
  } catch (const Json::exception& error) {
    Fail(ExitCode::kFailure, path, ": cannot write the header: ", error.what());
  }
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const std::string checksum = ChecksumHex(header);
  header.replace(FindHeaderChecksum(header), checksum.size(), checksum);

  const uint64_t length = header.size();
  AtomicFile file(path);
  file.Write({reinterpret_cast<const char*>(&length), kLengthBytes});
  file.Write(header);
  for (const NamedTensor& tensor : tensors) file.Write(bytes_of(tensor));
  file.Commit();
  return checksum;
}

SafetensorsFile::SafetensorsFile(std::string path)
    : path_(std::move(path)), file_(open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
  struct stat info;
  if (file_.get() < 0 || fstat(file_.get(), &info) != 0) FailRead(path_, errno);
  if (info.st_size < kLengthBytes) {
    Fail(ExitCode::kData, path_, ": has ", info.st_size, " bytes, expected a safetensors file");
  }
  uint64_t length = 0;
  ReadAt(file_.get(), reinterpret_cast<char*>(&length), kLengthBytes, 0, path_);
  const int64_t longest = std::min<int64_t>(info.st_size - kLengthBytes, kLongestHeader);
  if (length > static_cast<uint64_t>(longest)) {
    Fail(ExitCode::kData, path_, ": the header claims ", length, " bytes, expected at most ",
         longest, "; the file is truncated or no safetensors file");
  }
  std::string header(length, '\0');
  ReadAt(file_.get(), header.data(), static_cast<int64_t>(length), kLengthBytes, path_);
  data_begin_ = kLengthBytes + static_cast<int64_t>(length);
  try {
    ParseHeader(header, info.st_size - data_begin_);
  } catch (const Json::exception& error) {
    Fail(ExitCode::kData, path_, ": broken header: ", error.what());
  } catch (const Error& error) {
    Fail(ExitCode::kData, path_, ": ", error.what());
  }
}

void SafetensorsFile::ParseHeader(const std::string& header, int64_t data_bytes) {
  const Json json = ParseStrictly(header);
  bool has_checksums = false;
  for (const auto& [name, value] : json.items()) {
    if (name != kMetadataKey) {
      try {
        entries_.push_back(ParseEntry(name, value));
      } catch (const std::exception& error) {
        Fail(ExitCode::kData, "tensor ", name, ": ", error.what());
      }
      continue;
    }
    for (const auto& [key, text] : value.items()) {
      if (key == kHeaderKey) {
        header_checksum_ = text.get<std::string>();
      } else if (key.starts_with(kTensorKey)) {
        checksums_[key.substr(kTensorKey.size())] = text.get<std::string>();
      } else {
        metadata_[key] = text.get<std::string>();
      }
    }
    // Any of three marks, since a flipped byte may have hit one.
    has_checksums = !header_checksum_.empty() || !checksums_.empty() ||
                    (metadata_.contains(kWriterKey) && metadata_.at(kWriterKey) == "weft");
  }

  if (has_checksums) {
    std::string blank = header;
    const size_t at = FindHeaderChecksum(header);
    if (at != std::string::npos && at + kNoChecksum.size() <= blank.size()) {
      blank.replace(at, kNoChecksum.size(), kNoChecksum);
    }
    const std::string actual = ChecksumHex(blank);
    if (actual != header_checksum_) {
      Fail(ExitCode::kData, "the header is corrupted: checksum ", actual, ", expected ",
           header_checksum_.empty() ? "one in the header" : header_checksum_);
    }
    metadata_.erase(kWriterKey);
  }

  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t expected = 0;
  for (const Entry& entry : entries_) {
    if (entry.begin != expected) {
      Fail(ExitCode::kData, "tensor ", entry.name, ": begins at byte ", entry.begin, ", expected ",
           expected, entry.begin < expected ? " (overlaps)" : " (leaves a hole)");
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    Fail(ExitCode::kData, "has ", data_bytes, " bytes of data, expected ", expected,
         data_bytes < expected ? ": truncated" : ": longer than its tensors",
         entries_.empty() ? "" : ", the last is ", entries_.empty() ? "" : entries_.back().name);
  }
}

const SafetensorsFile::Entry& SafetensorsFile::At(const std::string& name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return entry;
  }
  Fail(ExitCode::kData, path_, ": tensor ", name, " is missing");
}

void SafetensorsFile::Read(const Entry& entry, void* data) const {
  const int64_t size = entry.end - entry.begin;
  ReadAt(file_.get(), static_cast<char*>(data), size, data_begin_ + entry.begin, path_);
  const auto expected = checksums_.find(entry.name);
  if (expected == checksums_.end()) return;
  const std::string actual =
      ChecksumHex({static_cast<const char*>(data), static_cast<size_t>(size)});
  if (actual != expected->second) {
    Fail(ExitCode::kData, path_, ": tensor ", entry.name, ": is corrupted: checksum ", actual,
         ", expected ", expected->second);
  }
}

void SafetensorsFile::CheckTensors(std::span<const TensorTarget> targets) const {
  std::map<std::string, const Entry*> left;
  for (const Entry& entry : entries_) left[entry.name] = &entry;
  for (const TensorTarget& target : targets) {
    const auto found = left.find(target.name);
    const std::string expected = Describe(target.dtype, target.shape);
    if (found == left.end()) {
      Fail(ExitCode::kData, path_, ": tensor ", target.name, " is missing, expected ", expected);
    }
    const Entry& entry = *found->second;
    if (entry.dtype != target.dtype || entry.shape != target.shape) {
      Fail(ExitCode::kData, path_, ": tensor ", target.name, " is ",
           Describe(entry.dtype, entry.shape), ", expected ", expected);
    }
    left.erase(found);
  }
  if (!left.empty()) {
    const Entry& extra = *left.begin()->second;
    Fail(ExitCode::kData, path_, ": tensor ", extra.name, " ", Describe(extra.dtype, extra.shape),
         " is not part of this model, expected ", targets.size(), " tensors, found ",
         entries_.size());
  }
}

void SafetensorsFile::Load(std::span<const TensorTarget> targets) const {
  CheckTensors(targets);
  for (const TensorTarget& target : targets) Read(At(target.name), target.data);
}

}  // namespace weft
