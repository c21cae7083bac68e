#pragma once
// What the CUDA kernels of gated_delta share: sizes, rows of tensors, the inverse of a chunk.

#include "kernels/base/cuda.cuh"
#include "kernels/elementary/elementary.h"
#include "kernels/gated_delta/gated_delta_cuda.h"

namespace weft::gated_delta {

inline constexpr int kC = static_cast<int>(kGatedDeltaChunk);

// Smaller written rows than these matter to nothing, and dbeta divides by beta.
inline constexpr float kLeastBeta = 1e-12f;

// x(i, j, k) is where index (i, j, k) of the first three dimensions begins.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride[3] = {};
  Rows() = default;
  explicit Rows(const TensorView& x)
      : data(x.Data<T>()), stride{x.stride(0), x.stride(1), x.stride(2)} {}
  __device__ T* operator()(int i, int j, int k) const {
    return data + i * stride[0] + j * stride[1] + k * stride[2];
  }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

struct Sizes {
  int B, T, H, K, V;
  int chunks;
  float scale;
  float erase;  // 1 or 0: a factor of all that is read of the state before a write
  const int* doc_start;
  int64_t doc_stride;

  explicit Sizes(const GatedDeltaFwd& f)
      : B(static_cast<int>(f.v.dim(0))),
        T(static_cast<int>(f.v.dim(1))),
        H(static_cast<int>(f.v.dim(2))),
        K(static_cast<int>(f.q.dim(3))),
        V(static_cast<int>(f.v.dim(3))),
        chunks(static_cast<int>(GatedDeltaChunks(T))),
        scale(static_cast<float>(f.scale)),
        erase(f.erase ? 1 : 0),
        doc_start(f.doc_start.Data<int>()),
        doc_stride(f.doc_start.defined() ? f.doc_start.stride(0) : 0) {}
  int heads() const { return B * H; }
  __host__ __device__ int tiles() const { return B * chunks * H; }  // chunks of all heads
  __device__ bool StartsDocument(int b, int t) const {
    return doc_start && t > 0 && doc_start[b * doc_stride + t] == t;
  }
};

// One chunk of one head; index is that of [B, chunks, H].
struct Chunk {
  int b, n, h, begin, count;
  __device__ Chunk(const Sizes& s, int b, int n, int h)
      : b(b), n(n), h(h), begin(n * kC), count(min(kC, s.T - begin)) {}
  __device__ Chunk(const Sizes& s, int index)
      : Chunk(s, index / s.H / s.chunks, index / s.H % s.chunks, index % s.H) {}
  __device__ int Index(const Sizes& s) const { return (b * s.chunks + n) * s.H + h; }
};

constexpr float kMostRate = 3e38f;

// Of a head whose gates are projections.
struct HeadGates {
  float rate = 0, dt_bias = 0;  // rate = exp(a_log), finite: nothing decays where softplus is 0
  __device__ float LogA(float gate_a) const { return -rate * DeviceSoftplus(gate_a + dt_bias); }
};

// What the forward reads and writes, X the type of activations.
template <class X>
struct Forward : Sizes {
  Rows<const X> q, k, v;
  Rows<const float> beta, log_a;
  Rows<const X> gate_a, gate_b;
  const float *a_log, *dt_bias;
  float beta_scale;
  int beta_count, log_a_count, doc_start_count;  // how many tokens have one: T or 0
  Rows<const float> initial;
  Rows<X> y, states;
  Rows<float> final_state;

  explicit Forward(const GatedDeltaFwd& f)
      : Sizes(f),
        q(f.q),
        k(f.k),
        v(f.v),
        beta(f.beta),
        log_a(f.log_a),
        gate_a(f.gate_a),
        gate_b(f.gate_b),
        a_log(f.a_log.Data<float>()),
        dt_bias(f.dt_bias.Data<float>()),
        beta_scale(static_cast<float>(f.beta_scale)),
        beta_count(beta ? T : 0),
        log_a_count(log_a ? T : 0),
        doc_start_count(doc_start ? T : 0),
        initial(f.initial),
        y(f.y),
        states(f.states),
        final_state(f.final_state) {}
  __device__ HeadGates Head(int h) const {
    if (!gate_a) return {};
    const float rate = expf(a_log[h]);
    return {rate > kMostRate ? kMostRate : rate, dt_bias[h]};  // NaN stays
  }
  // Also of tokens behind the last.
  __device__ float Beta(int b, int t, int h) const {
    if (gate_b && t < this->T) return beta_scale * DeviceSigmoid(ToFloat(*gate_b(b, t, h)));
    return t < beta_count ? *beta(b, t, h) : 1;
  }
  __device__ float LogA(int b, int t, int h) const {
    if (gate_a && t < this->T) return Head(h).LogA(ToFloat(*gate_a(b, t, h)));
    return t < log_a_count ? *log_a(b, t, h) : 0;
  }
};

template <class X>
struct Backward : Forward<X> {
  Rows<const X> dy;
  Rows<const float> dfinal;
  Rows<X> dq, dk, dv;
  Rows<float> dbeta, dlog_a, dinitial;
  Rows<X> dgate_a, dgate_b;
  bool add_dq, add_dk, add_dv, add_dbeta, add_dlog_a, add_dinitial, add_dgate_a, add_dgate_b;

