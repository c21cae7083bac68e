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

// Fills a bf16 or f32 tensor with map(n), n standard normal; one period of 2^20 values is drawn.
inline const TensorView& FillNormal(CudaStream& stream, const TensorView& view,
                                    const std::function<double(double)>& map = {}) {
  Rng rng(1, Purpose::kTest, 0);
  std::vector<double> period(static_cast<size_t>(std::min<int64_t>(view.size(), 1 << 20)));
  for (double& x : period) x = map ? map(rng.Normal()) : rng.Normal();
  const auto copy = [&](auto round) {
    std::vector<decltype(round(0.0))> values(static_cast<size_t>(view.size()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = round(period[i % period.size()]);
    stream.Copy(view.data(), values.data(), view.bytes());
    stream.Synchronize();
  };
  if (view.dtype() == DType::kBF16) {
    copy([](double x) { return ToBF16(static_cast<float>(x)); });
  } else {
    copy([](double x) { return static_cast<float>(x); });
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
