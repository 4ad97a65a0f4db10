// torch's headers name the class; csrc does not use it. Never used on a Mac.
#pragma once

#import <Metal/Metal.h>

@class MPSCommandBuffer;
