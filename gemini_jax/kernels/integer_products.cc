// Products of few rows of float32 with a matrix of int8 or of 4 bits in a stack,
// for CPUs.
//
// As in weights/int8.py each row becomes two of integers: the nearest multiples
// of a step, and what is left in steps 254 times smaller. Processors multiply
// unsigned bytes by signed ones (vpdpbusd), into which compilers turn the
// innermost loops. With int8 the rows are unsigned: 128 is added, and taken off
// again by the product with a row of ones. With 4 bits the codes are unsigned:
// they are 8 too large, which the sum of the row's integers makes up for.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

#include "product.h"

namespace {

constexpr float kLargest = 127;
constexpr float kFiner = 2 * kLargest;
constexpr int kOffset = 128;
constexpr int kCodeOffset = 8;

int8_t Whole(float value) {
  // What is not a number has such a step, and so has its output.
  return static_cast<int8_t>(std::isfinite(value) ? value : 0);
}

// The step of a row, and its integers, coarse and fine.
float Round(const float* x, int64_t num_in, int8_t* coarse, int8_t* fine) {
  float largest = 0;
  for (int64_t d = 0; d < num_in; ++d) {
    const float size = std::fabs(x[d]);
    if (size > largest || std::isnan(size)) largest = size;
  }
  const float step = (largest < FLT_MIN ? FLT_MIN : largest) / kLargest;
  for (int64_t d = 0; d < num_in; ++d) {
    const float steps = x[d] / step;
    const float whole = std::nearbyint(steps);
    coarse[d] = Whole(whole);
    fine[d] = Whole(std::nearbyint((steps - whole) * kFiner));
  }
  return step;
}

// Sums of the products of a column with each of the rows, one after the other.
template <int kRows, typename Row, typename Column>
void Dot(const Row* __restrict rows, int64_t stride,
         const Column* __restrict column, int64_t size,
         int32_t* __restrict sums) {
  int32_t total[kRows] = {};
  for (int64_t d = 0; d < size; ++d) {
    for (int r = 0; r < kRows; ++r) {
      total[r] += int32_t{rows[r * stride + d]} * int32_t{column[d]};
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = total[r];
}

template <typename Row, typename Column>
void Dots(const Row* rows, int64_t num_rows, int64_t stride,
          const Column* column, int64_t size, int32_t* sums) {
  ForRows(num_rows, [&](auto count, int64_t first) {
    Dot<decltype(count)::value>(rows + first * stride, stride, column, size,
                                sums + first);
  });
}

struct Rounded : Product {
  std::vector<float> step = std::vector<float>(num_rows);

  using Product::Product;
};

struct OfBytes : Rounded {
  const int8_t* matrix;           // [num_out, num_in]
  const float* scale;             // [num_out]
  std::vector<uint8_t> integers;  // [2 * num_rows + 1, num_in]

  OfBytes(const float* x, int64_t num_rows, int64_t num_in, int64_t num_out,
          float* out)
      : Rounded(num_rows, num_in, num_out, out),
        integers((2 * num_rows + 1) * num_in, 1) {
    auto* row = reinterpret_cast<int8_t*>(integers.data());
    for (int64_t r = 0; r < num_rows; ++r, x += num_in, row += 2 * num_in) {
      step[r] = Round(x, num_in, row, row + num_in);
    }
    for (int64_t i = 0; i < 2 * num_rows * num_in; ++i) integers[i] += kOffset;
  }

  void Outputs(int64_t begin, int64_t end) const override {
    const int64_t num_integers = 2 * num_rows + 1;
    std::vector<int32_t> sums(num_integers);
    for (int64_t f = begin; f < end; ++f) {
      Dots(integers.data(), num_integers, num_in, matrix + f * num_in, num_in,
           sums.data());
      const int32_t added = kOffset * sums[2 * num_rows];
      for (int64_t r = 0; r < num_rows; ++r) {
        const float coarse = sums[2 * r] - added;
        const float fine = sums[2 * r + 1] - added;
        out[r * num_out + f] = (coarse + fine / kFiner) * step[r] * scale[f];
      }
    }
  }
};

// Sums over groups of scaled products of codes with each of some rows, whose
// even places come first in a group. Lanes are added up once, at the end.
#ifdef __AVX512VNNI__
template <int kRows>
struct Sums {
  __m512 lanes[kRows];

  Sums() {
    for (__m512& lane : lanes) lane = _mm512_setzero_ps();
  }

  void Add(const int8_t* rows, int64_t stride, const uint8_t* codes,
           int64_t pairs, float factor) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t p = 0; p < pairs; p += 64) {
      const int64_t left = pairs - p;
      const __mmask64 mask = left < 64 ? (uint64_t{1} << left) - 1 : ~0ull;
      const __m512i both = _mm512_maskz_loadu_epi8(mask, codes + p);
      const __m512i even =
          _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      const __m512i odd = _mm512_and_si512(both, low);
      for (int r = 0; r < kRows; ++r) {
        const int8_t* row = rows + r * stride + p;
        __m512i sum = _mm512_dpbusd_epi32(
            _mm512_setzero_si512(), even, _mm512_maskz_loadu_epi8(mask, row));
        sum = _mm512_dpbusd_epi32(
            sum, odd, _mm512_maskz_loadu_epi8(mask, row + pairs));
        lanes[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                   _mm512_set1_ps(factor), lanes[r]);
      }
    }
  }

  float Sum(int r) const { return _mm512_reduce_add_ps(lanes[r]); }
};
#else
template <int kRows>
struct Sums {
  float totals[kRows] = {};
  std::vector<uint8_t> column;

