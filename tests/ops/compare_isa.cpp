// Runs the loops of both instruction sets of x86-64 on the same input and counts differing results. Products of two floats are
// exact in double, so that fused multiply-adds change nothing and the bits must agree. Sums of products of doubles may differ
// in their last digits.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/loops.h"

using namespace cggm::cpu;

int failures = 0;

void check(bool good, const char* what, const char* type, int64_t n) {
  if (!good && ++failures < 20) std::printf("%s differs in %s at %ld elements\n", what, type, static_cast<long>(n));
}

// Random bit patterns. With `wild` they include every exponent, subnormal numbers, infinities and NaN.
template <typename T>
std::vector<T> random_values(int64_t n, bool wild, std::mt19937_64& generator) {
  std::vector<T> values(n);
  for (T& value : values) {
    uint64_t bits = generator();
    if (!wild) {
      // Sets the exponent close to that of one, for every format.
      const double moderate = std::ldexp(static_cast<double>(bits >> 11), -53) - 0.5;
      const float single = static_cast<float>(moderate);
      uint32_t word;
      std::memcpy(&word, &single, 4);
      if (sizeof(T) == 8) std::memcpy(&bits, &moderate, 8);
      if (sizeof(T) == 4) bits = word;
      if (sizeof(T) == 2) bits = (bits & 0x83ff) | 0x3800;
    }
    std::memcpy(&value, &bits, sizeof(T));
  }
  return values;
}

bool close(double a, double b, bool exact) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return exact ? a == b : a == b || std::abs(a - b) <= 1e-12 * (std::abs(a) + std::abs(b)) + 1e-12;
}

// Conversions to float16 and back may change the payload of a NaN.
bool same_bits(const std::vector<Half>& a, const std::vector<Half>& b) {
  const auto is_nan = [](Half x) { return (x.bits & 0x7fff) > 0x7c00; };
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].bits != b[i].bits && !(is_nan(a[i]) && is_nan(b[i]))) return false;
  return true;
}
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void compare(const char* type, bool wild) {
  const Loops<T> first = baseline::make_loops<T>(), second = avx2::make_loops<T>();
  const bool exact = sizeof(T) < 8;
  std::mt19937_64 generator(7);
  for (int64_t n : {0, 1, 3, 15, 16, 17, 100, 511, 512, 513, 2000}) {
    const std::vector<T> fusion = random_values<T>(n, wild, generator);
    const std::vector<T> a = random_values<T>(n, wild, generator), b = random_values<T>(n, wild, generator);
    check(close(first.sum_squares(a.data(), n), second.sum_squares(a.data(), n), exact), "sum_squares", type, n);
    for (double coefficient : {0.3, -1.7, 0.0}) {
      std::vector<T> x = a, y = a;
      const double sums[] = {first.scale(x.data(), n, coefficient), second.scale(y.data(), n, coefficient)};
      check(same_bits(x, y), "scale", type, n);
      check(close(sums[0], sums[1], exact), "the norm after scale", type, n);
    }
    const T* rows[] = {a.data(), b.data()};
    double one[5], two[5];
    first.products(fusion.data(), rows, 2, 0, n, one);
    second.products(fusion.data(), rows, 2, 0, n, two);
    for (int k = 0; k < 5; ++k) check(close(one[k], two[k], exact), "products", type, n);
    if (wild) continue;  // a fused multiply-add does not round the product with a weight
    const double weights[] = {0.5, -0.25, 2.0};  // powers of two: exact in both
    std::vector<T> x(n), y(n);
    first.combine(fusion.data(), rows, 2, 0, n, weights, x.data());
    second.combine(fusion.data(), rows, 2, 0, n, weights, y.data());
    check(same_bits(x, y), "combine", type, n);
  }
}

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 77;
  for (bool wild : {false, true}) {
    compare<float>("float32", wild);
    compare<double>("float64", wild);
    compare<BFloat16>("bfloat16", wild);
    compare<Half>("float16", wild);
  }
  return failures != 0;
}
