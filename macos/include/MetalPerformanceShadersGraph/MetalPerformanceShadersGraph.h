// torch's headers name the classes; csrc does not use them. Never used on a Mac.
#pragma once

#import <Metal/Metal.h>

@class MPSGraph, MPSGraphCompilationDescriptor, MPSGraphExecutionDescriptor;
