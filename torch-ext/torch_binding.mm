// The extension module of a build for the Hub. The kernels are in it, in a header that kernel-builder writes.
#include "registration.h"
#include "runtime/metal.h"
#include EMBEDDED_METALLIB_HEADER

namespace {
[[maybe_unused]] const bool embedded = (mpsk::set_metallib(EMBEDDED_METALLIB_NAMESPACE::createLibrary), true);
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
