// Products of few rows of float32 with a matrix in blocks of float32 or bfloat16
// in a stack, for CPUs; see weights/block_ell.py.

#include <algorithm>
#include <cstdint>
#include <memory>

#include "product.h"

namespace {

// The size of a block is a multiple of kLanes.
template <typename Number>
struct OfBlocks : Product {
  const float* x;         // [num_rows, num_in]
  const Number* blocks;   // [num_out / size, num_kept, size, size]
  const int32_t* index;   // [num_out / size, num_kept]
  int64_t size, num_kept;

  using Product::Product;

  void Outputs(int64_t begin, int64_t end) const override {
    for (int64_t f = begin; f < end; f += kLanes) {
      ForRows(num_rows, [&](auto count, int64_t first) {
        Output<decltype(count)::value>(first, f);
      });
    }
  }

  template <int kRows>
  void Output(int64_t first, int64_t f) const {
    Lanes total[kRows] = {};
    for (int64_t k = 0; k < num_kept; ++k) {
      const int64_t place = f / size * num_kept + k;
      const Number* block = blocks + place * size * size + f % size;
      const float* row = x + first * num_in + index[place] * size;
      for (int64_t d = 0; d < size; ++d) {
        const Lanes weights = Load(block + d * size);
        for (int r = 0; r < kRows; ++r) {
          total[r] += row[r * num_in + d] * weights;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      Store(total[r], out + (first + r) * num_out + f);
    }
  }
};

template <typename Number>
ffi::Error Blocks(ffi::ThreadPool pool, const float* x, int64_t num_rows,
                  int64_t num_in, const void* blocks, const int32_t* index,
                  int64_t num_columns, int64_t num_kept, int64_t size,
                  float* out) {
  auto product = std::make_shared<OfBlocks<Number>>(num_rows, num_in,
                                                    num_columns * size, out);
  product->x = x;
  product->blocks = static_cast<const Number*>(blocks);
  product->index = index;
  product->size = size;
  product->num_kept = num_kept;
  return Run(pool, product);
}

ffi::Error BlockProduct(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                        ffi::AnyBuffer stack, ffi::Buffer<ffi::S32> indices,
                        ffi::Buffer<ffi::S32> layer,
                        ffi::ResultBuffer<ffi::F32> y) {
  const auto dims = stack.dimensions();
  const int64_t at = layer.typed_data()[0];
  if (dims.size() != 5 || at < 0 || at >= dims[0]) {
    return ffi::Error::InvalidArgument("no such layer in the stack");
  }
  const int64_t size = dims[3], num_in = x.dimensions()[1];
  const int64_t num_blocks = dims[1] * dims[2];
  const int32_t* index = indices.typed_data() + at * num_blocks;
  const bool fits = std::all_of(index, index + num_blocks, [&](int32_t place) {
    return place >= 0 && (place + 1) * size <= num_in;
  });
  if (!fits || size % kLanes != 0) {
    return ffi::Error::InvalidArgument("blocks do not fit the inputs");
  }
  const bool is_half = stack.element_type() == ffi::BF16;
  const auto* begin = static_cast<const char*>(stack.untyped_data()) +
                      at * num_blocks * size * size * (is_half ? 2 : 4);
  return (is_half ? Blocks<uint16_t> : Blocks<float>)(
      pool, x.typed_data(), x.dimensions()[0], num_in, begin, index, dims[1],
      dims[2], size, y->typed_data());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GeminiBlockProduct, BlockProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
