// What a Pipeline is, for the runtime's own files.
#pragma once

#include <string>
#include <utility>

#include "runtime/metal.h"

namespace mpsk {

class Pipeline {
 public:
  Pipeline(std::string label, Retained<id<MTLComputePipelineState>> state)
      : label_(std::move(label)), state_(std::move(state)) {}
  const std::string& label() const { return label_; }
  id<MTLComputePipelineState> state() const { return state_.get(); }

 private:
  std::string label_;
  Retained<id<MTLComputePipelineState>> state_;
};

}  // namespace mpsk
