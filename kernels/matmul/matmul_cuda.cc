#ifdef WEFT_CUDA

// Matrix products through cuBLASLt. Of the algorithms that it proposes for a product, those that
// give the same bits are timed, so that the choice never changes a result.

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <sstream>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/choices.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/cuda_library.h"
#include "kernels/base/cuda_stream.h"
#include "kernels/matmul/matmul.h"

namespace weft {
namespace {

using Algorithm = cublasLtMatmulAlgo_t;

constexpr int64_t kWorkspace = 32 << 20;
constexpr int64_t kCounters = 1024, kCounterBytes = 256;  // of products in a graph
constexpr int kProposals = 8;
constexpr int kRounds = 3;        // of timing
constexpr double kRivals = 1.04;  // what is within this of the fastest is timed again
constexpr int64_t kSample = 256;  // rows, and bytes of each, that are compared

// D (+)= op(A) op(B), where op transposes or does nothing. Rank 2, rows may be strided.
struct Product {
  TensorView a, b, d;
  bool transpose_a, transpose_b, accumulate;
};

int64_t RowStride(const TensorView& view) { return std::max(view.stride(0), view.dim(1)); }

// Of the address, in bytes, as far as kernels care.
int64_t Alignment(const TensorView& view) {
  const auto address = reinterpret_cast<uintptr_t>(view.data());
  return static_cast<int64_t>(std::min<uintptr_t>(256, address & (~address + 1)));
}

// All that an algorithm may depend on.
using Key = std::array<int64_t, 15>;

Key KeyOf(const Product& p) {
  const auto type = [](const TensorView& v) { return static_cast<int64_t>(v.dtype()); };
  return {type(p.a),      type(p.d),      p.transpose_a,  p.transpose_b,  p.accumulate,
          p.a.dim(0),     p.a.dim(1),     p.b.dim(0),     p.b.dim(1),     RowStride(p.a),
          RowStride(p.b), RowStride(p.d), Alignment(p.a), Alignment(p.b), Alignment(p.d)};
}

std::string ToText(const Key& key) {
  std::ostringstream out;
  for (const int64_t k : key) out << k << ' ';
  return out.str();
}

// Bytes from the first element to behind the last.
int64_t Extent(const TensorView& view) {
  return ((view.dim(0) - 1) * RowStride(view) + view.dim(1)) * SizeOf(view.dtype());
}

// The upper left corner of what lies at `data` in the layout of `view`.
std::vector<std::byte> Sample(CudaStream& stream, const TensorView& view, const void* data) {
  const int64_t element = SizeOf(view.dtype());
  const auto pitch = static_cast<size_t>(RowStride(view) * element),
             rows = static_cast<size_t>(std::min(view.dim(0), kSample)),
             width = static_cast<size_t>(std::min(view.dim(1) * element, kSample));
  std::vector<std::byte> sample(rows * width);
  CudaCheck(cudaMemcpy2DAsync(sample.data(), width, data, pitch, width, rows,
                              cudaMemcpyDeviceToHost, stream.handle()),
            "cudaMemcpy2DAsync");
  stream.Synchronize();
  return sample;
}

void LtCheck(cublasStatus_t status, const Product& p, const char* what) {
  LibraryCheck(status == CUBLAS_STATUS_SUCCESS, status == CUBLAS_STATUS_ALLOC_FAILED,
               "matmul: ", what, " of ", p.a.ToString(), p.transpose_a ? " transposed" : "",
               " with ", p.b.ToString(), p.transpose_b ? " transposed" : "", " into ",
               p.d.ToString(), ": cuBLASLt fails with status ", static_cast<int>(status));
}

cudaDataType_t TypeOf(const TensorView& view) {
  if (view.dtype() == DType::kF32) return CUDA_R_32F;
  if (view.dtype() == DType::kBF16) return CUDA_R_16BF;
  Fail(ExitCode::kFailure, "matmul: ", view.name(), ": expected f32 or bf16 on a GPU, found ",
       view.ToString());
}

// cuBLASLt's matrices are column-major: ours, transposed. So D^T = op(B)^T op(A)^T.
struct Descriptors {
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, d;

