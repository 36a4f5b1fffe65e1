// Products whose outputs threads share.
//
// Threads take units of outputs from a queue. The calling thread takes them
// too, so that work ends even if no other thread is free; who comes late finds
// nothing left.

#ifndef GEMINI_JAX_PRODUCT_H_
#define GEMINI_JAX_PRODUCT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kRowsAtOnce = 4;
constexpr int64_t kOutputsPerUnit = 64;

// Rows times a matrix, shared by the threads that work on it.
struct Product {
  int64_t num_rows, num_in, num_out;
  float* out;  // [num_rows, num_out]
  std::atomic<int64_t> next{0}, done{0};

  Product(int64_t num_rows, int64_t num_in, int64_t num_out, float* out)
      : num_rows(num_rows), num_in(num_in), num_out(num_out), out(out) {}
  virtual ~Product() = default;
  virtual void Outputs(int64_t begin, int64_t end) const = 0;

  int64_t NumUnits() const {
    return (num_out + kOutputsPerUnit - 1) / kOutputsPerUnit;
  }

  void Work() {
    for (int64_t unit = next++; unit < NumUnits(); unit = next++) {
      const int64_t begin = unit * kOutputsPerUnit;
      Outputs(begin, std::min(begin + kOutputsPerUnit, num_out));
      ++done;
    }
  }
};

ffi::Error Run(ffi::ThreadPool pool, std::shared_ptr<Product> product) {
  const int64_t num_helpers =
      std::min<int64_t>(pool.num_threads(), product->NumUnits()) - 1;
  for (int64_t i = 0; i < num_helpers; ++i) {
    pool.Schedule([product] { product->Work(); });
  }
  product->Work();
  while (product->done < product->NumUnits()) std::this_thread::yield();
  return ffi::Error::Success();
}

}  // namespace

#endif  // GEMINI_JAX_PRODUCT_H_
