// The chunked algorithm in f32 arithmetic, for any type and any size: the equations of
// gated_delta.md, a 64 x 64 tile per block at a time, intermediate results in scratch memory.

#include "kernels/gated_delta/gated_delta_cuda.cuh"

namespace weft::gated_delta {
namespace {

constexpr int kThreads = 256, kDepth = 16, kLd = kC + 1;
using Square = float[kC][kLd];  // in shared memory

// What kernels leave each other in scratch memory. Squares are [C, C], the rest as said.
struct Chunks {
  float *m, *p, *reads;        // per chunk; reads(i, j) = erase decay(i, j) <k_i, k_j>, j < i
  float *from_start, *to_end;  // per chunk [C]
  float* state = nullptr;      // per head [V, K], of the forward
  // Of the backward:
  Rows<float> u, dv;         // [B, T, H, V]
  float* dstates = nullptr;  // per chunk [V, K]: gradient of S^T after it
  float* gate_sums = nullptr;  // of GateSums, which as a member costs kernels registers

  Chunks(Cutter& cut, const Sizes& s, bool backward) {
    for (float** square : {&m, &p, &reads}) *square = cut.Cut<float>(int64_t{s.tiles()} * kC * kC);
    for (float** row : {&from_start, &to_end}) *row = cut.Cut<float>(int64_t{s.tiles()} * kC);
    if (!backward) {
      state = cut.Cut<float>(int64_t{s.heads()} * s.V * s.K);
      return;
    }
    for (Rows<float>* x : {&u, &dv}) {
      *x = Rows<float>(TensorView(cut.Cut<float>(int64_t{s.B} * s.T * s.H * s.V), DType::kF32,
                                  {s.B, s.T, s.H, s.V}));
    }
    dstates = cut.Cut<float>(int64_t{s.tiles()} * s.V * s.K);
    gate_sums = cut.Cut<float>(int64_t{2} * s.tiles());
  }
  static Chunks Of(CudaStream& stream, const Sizes& s, bool backward) {
    Cutter count;
    Chunks(count, s, backward);
    Cutter cut(stream.Scratch(count.bytes()));
    return Chunks(cut, s, backward);
  }
};

// A thread has rows Row(r) and columns Column(s) of a tile.
__device__ int Row(int r) { return threadIdx.x / 16 + 16 * r; }
__device__ int Column(int s) { return threadIdx.x % 16 + 16 * s; }
using Part = float[4][4];

template <class F>
__device__ void ForEach(Part& part, F&& f) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int s = 0; s < 4; ++s) f(part[r][s], Row(r), Column(s));
  }
}

struct Operands {
  float a[kDepth][kLd], b[kDepth][kLd];
};

// sum(i, j) += sum over l < depth of a(i, l) b(l, j). By the whole block, which is in step
// afterwards only if depth > 0.
template <class A, class B>
__device__ void AddProduct(Operands& shared, Part& sum, int depth, A&& a, B&& b) {
  for (int l0 = 0; l0 < depth; l0 += kDepth) {
    __syncthreads();
    for (int e = threadIdx.x; e < kDepth * kC; e += kThreads) {
      const int la = e % kDepth, lb = e / kC;
      shared.a[la][e / kDepth] = l0 + la < depth ? a(e / kDepth, l0 + la) : 0;
      shared.b[lb][e % kC] = l0 + lb < depth ? b(l0 + lb, e % kC) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kDepth; ++l) {
      float x[4], y[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) x[r] = shared.a[l][Row(r)], y[r] = shared.b[l][Column(r)];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int s = 0; s < 4; ++s) sum[r][s] += x[r] * y[s];
      }
    }
  }
}

// Rows of a chunk as numbers; those that are not there are 0.
template <class T>
struct TokenRows {
  const T* data;
  int64_t stride;
  int count, width;
  template <class Source>
  __device__ TokenRows(const Source& x, const Chunk& c, int width)
      : data(x(c.b, c.begin, c.h)), stride(x.stride[1]), count(c.count), width(width) {}
  __device__ float operator()(int i, int d) const {
    return i < count && d < width ? ToFloat(data[i * stride + d]) : 0;
  }
};
// Rows of S^T.
template <class T>
struct StateRows {
  const T* data;
  int V, K;
  __device__ float operator()(int v, int k) const {
    return v < V && k < K ? ToFloat(data[int64_t{v} * K + k]) : 0;
  }
};

