#pragma once
// Causal softmax attention with grouped queries, a sliding window and document boundaries (Vaswani
// et al. 2017, eq. 1, arXiv:1706.03762; grouped queries: arXiv:2305.13245; blocked backward: Dao et
// al. 2022, arXiv:2205.14135, B.2).
//
//   s_j = scale <q[b, i, h], k[b, j, g]>       g = h / (H / Hkv)
//   lse[b, h, i] = log sum_j e^s_j
//   y[b, i, h] = sum_j e^(s_j - lse) v[b, j, g]
//
// over the keys j that query i sees. Queries are the last Tq of the Tk tokens:
//
//   p = i + Tk - Tq                            position of query i
//   max(doc_start[b, p], p - window + 1) <= j <= p
//
// Tq < Tk is decoding with a key-value cache. No T x T matrix is kept: a strip of a few rows is, so
// memory is O(Tk) per thread. On the CPU the bits of y[b, i] depend on the keys and values up to p
// alone, not on Tq, Tk, H or B.

#include "kernels/base/op.h"

namespace weft {

struct AttentionFwd {
  TensorView q;          // [B, Tq, H, K]
  TensorView k;          // [B, Tk, Hkv, K]    Tk >= Tq, H a multiple of Hkv
  TensorView v;          // [B, Tk, Hkv, V]
  TensorView doc_start;  // i32 [B, Tk]        index of the first token of t's document:
                         // non-decreasing in t,
                         //                    0 <= doc_start[b, t] <= t; left out = one document
  TensorView y;          // [B, Tq, H, V]
  TensorView lse;        // [B, H, Tq]
  double scale = 1;      // usually K^(-1/2)
  int64_t window = 0;    // keys that a query sees, itself included; 0 = all

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.In("q", s.q);
    visit.In("k", s.k);
    visit.In("v", s.v);
    visit.In("doc_start", s.doc_start);
    visit.Out("y", s.y);
    visit.Saved("lse", s.lse);
  }
  void Check() const;
  double Pairs() const;  // (query, key) pairs of all heads that the window lets through, documents
                         // not subtracted
  double Flops() const { return 2 * Pairs() * static_cast<double>(k.dim(3) + v.dim(3)); }
};

struct AttentionBwd {
  AttentionFwd fwd;
  TensorView dy;  // [B, Tq, H, V]
  Grad dq, dk, dv;

  template <class Self, class Visitor>
  static void Visit(Self& s, Visitor&& visit) {
    visit.Upstream("dy", s.dy, s.fwd.y);
    visit.Grad("dq", s.dq, s.fwd.q);
    visit.Grad("dk", s.dk, s.fwd.k);
    visit.Grad("dv", s.dv, s.fwd.v);
  }
  void Check() const;
  double Flops() const {
    return 2 * fwd.Pairs() * static_cast<double>(3 * fwd.k.dim(3) + 2 * fwd.v.dim(3));
  }
};

void Run(CpuStream&, const AttentionFwd&);
void Run(CpuStream&, const AttentionBwd&);
void Run(CudaStream&, const AttentionFwd&);
void Run(CudaStream&, const AttentionBwd&);

}  // namespace weft
