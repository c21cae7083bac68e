// Attention through cuDNN's graph API: bf16, K and V multiples of 8. Its backward adds to dq in any
// order: the deterministic form writes the gradient of every score, and the own kernels need none
// of that. A plan belongs to one set of shapes and strides. It is built when that set is first seen
// and lives in the stream; later calls, captured ones too, only launch.

#ifdef WEFT_CUDNN

#include "kernels/attention/attention_cuda.h"
#include "kernels/base/cuda_library.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

namespace weft {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using Tensor = fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor>;

constexpr const char* kOp = "attention through cuDNN";

enum Name : int64_t { kQ, kK, kV, kDocStart, kY, kLse, kDy, kDq, kDk, kDv };

struct Operand {
  Name name;
  TensorView view;
};
using Operands = std::vector<Operand>;

Operands OperandsOf(const AttentionFwd& f) {
  Operands all{{kQ, f.q}, {kK, f.k}, {kV, f.v}, {kY, f.y}, {kLse, f.lse}};
  if (f.doc_start.defined()) all.push_back({kDocStart, f.doc_start});
  return all;
}
Operands OperandsOf(const AttentionBwd& b) {
  Operands all = OperandsOf(b.fwd);
  all.insert(all.end(), {{kDy, b.dy}, {kDq, b.dq}, {kDk, b.dk}, {kDv, b.dv}});
  return all;
}

// Activations and their gradients are made of 16-byte packs.
bool Aligned(const Operands& operands) {
  for (const auto& [name, view] : operands) {
    if (view.rank() != 4) continue;
    if (view.dim(3) % 8 != 0) return false;
    if (std::bit_cast<uintptr_t>(view.data()) % 16 != 0) return false;
    for (int d = 0; d < 3; ++d) {
      if (view.dim(d) > 1 && view.stride(d) % 8 != 0) return false;
    }
  }
  return true;
}

// What a plan is made for.
using Signature = std::vector<int64_t>;
Signature SignatureOf(const AttentionFwd& f, const Operands& operands) {
  Signature s{f.window, std::bit_cast<int64_t>(f.scale)};
  for (const auto& [name, view] : operands) {
    s.push_back(name);
    for (int d = 0; d < view.rank(); ++d) s.insert(s.end(), {view.dim(d), view.stride(d)});
  }
  return s;
}

// cuDNN's order of dimensions: [B, H, T, D].
void Describe(Tensor& tensor, Name name, const TensorView& view) {
  tensor.set_uid(name)
      .set_dim({view.dim(0), view.dim(2), view.dim(1), view.dim(3)})
      .set_stride({view.stride(0), view.stride(2), view.stride(1), 1});
}
void DescribeLse(Tensor& tensor, const TensorView& lse) {
  tensor.set_uid(kLse)
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({lse.dim(0), lse.dim(1), lse.dim(2), 1})
      .set_stride({lse.stride(0), lse.stride(1), lse.stride(2), 1});
}
TensorPtr In(Graph& graph, Name name, const TensorView& view) {
  Tensor tensor;
  Describe(tensor, name, view);
  return graph.tensor(tensor);
}
void Out(const TensorPtr& tensor, Name name, const TensorView& view) {
  tensor->set_output(true);
  Describe(*tensor, name, view);
}

// Scores s of keys before the query's document become the least number. cuDNN takes no other mask
// beside a graph of one's own, so the band is part of it.
auto DocumentMask(Graph& graph, const AttentionFwd& f, std::optional<int64_t> window) {
  const int64_t B = f.q.dim(0), T = f.q.dim(1), row = f.doc_start.stride(0);
  const TensorPtr doc_start = graph.tensor(Tensor()
                                               .set_uid(kDocStart)
                                               .set_data_type(fe::DataType_t::INT32)
                                               .set_dim({B, 1, T, 1})
                                               .set_stride({row, row, 1, 1}));
  return [=](std::shared_ptr<Graph> g, TensorPtr s) {
    using Pointwise = fe::graph::Pointwise_attributes;
    namespace modifiers = fe::graph::attn::score_modifiers;
    const TensorPtr key = g->pointwise(s, Pointwise()
                                              .set_mode(fe::PointwiseMode_t::GEN_INDEX)
                                              .set_axis(3)
                                              .set_compute_data_type(fe::DataType_t::INT32));
    key->set_data_type(fe::DataType_t::INT32);
    const TensorPtr seen = g->pointwise(key, doc_start,
                                        Pointwise()
                                            .set_mode(fe::PointwiseMode_t::CMP_GE)
                                            .set_compute_data_type(fe::DataType_t::BOOLEAN));
    seen->set_data_type(fe::DataType_t::BOOLEAN);
    const auto least = std::make_shared<Tensor>(modifiers::get_negative_inf_value());
    s = g->pointwise(s, least, seen, Pointwise().set_mode(fe::PointwiseMode_t::BINARY_SELECT));
    return modifiers::sliding_window_mask(g, s, fe::DiagonalAlignment_t::TOP_LEFT, window, 0, T, T,
                                          nullptr, nullptr);
  };
}

template <class Options>
Options Masked(Graph& graph, const AttentionFwd& f) {
  const int64_t Tq = f.q.dim(1), Tk = f.k.dim(1);
  std::optional<int64_t> window;
  if (f.window > 0 && f.window < Tk) window = f.window;
  Options options;
  options.set_attn_scale(static_cast<float>(f.scale));
  if (f.doc_start.defined()) return options.set_score_mod(DocumentMask(graph, f, window));
  // The backward aligned to the bottom right takes 1.5 times as long.
  options.set_diagonal_alignment(Tq == Tk ? fe::DiagonalAlignment_t::TOP_LEFT
                                          : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
  options.set_diagonal_band_right_bound(0);
  if (window) options.set_diagonal_band_left_bound(static_cast<int>(*window));
  return options;
}

void Define(Graph& graph, const AttentionFwd& f) {
  const auto [y, lse] =
      graph.sdpa(In(graph, kQ, f.q), In(graph, kK, f.k), In(graph, kV, f.v),
                 Masked<fe::graph::SDPA_attributes>(graph, f).set_generate_stats(true));
  Out(y, kY, f.y);
  lse->set_output(true);
  DescribeLse(*lse, f.lse);
}

void Define(Graph& graph, const AttentionBwd& b) {
  const AttentionFwd& f = b.fwd;
  Tensor lse;
  DescribeLse(lse, f.lse);
  const auto [dq, dk, dv] =
      graph.sdpa_backward(In(graph, kQ, f.q), In(graph, kK, f.k), In(graph, kV, f.v),
                          In(graph, kY, f.y), In(graph, kDy, b.dy), graph.tensor(lse),
                          Masked<fe::graph::SDPA_backward_attributes>(graph, f));
  Out(dq, kDq, b.dq);
  Out(dk, kDk, b.dk);
  Out(dv, kDv, b.dv);
}

void CheckGood(fe::error_t error) {
  LibraryCheck(error.is_good(), false, kOp, ": ", error.get_message());
}
void CheckSuccess(cudnnStatus_t status) {
  LibraryCheck(status == CUDNN_STATUS_SUCCESS,
               status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, kOp, ": ",
               cudnnGetErrorString(status));
}

struct Plan {
  Graph graph;
  int64_t workspace = 0;
};

// One stream's plans.
class Plans {
 public:
  Plans() { CheckSuccess(cudnnCreate(&handle_)); }
  ~Plans() {
    plans_.clear();
    cudnnDestroy(handle_);
  }
  Plans(const Plans&) = delete;
  Plans& operator=(const Plans&) = delete;

  // Launches `op`, whose forward is `f`; false where cuDNN has no kernel for it.
  template <class Op>
  bool Run(CudaStream& stream, const AttentionFwd& f, const Op& op) {
    const Operands operands = OperandsOf(op);
    if (!Aligned(operands)) return false;
    const Signature signature = SignatureOf(f, operands);
    auto it = plans_.find(signature);
    if (it == plans_.end()) {
      Check(!stream.capturing(), kOp, ": new shapes during capture; run once before capturing");
      CheckSuccess(cudnnSetStream(handle_, stream.handle()));
      it = plans_.emplace(signature, Build(op)).first;
    }
    Plan* plan = it->second.get();
    if (!plan) return false;
    std::unordered_map<int64_t, void*> pointers;
    for (const auto& [name, view] : operands) pointers[name] = view.data();
    CheckGood(plan->graph.execute(handle_, pointers, stream.Scratch(plan->workspace)));
    return true;
  }

 private:
  template <class Op>
  std::unique_ptr<Plan> Build(const Op& op) {
    auto plan = std::make_unique<Plan>();
    Graph& graph = plan->graph;
    graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    Define(graph, op);
    fe::error_t error = graph.validate();
    if (error.is_good()) error = graph.build_operation_graph(handle_);
    if (error.is_good()) error = graph.create_execution_plans({fe::HeurMode_t::A});
    if (error.is_good()) error = graph.build_plans();
    if (error.code == fe::error_code_t::GRAPH_NOT_SUPPORTED ||
        error.code == fe::error_code_t::HEURISTIC_QUERY_FAILED) {
      return nullptr;
    }
    CheckGood(error);
    CheckGood(graph.get_workspace_size(plan->workspace));
    return plan;
  }

  cudnnHandle_t handle_ = nullptr;
  std::map<Signature, std::unique_ptr<Plan>> plans_;  // null: cuDNN has no kernel
};

// Documents while decoding are left to the own kernels.
bool Applies(const AttentionFwd& f) {
  return f.q.dtype() == DType::kBF16 && (!f.doc_start.defined() || f.q.dim(1) == f.k.dim(1));
}

}  // namespace

bool CudnnAttention(CudaStream& stream, const AttentionFwd& f) {
  return Applies(f) && stream.Part<Plans>().Run(stream, f, f);
}

bool CudnnAttention(CudaStream& stream, const AttentionBwd& op) {
  const AttentionFwd& f = op.fwd;
  if (!Applies(f) || !f.lse.contiguous()) return false;
  if (op.dq.accumulate || op.dk.accumulate || op.dv.accumulate) return false;
  return stream.Part<Plans>().Run(stream, f, op);
}

}  // namespace weft

#endif