// decay(i, j) = a_{j+1} ... a_i for j <= i, else 0. Products, not exponentials of differences, so
// that all of it is accurate behind a strong decay.
template <class T>
__device__ void Decays(const Forward<T>& f, const Chunk& c, float (&a)[kC], Square& decay) {
  const int j = threadIdx.x;
  if (j < kC) {
    const int t = c.begin + j;
    a[j] = j >= c.count ? 1 : f.StartsDocument(c.b, t) ? 0 : expf(f.LogA(c.b, t, c.h));
  }
  __syncthreads();
  if (j < kC) {
    float product = 1;
    for (int i = 0; i < kC; ++i) {
      if (i > j) product *= a[i];
      decay[i][j] = i < j ? 0 : product;
    }
  }
  __syncthreads();
}

template <class T>
__device__ float Beta(const Forward<T>& f, const Chunk& c, int i) {
  return i < c.count ? fmaxf(f.Beta(c.b, c.begin + i, c.h), kLeastBeta) : 0;
}

// U = M (V - erase from_start (K S)) of 64 columns from v0 on. `state`: S^T. `put` as for ForEach.
template <class T, class S, class F>
__device__ void WrittenRows(const Forward<T>& f, const Chunks& chunks, const Chunk& c, int v0,
                            const StateRows<S>& state, Operands& shared, Square& r, F&& put) {
  const int index = c.Index(f);
  const TokenRows<T> k(f.k, c, f.K), v(f.v, c, f.V);
  const float* from_start = chunks.from_start + int64_t{index} * kC;
  const float* m = chunks.m + int64_t{index} * kC * kC;
  Part part = {};
  AddProduct(shared, part, f.K, k, [&](int x, int j) { return state(v0 + j, x); });
  ForEach(part, [&](float& read, int i, int j) {
    r[i][j] = v(i, v0 + j) - f.erase * from_start[i] * read;
  });
  Part u = {};
  AddProduct(
      shared, u, kC, [&](int i, int l) { return m[i * kC + l]; },
      [&](int l, int j) { return r[l][j]; });
  ForEach(u, put);
}

