// Everything a kernel can include, for the precompiled header.
#pragma once

#include "types.h"

#include "array.h"
#include "atomic.h"
#include "integer.h"
#include "limits.h"
#include "math.h"
#include "relational.h"

#include "geometric.h"
#include "matrix.h"
#include "pack.h"
#include "uniform.h"

#include "barrier.h"
#include "simdgroup.h"
#include "simdgroup_matrix.h"
#include "tensor_ops.h"
