#pragma once
// Where tokens come from. A row is a pure function of (source, row index), so the data of a run
// does not depend on micro-batches, threads or restarts.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arch/core/config.h"
#include "synth-tasks/core/task.h"

namespace weft {

// One row of a batch, T tokens each. labels[t] is the token to predict after tokens[t], or
// kIgnoreLabel. doc_start[t] is the index of the first token of the document that holds token t,
// and position[t] = t - doc_start[t]; documents do not see each other.
struct Row {
  int32_t* tokens;
  int32_t* labels;
  int32_t* doc_start;
  int32_t* position;
  int64_t length;

  void Begin(int64_t t, int64_t start) const {  // the document of token t begins at `start`
    doc_start[t] = static_cast<int32_t>(start);
    position[t] = static_cast<int32_t>(t - start);
  }
};

class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t vocab() const = 0;
  // Every row is one document: doc_start is 0 everywhere, and mixers need not look at it.
  virtual bool one_document() const { return false; }
  virtual void Fill(int64_t index, const Row& row) const = 0;
};

// Samples of a task, packed whole into rows; what is left of a row is padding without labels. The
// sample that no longer fits is left out by Fill: where lengths vary, the longer are somewhat rarer
// in training than the task draws them.
class TaskSource : public Source {
 public:
  // kAnswers keeps the labels of every sample's answers only: strict evaluation.
  enum class Labels { kAll, kAnswers };
  TaskSource(const Task& task, uint64_t seed, Split split, int64_t difficulty, bool strict,
             Labels labels);
  int64_t vocab() const override { return task_.vocabulary().size(); }
  // Error kUsage when the longest sample does not fit into the row.
  void Fill(int64_t index, const Row& row) const override;
  // Like Fill, but packs the samples first, first + 1, ..., below `end`; returns how many went in.
  int64_t Pack(int64_t first, int64_t end, const Row& row) const;
  // Error kUsage when a row of `length` tokens is too short for some sample of that difficulty.
  static void CheckLength(const Task& task, int64_t difficulty, int64_t length);

 private:
  const Task& task_;
  uint64_t seed_;
  Split split_;
  int64_t difficulty_;
  bool strict_;
  Labels labels_;
};

// Text as bytes. Files are documents; a single file or large files are cut into pieces at line
// ends, and the hash of a piece's bytes alone says whether it is held out.
struct TextConfig {
  std::string path;
  double held_out = 0.05;
  int64_t piece_bytes = 8192;
  bool documents = true;
  int64_t random = 0;
  void Visit(ConfigVisitor& v);
};

class Text {
 public:
  // Reads a file, or every regular file below a directory in the order of their paths; hidden files
  // are left out. Missing, unreadable or empty text: Error kData.
  explicit Text(const TextConfig& config);

  struct Part {
    std::string bytes;
    std::vector<int64_t> starts;  // offsets at which a document begins; the first is 0
  };
  const Part& part(Split split) const { return split == Split::kTrain ? train_ : held_out_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Part train_, held_out_;
};

// Windows of T + 1 bytes of one part of a text. Training rows go through a new permutation of the
// windows in every epoch; evaluation rows go through them in order.
class TextSource : public Source {
 public:
  // Error kData when the part is smaller than one row.
  TextSource(const Text& text, Split split, uint64_t seed, int64_t length, bool documents);
  int64_t vocab() const override { return 256; }
  bool one_document() const override { return !documents_; }
  int64_t windows() const { return windows_; }
  void Fill(int64_t index, const Row& row) const override;

 private:
  const Text::Part& part_;
  bool shuffle_, documents_;
  uint64_t seed_;
  int64_t length_, windows_;
};

// Uniformly random tokens: for timing.
class RandomSource : public Source {
 public:
  RandomSource(int64_t vocab, uint64_t seed) : vocab_(vocab), seed_(seed) {}
  int64_t vocab() const override { return vocab_; }
  bool one_document() const override { return true; }
  void Fill(int64_t index, const Row& row) const override;

 private:
  int64_t vocab_;
  uint64_t seed_;
};

// A bijection of {0, ..., n-1}, different for every (seed, epoch): a Feistel network with cycle
// walking (Black & Rogaway 2002).
int64_t Permute(uint64_t seed, int64_t epoch, int64_t n, int64_t i);

}  // namespace weft