template <class T, bool kWritten>
__global__ void __launch_bounds__(kThreads) Prepare(const Forward<T> f, const Chunks chunks) {
  __shared__ Operands shared;
  __shared__ Square decay;
  __shared__ __align__(16) float n[kC * (kC + 4)];
  __shared__ float a[kC];
  const Chunk c(f, blockIdx.x);
  const TokenRows<T> q(f.q, c, f.K), k(f.k, c, f.K);
  const int64_t square = int64_t{blockIdx.x} * kC * kC, row = int64_t{blockIdx.x} * kC;
  const int j = threadIdx.x;
  Decays(f, c, a, decay);
  if (j < kC) {
    chunks.from_start[row + j] = a[0] * decay[j][0];
    chunks.to_end[row + j] = decay[kC - 1][j];
  }
  const auto transposed_k = [&](int x, int j) { return k(j, x); };
  Part kk = {}, qk = {};
  AddProduct(shared, kk, f.K, k, transposed_k);
  AddProduct(shared, qk, f.K, q, transposed_k);
  ForEach(kk, [&](float& product, int i, int j) {
    const float reads = i > j ? f.erase * decay[i][j] * product : 0;
    chunks.reads[square + i * kC + j] = reads;
    n[i * (kC + 4) + j] = Beta(f, c, i) * reads;
  });
  ForEach(qk, [&](float& product, int i, int j) {
    chunks.p[square + i * kC + j] = f.scale * decay[i][j] * product;
  });
  __syncthreads();
  if (j < kC) {
    float x[kC];
    InverseColumn(n, j, x);
    const float beta = Beta(f, c, j);
#pragma unroll
    for (int i = 0; i < kC; ++i) chunks.m[square + i * kC + j] = x[i] * beta;
  }
  if constexpr (kWritten) {
    __syncthreads();
    const StateRows<T> state{f.states(c.b, c.n, c.h), f.V, f.K};
    for (int v0 = 0; v0 < f.V; v0 += kC) {
      WrittenRows(f, chunks, c, v0, state, shared, decay, [&](float& u, int i, int j) {
        if (i < c.count && v0 + j < f.V) chunks.u(c.b, c.begin + i, c.h)[v0 + j] = u;
      });
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) Outputs(const Forward<T> f, const Chunks chunks) {
  __shared__ Operands shared;
  __shared__ Square r, u;
  const int b = blockIdx.x / f.H, h = blockIdx.x % f.H, v0 = blockIdx.y * kC;
  const int columns = min(kC, f.V - v0);
  float* state = chunks.state + int64_t{blockIdx.x} * f.V * f.K;
  for (int e = threadIdx.x; e < columns * f.K; e += kThreads) {
    const int v = v0 + e % columns, k = e / columns;
    state[int64_t{v} * f.K + k] = f.initial ? f.initial(b, h, k)[v] : 0;
  }
  __syncthreads();
  for (int chunk = 0; chunk < f.chunks; ++chunk) {
    const Chunk c(f, b, chunk, h);
    const TokenRows<T> q(f.q, c, f.K), k(f.k, c, f.K);
    const int index = c.Index(f);
    const float *from_start = chunks.from_start + int64_t{index} * kC,
                *to_end = chunks.to_end + int64_t{index} * kC,
                *p = chunks.p + int64_t{index} * kC * kC;
    const StateRows<float> rows{state, f.V, f.K};
    if (f.states) {
      T* saved = f.states(b, chunk, h);
      for (int e = threadIdx.x; e < columns * f.K; e += kThreads) {
        const int64_t at = int64_t{v0} * f.K + e;
        saved[at] = FromFloat<T>(state[at]);
      }
    }
    WrittenRows(f, chunks, c, v0, rows, shared, r, [&](float& x, int i, int j) { u[i][j] = x; });
    Part y = {};
    AddProduct(shared, y, f.K, q, [&](int x, int j) { return rows(v0 + j, x); });
    ForEach(y, [&](float& x, int i, int) { x *= f.scale * from_start[i]; });
    AddProduct(
        shared, y, kC, [&](int i, int l) { return p[i * kC + l]; },
        [&](int l, int j) { return u[l][j]; });
    ForEach(y, [&](float& x, int i, int j) {
      if (i < c.count && v0 + j < f.V) f.y(b, c.begin + i, h)[v0 + j] = FromFloat<T>(x);
    });
    for (int k0 = 0; k0 < f.K; k0 += kC) {
      Part change = {};
      AddProduct(
          shared, change, kC, [&](int v, int i) { return u[i][v] * to_end[i]; },
          [&](int i, int j) { return k(i, k0 + j); });
      ForEach(change, [&](float& x, int v, int j) {
        if (v0 + v >= f.V || k0 + j >= f.K) return;
        float& s = state[int64_t{v0 + v} * f.K + k0 + j];
        s = from_start[kC - 1] * s + x;
      });
    }
    __syncthreads();
  }
  if (!f.final_state) return;
  for (int e = threadIdx.x; e < columns * f.K; e += kThreads) {
    const int v = v0 + e % columns, k = e / columns;
    f.final_state(b, h, k)[v] = state[int64_t{v} * f.K + k];
  }
}

// From the last chunk to the first: the gradient of the state, and dV.
template <class T>
__global__ void __launch_bounds__(kThreads)
    StateGradients(const Backward<T> f, const Chunks chunks) {
  __shared__ Operands shared;
  __shared__ Square du, dv;
  const int b = blockIdx.x / f.H, h = blockIdx.x % f.H, v0 = blockIdx.y * kC;
  const int columns = min(kC, f.V - v0);
  const int64_t state_size = int64_t{f.V} * f.K;
  float* last = chunks.dstates + Chunk(f, b, f.chunks - 1, h).Index(f) * state_size;
  for (int e = threadIdx.x; e < columns * f.K; e += kThreads) {
    const int v = v0 + e % columns, k = e / columns;
    last[int64_t{v} * f.K + k] = f.dfinal ? f.dfinal(b, h, k)[v] : 0;
  }
  __syncthreads();
  for (int chunk = f.chunks - 1; chunk >= 0; --chunk) {
    const Chunk c(f, b, chunk, h);
    const TokenRows<T> q(f.q, c, f.K), k(f.k, c, f.K), dy(f.dy, c, f.V);
    const int index = c.Index(f);
    const float *from_start = chunks.from_start + int64_t{index} * kC,
                *to_end = chunks.to_end + int64_t{index} * kC,
                *p = chunks.p + int64_t{index} * kC * kC, *m = chunks.m + int64_t{index} * kC * kC;
    const StateRows<float> dstate{chunks.dstates + index * state_size, f.V, f.K};
    Part part = {};
    AddProduct(shared, part, f.K, k, [&](int x, int j) { return dstate(v0 + j, x); });
    ForEach(part, [&](float& x, int i, int) { x *= to_end[i]; });
    AddProduct(
        shared, part, kC, [&](int j, int i) { return p[i * kC + j]; },
        [&](int i, int v) { return dy(i, v0 + v); });
    ForEach(part, [&](float& x, int i, int v) { du[i][v] = x; });
    Part value = {};
    AddProduct(
        shared, value, kC, [&](int j, int i) { return m[i * kC + j]; },
        [&](int i, int v) { return du[i][v]; });
    ForEach(value, [&](float& x, int i, int v) {
      dv[i][v] = x;
      if (i >= c.count || v0 + v >= f.V) return;
      chunks.dv(b, c.begin + i, h)[v0 + v] = x;
      PutFloat(f.dv(b, c.begin + i, h)[v0 + v], x, f.add_dv);
    });
    float* before =
        chunk > 0 ? chunks.dstates + Chunk(f, b, chunk - 1, h).Index(f) * state_size : nullptr;
    for (int k0 = 0; k0 < f.K; k0 += kC) {
      Part change = {};
      AddProduct(
          shared, change, kC, [&](int v, int i) { return f.scale * from_start[i] * dy(i, v0 + v); },
          [&](int i, int j) { return q(i, k0 + j); });
      AddProduct(
          shared, change, kC, [&](int v, int i) { return -f.erase * from_start[i] * dv[i][v]; },
          [&](int i, int j) { return k(i, k0 + j); });
      ForEach(change, [&](float& x, int j, int i) {
        const int v = v0 + j, k = k0 + i;
        if (v >= f.V || k >= f.K) return;
        const float d = from_start[kC - 1] * dstate(v, k) + x;
        if (before) {
          before[int64_t{v} * f.K + k] = d;
        } else if (f.dinitial) {
          PutFloat(f.dinitial(b, h, k)[v], d, f.add_dinitial);
        }
      });
    }
    __syncthreads();
  }
}

// Gradients of queries, keys and gates: one chunk of one head per block.
struct GradientTiles {
  Operands operands;
  Square pairs, x, y;
  float a[kC], from_state[kC], to_state[kC], dbeta[kC];
};

// Sum over the 16 threads that share a tile's rows.
__device__ float RowSum(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
__device__ float RowDot(const Part& part, int r, int k0, const auto& rows) {
  float sum = 0;
#pragma unroll
  for (int s = 0; s < 4; ++s) sum += part[r][s] * rows(Row(r), k0 + Column(s));
  return RowSum(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) KeyGradients(const Backward<T> f, const Chunks chunks) {
  extern __shared__ __align__(16) char memory[];
  GradientTiles& s = *reinterpret_cast<GradientTiles*>(memory);
  const Chunk c(f, blockIdx.x);
  const TokenRows<T> q(f.q, c, f.K), k(f.k, c, f.K), dy(f.dy, c, f.V);
  const TokenRows<float> u(chunks.u, c, f.V), dv(chunks.dv, c, f.V);
  const StateRows<T> state{f.states(c.b, c.n, c.h), f.V, f.K};
  const StateRows<float> dstate{chunks.dstates + int64_t{blockIdx.x} * f.V * f.K, f.V, f.K};
  const int64_t square = int64_t{blockIdx.x} * kC * kC;
  const float *from_start = chunks.from_start + int64_t{blockIdx.x} * kC,
              *to_end = chunks.to_end + int64_t{blockIdx.x} * kC;

  // x(i, j) = scale decay(i, j) <dy_i, u_j>,  y(i, j) = erase decay(i, j) <dv_i, u_j>,
  // pairs(i, j) = x(i, j) <q_i, k_j> - y(i, j) <k_i, k_j>,  dbeta_i = y(i, i) / beta_i^2
  Decays(f, c, s.a, s.x);
  const auto transposed_u = [&](int l, int j) { return u(j, l); };
  Part x = {}, y = {};
  AddProduct(s.operands, x, f.V, dy, transposed_u);
  AddProduct(s.operands, y, f.V, dv, transposed_u);
#pragma unroll
  for (int e = 0; e < 16; ++e) {
    const int i = Row(e / 4), j = Column(e % 4);
    const float dx = x[e / 4][e % 4], dr = y[e / 4][e % 4], decay = s.x[i][j];
    s.pairs[i][j] = dx * chunks.p[square + i * kC + j] - dr * chunks.reads[square + i * kC + j];
    s.x[i][j] = f.scale * decay * dx;
    s.y[i][j] = i > j ? f.erase * decay * dr : 0;
    if (i == j && i < c.count) {
      const float beta = Beta(f, c, i);
      s.dbeta[i] = dr / beta / beta;
    }
  }
  if (threadIdx.x < kC) s.from_state[threadIdx.x] = s.to_state[threadIdx.x] = 0;

  for (int k0 = 0; k0 < f.K; k0 += kC) {
    Part dq = {}, dk = {}, write = {};
    AddProduct(s.operands, dq, f.V, dy, [&](int l, int j) { return state(l, k0 + j); });
    ForEach(dq, [&](float& e, int i, int) { e *= f.scale * from_start[i]; });
    AddProduct(s.operands, dk, f.V, dv, [&](int l, int j) { return state(l, k0 + j); });
    ForEach(dk, [&](float& e, int i, int) { e *= -f.erase * from_start[i]; });
    AddProduct(s.operands, write, f.V, u, [&](int l, int j) { return dstate(l, k0 + j); });
    ForEach(write, [&](float& e, int i, int) { e *= to_end[i]; });
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float from = RowDot(dq, r, k0, q) + RowDot(dk, r, k0, k), to = RowDot(write, r, k0, k);
      if (Column(0) == 0) s.from_state[Row(r)] += from, s.to_state[Row(r)] += to;
    }
#pragma unroll
    for (int e = 0; e < 16; ++e) dk[e / 4][e % 4] += write[e / 4][e % 4];
    const auto keys = [&](int l, int j) { return k(l, k0 + j); };
    AddProduct(
        s.operands, dq, kC, [&](int i, int l) { return s.x[i][l]; }, keys);
    AddProduct(
        s.operands, dk, kC, [&](int j, int l) { return s.x[l][j]; },
        [&](int l, int j) { return q(l, k0 + j); });
    AddProduct(
        s.operands, dk, kC, [&](int i, int l) { return -s.y[i][l] - s.y[l][i]; }, keys);
    ForEach(dq, [&](float& e, int i, int j) {
      if (i < c.count && k0 + j < f.K) PutFloat(f.dq(c.b, c.begin + i, c.h)[k0 + j], e, f.add_dq);
    });
    ForEach(dk, [&](float& e, int i, int j) {
      if (i < c.count && k0 + j < f.K) PutFloat(f.dk(c.b, c.begin + i, c.h)[k0 + j], e, f.add_dk);
    });
  }

  float across = 0;
  for (int e = threadIdx.x; e < f.V * f.K; e += kThreads)
    across += state(e / f.K, e % f.K) * dstate(e / f.K, e % f.K);
  across = from_start[kC - 1] * BlockSum<kThreads>(across);
  // log_a_t scales all that crosses from before t to t or later. Adding up just that, instead of
  // differences of sums over rows and columns, keeps small gradients behind strong decays accurate.
  const int t = threadIdx.x;
  if (t < kC) {
    float sum = 0;
    for (int i = kC - 1; i >= 0; --i) s.pairs[i][t] = i > t ? sum += s.pairs[i][t] : 0;
  }
  __syncthreads();
  float2 total = {};
  if (t < c.count) {
    float sum = across;
    for (int i = t; i < c.count; ++i) sum += s.from_state[i];
    for (int j = 0; j < t; ++j) sum += s.to_state[j] + s.pairs[t][j];
    total = f.PutGates(c.b, c.begin + t, c.h, sum, s.dbeta[t]);
  }
  if (!f.gate_a) return;
  total = {BlockSum<kThreads>(total.x), BlockSum<kThreads>(total.y)};
  if (t == 0) GateSums(chunks.gate_sums, f).Put(blockIdx.x, total);
}

}  // namespace

void RunF32(CudaStream& stream, const GatedDeltaFwd& op) {
  DispatchCuda(op.q.dtype(), [&]<class T>() {
    const Forward<T> f(op);
    const Chunks chunks = Chunks::Of(stream, f, false);
    Prepare<T, false><<<f.tiles(), kThreads, 0, stream.handle()>>>(f, chunks);
    Outputs<T><<<dim3(f.heads(), CeilDiv(f.V, kC)), kThreads, 0, stream.handle()>>>(f, chunks);
    CheckLaunch("gated_delta");
  });
}

void RunF32(CudaStream& stream, const GatedDeltaBwd& op) {
  DispatchCuda(op.fwd.q.dtype(), [&]<class T>() {
    const Backward<T> f(op);
    const Chunks chunks = Chunks::Of(stream, f, true);
    Prepare<T, true><<<f.tiles(), kThreads, 0, stream.handle()>>>(f, chunks);
    StateGradients<T>
        <<<dim3(f.heads(), CeilDiv(f.V, kC)), kThreads, 0, stream.handle()>>>(f, chunks);
    CudaCheck(cudaFuncSetAttribute(KeyGradients<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   sizeof(GradientTiles)),
              "gated_delta");
    KeyGradients<T><<<f.tiles(), kThreads, sizeof(GradientTiles), stream.handle()>>>(f, chunks);
    CheckLaunch("gated_delta");
    AddUp(stream, op, GateSums(chunks.gate_sums, f));
  });
}

}  // namespace weft::gated_delta
