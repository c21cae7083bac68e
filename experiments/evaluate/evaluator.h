#pragma once
// Evaluation of a model: strict accuracy on fresh samples of a task, loss of held-out text.

#include "arch/blocks/model.h"
#include "experiments/data/batch.h"
#include "experiments/data/source.h"

namespace weft {

struct Score {
  double nll = 0;          // nats per label
  double accuracy = 0;     // share of labels that are the most likely token
  double exact_match = 0;  // share of samples, of text documents, all of whose labels are
  int64_t labels = 0, samples = 0;
  double BitsPerByte() const { return nll / 0.69314718055994530942; }  // one label per byte
};

class Evaluator {
 public:
  // Passes have at most `tokens` tokens, or one row. Their activations are in `arena`, which is
  // reset for each.
  Evaluator(const Model& model, Stream& stream, Arena& arena, DType dtype, int64_t tokens)
      : model_(model), c_{stream, arena, dtype}, tokens_(tokens) {}

  // One pass over the first `rows` rows of a batch that lies on the host, with their denominator.
  // What it returns is in `c`'s arena.
  static Model::Loss Pass(const Model& model, Context& c, const Batch& batch, int64_t rows);

  // The largest pass of such an evaluation.
  struct Shape {
    int64_t rows, length;
  };
  static Shape TaskShape(const Task& task, int64_t difficulty, int64_t tokens);
  static Shape TextShape(int64_t length, int64_t rows, int64_t tokens);

  // The answers of the evaluation samples 0, ..., samples - 1 of that difficulty, without
  // intermediate supervision.
  Score OnTask(const Task& task, uint64_t seed, int64_t difficulty, int64_t samples);
  // Rows 0, ..., rows - 1 of held-out text.
  Score OnText(const TextSource& source, int64_t length, int64_t rows);

 private:
  // Adds what the batch's first `rows` rows have, shares as counts.
  void Add(Batch& batch, int64_t rows, Score& sums);
  const Model& model_;
  Context c_;
  int64_t tokens_;
};

}  // namespace weft
