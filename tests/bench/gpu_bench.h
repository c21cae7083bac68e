#pragma once
// What the GPU benchmarks of single ops share.

#ifdef WEFT_CUDA

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/base/cuda_stream.h"
#include "kernels/base/rng.h"
#include "kernels/base/tensor.h"

namespace weft {

// Fills a dense bf16 or f32 tensor with map(n), n standard normal; one period of 2^20 values is
// drawn.
inline const TensorView& FillNormal(CudaStream& stream, const TensorView& view,
                                    const std::function<double(double)>& map = {}) {
  Rng rng(1, Purpose::kTest, 0);
  std::vector<float> period(static_cast<size_t>(std::min<int64_t>(view.size(), 1 << 20)));
  for (float& x : period) x = static_cast<float>(map ? map(rng.Normal()) : rng.Normal());
  int64_t filled = SizeOf(view.dtype()) * static_cast<int64_t>(period.size());
  if (view.dtype() == DType::kBF16) {
    std::vector<uint16_t> rounded(period.size());
    std::transform(period.begin(), period.end(), rounded.begin(), ToBF16);
    stream.Copy(view.data(), rounded.data(), filled);
    stream.Synchronize();
  } else {
    stream.Copy(view.data(), period.data(), filled);
    stream.Synchronize();
  }
  for (; filled < view.bytes(); filled *= 2) {
    stream.Copy(view.Data<std::byte>() + filled, view.data(),
                std::min(filled, view.bytes() - filled));
  }
  return view;
}

// The median of 30 replays of a CUDA graph.
inline double Milliseconds(CudaStream& stream, const std::function<void()>& run) {
  run();
  const auto graph = stream.Capture(run);
  CudaEvent start, end;
  std::vector<double> ms;
  for (int i = 0; i < 33; ++i) {
    start.Record(stream);
    stream.Replay(*graph);
    end.Record(stream);
    end.Wait();
    if (i >= 3) ms.push_back(end.MillisecondsSince(start));
  }
  std::nth_element(ms.begin(), ms.begin() + 15, ms.end());
  return ms[15];
}

}  // namespace weft

#endif
