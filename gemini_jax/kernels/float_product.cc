// Products of few rows of float32 with a matrix of float32 or bfloat16 in a
// stack, for CPUs; see weights/native_products.py.
//
// The matrix is read once, from its first byte to its last: what takes time is
// memory. Where the inputs come before the outputs, threads share the inputs,
// and the sums of each part are added up in the end.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "product.h"

namespace {

constexpr int64_t kPartsPerThread = 2;
constexpr int64_t kLeastInputs = 64;
// Rows of the matrix that are read beside each other.
constexpr int kAtOnce = 4;

template <typename Number>
struct OfInputs : Shared {
  int64_t num_rows, num_in, num_out;
  const float* x;         // [num_rows, num_in]
  const Number* matrix;   // [num_in, num_out]
  int64_t num_parts, part;
  std::vector<float> sums;  // [num_parts, num_rows, num_out]

  OfInputs(const float* x, int64_t num_rows, int64_t num_in, int64_t num_out,
           const Number* matrix, int64_t most_parts)
      : num_rows(num_rows), num_in(num_in), num_out(num_out), x(x),
        matrix(matrix),
        num_parts(std::clamp<int64_t>(num_in / kLeastInputs, 1, most_parts)),
        part((num_in + num_parts - 1) / num_parts),
        sums(num_parts * num_rows * num_out) {}

  int64_t NumUnits() const override { return num_parts; }

  void Unit(int64_t unit) override {
    const int64_t end = std::min((unit + 1) * part, num_in);
    int64_t d = unit * part;
    for (; d + kAtOnce <= end; d += kAtOnce) Add<kAtOnce>(unit, d);
    for (; d < end; ++d) Add<1>(unit, d);
  }

  template <int kInputs>
  void Add(int64_t unit, int64_t d) {
    ForRows(num_rows, [&](auto count, int64_t first) {
      constexpr int kRows = decltype(count)::value;
      const Number* from = matrix + d * num_out;
      const float* row = x + first * num_in + d;
      float* to = &sums[(unit * num_rows + first) * num_out];
      float factor[kRows][kInputs];
      for (int r = 0; r < kRows; ++r) {
        std::copy_n(row + r * num_in, kInputs, factor[r]);
      }
      int64_t f = 0;
      for (; f + kLanes <= num_out; f += kLanes) {
        Lanes weights[kInputs];
        for (int i = 0; i < kInputs; ++i) {
          weights[i] = Load(from + i * num_out + f);
        }
        for (int r = 0; r < kRows; ++r) {
          Lanes total = Load(to + r * num_out + f);
          for (int i = 0; i < kInputs; ++i) total += factor[r][i] * weights[i];
          Store(total, to + r * num_out + f);
        }
      }
      for (; f < num_out; ++f) {
        for (int r = 0; r < kRows; ++r) {
          for (int i = 0; i < kInputs; ++i) {
            to[r * num_out + f] +=
                factor[r][i] * ToFloat(from[i * num_out + f]);
          }
        }
      }
    });
  }

  void Sum(float* out) const {
    const int64_t size = num_rows * num_out;
    std::copy_n(sums.data(), size, out);
    for (int64_t unit = 1; unit < num_parts; ++unit) {
      const float* from = &sums[unit * size];
      for (int64_t i = 0; i < size; ++i) out[i] += from[i];
    }
  }
};

// The outputs come first in the matrix.
template <typename Number>
struct OfTable : Product {
  const float* x;        // [num_rows, num_in]
  const Number* matrix;  // [num_out, num_in]

  using Product::Product;

  void Outputs(int64_t begin, int64_t end) const override {
    ForRows(num_rows, [&](auto count, int64_t first) {
      int64_t f = begin;
      for (; f + kAtOnce <= end; f += kAtOnce) {
        Output<decltype(count)::value, kAtOnce>(first, f);
      }
      for (; f < end; ++f) Output<decltype(count)::value, 1>(first, f);
    });
  }

  template <int kRows, int kOutputs>
  void Output(int64_t first, int64_t f) const {
    const float* row = x + first * num_in;
    const Number* from = matrix + f * num_in;
    Lanes lanes[kRows][kOutputs] = {};
    int64_t d = 0;
    for (; d + kLanes <= num_in; d += kLanes) {
      for (int i = 0; i < kOutputs; ++i) {
        const Lanes weights = Load(from + i * num_in + d);
        for (int r = 0; r < kRows; ++r) {
          lanes[r][i] += Load(row + r * num_in + d) * weights;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kOutputs; ++i) {
        float total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += lanes[r][i][lane];
        for (int64_t e = d; e < num_in; ++e) {
          total += row[r * num_in + e] * ToFloat(from[i * num_in + e]);
        }
        out[(first + r) * num_out + f + i] = total;
      }
    }
  }
};

template <typename Number>
ffi::Error Multiply(ffi::ThreadPool pool, const float* x, int64_t num_rows,
                    int64_t num_in, int64_t num_out, const void* matrix,
                    bool is_table, float* out) {
  const auto* numbers = static_cast<const Number*>(matrix);
  if (is_table) {
    auto product =
        std::make_shared<OfTable<Number>>(num_rows, num_in, num_out, out);
    product->x = x;
    product->matrix = numbers;
    return Run(pool, product);
  }
  const int64_t most_parts = kPartsPerThread * pool.num_threads();
  auto product = std::make_shared<OfInputs<Number>>(
      x, num_rows, num_in, num_out, numbers, std::max<int64_t>(most_parts, 1));
  ffi::Error error = Run(pool, product);
  product->Sum(out);
  return error;
}

ffi::Error FloatProduct(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                        ffi::AnyBuffer stack, ffi::Buffer<ffi::S32> layer,
                        bool is_table, ffi::ResultBuffer<ffi::F32> y) {
  const auto dims = stack.dimensions();
  const int64_t at = layer.typed_data()[0];
  if (dims.size() != 3 || at < 0 || at >= dims[0]) {
    return ffi::Error::InvalidArgument("no such layer in the stack");
  }
  const int64_t num_in = dims[is_table ? 2 : 1];
  const bool is_half = stack.element_type() == ffi::BF16;
  if (num_in != x.dimensions()[1] ||
      (!is_half && stack.element_type() != ffi::F32)) {
    return ffi::Error::InvalidArgument("the matrix does not fit the rows");
  }
  const auto* matrix = static_cast<const char*>(stack.untyped_data()) +
                       at * dims[1] * dims[2] * (is_half ? 2 : 4);
  return (is_half ? Multiply<uint16_t> : Multiply<float>)(
      pool, x.typed_data(), x.dimensions()[0], num_in, dims[is_table ? 1 : 2],
      matrix, is_table, y->typed_data());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GeminiFloatProduct, FloatProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<bool>("is_table")
                                  .Ret<ffi::Buffer<ffi::F32>>());
