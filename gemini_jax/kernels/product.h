// Products whose parts threads share.
//
// Threads take units from a queue. The calling thread takes them too, so that
// work ends even if no other thread is free; who comes late finds nothing left.

#ifndef GEMINI_JAX_PRODUCT_H_
#define GEMINI_JAX_PRODUCT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kRowsAtOnce = 4;
constexpr int64_t kOutputsPerUnit = 64;

// Sixteen numbers, in as many registers as that takes.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

inline Lanes Load(const float* from) {
  Lanes values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Lanes Load(const uint16_t* bfloat16) {
  typedef uint16_t Half __attribute__((vector_size(32)));
  typedef uint32_t Wide __attribute__((vector_size(64)));
  Half bits;
  std::memcpy(&bits, bfloat16, sizeof bits);
  const Wide wide = __builtin_convertvector(bits, Wide) << 16;
  Lanes values;
  std::memcpy(&values, &wide, sizeof values);
  return values;
}

inline void Store(const Lanes& values, float* to) {
  std::memcpy(to, &values, sizeof values);
}

inline float ToFloat(float value) { return value; }

inline float ToFloat(uint16_t bfloat16) {
  const uint32_t wide = uint32_t{bfloat16} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Calls `work(count, first)` for a few rows at a time; `count` is a constant.
template <typename Work>
void ForRows(int64_t num_rows, const Work& work) {
  for (int64_t r = 0; r < num_rows; r += kRowsAtOnce) {
    switch (num_rows - r) {
      case 1: work(std::integral_constant<int, 1>(), r); break;
      case 2: work(std::integral_constant<int, 2>(), r); break;
      case 3: work(std::integral_constant<int, 3>(), r); break;
      default: work(std::integral_constant<int, kRowsAtOnce>(), r);
    }
  }
}

// What threads share.
struct Shared {
  std::atomic<int64_t> next{0}, done{0};

  virtual ~Shared() = default;
  virtual int64_t NumUnits() const = 0;
  virtual void Unit(int64_t unit) = 0;

  void Work() {
    for (int64_t unit = next++; unit < NumUnits(); unit = next++) {
      Unit(unit);
      ++done;
    }
  }
};

// Rows times a matrix, whose outputs are shared.
struct Product : Shared {
  int64_t num_rows, num_in, num_out;
  float* out;  // [num_rows, num_out]

  Product(int64_t num_rows, int64_t num_in, int64_t num_out, float* out)
      : num_rows(num_rows), num_in(num_in), num_out(num_out), out(out) {}
  virtual void Outputs(int64_t begin, int64_t end) const = 0;

  int64_t NumUnits() const override {
    return (num_out + kOutputsPerUnit - 1) / kOutputsPerUnit;
  }

  void Unit(int64_t unit) override {
    const int64_t begin = unit * kOutputsPerUnit;
    Outputs(begin, std::min(begin + kOutputsPerUnit, num_out));
  }
};

inline ffi::Error Run(ffi::ThreadPool pool, std::shared_ptr<Shared> shared) {
  const int64_t num_helpers =
      std::min<int64_t>(pool.num_threads(), shared->NumUnits()) - 1;
  for (int64_t i = 0; i < num_helpers; ++i) {
    pool.Schedule([shared] { shared->Work(); });
  }
  shared->Work();
  while (shared->done < shared->NumUnits()) std::this_thread::yield();
  return ffi::Error::Success();
}

}  // namespace

#endif  // GEMINI_JAX_PRODUCT_H_