  explicit Backward(const GatedDeltaBwd& g)
      : Forward<X>(g.fwd),
        dy(g.dy),
        dfinal(g.dfinal),
        dq(g.dq),
        dk(g.dk),
        dv(g.dv),
        dbeta(g.dbeta),
        dlog_a(g.dlog_a),
        dinitial(g.dinitial),
        dgate_a(g.dgate_a),
        dgate_b(g.dgate_b),
        add_dq(g.dq.accumulate),
        add_dk(g.dk.accumulate),
        add_dv(g.dv.accumulate),
        add_dbeta(g.dbeta.accumulate),
        add_dlog_a(g.dlog_a.accumulate),
        add_dinitial(g.dinitial.accumulate),
        add_dgate_a(g.dgate_a.accumulate),
        add_dgate_b(g.dgate_b.accumulate) {}
  // Stores the gradients of a token's gates, whose projections are a_t and b_t where there are any;
  // returns what they add to da_log and ddt_bias. 1 - sigmoid(b) = sigmoid(-b) keeps its accuracy
  // for large b.
  __device__ float2 PutGates(int b, int t, int h, float dlog_a_t, float dbeta_t, float a_t,
                             float b_t) const {
    if (!this->gate_a) {
      if (dlog_a) PutFloat(*dlog_a(b, t, h), dlog_a_t, add_dlog_a);
      if (dbeta) PutFloat(*dbeta(b, t, h), dbeta_t, add_dbeta);
      return {};
    }
    const HeadGates head = this->Head(h);
    const float dz = -dlog_a_t * head.rate * DeviceSigmoid(a_t + head.dt_bias);
    const float beta_t = this->beta_scale * DeviceSigmoid(b_t);
    PutFloat(*dgate_a(b, t, h), dz, add_dgate_a);
    PutFloat(*dgate_b(b, t, h), dbeta_t * beta_t * DeviceSigmoid(-b_t), add_dgate_b);
    return {dlog_a_t * head.LogA(a_t), dz};
  }
  __device__ float2 PutGates(int b, int t, int h, float dlog_a_t, float dbeta_t) const {
    return this->gate_a ? PutGates(b, t, h, dlog_a_t, dbeta_t, ToFloat(*this->gate_a(b, t, h)),
                                   ToFloat(*this->gate_b(b, t, h)))
                        : PutGates(b, t, h, dlog_a_t, dbeta_t, 0, 0);
  }
};

// Cuts scratch memory into arrays. With null memory it only counts.
class Cutter {
 public:
  explicit Cutter(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}
  template <class T>
  T* Cut(int64_t n) {
    std::byte* at = memory_ + bytes_;
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  int64_t bytes_ = 0;
};

// What the chunks of all heads add to da_log and ddt_bias, [B, chunks, H] each.
struct GateSums {
  float *a_log = nullptr, *dt_bias = nullptr;

  GateSums() = default;
  GateSums(Cutter& cut, const Sizes& s) : GateSums(cut.Cut<float>(int64_t{2} * s.tiles()), s) {}
  __host__ __device__ GateSums(float* memory, const Sizes& s)
      : a_log(memory), dt_bias(memory + s.tiles()) {}
  __device__ void Put(int chunk, float2 sums) const {
    a_log[chunk] = sums.x;
    dt_bias[chunk] = sums.y;
  }
};
// da_log and ddt_bias, where gates are projections.
void AddUp(CudaStream&, const GatedDeltaBwd&, const GateSums&);

// x = column j of (I + N)^-1, where N is strictly lower triangular with rows of kSize + 4 floats.
template <int kSize>
__device__ void InverseColumn(const float* n, int j, float (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    float sum[4] = {};
#pragma unroll
    for (int l = 0; l < i; l += 4) {
      const float4 row = *reinterpret_cast<const float4*>(n + i * (kSize + 4) + l);
      sum[0] += row.x * x[l];
      if (l + 1 < i) sum[1] += row.y * x[l + 1];
      if (l + 2 < i) sum[2] += row.z * x[l + 2];
      if (l + 3 < i) sum[3] += row.w * x[l + 3];
    }
    x[i] = (i == j ? 1.f : 0.f) - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

}  // namespace weft::gated_delta
