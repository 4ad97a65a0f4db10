// GNUstep's headers ask for this file by name; libBlocksRuntime calls it Block.h.
#pragma once
#include <Block.h>
