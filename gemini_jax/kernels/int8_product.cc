// Products of few rows of float32 with a matrix of int8 in a stack, for CPUs.
//
// As in weights/int8.py each row becomes two of integers: the nearest multiples
// of a step, and what is left in steps 254 times smaller. They are stored with
// 128 added, since processors multiply unsigned bytes by signed ones; the sum
// of the matrix's row, which that adds 128 times, is the product with a row of
// ones. Compilers turn the innermost loop into such instructions (vpdpbusd).
//
// Threads take units of outputs from a queue. The calling thread takes them
// too, so that work ends even if no other thread is free; who comes late finds
// nothing left.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr float kLargest = 127;
constexpr float kFiner = 2 * kLargest;
constexpr int kOffset = 128;
constexpr int kRowsAtOnce = 4;
constexpr int64_t kOutputsPerUnit = 64;

struct Product {
  int64_t num_rows, num_in, num_out, num_units;
  const int8_t* matrix;     // [num_out, num_in]
  const float* scale;       // [num_out]
  float* out;               // [num_rows, num_out]
  std::vector<uint8_t> integers;  // [2 * num_rows + 1, num_in]
  std::vector<float> step;        // [num_rows]
  std::atomic<int64_t> next{0}, done{0};

  void Round(const float* x);
  void Outputs(int64_t begin, int64_t end);
  void Work();
};

template <int kRows>
void Dot(const uint8_t* __restrict rows, const int8_t* __restrict column,
         int64_t num_in, int32_t* __restrict sums) {
  int32_t total[kRows] = {};
  for (int64_t d = 0; d < num_in; ++d) {
    for (int r = 0; r < kRows; ++r) {
      total[r] += int32_t{rows[r * num_in + d]} * int32_t{column[d]};
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = total[r];
}

uint8_t Stored(float value) {
  // What is not a number has such a step, and so has its output.
  return static_cast<uint8_t>(
      kOffset + (std::isfinite(value) ? static_cast<int>(value) : 0));
}

void Product::Round(const float* x) {
  integers.assign((2 * num_rows + 1) * num_in, 1);
  step.resize(num_rows);
  for (int64_t r = 0; r < num_rows; ++r, x += num_in) {
    float largest = 0;
    for (int64_t d = 0; d < num_in; ++d) {
      const float size = std::fabs(x[d]);
      if (size > largest || std::isnan(size)) largest = size;
    }
    step[r] = (largest < FLT_MIN ? FLT_MIN : largest) / kLargest;
    uint8_t* coarse = &integers[2 * r * num_in];
    uint8_t* fine = coarse + num_in;
    for (int64_t d = 0; d < num_in; ++d) {
      const float steps = x[d] / step[r];
      const float whole = std::nearbyint(steps);
      coarse[d] = Stored(whole);
      fine[d] = Stored(std::nearbyint((steps - whole) * kFiner));
    }
  }
}

void Product::Outputs(int64_t begin, int64_t end) {
  const int64_t num_integers = 2 * num_rows + 1;
  std::vector<int32_t> sums(num_integers);
  for (int64_t f = begin; f < end; ++f) {
    const int8_t* column = matrix + f * num_in;
    for (int64_t r = 0; r < num_integers; r += kRowsAtOnce) {
      const uint8_t* rows = &integers[r * num_in];
      switch (num_integers - r) {
        case 1: Dot<1>(rows, column, num_in, &sums[r]); break;
        case 2: Dot<2>(rows, column, num_in, &sums[r]); break;
        case 3: Dot<3>(rows, column, num_in, &sums[r]); break;
        default: Dot<kRowsAtOnce>(rows, column, num_in, &sums[r]);
      }
    }
    const int32_t added = kOffset * sums[2 * num_rows];
    for (int64_t r = 0; r < num_rows; ++r) {
      const float coarse = sums[2 * r] - added;
      const float fine = sums[2 * r + 1] - added;
      out[r * num_out + f] = (coarse + fine / kFiner) * step[r] * scale[f];
    }
  }
}

void Product::Work() {
  for (int64_t unit = next++; unit < num_units; unit = next++) {
    const int64_t begin = unit * kOutputsPerUnit;
    Outputs(begin, std::min(begin + kOutputsPerUnit, num_out));
    ++done;
  }
}

ffi::Error Int8Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                       ffi::Buffer<ffi::S8> stack,
                       ffi::Buffer<ffi::F32> scales,
                       ffi::Buffer<ffi::S32> layer,
                       ffi::ResultBuffer<ffi::F32> y) {
  const auto dims = stack.dimensions();
  const int64_t index = layer.typed_data()[0];
  if (dims.size() != 3 || index < 0 || index >= dims[0]) {
    return ffi::Error::InvalidArgument("no such layer in the stack");
  }
  auto product = std::make_shared<Product>();
  product->num_rows = x.dimensions()[0];
  product->num_out = dims[1];
  product->num_in = dims[2];
  product->num_units = (dims[1] + kOutputsPerUnit - 1) / kOutputsPerUnit;
  product->matrix = stack.typed_data() + index * dims[1] * dims[2];
  product->scale = scales.typed_data() + index * dims[1];
  product->out = y->typed_data();
  product->Round(x.typed_data());
  const int64_t num_helpers =
      std::min<int64_t>(pool.num_threads(), product->num_units) - 1;
  for (int64_t i = 0; i < num_helpers; ++i) {
    pool.Schedule([product] { product->Work(); });
  }
  product->Work();
  while (product->done < product->num_units) std::this_thread::yield();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GeminiInt8Product, Int8Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
