// A matrix product for matrices so small that a library's call would cost more than the arithmetic. Included by loops_impl.h,
// once per instruction set.

namespace cggm::cpu::CGGM_ISA {
namespace {

constexpr int kPanel = 16;        // columns at a time
constexpr int64_t kDepth = 256;   // terms at a time: a panel of them stays in the first-level cache
constexpr int kPanelVectors = kPanel / kLanes;
constexpr int kRows = kLanes == 8 ? 4 : 2;  // as many as leave the sums in registers

// c[r][j] += sum_p a[r * a_row + p * a_term] * panel[p][j]
template <int kCount>
inline void multiply_rows(
    const float* a, int64_t a_row, int64_t a_term, const float* panel, int64_t terms, float* c, int64_t c_row, int64_t columns) {
  Floats sums[kCount][kPanelVectors] = {};
  for (int64_t p = 0; p < terms; ++p) {
    Floats values[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) values[v] = load(panel + p * kPanel + v * kLanes);
    for (int r = 0; r < kCount; ++r)
      for (int v = 0; v < kPanelVectors; ++v) sums[r][v] += values[v] * a[r * a_row + p * a_term];
  }
  for (int r = 0; r < kCount; ++r) {
    float out[kPanel];
    for (int v = 0; v < kPanelVectors; ++v) store(out + v * kLanes, sums[r][v]);
    for (int64_t j = 0; j < columns; ++j) c[r * c_row + j] += out[j];
  }
}

void multiply(const MatrixView& a, const MatrixView& b, float* c, int64_t rows, int64_t terms, int64_t columns) {
  float panel[kDepth * kPanel];
  for (int64_t first = 0; first < terms; first += kDepth) {
    const int64_t depth = terms - first < kDepth ? terms - first : kDepth;
    for (int64_t column = 0; column < columns; column += kPanel) {
      const int64_t width = columns - column < kPanel ? columns - column : kPanel;
      for (int64_t p = 0; p < depth; ++p)
        for (int64_t j = 0; j < kPanel; ++j)
          panel[p * kPanel + j] = j < width ? b.data[(first + p) * b.row + (column + j) * b.column] : 0.0f;
      const float* left = a.data + first * a.column;
      int64_t i = 0;
      for (; i + kRows <= rows; i += kRows)
        multiply_rows<kRows>(left + i * a.row, a.row, a.column, panel, depth, c + i * columns + column, columns, width);
      for (; i < rows; ++i)
        multiply_rows<1>(left + i * a.row, a.row, a.column, panel, depth, c + i * columns + column, columns, width);
    }
  }
}

}  // namespace
}  // namespace cggm::cpu::CGGM_ISA