  explicit Descriptors(const Product& p) {
    // Sums in f32; TF32 would have to be asked for.
    LtCheck(cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), p, "description");
    const auto transpose = [&](cublasLtMatmulDescAttributes_t which, bool wanted) {
      const cublasOperation_t op = wanted ? CUBLAS_OP_T : CUBLAS_OP_N;
      LtCheck(cublasLtMatmulDescSetAttribute(&product, which, &op, sizeof op), p, "description");
    };
    transpose(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b);
    transpose(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a);
    const auto layout = [&](const TensorView& v, cublasLtMatrixLayoutOpaque_t& out) {
      LtCheck(cublasLtMatrixLayoutInit(&out, TypeOf(v), static_cast<uint64_t>(v.dim(1)),
                                       static_cast<uint64_t>(v.dim(0)), RowStride(v)),
              p, "layout");
    };
    layout(p.a, a);
    layout(p.b, b);
    layout(p.d, d);
  }
};

int SplitsOf(const Algorithm& algorithm) {
  int splits = 0;
  size_t written;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                       sizeof splits, &written);
  return splits;
}

// What a stream keeps: the library's handle and how every product seen so far is done.
class Products {
 public:
  Products() : choices_(NameOfChoices()) {
    const cublasStatus_t status = cublasLtCreate(&handle_);
    LibraryCheck(status == CUBLAS_STATUS_SUCCESS, status == CUBLAS_STATUS_ALLOC_FAILED,
                 "matmul: cublasLtCreate fails with status ", static_cast<int>(status));
    CudaCheck(cudaStreamCreateWithFlags(&aside_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Products() {
    cudaStreamDestroy(aside_);
    cublasLtDestroy(handle_);
  }
  Products(const Products&) = delete;

  void Run(CudaStream& stream, const Product& p) {
    const Key key = KeyOf(p);
    const auto known = plans_.find(key);
    Plan plan = known == plans_.end() ? Choose(stream, p, key) : known->second;
    if (!counters_ && !stream.capturing())
      counters_.emplace(Arena::Mode::kPlain, kCounters * kCounterBytes, Memory::kDevice);
    LtCheck(stream.capturing() ? Capture(stream, p, plan)
                               : Launch(stream, p, plan.descriptors, plan.algorithm, p.d.data()),
            p, "product");
  }

 private:
  struct Plan {
    Descriptors descriptors;
    Algorithm algorithm;
  };

  static std::string NameOfChoices() {
    int device = 0;
    CudaCheck(cudaGetDevice(&device), "cudaGetDevice");
    return Cat("matmul-", CudaDeviceName(device), "-cublasLt", cublasLtGetVersion());
  }

  Plan Choose(CudaStream& stream, const Product& p, const Key& key) {
    Plan plan{Descriptors(p), {}};
    if (!Recall(key, plan)) {
      const std::vector<Algorithm> proposals = Propose(p, plan.descriptors);
      plan.algorithm = proposals.front();
      // Where nothing can be timed, a later run will.
      if (stream.capturing() || (p.accumulate && Extent(p.d) > CudaMemory().free)) return plan;
      plan.algorithm = Fastest(stream, p, plan.descriptors, proposals);
      std::ostringstream text;
      for (const uint64_t word : plan.algorithm.data) text << std::hex << word << ' ';
      choices_.Add(ToText(key), text.str());
    }
    plans_.emplace(key, plan);
    return plan;
  }

  bool Recall(const Key& key, Plan& plan) {
    std::istringstream text(choices_.Find(ToText(key)));
    for (uint64_t& word : plan.algorithm.data) text >> std::hex >> word;
    Descriptors& d = plan.descriptors;
    cublasLtMatmulHeuristicResult_t result;
    return text &&
           cublasLtMatmulAlgoCheck(handle_, &d.product, &d.b, &d.a, &d.d, &d.d, &plan.algorithm,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspace;
  }

  // The proposals that cut the sum into as many parts as the first: a choice that fits product and
  // device as well, and is the same in every process.
  std::vector<Algorithm> Propose(const Product& p, Descriptors& d) {
    cublasLtMatmulPreferenceOpaque_t preference;
    LtCheck(cublasLtMatmulPreferenceInit(&preference), p, "preference");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
      LtCheck(cublasLtMatmulPreferenceSetAttribute(&preference, which, &value, sizeof value), p,
              "preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace});
    // No sums in place: their order is not fixed. None in bf16 either.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(Alignment(p.b)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(Alignment(p.a)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(Alignment(p.d)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(Alignment(p.d)));
    std::array<cublasLtMatmulHeuristicResult_t, kProposals> results;
    int found = 0;
    LtCheck(cublasLtMatmulAlgoGetHeuristic(handle_, &d.product, &d.b, &d.a, &d.d, &d.d, &preference,
                                           kProposals, results.data(), &found),
            p, "choice of an algorithm for the product");
    std::vector<Algorithm> all;
    for (int i = 0; i < found; ++i) all.push_back(results[static_cast<size_t>(i)].algo);
    const int splits = SplitsOf(all.front());
    std::erase_if(all, [&](const Algorithm& one) { return SplitsOf(one) != splits; });
    return all;
  }

  cublasStatus_t Launch(CudaStream& stream, const Product& p, Descriptors& d,
                        const Algorithm& algorithm, void* out) {
    return Launch(stream.handle(), p, d, algorithm, out, stream.Scratch(kWorkspace), kWorkspace);
  }
  cublasStatus_t Launch(cudaStream_t stream, const Product& p, Descriptors& d,
                        const Algorithm& algorithm, void* out, void* workspace, int64_t bytes) {
    const float one = 1, beta = p.accumulate ? 1 : 0;
    return cublasLtMatmul(handle_, &d.product, &one, p.b.data(), &d.b, p.a.data(), &d.a, &beta,
                          p.d.data(), &d.d, out, &d.d, &algorithm, workspace,
                          static_cast<size_t>(bytes), stream);
  }

  // Many algorithms hand out tiles by a counter in the workspace and clear it first, in a graph by
  // a node that holds up the product by 5 us. So there each product has a counter of its own, and
  // the graph clears them all before its first product.
  cublasStatus_t Capture(CudaStream& stream, const Product& p, Plan& plan) {
    Descriptors& d = plan.descriptors;
    cublasLtMatmulHeuristicResult_t needs;
    LtCheck(cublasLtMatmulAlgoCheck(handle_, &d.product, &d.b, &d.a, &d.d, &d.d, &plan.algorithm,
                                    &needs),
            p, "check");
    Place place(stream);
    if (place.graph_id != graph_id_) graph_id_ = place.graph_id, counters_taken_ = 0;
    if (needs.workspaceSize > kCounterBytes || counters_taken_ == kCounters || !counters_)
      return Launch(stream, p, d, plan.algorithm, p.d.data());
    if (counters_taken_ == 0) stream.Zero(counters_->base(), kCounters * kCounterBytes);
    std::byte* const counter = counters_->base() + kCounterBytes * counters_taken_++;
    CudaCheck(cudaStreamBeginCapture(aside_, cudaStreamCaptureModeThreadLocal), "begin of capture");
    const cublasStatus_t status =
        Launch(aside_, p, d, plan.algorithm, p.d.data(), counter, kCounterBytes);
    cudaGraph_t product = nullptr;
    CudaCheck(cudaStreamEndCapture(aside_, &product), "end of capture");
    size_t n = 0;
    CudaCheck(cudaGraphGetNodes(product, nullptr, &n), "nodes of a product");
    std::vector<cudaGraphNode_t> nodes(n);
    CudaCheck(cudaGraphGetNodes(product, nodes.data(), &n), "nodes of a product");
    for (const cudaGraphNode_t node : nodes) {
      if (Clears(node, counter)) CudaCheck(cudaGraphDestroyNode(node), "clearing node");
    }
    Place(stream).Append(stream, product);
    CudaCheck(cudaGraphDestroy(product), "graph of a product");
    return status;
  }

  static bool Clears(cudaGraphNode_t node, const void* memory) {
    cudaGraphNodeType type;
    CudaCheck(cudaGraphNodeGetType(node, &type), "node of a product");
    if (type != cudaGraphNodeTypeMemset) return false;
    cudaMemsetParams params;
    CudaCheck(cudaGraphMemsetNodeGetParams(node, &params), "clearing node");
    return params.dst == memory && params.value == 0;
  }

  // Where the capture of a stream stands.
  struct Place {
    unsigned long long graph_id = 0;
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* last = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    size_t n = 0;

    explicit Place(CudaStream& stream) {
      cudaStreamCaptureStatus status;
      CudaCheck(
          cudaStreamGetCaptureInfo(stream.handle(), &status, &graph_id, &graph, &last, &edges, &n),
          "state of a capture");
    }
    void Append(CudaStream& stream, cudaGraph_t part) {
      cudaGraphNode_t node;
      cudaGraphNodeParams params{};
      params.type = cudaGraphNodeTypeGraph;
      params.graph.graph = part;
      CudaCheck(cudaGraphAddNode(&node, graph, last, edges, n, &params), "node of a product");
      CudaCheck(cudaStreamUpdateCaptureDependencies(stream.handle(), &node, nullptr, 1,
                                                    cudaStreamSetCaptureDependencies),
                "order of a capture");
    }
  };

  Algorithm Fastest(CudaStream& stream, const Product& p, Descriptors& descriptors,
                    const std::vector<Algorithm>& proposals) {
    if (proposals.size() == 1) return proposals.front();
    // What is to be added to must stay: then results go elsewhere.
    std::optional<Arena> elsewhere;
    if (p.accumulate) elsewhere.emplace(Arena::Mode::kPlain, Extent(p.d), Memory::kDevice);
    void* const out = elsewhere ? elsewhere->base() : p.d.data();
    const auto run = [&](const Algorithm& algorithm) {
      return Launch(stream, p, descriptors, algorithm, out);
    };
    struct Rival {
      Algorithm algorithm;
      double ms = 1e9;
    };
    std::vector<Rival> rivals;
    std::vector<std::byte> bits;
    for (const Algorithm& algorithm : proposals) {  // which also loads the kernels
      if (run(algorithm) != CUBLAS_STATUS_SUCCESS) continue;
      std::vector<std::byte> sample = Sample(stream, p.d, out);
      if (rivals.empty())
        bits = std::move(sample);
      else if (sample != bits)
        continue;
      rivals.push_back({algorithm});
    }
    LibraryCheck(!rivals.empty(), false, "matmul: no algorithm of cuBLASLt runs");
    std::array<CudaEvent, kProposals + 1> events;
    for (int round = 0; round < kRounds && rivals.size() > 1; ++round) {
      run(rivals.back().algorithm);  // so that the device is busy when the first is launched
      events[0].Record(stream);
      for (size_t i = 0; i < rivals.size(); ++i) {
        run(rivals[i].algorithm);
        events[i + 1].Record(stream);
      }
      events[rivals.size()].Wait();
      double best = 1e9;
      for (size_t i = 0; i < rivals.size(); ++i) {
        double& ms = rivals[i].ms;
        ms = std::min(ms, events[i + 1].MillisecondsSince(events[i]));
        best = std::min(best, ms);
      }
      std::erase_if(rivals, [&](const Rival& r) { return r.ms > kRivals * best; });
    }
    return std::min_element(rivals.begin(), rivals.end(),
                            [](const Rival& a, const Rival& b) { return a.ms < b.ms; })
        ->algorithm;
  }

  // For graphs: a stream that captures single products, and the counters of the current graph.
  std::optional<Arena> counters_;
  cudaStream_t aside_ = nullptr;
  unsigned long long graph_id_ = 0;
  int64_t counters_taken_ = 0;
  cublasLtHandle_t handle_ = nullptr;
  Choices choices_;
  std::map<Key, Plan> plans_;
};

void Multiply(CudaStream& stream, const Product& p) { stream.Part<Products>().Run(stream, p); }

}  // namespace

void Run(CudaStream& stream, const MatmulFwd& f) {
  Multiply(stream, {f.x.Rows(), f.w, f.y.Rows(), false, true, false});
}

void Run(CudaStream& stream, const MatmulBwd& b) {
  const TensorView dy = b.dy.Rows();
  if (b.dw.defined()) Multiply(stream, {dy, b.fwd.x.Rows(), b.dw, true, false, b.dw.accumulate});
  // dx last: the next op reads it from the cache.
  if (b.dx.defined()) {
    Multiply(stream, {dy, b.fwd.w, b.dx.Rows(), false, false, b.dx.accumulate});
  }
}

}  // namespace weft

#endif