  void Add(const int8_t* rows, int64_t stride, const uint8_t* codes,
           int64_t pairs, float factor) {
    column.resize(2 * pairs);
    for (int64_t p = 0; p < pairs; ++p) column[p] = codes[p] >> 4;
    for (int64_t p = 0; p < pairs; ++p) column[pairs + p] = codes[p] & 15;
    int32_t products[kRows];
    Dots(rows, kRows, stride, column.data(), 2 * pairs, products);
    for (int r = 0; r < kRows; ++r) totals[r] += products[r] * factor;
  }

  float Sum(int r) const { return totals[r]; }
};
#endif

// Two codes a byte, that of the even place in the upper half. Within a group the
// even places come first here, then the odd ones, so that a byte is taken apart
// without a shuffle.
struct OfHalfBytes : Rounded {
  const uint8_t* codes;   // [num_out, num_pairs]
  const uint16_t* scale;  // bfloat16 [num_out, num_groups]
  int64_t group, num_pairs, num_groups;
  std::vector<int8_t> integers;  // [2 * num_rows, 2 * num_pairs]
  std::vector<float> sums;       // [num_rows, num_groups], of a row's integers

  OfHalfBytes(const float* x, int64_t num_rows, int64_t num_in, int64_t num_out,
              int64_t group, float* out)
      : Rounded(num_rows, num_in, num_out, out),
        group(group),
        num_pairs((num_in + 1) / 2),
        num_groups((num_in + group - 1) / group),
        integers(num_rows * 4 * num_pairs),
        sums(num_rows * num_groups) {
    std::vector<int8_t> both(4 * num_pairs);
    int8_t* coarse = both.data();
    int8_t* fine = coarse + 2 * num_pairs;
    int8_t* row = integers.data();
    for (int64_t r = 0; r < num_rows; ++r, x += num_in) {
      step[r] = Round(x, num_in, coarse, fine);
      for (const int8_t* from : {coarse, fine}) {
        for (int64_t g = 0; g < num_groups; ++g) {
          const int64_t begin = g * group;
          const int64_t pairs = PairsOf(g);
          for (int64_t p = 0; p < pairs; ++p) {
            row[begin + p] = from[begin + 2 * p];
            row[begin + pairs + p] = from[begin + 2 * p + 1];
          }
        }
        row += 2 * num_pairs;
      }
      for (int64_t d = 0; d < num_in; ++d) {
        sums[r * num_groups + d / group] += coarse[d] + fine[d] / kFiner;
      }
    }
  }

  int64_t PairsOf(int64_t g) const {
    return std::min(group / 2, num_pairs - g * group / 2);
  }

  void Outputs(int64_t begin, int64_t end) const override {
    for (int64_t f = begin; f < end; ++f) {
      ForRows(num_rows, [&](auto count, int64_t first) {
        Output<decltype(count)::value>(first, f);
      });
    }
  }

  template <int kRows>
  void Output(int64_t first, int64_t f) const {
    Sums<2 * kRows> total;
    float added[kRows] = {};
    for (int64_t g = 0; g < num_groups; ++g) {
      const float factor = ToFloat(scale[f * num_groups + g]);
      total.Add(&integers[first * 4 * num_pairs + g * group], 2 * num_pairs,
                codes + f * num_pairs + g * group / 2, PairsOf(g), factor);
      for (int r = 0; r < kRows; ++r) {
        added[r] += sums[(first + r) * num_groups + g] * factor;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const float sum = total.Sum(2 * r) + total.Sum(2 * r + 1) / kFiner;
      out[(first + r) * num_out + f] =
          (sum - kCodeOffset * added[r]) * step[first + r];
    }
  }
};

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
  auto product =
      std::make_shared<OfBytes>(x.typed_data(), x.dimensions()[0], dims[2],
                                dims[1], y->typed_data());
  product->matrix = stack.typed_data() + index * dims[1] * dims[2];
  product->scale = scales.typed_data() + index * dims[1];
  return Run(pool, product);
}

ffi::Error Int4Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                       ffi::Buffer<ffi::U8> stack,
                       ffi::Buffer<ffi::BF16> scales,
                       ffi::Buffer<ffi::S32> layer, int64_t group,
                       ffi::ResultBuffer<ffi::F32> y) {
  const auto dims = stack.dimensions();
  const auto rows = x.dimensions();
  const int64_t index = layer.typed_data()[0];
  if (dims.size() != 3 || index < 0 || index >= dims[0]) {
    return ffi::Error::InvalidArgument("no such layer in the stack");
  }
  if (group < 2 || group % 2 != 0 || (rows[1] + 1) / 2 != dims[2] ||
      scales.dimensions()[2] != (rows[1] + group - 1) / group) {
    return ffi::Error::InvalidArgument("groups do not fit the matrix");
  }
  auto product = std::make_shared<OfHalfBytes>(
      x.typed_data(), rows[0], rows[1], dims[1], group, y->typed_data());
  product->codes = stack.typed_data() + index * dims[1] * dims[2];
  product->scale = reinterpret_cast<const uint16_t*>(scales.untyped_data()) +
                   index * dims[1] * product->num_groups;
  return Run(pool, product);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(GeminiInt4Product, Int4Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("group")
                                  .Ret<ffi::Buffer<ffi::F32>>());
