// The part of DLPack's C exchange interface (version 1) that reads a tensor without owning it. torch's copy of the header cannot be
// included in stable-ABI mode.
#pragma once

#include <cstdint>

namespace cggm::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBFloat = 4;

struct TensorView {
  void* data;
  int32_t device_type, device_index;
  int32_t dim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* sizes;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major_version, minor_version;
  Exchange* previous;
  void* unused[3];
  int (*read)(void* object, TensorView* out);  // not 0: failed, with a Python exception; may be null
};

}  // namespace cggm::dlpack
