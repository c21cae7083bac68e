#pragma once
// Softmax cross-entropy over a vocabulary, with optional z-loss (PaLM, section 5;
// arXiv:2204.02311).
//
//   lse_n    = ln sum_v e^logits[n, v]
//   nll_n    = lse_n - logits[n, label_n]         nats; 0 where label_n is kNoLoss
//   loss     = sum_n (nll_n + z_loss lse_n^2) / denominator
//   mean_nll = sum_n nll_n / denominator          both over the labelled n
//
//   dlogits  = dloss / denominator (p (1 + 2 z_loss lse) - 1[v = label])
//   p        = e^(logits - lse)
//
// A label outside [0, V) other than kNoLoss is an error that names it, found when the op runs; on a
// GPU, which cannot stop there, its nll is NaN. NaN and inf in the logits of a labelled row reach
// nll and loss.

#include "kernels/base/op.h"

namespace weft {

inline constexpr int32_t kNoLoss = -100;

struct CrossEntropyFwd {
  TensorView logits;   // [N, V]
  TensorView labels;   // i32 [N]
  TensorView nll;      // [N]
  TensorView lse;      // [N]  0 where there is no loss
  TensorView correct;  // [N]  1 where the label has the largest logit (the first of equals), else 0
  TensorView loss, mean_nll;  // [1]
  TensorView denominator;     // [1]: the number of labelled rows of the batch, at least 1
  double z_loss = 0;
  bool accumulate = false;  // add to loss and mean_nll: rows of one batch that come in pieces

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.In("logits", s.logits);
    v.In("labels", s.labels);
    v.In("denominator", s.denominator);
    v.Out("nll", s.nll);
    v.Saved("lse", s.lse);
    v.Saved("correct", s.correct);
    v.Out("loss", s.loss);
    v.Out("mean_nll", s.mean_nll);
  }
  void Check() const;
  double Flops() const { return 0; }
};

struct CrossEntropyBwd {
  CrossEntropyFwd fwd;
  TensorView dloss;  // [1], may be left out: 1
  Grad dlogits;      // may be the memory of logits, when it is overwritten

  template <class Self, class V>
  static void Visit(Self& s, V&& v) {
    v.Upstream("dloss", s.dloss, s.fwd.loss);
    v.Grad("dlogits", s.dlogits, s.fwd.logits);
  }
  void Check() const;
  double Flops() const { return 0; }
};

void Run(CpuStream&, const CrossEntropyFwd&);
void Run(CpuStream&, const CrossEntropyBwd&);
void Run(CudaStream&, const CrossEntropyFwd&);
void Run(CudaStream&, const CrossEntropyBwd&);

}  // namespace weft
