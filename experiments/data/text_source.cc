#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <filesystem>

#include "experiments/data/source.h"
#include "experiments/run/files.h"
#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdvice = "; give a text file or a directory of text files";

std::vector<fs::path> FilesBelow(const fs::path& root) {
  std::vector<fs::path> files;
  for (auto it =
           fs::recursive_directory_iterator(root, fs::directory_options::follow_directory_symlink);
       it != fs::recursive_directory_iterator(); ++it) {
    if (it->path().filename().string().starts_with(".")) {
      if (it->is_directory()) it.disable_recursion_pending();
    } else if (it->is_regular_file()) {
      files.push_back(it->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The file `root`, or the files below the directory `root`.
std::vector<fs::path> FilesOf(const std::string& root) {
  try {
    if (fs::is_directory(root)) return FilesBelow(root);
    if (fs::is_regular_file(root)) return {root};
    const char* found = fs::exists(root) ? " is no regular file" : " does not exist";
    Fail(ExitCode::kData, "data.path: ", root, found, kAdvice);
  } catch (const fs::filesystem_error& error) {
    Fail(ExitCode::kData, "data.path: ", root, ": cannot read ", error.path1().string(), ": ",
         error.code().message(), kAdvice);
  }
}

// End of the piece that starts at `begin`: after the last line end within the limit, or at the
// limit.
size_t PieceEnd(const std::string& bytes, size_t begin, size_t limit) {
  if (bytes.size() - begin <= limit) return bytes.size();
  const size_t newline = bytes.rfind('\n', begin + limit - 1);
  return newline == std::string::npos || newline < begin ? begin + limit : newline + 1;
}

}  // namespace

void TextConfig::Visit(ConfigVisitor& v) {
  v.Key("path", path, "text file, or directory of text files; bytes are tokens");
  v.Key("held_out", held_out, "share of the text that is held out, by content hash", Range{0, 0.9});
  v.Key("piece_bytes", piece_bytes, "the held-out split falls on pieces of at most this size",
        Range{64, 1 << 30});
  v.Key("documents", documents, "rows keep documents apart; false = one stream of text");
  v.Key("random", random, "vocabulary of uniformly random tokens, instead of text: for timing",
        Range{0, 1 << 24});
}

Text::Text(const TextConfig& config) : path_(config.path) {
  const std::vector<fs::path> files = FilesOf(path_);
  for (const fs::path& file : files) {
    const std::string bytes = ReadFile(file.string());
    Part* previous = nullptr;  // the part that the last piece of this file went to
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t end = PieceEnd(bytes, begin, static_cast<size_t>(config.piece_bytes));
      const uint64_t hash = XXH3_64bits(bytes.data() + begin, end - begin);
      Part& part = static_cast<double>(hash >> 11) * 0x1p-53 < config.held_out ? held_out_ : train_;
      if (&part != previous) part.starts.push_back(static_cast<int64_t>(part.bytes.size()));
      part.bytes.append(bytes, begin, end - begin);
      previous = &part;
      begin = end;
    }
  }
  if (train_.bytes.empty() && held_out_.bytes.empty()) {
    Fail(ExitCode::kData, "data.path: ", path_, " holds no text, only ", files.size(),
         " empty files", kAdvice);
  }
}

TextSource::TextSource(const Text& text, Split split, uint64_t seed, int64_t length, bool documents)
    : part_(text.part(split)),
      shuffle_(split == Split::kTrain),
      documents_(documents),
      seed_(seed),
      length_(length) {
  const int64_t bytes = static_cast<int64_t>(part_.bytes.size());
  windows_ = (bytes - 1) / length;
  if (bytes < length + 1) {
    Fail(ExitCode::kData, text.path(), ": the ", shuffle_ ? "training" : "held-out", " part has ",
         bytes, " bytes, one row needs ", length + 1, "; give more text, ",
         shuffle_ ? "a smaller train.length or data.held_out"
                  : "a larger data.held_out, or a smaller data.piece_bytes or train.length");
  }
}

void TextSource::Fill(int64_t index, const Row& row) const {
  Check(row.length == length_, "text: rows of ", row.length, " tokens asked for, made for ",
        length_);
  const int64_t window =
      shuffle_ ? Permute(seed_, index / windows_, windows_, index % windows_) : index % windows_;
  const int64_t begin = window * length_;
  const auto* bytes = reinterpret_cast<const unsigned char*>(part_.bytes.data());
  auto next = std::upper_bound(part_.starts.begin(), part_.starts.end(), begin);
  int64_t start = 0;  // within the row
  for (int64_t t = 0; t < row.length; ++t) {
    row.tokens[t] = bytes[begin + t];
    row.Begin(t, start);
    const bool last =
        documents_ && next != part_.starts.end() && *next == begin + t + 1;  // of its document
    row.labels[t] = last ? kIgnoreLabel : bytes[begin + t + 1];
    if (last) {
      start = t + 1;
      ++next;
    }
  }
}

void RandomSource::Fill(int64_t index, const Row& row) const {
  Rng rng(seed_, Purpose::kTrainData, static_cast<uint64_t>(index));
  int32_t token = static_cast<int32_t>(rng.Below(static_cast<uint32_t>(vocab_)));
  for (int64_t t = 0; t < row.length; ++t) {
    row.tokens[t] = token;
    row.labels[t] = token = static_cast<int32_t>(rng.Below(static_cast<uint32_t>(vocab_)));
    row.Begin(t, 0);
  }
}

int64_t Permute(uint64_t seed, int64_t epoch, int64_t n, int64_t i) {
  const int half_bits =
      std::max(1, (static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1))) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t x = static_cast<uint64_t>(i);
  do {
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      Rng rng(seed + round, Purpose::kShuffle, static_cast<uint64_t>(epoch) << 32 ^ right);
      const uint64_t mixed = left ^ (rng.Next() & mask);
      left = right;
      right = mixed;
    }
    x = left << half_bits | right;
  } while (x >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(x);
}

}  // namespace weft
