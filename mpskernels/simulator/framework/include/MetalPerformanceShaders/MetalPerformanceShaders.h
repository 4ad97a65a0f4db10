// What torch's headers name of MetalPerformanceShaders: the command buffer that its stream hands out.
#pragma once

#import <Metal/Metal.h>

// Every command buffer of the software device is one of these.
@interface MPSCommandBuffer : NSObject <MTLCommandBuffer> {
  struct mpsk_command_buffer* _impl;
  id<MTLCommandQueue> _queue;
}
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)commandQueue;
@property(readonly) id<MTLCommandBuffer> rootCommandBuffer;
@end
