// MTLBinaryArchive. This device compiles a whole library at once and nothing more for a pipeline, so what an archive
// has of a pipeline is its identity: of which code, which function, with which constants. It decides between hit and
// miss, which is what programs see of an archive.
#include <cstring>
#include <fstream>
#include <sstream>

#include <boost/crc.hpp>

#include "objects.h"

NSString* const MTLBinaryArchiveDomain = @"MTLBinaryArchiveDomain";

using namespace mpsk;

namespace {

// A file: the first line, one line for each pipeline, and the checksum of all these.
constexpr const char* first_line = "mpskernels binary archive 1\n";

std::string checksum(const std::string& text) {
  boost::crc_32_type crc;
  crc.process_bytes(text.data(), text.size());
  return std::to_string(crc.checksum());
}

std::string identity(MTLComputePipelineDescriptor* descriptor, const char* caller) {
  auto* function = static_cast<MPSKFunction*>(descriptor.computeFunction);
  if (function == nil) invalid(std::string(caller) + ": the function is nil");
  std::ostringstream line;
  line << [function function]->library().checksum() << ' ' << descriptor.maxTotalThreadsPerThreadgroup << ' '
       << int{descriptor.threadGroupSizeIsMultipleOfThreadExecutionWidth} << ' ' << [function function]->name();
  for (const auto& [index, bytes] : [function constants]) {
    line << ' ' << index << '=';
    for (const std::byte byte : bytes) line << std::to_integer<int>(byte) << '.';
  }
  return line.str();
}

}  // namespace

id<MTLBinaryArchive> mpsk::new_binary_archive(MTLBinaryArchiveDescriptor* descriptor, NSError** error) {
  if (descriptor == nil) invalid("newBinaryArchive: the descriptor is nil");
  if (descriptor.url == nil) return [[MPSKBinaryArchive alloc] initWithPipelines:{}];
  const auto refuse = [&](const std::string& why) {
    return fail(error, MTLBinaryArchiveDomain, MTLBinaryArchiveErrorInvalidFile,
                "binary archive " + text([descriptor.url absoluteString]) + " " + why);
  };
  if (![descriptor.url isFileURL]) return refuse("is no file");
  std::ostringstream bytes;
  if (!(bytes << std::ifstream(text([descriptor.url path]), std::ios::binary).rdbuf()))
    return refuse("cannot be read or is empty");
  const std::string content = bytes.str();
  if (!content.starts_with(first_line)) return refuse("is not an archive");
  const size_t end = content.rfind('\n') + 1;
  if (content.substr(end) != checksum(content.substr(0, end))) return refuse("is damaged or truncated");
  std::istringstream lines(content.substr(std::strlen(first_line), end - std::strlen(first_line)));
  std::set<std::string> pipelines;
  for (std::string line; std::getline(lines, line);) pipelines.insert(line);
  return [[MPSKBinaryArchive alloc] initWithPipelines:std::move(pipelines)];
}

@implementation MTLBinaryArchiveDescriptor

- (void)dealloc {
  [_url release];
  [super dealloc];
}
- (id)copyWithZone:(NSZone*)zone {
  MTLBinaryArchiveDescriptor* copy = [MTLBinaryArchiveDescriptor new];
  copy.url = _url;
  return copy;
}
- (NSURL*)url {
  return _url;
}
- (void)setUrl:(NSURL*)url {
  [_url autorelease];
  _url = [url copy];
}

@end

@implementation MPSKBinaryArchive

- (id)initWithPipelines:(std::set<std::string>)pipelines {
  if ((self = [super init]) != nil) _pipelines = new std::set<std::string>(std::move(pipelines));
  return self;
}
- (void)dealloc {
  delete _pipelines;
  [_label release];
  [super dealloc];
}
- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [_label autorelease];
  _label = [label copy];
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}

- (BOOL)holds:(MTLComputePipelineDescriptor*)descriptor {
  return _pipelines->contains(identity(descriptor, "newComputePipelineState"));
}

- (BOOL)addComputePipelineFunctionsWithDescriptor:(MTLComputePipelineDescriptor*)descriptor error:(NSError**)error {
  _pipelines->insert(identity(descriptor, "addComputePipelineFunctions"));
  return YES;
}

- (BOOL)serializeToURL:(NSURL*)url error:(NSError**)error {
  if (![url isFileURL]) {
    fail(error, MTLBinaryArchiveDomain, MTLBinaryArchiveErrorInternalError,
         "serializeToURL: expected a file URL, got " + text([url absoluteString]));
    return NO;
  }
  std::string content = first_line;
  for (const std::string& pipeline : *_pipelines) content += pipeline + "\n";
  content += checksum(content);
  std::ofstream file(text([url path]), std::ios::binary);
  file << content;
  file.close();
  if (file) return YES;
  fail(error, MTLBinaryArchiveDomain, MTLBinaryArchiveErrorInternalError,
       "serializeToURL: cannot write " + text([url path]));
  return NO;
}

@end
