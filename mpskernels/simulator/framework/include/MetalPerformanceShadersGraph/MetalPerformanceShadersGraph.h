// torch's headers name these classes; nothing here builds graphs.
#pragma once

@class MPSGraph, MPSGraphExecutable, MPSGraphExecutionDescriptor, MPSGraphCompilationDescriptor;
