// Pipelines of kernels that were compiled from source, on disk; for the runtime's own files.
//
// Metal has no public way to write out a library that it compiled from text. What it can write is the machine code of a
// pipeline, as an MTLBinaryArchive, so each pipeline gets an archive of its own. Turning text into a library is left to
// each process; macOS keeps the result of that by itself.
//
// The name of an archive has a digest of all that decides its code, and one of its bytes: a file that is not what its
// name says is removed before Metal sees it. Whatever is wrong with a file or with the folder costs a compilation and
// is no error.
#pragma once

#include <string>

#include "runtime/metal.h"
#include "runtime/runtime.h"

namespace mpsk {

class PipelineCache {
 public:
  void set_folder(std::string folder);  // empty: nothing is kept
  CacheReport report();                 // tries whether a file can be made in the folder
  // The pipeline, from its archive or compiled, and then written. `name` begins the names of its files; `decides` is
  // what its code depends on besides this machine. nil and an error: Metal cannot compile it.
  Retained<id<MTLComputePipelineState>> create(MTLComputePipelineDescriptor* descriptor, const std::string& name,
                                               const std::string& decides, NSError** error);

 private:
  Retained<id<MTLComputePipelineState>> load(MTLComputePipelineDescriptor* descriptor, const std::string& stem);
  void store(MTLComputePipelineDescriptor* descriptor, const std::string& stem);
  std::string new_file();  // an empty one in the folder, which is made as well; "" and a problem noted: it cannot be
  void note(const std::string& path, const std::string& why);

  CacheReport report_;
};

Retained<id<MTLComputePipelineState>> new_pipeline_state(MTLComputePipelineDescriptor* descriptor,
                                                         MTLPipelineOption options, NSError** error);

}  // namespace mpsk
