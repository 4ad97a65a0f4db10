// <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
#pragma once
#include "../metal_tensor"
namespace mpp {
namespace tensor_ops {
using namespace metal::__tensor_ops;
}
}  // namespace mpp
