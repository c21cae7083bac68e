#pragma once
// Safetensors files: 8 bytes of header length (little-endian), a JSON header with dtype, shape and
// data_offsets of every tensor, then the data. https://github.com/huggingface/safetensors
//
// A file written here carries XXH3 checksums in its __metadata__: "xxh3:<tensor>" of every tensor's
// bytes, and "xxh3" of the header, taken with that value as zeros. A flipped byte anywhere is
// therefore found and named. Files of others, without checksums, are read as well.
//
// Errors name the file, the tensor, the value found and the value expected: ExitCode::kData for
// reading, kFailure for writing.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "experiments/run/files.h"

namespace weft {

struct NamedTensor {
  std::string name;
  std::string dtype;  // "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8" or "BOOL"
  std::vector<int64_t> shape;  // row-major; empty for a scalar
  const void* data = nullptr;
};

struct TensorTarget {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  void* data = nullptr;
};

// Bytes of a tensor; throws for an unknown dtype, a negative size or an overflow.
int64_t TensorBytes(const std::string& dtype, const std::vector<int64_t>& shape);

// Writes the tensors in the given order. Returns the checksum of the header, which covers all.
std::string WriteSafetensors(const std::string& path, std::span<const NamedTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {});

class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
    int64_t begin = 0;  // bytes from the start of the data
    int64_t end = 0;
  };

  // Opens a file and checks the whole header.
  explicit SafetensorsFile(std::string path);

  const std::vector<Entry>& entries() const { return entries_; }  // in the order of the data
  const Entry& At(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }  // no checksums
  const std::string& header_checksum() const { return header_checksum_; }  // empty when from others

  // Copies end - begin bytes and compares their checksum.
  void Read(const Entry& entry, void* data) const;
  // Fails unless the file holds exactly these tensors with these dtypes and shapes.
  void CheckTensors(std::span<const TensorTarget> targets) const;
  // CheckTensors, then Read for each.
  void Load(std::span<const TensorTarget> targets) const;

 private:
  void ParseHeader(const std::string& header, int64_t data_bytes);

  std::string path_;
  Descriptor file_;
  int64_t data_begin_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, std::string> checksums_;  // by tensor
  std::string header_checksum_;
};

}  // namespace weft
