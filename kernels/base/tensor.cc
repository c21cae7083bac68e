#include "kernels/base/tensor.h"

namespace weft {

const char* NameOf(DType dtype) {
  constexpr const char* kNames[] = {"f32", "f64", "c128", "i32", "bf16"};
  return kNames[static_cast<int>(dtype)];
}

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape,
                       const char* name)
    : TensorView(data, dtype, static_cast<int>(shape.size()), shape.begin(), name) {}

TensorView::TensorView(void* data, DType dtype, int rank, const int64_t* shape, const char* name)
    : data_(data), dtype_(dtype), rank_(rank), name_(name) {
  Check(rank >= 1 && rank <= kMaxRank, name, ": rank ", rank, " is not in [1, ", kMaxRank, "]");
  int64_t dense = 1;
  for (int i = rank - 1; i >= 0; --i) {
    shape_[i] = shape[i];
    stride_[i] = dense;
    dense *= shape[i];
  }
}

int64_t TensorView::size() const {
  int64_t n = rank_ > 0;
  for (int i = 0; i < rank_; ++i) n *= shape_[i];
  return n;
}

bool TensorView::contiguous() const {
  int64_t dense = 1;
  for (int i = rank_ - 1; i >= 0; --i) {
    if (shape_[i] != 1 && stride_[i] != dense) return false;
    dense *= shape_[i];
  }
  return true;
}

TensorView TensorView::Slice(int dim, int64_t begin, int64_t length) const {
  const size_t d = Index(dim);
  Check(begin >= 0 && length >= 0 && begin + length <= shape_[d], name_, ": slice [", begin, ", ",
        begin + length, ") of dimension ", d, " of ", ToString());
  TensorView view = *this;
  view.data_ = static_cast<char*>(data_) + begin * stride_[d] * SizeOf(dtype_);
  view.shape_[d] = length;
  return view;
}

TensorView TensorView::Split(int dim, int64_t n, int64_t m) const {
  const size_t d = Index(dim);
  Check(shape_[d] == n * m && rank_ < kMaxRank, name_, ": split of dimension ", d, " of ",
        ToString(), " into ", n, " x ", m);
  TensorView view = *this;
  for (size_t i = static_cast<size_t>(rank_); i > d + 1; --i) {
    view.shape_[i] = shape_[i - 1];
    view.stride_[i] = stride_[i - 1];
  }
  view.shape_[d] = n;
  view.stride_[d] = m * stride_[d];
  view.shape_[d + 1] = m;
  view.stride_[d + 1] = stride_[d];
  ++view.rank_;
  return view;
}

TensorView TensorView::Merge(int dim) const {
  const size_t d = Index(dim);
  Check(static_cast<int>(d) + 1 < rank_ &&
            (shape_[d] == 1 || shape_[d + 1] == 1 || stride_[d] == shape_[d + 1] * stride_[d + 1]),
        name_, ": dimensions ", d, " and ", d + 1, " of ", ToString(),
        " are not dense to each other");
  TensorView view = *this;
  view.shape_[d] = shape_[d] * shape_[d + 1];
  view.stride_[d] = shape_[d + 1] == 1 ? stride_[d] : stride_[d + 1];
  for (size_t i = d + 1; i + 1 < static_cast<size_t>(rank_); ++i) {
    view.shape_[i] = shape_[i + 1];
    view.stride_[i] = stride_[i + 1];
  }
  --view.rank_;
  return view;
}

TensorView TensorView::Repeat(int dim, int64_t n) const {
  const size_t d = Index(dim);
  Check(shape_[d] == 1, name_, ": dimension ", d, " of ", ToString(), " is not 1");
  TensorView view = *this;
  view.shape_[d] = n;
  view.stride_[d] = 0;
  return view;
}

TensorView TensorView::Reshape(std::initializer_list<int64_t> shape) const {
  TensorView view(data_, dtype_, shape, name_);
  Check(contiguous() && view.size() == size(), name_, ": reshape of ", ToString(), " to ",
        view.ToString());
  return view;
}

TensorView TensorView::Rows() const {
  if (rank_ == 1) return Split(0, 1, shape_[0]);
  TensorView view = *this;
  while (view.rank_ > 2) view = view.Merge(0);
  return view;
}

TensorView TensorView::Named(const char* name) const {
  TensorView view = *this;
  view.name_ = name;
  return view;
}

std::string TensorView::ToString() const {
  std::string text = Cat(NameOf(dtype_), " [");
  for (int i = 0; i < rank_; ++i) text += Cat(i ? ", " : "", shape_[i]);
  return text + "]";
}

void CheckShape(const char* op, const char* tensor, const TensorView& view,
                std::initializer_list<int64_t> shape) {
  bool same = view.rank() == static_cast<int>(shape.size());
  for (int i = 0; same && i < view.rank(); ++i) same = view.dim(i) == shape.begin()[i];
  if (same) return;
  const TensorView expected(nullptr, view.dtype(), shape);
  Fail(ExitCode::kFailure, op, ": ", tensor, " is ", view.ToString(), ", expected ",
       expected.ToString());
}

void CheckSameShape(const char* op, const char* tensor, const TensorView& view,
                    const TensorView& like) {
  bool same = view.rank() == like.rank();
  for (int i = 0; same && i < view.rank(); ++i) same = view.dim(i) == like.dim(i);
  Check(same, op, ": ", tensor, " is ", view.ToString(), ", expected ", like.ToString());
}

void CheckDType(const char* op, const char* tensor, const TensorView& view, DType dtype) {
  Check(view.dtype() == dtype, op, ": ", tensor, " is ", view.ToString(), ", expected ",
        NameOf(dtype));
}

void CheckDense(const char* op, const char* tensor, const TensorView& view) {
  Check(view.dim(-1) == 1 || view.stride(-1) == 1, op, ": the last dimension of ", tensor,
        " has stride ", view.stride(-1), ", expected 1");
}

}  // namespace weft
