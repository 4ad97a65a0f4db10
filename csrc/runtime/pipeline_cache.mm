#include "runtime/pipeline_cache.h"

#include <c10/util/StringUtil.h>
#include <c10/util/hash.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace mpsk {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "mpskernels 1\n";  // part of every digest: another number leaves all files behind
constexpr const char* kEnding = ".archive";

std::string digest(const std::string& bytes) { return c10::sha1(kFormat + bytes).str(); }

// Metal's compiler comes with the system, whose every build has a kernel of its own.
std::string system_build() {
  utsname system{};
  uname(&system);
  return c10::str(system.sysname, ' ', system.release, ' ', system.version, ' ', system.machine);
}

// As far as they can be read: the digest tells.
std::string contents(const fs::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

// The archive in a file, or a new one; nil and an error: the file holds none.
Retained<id<MTLBinaryArchive>> archive(const char* path, NSError** error) {
  Retained<MTLBinaryArchiveDescriptor*> descriptor([[MTLBinaryArchiveDescriptor alloc] init]);
  if (path != nullptr) [descriptor.get() setUrl:[NSURL fileURLWithPath:ns_string(path)]];
  return Retained<id<MTLBinaryArchive>>([metal_device() newBinaryArchiveWithDescriptor:descriptor.get() error:error]);
}

}  // namespace

void PipelineCache::set_folder(std::string folder) {
  report_ = {};
  report_.folder = std::move(folder);
}

CacheReport PipelineCache::report() {
  const std::string file = report_.folder.empty() ? "" : new_file();
  report_.usable = !file.empty();
  if (report_.usable) unlink(file.c_str());
  return report_;
}

Retained<id<MTLComputePipelineState>> PipelineCache::create(MTLComputePipelineDescriptor* descriptor,
                                                            const std::string& name, const std::string& decides,
                                                            NSError** error) {
  const bool keeps = !report_.folder.empty();
  std::string stem;
  if (keeps) {
    const char* gpu = [[metal_device() name] UTF8String];
    stem = c10::str(name, '-', digest(c10::str(system_build(), '\n', gpu, '\n', decides)), '-');
    if (auto found = load(descriptor, stem)) {
      ++report_.loaded;
      return found;
    }
  }
  auto compiled = new_pipeline_state(descriptor, MTLPipelineOptionNone, error);
  if (!compiled) return compiled;
  ++report_.compiled;
  if (keeps) store(descriptor, stem);
  return compiled;
}

Retained<id<MTLComputePipelineState>> PipelineCache::load(MTLComputePipelineDescriptor* descriptor,
                                                          const std::string& stem) {
  std::error_code failed;
  for (fs::directory_iterator at(report_.folder, failed), end; !failed && at != end; at.increment(failed)) {
    const std::string file = at->path().filename();
    if (!file.starts_with(stem)) continue;
    std::string why = "not what its name says";
    if (file == stem + digest(contents(at->path())) + kEnding) {
      NSError* error = nil;
      if (const auto opened = archive(at->path().c_str(), &error)) {
        [descriptor setBinaryArchives:[NSArray arrayWithObject:opened.get()]];
        auto found = new_pipeline_state(descriptor, MTLPipelineOptionFailOnBinaryArchiveMiss, &error);
        [descriptor setBinaryArchives:nil];
        if (found) return found;
      }
      why = message(error);
    }
    note(at->path(), why);
    unlink(at->path().c_str());
  }
  if (failed && failed != std::errc::no_such_file_or_directory) note(report_.folder, failed.message());
  return {};
}

void PipelineCache::store(MTLComputePipelineDescriptor* descriptor, const std::string& stem) {
  const std::string file = new_file();
  if (file.empty()) return;
  NSError* error = nil;
  const auto made = archive(nullptr, &error);
  if (!made || ![made.get() addComputePipelineFunctionsWithDescriptor:descriptor error:&error] ||
      ![made.get() serializeToURL:[NSURL fileURLWithPath:ns_string(file)] error:&error]) {
    note(file, message(error));
    unlink(file.c_str());
    return;
  }
  // Other processes see the whole file or none; two that write the same pipeline write two files, or equal ones.
  const std::string path = fs::path(report_.folder) / (stem + digest(contents(file)) + kEnding);
  std::error_code failed;
  fs::rename(file, path, failed);
  if (!failed) return;
  note(path, failed.message());
  unlink(file.c_str());
}

std::string PipelineCache::new_file() {
  std::error_code failed;
  fs::create_directories(report_.folder, failed);
  std::string path = fs::path(report_.folder) / "new-XXXXXX";
  if (!failed) {
    const int file = mkstemp(path.data());
    if (file >= 0) {
      close(file);
      return path;
    }
    failed = std::error_code(errno, std::generic_category());
  }
  note(report_.folder, failed.message());
  return "";
}

void PipelineCache::note(const std::string& path, const std::string& why) { report_.problem = path + ": " + why; }

Retained<id<MTLComputePipelineState>> new_pipeline_state(MTLComputePipelineDescriptor* descriptor,
                                                         MTLPipelineOption options, NSError** error) {
  return Retained<id<MTLComputePipelineState>>([metal_device() newComputePipelineStateWithDescriptor:descriptor
                                                                                             options:options
                                                                                          reflection:nullptr
                                                                                               error:error]);
}

}  // namespace mpsk
